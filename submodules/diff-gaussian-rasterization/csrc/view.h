// A caller's camera -> the View that kernels read, and the way back. For the CPU and for a GPU.
#pragma once

#include "core/ops.h"

#include "splats.h"

namespace mien {

// One camera, as callers have it.
struct CameraArrays {
    const float *world_to_camera, *intrinsics, *background;  // [4, 4], [3, 3], [3]
    const float* centre;  // [3] camera centre in the world; null: from world_to_camera
};

// The margin by which J's clamp is wider than the picture, as a share of it: 0.3 tan(fov / 2).
constexpr float kMargin = 0.15f;

// `rules` has the fields near_plane to stop and normalise_quats to symmetric_clamp of the C functions' settings.
template <class Rules>
MIEN_HD inline View make_view(const CameraArrays& camera, const Rules& rules, std::int32_t width, std::int32_t height) {
    View v = {};
    for (int i = 0; i < 3; ++i) {
        for (int j = 0; j < 3; ++j) v.rotation[3 * i + j] = camera.world_to_camera[4 * i + j];
        v.translation[i] = camera.world_to_camera[4 * i + 3];
    }
    for (int j = 0; j < 3; ++j) {
        v.centre[j] = 0;
        for (int i = 0; i < 3; ++i) v.centre[j] -= v.rotation[3 * i + j] * v.translation[i];
        if (camera.centre != nullptr) v.centre[j] = camera.centre[j];
        v.background[j] = camera.background[j];
    }
    const float* k = camera.intrinsics;
    v.fx = k[0], v.fy = k[4], v.cx = k[2], v.cy = k[5];
    const float w = static_cast<float>(width), h = static_cast<float>(height);
    const float cx = rules.symmetric_clamp ? 0.5f * w : v.cx, cy = rules.symmetric_clamp ? 0.5f * h : v.cy;
    v.x_low = -(cx + kMargin * w) / v.fx, v.x_high = (w - cx + kMargin * w) / v.fx;
    v.y_low = -(cy + kMargin * h) / v.fy, v.y_high = (h - cy + kMargin * h) / v.fy;
    v.near_plane = rules.near_plane, v.far_plane = rules.far_plane, v.eps2d = rules.eps2d;
    v.alpha_max = rules.alpha_max, v.stop = rules.stop;
    v.width = width, v.height = height;
    v.tiles_x = (width + kTile - 1) / kTile, v.tiles_y = (height + kTile - 1) / kTile;
    v.normalise_quats = rules.normalise_quats, v.square_extent = rules.square_extent;
    v.clamp_passes_gradient = rules.clamp_passes_gradient, v.antialias = rules.antialias;
    return v;
}

// From the 23 sums of core/projection.h to the matrices [4, 4] and [3, 3]. The centre is -R^T t; the clamp's limits
// depend on the focal lengths, and unless they are symmetric on the principal point.
MIEN_HD inline void spread_camera(const View& v, bool own_centre, bool symmetric_clamp, const float* g,
                                  float* world_to_camera, float* intrinsics) {
    const float *g_rotation = g, *g_translation = g + 9, *g_centre = g + 12, *g_k = g + 15, *g_limit = g + 19;
    for (int i = 0; i < 16; ++i) world_to_camera[i] = 0;
    for (int i = 0; i < 3; ++i) {
        world_to_camera[4 * i + 3] = g_translation[i];
        for (int j = 0; j < 3; ++j) {
            world_to_camera[4 * i + j] = g_rotation[3 * i + j];
            if (!own_centre) continue;
            world_to_camera[4 * i + j] -= v.translation[i] * g_centre[j];
            world_to_camera[4 * i + 3] -= v.rotation[3 * i + j] * g_centre[j];
        }
    }
    for (int i = 0; i < 9; ++i) intrinsics[i] = 0;
    intrinsics[0] = g_k[0] - (g_limit[0] * v.x_low + g_limit[1] * v.x_high) / v.fx;
    intrinsics[4] = g_k[1] - (g_limit[2] * v.y_low + g_limit[3] * v.y_high) / v.fy;
    intrinsics[2] = g_k[2] - (symmetric_clamp ? 0.0f : (g_limit[0] + g_limit[1]) / v.fx);
    intrinsics[5] = g_k[3] - (symmetric_clamp ? 0.0f : (g_limit[2] + g_limit[3]) / v.fy);
}

}  // namespace mien

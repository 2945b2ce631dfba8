// What a caller hands to the rasteriser, on the CPU and on the device, and the checks that need no tensor's values.
// Mirrors diff_gaussian_rasterization/_calls.py.
#pragma once

#include <cstdint>
#include <string>

#include "api.h"
#include "splats.h"

namespace mien {

struct Settings {
    const float *world_to_camera, *intrinsics, *background;  // [4, 4], [3, 3], [3]
    const float* centre;  // [3] camera centre in the world; null: from world_to_camera
    float near_plane, far_plane, eps2d, alpha_max, stop;
    int32_t width, height;
    int32_t normalise_quats, square_extent, clamp_passes_gradient, antialias, symmetric_clamp;
};

// Gaussians in the world, or (with a mesh) on the triangles of a mesh with these vertices [V, 3].
struct Inputs : SplatInputs {
    const void *mesh, *binding;  // handles
    const float* vertices;
};

struct PictureOutputs {
    float *image, *alpha, *depth;
    int32_t* radii;
};

struct PictureInputs {
    const float *g_image, *g_alpha, *g_depth;  // g_depth may be null
    const float *image, *depth;
};

struct AllGradients {
    float *means, *quats, *scales, *covariances, *opacities, *sh, *colors, *screen_offsets, *sh0, *vertices;
    float *world_to_camera, *intrinsics, *background;  // [4, 4], [3, 3], [3]
};

inline void check_rules(const Settings& s) {
    require(s.width > 0 && s.height > 0 && s.width <= 65535 && s.height <= 65535,
            "width and height must lie in 1 .. 65535");
    require(s.near_plane > 0 && s.far_plane > s.near_plane, "near must be positive and smaller than far");
    require(s.eps2d >= 0 && s.alpha_max > 0 && s.alpha_max < 1 && s.stop > 0, "the rules are out of range");
}

// Of Gaussians without a mesh: nothing else of one. `bound` and `vertices`: of the binding and the mesh, if there is
// one.
inline void check_mount(const Inputs& in, int64_t bound, int64_t vertices) {
    if (in.mesh == nullptr) {
        require(in.binding == nullptr && in.vertices == nullptr, "a binding or vertices without a mesh");
        return;
    }
    require(bound == in.count, "the binding is of another number of Gaussians");
    require(in.covariances == nullptr && in.colors == nullptr, "Gaussians on a mesh have quats, scales and sh");
    require(in.vertices != nullptr || vertices == 0, "vertices is null");
}

inline void check_splats(const SplatInputs& in) {
    require(in.count >= 0 && in.count < (int64_t(1) << 31), "the number of splats is out of range");
    require((in.covariances != nullptr) != (in.quats != nullptr && in.scales != nullptr) || in.count == 0,
            "give either quats and scales or covariances");
    const bool harmonics = in.sh != nullptr || (in.sh0 != nullptr && in.sh_coefficients == 1);  // sh may be empty
    require(harmonics != (in.colors != nullptr) || in.count == 0, "give either sh or colors");
    require(in.sh0 == nullptr || harmonics || in.count == 0, "sh0 goes with sh");
    require((in.means != nullptr && in.opacities != nullptr) || in.count == 0, "means or opacities is null");
    const int degree = in.sh_degree;
    require(in.colors != nullptr || (degree >= 0 && degree <= 3 && in.sh_coefficients >= (degree + 1) * (degree + 1)),
            "sh_degree must lie in 0 .. 3 and sh must hold (sh_degree + 1)^2 coefficients");
}

inline void check_pictures(const PictureOutputs& out, int64_t count) {
    require(out.image != nullptr && out.alpha != nullptr, "an output is null");
    require(out.radii != nullptr || count == 0, "radii is null");
}

inline void check_backward(const PictureInputs& picture, const AllGradients& out) {
    require(picture.g_image != nullptr && picture.image != nullptr &&
                (picture.g_depth == nullptr || picture.depth != nullptr),
            "an input of backward is null");
    require((out.world_to_camera == nullptr) == (out.intrinsics == nullptr), "camera gradients come together");
}

}  // namespace mien

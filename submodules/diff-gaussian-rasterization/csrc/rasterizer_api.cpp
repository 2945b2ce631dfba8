// The rasteriser's C functions: checks, and the translation of a caller's camera into a View.
#include <cmath>
#include <cstring>

#include "api.h"
#include "parallel.h"
#include "rasterizer.h"

namespace {

using namespace mien;

// Mirrors diff_gaussian_rasterization/_calls.py.
struct Settings {
    const float *world_to_camera, *intrinsics, *background;  // [4, 4], [3, 3], [3]
    const float* centre;  // [3] camera centre in the world; null: from world_to_camera
    float near_plane, far_plane, eps2d, alpha_max, stop;
    int32_t width, height;
    int32_t normalise_quats, square_extent, clamp_passes_gradient, antialias, symmetric_clamp;
};

// Gaussians in the world, or (with a mesh) on the triangles of a mesh with these vertices [V, 3].
struct Inputs : SplatInputs {
    const RigMesh* mesh;
    const RigBinding* binding;
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

void require_finite(const float* values, int count, const char* name) {
    require(values != nullptr, (std::string(name) + " is null").c_str());
    for (int i = 0; i < count; ++i)
        if (!std::isfinite(values[i])) throw NotFinite(std::string(name) + " is not finite");
}

void check_settings(const Settings& s) {
    require_finite(s.world_to_camera, 16, "world_to_camera");
    require_finite(s.intrinsics, 9, "intrinsics");
    require_finite(s.background, 3, "background");
    if (s.centre != nullptr) require_finite(s.centre, 3, "camera centre");
    require(s.width > 0 && s.height > 0 && s.width <= 65535 && s.height <= 65535,
            "width and height must lie in 1 .. 65535");
    require(s.intrinsics[0] > 0 && s.intrinsics[4] > 0, "intrinsics: the focal lengths must be positive");
    require(s.near_plane > 0 && s.far_plane > s.near_plane, "near must be positive and smaller than far");
    require(s.eps2d >= 0 && s.alpha_max > 0 && s.alpha_max < 1 && s.stop > 0, "the rules are out of range");
}

void check_mesh(const Inputs& in) {
    if (in.mesh == nullptr) {
        require(in.binding == nullptr && in.vertices == nullptr, "a binding or vertices without a mesh");
        return;
    }
    check_pair(in.mesh, in.binding);
    require(in.binding->count() == in.count, "the binding is of another number of Gaussians");
    require(in.covariances == nullptr && in.colors == nullptr, "Gaussians on a mesh have quats, scales and sh");
    require(in.vertices != nullptr || in.mesh->vertices == 0, "vertices is null");
    for (int64_t i = 0; i < 3 * in.mesh->vertices; ++i)
        if (!std::isfinite(in.vertices[i]))
            throw NotFinite("vertices: row " + std::to_string(i / 3) + " is not finite");
}

void check_inputs(const Inputs& in) {
    check_mesh(in);
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

// The margin by which J's clamp is wider than the picture, as a share of it: 0.3 tan(fov / 2).
constexpr float kMargin = 0.15f;

View make_view(const Settings& s) {
    View v = {};
    for (int i = 0; i < 3; ++i) {
        for (int j = 0; j < 3; ++j) v.rotation[3 * i + j] = s.world_to_camera[4 * i + j];
        v.translation[i] = s.world_to_camera[4 * i + 3];
    }
    for (int j = 0; j < 3; ++j) {
        v.centre[j] = 0;
        for (int i = 0; i < 3; ++i) v.centre[j] -= v.rotation[3 * i + j] * v.translation[i];
        if (s.centre != nullptr) v.centre[j] = s.centre[j];
        v.background[j] = s.background[j];
    }
    v.fx = s.intrinsics[0], v.fy = s.intrinsics[4], v.cx = s.intrinsics[2], v.cy = s.intrinsics[5];
    const float w = static_cast<float>(s.width), h = static_cast<float>(s.height);
    const float cx = s.symmetric_clamp ? 0.5f * w : v.cx, cy = s.symmetric_clamp ? 0.5f * h : v.cy;
    v.x_low = -(cx + kMargin * w) / v.fx, v.x_high = (w - cx + kMargin * w) / v.fx;
    v.y_low = -(cy + kMargin * h) / v.fy, v.y_high = (h - cy + kMargin * h) / v.fy;
    v.near_plane = s.near_plane, v.far_plane = s.far_plane, v.eps2d = s.eps2d, v.alpha_max = s.alpha_max,
    v.stop = s.stop;
    v.width = s.width, v.height = s.height;
    v.tiles_x = (s.width + kTile - 1) / kTile, v.tiles_y = (s.height + kTile - 1) / kTile;
    v.normalise_quats = s.normalise_quats, v.square_extent = s.square_extent;
    v.clamp_passes_gradient = s.clamp_passes_gradient, v.antialias = s.antialias;
    return v;
}

// From the 23 sums of core/projection.h to the matrices. The centre is -R^T t; the clamp's limits depend on the focal
// lengths, and unless they are symmetric on the principal point.
void spread_camera(const View& v, bool own_centre, bool symmetric_clamp, const float* g, float* world_to_camera,
                   float* intrinsics) {
    const float *g_rotation = g, *g_translation = g + 9, *g_centre = g + 12, *g_k = g + 15, *g_limit = g + 19;
    std::memset(world_to_camera, 0, 16 * sizeof(float));
    for (int i = 0; i < 3; ++i) {
        world_to_camera[4 * i + 3] = g_translation[i];
        for (int j = 0; j < 3; ++j) {
            world_to_camera[4 * i + j] = g_rotation[3 * i + j];
            if (!own_centre) continue;
            world_to_camera[4 * i + j] -= v.translation[i] * g_centre[j];
            world_to_camera[4 * i + 3] -= v.rotation[3 * i + j] * g_centre[j];
        }
    }
    std::memset(intrinsics, 0, 9 * sizeof(float));
    intrinsics[0] = g_k[0] - (g_limit[0] * v.x_low + g_limit[1] * v.x_high) / v.fx;
    intrinsics[4] = g_k[1] - (g_limit[2] * v.y_low + g_limit[3] * v.y_high) / v.fy;
    intrinsics[2] = g_k[2] - (symmetric_clamp ? 0.0f : (g_limit[0] + g_limit[1]) / v.fx);
    intrinsics[5] = g_k[3] - (symmetric_clamp ? 0.0f : (g_limit[2] + g_limit[3]) / v.fy);
}

}  // namespace

// Scratch memory for one picture at a time; null if there is no memory.
MIEN_API void* mien_workspace_create() { return new (std::nothrow) Workspace; }

MIEN_API void mien_workspace_destroy(void* workspace) { delete static_cast<Workspace*>(workspace); }

MIEN_API int mien_rasterize_forward(void* workspace, const Settings* settings, const Inputs* in,
                                    const PictureOutputs* out, int threads) {
    return guarded([&] {
        require(workspace != nullptr && settings != nullptr && in != nullptr && out != nullptr, "a pointer is null");
        require(out->image != nullptr && out->alpha != nullptr, "an output is null");
        require(out->radii != nullptr || in->count == 0, "radii is null");
        check_settings(*settings);
        check_inputs(*in);
        auto* space = static_cast<Workspace*>(workspace);
        const int room = checked_threads(threads);
        const Gaussians gaussians = {*in, in->mesh != nullptr ? space->pose(*in->mesh, in->vertices, room) : nullptr,
                                     in->mesh != nullptr ? in->binding->face.data() : nullptr};
        space->forward(make_view(*settings), gaussians, {out->image, out->alpha, out->depth}, out->radii, room);
    });
}

MIEN_API int mien_rasterize_backward(void* workspace, const Settings* settings, const Inputs* in,
                                     const PictureInputs* picture, const AllGradients* out, int threads) {
    return guarded([&] {
        require(workspace != nullptr && settings != nullptr && in != nullptr && picture != nullptr && out != nullptr,
                "a pointer is null");
        require(picture->g_image != nullptr && picture->image != nullptr &&
                    (picture->g_depth == nullptr || picture->depth != nullptr),
                "an input of backward is null");
        require((out->world_to_camera == nullptr) == (out->intrinsics == nullptr), "camera gradients come together");
        check_settings(*settings);
        check_inputs(*in);
        const View view = make_view(*settings);
        auto* space = static_cast<Workspace*>(workspace);
        const int room = checked_threads(threads);
        const bool rigged = in->mesh != nullptr, moves = rigged && out->vertices != nullptr;
        const Gaussians gaussians = {*in, rigged ? space->frames(*in->mesh) : nullptr,
                                     rigged ? in->binding->face.data() : nullptr};
        const SplatGradients gradients = {out->means,
                                          out->quats,
                                          out->scales,
                                          out->covariances,
                                          out->opacities,
                                          out->sh,
                                          out->colors,
                                          out->screen_offsets,
                                          out->sh0,
                                          nullptr,
                                          moves ? space->frame_slots(in->count) : nullptr,
                                          moves ? in->binding->of_face.place.data() : nullptr,
                                          false};
        float camera[kCameraGradient];
        const bool with_camera = out->world_to_camera != nullptr;
        space->backward(view, gaussians,
                        {picture->g_image, picture->g_alpha, picture->g_depth, picture->image, picture->depth},
                        gradients, out->background, with_camera ? camera : nullptr, room);
        if (moves) space->pose_backward(*in->mesh, *in->binding, room, out->vertices);
        if (with_camera)
            spread_camera(view, settings->centre == nullptr, settings->symmetric_clamp, camera, out->world_to_camera,
                          out->intrinsics);
    });
}

// The size of the last forward pass, for benchmarks: (splat, tile) pairs and the 4x4 blocks that they reach.
MIEN_API int mien_workspace_work(const void* workspace, int64_t* pairs, int64_t* blocks) {
    return guarded([&] {
        require(workspace != nullptr && pairs != nullptr && blocks != nullptr, "a pointer is null");
        *pairs = static_cast<const Workspace*>(workspace)->pairs();
        *blocks = static_cast<const Workspace*>(workspace)->reached_blocks();
    });
}

// The rasteriser's C functions: checks, and the translation of a caller's camera into a View.
#include <cmath>

#include "api.h"
#include "parallel.h"
#include "rasterizer.h"
#include "rasterizer_calls.h"
#include "view.h"

namespace {

using namespace mien;

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
    check_rules(s);
    require(s.intrinsics[0] > 0 && s.intrinsics[4] > 0, "intrinsics: the focal lengths must be positive");
}

const RigMesh* mesh_of(const Inputs& in) { return static_cast<const RigMesh*>(in.mesh); }
const RigBinding* binding_of(const Inputs& in) { return static_cast<const RigBinding*>(in.binding); }

void check_inputs(const Inputs& in) {
    const RigMesh* mesh = mesh_of(in);
    if (mesh != nullptr) check_pair(mesh, binding_of(in));
    check_mount(in, mesh != nullptr ? binding_of(in)->count() : 0, mesh != nullptr ? mesh->vertices : 0);
    for (int64_t i = 0; mesh != nullptr && i < 3 * mesh->vertices; ++i)
        if (!std::isfinite(in.vertices[i]))
            throw NotFinite("vertices: row " + std::to_string(i / 3) + " is not finite");
    check_splats(in);
}

View view_of(const Settings& s) {
    return make_view({s.world_to_camera, s.intrinsics, s.background, s.centre}, s, s.width, s.height);
}

}  // namespace

// Scratch memory for one picture at a time; null if there is no memory.
MIEN_API void* mien_workspace_create() { return new (std::nothrow) Workspace; }

MIEN_API void mien_workspace_destroy(void* workspace) { delete static_cast<Workspace*>(workspace); }

MIEN_API int mien_rasterize_forward(void* workspace, const Settings* settings, const Inputs* in,
                                    const PictureOutputs* out, int threads) {
    return guarded([&] {
        require(workspace != nullptr && settings != nullptr && in != nullptr && out != nullptr, "a pointer is null");
        check_pictures(*out, in->count);
        check_settings(*settings);
        check_inputs(*in);
        auto* space = static_cast<Workspace*>(workspace);
        const int room = checked_threads(threads);
        const RigMesh* mesh = mesh_of(*in);
        const Gaussians gaussians = {*in, mesh != nullptr ? space->pose(*mesh, in->vertices, room) : nullptr,
                                     mesh != nullptr ? binding_of(*in)->face.data() : nullptr};
        space->forward(view_of(*settings), gaussians, {out->image, out->alpha, out->depth}, out->radii, room);
    });
}

MIEN_API int mien_rasterize_backward(void* workspace, const Settings* settings, const Inputs* in,
                                     const PictureInputs* picture, const AllGradients* out, int threads) {
    return guarded([&] {
        require(workspace != nullptr && settings != nullptr && in != nullptr && picture != nullptr && out != nullptr,
                "a pointer is null");
        check_backward(*picture, *out);
        check_settings(*settings);
        check_inputs(*in);
        const View view = view_of(*settings);
        auto* space = static_cast<Workspace*>(workspace);
        const int room = checked_threads(threads);
        const RigMesh* mesh = mesh_of(*in);
        const RigBinding* binding = binding_of(*in);
        const bool rigged = mesh != nullptr, moves = rigged && out->vertices != nullptr;
        const Gaussians gaussians = {*in, rigged ? space->frames(*mesh) : nullptr,
                                     rigged ? binding->face.data() : nullptr};
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
                                          moves ? binding->of_face.place.data() : nullptr,
                                          false};
        float camera[kCameraGradient];
        const bool with_camera = out->world_to_camera != nullptr;
        space->backward(view, gaussians,
                        {picture->g_image, picture->g_alpha, picture->g_depth, picture->image, picture->depth},
                        gradients, out->background, with_camera ? camera : nullptr, room);
        if (moves) space->pose_backward(*mesh, *binding, room, out->vertices);
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

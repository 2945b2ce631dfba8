// The device rasteriser's C functions: as those of csrc/rasterizer_api.cpp, with every array on the device.
#include <algorithm>

#include "cuda/rasterizer.h"
#include "cuda/rig_device.h"
#include "rasterizer_calls.h"

namespace {

using namespace mien;
using namespace mien::cuda;

// How many pictures a call draws, and how. Mirrors diff_gaussian_rasterization/_calls.py.
struct Batch {
    int32_t views;          // cameras, backgrounds, vertices and pictures have this many rows
    int32_t with_backward;  // whether a backward pass will come
    int64_t pair_capacity;  // negative: as many as it takes, with one read-back; else nothing is waited for
    Health* health;         // of a picture with a fixed capacity: what went wrong; may be null
};

CameraTables cameras_of(const Settings& s) {
    return {
        s.world_to_camera, s.intrinsics,     s.background, s.centre,          s.near_plane,    s.far_plane,
        s.eps2d,           s.alpha_max,      s.stop,       s.normalise_quats, s.square_extent, s.clamp_passes_gradient,
        s.antialias,       s.symmetric_clamp};
}

// A checked call, in the workspace's words.
struct Call {
    Sizes sizes;
    RigTables rig;
    Scene scene;
};

void read_call(const Settings& s, const Inputs& in, const Batch& batch, const Queue& queue, Call& call) {
    require(s.world_to_camera != nullptr, "world_to_camera is null");
    require(s.intrinsics != nullptr, "intrinsics is null");
    require(s.background != nullptr, "background is null");
    check_rules(s);
    call.scene = {cameras_of(s), in, nullptr, in.vertices};
    if (in.mesh != nullptr) {
        call.rig =
            rig_tables(static_cast<const DeviceMesh*>(in.mesh), static_cast<const DeviceBinding*>(in.binding), queue);
        call.scene.rig = &call.rig;
    }
    check_mount(in, in.mesh != nullptr ? call.rig.count : 0, in.mesh != nullptr ? call.rig.vertices : 0);
    check_splats(in);
    call.sizes = make_sizes(batch.views, in.count, s.width, s.height, std::max<int64_t>(0, batch.pair_capacity));
}

}  // namespace

// Scratch memory for one batch of pictures at a time, all on one device and one stream; null if there is no memory.
MIEN_API void* mien_cuda_workspace_create() { return new (std::nothrow) DeviceWorkspace; }

MIEN_API void mien_cuda_workspace_destroy(void* workspace) { delete static_cast<DeviceWorkspace*>(workspace); }

MIEN_API int mien_cuda_rasterize_forward(void* workspace, const Settings* settings, const Inputs* in,
                                         const PictureOutputs* out, const Batch* batch, const Queue* queue) {
    return guarded([&] {
        require(workspace != nullptr && settings != nullptr && in != nullptr && out != nullptr && batch != nullptr &&
                    queue != nullptr,
                "a pointer is null");
        check_pictures(*out, in->count);
        Call call = {};
        read_call(*settings, *in, *batch, *queue, call);
        const DeviceGuard guard(*queue);
        auto* space = static_cast<DeviceWorkspace*>(workspace);
        const BatchPicture picture = {out->image, out->alpha, out->depth};
        const bool with_backward = batch->with_backward != 0;
        if (batch->pair_capacity < 0) {
            space->forward_exact(call.sizes, call.scene, picture, out->radii, with_backward, queue->stream);
        } else {
            space->reserve(call.sizes, call.scene.rig, with_backward);
            space->forward(call.sizes, call.scene, picture, out->radii, with_backward, batch->health, queue->stream);
        }
    });
}

MIEN_API int mien_cuda_rasterize_backward(void* workspace, const Settings* settings, const Inputs* in,
                                          const PictureInputs* picture, const AllGradients* out, const Batch* batch,
                                          const Queue* queue) {
    return guarded([&] {
        require(workspace != nullptr && settings != nullptr && in != nullptr && picture != nullptr && out != nullptr &&
                    batch != nullptr && queue != nullptr,
                "a pointer is null");
        check_backward(*picture, *out);
        Call call = {};
        read_call(*settings, *in, *batch, *queue, call);
        const DeviceGuard guard(*queue);
        auto* space = static_cast<DeviceWorkspace*>(workspace);
        const SceneGradients gradients = {out->means,          out->quats,    out->scales,          out->covariances,
                                          out->opacities,      out->sh,       out->colors,          out->sh0,
                                          out->screen_offsets, out->vertices, out->world_to_camera, out->intrinsics,
                                          out->background};
        space->reserve_for_backward(call.scene.rig);
        space->backward(call.sizes, call.scene,
                        {picture->g_image, picture->g_alpha, picture->g_depth, picture->image, picture->depth},
                        gradients, batch->health, queue->stream);
    });
}

// The size of the last picture's work, for benchmarks: (splat, tile) pairs, the 8 x 4 sub-tiles that they reach, and
// the bytes that the workspace holds.
MIEN_API int mien_cuda_workspace_work(const void* workspace, int64_t* pairs, int64_t* sub_tiles, int64_t* bytes,
                                      const Queue* queue) {
    return guarded([&] {
        require(
            workspace != nullptr && pairs != nullptr && sub_tiles != nullptr && bytes != nullptr && queue != nullptr,
            "a pointer is null");
        const DeviceGuard guard(*queue);
        const auto* space = static_cast<const DeviceWorkspace*>(workspace);
        const DeviceWorkspace::Work work = space->work(queue->stream);
        *pairs = work.pairs;
        *sub_tiles = work.sub_tiles;
        *bytes = space->bytes();
    });
}

// The frames of a mesh's triangles and the Gaussians on them, forward and backward.
#include "cuda/splat_columns.h"

namespace mien {
namespace cuda {
namespace {

using namespace mien::device;

constexpr int kBlock = 128;
constexpr int kSlotsAtATime = kWarp / kRigSlot;  // of the Gaussians on a face, read by one warp

__device__ std::int64_t thread_number() { return std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }

__device__ void store_frame(const TriangleFrame<float>& f, float* out) {
    float c[kRigFrame];
    frame_columns(f, c);
    for (int k = 0; k < kRigFrame; k += 4) store_four(out + k, c[k], c[k + 1], c[k + 2], c[k + 3]);
}

__global__ void frames_kernel(RigTables rig, const float* vertices, float* frames) {
    const std::int64_t face = thread_number(), view = blockIdx.y;
    if (face >= rig.faces) return;
    const float* mine = vertices + 3 * view * rig.vertices;
    const auto corner = [&](int k) { return load_three(mine + 3 * std::int64_t(rig.corner[3 * face + k])); };
    store_frame(triangle_frame(corner(0), corner(1), corner(2)), frames + kRigFrame * (view * rig.faces + face));
}

// One warp per face: lane (g, k) adds number k of every kSlotsAtATime-th slot from slot g on, then the groups are
// added.
__global__ void __launch_bounds__(kBlock)
    frames_backward_kernel(RigTables rig, const float* frames, const float* slots, float* corners) {
    const std::int64_t face = thread_number() / kWarp, view = blockIdx.y;
    if (face >= rig.faces) return;  // whole warps
    const int lane = static_cast<int>(threadIdx.x) % kWarp, number = lane % kRigSlot, group = lane / kRigSlot;
    const float* mine = slots + kRigSlot * view * rig.count;
    float sum = 0.0f;
    for (std::int64_t s = rig.face_begin[face] + group; s < rig.face_begin[face + 1]; s += kSlotsAtATime)
        sum += mine[kRigSlot * s + number];
    for (int step = kRigSlot; step < kWarp; step *= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    float total[kRigSlot];
    for (int k = 0; k < kRigSlot; ++k) total[k] = __shfl_sync(kAllLanes, sum, k);
    if (lane >= 3) return;
    Vec3<float> g[3];
    triangle_frame_vjp(load_frame(frames + kRigFrame * (view * rig.faces + face)), frame_gradient_of(total), g);
    const Vec3<float> corner = lane == 0 ? g[0] : lane == 1 ? g[1] : g[2];
    const std::int64_t place = rig.corner_place[3 * face + lane];
    store_four(corners + kRigCorner * (3 * view * rig.faces + place), corner.x, corner.y, corner.z, 0.0f);
}

__global__ void vertices_backward_kernel(RigTables rig, const float* corners, float* g_vertices) {
    const std::int64_t vertex = thread_number(), view = blockIdx.y;
    if (vertex >= rig.vertices) return;
    const float* mine = corners + kRigCorner * 3 * view * rig.faces;
    Vec3<float> sum = {0.0f, 0.0f, 0.0f};
    for (std::int64_t i = rig.vertex_begin[vertex]; i < rig.vertex_begin[vertex + 1]; ++i) {
        const float4 corner = load_four(mine + kRigCorner * i);
        sum = sum + Vec3<float>{corner.x, corner.y, corner.z};
    }
    store_three(sum, g_vertices + 3 * (view * rig.vertices + vertex));
}

__device__ PosedGaussian<float> load_columns(const RigColumns& in, std::int64_t i, float& inverse) {
    return activate(load_three(in.means + 3 * i), load_quat(in.quats + 4 * i), load_three(in.log_scales + 3 * i),
                    inverse);
}

__global__ void place_kernel(RigTables rig, RigColumns in, const float* frames, RigPlaced out) {
    const std::int64_t i = thread_number();
    if (i >= rig.count) return;
    float inverse;
    const PosedGaussian<float> local = load_columns(in, i, inverse);
    const PosedGaussian<float> world = place(load_frame(frames + kRigFrame * std::int64_t(rig.face[i])), local);
    store_three(world.mean, out.means + 3 * i);
    store_quat(world.quat, out.quats + 4 * i);
    store_three(world.scale, out.scales + 3 * i);
    out.opacities[i] = sigmoid(in.opacity_logits[i]);
}

// Null counts as zero.
__device__ PosedGaussian<float> load_gradients(const RigPlacedGradients& g, std::int64_t i) {
    PosedGaussian<float> out = {};
    if (g.means != nullptr) out.mean = load_three(g.means + 3 * i);
    if (g.scales != nullptr) out.scale = load_three(g.scales + 3 * i);
    if (g.quats != nullptr) out.quat = load_quat(g.quats + 4 * i);
    return out;
}

__global__ void place_backward_kernel(RigTables rig, RigBackward work) {
    const std::int64_t i = thread_number();
    if (i >= rig.count) return;
    float inverse;
    const PosedGaussian<float> local = load_columns(work.columns, i, inverse);
    const TriangleFrame<float> frame = load_frame(work.frames + kRigFrame * std::int64_t(rig.face[i]));
    FrameGradient<float> g_frame;
    const PosedGaussian<float> own =
        activate_vjp(local, inverse, place_vjp(frame, local, load_gradients(work.placed, i), g_frame));
    const RigColumnGradients& out = work.out;
    if (out.means != nullptr) store_three(own.mean, out.means + 3 * i);
    if (out.quats != nullptr) store_quat(own.quat, out.quats + 4 * i);
    if (out.log_scales != nullptr) store_three(own.scale, out.log_scales + 3 * i);
    if (out.opacity_logits != nullptr) {
        const float o = work.opacities[i], g_o = work.placed.opacities != nullptr ? work.placed.opacities[i] : 0.0f;
        out.opacity_logits[i] = g_o * o * (1.0f - o);
    }
    if (work.slots != nullptr) store_slot(g_frame, work.slots + kRigSlot * std::int64_t(rig.slot_of[i]));
}

}  // namespace

void pose_frames(const RigTables& rig, int views, const float* vertices, float* frames, cudaStream_t stream) {
    const dim3 grid(blocks_for(rig.faces, kBlock), static_cast<unsigned>(views));
    launch(frames_kernel, grid, kBlock, stream, rig, vertices, frames);
}

void frames_backward(const RigTables& rig, int views, const float* frames, const float* frame_slots, float* corners,
                     float* g_vertices, cudaStream_t stream) {
    const dim3 faces(blocks_for(rig.faces * kWarp, kBlock), static_cast<unsigned>(views));
    launch(frames_backward_kernel, faces, kBlock, stream, rig, frames, frame_slots, corners);
    const dim3 vertices(blocks_for(rig.vertices, kBlock), static_cast<unsigned>(views));
    launch(vertices_backward_kernel, vertices, kBlock, stream, rig, corners, g_vertices);
}

void place_gaussians(const RigTables& rig, const RigColumns& in, const float* frames, const RigPlaced& out,
                     cudaStream_t stream) {
    launch(place_kernel, blocks_for(rig.count, kBlock), kBlock, stream, rig, in, frames, out);
}

void place_backward(const RigTables& rig, const RigBackward& work, cudaStream_t stream) {
    launch(place_backward_kernel, blocks_for(rig.count, kBlock), kBlock, stream, rig, work);
}

}  // namespace cuda
}  // namespace mien

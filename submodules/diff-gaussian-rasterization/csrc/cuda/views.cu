// Cameras: from the callers' tensors to what kernels read, one thread per view, and the gradients back.
#include "cuda/stages.h"
#include "view.h"

namespace mien {
namespace cuda {
namespace {

constexpr int kBlock = 256;
constexpr int kParts = kBlock / kWarp;  // warps, each of which adds up its share of the blocks' sums
static_assert(kCameraGradient <= kWarp, "one lane per number of a camera's gradient");

__device__ CameraArrays camera_of(const CameraTables& t, int view) {
    return {t.world_to_camera + 16 * view, t.intrinsics + 9 * view, t.background + 3 * view,
            t.centre == nullptr ? nullptr : t.centre + 3 * view};
}

// NaN and infinity times zero are not zero.
__device__ bool all_finite(const float* values, int count) {
    float sum = 0.0f;
    for (int i = 0; i < count; ++i) sum += 0.0f * values[i];
    return sum == 0.0f;
}

__device__ bool camera_is_fine(const CameraArrays& c) {
    return all_finite(c.world_to_camera, 16) && all_finite(c.intrinsics, 9) && all_finite(c.background, 3) &&
           (c.centre == nullptr || all_finite(c.centre, 3)) && c.intrinsics[0] > 0.0f && c.intrinsics[4] > 0.0f;
}

__global__ void views_kernel(Sizes sizes, CameraTables cameras, View* views, Health* health) {
    const int view = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (view >= sizes.views) return;
    const CameraArrays camera = camera_of(cameras, view);
    if (health != nullptr && !camera_is_fine(camera)) atomicOr(&health->stopped, std::uint32_t(kBadInput));
    views[view] = make_view(camera, cameras, sizes.width, sizes.height);
}

// One block per view. Lane k of warp w adds number k of every kParts-th row from row w on; then the warps' sums are
// added in order.
__global__ void camera_kernel(int rows, CameraTables cameras, const View* views, const float* partial,
                              float* world_to_camera, float* intrinsics) {
    __shared__ double part[kParts][kWarp];
    __shared__ float total[kWarp];
    const int view = static_cast<int>(blockIdx.x), lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const float* mine = partial + std::int64_t(view) * rows * kCameraGradient;
    double sum = 0.0;
    if (lane < kCameraGradient)
        for (int row = warp; row < rows; row += kParts) sum += mine[std::int64_t(row) * kCameraGradient + lane];
    part[warp][lane] = sum;
    __syncthreads();
    if (warp == 0) {
        double all = 0.0;
        for (int w = 0; w < kParts; ++w) all += part[w][lane];
        total[lane] = static_cast<float>(all);
    }
    __syncthreads();
    if (threadIdx.x == 0)
        spread_camera(views[view], cameras.centre == nullptr, cameras.symmetric_clamp, total,
                      world_to_camera + 16 * view, intrinsics + 9 * view);
}

}  // namespace

void make_views(const Sizes& sizes, const CameraTables& cameras, View* views, Health* health, cudaStream_t stream) {
    constexpr int block = 32;
    launch(views_kernel, blocks_for(sizes.views, block), block, stream, sizes, cameras, views, health);
}

void camera_backward(const Sizes& sizes, const CameraTables& cameras, const View* views, const float* partial,
                     float* world_to_camera, float* intrinsics, cudaStream_t stream) {
    const int rows = static_cast<int>(blocks_for(sizes.count, kSplatThreads));
    launch(camera_kernel, static_cast<unsigned>(sizes.views), kBlock, stream, rows, cameras, views, partial,
           world_to_camera, intrinsics);
}

}  // namespace cuda
}  // namespace mien

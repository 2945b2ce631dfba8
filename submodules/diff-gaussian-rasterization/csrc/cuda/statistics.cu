// What a training step wants to know of gradients, on a GPU: csrc/kernels/statistics.cpp.
#include <cfloat>

#include "core/ops.h"
#include "cuda/pieces.h"

namespace mien {
namespace cuda {
namespace {

using namespace mien::device;

constexpr int kThreads = 256;
constexpr int kEach = 8;  // values of a thread

__global__ void __launch_bounds__(kThreads)
    add(const float* screen_gradients, const std::int32_t* radii, float factor, std::int64_t count,
        ScreenStatistics out, const Health* health, int views) {
    if (health != nullptr && health->stopped != 0) return;
    const std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= count) return;
    float gradient = out.gradient[i], seen = out.seen[i], radius = out.radius[i];
    for (int view = 0; view < views; ++view) {
        const std::int64_t row = view * count + i;
        const std::int32_t pixels = radii[row];
        const float x = screen_gradients[2 * row], y = screen_gradients[2 * row + 1];
        // The product by itself, not fused into the sum below, as on the CPU.
        const float size = fma(factor, sqrt(fma(y, y, x * x)), 0.0f);
        gradient += pixels > 0 ? size : 0.0f;
        seen += pixels > 0 ? 1.0f : 0.0f;
        radius = static_cast<float>(pixels) > radius ? static_cast<float>(pixels) : radius;
    }
    out.gradient[i] = gradient;
    out.seen[i] = seen;
    out.radius[i] = radius;
}

// Blocks of array a begin at begin[a].
struct Shares {
    unsigned begin[kMostArrays + 1];
};

__global__ void __launch_bounds__(kThreads) look(Arrays arrays, Shares shares, std::uint32_t* bad) {
    int which = 0;
    unsigned begin = 0;
#pragma unroll
    for (int a = 1; a < kMostArrays; ++a) {
        if (a >= arrays.count || blockIdx.x < shares.begin[a]) break;
        which = a;
        begin = shares.begin[a];
    }
    const float* values = arrays.values[which];
    const std::int64_t size = arrays.size[which];
    const std::int64_t first = std::int64_t(blockIdx.x - begin) * kThreads * kEach + threadIdx.x;
    bool found = false;
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
        const std::int64_t i = first + k * kThreads;
        const float value = i < size ? values[i] : 0.0f;
        found = found || !(value * value <= FLT_MAX);
    }
    if (__any_sync(kAllLanes, found) && threadIdx.x % kWarp == 0) atomicOr(bad, 1u);
}

}  // namespace

void add_view(const float* screen_gradients, const std::int32_t* radii, float factor, std::int64_t count,
              const ScreenStatistics& out, const Health* health, cudaStream_t stream, int views) {
    launch(add, dim3(blocks_for(count, kThreads)), dim3(kThreads), stream, screen_gradients, radii, factor, count, out,
           health, views);
}

void squares_finite(const Arrays& arrays, std::uint32_t* bad, cudaStream_t stream) {
    Shares shares{};
    for (int a = 0; a < arrays.count; ++a)
        shares.begin[a + 1] = shares.begin[a] + blocks_for(arrays.size[a], kThreads * kEach);
    launch(look, dim3(shares.begin[arrays.count]), dim3(kThreads), stream, arrays, shares, bad);
}

}  // namespace cuda
}  // namespace mien

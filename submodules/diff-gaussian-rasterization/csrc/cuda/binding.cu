// Limits on Gaussians that ride on a mesh, on a GPU: csrc/kernels/binding_limits.cpp in two kernels. The first sums
// what is above the thresholds, and how many Gaussians are drawn, by blocks; every block of the second adds up the
// numbers that were drawn, for the means' gradients.
#include "core/limits.h"
#include "cuda/block_sum.h"
#include "cuda/pieces.h"

namespace mien {
namespace cuda {
namespace {

using namespace mien::device;

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

struct Part {
    double xyz, scale;
    std::int64_t drawn;
};
constexpr int kPartFloats = sizeof(Part) / sizeof(float);

struct Vector {
    float v[3];
};

__device__ Vector load(const float* rows, std::int64_t i) { return {{rows[3 * i], rows[3 * i + 1], rows[3 * i + 2]}}; }

// Scales in use, from what is stored.
__device__ Vector load_scales(const LimitTables& t, std::int64_t i) {
    Vector s = load(t.limits.scales, i);
    if (t.logarithmic)
        for (float& x : s.v) x = ::expf(x);
    return s;
}

__device__ Vector scale_excess(const LimitTables& t, const Vector& s) {
    Vector above;
    for (int c = 0; c < 3; ++c) above.v[c] = excess(s.v[c], t.limits.threshold_scale);
    return above;
}

// parts [views, blocks]
__global__ void __launch_bounds__(kThreads) sum_parts(LimitTables t, Part* parts) {
    __shared__ double place[kWarps];
    __shared__ int count[kWarps];
    const std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
    float xyz = 0.0f, scale = 0.0f;
    if (i < t.count) {
        if (t.limits.means != nullptr) xyz = excess(length(load(t.limits.means, i).v), t.limits.threshold_xyz);
        if (t.limits.scales != nullptr) scale = length(scale_excess(t, load_scales(t, i)).v);
    }
    for (int view = 0; view < t.views; ++view) {
        const bool drawn = i < t.count && t.limits.radii[view * t.count + i] > 0;
        const double sum_xyz = block_sum<kThreads>(drawn ? xyz : 0.0f, place);
        const double sum_scale = block_sum<kThreads>(drawn ? scale : 0.0f, place);
        const int shown = block_sum<kThreads>(drawn ? 1 : 0, count);
        if (threadIdx.x == 0) parts[std::int64_t(view) * gridDim.x + blockIdx.x] = {sum_xyz, sum_scale, shown};
    }
}

// The parts of every view added up, and the means over views.
__device__ void add_up(const LimitTables& t, const Part* parts, std::int64_t blocks, double* place) {
    double xyz_mean = 0.0, scale_mean = 0.0;
    for (int view = 0; view < t.views; ++view) {
        double xyz = 0.0, scale = 0.0, drawn = 0.0;
        for (std::int64_t i = threadIdx.x; i < blocks; i += kThreads) {
            const Part& part = parts[view * blocks + i];
            xyz += part.xyz;
            scale += part.scale;
            drawn += static_cast<double>(part.drawn);
        }
        xyz = block_sum<kThreads>(xyz, place);
        scale = block_sum<kThreads>(scale, place);
        drawn = block_sum<kThreads>(drawn, place);
        const double share = 1.0 / (drawn > 1.0 ? drawn : 1.0);
        xyz_mean += share * xyz;
        scale_mean += share * scale;
        if (threadIdx.x == 0 && t.sums != nullptr) {
            t.sums[3 * view] = drawn;
            t.sums[3 * view + 1] = xyz;
            t.sums[3 * view + 2] = scale;
        }
    }
    if (threadIdx.x != 0) return;
    if (t.values[0] != nullptr) *t.values[0] = static_cast<float>(t.limits.weight_xyz * xyz_mean);
    if (t.values[1] != nullptr) *t.values[1] = static_cast<float>(t.limits.weight_scale * scale_mean);
}

__device__ void write(const LimitTables& t, float* out, std::int64_t i, const Vector& gradient) {
    for (int c = 0; c < 3; ++c) {
        float& place = out[3 * i + c];
        place = t.accumulate ? place + gradient.v[c] : gradient.v[c];
    }
}

__device__ void means_gradient(const LimitTables& t, std::int64_t i, float weight) {
    Vector v = load(t.limits.means, i);
    const float size = length(v.v);
    const bool on = weight != 0.0f && !(excess(size, t.limits.threshold_xyz) == 0.0f);
    for (float& x : v.v) x = on ? x * (weight / size) : 0.0f;
    write(t, t.limits.g_means, i, v);
}

__device__ void scales_gradient(const LimitTables& t, std::int64_t i, float weight) {
    const Vector scales = load_scales(t, i);
    Vector v = scale_excess(t, scales);
    const float size = length(v.v);
    const bool on = weight != 0.0f && !(size == 0.0f);
    for (int c = 0; c < 3; ++c) v.v[c] = on ? v.v[c] * (weight / size) * (t.logarithmic ? scales.v[c] : 1.0f) : 0.0f;
    write(t, t.limits.g_scales, i, v);
}

// Gradients; the first block adds up sums and values, where they are wanted.
__global__ void __launch_bounds__(kThreads) finish(LimitTables t, const Part* parts, std::int64_t blocks) {
    __shared__ double place[kWarps];
    if (blockIdx.x == 0) add_up(t, parts, blocks, place);
    if (t.limits.g_means == nullptr && t.limits.g_scales == nullptr) return;
    const std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
    double share = 0.0;  // of this Gaussian in the means
    for (int view = 0; view < t.views; ++view) {
        double drawn = 0.0;
        for (std::int64_t b = threadIdx.x; b < blocks; b += kThreads)
            drawn += static_cast<double>(parts[view * blocks + b].drawn);
        drawn = block_sum<kThreads>(drawn, place);
        if (i < t.count && t.limits.radii[view * t.count + i] > 0) share += 1.0 / drawn;
    }
    if (i >= t.count) return;
    const float xyz = static_cast<float>(t.limits.weight_xyz * share);
    const float scale = static_cast<float>(t.limits.weight_scale * share);
    if (t.limits.g_means != nullptr) means_gradient(t, i, t.factors[0] != nullptr ? xyz * *t.factors[0] : xyz);
    if (t.limits.g_scales != nullptr) scales_gradient(t, i, t.factors[1] != nullptr ? scale * *t.factors[1] : scale);
}

void launch_finish(const LimitTables& t, cudaStream_t stream) {
    const bool gradients = t.limits.g_means != nullptr || t.limits.g_scales != nullptr;
    const unsigned blocks = blocks_for(t.count, kThreads);
    launch(finish, dim3(gradients && blocks > 0 ? blocks : 1), dim3(kThreads), stream, t,
           reinterpret_cast<const Part*>(t.scratch), std::int64_t(blocks));
}

}  // namespace

std::int64_t binding_scratch(std::int64_t count, int views) {
    return std::int64_t(blocks_for(count, kThreads)) * views * kPartFloats;
}

void binding_limits(const LimitTables& t, cudaStream_t stream) {
    launch(sum_parts, dim3(blocks_for(t.count, kThreads)), dim3(kThreads), stream, t,
           reinterpret_cast<Part*>(t.scratch));
    launch_finish(t, stream);
}

void binding_gradients(const LimitTables& t, cudaStream_t stream) {
    LimitTables later = t;
    later.sums = nullptr;
    later.values[0] = later.values[1] = nullptr;
    launch_finish(later, stream);
}

}  // namespace cuda
}  // namespace mien

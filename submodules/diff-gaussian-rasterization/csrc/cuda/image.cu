// Fused L1 and SSIM on a GPU: the formulas of csrc/kernels/image_ssim.cpp, whose header explains them, by tiles of
// 32x32 pixels in two kernels. The first filters four maps of picture and photograph and makes ssim and its three
// derivatives; the second filters the derivatives and makes the gradient. What a tile sees of its surroundings lies in
// shared memory: filtered along x four neighbours at a time in one thread, which replaces it, then along y, four rows
// in one thread.
#include "core/ops.h"
#include "cuda/block_sum.h"
#include "cuda/pieces.h"

namespace mien {
namespace cuda {
namespace {

using namespace mien::device;

constexpr int kRadius = 5, kSide = 32, kHalo = kSide + 2 * kRadius;
constexpr int kThreads = 256, kRun = 4;  // outputs of a thread
constexpr int kStride = kHalo + 2;       // whole float4s
constexpr int kRuns = kHalo * kSide / kRun, kRounds = (kRuns + kThreads - 1) / kThreads;
constexpr int kMaps = 4, kDerivatives = 3;
constexpr float kC1 = 0.01f * 0.01f, kC2 = 0.03f * 0.03f;
static_assert(kThreads * kRun == kSide * kSide, "one run of rows a thread");

// As on the CPU, the ulp included: the mean of ones is exactly 1.
constexpr float kNorm = 7.076223940e-02f;

struct Place {
    int plane, x, y;  // the tile's first pixel
};

struct Layout {
    int planes, tiles_x, tiles_y;

    explicit Layout(const SsimTables& t)
        : planes(t.views * t.channels),
          tiles_x((t.width + kSide - 1) / kSide),
          tiles_y((t.height + kSide - 1) / kSide) {}
    __host__ __device__ std::int64_t blocks() const { return std::int64_t(planes) * tiles_x * tiles_y; }
    __device__ Place place(unsigned block) const {
        const unsigned tiles = static_cast<unsigned>(tiles_x * tiles_y), tile = block % tiles;
        return {static_cast<int>(block / tiles), static_cast<int>(tile % tiles_x) * kSide,
                static_cast<int>(tile / tiles_x) * kSide};
    }
};

// `scratch`: two sums of every block, then the maps of derivatives, [3, planes, H, W].
std::int64_t sums_floats(const Layout& layout) { return (layout.blocks() * 4 + 3) / 4 * 4; }

__device__ __forceinline__ float tap(int distance) {
    constexpr float kTap[kRadius + 1] = {
        1.0f, 8.007373810e-01f, 4.111123085e-01f, 1.353352666e-01f, 2.856549993e-02f, 3.865919774e-03f};
    return kTap[distance];
}

// Filters kRun values in a line, v[i] being the neighbour i - kRadius of the first.
__device__ __forceinline__ void filter(const float (&v)[kRun + 2 * kRadius], float (&out)[kRun]) {
#pragma unroll
    for (int o = 0; o < kRun; ++o) {
        float sum = v[o + kRadius];
#pragma unroll
        for (int d = 1; d <= kRadius; ++d) sum = fma(tap(d), v[o + kRadius - d] + v[o + kRadius + d], sum);
        out[o] = sum;
    }
}

// A product that is not fused into a sum: all pixels round alike.
__device__ __forceinline__ float rounded(float a, float b) { return fma(a, b, 0.0f); }

// The kRun + 2 kRadius values from `row` on, which is aligned.
__device__ __forceinline__ void read_run(const float* row, float (&v)[kRun + 2 * kRadius]) {
#pragma unroll
    for (int i = 0; i < kRun + 2 * kRadius; i += 4) {
        const float4 four = *reinterpret_cast<const float4*>(row + i);
        v[i] = four.x;
        v[i + 1] = four.y;
        if (i + 2 < kRun + 2 * kRadius) v[i + 2] = four.z, v[i + 3] = four.w;
    }
}

// Filters along x what lies in `tile`, [maps in][kHalo][kStride], and puts [maps][kHalo][kSide] in its place. `along`
// filters run i, of those from `row` on, into out[map].
template <int maps, class Along>
__device__ __forceinline__ void filter_rows(float* tile, const Along& along) {
    float kept[kRounds][maps][kRun];
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
        const int run = round * kThreads + static_cast<int>(threadIdx.x);
        if (run < kRuns) along(tile + run / (kSide / kRun) * kStride + run % (kSide / kRun) * kRun, kept[round]);
    }
    __syncthreads();
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
        const int run = round * kThreads + static_cast<int>(threadIdx.x);
        if (run >= kRuns) continue;
#pragma unroll
        for (int map = 0; map < maps; ++map) {
            const float* k = kept[round][map];
            reinterpret_cast<float4*>(tile + map * kHalo * kSide)[run] = make_float4(k[0], k[1], k[2], k[3]);
        }
    }
    __syncthreads();
}

// Filters map `map` of those along y, for the rows first_row().. of column threadIdx.x % kSide.
__device__ __forceinline__ void filter_columns(const float* tile, int map, float (&out)[kRun]) {
    const int first = static_cast<int>(threadIdx.x) / kSide * kRun;
    const float* column = tile + (map * kHalo + first) * kSide + threadIdx.x % kSide;
    float v[kRun + 2 * kRadius];
#pragma unroll
    for (int i = 0; i < kRun + 2 * kRadius; ++i) v[i] = column[i * kSide];
    filter(v, out);
}

// A photograph's plane: floats, or bytes.
struct Target {
    const float* values;
    const std::uint8_t* levels;

    __device__ Target(const SsimTables& t, int plane) {
        const std::int64_t pixels = std::int64_t(t.height) * t.width;
        values = t.targets == nullptr ? nullptr : t.targets + plane * pixels;
        levels = t.targets != nullptr ? nullptr : t.store + t.offset[plane / t.channels] + plane % t.channels * pixels;
    }
    __device__ float at(std::int64_t pixel) const {
        return values != nullptr ? values[pixel] : static_cast<float>(levels[pixel]) / 255.0f;
    }
};

// Picture and photograph around the tile into shared memory; the tile's own share of |image - target|.
__device__ float load_pictures(const SsimTables& t, const Place& at, float* tile) {
    const float* image = t.images + std::int64_t(at.plane) * t.height * t.width;
    const Target target(t, at.plane);
    float l1 = 0.0f;
    for (int i = threadIdx.x; i < kHalo * kHalo; i += kThreads) {
        const int row = i / kHalo, column = i % kHalo, y = at.y + row - kRadius, x = at.x + column - kRadius;
        float a = 0.0f, b = 0.0f;
        if (x >= 0 && x < t.width && y >= 0 && y < t.height) {
            const std::int64_t pixel = std::int64_t(y) * t.width + x;
            a = image[pixel];
            b = target.at(pixel);
            const bool own = row >= kRadius && row < kRadius + kSide && column >= kRadius && column < kRadius + kSide;
            if (own) l1 += fabsf(a - b);
        }
        tile[row * kStride + column] = a;
        tile[(kHalo + row) * kStride + column] = b;
    }
    return l1;
}

struct Similarity {
    float loss;                            // 1 - ssim
    float by_mean, by_product, by_square;  // d ssim / d [a], [a b], [d^2]
};

__device__ __forceinline__ Similarity similarity(float image, float target, float product, float square) {
    const float m = kNorm * image, n = kNorm * target, difference = m - n;
    const float e = rounded(difference, difference), v = fma(kNorm, square, -e);
    const float covariance = fnma(m, n, rounded(kNorm, product));
    const float a1 = fma(m + m, n, kC1), a2 = covariance + covariance + kC2;
    const float b1 = a1 + e, b2 = a2 + v, a1v = rounded(a1, v);
    const float scale = 1.0f / (b1 * b2), loss = fma(e, b2, a1v) * scale, s = 1.0f - loss;
    const float by_b2 = b1 * scale, twice = scale + scale;
    return {loss, twice * fma(a2 - a1, fma(m, loss, -difference), m * s * (e - v)), twice * by_b2 * a1v, -s * by_b2};
}

// Sums and, if `derived` is given, the derivatives' maps of one tile.
__global__ void __launch_bounds__(kThreads) derive(SsimTables t, Layout layout, double* sums, float* derived) {
    alignas(16) __shared__ float tile[kMaps * kHalo * kSide];
    __shared__ double place[kThreads / kWarp];
    static_assert(2 * kHalo * kStride <= kMaps * kHalo * kSide, "the pictures fit in");
    const Place at = layout.place(blockIdx.x);
    const float l1 = load_pictures(t, at, tile);
    __syncthreads();
    filter_rows<kMaps>(tile, [](const float* row, float(&out)[kMaps][kRun]) {
        float a[kRun + 2 * kRadius], b[kRun + 2 * kRadius];
        read_run(row, a);
        read_run(row + kHalo * kStride, b);
        filter(a, out[0]);
        filter(b, out[1]);
#pragma unroll
        for (int i = 0; i < kRun + 2 * kRadius; ++i) {
            const float d = a[i] - b[i];
            a[i] = rounded(a[i], b[i]);
            b[i] = rounded(d, d);
        }
        filter(a, out[2]);
        filter(b, out[3]);
    });
    float mean[kMaps][kRun];
#pragma unroll
    for (int map = 0; map < kMaps; ++map) filter_columns(tile, map, mean[map]);
    const int x = at.x + static_cast<int>(threadIdx.x) % kSide, y = at.y + static_cast<int>(threadIdx.x) / kSide * kRun;
    const std::int64_t pixels = std::int64_t(t.height) * t.width, map = layout.planes * pixels;
    float loss = 0.0f;
#pragma unroll
    for (int o = 0; o < kRun; ++o) {
        if (x >= t.width || y + o >= t.height) continue;
        const Similarity found = similarity(mean[0][o], mean[1][o], mean[2][o], mean[3][o]);
        loss += found.loss;
        if (derived == nullptr) continue;
        float* out = derived + at.plane * pixels + std::int64_t(y + o) * t.width + x;
        out[0] = found.by_mean;
        out[map] = found.by_product;
        out[2 * map] = found.by_square;
    }
    const double all_l1 = block_sum<kThreads>(l1, place), all_loss = block_sum<kThreads>(loss, place);
    if (threadIdx.x == 0) {
        sums[2 * blockIdx.x] = all_l1;
        sums[2 * blockIdx.x + 1] = all_loss;
    }
}

// The sums of all blocks of every view, and their means.
__device__ void add_up(const SsimTables& t, const Layout& layout, const double* sums) {
    __shared__ double place[kThreads / kWarp];
    const std::int64_t blocks = layout.blocks() / t.views, values = std::int64_t(t.channels) * t.height * t.width;
    double all_l1 = 0.0, all_ssim = 0.0;
    for (int view = 0; view < t.views; ++view) {
        double l1 = 0.0, loss = 0.0;
        for (std::int64_t i = view * blocks + threadIdx.x; i < (view + 1) * blocks; i += kThreads) {
            l1 += sums[2 * i];
            loss += sums[2 * i + 1];
        }
        l1 = block_sum<kThreads>(l1, place);
        const double ssim = static_cast<double>(values) - block_sum<kThreads>(loss, place);
        all_l1 += l1;
        all_ssim += ssim;
        if (threadIdx.x == 0 && t.sums != nullptr) {
            t.sums[2 * view] = l1;
            t.sums[2 * view + 1] = ssim;
        }
    }
    if (threadIdx.x != 0) return;
    const double all = static_cast<double>(values) * t.views;
    if (t.means[0] != nullptr) *t.means[0] = static_cast<float>(all_l1 / all);
    if (t.means[1] != nullptr) *t.means[1] = static_cast<float>(all_ssim / all);
}

// The three maps of derivatives around the tile into shared memory.
__device__ void load_derivatives(const SsimTables& t, const Layout& layout, const Place& at, const float* derived,
                                 float* tile) {
    const std::int64_t pixels = std::int64_t(t.height) * t.width, map = layout.planes * pixels;
    for (int i = threadIdx.x; i < kHalo * kHalo; i += kThreads) {
        const int row = i / kHalo, column = i % kHalo, y = at.y + row - kRadius, x = at.x + column - kRadius;
        const bool inside = x >= 0 && x < t.width && y >= 0 && y < t.height;
        const float* in = derived + at.plane * pixels + std::int64_t(y) * t.width + x;
#pragma unroll
        for (int m = 0; m < kDerivatives; ++m) tile[(m * kHalo + row) * kStride + column] = inside ? in[m * map] : 0.0f;
    }
}

// The gradient of one tile. Where `sums` is given, the first block adds them up instead.
__global__ void __launch_bounds__(kThreads)
    gradient(SsimTables t, Layout layout, const double* sums, const float* derived) {
    alignas(16) __shared__ float tile[kDerivatives * kHalo * kStride];
    if (sums != nullptr && blockIdx.x == 0) return add_up(t, layout, sums);
    const Place at = layout.place(blockIdx.x - (sums != nullptr ? 1 : 0));
    load_derivatives(t, layout, at, derived, tile);
    __syncthreads();
    filter_rows<kDerivatives>(tile, [](const float* row, float(&out)[kDerivatives][kRun]) {
#pragma unroll
        for (int m = 0; m < kDerivatives; ++m) {
            float v[kRun + 2 * kRadius];
            read_run(row + m * kHalo * kStride, v);
            filter(v, out[m]);
        }
    });
    float by[kDerivatives][kRun];
#pragma unroll
    for (int m = 0; m < kDerivatives; ++m) filter_columns(tile, m, by[m]);
    const float l1_scale = t.l1_scale * (t.factors[0] != nullptr ? *t.factors[0] : 1.0f);
    const float scale = kNorm * t.ssim_scale * (t.factors[1] != nullptr ? *t.factors[1] : 1.0f);
    const int x = at.x + static_cast<int>(threadIdx.x) % kSide, y = at.y + static_cast<int>(threadIdx.x) / kSide * kRun;
    const std::int64_t plane = std::int64_t(at.plane) * t.height * t.width;
    const Target target(t, at.plane);
#pragma unroll
    for (int o = 0; o < kRun; ++o) {
        if (x >= t.width || y + o >= t.height) continue;
        const std::int64_t pixel = std::int64_t(y + o) * t.width + x;
        const float b = target.at(pixel), d = t.images[plane + pixel] - b;
        const float sign = d > 0.0f ? l1_scale : (d < 0.0f ? -l1_scale : 0.0f);
        t.gradients[plane + pixel] = fma(scale, fma(d + d, by[2][o], fma(b, by[1][o], by[0][o])), sign);
    }
}

constexpr int kBytes = 4;  // of a thread

__global__ void __launch_bounds__(kThreads)
    to_float(const std::uint8_t* bytes, std::int64_t count, float* out, bool aligned) {
    const std::int64_t first = (std::int64_t(blockIdx.x) * kThreads + threadIdx.x) * kBytes;
    if (aligned && first + kBytes <= count) {
        const unsigned four = *reinterpret_cast<const unsigned*>(bytes + first);
        *reinterpret_cast<float4*>(out + first) =
            make_float4(static_cast<float>(four & 0xffu) / 255.0f, static_cast<float>(four >> 8 & 0xffu) / 255.0f,
                        static_cast<float>(four >> 16 & 0xffu) / 255.0f, static_cast<float>(four >> 24) / 255.0f);
        return;
    }
    for (std::int64_t i = first; i < first + kBytes && i < count; ++i) out[i] = static_cast<float>(bytes[i]) / 255.0f;
}

}  // namespace

std::int64_t l1_ssim_scratch(const SsimTables& t) {
    const Layout layout(t);
    const bool maps = t.gradients != nullptr || t.derivatives;
    return sums_floats(layout) + (maps ? kDerivatives * std::int64_t(layout.planes) * t.height * t.width : 0);
}

void l1_ssim(const SsimTables& t, cudaStream_t stream) {
    const Layout layout(t);
    double* sums = reinterpret_cast<double*>(t.scratch);
    float* maps = t.gradients != nullptr || t.derivatives ? t.scratch + sums_floats(layout) : nullptr;
    const auto blocks = static_cast<unsigned>(layout.blocks());
    launch(derive, dim3(blocks), dim3(kThreads), stream, t, layout, sums, maps);
    launch(gradient, dim3(t.gradients != nullptr ? blocks + 1 : 1), dim3(kThreads), stream, t, layout, sums, maps);
}

void l1_ssim_gradient(const SsimTables& t, cudaStream_t stream) {
    const Layout layout(t);
    launch(gradient, dim3(static_cast<unsigned>(layout.blocks())), dim3(kThreads), stream, t, layout, nullptr,
           t.scratch + sums_floats(layout));
}

void bytes_to_float(const std::uint8_t* bytes, std::int64_t count, float* out, cudaStream_t stream) {
    const bool aligned = reinterpret_cast<std::uintptr_t>(bytes) % kBytes == 0 &&
                         reinterpret_cast<std::uintptr_t>(out) % alignof(float4) == 0;
    launch(to_float, dim3(blocks_for((count + kBytes - 1) / kBytes, kThreads)), dim3(kThreads), stream, bytes, count,
           out, aligned);
}

}  // namespace cuda
}  // namespace mien

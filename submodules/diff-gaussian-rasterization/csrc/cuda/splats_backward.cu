// Splat stage, backward: one thread per Gaussian goes through the views in order, adds up the pair slots of each in
// their order and carries the sums to the columns. The harmonics and their gradients go through shared memory.
#include "cuda/splat_columns.h"

#include "core/splat_backward.h"

namespace mien {
namespace cuda {
namespace {

using namespace mien::device;
using SplatIncoming = SplatGradient<float>;

static_assert(int(kSplatSums) == kSums && kPairSlot == 12, "three vectors hold a slot's sums");
static_assert(kPinholeGradientSize < kWarp, "one lane per number of a camera's gradient");
constexpr unsigned kAlone = 32;  // slots that a thread adds up by itself; more are the whole warp's work
constexpr int kWarps = kSplatThreads / kWarp;

__device__ void add_slot(const float* slots, std::int64_t slot, float* sum) {
    const float* from = slots + kPairSlot * slot;
    const float4 a = load_four(from), b = load_four(from + 4);
    const float2 c = *reinterpret_cast<const float2*>(from + 8);
    sum[0] += a.x, sum[1] += a.y, sum[2] += a.z, sum[3] += a.w, sum[4] += b.x;
    sum[5] += b.y, sum[6] += b.z, sum[7] += b.w, sum[8] += c.x, sum[9] += c.y;
}

// The sums over every lane's slots. All lanes of the warp must call. Up to kAlone slots are added one by one; of more,
// each lane adds every kWarp-th one.
__device__ void gather_sums(const float* slots, std::uint32_t begin, std::uint32_t count, float* sum) {
    const unsigned lane = threadIdx.x % kWarp;
    for (int k = 0; k < kSums; ++k) sum[k] = 0.0f;
    if (count <= kAlone)
        for (std::uint32_t p = 0; p < count; ++p) add_slot(slots, std::int64_t(begin) + p, sum);
    for (unsigned open = __ballot_sync(kAllLanes, count > kAlone); open != 0; open &= open - 1) {
        const int owner = __ffs(static_cast<int>(open)) - 1;
        const std::uint32_t first = __shfl_sync(kAllLanes, begin, owner), all = __shfl_sync(kAllLanes, count, owner);
        float part[kSums] = {};
        for (std::uint32_t p = lane; p < all; p += kWarp) add_slot(slots, std::int64_t(first) + p, part);
        for (int k = 0; k < kSums; ++k) {
            for (int step = kWarp / 2; step > 0; step /= 2) part[k] += __shfl_xor_sync(kAllLanes, part[k], step);
            if (static_cast<int>(lane) == owner) sum[k] = part[k];
        }
    }
}

// Slots beyond the capacity do not exist.
__device__ std::uint32_t slots_of(const SplatGradientTables& t, const Sizes& sizes, std::int64_t row) {
    const std::int64_t rest = sizes.pair_capacity - std::int64_t(t.first_slot[row]), count = t.counts[row];
    return static_cast<std::uint32_t>(rest <= 0 || count == 0 ? 0 : rest < count ? rest : count);
}

// Gradients of one Gaussian's columns, over the views so far.
struct Columns {
    Vec3<float> mean, scale, colour, constant;  // colour: if colours are given; constant: of the harmonics
    Quat<float> quat;
    Sym3<float> covariance;
    float opacity;
};

// Harmonics: where this thread's coefficients lie, and where their gradients go, which may be the same place.
struct ShRows {
    ShLayout layout;
    const float* staged;
    float* gradients;
};

// Returns what the direction, from the camera's centre, does to the mean's gradient; the centre's is the opposite.
template <bool many>
__device__ Vec3<float> colour_backward(const Gaussians& in, const Vec3<float>& centre, const Vec3<float>& mean,
                                       const float* g_rgb, const ShRows& sh, std::int64_t i, Columns& total) {
    Vec3<float> g_mean = {0.0f, 0.0f, 0.0f}, g_centre = g_mean;
    if (in.colors != nullptr) {
        total.colour = total.colour + Vec3<float>{g_rgb[0], g_rgb[1], g_rgb[2]};
        return g_mean;
    }
    const ShRow row = sh_row(in, sh.layout, sh.staged, i);
    float* out = sh.gradients + static_cast<int>(threadIdx.x) * sh.layout.pitch - sh.layout.skip;
    for_degree(in.sh_degree, [&](auto degree) {
        float basis[sh_count(degree())], live[3];
        sh_colour_vjp<degree()>(centre, mean, row, g_rgb, basis, live, g_mean, g_centre);
        total.constant = total.constant + basis[0] * Vec3<float>{live[0], live[1], live[2]};
        for (int k = 1; k < sh_count(degree()); ++k)
            for (int c = 0; c < 3; ++c)
                out[3 * k + c] = many ? fma(basis[k], live[c], out[3 * k + c]) : basis[k] * live[c];
    });
    return g_mean;
}

__device__ void shape_backward(const Gaussians& in, const Splat<float>& s, const Sym2<float>& g_raw, SplatIncoming& g,
                               Columns& total) {
    if (in.covariances == nullptr) return shape_vjp(s, g_raw, g);
    Sym3<float> d, &c = total.covariance;
    shape_vjp(s, g_raw, g, d);
    c = {c.xx + d.xx, c.xy + d.xy, c.xz + d.xz, c.yy + d.yy, c.yz + d.yz, c.zz + d.zz};
}

// The last steps: to the local columns and the frame on a mesh, to the splat's own columns in the world.
__device__ void add_columns(const View& view, const Gaussians& in, const Splat<float>& s, const SplatIncoming& g,
                            FrameGradient<float>& g_frame, Columns& total) {
    if (in.frames != nullptr) {
        const PosedGaussian<float> own =
            activate_vjp(s.local, s.inverse_length, place_vjp(s.frame, s.local, g.world, g_frame));
        total.mean = total.mean + own.mean, total.scale = total.scale + own.scale, total.quat = total.quat + own.quat;
        total.opacity += g.log_opacity * (1.0f - s.opacity);
        return;
    }
    total.mean = total.mean + g.world.mean;
    total.opacity += g.log_opacity / s.opacity;
    if (in.covariances != nullptr) return;
    total.scale = total.scale + g.world.scale;
    total.quat = total.quat +
                 (view.normalise_quats ? normalise_vjp(s.world.quat, s.inverse_length, g.world.quat) : g.world.quat);
}

// The block's sum of a camera's gradient, one lane per number.
__device__ void store_camera(const PinholeGradient<float>& g, float (*part)[kWarp], float* out) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    const float* fields = &g.rotation.row[0].x;
    float mine = 0.0f;
    for (int k = 0; k < kPinholeGradientSize; ++k) {
        float value = fields[k];
        for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
        if (lane == k) mine = value;
    }
    part[warp][lane] = mine;
    __syncthreads();
    if (warp == 0 && lane < kCameraGradient) {
        float total = 0.0f;
        for (int w = 0; w < kWarps; ++w) total += part[w][lane];
        out[lane] = total;
    }
    __syncthreads();
}

// One view's share; returns whether the Gaussian adds anything to its picture. All threads of the block must call.
template <bool many, bool with_camera>
__device__ bool backward_view(const SplatGradientTables& t, const Sizes& sizes, const ShRows& sh, int b, std::int64_t i,
                              float (*camera_part)[kWarp], Columns& total) {
    const View& view = t.views[b];
    const std::int64_t row = std::int64_t(b) * sizes.count + i;
    const bool here = i < sizes.count;
    float sum[kSums];
    gather_sums(t.slots, here ? t.first_slot[row] : 0, here ? slots_of(t, sizes, row) : 0, sum);
    bool seen = false;
    for (int k = 0; k < kSums; ++k) seen = seen || sum[k] != 0.0f;
    // The harmonics come first, and the barrier keeps apart what both parts would like to hold in registers.
    Vec3<float> towards = {0.0f, 0.0f, 0.0f};
    if (seen) {
        const Vec3<float> centre = load_three(view.centre), mean = load_mean(t.in, t.faces, b, i);
        towards = colour_backward<many>(t.in, centre, mean, sum + kRed, sh, i, total);
    }
    __syncthreads();
    SplatIncoming g;
    if (with_camera) g.camera = {};
    g.projection.x = g.projection.y = 0.0f;
    FrameGradient<float> g_frame = {};
    if (seen) {
        const Pinhole<float> camera = pinhole<float>(view);
        Splat<float> s;
        load_columns(view, t.in, t.faces, b, i, s);
        load_projection(view, camera, t.in, row, s);
        shape_backward(t.in, s, picture_vjp(view, s, sum, g), g, total);
        projection_vjp(camera, s, g);
        g.world.mean = g.world.mean + towards;
        g.camera.centre = g.camera.centre - towards;
        add_columns(view, t.in, s, g, g_frame, total);
    }
    if (here && t.screen_offsets != nullptr) {
        t.screen_offsets[2 * row] = g.projection.x * (0.5f * view.width);
        t.screen_offsets[2 * row + 1] = g.projection.y * (0.5f * view.height);
    }
    if (here && t.frame_slots != nullptr)
        store_slot(g_frame, t.frame_slots + kRigSlot * (std::int64_t(b) * sizes.count + t.out.slot_of[i]));
    if (with_camera)
        store_camera(g.camera, camera_part, t.camera + kCameraGradient * (std::int64_t(b) * gridDim.x + blockIdx.x));
    return seen;
}

// 0, or NaN if the square of a number is not finite.
__device__ float probe_square(float x) { return probe(x * x); }
__device__ float probe_squares(const Vec3<float>& v) {
    return probe_square(v.x) + probe_square(v.y) + probe_square(v.z);
}

// Writes the gradient if it is wanted; returns what is wrong with it.
__device__ float store_three_if(const Vec3<float>& g, float* out, std::int64_t i) {
    if (out == nullptr) return 0.0f;
    store_three(g, out + 3 * i);
    return probe_squares(g);
}

// Writes the columns of one Gaussian; returns whether the squares of all gradients were finite.
__device__ bool store_columns(const SplatGradients& out, const Columns& g, std::int64_t i) {
    float fine = store_three_if(g.mean, out.means, i) + store_three_if(g.scale, out.scales, i) +
                 store_three_if(g.colour, out.colors, i) + store_three_if(g.constant, out.sh0, i);
    if (out.quats != nullptr) {
        store_quat(g.quat, out.quats + 4 * i);
        fine += probe_square(g.quat.w) + probe_squares({g.quat.x, g.quat.y, g.quat.z});
    }
    if (out.opacities != nullptr) {
        out.opacities[i] = g.opacity;
        fine += probe_square(g.opacity);
    }
    if (out.covariances != nullptr) {
        const Vec3<float> first = {g.covariance.xx, g.covariance.xy, g.covariance.xz};
        const Vec3<float> second = {g.covariance.yy, g.covariance.yz, g.covariance.zz};
        fine += store_three_if(first, out.covariances, 2 * i) + store_three_if(second, out.covariances, 2 * i + 1);
    }
    return fine == 0.0f;
}

__device__ void clear_row(const ShLayout& sh, float* row) {
    for (int column = 0; column < sh.columns; ++column) row[column] = 0.0f;
}

__device__ bool squares_finite(const ShLayout& sh, const float* row) {
    float fine = 0.0f;
    for (int column = 0; column < sh.columns; ++column) fine += probe_square(row[column]);
    return fine == 0.0f;
}

// The harmonics' gradients of the block, zero where a coefficient is not in use. All threads must call.
__device__ void store_sh(const SplatGradients& out, const ShRows& sh, int first, int rows) {
    __syncthreads();
    float* to = out.sh + std::int64_t(first) * sh.layout.stride;
    for_values(rows, sh.layout.stride, [&](int row, int column) {
        to[std::int64_t(row) * sh.layout.stride + column] =
            column < sh.layout.columns ? sh.gradients[row * sh.layout.pitch + column] : 0.0f;
    });
}

// Does any view show a Gaussian of this block?
__device__ bool block_is_seen(const SplatGradientTables& t, const Sizes& sizes, std::int64_t i) {
    bool any_pair = false;
    if (i < sizes.count)
        for (int b = 0; b < sizes.views; ++b) any_pair = any_pair || t.counts[std::int64_t(b) * sizes.count + i] != 0;
    return __syncthreads_or(any_pair) != 0;
}

template <bool many, bool with_camera>
__global__ void __launch_bounds__(kSplatThreads, 6) backward_kernel(Sizes sizes, SplatGradientTables t) {
    __shared__ float staged[kSplatThreads * kShPitch];
    __shared__ float gradients[many ? kSplatThreads * kShPitch : 1];
    __shared__ float camera_part[kWarps][kWarp];
    const int first = static_cast<int>(blockIdx.x) * kSplatThreads, rows = rows_of_block(sizes, first);
    const std::int64_t i = first + static_cast<int>(threadIdx.x);
    const bool harmonics = t.in.colors == nullptr;
    const ShRows sh = {sh_layout(t.in), staged, many ? gradients : staged};
    float* own = sh.gradients + static_cast<int>(threadIdx.x) * sh.layout.pitch;
    if (harmonics && block_is_seen(t, sizes, i)) stage_sh(t.in, sh.layout, first, rows, staged);
    if (harmonics && many) clear_row(sh.layout, own);
    __syncthreads();

    Columns total = {};
    bool seen = false;
    for (int b = 0; b < sizes.views; ++b)
        seen = backward_view<many, with_camera>(t, sizes, sh, b, i, camera_part, total) || seen;

    if (harmonics && !seen) clear_row(sh.layout, own);
    if (harmonics && sh.layout.skip == 0) store_three(total.constant, own);
    if (i < sizes.count) {
        bool fine = store_columns(t.out, total, i);
        if (t.health != nullptr && harmonics) fine = fine && squares_finite(sh.layout, own);
        if (t.health != nullptr && !fine) report(t.health, kBadGradient, static_cast<int>(i));
    }
    if (harmonics && t.out.sh != nullptr) store_sh(t.out, sh, first, rows);
}

template <bool many>
void launch_backward(const Sizes& sizes, const SplatGradientTables& tables, cudaStream_t stream) {
    const unsigned blocks = blocks_for(sizes.count, kSplatThreads);
    if (tables.camera != nullptr) {
        launch(backward_kernel<many, true>, blocks, kSplatThreads, stream, sizes, tables);
    } else {
        launch(backward_kernel<many, false>, blocks, kSplatThreads, stream, sizes, tables);
    }
}

}  // namespace

void splats_backward(const Sizes& sizes, const SplatGradientTables& tables, cudaStream_t stream) {
    if (sizes.views > 1) {
        launch_backward<true>(sizes, tables, stream);
    } else {
        launch_backward<false>(sizes, tables, stream);
    }
}

}  // namespace cuda
}  // namespace mien

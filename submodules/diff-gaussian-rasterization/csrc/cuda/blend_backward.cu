// Gradients of pictures, down to ten sums for every (splat, tile) pair. A block has a bucket of a tile's list and
// starts from the state that the forward pass kept; as there, a warp has a sub-tile and a lane a pixel, and all go
// front to back. A warp adds up a splat's sums over its lanes without leaving registers, the block adds up its warps'
// in order.
#include "cuda/stages.h"

#include "cuda/blend.h"

namespace mien {
namespace cuda {

namespace {

using namespace mien::device;

constexpr int kPass = 16;              // entries between two barriers
constexpr int kQuads = kPairSlot / 4;  // float4s of a slot

// What a pixel brings and carries along; `remaining` is s of core/blend.h.
struct PixelGradient {
    float red, green, blue, depth;  // dL/doutput
    float transmittance, remaining;
};

struct Rules {
    float alpha_max, stop;
    float gate;  // the gradient stops where the opacity before its clamp is larger
};

__device__ Rules rules_of(const View& view) {
    return {view.alpha_max, view.stop, view.clamp_passes_gradient != 0 ? 3e38f : view.alpha_max};
}

// 1 / x for x in (0, 1], to the last bit but one.
__device__ float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return fma(y, fnma(x, y, 1.0f), y);
#else
    return 1.0f / x;
#endif
}

// What one pixel does to one splat: h = dL/d(ln alpha), and the weight of its colour.
struct Share {
    float h, weight;
};

// Selects instead of branches: some lane of the warp takes the splat anyway.
template <bool with_depth>
__device__ Share meet(float exponent, const float4& light, const float4& rest, const Rules& rules, PixelGradient& p) {
    const bool seen = exponent >= kFaintest;
    const float raw = exp2_of(exponent), alpha = min(raw, rules.alpha_max), next = behind(p.transmittance, alpha);
    const bool taken = seen && next >= rules.stop;
    float v = fma(p.red, light.z, fma(p.green, light.w, p.blue * rest.x));
    if constexpr (with_depth) v = fma(p.depth, rest.y, v);
    const float h = fma(p.transmittance, v, -p.remaining) * (raw * reciprocal(1.0f - alpha));
    const float weight = taken ? alpha * p.transmittance : 0.0f;
    p.remaining = fnma(weight, v, p.remaining);
    p.transmittance = taken ? next : (seen ? kDead : p.transmittance);
    return {taken && raw <= rules.gate ? h : 0.0f, weight};
}

// One of two values goes to the lane `bit` away, whose other one is added to the value that stays: lanes with `upper`
// keep `b`.
__device__ float trade(float a, float b, bool upper, int bit) {
    const float sent = upper ? a : b, kept = upper ? b : a;
    return kept + __shfl_xor_sync(kAllLanes, sent, bit);
}

__device__ float meet_lane(float value, int bit) { return value + __shfl_xor_sync(kAllLanes, value, bit); }

// Sums over the warp's 8 x 4 pixels. Sums over a row first, of h, h dx, h dx^2 and the colours; then over the four
// rows, where dy is the same for a whole row. Each step halves what a lane still holds, and at the end a lane holds one
// sum, that of `sum_of_lane`.
template <bool with_depth>
__device__ float warp_sums(const Share& share, float dx, float dy, const PixelGradient& p) {
    const unsigned lane = threadIdx.x % kWarp;
    const bool upper4 = lane & 4, upper2 = lane & 2, upper1 = lane & 1, lower_rows = lane & 16, odd_row = lane & 8;
    const float hx = share.h * dx, hxx = hx * dx, w = share.weight;
    float a = trade(share.h, w * p.red, upper4, 4), b = trade(hx, w * p.green, upper4, 4);
    float c = trade(hxx, w * p.blue, upper4, 4);
    a = trade(a, c, upper2, 2);
    if constexpr (with_depth) {
        b = trade(b, meet_lane(w * p.depth, 4), upper2, 2);
    } else {
        b = meet_lane(b, 2);
    }
    const float u = trade(a, b, upper1, 1), uy = u * dy;
    const float first = trade(u, uy, lower_rows, 16), second = meet_lane(uy * dy, 16);
    return trade(first, second, odd_row, 8);
}

// Which sum of a pair's slot a lane ends up with; kSums or more: none that is needed.
__device__ int sum_of_lane(int lane) {
    constexpr std::uint32_t first_eight = 0x9876f310;  // h, hx, hxx, -, red, green, blue, depth
    if (lane < 8) return int(first_eight >> (4 * lane) & 15u);
    return lane == 16 ? 2 : lane == 17 ? 4 : lane == 8 ? 5 : kSums;  // hy, hxy, hyy
}

// Of the entries of a pass, of every warp; two, so that warps may begin a pass while the last one is added up.
struct PassSums {
    float4 quad[2][kSubTiles][kPass][kQuads];
};

// `mine`: where this lane's sum of the pass's first entry goes; null: nowhere.
template <bool with_depth>
__device__ void backward_pass(const StagedEntries& staged, int first, int count, float x, float y, const Rules& rules,
                              PixelGradient& pixel, float* mine) {
    unsigned left = reached_entries(staged, first, count < kPass ? count : kPass);
    while (left != 0) {
        const int bit = __ffs(int(left)) - 1;
        left &= left - 1;
        const StagedEntry& entry = staged.entry[first + bit];
        const float4 shape = entry.shape, light = entry.light;
        const float dx = x + shape.x, dy = y + shape.y;
        const Share share = meet<with_depth>(exponent_at(dx, dy, shape, light), light, entry.rest, rules, pixel);
        const float total = warp_sums<with_depth>(share, dx, dy, pixel);
        if (mine != nullptr) mine[bit * kPairSlot] = total;
    }
}

// Adds up the warps' sums of an entry, in order, and writes a quarter of its slot.
template <bool with_depth>
__device__ void write_slot(const float4 (*sums)[kPass][kQuads], int entry, int quad, unsigned mask, float4* slot) {
    float4 total = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int s = 0; s < kSubTiles; ++s) {
        if ((mask >> s & 1u) == 0) continue;
        const float4 more = sums[s][entry][quad];
        total = make_float4(total.x + more.x, total.y + more.y, total.z + more.z, total.w + more.w);
    }
    if (quad == kQuads - 1) {
        if (!with_depth) total.y = 0.0f;
        total.z = total.w = 0.0f;
    }
    slot[quad] = total;
}

// s at the start is <output, dL/doutput>, where alpha counts as -(final transmittance); what the buckets before have
// added is no longer to come.
template <bool with_depth>
__device__ PixelGradient load_pixel(const Sizes& sizes, const BlendTables& t, const BatchPictureGradients& in,
                                    const TilePixel& place, const float* state) {
    PixelGradient p = {0.0f, 0.0f, 0.0f, 0.0f, kDead, 0.0f};
    if (!place.inside(sizes)) return p;
    const std::int64_t plane = std::int64_t(sizes.width) * sizes.height, at = place.at(sizes, 1);
    const float *g = in.image + place.at(sizes, 3), *out = in.out_image + place.at(sizes, 3);
    p.red = g[0], p.green = g[plane], p.blue = g[2 * plane];
    p.remaining = in.alpha != nullptr ? -t.transmittance[at] * in.alpha[at] : 0.0f;
    p.remaining = fma(p.red, out[0], fma(p.green, out[plane], fma(p.blue, out[2 * plane], p.remaining)));
    if constexpr (with_depth) {
        p.depth = in.depth[at];
        p.remaining = fma(p.depth, in.out_depth[at], p.remaining);
    }
    p.transmittance = 1.0f;
    if (state == nullptr) return p;
    state += threadIdx.x;
    p.transmittance = state[0];
    p.remaining = fnma(p.red, state[1 * kTilePixels], p.remaining);
    p.remaining = fnma(p.green, state[2 * kTilePixels], p.remaining);
    p.remaining = fnma(p.blue, state[3 * kTilePixels], p.remaining);
    if constexpr (with_depth) p.remaining = fnma(p.depth, state[4 * kTilePixels], p.remaining);
    return p;
}

// A bucket that nothing was seen of; its state was not kept.
__device__ void clear_slots(const std::uint32_t* pairs, int count, float4* slots) {
    for (int k = int(threadIdx.x); k < count * kQuads; k += kTilePixels)
        slots[std::int64_t(pairs[k / kQuads]) * kQuads + k % kQuads] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

// Brings a bucket; returns whether this thread's entry was seen by any pixel.
__device__ bool stage_bucket(const BlendTables& t, const TilePixel& place, std::uint32_t first, int count,
                             StagedEntries& staged, std::uint32_t* pairs) {
    const int mine = int(threadIdx.x) % kBucket, part = int(threadIdx.x) / kBucket;
    if (mine >= count) return false;
    const uint2 entry = t.entries[first + mine];
    stage_record(t.records[entry.x], part, place.x0(), place.y0(), staged.entry[mine]);
    if (part == 0) {
        pairs[mine] = entry.y;
        return false;
    }
    const std::uint8_t mask = t.masks[first + mine];
    staged.mask[mine] = mask;
    return mask != 0;
}

template <bool with_depth>
__global__ void __launch_bounds__(kTilePixels, resident(6))
    backward_buckets(Sizes sizes, BlendTables t, BatchPictureGradients in, float4* slots) {
    __shared__ StagedEntries staged;
    __shared__ std::uint32_t pairs[kBucket];
    __shared__ PassSums sums;
    const std::uint32_t bucket = blockIdx.x, tile = t.bucket_tile[bucket];
    if (tile == 0xffffffffu) return;
    const TilePixel place(sizes, tile);
    const std::uint32_t in_tile = bucket - t.bucket_begin[tile], first = t.tile_begin[tile] + in_tile * kBucket;
    const std::uint32_t rest = t.tile_begin[tile + 1] - first;
    const int count = rest < kBucket ? int(rest) : kBucket;
    const bool seen = stage_bucket(t, place, first, count, staged, pairs);
    if (__syncthreads_or(seen) == 0) {
        clear_slots(pairs, count, slots);
        return;
    }
    const Rules rules = rules_of(t.views[place.view]);
    const float* state = in_tile == 0 ? nullptr : t.states + std::int64_t(bucket) * (kStateFloats * kTilePixels);
    PixelGradient pixel = load_pixel<with_depth>(sizes, t, in, place, state);
    const int sub_tile = int(threadIdx.x) / kWarp, sum = sum_of_lane(int(threadIdx.x) % kWarp);
    for (int pass = 0; pass * kPass < count; ++pass) {
        const int from = pass * kPass;
        float* mine = sum < kSums ? reinterpret_cast<float*>(sums.quad[pass % 2][sub_tile]) + sum : nullptr;
        backward_pass<with_depth>(staged, from, count - from, place.dx(), place.dy(), rules, pixel, mine);
        __syncthreads();
        // Other warps every time.
        const int k = (int(threadIdx.x) - pass * 2 * kWarp) & (kTilePixels - 1), entry = k / kQuads;
        if (entry < kPass && from + entry < count)
            write_slot<with_depth>(sums.quad[pass % 2], entry, k % kQuads, staged.mask[from + entry],
                                   slots + std::int64_t(pairs[from + entry]) * kQuads);
    }
}

// dL/dbackground of one tile: what shines through it.
__global__ void __launch_bounds__(kTilePixels)
    background_sums(Sizes sizes, const float* transmittance, const float* g_image, float* background) {
    __shared__ float warps[kSubTiles][3];
    const TilePixel place(sizes, blockIdx.x);
    const std::int64_t plane = std::int64_t(sizes.width) * sizes.height;
    const bool inside = place.inside(sizes);
    const float t = inside ? transmittance[place.at(sizes, 1)] : 0.0f;
    for (int c = 0; c < 3; ++c) {
        float sum = inside ? g_image[place.at(sizes, 3) + c * plane] * t : 0.0f;
        for (int bit = kWarp / 2; bit > 0; bit /= 2) sum = meet_lane(sum, bit);
        if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp][c] = sum;
    }
    __syncthreads();
    if (threadIdx.x >= 3) return;
    float sum = 0.0f;
    for (int s = 0; s < kSubTiles; ++s) sum += warps[s][threadIdx.x];
    background[3 * std::int64_t(blockIdx.x) + threadIdx.x] = sum;
}

}  // namespace

void blend_backward(const Sizes& sizes, const BlendTables& tables, const BatchPictureGradients& in, float* slots,
                    float* background, cudaStream_t stream) {
    const unsigned tiles = static_cast<unsigned>(sizes.tiles());
    if (background != nullptr)
        launch(background_sums, tiles, kTilePixels, stream, sizes, tables.transmittance, in.image, background);
    const auto kernel = in.depth != nullptr ? backward_buckets<true> : backward_buckets<false>;
    launch(kernel, static_cast<unsigned>(sizes.buckets()), kTilePixels, stream, sizes, tables, in,
           reinterpret_cast<float4*>(slots));
}

}  // namespace cuda
}  // namespace mien

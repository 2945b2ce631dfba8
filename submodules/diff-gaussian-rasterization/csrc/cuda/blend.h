// What the forward and the backward tile kernel share: which pixel a thread has, how entries lie in shared memory, and
// a splat's opacity at a pixel. Both directions must decide alike whether a splat is seen and where a pixel ends, so
// both come from here, with every rounding spelled out.
#pragma once

#include "core/blend.h"

#include "cuda/reach.h"

namespace mien {
namespace cuda {

constexpr int kTilePixels = kTile * kTile;  // and threads of a block: warp s has sub-tile s, row by row
// Blocks that a multiprocessor can hold at a time, and of those as many as there should be registers for.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 750
constexpr int kMostBlocks = 4;
#else
constexpr int kMostBlocks = 6;
#endif
constexpr int resident(int wanted) { return wanted < kMostBlocks ? wanted : kMostBlocks; }

constexpr float kDead = -1.0f;  // transmittance in a saved state: the pixel takes nothing any more

// The pixel that a thread has in a tile. Little is kept, so that the rest need not stay in registers.
struct TilePixel {
    int view, x, y;  // in the picture, or beyond its edge

    __device__ TilePixel(const Sizes& sizes, std::uint32_t tile) {
        const unsigned across = unsigned(sizes.tiles_x), per_view = across * unsigned(sizes.tiles_y);
        const unsigned in_view = tile % per_view, lane = threadIdx.x % kWarp, sub_tile = threadIdx.x / kWarp;
        view = int(tile / per_view);
        x = int(in_view % across * kTile + sub_tile % 2 * kSubTileWidth + lane % kSubTileWidth);
        y = int(in_view / across * kTile + sub_tile / 2 * kSubTileHeight + lane / kSubTileWidth);
    }
    __device__ bool inside(const Sizes& sizes) const { return x < sizes.width && y < sizes.height; }
    // The tile's first pixel, and from there to this one.
    __device__ int x0() const { return x & ~(kTile - 1); }
    __device__ int y0() const { return y & ~(kTile - 1); }
    __device__ float dx() const { return float(x & (kTile - 1)); }
    __device__ float dy() const { return float(y & (kTile - 1)); }
    // Its place in the first of `planes` planes [B, planes, H, W].
    __device__ std::int64_t at(const Sizes& sizes, int planes) const {
        return (std::int64_t(view) * planes * sizes.height + y) * sizes.width + x;
    }
};

// What blending needs of an entry.
struct StagedEntry {
    float4 shape;  // from the mean to the tile's first pixel (x, y); a, b of core/blend.h
    float4 light;  // c, log2 of the opacity, red, green
    float4 rest;   // blue, depth, unused
};

// Up to kBucket entries of a tile, in shared memory.
struct StagedEntries {
    StagedEntry entry[kBucket];
    std::uint8_t mask[kBucket];
};

// Brings one splat; two threads share the work: `part` is 0 or 1.
__device__ inline void stage_record(const SplatRecord& record, int part, int x0, int y0, StagedEntry& out) {
    const float4* from = reinterpret_cast<const float4*>(&record);
    if (part == 0) {
        const float4 shape = from[0];
        out.shape = make_float4(static_cast<float>(x0) + 0.5f - shape.x, static_cast<float>(y0) + 0.5f - shape.y,
                                shape.z, shape.w);
        out.light = from[1];
    } else {
        out.rest = from[2];
    }
}

// 2^x for x far above the smallest normal number.
__device__ inline float exp2_of(float x) {
#if defined(__CUDA_ARCH__)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return std::exp2(x);
#endif
}

// Exponent of the splat's opacity at (dx, dy) from its mean.
__device__ inline float exponent_at(float dx, float dy, const float4& shape, const float4& light) {
    return mien::MIEN_ISA::exponent(dx, dy, shape.z, shape.w, light.x, light.y);
}

constexpr float kFaintest = static_cast<float>(mien::MIEN_ISA::kLog2AlphaMin);  // lower exponents are skipped

// Transmittance behind a splat.
__device__ inline float behind(float transmittance, float alpha) {
    return mien::MIEN_ISA::fnma(alpha, transmittance, transmittance);
}

// Which of the next 32 entries from `first` on, of which there are `count`, reach this warp's sub-tile, as bits. For
// whole warps.
__device__ inline unsigned reached_entries(const StagedEntries& staged, int first, int count) {
    const int lane = int(threadIdx.x) % kWarp, sub_tile = int(threadIdx.x) / kWarp;
    return __ballot_sync(kAllLanes, lane < count && (staged.mask[first + lane] >> sub_tile & 1) != 0);
}

}  // namespace cuda
}  // namespace mien

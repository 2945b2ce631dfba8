// What the forward and the backward tile kernel share: the layout of pixels in lanes, and a splat's opacity at a group
// of pixels.
#pragma once

#include "tiles.h"

#include "kernels/simd.h"

#include "core/blend.h"

namespace mien {
namespace MIEN_ISA {

constexpr int kBlockPixels = 16;               // a block is 4 x 4 pixels
constexpr int kParts = kBlockPixels / kLanes;  // registers per block
constexpr int kTilePixels = kTile * kTile;

// Where the tile's pixels lie in the tile, block by block, row by row inside a block.
struct PixelTable {
    alignas(64) float x[kTilePixels], y[kTilePixels];
    constexpr PixelTable() : x(), y() {
        for (int i = 0; i < kTilePixels; ++i) {
            const int block = i / kBlockPixels, pixel = i % kBlockPixels;
            x[i] = static_cast<float>(block % 4 * 4 + pixel % 4);
            y[i] = static_cast<float>(block / 4 * 4 + pixel / 4);
        }
    }
};
constexpr PixelTable kPixels;

// From a splat's mean to the centre of the tile's first pixel.
inline float offset_x(const TileSplats& tile, const SplatRecord& r) { return static_cast<float>(tile.x0) + 0.5f - r.x; }
inline float offset_y(const TileSplats& tile, const SplatRecord& r) { return static_cast<float>(tile.y0) + 0.5f - r.y; }

// Asks for the record of a splat that comes later in the list; the records are spread over more memory than the fast
// caches hold. GCC 12 takes a function that only prefetches for one without effect and drops the call, unless it is
// inlined before that.
[[gnu::always_inline]] inline void prefetch(const TileSplats& tile, int64_t entry) {
    if (entry < tile.count) __builtin_prefetch(&tile.records[tile.entries[entry].splat]);
}

struct Opacity {
    Float raw;  // o G before the clamp, zero below 1/255
    Mask seen;  // not below
};

// (dx, dy): from the mean to the pixel centres.
inline Opacity opacity_at(Float dx, Float dy, const SplatRecord& r) {
    const Float e = exponent(dx, dy, Float(r.a), Float(r.b), Float(r.c), Float(r.log2_opacity));
    const Mask seen = e >= Float(static_cast<float>(kLog2AlphaMin));
    return {exp2_where(seen, e), seen};
}

inline bool inside_picture(const View& view, const TileSplats& tile) {
    return tile.x0 + kTile <= view.width && tile.y0 + kTile <= view.height;
}

// Calls body(offset in the plane, offset in block order, pixels) for every row of every block, as far as it lies in the
// picture.
template <class Body>
inline void for_block_rows(const View& view, const TileSplats& tile, Body&& body) {
    const int64_t width = view.width, corner = tile.y0 * width + tile.x0;
    if (inside_picture(view, tile)) {
        for (int y = 0; y < kTile; ++y)
            for (int x = 0; x < kTile; x += 4)
                body(corner + y * width + x, (y / 4 * 4 + x / 4) * kBlockPixels + y % 4 * 4, 4);
        return;
    }
    for (int y = 0; y < kTile && tile.y0 + y < view.height; ++y)
        for (int x = 0; x < kTile && tile.x0 + x < view.width; x += 4) {
            const int pixels = tile.x0 + x + 4 <= view.width ? 4 : view.width - tile.x0 - x;
            body(corner + y * width + x, (y / 4 * 4 + x / 4) * kBlockPixels + y % 4 * 4, pixels);
        }
}

inline void copy_pixels(float* to, const float* from, int pixels) {
    if (pixels == 4) {
        std::memcpy(to, from, 4 * sizeof(float));
    } else {
        for (int i = 0; i < pixels; ++i) to[i] = from[i];
    }
}

// Copies a plane of one tile from the picture into block order; pixels outside the picture become zero.
inline void read_tile(const View& view, const TileSplats& tile, const float* plane, float* out) {
    if (!inside_picture(view, tile)) {
        std::memset(out, 0, kTilePixels * sizeof(float));
#if defined(MIEN_ISA_avx512)
    } else {
        const int64_t width = view.width;
        for (int y = 0; y < kTile; y += 4) {
            Float r[4];
            for (int k = 0; k < 4; ++k) r[k] = load(plane + (tile.y0 + y + k) * width + tile.x0);
            transpose_quarters(r);
            for (int k = 0; k < 4; ++k) store(out + (y + k) * kTile, r[k]);
        }
        return;
#endif
    }
    for_block_rows(view, tile,
                   [&](int64_t at, int block_at, int pixels) { copy_pixels(out + block_at, plane + at, pixels); });
}

inline void write_tile(const View& view, const TileSplats& tile, const float* in, float* plane) {
#if defined(MIEN_ISA_avx512)
    if (inside_picture(view, tile)) {
        const int64_t width = view.width;
        for (int y = 0; y < kTile; y += 4) {
            Float r[4];
            for (int k = 0; k < 4; ++k) r[k] = load(in + (y + k) * kTile);
            transpose_quarters(r);
            for (int k = 0; k < 4; ++k) store(plane + (tile.y0 + y + k) * width + tile.x0, r[k]);
        }
        return;
    }
#endif
    for_block_rows(view, tile,
                   [&](int64_t at, int block_at, int pixels) { copy_pixels(plane + at, in + block_at, pixels); });
}

// Asks for a tile's pixels of a plane. A tile's rows lie pages apart, where the hardware foresees nothing.
[[gnu::always_inline]] inline void prefetch_pixels(const View& view, const TilePlace& tile, const float* plane) {
    if (plane == nullptr) return;
    const int last = view.width - tile.x0 < kTile ? view.width - tile.x0 - 1 : kTile - 1;
    for (int y = tile.y0; y < tile.y0 + kTile && y < view.height; ++y) {
        const float* row = plane + static_cast<int64_t>(y) * view.width + tile.x0;
        __builtin_prefetch(row, 0, 2);
        __builtin_prefetch(row + last, 0, 2);
    }
}

}  // namespace MIEN_ISA
}  // namespace mien

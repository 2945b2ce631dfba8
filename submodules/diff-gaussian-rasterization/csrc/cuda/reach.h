// Which parts of a tile a splat reaches, on the device. Counting and listing pairs must decide alike: both ask here.
#pragma once

#include "core/reach.h"

#include "cuda/stages.h"

namespace mien {
namespace cuda {

constexpr int kSubTileWidth = 8, kSubTileHeight = 4;

// Bit s: whether the splat reaches sub-tile s (stages.h) of the tile in column tile_x and row tile_y.
MIEN_HD inline unsigned sub_tile_mask(const SplatRecord& r, int tile_x, int tile_y) {
    using namespace mien::MIEN_ISA;
    const float reach = reach_of(r.log2_opacity);
    const float x = static_cast<float>(tile_x * kTile) + 0.5f - r.x;
    const float y = static_cast<float>(tile_y * kTile) + 0.5f - r.y;
    unsigned mask = 0;
    for (int s = 0; s < kSubTiles; ++s) {
        const float x0 = x + static_cast<float>(s % 2 * kSubTileWidth),
                    y0 = y + static_cast<float>(s / 2 * kSubTileHeight);
        const bool reached = reaches_rectangle(x0, y0, kSubTileWidth - 1.0f, kSubTileHeight - 1.0f, r.a, r.b, r.c,
                                               r.slope_x, r.slope_y, reach);
        mask |= static_cast<unsigned>(reached) << s;
    }
    return mask;
}

}  // namespace cuda
}  // namespace mien

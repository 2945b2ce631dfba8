// The tile stage: blending the depth-ordered splats of one 16x16 tile, forward and backward.
#pragma once

#include "splats.h"

namespace mien {

struct TileEntry {
    uint32_t splat, pair;
};

struct TilePlace {
    int32_t x0, y0;  // the tile's first pixel
};

// One tile's splats, front to back.
struct TileSplats : TilePlace {
    TilePlace next;  // where this thread is likely to go on
    const SplatRecord* records;
    const TileEntry* entries;
    uint16_t* masks;  // parallel to entries; the forward pass clears blocks to which the splat adds nothing
    int64_t count;
    uint8_t* touched;      // per splat of the picture: forward sets those that add something to it
    float* transmittance;  // [kTile * kTile] of this tile, in block order: forward leaves it for backward
};

// Planes of the picture, [.., H, W].
struct Picture {
    float *image, *alpha, *depth;  // depth may be null
};

struct PictureGradients {
    const float *image, *alpha, *depth;  // dL/doutput; alpha and depth may be null
    const float *out_image, *out_depth;  // what forward returned
};

struct TileKernels {
    void (*forward)(const View&, const TileSplats&, const Picture&);
    // Writes the ten sums of every pair to slots + kSlot * pair, and the tile's background gradient to background[3],
    // which may be null.
    void (*backward)(const View&, const TileSplats&, const PictureGradients&, float* slots, float* background);
};

}  // namespace mien

MIEN_DECLARE_KERNELS(TileKernels, tile_kernels)

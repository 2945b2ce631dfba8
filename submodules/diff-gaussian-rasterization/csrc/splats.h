// The splat stage: everything that is done once per Gaussian, forward (project, colour, list the tiles) and backward.
#pragma once

#include <cstdint>

#include "isa.h"

namespace mien {

constexpr int kTile = 16;         // pixels per tile side
constexpr int kSplatBlock = 512;  // Gaussians per unit of parallel work
constexpr int kSlot = 16;         // floats per gradient slot of a (splat, tile) pair

// Camera and rules of one picture, in the form in which kernels read it.
struct View {
    float rotation[9], translation[3], centre[3];
    float fx, fy, cx, cy;
    float x_low, x_high, y_low, y_high;  // clamp of x/z, y/z inside the Jacobian
    float near_plane, far_plane;         // drawn if near < z < far
    float eps2d;                         // added to both variances of the 2D covariance, pixels^2
    float alpha_max;
    float stop;  // a pixel is live while its transmittance stays >= stop
    float background[3];
    int32_t width, height, tiles_x, tiles_y;
    int32_t normalise_quats;        // else they are taken as they are
    int32_t square_extent;          // cut at the tiles of the 3 sigma square, as diff-gaussian-rasterization does
    int32_t clamp_passes_gradient;  // alpha_max does not stop the gradient
    int32_t antialias;
};

// Arrays by rows. Either quats + scales or covariances [N, 6] (xx xy xz yy yz zz); either sh [N, K, 3] or colors [N,
// 3]. If sh0 [N, 1, 3] is given, it is the first coefficient, and sh [N, K - 1, 3] the others.
struct SplatInputs {
    int64_t count;
    int32_t sh_coefficients, sh_degree;
    const float *means, *quats, *scales, *covariances, *opacities, *sh, *colors;
    const float* screen_offsets;  // [N, 2] in half images, may be null
    const float* sh0;
};

// Where the Gaussians are. On a mesh, means, quats, scales and opacities are those of `RigColumns`: local, scales and
// opacities before their activation.
struct Gaussians : SplatInputs {
    const float* frames = nullptr;  // [F, kRigFrame]; null: in the world
    const int32_t* face = nullptr;  // [N]
};

// What blending needs of a splat; one cache line.
struct SplatRecord {
    float x, y;                   // pixels
    float a, b, c, log2_opacity;  // exponent of core/blend.h
    float red, green, blue, z;
    float slope_x, slope_y;  // where the exponent is largest: x = slope_x * dy, y = slope_y * dx
    float unused[4];
};

struct alignas(8) TileRect {
    uint16_t x0, y0, x1, y1;  // tiles; x1, y1 are exclusive
};

struct Pair {  // of a splat and a tile
    uint32_t tile;
    uint32_t mask;  // which of the tile's sixteen 4x4 blocks the splat reaches
};

struct SplatGradients {  // any pointer may be null: not wanted
    float *means, *quats, *scales, *covariances, *opacities, *sh, *colors, *screen_offsets, *sh0;
    float* camera;           // [blocks][kCameraGradient], one row per block of splats
    float* frame_slots;      // of Gaussians on a mesh: [N, kRigSlot], row slot_of[i] for Gaussian i
    const int32_t* slot_of;  // [N]
    bool stream_sh;          // write sh past the caches, which can't hold it until somebody reads it
};
constexpr int kCameraGradient = 24;  // the 23 numbers of core/projection.h, padded

struct SplatKernels {
    // Fills records, rects and radii of [first, last); returns whether every input was finite.
    bool (*prepare)(const View&, const Gaussians&, int64_t first, int64_t last, SplatRecord*, TileRect*,
                    int32_t* radii);
    // Lists the tiles that the splats [first, last) touch and counts them per splat; returns how many pairs were
    // written.
    int64_t (*list_pairs)(const SplatRecord*, const TileRect*, int tiles_x, int64_t first, int64_t last, Pair* pairs,
                          uint32_t* counts);
    // Gradients of [first, last), at most kSplatBlock; `slots` is the first splat's first pair, pairs in the order of
    // `list_pairs`. `touched`: whether a splat added anything to the picture; the slots of others are not read.
    void (*backward)(const View&, const Gaussians&, int64_t first, int64_t last, const uint32_t* counts,
                     const uint8_t* touched, const float* slots, const SplatGradients&);
};

}  // namespace mien

MIEN_DECLARE_KERNELS(SplatKernels, splat_kernels)

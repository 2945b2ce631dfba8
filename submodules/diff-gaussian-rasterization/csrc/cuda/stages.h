// How a batch of pictures comes about on a GPU, stage by stage, and who owns what in between.
//
//   views -> frames -> splats -> depth order -> pairs -> tile lists -> pictures          (forward)
//   pictures -> pair slots -> splats -> frames -> vertices                               (backward)
//
// Every array lies on the device. B views are drawn together: row (view, i) of an array "[B, N]" is view * N + i. No
// stage reads anything back or allocates; sizes are those of `Sizes`, known before, so that a whole step can be captured
// in a CUDA graph. Sums are made in fixed orders, no float is added atomically: the same input gives the same bits.
#pragma once

#include "cuda/device.h"
#include "rig.h"
#include "splats.h"

namespace mien {
namespace cuda {

constexpr int kBucket = 128;    // entries of a tile's list that one block of the backward pass works on
constexpr int kSubTiles = 8;    // of 8 x 4 pixels in a tile, row by row: sub-tile s begins at (s % 2 * 8, s / 2 * 4)
constexpr int kSums = 10;       // of a pair: h, hx, hy, hxx, hxy, hyy, red, green, blue, depth (csrc/core/splat_backward.h)
constexpr int kPairSlot = 12;   // floats of a pair's slot: the sums, then unused

struct Sizes {
    std::int32_t views;  // B
    std::int32_t count;  // N Gaussians
    std::int32_t width, height, tiles_x, tiles_y;
    std::int64_t pair_capacity;  // of all views together

    std::int64_t rows() const { return std::int64_t(views) * count; }
    std::int64_t tiles() const { return std::int64_t(views) * tiles_x * tiles_y; }
    std::int64_t pixels() const { return std::int64_t(width) * height; }
    // Upper bound: every tile's last bucket may be partly filled.
    std::int64_t buckets() const { return pair_capacity / kBucket + tiles(); }
};

// What went wrong so far, on the device: looked at every so often. Once `stopped` is set nothing changes any more.
struct Health {
    std::uint32_t stopped;         // the reasons below, or-ed; 0: all is well
    std::uint32_t step;            // the step at which it stopped
    std::uint32_t bad_row;         // lowest row of a tensor that was not finite
    std::uint32_t bad_terms;       // bit k: loss term k was not finite
    unsigned long long pairs;      // largest number of pairs that any step needed
};
enum Reason : std::uint32_t {
    kTooManyPairs = 1,    // more than pair_capacity: the farthest were left out
    kBadInput = 2,        // a Gaussian's column, or what it becomes on its triangle, is not finite
    kBadTerm = 4,         // a loss term is not finite
    kBadGradient = 8,     // a gradient's square is not finite
};

// --- views.cu: the cameras as kernels read them

struct CameraTables {  // arrays on the device; the rules are the host's
    const float *world_to_camera, *intrinsics, *background;  // [B, 4, 4], [B, 3, 3], [B, 3]
    const float* centre;  // [B, 3] camera centres in the world; null: from world_to_camera
    float near_plane, far_plane, eps2d, alpha_max, stop;
    std::int32_t normalise_quats, square_extent, clamp_passes_gradient, antialias, symmetric_clamp;
};
// A number that is not finite, or a focal length that is not positive, sets kBadInput in `health`, which may be null.
void make_views(const Sizes& sizes, const CameraTables& cameras, View* views, Health* health, cudaStream_t stream);
// Sums the rows of `partial` [B, blocks, kCameraGradient] and spreads them over [B, 4, 4] and [B, 3, 3].
void camera_backward(const Sizes& sizes, const CameraTables& cameras, const View* views, const float* partial,
                     float* world_to_camera, float* intrinsics, cudaStream_t stream);

// --- splats.cu: one thread per (view, Gaussian)

struct SplatTables {
    const View* views;          // [B]
    Gaussians in;               // columns [N, ...]; screen_offsets [B, N, 2]; frames [B, F, kRigFrame] or null
    std::int64_t faces;         // F
    SplatRecord* records;       // [B, N]
    TileRect* rects;            // [B, N]
    std::uint32_t* counts;      // [B, N] tiles that the splat reaches (exact); 0: not drawn
    std::uint32_t* keys;        // [B, N] bits of the depth; 0xffffffff: not drawn
    std::int32_t* radii;        // [B, N] pixels
    Health* health;             // may be null: sets `stopped`, without it the input is trusted
};
void prepare_splats(const Sizes& sizes, const SplatTables& tables, cudaStream_t stream);

// A splat's gradient is the sum over its pairs' slots, which lie one behind the other from first_slot on.
struct SplatGradientTables {
    const View* views;
    Gaussians in;
    std::int64_t faces;
    const std::uint32_t* counts;      // [B, N]
    const std::uint32_t* first_slot;  // [B, N]
    const float* slots;               // [pairs, kPairSlot]
    // [N, ...] summed over views; null: not wanted. Fields as on the CPU; `camera` and `frame_slots` of `out` are unused.
    SplatGradients out;
    float* screen_offsets;            // [B, N, 2] per view; may be null
    float* frame_slots;               // [B, N, kRigSlot], row slot_of[i] for Gaussian i; may be null
    float* camera;                    // [B, blocks, kCameraGradient] partial sums; may be null
    const std::uint32_t* pair_total;  // pairs beyond sizes.pair_capacity have no slot
    Health* health;                   // may be null: told of a gradient whose square is not finite
};
void splats_backward(const Sizes& sizes, const SplatGradientTables& tables, cudaStream_t stream);
constexpr int kSplatThreads = 64;   // Gaussians per block, and per row of `camera`

// --- tiles.cu: depth order, pairs, tile lists

struct TileTables {
    // in
    const View* views;
    const SplatRecord* records;
    const TileRect* rects;
    const std::uint32_t *counts, *keys;  // [B, N]
    // between
    std::uint32_t *sorted_keys, *order, *order_in;  // [B, N] order: rows, near ones first
    std::uint32_t *pair_keys_in, *pair_keys;        // [pair_capacity] view * tiles + tile
    std::uint32_t *pair_ids_in, *pair_ids;          // [pair_capacity]
    std::uint32_t *pair_splat;                      // [pair_capacity] row (view, splat) of a pair
    std::uint8_t *pair_mask;                        // [pair_capacity] sub-tiles that the pair reaches
    void* scratch;                                  // of the sorts and scans
    std::size_t scratch_bytes;
    // out
    std::uint32_t* first_slot;   // [B, N] number of a splat's first pair; pairs are numbered in depth order
    std::uint32_t* pair_total;   // [1] pairs wanted, 0xffffffff if there are more; those beyond the capacity are left out
    uint2* entries;              // [pair_capacity] by tile, near ones first: (row, pair)
    std::uint8_t* masks;         // [pair_capacity] parallel to entries
    std::uint32_t* tile_begin;   // [tiles + 1] first entry of a tile
    std::uint32_t* bucket_begin; // [tiles + 1] first bucket of a tile
    std::uint32_t* bucket_tile;  // [buckets] the tile of a bucket; beyond the last: 0xffffffff
    Health* health;              // may be null
};
std::size_t list_tiles_scratch(const Sizes& sizes);  // bytes
void count_pairs(const Sizes& sizes, const TileTables& tables, cudaStream_t stream);  // depth order, first_slot, total
void list_tiles(const Sizes& sizes, const TileTables& tables, cudaStream_t stream);   // the rest

// --- blend_forward.cu and blend_backward.cu: one block per tile, and per bucket

struct BlendTables {
    const View* views;
    const SplatRecord* records;
    const std::uint32_t *tile_begin, *bucket_begin, *bucket_tile;
    const uint2* entries;
    std::uint8_t* masks;        // forward clears the sub-tiles to which an entry adds nothing; backward meets the others
    float* transmittance;       // [B, H, W] when the pixel stopped
    // [buckets, kStateFloats, 256] at the start of a bucket; not kept of a tile's first one, nor of those behind the point
    // where all its pixels end. Null: no backward will come.
    float* states;
};
constexpr int kStateFloats = 5;  // running transmittance, red, green, blue, depth (so far, without background)

// Planes [B, .., H, W]; depth may be null.
struct BatchPicture {
    float *image, *alpha, *depth;
};
void blend_forward(const Sizes& sizes, const BlendTables& tables, const BatchPicture& out, cudaStream_t stream);

struct BatchPictureGradients {
    const float *image, *alpha, *depth;    // dL/doutput; alpha and depth may be null
    const float *out_image, *out_depth;    // what forward returned
};
// Writes every pair's slot that was listed. `background` [tiles, 3]: sums of a tile; may be null.
void blend_backward(const Sizes& sizes, const BlendTables& tables, const BatchPictureGradients& in, float* slots,
                    float* background, cudaStream_t stream);

// --- rig.cu

// Of a mesh and a binding: device copies of RigMesh and RigBinding (csrc/rig_mesh.h).
struct RigTables {
    std::int64_t vertices, faces, count;
    const std::int32_t* corner;                        // [F, 3]
    const std::int32_t *vertex_begin, *corner_place;   // [V + 1]; [3 F] where a corner's gradient goes
    const std::int32_t* face;                          // [N]
    const std::int32_t *face_begin, *slot_of;          // [F + 1]; [N]
};
// vertices [B, V, 3] -> frames [B, F, kRigFrame]
void pose_frames(const RigTables& rig, int views, const float* vertices, float* frames, cudaStream_t stream);
// frame_slots [B, N, kRigSlot] -> g_vertices [B, V, 3]; corners [B, 3 F, kRigCorner] is scratch.
void frames_backward(const RigTables& rig, int views, const float* frames, const float* frame_slots, float* corners,
                     float* g_vertices, cudaStream_t stream);
// Gaussians on the mesh -> in the world, for callers that draw with something else; one view.
void place_gaussians(const RigTables& rig, const RigColumns& in, const float* frames, const RigPlaced& out,
                     cudaStream_t stream);
void place_backward(const RigTables& rig, const RigBackward& work, cudaStream_t stream);

}  // namespace cuda
}  // namespace mien

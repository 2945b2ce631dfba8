// One picture from start to end: splat stage -> depth sort -> tile lists -> tiles, and back.
#pragma once

#include <vector>

#include "buffer.h"
#include "rig_mesh.h"
#include "splats.h"
#include "tiles.h"

namespace mien {

// What backward needs of forward, and all scratch memory. Reused for picture after picture; one picture at a time.
class Workspace {
public:
    // Throws NotFinite naming the tensor and row if an input is not finite.
    void forward(const View& view, const Gaussians& in, const Picture& out, int32_t* radii, int threads);

    // Gradients of the last forward pass, whose view and inputs must be given again; background[3] and
    // camera[kCameraGradient] may be null.
    void backward(const View& view, const Gaussians& in, const PictureGradients& in_gradients,
                  const SplatGradients& out, float* background, float* camera, int threads);

    // The frames of a mesh's faces, kept for the backward pass.
    const float* pose(const RigMesh& mesh, const float* vertices, int threads);
    // Throws InvalidArgument unless the last picture was of a mesh with as many faces.
    const float* frames(const RigMesh& mesh) const;
    // Where the backward pass of `count` Gaussians leaves what they do to their frames, and the way on to the vertices.
    float* frame_slots(int64_t count) { return frame_slots_.reserve(count * kRigSlot); }
    void pose_backward(const RigMesh& mesh, const RigBinding& binding, int threads, float* g_vertices);

    // The size of the last picture's work: (splat, tile) pairs, and the 4x4 blocks that they reach.
    int64_t pairs() const { return pairs_; }
    int64_t reached_blocks() const;

private:
    struct Block {
        Buffer<Pair> list;
        int64_t pairs = 0;
        int64_t listed = 0;  // splats with at least one pair
        bool finite = true;
    };

    struct Range {
        uint32_t begin, count;  // in the list of the splat's block
    };
    static constexpr int64_t kCached = int64_t(1) << 22;  // bytes of one gradient that caches may keep until it is used
    static constexpr int64_t kAhead = 16;                 // splats between a prefetch and its use

    int64_t block_count() const { return (count_ + kSplatBlock - 1) / kSplatBlock; }
    int64_t block_end(int64_t block) const;
    int64_t tile_count() const { return static_cast<int64_t>(view_.tiles_x) * view_.tiles_y; }
    TileSplats tile(int64_t rank, int threads) const;

    void prepare_splats(const Gaussians& in, int32_t* radii, int threads);
    void number_pairs();
    void sort_by_depth();
    void fill_tiles(int threads);
    const Pair* pairs_of(uint32_t splat) const {
        return blocks_[splat / kSplatBlock].list.data() + ranges_[splat].begin;
    }
    // The depth order jumps about in the pair lists. (Inlined by force: GCC 12 drops calls of functions that only
    // prefetch.)
    [[gnu::always_inline]] void prefetch_pairs(int64_t rank) const {
        if (rank + kAhead < listed_) __builtin_prefetch(&ranges_[static_cast<uint32_t>(sorted_[rank + kAhead])]);
        if (rank < listed_) __builtin_prefetch(pairs_of(static_cast<uint32_t>(sorted_[rank])));
    }
    void count_chunk(int64_t chunk, int64_t chunks);
    void scatter_chunk(int64_t chunk, int64_t chunks);
    void order_tiles();

    View view_ = {};
    int64_t count_ = 0, pairs_ = 0, listed_ = 0;
    int64_t posed_faces_ = -1;  // of the mesh of the last picture; -1: none
    bool ready_ = false;
    std::vector<Block> blocks_;
    std::vector<int64_t> block_base_;  // first pair of a block
    Buffer<SplatRecord> records_;
    Buffer<TileRect> rects_;
    Buffer<Range> ranges_;                // per splat
    Buffer<uint32_t> pair_count_;         // per splat
    Buffer<uint64_t> keys_, keys_other_;  // depth bits << 32 | splat, sorted
    const uint64_t* sorted_ = nullptr;
    Buffer<uint32_t> chunk_counts_, tile_begin_, tile_order_;
    Buffer<TileEntry> entries_;
    Buffer<uint16_t> entry_masks_;
    Buffer<uint8_t> touched_;  // per splat
    Buffer<float> frames_, frame_slots_, corners_;
    Buffer<float> transmittance_, slots_, tile_background_, block_camera_;
};

}  // namespace mien

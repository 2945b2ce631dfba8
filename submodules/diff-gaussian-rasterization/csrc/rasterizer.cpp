#include "rasterizer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "api.h"
#include "depth_sort.h"
#include "parallel.h"

namespace mien {

namespace {

void refuse_first_bad_row(const Gaussians& in) {
    struct Column {
        const char* name;
        const float* data;
        int64_t width;
    };
    const int first = in.sh0 != nullptr ? 1 : 0;
    const Column columns[] = {{"means", in.means, 3},
                              {"quats", in.quats, 4},
                              {"scales", in.scales, 3},
                              {"covariances", in.covariances, 6},
                              {"opacities", in.opacities, 1},
                              {"sh0", in.sh0, 3},
                              {first == 1 ? "shN" : "sh", in.sh, 3 * (in.sh_coefficients - first)},
                              {"colors", in.colors, 3},
                              {"screen_offsets", in.screen_offsets, 2}};
    for (const Column& c : columns) {
        if (c.data == nullptr) continue;
        for (int64_t i = 0; i < in.count * c.width; ++i)
            if (!std::isfinite(c.data[i]))
                throw NotFinite(std::string(c.name) + ": row " + std::to_string(i / c.width) + " is not finite");
    }
}

}  // namespace

int64_t Workspace::reached_blocks() const {
    int64_t total = 0;
    for (int64_t b = 0; b < block_count(); ++b)
        for (int64_t p = 0; p < blocks_[b].pairs; ++p) total += __builtin_popcount(blocks_[b].list[p].mask);
    return total;
}

int64_t Workspace::block_end(int64_t block) const { return std::min(count_, (block + 1) * kSplatBlock); }

void Workspace::prepare_splats(const Gaussians& in, int32_t* radii, int threads) {
    const SplatKernels& kernels = MIEN_KERNELS(splat_kernels);
    records_.reserve(count_ + 1), rects_.reserve(count_), pair_count_.reserve(count_), ranges_.reserve(count_);
    if (static_cast<int64_t>(blocks_.size()) < block_count()) blocks_ = std::vector<Block>(block_count());
    parallel_for(threads, block_count(), [&](int64_t b, int) {
        Block& block = blocks_[b];
        const int64_t first = b * kSplatBlock, last = block_end(b);
        block.finite = kernels.prepare(view_, in, first, last, records_.data(), rects_.data(), radii);
        if (!block.finite) return;
        int64_t capacity = 1;
        for (int64_t i = first; i < last; ++i)
            capacity += int64_t(rects_[i].x1 - rects_[i].x0) * (rects_[i].y1 - rects_[i].y0);
        Pair* list = block.list.reserve(capacity);
        block.pairs =
            kernels.list_pairs(records_.data(), rects_.data(), view_.tiles_x, first, last, list, pair_count_.data());
        uint32_t begin = 0;
        block.listed = 0;
        for (int64_t i = first; i < last; ++i) {
            ranges_[i] = {begin, pair_count_[i]};
            begin += pair_count_[i];
            block.listed += pair_count_[i] > 0;
        }
    });
    for (int64_t b = 0; b < block_count(); ++b) {
        if (blocks_[b].finite) continue;
        refuse_first_bad_row(in);
        int64_t i = b * kSplatBlock;  // on a mesh: every number is finite, but not what the activations make of one
        const int64_t end = block_end(b) - 1;
        while (i < end && kernels.prepare(view_, in, i, i + 1, records_.data(), rects_.data(), radii)) ++i;
        throw NotFinite("scales or means: row " + std::to_string(i) + " leaves the range of numbers on its triangle");
    }
}

void Workspace::number_pairs() {
    block_base_.resize(block_count() + 1);
    pairs_ = listed_ = 0;
    for (int64_t b = 0; b < block_count(); ++b) {
        block_base_[b] = pairs_;
        pairs_ += blocks_[b].pairs;
        listed_ += blocks_[b].listed;
    }
    require(pairs_ < int64_t(std::numeric_limits<uint32_t>::max()),
            "the splats cover too many tiles; draw fewer or a smaller picture");
}

void Workspace::sort_by_depth() {
    keys_.reserve(listed_), keys_other_.reserve(listed_);
    int64_t at = 0;
    for (int64_t i = 0; i < count_; ++i) {
        if (pair_count_[i] == 0) continue;
        uint32_t depth;
        // z > 0: the bits of positive floats are ordered like the floats.
        std::memcpy(&depth, &records_[i].z, sizeof depth);
        keys_[at++] = uint64_t(depth) << 32 | uint64_t(i);
    }
    sorted_ = sort_keys(keys_.data(), keys_other_.data(), listed_);
}

void Workspace::count_chunk(int64_t chunk, int64_t chunks) {
    uint32_t* counts = chunk_counts_.data() + chunk * tile_count();
    std::fill(counts, counts + tile_count(), 0u);
    if (chunks == 1) {  // then the order does not matter, and memory is read in sequence
        for (int64_t b = 0; b < block_count(); ++b)
            for (int64_t p = 0; p < blocks_[b].pairs; ++p) ++counts[blocks_[b].list[p].tile];
        return;
    }
    for (int64_t k = listed_ * chunk / chunks; k < listed_ * (chunk + 1) / chunks; ++k) {
        prefetch_pairs(k + kAhead);
        const uint32_t splat = static_cast<uint32_t>(sorted_[k]);
        const Pair* list = pairs_of(splat);
        for (uint32_t p = 0; p < ranges_[splat].count; ++p) ++counts[list[p].tile];
    }
}

void Workspace::scatter_chunk(int64_t chunk, int64_t chunks) {
    uint32_t* next = chunk_counts_.data() + chunk * tile_count();
    for (int64_t k = listed_ * chunk / chunks; k < listed_ * (chunk + 1) / chunks; ++k) {
        prefetch_pairs(k + kAhead);
        const uint32_t splat = static_cast<uint32_t>(sorted_[k]);
        const Range range = ranges_[splat];
        const Pair* list = pairs_of(splat);
        const uint32_t first = static_cast<uint32_t>(block_base_[splat / kSplatBlock]) + range.begin;
        for (uint32_t p = 0; p < range.count; ++p) {
            const uint32_t at = next[list[p].tile]++;
            entries_[at] = {splat, first + p};
            entry_masks_[at] = static_cast<uint16_t>(list[p].mask);
        }
    }
}

// Counting sort of the pairs by tile that keeps the depth order: chunks of splats count, then write, each into its own
// places.
void Workspace::fill_tiles(int threads) {
    const int64_t chunks = std::max(1, threads), tiles = tile_count();
    chunk_counts_.reserve(chunks * tiles), tile_begin_.reserve(tiles + 1), entries_.reserve(pairs_),
        entry_masks_.reserve(pairs_);
    parallel_for(threads, chunks, [&](int64_t c, int) { count_chunk(c, chunks); });
    uint32_t total = 0;
    for (int64_t t = 0; t < tiles; ++t) {
        tile_begin_[t] = total;
        for (int64_t c = 0; c < chunks; ++c) {
            const uint32_t n = chunk_counts_[c * tiles + t];
            chunk_counts_[c * tiles + t] = total;
            total += n;
        }
    }
    tile_begin_[tiles] = total;
    parallel_for(threads, chunks, [&](int64_t c, int) { scatter_chunk(c, chunks); });
}

// Heavy tiles first, so that no thread is left alone with one at the end.
void Workspace::order_tiles() {
    const int64_t tiles = tile_count();
    tile_order_.reserve(tiles);
    for (int64_t t = 0; t < tiles; ++t) tile_order_[t] = static_cast<uint32_t>(t);
    const auto size = [&](uint32_t t) { return tile_begin_[t + 1] - tile_begin_[t]; };
    std::sort(tile_order_.data(), tile_order_.data() + tiles,
              [&](uint32_t a, uint32_t b) { return size(a) > size(b); });
}

// The tile that is `rank`th in order. With one thread they go as they lie in the picture.
TileSplats Workspace::tile(int64_t rank, int threads) const {
    const auto at = [&](int64_t r) -> int64_t { return threads > 1 ? tile_order_[r] : r; };
    const auto place = [&](int64_t t) {
        return TilePlace{static_cast<int32_t>(t % view_.tiles_x) * kTile,
                         static_cast<int32_t>(t / view_.tiles_x) * kTile};
    };
    const int64_t t = at(rank), next = at(std::min(rank + threads, tile_count() - 1)), begin = tile_begin_[t];
    return {place(t),
            place(next),
            records_.data(),
            entries_.data() + begin,
            entry_masks_.data() + begin,
            tile_begin_[t + 1] - begin,
            touched_.data(),
            transmittance_.data() + t * kTile * kTile};
}

const float* Workspace::pose(const RigMesh& mesh, const float* vertices, int threads) {
    ready_ = false;  // the frames of the last picture are gone
    posed_faces_ = -1;
    float* frames = frames_.reserve(mesh.faces * kRigFrame + 1);
    mesh.pose(vertices, threads, frames);
    posed_faces_ = mesh.faces;
    return frames;
}

const float* Workspace::frames(const RigMesh& mesh) const {
    require(posed_faces_ == mesh.faces, "backward needs the mesh of the matching forward pass");
    return frames_.data();
}

void Workspace::pose_backward(const RigMesh& mesh, const RigBinding& binding, int threads, float* g_vertices) {
    float* corners = corners_.reserve(3 * kRigCorner * mesh.faces);
    mesh.pose_backward(frames_.data(), frame_slots_.data(), binding.of_face, threads, corners, g_vertices);
}

void Workspace::forward(const View& view, const Gaussians& in, const Picture& out, int32_t* radii, int threads) {
    const TileKernels& kernels = MIEN_KERNELS(tile_kernels);
    view_ = view;
    count_ = in.count;
    ready_ = false;
    if (in.frames == nullptr) posed_faces_ = -1;
    prepare_splats(in, radii, threads);
    number_pairs();
    sort_by_depth();
    fill_tiles(threads);
    order_tiles();
    transmittance_.reserve(tile_count() * kTile * kTile);
    std::memset(touched_.reserve(count_ + 1), 0, static_cast<size_t>(count_));
    parallel_for(threads, tile_count(), [&](int64_t i, int) { kernels.forward(view_, tile(i, threads), out); });
    ready_ = true;
}

void Workspace::backward(const View& view, const Gaussians& in, const PictureGradients& in_gradients,
                         const SplatGradients& out, float* background, float* camera, int threads) {
    require(ready_ && in.count == count_ && view.width == view_.width && view.height == view_.height,
            "backward needs the workspace of the matching forward pass");
    require((in.frames != nullptr) == (posed_faces_ >= 0), "backward needs the mesh of the matching forward pass");
    slots_.reserve(pairs_ * kSlot), tile_background_.reserve(3 * tile_count()),
        block_camera_.reserve(block_count() * kCameraGradient);
    parallel_for(threads, tile_count(), [&](int64_t i, int) {
        const TileSplats splats = tile(i, threads);
        const int64_t t = (splats.transmittance - transmittance_.data()) / (kTile * kTile);
        MIEN_KERNELS(tile_kernels)
            .backward(view_, splats, in_gradients, slots_.data(),
                      background != nullptr ? tile_background_.data() + 3 * t : nullptr);
    });
    SplatGradients gradients = out;
    gradients.stream_sh = count_ * 3 * in.sh_coefficients * int64_t(sizeof(float)) > kCached;
    gradients.camera = camera != nullptr ? block_camera_.data() : nullptr;
    if (camera != nullptr)
        std::fill(block_camera_.data(), block_camera_.data() + block_count() * kCameraGradient, 0.0f);
    parallel_for(threads, block_count(), [&](int64_t b, int) {
        MIEN_KERNELS(splat_kernels)
            .backward(view_, in, b * kSplatBlock, block_end(b), pair_count_.data(), touched_.data(),
                      slots_.data() + block_base_[b] * kSlot, gradients);
    });
    if (background != nullptr)
        for (int c = 0; c < 3; ++c) {
            double sum = 0;
            for (int64_t t = 0; t < tile_count(); ++t) sum += tile_background_[3 * t + c];
            background[c] = static_cast<float>(sum);
        }
    if (camera != nullptr)
        for (int k = 0; k < kCameraGradient; ++k) {
            double sum = 0;
            for (int64_t b = 0; b < block_count(); ++b) sum += block_camera_[b * kCameraGradient + k];
            camera[k] = static_cast<float>(sum);
        }
}

}  // namespace mien

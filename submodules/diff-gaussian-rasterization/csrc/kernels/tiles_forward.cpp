// Tile stage, forward: front-to-back compositing, one 4x4 block of pixels in registers while its splats stream past.
#include "kernels/tile_pixels.h"

namespace mien {
namespace MIEN_ISA {

void tile_backward(const View&, const TileSplats&, const PictureGradients&, float* slots, float* background);

namespace {

constexpr int kChunk = 64;  // splats per pass over the blocks: one bit each in a word

struct TileState {
    alignas(64) float running[kTilePixels];  // product of (1 - alpha) over all splats, past the stop too
    alignas(64) float final[kTilePixels];    // transmittance when the pixel stopped
    alignas(64) float red[kTilePixels], green[kTilePixels], blue[kTilePixels], depth[kTilePixels];
};

struct Chunk {
    alignas(64) SplatRecord records[kChunk];  // x, y: from the mean to the tile's first pixel
    uint64_t reached[16];                     // per block: which splats of the chunk
    uint64_t contributed[16];                 // likewise, those that forward and backward must meet
    int count;
};

void fill_chunk(const TileSplats& tile, int64_t first, Chunk& chunk) {
    chunk.count = tile.count - first < kChunk ? static_cast<int>(tile.count - first) : kChunk;
    uint16_t masks[kChunk] = {};
    std::memcpy(masks, tile.masks + first, chunk.count * sizeof(uint16_t));
    bits_to_columns(masks, chunk.reached);
    for (uint64_t& word : chunk.contributed) word = 0;
    for (int i = 0; i < chunk.count; ++i) {
        prefetch(tile, first + i + kChunk);
        const float* from = &tile.records[tile.entries[first + i].splat].x;
        SplatRecord& r = chunk.records[i];
        for (int k = 0; k < 16; k += kLanes) store(&r.x + k, load(from + k));
        r.x = static_cast<float>(tile.x0) + 0.5f - from[0];
        r.y = static_cast<float>(tile.y0) + 0.5f - from[1];
    }
}

void store_masks(const TileSplats& tile, int64_t first, const Chunk& chunk) {
    uint16_t masks[kChunk];
    bits_to_rows(chunk.contributed, masks);
    std::memcpy(tile.masks + first, masks, chunk.count * sizeof(uint16_t));
    // Tiles on several threads may set one splat's flag, all to the same value.
    for (int i = 0; i < chunk.count; ++i)
        if (masks[i] != 0) __atomic_store_n(tile.touched + tile.entries[first + i].splat, uint8_t(1), __ATOMIC_RELAXED);
}

// Blends the chunk's splats into one part of a block; returns whether any pixel is still live.
template <bool with_depth>
bool blend_part(const View& view, Chunk& chunk, int block, int part, TileState& state) {
    const int at = block * kBlockPixels + part * kLanes;
    const Float x = load(kPixels.x + at), y = load(kPixels.y + at);
    const Float alpha_max(view.alpha_max), stop(view.stop);
    Float running = load(state.running + at), final = load(state.final + at);
    Float red = load(state.red + at), green = load(state.green + at), blue = load(state.blue + at), depth(0.0f);
    if constexpr (with_depth) depth = load(state.depth + at);
    Mask live = running >= stop;
    uint64_t contributed = 0;
    for (uint64_t word = chunk.reached[block]; word != 0 && any(live); word &= word - 1) {
        const int i = __builtin_ctzll(word);
        const SplatRecord& r = chunk.records[i];
        const Opacity o = opacity_at(x + Float(r.x), y + Float(r.y), r);
        const Float weight = min(o.raw, alpha_max) * running;
        // The splat that ends a pixel adds nothing, but backward must meet it to end there as well.
        contributed |= uint64_t(any(live & o.seen)) << i;
        running = running - weight;
        live = running >= stop;
        final = select(live, running, final);
        red = fma_where(live, weight, Float(r.red), red);
        green = fma_where(live, weight, Float(r.green), green);
        blue = fma_where(live, weight, Float(r.blue), blue);
        if constexpr (with_depth) depth = fma_where(live, weight, Float(r.z), depth);
    }
    chunk.contributed[block] |= contributed;
    store(state.running + at, running), store(state.final + at, final);
    store(state.red + at, red), store(state.green + at, green), store(state.blue + at, blue);
    if constexpr (with_depth) store(state.depth + at, depth);
    return any(live);
}

void finish(const View& view, const TileSplats& tile, TileState& state, const Picture& out) {
    alignas(64) float alpha[kTilePixels];
    for (int i = 0; i < kTilePixels; i += kLanes) {
        const Float t = load(state.final + i);
        store(state.red + i, fma(t, Float(view.background[0]), load(state.red + i)));
        store(state.green + i, fma(t, Float(view.background[1]), load(state.green + i)));
        store(state.blue + i, fma(t, Float(view.background[2]), load(state.blue + i)));
        store(alpha + i, Float(1.0f) - t);
        store(tile.transmittance + i, t);
    }
    const int64_t plane = static_cast<int64_t>(view.width) * view.height;
    write_tile(view, tile, state.red, out.image);
    write_tile(view, tile, state.green, out.image + plane);
    write_tile(view, tile, state.blue, out.image + 2 * plane);
    write_tile(view, tile, alpha, out.alpha);
    if (out.depth != nullptr) write_tile(view, tile, state.depth, out.depth);
}

template <bool with_depth>
void blend_splats(const View& view, const TileSplats& tile, TileState& state) {
    uint32_t open = 0;  // blocks that have pixels in the picture and are not opaque yet
    for (int b = 0; b < 16; ++b) {
        const bool inside = tile.x0 + b % 4 * 4 < view.width && tile.y0 + b / 4 * 4 < view.height;
        open |= static_cast<uint32_t>(inside) << b;
    }
    Chunk chunk;
    for (int64_t first = 0; first < tile.count; first += kChunk) {
        if (open == 0) {  // all is opaque: nothing behind adds anything
            std::memset(tile.masks + first, 0, (tile.count - first) * sizeof(uint16_t));
            return;
        }
        fill_chunk(tile, first, chunk);
        for (uint32_t m = open; m != 0; m &= m - 1) {
            const int block = __builtin_ctz(m);
            bool live = false;
            for (int part = 0; part < kParts; ++part) live |= blend_part<with_depth>(view, chunk, block, part, state);
            if (!live) open &= ~(1u << block);
        }
        store_masks(tile, first, chunk);
    }
}

void tile_forward(const View& view, const TileSplats& tile, const Picture& out) {
    const int64_t plane = static_cast<int64_t>(view.width) * view.height;
    for (int c = 0; c < 3; ++c) prefetch_pixels(view, tile.next, out.image + c * plane);
    prefetch_pixels(view, tile.next, out.alpha);
    prefetch_pixels(view, tile.next, out.depth);
    TileState state;
    for (int i = 0; i < kTilePixels; ++i) {
        state.running[i] = state.final[i] = 1.0f;
        state.red[i] = state.green[i] = state.blue[i] = state.depth[i] = 0.0f;
    }
    if (out.depth != nullptr) {
        blend_splats<true>(view, tile, state);
    } else {
        blend_splats<false>(view, tile, state);
    }
    finish(view, tile, state, out);
}

}  // namespace

const TileKernels tile_kernels = {tile_forward, tile_backward};

}  // namespace MIEN_ISA
}  // namespace mien

// Tile stage, backward: front to back again, splat by splat; the nine (ten with depth) sums of a splat stay in
// registers over its blocks.
#include "kernels/tile_pixels.h"

namespace mien {
namespace MIEN_ISA {

namespace {

constexpr int kAhead = 8;  // list entries between a prefetch and its use

struct TileState {
    alignas(64) float transmittance[kTilePixels];
    alignas(64) float remaining[kTilePixels];                                                       // s of core/blend.h
    alignas(64) float red[kTilePixels], green[kTilePixels], blue[kTilePixels], depth[kTilePixels];  // dL/doutput
};

// s at the start is <output, dL/doutput>, where alpha counts as -(final transmittance).
void load_state(const View& view, const TileSplats& tile, const PictureGradients& g, TileState& state,
                float* background) {
    alignas(64) float value[kTilePixels];
    const int64_t plane = static_cast<int64_t>(view.width) * view.height;
    float* const colours[3] = {state.red, state.green, state.blue};
    if (g.alpha != nullptr) read_tile(view, tile, g.alpha, value);
    for (int i = 0; i < kTilePixels; ++i) {
        state.transmittance[i] = 1.0f;
        state.remaining[i] = g.alpha != nullptr ? -tile.transmittance[i] * value[i] : 0.0f;
    }
    for (int c = 0; c < 3; ++c) {
        read_tile(view, tile, g.image + c * plane, colours[c]);
        read_tile(view, tile, g.out_image + c * plane, value);
        Float sum(0.0f);
        for (int i = 0; i < kTilePixels; i += kLanes) {
            const Float gradient = load(colours[c] + i);
            store(state.remaining + i, fma(gradient, load(value + i), load(state.remaining + i)));
            sum = fma(gradient, load(tile.transmittance + i), sum);
        }
        if (background != nullptr) background[c] = mien::MIEN_ISA::sum(sum);
    }
    if (g.depth == nullptr) return;
    read_tile(view, tile, g.depth, state.depth);
    read_tile(view, tile, g.out_depth, value);
    for (int i = 0; i < kTilePixels; ++i) state.remaining[i] += state.depth[i] * value[i];
}

// Carries one splat through one part of a block and adds to its sums. `clamped`: the splat may reach alpha_max.
template <bool with_depth, bool clamped>
inline void backward_part(const View& view, const SplatRecord& r, Float dx, Float dy, Float gate, TileState& state,
                          int at, Float* acc) {
    const Opacity o = opacity_at(dx, dy, r);
    const Float alpha = clamped ? min(o.raw, Float(view.alpha_max)) : o.raw;
    const Float t = load(state.transmittance + at), g_red = load(state.red + at), g_green = load(state.green + at);
    const Float g_blue = load(state.blue + at);
    const Float weight = alpha * t, next = t - weight;
    const Mask live = next >= Float(view.stop);
    Float v = fma(g_red, Float(r.red), fma(g_green, Float(r.green), g_blue * Float(r.blue)));
    if constexpr (with_depth) v = fma(load(state.depth + at), Float(r.z), v);
    const Float before = load(state.remaining + at);
    store(state.transmittance + at, next);
    store(state.remaining + at, fnma_where(live, weight, v, before));
    const Mask moves = clamped ? live & (o.raw <= gate) : live;
    const Float h = keep(moves, (t * v - before) * (o.raw / (Float(1.0f) - alpha)));
    const Float hx = h * dx, hy = h * dy;
    acc[0] += h;
    acc[1] += hx;
    acc[2] += hy;
    acc[3] = fma(hx, dx, acc[3]);
    acc[4] = fma(hx, dy, acc[4]);
    acc[5] = fma(hy, dy, acc[5]);
    acc[6] = fma_where(live, weight, g_red, acc[6]);
    acc[7] = fma_where(live, weight, g_green, acc[7]);
    acc[8] = fma_where(live, weight, g_blue, acc[8]);
    if constexpr (with_depth) acc[9] = fma_where(live, weight, load(state.depth + at), acc[9]);
}

template <bool with_depth, bool clamped>
inline void backward_splat(const View& view, const TileSplats& tile, const SplatRecord& r, uint32_t mask, float gate,
                           TileState& state, float* slot) {
    constexpr int kSums = with_depth ? 10 : 9;
    const Float x(offset_x(tile, r)), y(offset_y(tile, r));
    Float acc[kSums];
    for (Float& a : acc) a = Float(0.0f);
    for (; mask != 0; mask &= mask - 1) {
        for (int part = 0; part < kParts; ++part) {
            const int at = __builtin_ctz(mask) * kBlockPixels + part * kLanes;
            backward_part<with_depth, clamped>(view, r, load(kPixels.x + at) + x, load(kPixels.y + at) + y, Float(gate),
                                               state, at, acc);
        }
    }
    sums<kSums>(acc, slot);
}

template <bool with_depth>
void backward_splats(const View& view, const TileSplats& tile, TileState& state, float* slots) {
    const float gate = view.clamp_passes_gradient ? 3e38f : view.alpha_max;
    const float most = log2(view.alpha_max) - 1e-4f;  // exponents below keep clear of the clamp, however rounded
    for (int64_t e = 0; e < tile.count; ++e) {
        prefetch(tile, e + kAhead);
        if (e + kAhead < tile.count)
            __builtin_prefetch(slots + static_cast<int64_t>(tile.entries[e + kAhead].pair) * kSlot, 1);
        const SplatRecord& r = tile.records[tile.entries[e].splat];
        float* slot = slots + static_cast<int64_t>(tile.entries[e].pair) * kSlot;
        if (tile.masks[e] == 0) {  // the slots of a splat that is not touched anywhere are not read
            if (tile.touched[tile.entries[e].splat]) std::memset(slot, 0, kSlot * sizeof(float));
        } else if (r.log2_opacity < most) {
            backward_splat<with_depth, false>(view, tile, r, tile.masks[e], gate, state, slot);
        } else {
            backward_splat<with_depth, true>(view, tile, r, tile.masks[e], gate, state, slot);
        }
    }
}

void prefetch_planes(const View& view, const TilePlace& tile, const PictureGradients& g) {
    const int64_t plane = static_cast<int64_t>(view.width) * view.height;
    for (int c = 0; c < 3; ++c) {
        prefetch_pixels(view, tile, g.image + c * plane);
        prefetch_pixels(view, tile, g.out_image + c * plane);
    }
    prefetch_pixels(view, tile, g.alpha);
    if (g.depth == nullptr) return;
    prefetch_pixels(view, tile, g.depth);
    prefetch_pixels(view, tile, g.out_depth);
}

}  // namespace

void tile_backward(const View& view, const TileSplats& tile, const PictureGradients& g, float* slots,
                   float* background) {
    prefetch_planes(view, tile.next, g);
    if (tile.count == 0 && background == nullptr) return;
    TileState state;
    load_state(view, tile, g, state, background);
    if (g.depth != nullptr) {
        backward_splats<true>(view, tile, state, slots);
    } else {
        backward_splats<false>(view, tile, state, slots);
    }
}

}  // namespace MIEN_ISA
}  // namespace mien

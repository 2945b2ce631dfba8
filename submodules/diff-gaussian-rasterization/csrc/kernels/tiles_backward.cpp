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
    alignas(64) float value[kTilePixels], final[kTilePixels];
    const int64_t plane = static_cast<int64_t>(view.width) * view.height;
    float* const colours[3] = {state.red, state.green, state.blue};
    read_tile(view, tile, g.transmittance, final);
    read_tile(view, tile, g.alpha, value);
    for (int i = 0; i < kTilePixels; ++i) {
        state.transmittance[i] = 1.0f;
        state.remaining[i] = -final[i] * value[i];
    }
    for (int c = 0; c < 3; ++c) {
        read_tile(view, tile, g.image + c * plane, colours[c]);
        read_tile(view, tile, g.out_image + c * plane, value);
        Float sum(0.0f);
        for (int i = 0; i < kTilePixels; i += kLanes) {
            const Float gradient = load(colours[c] + i);
            store(state.remaining + i, fma(gradient, load(value + i), load(state.remaining + i)));
            sum = fma(gradient, load(final + i), sum);
        }
        background[c] = mien::MIEN_ISA::sum(sum);
    }
    if (g.depth == nullptr) return;
    read_tile(view, tile, g.depth, state.depth);
    read_tile(view, tile, g.out_depth, value);
    for (int i = 0; i < kTilePixels; ++i) state.remaining[i] += state.depth[i] * value[i];
}

// Carries one splat through one part of a block and adds to its sums.
template <bool with_depth>
inline void backward_part(const View& view, const SplatRecord& r, Float dx, Float dy, float gate, TileState& state,
                          int at, Float* acc) {
    const Opacity o = opacity_at(dx, dy, r, Float(view.alpha_max));
    const Float t = load(state.transmittance + at), g_red = load(state.red + at), g_green = load(state.green + at);
    const Float g_blue = load(state.blue + at);
    const Float weight = o.alpha * t, next = t - weight;
    const Mask live = next >= Float(view.stop);
    const Float w = keep(live, weight);
    Float v = fma(g_red, Float(r.red), fma(g_green, Float(r.green), g_blue * Float(r.blue)));
    if constexpr (with_depth) v = fma(load(state.depth + at), Float(r.z), v);
    const Float s = fnma(w, v, load(state.remaining + at));
    store(state.transmittance + at, next);
    store(state.remaining + at, s);
    const Float g_alpha = t * v - s * reciprocal(Float(1.0f) - o.alpha);
    const Float h = keep(live & (o.raw <= Float(gate)), g_alpha * o.raw);
    const Float hx = h * dx, hy = h * dy;
    acc[0] += h;
    acc[1] += hx;
    acc[2] += hy;
    acc[3] = fma(hx, dx, acc[3]);
    acc[4] = fma(hx, dy, acc[4]);
    acc[5] = fma(hy, dy, acc[5]);
    acc[6] = fma(w, g_red, acc[6]);
    acc[7] = fma(w, g_green, acc[7]);
    acc[8] = fma(w, g_blue, acc[8]);
    if constexpr (with_depth) acc[9] = fma(w, load(state.depth + at), acc[9]);
}

template <bool with_depth>
void backward_splats(const View& view, const TileSplats& tile, TileState& state, float* slots) {
    constexpr int kSums = with_depth ? 10 : 9;
    const float gate = view.clamp_passes_gradient ? 3e38f : view.alpha_max;
    for (int64_t e = 0; e < tile.count; ++e) {
        prefetch(tile, e + kAhead);
        if (e + kAhead < tile.count)
            __builtin_prefetch(slots + static_cast<int64_t>(tile.entries[e + kAhead].pair) * kSlot, 1);
        const SplatRecord& r = tile.records[tile.entries[e].splat];
        const Float x(offset_x(tile, r)), y(offset_y(tile, r));
        Float acc[kSums];
        for (Float& a : acc) a = Float(0.0f);
        for (uint32_t m = tile.masks[e]; m != 0; m &= m - 1) {
            for (int part = 0; part < kParts; ++part) {
                const int at = __builtin_ctz(m) * kBlockPixels + part * kLanes;
                backward_part<with_depth>(view, r, load(kPixels.x + at) + x, load(kPixels.y + at) + y, gate, state, at,
                                          acc);
            }
        }
        sums<kSums>(acc, slots + static_cast<int64_t>(tile.entries[e].pair) * kSlot);
    }
}

}  // namespace

void tile_backward(const View& view, const TileSplats& tile, const PictureGradients& g, float* slots,
                   float* background) {
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

// Splat stage, forward: projection, colour, tile rectangles, and the list of (splat, tile) pairs.
#include "kernels/splat_group.h"

namespace mien {
namespace MIEN_ISA {

namespace {

// NaN and infinity times zero are not zero.
bool all_finite(const float* p, int64_t count) {
    Float a(0.0f), b(0.0f);
    const Float zero(0.0f);
    int64_t i = 0;
    for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
        a = fma(load(p + i), zero, a);
        b = fma(load(p + i + kLanes), zero, b);
    }
    for (; i < count; i += kLanes) {
        const int rest = count - i < kLanes ? static_cast<int>(count - i) : kLanes;
        a = fma(load_first(p + i, rest), zero, a);
    }
    return sum(a + b) == 0.0f;
}

bool block_is_finite(const Gaussians& in, int64_t first, int64_t last) {
    const int64_t n = last - first;
    bool fine = all_finite(in.means + 3 * first, 3 * n) && all_finite(in.opacities + first, n);
    if (in.covariances != nullptr) {
        fine = fine && all_finite(in.covariances + 6 * first, 6 * n);
    } else {
        fine = fine && all_finite(in.quats + 4 * first, 4 * n) && all_finite(in.scales + 3 * first, 3 * n);
    }
    if (in.screen_offsets != nullptr) fine = fine && all_finite(in.screen_offsets + 2 * first, 2 * n);
    if (in.sh0 != nullptr) fine = fine && all_finite(in.sh0 + 3 * first, 3 * n);
    return fine && (in.colors == nullptr || all_finite(in.colors + 3 * first, 3 * n));
}

// On a mesh, finite columns may still leave the range of floats, or meet a face that is not finite.
bool world_is_finite(const Group& g) {
    const PosedGaussian<Float>& w = g.world;
    const Float zero(0.0f);
    return sum(zero * w.mean.x + zero * w.mean.y + zero * w.mean.z + zero * w.scale.x + zero * w.scale.y +
               zero * w.scale.z + zero * w.quat.w) == 0.0f;
}

template <int degree>
void evaluate_sh(const Pinhole<Float>& camera, const Gaussians& in, const Rows& rows, const Group& g, Float* rgb) {
    constexpr int count = sh_count(degree);
    Float sh[kShRoom], basis[count], inverse;
    load_sh<degree>(in, rows, sh);
    sh_basis<degree>(direction(camera.centre, g.world.mean, inverse), basis);
    for (int c = 0; c < 3; ++c) {
        Float value(0.5f);
        for (int k = 0; k < count; ++k) value = fma(basis[k], sh[3 * k + c], value);
        rgb[c] = max(value, Float(0.0f));
    }
}

void colours(const Pinhole<Float>& camera, const Gaussians& in, const Rows& rows, const Group& g, Float* rgb) {
    if (in.colors != nullptr) {
        load_rows<3>(rgb, in.colors, 3, rows);
        return;
    }
    switch (in.sh_degree) {
        case 0: evaluate_sh<0>(camera, in, rows, g, rgb); return;
        case 1: evaluate_sh<1>(camera, in, rows, g, rgb); return;
        case 2: evaluate_sh<2>(camera, in, rows, g, rgb); return;
        default: evaluate_sh<3>(camera, in, rows, g, rgb); return;
    }
}

struct Extent {
    Float x0, y0, x1, y1;  // tiles, exclusive end
    Float radius;          // 3 sigma of the longer axis, pixels
    Mask drawn;
};

// Tiles that hold a pixel centre inside the bounding box of the ellipse alpha = 1/255.
Extent extent(const View& view, const Group& g, Float log2_opacity) {
    const Projection<Float>& p = g.projection;
    const Sym2<Float>& s = g.conic.filtered;
    const Float zero(0.0f), half(0.5f), width(static_cast<float>(view.width)), height(static_cast<float>(view.height));
    const Float mid = half * (s.xx + s.yy);
    Extent e;
    e.radius = ceil(Float(3.0f) * sqrt(mid + sqrt(max(mid * mid - g.conic.determinant, Float(0.1f)))));
    // 2 ln 2 (log2 o - log2 1/255), with a little slack: blending decides pixel by pixel
    const Float reach = max(Float(1.3862943611f) * (log2_opacity - Float(kLog2AlphaMin) + Float(4e-3f)), zero);
    const Float rx = sqrt(reach * s.xx), ry = sqrt(reach * s.yy);
    Float px0 = max(ceil(p.x - rx - half), zero), px1 = min(floor(p.x + rx - half) + Float(1.0f), width);
    Float py0 = max(ceil(p.y - ry - half), zero), py1 = min(floor(p.y + ry - half) + Float(1.0f), height);
    const Float inverse_tile(1.0f / kTile);
    e.x0 = floor(px0 * inverse_tile), e.x1 = ceil(px1 * inverse_tile);
    e.y0 = floor(py0 * inverse_tile), e.y1 = ceil(py1 * inverse_tile);
    e.drawn = (px0 < px1) & (py0 < py1) & (g.conic.determinant > zero) & (reach > zero);
    if (view.square_extent) {
        const Float mx = p.x - half, my = p.y - half, r = e.radius, end(kTile - 1.0f);
        const Float sx0 = floor((mx - r) * inverse_tile), sx1 = floor((mx + r + end) * inverse_tile);
        const Float sy0 = floor((my - r) * inverse_tile), sy1 = floor((my + r + end) * inverse_tile);
        const Float tiles_x(static_cast<float>(view.tiles_x)), tiles_y(static_cast<float>(view.tiles_y));
        e.drawn = (sx1 > zero) & (sx0 < tiles_x) & (sy1 > zero) & (sy0 < tiles_y) & (g.conic.determinant > zero) &
                  (sx0 < sx1) & (sy0 < sy1);
        const Mask reached = (px0 < px1) & (py0 < py1) & (reach > zero);
        // What is not reached may lie further away than an integer can say.
        e.x0 = keep(reached, max(e.x0, sx0)), e.y0 = keep(reached, max(e.y0, sy0));
        e.x1 = keep(reached, min(e.x1, sx1)), e.y1 = keep(reached, min(e.y1, sy1));
    }
    e.drawn = e.drawn & (g.conic.determinant < Float(1e36f)) & (p.point.z > Float(view.near_plane)) &
              (p.point.z < Float(view.far_plane));
    return e;
}

void write_rects(const Extent& e, int rows, TileRect* rects, int32_t* radii) {
    int32_t x0[kLanes], y0[kLanes], x1[kLanes], y1[kLanes], radius[kLanes];
    store_int(x0, keep(e.drawn, e.x0));
    store_int(y0, keep(e.drawn, e.y0));
    store_int(x1, keep(e.drawn, e.x1));
    store_int(y1, keep(e.drawn, e.y1));
    store_int(radius, min(max(keep(e.drawn, e.radius), keep(e.drawn, Float(1.0f))), Float(1e9f)));
    for (int i = 0; i < rows; ++i) {
        const bool empty = x1[i] <= x0[i] || y1[i] <= y0[i];
        const auto u16 = [&](int32_t v) { return static_cast<uint16_t>(empty ? 0 : v); };
        rects[i] = {u16(x0[i]), u16(y0[i]), u16(x1[i]), u16(y1[i])};
        radii[i] = radius[i];
    }
}

// Returns whether everything was finite.
bool prepare_group(const View& view, const Pinhole<Float>& camera, const Gaussians& in, const Rows& rows,
                   SplatRecord* records, TileRect* rects, int32_t* radii) {
    Group g;
    load_group(view, camera, in, rows, g);
    if (in.frames != nullptr && !world_is_finite(g)) return false;
    const Float zero(0.0f), opacity = g.opacity * g.opacity_factor;
    const Mask positive = opacity > Float(1e-30f);
    const Float log2_opacity = select(positive, log2(max(opacity, Float(1e-30f))), Float(-100.0f));
    Extent e = extent(view, g, log2_opacity);
    e.drawn = e.drawn & first_lanes(rows.count);
    write_rects(e, rows.count, rects + rows.first, radii + rows.first);
    if (!any(e.drawn)) return true;

    const Sym2<Float>& c = g.conic.inverse;
    Float rgb[padded(3)];
    colours(camera, in, rows, g, rgb);
    const Float k(0.5f * static_cast<float>(kLog2e));
    const Float fields[16] = {g.projection.x,
                              g.projection.y,
                              k * c.xx,
                              Float(static_cast<float>(kLog2e)) * c.xy,
                              k * c.yy,
                              log2_opacity,
                              rgb[0],
                              rgb[1],
                              rgb[2],
                              g.projection.point.z,
                              zero - c.xy / c.xx,
                              zero - c.xy / c.yy,
                              zero,
                              zero,
                              zero,
                              zero};
    store_columns<16>(fields, &records[rows.first].x, 16, rows.count);
    return true;
}

bool prepare(const View& view, const Gaussians& in, int64_t first, int64_t last, SplatRecord* records, TileRect* rects,
             int32_t* radii) {
    if (!block_is_finite(in, first, last)) return false;
    const Pinhole<Float> camera = pinhole(view);
    const int64_t row = sh_stride(in);
    for (int64_t i = first; i < last; i += kLanes) {
        const int rows = last - i < kLanes ? static_cast<int>(last - i) : kLanes;
        // This pass also fetches the harmonics, in the order in which memory gives them fastest.
        if (in.sh != nullptr && !all_finite(in.sh + i * row, rows * row)) return false;
        if (!prepare_group(view, camera, in, {i, nullptr, rows}, records, rects, radii)) return false;
    }
    return true;
}

// For kLanes blocks of 4x4 pixels whose first pixel centre lies at (x, y) from the mean: is the exponent's drop at most
// `reach` anywhere in the rectangle spanned by the block's pixel centres? The minimum of a convex form over a rectangle
// that does not hold the centre lies on an edge that faces the centre: at most one vertical, one horizontal.
inline uint32_t reached_blocks(Float x, Float y, const SplatRecord& r, Float reach) {
    const Float zero(0.0f), side(3.0f), a(r.a), b(r.b), c(r.c);
    const Float x1 = x + side, y1 = y + side;
    const Float px = max(x, min(x1, zero)), py = max(y, min(y1, zero));
    const Float qy = min(max(Float(r.slope_y) * px, y), y1), qx = min(max(Float(r.slope_x) * py, x), x1);
    const Float on_vertical = fma(fma(c, qy, b * px), qy, a * px * px);
    const Float on_horizontal = fma(fma(a, qx, b * py), qx, c * py * py);
    return bits(min(on_vertical, on_horizontal) <= reach);
}

alignas(64) constexpr float kBlockX[16] = {0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12};
alignas(64) constexpr float kBlockY[16] = {0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12};

// The tile's blocks that the splat reaches, as a 16-bit mask.
inline uint32_t tile_mask(const SplatRecord& r, Float reach, int tile_x, int tile_y) {
    const Float x(static_cast<float>(tile_x * kTile) + 0.5f - r.x), y(static_cast<float>(tile_y * kTile) + 0.5f - r.y);
    uint32_t mask = 0;
    for (int i = 0; i < 16; i += kLanes)
        mask |= reached_blocks(load(kBlockX + i) + x, load(kBlockY + i) + y, r, reach) << i;
    return mask;
}

int64_t list_pairs(const SplatRecord* records, const TileRect* rects, int tiles_x, int64_t first, int64_t last,
                   Pair* out, uint32_t* counts) {
    int64_t pairs = 0;
    for (int64_t i = first; i < last; ++i) {
        const TileRect rect = rects[i];
        const int64_t before = pairs;
        const Float reach(records[i].log2_opacity - static_cast<float>(kLog2AlphaMin) + 4e-3f);
        for (int y = rect.y0; y < rect.y1; ++y) {
            for (int x = rect.x0; x < rect.x1; ++x) {
                const uint32_t mask = tile_mask(records[i], reach, x, y);
                out[pairs] = {static_cast<uint32_t>(y * tiles_x + x), mask};
                pairs += mask != 0;
            }
        }
        counts[i] = static_cast<uint32_t>(pairs - before);
    }
    return pairs;
}

}  // namespace

void splats_backward(const View&, const Gaussians&, int64_t first, int64_t last, const uint32_t* counts,
                     const uint8_t* touched, const float* slots, const SplatGradients&);

const SplatKernels splat_kernels = {prepare, list_pairs, splats_backward};

}  // namespace MIEN_ISA
}  // namespace mien

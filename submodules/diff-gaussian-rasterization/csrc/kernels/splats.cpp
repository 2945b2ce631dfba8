// Splat stage, forward: projection, colour, tile rectangles, and the list of (splat, tile) pairs.
#include "kernels/splat_group.h"

#include "core/reach.h"

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
    Float sh[kShRoom];
    load_sh<degree>(in, rows, sh);
    sh_colour<degree>(
        camera.centre, g.world.mean, [&](int k, int c) { return sh[3 * k + c]; }, rgb);
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

void write_rects(const Extent<Float>& e, int rows, TileRect* rects, int32_t* radii) {
    int32_t x0[kLanes], y0[kLanes], x1[kLanes], y1[kLanes], radius[kLanes];
    store_int(x0, e.x0);
    store_int(y0, e.y0);
    store_int(x1, e.x1);
    store_int(y1, e.y1);
    store_int(radius, e.radius);
    for (int i = 0; i < rows; ++i) {
        rects[i] = make_rect(x0[i], y0[i], x1[i], y1[i]);
        radii[i] = radius[i];
    }
}

// Returns whether everything was finite.
bool prepare_group(const View& view, const Pinhole<Float>& camera, const Gaussians& in, const Rows& rows,
                   SplatRecord* records, TileRect* rects, int32_t* radii) {
    Group g;
    load_group(view, camera, in, rows, g);
    if (in.frames != nullptr && !world_is_finite(g)) return false;
    const Float log2_opacity = log2_opacity_of(g);
    const Extent<Float> e = extent(view, g, log2_opacity);
    write_rects(e, rows.count, rects + rows.first, radii + rows.first);
    if (!any(e.drawn & first_lanes(rows.count))) return true;

    Float rgb[padded(3)], fields[sizeof(SplatRecord) / sizeof(float)];
    colours(camera, in, rows, g, rgb);
    record_fields(g, log2_opacity, rgb, fields);
    for (int i = kRecordFields; i < 16; ++i) fields[i] = Float(0.0f);
    store_columns<16>(fields, &records[rows.first].x, 16, rows.count);
    return true;
}

bool prepare(const View& view, const Gaussians& in, int64_t first, int64_t last, SplatRecord* records, TileRect* rects,
             int32_t* radii) {
    if (!block_is_finite(in, first, last)) return false;
    const Pinhole<Float> camera = pinhole<Float>(view);
    const int64_t row = sh_stride(in);
    for (int64_t i = first; i < last; i += kLanes) {
        const int rows = last - i < kLanes ? static_cast<int>(last - i) : kLanes;
        // This pass also fetches the harmonics, in the order in which memory gives them fastest.
        if (in.sh != nullptr && !all_finite(in.sh + i * row, rows * row)) return false;
        if (!prepare_group(view, camera, in, {i, nullptr, rows}, records, rects, radii)) return false;
    }
    return true;
}

// For kLanes blocks of 4x4 pixels whose first pixel centre lies at (x, y) from the mean: which does the splat reach?
inline uint32_t reached_blocks(Float x, Float y, const SplatRecord& r, Float reach) {
    const Float side(3.0f);
    return bits(reaches_rectangle(x, y, side, side, Float(r.a), Float(r.b), Float(r.c), Float(r.slope_x),
                                  Float(r.slope_y), reach));
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
        const Float reach(reach_of(records[i].log2_opacity));
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

// Splat stage, forward: one thread per (view, Gaussian), neighbouring blocks see the same Gaussians through different
// views, so that the columns come from the cache for all views but the first.
#include "cuda/reach.h"
#include "cuda/splat_columns.h"

namespace mien {
namespace cuda {
namespace {

using namespace mien::device;

constexpr int kAlone = 16;  // tiles that a thread tests by itself; longer rectangles are the whole warp's work

__device__ SplatRecord from_lane(const SplatRecord& r, int lane) {
    const auto take = [&](float x) { return __shfl_sync(kAllLanes, x, lane); };
    SplatRecord out = {};
    out.x = take(r.x), out.y = take(r.y), out.a = take(r.a), out.b = take(r.b), out.c = take(r.c);
    out.log2_opacity = take(r.log2_opacity), out.slope_x = take(r.slope_x), out.slope_y = take(r.slope_y);
    return out;
}

// How many tiles of its rectangle every lane's splat reaches. All lanes of the warp must call.
__device__ unsigned count_tiles(const SplatRecord& record, const TileRect& rect) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int columns = rect.x1 - rect.x0, area = columns * (rect.y1 - rect.y0);
    unsigned count = 0;
    if (area <= kAlone)
        for (int y = rect.y0; y < rect.y1; ++y)
            for (int x = rect.x0; x < rect.x1; ++x) count += sub_tile_mask(record, x, y) != 0;
    for (unsigned open = __ballot_sync(kAllLanes, area > kAlone); open != 0; open &= open - 1) {
        const int owner = __ffs(static_cast<int>(open)) - 1;
        const SplatRecord shared = from_lane(record, owner);
        const int x0 = __shfl_sync(kAllLanes, int(rect.x0), owner), y0 = __shfl_sync(kAllLanes, int(rect.y0), owner);
        const int wide = __shfl_sync(kAllLanes, columns, owner), tiles = __shfl_sync(kAllLanes, area, owner);
        unsigned total = 0;
        for (int first = 0; first < tiles; first += kWarp) {
            const int tile = first + lane;
            const bool reached = tile < tiles && sub_tile_mask(shared, x0 + tile % wide, y0 + tile / wide) != 0;
            total += static_cast<unsigned>(__popc(__ballot_sync(kAllLanes, reached)));
        }
        if (lane == owner) count = total;
    }
    return count;
}

// What a thread knows of its splat.
struct Prepared {
    Splat<float> splat;
    Extent<float> extent;
    float log2_opacity;
    bool drawn, fine;
};

__device__ Prepared prepare_splat(const SplatTables& t, const Sizes& sizes, const Pinhole<float>& camera, int b,
                                  int i) {
    const View& view = t.views[b];
    Prepared p;
    const float fine = load_columns(view, t.in, t.faces, b, i, p.splat);
    p.fine = fine + load_projection(view, camera, t.in, std::int64_t(b) * sizes.count + i, p.splat) == 0.0f;
    p.log2_opacity = log2_opacity_of(p.splat);
    p.extent = extent(view, p.splat, p.log2_opacity);
    p.drawn = p.extent.drawn;
    return p;
}

// The colour; returns whether it came from finite numbers, if that is to be `looked` at.
__device__ bool colour_of(const Gaussians& in, const ShLayout& sh, const Pinhole<float>& camera,
                          const Vec3<float>& mean, const float* staged, std::int64_t i, bool looked, float* rgb) {
    if (in.colors != nullptr) {
        const Vec3<float> given = load_three(in.colors + 3 * i);
        rgb[0] = given.x, rgb[1] = given.y, rgb[2] = given.z;
        return probe(given) == 0.0f;
    }
    const ShRow row = sh_row(in, sh, staged, i);
    for_degree(in.sh_degree, [&](auto degree) { sh_colour<degree()>(camera.centre, mean, row, rgb); });
    if (!looked) return true;
    float fine = probe(row.constant);
    for (int column = 3 - sh.skip; column < sh.columns; ++column) fine += probe(row.rest[column]);
    return fine == 0.0f;
}

__device__ SplatRecord make_record(const Prepared& p, const float* rgb) {
    float f[kRecordFields];
    record_fields(p.splat, p.log2_opacity, rgb, f);
    return {f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[8], f[9], f[10], f[11], {}};
}

__device__ void store_record(const SplatRecord& r, SplatRecord* out) {
    float* to = &out->x;
    store_four(to, r.x, r.y, r.a, r.b);
    store_four(to + 4, r.c, r.log2_opacity, r.red, r.green);
    store_four(to + 8, r.blue, r.z, r.slope_x, r.slope_y);
}

__global__ void __launch_bounds__(kSplatThreads) prepare_kernel(Sizes sizes, SplatTables t) {
    __shared__ float staged[kSplatThreads * kShPitch];
    const int b = static_cast<int>(blockIdx.x) % sizes.views;
    const int first = static_cast<int>(blockIdx.x) / sizes.views * kSplatThreads;
    const int i = first + static_cast<int>(threadIdx.x);
    const std::int64_t row = std::int64_t(b) * sizes.count + i;
    const bool here = i < sizes.count;
    const Pinhole<float> camera = pinhole<float>(t.views[b]);
    const ShLayout sh = sh_layout(t.in);
    Prepared p;
    p.drawn = false, p.fine = true;
    if (here) p = prepare_splat(t, sizes, camera, b, i);
    if (t.in.colors == nullptr && __syncthreads_or(p.drawn || t.health != nullptr)) {
        stage_sh(t.in, sh, first, rows_of_block(sizes, first), staged);
        __syncthreads();
    }
    SplatRecord record = {};
    TileRect rect = {};
    if (here && (p.drawn || t.health != nullptr)) {
        float rgb[3];
        p.fine = colour_of(t.in, sh, camera, p.splat.world.mean, staged, i, t.health != nullptr, rgb) && p.fine;
        if (t.health != nullptr && !p.fine) {
            report(t.health, kBadInput, i);
            p.drawn = false;
        }
        if (p.drawn) {
            record = make_record(p, rgb);
            const Extent<float>& e = p.extent;
            rect = make_rect(static_cast<int>(e.x0), static_cast<int>(e.y0), static_cast<int>(e.x1),
                             static_cast<int>(e.y1));
            store_record(record, t.records + row);
        }
    }
    const unsigned count = count_tiles(record, rect);
    if (!here) return;
    t.rects[row] = rect;
    t.counts[row] = count;
    t.keys[row] = count > 0 ? __float_as_uint(record.z) : 0xffffffffu;
    t.radii[row] = p.drawn ? static_cast<std::int32_t>(p.extent.radius) : 0;
}

}  // namespace

void prepare_splats(const Sizes& sizes, const SplatTables& tables, cudaStream_t stream) {
    const unsigned blocks = blocks_for(sizes.count, kSplatThreads) * static_cast<unsigned>(sizes.views);
    launch(prepare_kernel, blocks, kSplatThreads, stream, sizes, tables);
}

}  // namespace cuda
}  // namespace mien

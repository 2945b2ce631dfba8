// Ways into the tile stage for tests: its functions one by one on arrays of the caller, and the CPU engine's on the
// same records. Only the emulated library has them.
#include "cuda/reach.h"
#include "tiles.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace {

using namespace mien;
using namespace mien::cuda;

constexpr int kWholeSums = 10;

// Runs the work, or captures it in a graph and runs that.
template <class Work>
void run(bool captured, Work&& work) {
    if (!captured) return work(static_cast<cudaStream_t>(nullptr));
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t ready;
    check(cudaStreamCreate(&stream), "stream");
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin");
    work(stream);
    check(cudaStreamEndCapture(stream, &graph), "end");
    check(cudaGraphInstantiate(&ready, graph, 0), "instantiate");
    check(cudaGraphLaunch(ready, stream), "launch");
    check(cudaStreamSynchronize(stream), "synchronise");
    check(cudaGraphExecDestroy(ready), "destroy");
    check(cudaGraphDestroy(graph), "destroy");
    check(cudaStreamDestroy(stream), "destroy");
}

// One view's splats through the CPU engine's tile stage.
struct CpuTiles {
    const View& view;
    const SplatRecord* records;
    std::vector<Pair> pairs;
    std::vector<uint32_t> counts, first, order, begin;
    std::vector<TileEntry> entries;
    std::vector<uint16_t> masks;
    std::vector<uint8_t> touched;
    std::vector<float> transmittance;

    int64_t tiles() const { return int64_t(view.tiles_x) * view.tiles_y; }

    CpuTiles(const View& v, int64_t count, const SplatRecord* r, const TileRect* rects) : view(v), records(r) {
        size_t room = 0;
        for (int64_t i = 0; i < count; ++i) room += size_t(rects[i].x1 - rects[i].x0) * (rects[i].y1 - rects[i].y0);
        pairs.resize(room + 1);
        counts.resize(count), first.resize(count), order.resize(count), touched.resize(count);
        scalar::splat_kernels.list_pairs(records, rects, view.tiles_x, 0, count, pairs.data(), counts.data());
        uint32_t total = 0;
        for (int64_t i = 0; i < count; ++i) first[i] = total, total += counts[i];
        std::iota(order.begin(), order.end(), 0u);
        std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return r[a].z < r[b].z; });
        std::vector<std::vector<TileEntry>> list(tiles());
        for (uint32_t i : order)
            for (uint32_t p = first[i]; p < first[i] + counts[i]; ++p) list[pairs[p].tile].push_back({i, p});
        begin.push_back(0);
        for (const auto& tile : list) {
            for (const TileEntry& e : tile) entries.push_back(e), masks.push_back(uint16_t(pairs[e.pair].mask));
            begin.push_back(uint32_t(entries.size()));
        }
        transmittance.resize(tiles() * kTile * kTile);
    }

    TileSplats tile(int64_t t) {
        const TilePlace place = {int32_t(t % view.tiles_x) * kTile, int32_t(t / view.tiles_x) * kTile};
        return {place,
                place,
                records,
                entries.data() + begin[t],
                masks.data() + begin[t],
                begin[t + 1] - begin[t],
                touched.data(),
                transmittance.data() + t * kTile * kTile};
    }

    // sums [N, kWholeSums] over a splat's pairs; background [3].
    void backward(const PictureGradients& in, float* sums, float* background) {
        std::vector<float> slots((entries.size() + 1) * kSlot);
        for (int64_t t = 0; t < tiles(); ++t) {
            float share[3];
            scalar::tile_kernels.backward(view, tile(t), in, slots.data(), share);
            for (int c = 0; c < 3; ++c) background[c] += share[c];
        }
        for (size_t i = 0; i < counts.size(); ++i)
            for (uint32_t p = first[i]; touched[i] != 0 && p < first[i] + counts[i]; ++p)
                for (int k = 0; k < kWholeSums; ++k) sums[i * kWholeSums + k] += slots[size_t(p) * kSlot + k];
    }
};

}  // namespace

// Sizes of Sizes, TileTables, BlendTables, View and Health, whose fields tests mirror.
MIEN_API void mien_hook_layout(int64_t* bytes) {
    const size_t all[] = {sizeof(Sizes), sizeof(TileTables), sizeof(BlendTables), sizeof(View), sizeof(Health)};
    std::copy(std::begin(all), std::end(all), bytes);
}

// counts [B, N]: tiles of its rectangle that a splat reaches.
MIEN_API void mien_hook_count_tiles(const Sizes* sizes, const SplatRecord* records, const TileRect* rects,
                                    uint32_t* counts) {
    for (int64_t i = 0; i < sizes->rows(); ++i) {
        counts[i] = 0;
        for (int y = rects[i].y0; y < rects[i].y1; ++y)
            for (int x = rects[i].x0; x < rects[i].x1; ++x) counts[i] += sub_tile_mask(records[i], x, y) != 0;
    }
}

MIEN_API int64_t mien_hook_list_tiles_scratch(const Sizes* sizes) {
    return static_cast<int64_t>(list_tiles_scratch(*sizes));
}

MIEN_API int mien_hook_list_tiles(const Sizes* sizes, const TileTables* tables, int captured) {
    return guarded([&] {
        run(captured != 0, [&](cudaStream_t stream) {
            count_pairs(*sizes, *tables, stream);
            list_tiles(*sizes, *tables, stream);
        });
    });
}

MIEN_API int mien_hook_blend_forward(const Sizes* sizes, const BlendTables* tables, const BatchPicture* out,
                                     int captured) {
    return guarded(
        [&] { run(captured != 0, [&](cudaStream_t stream) { blend_forward(*sizes, *tables, *out, stream); }); });
}

MIEN_API int mien_hook_blend_backward(const Sizes* sizes, const BlendTables* tables, const BatchPictureGradients* in,
                                      float* slots, float* background, int captured) {
    return guarded([&] {
        run(captured != 0,
            [&](cudaStream_t stream) { blend_backward(*sizes, *tables, *in, slots, background, stream); });
    });
}

// The CPU engine's picture of one view, and the sums of its splats, from the same records.
MIEN_API int mien_hook_cpu_tiles(const View* view, int64_t count, const SplatRecord* records, const TileRect* rects,
                                 const Picture* out, const PictureGradients* in, float* sums, float* background) {
    return guarded([&] {
        CpuTiles cpu(*view, count, records, rects);
        for (int64_t t = 0; t < cpu.tiles(); ++t) scalar::tile_kernels.forward(*view, cpu.tile(t), *out);
        cpu.backward(*in, sums, background);
    });
}

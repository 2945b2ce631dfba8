// Which splats are met in which tile, near ones first: two stable sorts, of all splats by depth and of their pairs with
// tiles by tile. Pairs are numbered in depth order, a splat's own one behind the other.
#include "cuda/stages.h"

#include "cuda/reach.h"
#include "cuda/sort.h"

namespace mien {
namespace cuda {

namespace {

using namespace mien::device;

constexpr int kThreads = 256;
constexpr int kKeyBits = 32;
constexpr std::uint32_t kNoTile = 0xffffffffu;

__device__ std::int64_t global_thread() { return std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }

// Pairs that there is room for.
__device__ std::uint32_t listed_pairs(const std::uint32_t* total, std::int64_t capacity) {
    return *total < capacity ? *total : static_cast<std::uint32_t>(capacity);
}

__global__ void number_rows(std::int64_t rows, std::uint32_t* order_in) {
    const std::int64_t i = global_thread();
    if (i < rows) order_in[i] = static_cast<std::uint32_t>(i);
}

// `before`: pairs of the splats that are nearer, in depth order.
__global__ void place_splats(std::int64_t rows, std::int64_t capacity, TileTables t, const std::uint32_t* before) {
    const std::int64_t k = global_thread();
    if (k >= rows) return;
    const std::uint32_t row = t.order[k], first = before[k];
    t.first_slot[row] = first;
    if (k != rows - 1) return;
    const std::uint32_t total = first + t.counts[row] < first ? 0xffffffffu : first + t.counts[row];
    *t.pair_total = total;
    if (t.health == nullptr) return;
    if (total > t.health->pairs) t.health->pairs = total;
    if (total > capacity) t.health->stopped |= kTooManyPairs;
}

// The tiles that the bounding boxes of a warp's 32 splats cover, side by side: lanes take them in turn, however many
// are whose.
struct Candidates {
    std::uint32_t row;       // this lane's splat
    unsigned corner, width;  // x0 | y0 << 16 of its box, tiles
    unsigned area, behind;   // tiles of its box; of the boxes up to and with it

    __device__ void count(const TileTables& t, std::int64_t rank, std::int64_t rows) {
        row = corner = area = 0;
        width = 1;
        if (rank < rows) {
            row = t.order[rank];
            if (t.counts[row] != 0) {
                const TileRect r = t.rects[row];
                corner = r.x0 | unsigned(r.y0) << 16;
                width = unsigned(r.x1 - r.x0);
                area = width * unsigned(r.y1 - r.y0);
            }
        }
        behind = area;
        const unsigned lane = threadIdx.x % kWarp;
        for (unsigned step = 1; step < kWarp; step *= 2) {
            const unsigned other = __shfl_up_sync(kAllLanes, behind, step);
            if (lane >= step) behind += other;
        }
    }
    // The lane whose splat candidate number `i` belongs to.
    __device__ int owner(unsigned i) const {
        int lane = 0;
        for (int step = kWarp / 2; step > 0; step /= 2)
            if (__shfl_sync(kAllLanes, behind, lane + step - 1) <= i) lane += step;
        return lane;
    }
};

// Writes the pairs of a warp's splats, which are next to each other in depth.
__device__ void emit_warp(const Sizes& sizes, const TileTables& t, std::int64_t rows) {
    const std::int64_t rank = global_thread();
    const unsigned lane = threadIdx.x % kWarp;
    if (rank - lane >= rows) return;
    Candidates boxes;
    boxes.count(t, rank, rows);
    const unsigned candidates = __shfl_sync(kAllLanes, boxes.behind, kWarp - 1);
    std::int64_t next = __shfl_sync(kAllLanes, rank < rows ? t.first_slot[boxes.row] : 0u, 0);
    for (unsigned first = 0; first < candidates && next < sizes.pair_capacity; first += kWarp) {
        const unsigned i = first + lane;
        const int owner = boxes.owner(i);
        const std::uint32_t row = __shfl_sync(kAllLanes, boxes.row, owner);
        const unsigned corner = __shfl_sync(kAllLanes, boxes.corner, owner);
        const unsigned width = __shfl_sync(kAllLanes, boxes.width, owner);
        const unsigned place = i - __shfl_sync(kAllLanes, boxes.behind - boxes.area, owner);
        const unsigned x = (corner & 0xffffu) + place % width, y = (corner >> 16) + place / width;
        const unsigned mask = i < candidates ? sub_tile_mask(t.records[row], int(x), int(y)) : 0u;
        const unsigned hits = __ballot_sync(kAllLanes, mask != 0);
        const std::int64_t pair = next + __popc(hits & ((1u << lane) - 1u));
        if (mask != 0 && pair < sizes.pair_capacity) {
            const std::uint32_t view = row / std::uint32_t(sizes.count);
            t.pair_keys_in[pair] = (view * std::uint32_t(sizes.tiles_y) + y) * std::uint32_t(sizes.tiles_x) + x;
            t.pair_splat[pair] = row;
            t.pair_mask[pair] = static_cast<std::uint8_t>(mask);
        }
        next += __popc(hits);
    }
}

__global__ void __launch_bounds__(kThreads)
    emit_pairs(Sizes sizes, TileTables t, std::int64_t rows, std::uint32_t behind_all) {
    const std::int64_t used = listed_pairs(t.pair_total, sizes.pair_capacity);
    const std::int64_t threads = std::int64_t(gridDim.x) * blockDim.x;
    for (std::int64_t p = global_thread(); p < sizes.pair_capacity; p += threads) {
        t.pair_ids_in[p] = static_cast<std::uint32_t>(p);
        if (p >= used) t.pair_keys_in[p] = behind_all;
    }
    emit_warp(sizes, t, rows);
}

// Where `key` begins and ends in `count` sorted keys. Both searches go on together: what takes time is the memory.
__device__ uint2 equal_range(const std::uint32_t* keys, std::uint32_t count, std::uint32_t key) {
    std::uint32_t below = 0, not_above = 0;
    for (std::uint32_t step = count == 0 ? 0u : 1u << (31 - __clz(int(count))); step > 0; step /= 2) {
        const bool a = below + step <= count && keys[below + step - 1] < key;
        const bool b = not_above + step <= count && keys[not_above + step - 1] <= key;
        below += a ? step : 0u;
        not_above += b ? step : 0u;
    }
    return make_uint2(below, not_above);
}

// Entries of the sorted pairs, and where a tile's begin. bucket_begin is left with how many buckets a tile has.
__global__ void place_entries(std::int64_t capacity, std::uint32_t tiles, TileTables t) {
    const std::uint32_t used = listed_pairs(t.pair_total, capacity);
    const std::int64_t i = global_thread();
    if (i < used) {
        const std::uint32_t pair = t.pair_ids[i];
        t.entries[i] = make_uint2(t.pair_splat[pair], pair);
        t.masks[i] = t.pair_mask[pair];
    }
    if (i > tiles) return;
    const uint2 place = equal_range(t.pair_keys, used, static_cast<std::uint32_t>(i));
    t.tile_begin[i] = place.x;
    t.bucket_begin[i] = (place.y - place.x + kBucket - 1) / kBucket;
}

__global__ void name_buckets(std::int64_t buckets, std::uint32_t tiles, TileTables t) {
    const std::int64_t i = global_thread();
    if (i >= buckets) return;
    const std::uint32_t bucket = static_cast<std::uint32_t>(i);
    const bool there = bucket < t.bucket_begin[tiles];
    t.bucket_tile[i] = there ? equal_range(t.bucket_begin, tiles + 1, bucket).y - 1 : kNoTile;
}

int bits_of(std::int64_t largest) {
    int bits = 1;
    while (largest >> bits != 0) ++bits;
    return bits;
}

std::int64_t larger(std::int64_t a, std::int64_t b) { return a < b ? b : a; }

}  // namespace

std::size_t list_tiles_scratch(const Sizes& sizes) {
    return sort_scratch(larger(larger(sizes.rows(), sizes.pair_capacity), sizes.tiles() + 1));
}

void count_pairs(const Sizes& sizes, const TileTables& t, cudaStream_t stream) {
    const std::int64_t rows = sizes.rows();
    if (rows == 0) {
        check(cudaMemsetAsync(t.pair_total, 0, sizeof *t.pair_total, stream), "clearing the number of pairs");
        return;
    }
    const Scratch scratch = {t.scratch, t.scratch_bytes};
    const unsigned blocks = blocks_for(rows, kThreads);
    launch(number_rows, blocks, kThreads, stream, rows, t.order_in);
    sort_pairs(scratch, t.keys, t.sorted_keys, t.order_in, t.order, rows, kKeyBits, stream);
    std::uint32_t* before = t.sorted_keys;  // the keys have done their duty
    sum_before(scratch, t.counts, t.order, before, rows, stream);
    launch(place_splats, blocks, kThreads, stream, rows, sizes.pair_capacity, t, before);
}

void list_tiles(const Sizes& sizes, const TileTables& t, cudaStream_t stream) {
    const std::int64_t rows = sizes.rows(), tiles = sizes.tiles(), capacity = sizes.pair_capacity;
    require(tiles < kMostSorted, "the pictures have too many tiles");
    const Scratch scratch = {t.scratch, t.scratch_bytes};
    const std::uint32_t behind_all = static_cast<std::uint32_t>(tiles);  // key of places that no pair needs
    if (capacity > 0) {
        launch(emit_pairs, blocks_for(larger(rows, 1), kThreads), kThreads, stream, sizes, t, rows, behind_all);
        sort_pairs(scratch, t.pair_keys_in, t.pair_keys, t.pair_ids_in, t.pair_ids, capacity, bits_of(tiles), stream);
    }
    launch(place_entries, blocks_for(larger(capacity, tiles + 1), kThreads), kThreads, stream, capacity, behind_all, t);
    sum_before(scratch, t.bucket_begin, nullptr, t.bucket_begin, tiles + 1, stream);
    launch(name_buckets, blocks_for(sizes.buckets(), kThreads), kThreads, stream, sizes.buckets(), behind_all, t);
}

}  // namespace cuda
}  // namespace mien

#include "morton.h"

#include <algorithm>

#include "parallel.h"

namespace knn {
namespace {

constexpr int kBits = 21;  // per axis
constexpr int kMostBucketBits = 12;
constexpr std::int64_t kChunk = 1 << 15;  // points

struct Item {
    std::uint64_t code;
    std::uint32_t row;

    bool operator<(const Item& other) const { return code != other.code ? code < other.code : row < other.row; }
};

// Inserts two zero bits before each of the low 21 bits.
std::uint64_t spread_bits(std::uint64_t v) {
    v &= 0x1fffff;
    v = (v | v << 32) & 0x001f00000000ffff;
    v = (v | v << 16) & 0x001f0000ff0000ff;
    v = (v | v << 8) & 0x100f00f00f00f00f;
    v = (v | v << 4) & 0x10c30c30c30c30c3;
    return (v | v << 2) & 0x1249249249249249;
}

// The cube around all points, cut into 2^kBits cells a side.
struct Grid {
    double low[3], cells_per_unit;

    Grid(const float* points, std::int64_t count) {
        float least[3], greatest[3];
        for (int axis = 0; axis < 3; ++axis) least[axis] = greatest[axis] = points[axis];
        for (std::int64_t i = 0; i < count; ++i) {
            for (int axis = 0; axis < 3; ++axis) {
                least[axis] = std::min(least[axis], points[3 * i + axis]);
                greatest[axis] = std::max(greatest[axis], points[3 * i + axis]);
            }
        }
        double extent = 0.0;
        for (int axis = 0; axis < 3; ++axis) {
            low[axis] = least[axis];
            extent = std::max(extent, double(greatest[axis]) - low[axis]);
        }
        cells_per_unit = extent > 0.0 ? ((1 << kBits) - 1) / extent : 0.0;
    }

    std::uint64_t code(const float* p) const {
        std::uint64_t code = 0;
        for (int axis = 0; axis < 3; ++axis)
            code |= spread_bits(static_cast<std::uint64_t>((double(p[axis]) - low[axis]) * cells_per_unit)) << axis;
        return code;
    }
};

// As many bits of the code as make buckets of some dozen points, were they spread evenly.
int bucket_bits(std::int64_t count) {
    int bits = 0;
    while (bits < kMostBucketBits && count >> bits > 64) ++bits;
    return bits;
}

}  // namespace

// By the leading bits into buckets, then every bucket by itself.
std::vector<std::uint32_t> morton_order(const float* points, std::int64_t count, int threads) {
    const Grid grid(points, count);
    const int bits = bucket_bits(count);
    const auto bucket = [=](std::uint64_t code) { return static_cast<std::int64_t>(code >> (3 * kBits - bits)); };
    const std::int64_t chunks = (count + kChunk - 1) / kChunk, buckets = std::int64_t{1} << bits;
    std::vector<std::uint64_t> codes(static_cast<std::size_t>(count));
    std::vector<std::uint32_t> next(static_cast<std::size_t>(chunks * buckets));  // per chunk and bucket
    for_blocks(chunks, threads, [&](std::int64_t chunk) {
        for (std::int64_t i = chunk * kChunk; i < std::min(count, (chunk + 1) * kChunk); ++i) {
            codes[i] = grid.code(points + 3 * i);
            ++next[chunk * buckets + bucket(codes[i])];
        }
    });
    std::vector<std::uint32_t> starts(static_cast<std::size_t>(buckets) + 1);
    std::uint32_t total = 0;
    for (std::int64_t b = 0; b < buckets; ++b) {
        starts[b] = total;
        for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
            std::uint32_t& n = next[chunk * buckets + b];
            total += n;
            n = total - n;
        }
    }
    starts[buckets] = total;
    std::vector<Item> items(static_cast<std::size_t>(count));
    for_blocks(chunks, threads, [&](std::int64_t chunk) {
        for (std::int64_t i = chunk * kChunk; i < std::min(count, (chunk + 1) * kChunk); ++i)
            items[next[chunk * buckets + bucket(codes[i])]++] = {codes[i], static_cast<std::uint32_t>(i)};
    });
    std::vector<std::uint32_t> order(static_cast<std::size_t>(count));
    for_blocks(buckets, threads, [&](std::int64_t b) {
        std::sort(items.begin() + starts[b], items.begin() + starts[b + 1]);
        for (std::uint32_t i = starts[b]; i < starts[b + 1]; ++i) order[i] = items[i].row;
    });
    return order;
}

}  // namespace knn

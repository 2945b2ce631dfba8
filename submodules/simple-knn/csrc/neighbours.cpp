// Points in Morton order under a binary tree of bounding boxes; every point searches the tree with an exact bound.
//
// The order only decides how fast boxes are discarded (as in Karras, "Maximizing Parallelism in the Construction of BVHs,
// Octrees, and k-d Trees", HPG 2012); the distances found are exact whatever it is. The sum of the three smallest is taken
// in ascending order, so neither ties nor threads can change a bit.
#include "neighbours.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <exception>
#include <limits>
#include <mutex>
#include <thread>
#include <vector>

namespace knn {
namespace {

constexpr int kNeighbours = 3;
constexpr std::int64_t kLeafPoints = 16;
constexpr std::int64_t kBlockPoints = 1024;
constexpr int kMortonBits = 21;  // per axis
constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Point {
    float position[3];
    std::uint32_t index;
};

struct Box {
    float low[3], high[3];
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

// Runs body(first, last) over [0, count) in blocks, on up to `threads` threads.
template <class Body>
void for_blocks(std::int64_t count, int threads, const Body& body) {
    const std::int64_t blocks = (count + kBlockPoints - 1) / kBlockPoints;
    std::atomic<std::int64_t> next{0};
    std::exception_ptr error;
    std::mutex guard;
    const auto work = [&] {
        try {
            for (std::int64_t block; (block = next.fetch_add(1)) < blocks;)
                body(block * kBlockPoints, std::min((block + 1) * kBlockPoints, count));
        } catch (...) {
            next = blocks;
            const std::lock_guard<std::mutex> lock(guard);
            if (!error) error = std::current_exception();
        }
    };
    std::vector<std::thread> helpers;
    for (int i = 1; i < std::min<std::int64_t>(threads, blocks); ++i) {
        try {
            helpers.emplace_back(work);
        } catch (const std::system_error&) {
            break;  // no thread to be had: the others do its share
        }
    }
    work();
    for (std::thread& helper : helpers) helper.join();
    if (error) std::rethrow_exception(error);
}

// Least-significant-digit radix sort, 11 bits at a time.
void sort_by_code(std::vector<std::uint64_t>& codes, std::vector<std::uint32_t>& order) {
    constexpr int kDigit = 11, kBuckets = 1 << kDigit;
    std::vector<std::uint64_t> other_codes(codes.size());
    std::vector<std::uint32_t> other_order(order.size());
    for (int shift = 0; shift < 3 * kMortonBits; shift += kDigit) {
        std::array<std::size_t, kBuckets> starts{};
        for (std::uint64_t code : codes) ++starts[code >> shift & (kBuckets - 1)];
        std::size_t sum = 0;
        for (std::size_t& start : starts) start = (sum += start) - start;
        for (std::size_t i = 0; i < codes.size(); ++i) {
            const std::size_t to = starts[codes[i] >> shift & (kBuckets - 1)]++;
            other_codes[to] = codes[i];
            other_order[to] = order[i];
        }
        codes.swap(other_codes);
        order.swap(other_order);
    }
}

std::vector<Point> in_morton_order(const float* points, std::int64_t count) {
    float low[3], high[3];
    for (int axis = 0; axis < 3; ++axis) low[axis] = high[axis] = points[axis];
    for (std::int64_t i = 0; i < 3 * count; ++i) {
        low[i % 3] = std::min(low[i % 3], points[i]);
        high[i % 3] = std::max(high[i % 3], points[i]);
    }
    double extent = 0.0;
    for (int axis = 0; axis < 3; ++axis) extent = std::max(extent, double(high[axis]) - low[axis]);
    const double scale = extent > 0.0 ? ((1 << kMortonBits) - 1) / extent : 0.0;
    std::vector<std::uint64_t> codes(count);
    std::vector<std::uint32_t> order(count);
    for (std::int64_t i = 0; i < count; ++i) {
        order[i] = static_cast<std::uint32_t>(i);
        for (int axis = 0; axis < 3; ++axis) {
            const double cell = (double(points[3 * i + axis]) - low[axis]) * scale;
            codes[i] |= spread_bits(static_cast<std::uint64_t>(cell)) << axis;
        }
    }
    sort_by_code(codes, order);
    std::vector<Point> sorted(count);
    for (std::int64_t i = 0; i < count; ++i) {
        const float* p = points + 3 * std::int64_t{order[i]};
        sorted[i] = {{p[0], p[1], p[2]}, order[i]};
    }
    return sorted;
}

// A perfect binary tree in heap order (children of n: 2n+1, 2n+2) over leaves of kLeafPoints consecutive points. Leaves past
// the end are empty boxes at infinity.
class BoxTree {
public:
    explicit BoxTree(const std::vector<Point>& points) : points_(points) {
        const std::int64_t count = points.size();
        while (leaves_ * kLeafPoints < count) leaves_ *= 2;
        constexpr float inf = std::numeric_limits<float>::infinity();
        boxes_.assign(2 * leaves_ - 1, {{inf, inf, inf}, {-inf, -inf, -inf}});
        for (std::int64_t i = 0; i < count; ++i) {
            Box& box = boxes_[leaves_ - 1 + i / kLeafPoints];
            for (int axis = 0; axis < 3; ++axis) {
                box.low[axis] = std::min(box.low[axis], points[i].position[axis]);
                box.high[axis] = std::max(box.high[axis], points[i].position[axis]);
            }
        }
        for (std::int64_t n = leaves_ - 2; n >= 0; --n) {
            for (int axis = 0; axis < 3; ++axis) {
                boxes_[n].low[axis] = std::min(boxes_[2 * n + 1].low[axis], boxes_[2 * n + 2].low[axis]);
                boxes_[n].high[axis] = std::max(boxes_[2 * n + 1].high[axis], boxes_[2 * n + 2].high[axis]);
            }
        }
    }

    float mean_squared_distance(std::int64_t self) const {
        Nearest nearest;
        const std::int64_t home = leaves_ - 1 + self / kLeafPoints;
        visit_leaf(home, self, nearest);
        // From the own leaf to the root; at each step down into the sibling. The bound is tight before far boxes are met.
        for (std::int64_t n = home; n > 0; n = (n - 1) / 2) {
            const std::int64_t sibling = n % 2 == 1 ? n + 1 : n - 1;
            descend(sibling, bound(boxes_[sibling], points_[self]), self, nearest);
        }
        const std::int64_t others = std::min<std::int64_t>(kNeighbours, static_cast<std::int64_t>(points_.size()) - 1);
        double sum = 0.0;
        for (std::int64_t k = 0; k < others; ++k) sum += nearest.squared[k];
        return others > 0 ? static_cast<float>(sum / static_cast<double>(others)) : 0.0f;
    }

private:
    struct Nearest {
        double squared[kNeighbours] = {kInfinity, kInfinity, kInfinity};  // ascending

        double bound() const { return squared[kNeighbours - 1]; }

        void offer(double value) {
            for (double& kept : squared)
                if (value < kept) std::swap(value, kept);
        }
    };

    // Not more than squared_distance to any point in the box: each rounding step is monotonic.
    double bound(const Box& box, const Point& p) const {
        double sum = 0.0;
        for (int axis = 0; axis < 3; ++axis) {
            const double below = double(box.low[axis]) - p.position[axis];
            const double above = double(p.position[axis]) - box.high[axis];
            const double gap = std::max(std::max(below, above), 0.0);
            sum += gap * gap;
        }
        return sum;
    }

    static double squared_distance(const Point& a, const Point& b) {
        double sum = 0.0;
        for (int axis = 0; axis < 3; ++axis) {
            const double gap = double(a.position[axis]) - b.position[axis];
            sum += gap * gap;
        }
        return sum;
    }

    void visit_leaf(std::int64_t leaf, std::int64_t self, Nearest& nearest) const {
        const std::int64_t first = (leaf - (leaves_ - 1)) * kLeafPoints;
        const std::int64_t last = std::min<std::int64_t>(first + kLeafPoints, points_.size());
        for (std::int64_t i = first; i < last; ++i)
            if (i != self) nearest.offer(squared_distance(points_[i], points_[self]));
    }

    // `least` is the bound of the node's box.
    void descend(std::int64_t node, double least, std::int64_t self, Nearest& nearest) const {
        if (!(least < nearest.bound())) return;
        if (node >= leaves_ - 1) return visit_leaf(node, self, nearest);
        std::int64_t near = 2 * node + 1, far = near + 1;
        double near_least = bound(boxes_[near], points_[self]), far_least = bound(boxes_[far], points_[self]);
        if (far_least < near_least) {
            std::swap(near, far);
            std::swap(near_least, far_least);
        }
        descend(near, near_least, self, nearest);
        descend(far, far_least, self, nearest);
    }

    const std::vector<Point>& points_;
    std::vector<Box> boxes_;
    std::int64_t leaves_ = 1;
};

}  // namespace

void mean_squared_distances(const float* points, std::int64_t count, int threads, float* means) {
    if (count == 0) return;
    const std::vector<Point> sorted = in_morton_order(points, count);
    const BoxTree tree(sorted);
    for_blocks(count, threads, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t i = first; i < last; ++i) means[sorted[i].index] = tree.mean_squared_distance(i);
    });
}

}  // namespace knn

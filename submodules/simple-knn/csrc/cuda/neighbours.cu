// The search of csrc/kernels/search.cpp on a GPU: points in Morton order, 32 to a leaf, under a tree of boxes whose
// nodes have 32 children. The points of a leaf search it together, one a lane; the lanes look at 32 boxes at a time.
//
// Distances, sums and bounds are double and rounded in the one order that the CPU has, never fused: the same bits.
#include "cuda/device.h"

namespace knn {
namespace {

constexpr int kFan = 32;        // points of a leaf, children of a node: the lanes of a warp
constexpr int kMostLevels = 7;  // 32^7 leaves are more than 2^32 points need
constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kFan;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr float kEmpty = __builtin_huge_valf();

struct Box {
    float low[3], high[3];
};

// Leaves are level 0; the last level is the root. Child c of box i is box 32 i + c of the level below, or point.
struct Tree {
    const float* points;  // [count, 3] in Morton order
    std::int64_t count;
    int levels;
    Box* level[kMostLevels];
    std::int64_t size[kMostLevels];
};

#if defined(__CUDA_ARCH__)
__device__ double square(double x) { return __dmul_rn(x, x); }
__device__ double sum(double a, double b) { return __dadd_rn(a, b); }
#else
inline double square(double x) { return x * x; }
inline double sum(double a, double b) { return a + b; }
#endif
__device__ double squared_length(double x, double y, double z) { return sum(sum(square(x), square(y)), square(z)); }
__device__ double smaller(double a, double b) { return b < a ? b : a; }
__device__ double larger(double a, double b) { return a < b ? b : a; }

__device__ int lane_number() { return threadIdx.x % kFan; }
__device__ std::int64_t warp_number() { return std::int64_t(blockIdx.x) * kWarps + threadIdx.x / kFan; }

// The box around all lanes' boxes, in every lane.
__device__ Box around(Box box) {
    for (int lanes = kFan / 2; lanes > 0; lanes /= 2) {
        for (int axis = 0; axis < 3; ++axis) {
            const float low = __shfl_xor_sync(kAllLanes, box.low[axis], lanes);
            const float high = __shfl_xor_sync(kAllLanes, box.high[axis], lanes);
            box.low[axis] = low < box.low[axis] ? low : box.low[axis];
            box.high[axis] = high > box.high[axis] ? high : box.high[axis];
        }
    }
    return box;
}

__device__ double greatest(double value) {
    for (int lanes = kFan / 2; lanes > 0; lanes /= 2) value = larger(value, __shfl_xor_sync(kAllLanes, value, lanes));
    return value;
}

// One warp a box of the level.
__global__ void __launch_bounds__(kThreads) make_boxes(Tree tree, int level) {
    const std::int64_t index = warp_number(), child = kFan * index + lane_number();
    if (index >= tree.size[level]) return;
    Box box = {{kEmpty, kEmpty, kEmpty}, {-kEmpty, -kEmpty, -kEmpty}};
    if (level > 0) {
        if (child < tree.size[level - 1]) box = tree.level[level - 1][child];
    } else if (child < tree.count) {
        for (int axis = 0; axis < 3; ++axis) box.low[axis] = box.high[axis] = tree.points[3 * child + axis];
    }
    box = around(box);
    if (lane_number() == 0) tree.level[level][index] = box;
}

// A warp's search for the neighbours of the points of one leaf.
class Walk {
public:
    __device__ Walk(const Tree& tree, std::int64_t leaf)
        : tree_(tree), leaf_(leaf), point_(kFan * leaf + lane_number()), there_(point_ < tree.count) {
        const std::int64_t last = there_ ? point_ : tree.count - 1;
        Box box;
        for (int axis = 0; axis < 3; ++axis) {
            box.low[axis] = box.high[axis] = tree.points[3 * last + axis];
            position_[axis] = double(box.low[axis]);
        }
        box_ = around(box);
        // A lane without a point is content with what it has.
        first_ = second_ = third_ = there_ ? double(__builtin_huge_val()) : 0.0;
    }

    // From the own leaf to the root; at each step down to all others that are near enough.
    __device__ void run() {
        visit(leaf_);
        std::int64_t own = leaf_;
        for (int level = 0; level + 1 < tree_.levels; ++level, own /= kFan)
            descend(level, own / kFan, near(level, own / kFan) & ~(1u << own % kFan));
    }

    __device__ void write(const std::int64_t* rows, float* means) const {
        if (!there_) return;
        const int others = tree_.count > 3 ? 3 : static_cast<int>(tree_.count) - 1;
        double total = 0.0;
        if (others > 0) total = sum(total, first_);
        if (others > 1) total = sum(total, second_);
        if (others > 2) total = sum(total, third_);
        means[rows[point_]] = others > 0 ? static_cast<float>(total / others) : 0.0f;
    }

private:
    __device__ void visit(std::int64_t leaf) {
        const std::int64_t first = kFan * leaf, left = tree_.count - first, end = first + (left < kFan ? left : kFan);
        for (std::int64_t i = first; i < end; ++i) {
            if (i == point_) continue;
            const float* p = tree_.points + 3 * i;
            const double squared =
                squared_length(double(p[0]) - position_[0], double(p[1]) - position_[1], double(p[2]) - position_[2]);
            third_ = smaller(third_, larger(second_, squared));
            second_ = smaller(second_, larger(first_, squared));
            first_ = smaller(first_, squared);
        }
    }

    // The square of how far apart two boxes are. No rounding step of it exceeds that of a squared distance between
    // points in them.
    __device__ static double squared_gap(const Box& box, const double* low, const double* high) {
        double gap[3];
        for (int axis = 0; axis < 3; ++axis)
            gap[axis] = larger(larger(double(box.low[axis]) - high[axis], low[axis] - double(box.high[axis])), 0.0);
        return squared_length(gap[0], gap[1], gap[2]);
    }

    // The children of a box of the next level whose boxes are near enough to the box around the queries to hold
    // something nearer than what is known.
    __device__ unsigned near(int level, std::int64_t parent) const {
        const std::int64_t child = kFan * parent + lane_number();
        const double known = greatest(third_);
        bool close = false;
        if (child < tree_.size[level]) {
            const double low[3] = {box_.low[0], box_.low[1], box_.low[2]};
            const double high[3] = {box_.high[0], box_.high[1], box_.high[2]};
            close = squared_gap(tree_.level[level][child], low, high) < known;
        }
        return __ballot_sync(kAllLanes, close);
    }

    // The same for one box and every query.
    __device__ bool reaches(int level, std::int64_t index) const {
        return __any_sync(kAllLanes, squared_gap(tree_.level[level][index], position_, position_) < third_) != 0;
    }

    // Everything below these children of a box. Lane l keeps what is still to be done of level l.
    __device__ void descend(const int top, std::int64_t parent, unsigned children) {
        unsigned pending = children;
        int level = top;
        for (;;) {
            const unsigned left = __shfl_sync(kAllLanes, pending, level);
            if (left == 0) {
                if (level == top) return;
                ++level;
                parent /= kFan;
                continue;
            }
            if (lane_number() == level) pending = left & (left - 1);
            const std::int64_t index = kFan * parent + (__ffs(static_cast<int>(left)) - 1);
            if (!reaches(level, index)) continue;
            if (level == 0) {
                visit(index);
                continue;
            }
            --level;
            parent = index;
            const unsigned below = near(level, parent);
            if (lane_number() == level) pending = below;
        }
    }

    const Tree& tree_;
    const std::int64_t leaf_, point_;
    const bool there_;
    double position_[3];
    Box box_;                        // around the positions
    double first_, second_, third_;  // squared distances to the nearest, ascending
};

__global__ void __launch_bounds__(kThreads) search(Tree tree, const std::int64_t* rows, float* means) {
    const std::int64_t leaf = warp_number();
    if (leaf >= tree.size[0]) return;
    Walk walk(tree, leaf);
    walk.run();
    walk.write(rows, means);
}

std::int64_t above(std::int64_t children) { return (children + kFan - 1) / kFan; }

std::int64_t blocks_for(std::int64_t warps) { return (warps + kWarps - 1) / kWarps; }

Tree make_tree(const float* points, std::int64_t count, Box* boxes) {
    Tree tree = {points, count, 0, {}, {}};
    for (std::int64_t size = above(count);; size = above(size)) {
        tree.level[tree.levels] = boxes;
        tree.size[tree.levels++] = size;
        boxes += size;
        if (size == 1) return tree;
    }
}

void check_count(std::int64_t count) {
    if (count < 1 || count >= std::int64_t{1} << 32)
        throw InvalidArgument("points: the number of rows must lie in 1 .. 2^32 - 1");
}

}  // namespace
}  // namespace knn

// Why there is no knn_cuda_mean_squared_distances in this library; null: there is.
KNN_API const char* knn_cuda_missing() { return nullptr; }

// How many bytes of scratch `count` points need.
KNN_API int knn_cuda_scratch(int64_t count, int64_t* bytes) {
    return knn::guarded([&] {
        knn::check_count(count);
        if (bytes == nullptr) throw knn::InvalidArgument("bytes is null");
        *bytes = 0;
        for (std::int64_t size = knn::above(count);; size = knn::above(size)) {
            *bytes += size * static_cast<std::int64_t>(sizeof(knn::Box));
            if (size == 1) return;
        }
    });
}

// means[rows[i]] of point i, see neighbours.h. Everything lies on the current device; points [count, 3] must be finite.
// In any order the result is the same, in Morton order it comes soon. Joins `stream`; nothing is read back.
KNN_API int knn_cuda_mean_squared_distances(const float* points, const int64_t* rows, int64_t count, void* scratch,
                                            float* means, void* stream) {
    return knn::guarded([&] {
        knn::check_count(count);
        if (points == nullptr || rows == nullptr || scratch == nullptr || means == nullptr)
            throw knn::InvalidArgument("points, rows, scratch or means is null");
        const auto queue = static_cast<cudaStream_t>(stream);
        const knn::Tree tree = knn::make_tree(points, count, static_cast<knn::Box*>(scratch));
        for (int level = 0; level < tree.levels; ++level)
            knn::launch(knn::make_boxes, knn::blocks_for(tree.size[level]), knn::kThreads, queue, tree, level);
        knn::launch(knn::search, knn::blocks_for(tree.size[0]), knn::kThreads, queue, tree, rows, means);
    });
}

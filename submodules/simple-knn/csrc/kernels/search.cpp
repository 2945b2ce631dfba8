// The points of a leaf walk the tree together, one per lane. All distances are taken in double, in the same order of
// operations everywhere, so neither the instruction set nor the walk can change a bit.
//
// Compiled once per instruction set: nothing here may be shared with another file (no std templates).
#include "kernels/lanes.h"

namespace knn {
namespace KNN_ISA {
namespace {

constexpr double kInfinity = __builtin_inf();

// Added to the distances from point i of a leaf to all points of the same leaf, from kNotItself + kLeaf - 1 - i on.
constexpr double kNotItself[2 * kLeaf - 1] = {0, 0, 0, 0, 0, 0, 0, kInfinity, 0, 0, 0, 0, 0, 0, 0};

inline std::int64_t leaf_end(const Tree& tree, std::int64_t first) {
    return first + kLeaf < tree.count ? first + kLeaf : tree.count;
}

// The square of how far apart two intervals are on each axis, summed: max(low, high, 0) of the two signed gaps. No
// rounding step of it exceeds that of a squared distance between points in them.
inline Lanes squared_gap(const Lanes* below, const Lanes* above) {
    const Lanes zero = all(0.0);
    const Lanes x = max(max(below[0], above[0]), zero), y = max(max(below[1], above[1]), zero),
                z = max(max(below[2], above[2]), zero);
    return x * x + y * y + z * z;
}

class Walk {
public:
    Walk(const Tree& tree, std::int64_t leaf) : tree_(tree), leaf_(leaf), last_(leaf_end(tree, leaf * kLeaf)) {
        for (int axis = 0; axis < 3; ++axis) position_[axis] = load(tree.position[axis] + leaf * kLeaf);
        for (Lanes& nearest : nearest_) nearest = all(kInfinity);
        for (int axis = 0; axis < 3; ++axis) {
            high_[axis] = all(greatest(position_[axis]));
            low_[axis] = all(-greatest(all(0.0) - position_[axis]));
        }
    }

    // From the own leaf to the root; at each step down to all others that are near enough.
    void run() {
        visit_own();
        std::int64_t index = leaf_;
        for (int level = 0; level < tree_.levels; ++level) {
            const unsigned own = 1u << index % kLeaf;
            index /= kLeaf;
            descend(level, index, near(tree_.level[level][index]) & ~own);
        }
    }

    void write(float* means) const {
        double nearest[kNeighbours][kLeaf];
        for (int k = 0; k < kNeighbours; ++k) store(nearest[k], nearest_[k]);
        const int others = tree_.count > kNeighbours ? kNeighbours : static_cast<int>(tree_.count) - 1;
        for (std::int64_t i = leaf_ * kLeaf; i < last_; ++i) {
            double sum = 0.0;
            for (int k = 0; k < others; ++k) sum += nearest[k][i % kLeaf];
            means[tree_.rows[i]] = others > 0 ? static_cast<float>(sum / others) : 0.0f;
        }
    }

private:
    void offer(const Lanes& squared) {
        nearest_[2] = min(nearest_[2], max(nearest_[1], squared));
        nearest_[1] = min(nearest_[1], max(nearest_[0], squared));
        nearest_[0] = min(nearest_[0], squared);
    }

    Lanes squared_distance(std::int64_t point) const {
        const Lanes x = all(tree_.position[0][point]) - position_[0], y = all(tree_.position[1][point]) - position_[1],
                    z = all(tree_.position[2][point]) - position_[2];
        return x * x + y * y + z * z;
    }

    void visit_own() {
        for (std::int64_t i = leaf_ * kLeaf; i < last_; ++i)
            offer(squared_distance(i) + load(kNotItself + kLeaf - 1 - i % kLeaf));
    }

    void visit(std::int64_t leaf) {
        const std::int64_t last = leaf_end(tree_, leaf * kLeaf);
        for (std::int64_t i = leaf * kLeaf; i < last; ++i) offer(squared_distance(i));
    }

    // The children whose boxes are near enough to the box around the queries to hold something nearer than what is
    // known.
    unsigned near(const Node& node) const {
        Lanes below[3], above[3];
        for (int axis = 0; axis < 3; ++axis) {
            below[axis] = load(node.low[axis]) - high_[axis];
            above[axis] = low_[axis] - load(node.high[axis]);
        }
        return less(squared_gap(below, above), all(greatest(nearest_[kNeighbours - 1])));
    }

    // The same for one child and every query.
    bool reaches(const Node& node, int child) const {
        Lanes below[3], above[3];
        for (int axis = 0; axis < 3; ++axis) {
            below[axis] = all(node.low[axis][child]) - position_[axis];
            above[axis] = position_[axis] - all(node.high[axis][child]);
        }
        return less(squared_gap(below, above), nearest_[kNeighbours - 1]) != 0;
    }

    void descend(int level, std::int64_t index, unsigned children) {
        const Node& node = tree_.level[level][index];
        for (; children != 0; children &= children - 1) {
            const int child = __builtin_ctz(children);
            if (!reaches(node, child)) continue;
            const std::int64_t below = index * kLeaf + child;
            if (level == 0)
                visit(below);
            else
                descend(level - 1, below, near(tree_.level[level - 1][below]));
        }
    }

    const Tree& tree_;
    const std::int64_t leaf_, last_;
    Lanes position_[3];
    Lanes low_[3], high_[3];      // of the box around them, in every lane
    Lanes nearest_[kNeighbours];  // squared, ascending
};

void search(const Tree& tree, std::int64_t first, std::int64_t last, float* means) {
    for (std::int64_t leaf = first; leaf < last; ++leaf) {
        Walk walk(tree, leaf);
        walk.run();
        walk.write(means);
    }
}

}  // namespace

extern const SearchKernels search_kernels;
const SearchKernels search_kernels = {search};

}  // namespace KNN_ISA
}  // namespace knn

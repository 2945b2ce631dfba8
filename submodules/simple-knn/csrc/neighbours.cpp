// Points in Morton order under a binary tree of bounding boxes, which the points of a leaf search together.
//
// The order only decides how fast boxes are discarded (as in Karras, "Maximizing Parallelism in the Construction of
// BVHs, Octrees, and k-d Trees", HPG 2012); the distances found are exact whatever it is. The sum of the three smallest
// is taken in ascending order, so neither ties nor threads can change a bit.
#include "neighbours.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "morton.h"
#include "parallel.h"
#include "search.h"

namespace knn {
namespace {

constexpr std::int64_t kBlockLeaves = 128;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

const SearchKernels& chosen_kernels() {
    const char* variable = std::getenv("MIEN_ISA");
    const std::string wanted = variable != nullptr ? variable : "";
#if defined(KNN_HAVE_X86)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    if (avx512 && (wanted.empty() || wanted == "avx512")) return avx512::search_kernels;
    if (avx2 && (wanted.empty() || wanted == "avx2")) return avx2::search_kernels;
#endif
    if (wanted.empty() || wanted == "scalar") return scalar::search_kernels;
    throw InvalidArgument("MIEN_ISA=" + wanted + " is not available on this CPU or in this build");
}

constexpr Node empty_node() {
    Node node{};
    for (int axis = 0; axis < 3; ++axis)
        for (int child = 0; child < kLeaf; ++child)
            node.low[axis][child] = kInfinity, node.high[axis][child] = -kInfinity;
    return node;
}

class Cloud {
public:
    Cloud(const float* points, std::int64_t count, int threads)
        : rows_(morton_order(points, count, threads)), leaves_((count + kLeaf - 1) / kLeaf) {
        for (std::vector<double>& axis : position_) axis.resize(static_cast<std::size_t>(leaves_ * kLeaf));
        for (std::int64_t children = leaves_; children > 1; children = (children + kLeaf - 1) / kLeaf)
            levels_.emplace_back((children + kLeaf - 1) / kLeaf, empty_node());
        for_blocks(blocks(), threads, [&](std::int64_t block) {
            for (std::int64_t leaf = first_leaf(block); leaf < first_leaf(block + 1); ++leaf) fill(points, leaf);
        });
        for (std::size_t level = 0; level + 1 < levels_.size(); ++level)
            for (std::size_t i = 0; i < levels_[level].size(); ++i) {
                const Node& node = levels_[level][i];
                for (int axis = 0; axis < 3; ++axis) {
                    levels_[level + 1][i / kLeaf].low[axis][i % kLeaf] =
                        *std::min_element(node.low[axis], node.low[axis] + kLeaf);
                    levels_[level + 1][i / kLeaf].high[axis][i % kLeaf] =
                        *std::max_element(node.high[axis], node.high[axis] + kLeaf);
                }
            }
    }

    std::int64_t blocks() const { return (leaves_ + kBlockLeaves - 1) / kBlockLeaves; }
    std::int64_t first_leaf(std::int64_t block) const { return std::min(block * kBlockLeaves, leaves_); }

    Tree tree() const {
        Tree tree{{position_[0].data(), position_[1].data(), position_[2].data()},
                  {},
                  static_cast<int>(levels_.size()),
                  rows_.data(),
                  static_cast<std::int64_t>(rows_.size())};
        for (std::size_t level = 0; level < levels_.size(); ++level) tree.level[level] = levels_[level].data();
        return tree;
    }

private:
    void fill(const float* points, std::int64_t leaf) {
        const std::int64_t last = static_cast<std::int64_t>(rows_.size()) - 1, first = leaf * kLeaf;
        for (std::int64_t i = first; i < first + kLeaf; ++i)
            for (int axis = 0; axis < 3; ++axis)
                position_[axis][i] = points[3 * std::int64_t{rows_[std::min(i, last)]} + axis];
        if (levels_.empty()) return;
        for (int axis = 0; axis < 3; ++axis) {
            const auto ends = std::minmax_element(&position_[axis][first], &position_[axis][first] + kLeaf);
            levels_[0][leaf / kLeaf].low[axis][leaf % kLeaf] = *ends.first;
            levels_[0][leaf / kLeaf].high[axis][leaf % kLeaf] = *ends.second;
        }
    }

    const std::vector<std::uint32_t> rows_;
    const std::int64_t leaves_;
    std::vector<double> position_[3];
    std::vector<std::vector<Node>> levels_;
};

}  // namespace

void mean_squared_distances(const float* points, std::int64_t count, int threads, float* means) {
    const SearchKernels& kernels = chosen_kernels();
    if (count == 0) return;
    const Cloud cloud(points, count, threads);
    const Tree tree = cloud.tree();
    for_blocks(cloud.blocks(), threads, [&](std::int64_t block) {
        kernels.search(tree, cloud.first_leaf(block), cloud.first_leaf(block + 1), means);
    });
}

}  // namespace knn

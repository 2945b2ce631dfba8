// The search for neighbours, common side: what csrc/kernels/search.cpp provides per instruction set.
#pragma once

#include <cstdint>

namespace knn {

constexpr int kLeaf = 8;  // points of a leaf, which walk the tree together; and children of a node
constexpr int kNeighbours = 3;

constexpr int kMostLevels = 11;  // 8^11 leaves are more than 2^32 points need

// The boxes of eight children; those that aren't there are empty: at infinity.
struct Node {
    double low[3][kLeaf], high[3][kLeaf];
};

// Child c of node i of a level is node 8 i + c of the level below; those of level 0 are leaves of kLeaf consecutive
// points.
struct Tree {
    const double* position[3];  // [kLeaf * leaves], the last leaf filled up with copies of its last point
    const Node* level[kMostLevels];
    int levels;                 // the last one has one node
    const std::uint32_t* rows;  // [count] where the caller has the point
    std::int64_t count;
};

struct SearchKernels {
    // For every point of leaves [first, last): means[rows[point]] of the squared distances to its nearest others.
    void (*search)(const Tree&, std::int64_t first, std::int64_t last, float* means);
};

}  // namespace knn

namespace knn {
namespace scalar {
extern const SearchKernels search_kernels;
}
#if defined(KNN_HAVE_X86)
namespace avx2 {
extern const SearchKernels search_kernels;
}
namespace avx512 {
extern const SearchKernels search_kernels;
}
#endif
}  // namespace knn

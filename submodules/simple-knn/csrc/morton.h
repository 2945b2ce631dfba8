// Points in Morton order: neighbours in the list are mostly neighbours in space.
#pragma once

#include <cstdint>
#include <vector>

namespace knn {

// The rows of points [count, 3], finite, count > 0, ordered by their Morton codes; equal codes keep their order.
std::vector<std::uint32_t> morton_order(const float* points, std::int64_t count, int threads);

}  // namespace knn

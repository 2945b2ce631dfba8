// Exact k-nearest-neighbour distances.
#pragma once

#include <cstdint>

namespace knn {

// means[i] = mean squared distance from point i to its 3 nearest other points; to all others if there are fewer; 0 for a
// single point. Points [count, 3] must be finite. The result doesn't depend on `threads`.
void mean_squared_distances(const float* points, std::int64_t count, int threads, float* means);

}  // namespace knn

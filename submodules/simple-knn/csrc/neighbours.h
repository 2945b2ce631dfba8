// Exact k-nearest-neighbour distances.
#pragma once

#include <cstdint>
#include <stdexcept>

namespace knn {

struct InvalidArgument : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// means[i] = mean squared distance from point i to its 3 nearest other points; to all others if there are fewer; 0 for
// a single point. Points [count, 3] must be finite, 0 <= count < 2^32. The result doesn't depend on `threads` or on the
// instruction set. Throws InvalidArgument if the environment variable MIEN_ISA names one that is not there.
void mean_squared_distances(const float* points, std::int64_t count, int threads, float* means);

}  // namespace knn

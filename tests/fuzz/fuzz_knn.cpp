#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>

#include "inputs.h"
#include "native.h"

namespace fuzz {
namespace {

// All pairs, for the same bits.
float mean_squared_distance(const Array<float>& points, std::int64_t count, std::int64_t self) {
    double nearest[4];
    std::fill(nearest, nearest + 4, std::numeric_limits<double>::infinity());
    for (std::int64_t i = 0; i < count; ++i) {
        if (i == self) continue;
        double sum = 0;
        for (int axis = 0; axis < 3; ++axis) {
            const double gap = double{points[3 * i + axis]} - points[3 * self + axis];
            sum += gap * gap;
        }
        nearest[3] = sum;
        std::sort(nearest, nearest + 4);
    }
    const int others = static_cast<int>(std::min<std::int64_t>(3, count - 1));
    double sum = 0;
    for (int k = 0; k < others; ++k) sum += nearest[k];
    return others > 0 ? static_cast<float>(sum / others) : 0.0f;
}

}  // namespace

void knn(Inputs& in) {
    const std::int64_t count = in.seldom(128) ? in.between(1000, 3000) : in.below(150);
    const Array<float> points = in.floats(3 * count, -1, 1), means(count);
    const float grid = in.flag() ? 4.0f : 0.0f;  // ties and points in one place
    for (std::int64_t i = 0; i < points.size() && grid > 0; ++i) points[i] = std::round(points[i] * grid);
    const int status = knn_mean_squared_distances(in.forgotten(points.get()), in.in(64) ? -count : count, in.threads(),
                                                  in.forgotten(means.get()));
    expect_refusal_or_success(status, knn_last_error());
    if (status != 0 || count == 0 || knn_abi_version() != 1) return;
    for (std::int64_t i = 0; i < count; i += 1 + count / 8) {
        if (means[i] == mean_squared_distance(points, count, i)) continue;
        std::fprintf(stderr, "knn: point %lld of %lld: %g\n", static_cast<long long>(i), static_cast<long long>(count),
                     double{means[i]});
        std::abort();
    }
}

}  // namespace fuzz

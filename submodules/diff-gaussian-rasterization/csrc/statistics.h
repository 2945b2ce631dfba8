// What a training step wants to know of gradients, common side.
#pragma once

#include <cstdint>

#include "isa.h"

namespace mien {

// Running sums over views, one row per Gaussian.
struct ScreenStatistics {
    float *gradient, *seen, *radius;
};

struct StatisticsKernels {
    // Adds one view to rows [first, first + count): of the drawn ones (radii > 0) factor * |screen gradient| and 1; the
    // largest radius of all.
    void (*add_view)(const float* screen_gradients, const std::int32_t* radii, float factor, std::int64_t first,
                     std::int64_t count, const ScreenStatistics& out);
    // Whether the square of every value is finite.
    bool (*squares_finite)(const float* values, std::int64_t count);
};

}  // namespace mien

MIEN_DECLARE_KERNELS(StatisticsKernels, statistics_kernels)

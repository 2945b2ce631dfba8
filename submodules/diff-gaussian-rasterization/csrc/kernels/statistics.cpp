// Sums over the views of a Gaussian, and a look for values that are not finite.
#include "statistics.h"

#include "core/ops.h"

namespace mien {
namespace MIEN_ISA {
namespace {

void add_view(const float* __restrict screen_gradients, const std::int32_t* __restrict radii, float factor,
              std::int64_t first, std::int64_t count, const ScreenStatistics& out) {
    const float* __restrict g = screen_gradients + 2 * first;
    const std::int32_t* __restrict r = radii + first;
    float* __restrict gradient = out.gradient + first;
    float* __restrict seen = out.seen + first;
    float* __restrict radius = out.radius + first;
    for (std::int64_t i = 0; i < count; ++i) {
        const float x = g[2 * i], y = g[2 * i + 1];
        // Rounded as PyTorch does: the product by itself, not fused into the sum below.
        const float size = fma(factor, __builtin_sqrtf(fma(y, y, x * x)), 0.0f);
        const float pixels = static_cast<float>(r[i]);
        gradient[i] += r[i] > 0 ? size : 0.0f;
        seen[i] += r[i] > 0 ? 1.0f : 0.0f;
        radius[i] = pixels > radius[i] ? pixels : radius[i];
    }
}

bool squares_finite(const float* values, std::int64_t count) {
    int bad = 0;
    for (std::int64_t i = 0; i < count; ++i) bad |= values[i] * values[i] <= __FLT_MAX__ ? 0 : 1;
    return bad == 0;
}

}  // namespace

extern const StatisticsKernels statistics_kernels;
const StatisticsKernels statistics_kernels = {add_view, squares_finite};

}  // namespace MIEN_ISA
}  // namespace mien

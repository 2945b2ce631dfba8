// Limits on the local means and scales of the Gaussians that a picture shows, with their gradients.
#include "binding.h"

#include "core/limits.h"
#include "kernels/simd.h"

namespace mien {
namespace MIEN_ISA {
namespace {

constexpr int kSummed = 16;  // registers added in float32 before float64 takes over

std::int64_t drawn(const std::int32_t* radii, std::int64_t count) {
    std::int64_t sum = 0;
    for (std::int64_t i = 0; i < count; ++i) sum += radii[i] > 0;
    return sum;
}

Mask drawn_lanes(const std::int32_t* radii, int rows) {
    float lanes[kLanes] = {};
    for (int i = 0; i < kLanes && i < rows; ++i) lanes[i] = radii[i] > 0 ? 1.0f : 0.0f;
    return load(lanes) > Float(0.0f);
}

// Writes v * factor, and 0 where `on` is not set.
void store_scaled(const Float* v, Float factor, Mask on, float* out, std::int64_t row, int rows) {
    if (out == nullptr) return;
    Float g[3];
    for (int c = 0; c < 3; ++c) g[c] = keep(on, v[c] * factor);
    store_columns<3>(g, out + 3 * row, 3, rows);
}

Float limit_means(const BindingLimits& work, std::int64_t row, int rows, Mask shown) {
    Float v[3];
    load_columns<3>(v, work.means + 3 * row, 3, rows);
    const Float size = length(v), above = excess(size, Float(work.threshold_xyz));
    const Mask on = shown & !(above == Float(0.0f));
    store_scaled(v, Float(work.weight_xyz) / size, on, work.g_means, row, rows);
    return keep(on, above);
}

Float limit_scales(const BindingLimits& work, std::int64_t row, int rows, Mask shown) {
    Float v[3];
    load_columns<3>(v, work.scales + 3 * row, 3, rows);
    for (int c = 0; c < 3; ++c) v[c] = excess(v[c], Float(work.threshold_scale));
    const Float size = length(v);
    const Mask on = shown & !(size == Float(0.0f));
    store_scaled(v, Float(work.weight_scale) / size, on, work.g_scales, row, rows);
    return keep(on, size);
}

void limits(const BindingLimits& work, std::int64_t first, std::int64_t count, double* xyz, double* scale) {
    *xyz = *scale = 0.0;
    const std::int64_t last = first + count;
    for (std::int64_t row = first; row < last;) {
        Float sum_xyz(0.0f), sum_scale(0.0f);
        for (int i = 0; i < kSummed && row < last; ++i, row += kLanes) {
            const int rows = last - row < kLanes ? static_cast<int>(last - row) : kLanes;
            const Mask shown = drawn_lanes(work.radii + row, rows);
            if (work.means != nullptr) sum_xyz = sum_xyz + limit_means(work, row, rows, shown);
            if (work.scales != nullptr) sum_scale = sum_scale + limit_scales(work, row, rows, shown);
        }
        *xyz += sum(sum_xyz);
        *scale += sum(sum_scale);
    }
}

}  // namespace

extern const BindingKernels binding_kernels;
const BindingKernels binding_kernels = {drawn, limits};

}  // namespace MIEN_ISA
}  // namespace mien

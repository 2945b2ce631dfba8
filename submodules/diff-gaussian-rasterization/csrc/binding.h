// Limits on Gaussians that ride on a mesh, common side: how far from their triangles and how large they may be.
#pragma once

#include <cstdint>

#include "isa.h"

namespace mien {

// N Gaussians in the frames of their triangles, and what their gradients are multiplied with (0 where radii are).
struct BindingLimits {
    const float *means, *scales;  // [N, 3]; null: that limit is not wanted
    const std::int32_t* radii;    // [N] pixels, 0 = not drawn
    float threshold_xyz, threshold_scale;
    float weight_xyz, weight_scale;
    float *g_means, *g_scales;  // [N, 3]; null: not wanted
};

struct BindingKernels {
    std::int64_t (*drawn)(const std::int32_t* radii, std::int64_t count);
    // For rows [first, first + count): sums over the drawn ones of max(|mean| - threshold, 0) and of
    // |max(scale - threshold, 0)|; the gradients of the sums times the weights.
    void (*limits)(const BindingLimits& work, std::int64_t first, std::int64_t count, double* xyz, double* scale);
};

}  // namespace mien

MIEN_DECLARE_KERNELS(BindingKernels, binding_kernels)

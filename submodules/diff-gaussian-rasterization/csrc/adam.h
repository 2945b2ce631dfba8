// Adam kernels, common side.
#pragma once

#include <cstdint>

#include "isa.h"

namespace mien {

// The constants of one step, bias corrections folded in.
struct AdamStep {
    float new1, keep2, new2;        // 1 - beta1, beta2, 1 - beta2: subtracted in float64, not here
    float step_size;                // lr / (1 - beta1^t)
    float inverse_root_correction;  // 1 / sqrt(1 - beta2^t)
    float eps;
};

// One tensor of an optimiser, all arrays of `count` floats.
struct AdamColumn {
    const float* gradient;
    float* parameter;
    float* mean;
    float* mean_square;
    std::int64_t count;
    double lr;
};

struct AdamKernels {
    void (*step)(const AdamStep& constants, std::int64_t count, const float* gradient, float* parameter, float* mean,
                 float* mean_square);
};

}  // namespace mien

MIEN_DECLARE_KERNELS(AdamKernels, adam_kernels)

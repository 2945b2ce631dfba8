// What a machine can do at most: kernels that do nothing but issue vector instructions or move memory.
#pragma once

#include <cstdint>

#include "isa.h"

namespace mien {

struct CalibrateKernels {
    std::int64_t round_lanes;  // floats that one round of `arithmetic` multiplies-and-adds or adds
    float (*arithmetic)(std::int64_t rounds);
    float (*read)(const float* data, std::int64_t count);  // count: a multiple of kCalibrateStep
    void (*update)(float* data, std::int64_t count);       // in place; ones stay ones
};

constexpr std::int64_t kCalibrateStep = 128;

}  // namespace mien

MIEN_DECLARE_KERNELS(CalibrateKernels, calibrate_kernels)

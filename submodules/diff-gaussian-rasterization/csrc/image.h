// Image kernels, common side: what csrc/image.cpp calls and csrc/kernels/image_*.cpp provides per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"

namespace mien {

// One channel of two pictures, row-major, and what the loss multiplies the sums of |image - target| and of ssim with.
struct SsimPlane {
    const float* image;
    const float* target;
    float* gradient;  // null: not wanted
    int height, width;
    float l1_scale, ssim_scale;
};

struct SsimKernels {
    // Floats, aligned to 64 bytes, that `strip` needs to work in; what they hold before does not matter.
    std::size_t (*scratch_size)(int width);
    // For rows [first, last): the sums of |image - target| and of 1 - ssim; and the gradient = l1_scale * sign(image -
    // target) + ssim_scale * d (sum of ssim over the picture) / d image.
    void (*strip)(const SsimPlane& plane, int first, int last, float* scratch, double* l1, double* loss);
};

struct ByteKernels {
    // out = bytes / 255.
    void (*to_float)(const std::uint8_t* bytes, std::int64_t count, float* out);
};

}  // namespace mien

MIEN_DECLARE_KERNELS(SsimKernels, image_ssim_kernels)
MIEN_DECLARE_KERNELS(ByteKernels, image_byte_kernels)

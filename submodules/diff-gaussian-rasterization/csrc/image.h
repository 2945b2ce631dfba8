// Image kernels, common side: what csrc/image.cpp calls and csrc/kernels/image_*.cpp provides per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"

namespace mien {

constexpr int kSsimBlockRows = 32;

// One channel of two pictures, row-major. The derivative planes hold d ssim / d (window mean of image, of image * target, of
// (image - target)^2) at every pixel.
struct SsimPlane {
    const float* image;
    const float* target;
    float* derivatives[3];             // all null if no gradient is wanted
    std::ptrdiff_t derivative_stride;  // floats from row to row, at least the width rounded up to 16
    int height, width;
};

struct SsimKernels {
    // Zeroed floats that `forward` and `backward` need to work in; one buffer may serve many calls with the same width.
    std::size_t (*scratch_size)(int width);
    // For at most kSsimBlockRows rows y in [first, last): sums over the row into row_l1[y], row_ssim[y]; the derivatives
    // unless null.
    void (*forward)(const SsimPlane& plane, int first, int last, float* scratch, double* row_l1, double* row_ssim);
    // gradient = l1_scale * sign(image - target) + ssim_scale * d (sum of ssim) / d image, for rows [first, last).
    void (*backward)(const SsimPlane& plane, int first, int last, float l1_scale, float ssim_scale, float* scratch,
                     float* gradient);
};

struct ByteKernels {
    // rgb [pixels, 3] interleaved -> planes [3, plane_stride], divided by 255.
    void (*to_float)(const std::uint8_t* rgb, std::int64_t pixels, std::int64_t plane_stride, float* planes);
};

}  // namespace mien

MIEN_DECLARE_KERNELS(SsimKernels, image_ssim_kernels)
MIEN_DECLARE_KERNELS(ByteKernels, image_byte_kernels)

// 8-bit pictures to float planes.
#include "image.h"

namespace mien {
namespace MIEN_ISA {
namespace {

void to_float(const std::uint8_t* rgb, std::int64_t pixels, std::int64_t plane_stride, float* planes) {
    float* __restrict red = planes;
    float* __restrict green = planes + plane_stride;
    float* __restrict blue = planes + 2 * plane_stride;
    // A true division: x * (1 / 255) is off by one unit in the last place for some x.
    for (std::int64_t i = 0; i < pixels; ++i) {
        red[i] = static_cast<float>(rgb[3 * i]) / 255.0f;
        green[i] = static_cast<float>(rgb[3 * i + 1]) / 255.0f;
        blue[i] = static_cast<float>(rgb[3 * i + 2]) / 255.0f;
    }
}

}  // namespace

extern const ByteKernels image_byte_kernels;
const ByteKernels image_byte_kernels = {to_float};

}  // namespace MIEN_ISA
}  // namespace mien

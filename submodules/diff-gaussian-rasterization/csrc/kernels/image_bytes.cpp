// 8-bit pictures to floats.
#include "image.h"

#include "core/ops.h"

namespace mien {
namespace MIEN_ISA {
namespace {

void to_float(const std::uint8_t* __restrict bytes, std::int64_t count, float* __restrict out) {
    for (std::int64_t i = 0; i < count; ++i) {
        const float x = static_cast<float>(bytes[i]);
#if defined(__aarch64__) || defined(__FMA__)
        // x * (1 / 255) is off by one unit in the last place for some x; one correction makes it the true quotient.
        const float quotient = x * (1.0f / 255.0f);
        out[i] = fma(fnma(quotient, 255.0f, x), 1.0f / 255.0f, quotient);
#else
        out[i] = x / 255.0f;
#endif
    }
}

}  // namespace

extern const ByteKernels image_byte_kernels;
const ByteKernels image_byte_kernels = {to_float};

}  // namespace MIEN_ISA
}  // namespace mien

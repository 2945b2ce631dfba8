// Adam (Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015), one pass over memory.
#include "adam.h"

namespace mien {
namespace MIEN_ISA {
namespace {

void step(const AdamStep& constants, std::int64_t count, const float* __restrict gradient, float* __restrict parameter,
          float* __restrict mean, float* __restrict mean_square) {
    const AdamStep c = constants;
    for (std::int64_t i = 0; i < count; ++i) {
        const float g = gradient[i];
        const float m = mean[i] + c.new1 * (g - mean[i]);
        const float v = c.keep2 * mean_square[i] + c.new2 * (g * g);
        mean[i] = m;
        mean_square[i] = v;
        parameter[i] -= c.step_size * (m / (__builtin_sqrtf(v) * c.inverse_root_correction + c.eps));
    }
}

}  // namespace

extern const AdamKernels adam_kernels;
const AdamKernels adam_kernels = {step};

}  // namespace MIEN_ISA
}  // namespace mien

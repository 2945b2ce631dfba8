// Adam in one pass over memory.
#include "adam.h"

#include "core/adam_update.h"

namespace mien {
namespace MIEN_ISA {
namespace {

void step(const AdamStep& constants, std::int64_t count, const float* __restrict gradient, float* __restrict parameter,
          float* __restrict mean, float* __restrict mean_square) {
    const AdamStep c = constants;
    for (std::int64_t i = 0; i < count; ++i) adam_update(c, gradient[i], parameter[i], mean[i], mean_square[i]);
}

}  // namespace

extern const AdamKernels adam_kernels;
const AdamKernels adam_kernels = {step};

}  // namespace MIEN_ISA
}  // namespace mien

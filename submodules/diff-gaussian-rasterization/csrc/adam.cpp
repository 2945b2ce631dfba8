// Fused Adam: the C function.
#include "adam.h"

#include <algorithm>
#include <cmath>

#include "api.h"
#include "parallel.h"

namespace {
constexpr std::int64_t kBlock = 1 << 14;
}

// One step, number `step` counted from 1, in place on `count` floats of parameter, mean and mean_square.
MIEN_API int mien_adam_step(const float* gradient, int64_t count, double lr, double beta1, double beta2, double eps,
                            int64_t step, int threads, float* parameter, float* mean, float* mean_square) {
    return mien::guarded([&] {
        mien::require(step >= 1, "adam_step: step counts from 1");
        const mien::AdamStep constants{
            static_cast<float>(1.0 - beta1),
            static_cast<float>(beta2),
            static_cast<float>(1.0 - beta2),
            static_cast<float>(lr / (1.0 - std::pow(beta1, step))),
            static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(beta2, step))),
            static_cast<float>(eps)};
        mien::parallel_for(threads, (count + kBlock - 1) / kBlock, [&](std::int64_t block, int) {
            const std::int64_t first = block * kBlock;
            MIEN_KERNELS(adam_kernels)
                .step(constants, std::min(kBlock, count - first), gradient + first, parameter + first, mean + first,
                      mean_square + first);
        });
    });
}

// One step of Adam (Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015) on one number.
#pragma once

#include "adam.h"
#include "core/ops.h"

namespace mien {
namespace MIEN_ISA {

// Of step `count`, from 1.
MIEN_HD inline AdamStep adam_constants(double lr, double beta1, double beta2, double eps, double count) {
    return {static_cast<float>(1.0 - beta1),
            static_cast<float>(beta2),
            static_cast<float>(1.0 - beta2),
            static_cast<float>(lr / (1.0 - std::pow(beta1, count))),
            static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(beta2, count))),
            static_cast<float>(eps)};
}

// Changes the parameter and its moments.
MIEN_HD inline void adam_update(const AdamStep& c, float gradient, float& parameter, float& mean, float& mean_square) {
    const float m = fma(c.new1, gradient - mean, mean);
    const float v = fma(c.keep2, mean_square, c.new2 * (gradient * gradient));
    mean = m;
    mean_square = v;
    parameter = fnma(c.step_size, m / fma(sqrt(v), c.inverse_root_correction, c.eps), parameter);
}

}  // namespace MIEN_ISA
}  // namespace mien

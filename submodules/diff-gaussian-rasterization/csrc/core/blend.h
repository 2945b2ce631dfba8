// One splat at one pixel: opacity there, front-to-back compositing, and the derivative, also front to back.
//
// The exponent is kept in base 2 with log2(opacity) folded in: alpha = 2^(log2 o - (a dx^2 + b dx dy + c dy^2)), where
// the scaled conic (a, b, c) = log2(e) (A/2, B, C/2). Backward carries two numbers per pixel: the transmittance T and
// s, what is still to come of <output, dL/doutput>; then dL/dalpha = T v - s / (1 - alpha), v the splat's own share.
// Nothing is divided by T, nothing is stored per splat.
#pragma once

#include "core/ops.h"

namespace mien {
namespace MIEN_ISA {

constexpr double kLog2e = 1.4426950408889634;
constexpr double kLog2AlphaMin = -7.994353436858858;  // log2(1/255): fainter splats are skipped

template <class T>
MIEN_HD inline T exponent(T dx, T dy, T a, T b, T c, T log2_opacity) {
    const T inner = fma(b, dy, a * dx);
    return fnma(inner, dx, fnma(c * dy, dy, log2_opacity));  // two short chains, not a long one
}

}  // namespace MIEN_ISA
}  // namespace mien

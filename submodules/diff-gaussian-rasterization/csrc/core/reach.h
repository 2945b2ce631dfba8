// Does a splat reach a rectangle of pixels?
#pragma once

#include "core/blend.h"

namespace mien {
namespace MIEN_ISA {

// By how much the exponent of core/blend.h may drop from its largest value, log2(opacity), before the splat is too
// faint to be blended. A little slack: blending decides pixel by pixel.
template <class T>
MIEN_HD inline T reach_of(T log2_opacity) {
    return log2_opacity - T(static_cast<float>(kLog2AlphaMin)) + T(4e-3f);
}

// Of a rectangle of pixels whose first pixel centre lies at (x, y) from the mean and whose last one `side_x` and
// `side_y` further on: is the exponent's drop at most `reach` anywhere between those centres? The minimum of a convex
// form over a rectangle that does not hold the centre lies on an edge that faces the centre: at most one vertical, one
// horizontal. `slope_x`, `slope_y`: where along a horizontal, or vertical, line the form is smallest (SplatRecord).
template <class T>
MIEN_HD inline auto reaches_rectangle(T x, T y, T side_x, T side_y, T a, T b, T c, T slope_x, T slope_y, T reach) {
    const T zero(0.0f);
    const T x1 = x + side_x, y1 = y + side_y;
    const T px = max(x, min(x1, zero)), py = max(y, min(y1, zero));
    const T qy = min(max(slope_y * px, y), y1), qx = min(max(slope_x * py, x), x1);
    const T on_vertical = fma(fma(c, qy, b * px), qy, a * px * px);
    const T on_horizontal = fma(fma(a, qx, b * py), qx, c * py * py);
    return min(on_vertical, on_horizontal) <= reach;
}

}  // namespace MIEN_ISA
}  // namespace mien

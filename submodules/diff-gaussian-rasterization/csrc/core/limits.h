// How far a value is above a threshold, and how long a vector is: for limits on Gaussians that ride on a mesh.
#pragma once

#include "core/ops.h"

namespace mien {
namespace MIEN_ISA {

// What is above the threshold, 0 below; NaN stays.
template <class T>
MIEN_HD inline T excess(T value, T threshold) {
    const T above = value - threshold;
    return select(above <= T(0.0f), T(0.0f), above);
}

template <class T>
MIEN_HD inline T length(const T* v) {
    return sqrt(fma(v[0], v[0], fma(v[1], v[1], v[2] * v[2])));
}

}  // namespace MIEN_ISA
}  // namespace mien

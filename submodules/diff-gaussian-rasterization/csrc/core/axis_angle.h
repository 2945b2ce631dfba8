// Axis-angle vector -> rotation matrix (Rodrigues) and its derivative, for float and double.
#pragma once

#include "core/ops.h"

namespace mien {
namespace MIEN_ISA {

template <class T>
MIEN_HD inline Mat3<T> outer(const Vec3<T>& a, const Vec3<T>& b) {
    return {{a.x * b, a.y * b, a.z * b}};
}

// sin(x) / x, 1 at 0.
template <class T>
MIEN_HD inline T sinc(T x) {
    return x == T(0) ? T(1) : std::sin(x) / x;
}

// R = c I + a K + b p p^T with t = |p|, K = [p]x, c = cos t, a = sin t / t, b = (1 - cos t) / t^2.
template <class T>
struct AxisAngle {
    Vec3<T> p;
    T squared, c, a, b;

    MIEN_HD explicit AxisAngle(const Vec3<T>& vector) : p(vector), squared(dot(vector, vector)) {
        const T angle = std::sqrt(squared), half = sinc(T(0.5) * angle);
        c = std::cos(angle);
        a = sinc(angle);
        b = T(0.5) * half * half;  // 1 - cos t = 2 sin^2(t / 2), without cancellation
    }

    MIEN_HD Mat3<T> matrix() const {
        const Vec3<T> k = a * p;
        Mat3<T> m = outer(b * p, p);
        m.row[0] = m.row[0] + Vec3<T>{c, -k.z, k.y};
        m.row[1] = m.row[1] + Vec3<T>{k.z, c, -k.x};
        m.row[2] = m.row[2] + Vec3<T>{-k.y, k.x, c};
        return m;
    }

    // dL/dp from g = dL/dR. With s = t^2: dc/ds = -a / 2, da/ds = (c - a) / 2s, db/ds = (a / 2 - b) / s. The last two
    // cancel for a small angle, but they are multiplied by s, so that what rounding leaves of them does not matter.
    MIEN_HD Vec3<T> vjp(const Mat3<T>& g) const {
        const Vec3<T>* r = g.row;
        const Vec3<T> axial = {r[2].y - r[1].z, r[0].z - r[2].x, r[1].x - r[0].y};  // d <g, K> / dp
        const Vec3<T> along = g * p + transposed_times(g, p);                       // d <g, p p^T> / dp
        const T trace = r[0].x + r[1].y + r[2].z;
        const T slopes = (c - a) * dot(axial, p) + (T(0.5) * a - b) * dot(along, p);
        const T by_square = slopes / max(squared, T(1e-12)) - a * trace;  // 2 dL/ds
        return a * axial + b * along + by_square * p;
    }
};

}  // namespace MIEN_ISA
}  // namespace mien

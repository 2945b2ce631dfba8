// The 2D covariance of a projected Gaussian, its inverse (the conic) and its extent.
#pragma once

#include "core/ops.h"

namespace mien {
namespace MIEN_ISA {

template <class T>
struct Sym2 {
    T xx, xy, yy;
};  // as a gradient, xy stands for both off-diagonal entries
template <class T>
struct Sym3 {
    T xx, xy, xz, yy, yz, zz;
};  // likewise

// rows (2x3) times M M^T times rows^T
template <class T>
MIEN_HD inline Sym2<T> covariance_2d(const Vec3<T>& row0, const Vec3<T>& row1, const Mat3<T>& m) {
    const Vec3<T> a = transposed_times(m, row0), b = transposed_times(m, row1);
    return {dot(a, a), dot(a, b), dot(b, b)};
}

template <class T>
MIEN_HD inline void covariance_2d_vjp(const Vec3<T>& row0, const Vec3<T>& row1, const Mat3<T>& m, const Sym2<T>& g,
                                      Vec3<T>& g_row0, Vec3<T>& g_row1, Mat3<T>& g_m) {
    const T two = T(2.0f);
    const Vec3<T> a = transposed_times(m, row0), b = transposed_times(m, row1);
    const Vec3<T> g_a = (two * g.xx) * a + g.xy * b, g_b = g.xy * a + (two * g.yy) * b;
    g_row0 = m * g_a;
    g_row1 = m * g_b;
    g_m.row[0] = row0.x * g_a + row1.x * g_b;
    g_m.row[1] = row0.y * g_a + row1.y * g_b;
    g_m.row[2] = row0.z * g_a + row1.z * g_b;
}

template <class T>
MIEN_HD inline Vec3<T> operator*(const Sym3<T>& s, const Vec3<T>& v) {
    return {s.xx * v.x + s.xy * v.y + s.xz * v.z, s.xy * v.x + s.yy * v.y + s.yz * v.z,
            s.xz * v.x + s.yz * v.y + s.zz * v.z};
}

// rows times S times rows^T
template <class T>
MIEN_HD inline Sym2<T> covariance_2d(const Vec3<T>& row0, const Vec3<T>& row1, const Sym3<T>& s) {
    const Vec3<T> a = s * row0, b = s * row1;
    return {dot(row0, a), dot(row0, b), dot(row1, b)};
}

template <class T>
MIEN_HD inline void covariance_2d_vjp(const Vec3<T>& row0, const Vec3<T>& row1, const Sym3<T>& s, const Sym2<T>& g,
                                      Vec3<T>& g_row0, Vec3<T>& g_row1, Sym3<T>& g_s) {
    const T two = T(2.0f);
    const Vec3<T> a = s * row0, b = s * row1;
    g_row0 = (two * g.xx) * a + g.xy * b;
    g_row1 = g.xy * a + (two * g.yy) * b;
    const Vec3<T> p = g.xx * row0 + g.xy * row1,
                  q = g.yy * row1;  // dL/dS = row0 p^T + row1 q^T, summed over both triangles
    g_s = {row0.x * p.x + row1.x * q.x,
           row0.x * p.y + row0.y * p.x + row1.x * q.y + row1.y * q.x,
           row0.x * p.z + row0.z * p.x + row1.x * q.z + row1.z * q.x,
           row0.y * p.y + row1.y * q.y,
           row0.y * p.z + row0.z * p.y + row1.y * q.z + row1.z * q.y,
           row0.z * p.z + row1.z * q.z};
}

template <class T>
struct Conic {
    Sym2<T> inverse;    // of the low-pass filtered covariance
    Sym2<T> filtered;   // covariance + eps I
    T determinant;      // of `filtered`
    T raw_determinant;  // before the filter
};

template <class T>
MIEN_HD inline Conic<T> make_conic(const Sym2<T>& covariance, T eps) {
    Conic<T> c;
    c.filtered = {covariance.xx + eps, covariance.xy, covariance.yy + eps};
    c.raw_determinant = max(covariance.xx * covariance.yy - covariance.xy * covariance.xy, T(0.0f));
    c.determinant = c.filtered.xx * c.filtered.yy - c.filtered.xy * c.filtered.xy;
    const T inverse = T(1.0f) / c.determinant;
    c.inverse = {c.filtered.yy * inverse, T(0.0f) - c.filtered.xy * inverse, c.filtered.xx * inverse};
    return c;
}

// dL/dcovariance from g = dL/d(conic.inverse): -C G C.
template <class T>
MIEN_HD inline Sym2<T> make_conic_vjp(const Conic<T>& conic, const Sym2<T>& g) {
    const Sym2<T>& c = conic.inverse;
    const T half = T(0.5f), zero = T(0.0f);
    const T m00 = g.xx * c.xx + half * g.xy * c.xy, m01 = g.xx * c.xy + half * g.xy * c.yy;
    const T m10 = half * g.xy * c.xx + g.yy * c.xy, m11 = half * g.xy * c.xy + g.yy * c.yy;
    return {zero - (c.xx * m00 + c.xy * m10), T(-2.0f) * (c.xx * m01 + c.xy * m11), zero - (c.xy * m01 + c.yy * m11)};
}

// Opacity factor that keeps a thin Gaussian's energy under the low-pass filter ("antialiased", Yu et al.,
// Mip-Splatting, 2024).
template <class T>
MIEN_HD inline T compensation(const Conic<T>& c) {
    return sqrt(max(c.raw_determinant / c.determinant, T(2.5e-5f)));
}

template <class T>
MIEN_HD inline Sym2<T> compensation_vjp(const Sym2<T>& covariance, const Conic<T>& c, T g) {
    const T inverse = T(1.0f) / c.determinant, ratio = c.raw_determinant * inverse, zero = T(0.0f);
    const T k = select(ratio > T(2.5e-5f), g * T(0.5f) / compensation(c) * inverse, zero);
    return {k * (covariance.yy - ratio * c.filtered.yy), T(-2.0f) * k * (covariance.xy - ratio * c.filtered.xy),
            k * (covariance.xx - ratio * c.filtered.xx)};
}

}  // namespace MIEN_ISA
}  // namespace mien

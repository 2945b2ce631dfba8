// Real spherical harmonics up to degree 3, in the order and with the signs that 3D Gaussian splatting files use
// (index l^2 + l + m, Condon-Shortley phase included), and their derivative towards the direction.
#pragma once

#include "core/ops.h"

namespace mien {
namespace MIEN_ISA {

constexpr double kSh0 = 0.28209479177387814, kSh1 = 0.4886025119029199;
constexpr double kSh2a = 1.0925484305920792, kSh2b = 0.31539156525252005, kSh2c = 0.5462742152960396;
constexpr double kSh3a = 0.5900435899266435, kSh3b = 2.890611442640554, kSh3c = 0.4570457994644658;
constexpr double kSh3d = 0.3731763325901154, kSh3e = 1.445305721320277;

MIEN_HD constexpr int sh_count(int degree) { return (degree + 1) * (degree + 1); }

// basis[0 .. (degree + 1)^2) at the unit direction d
template <int degree, class T>
MIEN_HD inline void sh_basis(const Vec3<T>& d, T* basis) {
    const T x = d.x, y = d.y, z = d.z;
    basis[0] = T(kSh0);
    if constexpr (degree > 0) {
        basis[1] = T(-kSh1) * y;
        basis[2] = T(kSh1) * z;
        basis[3] = T(-kSh1) * x;
    }
    if constexpr (degree > 1) {
        basis[4] = T(kSh2a) * x * y;
        basis[5] = T(-kSh2a) * y * z;
        basis[6] = T(kSh2b) * (T(2.0f) * z * z - x * x - y * y);
        basis[7] = T(-kSh2a) * x * z;
        basis[8] = T(kSh2c) * (x * x - y * y);
    }
    if constexpr (degree > 2) {
        const T xx = x * x, yy = y * y, zz = z * z;
        basis[9] = T(-kSh3a) * y * (T(3.0f) * xx - yy);
        basis[10] = T(kSh3b) * x * y * z;
        basis[11] = T(-kSh3c) * y * (T(4.0f) * zz - xx - yy);
        basis[12] = T(kSh3d) * z * (T(2.0f) * zz - T(3.0f) * xx - T(3.0f) * yy);
        basis[13] = T(-kSh3c) * x * (T(4.0f) * zz - xx - yy);
        basis[14] = T(kSh3e) * z * (xx - yy);
        basis[15] = T(-kSh3a) * x * (xx - T(3.0f) * yy);
    }
}

// sum_k w[k] * (gradient of basis[k] towards d)
template <int degree, class T>
MIEN_HD inline Vec3<T> sh_basis_vjp(const Vec3<T>& d, const T* w) {
    const T x = d.x, y = d.y, z = d.z, zero = T(0.0f);
    Vec3<T> g = {zero, zero, zero};
    if constexpr (degree > 0) g = {T(-kSh1) * w[3], T(-kSh1) * w[1], T(kSh1) * w[2]};
    if constexpr (degree > 1) {
        const T two = T(2.0f);
        const T w4 = T(kSh2a) * w[4], w5 = T(-kSh2a) * w[5], w6 = T(kSh2b) * w[6], w7 = T(-kSh2a) * w[7],
                w8 = T(kSh2c) * w[8];
        g.x += w4 * y - two * w6 * x + w7 * z + two * w8 * x;
        g.y += w4 * x + w5 * z - two * w6 * y - two * w8 * y;
        g.z += w5 * y + T(4.0f) * w6 * z + w7 * x;
    }
    if constexpr (degree > 2) {
        const T xx = x * x, yy = y * y, zz = z * z, two = T(2.0f), three = T(3.0f), six = T(6.0f), eight = T(8.0f);
        const T w9 = T(-kSh3a) * w[9], w10 = T(kSh3b) * w[10], w11 = T(-kSh3c) * w[11], w12 = T(kSh3d) * w[12];
        const T w13 = T(-kSh3c) * w[13], w14 = T(kSh3e) * w[14], w15 = T(-kSh3a) * w[15];
        g.x += w9 * six * x * y + w10 * y * z - w11 * two * x * y - w12 * six * x * z +
               w13 * (T(4.0f) * zz - three * xx - yy) + w14 * two * x * z + w15 * three * (xx - yy);
        g.y += w9 * three * (xx - yy) + w10 * x * z + w11 * (T(4.0f) * zz - xx - three * yy) - w12 * six * y * z -
               w13 * two * x * y - w14 * two * y * z - w15 * six * x * y;
        g.z += w10 * x * y + w11 * eight * y * z + w12 * (six * zz - three * xx - three * yy) + w13 * eight * x * z +
               w14 * (xx - yy);
    }
    return g;
}

// Unit vector from `from` to `to`, and 1 / distance (0 where the two coincide: the direction is then zero).
template <class T>
MIEN_HD inline Vec3<T> direction(const Vec3<T>& from, const Vec3<T>& to, T& inverse_length) {
    const Vec3<T> v = to - from;
    const T squared = dot(v, v);
    inverse_length = select(squared > T(0.0f), T(1.0f) / sqrt(squared), T(0.0f));
    return inverse_length * v;
}

// Derivative of the unit vector towards `to`.
template <class T>
MIEN_HD inline Vec3<T> direction_vjp(const Vec3<T>& d, T inverse_length, const Vec3<T>& g) {
    return inverse_length * (g - dot(d, g) * d);
}

// A splat's colour before its clamp at zero, where sh(k, c) is coefficient k of channel c.
template <int degree, class T, class Coefficients>
MIEN_HD inline void sh_values(const T* basis, const Coefficients& sh, T* values) {
    for (int c = 0; c < 3; ++c) {
        values[c] = T(0.5f);
        for (int k = 0; k < sh_count(degree); ++k) values[c] = fma(basis[k], sh(k, c), values[c]);
    }
}

// The colour of a splat at `mean`, seen from `centre`.
template <int degree, class T, class Coefficients>
MIEN_HD inline void sh_colour(const Vec3<T>& centre, const Vec3<T>& mean, const Coefficients& sh, T* rgb) {
    T basis[sh_count(degree)], inverse;
    sh_basis<degree>(direction(centre, mean, inverse), basis);
    sh_values<degree>(basis, sh, rgb);
    for (int c = 0; c < 3; ++c) rgb[c] = max(rgb[c], T(0.0f));
}

// From g = dL/dcolour: the gradient of coefficient k of channel c is basis[k] * live[c]. Adds what the direction does
// to the gradients of the mean and the centre.
template <int degree, class T, class Coefficients>
MIEN_HD inline void sh_colour_vjp(const Vec3<T>& centre, const Vec3<T>& mean, const Coefficients& sh, const T* g,
                                  T* basis, T* live, Vec3<T>& g_mean, Vec3<T>& g_centre) {
    T inverse, values[3];
    const Vec3<T> d = direction(centre, mean, inverse);
    sh_basis<degree>(d, basis);
    sh_values<degree>(basis, sh, values);
    for (int c = 0; c < 3; ++c) live[c] = keep(values[c] > T(0.0f), g[c]);
    if constexpr (degree > 0) {
        T weight[sh_count(degree)];
        for (int k = 0; k < sh_count(degree); ++k)
            weight[k] = sh(k, 0) * live[0] + sh(k, 1) * live[1] + sh(k, 2) * live[2];
        const Vec3<T> towards = direction_vjp(d, inverse, sh_basis_vjp<degree>(d, weight));
        g_mean = g_mean + towards;
        g_centre = g_centre - towards;
    }
}

}  // namespace MIEN_ISA
}  // namespace mien

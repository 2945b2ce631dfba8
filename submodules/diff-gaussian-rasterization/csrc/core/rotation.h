// Quaternion (w, x, y, z) -> rotation matrix, and the square root R diag(s) of a Gaussian's covariance.
#pragma once

#include "core/ops.h"

namespace mien {
namespace MIEN_ISA {

template <class T>
struct Quat {
    T w, x, y, z;
};

template <class T>
MIEN_HD inline Quat<T> operator+(const Quat<T>& p, const Quat<T>& q) {
    return {p.w + q.w, p.x + q.x, p.y + q.y, p.z + q.z};
}
template <class T>
MIEN_HD inline Quat<T> operator*(T s, const Quat<T>& q) {
    return {s * q.w, s * q.x, s * q.y, s * q.z};
}

template <class T>
MIEN_HD inline Quat<T> conjugate(const Quat<T>& q) {
    return {q.w, -q.x, -q.y, -q.z};
}

// Hamilton product: the rotation that applies q first, then p.
template <class T>
MIEN_HD inline Quat<T> operator*(const Quat<T>& p, const Quat<T>& q) {
    return {p.w * q.w - p.x * q.x - p.y * q.y - p.z * q.z, p.w * q.x + p.x * q.w + p.y * q.z - p.z * q.y,
            p.w * q.y - p.x * q.z + p.y * q.w + p.z * q.x, p.w * q.z + p.x * q.y - p.y * q.x + p.z * q.w};
}

// 1 / |q|; a zero quaternion counts as the identity rotation, as in torch.nn.functional.normalize.
template <class T>
MIEN_HD inline T inverse_length(const Quat<T>& q) {
    return T(1.0f) / sqrt(max(q.w * q.w + q.x * q.x + q.y * q.y + q.z * q.z, T(1e-24f)));
}

// Rotation matrix of a quaternion that is taken to have unit length.
template <class T>
MIEN_HD inline Mat3<T> rotation_matrix(const Quat<T>& q) {
    const T one = T(1.0f), two = T(2.0f);
    const T xx = q.x * q.x, yy = q.y * q.y, zz = q.z * q.z, xy = q.x * q.y, xz = q.x * q.z, yz = q.y * q.z;
    const T wx = q.w * q.x, wy = q.w * q.y, wz = q.w * q.z;
    return {{{one - two * (yy + zz), two * (xy - wz), two * (xz + wy)},
             {two * (xy + wz), one - two * (xx + zz), two * (yz - wx)},
             {two * (xz - wy), two * (yz + wx), one - two * (xx + yy)}}};
}

template <class T>
MIEN_HD inline Quat<T> rotation_matrix_vjp(const Quat<T>& q, const Mat3<T>& g) {
    const T two = T(2.0f), four = T(4.0f);
    const Vec3<T>* r = g.row;
    const T a = r[2].y - r[1].z, b = r[0].z - r[2].x, c = r[1].x - r[0].y;  // antisymmetric part
    const T d = r[1].x + r[0].y, e = r[0].z + r[2].x, f = r[1].z + r[2].y;  // symmetric part
    return {two * (q.x * a + q.y * b + q.z * c), two * (q.w * a + q.y * d + q.z * e) - four * q.x * (r[1].y + r[2].z),
            two * (q.w * b + q.x * d + q.z * f) - four * q.y * (r[0].x + r[2].z),
            two * (q.w * c + q.x * e + q.y * f) - four * q.z * (r[0].x + r[1].y)};
}

// Derivative of u = q / |q| towards q, given g = dL/du and inverse = 1 / |q|.
template <class T>
MIEN_HD inline Quat<T> normalise_vjp(const Quat<T>& u, T inverse, const Quat<T>& g) {
    const T along = u.w * g.w + u.x * g.x + u.y * g.y + u.z * g.z;
    return {inverse * (g.w - along * u.w), inverse * (g.x - along * u.x), inverse * (g.y - along * u.y),
            inverse * (g.z - along * u.z)};
}

// M = R diag(s): the covariance is M M^T.
template <class T>
MIEN_HD inline Mat3<T> scale_columns(const Mat3<T>& r, const Vec3<T>& s) {
    Mat3<T> m;
    for (int i = 0; i < 3; ++i) m.row[i] = {r.row[i].x * s.x, r.row[i].y * s.y, r.row[i].z * s.z};
    return m;
}

}  // namespace MIEN_ISA
}  // namespace mien

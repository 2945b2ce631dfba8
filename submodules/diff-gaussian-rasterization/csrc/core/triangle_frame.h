// The frame of a triangle (GaussianAvatars, CVPR 2024, section 3.2) and its derivative; the formulas and their
// derivation stand in utils/maths/triangle_frames.py of the avatar code:
//     a0 = unit(v1 - v0), a1 = unit(a0 x (v2 - v0)), a2 = a0 x a1, R = [a0 a1 a2], T = mean of the corners,
//     k = (base + height) / 2 with base = |v1 - v0|, height = |a0 x (v2 - v0)|
#pragma once

#include "core/rotation.h"

namespace mien {
namespace MIEN_ISA {

constexpr float kTinyLength = 1e-20f;  // lower bound of lengths that are divided by

template <class T>
struct TriangleFrame {
    Vec3<T> a0, a1;
    Quat<T> quat;  // of R, unit
    Vec3<T> centre;
    T base, height, along;  // along = a0 . (v2 - v0)
};
constexpr int kFrameFloats = 16;

// A frame as it lies in memory.
template <class T>
MIEN_HD inline TriangleFrame<T> frame_of(const T* c) {
    return {
        {c[0], c[1], c[2]}, {c[3], c[4], c[5]}, {c[6], c[7], c[8], c[9]}, {c[10], c[11], c[12]}, c[13], c[14], c[15]};
}
template <class T>
MIEN_HD inline void frame_columns(const TriangleFrame<T>& f, T* c) {
    c[0] = f.a0.x, c[1] = f.a0.y, c[2] = f.a0.z, c[3] = f.a1.x, c[4] = f.a1.y, c[5] = f.a1.z;
    c[6] = f.quat.w, c[7] = f.quat.x, c[8] = f.quat.y, c[9] = f.quat.z;
    c[10] = f.centre.x, c[11] = f.centre.y, c[12] = f.centre.z, c[13] = f.base, c[14] = f.height, c[15] = f.along;
}

template <class T>
MIEN_HD inline T scale_of(const TriangleFrame<T>& f) {
    return T(0.5f) * (f.base + f.height);
}

template <class T>
MIEN_HD inline T length(const Vec3<T>& v) {
    return max(T(kTinyLength), sqrt(dot(v, v)));
}

// The quaternion of the rotation with columns a, b, c, by the branch whose divisor is largest (Shepperd 1978; branches
// by Mike Day, "Converting a Rotation Matrix to a Quaternion").
template <class T>
MIEN_HD inline Quat<T> quaternion_of(const Vec3<T>& a, const Vec3<T>& b, const Vec3<T>& c) {
    const T one(1.0f), zero(0.0f);
    const T x = b.z - c.y, y = c.x - a.z, z = a.y - b.x, xy = b.x + a.y, xz = c.x + a.z, yz = c.y + b.z;
    const T total = a.x + b.y, difference = a.x - b.y, up = one + c.z, down = one - c.z;
    const auto back = c.z<zero, more_x = difference> zero, turned = total < zero;
    const auto pick = [&](T in_x, T in_y, T in_z, T in_w) {
        return select(back, select(more_x, in_x, in_y), select(turned, in_z, in_w));
    };
    const Quat<T> q = {pick(x, y, z, up + total), pick(down + difference, xy, xz, x),
                       pick(xy, down - difference, yz, y), pick(xz, yz, up - total, z)};
    const T size = max(T(kTinyLength), sqrt(q.w * q.w + q.x * q.x + q.y * q.y + q.z * q.z));
    return {q.w / size, q.x / size, q.y / size, q.z / size};
}

template <class T>
MIEN_HD inline TriangleFrame<T> triangle_frame(const Vec3<T>& v0, const Vec3<T>& v1, const Vec3<T>& v2) {
    TriangleFrame<T> f;
    const Vec3<T> e1 = v1 - v0, e2 = v2 - v0;
    f.base = length(e1);
    f.a0 = {e1.x / f.base, e1.y / f.base, e1.z / f.base};
    const Vec3<T> normal = cross(f.a0, e2);
    f.height = length(normal);
    f.a1 = {normal.x / f.height, normal.y / f.height, normal.z / f.height};
    f.quat = quaternion_of(f.a0, f.a1, cross(f.a0, f.a1));
    f.centre = T(1.0f / 3.0f) * (v0 + v1 + v2);
    f.along = dot(f.a0, e2);
    return f;
}

// What moves a frame: a turn about its own axes, a shift of its centre, and its scale.
template <class T>
struct FrameGradient {
    Vec3<T> torque;  // d loss = torque . omega, where d a_i = omega x a_i, in the frame's own axes
    Vec3<T> centre;
    T scale;
};
constexpr int kFrameGradientFloats = 8;

// It, too, as it lies in memory.
template <class T>
MIEN_HD inline FrameGradient<T> frame_gradient_of(const T* c) {
    return {{c[0], c[1], c[2]}, {c[3], c[4], c[5]}, c[6]};
}
template <class T>
MIEN_HD inline void frame_gradient_columns(const FrameGradient<T>& g, T* c) {
    c[0] = g.torque.x, c[1] = g.torque.y, c[2] = g.torque.z;
    c[3] = g.centre.x, c[4] = g.centre.y, c[5] = g.centre.z, c[6] = g.scale, c[7] = T(0.0f);
}

// Gradients of the three corners. A triangle without extent has no direction: its torque goes nowhere.
template <class T>
MIEN_HD inline void triangle_frame_vjp(const TriangleFrame<T>& f, const FrameGradient<T>& g, Vec3<T>* corners) {
    const T zero(0.0f), tiny(kTinyLength);
    const T per_base = select(f.base > tiny, T(1.0f) / f.base, zero);
    const T t0 = g.torque.x * select(f.height > tiny, T(1.0f) / f.height, zero);
    const T slant = f.along * per_base, half_scale = T(0.5f) * g.scale;
    const Vec3<T> a2 = cross(f.a0, f.a1);
    const Vec3<T> g_e1 = half_scale * f.a0 + (g.torque.z * per_base - t0 * slant) * f.a1 +
                         (half_scale * slant - g.torque.y * per_base) * a2;
    const Vec3<T> g_e2 = t0 * f.a1 - half_scale * a2;
    const Vec3<T> third = T(1.0f / 3.0f) * g.centre;
    corners[0] = third - g_e1 - g_e2;
    corners[1] = third + g_e1;
    corners[2] = third + g_e2;
}

}  // namespace MIEN_ISA
}  // namespace mien

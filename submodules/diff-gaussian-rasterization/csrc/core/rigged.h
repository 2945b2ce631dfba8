// A Gaussian in the frame of its triangle -> in the world, and back (GaussianAvatars, CVPR 2024, section 3.2):
//     mean = k R mu + T,  rotation = R r,  scale = k s,  with mu, r, s local, and T, R, k the triangle's frame.
#pragma once

#include "core/rotation.h"
#include "core/triangle_frame.h"

namespace mien {
namespace MIEN_ISA {

template <class T>
struct PosedGaussian {
    Vec3<T> mean, scale;
    Quat<T> quat;  // unit
};

template <class T>
MIEN_HD inline PosedGaussian<T> place(const TriangleFrame<T>& f, const PosedGaussian<T>& local) {
    const T k = scale_of(f);
    const Vec3<T> turned = local.mean.x * f.a0 + local.mean.y * f.a1 + local.mean.z * cross(f.a0, f.a1);
    return {f.centre + k * turned, k * local.scale, f.quat * local.quat};
}

template <class T>
MIEN_HD inline Vec3<T> products(const Vec3<T>& a, const Vec3<T>& b) {
    return {a.x * b.x, a.y * b.y, a.z * b.z};
}

template <class T>
MIEN_HD inline T sigmoid(T x) {
    return T(1.0f) / (T(1.0f) + exp(-x));
}

// What is trained -> the local Gaussian: a quaternion of any length, whose inverse length is returned too, and the
// logarithms of scales.
template <class T>
MIEN_HD inline PosedGaussian<T> activate(const Vec3<T>& mean, const Quat<T>& quat, const Vec3<T>& log_scale,
                                         T& inverse) {
    inverse = inverse_length(quat);
    return {mean, {exp(log_scale.x), exp(log_scale.y), exp(log_scale.z)}, inverse * quat};
}

// And back, from the local Gaussian's gradient.
template <class T>
MIEN_HD inline PosedGaussian<T> activate_vjp(const PosedGaussian<T>& local, T inverse, const PosedGaussian<T>& g) {
    return {g.mean, products(g.scale, local.scale), normalise_vjp(local.quat, inverse, g.quat)};
}

// From the gradients of the Gaussian in the world to those of the local one and of the frame. With mu, r and s in the
// frame's own axes, g_mu = k R^T g_mean and g_r = conj(q) g_quat: a turn omega of the frame moves R mu by omega x R mu
// and q r by q (0, omega) r / 2, so the torque is mu x g_mu + Im(g_r conj(r)) / 2. The quaternion's gradient is that of
// the unit quaternion, before its normalisation.
template <class T>
MIEN_HD inline PosedGaussian<T> place_vjp(const TriangleFrame<T>& f, const PosedGaussian<T>& local,
                                          const PosedGaussian<T>& g, FrameGradient<T>& g_frame) {
    const T k = scale_of(f);
    const Vec3<T> back = {dot(f.a0, g.mean), dot(f.a1, g.mean), dot(cross(f.a0, f.a1), g.mean)};
    const Vec3<T> g_mu = k * back;
    const Quat<T> g_r = conjugate(f.quat) * g.quat, spin = g_r * conjugate(local.quat);
    g_frame.torque = cross(local.mean, g_mu) + T(0.5f) * Vec3<T>{spin.x, spin.y, spin.z};
    g_frame.centre = g.mean;
    g_frame.scale = dot(local.mean, back) + dot(g.scale, local.scale);
    return {g_mu, k * g.scale, g_r};
}

}  // namespace MIEN_ISA
}  // namespace mien

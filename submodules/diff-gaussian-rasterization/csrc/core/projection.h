// A pinhole camera, and the first-order (EWA) projection of a Gaussian through it.
//
// Zwicker et al., "EWA Splatting", 2002: the 2D covariance is J W S W^T J^T, J the Jacobian of the projection at the
// mean. J is evaluated at the mean clamped into a frustum a little wider than the picture, because it explodes outside;
// the clamp is differentiated as it is.
#pragma once

#include "core/ops.h"

namespace mien {
namespace MIEN_ISA {

template <class T>
struct Pinhole {
    Mat3<T> rotation;                // world -> camera
    Vec3<T> translation, centre;     // centre: of the camera, in the world
    T fx, fy, cx, cy;                // pixels
    T x_low, x_high, y_low, y_high;  // clamp of x/z and y/z in J
};

// What a camera's gradient is made of; summed over the Gaussians.
template <class T>
struct PinholeGradient {
    Mat3<T> rotation;
    Vec3<T> translation, centre;
    T fx, fy, cx, cy;
    T x_low, x_high, y_low, y_high;
};
constexpr int kPinholeGradientSize = 23;

template <class T>
struct Projection {
    Vec3<T> point;      // mean in camera space
    T inverse_z, u, v;  // u = x/z, v = y/z
    T u_clamped, v_clamped;
    T x, y;              // pixels
    Vec3<T> row0, row1;  // the two rows of J W
};

template <class T>
MIEN_HD inline Projection<T> project(const Pinhole<T>& camera, const Vec3<T>& mean) {
    Projection<T> p;
    p.point = camera.rotation * mean + camera.translation;
    p.inverse_z = T(1.0f) / p.point.z;
    p.u = p.point.x * p.inverse_z;
    p.v = p.point.y * p.inverse_z;
    p.x = camera.fx * p.u + camera.cx;
    p.y = camera.fy * p.v + camera.cy;
    p.u_clamped = min(max(p.u, camera.x_low), camera.x_high);
    p.v_clamped = min(max(p.v, camera.y_low), camera.y_high);
    const Mat3<T>& w = camera.rotation;
    p.row0 = (camera.fx * p.inverse_z) * (w.row[0] - p.u_clamped * w.row[2]);
    p.row1 = (camera.fy * p.inverse_z) * (w.row[1] - p.v_clamped * w.row[2]);
    return p;
}

template <class T>
struct ProjectionGradient {
    T x, y, z;           // dL/d(pixel x, pixel y, camera z)
    Vec3<T> row0, row1;  // dL/d(rows of J W)
};

// Returns dL/dmean; adds to `camera_gradient` (all but `centre`).
template <class T>
MIEN_HD inline Vec3<T> project_vjp(const Pinhole<T>& camera, const Vec3<T>& mean, const Projection<T>& p,
                                   const ProjectionGradient<T>& g, PinholeGradient<T>& camera_gradient) {
    const Mat3<T>& w = camera.rotation;
    PinholeGradient<T>& c = camera_gradient;
    const T k0 = camera.fx * p.inverse_z, k1 = camera.fy * p.inverse_z, zero = T(0.0f);
    const Vec3<T> g0 = k0 * g.row0, g1 = k1 * g.row1;
    const T g_k0 = dot(g.row0, w.row[0] - p.u_clamped * w.row[2]);
    const T g_k1 = dot(g.row1, w.row[1] - p.v_clamped * w.row[2]);
    const T g_uc = zero - dot(g0, w.row[2]), g_vc = zero - dot(g1, w.row[2]);
    const auto u_low = p.u<camera.x_low, u_high = p.u> camera.x_high,
               v_low = p.v<camera.y_low, v_high = p.v> camera.y_high;
    const T g_u = g.x * camera.fx + select(u_low, zero, select(u_high, zero, g_uc));
    const T g_v = g.y * camera.fy + select(v_low, zero, select(v_high, zero, g_vc));
    const T g_inverse_z = g_k0 * camera.fx + g_k1 * camera.fy + g_u * p.point.x + g_v * p.point.y;
    const Vec3<T> g_point = {g_u * p.inverse_z, g_v * p.inverse_z, g.z - g_inverse_z * p.inverse_z * p.inverse_z};

    c.rotation.row[0] = c.rotation.row[0] + g_point.x * mean + g0;
    c.rotation.row[1] = c.rotation.row[1] + g_point.y * mean + g1;
    c.rotation.row[2] = c.rotation.row[2] + g_point.z * mean - p.u_clamped * g0 - p.v_clamped * g1;
    c.translation = c.translation + g_point;
    c.fx += g_k0 * p.inverse_z + g.x * p.u;
    c.fy += g_k1 * p.inverse_z + g.y * p.v;
    c.cx += g.x;
    c.cy += g.y;
    c.x_low += select(u_low, g_uc, zero);
    c.x_high += select(u_high, g_uc, zero);
    c.y_low += select(v_low, g_vc, zero);
    c.y_high += select(v_high, g_vc, zero);
    return transposed_times(w, g_point);
}

}  // namespace MIEN_ISA
}  // namespace mien

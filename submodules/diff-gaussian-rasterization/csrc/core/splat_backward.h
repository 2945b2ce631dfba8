// A splat's way back: from the sums that blending leaves over its pixels to its columns, frame and camera.
#pragma once

#include "core/splat.h"

namespace mien {
namespace MIEN_ISA {

// Order of the sums of a splat; h is dL/d(ln alpha) of a pixel, d the pixel's offset from the mean.
enum SplatSum { kH, kHx, kHy, kHxx, kHxy, kHyy, kRed, kGreen, kBlue, kDepth, kSplatSums };

// Towards the splat in the world.
template <class T>
struct SplatGradient {
    ProjectionGradient<T> projection;
    T log_opacity;  // of ln(opacity)
    T rgb[3];
    PosedGaussian<T> world;  // the quaternion's, before its normalisation; scale and quat unless a covariance is given
    PinholeGradient<T> camera;
};

// dL/d(2D covariance) before the filter.
template <class T>
MIEN_HD inline Sym2<T> conic_backward(const View& view, const Splat<T>& s, const T* sum) {
    const T half(-0.5f), zero(0.0f);
    const Sym2<T> g_raw = make_conic_vjp(s.conic, Sym2<T>{half * sum[kHxx], zero - sum[kHxy], half * sum[kHyy]});
    if (!view.antialias) return g_raw;
    const Sym2<T> extra = compensation_vjp(s.raw, s.conic, sum[kH] / s.opacity_factor);
    return {g_raw.xx + extra.xx, g_raw.xy + extra.xy, g_raw.yy + extra.yy};
}

// First step: from the sums to the picture, the opacity and the colour; returns dL/d(2D covariance).
template <class T>
MIEN_HD inline Sym2<T> picture_vjp(const View& view, const Splat<T>& s, const T* sum, SplatGradient<T>& g) {
    const Sym2<T>& c = s.conic.inverse;
    g.projection.x = c.xx * sum[kHx] + c.xy * sum[kHy];
    g.projection.y = c.xy * sum[kHx] + c.yy * sum[kHy];
    g.projection.z = sum[kDepth];
    g.log_opacity = sum[kH];
    g.rgb[0] = sum[kRed], g.rgb[1] = sum[kGreen], g.rgb[2] = sum[kBlue];
    return conic_backward(view, s, sum);
}

// Second step: to the rows of J W, and to the shape in the world
template <class T>
MIEN_HD inline void shape_vjp(const Splat<T>& s, const Sym2<T>& g_raw, SplatGradient<T>& g) {
    const Projection<T>& p = s.projection;
    Mat3<T> g_root;
    covariance_2d_vjp(p.row0, p.row1, s.root, g_raw, g.projection.row0, g.projection.row1, g_root);
    const Vec3<T>*r = s.rotation.row, *m = g_root.row;
    g.world.scale = {m[0].x * r[0].x + m[1].x * r[1].x + m[2].x * r[2].x,
                     m[0].y * r[0].y + m[1].y * r[1].y + m[2].y * r[2].y,
                     m[0].z * r[0].z + m[1].z * r[1].z + m[2].z * r[2].z};
    g.world.quat = rotation_matrix_vjp(s.world.quat, scale_columns(g_root, s.world.scale));
}
// or to the covariance, if that is what is given.
template <class T>
MIEN_HD inline void shape_vjp(const Splat<T>& s, const Sym2<T>& g_raw, SplatGradient<T>& g, Sym3<T>& g_covariance) {
    const Projection<T>& p = s.projection;
    covariance_2d_vjp(p.row0, p.row1, s.covariance, g_raw, g.projection.row0, g.projection.row1, g_covariance);
}

// Last step: to the mean and the camera. What the colour adds there is another's business (sh_colour_vjp).
template <class T>
MIEN_HD inline void projection_vjp(const Pinhole<T>& camera, const Splat<T>& s, SplatGradient<T>& g) {
    g.camera = {};
    g.world.mean = project_vjp(camera, s.world.mean, s.projection, g.projection, g.camera);
}

}  // namespace MIEN_ISA
}  // namespace mien

// A splat from its columns to what blending reads: place on the mesh, projection, conic, the tiles it covers, record.
#pragma once

#include "splats.h"

#include "core/blend.h"
#include "core/covariance.h"
#include "core/projection.h"
#include "core/rigged.h"

namespace mien {
namespace MIEN_ISA {

template <class T>
MIEN_HD inline Pinhole<T> pinhole(const View& view) {
    Pinhole<T> p;
    for (int i = 0; i < 3; ++i)
        p.rotation.row[i] = {T(view.rotation[3 * i]), T(view.rotation[3 * i + 1]), T(view.rotation[3 * i + 2])};
    p.translation = {T(view.translation[0]), T(view.translation[1]), T(view.translation[2])};
    p.centre = {T(view.centre[0]), T(view.centre[1]), T(view.centre[2])};
    p.fx = T(view.fx), p.fy = T(view.fy), p.cx = T(view.cx), p.cy = T(view.cy);
    p.x_low = T(view.x_low), p.x_high = T(view.x_high), p.y_low = T(view.y_low), p.y_high = T(view.y_high);
    return p;
}

// Everything between a splat's columns and its record; backward computes it anew.
template <class T>
struct Splat {
    PosedGaussian<T> local;  // on a mesh: in the frame of its triangle
    TriangleFrame<T> frame;  // that frame
    PosedGaussian<T> world;  // the quaternion has unit length if the view normalises, and on a mesh
    T inverse_length;        // of the quaternion as given
    Mat3<T> rotation, root;  // root = rotation * diag(scale)
    Sym3<T> covariance;      // if given instead of quats and scales
    T opacity;
    Projection<T> projection;
    Sym2<T> raw;  // 2D covariance before the low-pass filter
    Conic<T> conic;
    T opacity_factor;  // antialiasing
};

// First step, on a mesh: `frame` is set already.
template <class T>
MIEN_HD inline void place_columns(const Vec3<T>& mean, const Quat<T>& quat, const Vec3<T>& log_scale, T logit,
                                  Splat<T>& s) {
    s.local = activate(mean, quat, log_scale, s.inverse_length);
    s.world = place(s.frame, s.local);
    s.opacity = sigmoid(logit);
}

// First step in the world, unless a covariance is given; mean and opacity are set already.
template <class T>
MIEN_HD inline void take_columns(const View& view, const Quat<T>& quat, const Vec3<T>& scale, Splat<T>& s) {
    s.world.quat = quat;
    s.world.scale = scale;
    if (!view.normalise_quats) return;
    s.inverse_length = inverse_length(s.world.quat);
    s.world.quat = s.inverse_length * s.world.quat;
}

// The rest. `offset` [2] moves the mean on the screen, in half images; null: not.
template <class T>
MIEN_HD inline void project_splat(const View& view, const Pinhole<T>& camera, bool given_covariance, const T* offset,
                                  Splat<T>& s) {
    if (!given_covariance) {
        s.rotation = rotation_matrix(s.world.quat);
        s.root = scale_columns(s.rotation, s.world.scale);
    }
    s.projection = project(camera, s.world.mean);
    if (offset != nullptr) {
        s.projection.x += offset[0] * T(0.5f * view.width);
        s.projection.y += offset[1] * T(0.5f * view.height);
    }
    const Projection<T>& p = s.projection;
    s.raw = given_covariance ? covariance_2d(p.row0, p.row1, s.covariance) : covariance_2d(p.row0, p.row1, s.root);
    s.conic = make_conic(s.raw, T(view.eps2d));
    s.opacity_factor = view.antialias ? compensation(s.conic) : T(1.0f);
}

// log2 of the opacity, far below what is blended if there is none.
template <class T>
MIEN_HD inline T log2_opacity_of(const Splat<T>& s) {
    const T opacity = s.opacity * s.opacity_factor;
    const auto positive = opacity > T(1e-30f);
    return select(positive, log2(max(opacity, T(1e-30f))), T(-100.0f));
}

template <class T>
struct Extent {
    T x0, y0, x1, y1;  // tiles, exclusive end
    T radius;          // 3 sigma of the longer axis, pixels
    decltype(T(0.0f) < T(0.0f)) drawn;
};

// Tiles that hold a pixel centre inside the bounding box of the ellipse alpha = 1/255.
template <class T>
MIEN_HD inline Extent<T> extent(const View& view, const Splat<T>& splat, T log2_opacity) {
    const Projection<T>& p = splat.projection;
    const Sym2<T>& s = splat.conic.filtered;
    const T determinant = splat.conic.determinant;
    const T zero(0.0f), half(0.5f), width(static_cast<float>(view.width)), height(static_cast<float>(view.height));
    const T mid = half * (s.xx + s.yy);
    Extent<T> e;
    e.radius = ceil(T(3.0f) * sqrt(mid + sqrt(max(mid * mid - determinant, T(0.1f)))));
    // 2 ln 2 (log2 o - log2 1/255), with a little slack: blending decides pixel by pixel
    const T reach = max(T(1.3862943611f) * (log2_opacity - T(static_cast<float>(kLog2AlphaMin)) + T(4e-3f)), zero);
    const T rx = sqrt(reach * s.xx), ry = sqrt(reach * s.yy);
    const T px0 = max(ceil(p.x - rx - half), zero), px1 = min(floor(p.x + rx - half) + T(1.0f), width);
    const T py0 = max(ceil(p.y - ry - half), zero), py1 = min(floor(p.y + ry - half) + T(1.0f), height);
    const T inverse_tile(1.0f / kTile);
    e.x0 = floor(px0 * inverse_tile), e.x1 = ceil(px1 * inverse_tile);
    e.y0 = floor(py0 * inverse_tile), e.y1 = ceil(py1 * inverse_tile);
    e.drawn = (px0 < px1) & (py0 < py1) & (determinant > zero) & (reach > zero);
    if (view.square_extent) {
        const T mx = p.x - half, my = p.y - half, r = e.radius, end(kTile - 1.0f);
        const T sx0 = floor((mx - r) * inverse_tile), sx1 = floor((mx + r + end) * inverse_tile);
        const T sy0 = floor((my - r) * inverse_tile), sy1 = floor((my + r + end) * inverse_tile);
        const T tiles_x(static_cast<float>(view.tiles_x)), tiles_y(static_cast<float>(view.tiles_y));
        e.drawn = (sx1 > zero) & (sx0 < tiles_x) & (sy1 > zero) & (sy0 < tiles_y) & (determinant > zero) & (sx0 < sx1) &
                  (sy0 < sy1);
        const auto reached = (px0 < px1) & (py0 < py1) & (reach > zero);
        // What is not reached may lie further away than an integer can say.
        e.x0 = keep(reached, max(e.x0, sx0)), e.y0 = keep(reached, max(e.y0, sy0));
        e.x1 = keep(reached, min(e.x1, sx1)), e.y1 = keep(reached, min(e.y1, sy1));
    }
    e.drawn = e.drawn & (determinant < T(1e36f)) & (p.point.z > T(view.near_plane)) & (p.point.z < T(view.far_plane));
    // Nothing of what is not drawn may meet an integer.
    e.x0 = keep(e.drawn, e.x0), e.y0 = keep(e.drawn, e.y0), e.x1 = keep(e.drawn, e.x1), e.y1 = keep(e.drawn, e.y1);
    e.radius = min(max(keep(e.drawn, e.radius), keep(e.drawn, T(1.0f))), T(1e9f));
    return e;
}

// No tile if a side is empty.
MIEN_HD inline TileRect make_rect(int x0, int y0, int x1, int y1) {
    const bool empty = x1 <= x0 || y1 <= y0;
    const auto u16 = [=](int v) { return static_cast<uint16_t>(empty ? 0 : v); };
    return {u16(x0), u16(y0), u16(x1), u16(y1)};
}

// The fields of SplatRecord, in its order.
constexpr int kRecordFields = 12;
template <class T>
MIEN_HD inline void record_fields(const Splat<T>& s, T log2_opacity, const T* rgb, T* fields) {
    const Sym2<T>& c = s.conic.inverse;
    const T k(0.5f * static_cast<float>(kLog2e)), zero(0.0f);
    fields[0] = s.projection.x;
    fields[1] = s.projection.y;
    fields[2] = k * c.xx;
    fields[3] = T(static_cast<float>(kLog2e)) * c.xy;
    fields[4] = k * c.yy;
    fields[5] = log2_opacity;
    fields[6] = rgb[0];
    fields[7] = rgb[1];
    fields[8] = rgb[2];
    fields[9] = s.projection.point.z;
    fields[10] = zero - c.xy / c.xx;
    fields[11] = zero - c.xy / c.yy;
}

}  // namespace MIEN_ISA
}  // namespace mien

// Loading a group of kLanes splats and projecting it: shared by the forward and backward splat kernels.
#pragma once

#include "splats.h"

#include "kernels/simd.h"

#include "core/blend.h"
#include "core/covariance.h"
#include "core/projection.h"
#include "core/rotation.h"
#include "core/spherical_harmonics.h"

namespace mien {
namespace MIEN_ISA {

inline Pinhole<Float> pinhole(const View& view) {
    Pinhole<Float> p;
    for (int i = 0; i < 3; ++i)
        p.rotation.row[i] = {Float(view.rotation[3 * i]), Float(view.rotation[3 * i + 1]),
                             Float(view.rotation[3 * i + 2])};
    p.translation = {Float(view.translation[0]), Float(view.translation[1]), Float(view.translation[2])};
    p.centre = {Float(view.centre[0]), Float(view.centre[1]), Float(view.centre[2])};
    p.fx = Float(view.fx), p.fy = Float(view.fy), p.cx = Float(view.cx), p.cy = Float(view.cy);
    p.x_low = Float(view.x_low), p.x_high = Float(view.x_high), p.y_low = Float(view.y_low),
    p.y_high = Float(view.y_high);
    return p;
}

// Geometry of kLanes splats from row `first` on; lanes from `rows` on repeat the last row.
struct Group {
    Vec3<Float> mean, scale;
    Quat<Float> quat;            // unit, if the view normalises
    Float inverse_length;        // of the quaternion as given
    Mat3<Float> rotation, root;  // root = rotation * diag(scale)
    Sym3<Float> covariance;      // if given instead of quats and scales
    Float opacity, offset_x, offset_y;
    Projection<Float> projection;
    Sym2<Float> raw;  // 2D covariance before the low-pass filter
    Conic<Float> conic;
    Float opacity_factor;  // antialiasing
};

inline void load_shape(const View& view, const SplatInputs& in, int64_t first, int rows, Group& g) {
    if (in.covariances != nullptr) {
        Float c[6];
        load_columns<6>(c, in.covariances + 6 * first, 6, rows);
        g.covariance = {c[0], c[1], c[2], c[3], c[4], c[5]};
        return;
    }
    Float q[4], s[3];
    load_columns<4>(q, in.quats + 4 * first, 4, rows);
    load_columns<3>(s, in.scales + 3 * first, 3, rows);
    g.quat = {q[0], q[1], q[2], q[3]};
    g.scale = {s[0], s[1], s[2]};
    if (view.normalise_quats) {
        g.inverse_length = inverse_length(g.quat);
        g.quat = {q[0] * g.inverse_length, q[1] * g.inverse_length, q[2] * g.inverse_length, q[3] * g.inverse_length};
    }
    g.rotation = rotation_matrix(g.quat);
    g.root = scale_columns(g.rotation, g.scale);
}

inline void load_group(const View& view, const Pinhole<Float>& camera, const SplatInputs& in, int64_t first, int rows,
                       Group& g) {
    Float m[3], offset[2];
    load_columns<3>(m, in.means + 3 * first, 3, rows);
    g.mean = {m[0], m[1], m[2]};
    g.opacity = load_first(in.opacities + first, rows);
    load_shape(view, in, first, rows, g);
    g.projection = project(camera, g.mean);
    if (in.screen_offsets != nullptr) {
        load_columns<2>(offset, in.screen_offsets + 2 * first, 2, rows);
        g.projection.x += offset[0] * Float(0.5f * view.width);
        g.projection.y += offset[1] * Float(0.5f * view.height);
    }
    const Projection<Float>& p = g.projection;
    g.raw =
        in.covariances != nullptr ? covariance_2d(p.row0, p.row1, g.covariance) : covariance_2d(p.row0, p.row1, g.root);
    g.conic = make_conic(g.raw, Float(view.eps2d));
    g.opacity_factor = view.antialias ? compensation(g.conic) : Float(1.0f);
}

}  // namespace MIEN_ISA
}  // namespace mien

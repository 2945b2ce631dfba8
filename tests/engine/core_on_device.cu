// Compiled, not run: every function of the maths core as device code, in float and double.
#define MIEN_ISA device

#include "core/axis_angle.h"
#include "core/blend.h"
#include "core/covariance.h"
#include "core/projection.h"
#include "core/rigged.h"
#include "core/skeleton.h"
#include "core/spherical_harmonics.h"

using namespace mien::device;

template <class T>
__global__ void forward_and_back(const T* in, T* out) {
    const Vec3<T> v0 = {in[0], in[1], in[2]}, v1 = {in[3], in[4], in[5]}, v2 = {in[6], in[7], in[8]};
    const TriangleFrame<T> frame = triangle_frame(v0, v1, v2);
    const Quat<T> raw = {in[9], in[10], in[11], in[12]};
    const T inverse = inverse_length(raw);
    const PosedGaussian<T> local = {v1, v2, inverse * raw}, world = place(frame, local);

    Pinhole<T> camera = {};
    camera.fx = camera.fy = in[13];
    const Projection<T> seen = project(camera, world.mean);
    const Mat3<T> rotation = rotation_matrix(world.quat), root = scale_columns(rotation, world.scale);
    const Sym2<T> raw_covariance = covariance_2d(seen.row0, seen.row1, root);
    const Conic<T> conic = make_conic(raw_covariance, T(0.3f));
    T basis[16], weight[16] = {}, distance;
    const Vec3<T> towards = direction(camera.centre, world.mean, distance);
    sh_basis<3>(towards, basis);
    const T seen_opacity = exponent(seen.x, seen.y, conic.inverse.xx, conic.inverse.xy, conic.inverse.yy, in[14]);

    const Vec3<T> g_towards = direction_vjp(towards, distance, sh_basis_vjp<3>(towards, weight));
    const Sym2<T> g_raw = make_conic_vjp(conic, Sym2<T>{seen_opacity, basis[1], basis[2]});
    const Sym2<T> g_more = compensation_vjp(raw_covariance, conic, compensation(conic));
    ProjectionGradient<T> g_seen = {seen_opacity, basis[3], basis[4]};
    Mat3<T> g_root;
    covariance_2d_vjp(seen.row0, seen.row1, root, Sym2<T>{g_raw.xx + g_more.xx, g_raw.xy, g_raw.yy}, g_seen.row0,
                      g_seen.row1, g_root);
    PinholeGradient<T> g_camera = {};
    const PosedGaussian<T> g_world = {project_vjp(camera, world.mean, seen, g_seen, g_camera) + g_towards,
                                      g_root.row[0], rotation_matrix_vjp(world.quat, g_root)};
    FrameGradient<T> g_frame;
    const PosedGaussian<T> g_local = place_vjp(frame, local, g_world, g_frame);
    const Quat<T> g_quat = normalise_vjp(local.quat, inverse, g_local.quat);
    Vec3<T> corners[3];
    triangle_frame_vjp(frame, g_frame, corners);
    const AxisAngle<T> turn(corners[0]);
    const Vec3<T> g_turn = turn.vjp(turn.matrix());
    const int parents[2] = {-1, 0};
    Skeleton<T, 2> skeleton = {{turn.matrix(), rotation}, {v0, v1}, {}};
    Rigid<T> joints[2];
    skeleton.pose(parents, joints);
    Mat3<T> g_rotation[2];
    Vec3<T> g_rest[2];
    skeleton.vjp(parents, joints, g_rotation, g_rest);
    out[1] = g_rotation[1].row[0].x + g_rest[1].y;
    out[0] = corners[1].x + corners[2].y + g_quat.w + g_turn.z + g_camera.fx;
}

template __global__ void forward_and_back<float>(const float*, float*);
template __global__ void forward_and_back<double>(const double*, double*);

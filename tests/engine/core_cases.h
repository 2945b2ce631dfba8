// Every function of the maths core, each on a row of numbers: core_on_host.cpp makes C functions of them,
// core_on_device.cu kernels. CASE(name, signature, inputs, outputs): the signature is the function's as
// test_core_on_host.py reads it in the headers. Structures of numbers lie in a row as in memory.
#pragma once

#include <cstring>

#include "core/adam_update.h"
#include "core/axis_angle.h"
#include "core/blend.h"
#include "core/covariance.h"
#include "core/limits.h"
#include "core/projection.h"
#include "core/reach.h"
#include "core/rigged.h"
#include "core/skeleton.h"
#include "core/spherical_harmonics.h"
#include "core/splat.h"
#include "core/splat_backward.h"
#include "cuda/reach.h"
#include "view.h"

using namespace mien;
using namespace mien::MIEN_ISA;
namespace isa = mien::MIEN_ISA;

#define CASE(name, signature, inputs, outputs)            \
    template <class T>                                    \
    MIEN_HD inline void name##_case(const T* in, T* out); \
    EXPORT(name, signature, inputs, outputs)              \
    template <class T>                                    \
    MIEN_HD inline void name##_case(const T* in, T* out)

template <class V, class T>
MIEN_HD inline V take(const T*& in) {
    V value;
    memcpy(&value, in, sizeof value);
    in += sizeof value / sizeof(T);
    return value;
}
template <class V, class T>
MIEN_HD inline void put(T*& out, const V& value) {
    memcpy(out, &value, sizeof value);
    out += sizeof value / sizeof(T);
}
#define VEC3 take<Vec3<T>>(in)
#define QUAT take<Quat<T>>(in)
#define MAT3 take<Mat3<T>>(in)
#define SYM2 take<Sym2<T>>(in)
#define SYM3 take<Sym3<T>>(in)
#define FLAG (*in++ > T(0))

CASE(select, "select(bool, T, T)", 3, 1) { out[0] = isa::select(in[0] > T(0), in[1], in[2]); }
CASE(any, "any(bool)", 1, 1) { out[0] = T(isa::any(in[0] > T(0))); }
CASE(keep, "keep(bool, T)", 2, 1) { out[0] = isa::keep(in[0] > T(0), in[1]); }
CASE(min, "min(T, T)", 2, 1) { out[0] = isa::min(in[0], in[1]); }
CASE(max, "max(T, T)", 2, 1) { out[0] = isa::max(in[0], in[1]); }
CASE(sqrt, "sqrt(T)", 1, 1) { out[0] = isa::sqrt(in[0]); }
CASE(floor, "floor(T)", 1, 1) { out[0] = isa::floor(in[0]); }
CASE(ceil, "ceil(T)", 1, 1) { out[0] = isa::ceil(in[0]); }
CASE(log2, "log2(T)", 1, 1) { out[0] = isa::log2(in[0]); }
CASE(exp, "exp(T)", 1, 1) { out[0] = isa::exp(in[0]); }
CASE(fma, "fma(T, T, T)", 3, 1) { out[0] = isa::fma(in[0], in[1], in[2]); }
CASE(fnma, "fnma(T, T, T)", 3, 1) { out[0] = isa::fnma(in[0], in[1], in[2]); }

CASE(vec3_add, "operator+(Vec3, Vec3)", 6, 3) {
    const Vec3<T> a = VEC3, b = VEC3;
    put(out, a + b);
}
CASE(vec3_subtract, "operator-(Vec3, Vec3)", 6, 3) {
    const Vec3<T> a = VEC3, b = VEC3;
    put(out, a - b);
}
CASE(vec3_scale, "operator*(T, Vec3)", 4, 3) {
    const T s = *in++;
    put(out, s * VEC3);
}
CASE(dot, "dot(Vec3, Vec3)", 6, 1) {
    const Vec3<T> a = VEC3, b = VEC3;
    put(out, dot(a, b));
}
CASE(cross, "cross(Vec3, Vec3)", 6, 3) {
    const Vec3<T> a = VEC3, b = VEC3;
    put(out, cross(a, b));
}
CASE(products, "products(Vec3, Vec3)", 6, 3) {
    const Vec3<T> a = VEC3, b = VEC3;
    put(out, products(a, b));
}
CASE(outer, "outer(Vec3, Vec3)", 6, 9) {
    const Vec3<T> a = VEC3, b = VEC3;
    put(out, outer(a, b));
}
CASE(mat3_vec3, "operator*(Mat3, Vec3)", 12, 3) {
    const Mat3<T> m = MAT3;
    put(out, m * VEC3);
}
CASE(mat3_transposed_vec3, "transposed_times(Mat3, Vec3)", 12, 3) {
    const Mat3<T> m = MAT3;
    put(out, transposed_times(m, VEC3));
}
CASE(mat3_add, "operator+(Mat3, Mat3)", 18, 9) {
    const Mat3<T> a = MAT3, b = MAT3;
    put(out, a + b);
}
CASE(mat3_mat3, "operator*(Mat3, Mat3)", 18, 9) {
    const Mat3<T> a = MAT3, b = MAT3;
    put(out, a * b);
}
CASE(mat3_transposed_mat3, "transposed_times(Mat3, Mat3)", 18, 9) {
    const Mat3<T> a = MAT3, b = MAT3;
    put(out, transposed_times(a, b));
}
CASE(mat3_mat3_transposed, "times_transposed(Mat3, Mat3)", 18, 9) {
    const Mat3<T> a = MAT3, b = MAT3;
    put(out, times_transposed(a, b));
}
CASE(sym3_vec3, "operator*(Sym3, Vec3)", 9, 3) {
    const Sym3<T> s = SYM3;
    put(out, s * VEC3);
}
CASE(scale_columns, "scale_columns(Mat3, Vec3)", 12, 9) {
    const Mat3<T> m = MAT3;
    put(out, scale_columns(m, VEC3));
}
CASE(vec3_length, "length(Vec3)", 3, 1) { put(out, length(VEC3)); }
CASE(array_length, "length(T*)", 3, 1) { put(out, length(in)); }
CASE(excess, "excess(T, T)", 2, 1) { put(out, excess(in[0], in[1])); }
CASE(sigmoid, "sigmoid(T)", 1, 1) { put(out, sigmoid(in[0])); }
CASE(sinc, "sinc(T)", 1, 1) { put(out, sinc(in[0])); }

CASE(quat_add, "operator+(Quat, Quat)", 8, 4) {
    const Quat<T> a = QUAT, b = QUAT;
    put(out, a + b);
}
CASE(quat_scale, "operator*(T, Quat)", 5, 4) {
    const T s = *in++;
    put(out, s * QUAT);
}
CASE(quat_multiply, "operator*(Quat, Quat)", 8, 4) {
    const Quat<T> a = QUAT, b = QUAT;
    put(out, a * b);
}
CASE(conjugate, "conjugate(Quat)", 4, 4) { put(out, conjugate(QUAT)); }
CASE(inverse_length, "inverse_length(Quat)", 4, 1) { put(out, inverse_length(QUAT)); }
CASE(normalise_vjp, "normalise_vjp(Quat, T, Quat)", 8, 4) {  // of q / |q|, at any q
    const Quat<T> q = QUAT, g = QUAT;
    const T inverse = inverse_length(q);
    put(out, normalise_vjp(inverse * q, inverse, g));
}
CASE(rotation_matrix, "rotation_matrix(Quat)", 4, 9) { put(out, rotation_matrix(QUAT)); }
CASE(rotation_matrix_vjp, "rotation_matrix_vjp(Quat, Mat3)", 13, 4) {
    const Quat<T> q = QUAT;
    put(out, rotation_matrix_vjp(q, MAT3));
}
CASE(axis_angle, "AxisAngle(Vec3)", 3, 7) { put(out, AxisAngle<T>(VEC3)); }
CASE(axis_angle_matrix, "matrix()", 3, 9) { put(out, AxisAngle<T>(VEC3).matrix()); }
CASE(axis_angle_vjp, "vjp(Mat3)", 12, 3) {
    const AxisAngle<T> turn(VEC3);
    put(out, turn.vjp(MAT3));
}

constexpr int kJoints = 5;
template <class T>
MIEN_HD inline Skeleton<T, kJoints> posed(const T*& in, Rigid<T>* joints, int* parents) {
    const int chain[kJoints] = {-1, 0, 1, 1, 3};
    for (int j = 0; j < kJoints; ++j) parents[j] = chain[j];
    Skeleton<T, kJoints> skeleton = {};
    for (Mat3<T>& m : skeleton.rotation) m = MAT3;
    for (Vec3<T>& v : skeleton.rest) v = VEC3;
    skeleton.pose(parents, joints);
    return skeleton;
}
CASE(skeleton, "pose(int*, Rigid*)", 60, 60) {
    Rigid<T> joints[kJoints];
    int parents[kJoints];
    posed(in, joints, parents);
    for (const Rigid<T>& joint : joints) put(out, joint);
}
CASE(skeleton_vjp, "vjp(int*, Rigid*, Mat3*, Vec3*)", 120, 60) {
    Rigid<T> joints[kJoints];
    int parents[kJoints];
    const Skeleton<T, kJoints> skeleton = posed(in, joints, parents);
    for (Rigid<T>& joint : joints) joint = take<Rigid<T>>(in);
    Mat3<T> g_rotation[kJoints];
    Vec3<T> g_rest[kJoints];
    skeleton.vjp(parents, joints, g_rotation, g_rest);
    for (const Mat3<T>& m : g_rotation) put(out, m);
    for (const Vec3<T>& v : g_rest) put(out, v);
}

CASE(frame_of, "frame_of(T*)", 16, 16) { put(out, frame_of(in)); }
CASE(frame_columns, "frame_columns(TriangleFrame, T*)", 16, 16) { frame_columns(take<TriangleFrame<T>>(in), out); }
CASE(frame_gradient_of, "frame_gradient_of(T*)", 7, 7) { put(out, frame_gradient_of(in)); }
CASE(frame_gradient_columns, "frame_gradient_columns(FrameGradient, T*)", 7, 8) {
    frame_gradient_columns(take<FrameGradient<T>>(in), out);
}
CASE(scale_of, "scale_of(TriangleFrame)", 16, 1) { put(out, scale_of(frame_of(in))); }
CASE(quaternion_of, "quaternion_of(Vec3, Vec3, Vec3)", 9, 4) {
    const Vec3<T> a = VEC3, b = VEC3, c = VEC3;
    put(out, quaternion_of(a, b, c));
}
CASE(triangle_frame, "triangle_frame(Vec3, Vec3, Vec3)", 9, 16) {
    const Vec3<T> a = VEC3, b = VEC3, c = VEC3;
    put(out, triangle_frame(a, b, c));
}
CASE(triangle_frame_vjp, "triangle_frame_vjp(TriangleFrame, FrameGradient, Vec3*)", 23, 9) {
    const TriangleFrame<T> frame = take<TriangleFrame<T>>(in);
    Vec3<T> corners[3];
    triangle_frame_vjp(frame, take<FrameGradient<T>>(in), corners);
    for (const Vec3<T>& corner : corners) put(out, corner);
}
CASE(place, "place(TriangleFrame, PosedGaussian)", 26, 10) {
    const TriangleFrame<T> frame = take<TriangleFrame<T>>(in);
    put(out, place(frame, take<PosedGaussian<T>>(in)));
}
CASE(place_vjp, "place_vjp(TriangleFrame, PosedGaussian, PosedGaussian, FrameGradient)", 36, 17) {
    const TriangleFrame<T> frame = take<TriangleFrame<T>>(in);
    const PosedGaussian<T> local = take<PosedGaussian<T>>(in), g = take<PosedGaussian<T>>(in);
    FrameGradient<T> g_frame;
    put(out, place_vjp(frame, local, g, g_frame));
    put(out, g_frame);
}
CASE(activate, "activate(Vec3, Quat, Vec3, T)", 10, 11) {
    const Vec3<T> mean = VEC3, log_scale = VEC3;
    T inverse;
    put(out, activate(mean, QUAT, log_scale, inverse));
    put(out, inverse);
}
CASE(activate_vjp, "activate_vjp(PosedGaussian, T, PosedGaussian)", 21, 10) {
    const PosedGaussian<T> local = take<PosedGaussian<T>>(in);
    const T inverse = *in++;
    put(out, activate_vjp(local, inverse, take<PosedGaussian<T>>(in)));
}

CASE(sh_count, "sh_count(int)", 1, 1) { out[0] = T(sh_count(static_cast<int>(in[0]))); }
CASE(direction, "direction(Vec3, Vec3, T)", 6, 4) {
    const Vec3<T> from = VEC3, to = VEC3;
    put(out, direction(from, to, out[3]));
}
CASE(direction_vjp, "direction_vjp(Vec3, T, Vec3)", 7, 3) {
    const Vec3<T> d = VEC3;
    const T inverse = *in++;
    put(out, direction_vjp(d, inverse, VEC3));
}
template <class T>
struct Coefficients {
    const T* first;
    MIEN_HD T operator()(int k, int channel) const { return first[3 * k + channel]; }
};
// clang-format off
#define SH_CASES(degree, count)                                                                                      \
    CASE(sh_basis_##degree, "sh_basis(Vec3, T*)", 3, count) { sh_basis<degree>(VEC3, out); }                         \
    CASE(sh_basis_vjp_##degree, "sh_basis_vjp(Vec3, T*)", 3 + count, 3) {                                            \
        const Vec3<T> d = VEC3;                                                                                      \
        put(out, sh_basis_vjp<degree>(d, in));                                                                       \
    }                                                                                                                \
    CASE(sh_values_##degree, "sh_values(T*, Coefficients, T*)", 4 * count, 3) {                                      \
        sh_values<degree>(in, Coefficients<T>{in + count}, out);                                                     \
    }                                                                                                                \
    CASE(sh_colour_##degree, "sh_colour(Vec3, Vec3, Coefficients, T*)", 6 + 3 * count, 3) {                          \
        const Vec3<T> centre = VEC3, mean = VEC3;                                                                    \
        sh_colour<degree>(centre, mean, Coefficients<T>{in}, out);                                                   \
    }                                                                                                                \
    CASE(sh_colour_vjp_##degree, "sh_colour_vjp(Vec3, Vec3, Coefficients, T*, T*, T*, Vec3, Vec3)", 9 + 3 * count,   \
         6 + 3 * count) {                                                                                            \
        Vec3<T> centre = VEC3, mean = VEC3, g_mean = {}, g_centre = {};                                              \
        T basis[count], live[3];                                                                                     \
        sh_colour_vjp<degree>(centre, mean, Coefficients<T>{in}, in + 3 * count, basis, live, g_mean, g_centre);     \
        put(out, g_centre), put(out, g_mean);                                                                        \
        for (int k = 0; k < count; ++k)                                                                              \
            for (int c = 0; c < 3; ++c) put(out, basis[k] * live[c]);                                                \
    }
SH_CASES(0, 1)
SH_CASES(1, 4)
SH_CASES(2, 9)
SH_CASES(3, 16)
// clang-format on

#include "core_cases_splats.h"

// The few operations that the maths core needs, for float and double; kernels/simd.h adds the same ones for SIMD
// vectors.
//
// Core headers are templates over the number type and live in `namespace mien::MIEN_ISA`, so that every instruction set
// has its own copy. MIEN_HD: they compile for a GPU as well as for the CPU.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define MIEN_HD __host__ __device__
#else
#define MIEN_HD
#endif

namespace mien {
namespace MIEN_ISA {

template <class T>
MIEN_HD inline T select(bool condition, T yes, T no) {
    return condition ? yes : no;
}
MIEN_HD inline bool any(bool m) { return m; }
template <class T>
MIEN_HD inline T keep(bool condition, T yes) {
    return condition ? yes : T(0.0f);
}

#define MIEN_SCALAR_OPS(T)                                   \
    MIEN_HD inline T min(T a, T b) { return b < a ? b : a; } \
    MIEN_HD inline T max(T a, T b) { return a < b ? b : a; } \
    MIEN_HD inline T sqrt(T x) { return std::sqrt(x); }      \
    MIEN_HD inline T floor(T x) { return std::floor(x); }    \
    MIEN_HD inline T ceil(T x) { return std::ceil(x); }      \
    MIEN_HD inline T log2(T x) { return std::log2(x); }
MIEN_SCALAR_OPS(float)
MIEN_SCALAR_OPS(double)
#undef MIEN_SCALAR_OPS

#if defined(MIEN_ISA_scalar)
inline float exp(float x);  // kernels/simd.h
#else
MIEN_HD inline float exp(float x) { return std::exp(x); }
#endif
MIEN_HD inline double exp(double x) { return std::exp(x); }

// Fused only where the machine has the instruction: forward and backward must round alike, and a library call would be
// slow.
#if defined(__CUDA_ARCH__)
__device__ inline float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
__device__ inline float fnma(float a, float b, float c) { return ::fmaf(-a, b, c); }
__device__ inline double fma(double a, double b, double c) { return ::fma(a, b, c); }
__device__ inline double fnma(double a, double b, double c) { return ::fma(-a, b, c); }
#elif defined(__aarch64__) || defined(__FMA__)
MIEN_HD inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
MIEN_HD inline float fnma(float a, float b, float c) { return __builtin_fmaf(-a, b, c); }
MIEN_HD inline double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
MIEN_HD inline double fnma(double a, double b, double c) { return __builtin_fma(-a, b, c); }
#else
MIEN_HD inline float fma(float a, float b, float c) { return a * b + c; }
MIEN_HD inline float fnma(float a, float b, float c) { return c - a * b; }
MIEN_HD inline double fma(double a, double b, double c) { return a * b + c; }
MIEN_HD inline double fnma(double a, double b, double c) { return c - a * b; }
#endif

template <class T>
struct Vec3 {
    T x, y, z;
};

template <class T>
MIEN_HD inline Vec3<T> operator+(const Vec3<T>& a, const Vec3<T>& b) {
    return {a.x + b.x, a.y + b.y, a.z + b.z};
}
template <class T>
MIEN_HD inline Vec3<T> operator-(const Vec3<T>& a, const Vec3<T>& b) {
    return {a.x - b.x, a.y - b.y, a.z - b.z};
}
template <class T>
MIEN_HD inline Vec3<T> operator*(T s, const Vec3<T>& a) {
    return {s * a.x, s * a.y, s * a.z};
}
template <class T>
MIEN_HD inline T dot(const Vec3<T>& a, const Vec3<T>& b) {
    return a.x * b.x + a.y * b.y + a.z * b.z;
}

template <class T>
MIEN_HD inline Vec3<T> cross(const Vec3<T>& a, const Vec3<T>& b) {
    return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

// A 3x3 matrix by rows.
template <class T>
struct Mat3 {
    Vec3<T> row[3];
};

template <class T>
MIEN_HD inline Vec3<T> operator*(const Mat3<T>& m, const Vec3<T>& v) {
    return {dot(m.row[0], v), dot(m.row[1], v), dot(m.row[2], v)};
}
// m^T v
template <class T>
MIEN_HD inline Vec3<T> transposed_times(const Mat3<T>& m, const Vec3<T>& v) {
    return v.x * m.row[0] + v.y * m.row[1] + v.z * m.row[2];
}

}  // namespace MIEN_ISA
}  // namespace mien

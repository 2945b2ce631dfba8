// What kernels are written in, for a C++ compiler: qualifiers, vector types, indices, barriers, warp operations,
// atomics.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/emulation/fibers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static  // the sanitizer watches its ends, but not those of variables in sections of their own
#else
#define __shared__ static __attribute__((section("mien_shared")))
#endif

struct int2 {
    int x, y;
};
struct int3 {
    int x, y, z;
};
struct uint2 {
    unsigned x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct float3 {
    float x, y, z;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

#define threadIdx (::mien::cuda::emulation::thread_index)
#define blockIdx (::mien::cuda::emulation::block_index)
#define blockDim (::mien::cuda::emulation::block_size)
#define gridDim (::mien::cuda::emulation::grid_size)
constexpr int warpSize = mien::cuda::emulation::kLanes;

namespace mien {
namespace cuda {
namespace emulation {

template <class T>
T from_bits(std::uint64_t bits) {
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
template <class T>
std::uint64_t to_bits(T value) {
    static_assert(sizeof(T) <= 8, "warp operations move at most 8 bytes");
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return bits;
}

template <class T>
using IfInteger = std::enable_if_t<std::is_integral<T>::value, T>;  // sums of floats would depend on the order

}  // namespace emulation
}  // namespace cuda
}  // namespace mien

// The place of a call names it: two barriers on two lines are two barriers.
#define MIEN_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(MIEN_SITE) { mien::cuda::emulation::barrier(false, {file, line}); }
inline int __syncthreads_count(int value, MIEN_SITE) {
    return mien::cuda::emulation::barrier(value != 0, {file, line});
}
inline int __syncthreads_or(int value, MIEN_SITE) { return __syncthreads_count(value, file, line) > 0; }
inline int __syncthreads_and(int value, MIEN_SITE) { return __syncthreads_count(value == 0, file, line) == 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu, MIEN_SITE) {
    mien::cuda::emulation::exchange(mask, 0, {file, line});
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __trap(MIEN_SITE) {
    mien::cuda::emulation::fail("gave up in " + mien::cuda::emulation::to_string({file, line}));
}

template <class T>
T __shfl_sync(unsigned mask, T value, int from, MIEN_SITE) {
    using namespace mien::cuda::emulation;
    return from_bits<T>(exchange(mask, to_bits(value), {file, line})[from & 31]);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, MIEN_SITE) {
    return __shfl_sync(mask, value, mien::cuda::emulation::lane() ^ lanes, file, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, MIEN_SITE) {
    const int from = mien::cuda::emulation::lane() - static_cast<int>(by);
    const T there = __shfl_sync(mask, value, from, file, line);
    return from < 0 ? value : there;
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, MIEN_SITE) {
    const int from = mien::cuda::emulation::lane() + static_cast<int>(by);
    const T there = __shfl_sync(mask, value, from, file, line);
    return from > 31 ? value : there;
}
inline unsigned __ballot_sync(unsigned mask, int predicate, MIEN_SITE) {
    const std::uint64_t* all = mien::cuda::emulation::exchange(mask, predicate != 0, {file, line});
    unsigned bits = 0;
    for (int i = 0; i < 32; ++i)
        if (all[i] == 1) bits |= 1u << i;
    return bits;
}
inline int __any_sync(unsigned mask, int predicate, MIEN_SITE) {
    return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, MIEN_SITE) {
    return __ballot_sync(mask, predicate == 0, file, line) == 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, MIEN_SITE) {
    using namespace mien::cuda::emulation;
    static_assert(sizeof(T) <= 4, "all bits set marks an absent lane");
    const std::uint64_t mine = to_bits(value), *all = exchange(mask, mine, {file, line});
    unsigned bits = 0;
    for (int i = 0; i < 32; ++i)
        if (all[i] == mine) bits |= 1u << i;
    return bits;
}
#undef MIEN_SITE

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(std::uint64_t(a) * b >> 32); }
inline unsigned __float_as_uint(float x) { return static_cast<unsigned>(mien::cuda::emulation::to_bits(x)); }
inline float __uint_as_float(unsigned x) { return mien::cuda::emulation::from_bits<float>(x); }
inline int __float_as_int(float x) { return static_cast<int>(__float_as_uint(x)); }
inline float __int_as_float(int x) { return __uint_as_float(static_cast<unsigned>(x)); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
template <class T>
T __ldg(const T* at) {
    return *at;
}
template <class T>
T __ldcs(const T* at) {
    return *at;
}
template <class T>
T __ldcg(const T* at) {
    return *at;
}
template <class T>
void __stcs(T* at, T value) {
    *at = value;
}
template <class T>
void __stcg(T* at, T value) {
    *at = value;
}

// One thread at a time, so plain reads and writes are atomic.
template <class T>
mien::cuda::emulation::IfInteger<T> atomicAdd(T* at, std::common_type_t<T> value) {
    const T old = *at;
    *at = old + value;
    return old;
}
template <class T>
mien::cuda::emulation::IfInteger<T> atomicMax(T* at, std::common_type_t<T> value) {
    const T old = *at;
    *at = old < value ? value : old;
    return old;
}
template <class T>
mien::cuda::emulation::IfInteger<T> atomicMin(T* at, std::common_type_t<T> value) {
    const T old = *at;
    *at = value < old ? value : old;
    return old;
}
template <class T>
mien::cuda::emulation::IfInteger<T> atomicOr(T* at, std::common_type_t<T> value) {
    const T old = *at;
    *at = old | value;
    return old;
}
template <class T>
mien::cuda::emulation::IfInteger<T> atomicAnd(T* at, std::common_type_t<T> value) {
    const T old = *at;
    *at = old & value;
    return old;
}
template <class T>
mien::cuda::emulation::IfInteger<T> atomicExch(T* at, std::common_type_t<T> value) {
    const T old = *at;
    *at = value;
    return old;
}
template <class T>
mien::cuda::emulation::IfInteger<T> atomicCAS(T* at, std::common_type_t<T> expected, std::common_type_t<T> value) {
    const T old = *at;
    if (old == expected) *at = value;
    return old;
}

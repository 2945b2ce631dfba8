// Float: a register of kLanes floats, and Mask: kLanes truth values, for the instruction set this file is compiled for.
//
// AVX-512: 16 lanes, AVX2: 8, otherwise plain float and bool. Kernels are written once against these names; wider
// vectors than the machine has are never used (they cost 5-10x). Comparisons are false for NaN. `fma` is the only place
// where a kernel asks for fusing.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/ops.h"

#if defined(MIEN_ISA_avx512)
#include "kernels/simd_avx512.h"
#elif defined(MIEN_ISA_avx2)
#include "kernels/simd_avx2.h"
#else
#include "kernels/simd_scalar.h"
#endif

namespace mien {
namespace MIEN_ISA {

// e^x with relative error below 2e-7: 0 below -87.3, infinity above 88.7, NaN for NaN. Taylor series of the rest that
// is left of x after whole powers of two, subtracted in two parts.
inline Float exp(Float x) {
    const Float low(-87.3f), high(88.7f);
    const Float bounded = select(x < low, low, select(x > high, high, x));
    Float whole = round(bounded * Float(1.44269504f));
    whole = select(whole == whole, whole, Float(0.0f));  // the conversion to an integer wants no NaN
    const Float f = fnma(whole, Float(-2.12194440e-4f), fnma(whole, Float(0.693359375f), bounded));
    Float p(1.0f / 5040.0f);
    p = fma(p, f, Float(1.0f / 720.0f));
    p = fma(p, f, Float(1.0f / 120.0f));
    p = fma(p, f, Float(1.0f / 24.0f));
    p = fma(p, f, Float(1.0f / 6.0f));
    p = fma(p, f, Float(0.5f));
    p = fma(p, f, Float(1.0f));
    p = fma(p, f, Float(1.0f));
    const Float value = scale_by_power(p, whole);
    return select(x < low, Float(0.0f), select(x > high, Float(__builtin_inff()), value));
}

#if !defined(MIEN_ISA_scalar)
// log2(x) with absolute error below 3e-7 (relative below 1e-6), for positive normal x: exponent + 2 atanh((m - 1) / (m
// + 1)) / ln 2.
inline Float log2(Float x) {
    Float exponent, m;
    split_exponent(x, exponent, m);  // m in [1, 2)
    const Mask high = m > Float(1.4142135f);
    m = select(high, m * Float(0.5f), m);
    exponent = select(high, exponent + Float(1.0f), exponent);
    const Float s = (m - Float(1.0f)) / (m + Float(1.0f));
    const Float s2 = s * s;
    Float p = Float(2.8853900818f / 9.0f);
    p = fma(p, s2, Float(2.8853900818f / 7.0f));
    p = fma(p, s2, Float(2.8853900818f / 5.0f));
    p = fma(p, s2, Float(2.8853900818f / 3.0f));
    p = fma(p, s2, Float(2.8853900818f));
    return fma(p, s, exponent);
}
#endif

#if !defined(MIEN_ISA_avx512)
// 64 rows of 16 bits <-> 16 columns of 64 bits: bit i of columns[b] is bit b of rows[i].
inline void bits_to_columns(const uint16_t* rows, uint64_t* columns) {
    for (int b = 0; b < 16; ++b) columns[b] = 0;
    for (int i = 0; i < 64; ++i)
        for (uint32_t m = rows[i]; m != 0; m &= m - 1) columns[__builtin_ctz(m)] |= uint64_t(1) << i;
}

inline void bits_to_rows(const uint64_t* columns, uint16_t* rows) {
    for (int i = 0; i < 64; ++i) rows[i] = 0;
    for (int b = 0; b < 16; ++b)
        for (uint64_t m = columns[b]; m != 0; m &= m - 1) rows[__builtin_ctzll(m)] |= static_cast<uint16_t>(1u << b);
}
#endif

// Asks for the cache lines of [p, p + count) ahead of time: a stream that is worked on in bursts is not foreseen by the
// hardware.
[[gnu::always_inline]] inline void prefetch_floats(const float* p, int64_t count) {
    for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(p + i);
}
[[gnu::always_inline]] inline void prefetch_floats_for_writing(float* p, int64_t count) {
    for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(p + i, 1);
}

// Reads `columns` floats from each of kLanes rows: out[c] holds column c, one row per lane. Rows from `rows` on repeat
// the last one.
template <int columns>
inline void load_columns(Float* out, const float* base, int64_t stride, int rows) {
#if !defined(MIEN_ISA_scalar)
    if constexpr (columns == 3 || columns == 4)
        if (stride == columns && rows >= kLanes) return load_packed<columns>(out, base);
#endif
    for (int first = 0; first < columns; first += kLanes) {
        const int width = columns - first < kLanes ? columns - first : kLanes;
        Float r[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) {
            const int row = lane < rows ? lane : rows - 1;
            r[lane] = load_first(base + row * stride + first, width);
        }
        transpose(r);
        for (int c = 0; c < width; ++c) out[first + c] = r[c];
    }
}

// The inverse of load_columns; rows from `rows` on are not written.
template <int columns>
inline void store_columns(const Float* in, float* base, int64_t stride, int rows) {
#if !defined(MIEN_ISA_scalar)
    if constexpr (columns == 3 || columns == 4)
        if (stride == columns && rows >= kLanes) return store_packed<columns>(in, base);
#endif
    for (int first = 0; first < columns; first += kLanes) {
        const int width = columns - first < kLanes ? columns - first : kLanes;
        Float r[kLanes];
        for (int c = 0; c < kLanes; ++c) r[c] = c < width ? in[first + c] : Float(0.0f);
        transpose(r);
        for (int lane = 0; lane < kLanes && lane < rows; ++lane)
            store_first(base + lane * stride + first, width, r[lane]);
    }
}

}  // namespace MIEN_ISA
}  // namespace mien

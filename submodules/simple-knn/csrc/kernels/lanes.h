// Lanes: kLeaf doubles, in as many registers as the instruction set that this file is compiled for needs.
#pragma once

#include "search.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace knn {
namespace KNN_ISA {

#if defined(KNN_ISA_avx512)
constexpr int kRegister = 8;
#elif defined(KNN_ISA_avx2)
constexpr int kRegister = 4;
#else
constexpr int kRegister = 2;
#endif
constexpr int kRegisters = kLeaf / kRegister;

typedef double Register __attribute__((vector_size(8 * kRegister)));

// GCC 12 makes compare-and-blend of a vector's `a < b ? a : b`, which costs half the speed.
// `less` has one bit per lane: where a < b.
#if defined(KNN_ISA_avx512)
inline Register min(Register a, Register b) { return _mm512_min_pd(a, b); }
inline Register max(Register a, Register b) { return _mm512_max_pd(a, b); }
inline unsigned less(Register a, Register b) { return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ); }
#elif defined(KNN_ISA_avx2)
inline Register min(Register a, Register b) { return _mm256_min_pd(a, b); }
inline Register max(Register a, Register b) { return _mm256_max_pd(a, b); }
inline unsigned less(Register a, Register b) {
    return static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_LT_OQ)));
}
#elif defined(__SSE2__)
inline Register min(Register a, Register b) { return _mm_min_pd(a, b); }
inline Register max(Register a, Register b) { return _mm_max_pd(a, b); }
inline unsigned less(Register a, Register b) { return static_cast<unsigned>(_mm_movemask_pd(_mm_cmplt_pd(a, b))); }
#else
inline Register min(Register a, Register b) { return a < b ? a : b; }
inline Register max(Register a, Register b) { return a > b ? a : b; }
inline unsigned less(Register a, Register b) {
    return static_cast<unsigned>(a[0] < b[0]) | static_cast<unsigned>(a[1] < b[1]) << 1;
}
#endif

struct Lanes {
    Register part[kRegisters];
};

template <class Value>
inline __attribute__((always_inline)) Lanes each(const Value& value) {
    Lanes lanes;
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i) lanes.part[i] = value(i);
    return lanes;
}

inline Lanes all(double value) {
    return each([&](int) { return value - Register{}; });
}
inline Lanes load(const double* p) {
    return each([=](int i) {
        Register part;
        __builtin_memcpy(&part, p + i * kRegister, sizeof part);
        return part;
    });
}
inline void store(double* p, const Lanes& a) {
    for (int i = 0; i < kRegisters; ++i) __builtin_memcpy(p + i * kRegister, &a.part[i], sizeof(Register));
}
inline Lanes operator+(const Lanes& a, const Lanes& b) {
    return each([&](int i) { return a.part[i] + b.part[i]; });
}
inline Lanes operator-(const Lanes& a, const Lanes& b) {
    return each([&](int i) { return a.part[i] - b.part[i]; });
}
inline Lanes operator*(const Lanes& a, const Lanes& b) {
    return each([&](int i) { return a.part[i] * b.part[i]; });
}
inline Lanes min(const Lanes& a, const Lanes& b) {
    return each([&](int i) { return min(a.part[i], b.part[i]); });
}
inline Lanes max(const Lanes& a, const Lanes& b) {
    return each([&](int i) { return max(a.part[i], b.part[i]); });
}
inline unsigned less(const Lanes& a, const Lanes& b) {
    unsigned bits = 0;
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i) bits |= less(a.part[i], b.part[i]) << i * kRegister;
    return bits;
}
inline double greatest(const Lanes& a) {
    double values[kLeaf];
    store(values, a);
    for (int half = kLeaf / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) values[i] = values[i] > values[i + half] ? values[i] : values[i + half];
    return values[0];
}

}  // namespace KNN_ISA
}  // namespace knn

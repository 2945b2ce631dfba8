#pragma once

#include <immintrin.h>

namespace mien {
namespace MIEN_ISA {

constexpr int kLanes = 8;

struct Mask {
    __m256 v;  // all bits of a lane set or none
};

struct Float {
    __m256 v;
    Float() = default;
    Float(__m256 value) : v(value) {}
    explicit Float(float value) : v(_mm256_set1_ps(value)) {}
};

inline Float operator+(Float a, Float b) { return _mm256_add_ps(a.v, b.v); }
inline Float operator-(Float a, Float b) { return _mm256_sub_ps(a.v, b.v); }
inline Float operator*(Float a, Float b) { return _mm256_mul_ps(a.v, b.v); }
inline Float operator/(Float a, Float b) { return _mm256_div_ps(a.v, b.v); }
inline Float operator-(Float a) { return _mm256_xor_ps(a.v, _mm256_set1_ps(-0.0f)); }
inline Float& operator+=(Float& a, Float b) { return a = a + b; }
inline Mask operator<(Float a, Float b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask operator<=(Float a, Float b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)}; }
inline Mask operator>(Float a, Float b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)}; }
inline Mask operator>=(Float a, Float b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ)}; }
inline Mask operator==(Float a, Float b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)}; }
inline Mask operator&(Mask a, Mask b) { return {_mm256_and_ps(a.v, b.v)}; }
inline Mask operator|(Mask a, Mask b) { return {_mm256_or_ps(a.v, b.v)}; }
inline Mask operator!(Mask a) { return {_mm256_xor_ps(a.v, _mm256_castsi256_ps(_mm256_set1_epi32(-1)))}; }

inline uint32_t bits(Mask m) { return static_cast<uint32_t>(_mm256_movemask_ps(m.v)); }
inline bool any(Mask m) { return _mm256_movemask_ps(m.v) != 0; }
inline __m256i first_lanes_int(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Mask first_lanes(int count) { return {_mm256_castsi256_ps(first_lanes_int(count))}; }
inline Float select(Mask m, Float yes, Float no) { return _mm256_blendv_ps(no.v, yes.v, m.v); }
inline Float keep(Mask m, Float a) { return _mm256_and_ps(m.v, a.v); }

inline Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }    // a b + c
inline Float fnma(Float a, Float b, Float c) { return _mm256_fnmadd_ps(a.v, b.v, c.v); }  // c - a b
inline Float min(Float a, Float b) { return _mm256_min_ps(a.v, b.v); }
inline Float max(Float a, Float b) { return _mm256_max_ps(a.v, b.v); }
inline Float sqrt(Float a) { return _mm256_sqrt_ps(a.v); }
inline Float round(Float a) { return _mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Float floor(Float a) { return _mm256_floor_ps(a.v); }
inline Float ceil(Float a) { return _mm256_ceil_ps(a.v); }
inline Float reciprocal(Float a) { return _mm256_div_ps(_mm256_set1_ps(1.0f), a.v); }

// a b + c and c - a b where m, c elsewhere
inline Float fma_where(Mask m, Float a, Float b, Float c) { return fma(keep(m, a), b, c); }
inline Float fnma_where(Mask m, Float a, Float b, Float c) { return fnma(keep(m, a), b, c); }

// 2^x where m, for |x| < 120 there, relative error below 2e-7; 0 elsewhere. As with AVX-512, in eighths.
inline Float exp2_where(Mask m, Float x) {
    const __m256i table = _mm256_setr_epi32(0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7, 0x3f7504f3, 0x3f75672a,
                                            0x3f7744fd, 0x3f7ac0c7);
    const __m256 magic = _mm256_set1_ps(1572864.0f), t = _mm256_add_ps(x.v, magic);
    const __m256 f = _mm256_sub_ps(x.v, _mm256_sub_ps(t, magic));
    const __m256i eighths = _mm256_castps_si256(t);
    const __m256i power = _mm256_add_epi32(_mm256_slli_epi32(eighths, 20), _mm256_permutevar8x32_epi32(table, eighths));
    __m256 p = _mm256_set1_ps(0.05549890175461769f);
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.24026407301425934f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.6931471824645996f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f));
    return keep(m, _mm256_mul_ps(p, _mm256_castsi256_ps(power)));
}

inline Float scale_by_power(Float a, Float n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return _mm256_mul_ps(a.v, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
inline void split_exponent(Float x, Float& exponent, Float& mantissa) {
    const __m256i b = _mm256_castps_si256(x.v);
    exponent = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srli_epi32(b, 23), _mm256_set1_epi32(127)));
    mantissa = _mm256_castsi256_ps(
        _mm256_or_si256(_mm256_and_si256(b, _mm256_set1_epi32(0x7fffff)), _mm256_set1_epi32(127 << 23)));
}

inline Float load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Float a) { _mm256_storeu_ps(p, a.v); }
// Past the caches; p aligned like a register. `end_streaming` before other threads may look.
inline void stream(float* p, Float a) { _mm256_stream_ps(p, a.v); }
inline void end_streaming() { _mm_sfence(); }
inline Float load_first(const float* p, int count) { return _mm256_maskload_ps(p, first_lanes_int(count)); }
inline void store_first(float* p, int count, Float a) { _mm256_maskstore_ps(p, first_lanes_int(count), a.v); }
inline void store_int(int32_t* p, Float a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_cvttps_epi32(a.v));
}
inline float sum(Float a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// Transposes the 8 x 8 matrix whose rows are r[0..7].
inline void transpose(Float* r) {
    __m256 t[8], u[8];
    for (int i = 0; i < 4; ++i) {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i].v, r[2 * i + 1].v);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i].v, r[2 * i + 1].v);
    }
    for (int i = 0; i < 2; ++i) {
        u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
        u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    for (int k = 0; k < 4; ++k) {
        r[k] = _mm256_permute2f128_ps(u[k], u[4 + k], 0x20);
        r[4 + k] = _mm256_permute2f128_ps(u[k], u[4 + k], 0x31);
    }
}

// r[i] = the quarter-rows i and i + `step` of a packed array, in the low and the high half.
template <int step>
inline void load_halves(__m256* r, const float* base) {
    for (int i = 0; i < step; ++i)
        r[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(base + 4 * i)),
                                    _mm_loadu_ps(base + 4 * (i + step)), 1);
}
template <int step>
inline void store_halves(const __m256* r, float* base) {
    for (int i = 0; i < step; ++i) {
        _mm_storeu_ps(base + 4 * i, _mm256_castps256_ps128(r[i]));
        _mm_storeu_ps(base + 4 * (i + step), _mm256_extractf128_ps(r[i], 1));
    }
}

// Transposes the 4 x 4 matrices in the low and in the high halves.
inline void transpose_halves(const __m256* r, __m256* out) {
    const __m256 a = _mm256_unpacklo_ps(r[0], r[1]), b = _mm256_unpackhi_ps(r[0], r[1]);
    const __m256 c = _mm256_unpacklo_ps(r[2], r[3]), d = _mm256_unpackhi_ps(r[2], r[3]);
    out[0] = _mm256_shuffle_ps(a, c, 0x44), out[1] = _mm256_shuffle_ps(a, c, 0xee);
    out[2] = _mm256_shuffle_ps(b, d, 0x44), out[3] = _mm256_shuffle_ps(b, d, 0xee);
}

// out[c] = column c of 8 rows of three or four floats, one after the other.
template <int columns>
inline void load_packed(Float* out, const float* base) {
    __m256 r[4], t[4];
    load_halves<columns>(r, base);
    if constexpr (columns == 3) {  // x0 y0 z0 x1 | y1 z1 x2 y2 | z2 x3 y3 z3
        const __m256 xy = _mm256_shuffle_ps(r[1], r[2], _MM_SHUFFLE(2, 1, 3, 2));
        const __m256 yz = _mm256_shuffle_ps(r[0], r[1], _MM_SHUFFLE(1, 0, 2, 1));
        out[0] = _mm256_shuffle_ps(r[0], xy, _MM_SHUFFLE(2, 0, 3, 0));
        out[1] = _mm256_shuffle_ps(yz, xy, _MM_SHUFFLE(3, 1, 2, 0));
        out[2] = _mm256_shuffle_ps(yz, r[2], _MM_SHUFFLE(3, 0, 3, 1));
    } else {
        // Half i holds row i below and row i + 4 above, as the transpose wants it.
        transpose_halves(r, t);
        for (int c = 0; c < columns; ++c) out[c] = t[c];
    }
}

// The inverse of load_packed.
template <int columns>
inline void store_packed(const Float* in, float* base) {
    __m256 r[4];
    if constexpr (columns == 3) {
        const __m256 x = in[0].v, y = in[1].v, z = in[2].v;
        const __m256 xy = _mm256_shuffle_ps(x, y, _MM_SHUFFLE(2, 0, 2, 0));
        const __m256 yz = _mm256_shuffle_ps(y, z, _MM_SHUFFLE(3, 1, 3, 1));
        const __m256 zx = _mm256_shuffle_ps(z, x, _MM_SHUFFLE(3, 1, 2, 0));
        r[0] = _mm256_shuffle_ps(xy, zx, _MM_SHUFFLE(2, 0, 2, 0));
        r[1] = _mm256_shuffle_ps(yz, xy, _MM_SHUFFLE(3, 1, 2, 0));
        r[2] = _mm256_shuffle_ps(zx, yz, _MM_SHUFFLE(3, 1, 3, 1));
    } else {
        const __m256 columns_[4] = {in[0].v, in[1].v, in[2].v, in[3].v};
        transpose_halves(columns_, r);
    }
    store_halves<columns>(r, base);
}

// out[k] = sum of the lanes of v[k], k < count <= 16; out[k] = 0 beyond.
template <int count>
inline void sums(const Float* v, float* out) {
    const __m256 zero = _mm256_setzero_ps();
    const auto at = [&](int i) { return i < count ? v[i].v : zero; };
    for (int half = 0; half < 2; ++half) {
        __m256 a[4], b[2];
        for (int i = 0; i < 4; ++i) {
            const __m256 x = at(8 * half + 2 * i), y = at(8 * half + 2 * i + 1);
            a[i] = _mm256_add_ps(_mm256_unpacklo_ps(x, y), _mm256_unpackhi_ps(x, y));
        }
        for (int i = 0; i < 2; ++i)
            b[i] = _mm256_add_ps(_mm256_shuffle_ps(a[2 * i], a[2 * i + 1], 0x44),
                                 _mm256_shuffle_ps(a[2 * i], a[2 * i + 1], 0xee));
        const __m256 all =
            _mm256_add_ps(_mm256_permute2f128_ps(b[0], b[1], 0x20), _mm256_permute2f128_ps(b[0], b[1], 0x31));
        _mm256_storeu_ps(out + 8 * half, all);
    }
}

}  // namespace MIEN_ISA
}  // namespace mien

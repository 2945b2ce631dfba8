#pragma once

#include <immintrin.h>

namespace mien {
namespace MIEN_ISA {

constexpr int kLanes = 16;

struct Mask {
    __mmask16 bits;
};

struct Float {
    __m512 v;
    Float() = default;
    Float(__m512 value) : v(value) {}
    explicit Float(float value) : v(_mm512_set1_ps(value)) {}
};

inline Float operator+(Float a, Float b) { return _mm512_add_ps(a.v, b.v); }
inline Float operator-(Float a, Float b) { return _mm512_sub_ps(a.v, b.v); }
inline Float operator*(Float a, Float b) { return _mm512_mul_ps(a.v, b.v); }
inline Float operator/(Float a, Float b) { return _mm512_div_ps(a.v, b.v); }
inline Float operator-(Float a) { return _mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f)); }
inline Float& operator+=(Float& a, Float b) { return a = a + b; }
inline Mask operator<(Float a, Float b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask operator<=(Float a, Float b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
inline Mask operator>(Float a, Float b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
inline Mask operator>=(Float a, Float b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)}; }
inline Mask operator==(Float a, Float b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
inline Mask operator&(Mask a, Mask b) { return {static_cast<__mmask16>(a.bits & b.bits)}; }
inline Mask operator|(Mask a, Mask b) { return {static_cast<__mmask16>(a.bits | b.bits)}; }
inline Mask operator!(Mask a) { return {static_cast<__mmask16>(~a.bits)}; }

inline uint32_t bits(Mask m) { return m.bits; }
inline bool any(Mask m) { return m.bits != 0; }
inline Mask first_lanes(int count) { return {static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << count) - 1)}; }
inline Float select(Mask m, Float yes, Float no) { return _mm512_mask_blend_ps(m.bits, no.v, yes.v); }
inline Float keep(Mask m, Float a) { return _mm512_maskz_mov_ps(m.bits, a.v); }

inline Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }    // a b + c
inline Float fnma(Float a, Float b, Float c) { return _mm512_fnmadd_ps(a.v, b.v, c.v); }  // c - a b
inline Float min(Float a, Float b) { return _mm512_min_ps(a.v, b.v); }
inline Float max(Float a, Float b) { return _mm512_max_ps(a.v, b.v); }
inline Float sqrt(Float a) { return _mm512_sqrt_ps(a.v); }
inline Float round(Float a) { return _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Float floor(Float a) { return _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
inline Float ceil(Float a) { return _mm512_roundscale_ps(a.v, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC); }

// 1 / a, one Newton step after the estimate: relative error below 3e-7.
inline Float reciprocal(Float a) {
    const __m512 r = _mm512_rcp14_ps(a.v);
    return _mm512_mul_ps(r, _mm512_fnmadd_ps(a.v, r, _mm512_set1_ps(2.0f)));
}

inline Float scale_by_power(Float a, Float n) { return _mm512_scalef_ps(a.v, n.v); }
inline void split_exponent(Float x, Float& exponent, Float& mantissa) {
    exponent = _mm512_getexp_ps(x.v);
    mantissa = _mm512_getmant_ps(x.v, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
}

inline Float load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Float a) { _mm512_storeu_ps(p, a.v); }
inline Float load_first(const float* p, int count) { return _mm512_maskz_loadu_ps(first_lanes(count).bits, p); }
inline void store_first(float* p, int count, Float a) { _mm512_mask_storeu_ps(p, first_lanes(count).bits, a.v); }
inline void store_int(int32_t* p, Float a) { _mm512_storeu_si512(p, _mm512_cvttps_epi32(a.v)); }
inline float sum(Float a) { return _mm512_reduce_add_ps(a.v); }

// Transposes the 16 x 16 matrix whose rows are r[0..15].
inline void transpose(Float* r) {
    __m512 t[16], u[16];
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_ps(r[2 * i].v, r[2 * i + 1].v);
        t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i].v, r[2 * i + 1].v);
    }
    for (int i = 0; i < 4; ++i) {
        const __m512d a = _mm512_castps_pd(t[4 * i]), b = _mm512_castps_pd(t[4 * i + 1]);
        const __m512d c = _mm512_castps_pd(t[4 * i + 2]), d = _mm512_castps_pd(t[4 * i + 3]);
        u[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        u[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        u[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        u[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    // u[4 g + k]: rows 4 g .. 4 g + 3 of column 4 q + k in quarter q.
    for (int k = 0; k < 4; ++k) {
        const __m512 a = _mm512_shuffle_f32x4(u[k], u[4 + k], 0x88),
                     b = _mm512_shuffle_f32x4(u[8 + k], u[12 + k], 0x88);
        const __m512 c = _mm512_shuffle_f32x4(u[k], u[4 + k], 0xdd),
                     d = _mm512_shuffle_f32x4(u[8 + k], u[12 + k], 0xdd);
        r[k] = _mm512_shuffle_f32x4(a, b, 0x88);
        r[4 + k] = _mm512_shuffle_f32x4(c, d, 0x88);
        r[8 + k] = _mm512_shuffle_f32x4(a, b, 0xdd);
        r[12 + k] = _mm512_shuffle_f32x4(c, d, 0xdd);
    }
}

// Where the parts of 16 packed rows of `columns` floats are. Reading: element columns * i + c goes to lane i of column
// c. Writing: lane l of register j is column (16 j + l) % columns of row (16 j + l) / columns. An index counts through
// two registers; with three columns the third one comes in a second step.
template <int columns>
struct Packed {
    alignas(64) int32_t read[columns][16] = {}, read_last[columns][16] = {};
    alignas(64) int32_t write[columns][16] = {}, write_last[columns][16] = {};
    constexpr Packed() {
        for (int c = 0; c < columns; ++c)
            for (int i = 0; i < 16; ++i) {
                const int from = columns * i + c, to = 16 * c + i, row = to / columns, column = to % columns;
                read[c][i] = from % 32;
                read_last[c][i] = from < 32 ? i : from - 16;
                write[c][i] = column % 2 == 0 ? row : 16 + row;
                write_last[c][i] = column == 2 ? 16 + row : i;
            }
    }
};

// out[c] = column c of 16 rows of three or four floats, one after the other.
template <int columns>
inline void load_packed(Float* out, const float* base) {
    static constexpr Packed<columns> at;
    __m512 r[columns];
    for (int c = 0; c < columns; ++c) r[c] = _mm512_loadu_ps(base + 16 * c);
    for (int c = 0; c < columns; ++c) {
        const __m512i index = _mm512_load_si512(at.read[c]);
        const __m512 low = _mm512_permutex2var_ps(r[0], index, r[1]);
        if constexpr (columns == 3)
            out[c] = _mm512_permutex2var_ps(low, _mm512_load_si512(at.read_last[c]), r[2]);
        else
            out[c] = _mm512_mask_blend_ps(0xff00, low, _mm512_permutex2var_ps(r[2], index, r[3]));
    }
}

// The inverse of load_packed.
template <int columns>
inline void store_packed(const Float* in, float* base) {
    static constexpr Packed<columns> at;
    for (int c = 0; c < columns; ++c) {
        const __m512i index = _mm512_load_si512(at.write[c]);
        const __m512 low = _mm512_permutex2var_ps(in[0].v, index, in[1].v);
        __m512 all;
        if constexpr (columns == 3)
            all = _mm512_permutex2var_ps(low, _mm512_load_si512(at.write_last[c]), in[2].v);
        else
            all = _mm512_mask_blend_ps(0xcccc, low, _mm512_permutex2var_ps(in[2].v, index, in[3].v));
        _mm512_storeu_ps(base + 16 * c, all);
    }
}

// out[k] = sum of the lanes of v[k], k < count <= 16; out[k] = 0 beyond.
template <int count>
inline void sums(const Float* v, float* out) {
    __m512 a[8], b[4], c[2];
    const __m512 zero = _mm512_setzero_ps();
    const auto at = [&](int i) { return i < count ? v[i].v : zero; };
    for (int i = 0; i < 8; ++i) {
        const __m512 x = at(2 * i), y = at(2 * i + 1);
        a[i] = 2 * i < count ? _mm512_add_ps(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y)) : zero;
    }
    for (int i = 0; i < 4; ++i) {
        const __m512d x = _mm512_castps_pd(a[2 * i]), y = _mm512_castps_pd(a[2 * i + 1]);
        b[i] = 4 * i < count ? _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                                             _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)))
                             : zero;
    }
    for (int i = 0; i < 2; ++i)
        c[i] = _mm512_add_ps(_mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x88),
                             _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xdd));
    const __m512 all = _mm512_add_ps(_mm512_shuffle_f32x4(c[0], c[1], 0x88), _mm512_shuffle_f32x4(c[0], c[1], 0xdd));
    _mm512_storeu_ps(out, all);
}

// 64 rows of 16 bits <-> 16 columns of 64 bits: bit i of columns[b] is bit b of rows[i].
inline void bits_to_columns(const uint16_t* rows, uint64_t* columns) {
    const __m512i low = _mm512_loadu_si512(rows), high = _mm512_loadu_si512(rows + 32);
    for (int b = 0; b < 16; ++b) {
        const __m512i bit = _mm512_set1_epi16(static_cast<short>(1u << b));
        columns[b] = uint64_t(_mm512_test_epi16_mask(high, bit)) << 32 | _mm512_test_epi16_mask(low, bit);
    }
}

inline void bits_to_rows(const uint64_t* columns, uint16_t* rows) {
    __m512i low = _mm512_setzero_si512(), high = low;
    for (int b = 0; b < 16; ++b) {
        const __m512i bit = _mm512_set1_epi16(static_cast<short>(1u << b));
        low = _mm512_or_si512(low, _mm512_maskz_mov_epi16(static_cast<__mmask32>(columns[b]), bit));
        high = _mm512_or_si512(high, _mm512_maskz_mov_epi16(static_cast<__mmask32>(columns[b] >> 32), bit));
    }
    _mm512_storeu_si512(rows, low);
    _mm512_storeu_si512(rows + 32, high);
}

}  // namespace MIEN_ISA
}  // namespace mien

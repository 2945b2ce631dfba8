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

// a b + c and c - a b where m, c elsewhere
inline Float fma_where(Mask m, Float a, Float b, Float c) { return _mm512_mask3_fmadd_ps(a.v, b.v, c.v, m.bits); }
inline Float fnma_where(Mask m, Float a, Float b, Float c) { return _mm512_mask3_fnmadd_ps(a.v, b.v, c.v, m.bits); }

// 2^x where m, for |x| < 120 there, relative error below 5e-7; 0 elsewhere. Adding 1.5 * 2^19 rounds x to sixteenths,
// whose number stands in the last bits then: the last four pick 2^(k/16) from the table (whose entries lack k << 19),
// the others go to the exponent. Two products for the rest, where a polynomial alone takes five.
inline Float exp2_where(Mask m, Float x) {
    const __m512i table = _mm512_setr_epi32(0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532,
                                            0x3f75fed7, 0x3f75583f, 0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c,
                                            0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d);
    const __m512 magic = _mm512_set1_ps(786432.0f), t = _mm512_add_ps(x.v, magic);
    const __m512 f = _mm512_reduce_ps(x.v, 4 << 4 | _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512i sixteenths = _mm512_castps_si512(t);
    const __m512i power =
        _mm512_add_epi32(_mm512_slli_epi32(sixteenths, 19), _mm512_permutexvar_epi32(sixteenths, table));
    const __m512 p =
        _mm512_fmadd_ps(_mm512_fmadd_ps(_mm512_set1_ps(0.24021945893764496f), f, _mm512_set1_ps(0.6931878328323364f)),
                        f, _mm512_set1_ps(1.0f));
    return _mm512_maskz_mul_ps(m.bits, p, _mm512_castsi512_ps(power));
}

inline Float scale_by_power(Float a, Float n) { return _mm512_scalef_ps(a.v, n.v); }
inline void split_exponent(Float x, Float& exponent, Float& mantissa) {
    exponent = _mm512_getexp_ps(x.v);
    mantissa = _mm512_getmant_ps(x.v, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
}

inline Float load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Float a) { _mm512_storeu_ps(p, a.v); }
// Past the caches; p aligned like a register. `end_streaming` before other threads may look.
inline void stream(float* p, Float a) { _mm512_stream_ps(p, a.v); }
inline void end_streaming() { _mm_sfence(); }
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

// Transposes the 4 x 4 matrix of quarters whose rows are r[0..3]; its own inverse.
inline void transpose_quarters(Float* r) {
    const __m512 a = _mm512_shuffle_f32x4(r[0].v, r[1].v, 0x44), b = _mm512_shuffle_f32x4(r[2].v, r[3].v, 0x44);
    const __m512 c = _mm512_shuffle_f32x4(r[0].v, r[1].v, 0xee), d = _mm512_shuffle_f32x4(r[2].v, r[3].v, 0xee);
    r[0] = _mm512_shuffle_f32x4(a, b, 0x88), r[1] = _mm512_shuffle_f32x4(a, b, 0xdd);
    r[2] = _mm512_shuffle_f32x4(c, d, 0x88), r[3] = _mm512_shuffle_f32x4(c, d, 0xdd);
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

// One step of `sums`: half of the lanes of the result come from a, half from b, each the sum of two lanes.
inline __m512 fold_halves(__m512 a, __m512 b) {  // lanes 0, 1 of every four: a; 2, 3: b
    return _mm512_add_ps(_mm512_mask_blend_ps(0xcccc, a, b),
                         _mm512_castpd_ps(_mm512_shuffle_pd(_mm512_castps_pd(a), _mm512_castps_pd(b), 0x55)));
}
inline __m512 fold_neighbours(__m512 a, __m512 b) {  // even lanes: a, odd lanes: b
    return _mm512_add_ps(_mm512_mask_blend_ps(0xaaaa, a, b),
                         _mm512_permute_ps(_mm512_mask_blend_ps(0x5555, a, b), 0xb1));
}
inline __m512 fold_quarters(__m512 a, __m512 b) {  // quarters 0, 1: a; 2, 3: b
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}

// out[k] = sum of the lanes of v[k], k < count <= 16; out[k] = 0 beyond.
template <int count>
inline void sums(const Float* v, float* out) {
    __m512 a[8], b[4];
    const __m512 zero = _mm512_setzero_ps();
    // Lane 4 q + 2 h + n of the result is to hold sum 4 q + 2 h + n: v[i] meets v[i + 2] in halves, then its
    // neighbour, then the quarters.
    const auto at = [&](int i) { return i < count ? v[i].v : zero; };
    for (int q = 0; q < 4; ++q)
        for (int n = 0; n < 2; ++n)
            a[2 * q + n] = 4 * q + n < count ? fold_halves(at(4 * q + n), at(4 * q + n + 2)) : zero;
    for (int q = 0; q < 4; ++q) b[q] = 4 * q < count ? fold_neighbours(a[2 * q], a[2 * q + 1]) : zero;
    const __m512 low = fold_quarters(b[0], b[1]), high = fold_quarters(b[2], b[3]);
    const __m512 all = _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
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

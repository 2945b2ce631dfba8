#pragma once

namespace mien {
namespace MIEN_ISA {

constexpr int kLanes = 1;

using Mask = bool;
using Float = float;

inline uint32_t bits(Mask m) { return m ? 1u : 0u; }
inline Mask first_lanes(int count) { return count > 0; }

// Round to nearest even without a library call, for |a| < 2^22.
inline Float round(Float a) {
    const float magic = 12582912.0f;  // 1.5 * 2^23
    return (a + magic) - magic;
}
inline Float scale_by_power(Float a, Float n) {
    const uint32_t pattern = static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23;
    float power;
    std::memcpy(&power, &pattern, sizeof power);
    return a * power;
}

// a b + c and c - a b where m, c elsewhere
inline Float fma_where(Mask m, Float a, Float b, Float c) { return m ? fma(a, b, c) : c; }
inline Float fnma_where(Mask m, Float a, Float b, Float c) { return m ? fnma(a, b, c) : c; }

// 2^x where m, for |x| < 120 there, relative error below 4e-7; 0 elsewhere.
inline Float exp2_where(Mask m, Float x) {
    if (!m) return 0.0f;
    const float whole = round(x), f = x - whole;
    float p = 0.0013276466634124517f;
    p = fma(p, f, 0.009675540961325169f);
    p = fma(p, f, 0.05550713464617729f);
    p = fma(p, f, 0.24022120237350464f);
    p = fma(p, f, 0.6931469440460205f);
    p = fma(p, f, 1.0000001192092896f);
    return scale_by_power(p, whole);
}

inline Float load(const float* p) { return *p; }
inline void store(float* p, Float a) { *p = a; }
inline void stream(float* p, Float a) { *p = a; }
inline void end_streaming() {}
inline Float load_first(const float* p, int) { return *p; }
inline void store_first(float* p, int, Float a) { *p = a; }
inline void store_int(int32_t* p, Float a) { *p = static_cast<int32_t>(a); }
inline float sum(Float a) { return a; }
inline void transpose(Float*) {}

// out[k] = sum of the lanes of v[k], k < count <= 16; out[k] = 0 beyond.
template <int count>
inline void sums(const Float* v, float* out) {
    for (int i = 0; i < 16; ++i) out[i] = i < count ? v[i] : 0.0f;
}

}  // namespace MIEN_ISA
}  // namespace mien

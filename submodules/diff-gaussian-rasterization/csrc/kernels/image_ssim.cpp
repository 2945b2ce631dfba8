// Fused L1 and SSIM (Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to Structural
// Similarity", IEEE TIP 2004) with the analytic gradient, in one pass.
//
// Window: 11x11 Gaussian, sigma 1.5, zeros outside the picture. Of image a and target b we filter a, b, the product a b
// and the square of the difference d = a - b: four maps where the usual formula takes five. With window means [.] and
// m = [a], n = [b], e = (m - n)^2, v = [d^2] - e:
//
//     A1 = 2 m n + C1,   A2 = 2 ([a b] - m n) + C2,   B1 = A1 + e,   B2 = A2 + v,   ssim = A1 A2 / (B1 B2)
//
// which is the usual formula. With 1 - ssim = (e B2 + A1 v) / (B1 B2) instead of the difference, everything that
// vanishes where the pictures agree is proportional to e, v or m - n: exactly zero, and accurate nearby. The gradient
// is [d ssim / d m] + b [d ssim / d [a b]] + 2 d [d ssim / d [d^2]].
//
// Rows are kept interleaved: cut into kWide equal parts, part k in lane k. A neighbour in x is then a neighbour in
// memory, a whole vector on, so that filtering along x takes aligned loads and no shuffles, like filtering along y.
//
// A strip of rows goes through the stages kRows rows at a time, with rings of rows between them: load and interleave;
// filter along y; filter along x, ssim and its three derivatives, and these along x again; these along y, gradient.
#include "image.h"

#include "kernels/simd.h"

namespace mien {
namespace MIEN_ISA {
namespace {

// kRows: rows filtered along y together; kGroup: vectors filtered along x together. Their inputs stay in registers.
#if defined(MIEN_ISA_avx512)
constexpr int kWide = 16, kRows = 8, kGroup = 4;
typedef __m512 Vec;
typedef int Bits __attribute__((vector_size(64)));
#elif defined(MIEN_ISA_avx2)
constexpr int kWide = 8, kRows = 4, kGroup = 4;
typedef __m256 Vec;
typedef int Bits __attribute__((vector_size(32)));
#else
constexpr int kWide = 4, kRows = 4, kGroup = 4;
typedef float Vec __attribute__((vector_size(16)));
typedef int Bits __attribute__((vector_size(16)));
#endif

constexpr int kRadius = 5, kWindow = kRows + 2 * kRadius;
constexpr int kMaps = 4, kDerivatives = 3;
constexpr float kC1 = 0.01f * 0.01f, kC2 = 0.03f * 0.03f;

// exp(-d^2 / (2 1.5^2)) for d = 0..5; kNorm: 1 / the sum over the window of 11x11, applied once at the end. Nudged by
// an ulp, so that the mean of ones comes out as exactly 1: in white areas [a b] - m n would be off otherwise.
constexpr float kTap[kRadius + 1] = {
    1.0f, 8.007373810e-01f, 4.111123085e-01f, 1.353352666e-01f, 2.856549993e-02f, 3.865919774e-03f};
constexpr float kNorm = 7.076223940e-02f;

inline Vec load_vec(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline void store_vec(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

inline Vec keep_bits(Vec v, const float* mask) {
    Bits a, b;
    std::memcpy(&a, &v, sizeof a);
    std::memcpy(&b, mask, sizeof b);
    a &= b;
    std::memcpy(&v, &a, sizeof v);
    return v;
}

// A product that is not fused into a sum. Where the compiler may choose, it fuses some rows of a group and not others,
// and a pixel's value depends on its place in the group.
inline Vec rounded(Vec v) {
#if defined(MIEN_ISA_avx512)
    __asm__("" : "+v"(v));
#elif defined(MIEN_ISA_avx2)
    __asm__("" : "+x"(v));
#elif defined(__aarch64__)
    __asm__("" : "+w"(v));
#endif
    return v;
}

// Sums of rows, lane by lane in float64.
class Sum {
public:
    void add(Vec v) {
        float parts[kWide];
        store_vec(parts, v);
        for (int i = 0; i < kWide; ++i) lanes_[i] += parts[i];
    }
    double total() const {
        double sum = 0.0;
        for (int i = 0; i < kWide; ++i) sum += lanes_[i];
        return sum;
    }

private:
    double lanes_[kWide] = {};
};

#if defined(MIEN_ISA_scalar)
inline Vec load_part(const float* p, int count) {
    Vec v = {};
    for (int i = 0; i < kWide && i < count; ++i) v[i] = p[i];
    return v;
}
inline void store_part(float* p, int count, Vec v) {
    for (int i = 0; i < kWide && i < count; ++i) p[i] = v[i];
}
inline Vec inverse(Vec v) { return 1.0f / v; }
inline Vec minus_product(Vec c, Vec a, Vec b) { return c - a * b; }
inline Vec from_left(Vec v) { return Vec{0.0f, v[0], v[1], v[2]}; }
inline Vec from_right(Vec v) { return Vec{v[1], v[2], v[3], 0.0f}; }
inline void transpose_block(Vec* r) {
    float in[kWide][kWide];
    std::memcpy(in, r, sizeof in);
    for (int i = 0; i < kWide; ++i) r[i] = Vec{in[0][i], in[1][i], in[2][i], in[3][i]};
}
#else
inline Vec load_part(const float* p, int count) { return count >= kWide ? load_vec(p) : load_first(p, count).v; }
inline void store_part(float* p, int count, Vec v) {
    if (count >= kWide)
        store_vec(p, v);
    else
        store_first(p, count, v);
}
inline Vec inverse(Vec v) { return reciprocal(v).v; }
inline Vec minus_product(Vec c, Vec a, Vec b) { return fnma(a, b, c).v; }
inline void transpose_block(Vec* r) {
    Float rows[kWide];
    for (int i = 0; i < kWide; ++i) rows[i] = r[i];
    transpose(rows);
    for (int i = 0; i < kWide; ++i) r[i] = rows[i].v;
}
// Lane k takes what lane k - 1 (k + 1) holds; nothing comes in from outside.
#if defined(MIEN_ISA_avx512)
inline Vec from_left(Vec v) {
    const __m512i zero = _mm512_setzero_si512();
    return _mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_castps_si512(v), zero, 15));
}
inline Vec from_right(Vec v) {
    const __m512i zero = _mm512_setzero_si512();
    return _mm512_castsi512_ps(_mm512_alignr_epi32(zero, _mm512_castps_si512(v), 1));
}
#else
inline Vec from_left(Vec v) {
    const __m256 turned = _mm256_permutevar8x32_ps(v, _mm256_setr_epi32(7, 0, 1, 2, 3, 4, 5, 6));
    return _mm256_blend_ps(turned, _mm256_setzero_ps(), 0x01);
}
inline Vec from_right(Vec v) {
    const __m256 turned = _mm256_permutevar8x32_ps(v, _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 0));
    return _mm256_blend_ps(turned, _mm256_setzero_ps(), 0x80);
}
#endif
#endif

// Filters `count` vectors in a line, `value(i)` being vector i of count + 10, and hands each to `take(i, sum)`.
template <int count, class Value, class Take>
inline __attribute__((always_inline)) void filter(const Value& value, const Take& take) {
    Vec v[count + 2 * kRadius];
#pragma GCC unroll 20
    for (int i = 0; i < count + 2 * kRadius; ++i) v[i] = value(i);
#pragma GCC unroll 8
    for (int o = 0; o < count; ++o) {
        Vec sum = v[o + kRadius];
#pragma GCC unroll 5
        for (int d = 1; d <= kRadius; ++d) sum += kTap[d] * (v[o + kRadius - d] + v[o + kRadius + d]);
        take(o, sum);
    }
}

// Vectors of an interleaved row: as many as a part of the row has pixels, and enough for the window to stay inside.
int part_length(int width) {
    const int pixels = (width + kWide - 1) / kWide, least = pixels < kRadius ? kRadius : pixels;
    return (least + kGroup - 1) / kGroup * kGroup;
}

// An odd number of vectors, so that no two rows of a window share a cache set more often than they must.
std::ptrdiff_t row_stride(int width) { return std::ptrdiff_t{(part_length(width) + 2 * kRadius) | 1} * kWide; }

// Places of rows in the scratch memory. A ring keeps row y at place y % kWindow.
enum Place {
    kZeros,
    kInside,  // a mask: all bits set where a lane is inside the picture
    kImages,
    kTargets = kImages + kWindow,
    kFiltered = kTargets + kWindow,
    kDerived = kFiltered + kMaps * kRows,
    kDerivedRings = kDerived + kDerivatives,
    kPlaces = kDerivedRings + kDerivatives * kWindow,
};

std::size_t scratch_size(int width) { return static_cast<std::size_t>(kPlaces * row_stride(width)); }

class Strip {
public:
    Strip(const SsimPlane& plane, int first, int last, float* scratch)
        : plane_(plane),
          first_(first),
          last_(last),
          length_(part_length(plane.width)),
          stride_(row_stride(plane.width)),
          start_(scratch + kRadius * kWide) {
        const int reach = plane.gradient != nullptr ? kRadius : 0;
        begin_ = first > reach ? first - reach : 0;
        end_ = last + reach < plane.height ? last + reach : plane.height;
        loaded_from_ = begin_ > kRadius ? begin_ - kRadius : 0;
        loaded_ = loaded_from_;
        std::memset(row(kZeros) - kRadius * kWide, 0, static_cast<std::size_t>(stride_) * sizeof(float));
        for (int i = 0; i < length_ * kWide; ++i) {
            const std::uint32_t inside = i / kWide + i % kWide * length_ < plane.width ? 0xffffffffu : 0u;
            std::memcpy(row(kInside) + i, &inside, sizeof inside);
        }
    }

    void values() {
        for (int y = first_; y < last_; y += kRows) derive(y);
    }

    void values_and_gradient() {
        // Gradient rows trail the derivatives by the radius; both come in groups of kRows.
        constexpr int kLead = (2 * kRadius + kRows - 1) / kRows * kRows;
        for (int y = first_ + kRadius - kLead; y - kRadius < last_; y += kRows) {
            derive(y);
            if (y - kRadius >= first_) gradient(y - kRadius);
        }
    }

    double l1() const { return l1_.total(); }
    double loss() const { return loss_.total(); }

private:
    // What kRows rows from `first` on see through the window, of rows in [begin, end) of a ring; zeros elsewhere.
    struct Window {
        const float* row[kWindow];

        Window(const Strip& strip, int ring, int first, int begin, int end) {
            for (int r = 0; r < kWindow; ++r) {
                const int y = first + r - kRadius;
                row[r] = strip.row(y >= begin && y < end ? ring + y % kWindow : int{kZeros});
            }
        }
        Vec at(int r, int x) const { return load_vec(row[r] + x); }
    };

    float* row(int place) const { return start_ + place * stride_; }

    // The last vectors of a part come before the first of the next, and the other way round.
    void close(float* x) const {
        for (int i = 0; i < kRadius * kWide; i += kWide) {
            store_vec(x + i - kRadius * kWide, from_left(load_vec(x + i + (length_ - kRadius) * kWide)));
            store_vec(x + i + length_ * kWide, from_right(load_vec(x + i)));
        }
    }

    // Row of a picture -> interleaved row; zeros beyond the picture.
    void interleave(const float* in, float* out) const {
        for (int offset = 0; offset < length_; offset += kWide) {
            Vec r[kWide];
            if ((kWide - 1) * length_ + offset + kWide <= plane_.width) {
#pragma GCC unroll 16
                for (int k = 0; k < kWide; ++k) r[k] = load_vec(in + k * length_ + offset);
            } else {
                for (int k = 0; k < kWide; ++k) {
                    const int count = plane_.width - k * length_ - offset;
                    r[k] = count > 0 ? load_part(in + k * length_ + offset, count) : Vec{};
                }
            }
            transpose_block(r);
            const int count = length_ - offset < kWide ? length_ - offset : kWide;
            for (int i = 0; i < count; ++i) store_vec(out + (offset + i) * kWide, r[i]);
        }
    }

    // The way back.
    void deinterleave(const float* in, float* out) const {
        for (int offset = 0; offset < length_; offset += kWide) {
            Vec r[kWide];
            for (int i = 0; i < kWide; ++i) r[i] = offset + i < length_ ? load_vec(in + (offset + i) * kWide) : Vec{};
            transpose_block(r);
            for (int k = 0; k < kWide; ++k) {
                const int left = length_ - offset, inside = plane_.width - k * length_ - offset;
                const int count = left < inside ? left : inside;
                if (count > 0) store_part(out + k * length_ + offset, count, r[k]);
            }
        }
    }

    void load_row(int y) {
        const std::ptrdiff_t start = std::ptrdiff_t{y} * plane_.width;
        float* images = row(kImages + y % kWindow);
        float* targets = row(kTargets + y % kWindow);
        interleave(plane_.image + start, images);
        interleave(plane_.target + start, targets);
        if (y < first_ || y >= last_) return;
        Vec sum = {};
        for (int x = 0; x < length_ * kWide; x += kWide) {
            const Vec d = load_vec(images + x) - load_vec(targets + x);
            sum += d < 0.0f ? -d : d;
        }
        l1_.add(sum);
    }

    // Rows [y, y + kRows), where wanted: ssim, and its derivatives into their rings.
    void derive(int y) {
        const int from = y > begin_ ? y : begin_, to = y + kRows < end_ ? y + kRows : end_;
        if (from >= to) return;
        for (; loaded_ < plane_.height && loaded_ < to + kRadius; ++loaded_) load_row(loaded_);
        filter_maps(y);
        for (int wanted = from; wanted < to; ++wanted) {
            for (int map = 0; map < kMaps; ++map) close(row(kFiltered + map * kRows + wanted - y));
            ssim_row(wanted, row(kFiltered + wanted - y));
            if (plane_.gradient == nullptr) continue;
            for (int map = 0; map < kDerivatives; ++map)
                filter_derivative(row(kDerived + map), row(kDerivedRings + map * kWindow + wanted % kWindow));
        }
    }

    void filter_maps(int y) const {
        const Window a(*this, kImages, y, loaded_from_, loaded_), b(*this, kTargets, y, loaded_from_, loaded_);
        const std::ptrdiff_t map = kRows * stride_;
        for (int x = 0; x < length_ * kWide; x += kWide) {
            float* out = row(kFiltered) + x;
            const auto take = [&](int o, Vec sum) __attribute__((always_inline)) { store_vec(out + o * stride_, sum); };
            filter<kRows>([&](int r) __attribute__((always_inline)) { return a.at(r, x); }, take);
            out += map;
            filter<kRows>([&](int r) __attribute__((always_inline)) { return b.at(r, x); }, take);
            out += map;
            filter<kRows>([&](int r) __attribute__((always_inline)) { return rounded(a.at(r, x) * b.at(r, x)); }, take);
            out += map;
            filter<kRows>(
                [&](int r) __attribute__((always_inline)) {
                    const Vec d = a.at(r, x) - b.at(r, x);
                    return rounded(d * d);
                },
                take);
        }
    }

    // One row of four filtered maps -> ssim and, if wanted, its derivatives.
    void ssim_row(int y, const float* maps) {
        const float* inside = row(kInside);
        float* derived = row(kDerived);
        Vec sum = {};
        for (int x = 0; x < length_ * kWide; x += kGroup * kWide) {
            Vec mean[kMaps][kGroup];
#pragma GCC unroll 4
            for (int map = 0; map < kMaps; ++map) {
                const float* p = maps + map * kRows * stride_ + x - kRadius * kWide;
                filter<kGroup>([&](int i) __attribute__((always_inline)) { return load_vec(p + i * kWide); },
                               [&](int o, Vec value) __attribute__((always_inline)) { mean[map][o] = value; });
            }
#pragma GCC unroll 4
            for (int o = 0; o < kGroup; ++o) {
                const int at = x + o * kWide;
                const Vec m = kNorm * mean[0][o], n = kNorm * mean[1][o], difference = m - n;
                const Vec e = difference * difference, v = kNorm * mean[3][o] - e;
                const Vec covariance = minus_product(kNorm * mean[2][o], m, n);
                const Vec a1 = (m + m) * n + kC1, a2 = (covariance + covariance) + kC2;
                const Vec b1 = a1 + e, b2 = a2 + v, a1v = a1 * v;
                const Vec scale = inverse(b1 * b2), loss = (e * b2 + a1v) * scale, s = 1.0f - loss;
                sum += keep_bits(loss, inside + at);
                if (plane_.gradient == nullptr) continue;
                const Vec by_b2 = b1 * scale, twice = scale + scale;
                const Vec by_mean = twice * ((a2 - a1) * (m * loss - difference) + m * s * (e - v));
                store_vec(derived + at, keep_bits(by_mean, inside + at));
                store_vec(derived + stride_ + at, keep_bits(twice * by_b2 * a1v, inside + at));
                store_vec(derived + 2 * stride_ + at, keep_bits(-s * by_b2, inside + at));
            }
        }
        if (y >= first_ && y < last_) loss_.add(sum);
    }

    void filter_derivative(float* in, float* out) const {
        close(in);
        for (int x = 0; x < length_ * kWide; x += kGroup * kWide)
            filter<kGroup>([&](int i)
                               __attribute__((always_inline)) { return load_vec(in + x + (i - kRadius) * kWide); },
                           [&](int o, Vec sum) __attribute__((always_inline)) { store_vec(out + x + o * kWide, sum); });
    }

    // Gradient of rows [y, y + kRows) of the strip, from the rings.
    void gradient(int y) const {
        const Window mean(*this, kDerivedRings, y, begin_, end_);
        const Window product(*this, kDerivedRings + kWindow, y, begin_, end_);
        const Window square(*this, kDerivedRings + 2 * kWindow, y, begin_, end_);
        const float *a[kRows], *b[kRows];
        for (int o = 0; o < kRows; ++o) {
            a[o] = row(kImages + (y + o) % kWindow);
            b[o] = row(kTargets + (y + o) % kWindow);
        }
        float* out = row(kFiltered);
        const float scale = plane_.ssim_scale * kNorm;
        const Vec plus = Vec{} + plane_.l1_scale, zero = {};
        for (int x = 0; x < length_ * kWide; x += kWide) {
            Vec sums[kRows];
            filter<kRows>([&](int r) __attribute__((always_inline)) { return mean.at(r, x); },
                          [&](int o, Vec sum) __attribute__((always_inline)) { sums[o] = sum; });
            filter<kRows>([&](int r) __attribute__((always_inline)) { return product.at(r, x); },
                          [&](int o, Vec sum) __attribute__((always_inline)) { sums[o] += load_vec(b[o] + x) * sum; });
            filter<kRows>([&](int r) __attribute__((always_inline)) { return square.at(r, x); },
                          [&](int o, Vec sum) __attribute__((always_inline)) {
                              const Vec d = load_vec(a[o] + x) - load_vec(b[o] + x);
                              const Vec sign = d > 0.0f ? plus : (d < 0.0f ? -plus : zero);
                              store_vec(out + o * stride_ + x, scale * (sums[o] + (d + d) * sum) + sign);
                          });
        }
        for (int o = 0; o < kRows && y + o < last_; ++o)
            deinterleave(out + o * stride_, plane_.gradient + std::ptrdiff_t{y + o} * plane_.width);
    }

    const SsimPlane& plane_;
    const int first_, last_;  // rows to report
    const int length_;
    const std::ptrdiff_t stride_;
    float* const start_;
    int begin_, end_;           // rows whose ssim is needed
    int loaded_from_, loaded_;  // rows in the rings of pictures: the last kWindow before loaded_
    Sum l1_, loss_;
};

void strip(const SsimPlane& plane, int first, int last, float* scratch, double* l1, double* loss) {
    Strip strip(plane, first, last, scratch);
    if (plane.gradient == nullptr)
        strip.values();
    else
        strip.values_and_gradient();
    *l1 = strip.l1();
    *loss = strip.loss();
}

}  // namespace

extern const SsimKernels image_ssim_kernels;
const SsimKernels image_ssim_kernels = {scratch_size, strip};

}  // namespace MIEN_ISA
}  // namespace mien

// Fused L1 and SSIM (Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to Structural
// Similarity", IEEE TIP 2004) with the analytic gradient.
//
// Window: 11x11 Gaussian, sigma 1.5, zeros outside the picture. Instead of the two variances we filter the product p = a b
// and the squared difference q = (a - b)^2. With window means [.], m = [a], n = [b], e = (m - n)^2:
//
//     v = [q] - e,   A1 = 2 m n + C1,   A2 = 2 ([p] - m n) + C2,   B1 = A1 + e,   B2 = A2 + v,   ssim = A1 A2 / (B1 B2)
//
// which is the usual formula, one filter cheaper. With 1 - ssim = (e B2 + A1 v) / (B1 B2) instead of the difference,
// everything that vanishes where the pictures agree is proportional to e, v or a - b: exactly zero, and accurate nearby.
#include "image.h"

#include <cstring>

namespace mien {
namespace MIEN_ISA {
namespace {

#if defined(MIEN_ISA_avx512)
constexpr int kLanes = 16, kRows = 8;  // kRows + 10 vectors stay in registers
#elif defined(MIEN_ISA_avx2)
constexpr int kLanes = 8, kRows = 2;
#else
constexpr int kLanes = 4, kRows = 2;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));

constexpr int kRadius = 5, kTaps = 2 * kRadius + 1;
constexpr int kMargin = 16;  // zeros left and right of a filtered row, a whole vector so that stores stay aligned
constexpr int kMaps = 4;
constexpr float kC1 = 0.01f * 0.01f, kC2 = 0.03f * 0.03f;

// exp(-d^2 / (2 1.5^2)) for d = 0..5, divided by the sum over the window.
constexpr float kTap[kRadius + 1] = {2.660117249e-01f, 2.130055377e-01f, 1.093606895e-01f,
                                     3.600077213e-02f, 7.598758135e-03f, 1.028380084e-03f};

int padded(int width) { return (width + kLanes - 1) / kLanes * kLanes; }
std::size_t row_stride(int width) { return static_cast<std::size_t>(padded(width)) + 2 * kMargin; }

Vec load(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

// Whole vectors, or the last columns of a row: lanes beyond `count` read as zero, are not written, and are zeroed by `keep`.
struct Whole {
    static constexpr int count = kLanes;

    Vec load(const float* p) const { return MIEN_ISA::load(p); }
    void store(float* p, Vec v) const { MIEN_ISA::store(p, v); }
    Vec keep(Vec v) const { return v; }
};

struct Tail {
    int count;

    Vec load(const float* p) const {
        Vec v = {};
        for (int i = 0; i < count; ++i) v[i] = p[i];
        return v;
    }
    void store(float* p, Vec v) const {
        for (int i = 0; i < count; ++i) p[i] = v[i];
    }
    Vec keep(Vec v) const {
        for (int i = count; i < kLanes; ++i) v[i] = 0.0f;
        return v;
    }
};

// Calls body(x, lanes) for every vector of a row.
template <class Body>
inline __attribute__((always_inline)) void for_columns(int width, const Body& body) {
    int x = 0;
    for (; x + kLanes <= width; x += kLanes) body(x, Whole{});
    if (x < width) body(x, Tail{width - x});
}

// Sum of many vectors in float64.
class Sum {
public:
    void add(Vec v, Whole) {
        float parts[kLanes];
        store(parts, v);
        for (int h = 0; h < 2; ++h) {
            Half half;
            std::memcpy(&half, parts + h * kLanes / 2, sizeof half);
            sums_[h] += __builtin_convertvector(half, Wide);
        }
    }
    void add(Vec v, Tail lanes) {
        for (int i = 0; i < lanes.count; ++i) sums_[0][0] += v[i];
    }
    double total() const {
        double sum = 0.0;
        for (int i = 0; i < kLanes / 2; ++i) sum += sums_[0][i] + sums_[1][i];
        return sum;
    }

private:
    typedef float Half __attribute__((vector_size(2 * kLanes)));
    typedef double Wide __attribute__((vector_size(4 * kLanes)));
    Wide sums_[2] = {};
};

// Rows of one map, the first being picture row `origin`.
struct Rows {
    const float* start;
    std::ptrdiff_t stride;
    int origin;
};

// What kRows picture rows from `first` on see through the window; zeros outside the picture.
struct Window {
    const float* row[kRows + kTaps - 1];

    Window(const Rows& rows, int first, int height, const float* zeros) {
        for (int r = 0; r < kRows + kTaps - 1; ++r) {
            const int y = first + r - kRadius;
            row[r] = y >= 0 && y < height ? rows.start + (y - rows.origin) * rows.stride : zeros;
        }
    }

    Vec at(int r, int x) const { return load(row[r] + x); }
};

// Filters kRows vectors of one column, `value(r)` being that of window row r, into rows of `filtered`.
template <class Value>
inline __attribute__((always_inline)) void filter_column(float* filtered, std::size_t stride, const Value& value) {
    Vec v[kRows + kTaps - 1];
#pragma GCC unroll 20
    for (int r = 0; r < kRows + kTaps - 1; ++r) v[r] = value(r);
#pragma GCC unroll 8
    for (int o = 0; o < kRows; ++o) {
        Vec sum = kTap[0] * v[o + kRadius];
#pragma GCC unroll 5
        for (int d = 1; d <= kRadius; ++d) sum += kTap[d] * (v[o + kRadius - d] + v[o + kRadius + d]);
        store(filtered + o * stride, sum);
    }
}

inline __attribute__((always_inline)) Vec filter_row(const float* row, int x) {
    const float* p = row + kMargin + x;
    Vec sum = kTap[0] * load(p);
#pragma GCC unroll 5
    for (int d = 1; d <= kRadius; ++d) sum += kTap[d] * (load(p - d) + load(p + d));
    return sum;
}

constexpr int kCopiedRows = kSsimBlockRows + 2 * kRadius;

// Rows of: filtered maps, copies of image and target, zeros.
std::size_t scratch_size(int width) { return row_stride(width) * (kRows * kMaps + 2 * kCopiedRows + 1); }

void forward_row(const SsimPlane& plane, int y, const float* const* filtered, double* row_l1, double* row_ssim) {
    const float* image = plane.image + std::ptrdiff_t{y} * plane.width;
    const float* target = plane.target + std::ptrdiff_t{y} * plane.width;
    const std::ptrdiff_t start = y * plane.derivative_stride;
    Sum l1, ssim;
    for_columns(plane.width, [&](int x, auto lanes) __attribute__((always_inline)) {
        const Vec m = filter_row(filtered[0], x), n = filter_row(filtered[1], x);
        const Vec p = filter_row(filtered[2], x), q = filter_row(filtered[3], x);
        const Vec product = m * n, e = (m - n) * (m - n), v = q - e;
        const Vec a1 = 2.0f * product + kC1, a2 = 2.0f * (p - product) + kC2, b1 = a1 + e, b2 = a2 + v;
        const Vec scale = 1.0f / (b1 * b2), loss = (e * b2 + a1 * v) * scale, s = 1.0f - loss;
        ssim.add(s, lanes);
        const Vec d = lanes.load(image + x) - lanes.load(target + x);
        l1.add(d < 0.0f ? -d : d, lanes);
        if (plane.derivatives[0] == nullptr) return;
        const Vec by_mean = 2.0f * scale * ((a2 - a1) * (n - m + m * loss) + m * s * (e - v));
        const Vec by_product = 2.0f * scale * scale * (a1 * b1 * v), by_square = -s * b1 * scale;
        store(plane.derivatives[0] + start + x, lanes.keep(by_mean));
        store(plane.derivatives[1] + start + x, lanes.keep(by_product));
        store(plane.derivatives[2] + start + x, lanes.keep(by_square));
    });
    row_l1[y] = l1.total();
    row_ssim[y] = ssim.total();
}

// Copies what rows [first, last) see of a picture, with zeros behind the last column. Without the copy, all rows of a
// picture whose width is a power of two would compete for a few cache sets.
Rows copy_rows(const float* picture, const SsimPlane& plane, int first, int last, float* copy, std::size_t stride) {
    const Rows rows{copy, static_cast<std::ptrdiff_t>(stride), first - kRadius};
    const int begin = first > kRadius ? first - kRadius : 0;
    const int end = last + kRadius < plane.height ? last + kRadius : plane.height;
    for (int y = begin; y < end; ++y)
        for_columns(plane.width, [&](int x, auto lanes) __attribute__((always_inline)) {
            store(copy + (y - rows.origin) * stride + x, lanes.load(picture + std::ptrdiff_t{y} * plane.width + x));
        });
    return rows;
}

void forward(const SsimPlane& plane, int first, int last, float* scratch, double* row_l1, double* row_ssim) {
    const std::size_t stride = row_stride(plane.width);
    const auto row = [=](int index) { return scratch + index * stride; };
    const Rows images = copy_rows(plane.image, plane, first, last, row(kRows * kMaps), stride);
    const Rows targets = copy_rows(plane.target, plane, first, last, row(kRows * kMaps + kCopiedRows), stride);
    const float* zeros = row(kRows * kMaps + 2 * kCopiedRows);
    for (int y = first; y < last; y += kRows) {
        const Window a(images, y, plane.height, zeros), b(targets, y, plane.height, zeros);
        for (int x = 0; x < plane.width; x += kLanes) {
            float* filtered = scratch + kMargin + x;
            filter_column(filtered, stride, [&](int r) __attribute__((always_inline)) { return a.at(r, x); });
            filter_column(filtered + kRows * stride, stride,
                          [&](int r) __attribute__((always_inline)) { return b.at(r, x); });
            filter_column(filtered + 2 * kRows * stride, stride,
                          [&](int r) __attribute__((always_inline)) { return a.at(r, x) * b.at(r, x); });
            filter_column(filtered + 3 * kRows * stride, stride, [&](int r) __attribute__((always_inline)) {
                const Vec d = a.at(r, x) - b.at(r, x);
                return d * d;
            });
        }
        for (int o = 0; o < kRows && y + o < last; ++o) {
            const float* filtered[] = {row(o), row(kRows + o), row(2 * kRows + o), row(3 * kRows + o)};
            forward_row(plane, y + o, filtered, row_l1, row_ssim);
        }
    }
}

void backward_row(const SsimPlane& plane, int y, float l1_scale, float ssim_scale, const float* const* filtered,
                  float* gradient) {
    const std::ptrdiff_t start = std::ptrdiff_t{y} * plane.width;
    const Vec plus = Vec{} + l1_scale, zero = Vec{};
    for_columns(plane.width, [&](int x, auto lanes) __attribute__((always_inline)) {
        const Vec b = lanes.load(plane.target + start + x), d = lanes.load(plane.image + start + x) - b;
        const Vec by_mean = filter_row(filtered[0], x), by_product = filter_row(filtered[1], x);
        const Vec by_square = filter_row(filtered[2], x);
        const Vec sign = d > 0.0f ? plus : (d < 0.0f ? -plus : zero);
        lanes.store(gradient + start + x, ssim_scale * (by_mean + b * by_product + 2.0f * d * by_square) + sign);
    });
}

void backward(const SsimPlane& plane, int first, int last, float l1_scale, float ssim_scale, float* scratch,
              float* gradient) {
    const std::size_t stride = row_stride(plane.width);
    const auto row = [=](int index) { return scratch + index * stride; };
    const float* zeros = row(kRows * kMaps + 2 * kCopiedRows);
    for (int y = first; y < last; y += kRows) {
        for (int m = 0; m < 3; ++m) {
            const Window window({plane.derivatives[m], plane.derivative_stride, 0}, y, plane.height, zeros);
            for (int x = 0; x < plane.width; x += kLanes)
                filter_column(row(m * kRows) + kMargin + x, stride,
                              [&](int r) __attribute__((always_inline)) { return window.at(r, x); });
        }
        for (int o = 0; o < kRows && y + o < last; ++o) {
            const float* filtered[] = {row(o), row(kRows + o), row(2 * kRows + o)};
            backward_row(plane, y + o, l1_scale, ssim_scale, filtered, gradient);
        }
    }
}

}  // namespace

extern const SsimKernels image_ssim_kernels;
const SsimKernels image_ssim_kernels = {scratch_size, forward, backward};

}  // namespace MIEN_ISA
}  // namespace mien

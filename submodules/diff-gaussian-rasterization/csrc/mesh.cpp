// Z-buffered triangle rasterisation with exact coverage.
//
// Pineda, "A Parallel Algorithm for Polygon Rasterization", SIGGRAPH 1988: a pixel is inside where three edge functions
// are positive. They are evaluated in fixed point, so faces that share an edge neither overlap nor leave a gap
// (top-left rule). Bands of rows are independent and visit their faces in index order, so the thread count can't change
// a bit.

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "api.h"
#include "mesh.h"
#include "parallel.h"

namespace mien {
namespace {

// Vertices are snapped to 2^-kSubpixelBits pixels; coverage is then exact in 64-bit integers as long as |x| and |y|
// stay below 2^20 pixels and the image sides within kMaxImageSide.
constexpr int kSubpixelBits = 10;
constexpr int kMaxImageSide = 16384;
constexpr std::int64_t kOne = std::int64_t{1} << kSubpixelBits;
constexpr std::int64_t kHalf = kOne / 2;

constexpr float kMostPixels = (1 << 20) - 1;

constexpr int kBandRows = 16;
constexpr std::int64_t kBlockFaces = 4096;

struct Input {
    const float* vertices;  // [vertex_count, 3] screen x, y (pixels), camera depth z
    std::int64_t vertex_count;
    const std::int32_t* faces;  // [face_count, 3] indices into vertices
    std::int64_t face_count;
    int width, height;
    float near_depth;  // faces with a vertex at z <= near_depth are not drawn
};

struct Output {
    std::int32_t* face_id;  // [height, width], -1 = empty
    float* barycentrics;    // [height, width, 3], perspective-correct
    float* depth;           // [height, width], +inf = empty
};

struct Vertex {
    std::int32_t x, y;  // fixed point
    double inverse_depth;
    bool drawn;
};

// Signed doubled area of (a, b, p): positive where p lies to the right of a -> b on a screen whose y points down.
std::int64_t edge(const Vertex& a, const Vertex& b, std::int64_t px, std::int64_t py) {
    return (std::int64_t{b.x} - a.x) * (py - a.y) - (std::int64_t{b.y} - a.y) * (px - a.x);
}

// Of two faces that share an edge, exactly one owns the pixel centres on it.
bool is_top_left(const Vertex& a, const Vertex& b) { return b.y < a.y || (b.y == a.y && b.x > a.x); }

int first_pixel(std::int64_t lowest) { return static_cast<int>((lowest - kHalf + kOne - 1) >> kSubpixelBits); }
int last_pixel(std::int64_t highest) { return static_cast<int>((highest - kHalf) >> kSubpixelBits); }

void check(const Input& in) {
    require(in.vertex_count >= 0 && in.face_count >= 0 && in.face_count <= INT32_MAX,
            "rasterize_mesh: the number of vertices or faces is out of range");
    require(in.near_depth > 0.0f && std::isfinite(in.near_depth), "rasterize_mesh: near must be positive");
    if (in.vertex_count > 0) require_pointers("rasterize_mesh", in.vertices);
    if (in.face_count > 0) require_pointers("rasterize_mesh", in.faces);
    for (std::int64_t i = 0; i < in.vertex_count; ++i) {
        const float* v = in.vertices + 3 * i;
        const bool near = std::abs(v[0]) <= kMostPixels && std::abs(v[1]) <= kMostPixels;
        if (!std::isfinite(v[2]) || (v[2] > in.near_depth && !near))
            throw InvalidArgument("vertices: row " + std::to_string(i) +
                                  " is not finite or lies 2^20 pixels or more from the picture");
    }
    for (std::int64_t i = 0; i < 3 * in.face_count; ++i)
        if (in.faces[i] < 0 || in.faces[i] >= in.vertex_count)
            throw InvalidArgument("faces: row " + std::to_string(i / 3) + " holds " + std::to_string(in.faces[i]) +
                                  ", expected 0 to " + std::to_string(in.vertex_count - 1));
}

// The nearest face so far at the pixels of a band.
struct Band {
    std::vector<float> nearest;     // 1/z, 0 = empty
    std::vector<std::int32_t> ids;  // -1 = empty
};

struct Rows {
    int first, last;  // inclusive; empty if last < first

    int first_band() const { return first / kBandRows; }
    int last_band() const { return last < first ? first_band() - 1 : last / kBandRows; }
};

class Rasterizer {
public:
    Rasterizer(const Input& input, const Output& output, int threads)
        : in_(input), out_(output), threads_(threads), vertices_(input.vertex_count), rows_(input.face_count) {}

    void run() {
        snap_vertices();
        parallel_for(threads_, (in_.face_count + kBlockFaces - 1) / kBlockFaces, [this](std::int64_t block, int) {
            bound_faces(block * kBlockFaces, std::min((block + 1) * kBlockFaces, in_.face_count));
        });
        sort_into_bands();
        std::vector<Band> scratch(static_cast<std::size_t>(threads_));
        parallel_for(threads_, bands(), [&](std::int64_t band, int worker) {
            const int first = static_cast<int>(band) * kBandRows, last = std::min(first + kBandRows, in_.height) - 1;
            draw_band(band, first, last, scratch[worker]);
            for (int y = first; y <= last; ++y) interpolate_row(y, scratch[worker].ids.data() + (y - first) * stride());
        });
    }

private:
    std::int64_t bands() const { return (in_.height + kBandRows - 1) / kBandRows; }

    const Vertex& corner(std::int64_t face, int k) const { return vertices_[in_.faces[3 * face + k]]; }

    void snap_vertices() {
        for (std::int64_t i = 0; i < in_.vertex_count; ++i) {
            const float* v = in_.vertices + 3 * i;
            Vertex& snapped = vertices_[i];
            snapped = {0, 0, 0.0, v[2] > in_.near_depth};
            if (!snapped.drawn) continue;
            snapped.x = static_cast<std::int32_t>(std::lrint(double{v[0]} * kOne));
            snapped.y = static_cast<std::int32_t>(std::lrint(double{v[1]} * kOne));
            snapped.inverse_depth = 1.0 / v[2];
        }
    }

    void bound_faces(std::int64_t first, std::int64_t last) {
        for (std::int64_t f = first; f < last; ++f) {
            const Vertex &a = corner(f, 0), &b = corner(f, 1), &c = corner(f, 2);
            rows_[f] = {0, -1};
            if (!(a.drawn && b.drawn && c.drawn) || edge(a, b, c.x, c.y) == 0) continue;
            const auto [left, right] = std::minmax({a.x, b.x, c.x});
            const auto [top, bottom] = std::minmax({a.y, b.y, c.y});
            if (std::max(first_pixel(left), 0) > std::min(last_pixel(right), in_.width - 1)) continue;
            rows_[f] = {std::max(first_pixel(top), 0), std::min(last_pixel(bottom), in_.height - 1)};
        }
    }

    // Counting sort; the faces of a band stay in index order.
    void sort_into_bands() {
        starts_.assign(bands() + 1, 0);
        for (const Rows& r : rows_)
            for (int band = r.first_band(); band <= r.last_band(); ++band) ++starts_[band + 1];
        for (std::int64_t band = 0; band < bands(); ++band) starts_[band + 1] += starts_[band];
        order_.resize(starts_.back());
        std::vector<std::int64_t> next(starts_.begin(), starts_.end() - 1);
        for (std::int64_t f = 0; f < in_.face_count; ++f) {
            for (int band = rows_[f].first_band(); band <= rows_[f].last_band(); ++band)
                order_[next[band]++] = static_cast<std::int32_t>(f);
        }
    }

    void draw_band(std::int64_t band, int first, int last, Band& scratch) {
        scratch.nearest.assign(kBandRows * stride(), 0.0f);
        scratch.ids.assign(kBandRows * stride(), -1);
        for (std::int64_t i = starts_[band]; i < starts_[band + 1]; ++i) {
            const std::int32_t face = order_[i];
            const int top = std::max(rows_[face].first, first), bottom = std::min(rows_[face].last, last);
            const std::int64_t left = first_column(face), pixel = (top - first) * stride() + left;
            MIEN_KERNELS(mesh_kernels)
                .draw(set_up(face, static_cast<int>(left), top, bottom), stride(), scratch.nearest.data() + pixel,
                      scratch.ids.data() + pixel);
        }
    }

    // A kernel may touch some values behind the last column.
    std::int64_t stride() const { return in_.width + MIEN_KERNELS(mesh_kernels).lanes; }

    int first_column(std::int32_t face) const {
        return std::max(first_pixel(std::min({corner(face, 0).x, corner(face, 1).x, corner(face, 2).x})), 0);
    }

    MeshFace set_up(std::int32_t face, int left, int top, int bottom) const {
        const Vertex& a = corner(face, 0);
        const bool clockwise = edge(a, corner(face, 1), corner(face, 2).x, corner(face, 2).y) > 0;
        const Vertex &b = corner(face, clockwise ? 1 : 2), &c = corner(face, clockwise ? 2 : 1);
        const Vertex* const starts[] = {&b, &c, &a};
        const Vertex* const ends[] = {&c, &a, &b};
        const Vertex* const opposite[] = {&a, &b, &c};
        const double per_area = 1.0 / static_cast<double>(edge(a, b, c.x, c.y));
        const int right = std::min(last_pixel(std::max({a.x, b.x, c.x})), in_.width - 1);
        MeshFace result{{}, {}, {}, 0.0, 0.0, 0.0, 0.0f, 0.0f, face, right - left + 1, bottom - top + 1};
#pragma GCC unroll 3
        for (int k = 0; k < 3; ++k) {
            const Vertex &from = *starts[k], &to = *ends[k];
            const double weight = opposite[k]->inverse_depth * per_area;
            const std::int64_t value = edge(from, to, left * kOne + kHalf, top * kOne + kHalf);
            result.along_x[k] = (std::int64_t{from.y} - to.y) * kOne;
            result.along_y[k] = (std::int64_t{to.x} - from.x) * kOne;
            // With the offset, "inside or on an owned edge" is "not negative".
            result.edge[k] = value - (is_top_left(from, to) ? 0 : 1);
            result.inverse_depth += static_cast<double>(value) * weight;
            result.inverse_along_x += static_cast<double>(result.along_x[k]) * weight;
            result.inverse_along_y += static_cast<double>(result.along_y[k]) * weight;
        }
        const auto [least, greatest] = std::minmax({a.inverse_depth, b.inverse_depth, c.inverse_depth});
        result.least = static_cast<float>(least);
        result.greatest = static_cast<float>(greatest);
        return result;
    }

    void interpolate_row(int y, const std::int32_t* ids) {
        const std::int64_t py = y * kOne + kHalf;
        std::int32_t previous = -1;
        std::int64_t edges[3] = {}, steps[3] = {};
        double inverse_depths[3] = {};
        for (int x = 0; x < in_.width; ++x) {
            const std::int64_t pixel = std::int64_t{y} * in_.width + x;
            float* weights = out_.barycentrics + 3 * pixel;
            const std::int32_t face = out_.face_id[pixel] = ids[x];
            if (face < 0) {
                weights[0] = weights[1] = weights[2] = 0.0f;
                out_.depth[pixel] = std::numeric_limits<float>::infinity();
            } else {
#pragma GCC unroll 3
                for (int k = 0; k < 3; ++k) {
                    edges[k] += steps[k];
                    if (face == previous) continue;
                    const Vertex &from = corner(face, (k + 1) % 3), &to = corner(face, (k + 2) % 3);
                    edges[k] = edge(from, to, x * kOne + kHalf, py);
                    steps[k] = (std::int64_t{from.y} - to.y) * kOne;
                    inverse_depths[k] = corner(face, k).inverse_depth;
                }
                const auto a = static_cast<double>(edges[0]), b = static_cast<double>(edges[1]);
                const auto c = static_cast<double>(edges[2]);
                const double wa = a * inverse_depths[0], wb = b * inverse_depths[1], wc = c * inverse_depths[2];
                const double z = 1.0 / (wa + wb + wc);
                weights[0] = static_cast<float>(wa * z);
                weights[1] = static_cast<float>(wb * z);
                weights[2] = static_cast<float>(wc * z);
                out_.depth[pixel] = static_cast<float>((a + b + c) * z);
            }
            previous = face;
        }
    }

    const Input in_;
    const Output out_;
    const int threads_;
    std::vector<Vertex> vertices_;
    std::vector<Rows> rows_;            // per face: image rows with a pixel centre inside its bounding box
    std::vector<std::int64_t> starts_;  // per band: its part of `order_`
    std::vector<std::int32_t> order_;   // faces by band
};

}  // namespace
}  // namespace mien

// Vertices with z > near_depth must lie within +-1048575 pixels, all depths must be finite, and face indices lie within
// [0, vertex_count).
MIEN_API int mien_mesh_rasterize(const float* vertices, int64_t vertex_count, const int32_t* faces, int64_t face_count,
                                 int width, int height, float near_depth, int threads, int32_t* face_id,
                                 float* barycentrics, float* depth) {
    return mien::guarded([&] {
        mien::require(width > 0 && height > 0 && width <= mien::kMaxImageSide && height <= mien::kMaxImageSide,
                      "rasterize_mesh: the image must have 1 to 16384 pixels a side");
        mien::check({vertices, vertex_count, faces, face_count, width, height, near_depth});
        mien::require_pointers("rasterize_mesh", face_id, barycentrics, depth);
        mien::Rasterizer({vertices, vertex_count, faces, face_count, width, height, near_depth},
                         {face_id, barycentrics, depth}, mien::checked_threads(threads))
            .run();
    });
}

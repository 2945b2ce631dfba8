// The double instance of the maths core: every splat at every pixel, no tiles, no tricks. Slow; for tests and for
// judging the fast path.
#include <algorithm>
#include <cmath>
#include <vector>

#include "api.h"
#include "core/blend.h"
#include "core/covariance.h"
#include "core/projection.h"
#include "core/rotation.h"
#include "core/spherical_harmonics.h"

namespace {

using namespace mien;
using namespace mien::common;

constexpr int kMaxBasis = 16;

// Mirrors ReferenceScene and ReferenceResult in diff_gaussian_rasterization/_reference.py. All arrays double, shapes as
// in `rasterize`.
struct Scene {
    int64_t count;
    int32_t width, height, sh_degree, sh_coefficients;
    double near_plane, far_plane, eps2d, alpha_max, stop;
    const double *means, *quats, *scales, *opacities, *sh, *screen_offsets;
    const double *world_to_camera, *intrinsics, *background;
    const double *g_image, *g_alpha, *g_depth;  // dL/doutput; null: forward only
};

struct Result {
    double *image, *alpha, *depth;
    double *means, *quats, *scales, *opacities, *sh, *screen_offsets, *world_to_camera, *intrinsics,
        *background;  // gradients
};

struct Splat {
    bool drawn = false;
    Vec3<double> mean, scale, direction;
    Quat<double> quat;
    double inverse_quat, inverse_distance, opacity;
    Mat3<double> rotation, root;
    Projection<double> projection;
    Conic<double> conic;
    double basis[kMaxBasis], rgb[3];
    bool colour_live[3];
    // gradients
    double g_log_opacity = 0, g_rgb[3] = {};
    Sym2<double> g_conic = {};
    ProjectionGradient<double> g_projection = {};
};

Vec3<double> vec3(const double* p) { return {p[0], p[1], p[2]}; }

Pinhole<double> pinhole(const Scene& s) {
    const double *v = s.world_to_camera, *k = s.intrinsics, w = s.width, h = s.height, margin = 0.15;
    Pinhole<double> p;
    for (int i = 0; i < 3; ++i) p.rotation.row[i] = vec3(v + 4 * i);
    p.translation = {v[3], v[7], v[11]};
    p.centre = -1.0 * transposed_times(p.rotation, p.translation);
    p.fx = k[0], p.fy = k[4], p.cx = k[2], p.cy = k[5];
    p.x_low = -(p.cx + margin * w) / p.fx, p.x_high = (w - p.cx + margin * w) / p.fx;
    p.y_low = -(p.cy + margin * h) / p.fy, p.y_high = (h - p.cy + margin * h) / p.fy;
    return p;
}

void basis_of(int degree, const Vec3<double>& d, double* basis) {
    switch (degree) {
        case 0: return sh_basis<0>(d, basis);
        case 1: return sh_basis<1>(d, basis);
        case 2: return sh_basis<2>(d, basis);
        default: return sh_basis<3>(d, basis);
    }
}

Vec3<double> basis_vjp(int degree, const Vec3<double>& d, const double* weights) {
    switch (degree) {
        case 0: return sh_basis_vjp<0>(d, weights);
        case 1: return sh_basis_vjp<1>(d, weights);
        case 2: return sh_basis_vjp<2>(d, weights);
        default: return sh_basis_vjp<3>(d, weights);
    }
}

Splat make_splat(const Scene& s, const Pinhole<double>& camera, int64_t i) {
    Splat p;
    const double* q = s.quats + 4 * i;
    p.mean = vec3(s.means + 3 * i), p.scale = vec3(s.scales + 3 * i), p.opacity = s.opacities[i];
    p.inverse_quat = inverse_length(Quat<double>{q[0], q[1], q[2], q[3]});
    p.quat = {q[0] * p.inverse_quat, q[1] * p.inverse_quat, q[2] * p.inverse_quat, q[3] * p.inverse_quat};
    p.rotation = rotation_matrix(p.quat);
    p.root = scale_columns(p.rotation, p.scale);
    p.projection = project(camera, p.mean);
    p.projection.x += s.screen_offsets[2 * i] * 0.5 * s.width;
    p.projection.y += s.screen_offsets[2 * i + 1] * 0.5 * s.height;
    p.conic = make_conic(covariance_2d(p.projection.row0, p.projection.row1, p.root), s.eps2d);
    p.drawn = p.projection.point.z > s.near_plane && p.projection.point.z < s.far_plane && p.opacity * 255.0 >= 1.0;
    p.direction = direction(camera.centre, p.mean, p.inverse_distance);
    basis_of(s.sh_degree, p.direction, p.basis);
    for (int c = 0; c < 3; ++c) {
        double value = 0.5;
        for (int k = 0; k < sh_count(s.sh_degree); ++k) value += p.basis[k] * s.sh[(i * s.sh_coefficients + k) * 3 + c];
        p.colour_live[c] = value > 0;
        p.rgb[c] = std::max(value, 0.0);
    }
    return p;
}

struct Pixel {
    double image[3], depth, transmittance;
};

// Calls visit(splat, dx, dy, raw, alpha, transmittance before it) for every splat that the pixel takes, front to back.
template <class Visit>
Pixel composite(const Scene& s, std::vector<Splat>& splats, const std::vector<int64_t>& order, int x, int y,
                Visit&& visit) {
    Pixel pixel = {{0, 0, 0}, 0, 1};
    for (int64_t i : order) {
        Splat& p = splats[i];
        const Sym2<double>& c = p.conic.inverse;
        const double dx = x + 0.5 - p.projection.x, dy = y + 0.5 - p.projection.y;
        const double e =
            exponent(dx, dy, 0.5 * kLog2e * c.xx, kLog2e * c.xy, 0.5 * kLog2e * c.yy, std::log2(p.opacity));
        if (e < kLog2AlphaMin) continue;
        const double raw = std::exp2(e), alpha = std::min(raw, s.alpha_max);
        if (pixel.transmittance * (1 - alpha) < s.stop) break;
        const double weight = alpha * pixel.transmittance;
        visit(p, dx, dy, raw, alpha, pixel.transmittance);
        for (int k = 0; k < 3; ++k) pixel.image[k] += weight * p.rgb[k];
        pixel.depth += weight * p.projection.point.z;
        pixel.transmittance -= weight;
    }
    return pixel;
}

// Adds one pixel's derivative to the splats it shows; `out` is what `composite` returned for it, without the
// background.
void composite_vjp(const Scene& s, std::vector<Splat>& splats, const std::vector<int64_t>& order, int x, int y,
                   const Pixel& out, Result& r) {
    const int64_t at = int64_t(y) * s.width + x, plane = int64_t(s.width) * s.height;
    const double g[3] = {s.g_image[at], s.g_image[plane + at], s.g_image[2 * plane + at]};
    double rest = out.depth * s.g_depth[at] - out.transmittance * s.g_alpha[at];
    for (int k = 0; k < 3; ++k) {
        rest += g[k] * (out.image[k] + out.transmittance * s.background[k]);
        r.background[k] += g[k] * out.transmittance;
    }
    composite(s, splats, order, x, y, [&](Splat& p, double dx, double dy, double raw, double alpha, double t) {
        const double weight = alpha * t;
        const double value = g[0] * p.rgb[0] + g[1] * p.rgb[1] + g[2] * p.rgb[2] + s.g_depth[at] * p.projection.point.z;
        rest -= weight * value;
        for (int k = 0; k < 3; ++k) p.g_rgb[k] += weight * g[k];
        p.g_projection.z += weight * s.g_depth[at];
        if (raw > s.alpha_max) return;
        const double h = raw * (t * value - rest / (1 - alpha));
        const Sym2<double>& c = p.conic.inverse;
        p.g_log_opacity += h;
        p.g_projection.x += h * (c.xx * dx + c.xy * dy);
        p.g_projection.y += h * (c.xy * dx + c.yy * dy);
        p.g_conic.xx -= 0.5 * h * dx * dx, p.g_conic.xy -= h * dx * dy, p.g_conic.yy -= 0.5 * h * dy * dy;
    });
}

void splat_vjp(const Scene& s, const Pinhole<double>& camera, int64_t i, Splat& p, Result& r,
               PinholeGradient<double>& g_camera) {
    Mat3<double> g_root;
    covariance_2d_vjp(p.projection.row0, p.projection.row1, p.root, make_conic_vjp(p.conic, p.g_conic),
                      p.g_projection.row0, p.g_projection.row1, g_root);
    Vec3<double> g_mean = project_vjp(camera, p.mean, p.projection, p.g_projection, g_camera);
    double weights[kMaxBasis] = {};
    for (int k = 0; k < sh_count(s.sh_degree); ++k)
        for (int c = 0; c < 3; ++c) {
            const int64_t at = (i * s.sh_coefficients + k) * 3 + c;
            const double live = p.colour_live[c] ? p.g_rgb[c] : 0;
            r.sh[at] = p.basis[k] * live;
            weights[k] += s.sh[at] * live;
        }
    const Vec3<double> towards =
        direction_vjp(p.direction, p.inverse_distance, basis_vjp(s.sh_degree, p.direction, weights));
    g_mean = g_mean + towards;
    g_camera.centre = g_camera.centre - towards;
    const Quat<double> q =
        normalise_vjp(p.quat, p.inverse_quat, rotation_matrix_vjp(p.quat, scale_columns(g_root, p.scale)));
    const double means[3] = {g_mean.x, g_mean.y, g_mean.z}, quats[4] = {q.w, q.x, q.y, q.z};
    std::copy(means, means + 3, r.means + 3 * i);
    std::copy(quats, quats + 4, r.quats + 4 * i);
    const Vec3<double>*m = g_root.row, *o = p.rotation.row;
    r.scales[3 * i] = m[0].x * o[0].x + m[1].x * o[1].x + m[2].x * o[2].x;
    r.scales[3 * i + 1] = m[0].y * o[0].y + m[1].y * o[1].y + m[2].y * o[2].y;
    r.scales[3 * i + 2] = m[0].z * o[0].z + m[1].z * o[1].z + m[2].z * o[2].z;
    r.opacities[i] = p.g_log_opacity / p.opacity;
    r.screen_offsets[2 * i] = p.g_projection.x * 0.5 * s.width;
    r.screen_offsets[2 * i + 1] = p.g_projection.y * 0.5 * s.height;
}

void spread_camera(const Pinhole<double>& c, const PinholeGradient<double>& g, Result& r) {
    const Vec3<double> g_translation = g.translation - c.rotation * g.centre;
    const double t[3] = {c.translation.x, c.translation.y, c.translation.z},
                 gt[3] = {g_translation.x, g_translation.y, g_translation.z};
    for (int i = 0; i < 3; ++i) {
        const Vec3<double> row = g.rotation.row[i] - t[i] * g.centre;
        const double values[4] = {row.x, row.y, row.z, gt[i]};
        std::copy(values, values + 4, r.world_to_camera + 4 * i);
    }
    r.intrinsics[0] = g.fx - (g.x_low * c.x_low + g.x_high * c.x_high) / c.fx;
    r.intrinsics[4] = g.fy - (g.y_low * c.y_low + g.y_high * c.y_high) / c.fy;
    r.intrinsics[2] = g.cx - (g.x_low + g.x_high) / c.fx;
    r.intrinsics[5] = g.cy - (g.y_low + g.y_high) / c.fy;
}

void check(const Scene& s, const Result& r) {
    require(s.count >= 0 && s.width > 0 && s.height > 0,
            "the number of splats or the size of the picture is out of range");
    require_pointers("reference", s.world_to_camera, s.intrinsics, s.background, r.image, r.alpha, r.depth);
    if (s.count > 0) require_pointers("reference", s.means, s.quats, s.scales, s.opacities, s.sh, s.screen_offsets);
    if (s.g_image == nullptr) return;
    require_pointers("reference", r.world_to_camera, r.intrinsics, r.background);
    if (s.count > 0) require_pointers("reference", r.means, r.quats, r.scales, r.opacities, r.sh, r.screen_offsets);
}

void render(const Scene& s, Result& r) {
    const Pinhole<double> camera = pinhole(s);
    std::vector<Splat> splats;
    std::vector<int64_t> order;
    for (int64_t i = 0; i < s.count; ++i) {
        splats.push_back(make_splat(s, camera, i));
        if (splats[i].drawn) order.push_back(i);
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return splats[a].projection.point.z < splats[b].projection.point.z; });
    const int64_t plane = int64_t(s.width) * s.height;
    for (int64_t at = 0; at < plane; ++at) {
        const int x = static_cast<int>(at % s.width), y = static_cast<int>(at / s.width);
        const Pixel pixel = composite(s, splats, order, x, y, [](Splat&, double, double, double, double, double) {});
        for (int c = 0; c < 3; ++c) r.image[c * plane + at] = pixel.image[c] + pixel.transmittance * s.background[c];
        r.alpha[at] = 1 - pixel.transmittance;
        r.depth[at] = pixel.depth;
        if (s.g_image != nullptr) composite_vjp(s, splats, order, x, y, pixel, r);
    }
    if (s.g_image == nullptr) return;
    PinholeGradient<double> g_camera = {};
    for (int64_t i : order) splat_vjp(s, camera, i, splats[i], r, g_camera);
    spread_camera(camera, g_camera, r);
}

}  // namespace

// Gradients must come zeroed; they are filled only if g_image is given (then g_alpha and g_depth must be, too).
MIEN_API int mien_reference_render(const Scene* scene, Result* result) {
    return guarded([&] {
        require(scene != nullptr && result != nullptr, "a pointer is null");
        require(scene->sh_degree >= 0 && scene->sh_degree <= 3 && scene->sh_coefficients >= sh_count(scene->sh_degree),
                "sh does not fit");
        check(*scene, *result);
        require(scene->g_image == nullptr || (scene->g_alpha != nullptr && scene->g_depth != nullptr),
                "gradients come together");
        render(*scene, *result);
    });
}

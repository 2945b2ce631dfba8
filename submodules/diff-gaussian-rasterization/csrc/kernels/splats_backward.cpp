// Splat stage, backward: adds up a splat's pair slots in their fixed order and carries the sums to the parameters.
#include "kernels/splat_group.h"

namespace mien {
namespace MIEN_ISA {

namespace {

// Order of the sums in a slot; h is dL/d(ln alpha), d the offset of the pixel from the mean.
enum Sum { kH, kHx, kHy, kHxx, kHxy, kHyy, kRed, kGreen, kBlue, kDepth, kSums };

// Sum over each splat's pairs, transposed: out[k] holds sum k, one splat per lane. Returns the slots used.
int64_t gather_sums(const uint32_t* counts, const float* slots, int rows, Float* out) {
    alignas(64) float totals[kLanes][kSlot];
    int64_t used = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
        Float acc[kSlot / kLanes];
        for (Float& a : acc) a = Float(0.0f);
        const int64_t count = lane < rows ? counts[lane] : 0;
        for (int64_t p = 0; p < count; ++p)
            for (int i = 0; i < kSlot / kLanes; ++i) acc[i] += load(slots + (used + p) * kSlot + i * kLanes);
        used += count;
        for (int i = 0; i < kSlot / kLanes; ++i) store(&totals[lane][i * kLanes], acc[i]);
    }
    Float columns[kSlot];
    load_columns<kSlot>(columns, &totals[0][0], kSlot, kLanes);
    for (int k = 0; k < kSums; ++k) out[k] = columns[k];
    return used;
}

struct Incoming {
    Float mean_x, mean_y, depth;
    Sym2<Float> conic;
    Float log_opacity;
    Float rgb[3];
};

Incoming incoming(const Group& g, const Float* sum) {
    const Float half(-0.5f), zero(0.0f);
    const Sym2<Float>& c = g.conic.inverse;
    return {c.xx * sum[kHx] + c.xy * sum[kHy],
            c.xy * sum[kHx] + c.yy * sum[kHy],
            sum[kDepth],
            {half * sum[kHxx], zero - sum[kHxy], half * sum[kHyy]},
            sum[kH],
            {sum[kRed], sum[kGreen], sum[kBlue]}};
}

// Writes dL/dsh, adds the direction's share to dL/dmean and dL/d(camera centre).
template <int degree>
void sh_backward(const Pinhole<Float>& camera, const SplatInputs& in, int64_t first, int rows, const Group& g,
                 const Float* g_rgb, const SplatGradients& out, Vec3<Float>& g_mean, Vec3<Float>& g_centre) {
    constexpr int count = sh_count(degree);
    const int64_t stride = 3 * in.sh_coefficients;
    Float sh[3 * count], basis[count], inverse, live[3], weight[count];
    load_columns<3 * count>(sh, in.sh + first * stride, stride, rows);
    const Vec3<Float> d = direction(camera.centre, g.mean, inverse);
    sh_basis<degree>(d, basis);
    for (int c = 0; c < 3; ++c) {
        Float value(0.5f);
        for (int k = 0; k < count; ++k) value = fma(basis[k], sh[3 * k + c], value);
        live[c] = keep(value > Float(0.0f), g_rgb[c]);
    }
    for (int k = 0; k < count; ++k) weight[k] = sh[3 * k] * live[0] + sh[3 * k + 1] * live[1] + sh[3 * k + 2] * live[2];
    if (degree > 0) {
        const Vec3<Float> towards = direction_vjp(d, inverse, sh_basis_vjp<degree>(d, weight));
        g_mean = g_mean + towards;
        g_centre = g_centre - towards;
    }
    if (out.sh == nullptr) return;
    for (int k = 0; k < count; ++k)
        for (int c = 0; c < 3; ++c) sh[3 * k + c] = basis[k] * live[c];
    store_columns<3 * count>(sh, out.sh + first * stride, stride, rows);
    for (int i = 0; i < rows; ++i)
        for (int64_t k = 3 * count; k < stride; ++k) out.sh[(first + i) * stride + k] = 0.0f;
}

void colours_backward(const Pinhole<Float>& camera, const SplatInputs& in, int64_t first, int rows, const Group& g,
                      const Float* g_rgb, const SplatGradients& out, Vec3<Float>& g_mean, Vec3<Float>& g_centre) {
    if (in.colors != nullptr) {
        if (out.colors != nullptr) store_columns<3>(g_rgb, out.colors + 3 * first, 3, rows);
        return;
    }
    switch (in.sh_degree) {
        case 0: sh_backward<0>(camera, in, first, rows, g, g_rgb, out, g_mean, g_centre); return;
        case 1: sh_backward<1>(camera, in, first, rows, g, g_rgb, out, g_mean, g_centre); return;
        case 2: sh_backward<2>(camera, in, first, rows, g, g_rgb, out, g_mean, g_centre); return;
        default: sh_backward<3>(camera, in, first, rows, g, g_rgb, out, g_mean, g_centre); return;
    }
}

void write_three(float* out, int64_t first, int rows, Mask drawn, const Vec3<Float>& v) {
    if (out == nullptr) return;
    const Float columns[3] = {keep(drawn, v.x), keep(drawn, v.y), keep(drawn, v.z)};
    store_columns<3>(columns, out + 3 * first, 3, rows);
}

// From dL/d(root = R diag(s)) to quaternions and scales.
void root_backward(const View& view, int64_t first, int rows, Mask drawn, const Group& g, const Mat3<Float>& g_root,
                   const SplatGradients& out) {
    const Vec3<Float>*r = g.rotation.row, *m = g_root.row;
    write_three(
        out.scales, first, rows, drawn,
        {m[0].x * r[0].x + m[1].x * r[1].x + m[2].x * r[2].x, m[0].y * r[0].y + m[1].y * r[1].y + m[2].y * r[2].y,
         m[0].z * r[0].z + m[1].z * r[1].z + m[2].z * r[2].z});
    if (out.quats == nullptr) return;
    Quat<Float> q = rotation_matrix_vjp(g.quat, scale_columns(g_root, g.scale));
    if (view.normalise_quats) q = normalise_vjp(g.quat, g.inverse_length, q);
    const Float columns[4] = {keep(drawn, q.w), keep(drawn, q.x), keep(drawn, q.y), keep(drawn, q.z)};
    store_columns<4>(columns, out.quats + 4 * first, 4, rows);
}

// From dL/d(2D covariance) to the shape's parameters; fills the gradients of the rows of J W.
void shape_backward(const View& view, const SplatInputs& in, int64_t first, int rows, Mask drawn, const Group& g,
                    const Sym2<Float>& g_raw, const SplatGradients& out, ProjectionGradient<Float>& g_projection) {
    const Projection<Float>& p = g.projection;
    if (in.covariances != nullptr) {
        Sym3<Float> s;
        covariance_2d_vjp(p.row0, p.row1, g.covariance, g_raw, g_projection.row0, g_projection.row1, s);
        if (out.covariances == nullptr) return;
        const Float columns[6] = {keep(drawn, s.xx), keep(drawn, s.xy), keep(drawn, s.xz),
                                  keep(drawn, s.yy), keep(drawn, s.yz), keep(drawn, s.zz)};
        store_columns<6>(columns, out.covariances + 6 * first, 6, rows);
        return;
    }
    Mat3<Float> g_root;
    covariance_2d_vjp(p.row0, p.row1, g.root, g_raw, g_projection.row0, g_projection.row1, g_root);
    root_backward(view, first, rows, drawn, g, g_root, out);
}

void opacity_backward(const View& view, int64_t first, int rows, Mask drawn, const Group& g, Float g_log_opacity,
                      Sym2<Float>& g_raw, const SplatGradients& out) {
    if (out.opacities != nullptr) {
        Float q[1] = {keep(drawn, g_log_opacity / g.opacity)};
        store_first(out.opacities + first, rows, q[0]);
    }
    if (!view.antialias) return;
    const Sym2<Float> extra = compensation_vjp(g.raw, g.conic, g_log_opacity / g.opacity_factor);
    g_raw = {g_raw.xx + extra.xx, g_raw.xy + extra.xy, g_raw.yy + extra.yy};
}

using CameraGradient = PinholeGradient<Float>;

// Fields in the order of PinholeGradient, lanes that are not drawn left out.
void add_camera(const CameraGradient& g, Mask drawn, Float* total) {
    const Float* fields = &g.rotation.row[0].x;
    for (int i = 0; i < kPinholeGradientSize; ++i) total[i] += keep(drawn, fields[i]);
}

void backward_group(const View& view, const Pinhole<Float>& camera, const SplatInputs& in, int64_t first, int rows,
                    Mask drawn, const Float* sum, const SplatGradients& out, Float* camera_total) {
    Group g;
    load_group(view, camera, in, first, rows, g);
    Incoming in_g = incoming(g, sum);
    for (Float& v : in_g.rgb) v = keep(drawn, v);
    Sym2<Float> g_raw = make_conic_vjp(g.conic, in_g.conic);
    opacity_backward(view, first, rows, drawn, g, in_g.log_opacity, g_raw, out);
    ProjectionGradient<Float> g_projection;
    g_projection.x = in_g.mean_x, g_projection.y = in_g.mean_y, g_projection.z = in_g.depth;
    shape_backward(view, in, first, rows, drawn, g, g_raw, out, g_projection);
    if (out.screen_offsets != nullptr) {
        const Float columns[2] = {keep(drawn, in_g.mean_x * Float(0.5f * view.width)),
                                  keep(drawn, in_g.mean_y * Float(0.5f * view.height))};
        store_columns<2>(columns, out.screen_offsets + 2 * first, 2, rows);
    }
    CameraGradient g_camera = {};
    Projection<Float> unshifted = g.projection;
    Vec3<Float> g_mean = project_vjp(camera, g.mean, unshifted, g_projection, g_camera);
    colours_backward(camera, in, first, rows, g, in_g.rgb, out, g_mean, g_camera.centre);
    write_three(out.means, first, rows, drawn, g_mean);
    if (out.camera != nullptr) add_camera(g_camera, drawn, camera_total);
}

void clear(float* out, int64_t first, int rows, int64_t width) {
    if (out == nullptr) return;
    for (int64_t i = first * width; i < (first + rows) * width; ++i) out[i] = 0.0f;
}

void clear_group(const SplatInputs& in, const SplatGradients& out, int64_t first, int rows) {
    clear(out.means, first, rows, 3);
    clear(out.quats, first, rows, 4);
    clear(out.scales, first, rows, 3);
    clear(out.covariances, first, rows, 6);
    clear(out.opacities, first, rows, 1);
    clear(out.sh, first, rows, 3 * in.sh_coefficients);
    clear(out.colors, first, rows, 3);
    clear(out.screen_offsets, first, rows, 2);
}

}  // namespace

void splats_backward(const View& view, const SplatInputs& in, int64_t first, int64_t last, const uint32_t* counts,
                     const float* slots, const SplatGradients& out) {
    const Pinhole<Float> camera = pinhole(view);
    Float camera_total[kCameraGradient];
    for (Float& t : camera_total) t = Float(0.0f);
    for (int64_t i = first; i < last; i += kLanes) {
        const int rows = last - i < kLanes ? static_cast<int>(last - i) : kLanes;
        alignas(64) float touched[kLanes];
        bool some = false;
        for (int lane = 0; lane < kLanes; ++lane) {
            touched[lane] = lane < rows && counts[i + lane] > 0 ? 1.0f : 0.0f;
            some = some || touched[lane] > 0.0f;
        }
        if (!some) {
            clear_group(in, out, i, rows);
            continue;
        }
        Float sum[kSums];
        slots += kSlot * gather_sums(counts + i, slots, rows, sum);
        backward_group(view, camera, in, i, rows, load(touched) > Float(0.5f), sum, out, camera_total);
    }
    if (out.camera == nullptr) return;
    float* row = out.camera + first / kSplatBlock * kCameraGradient;
    for (int k = 0; k < kCameraGradient; ++k) row[k] = sum(camera_total[k]);
}

}  // namespace MIEN_ISA
}  // namespace mien

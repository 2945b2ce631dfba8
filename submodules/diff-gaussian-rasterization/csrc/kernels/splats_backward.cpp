// Splat stage, backward: adds up a splat's pair slots in their fixed order and carries the sums to the parameters.
#include "kernels/splat_group.h"

namespace mien {
namespace MIEN_ISA {

namespace {

// Order of the sums in a slot; h is dL/d(ln alpha), d the offset of the pixel from the mean.
enum Sum { kH, kHx, kHy, kHxx, kHxy, kHyy, kRed, kGreen, kBlue, kDepth, kSums };

// Sum over each splat's pairs, transposed: out[k] holds sum k, one splat per lane. Lane i has counts[i] slots from
// begin[i] on.
void gather_sums(const uint32_t* begin, const uint32_t* counts, const float* slots, Float* out) {
    alignas(64) float totals[kLanes][kSlot];
    for (int lane = 0; lane < kLanes; ++lane) {
        Float acc[kSlot / kLanes];
        for (Float& a : acc) a = Float(0.0f);
        const float* slot = slots + int64_t(begin[lane]) * kSlot;
        for (uint32_t p = 0; p < counts[lane]; ++p, slot += kSlot)
            for (int i = 0; i < kSlot / kLanes; ++i) acc[i] += load(slot + i * kLanes);
        for (int i = 0; i < kSlot / kLanes; ++i) store(&totals[lane][i * kLanes], acc[i]);
    }
    Float columns[kSlot];
    load_columns<kSlot>(columns, &totals[0][0], kSlot, kLanes);
    for (int k = 0; k < kSums; ++k) out[k] = columns[k];
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
void sh_backward(const Pinhole<Float>& camera, const Gaussians& in, const Rows& rows, const Group& g,
                 const Float* g_rgb, const SplatGradients& out, Vec3<Float>& g_mean, Vec3<Float>& g_centre) {
    constexpr int count = sh_count(degree);
    Float sh[kShRoom], basis[count], inverse, live[3], weight[count];
    load_sh<degree>(in, rows, sh);
    const Vec3<Float> d = direction(camera.centre, g.world.mean, inverse);
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
    for (int k = 0; k < count; ++k)
        for (int c = 0; c < 3; ++c) sh[3 * k + c] = basis[k] * live[c];
    store_sh<degree>(sh, out, in, rows);
}

void colours_backward(const Pinhole<Float>& camera, const Gaussians& in, const Rows& rows, const Group& g,
                      const Float* g_rgb, const SplatGradients& out, Vec3<Float>& g_mean, Vec3<Float>& g_centre) {
    if (in.colors != nullptr) {
        Float columns[padded(3)] = {g_rgb[0], g_rgb[1], g_rgb[2]};
        if (out.colors != nullptr) store_rows<3>(columns, out.colors, 3, rows);
        return;
    }
    switch (in.sh_degree) {
        case 0: sh_backward<0>(camera, in, rows, g, g_rgb, out, g_mean, g_centre); return;
        case 1: sh_backward<1>(camera, in, rows, g, g_rgb, out, g_mean, g_centre); return;
        case 2: sh_backward<2>(camera, in, rows, g, g_rgb, out, g_mean, g_centre); return;
        default: sh_backward<3>(camera, in, rows, g, g_rgb, out, g_mean, g_centre); return;
    }
}

void store_three(const Vec3<Float>& v, float* out, const Rows& rows) {
    if (out == nullptr) return;
    Float columns[padded(3)] = {v.x, v.y, v.z};
    store_rows<3>(columns, out, 3, rows);
}

void store_quats(const Quat<Float>& q, float* out, const Rows& rows) {
    if (out == nullptr) return;
    Float columns[padded(4)] = {q.w, q.x, q.y, q.z};
    store_rows<4>(columns, out, 4, rows);
}

// From dL/d(2D covariance) to that of the shape in the world, or of the given covariance; fills the gradients of the
// rows of J W.
void shape_backward(const Gaussians& in, const Rows& rows, const Group& g, const Sym2<Float>& g_raw,
                    const SplatGradients& out, ProjectionGradient<Float>& g_projection, PosedGaussian<Float>& g_world) {
    const Projection<Float>& p = g.projection;
    if (in.covariances != nullptr) {
        Sym3<Float> s;
        covariance_2d_vjp(p.row0, p.row1, g.covariance, g_raw, g_projection.row0, g_projection.row1, s);
        if (out.covariances == nullptr) return;
        Float columns[padded(6)] = {s.xx, s.xy, s.xz, s.yy, s.yz, s.zz};
        store_rows<6>(columns, out.covariances, 6, rows);
        return;
    }
    Mat3<Float> g_root;
    covariance_2d_vjp(p.row0, p.row1, g.root, g_raw, g_projection.row0, g_projection.row1, g_root);
    const Vec3<Float>*r = g.rotation.row, *m = g_root.row;
    g_world.scale = {m[0].x * r[0].x + m[1].x * r[1].x + m[2].x * r[2].x,
                     m[0].y * r[0].y + m[1].y * r[1].y + m[2].y * r[2].y,
                     m[0].z * r[0].z + m[1].z * r[1].z + m[2].z * r[2].z};
    g_world.quat = rotation_matrix_vjp(g.world.quat, scale_columns(g_root, g.world.scale));
}

Sym2<Float> antialias_backward(const Group& g, Float g_log_opacity, const Sym2<Float>& g_raw) {
    const Sym2<Float> extra = compensation_vjp(g.raw, g.conic, g_log_opacity / g.opacity_factor);
    return {g_raw.xx + extra.xx, g_raw.xy + extra.xy, g_raw.yy + extra.yy};
}

using CameraGradient = PinholeGradient<Float>;

// Fields in the order of PinholeGradient; lanes that are not seen left out.
void add_camera(const CameraGradient& g, Mask seen, Float* total) {
    const Float* fields = &g.rotation.row[0].x;
    for (int i = 0; i < kPinholeGradientSize; ++i) total[i] += keep(seen, fields[i]);
}

// The last steps in the world: splats are what is trained.
void finish_world(const View& view, const Gaussians& in, const Rows& rows, const Group& g, Float g_log_opacity,
                  const PosedGaussian<Float>& g_world, const SplatGradients& out) {
    store_three(g_world.mean, out.means, rows);
    if (out.opacities != nullptr) store_values(g_log_opacity / g.opacity, out.opacities, rows);
    if (in.covariances != nullptr) return;
    store_three(g_world.scale, out.scales, rows);
    store_quats(view.normalise_quats ? normalise_vjp(g.world.quat, g.inverse_length, g_world.quat) : g_world.quat,
                out.quats, rows);
}

// The last steps on a mesh: to the local columns and the frame.
void finish_local(const Rows& rows, const Group& g, Float g_log_opacity, const PosedGaussian<Float>& g_world,
                  const SplatGradients& out) {
    FrameGradient<Float> g_frame;
    const PosedGaussian<Float> own = place_vjp(g.frame, g.local, g_world, g_frame);
    const Vec3<Float>& s = g.local.scale;
    store_three(own.mean, out.means, rows);
    store_three({own.scale.x * s.x, own.scale.y * s.y, own.scale.z * s.z}, out.scales, rows);
    store_quats(normalise_vjp(g.local.quat, g.inverse_length, own.quat), out.quats, rows);
    if (out.opacities != nullptr) store_values(g_log_opacity * (Float(1.0f) - g.opacity), out.opacities, rows);
    if (out.frame_slots == nullptr) return;
    int32_t slot_of[kLanes];
    for (int lane = 0; lane < rows.count; ++lane) slot_of[lane] = out.slot_of[rows[lane]];
    store_frame_slots(g_frame, out.frame_slots, slot_of, rows.count);
}

// Lanes that are not `seen` write what the caller clears.
void backward_group(const View& view, const Pinhole<Float>& camera, const Gaussians& in, const Rows& rows, Mask seen,
                    const Float* sum, const SplatGradients& out, Float* camera_total) {
    Group g;
    load_group(view, camera, in, rows, g);
    const Incoming in_g = incoming(g, sum);
    Sym2<Float> g_raw = make_conic_vjp(g.conic, in_g.conic);
    if (view.antialias) g_raw = antialias_backward(g, in_g.log_opacity, g_raw);
    ProjectionGradient<Float> g_projection;
    g_projection.x = in_g.mean_x, g_projection.y = in_g.mean_y, g_projection.z = in_g.depth;
    PosedGaussian<Float> g_world;
    shape_backward(in, rows, g, g_raw, out, g_projection, g_world);
    if (out.screen_offsets != nullptr) {
        Float columns[padded(2)] = {in_g.mean_x * Float(0.5f * view.width), in_g.mean_y * Float(0.5f * view.height)};
        store_rows<2>(columns, out.screen_offsets, 2, rows);
    }
    CameraGradient g_camera = {};
    g_world.mean = project_vjp(camera, g.world.mean, g.projection, g_projection, g_camera);
    colours_backward(camera, in, rows, g, in_g.rgb, out, g_world.mean, g_camera.centre);
    if (in.frames != nullptr) {
        finish_local(rows, g, in_g.log_opacity, g_world, out);
    } else {
        finish_world(view, in, rows, g, in_g.log_opacity, g_world, out);
    }
    if (out.camera != nullptr) add_camera(g_camera, seen, camera_total);
}

void clear(float* out, int64_t row, int64_t width) {
    if (out != nullptr) std::memset(out + row * width, 0, width * sizeof(float));
}

void clear_row(const Gaussians& in, const SplatGradients& out, int64_t row) {
    clear(out.means, row, 3);
    clear(out.quats, row, 4);
    clear(out.scales, row, 3);
    clear(out.covariances, row, 6);
    clear(out.opacities, row, 1);
    clear(out.sh0, row, 3);
    clear(out.sh, row, sh_stride(in));
    clear(out.colors, row, 3);
    clear(out.screen_offsets, row, 2);
    if (out.frame_slots != nullptr) clear(out.frame_slots, out.slot_of[row], kRigSlot);
}

// Up to two groups of splats on their way through the backward pass, and where their slots begin.
struct Queue {
    int32_t row[2 * kLanes];
    uint32_t begin[2 * kLanes], count[2 * kLanes];
    int size = 0;

    void add(int64_t splat, uint32_t first_slot, uint32_t slots) {
        row[size] = static_cast<int32_t>(splat);
        begin[size] = first_slot;
        count[size++] = slots;
    }
};

class BlockBackward {
public:
    BlockBackward(const View& view, const Gaussians& in, const uint32_t* counts, const uint8_t* touched,
                  const float* slots, const SplatGradients& out)
        : view_(view), camera_(pinhole(view)), in_(in), counts_(counts), touched_(touched), slots_(slots), out_(out) {
        for (Float& t : camera_total_) t = Float(0.0f);
    }

    // Neighbours go together, where nearly all of them are seen; those left over are gathered into full groups.
    void run(int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i += kLanes) {
            const int rows = last - i < kLanes ? static_cast<int>(last - i) : kLanes;
            int seen = 0;
            for (int k = 0; k < rows; ++k) seen += touched_[i + k];
            if (4 * seen >= 3 * rows) {
                neighbours(i, rows);
            } else {
                scattered(i, rows);
            }
        }
        if (queue_.size > 0) drain(queue_.size);
        end_streaming();
        if (out_.camera == nullptr) return;
        float* row = out_.camera + first / kSplatBlock * kCameraGradient;
        for (int k = 0; k < kCameraGradient; ++k) row[k] = sum(camera_total_[k]);
    }

private:
    void neighbours(int64_t first, int rows) {
        const int64_t stride = sh_stride(in_);
        if (in_.sh != nullptr) prefetch_floats(in_.sh + (first + 2 * kLanes) * stride, kLanes * stride);
        if (out_.sh != nullptr && !out_.stream_sh)
            prefetch_floats_for_writing(out_.sh + (first + kLanes) * stride, kLanes * stride);
        uint32_t begin[kLanes] = {}, count[kLanes] = {};
        alignas(64) float seen[kLanes] = {};
        for (int k = 0; k < rows; ++k) {
            begin[k] = next_slot_;
            count[k] = touched_[first + k] ? counts_[first + k] : 0;
            seen[k] = touched_[first + k];
            next_slot_ += counts_[first + k];
        }
        Float sum[kSums];
        gather_sums(begin, count, slots_, sum);
        backward_group(view_, camera_, in_, {first, nullptr, rows}, load(seen) > Float(0.5f), sum, out_, camera_total_);
        for (int k = 0; k < rows; ++k)
            if (!touched_[first + k]) clear_row(in_, out_, first + k);
    }

    void scattered(int64_t first, int rows) {
        const int64_t stride = sh_stride(in_);
        for (int k = 0; k < rows; ++k) {
            if (touched_[first + k]) {
                queue_.add(first + k, next_slot_, counts_[first + k]);
                if (in_.sh != nullptr) prefetch_floats(in_.sh + (first + k) * stride, stride);
            } else {
                clear_row(in_, out_, first + k);
            }
            next_slot_ += counts_[first + k];
        }
        if (queue_.size >= kLanes) drain(kLanes);
    }

    void drain(int rows) {
        for (int k = rows; k < kLanes; ++k) queue_.begin[k] = queue_.count[k] = 0;
        Float sum[kSums];
        gather_sums(queue_.begin, queue_.count, slots_, sum);
        backward_group(view_, camera_, in_, {0, queue_.row, rows}, first_lanes(rows), sum, out_, camera_total_);
        for (int k = rows; k < queue_.size; ++k) {
            queue_.row[k - rows] = queue_.row[k];
            queue_.begin[k - rows] = queue_.begin[k];
            queue_.count[k - rows] = queue_.count[k];
        }
        queue_.size -= rows;
    }

    const View& view_;
    const Pinhole<Float> camera_;
    const Gaussians& in_;
    const uint32_t* counts_;
    const uint8_t* touched_;
    const float* slots_;
    const SplatGradients& out_;
    Float camera_total_[kCameraGradient];
    uint32_t next_slot_ = 0;
    Queue queue_;
};

}  // namespace

void splats_backward(const View& view, const Gaussians& in, int64_t first, int64_t last, const uint32_t* counts,
                     const uint8_t* touched, const float* slots, const SplatGradients& out) {
    BlockBackward(view, in, counts, touched, slots, out).run(first, last);
}

}  // namespace MIEN_ISA
}  // namespace mien

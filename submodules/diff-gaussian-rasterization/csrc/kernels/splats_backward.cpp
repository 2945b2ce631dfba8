// Splat stage, backward: adds up a splat's pair slots in their fixed order and carries the sums to the parameters.
#include "kernels/splat_group.h"

#include "core/splat_backward.h"

namespace mien {
namespace MIEN_ISA {

namespace {

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
    for (int k = 0; k < kSplatSums; ++k) out[k] = columns[k];
}

// Writes dL/dsh, adds the direction's share to dL/dmean and dL/d(camera centre).
template <int degree>
void sh_backward(const Pinhole<Float>& camera, const Gaussians& in, const Rows& rows, const Group& g,
                 const SplatGradients& out, SplatGradient<Float>& gradient) {
    constexpr int count = sh_count(degree);
    Float sh[kShRoom], basis[count], live[3];
    load_sh<degree>(in, rows, sh);
    sh_colour_vjp<degree>(
        camera.centre, g.world.mean, [&](int k, int c) { return sh[3 * k + c]; }, gradient.rgb, basis, live,
        gradient.world.mean, gradient.camera.centre);
    for (int k = 0; k < count; ++k)
        for (int c = 0; c < 3; ++c) sh[3 * k + c] = basis[k] * live[c];
    store_sh<degree>(sh, out, in, rows);
}

void colours_backward(const Pinhole<Float>& camera, const Gaussians& in, const Rows& rows, const Group& g,
                      const SplatGradients& out, SplatGradient<Float>& gradient) {
    if (in.colors != nullptr) {
        Float columns[padded(3)] = {gradient.rgb[0], gradient.rgb[1], gradient.rgb[2]};
        if (out.colors != nullptr) store_rows<3>(columns, out.colors, 3, rows);
        return;
    }
    switch (in.sh_degree) {
        case 0: sh_backward<0>(camera, in, rows, g, out, gradient); return;
        case 1: sh_backward<1>(camera, in, rows, g, out, gradient); return;
        case 2: sh_backward<2>(camera, in, rows, g, out, gradient); return;
        default: sh_backward<3>(camera, in, rows, g, out, gradient); return;
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

// Fields in the order of PinholeGradient; lanes that are not seen left out.
void add_camera(const PinholeGradient<Float>& g, Mask seen, Float* total) {
    const Float* fields = &g.rotation.row[0].x;
    for (int i = 0; i < kPinholeGradientSize; ++i) total[i] += keep(seen, fields[i]);
}

// The last steps in the world: splats are what is trained.
void finish_world(const View& view, const Gaussians& in, const Rows& rows, const Group& g,
                  const SplatGradient<Float>& gradient, const SplatGradients& out) {
    const PosedGaussian<Float>& world = gradient.world;
    store_three(world.mean, out.means, rows);
    if (out.opacities != nullptr) store_values(gradient.log_opacity / g.opacity, out.opacities, rows);
    if (in.covariances != nullptr) return;
    store_three(world.scale, out.scales, rows);
    store_quats(view.normalise_quats ? normalise_vjp(g.world.quat, g.inverse_length, world.quat) : world.quat,
                out.quats, rows);
}

// The last steps on a mesh: to the local columns and the frame.
void finish_local(const Rows& rows, const Group& g, const SplatGradient<Float>& gradient, const SplatGradients& out) {
    FrameGradient<Float> g_frame;
    const PosedGaussian<Float> own =
        activate_vjp(g.local, g.inverse_length, place_vjp(g.frame, g.local, gradient.world, g_frame));
    store_three(own.mean, out.means, rows);
    store_three(own.scale, out.scales, rows);
    store_quats(own.quat, out.quats, rows);
    if (out.opacities != nullptr) store_values(gradient.log_opacity * (Float(1.0f) - g.opacity), out.opacities, rows);
    if (out.frame_slots == nullptr) return;
    int32_t slot_of[kLanes];
    for (int lane = 0; lane < rows.count; ++lane) slot_of[lane] = out.slot_of[rows[lane]];
    store_frame_slots(g_frame, out.frame_slots, slot_of, rows.count);
}

void shape_backward(const Gaussians& in, const Rows& rows, const Group& g, const Sym2<Float>& g_raw,
                    const SplatGradients& out, SplatGradient<Float>& gradient) {
    if (in.covariances == nullptr) return shape_vjp(g, g_raw, gradient);
    Sym3<Float> s;
    shape_vjp(g, g_raw, gradient, s);
    if (out.covariances == nullptr) return;
    Float columns[padded(6)] = {s.xx, s.xy, s.xz, s.yy, s.yz, s.zz};
    store_rows<6>(columns, out.covariances, 6, rows);
}

// Lanes that are not `seen` write what the caller clears.
void backward_group(const View& view, const Pinhole<Float>& camera, const Gaussians& in, const Rows& rows, Mask seen,
                    const Float* sum, const SplatGradients& out, Float* camera_total) {
    Group g;
    load_group(view, camera, in, rows, g);
    SplatGradient<Float> gradient;
    shape_backward(in, rows, g, picture_vjp(view, g, sum, gradient), out, gradient);
    if (out.screen_offsets != nullptr) {
        Float columns[padded(2)] = {gradient.projection.x * Float(0.5f * view.width),
                                    gradient.projection.y * Float(0.5f * view.height)};
        store_rows<2>(columns, out.screen_offsets, 2, rows);
    }
    projection_vjp(camera, g, gradient);
    colours_backward(camera, in, rows, g, out, gradient);
    if (in.frames != nullptr) {
        finish_local(rows, g, gradient, out);
    } else {
        finish_world(view, in, rows, g, gradient, out);
    }
    if (out.camera != nullptr) add_camera(gradient.camera, seen, camera_total);
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
        : view_(view),
          camera_(pinhole<Float>(view)),
          in_(in),
          counts_(counts),
          touched_(touched),
          slots_(slots),
          out_(out) {
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
        Float sum[kSplatSums];
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
        Float sum[kSplatSums];
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

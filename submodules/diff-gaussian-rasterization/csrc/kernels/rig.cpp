// Triangle frames and the Gaussians on them, forward and backward, kLanes rows at a time.
#include "rig.h"

#include "kernels/rig_frames.h"

namespace mien {
namespace MIEN_ISA {

namespace {

using Vector = Vec3<Float>;
using Quaternion = Quat<Float>;

int lanes_left(std::int64_t end, std::int64_t row) { return static_cast<int>(end - row < kLanes ? end - row : kLanes); }

Vector load_three(const float* base, std::int64_t row, int rows) {
    Float c[3];
    load_columns<3>(c, base + 3 * row, 3, rows);
    return {c[0], c[1], c[2]};
}

Vector load_three_or_zero(const float* base, std::int64_t row, int rows) {
    const Float zero(0.0f);
    return base != nullptr ? load_three(base, row, rows) : Vector{zero, zero, zero};
}

Quaternion load_quaternion(const float* base, std::int64_t row, int rows) {
    Float c[4];
    load_columns<4>(c, base + 4 * row, 4, rows);
    return {c[0], c[1], c[2], c[3]};
}

PosedGaussian<Float> load_local(const RigColumns& in, std::int64_t row, int rows, Float& inverse) {
    return activate(load_three(in.means, row, rows), load_quaternion(in.quats, row, rows),
                    load_three(in.log_scales, row, rows), inverse);
}

void store_three(const Vector& v, float* base, std::int64_t row, int rows) {
    const Float c[3] = {v.x, v.y, v.z};
    store_columns<3>(c, base + 3 * row, 3, rows);
}

void store_quaternion(const Quaternion& q, float* base, std::int64_t row, int rows) {
    const Float c[4] = {q.w, q.x, q.y, q.z};
    store_columns<4>(c, base + 4 * row, 4, rows);
}

void frames(const float* vertices, const std::int32_t* faces, std::int64_t first, std::int64_t count, float* out) {
    const std::int64_t end = first + count;
    for (std::int64_t row = first; row < end; row += kLanes) {
        const int rows = lanes_left(end, row);
        alignas(64) float p[9][kLanes];
        for (int lane = 0; lane < kLanes; ++lane) {
            const std::int32_t* corners = faces + 3 * (lane < rows ? row + lane : end - 1);
            for (int k = 0; k < 3; ++k)
                for (int axis = 0; axis < 3; ++axis)
                    p[3 * k + axis][lane] = vertices[3 * std::int64_t(corners[k]) + axis];
        }
        const auto corner = [&](int k) { return Vector{load(p[3 * k]), load(p[3 * k + 1]), load(p[3 * k + 2])}; };
        const Frame f = triangle_frame(corner(0), corner(1), corner(2));
        Float columns[kRigFrame];
        frame_columns(f, columns);
        store_columns<kRigFrame>(columns, out + kRigFrame * row, kRigFrame, rows);
    }
}

void place(const RigColumns& in, const std::int32_t* binding, const float* frames, std::int64_t first,
           std::int64_t count, const RigPlaced& out) {
    for (std::int64_t row = first; row < first + count; row += kLanes) {
        const int rows = lanes_left(first + count, row);
        const Frame f = gather_frames(frames, binding + row, rows);
        Float inverse;
        const PosedGaussian<Float> local = load_local(in, row, rows, inverse);
        const PosedGaussian<Float> world = mien::MIEN_ISA::place(f, local);
        store_three(world.mean, out.means, row, rows);
        store_quaternion(world.quat, out.quats, row, rows);
        store_three(world.scale, out.scales, row, rows);
        store_first(out.opacities + row, rows, sigmoid(load_first(in.opacity_logits + row, rows)));
    }
}

void place_backward(const RigBackward& work, const std::int32_t* binding, const std::int32_t* slot_of,
                    std::int64_t first, std::int64_t count) {
    const Float one(1.0f), zero(0.0f);
    const RigPlacedGradients& g = work.placed;
    const RigColumnGradients& out = work.out;
    for (std::int64_t row = first; row < first + count; row += kLanes) {
        const int rows = lanes_left(first + count, row);
        const Frame f = gather_frames(work.frames, binding + row, rows);
        Float inverse;
        const PosedGaussian<Float> local = load_local(work.columns, row, rows, inverse);
        const PosedGaussian<Float> g_world = {
            load_three_or_zero(g.means, row, rows), load_three_or_zero(g.scales, row, rows),
            g.quats != nullptr ? load_quaternion(g.quats, row, rows) : Quaternion{zero, zero, zero, zero}};
        FrameGradient<Float> g_frame;
        const PosedGaussian<Float> g_own = activate_vjp(local, inverse, place_vjp(f, local, g_world, g_frame));

        if (out.means != nullptr) store_three(g_own.mean, out.means, row, rows);
        if (out.quats != nullptr) store_quaternion(g_own.quat, out.quats, row, rows);
        if (out.log_scales != nullptr) store_three(g_own.scale, out.log_scales, row, rows);
        if (out.opacity_logits != nullptr) {
            const Float o = load_first(work.opacities + row, rows);
            const Float g_o = g.opacities != nullptr ? load_first(g.opacities + row, rows) : zero;
            store_first(out.opacity_logits + row, rows, g_o * o * (one - o));
        }
        if (work.slots == nullptr) continue;
        store_frame_slots(g_frame, work.slots, slot_of + row, rows);
    }
}

// The sum of the slots from `begin` to `end`.
void sum_slots(const float* slots, std::int64_t begin, std::int64_t end, float* total) {
    constexpr int parts = kRigSlot > kLanes ? kRigSlot / kLanes : 1, width = kRigSlot / parts;
    Float sum[parts];
    for (Float& part : sum) part = Float(0.0f);
    for (std::int64_t i = begin; i < end; ++i)
        for (int part = 0; part < parts; ++part) sum[part] += load_first(slots + kRigSlot * i + part * width, width);
    for (int part = 0; part < parts; ++part) store_first(total + part * width, width, sum[part]);
}

void frames_backward(const float* frames, const float* slots, const std::int32_t* begin, const std::int32_t* corner_of,
                     std::int64_t first, std::int64_t count, float* corners) {
    const Float zero(0.0f);
    for (std::int64_t row = first; row < first + count; row += kLanes) {
        const int rows = lanes_left(first + count, row);
        alignas(64) float totals[kLanes][kRigSlot], three[kLanes][3][kRigCorner];
        for (int lane = 0; lane < rows; ++lane)
            sum_slots(slots, begin[row + lane], begin[row + lane + 1], totals[lane]);
        Float t[kRigSlot], c[kRigFrame];
        load_columns<kRigSlot>(t, totals[0], kRigSlot, rows);
        load_columns<kRigFrame>(c, frames + kRigFrame * row, kRigFrame, rows);
        Vector p[3];
        triangle_frame_vjp(frame_of(c), frame_gradient_of(t), p);
        const Float columns[3 * kRigCorner] = {p[0].x, p[0].y, p[0].z, zero,   p[1].x, p[1].y,
                                               p[1].z, zero,   p[2].x, p[2].y, p[2].z, zero};
        store_columns<3 * kRigCorner>(columns, three[0][0], 3 * kRigCorner, rows);
        for (int lane = 0; lane < rows; ++lane)
            for (int k = 0; k < 3; ++k)
                std::memcpy(corners + kRigCorner * std::int64_t(corner_of[3 * (row + lane) + k]), three[lane][k],
                            sizeof three[lane][k]);
    }
}

void vertices_backward(const float* corners, const std::int32_t* begin, std::int64_t first, std::int64_t count,
                       float* g_vertices) {
    for (std::int64_t vertex = first; vertex < first + count; ++vertex) {
        float x = 0.0f, y = 0.0f, z = 0.0f;
        for (std::int64_t i = begin[vertex]; i < begin[vertex + 1]; ++i) {
            const float* corner = corners + kRigCorner * i;
            x += corner[0], y += corner[1], z += corner[2];
        }
        g_vertices[3 * vertex] = x, g_vertices[3 * vertex + 1] = y, g_vertices[3 * vertex + 2] = z;
    }
}

}  // namespace

extern const RigKernels rig_kernels;
const RigKernels rig_kernels = {frames, place, place_backward, frames_backward, vertices_backward};

}  // namespace MIEN_ISA
}  // namespace mien

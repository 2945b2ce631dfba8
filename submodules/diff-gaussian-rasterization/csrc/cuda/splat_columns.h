// How a thread of the splat stage gets hold of its Gaussian: forward and backward compute the same splat.
#pragma once

#include "core/spherical_harmonics.h"
#include "core/splat.h"

#include "cuda/stages.h"

namespace mien {
namespace cuda {

// Four floats of an array that this library allocated: its rows are aligned.
__device__ inline float4 load_four(const float* p) { return *reinterpret_cast<const float4*>(p); }
__device__ inline void store_four(float* p, float a, float b, float c, float d) {
    *reinterpret_cast<float4*>(p) = make_float4(a, b, c, d);
}

__device__ inline device::Vec3<float> load_three(const float* p) { return {p[0], p[1], p[2]}; }
__device__ inline void store_three(const device::Vec3<float>& v, float* p) { p[0] = v.x, p[1] = v.y, p[2] = v.z; }
__device__ inline device::Quat<float> load_quat(const float* p) { return {p[0], p[1], p[2], p[3]}; }
__device__ inline void store_quat(const device::Quat<float>& q, float* p) {
    p[0] = q.w, p[1] = q.x, p[2] = q.y, p[3] = q.z;
}

__device__ inline device::TriangleFrame<float> load_frame(const float* frame) {
    const float4 a = load_four(frame), b = load_four(frame + 4), c = load_four(frame + 8), d = load_four(frame + 12);
    const float columns[kRigFrame] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w, c.x, c.y, c.z, c.w, d.x, d.y, d.z, d.w};
    return device::frame_of(columns);
}

// What a Gaussian does to its frame.
__device__ inline void store_slot(const device::FrameGradient<float>& g, float* slot) {
    float c[kRigSlot];
    device::frame_gradient_columns(g, c);
    store_four(slot, c[0], c[1], c[2], c[3]);
    store_four(slot + 4, c[4], c[5], c[6], c[7]);
}

// 0, or NaN if a number is not finite: NaN and infinity times zero are not zero.
__device__ inline float probe(float x) { return 0.0f * x; }
__device__ inline float probe(const device::Vec3<float>& v) { return probe(v.x) + probe(v.y) + probe(v.z); }
__device__ inline float probe(const device::Quat<float>& q) {
    return probe(q.w) + probe(q.x) + probe(q.y) + probe(q.z);
}

__device__ inline float load_local(const Gaussians& in, const float* frame, std::int64_t i, device::Splat<float>& s) {
    using namespace device;
    const Vec3<float> mean = load_three(in.means + 3 * i), log_scale = load_three(in.scales + 3 * i);
    const Quat<float> quat = load_quat(in.quats + 4 * i);
    const float logit = in.opacities[i];
    s.frame = load_frame(frame);
    place_columns(mean, quat, log_scale, logit, s);
    // Finite columns may still leave the range of floats, or meet a face that is not finite.
    return probe(mean) + probe(quat) + probe(log_scale) + probe(logit) + probe(s.world.mean) + probe(s.world.scale) +
           probe(s.world.quat.w);
}

__device__ inline float load_world(const View& view, const Gaussians& in, std::int64_t i, device::Splat<float>& s) {
    using namespace device;
    s.world.mean = load_three(in.means + 3 * i);
    s.opacity = in.opacities[i];
    const float fine = probe(s.world.mean) + probe(s.opacity);
    if (in.covariances != nullptr) {
        const Vec3<float> a = load_three(in.covariances + 6 * i), b = load_three(in.covariances + 6 * i + 3);
        s.covariance = {a.x, a.y, a.z, b.x, b.y, b.z};
        return fine + probe(a) + probe(b);
    }
    const Quat<float> quat = load_quat(in.quats + 4 * i);
    const Vec3<float> scale = load_three(in.scales + 3 * i);
    take_columns(view, quat, scale, s);
    return fine + probe(quat) + probe(scale);
}

// The mean of Gaussian i as view `b` of the batch shows it.
__device__ inline device::Vec3<float> load_mean(const Gaussians& in, std::int64_t faces, int b, std::int64_t i) {
    using namespace device;
    const Vec3<float> mean = load_three(in.means + 3 * i);
    if (in.frames == nullptr) return mean;
    const TriangleFrame<float> frame = load_frame(in.frames + kRigFrame * (b * faces + in.face[i]));
    return place(frame, PosedGaussian<float>{mean, {}, {}}).mean;
}

// The columns of Gaussian i, in the world as view `b` of the batch shows it; 0 if all its numbers were finite, else
// NaN.
__device__ inline float load_columns(const View& view, const Gaussians& in, std::int64_t faces, int b, std::int64_t i,
                                     device::Splat<float>& s) {
    if (in.frames == nullptr) return load_world(view, in, i, s);
    return load_local(in, in.frames + kRigFrame * (b * faces + in.face[i]), i, s);
}

// The rest of a splat, likewise.
__device__ inline float load_projection(const View& view, const device::Pinhole<float>& camera, const Gaussians& in,
                                        std::int64_t row, device::Splat<float>& s) {
    float offset[2] = {0.0f, 0.0f};
    if (in.screen_offsets != nullptr)
        offset[0] = in.screen_offsets[2 * row], offset[1] = in.screen_offsets[2 * row + 1];
    device::project_splat(view, camera, in.covariances != nullptr, in.screen_offsets != nullptr ? offset : nullptr, s);
    return probe(offset[0]) + probe(offset[1]);
}

// --- harmonics: a block's rows lie one behind the other, and go through shared memory

constexpr int kShPitch = 49;  // floats of the longest row there; odd, so that the rows' columns lie in different banks

// What of the array `sh` is in use: rows of `stride` floats, `columns` of them read, `skip` floats in an array apart.
struct ShLayout {
    int stride, columns, skip, pitch;
};
__device__ inline ShLayout sh_layout(const Gaussians& in) {
    const int skip = in.sh0 != nullptr ? 3 : 0, columns = 3 * device::sh_count(in.sh_degree) - skip;
    return {3 * in.sh_coefficients - skip, columns, skip, columns | 1};
}

// Calls body(row, column) for every value of rows x columns, neighbours on neighbouring threads.
template <class Body>
__device__ inline void for_values(int rows, int columns, Body&& body) {
    if (columns == 0) return;
    const int thread = static_cast<int>(threadIdx.x);
    const int row_step = kSplatThreads / columns, column_step = kSplatThreads % columns;
    int row = thread / columns, column = thread % columns;
    while (row < rows) {
        body(row, column);
        row += row_step, column += column_step;
        if (column >= columns) column -= columns, ++row;
    }
}

__device__ inline int rows_of_block(const Sizes& sizes, int first) {
    return sizes.count - first < kSplatThreads ? sizes.count - first : kSplatThreads;
}

// The coefficients of the block's Gaussians from `first` on; a barrier must follow.
__device__ inline void stage_sh(const Gaussians& in, const ShLayout& sh, int first, int rows, float* staged) {
    const float* from = in.sh + std::int64_t(first) * sh.stride;
    for_values(rows, sh.columns, [&](int row, int column) {
        staged[row * sh.pitch + column] = from[std::int64_t(row) * sh.stride + column];
    });
}

// One Gaussian's coefficients: the constant ones, the others in shared memory.
struct ShRow {
    device::Vec3<float> constant;
    const float* rest;
    int skip;

    __device__ float operator()(int k, int c) const {
        if (k == 0) return c == 0 ? constant.x : c == 1 ? constant.y : constant.z;
        return rest[3 * k + c - skip];
    }
};
__device__ inline ShRow sh_row(const Gaussians& in, const ShLayout& sh, const float* staged, std::int64_t i) {
    const float* row = staged + static_cast<int>(threadIdx.x) * sh.pitch;
    return {load_three(in.sh0 != nullptr ? in.sh0 + 3 * i : row), row, sh.skip};
}

// Calls body.template operator()<degree>().
template <class Body>
__device__ inline void for_degree(int degree, Body&& body) {
    switch (degree) {
        case 0: body(std::integral_constant<int, 0>()); return;
        case 1: body(std::integral_constant<int, 1>()); return;
        case 2: body(std::integral_constant<int, 2>()); return;
        default: body(std::integral_constant<int, 3>()); return;
    }
}

// Told once per Gaussian that something is wrong with it.
__device__ inline void report(Health* health, Reason reason, int i) {
    atomicOr(&health->stopped, static_cast<std::uint32_t>(reason));
    atomicMin(&health->bad_row, static_cast<std::uint32_t>(i));
}

}  // namespace cuda
}  // namespace mien

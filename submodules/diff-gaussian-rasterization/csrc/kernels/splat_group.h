// Loading a group of kLanes splats and projecting it: shared by the forward and backward splat kernels.
#pragma once

#include "splats.h"

#include "kernels/rig_frames.h"
#include "kernels/simd.h"

#include "core/spherical_harmonics.h"
#include "core/splat.h"

namespace mien {
namespace MIEN_ISA {

// Which splats the lanes of a group are: `count` rows from `first` on, or the listed ones. Lanes beyond `count` repeat
// the last one.
struct Rows {
    int64_t first;
    const int32_t* listed;  // null: one after the other
    int count;

    int64_t operator[](int lane) const {
        const int i = lane < count ? lane : count - 1;
        return listed != nullptr ? listed[i] : first + i;
    }
    bool whole() const { return listed == nullptr && count == kLanes; }
};

// Registers that `columns` values a row take, in whole transposes.
constexpr int padded(int columns) { return (columns + kLanes - 1) / kLanes * kLanes; }

// Reads the group's rows: out[c] holds column c, one row per lane; `out` has room for padded(columns).
template <int columns>
inline void load_rows(Float* out, const float* base, int64_t stride, const Rows& rows) {
#if !defined(MIEN_ISA_scalar)
    if constexpr (columns == 3 || columns == 4)
        if (rows.whole() && stride == columns) return load_packed<columns>(out, base + rows.first * stride);
#endif
    const auto row = [&](int lane) { return base + rows[lane] * stride; };
    const float* start = base + rows.first * stride;
    for (int first = 0; first < columns; first += kLanes) {
        const int width = columns - first < kLanes ? columns - first : kLanes;
        Float* r = out + first;
        if (rows.whole()) {
            for (int lane = 0; lane < kLanes; ++lane) r[lane] = load_first(start + lane * stride + first, width);
        } else {
            for (int lane = 0; lane < kLanes; ++lane) r[lane] = load_first(row(lane) + first, width);
        }
        transpose(r);
    }
}

// The inverse; what was in `in` is lost.
template <int columns>
inline void store_rows(Float* in, float* base, int64_t stride, const Rows& rows) {
#if !defined(MIEN_ISA_scalar)
    if constexpr (columns == 3 || columns == 4)
        if (rows.whole() && stride == columns) return store_packed<columns>(in, base + rows.first * stride);
#endif
    float* start = base + rows.first * stride;
    for (int first = 0; first < columns; first += kLanes) {
        const int width = columns - first < kLanes ? columns - first : kLanes;
        Float* r = in + first;
        for (int c = width; c < kLanes; ++c) r[c] = Float(0.0f);
        transpose(r);
        if (rows.whole()) {
            for (int lane = 0; lane < kLanes; ++lane) store_first(start + lane * stride + first, width, r[lane]);
        } else {
            for (int lane = 0; lane < rows.count; ++lane)
                store_first(base + rows[lane] * stride + first, width, r[lane]);
        }
    }
}

// One value a row.
inline Float load_values(const float* base, const Rows& rows) {
    if (rows.listed == nullptr) return load_first(base + rows.first, rows.count);
    alignas(64) float values[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) values[lane] = base[rows[lane]];
    return load(values);
}

inline void store_values(Float in, float* base, const Rows& rows) {
    if (rows.listed == nullptr) return store_first(base + rows.first, rows.count, in);
    alignas(64) float values[kLanes];
    store(values, in);
    for (int lane = 0; lane < rows.count; ++lane) base[rows[lane]] = values[lane];
}

using Group = Splat<Float>;  // kLanes splats

inline void load_local(const Gaussians& in, const Rows& rows, Group& g) {
    if (rows.whole()) {
        g.frame = gather_frames(in.frames, in.face + rows.first, kLanes);
    } else {
        int32_t face[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) face[lane] = in.face[rows[lane]];
        g.frame = gather_frames(in.frames, face, kLanes);
    }
    Float m[padded(3)], q[padded(4)], s[padded(3)];
    load_rows<3>(m, in.means, 3, rows);
    load_rows<4>(q, in.quats, 4, rows);
    load_rows<3>(s, in.scales, 3, rows);
    place_columns({m[0], m[1], m[2]}, {q[0], q[1], q[2], q[3]}, {s[0], s[1], s[2]}, load_values(in.opacities, rows), g);
}

inline void load_world(const View& view, const Gaussians& in, const Rows& rows, Group& g) {
    Float m[padded(3)], q[padded(4)], s[padded(3)];
    load_rows<3>(m, in.means, 3, rows);
    g.world.mean = {m[0], m[1], m[2]};
    g.opacity = load_values(in.opacities, rows);
    if (in.covariances != nullptr) {
        Float c[padded(6)];
        load_rows<6>(c, in.covariances, 6, rows);
        g.covariance = {c[0], c[1], c[2], c[3], c[4], c[5]};
        return;
    }
    load_rows<4>(q, in.quats, 4, rows);
    load_rows<3>(s, in.scales, 3, rows);
    take_columns(view, {q[0], q[1], q[2], q[3]}, {s[0], s[1], s[2]}, g);
}

inline void load_group(const View& view, const Pinhole<Float>& camera, const Gaussians& in, const Rows& rows,
                       Group& g) {
    if (in.frames != nullptr) {
        load_local(in, rows, g);
    } else {
        load_world(view, in, rows, g);
    }
    Float offset[padded(2)];
    if (in.screen_offsets != nullptr) load_rows<2>(offset, in.screen_offsets, 2, rows);
    project_splat(view, camera, in.covariances != nullptr, in.screen_offsets != nullptr ? offset : nullptr, g);
}

// The array that holds all coefficients, or all but the first, and its row length.
inline int64_t sh_stride(const Gaussians& in) { return 3 * (in.sh_coefficients - (in.sh0 != nullptr ? 1 : 0)); }

// Room for the coefficients of a group: the first three may come from an array of their own.
constexpr int kShRoom = 3 + padded(48);

template <int degree>
inline void load_sh(const Gaussians& in, const Rows& rows, Float* sh) {
    constexpr int columns = 3 * sh_count(degree);
    if (in.sh0 == nullptr) return load_rows<columns>(sh, in.sh, sh_stride(in), rows);
    Float first[padded(3)];
    load_rows<3>(first, in.sh0, 3, rows);
    for (int c = 0; c < 3; ++c) sh[c] = first[c];
    if constexpr (degree > 0) load_rows<columns - 3>(sh + 3, in.sh, sh_stride(in), rows);
}

// What was in `sh` is lost.
template <int degree>
inline void store_sh(Float* sh, const SplatGradients& out, const Gaussians& in, const Rows& rows) {
    constexpr int columns = 3 * sh_count(degree);
    const int64_t stride = sh_stride(in);
    const int used = in.sh0 != nullptr ? columns - 3 : columns;
    if (out.sh0 != nullptr) {
        Float first[padded(3)] = {sh[0], sh[1], sh[2]};
        store_rows<3>(first, out.sh0, 3, rows);
    }
    if (out.sh == nullptr) return;
    alignas(64) float block[kLanes * kShRoom];
    float* target = out.sh + rows.first * stride;
    const bool streams = out.stream_sh && rows.whole() && stride <= kShRoom &&
                         reinterpret_cast<uintptr_t>(target) % (kLanes * sizeof(float)) == 0;
    float* to = streams ? block : out.sh;
    const Rows at = streams ? Rows{0, nullptr, kLanes} : rows;
    if (in.sh0 == nullptr) {
        store_rows<columns>(sh, to, stride, at);
    } else if constexpr (degree > 0) {
        store_rows<columns - 3>(sh + 3, to, stride, at);
    }
    if (used != stride)
        for (int lane = 0; lane < at.count; ++lane)
            std::memset(to + at[lane] * stride + used, 0, (stride - used) * sizeof(float));
    if (!streams) return;
    for (int64_t i = 0; i < kLanes * stride; i += kLanes) stream(target + i, load(block + i));
}

}  // namespace MIEN_ISA
}  // namespace mien

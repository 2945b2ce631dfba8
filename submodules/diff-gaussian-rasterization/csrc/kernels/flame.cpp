// FLAME's vertices, a block of 16 at a time: blend shapes and skinning in one pass over the constants, and the way back
// in another. What a block has to read is the basis; the rest stays in registers.
#include "flame.h"

#include "kernels/simd.h"

namespace mien {
namespace MIEN_ISA {

namespace {

constexpr int kParts = kFlameBlock / kLanes;  // registers that hold one coordinate of a block

// One coordinate of a block.
struct Lanes {
    Float part[kParts];
};

Lanes load_lanes(const float* p) {
    Lanes a;
    for (int i = 0; i < kParts; ++i) a.part[i] = load(p + kLanes * i);
    return a;
}

void store_lanes(const Lanes& a, float* p) {
    for (int i = 0; i < kParts; ++i) store(p + kLanes * i, a.part[i]);
}

Lanes filled(float value) {
    Lanes a;
    for (int i = 0; i < kParts; ++i) a.part[i] = Float(value);
    return a;
}

// sum += a b
void add_product(Lanes& sum, const Lanes& a, const Lanes& b) {
    for (int i = 0; i < kParts; ++i) sum.part[i] = fma(a.part[i], b.part[i], sum.part[i]);
}

void add_product(Lanes& sum, Float a, const Lanes& b) {
    for (int i = 0; i < kParts; ++i) sum.part[i] = fma(a, b.part[i], sum.part[i]);
}

float total(const Lanes& a) {
    Float sum_of_parts = a.part[0];
    for (int i = 1; i < kParts; ++i) sum_of_parts += a.part[i];
    return sum(sum_of_parts);
}

// The three coordinates of a block of [V, 3]; zero beyond the last vertex.
void load_vertices(const float* values, std::int64_t first, std::int64_t vertices, Lanes* out) {
    for (int i = 0; i < kParts; ++i) {
        const std::int64_t row = first + kLanes * i, left = vertices - row;
        Float c[3] = {Float(0.0f), Float(0.0f), Float(0.0f)};
        if (left > 0) load_columns<3>(c, values + 3 * row, 3, left < kLanes ? static_cast<int>(left) : kLanes);
        if (left > 0 && left < kLanes)
            for (Float& column : c) column = keep(first_lanes(static_cast<int>(left)), column);
        for (int axis = 0; axis < 3; ++axis) out[axis].part[i] = c[axis];
    }
}

void store_vertices(const Lanes* values, std::int64_t first, std::int64_t vertices, float* out) {
    for (int i = 0; i < kParts; ++i) {
        const std::int64_t row = first + kLanes * i, left = vertices - row;
        if (left <= 0) return;
        const Float c[3] = {values[0].part[i], values[1].part[i], values[2].part[i]};
        store_columns<3>(c, out + 3 * row, 3, left < kLanes ? static_cast<int>(left) : kLanes);
    }
}

// The end of a block's directions that have a coefficient; they are in ascending order.
std::int64_t directions_end(const FlameConstants& constants, const FlameTransforms& pose, std::int64_t block) {
    std::int64_t end = constants.direction_begin[block + 1];
    while (end > constants.direction_begin[block] && constants.directions[end - 1] >= pose.n_coefficients) --end;
    return end;
}

void pose(const FlameConstants& constants, const FlameTransforms& pose, std::int64_t first, std::int64_t count,
          float* blended, float* vertices) {
    for (std::int64_t block = first; block < first + count; ++block) {
        Lanes rest[3];
        for (int axis = 0; axis < 3; ++axis)
            rest[axis] = load_lanes(constants.rest + kFlameRow * block + kFlameBlock * axis);
        if (pose.offset != nullptr) {
            Lanes offset[3];
            load_vertices(pose.offset, kFlameBlock * block, constants.vertices, offset);
            for (int axis = 0; axis < 3; ++axis) add_product(rest[axis], Float(1.0f), offset[axis]);
        }
        const std::int64_t end = directions_end(constants, pose, block);
        for (std::int64_t i = constants.direction_begin[block]; i < end; ++i) {
            const Float coefficient(pose.coefficients[constants.directions[i]]);
            for (int axis = 0; axis < 3; ++axis)
                add_product(rest[axis], coefficient, load_lanes(constants.basis + kFlameRow * i + kFlameBlock * axis));
        }
        for (int axis = 0; axis < 3; ++axis) store_lanes(rest[axis], blended + kFlameRow * block + kFlameBlock * axis);

        Lanes out[3];
        for (int axis = 0; axis < 3; ++axis) out[axis] = filled(pose.translation[axis]);
        for (std::int64_t i = constants.joint_begin[block]; i < constants.joint_begin[block + 1]; ++i) {
            const float* transform = pose.transforms + 12 * constants.joints[i];
            const Lanes weight = load_lanes(constants.weights + kFlameBlock * i);
            for (int axis = 0; axis < 3; ++axis) {
                Lanes moved = filled(transform[4 * axis + 3]);
                for (int k = 0; k < 3; ++k) add_product(moved, Float(transform[4 * axis + k]), rest[k]);
                add_product(out[axis], weight, moved);
            }
        }
        store_vertices(out, kFlameBlock * block, constants.vertices, vertices);
    }
}

// Vertices that are not in the picture have no gradient: they are half of a head.
bool all_zero(const Lanes* values) {
    const Float zero(0.0f);
    for (int axis = 0; axis < 3; ++axis)
        for (const Float& part : values[axis].part)
            if (any(!(part == zero))) return false;
    return true;
}

// Adds a block's part of the gradients of the transforms, and gives that of its blended vertices.
void skin_backward(const FlameConstants& constants, const FlameTransforms& pose, std::int64_t block,
                   const float* blended, const Lanes* g, float* sums, Lanes* g_rest) {
    Lanes rest[3];
    for (int axis = 0; axis < 3; ++axis)
        rest[axis] = load_lanes(blended + kFlameRow * block + kFlameBlock * axis), g_rest[axis] = filled(0.0f);
    const auto add = [&](int which, const Lanes& a, const Lanes& b) {
        float* place = sums + kFlameBlock * which;
        Lanes sum = load_lanes(place);
        add_product(sum, a, b);
        store_lanes(sum, place);
    };
    const Lanes one = filled(1.0f);
    for (int axis = 0; axis < 3; ++axis) add(axis, one, g[axis]);
    for (std::int64_t i = constants.joint_begin[block]; i < constants.joint_begin[block + 1]; ++i) {
        const int joint = constants.joints[i];
        const float* transform = pose.transforms + 12 * joint;
        const Lanes weight = load_lanes(constants.weights + kFlameBlock * i);
        for (int axis = 0; axis < 3; ++axis) {
            Lanes share = filled(0.0f);
            add_product(share, weight, g[axis]);
            const int row = 3 + 12 * joint + 4 * axis;
            for (int k = 0; k < 3; ++k) {
                add(row + k, share, rest[k]);
                add_product(g_rest[k], Float(transform[4 * axis + k]), share);
            }
            add(row + 3, one, share);
        }
    }
}

void pose_backward(const FlameConstants& constants, const FlameTransforms& pose, std::int64_t first, std::int64_t count,
                   const float* blended, const float* g_vertices, float* sums, float* g_blended) {
    const int n_sums = kFlameSums + pose.n_coefficients;
    for (int i = 0; i < n_sums; ++i) store_lanes(filled(0.0f), sums + kFlameBlock * i);
    float* of_coefficients = sums + kFlameBlock * kFlameSums;
    for (std::int64_t block = first; block < first + count; ++block) {
        Lanes g[3], g_rest[3];
        load_vertices(g_vertices, kFlameBlock * block, constants.vertices, g);
        if (all_zero(g)) {
            if (g_blended != nullptr) store_vertices(g, kFlameBlock * block, constants.vertices, g_blended);
            continue;
        }
        skin_backward(constants, pose, block, blended, g, sums, g_rest);
        if (g_blended != nullptr) store_vertices(g_rest, kFlameBlock * block, constants.vertices, g_blended);
        const std::int64_t end = directions_end(constants, pose, block);
        for (std::int64_t i = constants.direction_begin[block]; i < end; ++i) {
            float* place = of_coefficients + kFlameBlock * constants.directions[i];
            Lanes sum = load_lanes(place);
            for (int axis = 0; axis < 3; ++axis)
                add_product(sum, load_lanes(constants.basis + kFlameRow * i + kFlameBlock * axis), g_rest[axis]);
            store_lanes(sum, place);
        }
    }
    for (int i = 0; i < n_sums; ++i) sums[i] = total(load_lanes(sums + kFlameBlock * i));  // i <= 16 i: read before
}

}  // namespace

extern const FlameKernels flame_kernels;
const FlameKernels flame_kernels = {pose, pose_backward};

}  // namespace MIEN_ISA
}  // namespace mien

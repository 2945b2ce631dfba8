// FLAME posed: blend shapes and linear blend skinning of one person, forward and backward. Common side.
#pragma once

#include <cstdint>

#include "isa.h"

namespace mien {

constexpr int kFlameJoints = 5;
constexpr int kFlameBlock = 16;             // vertices of a block; a multiple of every register width
constexpr int kFlameRow = 3 * kFlameBlock;  // floats of a block: all x, all y, all z
constexpr int kFlameTransforms = 12 * kFlameJoints;
constexpr int kFlameSums = 3 + kFlameTransforms;  // translation and transforms; the coefficients' sums follow

// What is constant of a person: vertices by blocks, the last one filled up with zeros. A block lists the directions
// that move it and the joints that it follows; the lists of block b are begin[b] to begin[b + 1].
struct FlameConstants {
    std::int64_t vertices;
    const float* rest;  // [blocks][3][16]
    const std::int64_t* direction_begin;
    const std::int32_t* directions;  // which coefficient
    const float* basis;              // [3][16] for each of them
    const std::int64_t* joint_begin;
    const std::int32_t* joints;
    const float* weights;  // [16] for each of them
};

// One pose, ready for the vertices.
struct FlameTransforms {
    const float* coefficients;  // pose correctives, if the model has any, then expressions
    int n_coefficients;
    float transforms[kFlameTransforms];  // [5][3][4]
    float translation[3];
    const float* offset;  // [V, 3] or null
};

// `first` and `count` are blocks.
struct FlameKernels {
    // blended [blocks][3][16]: the vertices before skinning, for the backward pass.
    void (*pose)(const FlameConstants& constants, const FlameTransforms& pose, std::int64_t first, std::int64_t count,
                 float* blended, float* vertices);
    // sums [kFlameSums + n_coefficients][16] is scratch; its first kFlameSums + n_coefficients floats are the result:
    // the gradients of translation, transforms and coefficients of these blocks alone. g_blended [V, 3] may be null.
    void (*pose_backward)(const FlameConstants& constants, const FlameTransforms& pose, std::int64_t first,
                          std::int64_t count, const float* blended, const float* g_vertices, float* sums,
                          float* g_blended);
};

}  // namespace mien

MIEN_DECLARE_KERNELS(FlameKernels, flame_kernels)

// What is constant of a person posed by FLAME, as callers bring it, and its checks: shared by the CPU and the device.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include "api.h"
#include "flame.h"

namespace mien {

constexpr int kFlameCorrectives = 9 * (kFlameJoints - 1);  // entries of R - I of the joints after the root
constexpr std::int64_t kFlameMost = 1 << 24;               // vertices and directions

// A person as PyTorch keeps it: planes of coordinates.
struct FlameArrays {
    std::int64_t vertices, expressions, correctives;  // V, E, C: 36 (9 entries of R - I for 4 joints) or none
    const float* rest;                                // [3, V] metres, shape and static offset folded in
    const float* joints;                              // [5, 3] metres, likewise
    const float* basis;                               // [C + E, 3, V]
    const float* joint_basis;                         // [E, 5, 3] how expressions move the joints
    const float* joint_regressor;                     // [5, V], for the dynamic offset
    const float* weights;                             // [5, V]
    const std::int32_t* parents;                      // [5]
};

inline void require_finite(const char* name, const float* values, std::int64_t count) {
    require(values != nullptr || count == 0, "flame: a null pointer");
    bool fine = true;
    for (std::int64_t i = 0; i < count; ++i) fine &= std::isfinite(values[i]);
    if (fine) return;
    for (std::int64_t i = 0; i < count; ++i)
        if (!std::isfinite(values[i]))
            throw NotFinite(std::string(name) + ": value " + std::to_string(i) + " is not finite");
}

// Throws InvalidArgument or NotFinite; the text names the array.
inline void check_arrays(const FlameArrays& a) {
    require(a.vertices >= 1 && a.vertices <= kFlameMost && a.expressions >= 0 && a.expressions <= kFlameMost,
            "flame: a wrong number of vertices or expressions");
    require(a.correctives == 0 || a.correctives == kFlameCorrectives, "flame: pose correctives must be 36 or none");
    require_finite("rest", a.rest, 3 * a.vertices);
    require_finite("joints", a.joints, 3 * kFlameJoints);
    require_finite("basis", a.basis, 3 * a.vertices * (a.correctives + a.expressions));
    require_finite("joint_basis", a.joint_basis, 3 * kFlameJoints * a.expressions);
    require_finite("joint_regressor", a.joint_regressor, kFlameJoints * a.vertices);
    require_finite("weights", a.weights, kFlameJoints * a.vertices);
    require(a.parents != nullptr && a.parents[0] == -1, "parents: the root must come first");
    for (int j = 1; j < kFlameJoints; ++j)
        require(a.parents[j] >= 0 && a.parents[j] < j, "parents: a parent must come before its children");
}

}  // namespace mien

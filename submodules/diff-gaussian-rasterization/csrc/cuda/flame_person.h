// A person posed by FLAME, as it lies on the device, and what the passes keep between them.
//
// Vertices come in blocks of 32, one a lane; the last block is filled up with zeros, which move nowhere and have no
// gradient. A block lists the directions that move any of its vertices: pairs (block, direction), "entries", in which
// the basis is stored. What is zero by construction, such as the teeth's correctives, is not read.
#pragma once

#include "core/skeleton.h"
#include "cuda/pieces.h"
#include "flame_arrays.h"

namespace mien {
namespace cuda {

constexpr int kFlameBlockFloats = 3 * kWarp;  // of a block: all x, all y, all z
constexpr int kFlameCoordinates = 3 * kFlameJoints;
constexpr int kFlameTurnSums = 3 + 12 * kFlameJoints;  // of the gradients: translation, transforms

// The kernels' view of it.
struct FlamePerson {
    std::int32_t vertices, blocks, expressions, correctives, regressed;
    std::int32_t parents[kFlameJoints];
    std::int64_t entries;
    const float* rest;                     // [blocks, 3, 32]
    const float* weights;                  // [blocks, 5, 32]
    const std::int32_t* entry_begin;       // [blocks + 1]
    const std::int32_t* entry_direction;   // [entries] which coefficient
    const std::int32_t* entry_place;       // [entries] among all entries, sorted by direction, then block
    const float* basis;                    // [entries, 3, 32]
    const std::int32_t* place_begin;       // [directions + 1] first place of a direction
    const double* joints;                  // [5, 3]
    const float* joint_basis;              // [E, 5, 3]
    const std::int32_t* regressed_vertex;  // [regressed] the vertices that joints are regressed from, ascending
    const float* regressed_share;          // [regressed, 5]

    MIEN_HD std::int32_t directions() const { return correctives + expressions; }
    MIEN_HD static std::int64_t padded(std::int64_t floats) { return (floats + kWarp - 1) / kWarp * kWarp; }

    // A view's row of the state: the joints (a Skeleton<double>), then
    static constexpr int kTurns = 240;         // [5, 3] axis-angle
    static constexpr int kTransforms = 256;    // [5, 3, 4]
    static constexpr int kTranslation = 316;   // [3]
    static constexpr int kCoefficients = 320;  // [directions] pose correctives, expressions
    MIEN_HD std::int64_t blended_at() const { return padded(kCoefficients + directions()); }  // [blocks, 3, 32]
    MIEN_HD std::int64_t state() const { return blended_at() + std::int64_t(kFlameBlockFloats) * blocks; }

    // A view's row of the way back's scratch: sums in double [kFlameTurnSums + directions], then their parts: of
    // translation and transforms one a block, [kFlameTurnSums, blocks]; of the coefficients one an entry, by place.
    MIEN_HD std::int32_t sums() const { return kFlameTurnSums + directions(); }
    MIEN_HD std::int64_t parts_at() const { return padded(2 * std::int64_t(sums())); }
    MIEN_HD std::int64_t scratch() const {
        return padded(parts_at() + std::int64_t(kFlameTurnSums) * blocks + entries);
    }
};

struct FlameDevice {
    FlameDevice(const FlameArrays& arrays, cudaStream_t stream);

    FlamePerson person{};

private:
    DeviceBuffer<float> rest_, weights_, basis_, joint_basis_, share_;
    DeviceBuffer<double> joints_;
    DeviceBuffer<std::int32_t> entry_begin_, entry_direction_, entry_place_, place_begin_, vertex_;
};

}  // namespace cuda
}  // namespace mien

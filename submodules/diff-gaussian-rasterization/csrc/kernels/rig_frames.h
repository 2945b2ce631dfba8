// The frames of faces in memory, as kernels read and write them.
#pragma once

#include "rig.h"

#include "kernels/simd.h"

#include "core/rigged.h"

namespace mien {
namespace MIEN_ISA {

using Frame = TriangleFrame<Float>;

static_assert(kRigFrame == kFrameFloats && kRigSlot == kFrameGradientFloats, "the common side allocates them");

// The frames of the faces that `rows` Gaussians are bound to; lanes beyond repeat the last one.
inline Frame gather_frames(const float* frames, const std::int32_t* binding, int rows) {
    Float c[kRigFrame];
    for (int first = 0; first < kRigFrame; first += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) {
            const std::int64_t face = binding[lane < rows ? lane : rows - 1];
            c[first + lane] = load(frames + kRigFrame * face + first);
        }
        transpose(c + first);
    }
    return frame_of(c);
}

// What Gaussians do to their frames: lane i goes to the slot slot_of[i].
inline void store_frame_slots(const FrameGradient<Float>& g, float* slots, const std::int32_t* slot_of, int rows) {
    Float slot[kRigSlot];
    frame_gradient_columns(g, slot);
    alignas(64) float packed[kLanes][kRigSlot];
    store_columns<kRigSlot>(slot, packed[0], kRigSlot, rows);
    for (int lane = 0; lane < rows; ++lane)
        std::memcpy(slots + kRigSlot * std::int64_t(slot_of[lane]), packed[lane], sizeof packed[lane]);
}

}  // namespace MIEN_ISA
}  // namespace mien

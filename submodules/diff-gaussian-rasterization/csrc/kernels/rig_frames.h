// The frames of faces in memory, as kernels read and write them.
#pragma once

#include "rig.h"

#include "kernels/simd.h"

#include "core/rigged.h"

namespace mien {
namespace MIEN_ISA {

using Frame = TriangleFrame<Float>;

static_assert(kRigFrame == kFrameFloats, "the common side allocates frames");

inline Frame frame_of(const Float* c) {
    return {
        {c[0], c[1], c[2]}, {c[3], c[4], c[5]}, {c[6], c[7], c[8], c[9]}, {c[10], c[11], c[12]}, c[13], c[14], c[15]};
}

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
    const Float slot[kRigSlot] = {g.torque.x, g.torque.y, g.torque.z, g.centre.x,
                                  g.centre.y, g.centre.z, g.scale,    Float(0.0f)};
    alignas(64) float packed[kLanes][kRigSlot];
    store_columns<kRigSlot>(slot, packed[0], kRigSlot, rows);
    for (int lane = 0; lane < rows; ++lane)
        std::memcpy(slots + kRigSlot * std::int64_t(slot_of[lane]), packed[lane], sizeof packed[lane]);
}

}  // namespace MIEN_ISA
}  // namespace mien

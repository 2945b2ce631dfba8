// Gaussians that ride on the triangles of a mesh: vertices and local columns -> world splats, and back. Common side.
#pragma once

#include <cstdint>

#include "isa.h"

namespace mien {

// N Gaussians in the frames of their triangles, as they are trained.
struct RigColumns {
    const float *means, *quats, *log_scales, *opacity_logits;  // [N, 3], [N, 4] of any length, [N, 3], [N]
};

// The same Gaussians activated and in the world.
struct RigPlaced {
    float *means, *quats, *scales, *opacities;  // [N, 3], [N, 4], [N, 3], [N]
};

// Gradients of the above; null counts as zero.
struct RigPlacedGradients {
    const float *means, *quats, *scales, *opacities;
};

// Null: not wanted.
struct RigColumnGradients {
    float *means, *quats, *log_scales, *opacity_logits;
};

struct RigBackward {
    RigColumns columns;
    const float* opacities;  // from the forward pass
    const float* frames;     // likewise, kRigFrame floats a face
    RigPlacedGradients placed;
    RigColumnGradients out;
    float* slots;  // kRigSlot floats a Gaussian, face by face: what it does to its frame; null if no vertex wants a
                   // gradient
};

constexpr int kRigFrame = 16;  // axes a0 and a1, quaternion, centre, base, height, along: one cache line
constexpr int kRigSlot = 8;    // torque 3, centre 3, scale, unused
constexpr int kRigCorner = 4;  // gradient of one corner of a face, the last unused

// `first` to `first + count`: the rows of faces, Gaussians or vertices that one call works on.
struct RigKernels {
    void (*frames)(const float* vertices, const std::int32_t* faces, std::int64_t first, std::int64_t count,
                   float* frames);
    void (*place)(const RigColumns& in, const std::int32_t* binding, const float* frames, std::int64_t first,
                  std::int64_t count, const RigPlaced& out);
    void (*place_backward)(const RigBackward& work, const std::int32_t* binding, const std::int32_t* slot_of,
                           std::int64_t first, std::int64_t count);
    // Sums the slots of every face, begin[f] to begin[f + 1], in that order; corner i goes to place corner_of[i].
    void (*frames_backward)(const float* frames, const float* slots, const std::int32_t* begin,
                            const std::int32_t* corner_of, std::int64_t first, std::int64_t count, float* corners);
    // Sums the corners of every vertex, likewise.
    void (*vertices_backward)(const float* corners, const std::int32_t* begin, std::int64_t first, std::int64_t count,
                              float* g_vertices);
};

}  // namespace mien

MIEN_DECLARE_KERNELS(RigKernels, rig_kernels)

// What is constant of a mesh and of a binding, and the passes between vertices and the frames of faces.
#pragma once

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <vector>

#include "buffer.h"
#include "parallel.h"
#include "rig.h"

namespace mien {

constexpr std::int64_t kMostRows = INT32_MAX / 3;

// Rows sorted by the bin that each names, equal ones in order (a counting sort): row r goes to place[r]; the places of
// bin b are begin[b] to begin[b + 1].
struct Groups {
    Groups(const std::vector<std::int32_t>& values, std::int64_t bins);

    std::vector<std::int32_t> begin, place;
};

struct RigMesh {
    // Throws InvalidArgument for an index outside [0, n_vertices).
    RigMesh(const std::int64_t* corners, std::int64_t n_faces, std::int64_t n_vertices);

    // Fills frames [F, kRigFrame] from vertices [V, 3].
    void pose(const float* vertices, int threads, float* frames) const;

    // From what every Gaussian does to its frame (face by face, begin[f] to begin[f + 1]) to the vertices [V, 3].
    // `corners` has room for 3 kRigCorner floats a face.
    void pose_backward(const float* frames, const float* slots, const Groups& of_face, int threads, float* corners,
                       float* g_vertices) const;

    const std::int64_t vertices, faces;
    const std::vector<std::int32_t> corner;  // [F, 3]
    const Groups of_vertex;                  // corners, 3 * face + their place in the face, by vertex
    std::mutex scratch;                      // of the buffers, which backward passes share
    Buffer<float> slots, corners;
};

struct RigBinding {
    // Throws InvalidArgument for a face outside [0, n_faces).
    RigBinding(const std::int64_t* values, std::int64_t n, std::int64_t n_faces);

    std::int64_t count() const { return static_cast<std::int64_t>(face.size()); }

    const std::int64_t faces;
    const std::vector<std::int32_t> face;  // [N]
    const Groups of_face;                  // the Gaussians on each face
};

// Throws InvalidArgument unless the binding is of this mesh.
void check_pair(const RigMesh* mesh, const RigBinding* binding);

// Calls body(first, count) for blocks of rows.
template <class Body>
void for_row_blocks(int threads, std::int64_t rows, Body&& body) {
    constexpr std::int64_t kBlock = 1024;      // a multiple of every register width
    constexpr std::int64_t kOneThread = 4096;  // up to so many rows, waking a thread costs more than it saves
    parallel_for(rows > kOneThread ? checked_threads(threads) : 1, (rows + kBlock - 1) / kBlock,
                 [&](std::int64_t block, int) { body(block * kBlock, std::min(kBlock, rows - block * kBlock)); });
}

}  // namespace mien

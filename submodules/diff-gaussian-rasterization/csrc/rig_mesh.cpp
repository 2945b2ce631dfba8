#include "rig_mesh.h"

#include <string>

#include "api.h"

namespace mien {

namespace {

// The same indices in 32 bits. Throws InvalidArgument for one outside [0, bins); `width` indices make a row.
std::vector<std::int32_t> checked(const char* name, const std::int64_t* values, std::int64_t count, int width,
                                  std::int64_t bins) {
    require(count >= 0 && count / 3 <= kMostRows / 3 && bins >= 0 && bins <= kMostRows,
            "rig: too many rows for 32-bit indices");
    require(values != nullptr || count == 0, "rig: a null pointer for indices");
    std::vector<std::int32_t> narrow(static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i) {
        if (values[i] < 0 || values[i] >= bins)
            throw InvalidArgument(std::string(name) + ": row " + std::to_string(i / width) + " holds " +
                                  std::to_string(values[i]) + ", expected 0 to " + std::to_string(bins - 1));
        narrow[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(values[i]);
    }
    return narrow;
}

}  // namespace

Groups::Groups(const std::vector<std::int32_t>& values, std::int64_t bins)
    : begin(static_cast<std::size_t>(bins) + 1), place(values.size()) {
    for (const std::int32_t value : values) ++begin[static_cast<std::size_t>(value) + 1];
    for (std::size_t b = 1; b < begin.size(); ++b) begin[b] += begin[b - 1];
    std::vector<std::int32_t> next(begin.begin(), begin.end() - 1);
    for (std::size_t row = 0; row < values.size(); ++row) place[row] = next[static_cast<std::size_t>(values[row])]++;
}

RigMesh::RigMesh(const std::int64_t* corners, std::int64_t n_faces, std::int64_t n_vertices)
    : vertices(n_vertices),
      faces(n_faces),
      corner(checked("faces", corners, 3 * n_faces, 3, n_vertices)),
      of_vertex(corner, n_vertices) {}

void RigMesh::pose(const float* vertices_at, int threads, float* frames) const {
    for_row_blocks(threads, faces, [&](std::int64_t first, std::int64_t count) {
        MIEN_KERNELS(rig_kernels).frames(vertices_at, corner.data(), first, count, frames);
    });
}

void RigMesh::pose_backward(const float* frames, const float* slots_of_faces, const Groups& of_face, int threads,
                            float* corners_of_faces, float* g_vertices) const {
    const RigKernels& kernels = MIEN_KERNELS(rig_kernels);
    for_row_blocks(threads, faces, [&](std::int64_t first, std::int64_t count) {
        kernels.frames_backward(frames, slots_of_faces, of_face.begin.data(), of_vertex.place.data(), first, count,
                                corners_of_faces);
    });
    for_row_blocks(threads, vertices, [&](std::int64_t first, std::int64_t count) {
        kernels.vertices_backward(corners_of_faces, of_vertex.begin.data(), first, count, g_vertices);
    });
}

RigBinding::RigBinding(const std::int64_t* values, std::int64_t n, std::int64_t n_faces)
    : faces(n_faces), face(checked("binding", values, n, 1, n_faces)), of_face(face, n_faces) {}

void check_pair(const RigMesh* mesh, const RigBinding* binding) {
    require(mesh != nullptr && binding != nullptr, "rig: a null handle");
    require(mesh->faces == binding->faces, "rig: the binding is of another mesh");
}

}  // namespace mien

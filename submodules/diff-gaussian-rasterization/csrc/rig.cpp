// Gaussians on a mesh: what is constant of a mesh and of a binding, and the C functions.
#include "rig.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "api.h"
#include "buffer.h"
#include "parallel.h"

namespace mien {

namespace {

constexpr std::int64_t kBlock = 1024;      // rows that one task works on; a multiple of every register width
constexpr std::int64_t kOneThread = 4096;  // up to so many rows, waking a thread costs more than it saves
constexpr std::int64_t kMost = INT32_MAX / 3;

// Rows sorted by the bin that each names, equal ones in order (a counting sort): row r goes to place[r]; the places of
// bin b are begin[b] to begin[b + 1].
struct Groups {
    std::vector<std::int32_t> begin, place;

    Groups(const std::vector<std::int32_t>& values, std::int64_t bins)
        : begin(static_cast<std::size_t>(bins) + 1), place(values.size()) {
        for (const std::int32_t value : values) ++begin[static_cast<std::size_t>(value) + 1];
        for (std::size_t b = 1; b < begin.size(); ++b) begin[b] += begin[b - 1];
        std::vector<std::int32_t> next(begin.begin(), begin.end() - 1);
        for (std::size_t row = 0; row < values.size(); ++row)
            place[row] = next[static_cast<std::size_t>(values[row])]++;
    }
};

// The same indices in 32 bits. Throws InvalidArgument for one outside [0, bins); `width` indices make a row.
std::vector<std::int32_t> checked(const char* name, const std::int64_t* values, std::int64_t count, int width,
                                  std::int64_t bins) {
    require(count >= 0 && count / 3 <= kMost / 3 && bins >= 0 && bins <= kMost,
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

struct Mesh {
    Mesh(const std::int64_t* corners, std::int64_t n_faces, std::int64_t n_vertices)
        : vertices(n_vertices),
          faces(n_faces),
          corner(checked("faces", corners, 3 * n_faces, 3, n_vertices)),
          of_vertex(corner, n_vertices) {}

    const std::int64_t vertices, faces;
    const std::vector<std::int32_t> corner;  // [F, 3]
    const Groups of_vertex;                  // corners, 3 * face + their place in the face, by vertex
    std::mutex scratch;                      // of the buffers, which backward passes share
    Buffer<float> slots, corners;
};

struct Binding {
    Binding(const std::int64_t* values, std::int64_t n, std::int64_t n_faces)
        : faces(n_faces), face(checked("binding", values, n, 1, n_faces)), of_face(face, n_faces) {}

    std::int64_t count() const { return static_cast<std::int64_t>(face.size()); }

    const std::int64_t faces;
    const std::vector<std::int32_t> face;  // [N]
    const Groups of_face;                  // the Gaussians on each face
};

template <class Body>
void for_blocks(int threads, std::int64_t rows, Body&& body) {
    parallel_for(rows > kOneThread ? threads : 1, (rows + kBlock - 1) / kBlock,
                 [&](std::int64_t block, int) { body(block * kBlock, std::min(kBlock, rows - block * kBlock)); });
}

void check_pair(const Mesh* mesh, const Binding* binding) {
    require(mesh != nullptr && binding != nullptr, "rig: a null handle");
    require(mesh->faces == binding->faces, "rig: the binding is of another mesh");
}

void frames_to_vertices(Mesh& mesh, const Binding& binding, const RigBackward& work, int threads, float* g_vertices) {
    const RigKernels& kernels = MIEN_KERNELS(rig_kernels);
    float* corners = mesh.corners.reserve(3 * kRigCorner * mesh.faces);
    for_blocks(threads, mesh.faces, [&](std::int64_t first, std::int64_t count) {
        kernels.frames_backward(work.frames, work.slots, binding.of_face.begin.data(), mesh.of_vertex.place.data(),
                                first, count, corners);
    });
    for_blocks(threads, mesh.vertices, [&](std::int64_t first, std::int64_t count) {
        kernels.vertices_backward(corners, mesh.of_vertex.begin.data(), first, count, g_vertices);
    });
}

}  // namespace

}  // namespace mien

// What is constant of a mesh: faces [F, 3] with indices in [0, n_vertices), checked here and nowhere else.
MIEN_API int mien_rig_mesh_create(const int64_t* faces, int64_t n_faces, int64_t n_vertices, void** mesh) {
    return mien::guarded([&] {
        mien::require(mesh != nullptr && n_faces >= 0 && n_faces <= mien::kMost, "rig: a wrong number of faces");
        *mesh = new mien::Mesh(faces, n_faces, n_vertices);
    });
}

MIEN_API void mien_rig_mesh_destroy(void* mesh) { delete static_cast<mien::Mesh*>(mesh); }

// What is constant until Gaussians come or go: the face [N] of each, in [0, n_faces), checked here and nowhere else.
MIEN_API int mien_rig_binding_create(const int64_t* faces, int64_t count, int64_t n_faces, void** binding) {
    return mien::guarded([&] {
        mien::require(binding != nullptr, "rig: a null pointer");
        *binding = new mien::Binding(faces, count, n_faces);
    });
}

MIEN_API void mien_rig_binding_destroy(void* binding) { delete static_cast<mien::Binding*>(binding); }

// Places the Gaussians on the mesh with these vertices [V, 3]; `frames` [F, 16] is kept for the backward pass.
MIEN_API int mien_rig_place(const void* mesh_handle, const void* binding_handle, const float* vertices,
                            const mien::RigColumns* columns, int threads, float* frames,
                            const mien::RigPlaced* placed) {
    return mien::guarded([&] {
        const auto* mesh = static_cast<const mien::Mesh*>(mesh_handle);
        const auto* binding = static_cast<const mien::Binding*>(binding_handle);
        mien::check_pair(mesh, binding);
        const mien::RigKernels& kernels = MIEN_KERNELS(rig_kernels);
        mien::for_blocks(threads, mesh->faces, [&](int64_t first, int64_t count) {
            kernels.frames(vertices, mesh->corner.data(), first, count, frames);
        });
        mien::for_blocks(threads, binding->count(), [&](int64_t first, int64_t count) {
            kernels.place(*columns, binding->face.data(), frames, first, count, *placed);
        });
    });
}

// The way back. `local_scales`, `opacities` and `frames` come from the forward pass; g_vertices [V, 3] may be null.
MIEN_API int mien_rig_place_backward(void* mesh_handle, const void* binding_handle, const mien::RigColumns* columns,
                                     const float* local_scales, const float* opacities, const float* frames,
                                     const mien::RigPlacedGradients* placed, int threads,
                                     const mien::RigColumnGradients* g_columns, float* g_vertices) {
    return mien::guarded([&] {
        auto* mesh = static_cast<mien::Mesh*>(mesh_handle);
        const auto* binding = static_cast<const mien::Binding*>(binding_handle);
        mien::check_pair(mesh, binding);
        std::unique_lock<std::mutex> lock(mesh->scratch, std::defer_lock);
        if (g_vertices != nullptr) lock.lock();
        float* slots = g_vertices != nullptr ? mesh->slots.reserve(mien::kRigSlot * binding->count()) : nullptr;
        const mien::RigBackward work{*columns, local_scales, opacities, frames, *placed, *g_columns, slots};
        const mien::RigKernels& kernels = MIEN_KERNELS(rig_kernels);
        mien::for_blocks(threads, binding->count(), [&](int64_t first, int64_t count) {
            kernels.place_backward(work, binding->face.data(), binding->of_face.place.data(), first, count);
        });
        if (g_vertices != nullptr) mien::frames_to_vertices(*mesh, *binding, work, threads, g_vertices);
    });
}

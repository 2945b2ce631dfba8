// Gaussians on a mesh: the C functions.
#include "rig.h"

#include "api.h"
#include "rig_mesh.h"

namespace mien {

namespace {

void check_place(const RigMesh& mesh, const RigBinding& binding, const float* vertices, const RigColumns& in,
                 const float* frames, const RigPlaced& out) {
    if (mesh.faces > 0) require_pointers("rig: vertices or frames", vertices, frames);
    if (binding.count() == 0) return;
    require_pointers("rig: columns", in.means, in.quats, in.log_scales, in.opacity_logits);
    require_pointers("rig: results", out.means, out.quats, out.scales, out.opacities);
}

void check_place_backward(const RigMesh& mesh, const RigBinding& binding, const RigColumns& in, const float* opacities,
                          const float* frames) {
    if (mesh.faces > 0) require_pointers("rig: frames", frames);
    if (binding.count() > 0)
        require_pointers("rig: what the forward pass took and gave", in.means, in.quats, in.log_scales, opacities);
}

}  // namespace

}  // namespace mien

// What is constant of a mesh: faces [F, 3] with indices in [0, n_vertices), checked here and nowhere else.
MIEN_API int mien_rig_mesh_create(const int64_t* faces, int64_t n_faces, int64_t n_vertices, void** mesh) {
    return mien::guarded([&] {
        mien::require(mesh != nullptr && n_faces >= 0 && n_faces <= mien::kMostRows, "rig: a wrong number of faces");
        *mesh = new mien::RigMesh(faces, n_faces, n_vertices);
    });
}

MIEN_API void mien_rig_mesh_destroy(void* mesh) { delete static_cast<mien::RigMesh*>(mesh); }

// What is constant until Gaussians come or go: the face [N] of each, in [0, n_faces), checked here and nowhere else.
MIEN_API int mien_rig_binding_create(const int64_t* faces, int64_t count, int64_t n_faces, void** binding) {
    return mien::guarded([&] {
        mien::require(binding != nullptr, "rig: a null pointer");
        *binding = new mien::RigBinding(faces, count, n_faces);
    });
}

MIEN_API void mien_rig_binding_destroy(void* binding) { delete static_cast<mien::RigBinding*>(binding); }

// Places the Gaussians on the mesh with these vertices [V, 3]; `frames` [F, 16] is kept for the backward pass.
MIEN_API int mien_rig_place(const void* mesh_handle, const void* binding_handle, const float* vertices,
                            const mien::RigColumns* columns, int threads, float* frames,
                            const mien::RigPlaced* placed) {
    return mien::guarded([&] {
        const auto* mesh = static_cast<const mien::RigMesh*>(mesh_handle);
        const auto* binding = static_cast<const mien::RigBinding*>(binding_handle);
        mien::check_pair(mesh, binding);
        mien::require_pointers("rig: columns or results", columns, placed);
        mien::check_place(*mesh, *binding, vertices, *columns, frames, *placed);
        const mien::RigKernels& kernels = MIEN_KERNELS(rig_kernels);
        mesh->pose(vertices, threads, frames);
        mien::for_row_blocks(threads, binding->count(), [&](int64_t first, int64_t count) {
            kernels.place(*columns, binding->face.data(), frames, first, count, *placed);
        });
    });
}

// The way back. `opacities` and `frames` come from the forward pass; g_vertices [V, 3] may be null.
MIEN_API int mien_rig_place_backward(void* mesh_handle, const void* binding_handle, const mien::RigColumns* columns,
                                     const float* opacities, const float* frames,
                                     const mien::RigPlacedGradients* placed, int threads,
                                     const mien::RigColumnGradients* g_columns, float* g_vertices) {
    return mien::guarded([&] {
        auto* mesh = static_cast<mien::RigMesh*>(mesh_handle);
        const auto* binding = static_cast<const mien::RigBinding*>(binding_handle);
        mien::check_pair(mesh, binding);
        mien::require_pointers("rig: columns or gradients", columns, placed, g_columns);
        mien::check_place_backward(*mesh, *binding, *columns, opacities, frames);
        std::unique_lock<std::mutex> lock(mesh->scratch, std::defer_lock);
        if (g_vertices != nullptr) lock.lock();
        float* slots = g_vertices != nullptr ? mesh->slots.reserve(mien::kRigSlot * binding->count()) : nullptr;
        const mien::RigBackward work{*columns, opacities, frames, *placed, *g_columns, slots};
        const mien::RigKernels& kernels = MIEN_KERNELS(rig_kernels);
        mien::for_row_blocks(threads, binding->count(), [&](int64_t first, int64_t count) {
            kernels.place_backward(work, binding->face.data(), binding->of_face.place.data(), first, count);
        });
        if (g_vertices == nullptr) return;
        float* corners = mesh->corners.reserve(3 * mien::kRigCorner * mesh->faces);
        mesh->pose_backward(frames, slots, binding->of_face, threads, corners, g_vertices);
    });
}

// Meshes and bindings on the device: their tables, and the C functions.
#include "cuda/rig_device.h"

#include <memory>

namespace mien {
namespace cuda {

DeviceTable::DeviceTable(const std::vector<std::int32_t>& values, const Queue& queue) {
    const DeviceGuard guard(queue);
    if (values.empty()) return;
    const auto count = static_cast<std::int64_t>(values.size());
    check(cudaMemcpyAsync(buffer_.reserve(count), values.data(), values.size() * sizeof(std::int32_t),
                          cudaMemcpyHostToDevice, queue.stream),
          "copying a table");
    check(cudaStreamSynchronize(queue.stream), "copying a table");
}

DeviceMesh::DeviceMesh(const RigMesh& host, const Queue& queue)
    : device(queue.device),
      vertices(host.vertices),
      faces(host.faces),
      corner(host.corner, queue),
      vertex_begin(host.of_vertex.begin, queue),
      corner_place(host.of_vertex.place, queue) {}

DeviceBinding::DeviceBinding(const RigBinding& host, const Queue& queue)
    : device(queue.device),
      faces(host.faces),
      count(host.count()),
      face(host.face, queue),
      face_begin(host.of_face.begin, queue),
      slot_of(host.of_face.place, queue) {}

RigTables rig_tables(const DeviceMesh* mesh, const DeviceBinding* binding, const Queue& queue) {
    require(mesh != nullptr && binding != nullptr, "rig: a null handle");
    require(mesh->faces == binding->faces, "rig: the binding is of another mesh");
    require(mesh->device == queue.device && binding->device == queue.device, "rig: the mesh is on another device");
    return {mesh->vertices,
            mesh->faces,
            binding->count,
            mesh->corner.data(),
            mesh->vertex_begin.data(),
            mesh->corner_place.data(),
            binding->face.data(),
            binding->face_begin.data(),
            binding->slot_of.data()};
}

namespace {

// Room for what a backward pass to the vertices writes down on its way: frame slots [N, kRigSlot], then corners
// [3 F, kRigCorner].
std::int64_t scratch_floats(const RigTables& rig) { return rig.count * kRigSlot + 3 * rig.faces * kRigCorner; }

RigTables checked(const void* mesh, const void* binding, const Queue* queue) {
    require(queue != nullptr, "rig: a null pointer");
    return rig_tables(static_cast<const DeviceMesh*>(mesh), static_cast<const DeviceBinding*>(binding), *queue);
}

}  // namespace
}  // namespace cuda
}  // namespace mien

using namespace mien;
using namespace mien::cuda;

// As mien_rig_mesh_create: faces [F, 3] are on the host, checked there, and copied.
MIEN_API int mien_cuda_rig_mesh_create(const int64_t* faces, int64_t n_faces, int64_t n_vertices, void** mesh,
                                       const Queue* queue) {
    return guarded([&] {
        require(mesh != nullptr && queue != nullptr && n_faces >= 0 && n_faces <= kMostRows,
                "rig: a wrong number of faces");
        *mesh = new DeviceMesh(RigMesh(faces, n_faces, n_vertices), *queue);
    });
}

MIEN_API void mien_cuda_rig_mesh_destroy(void* mesh) { delete static_cast<DeviceMesh*>(mesh); }

// As mien_rig_binding_create: faces [N] are on the host, checked there, and copied.
MIEN_API int mien_cuda_rig_binding_create(const int64_t* faces, int64_t count, int64_t n_faces, void** binding,
                                          const Queue* queue) {
    return guarded([&] {
        require(binding != nullptr && queue != nullptr, "rig: a null pointer");
        *binding = new DeviceBinding(RigBinding(faces, count, n_faces), *queue);
    });
}

MIEN_API void mien_cuda_rig_binding_destroy(void* binding) { delete static_cast<DeviceBinding*>(binding); }

// As mien_rig_place; arrays on the device.
MIEN_API int mien_cuda_rig_place(const void* mesh, const void* binding, const float* vertices,
                                 const RigColumns* columns, float* frames, const RigPlaced* placed,
                                 const Queue* queue) {
    return guarded([&] {
        const RigTables rig = checked(mesh, binding, queue);
        require_pointers("rig: columns or results", columns, placed);
        if (rig.faces > 0) require_pointers("rig: vertices or frames", vertices, frames);
        if (rig.count > 0) {
            require_pointers("rig: columns", columns->means, columns->quats, columns->log_scales,
                             columns->opacity_logits);
            require_pointers("rig: results", placed->means, placed->quats, placed->scales, placed->opacities);
        }
        const DeviceGuard guard(*queue);
        pose_frames(rig, 1, vertices, frames, queue->stream);
        place_gaussians(rig, *columns, frames, *placed, queue->stream);
    });
}

// As mien_rig_place_backward; arrays on the device. `scratch` [N kRigSlot + 3 F kRigCorner] may be null if g_vertices
// is.
MIEN_API int mien_cuda_rig_place_backward(const void* mesh, const void* binding, const RigColumns* columns,
                                          const float* opacities, const float* frames, const RigPlacedGradients* placed,
                                          const RigColumnGradients* g_columns, float* g_vertices, float* scratch,
                                          const Queue* queue) {
    return guarded([&] {
        const RigTables rig = checked(mesh, binding, queue);
        require_pointers("rig: columns or gradients", columns, placed, g_columns);
        if (rig.faces > 0) require_pointers("rig: frames", frames);
        if (rig.count > 0)
            require_pointers("rig: what the forward pass took and gave", columns->means, columns->quats,
                             columns->log_scales, opacities);
        const bool moves = g_vertices != nullptr;
        require(!moves || scratch != nullptr || scratch_floats(rig) == 0, "rig: no scratch memory");
        const DeviceGuard guard(*queue);
        place_backward(rig, {*columns, opacities, frames, *placed, *g_columns, moves ? scratch : nullptr},
                       queue->stream);
        if (moves) frames_backward(rig, 1, frames, scratch, scratch + rig.count * kRigSlot, g_vertices, queue->stream);
    });
}

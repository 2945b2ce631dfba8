// What is constant of a mesh and of a binding, on the device: copies of RigMesh and RigBinding (csrc/rig_mesh.h).
#pragma once

#include <vector>

#include "cuda/stages.h"
#include "rig_mesh.h"

namespace mien {
namespace cuda {

// A table that is copied to the device once.
class DeviceTable {
public:
    // Returns when the copy is made.
    DeviceTable(const std::vector<std::int32_t>& values, const Queue& queue);

    const std::int32_t* data() const { return buffer_.data(); }

private:
    DeviceBuffer<std::int32_t> buffer_;
};

struct DeviceMesh {
    DeviceMesh(const RigMesh& host, const Queue& queue);

    const std::int32_t device;
    const std::int64_t vertices, faces;
    const DeviceTable corner, vertex_begin, corner_place;
};

struct DeviceBinding {
    DeviceBinding(const RigBinding& host, const Queue& queue);

    const std::int32_t device;
    const std::int64_t faces, count;
    const DeviceTable face, face_begin, slot_of;
};

// Throws InvalidArgument unless the binding is of this mesh and both lie on the queue's device.
RigTables rig_tables(const DeviceMesh* mesh, const DeviceBinding* binding, const Queue& queue);

}  // namespace cuda
}  // namespace mien

// FLAME on the device: what is constant of a person is arranged here, once, and copied; and the C functions.
#include "cuda/flame_person.h"

#include <limits>
#include <memory>
#include <vector>

namespace mien {
namespace cuda {
namespace {

template <class T>
const T* upload(const std::vector<T>& values, DeviceBuffer<T>& buffer, cudaStream_t stream) {
    const std::int64_t count = static_cast<std::int64_t>(values.size());
    T* to = buffer.reserve(count);
    if (count > 0)
        check(cudaMemcpyAsync(to, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice, stream),
              "copying a person to the device");
    return to;
}

// Appends the 32 values of a plane [V] that belong to a block; zero beyond its end. Returns whether any isn't zero.
bool append(const float* plane, std::int64_t block, std::int64_t vertices, std::vector<float>& out) {
    bool any = false;
    for (std::int64_t v = kWarp * block; v < kWarp * (block + 1); ++v) {
        out.push_back(v < vertices ? plane[v] : 0.0f);
        any = any || out.back() != 0.0f;
    }
    return any;
}

// The entries of all blocks.
struct Entries {
    std::vector<std::int32_t> begin, direction, place, place_begin;
    std::vector<float> basis;

    explicit Entries(const FlameArrays& a) {
        const std::int64_t blocks = (a.vertices + kWarp - 1) / kWarp, directions = a.correctives + a.expressions;
        for (std::int64_t block = 0; block < blocks; ++block) {
            begin.push_back(count());
            for (std::int64_t d = 0; d < directions; ++d) append_entry(a, block, d);
        }
        begin.push_back(count());
        place_begin.assign(static_cast<std::size_t>(directions) + 1, 0);
        for (const std::int32_t d : direction) ++place_begin[static_cast<std::size_t>(d) + 1];
        for (std::size_t d = 0; d < static_cast<std::size_t>(directions); ++d) place_begin[d + 1] += place_begin[d];
        std::vector<std::int32_t> next = place_begin;
        for (const std::int32_t d : direction) place.push_back(next[static_cast<std::size_t>(d)]++);
    }

    std::int32_t count() const { return static_cast<std::int32_t>(direction.size()); }

private:
    void append_entry(const FlameArrays& a, std::int64_t block, std::int64_t d) {
        const std::size_t before = basis.size();
        bool any = false;
        for (int axis = 0; axis < 3; ++axis)
            any |= append(a.basis + (3 * d + axis) * a.vertices, block, a.vertices, basis);
        if (!any) {
            basis.resize(before);
            return;
        }
        require(direction.size() < std::size_t(std::numeric_limits<std::int32_t>::max()),
                "flame: the basis is too large");
        direction.push_back(static_cast<std::int32_t>(d));
    }
};

// The vertices that joints are regressed from.
struct Regressor {
    std::vector<std::int32_t> vertex;
    std::vector<float> share;

    explicit Regressor(const FlameArrays& a) {
        for (std::int64_t v = 0; v < a.vertices; ++v) {
            float row[kFlameJoints];
            bool any = false;
            for (int j = 0; j < kFlameJoints; ++j) {
                row[j] = a.joint_regressor[j * a.vertices + v];
                any = any || row[j] != 0.0f;
            }
            if (!any) continue;
            vertex.push_back(static_cast<std::int32_t>(v));
            share.insert(share.end(), row, row + kFlameJoints);
        }
    }
};

// [blocks, n, 32] from n planes [V].
std::vector<float> by_blocks(const float* planes, int n, std::int64_t vertices) {
    std::vector<float> out;
    for (std::int64_t block = 0; kWarp * block < vertices; ++block)
        for (int i = 0; i < n; ++i) append(planes + i * vertices, block, vertices, out);
    return out;
}

}  // namespace

FlameDevice::FlameDevice(const FlameArrays& a, cudaStream_t stream) {
    const Entries entries(a);
    const Regressor regressor(a);
    const std::vector<float> rest = by_blocks(a.rest, 3, a.vertices),
                             weights = by_blocks(a.weights, kFlameJoints, a.vertices);
    const std::vector<double> joints(a.joints, a.joints + kFlameCoordinates);
    const std::vector<float> joint_basis(a.joint_basis, a.joint_basis + kFlameCoordinates * a.expressions);
    person.vertices = static_cast<std::int32_t>(a.vertices);
    person.blocks = static_cast<std::int32_t>((a.vertices + kWarp - 1) / kWarp);
    person.expressions = static_cast<std::int32_t>(a.expressions);
    person.correctives = static_cast<std::int32_t>(a.correctives);
    person.regressed = static_cast<std::int32_t>(regressor.vertex.size());
    for (int j = 0; j < kFlameJoints; ++j) person.parents[j] = a.parents[j];
    person.entries = entries.count();
    person.rest = upload(rest, rest_, stream);
    person.weights = upload(weights, weights_, stream);
    person.entry_begin = upload(entries.begin, entry_begin_, stream);
    person.entry_direction = upload(entries.direction, entry_direction_, stream);
    person.entry_place = upload(entries.place, entry_place_, stream);
    person.basis = upload(entries.basis, basis_, stream);
    person.place_begin = upload(entries.place_begin, place_begin_, stream);
    person.joints = upload(joints, joints_, stream);
    person.joint_basis = upload(joint_basis, joint_basis_, stream);
    person.regressed_vertex = upload(regressor.vertex, vertex_, stream);
    person.regressed_share = upload(regressor.share, share_, stream);
    check(cudaStreamSynchronize(stream), "copying a person to the device");  // before the vectors go
}

std::int64_t flame_state(const FlameDevice& device) { return device.person.state(); }
std::int64_t flame_backward_scratch(const FlameDevice& device) { return device.person.scratch(); }

namespace {

constexpr int kMostViews = 65535;  // of a grid

const FlameDevice& checked(const void* flame, const FlameMoments* moments, const Queue* queue) {
    require(flame != nullptr && moments != nullptr && queue != nullptr, "flame: a null pointer");
    require(moments->views >= 1 && moments->views <= kMostViews, "flame: a wrong number of views");
    require(moments->n_expr >= 0 && moments->n_expr <= kFlameMost, "flame: a wrong number of expressions");
    require(moments->state != nullptr && moments->vertices != nullptr, "flame: a null pointer");
    for (int i = 0; i < kFlameTables - 1; ++i)
        require(moments->table[i] != nullptr || (i == 0 && moments->n_expr == 0), "flame: a null pointer");
    return *static_cast<const FlameDevice*>(flame);
}

}  // namespace
}  // namespace cuda
}  // namespace mien

// What is constant of a person, copied to the queue's device; `arrays` and what they point to lie on the host. The
// handle is a FlameDevice*.
MIEN_API int mien_cuda_flame_create(const mien::FlameArrays* arrays, void** flame, const mien::cuda::Queue* queue) {
    return mien::guarded([&] {
        mien::require(arrays != nullptr && flame != nullptr && queue != nullptr, "flame: a null pointer");
        mien::check_arrays(*arrays);
        const mien::cuda::DeviceGuard guard(*queue);
        *flame = std::make_unique<mien::cuda::FlameDevice>(*arrays, queue->stream).release();
    });
}

MIEN_API void mien_cuda_flame_destroy(void* flame) { delete static_cast<mien::cuda::FlameDevice*>(flame); }

// Floats a view: what the passes share, and scratch of the way back.
MIEN_API int mien_cuda_flame_sizes(const void* flame, int64_t* state, int64_t* scratch) {
    return mien::guarded([&] {
        mien::require(flame != nullptr && state != nullptr && scratch != nullptr, "flame: a null pointer");
        const auto& person = *static_cast<const mien::cuda::FlameDevice*>(flame);
        *state = mien::cuda::flame_state(person);
        *scratch = mien::cuda::flame_backward_scratch(person);
    });
}

// Posed vertices of every view. Parameters are not looked at beforehand: what is not finite shows in the vertices.
MIEN_API int mien_cuda_flame_pose(const void* flame, const mien::cuda::FlameMoments* moments,
                                  const mien::cuda::Queue* queue) {
    return mien::guarded([&] {
        const mien::cuda::FlameDevice& person = mien::cuda::checked(flame, moments, queue);
        const mien::cuda::DeviceGuard guard(*queue);
        mien::cuda::flame_pose(person, *moments, queue->stream);
    });
}

// The way back, with the moments and the state of the forward pass.
MIEN_API int mien_cuda_flame_pose_backward(const void* flame, const mien::cuda::FlameMoments* moments,
                                           const mien::cuda::FlameMomentGradients* gradients,
                                           const mien::cuda::Queue* queue) {
    return mien::guarded([&] {
        const mien::cuda::FlameDevice& person = mien::cuda::checked(flame, moments, queue);
        mien::require(gradients != nullptr && gradients->g_vertices != nullptr && gradients->scratch != nullptr,
                      "flame: a null pointer");
        const mien::cuda::DeviceGuard guard(*queue);
        mien::cuda::flame_pose_backward(person, *moments, *gradients, queue->stream);
    });
}

// B pictures from start to end on the device, and back: memory for all stages of stages.h, and their order.
#pragma once

#include "cuda/stages.h"

namespace mien {
namespace cuda {

// The sizes of B pictures of `count` Gaussians with room for so many (splat, tile) pairs.
Sizes make_sizes(std::int32_t views, std::int64_t count, std::int32_t width, std::int32_t height,
                 std::int64_t pair_capacity);

// What is drawn: B pictures of the same N Gaussians, in the world or, with a rig, on the triangles of a mesh. Arrays
// lie on the device.
struct Scene {
    CameraTables cameras;
    SplatInputs splats;
    const RigTables* rig = nullptr;   // null: in the world
    const float* vertices = nullptr;  // [B, V, 3] of the rig
};

// Any pointer may be null: not wanted. Arrays [N, ..] are summed over the views.
struct SceneGradients {
    float *means = nullptr, *quats = nullptr, *scales = nullptr, *covariances = nullptr, *opacities = nullptr;
    float *sh = nullptr, *colors = nullptr, *sh0 = nullptr;
    float* screen_offsets = nullptr;                          // [B, N, 2]
    float* vertices = nullptr;                                // [B, V, 3]
    float *world_to_camera = nullptr, *intrinsics = nullptr;  // [B, 4, 4] and [B, 3, 3], both or none
    float* background = nullptr;                              // [B, 3]
};

// What backward needs of forward, and all scratch memory. Reused for picture after picture, on one device and one
// stream; one batch of pictures at a time.
class DeviceWorkspace {
public:
    // Makes room. After that, forward and backward with these sizes (or smaller ones) allocate nothing, wait for
    // nothing and read nothing back, so that they can be captured in a graph. The arrays move if they had to grow:
    // graphs captured before are then void.
    // Throws OutOfDeviceMemory.
    void reserve(const Sizes& sizes, const RigTables* rig, bool with_backward);

    // Draws what fits into sizes.pair_capacity; `health`, if given, is told of what does not, and of input that is not
    // finite. out.depth may be null. radii [B, N]. Without `with_backward` less is kept, and backward must not follow.
    void forward(const Sizes& sizes, const Scene& scene, const BatchPicture& out, std::int32_t* radii,
                 bool with_backward, Health* health, cudaStream_t stream);

    // The same with as many pairs as it takes: waits for their number and grows. sizes.pair_capacity is not read.
    // Throws NotFinite, naming the tensor and the row, InvalidArgument for a camera without a positive focal length.
    void forward_exact(const Sizes& sizes, const Scene& scene, const BatchPicture& out, std::int32_t* radii,
                       bool with_backward, cudaStream_t stream);

    // Gradients of the last forward pass, whose sizes and scene must be given again (their pair_capacity is not read).
    // `health` as in stages.h; may be null. After forward_exact call reserve_for_backward first.
    // Throws InvalidArgument if the last pass was of another scene, or was not made for this.
    void backward(const Sizes& sizes, const Scene& scene, const BatchPictureGradients& in, const SceneGradients& out,
                  Health* health, cudaStream_t stream);
    // Makes room for the backward pass of the last picture.
    void reserve_for_backward(const RigTables* rig);

    // [1] on the device: pairs that the last forward pass wanted.
    const std::uint32_t* pair_total() const;
    std::int64_t bytes() const;

    // The size of the last picture's work, for benchmarks: pairs, and the sub-tiles of 8 x 4 pixels that they reach.
    // Waits for the device.
    struct Work {
        std::int64_t pairs, sub_tiles;
    };
    Work work(cudaStream_t stream) const;

private:
    // What the host learns of a picture while it waits.
    struct Ledger {
        Health health;
        std::uint32_t pairs;
    };

    template <class T>
    void room(DeviceBuffer<T>& buffer, std::int64_t count);  // of what backward needs of forward
    void reserve_scratch(const Sizes& sizes);
    void reserve_splats(const Sizes& sizes, const RigTables* rig);
    void reserve_pairs(const Sizes& sizes, bool with_backward);
    void reserve_backward(const Sizes& sizes, const RigTables* rig);
    Gaussians gaussians(const Sizes& sizes, const Scene& scene) const;
    TileTables tile_tables(const Sizes& sizes, Health* health) const;
    BlendTables blend_tables(const Sizes& sizes, bool with_backward) const;
    SplatGradientTables gradient_tables(const Scene& scene, const SceneGradients& out, Health* health) const;
    void splats_forward(const Sizes& sizes, const Scene& scene, std::int32_t* radii, Health* health,
                        cudaStream_t stream);
    void tiles_forward(const Sizes& sizes, const BatchPicture& out, bool with_backward, Health* health,
                       cudaStream_t stream);

    Sizes sizes_ = {};               // of the last forward pass
    std::int64_t posed_faces_ = -1;  // of its mesh; -1: none
    bool ready_ = false;             // backward may follow
    std::int64_t longest_ = 0;  // array that scratch_ has room to sort
    DeviceBuffer<View> views_;
    DeviceBuffer<Ledger> ledger_;
    DeviceBuffer<SplatRecord> records_;
    DeviceBuffer<TileRect> rects_;
    DeviceBuffer<std::uint32_t> counts_, keys_, sorted_keys_, order_, order_in_, first_slot_;
    DeviceBuffer<std::uint32_t> pair_keys_in_, pair_keys_, pair_ids_in_, pair_ids_, pair_splat_;
    DeviceBuffer<std::uint8_t> pair_mask_, masks_, scratch_;
    DeviceBuffer<uint2> entries_;
    DeviceBuffer<std::uint32_t> tile_begin_, bucket_begin_, bucket_tile_;
    DeviceBuffer<float> frames_, transmittance_, states_;
    DeviceBuffer<float> slots_, tile_background_, frame_slots_, corners_, camera_;
};

}  // namespace cuda
}  // namespace mien

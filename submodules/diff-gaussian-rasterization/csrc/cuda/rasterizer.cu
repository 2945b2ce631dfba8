#include "cuda/rasterizer.h"

#include <algorithm>
#include <cfloat>
#include <vector>

#include "cuda/refuse.h"

namespace mien {
namespace cuda {

namespace {

constexpr int kSumThreads = 256;

__global__ void clear_health(Health* health) { *health = {0, 0, 0xffffffffu, 0, 0}; }

__global__ void look_for_non_finite(const float* values, std::int64_t count, Health* health) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count && !(fabsf(values[i]) <= FLT_MAX)) atomicOr(&health->stopped, std::uint32_t(kBadInput));
}

// One block a view: the tiles' sums [B, tiles, 3] -> [B, 3], always in the same order.
__global__ void sum_background(const float* of_tiles, std::int64_t tiles, float* background) {
    __shared__ double sums[3][kSumThreads];
    const int thread = static_cast<int>(threadIdx.x), view = static_cast<int>(blockIdx.x);
    double red = 0, green = 0, blue = 0;
    for (std::int64_t t = thread; t < tiles; t += kSumThreads) {
        const float* at = of_tiles + 3 * (view * tiles + t);
        red += at[0], green += at[1], blue += at[2];
    }
    sums[0][thread] = red, sums[1][thread] = green, sums[2][thread] = blue;
    for (int half = kSumThreads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread >= half) continue;
        for (int c = 0; c < 3; ++c) sums[c][thread] += sums[c][thread + half];
    }
    __syncthreads();
    if (thread < 3) background[3 * view + thread] = static_cast<float>(sums[thread][0]);
}

// The array, which must have been reserved: a graph's step can't make room.
template <class T>
T* at(const DeviceBuffer<T>& buffer, std::int64_t count) {
    require(buffer.capacity() >= count, "the workspace was reserved for smaller pictures");
    return buffer.data();
}

template <class... Buffers>
std::int64_t sum_of_bytes(const Buffers&... buffers) {
    return (buffers.bytes() + ...);
}

template <class T>
T read_back(const T* value, cudaStream_t stream) {
    T copy;
    check(cudaMemcpyAsync(&copy, value, sizeof copy, cudaMemcpyDeviceToHost, stream), "reading back");
    check(cudaStreamSynchronize(stream), "drawing");
    return copy;
}

constexpr std::int64_t kMostRows32 = INT32_MAX;
constexpr std::int64_t kMostPairs = std::int64_t(UINT32_MAX) - 1;

}  // namespace

Sizes make_sizes(std::int32_t views, std::int64_t count, std::int32_t width, std::int32_t height,
                 std::int64_t pair_capacity) {
    require(views > 0 && count >= 0 && count < kMostRows32 && views * count < kMostRows32,
            "the number of splats is out of range");
    require(pair_capacity >= 0 && pair_capacity <= kMostPairs, "the capacity for pairs is out of range");
    const Sizes sizes = {views,        static_cast<std::int32_t>(count), width,
                         height,       (width + kTile - 1) / kTile,      (height + kTile - 1) / kTile,
                         pair_capacity};
    require(sizes.tiles() < kMostRows32, "too many tiles; draw fewer views at a time");
    return sizes;
}

template <class T>
void DeviceWorkspace::room(DeviceBuffer<T>& buffer, std::int64_t count) {
    if (count > buffer.capacity()) ready_ = false;
    buffer.reserve(count);
}

// CUB looks at the device to say how much it needs: it is not asked for every picture.
void DeviceWorkspace::reserve_scratch(const Sizes& sizes) {
    const std::int64_t longest = std::max({sizes.rows(), sizes.pair_capacity, sizes.tiles() + 1});
    if (longest <= longest_) return;
    room(scratch_, static_cast<std::int64_t>(list_tiles_scratch(sizes)));
    longest_ = longest;
}

void DeviceWorkspace::reserve_splats(const Sizes& sizes, const RigTables* rig) {
    const std::int64_t rows = sizes.rows(), tiles = sizes.tiles();
    room(views_, sizes.views), room(ledger_, 1);
    room(records_, rows), room(rects_, rows), room(counts_, rows), room(keys_, rows), room(sorted_keys_, rows);
    room(order_, rows), room(order_in_, rows), room(first_slot_, rows);
    room(tile_begin_, tiles + 1), room(bucket_begin_, tiles + 1);
    room(transmittance_, sizes.views * sizes.pixels());
    reserve_scratch(sizes);
    if (rig != nullptr) room(frames_, sizes.views * rig->faces * kRigFrame);
}

void DeviceWorkspace::reserve_pairs(const Sizes& sizes, bool with_backward) {
    const std::int64_t pairs = sizes.pair_capacity;
    room(pair_keys_in_, pairs), room(pair_keys_, pairs), room(pair_ids_in_, pairs), room(pair_ids_, pairs);
    room(pair_splat_, pairs), room(pair_mask_, pairs), room(masks_, pairs), room(entries_, pairs);
    room(bucket_tile_, sizes.buckets());
    reserve_scratch(sizes);
    if (with_backward) room(states_, sizes.buckets() * kStateFloats * kTile * kTile);
}

void DeviceWorkspace::reserve_backward(const Sizes& sizes, const RigTables* rig) {
    slots_.reserve(sizes.pair_capacity * kPairSlot), tile_background_.reserve(3 * sizes.tiles());
    camera_.reserve(sizes.views * std::int64_t(blocks_for(sizes.count, kSplatThreads)) * kCameraGradient);
    if (rig == nullptr) return;
    frame_slots_.reserve(sizes.rows() * kRigSlot), corners_.reserve(3 * sizes.views * rig->faces * kRigCorner);
}

void DeviceWorkspace::reserve(const Sizes& sizes, const RigTables* rig, bool with_backward) {
    reserve_splats(sizes, rig);
    reserve_pairs(sizes, with_backward);
    if (with_backward) reserve_backward(sizes, rig);
}

Gaussians DeviceWorkspace::gaussians(const Sizes& sizes, const Scene& scene) const {
    Gaussians all;
    static_cast<SplatInputs&>(all) = scene.splats;
    if (scene.rig == nullptr) return all;
    all.frames = at(frames_, sizes.views * scene.rig->faces * kRigFrame);
    all.face = scene.rig->face;
    return all;
}

TileTables DeviceWorkspace::tile_tables(const Sizes& sizes, Health* health) const {
    const std::int64_t rows = sizes.rows(), pairs = sizes.pair_capacity, tiles = sizes.tiles();
    return {at(views_, sizes.views),
            at(records_, rows),
            at(rects_, rows),
            at(counts_, rows),
            at(keys_, rows),
            at(sorted_keys_, rows),
            at(order_, rows),
            at(order_in_, rows),
            at(pair_keys_in_, pairs),
            at(pair_keys_, pairs),
            at(pair_ids_in_, pairs),
            at(pair_ids_, pairs),
            at(pair_splat_, pairs),
            at(pair_mask_, pairs),
            scratch_.data(),
            static_cast<std::size_t>(scratch_.capacity()),
            at(first_slot_, rows),
            &at(ledger_, 1)->pairs,
            at(entries_, pairs),
            at(masks_, pairs),
            at(tile_begin_, tiles + 1),
            at(bucket_begin_, tiles + 1),
            bucket_tile_.data(),
            health};
}

BlendTables DeviceWorkspace::blend_tables(const Sizes& sizes, bool with_backward) const {
    const std::int64_t tiles = sizes.tiles(), buckets = sizes.buckets();
    return {at(views_, sizes.views),
            at(records_, sizes.rows()),
            at(tile_begin_, tiles + 1),
            at(bucket_begin_, tiles + 1),
            at(bucket_tile_, buckets),
            at(entries_, sizes.pair_capacity),
            at(masks_, sizes.pair_capacity),
            at(transmittance_, sizes.views * sizes.pixels()),
            with_backward ? at(states_, buckets * kStateFloats * kTile * kTile) : nullptr};
}

void DeviceWorkspace::splats_forward(const Sizes& sizes, const Scene& scene, std::int32_t* radii, Health* health,
                                     cudaStream_t stream) {
    ready_ = false;
    sizes_ = sizes;
    posed_faces_ = scene.rig != nullptr ? scene.rig->faces : -1;
    View* views = at(views_, sizes.views);
    make_views(sizes, scene.cameras, views, health, stream);
    if (scene.rig != nullptr)
        pose_frames(*scene.rig, sizes.views, scene.vertices, at(frames_, sizes.views * posed_faces_ * kRigFrame),
                    stream);
    const std::int64_t rows = sizes.rows();
    const SplatTables tables = {views,
                                gaussians(sizes, scene),
                                posed_faces_,
                                at(records_, rows),
                                at(rects_, rows),
                                at(counts_, rows),
                                at(keys_, rows),
                                radii,
                                health};
    prepare_splats(sizes, tables, stream);
}

void DeviceWorkspace::tiles_forward(const Sizes& sizes, const BatchPicture& out, bool with_backward, Health* health,
                                    cudaStream_t stream) {
    at(bucket_tile_, sizes.buckets());
    list_tiles(sizes, tile_tables(sizes, health), stream);
    blend_forward(sizes, blend_tables(sizes, with_backward), out, stream);
    sizes_ = sizes;
    ready_ = with_backward;
}

void DeviceWorkspace::forward(const Sizes& sizes, const Scene& scene, const BatchPicture& out, std::int32_t* radii,
                              bool with_backward, Health* health, cudaStream_t stream) {
    splats_forward(sizes, scene, radii, health, stream);
    count_pairs(sizes, tile_tables(sizes, health), stream);
    tiles_forward(sizes, out, with_backward, health, stream);
}

void DeviceWorkspace::forward_exact(const Sizes& wanted, const Scene& scene, const BatchPicture& out,
                                    std::int32_t* radii, bool with_backward, cudaStream_t stream) {
    Sizes sizes = wanted;
    sizes.pair_capacity = 0;
    reserve_splats(sizes, scene.rig);
    Ledger* ledger = at(ledger_, 1);
    launch(clear_health, 1, 1, stream, &ledger->health);
    if (scene.rig != nullptr) {
        const std::int64_t values = 3 * scene.rig->vertices * sizes.views;
        launch(look_for_non_finite, blocks_for(values, kSumThreads), kSumThreads, stream, scene.vertices, values,
               &ledger->health);
    }
    splats_forward(sizes, scene, radii, &ledger->health, stream);
    count_pairs(sizes, tile_tables(sizes, nullptr), stream);
    const Ledger seen = read_back(ledger, stream);
    if (seen.health.stopped != 0) refuse_scene(sizes, scene, seen.health, stream);
    require(seen.pairs <= kMostPairs, "the splats cover too many tiles; draw fewer or a smaller picture");
    sizes.pair_capacity = seen.pairs;
    reserve_pairs(sizes, with_backward);
    tiles_forward(sizes, out, with_backward, nullptr, stream);
}

void DeviceWorkspace::backward(const Sizes& sizes, const Scene& scene, const BatchPictureGradients& in,
                               const SceneGradients& out, Health* health, cudaStream_t stream) {
    require(ready_ && sizes.views == sizes_.views && sizes.count == sizes_.count && sizes.width == sizes_.width &&
                sizes.height == sizes_.height,
            "backward needs the workspace of the matching forward pass");
    require(posed_faces_ == (scene.rig != nullptr ? scene.rig->faces : -1),
            "backward needs the mesh of the matching forward pass");
    float* slots = at(slots_, sizes_.pair_capacity * kPairSlot);
    float* background = out.background != nullptr ? at(tile_background_, 3 * sizes_.tiles()) : nullptr;
    blend_backward(sizes_, blend_tables(sizes_, true), in, slots, background, stream);
    if (background != nullptr)
        launch(sum_background, sizes_.views, kSumThreads, stream, background,
               std::int64_t(sizes_.tiles_x) * sizes_.tiles_y, out.background);
    splats_backward(sizes_, gradient_tables(scene, out, health), stream);
    if (scene.rig != nullptr && out.vertices != nullptr)
        frames_backward(*scene.rig, sizes_.views, frames_.data(), frame_slots_.data(),
                        at(corners_, 3 * sizes_.views * posed_faces_ * kRigCorner), out.vertices, stream);
    if (out.world_to_camera != nullptr)
        camera_backward(sizes_, scene.cameras, views_.data(), camera_.data(), out.world_to_camera, out.intrinsics,
                        stream);
}

void DeviceWorkspace::reserve_for_backward(const RigTables* rig) { reserve_backward(sizes_, rig); }

SplatGradientTables DeviceWorkspace::gradient_tables(const Scene& scene, const SceneGradients& out,
                                                     Health* health) const {
    const std::int64_t rows = sizes_.rows();
    const bool moves = scene.rig != nullptr && out.vertices != nullptr, with_camera = out.world_to_camera != nullptr;
    SplatGradients columns = {};
    columns.means = out.means, columns.quats = out.quats, columns.scales = out.scales;
    columns.covariances = out.covariances, columns.opacities = out.opacities, columns.colors = out.colors;
    columns.sh = out.sh, columns.sh0 = out.sh0;
    columns.slot_of = scene.rig != nullptr ? scene.rig->slot_of : nullptr;
    const std::int64_t blocks = sizes_.views * std::int64_t(blocks_for(sizes_.count, kSplatThreads));
    return {views_.data(),
            gaussians(sizes_, scene),
            posed_faces_,
            counts_.data(),
            first_slot_.data(),
            slots_.data(),
            columns,
            out.screen_offsets,
            moves ? at(frame_slots_, rows * kRigSlot) : nullptr,
            with_camera ? at(camera_, blocks * kCameraGradient) : nullptr,
            pair_total(),
            health};
}

const std::uint32_t* DeviceWorkspace::pair_total() const { return &at(ledger_, 1)->pairs; }

std::int64_t DeviceWorkspace::bytes() const {
    return sum_of_bytes(views_, ledger_, records_, rects_, counts_, keys_, sorted_keys_, order_, order_in_, first_slot_,
                        pair_keys_in_, pair_keys_, pair_ids_in_, pair_ids_, pair_splat_, pair_mask_, masks_, scratch_,
                        entries_, tile_begin_, bucket_begin_, bucket_tile_, frames_, transmittance_, states_, slots_,
                        tile_background_, frame_slots_, corners_, camera_);
}

DeviceWorkspace::Work DeviceWorkspace::work(cudaStream_t stream) const {
    if (ledger_.data() == nullptr || tile_begin_.data() == nullptr) return {0, 0};
    const std::int64_t pairs = std::min<std::int64_t>(read_back(pair_total(), stream), sizes_.pair_capacity);
    std::vector<std::uint8_t> masks(static_cast<std::size_t>(pairs));
    if (pairs > 0)
        check(cudaMemcpyAsync(masks.data(), masks_.data(), masks.size(), cudaMemcpyDeviceToHost, stream), "copying");
    check(cudaStreamSynchronize(stream), "copying");
    std::int64_t reached = 0;
    for (const std::uint8_t mask : masks) reached += __builtin_popcount(mask);
    return {pairs, reached};
}

}  // namespace cuda
}  // namespace mien

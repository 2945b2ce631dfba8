// Pictures from tile lists. A block has a tile and a warp one of its sub-tiles: entries are staged in shared memory, a
// bucket at a time, and a warp meets only those that reach its 32 pixels. A warp rests once its pixels are opaque, and
// the block ends when all of them are.
#include "cuda/stages.h"

#include "cuda/blend.h"

namespace mien {
namespace cuda {

namespace {

using namespace mien::device;

constexpr int kWords = kBucket / kWarp;
constexpr float kNever = 1e30f;

struct PixelState {
    float transmittance, red, green, blue, depth;
    float faintest;  // exponents below it are not seen: kFaintest, or kNever once the pixel takes nothing any more

    __device__ bool live() const { return faintest < kNever; }
};

// What a warp saw of a bucket: a bit for every entry that some live pixel met.
struct Seen {
    unsigned word[kWords][kSubTiles];
};

// Selects instead of branches: some lane of the warp takes the splat anyway.
template <bool with_depth>
__device__ void blend_entry(const StagedEntry& entry, const float4& light, float exponent, float alpha_max, float stop,
                            PixelState& pixel) {
    const bool seen = exponent >= pixel.faintest;
    const float alpha = min(exp2_of(exponent), alpha_max), next = behind(pixel.transmittance, alpha);
    const bool taken = seen && next >= stop;  // the splat that ends a pixel adds nothing
    const float weight = taken ? alpha * pixel.transmittance : 0.0f;
    pixel.red = fma(weight, light.z, pixel.red);
    pixel.green = fma(weight, light.w, pixel.green);
    pixel.blue = fma(weight, entry.rest.x, pixel.blue);
    if constexpr (with_depth) pixel.depth = fma(weight, entry.rest.y, pixel.depth);
    pixel.transmittance = taken ? next : pixel.transmittance;
    pixel.faintest = seen && !taken ? kNever : pixel.faintest;
}

// Blends the warp's share of the staged entries into its pixels.
template <bool with_depth>
__device__ void blend_bucket(const StagedEntries& staged, int count, float x, float y, float alpha_max, float stop,
                             PixelState& pixel, Seen& seen) {
    for (int first = 0; first < count; first += kWarp) {
        const bool open = __any_sync(kAllLanes, pixel.live()) != 0;
        unsigned left = open ? reached_entries(staged, first, count - first) : 0u, met = 0;
        while (left != 0) {
            const int bit = __ffs(int(left)) - 1;
            left &= left - 1;
            const StagedEntry& entry = staged.entry[first + bit];
            const float4 shape = entry.shape, light = entry.light;
            const float exponent = exponent_at(x + shape.x, y + shape.y, shape, light);
            if (!__any_sync(kAllLanes, exponent >= pixel.faintest)) continue;
            met |= 1u << bit;
            blend_entry<with_depth>(entry, light, exponent, alpha_max, stop, pixel);
        }
        if (threadIdx.x % kWarp == 0) seen.word[first / kWarp][threadIdx.x / kWarp] = met;
    }
}

__device__ std::uint8_t seen_mask(const Seen& seen, int i) {
    unsigned mask = 0;
    for (int s = 0; s < kSubTiles; ++s) mask |= (seen.word[i / kWarp][s] >> (i % kWarp) & 1u) << s;
    return static_cast<std::uint8_t>(mask);
}

// The state of the first bucket is known without being kept.
template <bool with_depth>
__device__ void keep_state(const PixelState& pixel, float* states) {
    states += threadIdx.x;
    states[0 * kTilePixels] = pixel.live() ? pixel.transmittance : kDead;
    states[1 * kTilePixels] = pixel.red;
    states[2 * kTilePixels] = pixel.green;
    states[3 * kTilePixels] = pixel.blue;
    if constexpr (with_depth) states[4 * kTilePixels] = pixel.depth;
}

template <bool with_depth>
__device__ void finish(const Sizes& sizes, const View& view, const TilePixel& place, const PixelState& pixel,
                       float* transmittance, const BatchPicture& out) {
    if (!place.inside(sizes)) return;
    const std::int64_t plane = std::int64_t(sizes.width) * sizes.height, at = place.at(sizes, 1);
    float* image = out.image + place.at(sizes, 3);
    const float t = pixel.transmittance;
    image[0] = fma(t, view.background[0], pixel.red);
    image[plane] = fma(t, view.background[1], pixel.green);
    image[2 * plane] = fma(t, view.background[2], pixel.blue);
    out.alpha[at] = 1.0f - t;
    transmittance[at] = t;
    if constexpr (with_depth) out.depth[at] = pixel.depth;
}

template <bool with_depth>
__global__ void __launch_bounds__(kTilePixels, resident(5)) blend_tiles(Sizes sizes, BlendTables t, BatchPicture out) {
    __shared__ StagedEntries staged;
    __shared__ Seen seen;
    const std::uint32_t tile = blockIdx.x, end = t.tile_begin[tile + 1];
    const TilePixel place(sizes, tile);
    const View& view = t.views[place.view];
    const float alpha_max = view.alpha_max, stop = view.stop;
    const int mine = int(threadIdx.x) % kBucket, part = int(threadIdx.x) / kBucket;
    PixelState pixel = {1.0f, 0.0f, 0.0f, 0.0f, 0.0f, place.inside(sizes) ? kFaintest : kNever};
    std::uint32_t first = t.tile_begin[tile], bucket = t.bucket_begin[tile];
    std::uint32_t row = first + mine < end ? t.entries[first + mine].x : 0u;
    while (first < end) {
        if (first + mine < end) {
            stage_record(t.records[row], part, place.x0(), place.y0(), staged.entry[mine]);
            if (part == 1) staged.mask[mine] = t.masks[first + mine];
        }
        row = first + kBucket + mine < end ? t.entries[first + kBucket + mine].x : 0u;
        __syncthreads();
        blend_bucket<with_depth>(staged, int(end - first < kBucket ? end - first : kBucket), place.dx(), place.dy(),
                                 alpha_max, stop, pixel, seen);
        const bool open = __syncthreads_or(pixel.live()) != 0;  // and all have done with what is staged
        if (part == 0 && first + mine < end) t.masks[first + mine] = seen_mask(seen, mine);
        first += kBucket, ++bucket;
        if (!open) break;
        if (first < end && t.states != nullptr)
            keep_state<with_depth>(pixel, t.states + std::int64_t(bucket) * (kStateFloats * kTilePixels));
    }
    for (first += threadIdx.x; first < end; first += kTilePixels) t.masks[first] = 0;
    finish<with_depth>(sizes, view, place, pixel, t.transmittance, out);
}

}  // namespace

void blend_forward(const Sizes& sizes, const BlendTables& tables, const BatchPicture& out, cudaStream_t stream) {
    const unsigned tiles = static_cast<unsigned>(sizes.tiles());
    const auto kernel = out.depth != nullptr ? blend_tiles<true> : blend_tiles<false>;
    launch(kernel, tiles, kTilePixels, stream, sizes, tables, out);
}

}  // namespace cuda
}  // namespace mien

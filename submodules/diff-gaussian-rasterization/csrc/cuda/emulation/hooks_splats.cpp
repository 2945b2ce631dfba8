// Ways into the splat stage for tests: its functions one by one on arrays of the caller, and the CPU engine's on the
// same. Only the emulated library has them.
#include <algorithm>
#include <vector>

#include "cuda/stages.h"

using namespace mien;
using namespace mien::cuda;

MIEN_API int mien_test_make_views(const Sizes* sizes, const CameraTables* cameras, View* views, Health* health) {
    return guarded([&] { make_views(*sizes, *cameras, views, health, nullptr); });
}

MIEN_API int mien_test_camera_backward(const Sizes* sizes, const CameraTables* cameras, const View* views,
                                       const float* partial, float* world_to_camera, float* intrinsics) {
    return guarded([&] { camera_backward(*sizes, *cameras, views, partial, world_to_camera, intrinsics, nullptr); });
}

MIEN_API int mien_test_prepare_splats(const Sizes* sizes, const SplatTables* tables) {
    return guarded([&] { prepare_splats(*sizes, *tables, nullptr); });
}

MIEN_API int mien_test_splats_backward(const Sizes* sizes, const SplatGradientTables* tables) {
    return guarded([&] { splats_backward(*sizes, *tables, nullptr); });
}

// One view by the CPU engine; `finite`: whether it took the input.
MIEN_API int mien_test_cpu_prepare(const View* view, const Gaussians* in, SplatRecord* records, TileRect* rects,
                                   int32_t* radii, int32_t* finite) {
    return guarded([&] { *finite = scalar::splat_kernels.prepare(*view, *in, 0, in->count, records, rects, radii); });
}

// Likewise, from slots [pairs, kPairSlot] that lie in the order of the splats; camera [blocks, kCameraGradient], blocks
// of kSplatBlock.
MIEN_API int mien_test_cpu_backward(const View* view, const Gaussians* in, const std::uint32_t* counts,
                                    const float* slots, const SplatGradients* out) {
    return guarded([&] {
        std::vector<std::uint8_t> touched(static_cast<std::size_t>(in->count));
        for (std::size_t i = 0; i < touched.size(); ++i) touched[i] = counts[i] > 0;
        for (std::int64_t first = 0; first < in->count; first += kSplatBlock) {
            const std::int64_t last = std::min(in->count, first + kSplatBlock);
            std::vector<float> wide;
            for (std::int64_t i = first; i < last; ++i)
                for (std::uint32_t p = 0; p < counts[i]; ++p, slots += kPairSlot) {
                    wide.insert(wide.end(), slots, slots + kSums);
                    wide.resize(wide.size() + kSlot - kSums);
                }
            scalar::splat_kernels.backward(*view, *in, first, last, counts, touched.data(), wide.data(), *out);
        }
    });
}

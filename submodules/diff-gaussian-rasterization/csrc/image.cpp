// Image losses and conversions: the C functions. Work is cut into fixed blocks, so no result depends on the thread
// count.
#include "image.h"

#include <algorithm>
#include <vector>

#include "api.h"
#include "buffer.h"
#include "parallel.h"

namespace mien {
namespace {

constexpr int kMostChannels = 1 << 12, kMostRows = 1 << 20;  // so that no product of them overflows
constexpr std::int64_t kMostPixels = std::int64_t{1} << 48;
constexpr std::int64_t kBlockBytes = 1 << 16;
constexpr std::int64_t kOneThread = 1 << 20;  // up to so many bytes, waking a thread costs more than it saves

// Into how many strips a channel is cut. Tall ones compute fewer rows twice (ten at either end), many keep many
// threads busy: about six tasks, of 32 to 128 rows.
int strip_count(int channels, int height) {
    const std::int64_t rows = std::clamp<std::int64_t>(std::int64_t{channels} * height / 6, 32, 128);
    return static_cast<int>((height + rows - 1) / rows);
}

// Of each thread, kept from picture to picture: fresh memory costs more than filtering it.
thread_local Buffer<float> strip_scratch;

}  // namespace
}  // namespace mien

// sums[0] = sum |image - target|, sums[1] = sum of ssim over all pixels of [channels, height, width] pictures, and
// gradient = l1_scale * d sums[0] / d image + ssim_scale * d sums[1] / d image; null if it isn't wanted.
MIEN_API int mien_image_l1_ssim(const float* image, const float* target, int channels, int height, int width,
                                float l1_scale, float ssim_scale, int threads, float* gradient, double* sums) {
    return mien::guarded([&] {
        mien::require(image != nullptr && target != nullptr && sums != nullptr, "l1_ssim: a picture is null");
        mien::require(channels > 0 && height > 0 && width > 0 && channels <= mien::kMostChannels &&
                          height <= mien::kMostRows && width <= mien::kMostRows,
                      "l1_ssim: the pictures are empty, or have more than 4096 channels or 2^20 pixels a side");
        const int room = mien::checked_threads(threads);
        const mien::SsimKernels& kernels = MIEN_KERNELS(image_ssim_kernels);
        const auto scratch_size = static_cast<std::int64_t>(kernels.scratch_size(width));
        const int strips = mien::strip_count(channels, height);
        std::vector<double> l1(std::size_t(channels) * strips), loss(l1.size());
        mien::parallel_for(room, std::int64_t{channels} * strips, [&](std::int64_t block, int) {
            const std::int64_t offset = block / strips * height * width, strip = block % strips;
            float* wanted = gradient == nullptr ? nullptr : gradient + offset;
            const mien::SsimPlane plane{image + offset, target + offset, wanted, height, width, l1_scale, ssim_scale};
            const auto first = static_cast<int>(height * strip / strips);
            const auto last = static_cast<int>(height * (strip + 1) / strips);
            kernels.strip(plane, first, last, mien::strip_scratch.reserve(scratch_size), &l1[block], &loss[block]);
        });
        sums[0] = 0.0;
        sums[1] = double(channels) * height * width;
        for (double strip : l1) sums[0] += strip;
        for (double strip : loss) sums[1] -= strip;
    });
}

// out [count] = bytes [count] / 255.
MIEN_API int mien_image_to_float(const uint8_t* bytes, int64_t count, int threads, float* out) {
    return mien::guarded([&] {
        mien::require(count >= 0 && count <= mien::kMostPixels, "to_float: the number of values is out of range");
        mien::require(count == 0 || (bytes != nullptr && out != nullptr), "to_float: a picture is null");
        const std::int64_t blocks = (count + mien::kBlockBytes - 1) / mien::kBlockBytes;
        mien::parallel_for(count > mien::kOneThread ? mien::checked_threads(threads) : 1, blocks,
                           [&](std::int64_t block, int) {
                               const std::int64_t first = block * mien::kBlockBytes;
                               MIEN_KERNELS(image_byte_kernels)
                                   .to_float(bytes + first, std::min(mien::kBlockBytes, count - first), out + first);
                           });
    });
}

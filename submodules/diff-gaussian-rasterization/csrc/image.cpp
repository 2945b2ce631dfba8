// Image losses and conversions: the C functions. Work is cut into fixed blocks, so no result depends on the thread count.
#include "image.h"

#include <algorithm>
#include <vector>

#include "api.h"
#include "parallel.h"

namespace mien {
namespace {

constexpr std::int64_t kBlockPixels = 1 << 14;

struct Pictures {
    const float* image;
    const float* target;
    float* derivatives;  // [3, channels, height, derivative_stride] or null
    int channels, height, width;

    std::int64_t plane_size() const { return std::int64_t{height} * width; }

    // The extra vector keeps rows out of step with the cache where the width is a power of two.
    std::int64_t derivative_stride() const { return (std::int64_t{width} + 15) / 16 * 16 + 16; }

    SsimPlane plane(int channel) const {
        const std::int64_t offset = channel * plane_size(), derivative_size = height * derivative_stride();
        SsimPlane plane{image + offset, target + offset, {}, derivative_stride(), height, width};
        for (int k = 0; k < 3 && derivatives != nullptr; ++k)
            plane.derivatives[k] = derivatives + (std::int64_t{k} * channels + channel) * derivative_size;
        return plane;
    }

    void check() const {
        require(image != nullptr && target != nullptr, "l1_ssim: a picture is null");
        require(channels > 0 && height > 0 && width > 0, "l1_ssim: the pictures are empty");
    }
};

// Calls body(channel, first row, last row, scratch) for every block of rows.
template <class Body>
void for_row_blocks(const Pictures& pictures, int threads, const Body& body) {
    const std::size_t scratch_size = MIEN_KERNELS(image_ssim_kernels).scratch_size(pictures.width);
    std::vector<std::vector<float>> scratch(std::max(threads, 1));
    const int blocks = (pictures.height + kSsimBlockRows - 1) / kSsimBlockRows;
    parallel_for(threads, std::int64_t{pictures.channels} * blocks, [&](std::int64_t block, int worker) {
        if (scratch[worker].empty()) scratch[worker].assign(scratch_size, 0.0f);
        const int first = static_cast<int>(block % blocks) * kSsimBlockRows;
        const int last = std::min(first + kSsimBlockRows, pictures.height);
        body(static_cast<int>(block / blocks), first, last, scratch[worker].data());
    });
}

}  // namespace
}  // namespace mien

// Floats of `derivatives` that the two functions below need for pictures of this size.
MIEN_API int64_t mien_image_l1_ssim_derivatives(int channels, int height, int width) {
    const mien::Pictures pictures{nullptr, nullptr, nullptr, channels, height, width};
    return 3 * std::int64_t{channels} * height * pictures.derivative_stride();
}

// sums[0] = sum |image - target|, sums[1] = sum of ssim over all pixels of [channels, height, width] pictures.
// `derivatives` feeds mien_image_l1_ssim_backward; null if that won't be called.
MIEN_API int mien_image_l1_ssim(const float* image, const float* target, int channels, int height, int width, int threads,
                                float* derivatives, double* sums) {
    return mien::guarded([&] {
        const mien::Pictures pictures{image, target, derivatives, channels, height, width};
        pictures.check();
        std::vector<double> l1(std::size_t(channels) * height), ssim(l1.size());
        mien::for_row_blocks(pictures, threads, [&](int channel, int first, int last, float* scratch) {
            const std::size_t offset = std::size_t(channel) * height;
            MIEN_KERNELS(image_ssim_kernels)
                .forward(pictures.plane(channel), first, last, scratch, l1.data() + offset, ssim.data() + offset);
        });
        sums[0] = sums[1] = 0.0;
        for (double row : l1) sums[0] += row;
        for (double row : ssim) sums[1] += row;
    });
}

// gradient [channels, height, width] = l1_scale * d sums[0] / d image + ssim_scale * d sums[1] / d image.
MIEN_API int mien_image_l1_ssim_backward(const float* image, const float* target, float* derivatives, int channels,
                                         int height, int width, float l1_scale, float ssim_scale, int threads,
                                         float* gradient) {
    return mien::guarded([&] {
        const mien::Pictures pictures{image, target, derivatives, channels, height, width};
        pictures.check();
        mien::require(derivatives != nullptr && gradient != nullptr, "l1_ssim: derivatives or gradient is null");
        mien::for_row_blocks(pictures, threads, [&](int channel, int first, int last, float* scratch) {
            MIEN_KERNELS(image_ssim_kernels)
                .backward(pictures.plane(channel), first, last, l1_scale, ssim_scale, scratch,
                          gradient + channel * pictures.plane_size());
        });
    });
}

// planes [3, pixels] = rgb [pixels, 3] / 255.
MIEN_API int mien_image_to_float(const uint8_t* rgb, int64_t pixels, int threads, float* planes) {
    return mien::guarded([&] {
        mien::require(pixels == 0 || (rgb != nullptr && planes != nullptr), "to_float: a picture is null");
        const std::int64_t blocks = (pixels + mien::kBlockPixels - 1) / mien::kBlockPixels;
        mien::parallel_for(threads, blocks, [&](std::int64_t block, int) {
            const std::int64_t first = block * mien::kBlockPixels;
            MIEN_KERNELS(image_byte_kernels)
                .to_float(rgb + 3 * first, std::min(mien::kBlockPixels, pixels - first), pixels, planes + first);
        });
    });
}

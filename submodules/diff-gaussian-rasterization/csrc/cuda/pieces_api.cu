// The stages beside the rasteriser on a GPU: the C functions. Arrays are device memory, scratch included; calls return
// before the work is done. What the CPU's functions refuse is refused here too, but for values: seeing them would mean
// waiting for the device.
#include <limits>

#include "core/adam_update.h"
#include "cuda/pieces.h"

namespace mien {
namespace cuda {
namespace {

constexpr int kMostChannels = 1 << 12, kMostSide = 1 << 20, kMostViews = 1 << 12;
constexpr std::int64_t kMost = std::int64_t{1} << 38;  // values, so that no launch has too many blocks
constexpr std::int64_t kMostBlocks = std::numeric_limits<std::int32_t>::max();

void check_pictures(const SsimTables* t, const Queue* queue) {
    require(t != nullptr && queue != nullptr && t->images != nullptr && (t->targets != nullptr || t->offset != nullptr),
            "l1_ssim: a picture is null");
    require(t->channels > 0 && t->height > 0 && t->width > 0 && t->channels <= kMostChannels &&
                t->height <= kMostSide && t->width <= kMostSide,
            "l1_ssim: the pictures are empty, or have more than 4096 channels or 2^20 pixels a side");
    require(t->views > 0 && t->views <= kMostViews, "l1_ssim: the number of pictures is not between 1 and 4096");
    require(std::int64_t(t->views) * t->channels * ((t->height + 31) / 32) * ((t->width + 31) / 32) < kMostBlocks,
            "l1_ssim: the pictures are too large");
    require(t->scratch != nullptr, "l1_ssim: scratch is null");
}

void check_limits(const LimitTables* t, const Queue* queue) {
    require(t != nullptr && queue != nullptr, "binding_limits: a null pointer");
    require(t->count >= 0 && t->count <= kMost, "binding_limits: the number of Gaussians is out of range");
    require(t->count == 0 || t->limits.radii != nullptr, "binding_limits: radii is null");
    require(t->count == 0 || t->scratch != nullptr, "binding_limits: scratch is null");
    require((t->limits.g_means == nullptr || t->limits.means != nullptr) &&
                (t->limits.g_scales == nullptr || t->limits.scales != nullptr),
            "binding_limits: a gradient is wanted of what is not there");
    require(t->views > 0 && t->views <= kMostViews, "binding_limits: the number of views is not between 1 and 4096");
}

}  // namespace
}  // namespace cuda
}  // namespace mien

using mien::guarded;
using mien::require;
using mien::cuda::DeviceGuard;
using mien::cuda::Queue;

// How many floats of scratch memory mien_cuda_image_l1_ssim needs.
MIEN_API int mien_cuda_image_l1_ssim_scratch(const mien::cuda::SsimTables* tables, int64_t* floats) {
    return guarded([&] {
        require(tables != nullptr && floats != nullptr, "l1_ssim: a null pointer");
        *floats = mien::cuda::l1_ssim_scratch(*tables);
    });
}

// Sums, means and gradients of pictures: whatever is not null.
MIEN_API int mien_cuda_image_l1_ssim(const mien::cuda::SsimTables* tables, const Queue* queue) {
    return guarded([&] {
        mien::cuda::check_pictures(tables, queue);
        const DeviceGuard guard(*queue);
        mien::cuda::l1_ssim(*tables, queue->stream);
    });
}

// Gradients, after mien_cuda_image_l1_ssim of the same pictures with `derivatives` has written the scratch memory.
MIEN_API int mien_cuda_image_l1_ssim_gradient(const mien::cuda::SsimTables* tables, const Queue* queue) {
    return guarded([&] {
        mien::cuda::check_pictures(tables, queue);
        require(tables->gradients != nullptr, "l1_ssim: the gradient is null");
        const DeviceGuard guard(*queue);
        mien::cuda::l1_ssim_gradient(*tables, queue->stream);
    });
}

// out [count] = bytes [count] / 255.
MIEN_API int mien_cuda_image_to_float(const uint8_t* bytes, int64_t count, float* out, const Queue* queue) {
    return guarded([&] {
        require(queue != nullptr && count >= 0 && count <= mien::cuda::kMost,
                "to_float: the number of values is out of range");
        require(count == 0 || (bytes != nullptr && out != nullptr), "to_float: a picture is null");
        const DeviceGuard guard(*queue);
        mien::cuda::bytes_to_float(bytes, count, out, queue->stream);
    });
}

// mien_adam_step on the device, unless the byte `allowed` is 0 or the Health says that training has stopped; both may
// be null.
MIEN_API int mien_cuda_adam_step(const mien::AdamColumn* columns, int64_t count, double beta1, double beta2, double eps,
                                 int64_t step, const uint8_t* allowed, const mien::cuda::Health* health,
                                 const Queue* queue) {
    return guarded([&] {
        require(step >= 1, "adam_step: step counts from 1");
        require(queue != nullptr && count >= 0 && count <= mien::cuda::kMost,
                "adam_step: the number of columns is out of range");
        require(count == 0 || columns != nullptr, "adam_step: columns is null");
        for (const mien::AdamColumn* c = columns; c != columns + count; ++c) {
            require(c->count >= 0 && c->count <= mien::cuda::kMost,
                    "adam_step: the number of elements is out of range");
            require(c->count == 0 || (c->gradient != nullptr && c->parameter != nullptr && c->mean != nullptr &&
                                      c->mean_square != nullptr),
                    "adam_step: a column is null");
        }
        const DeviceGuard guard(*queue);
        for (int64_t first = 0; first < count; first += mien::cuda::kMostColumns) {
            mien::cuda::AdamColumns some{};
            some.allowed = allowed;
            some.health = health;
            for (; some.count < mien::cuda::kMostColumns && first + some.count < count; ++some.count) {
                const mien::AdamColumn& c = columns[first + some.count];
                some.column[some.count] = {
                    c.gradient, c.parameter,
                    c.mean,     c.mean_square,
                    c.count,    mien::device::adam_constants(c.lr, beta1, beta2, eps, static_cast<double>(step))};
            }
            mien::cuda::adam_columns(some, queue->stream);
        }
    });
}

// mien_adam_rows on the device; a row may be there more than once, and rows outside the table are ignored.
MIEN_API int mien_cuda_adam_rows(const mien::cuda::AdamRows* table, const Queue* queue) {
    return guarded([&] {
        require(table != nullptr && queue != nullptr, "adam_rows: a null pointer");
        const mien::cuda::AdamRows& t = *table;
        require(t.count >= 0 && t.count < mien::cuda::kMostBlocks && t.table_rows >= 0 &&
                    t.table_rows <= mien::cuda::kMost && (t.rows != nullptr || t.count <= t.table_rows) &&
                    t.width >= 0 && t.width <= mien::cuda::kMost / (t.table_rows + 1),
                "adam_rows: a wrong number of rows");
        require(t.count == 0 || (t.steps != nullptr && t.gradient != nullptr && t.parameter != nullptr &&
                                 t.mean != nullptr && t.mean_square != nullptr),
                "adam_rows: a null pointer");
        const DeviceGuard guard(*queue);
        mien::cuda::adam_rows(t, queue->stream);
    });
}

// mien_statistics_add_view on the device, of several views one after the other: screen_gradients [views, count, 2],
// radii [views, count]; unless the Health (may be null) says that training has stopped.
MIEN_API int mien_cuda_statistics_add_view(const float* screen_gradients, const int32_t* radii, int64_t count,
                                           float factor, float* gradient, float* seen, float* radius, int views,
                                           const mien::cuda::Health* health, const Queue* queue) {
    return guarded([&] {
        require(queue != nullptr && count >= 0 && count <= mien::cuda::kMost,
                "add_view: the number of Gaussians is out of range");
        require(count == 0 || (screen_gradients != nullptr && radii != nullptr && gradient != nullptr &&
                               seen != nullptr && radius != nullptr),
                "add_view: a null pointer");
        require(views > 0 && views <= mien::cuda::kMostViews,
                "add_view: the number of views is not between 1 and 4096");
        const DeviceGuard guard(*queue);
        mien::cuda::add_view(screen_gradients, radii, factor, count, {gradient, seen, radius}, health, queue->stream,
                             views);
    });
}

// *bad, on the device, becomes 1 if the square of any value of any array is not finite, else it stays as it is.
MIEN_API int mien_cuda_squares_finite(const float* const* arrays, const int64_t* counts, int64_t n, uint32_t* bad,
                                      const Queue* queue) {
    return guarded([&] {
        require(queue != nullptr && bad != nullptr && (n == 0 || (arrays != nullptr && counts != nullptr)),
                "squares_finite: a null pointer");
        require(n >= 0 && n <= mien::cuda::kMost, "squares_finite: the number of arrays is out of range");
        for (int64_t a = 0; a < n; ++a) {
            require(counts[a] >= 0 && counts[a] <= mien::cuda::kMost,
                    "squares_finite: the size of an array is out of range");
            require(counts[a] == 0 || arrays[a] != nullptr, "squares_finite: an array is null");
        }
        const DeviceGuard guard(*queue);
        for (int64_t first = 0; first < n; first += mien::cuda::kMostArrays) {
            mien::cuda::Arrays some{};
            for (; some.count < mien::cuda::kMostArrays && first + some.count < n; ++some.count) {
                some.values[some.count] = arrays[first + some.count];
                some.size[some.count] = counts[first + some.count];
            }
            mien::cuda::squares_finite(some, bad, queue->stream);
        }
    });
}

// How many floats of scratch memory mien_cuda_binding_limits needs.
MIEN_API int mien_cuda_binding_scratch(int64_t count, int views, int64_t* floats) {
    return guarded([&] {
        require(floats != nullptr && count >= 0 && count <= mien::cuda::kMost && views > 0 &&
                    views <= mien::cuda::kMostViews,
                "binding_limits: the number of Gaussians is out of range");
        *floats = mien::cuda::binding_scratch(count, views);
    });
}

// Sums, values and gradients: whatever is not null.
MIEN_API int mien_cuda_binding_limits(const mien::cuda::LimitTables* tables, const Queue* queue) {
    return guarded([&] {
        mien::cuda::check_limits(tables, queue);
        const DeviceGuard guard(*queue);
        mien::cuda::binding_limits(*tables, queue->stream);
    });
}

// Gradients, after mien_cuda_binding_limits of the same Gaussians has written the scratch memory.
MIEN_API int mien_cuda_binding_gradients(const mien::cuda::LimitTables* tables, const Queue* queue) {
    return guarded([&] {
        mien::cuda::check_limits(tables, queue);
        const DeviceGuard guard(*queue);
        mien::cuda::binding_gradients(*tables, queue->stream);
    });
}

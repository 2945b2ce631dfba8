// What a training step wants to know of gradients: the C functions.
#include "statistics.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "api.h"
#include "parallel.h"

namespace {

constexpr std::int64_t kBlock = 1 << 17;      // values that one task looks at
constexpr std::int64_t kOneThread = 1 << 22;  // up to so many values, waking a thread costs more than it saves
constexpr std::int64_t kMost = std::int64_t{1} << 48;

struct Block {
    const float* values;
    std::int64_t count;
};

}  // namespace

// Adds one view to the running sums of `count` Gaussians: screen_gradients [count, 2], radii [count].
MIEN_API int mien_statistics_add_view(const float* screen_gradients, const int32_t* radii, int64_t count, float factor,
                                      float* gradient, float* seen, float* radius) {
    return mien::guarded([&] {
        mien::require(count >= 0 && count <= kMost, "add_view: the number of Gaussians is out of range");
        mien::require(count == 0 || (screen_gradients != nullptr && radii != nullptr && gradient != nullptr &&
                                     seen != nullptr && radius != nullptr),
                      "add_view: a null pointer");
        MIEN_KERNELS(statistics_kernels).add_view(screen_gradients, radii, factor, 0, count, {gradient, seen, radius});
    });
}

// finite = 1 if the square of every value of every array is finite, else 0.
MIEN_API int mien_statistics_squares_finite(const float* const* arrays, const int64_t* counts, int64_t n, int threads,
                                            int* finite) {
    return mien::guarded([&] {
        mien::require(finite != nullptr && (n == 0 || (arrays != nullptr && counts != nullptr)),
                      "squares_finite: a null pointer");
        mien::require(n >= 0 && n <= kMost, "squares_finite: the number of arrays is out of range");
        std::vector<Block> blocks;
        std::int64_t total = 0;
        for (std::int64_t a = 0; a < n; ++a) {
            mien::require(counts[a] >= 0 && counts[a] <= kMost - total,
                          "squares_finite: the size of an array is out of range");
            mien::require(counts[a] == 0 || arrays[a] != nullptr, "squares_finite: an array is null");
            for (std::int64_t first = 0; first < counts[a]; first += kBlock)
                blocks.push_back({arrays[a] + first, std::min(kBlock, counts[a] - first)});
            total += counts[a];
        }
        std::atomic<int> fine{1};
        mien::parallel_for(total > kOneThread ? mien::checked_threads(threads) : 1,
                           static_cast<std::int64_t>(blocks.size()), [&](std::int64_t block, int) {
                               const Block& b = blocks[static_cast<std::size_t>(block)];
                               if (!MIEN_KERNELS(statistics_kernels).squares_finite(b.values, b.count))
                                   fine.store(0, std::memory_order_relaxed);
                           });
        *finite = fine.load();
    });
}

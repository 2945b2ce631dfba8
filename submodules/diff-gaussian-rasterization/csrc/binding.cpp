// Limits on Gaussians that ride on a mesh: the C function.
#include "binding.h"

#include <algorithm>
#include <vector>

#include "api.h"
#include "parallel.h"

namespace {
constexpr std::int64_t kBlock = 4096;         // rows; fixed, so that sums don't depend on the thread count
constexpr std::int64_t kOneThread = 1 << 17;  // up to so many rows, waking a thread costs more than it saves
constexpr std::int64_t kMost = std::int64_t{1} << 48;
}  // namespace

// Means over the drawn ones (radii > 0; 0 if there are none) of `count` Gaussians:
//     values[0] = weight_xyz * max(|mean| - threshold_xyz, 0),   values[1] = weight_scale * |max(scale - threshold, 0)|
// and their gradients. Of `limits`, the weights are those of the means over Gaussians here.
MIEN_API int mien_binding_limits(const mien::BindingLimits* limits, int64_t count, int threads, double* values) {
    return mien::guarded([&] {
        mien::require(limits != nullptr && values != nullptr, "binding_limits: a null pointer");
        mien::require(count >= 0 && count <= kMost, "binding_limits: the number of Gaussians is out of range");
        mien::require(count == 0 || limits->radii != nullptr, "binding_limits: radii is null");
        const mien::BindingKernels& kernels = MIEN_KERNELS(binding_kernels);
        const double share = 1.0 / static_cast<double>(std::max<int64_t>(kernels.drawn(limits->radii, count), 1));
        mien::BindingLimits work = *limits;
        work.weight_xyz = static_cast<float>(limits->weight_xyz * share);
        work.weight_scale = static_cast<float>(limits->weight_scale * share);
        const int64_t blocks = (count + kBlock - 1) / kBlock;
        std::vector<double> xyz(static_cast<std::size_t>(blocks)), scale(xyz.size());
        mien::parallel_for(count > kOneThread ? mien::checked_threads(threads) : 1, blocks, [&](int64_t block, int) {
            const auto b = static_cast<std::size_t>(block);
            kernels.limits(work, block * kBlock, std::min(kBlock, count - block * kBlock), &xyz[b], &scale[b]);
        });
        values[0] = values[1] = 0.0;
        for (double sum : xyz) values[0] += limits->weight_xyz * share * sum;
        for (double sum : scale) values[1] += limits->weight_scale * share * sum;
    });
}

#include "cuda/sort.h"

#include "core/ops.h"

#if defined(MIEN_EMULATED)
#include <algorithm>
#include <numeric>
#include <vector>
#else
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#include <thrust/iterator/permutation_iterator.h>
#endif

namespace mien {
namespace cuda {

namespace {

// Sums that stay at the largest number instead of starting again from zero: it does not matter in which order they are
// made.
struct SaturatingSum {
    MIEN_HD std::uint32_t operator()(std::uint32_t a, std::uint32_t b) const {
        const std::uint32_t sum = a + b;
        return sum < a ? 0xffffffffu : sum;
    }
};

}  // namespace

#if defined(MIEN_EMULATED)

std::size_t sort_scratch(std::int64_t count) {
    require(count <= kMostSorted, "too many elements to sort");
    return 256;
}

void sort_pairs(const Scratch&, const std::uint32_t* keys_in, std::uint32_t* keys, const std::uint32_t* values_in,
                std::uint32_t* values, std::int64_t count, int bits, cudaStream_t stream) {
    const auto sort = [=] {
        const std::uint32_t used = bits >= 32 ? 0xffffffffu : (1u << bits) - 1u;
        std::vector<std::uint32_t> rank(static_cast<std::size_t>(count));
        std::iota(rank.begin(), rank.end(), 0u);
        std::stable_sort(rank.begin(), rank.end(),
                         [&](std::uint32_t a, std::uint32_t b) { return (keys_in[a] & used) < (keys_in[b] & used); });
        for (std::size_t i = 0; i < rank.size(); ++i) keys[i] = keys_in[rank[i]], values[i] = values_in[rank[i]];
    };
    check(emulation::enqueue(stream, sort), "sorting");
}

void sum_before(const Scratch&, const std::uint32_t* values, const std::uint32_t* order, std::uint32_t* sums,
                std::int64_t count, cudaStream_t stream) {
    const auto scan = [=] {
        std::uint32_t total = 0;
        for (std::int64_t i = 0; i < count; ++i) {
            const std::uint32_t value = values[order != nullptr ? std::int64_t(order[i]) : i];
            sums[i] = total;
            total = SaturatingSum()(total, value);
        }
    };
    check(emulation::enqueue(stream, scan), "summing");
}

#else

namespace {

template <class Input>
void scan(void* memory, std::size_t& bytes, Input values, std::uint32_t* sums, std::int64_t count,
          cudaStream_t stream) {
    check(cub::DeviceScan::ExclusiveScan(memory, bytes, values, sums, SaturatingSum(), std::uint32_t(0),
                                         static_cast<int>(count), stream),
          "summing");
}

}  // namespace

std::size_t sort_scratch(std::int64_t count) {
    require(count <= kMostSorted, "too many elements to sort");
    const std::uint32_t* in = nullptr;
    std::uint32_t* out = nullptr;
    std::size_t sort = 0, plain = 0, ordered = 0;
    check(cub::DeviceRadixSort::SortPairs(nullptr, sort, in, out, in, out, static_cast<int>(count)), "sorting");
    scan(nullptr, plain, in, out, count, nullptr);
    scan(nullptr, ordered, thrust::make_permutation_iterator(in, in), out, count, nullptr);
    const std::size_t most = plain < ordered ? ordered : plain;
    return most < sort ? sort : most;
}

void sort_pairs(const Scratch& scratch, const std::uint32_t* keys_in, std::uint32_t* keys,
                const std::uint32_t* values_in, std::uint32_t* values, std::int64_t count, int bits,
                cudaStream_t stream) {
    std::size_t bytes = scratch.bytes;
    check(cub::DeviceRadixSort::SortPairs(scratch.memory, bytes, keys_in, keys, values_in, values,
                                          static_cast<int>(count), 0, bits, stream),
          "sorting");
}

void sum_before(const Scratch& scratch, const std::uint32_t* values, const std::uint32_t* order, std::uint32_t* sums,
                std::int64_t count, cudaStream_t stream) {
    std::size_t bytes = scratch.bytes;
    if (order != nullptr) {
        scan(scratch.memory, bytes, thrust::make_permutation_iterator(values, order), sums, count, stream);
    } else {
        scan(scratch.memory, bytes, values, sums, count, stream);
    }
}

#endif

}  // namespace cuda
}  // namespace mien

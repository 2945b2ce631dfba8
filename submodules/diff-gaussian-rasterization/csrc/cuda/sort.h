// Sorts and running sums over whole arrays on the device. Their lengths are known to the host, so nothing is read back;
// they can be captured in a graph. On a GPU they are CUB's.
#pragma once

#include "cuda/device.h"

namespace mien {
namespace cuda {

struct Scratch {
    void* memory;
    std::size_t bytes;
};

constexpr std::int64_t kMostSorted = 0x7fffffff;  // elements

// Bytes of scratch memory that both functions need for arrays of at most `count` elements. Throws InvalidArgument
// beyond kMostSorted.
std::size_t sort_scratch(std::int64_t count);

// Sorts by the lowest `bits` bits of the keys; equal ones keep their order. Inputs and outputs must not overlap.
void sort_pairs(const Scratch& scratch, const std::uint32_t* keys_in, std::uint32_t* keys,
                const std::uint32_t* values_in, std::uint32_t* values, std::int64_t count, int bits,
                cudaStream_t stream);

// sums[k] = values[order[0]] + .. + values[order[k - 1]], and 0xffffffff where that is too much for 32 bits. Without
// `order` (null) the values are taken as they lie, and `sums` may be `values`.
void sum_before(const Scratch& scratch, const std::uint32_t* values, const std::uint32_t* order, std::uint32_t* sums,
                std::int64_t count, cudaStream_t stream);

}  // namespace cuda
}  // namespace mien

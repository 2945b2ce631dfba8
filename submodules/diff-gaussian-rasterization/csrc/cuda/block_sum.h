// Sums over the threads of a block, always in the same order.
#pragma once

#include "cuda/device.h"

namespace mien {
namespace cuda {

// Every lane of a whole warp gets the sum.
template <class T>
__device__ inline T warp_sum(T value) {
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kAllLanes, value, lanes);
    return value;
}

// Every thread of a block of `threads` (x alone, whole warps) gets the sum; warps are added in T, the block in Total.
// All must call. `place` is shared memory of one element a warp, free for other things after the next barrier.
template <int threads, class T, class Total>
__device__ inline Total block_sum(T value, Total* place) {
    static_assert(threads % kWarp == 0, "whole warps");
    const T mine = warp_sum(value);
    __syncthreads();  // `place` may still be read for the sum before
    if (threadIdx.x % kWarp == 0) place[threadIdx.x / kWarp] = static_cast<Total>(mine);
    __syncthreads();
    Total sum = place[0];
#pragma unroll
    for (int warp = 1; warp < threads / kWarp; ++warp) sum += place[warp];
    return sum;
}

}  // namespace cuda
}  // namespace mien

// The door of the CUDA engine: what is there, and whether it can be used.
#include "cuda/device.h"

// Why there are no mien_cuda_* functions in this library; null: there are.
MIEN_API const char* mien_cuda_missing() { return nullptr; }

// How many GPUs the driver shows; the error says why there are none.
MIEN_API int mien_cuda_devices(int32_t* count) {
    return mien::guarded([&] {
        mien::require(count != nullptr, "cuda_devices: count is null");
        int found = 0;
        mien::cuda::check(cudaGetDeviceCount(&found), "looking for GPUs");
        *count = found;
    });
}

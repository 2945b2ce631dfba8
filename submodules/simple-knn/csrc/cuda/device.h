// CUDA as these sources use it. They also compile with a C++ compiler alone (MIEN_EMULATED), for tests that run every
// thread of every block on the CPU; the device that does so is part of ../diff-gaussian-rasterization.
#pragma once

#include <cstdint>
#include <string>
#include <tuple>

#if defined(MIEN_EMULATED)
#include "cuda/emulation/runtime.h"
#else
#include <cuda_runtime.h>
#endif

#include "status.h"

namespace knn {

inline void check(cudaError_t code, const char* what) {
    if (code == cudaSuccess) return;
    cudaGetLastError();  // forgets it: the next call must not report it again
    throw DeviceError(std::string(what) + ": " + cudaGetErrorString(code));
}

#if defined(MIEN_EMULATED)
using LaunchStream = mien::cuda::emulation::Launch;  // knows the line of the launch as well
#else
using LaunchStream = cudaStream_t;
#endif

// Runs `kernel` on `blocks` blocks, behind what the stream holds.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), std::int64_t blocks, int threads, LaunchStream stream,
            const Arguments&... arguments) {
    const dim3 grid(static_cast<unsigned>(blocks)), block(static_cast<unsigned>(threads));
#if defined(MIEN_EMULATED)
    check(mien::cuda::emulation::launch(grid, block, stream, [=] { kernel(static_cast<Parameters>(arguments)...); }),
          "launch");
#else
    std::tuple<Parameters...> packed(static_cast<Parameters>(arguments)...);
    std::apply(
        [&](auto&... values) {
            void* pointers[] = {static_cast<void*>(&values)..., nullptr};
            check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, pointers, 0, stream), "launch");
        },
        packed);
#endif
}

}  // namespace knn

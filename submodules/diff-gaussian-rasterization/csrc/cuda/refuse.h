// Why a picture was refused: the slow look at what a kernel found wrong.
#pragma once

#include "cuda/rasterizer.h"

namespace mien {
namespace cuda {

// Copies the scene's arrays to the host, one after the other, and throws what the CPU engine would: NotFinite with the
// tensor's name and its first bad row, or InvalidArgument. `health` is what the kernels left.
[[noreturn]] void refuse_scene(const Sizes& sizes, const Scene& scene, const Health& health, cudaStream_t stream);

}  // namespace cuda
}  // namespace mien

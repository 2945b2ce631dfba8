// The library's answer where it was built without CUDA kernels; csrc/cuda/api.cu answers in its place otherwise.
#include "api.h"

// Why there are no mien_cuda_* functions in this library; null: there are.
MIEN_API const char* mien_cuda_missing() {
    return "this build has no CUDA kernels: " MIEN_CUDA_WHY
           ". Install it again with nvcc on the PATH, or with CUDACXX=/path/to/nvcc, or with MIEN_CUDA=PYPI";
}

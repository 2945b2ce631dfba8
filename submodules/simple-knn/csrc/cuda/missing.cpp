// The library's answer where it was built without CUDA kernels; csrc/cuda/neighbours.cu answers in its place otherwise.
#include "status.h"

// Why there is no knn_cuda_mean_squared_distances in this library; null: there is.
KNN_API const char* knn_cuda_missing() { return "this build has no CUDA kernels: " MIEN_CUDA_WHY; }

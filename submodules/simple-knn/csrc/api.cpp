// The C door: no exception leaves it.
#include <exception>
#include <new>
#include <string>

#include "neighbours.h"

#if defined(_WIN32)
#define KNN_API extern "C" __declspec(dllexport)
#else
#define KNN_API extern "C" __attribute__((visibility("default")))
#endif

namespace {
thread_local std::string last_error;
}

// One-line description of this thread's last failure.
KNN_API const char* knn_last_error() { return last_error.c_str(); }

// Version of this interface; it changes whenever a signature does.
KNN_API int knn_abi_version() { return 1; }

// means [count] from finite points [count, 3], see neighbours.h. Returns 0, or 2 (not enough memory) or 3 (internal).
KNN_API int knn_mean_squared_distances(const float* points, int64_t count, int threads, float* means) {
    try {
        knn::mean_squared_distances(points, count, threads, means);
        return 0;
    } catch (const std::bad_alloc&) {
        last_error = "not enough memory";
        return 2;
    } catch (const std::exception& error) {
        last_error = error.what();
        return 3;
    }
}

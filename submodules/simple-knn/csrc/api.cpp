// The C door: checks, and no exception leaves it.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <new>
#include <stdexcept>

#include "neighbours.h"

#if defined(_WIN32)
#define KNN_API extern "C" __declspec(dllexport)
#else
#define KNN_API extern "C" __attribute__((visibility("default")))
#endif

namespace {

constexpr int kMostThreads = 256;

enum Status : int { kOk = 0, kInvalidArgument = 1, kOutOfMemory = 2, kInternal = 3, kNotFinite = 4 };

thread_local char last_error[512];

// Without memory of its own: the failure may be that there is none.
void set_last_error(const char* text) noexcept { std::snprintf(last_error, sizeof last_error, "%s", text); }

struct NotFinite : std::runtime_error {
    using std::runtime_error::runtime_error;
};

[[noreturn]] void refuse_row(std::int64_t row, const float* p) {
    char text[200];
    std::snprintf(text, sizeof text, "points: row %lld is [%g, %g, %g], expected finite coordinates",
                  static_cast<long long>(row), double{p[0]}, double{p[1]}, double{p[2]});
    throw NotFinite(text);
}

void check(const float* points, std::int64_t count, int threads, const float* means) {
    if (count < 0 || count >= std::int64_t{1} << 32)
        throw knn::InvalidArgument("points: the number of rows must lie in 0 .. 2^32 - 1");
    if (count > 0 && (points == nullptr || means == nullptr)) throw knn::InvalidArgument("points or means is null");
    if (threads < 1) throw knn::InvalidArgument("threads must be positive");
    for (std::int64_t i = 0; i < 3 * count; ++i)
        if (!std::isfinite(points[i])) refuse_row(i / 3, points + 3 * (i / 3));
}

template <class Body>
int guarded(const Body& body) {
    try {
        body();
        return kOk;
    } catch (const knn::InvalidArgument& error) {
        set_last_error(error.what());
        return kInvalidArgument;
    } catch (const NotFinite& error) {
        set_last_error(error.what());
        return kNotFinite;
    } catch (const std::bad_alloc&) {
        set_last_error("not enough memory");
        return kOutOfMemory;
    } catch (const std::exception& error) {
        set_last_error(error.what());
        return kInternal;
    }
}

}  // namespace

// One-line description of this thread's last failure.
KNN_API const char* knn_last_error() { return last_error; }

// Version of this interface; it changes whenever a signature does.
KNN_API int knn_abi_version() { return 1; }

// means [count] from points [count, 3], see neighbours.h. A status other than kOk leaves `means` unspecified.
KNN_API int knn_mean_squared_distances(const float* points, int64_t count, int threads, float* means) {
    return guarded([&] {
        check(points, count, threads, means);
        knn::mean_squared_distances(points, count, threads < kMostThreads ? threads : kMostThreads, means);
    });
}

// The C door: checks, and no exception leaves it.
#include "status.h"

#include <cmath>
#include <cstdio>

namespace knn {
namespace {

constexpr int kMostThreads = 256;

[[noreturn]] void refuse_row(std::int64_t row, const float* p) {
    char text[200];
    std::snprintf(text, sizeof text, "points: row %lld is [%g, %g, %g], expected finite coordinates",
                  static_cast<long long>(row), double{p[0]}, double{p[1]}, double{p[2]});
    throw NotFinite(text);
}

void check(const float* points, std::int64_t count, int threads, const float* means) {
    if (count < 0 || count >= std::int64_t{1} << 32)
        throw InvalidArgument("points: the number of rows must lie in 0 .. 2^32 - 1");
    if (count > 0 && (points == nullptr || means == nullptr)) throw InvalidArgument("points or means is null");
    if (threads < 1) throw InvalidArgument("threads must be positive");
    for (std::int64_t i = 0; i < 3 * count; ++i)
        if (!std::isfinite(points[i])) refuse_row(i / 3, points + 3 * (i / 3));
}

thread_local char last_error[512];

}  // namespace

// Without memory of its own: the failure may be that there is none.
void set_last_error(const char* text) noexcept { std::snprintf(last_error, sizeof last_error, "%s", text); }

}  // namespace knn

// One-line description of this thread's last failure.
KNN_API const char* knn_last_error() { return knn::last_error; }

// Version of this interface; it changes whenever a signature does.
KNN_API int knn_abi_version() { return 2; }

// means [count] from points [count, 3], see neighbours.h. A status other than kOk leaves `means` unspecified.
KNN_API int knn_mean_squared_distances(const float* points, int64_t count, int threads, float* means) {
    return knn::guarded([&] {
        knn::check(points, count, threads, means);
        knn::mean_squared_distances(points, count, threads < knn::kMostThreads ? threads : knn::kMostThreads, means);
    });
}

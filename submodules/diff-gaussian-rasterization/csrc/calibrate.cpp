// How fast this machine can be, for benchmarks: the C function.
#include "calibrate.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "api.h"
#include "buffer.h"
#include "parallel.h"

namespace mien {
namespace {

constexpr double kWindow = 1e-3;  // seconds; a chunk takes about a hundredth of it
constexpr std::int64_t kChunkRounds = 1 << 11;
constexpr std::int64_t kChunkFloats = 1 << 16;
static_assert(kChunkFloats % kCalibrateStep == 0, "a chunk is a whole number of steps");

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The most chunks a second that all threads together did in any window: at least a millisecond, and `least` chunks of
// one thread. Every thread does chunks for about `seconds` and notes when each ended, so it is enough if the system
// lets them all run for a moment.
template <class Chunk>
double best_rate(int threads, double seconds, std::int64_t least, const Chunk& chunk) {
    std::vector<std::vector<double>> ends(threads);
    const double stop = now() + std::max(seconds, 2.0 * kWindow);
    parallel_for(threads, threads, [&](std::int64_t thread, int) {
        std::vector<double>& times = ends[thread];
        times.push_back(now());
        for (std::int64_t done = 0; done < least || times.back() < stop; ++done) {
            chunk(thread, done);
            times.push_back(now());
        }
    });
    double best = 0.0;
    for (const std::vector<double>& own : ends) {
        best = std::max(best, (own.size() - 1) / std::max(own.back() - own.front(), 1e-9));
        for (auto start = own.begin(); own.end() - start > least && own.back() - *start >= kWindow; ++start) {
            const auto end = std::max(start + least, std::lower_bound(start, own.end(), *start + kWindow));
            std::int64_t done = 0;
            for (const std::vector<double>& times : ends) {
                const auto first = std::lower_bound(times.begin(), times.end(), *start);
                done += std::max<std::int64_t>(std::upper_bound(first, times.end(), *end) - first - 1, 0);
            }
            best = std::max(best, done / (*end - *start));
        }
    }
    return best;
}

double instruction_rate(int threads, double seconds) {
    const CalibrateKernels& kernels = MIEN_KERNELS(calibrate_kernels);
    std::vector<float> sums(threads);
    const double chunks = best_rate(threads, seconds, 1, [&](std::int64_t thread, std::int64_t) {
        sums[thread] += kernels.arithmetic(kChunkRounds);
    });
    return chunks * kChunkRounds * kernels.round_lanes / 16;
}

std::int64_t chunks_of(std::int64_t bytes, int threads) {
    return std::max<std::int64_t>(bytes / std::int64_t{sizeof(float)} / kChunkFloats / threads, 1);
}

// Bytes a second. Every thread walks over its own `slice` chunks again and again.
double memory_rate(bool update, float* memory, std::int64_t slice, int threads, double seconds) {
    const CalibrateKernels& kernels = MIEN_KERNELS(calibrate_kernels);
    std::vector<float> sums(threads);
    const double chunks = best_rate(threads, seconds, slice, [&](std::int64_t thread, std::int64_t index) {
        float* data = memory + (thread * slice + index % slice) * kChunkFloats;
        if (update)
            kernels.update(data, kChunkFloats);
        else
            sums[thread] += kernels.read(data, kChunkFloats);
    });
    return chunks * kChunkFloats * sizeof(float);
}

}  // namespace
}  // namespace mien

// What this machine can do at most, all threads together, each rate the best millisecond in about `seconds`.
// instructions: vector instructions of 16 lanes a second, as many fused multiply-adds as additions, with the
// instruction set in use (one of 8 lanes counts half). reads[i], updates[i]: bytes a second read, or read and written
// back in place, walking over sizes[i] bytes of memory again and again.
MIEN_API int mien_calibrate(int threads, double seconds, const int64_t* sizes, int count, double* instructions,
                            double* reads, double* updates) {
    return mien::guarded([&] {
        mien::require(threads >= 1 && threads <= 256, "calibrate: threads must lie in 1 .. 256");
        mien::require(seconds >= 0.0 && seconds <= 60.0, "calibrate: seconds must lie in 0 .. 60");
        mien::require(instructions != nullptr && count >= 0, "calibrate: instructions is null or count is negative");
        mien::require(count == 0 || (sizes != nullptr && reads != nullptr && updates != nullptr),
                      "calibrate: sizes, reads or updates is null");
        std::int64_t floats = 0;
        for (int i = 0; i < count; ++i) {
            mien::require(sizes[i] >= 0 && sizes[i] <= (int64_t{1} << 34), "calibrate: sizes must lie in 0 .. 2^34");
            floats = std::max(floats, mien::chunks_of(sizes[i], threads) * threads * mien::kChunkFloats);
        }
        mien::Buffer<float> memory;
        memory.reserve(floats);
        std::fill(memory.data(), memory.data() + floats, 1.0f);
        *instructions = mien::instruction_rate(threads, seconds);
        for (int i = 0; i < count; ++i) {
            const std::int64_t slice = mien::chunks_of(sizes[i], threads);
            reads[i] = mien::memory_rate(false, memory.data(), slice, threads, seconds);
            updates[i] = mien::memory_rate(true, memory.data(), slice, threads, seconds);
        }
    });
}

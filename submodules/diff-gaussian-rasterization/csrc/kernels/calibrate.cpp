// Independent fused multiply-adds and additions, enough of them to hide their latency; and plain walks over memory.
#include "calibrate.h"

#include <cstring>

namespace mien {
namespace MIEN_ISA {
namespace {

// Latency 4 at two a cycle wants 8 chains of each; without AVX-512 there are 16 registers, one of which holds the
// constant. Four lanes are what the portable build has everywhere (SSE2, NEON), whether or not a kernel uses them.
#if defined(MIEN_ISA_avx512)
constexpr int kLanes = 16, kFused = 12, kAdded = 12;
#elif defined(MIEN_ISA_avx2)
constexpr int kLanes = 8, kFused = 8, kAdded = 7;
#else
constexpr int kLanes = 4, kFused = 8, kAdded = 7;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));

Vec load(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

float sum(Vec v) {
    float total = 0.0f;
    for (int i = 0; i < kLanes; ++i) total += v[i];
    return total;
}

float arithmetic(std::int64_t rounds) {
    const Vec half = Vec{} + 0.5f;
    Vec fused[kFused], added[kAdded];
    for (int i = 0; i < kFused; ++i) fused[i] = Vec{} + float(i);
    for (int i = 0; i < kAdded; ++i) added[i] = Vec{} + float(i);
    for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
        for (int i = 0; i < kFused; ++i) fused[i] = fused[i] * half + half;
#pragma GCC unroll 12
        for (int i = 0; i < kAdded; ++i) added[i] += half;
    }
    Vec total = {};
    for (int i = 0; i < kFused; ++i) total += fused[i];
    for (int i = 0; i < kAdded; ++i) total += added[i];
    return sum(total);
}

constexpr int kStreams = 8;
static_assert(kCalibrateStep % (kStreams * kLanes) == 0, "a step is a whole number of rounds");

float read(const float* data, std::int64_t count) {
    Vec total[kStreams] = {};
    for (std::int64_t at = 0; at < count; at += kStreams * kLanes)
#pragma GCC unroll 8
        for (int i = 0; i < kStreams; ++i) total[i] += load(data + at + i * kLanes);
    for (int i = 1; i < kStreams; ++i) total[0] += total[i];
    return sum(total[0]);
}

void update(float* data, std::int64_t count) {
    const Vec half = Vec{} + 0.5f;
    for (std::int64_t at = 0; at < count; at += kStreams * kLanes)
#pragma GCC unroll 8
        for (int i = 0; i < kStreams; ++i) {
            float* p = data + at + i * kLanes;
            const Vec v = load(p) * half + half;
            std::memcpy(p, &v, sizeof v);
        }
}

}  // namespace

extern const CalibrateKernels calibrate_kernels;
const CalibrateKernels calibrate_kernels = {(kFused + kAdded) * kLanes, arithmetic, read, update};

}  // namespace MIEN_ISA
}  // namespace mien

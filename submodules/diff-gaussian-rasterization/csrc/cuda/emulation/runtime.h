// A CUDA device made of nothing but this CPU, for tests: every thread of a block is a fiber with a stack of its own,
// barriers and warp operations switch between them. What a kernel does with its indices, its shared memory and its
// barriers is then exercised where there is no GPU. One operation at a time, in the order of their calls.
//
// MIEN_EMULATION_ORDER says in which order threads and blocks run: "forward" (the default), "reverse", or a number, the
// seed of a random order. Results that depend on it show a missing barrier.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint3 {
    unsigned x, y, z;
};
struct int2 {
    int x, y;
};
struct uint2 {
    unsigned x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct float3 {
    float x, y, z;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidDevice = 101,
    cudaErrorLaunchFailure = 719,
    cudaErrorStreamCaptureUnsupported = 900,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };

namespace mien {
namespace cuda {
namespace emulation {

struct Operation {
    std::function<void()> run;
};
struct Graph {
    std::vector<Operation> operations;
};
struct Stream {
    Graph* capturing = nullptr;
};

// Runs the body once for every thread, or notes it for later while the stream is captured.
cudaError_t launch(dim3 grid, dim3 block, Stream* stream, std::function<void()> body);
cudaError_t enqueue(Stream* stream, std::function<void()> run);

// Called by fibers.
void barrier();
bool barrier_any(bool value);
int barrier_count(bool value);
// Waits for the lanes of `mask` and returns what each of them brought.
const std::uint64_t* exchange(unsigned mask, std::uint64_t value);
int lane();

template <class T>
T from_bits(std::uint64_t bits) {
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
template <class T>
std::uint64_t to_bits(T value) {
    static_assert(sizeof(T) <= 8, "warp operations move at most 8 bytes");
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return bits;
}

}  // namespace emulation
}  // namespace cuda
}  // namespace mien

using cudaStream_t = mien::cuda::emulation::Stream*;
using cudaGraph_t = mien::cuda::emulation::Graph*;
using cudaGraphExec_t = mien::cuda::emulation::Graph*;
using cudaEvent_t = int*;

cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t code);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total);
cudaError_t cudaMalloc(void** memory, std::size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaMallocHost(void** memory, std::size_t bytes);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreate(cudaStream_t* stream);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t stream);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
template <class T>
cudaError_t cudaMalloc(T** memory, std::size_t bytes) {
    return cudaMalloc(reinterpret_cast<void**>(memory), bytes);
}
template <class T>
cudaError_t cudaMallocHost(T** memory, std::size_t bytes) {
    return cudaMallocHost(reinterpret_cast<void**>(memory), bytes);
}

inline void __syncthreads() { mien::cuda::emulation::barrier(); }
inline int __syncthreads_or(int value) { return mien::cuda::emulation::barrier_any(value != 0); }
inline int __syncthreads_count(int value) { return mien::cuda::emulation::barrier_count(value != 0); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { mien::cuda::emulation::exchange(mask, 0); }
inline void __threadfence() {}

template <class T>
T __shfl_sync(unsigned mask, T value, int from) {
    using namespace mien::cuda::emulation;
    return from_bits<T>(exchange(mask, to_bits(value))[from & 31]);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
    using namespace mien::cuda::emulation;
    const int from = lane() ^ lanes;
    return from_bits<T>(exchange(mask, to_bits(value))[from & 31]);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by) {
    using namespace mien::cuda::emulation;
    const int from = lane() - static_cast<int>(by);
    const T there = from_bits<T>(exchange(mask, to_bits(value))[from & 31]);
    return from < 0 ? value : there;
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by) {
    using namespace mien::cuda::emulation;
    const int from = lane() + static_cast<int>(by);
    const T there = from_bits<T>(exchange(mask, to_bits(value))[from & 31]);
    return from > 31 ? value : there;
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    const std::uint64_t* all = mien::cuda::emulation::exchange(mask, predicate != 0);
    unsigned bits = 0;
    for (int i = 0; i < 32; ++i)
        if (mask >> i & 1u) bits |= static_cast<unsigned>(all[i]) << i;
    return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline unsigned __float_as_uint(float x) { return mien::cuda::emulation::from_bits<unsigned>(mien::cuda::emulation::to_bits(x)); }
inline float __uint_as_float(unsigned x) { return mien::cuda::emulation::from_bits<float>(x); }
inline int __float_as_int(float x) { return static_cast<int>(__float_as_uint(x)); }
inline float __int_as_float(int x) { return __uint_as_float(static_cast<unsigned>(x)); }
template <class T>
T __ldg(const T* at) {
    return *at;
}

// One operation at a time, so plain reads and writes are atomic.
template <class T>
T atomicAdd(T* at, T value) {
    const T old = *at;
    *at = old + value;
    return old;
}
template <class T>
T atomicMax(T* at, T value) {
    const T old = *at;
    *at = old < value ? value : old;
    return old;
}
template <class T>
T atomicMin(T* at, T value) {
    const T old = *at;
    *at = value < old ? value : old;
    return old;
}
template <class T>
T atomicOr(T* at, T value) {
    const T old = *at;
    *at = old | value;
    return old;
}
template <class T>
T atomicExch(T* at, T value) {
    const T old = *at;
    *at = value;
    return old;
}
template <class T>
T atomicCAS(T* at, T expected, T value) {
    const T old = *at;
    if (old == expected) *at = value;
    return old;
}

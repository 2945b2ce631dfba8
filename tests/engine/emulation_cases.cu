// Kernels with faults that the emulated device must find, and sound ones that it must run as a GPU does.
#include <vector>

#include "cuda/device.h"

using namespace mien;
using namespace mien::cuda;

namespace {

constexpr int kBlock = 64;

__global__ void reverse_in_shared(const float* in, float* out, bool with_barrier) {
    __shared__ float row[kBlock];
    row[threadIdx.x] = in[threadIdx.x];
    if (with_barrier) __syncthreads();
    out[threadIdx.x] = row[kBlock - 1 - threadIdx.x];
}

__global__ void warp_and_barrier(float* out) {
    float value = out[threadIdx.x];
    if (threadIdx.x < 16)
        value = __shfl_sync(kAllLanes, value, 0);
    else
        __syncthreads();
    out[threadIdx.x] = value;
}

__global__ void two_barriers(float* out) {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
    out[threadIdx.x] = 1.0f;
}

__global__ void two_shuffles(float* out) {
    if (threadIdx.x % 2 == 0)
        out[threadIdx.x] = __shfl_sync(kAllLanes, 1.0f, 0);
    else
        out[threadIdx.x] = __shfl_sync(kAllLanes, 2.0f, 0);
}

__global__ void not_in_mask(float* out) { out[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.0f, 0); }

__global__ void shared_before_written(float* out) {
    __shared__ float row[kBlock];
    out[threadIdx.x] = row[threadIdx.x];
    row[threadIdx.x] = 0.0f;
}

template <class T>
__global__ void past_the_end(T* out, int count) {
    __shared__ T row[kBlock];
    row[threadIdx.x] = T(1);
    __syncthreads();
    out[threadIdx.x + count] = row[threadIdx.x];
}

template <class T>
__global__ void past_shared(T* out, int by) {
    __shared__ T row[kBlock];
    row[threadIdx.x] = T(1);
    __syncthreads();
    out[threadIdx.x] = row[threadIdx.x + by];
}

// Threads from `living` on return at once; the others add up what they have, in warps and then in the block.
__global__ void sum_of_block(const float* in, int living, float* out) {
    __shared__ float of_warp[kBlock / 32];
    const int thread = static_cast<int>(threadIdx.x);
    if (thread >= living) return;
    float value = in[blockIdx.x * kBlock + thread];
    if (living - thread / 32 * 32 >= 32)
        for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(kAllLanes, value, step);
    if (thread % 32 == 0) of_warp[thread / 32] = value;
    const int many = __syncthreads_count(thread % 32 == 0);
    if (thread != 0) return;
    float sum = 0.0f;
    for (int warp = 0; warp < many; ++warp) sum += of_warp[warp];
    out[blockIdx.x] = sum;
}

// Groups of four lanes go round different numbers of times, each with shuffles among themselves.
__global__ void groups_of_lanes(int* out) {
    const int lane = static_cast<int>(threadIdx.x) % 32, group = lane / 4;
    const unsigned mask = 0xfu << group * 4;
    int value = lane;
    for (int round = 0; round < 100 * group + 1; ++round) value = __shfl_sync(mask, value, group * 4 + (lane + 1) % 4);
    __syncwarp();
    const unsigned even = __ballot_sync(kAllLanes, value % 2 == 0);
    out[threadIdx.x] = value + 1000 * __popc(even);
}

__global__ void add_rate(const float* rate, float* out) { out[threadIdx.x] += *rate; }

struct Memory {
    float* data = nullptr;
    explicit Memory(std::size_t count) { check(cudaMalloc(&data, count * sizeof(float)), "allocating"); }
    ~Memory() { cudaFree(data); }
};

}  // namespace

MIEN_API int case_reverse(const float* in, float* out, int with_barrier) {
    return guarded([&] { launch(reverse_in_shared, 1, kBlock, nullptr, in, out, with_barrier != 0); });
}

MIEN_API int case_fault(const char* which, float* out) {
    return guarded([&] {
        const std::string name = which;
        if (name == "warp_and_barrier") launch(warp_and_barrier, 1, 32, nullptr, out);
        if (name == "two_barriers") launch(two_barriers, 1, kBlock, nullptr, out);
        if (name == "two_shuffles") launch(two_shuffles, 1, 32, nullptr, out);
        if (name == "not_in_mask") launch(not_in_mask, 1, 32, nullptr, out);
        if (name == "shared_before_written") launch(shared_before_written, 1, kBlock, nullptr, out);
        if (name == "too_many_threads") launch(shared_before_written, 1, 2048, nullptr, out);
    });
}

MIEN_API int case_past_the_end(int shared) {
    return guarded([&] {
        Memory memory(kBlock);
        if (shared != 0)
            launch(past_shared<float>, 1, kBlock, nullptr, memory.data, 1);
        else
            launch(past_the_end<float>, 1, kBlock, nullptr, memory.data, 1);
    });
}

MIEN_API int case_sum(const float* in, int blocks, int living, float* out) {
    return guarded([&] { launch(sum_of_block, blocks, kBlock, nullptr, in, living, out); });
}

MIEN_API int case_groups(int* out) {
    return guarded([&] { launch(groups_of_lanes, 1, kBlock, nullptr, out); });
}

MIEN_API int case_allocate(std::int64_t bytes) {
    return guarded([&] {
        DeviceBuffer<char> buffer;
        buffer.reserve(bytes);
    });
}

// Captures `out += *rate` and plays it twice, with rates 1 and 2; `fault` adds something that must not be captured.
MIEN_API int case_graph(const char* fault, float* out) {
    return guarded([&] {
        const std::string name = fault;
        Memory rate(1);
        cudaStream_t stream;
        check(cudaStreamCreate(&stream), "a stream");
        check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing");
        launch(add_rate, 1, kBlock, stream, rate.data, out);
        std::string refused;
        try {
            if (name == "allocate") Memory more(1);
            if (name == "synchronise") check(cudaStreamSynchronize(stream), "waiting");
            if (name == "null stream") launch(add_rate, 1, kBlock, nullptr, rate.data, out);
        } catch (const DeviceError& error) {
            refused = error.what();
        }
        cudaGraph_t graph;
        const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
        if (ended != cudaSuccess) {
            cudaStreamDestroy(stream);
            throw DeviceError(refused + "; " + cudaGetErrorString(ended));
        }
        cudaGraphExec_t ready;
        check(cudaGraphInstantiate(&ready, graph, 0), "instantiating");
        for (const float value : {1.0f, 2.0f}) {
            check(cudaMemcpyAsync(rate.data, &value, sizeof value, cudaMemcpyHostToDevice, stream), "copying");
            check(cudaGraphLaunch(ready, stream), "launching");
            check(cudaStreamSynchronize(stream), "waiting");
        }
        cudaGraphExecDestroy(ready);
        cudaGraphDestroy(graph);
        cudaStreamDestroy(stream);
    });
}

// Makes a device the thread's current one; the one before.
MIEN_API int case_make_current(int number, int* before) {
    return guarded([&] {
        check(cudaGetDevice(before), "asking");
        check(cudaSetDevice(number), "choosing");
    });
}

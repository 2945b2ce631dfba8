// A CUDA device made of nothing but this CPU, for tests: every thread of a block is a fiber with a stack of its own,
// barriers and warp operations switch between them (fibers.h). What a kernel does with its indices, its shared memory
// and its barriers is then exercised where there is no GPU. Every operation runs at once, in the order of the calls.
//
// MIEN_EMULATION_ORDER: in which order threads and blocks run, see fibers.h. Results that depend on it show a missing
// barrier. MIEN_EMULATION_BYTES: how much memory the device has; default 16 GiB. MIEN_EMULATION_FAIL=allocation:3 or
// launch:3: the third one from now on fails; counted anew whenever the text changes.
//
// This file is the part of cuda_runtime.h that hosts call; device_code.h is what kernels are written in.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "cuda/emulation/device_code.h"

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorNotReady = 600,
    cudaErrorLaunchFailure = 719,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901,
    cudaErrorStreamCaptureUnjoined = 904,
    cudaErrorStreamCaptureImplicit = 906,
};
enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
};
enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal,
    cudaStreamCaptureModeThreadLocal,
    cudaStreamCaptureModeRelaxed
};
enum cudaStreamCaptureStatus {
    cudaStreamCaptureStatusNone,
    cudaStreamCaptureStatusActive,
    cudaStreamCaptureStatusInvalidated
};
constexpr unsigned cudaStreamDefault = 0, cudaStreamNonBlocking = 1;
constexpr unsigned cudaEventDefault = 0, cudaEventDisableTiming = 2;
constexpr unsigned cudaHostAllocDefault = 0, cudaHostAllocMapped = 2;

namespace mien {
namespace cuda {
namespace emulation {

using Operations = std::vector<std::function<cudaError_t()>>;

struct Stream;

// What a stream has been asked for since its capture began; streams that wait for its events join in.
struct Capture {
    Operations operations;
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    bool invalid = false;
    std::thread::id thread;
    Stream* origin = nullptr;
    std::set<Stream*> joined, unjoined;
};
struct Stream {
    bool blocking = true;  // takes turns with the null stream
    std::shared_ptr<Capture> capture;
};
struct Event {
    std::shared_ptr<Capture> capture;
    Stream* stream = nullptr;
    std::chrono::steady_clock::time_point when;
};
struct Graph {
    Operations operations;
};

// The stream of a launch, and where the launch is written.
struct Launch {
    Stream* stream;
    Site site;
    Launch(Stream* stream_, const char* file = __builtin_FILE(), int line = __builtin_LINE())
        : stream(stream_), site{file, line} {}
};

// Runs the body once for every thread, or notes it for later while the stream is captured.
cudaError_t launch(dim3 grid, dim3 block, const Launch& place, std::function<void()> body);
// The same for work that is no kernel: what stands in for a library's device-wide algorithm.
cudaError_t enqueue(Stream* stream, std::function<void()> run);

}  // namespace emulation
}  // namespace cuda
}  // namespace mien

using cudaStream_t = mien::cuda::emulation::Stream*;
using cudaGraph_t = mien::cuda::emulation::Graph*;
using cudaGraphExec_t = mien::cuda::emulation::Graph*;
using cudaEvent_t = mien::cuda::emulation::Event*;

cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
const char* cudaGetErrorString(cudaError_t code);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total);
cudaError_t cudaMalloc(void** memory, std::size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaMallocHost(void** memory, std::size_t bytes);
cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemset(void* memory, int value, std::size_t bytes);
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreate(cudaStream_t* stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long flags = 0);
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

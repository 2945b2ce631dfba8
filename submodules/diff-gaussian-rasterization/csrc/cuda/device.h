// What CUDA sources are made of: launches, memory and errors. The same sources also compile with a C++ compiler alone
// (MIEN_EMULATED), whose "device" runs every thread of every block on the CPU: csrc/cuda/emulation/runtime.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <tuple>

#if defined(MIEN_EMULATED)
#include "cuda/emulation/runtime.h"
#else
#include <cuda_runtime.h>
#endif

#include "api.h"

namespace mien {
namespace cuda {

// Where a call does its work: in order behind what `stream` already holds.
struct Queue {
    std::int32_t device;
    cudaStream_t stream;
};

// Throws DeviceError, or OutOfDeviceMemory, unless the call went well.
inline void check(cudaError_t code, const char* what) {
    if (code == cudaSuccess) return;
    cudaGetLastError();  // forgets it: the next call must not report it again
    const std::string text = std::string(what) + ": " + cudaGetErrorString(code);
    if (code == cudaErrorMemoryAllocation) throw OutOfDeviceMemory(text);
    throw DeviceError(text);
}

// While it lives, the queue's device is this thread's current one. Afterwards it is the one before again, which is
// the caller's business.
class [[nodiscard]] DeviceGuard {
public:
    explicit DeviceGuard(const Queue& queue) : own_(queue.device) {
        check(cudaGetDevice(&before_), "cudaGetDevice");
        if (before_ != own_) check(cudaSetDevice(own_), "cudaSetDevice");
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;
    ~DeviceGuard() {
        if (before_ != own_) cudaSetDevice(before_);
    }

private:
    int own_, before_ = 0;
};

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

#if defined(MIEN_EMULATED)
using LaunchStream = emulation::Launch;  // knows the line of the launch as well
#else
using LaunchStream = cudaStream_t;
#endif

inline unsigned blocks_for(std::int64_t threads, int block) {
    return static_cast<unsigned>((threads + block - 1) / block);
}

// Runs `kernel` on grid x block threads, behind what the stream holds. An empty grid is nothing to do.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, LaunchStream stream, const Arguments&... arguments) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
#if defined(MIEN_EMULATED)
    check(emulation::launch(grid, block, stream, [=] { kernel(static_cast<Parameters>(arguments)...); }), "launch");
#else
    std::tuple<Parameters...> packed(static_cast<Parameters>(arguments)...);
    std::apply(
        [&](auto&... values) {
            void* pointers[] = {static_cast<void*>(&values)..., nullptr};
            check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, pointers, 0, stream), "launch");
        },
        packed);
#endif
}

// A grow-only, uninitialised array on the device: scratch memory that survives from picture to picture.
template <class T>
class DeviceBuffer {
public:
    DeviceBuffer() = default;
    DeviceBuffer(const DeviceBuffer&) = delete;
    DeviceBuffer& operator=(const DeviceBuffer&) = delete;
    ~DeviceBuffer() { release(); }

    // Makes room for `count` elements and returns the array; its content is lost if it had to grow. Growing waits for
    // the device, and must not happen while a stream is captured.
    T* reserve(std::int64_t count) {
        if (count > capacity_) {
            release();
            const std::int64_t wanted = count + count / 4 + 64;
            void* memory = nullptr;
            const std::size_t bytes = static_cast<std::size_t>(wanted) * sizeof(T);
            check(cudaMalloc(&memory, bytes), ("allocating " + std::to_string(bytes) + " bytes").c_str());
            data_ = static_cast<T*>(memory);
            capacity_ = wanted;
        }
        return data_;
    }
    T* data() const { return data_; }
    std::int64_t capacity() const { return capacity_; }
    std::int64_t bytes() const { return capacity_ * static_cast<std::int64_t>(sizeof(T)); }

private:
    void release() {
        if (data_ != nullptr) cudaFree(data_);
        data_ = nullptr;
        capacity_ = 0;
    }

    T* data_ = nullptr;
    std::int64_t capacity_ = 0;
};

}  // namespace cuda
}  // namespace mien

#include "cuda/emulation/runtime.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <unordered_map>

namespace mien {
namespace cuda {
namespace emulation {
namespace {

constexpr std::size_t kUsualBytes = std::size_t(1) << 34;
constexpr int kDevices = 2;                    // one and the same, but that a thread has one of them current
constexpr unsigned kMostRowsOfBlocks = 65535;  // of a grid, in y and in z

struct Device {
    std::recursive_mutex one_at_a_time;
    std::unordered_map<void*, std::size_t> allocations;
    std::size_t allocated = 0;
    cudaError_t last_error = cudaSuccess;
    std::string fault;  // of the last launch that failed
    std::vector<std::shared_ptr<Capture>> captures;
    std::string failing;  // the text that `failures` counts for
    long until_failure = 0;
};
Device device;
thread_local int current_device = 0;

using Hold = std::lock_guard<std::recursive_mutex>;

cudaError_t note(cudaError_t code) {
    if (code != cudaSuccess) device.last_error = code;
    return code;
}

std::size_t memory_limit() {
    const char* text = std::getenv("MIEN_EMULATION_BYTES");
    return text == nullptr || *text == '\0' ? kUsualBytes : std::strtoull(text, nullptr, 10);
}

// Whether MIEN_EMULATION_FAIL wants this one to fail.
bool meant_to_fail(const char* what) {
    const char* wish = std::getenv("MIEN_EMULATION_FAIL");
    const std::string text = wish == nullptr ? "" : wish;
    const std::size_t colon = text.find(':');
    if (text != device.failing) {
        device.failing = text;
        device.until_failure = colon == std::string::npos ? 0 : std::atol(text.c_str() + colon + 1);
    }
    return text.compare(0, colon, what) == 0 && device.until_failure > 0 && --device.until_failure == 0;
}

// What waits for the device, or may, is refused while a stream is captured, and spoils the capture.
bool spoils_a_capture() {
    bool any = false;
    for (const auto& capture : device.captures)
        if (capture->mode == cudaStreamCaptureModeGlobal ||
            (capture->mode == cudaStreamCaptureModeThreadLocal && capture->thread == std::this_thread::get_id()))
            any = capture->invalid = true;
    return any;
}

// Work for the null stream would have to wait for the captured streams that take turns with it.
cudaError_t refuse_null_stream(Stream* stream) {
    if (stream != nullptr) return cudaSuccess;
    for (const auto& capture : device.captures) {
        if (!capture->origin->blocking) continue;
        capture->invalid = true;
        return cudaErrorStreamCaptureImplicit;
    }
    return cudaSuccess;
}

cudaError_t submit(Stream* stream, std::function<cudaError_t()> operation) {
    const Hold hold(device.one_at_a_time);
    if (const cudaError_t code = refuse_null_stream(stream); code != cudaSuccess) return note(code);
    if (stream == nullptr || stream->capture == nullptr) return note(operation());
    if (stream->capture->invalid) return note(cudaErrorStreamCaptureInvalidated);
    stream->capture->operations.push_back(std::move(operation));
    return cudaSuccess;
}

// Device memory of exactly so many bytes, so that AddressSanitizer sees its ends. It begins as the bytes of a NaN: what
// reads memory before it writes it stands out.
cudaError_t allocate(void** memory, std::size_t bytes) {
    if (meant_to_fail("allocation") || device.allocated + bytes > memory_limit()) return cudaErrorMemoryAllocation;
    if (posix_memalign(memory, 256, bytes == 0 ? 1 : bytes) != 0) return cudaErrorMemoryAllocation;
    std::memset(*memory, 0xff, bytes);
    device.allocations[*memory] = bytes;
    device.allocated += bytes;
    return cudaSuccess;
}

}  // namespace

cudaError_t launch(dim3 grid, dim3 block, const Launch& place, std::function<void()> body) {
    const std::uint64_t threads = std::uint64_t(block.x) * block.y * block.z;
    if (threads == 0 || threads > kMostThreads || block.z > 64 || grid.x > 0x7fffffffu || grid.y > kMostRowsOfBlocks ||
        grid.z > kMostRowsOfBlocks || grid.x == 0 || grid.y == 0 || grid.z == 0)
        return note(cudaErrorInvalidConfiguration);
    const Site site = place.site;
    return submit(place.stream, [=] {
        device.fault = meant_to_fail("launch") ? "a launch failure was asked for" : run_grid(grid, block, body, site);
        return device.fault.empty() ? cudaSuccess : cudaErrorLaunchFailure;
    });
}

cudaError_t enqueue(Stream* stream, std::function<void()> run) {
    return submit(stream, [run = std::move(run)] {
        run();
        return cudaSuccess;
    });
}

}  // namespace emulation
}  // namespace cuda
}  // namespace mien

using namespace mien::cuda::emulation;

cudaError_t cudaPeekAtLastError() { return device.last_error; }

cudaError_t cudaGetLastError() {
    const cudaError_t code = device.last_error;
    device.last_error = cudaSuccess;
    return code;
}

const char* cudaGetErrorString(cudaError_t code) {
    switch (code) {
        case cudaSuccess: return "no error";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorInvalidConfiguration: return "invalid configuration argument";
        case cudaErrorNoDevice: return "no CUDA-capable device is detected";
        case cudaErrorInvalidDevice: return "invalid device ordinal";
        case cudaErrorInvalidResourceHandle: return "invalid resource handle";
        case cudaErrorNotReady: return "device not ready";
        case cudaErrorLaunchFailure: return device.fault.empty() ? "unspecified launch failure" : device.fault.c_str();
        case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
        case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
        case cudaErrorStreamCaptureUnjoined: return "capturing stream has unjoined work";
        case cudaErrorStreamCaptureImplicit:
            return "operation would make the legacy stream depend on a capturing blocking stream";
        default: return "invalid argument";
    }
}

cudaError_t cudaGetDeviceCount(int* count) {
    *count = kDevices;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int number) {
    if (number < 0 || number >= kDevices) return note(cudaErrorInvalidDevice);
    current_device = number;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int* number) {
    *number = current_device;
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
    const Hold hold(device.one_at_a_time);
    return spoils_a_capture() ? note(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
    const Hold hold(device.one_at_a_time);
    *total = memory_limit();
    *free = device.allocated > *total ? 0 : *total - device.allocated;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
    const Hold hold(device.one_at_a_time);
    if (memory == nullptr) return note(cudaErrorInvalidValue);
    if (spoils_a_capture()) return note(cudaErrorStreamCaptureUnsupported);
    return note(allocate(memory, bytes));
}

cudaError_t cudaFree(void* memory) {
    const Hold hold(device.one_at_a_time);
    if (spoils_a_capture()) return note(cudaErrorStreamCaptureUnsupported);
    if (memory == nullptr) return cudaSuccess;
    const auto found = device.allocations.find(memory);
    if (found == device.allocations.end()) return note(cudaErrorInvalidValue);
    device.allocated -= found->second;
    device.allocations.erase(found);
    std::free(memory);
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
    const Hold hold(device.one_at_a_time);
    if (spoils_a_capture()) return note(cudaErrorStreamCaptureUnsupported);
    *memory = std::malloc(bytes == 0 ? 1 : bytes);
    return *memory == nullptr ? note(cudaErrorMemoryAllocation) : cudaSuccess;
}
cudaError_t cudaMallocHost(void** memory, std::size_t bytes) { return cudaHostAlloc(memory, bytes, 0); }
cudaError_t cudaFreeHost(void* memory) {
    const Hold hold(device.one_at_a_time);
    if (spoils_a_capture()) return note(cudaErrorStreamCaptureUnsupported);
    std::free(memory);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
    if (bytes == 0) return cudaSuccess;
    if (to == nullptr || from == nullptr) return note(cudaErrorInvalidValue);
    return enqueue(stream, [=] { std::memcpy(to, from, bytes); });
}
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
    return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t stream) {
    if (bytes == 0) return cudaSuccess;
    if (memory == nullptr) return note(cudaErrorInvalidValue);
    return enqueue(stream, [=] { std::memset(memory, value, bytes); });
}
cudaError_t cudaMemset(void* memory, int value, std::size_t bytes) {
    return cudaMemsetAsync(memory, value, bytes, nullptr);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    *stream = new Stream;
    (*stream)->blocking = flags != cudaStreamNonBlocking;
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }

cudaError_t cudaStreamSynchronize(cudaStream_t) {
    const Hold hold(device.one_at_a_time);
    return spoils_a_capture() ? note(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    const Hold hold(device.one_at_a_time);
    if (stream == nullptr) return note(cudaErrorStreamCaptureUnsupported);
    if (stream->capture != nullptr) return note(cudaErrorInvalidValue);
    stream->capture = std::make_shared<Capture>();
    stream->capture->mode = mode;
    stream->capture->origin = stream;
    stream->capture->thread = std::this_thread::get_id();
    device.captures.push_back(stream->capture);
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    const Hold hold(device.one_at_a_time);
    *graph = nullptr;
    if (stream == nullptr || stream->capture == nullptr || stream->capture->origin != stream)
        return note(cudaErrorInvalidValue);
    const std::shared_ptr<Capture> capture = stream->capture;
    for (Stream* joined : capture->joined) joined->capture = nullptr;
    stream->capture = nullptr;
    device.captures.erase(std::find(device.captures.begin(), device.captures.end(), capture));
    if (capture->invalid) return note(cudaErrorStreamCaptureInvalidated);
    if (!capture->unjoined.empty()) return note(cudaErrorStreamCaptureUnjoined);
    *graph = new Graph{std::move(capture->operations)};
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
    const Hold hold(device.one_at_a_time);
    *status = stream == nullptr || stream->capture == nullptr ? cudaStreamCaptureStatusNone
              : stream->capture->invalid                      ? cudaStreamCaptureStatusInvalidated
                                                              : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    *event = new Event;
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    const Hold hold(device.one_at_a_time);
    if (const cudaError_t code = refuse_null_stream(stream); code != cudaSuccess) return note(code);
    event->capture = stream == nullptr ? nullptr : stream->capture;
    event->stream = stream;
    event->when = std::chrono::steady_clock::now();
    return cudaSuccess;
}

// Work runs at once, so there is nothing to wait for; but a stream that waits for captured work is captured with it,
// and must be waited for before the capture ends.
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    const Hold hold(device.one_at_a_time);
    if (stream == nullptr || event->capture == nullptr) return cudaSuccess;
    if (stream->capture == nullptr) {
        stream->capture = event->capture;
        stream->capture->joined.insert(stream);
    }
    if (stream->capture != event->capture) return note(cudaErrorInvalidValue);
    Capture& capture = *stream->capture;
    if (stream != capture.origin) capture.unjoined.insert(stream);
    capture.unjoined.erase(event->stream);
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    const Hold hold(device.one_at_a_time);
    return event->capture != nullptr || spoils_a_capture() ? note(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaEventSynchronize(event); }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
    *milliseconds = std::chrono::duration<float, std::milli>(to->when - from->when).count();
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long) {
    *ready = new Graph(*graph);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t stream) {
    return submit(stream, [operations = ready->operations] {
        for (const auto& operation : operations)
            if (const cudaError_t code = operation(); code != cudaSuccess) return code;
        return cudaSuccess;
    });
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready) {
    delete ready;
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}

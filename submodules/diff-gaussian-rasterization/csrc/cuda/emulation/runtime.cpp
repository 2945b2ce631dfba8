#include "cuda/emulation/runtime.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace mien {
namespace cuda {
namespace emulation {
namespace {

constexpr std::size_t kStack = 128 * 1024;
constexpr int kMostThreads = 1024;

// Lanes that meet in one warp operation. Masks in use at a time are disjoint, so the lowest lane names the meeting.
struct Meeting {
    unsigned arrived = 0;
    std::uint64_t round = 0;
    std::uint64_t brought[32], result[4][32];  // of the last rounds: a slow lane may still read an older one
};

struct Fiber {
    ucontext_t context;
    std::jmp_buf place;
    uint3 index;
    int number = 0;
    bool started = false, done = true;
    bool waits_block = false;
    Meeting* waits_warp = nullptr;
    std::uint64_t round = 0;
};

struct Machine {
    std::vector<Fiber> fibers = std::vector<Fiber>(kMostThreads);
    std::vector<void*> stacks = std::vector<void*>(kMostThreads, nullptr);
    Meeting meetings[kMostThreads / 32][32];
    std::jmp_buf scheduler;
    Fiber* current = nullptr;
    int threads = 0, at_barrier = 0, alive = 0;
    int any_count = 0, last_count = 0;
    const std::function<void()>* body = nullptr;
    std::string fault;
};

std::mutex machine_lock;
Machine machine;

// The order in which `count` things run.
std::vector<int> order(int count, std::uint64_t salt) {
    std::vector<int> all(static_cast<std::size_t>(count));
    std::iota(all.begin(), all.end(), 0);
    const char* wish = std::getenv("MIEN_EMULATION_ORDER");
    const std::string text = wish == nullptr ? "forward" : wish;
    if (text == "reverse") {
        std::reverse(all.begin(), all.end());
    } else if (text != "forward" && !text.empty()) {
        std::mt19937_64 dice(std::strtoull(text.c_str(), nullptr, 10) * 1000003u + salt);
        for (std::size_t i = all.size(); i > 1; --i) std::swap(all[i - 1], all[dice() % i]);
    }
    return all;
}

void enter() {
    (*machine.body)();
    machine.current->done = true;
    std::longjmp(machine.scheduler, 1);
}

// Back to the scheduler; returns when it is this fiber's turn again.
void yield() {
    Fiber* self = machine.current;
    if (_setjmp(self->place) == 0) _longjmp(machine.scheduler, 1);
}

void resume(Fiber& fiber) {
    machine.current = &fiber;
    threadIdx = fiber.index;
    if (_setjmp(machine.scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    setcontext(&fiber.context);
}

void prepare(Fiber& fiber, int number, dim3 block) {
    void*& stack = machine.stacks[static_cast<std::size_t>(number)];
    if (stack == nullptr) {
        stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (stack == MAP_FAILED) std::abort();
    }
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
    const unsigned n = static_cast<unsigned>(number);
    fiber.index = {n % block.x, n / block.x % block.y, n / (block.x * block.y)};
    fiber.number = number;
    fiber.started = fiber.done = fiber.waits_block = false;
    fiber.waits_warp = nullptr;
}

bool may_run(const Fiber& f) {
    if (f.done || f.waits_block) return false;
    return f.waits_warp == nullptr || f.waits_warp->round != f.round;
}

void open_barrier() {
    machine.last_count = machine.any_count;
    machine.any_count = machine.at_barrier = 0;
    for (int i = 0; i < machine.threads; ++i) machine.fibers[static_cast<std::size_t>(i)].waits_block = false;
}

void run_block(dim3 block, std::uint64_t salt) {
    machine.threads = machine.alive = static_cast<int>(block.x * block.y * block.z);
    machine.at_barrier = machine.any_count = 0;
    for (auto& warp : machine.meetings)
        for (Meeting& meeting : warp) meeting.arrived = 0;
    for (int i = 0; i < machine.threads; ++i) prepare(machine.fibers[static_cast<std::size_t>(i)], i, block);
    const std::vector<int> turns = order(machine.threads, salt);
    while (machine.alive > 0) {
        bool moved = false;
        for (int i : turns) {
            Fiber& fiber = machine.fibers[static_cast<std::size_t>(i)];
            if (!may_run(fiber)) continue;
            fiber.waits_warp = nullptr;
            resume(fiber);
            moved = true;
            if (fiber.done) --machine.alive;
            if (machine.alive > 0 && machine.at_barrier == machine.alive) open_barrier();
        }
        if (!moved) {
            machine.fault = "threads wait for each other: a barrier or a warp operation is not reached by all";
            return;
        }
    }
}

void run_grid(dim3 grid, dim3 block, const std::function<void()>& body) {
    const std::lock_guard<std::mutex> hold(machine_lock);
    machine.body = &body;
    gridDim = grid;
    blockDim = block;
    const int blocks = static_cast<int>(grid.x * grid.y * grid.z);
    for (int b : order(blocks, 7)) {
        const unsigned n = static_cast<unsigned>(b);
        blockIdx = {n % grid.x, n / grid.x % grid.y, n / (grid.x * grid.y)};
        run_block(block, n);
        if (!machine.fault.empty()) return;
    }
}

}  // namespace

int lane() { return machine.current->number % 32; }

void barrier() {
    machine.current->waits_block = true;
    ++machine.at_barrier;
    yield();
}

int barrier_count(bool value) {
    machine.any_count += value;
    barrier();
    return machine.last_count;
}

bool barrier_any(bool value) { return barrier_count(value) > 0; }

const std::uint64_t* exchange(unsigned mask, std::uint64_t value) {
    Fiber& self = *machine.current;
    const int in_warp = std::min(32, machine.threads - self.number / 32 * 32);
    if (in_warp < 32) mask &= (1u << in_warp) - 1u;  // a warp that the block does not fill
    Meeting& meeting = machine.meetings[self.number / 32][__builtin_ctz(mask)];
    const int mine = self.number % 32;
    meeting.brought[mine] = value;
    meeting.arrived |= 1u << mine;
    if ((meeting.arrived & mask) == mask) {
        std::copy(meeting.brought, meeting.brought + 32, meeting.result[meeting.round % 4]);
        meeting.arrived = 0;
        return meeting.result[meeting.round++ % 4];
    }
    const std::uint64_t round = meeting.round;
    self.waits_warp = &meeting;
    self.round = round;
    yield();
    return meeting.result[round % 4];
}

cudaError_t enqueue(Stream* stream, std::function<void()> run) {
    if (stream != nullptr && stream->capturing != nullptr) {
        stream->capturing->operations.push_back({std::move(run)});
        return cudaSuccess;
    }
    run();
    return machine.fault.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

cudaError_t launch(dim3 grid, dim3 block, Stream* stream, std::function<void()> body) {
    if (block.x * block.y * block.z > kMostThreads || block.x * block.y * block.z == 0) return cudaErrorInvalidValue;
    return enqueue(stream, [=] { run_grid(grid, block, body); });
}

}  // namespace emulation
}  // namespace cuda
}  // namespace mien

using namespace mien::cuda::emulation;

cudaError_t cudaGetLastError() { return machine.fault.empty() ? cudaSuccess : cudaErrorLaunchFailure; }

const char* cudaGetErrorString(cudaError_t code) {
    switch (code) {
        case cudaSuccess: return "no error";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorInvalidDevice: return "invalid device ordinal";
        case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
        case cudaErrorLaunchFailure: return machine.fault.empty() ? "launch failure" : machine.fault.c_str();
        default: return "invalid argument";
    }
}

cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }

namespace {
std::size_t allocated = 0;
std::size_t limit() {
    const char* text = std::getenv("MIEN_EMULATION_BYTES");
    return text == nullptr ? std::size_t(1) << 34 : std::strtoull(text, nullptr, 10);
}
}  // namespace

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
    *total = limit();
    *free = allocated > *total ? 0 : *total - allocated;
    return cudaSuccess;
}

// Filled with the bytes of a NaN: what reads memory before it writes it stands out.
cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
    if (allocated + bytes > limit()) return cudaErrorMemoryAllocation;
    auto* start = static_cast<char*>(std::aligned_alloc(256, 256 + (bytes + 255) / 256 * 256));
    if (start == nullptr) return cudaErrorMemoryAllocation;
    std::memcpy(start, &bytes, sizeof bytes);
    std::memset(start + 256, 0xff, bytes);
    allocated += bytes;
    *memory = start + 256;
    return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
    if (memory == nullptr) return cudaSuccess;
    char* start = static_cast<char*>(memory) - 256;
    std::size_t bytes;
    std::memcpy(&bytes, start, sizeof bytes);
    allocated -= bytes;
    std::free(start);
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void** memory, std::size_t bytes) {
    *memory = std::malloc(bytes);
    return *memory == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
    std::free(memory);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
    return enqueue(stream, [=] { std::memcpy(to, from, bytes); });
}
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t stream) {
    return enqueue(stream, [=] { std::memset(memory, value, bytes); });
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    *stream = new Stream;
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    return stream != nullptr && stream->capturing != nullptr ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    if (stream == nullptr || stream->capturing != nullptr) return cudaErrorStreamCaptureUnsupported;
    stream->capturing = new Graph;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    if (stream == nullptr || stream->capturing == nullptr) return cudaErrorStreamCaptureUnsupported;
    *graph = stream->capturing;
    stream->capturing = nullptr;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long) {
    *ready = new Graph(*graph);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t stream) {
    for (const Operation& operation : ready->operations)
        if (const cudaError_t code = enqueue(stream, operation.run); code != cudaSuccess) return code;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready) {
    delete ready;
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}

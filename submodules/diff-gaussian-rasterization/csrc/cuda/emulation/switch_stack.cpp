// Changing stacks is the one thing about fibers that C++ cannot say. Registers that a call must preserve are pushed and
// popped: unlike ucontext without a system call, unlike longjmp without anything that checks the stack.
#include "cuda/emulation/switch_stack.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define MIEN_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MIEN_ADDRESS_SANITIZER 1
#endif
#endif

#if defined(MIEN_ADDRESS_SANITIZER)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Leaves the stack pointer at *leave and goes on with `enter`.
extern "C" __attribute__((visibility("hidden"))) void mien_switch_stack(void** leave, void* enter);

#if defined(__x86_64__)
__asm__(R"(
    .text
    .globl mien_switch_stack
    .hidden mien_switch_stack
    .type mien_switch_stack, @function
mien_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size mien_switch_stack, . - mien_switch_stack
)");
constexpr std::size_t kWords = 8, kReturn = 6;  // what begin() leaves on a stack; a function starts 8 bytes off 16
#elif defined(__aarch64__)
__asm__(R"(
    .text
    .globl mien_switch_stack
    .hidden mien_switch_stack
    .type mien_switch_stack, %function
mien_switch_stack:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size mien_switch_stack, . - mien_switch_stack
)");
constexpr std::size_t kWords = 20, kReturn = 11;
#else
#error "the emulated device knows x86-64 and 64-bit Arm only"
#endif

namespace mien {
namespace cuda {
namespace emulation {
namespace {

constexpr std::size_t kGuard = 64 * 1024;  // at least a page of any machine: running over the end stops the program
#if defined(MIEN_ADDRESS_SANITIZER)
constexpr std::size_t kStack = 512 * 1024;
#else
constexpr std::size_t kStack = 128 * 1024;
#endif

// The stack that resume() was called on.
struct Host {
    void* pointer = nullptr;
    void* fake = nullptr;
    const void* bottom = nullptr;
    std::size_t size = 0;
};
Host host;
void (*entry_of_new_stack)() = nullptr;

void start_switch(void** fake, const void* bottom, std::size_t size) {
#if defined(MIEN_ADDRESS_SANITIZER)
    __sanitizer_start_switch_fiber(fake, bottom, size);
#else
    static_cast<void>(fake), static_cast<void>(bottom), static_cast<void>(size);
#endif
}

void finish_switch(void* fake, const void** bottom, std::size_t* size) {
#if defined(MIEN_ADDRESS_SANITIZER)
    __sanitizer_finish_switch_fiber(fake, bottom, size);
#else
    static_cast<void>(fake), static_cast<void>(bottom), static_cast<void>(size);
#endif
}

void arrive() {
    finish_switch(nullptr, &host.bottom, &host.size);
    entry_of_new_stack();
    std::abort();
}

}  // namespace

Stack::Stack() {
    void* memory = mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE) != 0) throw std::bad_alloc();
    memory_ = static_cast<char*>(memory) + kGuard;
}

Stack::~Stack() { munmap(memory_ - kGuard, kGuard + kStack); }

void Stack::begin(void (*entry)()) {
#if defined(MIEN_ADDRESS_SANITIZER)
    __asan_unpoison_memory_region(memory_, kStack);  // what ran here before may have been left in the middle
#endif
    std::uint64_t words[kWords] = {};
    words[kReturn] = reinterpret_cast<std::uint64_t>(&arrive);
    pointer_ = memory_ + kStack - sizeof words;
    std::memcpy(pointer_, words, sizeof words);
    entry_of_new_stack = entry;
    fake_ = nullptr;
}

void Stack::resume() {
    start_switch(&host.fake, memory_, kStack);
    mien_switch_stack(&host.pointer, pointer_);
    finish_switch(host.fake, nullptr, nullptr);
}

void Stack::leave() {
    start_switch(&fake_, host.bottom, host.size);
    mien_switch_stack(&pointer_, host.pointer);
    finish_switch(fake_, &host.bottom, &host.size);
}

}  // namespace emulation
}  // namespace cuda
}  // namespace mien

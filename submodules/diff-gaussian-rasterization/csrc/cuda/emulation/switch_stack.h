// A stack that a function runs on, beside the usual one.
#pragma once

#include <cstddef>

namespace mien {
namespace cuda {
namespace emulation {

class Stack {
public:
    Stack();
    Stack(const Stack&) = delete;
    Stack& operator=(const Stack&) = delete;
    ~Stack();

    // The next resume() calls `entry`, which must never return.
    void begin(void (*entry)());
    // Goes on where leave() was called on this stack, until it is called again.
    void resume();
    // Back to resume()'s caller.
    void leave();

private:
    char* memory_;
    void* pointer_ = nullptr;
    void* fake_ = nullptr;  // AddressSanitizer's, of the locals that it watches
};

}  // namespace emulation
}  // namespace cuda
}  // namespace mien

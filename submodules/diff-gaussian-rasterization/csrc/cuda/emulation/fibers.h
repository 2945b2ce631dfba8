// Runs the threads of a block as fibers of one CPU thread, and finds what a GPU would leave undefined: threads that
// wait for each other for ever, barriers and warp operations that not all of those meant reach together.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint3 {
    unsigned x, y, z;
};

namespace mien {
namespace cuda {
namespace emulation {

constexpr int kMostThreads = 1024;  // of a block
constexpr int kLanes = 32;

// Where something was called.
struct Site {
    const char* file;
    int line;
};
std::string to_string(const Site& site);

extern uint3 thread_index, block_index;
extern dim3 block_size, grid_size;

// Runs the body once for every thread of the grid. Returns what went wrong, one line; empty: nothing. Not reentrant.
//
// The order of blocks and threads follows MIEN_EMULATION_ORDER: "forward" (the default) and "reverse" run a warp as far
// as it gets before the next one starts; a number seeds an order that changes all the time, lanes and warps taking
// turns.
std::string run_grid(dim3 grid, dim3 block, const std::function<void()>& body, const Site& site);

// --- called by fibers

int lane();
// Waits until every thread of the block that has not returned is here. Returns how many of them brought true.
int barrier(bool value, const Site& site);
// Waits for the lanes of `mask` that have not returned; returns what each of them brought, all bits set for others.
const std::uint64_t* exchange(unsigned mask, std::uint64_t value, const Site& site);
// Ends the launch with that message.
[[noreturn]] void fail(const std::string& what);

}  // namespace emulation
}  // namespace cuda
}  // namespace mien

#include "cuda/emulation/fibers.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "cuda/emulation/switch_stack.h"

// All bytes of shared memory of all kernels; only where there is any.
extern "C" {
extern char __start_mien_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_mien_shared[] __attribute__((weak, visibility("hidden")));
}

namespace mien {
namespace cuda {
namespace emulation {

uint3 thread_index, block_index;
dim3 block_size, grid_size;

namespace {

enum class State { ready, at_barrier, in_warp, gone };

struct Fiber {
    Stack stack;
    bool begun = false;  // it waits for its next body
    State state = State::gone;
    uint3 index = {};
    int number = 0;
    Site site = {};
    unsigned mask = 0;
    const std::uint64_t* result = nullptr;
};

// Lanes on their way into one warp operation.
struct Meeting {
    unsigned mask, arrived;
    Site site;
    std::uint64_t brought[kLanes];
};

// A lane reads a result at its next turn; until all have had theirs, lanes can't meet more often than this.
constexpr int kResults = 64;

struct Warp {
    unsigned alive;
    Meeting meetings[kLanes];  // by the lowest lane of their masks
    std::uint64_t results[kResults][kLanes];
    int next_result;
};

constexpr int kBlocksPerSpoiling = 8;

struct Order {
    bool reverse = false, random = false;
    std::mt19937_64 dice;

    // The order in which `count` things run.
    void fill(std::vector<int>& turns, int count) {
        turns.resize(static_cast<std::size_t>(count));
        std::iota(turns.begin(), turns.end(), 0);
        if (reverse) std::reverse(turns.begin(), turns.end());
        if (random)
            for (std::size_t i = turns.size(); i > 1; --i) std::swap(turns[i - 1], turns[dice() % i]);
    }
};

struct Machine {
    std::vector<std::unique_ptr<Fiber>> fibers;
    Warp warps[kMostThreads / kLanes];
    Fiber* current = nullptr;
    int threads = 0, alive = 0, at_barrier = 0;
    int votes = 0, last_votes = 0;
    const Fiber* first_at_barrier = nullptr;
    const std::function<void()>* body = nullptr;
    std::string fault;
    Order order;
    std::vector<int> blocks, warp_turns, lane_turns;
};
Machine machine;

bool same(const Site& a, const Site& b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }

std::string to_string(const uint3& place) {
    return "(" + std::to_string(place.x) + ", " + std::to_string(place.y) + ", " + std::to_string(place.z) + ")";
}

std::string in_hex(unsigned mask) {
    char text[16];
    std::snprintf(text, sizeof text, "0x%08x", mask);
    return text;
}

Warp& warp_of(const Fiber& fiber) { return machine.warps[fiber.number / kLanes]; }

Fiber& fiber_at(int number) { return *machine.fibers[static_cast<std::size_t>(number)]; }

void complete(Warp& warp, int first, Meeting& meeting) {
    std::uint64_t* result = warp.results[warp.next_result];
    warp.next_result = (warp.next_result + 1) % kResults;
    std::memcpy(result, meeting.brought, sizeof meeting.brought);
    for (int lane = 0; lane < kLanes; ++lane) {
        if (!(meeting.arrived >> lane & 1u)) continue;
        Fiber& fiber = fiber_at(first + lane);
        fiber.result = result;
        fiber.state = State::ready;
    }
    meeting.arrived = 0;
}

// A thread that has returned is waited for no longer.
void retire(Fiber& fiber) {
    fiber.state = State::gone;
    --machine.alive;
    Warp& warp = warp_of(fiber);
    warp.alive &= ~(1u << fiber.number % kLanes);
    for (Meeting& meeting : warp.meetings)
        if (meeting.arrived != 0 && meeting.arrived == (meeting.mask & warp.alive))
            complete(warp, fiber.number / kLanes * kLanes, meeting);
}

void yield() { machine.current->stack.leave(); }

// One body after the other; the stack is kept from block to block and from kernel to kernel.
void live() {
    for (;;) {
        try {
            (*machine.body)();
        } catch (const std::exception& error) {
            machine.fault = std::string("a kernel threw an exception: ") + error.what();
        }
        retire(*machine.current);
        machine.current->begun = true;
        yield();
    }
}

void resume(Fiber& fiber) {
    machine.current = &fiber;
    thread_index = fiber.index;
    if (!fiber.begun) {
        fiber.stack.begin(live);
        fiber.begun = true;
    }
    fiber.stack.resume();
}

// Lanes of one warp that can run do so until none can; in random order about half of them do, once. Returns whether
// any could.
bool run_warp(int warp) {
    Order& order = machine.order;
    bool any = false;
    for (bool moved = true; moved;) {
        moved = false;
        order.fill(machine.lane_turns, std::min(kLanes, machine.threads - warp * kLanes));
        for (int lane : machine.lane_turns) {
            Fiber& fiber = fiber_at(warp * kLanes + lane);
            if (fiber.state != State::ready) continue;
            moved = any = true;
            if (order.random && order.dice() % 2 == 0) continue;
            resume(fiber);
            if (!machine.fault.empty()) return true;
        }
        if (order.random) break;
    }
    return any;
}

void open_barrier() {
    machine.last_votes = machine.votes;
    machine.votes = machine.at_barrier = 0;
    for (int i = 0; i < machine.threads; ++i)
        if (fiber_at(i).state == State::at_barrier) fiber_at(i).state = State::ready;
}

// Who waits where, when nobody can go on.
std::string describe_deadlock() {
    std::string text = "threads wait for each other for ever:";
    int returned = 0;
    std::vector<const Fiber*> seen;
    for (int i = 0; i < machine.threads; ++i) {
        const Fiber& fiber = fiber_at(i);
        if (fiber.state == State::gone) ++returned;
        const auto alike = [&](const Fiber* other) {
            return other->state == fiber.state && same(other->site, fiber.site) && other->mask == fiber.mask;
        };
        if (fiber.state == State::gone || std::any_of(seen.begin(), seen.end(), alike) || seen.size() == 4) continue;
        seen.push_back(&fiber);
        const bool barrier = fiber.state == State::at_barrier;
        text += " thread " + to_string(fiber.index) + (barrier ? " at the barrier" : " in the warp operation") +
                " of " + to_string(fiber.site) + (barrier ? "," : " with mask " + in_hex(fiber.mask) + ",");
    }
    return text + " " + std::to_string(returned) + " of " + std::to_string(machine.threads) + " have returned";
}

void prepare_block(dim3 block) {
    machine.threads = machine.alive = static_cast<int>(block.x * block.y * block.z);
    machine.at_barrier = machine.votes = 0;
    while (static_cast<int>(machine.fibers.size()) < machine.threads)
        machine.fibers.push_back(std::make_unique<Fiber>());
    for (int w = 0; w * kLanes < machine.threads; ++w) {
        const int lanes = std::min(kLanes, machine.threads - w * kLanes);
        machine.warps[w].alive = lanes == kLanes ? ~0u : (1u << lanes) - 1u;
        for (Meeting& meeting : machine.warps[w].meetings) meeting.arrived = 0;
    }
    for (int i = 0; i < machine.threads; ++i) {
        Fiber& fiber = fiber_at(i);
        const unsigned n = static_cast<unsigned>(i);
        fiber.index = {n % block.x, n / block.x % block.y, n / (block.x * block.y)};
        fiber.number = i;
        fiber.state = State::ready;
    }
}

// What a block finds in shared memory is unspecified; here it is not a number, or what another block has left.
void spoil_shared_memory() {
    if (__start_mien_shared != nullptr)
        std::memset(__start_mien_shared, 0xff, static_cast<std::size_t>(__stop_mien_shared - __start_mien_shared));
}

void run_block(dim3 block) {
    prepare_block(block);
    const int warps = (machine.threads + kLanes - 1) / kLanes;
    while (machine.alive > 0) {
        bool moved = false;
        machine.order.fill(machine.warp_turns, warps);
        for (int warp : machine.warp_turns) {
            moved = run_warp(warp) || moved;
            if (!machine.fault.empty()) return;
        }
        if (machine.alive > 0 && machine.at_barrier == machine.alive) {
            open_barrier();
        } else if (!moved && machine.alive > 0) {
            machine.fault = describe_deadlock();
            return;
        }
    }
}

Order wished_order() {
    Order order;
    const char* wish = std::getenv("MIEN_EMULATION_ORDER");
    const std::string text = wish == nullptr || *wish == '\0' ? "forward" : wish;
    order.reverse = text == "reverse";
    order.random = !order.reverse && text != "forward";
    if (order.random) order.dice.seed(std::strtoull(text.c_str(), nullptr, 10));
    return order;
}

}  // namespace

std::string to_string(const Site& site) {
    const char* name = std::strrchr(site.file, '/');
    return std::string(name == nullptr ? site.file : name + 1) + ":" + std::to_string(site.line);
}

std::string run_grid(dim3 grid, dim3 block, const std::function<void()>& body, const Site& site) {
    machine.body = &body;
    machine.fault.clear();
    machine.order = wished_order();
    grid_size = grid;
    block_size = block;
    machine.order.fill(machine.blocks, static_cast<int>(grid.x * grid.y * grid.z));
    for (int b : machine.blocks) {
        if (b % kBlocksPerSpoiling == 0) spoil_shared_memory();
        const unsigned n = static_cast<unsigned>(b);
        block_index = {n % grid.x, n / grid.x % grid.y, n / (grid.x * grid.y)};
        run_block(block);
        if (machine.fault.empty()) continue;
        for (const auto& fiber : machine.fibers)  // wherever they stand, they never go on from there
            if (fiber->state != State::gone) fiber->begun = false;
        return "kernel launched in " + to_string(site) + ", block " + to_string(block_index) + ": " + machine.fault;
    }
    return "";
}

int lane() { return machine.current->number % kLanes; }

void fail(const std::string& what) {
    machine.fault = "thread " + to_string(machine.current->index) + " " + what;
    yield();
    std::abort();  // its turn never comes again
}

int barrier(bool value, const Site& site) {
    Fiber& self = *machine.current;
    if (machine.at_barrier == 0) {
        machine.first_at_barrier = &self;
    } else if (!same(machine.first_at_barrier->site, site)) {
        fail("is at the barrier of " + to_string(site) + " while others wait at the one of " +
             to_string(machine.first_at_barrier->site));
    }
    self.site = site;
    self.state = State::at_barrier;
    machine.votes += value;
    ++machine.at_barrier;
    yield();
    return machine.last_votes;
}

const std::uint64_t* exchange(unsigned mask, std::uint64_t value, const Site& site) {
    Fiber& self = *machine.current;
    Warp& warp = warp_of(self);
    const int mine = lane();
    if (!(mask >> mine & 1u))
        fail("is not in the mask " + in_hex(mask) + " of its warp operation in " + to_string(site));
    Meeting& meeting = warp.meetings[__builtin_ctz(mask)];
    if (meeting.arrived == 0) {
        meeting.mask = mask;
        meeting.site = site;
        std::memset(meeting.brought, 0xff, sizeof meeting.brought);
    } else if (meeting.mask != mask || !same(meeting.site, site)) {
        fail("is in the warp operation of " + to_string(site) + " with mask " + in_hex(mask) +
             " while other lanes are in the one of " + to_string(meeting.site) + " with mask " + in_hex(meeting.mask));
    }
    meeting.brought[mine] = value;
    meeting.arrived |= 1u << mine;
    self.site = site;
    self.mask = mask;
    if ((mask & warp.alive) == 1u << mine) {  // alone
        meeting.arrived = 0;
        return meeting.brought;
    }
    if (meeting.arrived == (mask & warp.alive)) {
        complete(warp, self.number - mine, meeting);
        return self.result;
    }
    self.state = State::in_warp;
    yield();
    return self.result;
}

}  // namespace emulation
}  // namespace cuda
}  // namespace mien

// Blocks of rows on several threads, for a call that comes once in a while: threads are started and joined, none is
// kept.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace knn {

// Calls body(block) once for every block in [0, blocks), on at most `threads` threads. The body must not throw, and
// what it writes must depend on the block alone.
template <class Body>
void for_blocks(std::int64_t blocks, int threads, const Body& body) {
    std::atomic<std::int64_t> next{0};
    const auto work = [&] {
        for (std::int64_t block; (block = next.fetch_add(1)) < blocks;) body(block);
    };
    std::vector<std::thread> helpers;
    helpers.reserve(static_cast<std::size_t>(std::max(threads, 1)));
    for (std::int64_t i = 1; i < std::min<std::int64_t>(threads, blocks); ++i) {
        try {
            helpers.emplace_back(work);
        } catch (const std::exception&) {
            break;  // no thread or no memory for one to be had: the others do its share
        }
    }
    work();
    for (std::thread& helper : helpers) helper.join();
}

}  // namespace knn

// A small thread pool. Waiting threads look out for some microseconds, then sleep: a spinning barrier costs 2-50x when
// another job shares the cores.
#pragma once

#include <cstdint>
#include <functional>

namespace mien {

// Calls `body(block, worker)` once for every block in [0, blocks), on at most `threads` threads, worker in [0,
// threads). Blocks are handed out in ascending order, so put the heavy ones first. Which worker gets which block is not
// determined: a deterministic result must depend on the block alone. Runs on the calling thread if threads <= 1, if
// there is one block, or if the pool is in use (nested or concurrent call). Rethrows the first exception of a body.
void parallel_for(int threads, int64_t blocks, const std::function<void(int64_t block, int worker)>& body);

// The number of threads to make room for when a caller asks for `threads`. Throws InvalidArgument unless it is
// positive.
int checked_threads(int threads);

// CPUs that this process may use (its affinity mask); at least 1.
int usable_cpus();

}  // namespace mien

#include "parallel.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "api.h"

#if defined(__linux__)
#include <sched.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace mien {

namespace {

constexpr int kMaxThreads = 256;
constexpr int kSpins = 300;  // looks for the next job before a worker sleeps: some 10 us, a fifth of what waking costs

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// One parallel_for at a time. Lives until the process ends: worker threads may outlive static destruction.
class Pool {
public:
    bool try_run(int threads, int64_t blocks, const std::function<void(int64_t, int)>& body) {
        std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
        if (!owner.owns_lock()) return false;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            grow(threads - 1);
            body_ = &body;
            blocks_ = blocks;
            next_.store(0, std::memory_order_relaxed);
            error_ = nullptr;
            wanted_ = static_cast<int>(workers_.size()) < threads - 1 ? static_cast<int>(workers_.size()) : threads - 1;
            open_ = true;
            generation_.fetch_add(1, std::memory_order_release);
        }
        // Not all of them: once a call has asked for many threads, waking the others would cost every later call.
        for (int i = 0; i < wanted_; ++i) wakes_[static_cast<std::size_t>(i)].notify_one();
        work(0);
        // A worker that has not come by now (its core may be another job's) is not waited for: nothing is left for it.
        std::unique_lock<std::mutex> lock(mutex_);
        open_ = false;
        done_.wait(lock, [this] { return working_ == 0; });
        body_ = nullptr;
        if (error_) std::rethrow_exception(error_);
        return true;
    }

private:
    // Up to `count` workers; where the system gives no more threads, those that are there do the work.
    void grow(int count) {
        while (static_cast<int>(workers_.size()) < count) {
            const int index = static_cast<int>(workers_.size()) + 1;
            const uint64_t seen = generation_;
            if (static_cast<int>(wakes_.size()) < index) wakes_.emplace_back();
            try {
                workers_.emplace_back([this, index, seen] { serve(index, seen); });
            } catch (const std::system_error&) {
                return;
            }
        }
    }

    void serve(int index, uint64_t seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        std::condition_variable& wake = wakes_[static_cast<std::size_t>(index) - 1];
        for (;;) {
            lock.unlock();
            for (int i = 0; i < kSpins && generation_.load(std::memory_order_acquire) == seen; ++i) relax();
            lock.lock();
            wake.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
            seen = generation_.load(std::memory_order_relaxed);
            if (!open_ || index > wanted_) continue;
            ++working_;
            lock.unlock();
            work(index);
            lock.lock();
            if (--working_ == 0 && !open_) done_.notify_one();
        }
    }

    void work(int worker) {
        try {
            for (int64_t block; (block = next_.fetch_add(1, std::memory_order_relaxed)) < blocks_;)
                (*body_)(block, worker);
        } catch (...) {
            next_.store(blocks_, std::memory_order_relaxed);
            std::lock_guard<std::mutex> lock(mutex_);
            if (!error_) error_ = std::current_exception();
        }
    }

    std::mutex owner_, mutex_;
    std::deque<std::condition_variable> wakes_;  // of every worker; they stay where they are
    std::condition_variable done_;
    std::vector<std::thread> workers_;
    const std::function<void(int64_t, int)>* body_ = nullptr;
    std::atomic<int64_t> next_{0};
    int64_t blocks_ = 0;
    int wanted_ = 0, working_ = 0;
    bool open_ = false;  // to workers that come
    std::atomic<uint64_t> generation_{0};
    std::exception_ptr error_;
};

Pool* pool_instance = nullptr;
std::mutex pool_guard;

#if !defined(_WIN32)
// A forked child (a data loader, say) has none of the threads: it starts with a new pool. The lock is held meanwhile,
// for in the child nobody else could open it.
void before_fork() { pool_guard.lock(); }
void after_fork() { pool_guard.unlock(); }
void in_child() {
    pool_instance = nullptr;
    pool_guard.unlock();
}
[[maybe_unused]] const int registered = pthread_atfork(before_fork, after_fork, in_child);
#endif

Pool& pool() {
    std::lock_guard<std::mutex> lock(pool_guard);
    if (pool_instance == nullptr) pool_instance = new Pool;
    return *pool_instance;
}

}  // namespace

void parallel_for(int threads, int64_t blocks, const std::function<void(int64_t, int)>& body) {
    if (threads > kMaxThreads) threads = kMaxThreads;
    if (blocks < threads) threads = static_cast<int>(blocks);
    if (threads > 1 && pool().try_run(threads, blocks, body)) return;
    for (int64_t block = 0; block < blocks; ++block) body(block, 0);
}

int checked_threads(int threads) {
    require(threads > 0, "threads must be positive");
    return threads < kMaxThreads ? threads : kMaxThreads;
}

int usable_cpus() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set) > 0 ? CPU_COUNT(&set) : 1;
#endif
    const unsigned count = std::thread::hardware_concurrency();
    return count > 0 ? static_cast<int>(count) : 1;
}

}  // namespace mien

// CPUs that this process may use.
MIEN_API int mien_usable_cpus() { return mien::usable_cpus(); }

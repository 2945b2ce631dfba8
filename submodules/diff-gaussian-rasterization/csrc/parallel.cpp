#include "parallel.h"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
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
            running_ = wanted_;
            ++generation_;
        }
        wake_.notify_all();
        work(0);
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return running_ == 0; });
        body_ = nullptr;
        if (error_) std::rethrow_exception(error_);
        return true;
    }

private:
    void grow(int count) {
        while (static_cast<int>(workers_.size()) < count) {
            const int index = static_cast<int>(workers_.size()) + 1;
            const uint64_t seen = generation_;
            workers_.emplace_back([this, index, seen] { serve(index, seen); });
        }
    }

    void serve(int index, uint64_t seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return generation_ != seen; });
            seen = generation_;
            if (index > wanted_) continue;
            lock.unlock();
            work(index);
            lock.lock();
            if (--running_ == 0) done_.notify_one();
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
    std::condition_variable wake_, done_;
    std::vector<std::thread> workers_;
    const std::function<void(int64_t, int)>* body_ = nullptr;
    std::atomic<int64_t> next_{0};
    int64_t blocks_ = 0;
    int wanted_ = 0, running_ = 0;
    uint64_t generation_ = 0;
    std::exception_ptr error_;
};

Pool* pool_instance = nullptr;
std::mutex pool_guard;

Pool& pool() {
    std::lock_guard<std::mutex> lock(pool_guard);
    if (pool_instance == nullptr) {
        pool_instance = new Pool;
#if !defined(_WIN32)
        // A forked child (a data loader, say) has none of the threads: it starts with a new pool.
        static const int registered = pthread_atfork(nullptr, nullptr, [] { pool_instance = nullptr; });
        (void)registered;
#endif
    }
    return *pool_instance;
}

}  // namespace

void parallel_for(int threads, int64_t blocks, const std::function<void(int64_t, int)>& body) {
    if (threads > kMaxThreads) threads = kMaxThreads;
    if (blocks < threads) threads = static_cast<int>(blocks);
    if (threads > 1 && pool().try_run(threads, blocks, body)) return;
    for (int64_t block = 0; block < blocks; ++block) body(block, 0);
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

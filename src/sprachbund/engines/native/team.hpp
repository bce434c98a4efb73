// Threads that work on one call together: woken once per call, in step with each other by barriers, soon asleep between
// calls. The caller is one of them. A forked process has the object but not the threads: it starts its own.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace sprachbund {

inline void pause_briefly() {
#if defined(__x86_64__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

inline int process() {
#if defined(_WIN32)
    return 1;  // no process is forked there
#else
    return getpid();
#endif
}

// Lets one thread in at a time, and that thread again inside its own call. In a forked process it is open: the thread
// that held it is not there.
class CallLock {
  public:
    void lock() {
        const int here = process(), renewing = -here;
        for (int before = owner_.load(); before != here; before = owner_.load()) {
            if (before != renewing && owner_.compare_exchange_strong(before, renewing)) {
                new (&mutex_) std::recursive_mutex;
                owner_.store(here);
                break;
            }
            std::this_thread::yield();  // another thread of this process renews it
        }
        mutex_.lock();
    }

    void unlock() { mutex_.unlock(); }

  private:
    std::recursive_mutex mutex_;
    std::atomic<int> owner_{process()};  // the process whose threads may hold it; its negative while it is renewed
};

using OneCall = std::lock_guard<CallLock>;

struct Range {
    int64_t begin, end;
};

class Team {
  public:
    explicit Team(int size) : size_(size), owner_(process()) {
        if (size < 1) throw std::invalid_argument("a team needs one thread at least");
        start();
    }

    ~Team() {
        if (process() != owner_) {
            leave_behind();
            return;
        }
        stop();
    }

    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return size_; }

    // Calls work(i) for i of 0 .. size - 1, each in its thread; returns when all are done. One call at a time. `work` does
    // not throw, so it makes no room in memory: nobody would catch it, and the others would wait at their barrier.
    void run(const std::function<void(int)>& work) {
        OneCall one_call(calls_);
        if (process() != owner_) start_again();
        {
            std::lock_guard<std::mutex> lock(mutex_);
            work_ = &work;
            round_++;
        }
        if (size_ > 1) wake_->notify_all();
        work(0);
        barrier();
    }

    // Nobody goes on before all are here. Spins, since the wait is short; yields when it is not.
    void barrier() {
        if (size_ == 1) return;
        uint64_t phase = phase_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; spins++) {
            spins < kSpins ? pause_briefly() : std::this_thread::yield();
        }
    }

    // The part of `count` that is thread i's, in whole multiples of `unit`.
    Range share(int i, int64_t count, int64_t unit = 1) const {
        int64_t units = (count + unit - 1) / unit;
        int64_t begin = units * i / size_ * unit, end = units * (i + 1) / size_ * unit;
        return {begin < count ? begin : count, end < count ? end : count};
    }

  private:
    // How often a thread looks for work before it sleeps: first without giving up its core, then giving it to any other
    // that waits for one, for half a millisecond and more. Searches from Python call again by then, and waking takes long.
    static constexpr int kSpins = 2000, kYields = 1000;

    void start() {
        try {
            for (int i = 1; i < size_; i++) threads_.emplace_back([this, i] { wait_for_work(i); });
        } catch (...) {  // the system gives no more threads; those there are must not be left running
            stop();
            throw;
        }
    }

    // In a forked process, by the first call; by the next one again where the system gave this one no threads.
    void start_again() {
        leave_behind();
        new (&mutex_) std::mutex;  // whoever held it is not in this process
        wake_ = std::make_unique<std::condition_variable>();
        round_ = phase_ = 0;
        arrived_ = 0;
        try {
            start();
        } catch (...) {
            threads_.clear();
            stopping_ = false;
            throw;
        }
        owner_ = process();
    }

    // Lets go of the threads of the process that this one was forked from. They are not detached: other threads may
    // have got their memory since. So a list of a few bytes is never freed.
    void leave_behind() {
        (void)new std::vector<std::thread>(std::move(threads_));
        threads_.clear();
        (void)wake_.release();  // destroying it would wait for those threads
    }

    void stop() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stopping_ = true;
            round_++;
        }
        wake_->notify_all();
        for (auto& thread : threads_) thread.join();
    }

    void wait_for_work(int i) {
        uint64_t seen = 0;
        while (true) {
            for (int spins = 0; round_.load(std::memory_order_acquire) == seen && spins < kSpins + kYields; spins++) {
                spins < kSpins ? pause_briefly() : std::this_thread::yield();
            }
            const std::function<void(int)>* work;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_->wait(lock, [&] { return round_.load(std::memory_order_relaxed) != seen; });
                if (stopping_) return;
                seen = round_.load(std::memory_order_relaxed);
                work = work_;
            }
            (*work)(i);
            barrier();
        }
    }

    const int size_;
    int owner_;  // the process that has the threads
    std::vector<std::thread> threads_;
    CallLock calls_;
    std::mutex mutex_;
    std::unique_ptr<std::condition_variable> wake_ = std::make_unique<std::condition_variable>();
    std::atomic<uint64_t> round_{0}, phase_{0};
    std::atomic<int> arrived_{0};
    const std::function<void(int)>* work_ = nullptr;
    bool stopping_ = false;
};

}  // namespace sprachbund

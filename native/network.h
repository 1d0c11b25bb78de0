// A network ready to run: its steps in order, an arena per thread, and threads that sleep until they are needed.
#pragma once
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "steps.h"

namespace synaptree {

struct Arena {
    char* start;
    int64_t bytes;
    explicit Arena(int64_t wanted);
    Arena(const Arena&) = delete;
    ~Arena();
};

// Threads that wait for work without using the processor.
class Crew {
public:
    explicit Crew(int threads);  // the caller's own included
    ~Crew();
    // Whether this is another process than the one it was made in, where its threads are not.
    bool forked() const;
    // Threads that are there: in a forked process the caller's alone.
    int size() const { return forked() ? 1 : int(threads_.size()) + 1; }
    // Calls work(thread) once on every thread, and returns when all are done.
    void run(const std::function<void(int)>& work);

private:
    void wait_for_work(int thread);

    std::vector<std::thread> threads_;
    std::mutex mutex_;
    std::condition_variable started_, done_;
    const std::function<void(int)>* work_ = nullptr;
    int64_t turn_ = 0;
    int left_ = 0;
    const int64_t process_;
    bool over_ = false;
};

// Lets go of a crew; in a forked process it stays as it is, for there is nobody to wait for.
struct Dismiss {
    void operator()(Crew* crew) const {
        if (!crew->forked()) delete crew;
    }
};

class Network {
public:
    // Steps marked in `shared` are long enough for their chunks to be worth sharing out among threads.
    Network(std::vector<Step> steps, std::vector<bool> shared, int64_t arena_bytes, int64_t lanes, int64_t x_features,
            int64_t y_features, int threads);

    void run(const float* x, float* y, int64_t samples);
    int64_t bytes() const;

private:
    void run_block(const Frame& frame) const;
    void run_block_together(const Frame& frame);
    Frame frame(int thread, const float* x, float* y, int64_t samples, int64_t block) const;

    std::vector<Step> steps_;
    std::vector<bool> shared_;
    int64_t lanes_, x_features_, y_features_;
    std::vector<std::unique_ptr<Arena>> arenas_;
    std::unique_ptr<Crew, Dismiss> crew_;
};

}  // namespace synaptree

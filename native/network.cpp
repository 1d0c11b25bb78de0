#include "network.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace synaptree {

Arena::Arena(int64_t wanted) : bytes((std::max<int64_t>(wanted, 64) + 63) / 64 * 64) {
    start = static_cast<char*>(std::aligned_alloc(64, size_t(bytes)));
    if (!start) throw std::bad_alloc();
    std::memset(start, 0, size_t(bytes));
}

Arena::~Arena() { std::free(start); }

static int64_t process() {
#if defined(_WIN32)
    return 0;
#else
    return getpid();
#endif
}

Crew::Crew(int threads) : process_(process()) {
    for (int thread = 1; thread < threads; thread++) threads_.emplace_back([this, thread] { wait_for_work(thread); });
}

bool Crew::forked() const { return process() != process_; }

Crew::~Crew() {
    {
        const std::lock_guard lock(mutex_);
        over_ = true;
    }
    started_.notify_all();
    for (auto& thread : threads_) thread.join();
}

void Crew::run(const std::function<void(int)>& work) {
    if (size() == 1) return work(0);
    {
        const std::lock_guard lock(mutex_);
        work_ = &work;
        left_ = int(threads_.size());
        turn_++;
    }
    started_.notify_all();
    work(0);
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return left_ == 0; });
}

void Crew::wait_for_work(int thread) {
    std::unique_lock lock(mutex_);
    for (int64_t seen = 0;;) {
        started_.wait(lock, [&] { return over_ || turn_ != seen; });
        if (over_) return;
        seen = turn_;
        const auto* work = work_;
        lock.unlock();
        (*work)(thread);
        lock.lock();
        if (--left_ == 0) done_.notify_one();
    }
}

Network::Network(std::vector<Step> steps, std::vector<bool> shared, int64_t arena_bytes, int64_t lanes, int64_t x_features,
                 int64_t y_features, int threads)
    : steps_(std::move(steps)), shared_(std::move(shared)), lanes_(lanes), x_features_(x_features), y_features_(y_features) {
    if (threads < 1 || lanes < 1) throw std::invalid_argument("wanted at least one thread and one lane");
    if (shared_.size() != steps_.size()) throw std::invalid_argument("wanted as many marks as steps");
    for (const auto& step : steps_) {
        if (step.bytes > arena_bytes) throw std::invalid_argument("a step touches more bytes than the arena has");
        if ((step.reads && step.reads != x_features) || (step.writes && step.writes != y_features) || (step.most && step.most < lanes))
            throw std::invalid_argument("a step takes other samples than the network");
    }
    for (int thread = 0; thread < threads; thread++) arenas_.push_back(std::make_unique<Arena>(arena_bytes));
    if (threads > 1) crew_.reset(new Crew(threads));
}

int64_t Network::bytes() const { return int64_t(arenas_.size()) * arenas_[0]->bytes; }

Frame Network::frame(int thread, const float* x, float* y, int64_t samples, int64_t block) const {
    const int64_t first = block * lanes_;
    return {arenas_[size_t(thread)]->start, x + first * x_features_, y + first * y_features_, std::min(lanes_, samples - first)};
}

void Network::run(const float* x, float* y, int64_t samples) {
    const int64_t blocks = (samples + lanes_ - 1) / lanes_;
    if (crew_ && blocks > 1) {
        std::atomic<int64_t> next{0};
        crew_->run([&](int thread) {
            for (int64_t block; (block = next++) < blocks;) run_block(frame(thread, x, y, samples, block));
        });
        return;
    }
    for (int64_t block = 0; block < blocks; block++) {
        if (crew_)
            run_block_together(frame(0, x, y, samples, block));
        else
            run_block(frame(0, x, y, samples, block));
    }
}

void Network::run_block(const Frame& frame) const {
    for (const auto& step : steps_) step.run(frame);
}

void Network::run_block_together(const Frame& frame) {
    for (size_t i = 0; i < steps_.size(); i++) {
        const Step& step = steps_[i];
        if (!shared_[i] || step.chunks < 2) {
            step.run(frame);
            continue;
        }
        const int64_t threads = crew_->size(), chunks = step.chunks;
        crew_->run([&](int thread) {
            const auto first = int32_t(chunks * thread / threads), last = int32_t(chunks * (thread + 1) / threads);
            if (first < last) step.kernel(step.task.get(), frame, first, last);
        });
    }
}

}  // namespace synaptree

#include "engine/exec/executor.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "engine/base/threads.h"

namespace tandem {
namespace {

double SteadySeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

const char* LaneName(Executor::Lane lane) {
  return lane == Executor::Lane::kServing ? "serving" : "training";
}

}  // namespace

Executor::Executor(int64_t queue_limit, int threads, Clock clock)
    : queue_limit_(queue_limit), clock_(clock ? std::move(clock) : Clock(SteadySeconds)) {
  thread_ = std::thread([this, threads] { Loop(threads); });
}

Executor::~Executor() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

absl::Status Executor::Submit(Lane lane, std::function<void()> task) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    LaneState& state = lanes_[static_cast<int>(lane)];
    const LaneState& other = lanes_[1 - static_cast<int>(lane)];
    if (stopping_) return absl::UnavailableError("the server is stopping");
    if (static_cast<int64_t>(state.tasks.size()) >= queue_limit_) {
      return ResourceExhausted("the ", LaneName(lane), " queue is full: ", queue_limit_,
                               " requests are waiting; try again later");
    }
    // A lane that was idle starts level with the other one: idleness earns no credit. One whose
    // task runs right now and submits the next was not idle.
    if (state.tasks.empty() && running_ != static_cast<int>(lane)) {
      state.virtual_time = std::max(state.virtual_time, other.virtual_time);
    }
    state.tasks.push_back(std::move(task));
  }
  wake_.notify_one();
  return absl::OkStatus();
}

absl::Status Executor::RunAndWait(Lane lane, const std::function<absl::Status()>& task) {
  std::mutex mutex;
  std::condition_variable done;
  bool finished = false;
  absl::Status result;
  TANDEM_RETURN_IF_ERROR(Submit(lane, [&] {
    absl::Status status = task();
    const std::lock_guard<std::mutex> lock(mutex);
    result = std::move(status);
    finished = true;
    done.notify_one();  // under the lock: the waiter may leave as soon as it sees `finished`
  }));
  std::unique_lock<std::mutex> lock(mutex);
  done.wait(lock, [&] { return finished; });
  return result;
}

int64_t Executor::QueueDepth(Lane lane) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int64_t>(lanes_[static_cast<int>(lane)].tasks.size());
}

double Executor::BusySeconds(Lane lane) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return lanes_[static_cast<int>(lane)].used;
}

void Executor::Loop(int threads) {
  if (threads > 0) SetThreadCount(threads);
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    wake_.wait(lock,
               [&] { return stopping_ || !lanes_[0].tasks.empty() || !lanes_[1].tasks.empty(); });
    int lane = lanes_[0].virtual_time <= lanes_[1].virtual_time ? 0 : 1;
    if (lanes_[lane].tasks.empty()) lane = 1 - lane;
    if (lanes_[lane].tasks.empty()) return;  // stopping, and all is done
    {
      std::function<void()> task = std::move(lanes_[lane].tasks.front());
      lanes_[lane].tasks.pop_front();
      running_ = lane;
      lock.unlock();
      const double begin = clock_();
      task();
      task = nullptr;  // what it captured is freed here, not under the lock
      const double seconds = clock_() - begin;
      lock.lock();
      running_ = -1;
      lanes_[lane].used += seconds;
      lanes_[lane].virtual_time += seconds;
    }
  }
}

}  // namespace tandem

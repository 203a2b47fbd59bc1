// Executor: the one thread that computes.
//
// Everything that reads or writes weights, plans or caches runs here, so none of it needs a lock.
// Two lanes share the thread: kServing (forward passes, decode steps, scoring) and kTraining
// (micro-batches, optimizer steps). While both have work they alternate by time used, so neither
// starves: a task of one lane waits for at most the task that runs now, those of its own lane
// before it, and about as much time of the other lane as its own lane takes.
//
// Bound: `queue_limit` waiting tasks a lane; Submit then says RESOURCE_EXHAUSTED at once.
// Lock contract: one mutex guards the two queues; no task runs under it. Submit is thread-safe and
// may be called from a task. Tasks must not throw.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "engine/base/error.h"

namespace tandem {

class Executor {
 public:
  enum class Lane : uint8_t { kServing, kTraining };
  using Clock = std::function<double()>;  // seconds, monotonic

  // `threads`: the OpenMP team of the compute thread; 0: the cores.
  explicit Executor(int64_t queue_limit, int threads = 0, Clock clock = nullptr);
  // Drains: runs what is queued, then joins.
  ~Executor();

  absl::Status Submit(Lane lane, std::function<void()> task);
  // Submits and waits for the task's result. Not from a task.
  absl::Status RunAndWait(Lane lane, const std::function<absl::Status()>& task);

  int64_t QueueDepth(Lane lane) const;
  // Compute time used so far by a lane, in seconds.
  double BusySeconds(Lane lane) const;

 private:
  struct LaneState {
    std::deque<std::function<void()>> tasks;
    double used = 0;          // seconds of compute
    double virtual_time = 0;  // used, raised on waking so that idleness earns no credit
  };
  void Loop(int threads);

  const int64_t queue_limit_;
  const Clock clock_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  LaneState lanes_[2];     // guarded by mutex_
  int running_ = -1;       // the lane of the running task; guarded by mutex_
  bool stopping_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace tandem

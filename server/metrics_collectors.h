// Values that are read when Prometheus asks: the executor's, and the process's from /proc.
#pragma once

#include <prometheus/collectable.h>

#include <mutex>
#include <vector>

namespace tandem {
class Executor;
}

namespace tandem::server {

// tandem_queue_depth{lane} and tandem_compute_seconds_total{lane}.
class ExecutorCollector final : public prometheus::Collectable {
 public:
  void Watch(const Executor* executor);
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  mutable std::mutex mutex_;  // held while collecting, so that Watch(null) waits for a reader
  const Executor* executor_ = nullptr;
};

// The conventional process_* metrics.
class ProcessCollector final : public prometheus::Collectable {
 public:
  std::vector<prometheus::MetricFamily> Collect() const override;
};

}  // namespace tandem::server

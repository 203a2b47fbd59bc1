// Prometheus metrics, and the port that shows them. The only header of the metrics library's that
// the rest of the server needs: nothing else includes Prometheus.
//
// All methods are thread-safe and cheap enough for every request: series are looked up once and
// kept. The port has threads of its own, none of gRPC's.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace prometheus {
class Counter;
class Exposer;
class Gauge;
class Histogram;
class Registry;
}  // namespace prometheus

namespace tandem {
class Executor;
}

namespace tandem::server {

struct MetricFamilies;
class ExecutorCollector;
class ProcessCollector;

// One RPC method. Every call that is accepted is counted exactly once, however it ends.
class MethodMetrics {
 public:
  MethodMetrics(MetricFamilies& families, std::string method);
  void Started();
  void Finished(absl::StatusCode code, double seconds);

 private:
  MetricFamilies& families_;
  const std::string method_;
  prometheus::Gauge* in_flight_;
  prometheus::Histogram* duration_;
  std::array<std::atomic<prometheus::Counter*>, 17> by_code_{};  // made when a code first occurs
};

// One loaded model. Its series go when the last user does, so that names made up by clients do not
// pile up.
class ModelMetrics {
 public:
  enum class Finish : uint8_t { kStop, kLength, kCancelled, kError };
  struct TrainStep {
    double seconds = 0, loss = 0, grad_norm = 0, learning_rate = 0, loss_scale = 1;
    int64_t tokens = 0;
    bool skipped = false;
  };

  ~ModelMetrics();
  void PromptTokens(int64_t count);
  void FirstToken(double seconds);
  void NextToken(double seconds);  // since the token before
  void GeneratedToken();
  void GenerationFinished(Finish finish);
  void KvCacheUsage(double ratio);
  void Trained(const TrainStep& step);
  void WeightsVersion(int64_t version);
  void Loaded(double seconds);

 private:
  friend class Metrics;
  struct Series;
  ModelMetrics(class Metrics& metrics, const std::string& model);

  class Metrics& metrics_;
  const std::string model_;
  std::unique_ptr<Series> series_;
};

class Metrics {
 public:
  enum class Phase : uint8_t { kForward, kBackward, kOptimizer, kSample };
  enum class Rejection : uint8_t { kQueueFull, kSlowReader };

  Metrics();
  ~Metrics();

  // Serves /metrics on "host:port"; port 0 picks one. Returns the port.
  absl::StatusOr<int> Listen(const std::string& address);
  // Shows the executor's queues and compute time until it is replaced; null for none.
  void Watch(const Executor* executor);

  // The method's metrics; they live as long as this.
  MethodMetrics& Method(const std::string& method);
  std::shared_ptr<ModelMetrics> Model(const std::string& model);

  void Queued(std::string_view lane, double seconds);
  void Computed(Phase phase, double seconds);
  void Rejected(Rejection reason);

  // What the port shows, in Prometheus' text format.
  std::string Text() const;

 private:
  friend class ModelMetrics;
  std::shared_ptr<prometheus::Registry> registry_;
  std::unique_ptr<MetricFamilies> families_;
  std::shared_ptr<ExecutorCollector> executor_collector_;
  std::shared_ptr<ProcessCollector> process_collector_;
  std::unique_ptr<prometheus::Exposer> exposer_;
  std::mutex mutex_;  // guards the two maps
  std::map<std::string, std::unique_ptr<MethodMetrics>> methods_;
  std::map<std::string, std::weak_ptr<ModelMetrics>> models_;
};

}  // namespace tandem::server

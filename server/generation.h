// Drives one model's Generator: one Step() a serving-lane task, as long as there is work, so that
// decode steps take turns with every other call and with training.
//
// All methods run on the compute thread, and no callback may call them. Owned by a shared_ptr,
// since a step that is queued must outlive an unloaded model.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "engine/sample/generator.h"

namespace tandem {
class Executor;
}

namespace tandem::server {

class Metrics;
class ModelMetrics;

class Generation : public std::enable_shared_from_this<Generation> {
 public:
  using Callback = Generator::TokenCallback;

  Generation(std::unique_ptr<Generator> generator, Executor& compute, Metrics& metrics,
             std::shared_ptr<ModelMetrics> model_metrics);

  // As Generator::Add. Where no step can be queued, the callback is told before this returns.
  absl::StatusOr<int64_t> Add(std::vector<int32_t> prompt, SamplingOptions options,
                              Callback callback);
  // Frees the sequence; its callback is not called any more. Unknown ids are ignored.
  void Cancel(int64_t id);
  // Ends every sequence, telling each callback why. None can be added afterwards.
  void Close(const absl::Status& why);

 private:
  struct Sequence {
    int64_t generator_id = 0;
    Callback callback;
  };

  bool Deliver(int64_t id, const absl::Status& status, const SampledToken& token);
  void EndAll(const absl::Status& why);
  void Schedule();
  void Step();
  void ShowUsage();

  const std::unique_ptr<Generator> generator_;
  Executor& compute_;
  Metrics& metrics_;
  const std::shared_ptr<ModelMetrics> model_metrics_;
  std::map<int64_t, Sequence> sequences_;
  int64_t next_id_ = 1;
  bool scheduled_ = false;
  absl::Status closed_;  // not OK: why
};

}  // namespace tandem::server

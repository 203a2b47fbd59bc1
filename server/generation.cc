#include "server/generation.h"

#include <chrono>
#include <utility>

#include "engine/exec/executor.h"
#include "server/memory_guard.h"
#include "server/metrics.h"

namespace tandem::server {

Generation::Generation(std::unique_ptr<Generator> generator, Executor& compute, Metrics& metrics,
                       std::shared_ptr<ModelMetrics> model_metrics)
    : generator_(std::move(generator)),
      compute_(compute),
      metrics_(metrics),
      model_metrics_(std::move(model_metrics)) {}

absl::StatusOr<int64_t> Generation::Add(std::vector<int32_t> prompt, SamplingOptions options,
                                        Callback callback) {
  TANDEM_RETURN_IF_ERROR(closed_);
  const int64_t id = next_id_++;
  TANDEM_ASSIGN_OR_RETURN(
      const int64_t generator_id,
      generator_->Add(std::move(prompt), std::move(options),
                      [this, id](const absl::Status& status, const SampledToken& token) {
                        return Deliver(id, status, token);
                      }));
  sequences_[id] = {generator_id, std::move(callback)};
  Schedule();
  return id;
}

void Generation::Cancel(int64_t id) {
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) return;
  generator_->Cancel(it->second.generator_id);
  sequences_.erase(it);
  ShowUsage();
}

void Generation::Close(const absl::Status& why) {
  closed_ = why;
  EndAll(why);
}

void Generation::EndAll(const absl::Status& why) {
  for (auto& [id, sequence] : std::exchange(sequences_, {})) {
    generator_->Cancel(sequence.generator_id);
    sequence.callback(why, {});
  }
  ShowUsage();
}

bool Generation::Deliver(int64_t id, const absl::Status& status, const SampledToken& token) {
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) return false;
  const bool more = it->second.callback(status, token);
  if (!more || !status.ok() || token.finish != FinishReason::kNone) sequences_.erase(it);
  return more;
}

void Generation::Schedule() {
  if (scheduled_ || !generator_->HasWork()) return;
  const absl::Status status =
      compute_.Submit(Executor::Lane::kServing, [self = shared_from_this()] { self->Step(); });
  scheduled_ = status.ok();
  // Shutdown, or a queue beyond even the margin that is kept for work that has begun.
  if (!status.ok()) EndAll(status);
}

void Generation::Step() {
  scheduled_ = false;
  if (!generator_->HasWork()) return;
  const auto begin = std::chrono::steady_clock::now();
  const absl::Status status = CatchOutOfMemory([&] {
    generator_->Step();
    return absl::OkStatus();
  });
  if (!status.ok()) EndAll(status);
  metrics_.Computed(
      Metrics::Phase::kSample,
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  ShowUsage();
  Schedule();
}

void Generation::ShowUsage() {
  const Generator::Statistics statistics = generator_->statistics();
  if (statistics.cache_pages == 0) return;
  model_metrics_->KvCacheUsage(static_cast<double>(statistics.cache_pages_used) /
                               static_cast<double>(statistics.cache_pages));
}

}  // namespace tandem::server

// The messages of metrics of predictions, to and from the engine (see convert.h).
#pragma once

#include "engine/train/metrics.h"
#include "tandem/v1/metrics.pb.h"

namespace tandem::server {

// What one request asks for, ready to compute: the tensors are read, enumerations known; shapes and
// values are checked as they are evaluated.
struct PredictionsTask {
  Tensor predictions, truth;  // classes: targets; labels: labels
  EvaluationOptions options;
  v1::EvaluatePredictionsRequest::TaskCase task;
  std::vector<int64_t> top_k;
  double threshold = 0.5;
  std::vector<int64_t> lengths;
  std::vector<std::vector<Tokens>> references;
  BleuOptions bleu;
};
absl::StatusOr<PredictionsTask> FromProto(const v1::EvaluatePredictionsRequest& request);
// On the compute thread.
absl::StatusOr<MetricReport> EvaluateTask(const PredictionsTask& task, PlanCache& plans);
void ToProto(const MetricReport& report, v1::EvaluatePredictionsResponse* out);

}  // namespace tandem::server

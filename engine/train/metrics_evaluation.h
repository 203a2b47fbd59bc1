// What the evaluations of predictions share; see metrics.h.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "engine/train/metrics.h"

namespace tandem {

const char* MetricName(Metric metric);

enum class Activation : uint8_t { kSoftmax, kSigmoid };

// The predictions as f32 (rows, columns), checked: floating, finite and, where they are
// probabilities, within [0, 1] and (softmax) of rows that sum to 1. At least one row and one
// column; scaled by the temperature they stay within f32.
absl::StatusOr<Tensor> CheckedPredictions(const Tensor& predictions, Activation activation,
                                          const EvaluationOptions& options);

// What a graph of smooth metrics computes: a scalar for each value of the report that has a smooth
// version, in order, and outputs besides.
struct SmoothMetrics {
  std::vector<Value> metrics, others;
};
using BuildMetrics =
    std::function<SmoothMetrics(Builder&, Value logits, const std::vector<Value>& inputs)>;
// Builds the metrics over logits (made from the predictions) and the further inputs, with the
// gradients that the options ask for, runs them, puts them into report->values, and returns the
// others. `key` names the graph apart from types and options, which are added.
absl::StatusOr<std::vector<Tensor>> RunSmooth(const std::string& key, const Tensor& predictions,
                                              const std::vector<const Tensor*>& inputs,
                                              Activation activation,
                                              const EvaluationOptions& options, PlanCache& plans,
                                              const BuildMetrics& build, MetricReport* report);

// INVALID_ARGUMENT if a gradient is asked for that is not among these.
absl::Status CheckGradients(const EvaluationOptions& options, std::span<const Metric> available);

// Exactly, as a part of a key.
std::string KeyOf(double value);

}  // namespace tandem

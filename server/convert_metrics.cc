#include "server/convert_metrics.h"

#include <utility>

#include "server/convert.h"

namespace tandem::server {
namespace {

using Request = v1::EvaluatePredictionsRequest;

struct MetricPair {
  Metric metric;
  v1::Metric wire;
};
constexpr MetricPair kMetrics[] = {{Metric::kAccuracy, v1::METRIC_ACCURACY},
                                   {Metric::kTopKAccuracy, v1::METRIC_TOP_K_ACCURACY},
                                   {Metric::kF1Micro, v1::METRIC_F1_MICRO},
                                   {Metric::kF1Macro, v1::METRIC_F1_MACRO},
                                   {Metric::kBleu, v1::METRIC_BLEU}};

absl::StatusOr<Metric> FromProto(int metric) {
  for (const MetricPair& pair : kMetrics) {
    if (pair.wire == metric) return pair.metric;
  }
  return InvalidArgument("gradients: ", metric, " is not a known Metric");
}

absl::StatusOr<bool> AreProbabilities(v1::PredictionKind kind) {
  switch (kind) {
    case v1::PREDICTION_KIND_UNSPECIFIED:
    case v1::PREDICTION_KIND_LOGITS:
      return false;
    case v1::PREDICTION_KIND_PROBABILITIES:
      return true;
    default:
      return InvalidArgument("kind ", static_cast<int>(kind), " is not a known PredictionKind");
  }
}

void TakeBleu(const v1::BleuTask& bleu, PredictionsTask* out) {
  for (const auto& hypothesis : bleu.hypotheses()) {
    out->lengths.push_back(hypothesis.length());
    std::vector<Tokens>& references = out->references.emplace_back();
    for (const v1::TokenList& tokens : hypothesis.references()) {
      references.emplace_back(tokens.ids().begin(), tokens.ids().end());
    }
  }
  if (bleu.has_max_order()) out->bleu.max_order = bleu.max_order();
  out->bleu.add_k = bleu.add_k();
}

}  // namespace

absl::StatusOr<PredictionsTask> FromProto(const Request& request) {
  PredictionsTask out;
  out.task = request.task_case();
  TANDEM_ASSIGN_OR_RETURN(out.predictions, FromProto(request.predictions(), "predictions"));
  TANDEM_ASSIGN_OR_RETURN(out.options.probabilities, AreProbabilities(request.kind()));
  if (request.has_temperature()) out.options.temperature = request.temperature();
  for (const int metric : request.gradients()) {
    TANDEM_ASSIGN_OR_RETURN(out.options.gradients.emplace_back(), FromProto(metric));
  }
  switch (out.task) {
    case Request::kClasses: {
      const v1::ClassTask& classes = request.classes();
      TANDEM_ASSIGN_OR_RETURN(out.truth, FromProto(classes.targets(), "classes.targets"));
      out.top_k.assign(classes.top_k().begin(), classes.top_k().end());
      break;
    }
    case Request::kLabels: {
      TANDEM_ASSIGN_OR_RETURN(out.truth, FromProto(request.labels().labels(), "labels.labels"));
      if (request.labels().has_threshold()) out.threshold = request.labels().threshold();
      break;
    }
    case Request::kBleu:
      TakeBleu(request.bleu(), &out);
      break;
    case Request::TASK_NOT_SET:
      return InvalidArgument("no task is set: expected classes, labels or bleu");
  }
  return out;
}

absl::StatusOr<MetricReport> EvaluateTask(const PredictionsTask& task, PlanCache& plans) {
  if (task.task == Request::kClasses) {
    return EvaluateClasses(task.predictions, task.truth, task.top_k, task.options, plans);
  }
  if (task.task == Request::kLabels) {
    return EvaluateLabels(task.predictions, task.truth, task.threshold, task.options, plans);
  }
  return EvaluateBleu(task.predictions, task.lengths, task.references, task.bleu, task.options,
                      plans);
}

void ToProto(const MetricReport& report, v1::EvaluatePredictionsResponse* out) {
  for (const MetricValue& value : report.values) {
    v1::MetricValue& to = *out->add_values();
    for (const MetricPair& pair : kMetrics) {
      if (pair.metric == value.metric) to.set_metric(pair.wire);
    }
    to.set_k(value.k);
    to.set_hard(value.hard);
    if (value.smooth) to.set_smooth(*value.smooth);
    if (value.gradient) *to.mutable_gradient() = ToProto(*value.gradient);
  }
  out->mutable_f1()->Add(report.f1.begin(), report.f1.end());
  out->mutable_smooth_f1()->Add(report.smooth_f1.begin(), report.smooth_f1.end());
  out->mutable_support()->Add(report.support.begin(), report.support.end());
  out->mutable_precisions()->Add(report.precisions.begin(), report.precisions.end());
  if (report.precisions.empty()) return;
  out->set_brevity_penalty(report.brevity_penalty);
  out->set_hypothesis_tokens(report.hypothesis_tokens);
  out->set_reference_tokens(report.reference_tokens);
}

}  // namespace tandem::server

// Accuracy and F1 of given predictions: the hard ones here, the smooth ones as graphs.
#include "engine/train/metrics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/ops/ops.h"
#include "engine/train/metrics_evaluation.h"

namespace tandem {
namespace {

constexpr Metric kClassificationMetrics[] = {Metric::kAccuracy, Metric::kF1Micro, Metric::kF1Macro};

absl::Status CheckIntegers(const Tensor& tensor, std::string_view what, const Shape& shape,
                           int64_t limit) {
  if (IsFloat(tensor.dtype())) {
    return InvalidArgument("the ", what, " are ", DTypeName(tensor.dtype()),
                           ", expected an integer dtype");
  }
  if (tensor.shape() != shape) {
    return InvalidArgument("the ", what, " have shape ", tensor.shape().ToString(), ", expected ",
                           shape.ToString());
  }
  for (int64_t i = 0; i < tensor.num_elements(); ++i) {
    const int64_t value = ElementAsInt(tensor, i);
    if (value < 0 || value >= limit) {
      return InvalidArgument("element ", i, " of the ", what, " is ", value, ", expected 0 to ",
                             limit - 1);
    }
  }
  return absl::OkStatus();
}

// The hard counterpart of SoftCounts.
struct HardCounts {
  explicit HardCounts(int64_t classes) : hits(classes), total(classes), members(classes) {}
  std::vector<int64_t> hits, total, members;
};

double F1(int64_t hits, int64_t total) {
  return total == 0 ? 0 : 2 * static_cast<double>(hits) / static_cast<double>(total);
}
double Share(int64_t part, int64_t whole) {
  return static_cast<double>(part) / static_cast<double>(whole);
}

MetricReport HardReport(const HardCounts& counts, double accuracy) {
  const auto sum = [](const std::vector<int64_t>& values) {
    return std::accumulate(values.begin(), values.end(), int64_t{0});
  };
  MetricReport report;
  for (size_t c = 0; c < counts.hits.size(); ++c) {
    report.f1.push_back(F1(counts.hits[c], counts.total[c]));
  }
  report.support = counts.members;
  const double macro = std::accumulate(report.f1.begin(), report.f1.end(), 0.0) /
                       static_cast<double>(report.f1.size());
  report.values.push_back({.metric = Metric::kAccuracy, .hard = accuracy});
  report.values.push_back(
      {.metric = Metric::kF1Micro, .hard = F1(sum(counts.hits), sum(counts.total))});
  report.values.push_back({.metric = Metric::kF1Macro, .hard = macro});
  return report;
}

void TakeClasses(const Tensor& f1, MetricReport* report) {
  const std::span<const float> values = f1.data<float>();
  report->smooth_f1.assign(values.begin(), values.end());
}

}  // namespace

absl::StatusOr<MetricReport> EvaluateClasses(const Tensor& predictions, const Tensor& targets,
                                             std::span<const int64_t> top_k,
                                             const EvaluationOptions& options, PlanCache& plans) {
  TANDEM_RETURN_IF_ERROR(CheckGradients(options, kClassificationMetrics));
  TANDEM_ASSIGN_OR_RETURN(const Tensor checked,
                          CheckedPredictions(predictions, Activation::kSoftmax, options));
  const int64_t rows = checked.shape()[0], classes = checked.shape()[1];
  TANDEM_RETURN_IF_ERROR(CheckIntegers(targets, "targets", Shape{rows}, classes));
  constexpr size_t kMaxTopK = 64;
  if (top_k.size() > kMaxTopK) {
    return InvalidArgument("top_k has ", top_k.size(), " entries, at most ", kMaxTopK,
                           " are allowed");
  }
  for (int64_t k : top_k) {
    if (k < 1 || k > classes) {
      return InvalidArgument("top_k is ", k, ", expected 1 to the ", classes, " classes");
    }
  }
  HardCounts counts(classes);
  std::vector<int64_t> ranks(rows);
  for (int64_t i = 0; i < rows; ++i) {
    const std::span<const float> row = checked.data<float>().subspan(i * classes, classes);
    const int64_t target = ElementAsInt(targets, i);
    const int64_t predicted = std::max_element(row.begin(), row.end()) - row.begin();
    for (int64_t c = 0; c < classes; ++c) {
      ranks[i] += row[c] > row[target] || (row[c] == row[target] && c < target) ? 1 : 0;
    }
    counts.hits[target] += predicted == target ? 1 : 0;
    ++counts.total[predicted];
    ++counts.total[target];
    ++counts.members[target];
  }
  const auto within = [&](int64_t k) {
    return Share(std::count_if(ranks.begin(), ranks.end(), [k](int64_t r) { return r < k; }), rows);
  };
  MetricReport report = HardReport(counts, within(1));
  for (int64_t k : top_k) {
    report.values.push_back({.metric = Metric::kTopKAccuracy, .k = k, .hard = within(k)});
  }
  const Tensor indices = CastTensor(targets, DType::kI32);
  TANDEM_ASSIGN_OR_RETURN(
      const std::vector<Tensor> others,
      RunSmooth(
          "classes", checked, {&indices}, Activation::kSoftmax, options, plans,
          [&](Builder& b, Value logits, const std::vector<Value>& inputs) -> SmoothMetrics {
            const double t = options.temperature;
            const Value hits = SoftHits(b, logits, inputs[0], t);
            const SoftCounts soft = CountClasses(b, logits, inputs[0], t);
            return {{ops::ReduceMean(b, hits, {}, false), MicroF1(b, soft), MacroF1(b, soft)},
                    {F1OfClasses(b, soft)}};
          },
          &report));
  TakeClasses(others[0], &report);
  return report;
}

absl::StatusOr<MetricReport> EvaluateLabels(const Tensor& predictions, const Tensor& labels,
                                            double threshold, const EvaluationOptions& options,
                                            PlanCache& plans) {
  TANDEM_RETURN_IF_ERROR(CheckGradients(options, kClassificationMetrics));
  if (!(threshold > 0 && threshold < 1)) {
    return InvalidArgument("threshold is ", threshold, ", expected within (0, 1)");
  }
  TANDEM_ASSIGN_OR_RETURN(const Tensor checked,
                          CheckedPredictions(predictions, Activation::kSigmoid, options));
  TANDEM_RETURN_IF_ERROR(CheckIntegers(labels, "labels", checked.shape(), 2));
  const int64_t rows = checked.shape()[0], classes = checked.shape()[1];
  const double logit = std::log(threshold / (1 - threshold));
  const double least = options.probabilities ? threshold : logit;
  HardCounts counts(classes);
  int64_t agreed = 0;
  for (int64_t i = 0; i < rows * classes; ++i) {
    const bool predicted = checked.data<float>()[i] > least, actual = ElementAsInt(labels, i) == 1;
    const int64_t c = i % classes;
    counts.hits[c] += predicted && actual ? 1 : 0;
    counts.total[c] += (predicted ? 1 : 0) + (actual ? 1 : 0);
    counts.members[c] += actual ? 1 : 0;
    agreed += predicted == actual ? 1 : 0;
  }
  MetricReport report = HardReport(counts, Share(agreed, rows * classes));
  const Tensor truth = CastTensor(labels, DType::kF32);
  TANDEM_ASSIGN_OR_RETURN(
      const std::vector<Tensor> others,
      RunSmooth(
          StrCat("labels", KeyOf(logit)), checked, {&truth}, Activation::kSigmoid, options, plans,
          [&](Builder& b, Value logits, const std::vector<Value>& inputs) -> SmoothMetrics {
            const double t = options.temperature;
            const Value over = ops::Sub(b, logits, b.Scalar(logit));
            const Value agreement = SoftAgreement(b, over, inputs[0], t);
            const SoftCounts soft = CountLabels(b, over, inputs[0], t);
            return {{ops::ReduceMean(b, agreement, {}, false), MicroF1(b, soft), MacroF1(b, soft)},
                    {F1OfClasses(b, soft)}};
          },
          &report));
  TakeClasses(others[0], &report);
  return report;
}

}  // namespace tandem

#include <algorithm>
#include <bit>
#include <cmath>

#include "absl/strings/str_join.h"
#include "engine/graph/gradient.h"
#include "engine/ops/ops.h"
#include "engine/train/metrics_evaluation.h"

namespace tandem {
namespace {

// Below every probability that matters, above f32's denormals: what logarithms and divisions see
// instead of 0.
constexpr double kTiny = 1e-30;

Value Scaled(Builder& b, Value logits, double temperature) {
  return temperature == 1 ? logits : ops::Mul(b, logits, b.Scalar(1 / temperature));
}
Value OneMinus(Builder& b, Value x) { return ops::Sub(b, b.Scalar(1), x); }
Value SafeLog(Builder& b, Value x) { return ops::Log(b, ops::Max(b, x, b.Scalar(kTiny))); }

Value LogitsOf(Builder& b, Value predictions, Activation activation, bool probabilities) {
  if (!probabilities) return predictions;
  const Value log = SafeLog(b, predictions);
  if (activation == Activation::kSoftmax) return log;
  return ops::Sub(b, log, SafeLog(b, OneMinus(b, predictions)));
}

}  // namespace

absl::Status CheckTemperature(double temperature) {
  if (temperature >= kTiny && temperature <= 1 / kTiny) return absl::OkStatus();
  return InvalidArgument("temperature is ", temperature, ", expected a positive number from ",
                         kTiny, " to ", 1 / kTiny);
}

Value SoftHits(Builder& b, Value logits, Value targets, double temperature) {
  const Value scaled = Scaled(b, logits, temperature);
  return ops::Exp(b, ops::Neg(b, ops::SoftmaxCrossEntropy(b, scaled, targets)[0]));
}

Value SoftAgreement(Builder& b, Value logits, Value labels, double temperature) {
  const Value p = ops::Sigmoid(b, Scaled(b, logits, temperature));
  return ops::Add(b, ops::Mul(b, p, labels), ops::Mul(b, OneMinus(b, p), OneMinus(b, labels)));
}

SoftCounts CountClasses(Builder& b, Value logits, Value targets, double temperature) {
  if (!b.ok()) return {};
  const Shape shape = b.shape(logits);
  const Shape classes{shape[1]};
  const Value hits = SoftHits(b, logits, targets, temperature);
  const Value ones = ops::BroadcastTo(b, b.Scalar(1), Shape{shape[0]});
  const Value members = ops::GatherGrad(b, ones, targets, classes);
  const Value p = ops::Softmax(b, Scaled(b, logits, temperature));
  return {ops::GatherGrad(b, hits, targets, classes),
          ops::Add(b, ops::ReduceSum(b, p, {0}, false), members)};
}

SoftCounts CountLabels(Builder& b, Value logits, Value labels, double temperature) {
  const Value p = ops::Sigmoid(b, Scaled(b, logits, temperature));
  return {ops::ReduceSum(b, ops::Mul(b, p, labels), {0}, false),
          ops::ReduceSum(b, ops::Add(b, p, labels), {0}, false)};
}

Value F1OfClasses(Builder& b, const SoftCounts& counts) {
  const Value total = ops::Max(b, counts.total, b.Scalar(kTiny));
  return ops::Div(b, ops::Mul(b, counts.hits, b.Scalar(2)), total);
}

Value MicroF1(Builder& b, const SoftCounts& counts) {
  return F1OfClasses(
      b, {ops::ReduceSum(b, counts.hits, {}, false), ops::ReduceSum(b, counts.total, {}, false)});
}

Value MacroF1(Builder& b, const SoftCounts& counts) {
  return ops::ReduceMean(b, F1OfClasses(b, counts), {}, false);
}

const char* MetricName(Metric metric) {
  switch (metric) {
    case Metric::kAccuracy:
      return "accuracy";
    case Metric::kTopKAccuracy:
      return "top-k accuracy";
    case Metric::kF1Micro:
      return "micro F1";
    case Metric::kF1Macro:
      return "macro F1";
    case Metric::kBleu:
      return "BLEU";
  }
  return "unknown metric";
}

std::string KeyOf(double value) { return StrCat(" ", absl::Hex(std::bit_cast<uint64_t>(value))); }

absl::Status CheckGradients(const EvaluationOptions& options, std::span<const Metric> available) {
  for (Metric wanted : options.gradients) {
    bool found = false;
    for (Metric metric : available) found |= metric == wanted;
    if (!found) {
      return InvalidArgument("no gradient of ", MetricName(wanted),
                             ": this task has no such smooth metric");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Tensor> CheckedPredictions(const Tensor& predictions, Activation activation,
                                          const EvaluationOptions& options) {
  TANDEM_RETURN_IF_ERROR(CheckTemperature(options.temperature));
  if (!IsFloat(predictions.dtype())) {
    return InvalidArgument("the predictions are ", DTypeName(predictions.dtype()),
                           ", expected a floating-point dtype");
  }
  const Shape& shape = predictions.shape();
  if (shape.rank() != 2 || shape[0] < 1 || shape[1] < 1) {
    return InvalidArgument("the predictions have shape ", shape.ToString(),
                           ", expected two dimensions of at least 1");
  }
  Tensor checked(DType::kF32, shape);
  const std::span<float> values = checked.data<float>();
  const double largest = 3e38 * std::min(1.0, options.temperature);
  for (int64_t row = 0, i = 0; row < shape[0]; ++row) {
    double sum = 0;
    for (int64_t column = 0; column < shape[1]; ++column, ++i) {
      const double value = ElementAsDouble(predictions, i);
      const auto where = [&] { return StrCat("prediction (", row, ", ", column, ") is ", value); };
      if (options.probabilities ? !(value >= 0 && value <= 1) : !(std::abs(value) <= largest)) {
        return InvalidArgument(where(), options.probabilities
                                            ? ", expected a probability within [0, 1]"
                                            : ", too large for the temperature or not finite");
      }
      values[i] = static_cast<float>(value);
      sum += value;
    }
    if (options.probabilities && activation == Activation::kSoftmax && std::abs(sum - 1) > 1e-2) {
      return InvalidArgument("the probabilities of row ", row, " sum to ", sum, ", expected 1");
    }
  }
  return checked;
}

absl::StatusOr<std::vector<Tensor>> RunSmooth(const std::string& key, const Tensor& predictions,
                                              const std::vector<const Tensor*>& inputs,
                                              Activation activation,
                                              const EvaluationOptions& options, PlanCache& plans,
                                              const BuildMetrics& build, MetricReport* report) {
  std::vector<MetricValue*> smooth, differentiated;
  std::string full = StrCat(key, options.probabilities ? " probabilities " : " logits ",
                            predictions.type().ToString(), KeyOf(options.temperature));
  for (const Tensor* input : inputs) full += StrCat(" ", input->type().ToString());
  for (MetricValue& value : report->values) {
    if (value.metric == Metric::kTopKAccuracy) continue;
    smooth.push_back(&value);
    const auto& wanted = options.gradients;
    if (std::find(wanted.begin(), wanted.end(), value.metric) == wanted.end()) continue;
    differentiated.push_back(&value);
    full += StrCat(" d", static_cast<int>(value.metric));
  }
  TANDEM_ASSIGN_OR_RETURN(Plan * plan, plans.Get(full, [&]() -> absl::StatusOr<Graph> {
    Builder builder(EvaluateNode);
    const Value x = builder.Input("predictions", predictions.type());
    std::vector<Value> values;
    for (const Tensor* input : inputs) values.push_back(builder.Input("", input->type()));
    const SmoothMetrics built =
        build(builder, LogitsOf(builder, x, activation, options.probabilities), values);
    TANDEM_RETURN_IF_ERROR(builder.status());
    for (Value value : built.metrics) builder.Output(value);
    for (size_t i = 0; i < smooth.size(); ++i) {
      if (std::find(differentiated.begin(), differentiated.end(), smooth[i]) ==
          differentiated.end()) {
        continue;
      }
      TANDEM_ASSIGN_OR_RETURN(const std::vector<Value> gradient,
                              Gradient(builder, built.metrics[i], {&x, 1}));
      builder.Output(gradient[0]);
    }
    for (Value value : built.others) builder.Output(value);
    return builder.Finish();
  }));
  std::vector<const Tensor*> all = {&predictions};
  all.insert(all.end(), inputs.begin(), inputs.end());
  TANDEM_ASSIGN_OR_RETURN(std::vector<Tensor> outputs, RunPlan(*plan, all));
  size_t at = 0;
  for (MetricValue* value : smooth) value->smooth = ElementAsDouble(outputs[at++], 0);
  for (MetricValue* value : differentiated) value->gradient = std::move(outputs[at++]);
  outputs.erase(outputs.begin(), outputs.begin() + static_cast<int64_t>(at));
  return outputs;
}

}  // namespace tandem

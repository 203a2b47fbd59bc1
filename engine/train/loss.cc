#include "engine/train/loss.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "engine/ops/ops.h"
#include "engine/train/metrics.h"

namespace tandem {
namespace {

// More tokens than this in one call is a mistake, not a batch; accumulate instead.
constexpr int64_t kMaxBatchTokens = int64_t{1} << 22;

absl::Status CheckSequence(const TokenSequence& sequence, size_t index,
                           const SequenceModelInfo& info) {
  const auto where = [&] { return StrCat("sequence ", index); };
  const size_t length = sequence.tokens.size();
  if (length == 0) return InvalidArgument(where(), " has no tokens");
  if (static_cast<int64_t>(length) > info.max_positions) {
    return InvalidArgument(where(), " has ", length, " tokens, the model takes at most ",
                           info.max_positions);
  }
  if (!sequence.targets.empty() && sequence.targets.size() != length) {
    return InvalidArgument(where(), " has ", length, " tokens and ", sequence.targets.size(),
                           " targets");
  }
  if (!sequence.weights.empty() && sequence.weights.size() != length) {
    return InvalidArgument(where(), " has ", length, " tokens and ", sequence.weights.size(),
                           " weights");
  }
  for (size_t i = 0; i < length; ++i) {
    if (sequence.tokens[i] < 0 || sequence.tokens[i] >= info.vocab_size) {
      return InvalidArgument(where(), " token ", i, " is ", sequence.tokens[i],
                             ", outside the vocabulary [0, ", info.vocab_size, ")");
    }
    if (!sequence.targets.empty() &&
        (sequence.targets[i] < -1 || sequence.targets[i] >= info.vocab_size)) {
      return InvalidArgument(where(), " target ", i, " is ", sequence.targets[i],
                             ", neither -1 nor in the vocabulary [0, ", info.vocab_size, ")");
    }
    if (!sequence.weights.empty() && !std::isfinite(sequence.weights[i])) {
      return InvalidArgument(where(), " weight ", i, " is not finite");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<LossInputs> PackSequences(const Model& model, const Objective& objective,
                                         const Batch& batch) {
  const SequenceModelInfo* info = model.source().sequence();
  if (info == nullptr) {
    return InvalidArgument("the batch has sequences, but model '", model.name(),
                           "' is no language model; give named tensors");
  }
  if (objective.loss != Loss::kCrossEntropy) {
    return InvalidArgument("sequences train with CROSS_ENTROPY only");
  }
  int64_t tokens = 0;
  for (size_t s = 0; s < batch.sequences.size(); ++s) {
    TANDEM_RETURN_IF_ERROR(CheckSequence(batch.sequences[s], s, *info));
    tokens += static_cast<int64_t>(batch.sequences[s].tokens.size());
    if (tokens > kMaxBatchTokens) {
      return InvalidArgument("the batch has more than ", kMaxBatchTokens,
                             " tokens; accumulate over several calls");
    }
  }
  LossInputs packed;
  packed.packed = true;
  packed.class_targets = true;
  packed.sequences = static_cast<int64_t>(batch.sequences.size());
  Tensor ids(DType::kI32, {tokens});                        // (N)
  Tensor positions(DType::kI32, {tokens});                  // (N)
  Tensor query_start(DType::kI32, {packed.sequences + 1});  // (S + 1)
  Tensor targets(DType::kI32, {tokens});                    // (N)
  int64_t at = 0;
  for (int64_t s = 0; s < packed.sequences; ++s) {
    const TokenSequence& sequence = batch.sequences[s];
    query_start.data<int32_t>()[s] = static_cast<int32_t>(at);
    const size_t length = sequence.tokens.size();
    for (size_t i = 0; i < length; ++i, ++at) {
      int32_t target = i + 1 < length ? sequence.tokens[i + 1] : -1;
      if (!sequence.targets.empty()) target = sequence.targets[i];
      const float weight = sequence.weights.empty() ? 1.0f : sequence.weights[i];
      ids.data<int32_t>()[at] = sequence.tokens[i];
      positions.data<int32_t>()[at] = static_cast<int32_t>(i);
      targets.data<int32_t>()[at] = std::max(target, 0);
      packed.weights.push_back(target < 0 ? 0.0f : weight);
    }
  }
  query_start.data<int32_t>()[packed.sequences] = static_cast<int32_t>(at);
  packed.owned.reserve(4);
  for (Tensor* tensor : {&ids, &positions, &query_start, &targets}) {
    packed.owned.push_back(std::move(*tensor));
  }
  for (const Tensor& tensor : packed.owned) packed.inputs.push_back(&tensor);
  return packed;
}

bool IsSoft(Loss loss) { return loss == Loss::kSoftAccuracy || loss == Loss::kSoftF1; }

// Class indices become i32 and are checked once their number of classes is known, in BuildLosses'
// caller; here only the dtype.
absl::StatusOr<LossInputs> PrepareTensors(const Model& model, const Objective& objective,
                                          const Batch& batch) {
  LossInputs prepared;
  std::vector<bool> used(batch.tensors.size(), false);
  const auto find = [&](std::string_view name) -> const Tensor* {
    for (size_t i = 0; i < batch.tensors.size(); ++i) {
      if (batch.tensors[i].first == name && !used[i]) {
        used[i] = true;
        return &batch.tensors[i].second;
      }
    }
    return nullptr;
  };
  for (const IoSpec& spec : model.source().inputs()) {
    const Tensor* tensor = find(spec.name);
    if (tensor == nullptr) {
      return InvalidArgument("the batch has no tensor '", spec.name, "', an input of model '",
                             model.name(), "'");
    }
    TANDEM_RETURN_IF_ERROR(CheckInput(spec, *tensor));
    prepared.inputs.push_back(tensor);
  }
  if (objective.loss != Loss::kGraphOutput) {
    const Tensor* target = find(objective.target);
    if (target == nullptr) {
      return InvalidArgument("the batch has no tensor '", objective.target, "' to compare with");
    }
    const bool indices = target->dtype() == DType::kI32 || target->dtype() == DType::kI64;
    const bool values = target->dtype() == DType::kF32;
    const bool classes = objective.loss == Loss::kCrossEntropy, soft = IsSoft(objective.loss);
    if (!((classes || soft) && indices) && !(!classes && values)) {
      return InvalidArgument("target '", objective.target, "' is ", DTypeName(target->dtype()),
                             ", expected ",
                             soft      ? "i32 or i64 class indices, or f32 labels"
                             : classes ? "i32 or i64 class indices"
                                       : "f32");
    }
    prepared.class_targets = indices;
    prepared.inputs.push_back(target);
  }
  for (size_t i = 0; i < used.size(); ++i) {
    if (!used[i]) {
      return InvalidArgument("the batch's tensor '", batch.tensors[i].first,
                             "' is neither an input of model '", model.name(), "' nor the target '",
                             objective.target, "'");
    }
  }
  return prepared;
}

// Rows of logits (N, C) and their class indices (N), i32.
struct Rows {
  Value logits, targets;
};
Rows RowsOf(Builder& b, Value logits, Value targets, const Tensor& target_tensor) {
  if (!b.ok()) return {};
  const Shape shape = b.shape(logits);
  if (shape.rank() < 1) return {b.Fail(InvalidArgument("the output is a scalar: no classes")), {}};
  const int64_t classes = shape[-1];
  const Shape rows(shape.dims().first(shape.rank() - 1));
  if (target_tensor.shape() != rows) {
    return {b.Fail(InvalidArgument("the target has shape ", target_tensor.shape().ToString(),
                                   ", expected ", rows.ToString(), " class indices for an output ",
                                   shape.ToString())),
            {}};
  }
  const int64_t count = rows.num_elements();
  Value flat = ops::Reshape(b, targets, {count});
  if (b.dtype(flat) == DType::kI64) flat = ops::Cast(b, flat, DType::kI32);
  return {ops::Reshape(b, logits, {count, classes}), flat};
}

// 1 - a smooth metric. Accuracy: one a row, or a label; F1: one.
Value SoftLoss(Builder& b, const Objective& objective, Value logits, Value target,
               const LossInputs& inputs) {
  const double t = objective.temperature;
  const bool f1 = objective.loss == Loss::kSoftF1;
  Value metric;
  if (inputs.class_targets) {
    const Rows rows = RowsOf(b, logits, target, *inputs.inputs.back());
    metric = f1 ? MacroF1(b, CountClasses(b, rows.logits, rows.targets, t))
                : SoftHits(b, rows.logits, rows.targets, t);
  } else {
    if (!b.ok()) return {};
    const Shape shape = b.shape(logits);
    if (shape != b.shape(target) || shape.rank() < 1) {
      return b.Fail(InvalidArgument("the target has shape ", b.shape(target).ToString(),
                                    ", the output ", shape.ToString(),
                                    "; expected the same, with classes in the last dimension"));
    }
    const Shape flat{shape.num_elements() / std::max<int64_t>(1, shape[-1]), shape[-1]};
    const Value x = ops::Reshape(b, logits, flat), labels = ops::Reshape(b, target, flat);
    metric = f1 ? MacroF1(b, CountLabels(b, x, labels, t)) : SoftAgreement(b, x, labels, t);
  }
  return ops::Sub(b, b.Scalar(1), metric);
}

// Elementwise losses of output x against target t, of one shape.
Value ElementLoss(Builder& b, const Objective& objective, Value x, Value t) {
  if (!b.ok()) return {};
  if (b.shape(x) != b.shape(t)) {
    return b.Fail(InvalidArgument("the target has shape ", b.shape(t).ToString(), ", the output ",
                                  b.shape(x).ToString()));
  }
  if (objective.loss == Loss::kBceWithLogits) {
    // max(x, 0) - x t + log(1 + exp(-|x|)): never exponentiates a positive number.
    const Value hinge = ops::Sub(b, ops::Relu(b, x), ops::Mul(b, x, t));
    return ops::Add(b, hinge, ops::Softplus(b, ops::Neg(b, ops::Abs(b, x))));
  }
  const Value d = ops::Sub(b, x, t);
  if (objective.loss == Loss::kMse) return ops::Square(b, d);
  const Value magnitude = ops::Abs(b, d);
  if (objective.loss == Loss::kL1) return magnitude;
  // Huber: with c = min(|d|, delta), c (|d| - c / 2) is both branches at once.
  const Value c = ops::Min(b, magnitude, b.Scalar(objective.huber_delta));
  return ops::Mul(b, c, ops::Sub(b, magnitude, ops::Mul(b, c, b.Scalar(0.5))));
}

absl::StatusOr<int> OutputIndex(const Model& model, const Objective& objective) {
  const std::vector<IoSpec>& outputs = model.source().outputs();
  if (objective.output.empty()) {
    if (outputs.size() == 1) return 0;
    return InvalidArgument("model '", model.name(), "' has ", outputs.size(),
                           " outputs; the objective must name one");
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (outputs[i].name == objective.output) return static_cast<int>(i);
  }
  return InvalidArgument("model '", model.name(), "' has no output '", objective.output, "'");
}

}  // namespace

absl::Status CheckObjective(const Model& model, const Objective& objective) {
  if (!(objective.huber_delta > 0) || !std::isfinite(objective.huber_delta)) {
    return InvalidArgument("huber_delta is ", objective.huber_delta, ", must be positive");
  }
  TANDEM_RETURN_IF_ERROR(CheckTemperature(objective.temperature));
  return OutputIndex(model, objective).status();
}

absl::StatusOr<LossInputs> PrepareBatch(const Model& model, const Objective& objective,
                                        const Batch& batch) {
  if (batch.sequences.empty() == batch.tensors.empty()) {
    return InvalidArgument(batch.tensors.empty()
                               ? "the batch is empty: give tensors or sequences"
                               : "the batch has tensors and sequences; give one kind");
  }
  if (!batch.sequences.empty()) return PackSequences(model, objective, batch);
  return PrepareTensors(model, objective, batch);
}

absl::StatusOr<Value> BuildLosses(Builder& builder, const Model& model, const Objective& objective,
                                  const LossInputs& inputs) {
  std::vector<Value> values;
  for (size_t i = 0; i < inputs.inputs.size(); ++i) {
    values.push_back(builder.Input(StrCat("input", i), inputs.inputs[i]->type()));
  }
  if (inputs.packed) {
    SequenceValues sequences;
    sequences.tokens = values[0];
    sequences.positions = values[1];
    sequences.query_start = values[2];
    const Value logits = model.source().BuildLogits(builder, sequences);
    const Value losses = ops::SoftmaxCrossEntropy(builder, logits, values[3])[0];
    TANDEM_RETURN_IF_ERROR(builder.status());
    return losses;
  }
  const size_t input_count = model.source().inputs().size();
  TANDEM_ASSIGN_OR_RETURN(
      const std::vector<Value> outputs,
      model.source().Build(builder, std::span<const Value>(values).first(input_count)));
  TANDEM_ASSIGN_OR_RETURN(const int index, OutputIndex(model, objective));
  const Value output = outputs[index];
  if (builder.dtype(output) != DType::kF32) {
    return InvalidArgument("the loss needs an f32 output, this one is ",
                           builder.type(output).ToString());
  }
  Value losses;
  if (objective.loss == Loss::kGraphOutput) {
    if (builder.shape(output).num_elements() != 1) {
      return InvalidArgument("GRAPH_OUTPUT needs an output of one element, this one has shape ",
                             builder.shape(output).ToString());
    }
    losses = output;
  } else if (objective.loss == Loss::kCrossEntropy) {
    const Rows rows = RowsOf(builder, output, values.back(), *inputs.inputs.back());
    losses = ops::SoftmaxCrossEntropy(builder, rows.logits, rows.targets)[0];
  } else if (IsSoft(objective.loss)) {
    losses = SoftLoss(builder, objective, output, values.back(), inputs);
  } else {
    losses = ElementLoss(builder, objective, output, values.back());
  }
  TANDEM_RETURN_IF_ERROR(builder.status());
  return losses;
}

std::string LossKey(const Objective& objective, const LossInputs& inputs) {
  // The numbers exactly: as text they would lose digits.
  std::string key = StrCat(static_cast<int>(objective.loss), " ", objective.output, " ",
                           absl::Hex(std::bit_cast<uint64_t>(objective.huber_delta)), " ",
                           absl::Hex(std::bit_cast<uint64_t>(objective.temperature)),
                           inputs.packed ? " packed" : " tensors");
  for (const Tensor* tensor : inputs.inputs) key += StrCat(" ", tensor->type().ToString());
  return key;
}

LossReport ReduceLosses(const Objective& objective, const LossInputs& inputs,
                        const Tensor& losses) {
  const std::span<const float> values = losses.data<float>();
  LossReport report;
  for (size_t i = 0; i < values.size(); ++i) {
    const double weight = inputs.weights.empty() ? 1 : inputs.weights[i];
    if (weight == 0) continue;
    report.loss_sum += weight * values[i];
    report.weight_sum += weight;
    ++report.tokens;
  }
  const bool mean = objective.reduction == Reduction::kMean;
  report.loss = report.loss_sum / (mean && report.weight_sum != 0 ? report.weight_sum : 1);
  if (objective.loss == Loss::kCrossEntropy) {
    for (size_t i = 0; i < values.size(); ++i) {
      const bool trained = inputs.weights.empty() || inputs.weights[i] != 0;
      report.logprobs.push_back(trained ? -values[i] : 0.0f);
    }
  }
  return report;
}

}  // namespace tandem

// Losses of a log-probability for each class, and of logits.
#include <utility>

#include "engine/base/error.h"
#include "engine/formats/onnx_compose.h"
#include "engine/formats/onnx_ops.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

// (N, C, d1, ...) as (N, d1, ..., C), and back.
Value ClassesLast(Builder& b, Value x, bool back) {
  const int rank = b.shape(x).rank();
  std::vector<int64_t> permutation = {0};
  for (int i = 2; i < rank; ++i) permutation.push_back(back ? i - 1 : i);
  permutation.insert(back ? permutation.begin() + 1 : permutation.end(), back ? rank - 1 : 1);
  return ops::Transpose(b, x, std::move(permutation));
}

absl::Status CheckTargets(NodeContext& c) {
  const Shape x = c.shape(0);
  if (x.rank() < 2) return InvalidArgument("input is ", x.ToString(), ", without classes");
  Shape expected{x[0]};
  for (int i = 2; i < x.rank(); ++i) expected.push_back(x[i]);
  if (c.shape(1) != expected) {
    return InvalidArgument("targets are ", c.shape(1).ToString(), ", expected ",
                           expected.ToString());
  }
  if (x[1] < 1) return InvalidArgument("input ", x.ToString(), " has no classes");
  if (c.Has(2) && c.shape(2) != Shape{x[1]}) {
    return InvalidArgument("weights are ", c.shape(2).ToString(), ", expected (", x[1], ")");
  }
  return absl::OkStatus();
}

// -weight[target] log_probabilities[target], reduced; `rows` (N, d1, ..., C). Targets outside the
// classes count as the nearest class, save those equal to ignore_index, whose loss is 0.
Outputs Loss(NodeContext& c, Value rows) {
  Builder& b = c.b;
  const Shape shape = c.shape(1);
  const int64_t classes = c.shape(0)[1], count = shape.num_elements();
  const std::string reduction = c.String("reduction", "mean");
  const Value target = ops::Reshape(b, ops::Cast(b, c.In(1), DType::kI64), {count});
  const Value last = b.Scalar(static_cast<double>(classes - 1), DType::kI64);
  const Value inside = ops::Min(b, ops::Max(b, target, b.Scalar(0, DType::kI64)), last);
  const Value places =
      ops::Add(b, compose::Scale(b, compose::Iota(b, count), static_cast<double>(classes)), inside);
  const Value chosen = ops::Gather(b, ops::Reshape(b, rows, {count * classes}), places, 0);
  Value weight;
  if (c.Has(2)) weight = ops::Gather(b, c.In(2), inside, 0);
  if (c.HasAttribute("ignore_index")) {
    const Value ignored = b.Constant(Tensor::Scalar<int64_t>(c.Int("ignore_index", 0)));
    const Value kept = ops::Cast(b, ops::Not(b, ops::Equal(b, target, ignored)), b.dtype(chosen));
    weight = weight.valid() ? ops::Mul(b, weight, kept) : kept;
  }
  Value loss = ops::Neg(b, chosen);
  if (weight.valid()) loss = ops::Mul(b, loss, weight);
  if (reduction == "none") return One(ops::Reshape(b, loss, shape));
  if (reduction == "sum") return One(ops::ReduceSum(b, loss, {0}, false));
  if (reduction != "mean") return InvalidArgument("attribute reduction='", reduction, "'");
  if (!weight.valid()) return One(ops::ReduceMean(b, loss, {0}, false));
  return One(
      ops::Div(b, ops::ReduceSum(b, loss, {0}, false), ops::ReduceSum(b, weight, {0}, false)));
}

Outputs NegativeLogLikelihoodLoss(NodeContext& c) {
  TANDEM_RETURN_IF_ERROR(CheckTargets(c));
  return Loss(c, ClassesLast(c.b, c.In(0), false));
}

Outputs SoftmaxCrossEntropyLoss(NodeContext& c) {
  TANDEM_RETURN_IF_ERROR(CheckTargets(c));
  const Value rows = ops::LogSoftmax(c.b, ClassesLast(c.b, c.In(0), false));
  TANDEM_ASSIGN_OR_RETURN(std::vector<Value> outputs, Loss(c, rows));
  outputs.push_back(ClassesLast(c.b, rows, true));
  return outputs;
}

constexpr OnnxOp kOps[] = {
    {.name = "NegativeLogLikelihoodLoss",
     .convert = NegativeLogLikelihoodLoss,
     .min_inputs = 2,
     .max_inputs = 3,
     .fixed_inputs = InputSet(2)},
    {.name = "SoftmaxCrossEntropyLoss",
     .convert = SoftmaxCrossEntropyLoss,
     .min_inputs = 2,
     .max_inputs = 3,
     .fixed_inputs = InputSet(2)},
};

}  // namespace

std::span<const OnnxOp> OnnxLossOps() { return kOps; }

}  // namespace tandem

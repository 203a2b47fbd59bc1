// Losses that are worth a fused kernel.
#include <numeric>

#include "engine/ops/definitions.h"
#include "engine/ops/inference.h"

namespace tandem::ops {
namespace {

absl::Status CheckLogitsAndTargets(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireFloat(args, 0, "logits"));
  TANDEM_RETURN_IF_ERROR(RequireRank(args, 0, "logits", 2));
  if (args.shape(0)[1] == 0) {
    return InvalidArgument("logits ", args.shape(0).ToString(), " have no classes");
  }
  TANDEM_RETURN_IF_ERROR(RequireDType(args, 1, "targets", DType::kI32));
  return RequireShape(args, 1, "targets", Rows(args.shape(0)));
}

Types InferSoftmaxCrossEntropy(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckLogitsAndTargets(args));
  const TensorType row{StatisticsDType(args.type(0).dtype), Rows(args.shape(0))};
  return std::vector<TensorType>{row, row};
}

// logits, targets, lse, dloss
Types InferSoftmaxCrossEntropyGrad(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckLogitsAndTargets(args));
  for (int i : {2, 3}) {
    const std::string_view what = i == 2 ? "lse" : "dloss";
    TANDEM_RETURN_IF_ERROR(RequireStatistic(args, i, what));
    TANDEM_RETURN_IF_ERROR(RequireShape(args, i, what, Rows(args.shape(0))));
  }
  return std::vector<TensorType>{args.type(0)};
}

// (N) -> (N, 1)
Value AsColumn(Builder& b, Value x) {
  Shape shape = b.shape(x);
  shape.push_back(1);
  return Reshape(b, x, shape);
}
Value SoftmaxFromLse(Builder& b, Value logits, Value lse) {
  return Exp(b, Sub(b, Cast(b, logits, b.dtype(lse)), AsColumn(b, lse)));
}
// step * (0, 1, ..., n - 1)
template <typename T>
Value Range(Builder& b, int64_t n, int64_t step) {
  Tensor range(TypeOf<T>(), Shape{n});
  const std::span<T> values = range.data<T>();
  for (int64_t i = 0; i < n; ++i) values[i] = static_cast<T>(i * step);
  return b.Constant(std::move(range));
}

// dlogits = (softmax(logits) - onehot(target)) dloss + softmax(logits) dlse
std::vector<Value> SoftmaxCrossEntropyGradient(Builder& b, const GradientArgs& g) {
  const Value logits = g.in(0), targets = g.in(1), lse = g.out(1);
  Value d;
  if (g.cotangent(0).valid()) {
    d = SoftmaxCrossEntropyGrad(b, logits, targets, lse, g.cotangent(0));
  }
  if (g.cotangent(1).valid()) {
    Value through = Mul(b, SoftmaxFromLse(b, logits, lse), AsColumn(b, g.cotangent(1)));
    through = Cast(b, through, b.dtype(logits));
    d = d.valid() ? Add(b, d, through) : through;
  }
  return {d, Value{}};
}

// lse = max + log(sum(exp(logits - max))); loss = lse - logits[i, target[i]]
std::vector<Value> LowerSoftmaxCrossEntropy(Builder& b, const Node& node) {
  const Value logits = node.inputs[0];
  const Shape shape = b.shape(logits), rows = Rows(shape);
  const Value max = ReduceMax(b, logits, {-1}, true);
  const Value sum = ReduceSum(b, Exp(b, Sub(b, logits, max)), {-1}, true);
  const Value lse = Reshape(b, Add(b, max, Log(b, sum)), rows);
  const Value row_start = Range<int64_t>(b, shape[0], shape[1]);
  const Value index = Add(b, Cast(b, node.inputs[1], DType::kI64), row_start);
  const Value flat = Reshape(b, logits, Shape{shape.num_elements()});
  return {Sub(b, lse, Gather(b, flat, index, 0)), lse};
}

std::vector<Value> LowerSoftmaxCrossEntropyGrad(Builder& b, const Node& node) {
  const Value logits = node.inputs[0], lse = node.inputs[2], dloss = node.inputs[3];
  const int64_t classes = b.shape(logits)[1];
  const DType dtype = b.dtype(logits);
  const Value hit = Equal(b, Range<int32_t>(b, classes, 1), AsColumn(b, node.inputs[1]));
  const Value difference = Sub(b, SoftmaxFromLse(b, logits, lse), Cast(b, hit, dtype));
  return {Mul(b, difference, AsColumn(b, dloss))};
}

}  // namespace

constinit const OpDef kSoftmaxCrossEntropy = {.name = "SoftmaxCrossEntropy",
                                              .min_inputs = 2,
                                              .max_inputs = 2,
                                              .infer = InferSoftmaxCrossEntropy,
                                              .gradient = SoftmaxCrossEntropyGradient,
                                              .lower = LowerSoftmaxCrossEntropy,
                                              .flops = FlopsPerElement<4>};
constinit const OpDef kSoftmaxCrossEntropyGrad = {.name = "SoftmaxCrossEntropyGrad",
                                                  .min_inputs = 4,
                                                  .max_inputs = 4,
                                                  .infer = InferSoftmaxCrossEntropyGrad,
                                                  .lower = LowerSoftmaxCrossEntropyGrad,
                                                  .flops = FlopsPerElement<4>};

std::vector<Value> SoftmaxCrossEntropy(Builder& b, Value logits, Value targets) {
  return b.AddMulti(kSoftmaxCrossEntropy, {{logits, targets}}, {}, 2);
}
Value SoftmaxCrossEntropyGrad(Builder& b, Value logits, Value targets, Value lse, Value dloss) {
  return b.Add(kSoftmaxCrossEntropyGrad, {logits, targets, lse, dloss});
}

}  // namespace tandem::ops

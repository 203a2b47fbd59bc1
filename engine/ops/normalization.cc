// Softmax and normalisations over the last dimension.
#include <algorithm>

#include "engine/ops/definitions.h"
#include "engine/ops/inference.h"

namespace tandem::ops {
namespace {

Value C(Builder& b, double value, Value like) { return b.Scalar(value, b.dtype(like)); }
Value RowSum(Builder& b, Value x) { return ReduceSum(b, x, {-1}, true); }
Value RowMean(Builder& b, Value x) { return ReduceMean(b, x, {-1}, true); }
// (...) -> (..., 1)
Value AsColumn(Builder& b, Value x) {
  Shape shape = b.shape(x);
  shape.push_back(1);
  return Reshape(b, x, shape);
}
// (..., 1) -> (...)
Value AsRows(Builder& b, Value x) {
  const Shape shape = b.shape(x);
  if (shape.rank() == 0) return x;  // after an error
  return Reshape(b, x, Rows(shape));
}
Value LastDim(Builder& b, Value x) {
  const Shape shape = b.shape(x);
  return SumToShape(b, x, Shape{shape.rank() == 0 ? 1 : shape[-1]});
}

absl::Status RequireLastDim(const InferArgs& args, std::string_view what) {
  TANDEM_RETURN_IF_ERROR(RequireFloat(args, 0, what));
  const Shape& shape = args.shape(0);
  if (shape.rank() > 0 && shape[-1] > 0) return absl::OkStatus();
  return InvalidArgument(what, " ", shape.ToString(), " has no elements along its last dimension");
}

Types InferSoftmax(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireLastDim(args, "x"));
  return std::vector<TensorType>{args.type(0)};
}

// One value a row of x, as LayerNorm's mean.
TensorType RowType(const InferArgs& args) {
  return {StatisticsDType(args.type(0).dtype), Rows(args.shape(0))};
}

absl::Status RequireWidth(const InferArgs& args, int i, std::string_view what) {
  if (!args.has(i)) return absl::OkStatus();
  TANDEM_RETURN_IF_ERROR(RequireSameDType(args, 0, i));
  return RequireShape(args, i, what, Shape{args.shape(0)[-1]});
}

absl::Status RequireRows(const InferArgs& args, int i, std::string_view what) {
  TANDEM_RETURN_IF_ERROR(RequireStatistic(args, i, what));
  return RequireShape(args, i, what, Rows(args.shape(0)));
}

Types InferLayerNorm(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireLastDim(args, "x"));
  TANDEM_RETURN_IF_ERROR(RequireWidth(args, 1, "gamma"));
  TANDEM_RETURN_IF_ERROR(RequireWidth(args, 2, "beta"));
  return std::vector<TensorType>{args.type(0), RowType(args), RowType(args)};
}

// x, mean, rstd, dy, gamma
Types InferLayerNormGrad(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireLastDim(args, "x"));
  TANDEM_RETURN_IF_ERROR(RequireRows(args, 1, "mean"));
  TANDEM_RETURN_IF_ERROR(RequireRows(args, 2, "rstd"));
  TANDEM_RETURN_IF_ERROR(RequireSameDType(args, 0, 3));
  TANDEM_RETURN_IF_ERROR(RequireShape(args, 3, "dy", args.shape(0)));
  TANDEM_RETURN_IF_ERROR(RequireWidth(args, 4, "gamma"));
  const TensorType width{args.type(0).dtype, Shape{args.shape(0)[-1]}};
  return std::vector<TensorType>{args.type(0), width, width};
}

Types InferRmsNorm(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireLastDim(args, "x"));
  TANDEM_RETURN_IF_ERROR(RequireWidth(args, 1, "gamma"));
  return std::vector<TensorType>{args.type(0), RowType(args)};
}

// x, rstd, dy, gamma
Types InferRmsNormGrad(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireLastDim(args, "x"));
  TANDEM_RETURN_IF_ERROR(RequireRows(args, 1, "rstd"));
  TANDEM_RETURN_IF_ERROR(RequireSameDType(args, 0, 2));
  TANDEM_RETURN_IF_ERROR(RequireShape(args, 2, "dy", args.shape(0)));
  TANDEM_RETURN_IF_ERROR(RequireWidth(args, 3, "gamma"));
  return std::vector<TensorType>{args.type(0), {args.type(0).dtype, Shape{args.shape(0)[-1]}}};
}

// dx = y (dy - sum(y dy))
std::vector<Value> SoftmaxGradient(Builder& b, const GradientArgs& g) {
  return {SoftmaxGrad(b, g.out(), g.cotangent())};
}
// dx = dy - exp(y) sum(dy)
std::vector<Value> LogSoftmaxGradient(Builder& b, const GradientArgs& g) {
  return {LogSoftmaxGrad(b, g.out(), g.cotangent())};
}

Value Accumulate(Builder& b, Value sum, Value term) {
  return sum.valid() ? Add(b, sum, term) : term;
}

// The part of dx that comes through rstd = (mean(c^2) + eps)^(-1/2), c being x, or x - mean:
//   dx = -drstd rstd^3 c / D
Value ThroughRstd(Builder& b, Value drstd, Value rstd, Value centred, int64_t width) {
  centred = Cast(b, centred, b.dtype(rstd));
  const Value cube = Mul(b, Square(b, rstd), rstd);
  const Value factor = Mul(b, Mul(b, drstd, cube), C(b, -1.0 / static_cast<double>(width), rstd));
  return Mul(b, AsColumn(b, factor), centred);
}

// With h = (x - mean) rstd and e = dy gamma, means over the last dimension:
//   dx = rstd (e - mean(e) - h mean(e h));  dgamma = sum(dy h);  dbeta = sum(dy)
// and where the other outputs are used: dx += dmean / D - drstd rstd^3 (x - mean) / D.
std::vector<Value> LayerNormGradient(Builder& b, const GradientArgs& g) {
  const Value x = g.in(0), mean = g.out(1), rstd = g.out(2);
  std::vector<Value> result(g.node.inputs.size());
  if (g.cotangent(0).valid()) {
    const std::vector<Value> d = LayerNormGrad(b, x, g.in(1), mean, rstd, g.cotangent(0));
    std::copy_n(d.begin(), result.size(), result.begin());
  }
  const Shape shape = b.shape(x);
  if (g.cotangent(1).valid()) {
    const Value share = Mul(b, g.cotangent(1), C(b, 1.0 / static_cast<double>(shape[-1]), mean));
    const Value through = BroadcastTo(b, AsColumn(b, share), shape);
    result[0] = Accumulate(b, result[0], Cast(b, through, b.dtype(x)));
  }
  if (g.cotangent(2).valid()) {
    const Value centred = Sub(b, Cast(b, x, b.dtype(mean)), AsColumn(b, mean));
    const Value through = ThroughRstd(b, g.cotangent(2), rstd, centred, shape[-1]);
    result[0] = Accumulate(b, result[0], Cast(b, through, b.dtype(x)));
  }
  return result;
}

// With h = x rstd and e = dy gamma: dx = rstd (e - h mean(e h));  dgamma = sum(dy h)
// and where rstd is used: dx += -drstd rstd^3 x / D.
std::vector<Value> RmsNormGradient(Builder& b, const GradientArgs& g) {
  const Value x = g.in(0), rstd = g.out(1);
  std::vector<Value> result(g.node.inputs.size());
  if (g.cotangent(0).valid()) {
    const std::vector<Value> d = RmsNormGrad(b, x, g.in(1), rstd, g.cotangent(0));
    std::copy_n(d.begin(), result.size(), result.begin());
  }
  if (g.cotangent(1).valid()) {
    const int64_t width = b.shape(x)[-1];
    const Value through = ThroughRstd(b, g.cotangent(1), rstd, x, width);
    result[0] = Accumulate(b, result[0], Cast(b, through, b.dtype(x)));
  }
  return result;
}

// exp(x - max) / sum
std::vector<Value> LowerSoftmax(Builder& b, const Node& node) {
  const Value x = node.inputs[0];
  const Value e = Exp(b, Sub(b, x, ReduceMax(b, x, {-1}, true)));
  return {Div(b, e, RowSum(b, e))};
}
std::vector<Value> LowerSoftmaxGrad(Builder& b, const Node& node) {
  const Value y = node.inputs[0], dy = node.inputs[1];
  return {Mul(b, y, Sub(b, dy, RowSum(b, Mul(b, y, dy))))};
}
// x - max - log(sum(exp(x - max)))
std::vector<Value> LowerLogSoftmax(Builder& b, const Node& node) {
  const Value x = node.inputs[0];
  const Value shifted = Sub(b, x, ReduceMax(b, x, {-1}, true));
  return {Sub(b, shifted, Log(b, RowSum(b, Exp(b, shifted))))};
}
std::vector<Value> LowerLogSoftmaxGrad(Builder& b, const Node& node) {
  const Value y = node.inputs[0], dy = node.inputs[1];
  return {Sub(b, dy, Mul(b, Exp(b, y), RowSum(b, dy)))};
}

Value Optional(const Node& node, size_t i) {
  return i < node.inputs.size() ? node.inputs[i] : Value{};
}
Value ReciprocalRms(Builder& b, Value x, double epsilon) {
  return Rsqrt(b, Add(b, RowMean(b, Square(b, x)), C(b, epsilon, x)));
}

std::vector<Value> LowerLayerNorm(Builder& b, const Node& node) {
  const Value x = node.inputs[0], gamma = Optional(node, 1), beta = Optional(node, 2);
  const Value mean = RowMean(b, x);
  const Value centred = Sub(b, x, mean);
  const Value rstd = ReciprocalRms(b, centred, node.attributes.Float("epsilon"));
  Value y = Mul(b, centred, rstd);
  if (gamma.valid()) y = Mul(b, y, gamma);
  if (beta.valid()) y = Add(b, y, beta);
  return {y, AsRows(b, mean), AsRows(b, rstd)};
}

std::vector<Value> LowerLayerNormGrad(Builder& b, const Node& node) {
  const Value x = node.inputs[0], dy = node.inputs[3], gamma = Optional(node, 4);
  const Value rstd = AsColumn(b, node.inputs[2]);
  const Value h = Mul(b, Sub(b, x, AsColumn(b, node.inputs[1])), rstd);
  const Value e = gamma.valid() ? Mul(b, dy, gamma) : dy;
  const Value along = Mul(b, h, RowMean(b, Mul(b, e, h)));
  const Value dx = Mul(b, rstd, Sub(b, Sub(b, e, RowMean(b, e)), along));
  return {dx, LastDim(b, Mul(b, dy, h)), LastDim(b, dy)};
}

std::vector<Value> LowerRmsNorm(Builder& b, const Node& node) {
  const Value x = node.inputs[0], gamma = Optional(node, 1);
  const Value rstd = ReciprocalRms(b, x, node.attributes.Float("epsilon"));
  const Value y = Mul(b, x, rstd);
  return {gamma.valid() ? Mul(b, y, gamma) : y, AsRows(b, rstd)};
}

std::vector<Value> LowerRmsNormGrad(Builder& b, const Node& node) {
  const Value x = node.inputs[0], dy = node.inputs[2], gamma = Optional(node, 3);
  const Value rstd = AsColumn(b, node.inputs[1]);
  const Value h = Mul(b, x, rstd);
  const Value e = gamma.valid() ? Mul(b, dy, gamma) : dy;
  const Value dx = Mul(b, rstd, Sub(b, e, Mul(b, h, RowMean(b, Mul(b, e, h)))));
  return {dx, LastDim(b, Mul(b, dy, h))};
}

// Absent inputs at the end are left out.
std::vector<Value> WithOptional(std::vector<Value> inputs) {
  while (!inputs.back().valid() && inputs.size() > 1) inputs.pop_back();
  return inputs;
}

}  // namespace

constinit const OpDef kSoftmax = {.name = "Softmax",
                                  .infer = InferSoftmax,
                                  .gradient = SoftmaxGradient,
                                  .lower = LowerSoftmax,
                                  .flops = FlopsPerElement<4>};
constinit const OpDef kSoftmaxGrad = {.name = "SoftmaxGrad",
                                      .min_inputs = 2,
                                      .max_inputs = 2,
                                      .infer = InferFloatPair,
                                      .lower = LowerSoftmaxGrad,
                                      .flops = FlopsPerElement<4>};
constinit const OpDef kLogSoftmax = {.name = "LogSoftmax",
                                     .infer = InferSoftmax,
                                     .gradient = LogSoftmaxGradient,
                                     .lower = LowerLogSoftmax,
                                     .flops = FlopsPerElement<4>};
constinit const OpDef kLogSoftmaxGrad = {.name = "LogSoftmaxGrad",
                                         .min_inputs = 2,
                                         .max_inputs = 2,
                                         .infer = InferFloatPair,
                                         .lower = LowerLogSoftmaxGrad,
                                         .flops = FlopsPerElement<4>};
constinit const OpDef kLayerNorm = {.name = "LayerNorm",
                                    .max_inputs = 3,
                                    .infer = InferLayerNorm,
                                    .gradient = LayerNormGradient,
                                    .lower = LowerLayerNorm,
                                    .flops = FlopsPerElement<8>};
constinit const OpDef kLayerNormGrad = {.name = "LayerNormGrad",
                                        .min_inputs = 4,
                                        .max_inputs = 5,
                                        .infer = InferLayerNormGrad,
                                        .lower = LowerLayerNormGrad,
                                        .flops = FlopsPerElement<14>};
constinit const OpDef kRmsNorm = {.name = "RmsNorm",
                                  .max_inputs = 2,
                                  .infer = InferRmsNorm,
                                  .gradient = RmsNormGradient,
                                  .lower = LowerRmsNorm,
                                  .flops = FlopsPerElement<4>};
constinit const OpDef kRmsNormGrad = {.name = "RmsNormGrad",
                                      .min_inputs = 3,
                                      .max_inputs = 4,
                                      .infer = InferRmsNormGrad,
                                      .lower = LowerRmsNormGrad,
                                      .flops = FlopsPerElement<10>};

Value Softmax(Builder& b, Value x) { return b.Add(kSoftmax, {x}); }
Value SoftmaxGrad(Builder& b, Value y, Value dy) { return b.Add(kSoftmaxGrad, {y, dy}); }
Value LogSoftmax(Builder& b, Value x) { return b.Add(kLogSoftmax, {x}); }
Value LogSoftmaxGrad(Builder& b, Value y, Value dy) { return b.Add(kLogSoftmaxGrad, {y, dy}); }

std::vector<Value> LayerNorm(Builder& b, Value x, Value gamma, Value beta, double epsilon) {
  return b.AddMulti(kLayerNorm, WithOptional({x, gamma, beta}), {{"epsilon", epsilon}}, 3);
}
std::vector<Value> LayerNormGrad(Builder& b, Value x, Value gamma, Value mean, Value rstd,
                                 Value dy) {
  return b.AddMulti(kLayerNormGrad, WithOptional({x, mean, rstd, dy, gamma}), {}, 3);
}
std::vector<Value> RmsNorm(Builder& b, Value x, Value gamma, double epsilon) {
  return b.AddMulti(kRmsNorm, WithOptional({x, gamma}), {{"epsilon", epsilon}}, 2);
}
std::vector<Value> RmsNormGrad(Builder& b, Value x, Value gamma, Value rstd, Value dy) {
  return b.AddMulti(kRmsNormGrad, WithOptional({x, rstd, dy, gamma}), {}, 2);
}

}  // namespace tandem::ops

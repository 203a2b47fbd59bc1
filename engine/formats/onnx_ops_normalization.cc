// Normalizations and softmax.
#include <numeric>
#include <utility>

#include "engine/base/error.h"
#include "engine/formats/onnx_compose.h"
#include "engine/formats/onnx_ops.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

// Over one axis; before opset 13 over the axis and all that follow, as one dimension.
template <Value (*kFunction)(Builder&, Value)>
Outputs Softmax(NodeContext& c) {
  const Shape shape = c.shape(0);
  const int64_t given = c.Int("axis", c.opset() < 13 ? 1 : -1);
  if (c.opset() < 13) {
    if (given < -shape.rank() || given > shape.rank()) {
      return InvalidArgument("axis ", given, " is outside rank ", shape.rank());
    }
    const int axis = static_cast<int>(given < 0 ? given + shape.rank() : given);
    const Value flat =
        ops::Reshape(c.b, c.In(0), {shape.Count(0, axis), shape.Count(axis, shape.rank())});
    return One(ops::Reshape(c.b, kFunction(c.b, flat), shape));
  }
  TANDEM_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(given, shape.rank()));
  const int last = shape.rank() - 1;
  if (axis == last) return One(kFunction(c.b, c.In(0)));
  const Value y = kFunction(c.b, compose::SwapAxes(c.b, c.In(0), axis, last));
  return One(compose::SwapAxes(c.b, y, axis, last));
}

absl::Status CheckPerChannel(NodeContext& c, int i, int64_t channels) {
  if (c.shape(i) == Shape{channels}) return absl::OkStatus();
  return InvalidArgument("input ", i, " is ", c.shape(i).ToString(), ", expected (", channels, ")");
}

// (x - mean) rsqrt(var + epsilon) scale + bias, with the statistics of training; in training mode
// with the batch's own.
Outputs BatchNormalization(NodeContext& c) {
  const Shape shape = c.shape(0);
  const double epsilon = c.Float("epsilon", 1e-5), momentum = c.Float("momentum", 0.9);
  c.IgnoreAttribute("consumed_inputs");
  if (c.opset() < 7 && c.Int("is_test", 0) == 0) {
    return Unimplemented("attribute is_test=0 (training) is not supported");
  }
  if (c.opset() < 9) TANDEM_RETURN_IF_ERROR(c.RequireInt("spatial", 1));
  const bool training = c.opset() >= 14 && c.Int("training_mode", 0) != 0;
  if (c.WantsOutput(1) && !training) {
    return Unimplemented("outputs beside the first are not supported outside training mode");
  }
  if (shape.rank() < 2) return InvalidArgument("input is ", shape.ToString(), ", without channels");
  for (int i = 1; i <= 4; ++i) TANDEM_RETURN_IF_ERROR(CheckPerChannel(c, i, shape[1]));
  const int trailing = shape.rank() - 2;
  Value mean = c.In(3), variance = c.In(4), running_mean, running_variance;
  if (training) {
    std::vector<int64_t> axes = {0};
    for (int i = 2; i < shape.rank(); ++i) axes.push_back(i);
    mean = ops::ReduceMean(c.b, c.In(0), axes, false);
    const Value away = ops::Sub(c.b, c.In(0), compose::AsChannels(c.b, mean, trailing));
    variance = ops::ReduceMean(c.b, ops::Square(c.b, away), axes, false);
    const auto run = [&](Value old, Value current) {
      return ops::Add(c.b, compose::Scale(c.b, old, momentum),
                      compose::Scale(c.b, current, 1 - momentum));
    };
    running_mean = run(c.In(3), mean);
    running_variance = run(c.In(4), variance);
  }
  const Value rstd = ops::Rsqrt(c.b, compose::AddScalar(c.b, variance, epsilon));
  const Value factor = compose::AsChannels(c.b, ops::Mul(c.b, c.In(1), rstd), trailing);
  const Value centred = ops::Sub(c.b, c.In(0), compose::AsChannels(c.b, mean, trailing));
  const Value y =
      ops::Add(c.b, ops::Mul(c.b, centred, factor), compose::AsChannels(c.b, c.In(2), trailing));
  return std::vector<Value>{y, running_mean, running_variance};
}

// Rows of `width` elements normalized to mean 0 and variance 1.
Value NormalizeRows(Builder& b, Value x, int64_t rows, int64_t width, double epsilon) {
  return ops::LayerNorm(b, ops::Reshape(b, x, {rows, width}), {}, {}, epsilon)[0];
}

Outputs InstanceNormalization(NodeContext& c) {
  const Shape shape = c.shape(0);
  c.IgnoreAttribute("consumed_inputs");
  if (shape.rank() < 3) return InvalidArgument("input is ", shape.ToString());
  for (int i = 1; i <= 2; ++i) TANDEM_RETURN_IF_ERROR(CheckPerChannel(c, i, shape[1]));
  const Value rows = NormalizeRows(c.b, c.In(0), shape[0] * shape[1], shape.Count(2, shape.rank()),
                                   c.Float("epsilon", 1e-5));
  const Value y = ops::Reshape(c.b, rows, shape);
  const int trailing = shape.rank() - 2;
  return One(ops::Add(c.b, ops::Mul(c.b, y, compose::AsChannels(c.b, c.In(1), trailing)),
                      compose::AsChannels(c.b, c.In(2), trailing)));
}

// The scale and bias are one a channel; before opset 21 one a group.
Outputs GroupNormalization(NodeContext& c) {
  const Shape shape = c.shape(0);
  const int64_t groups = c.Int("num_groups", 0);
  if (shape.rank() < 2 || groups < 1 || shape[1] % groups != 0) {
    return InvalidArgument("input ", shape.ToString(), " in ", groups, " groups");
  }
  const int64_t stash = c.Int("stash_type", 1);
  if (stash != onnx::TensorProto::FLOAT) {
    return Unimplemented("attribute stash_type=", stash, " is not supported");
  }
  const bool per_group = c.opset() < 21;
  for (int i = 1; i <= 2; ++i) {
    TANDEM_RETURN_IF_ERROR(CheckPerChannel(c, i, per_group ? groups : shape[1]));
  }
  Value y = NormalizeRows(c.b, c.In(0), shape[0] * groups, shape.Count(1, shape.rank()) / groups,
                          c.Float("epsilon", 1e-5));
  const Shape grouped = per_group ? Shape{shape[0], groups, shape.Count(1, shape.rank()) / groups}
                                  : Shape{shape[0], shape[1], shape.Count(2, shape.rank())};
  y = ops::Reshape(c.b, y, grouped);
  y = ops::Add(c.b, ops::Mul(c.b, y, compose::AsChannels(c.b, c.In(1), 1)),
               compose::AsChannels(c.b, c.In(2), 1));
  return One(ops::Reshape(c.b, y, shape));
}

// The dimensions from `axis` on, flattened: x as (rows, width).
struct Rows {
  int axis = 0;
  int64_t rows = 0, width = 0;
  Shape statistics;  // x's shape with those dimensions 1
};

absl::StatusOr<Rows> ReadRows(NodeContext& c) {
  const Shape shape = c.shape(0);
  Rows r;
  TANDEM_ASSIGN_OR_RETURN(r.axis, NormalizeAxis(c.Int("axis", -1), shape.rank()));
  r.rows = shape.Count(0, r.axis);
  r.width = shape.Count(r.axis, shape.rank());
  for (int i = 0; i < shape.rank(); ++i) r.statistics.push_back(i < r.axis ? shape[i] : 1);
  const int64_t stash = c.Int("stash_type", 1);
  if (stash != onnx::TensorProto::FLOAT && c.dtype(0) == DType::kF32) {
    return Unimplemented("attribute stash_type=", stash, " is not supported");
  }
  return r;
}

// Whether input i is one value for each element of a row.
bool SpansRow(NodeContext& c, int i, const Rows& r) {
  const Shape shape = c.shape(0);
  return c.shape(i) == Shape(shape.dims().subspan(r.axis));
}

Outputs LayerNormalization(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const Rows r, ReadRows(c));
  const Shape shape = c.shape(0);
  const double epsilon = c.Float("epsilon", 1e-5);
  const bool fused = SpansRow(c, 1, r) && (!c.Has(2) || SpansRow(c, 2, r));
  const auto flat = [&](int i) {
    return fused && c.Has(i) ? ops::Reshape(c.b, c.In(i), {r.width}) : Value{};
  };
  std::vector<Value> outputs =
      ops::LayerNorm(c.b, ops::Reshape(c.b, c.In(0), {r.rows, r.width}), flat(1), flat(2), epsilon);
  outputs[0] = ops::Reshape(c.b, outputs[0], shape);
  if (!fused) {
    outputs[0] = ops::Mul(c.b, outputs[0], c.In(1));
    if (c.Has(2)) outputs[0] = ops::Add(c.b, outputs[0], c.In(2));
  }
  for (int i = 1; i <= 2; ++i) outputs[i] = ops::Reshape(c.b, outputs[i], r.statistics);
  return outputs;
}

Outputs RmsNormalization(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const Rows r, ReadRows(c));
  const bool fused = SpansRow(c, 1, r);
  const Value gamma = fused ? ops::Reshape(c.b, c.In(1), {r.width}) : Value{};
  const Value rows = ops::Reshape(c.b, c.In(0), {r.rows, r.width});
  const Value y =
      ops::Reshape(c.b, ops::RmsNorm(c.b, rows, gamma, c.Float("epsilon", 1e-5))[0], c.shape(0));
  return One(fused ? y : ops::Mul(c.b, y, c.In(1)));
}

// (x - mean) / sqrt(variance), with the reference's 1e-9 added to the deviation.
Outputs MeanVarianceNormalization(NodeContext& c) {
  std::vector<int64_t> axes = c.Ints("axes");
  if (axes.empty()) axes = {0, 2, 3};
  const Value centred = ops::Sub(c.b, c.In(0), ops::ReduceMean(c.b, c.In(0), axes, true));
  const Value variance = ops::ReduceMean(c.b, ops::Square(c.b, centred), axes, true);
  const Value deviation = compose::AddScalar(c.b, ops::Sqrt(c.b, variance), 1e-9);
  return One(ops::Div(c.b, centred, deviation));
}

// x over its 1- or 2-norm along an axis; where that is 0, 0.
Outputs LpNormalization(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(c.Int("axis", -1), c.rank(0)));
  const int64_t p = c.Int("p", 2);
  if (p != 1 && p != 2) return InvalidArgument("attribute p=", p, ", expected 1 or 2");
  const Value x = c.In(0);
  const Value norm = p == 1
                         ? ops::ReduceSum(c.b, ops::Abs(c.b, x), {axis}, true)
                         : ops::Sqrt(c.b, ops::ReduceSum(c.b, ops::Square(c.b, x), {axis}, true));
  const Value zero = compose::Like(c.b, 0, x), none = ops::Equal(c.b, norm, zero);
  const Value divisor = ops::Where(c.b, none, compose::Like(c.b, 1, x), norm);
  return One(ops::Where(c.b, none, zero, ops::Div(c.b, x, divisor)));
}

constexpr OnnxOp kOps[] = {
    {.name = "BatchNormalization",
     .convert = BatchNormalization,
     .min_inputs = 5,
     .max_inputs = 5,
     .fixed_inputs = InputSet(3, 4)},
    {.name = "GroupNormalization", .convert = GroupNormalization, .min_inputs = 3, .max_inputs = 3},
    {.name = "InstanceNormalization",
     .convert = InstanceNormalization,
     .min_inputs = 3,
     .max_inputs = 3},
    {.name = "LayerNormalization", .convert = LayerNormalization, .min_inputs = 2, .max_inputs = 3},
    {.name = "LogSoftmax", .convert = Softmax<ops::LogSoftmax>},
    {.name = "LpNormalization", .convert = LpNormalization},
    {.name = "MeanVarianceNormalization", .convert = MeanVarianceNormalization},
    {.name = "RMSNormalization", .convert = RmsNormalization, .min_inputs = 2, .max_inputs = 2},
    {.name = "Softmax", .convert = Softmax<ops::Softmax>},
};

}  // namespace

std::span<const OnnxOp> OnnxNormalizationOps() { return kOps; }

}  // namespace tandem

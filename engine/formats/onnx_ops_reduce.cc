// Reductions, running sums and products, and positions of extremes.
#include <algorithm>
#include <limits>
#include <utility>

#include "engine/base/error.h"
#include "engine/formats/onnx_compose.h"
#include "engine/formats/onnx_ops.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

using compose::Like;

// What a reduction node says. `axes` is never empty where anything is to be reduced.
struct Reduction {
  Value x;  // a bool's as i32
  std::vector<int64_t> axes;
  bool keep = true;
  bool noop = false;  // nothing to reduce
};

// The axes are an attribute before opset 18 (of ReduceSum: 13), an input after.
absl::StatusOr<Reduction> ReadReduction(NodeContext& c) {
  Reduction r;
  const int64_t since = c.node().op_type() == "ReduceSum" ? 13 : 18;
  TANDEM_ASSIGN_OR_RETURN(const std::optional<std::vector<int64_t>> axes,
                          c.IntsAttributeOrInput("axes", 1, since));
  r.keep = c.Int("keepdims", 1) != 0;
  const bool noop_with_empty_axes = c.Int("noop_with_empty_axes", 0) != 0;
  r.x = c.In(0);
  if (c.dtype(0) == DType::kBool) r.x = ops::Cast(c.b, r.x, DType::kI32);
  if (axes.has_value()) r.axes = *axes;
  if (r.axes.empty()) {
    r.noop = noop_with_empty_axes || c.rank(0) == 0;
    for (int i = 0; i < c.rank(0); ++i) r.axes.push_back(i);
  }
  for (int64_t& axis : r.axes) {
    TANDEM_ASSIGN_OR_RETURN(const int normal, NormalizeAxis(axis, c.rank(0)));
    axis = normal;
  }
  return r;
}

using Reducer = Value (*)(Builder&, Value, std::vector<int64_t>, bool);

Value Map(Builder&, Value x) { return x; }
// Of integers through f64.
Value Root(Builder& b, Value x) {
  if (IsFloat(b.dtype(x))) return ops::Sqrt(b, x);
  return compose::CastTo(b, ops::Sqrt(b, ops::Cast(b, x, DType::kF64)), b.dtype(x));
}
Value Logarithm(Builder& b, Value x) {
  if (IsFloat(b.dtype(x))) return ops::Log(b, x);
  return compose::CastTo(b, ops::Log(b, ops::Cast(b, x, DType::kF64)), b.dtype(x));
}

// finish(reduce(prepare(x)))
template <Value (*kPrepare)(Builder&, Value), Reducer kReduce, Value (*kFinish)(Builder&, Value)>
Outputs Reduce(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(Reduction r, ReadReduction(c));
  Value y = kPrepare(c.b, r.x);
  if (!r.noop) y = kReduce(c.b, y, r.axes, r.keep);
  return One(compose::CastTo(c.b, kFinish(c.b, y), c.dtype(0)));
}

// Integers divide by the count at the end.
Value Average(Builder& b, Value x, std::vector<int64_t> axes, bool keep) {
  if (IsFloat(b.dtype(x))) return ops::ReduceMean(b, x, std::move(axes), keep);
  int64_t count = 1;
  for (const int64_t axis : axes) count *= b.shape(x)[static_cast<int>(axis)];
  if (count == 0) return b.Fail(InvalidArgument("the mean of no integers"));
  const Value sum = ops::ReduceSum(b, x, std::move(axes), keep);
  return ops::Div(b, sum, Like(b, static_cast<double>(count), sum));
}

// m + ln(sum(e^(x - m))), m the maximum where that is finite, else 0.
Outputs ReduceLogSumExp(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(Reduction r, ReadReduction(c));
  Builder& b = c.b;
  const DType dtype = c.dtype(0);
  Value x = IsFloat(b.dtype(r.x)) ? r.x : ops::Cast(b, r.x, DType::kF64);
  if (r.noop) return One(compose::CastTo(b, x, dtype));
  int64_t count = 1;
  for (const int64_t axis : r.axes) count *= b.shape(x)[static_cast<int>(axis)];
  if (count == 0) {
    const Value sum = ops::ReduceSum(b, x, r.axes, r.keep);  // zeros
    return One(compose::CastTo(b, ops::Log(b, sum), dtype));
  }
  const Value largest = ops::ReduceMax(b, x, r.axes, true);
  const Value infinite = ops::Equal(b, ops::Abs(b, largest),
                                    Like(b, std::numeric_limits<double>::infinity(), largest));
  const Value m = ops::Where(b, infinite, Like(b, 0, largest), largest);
  const Value sum = ops::ReduceSum(b, ops::Exp(b, ops::Sub(b, x, m)), r.axes, true);
  Value y = ops::Add(b, ops::Log(b, sum), m);
  if (!r.keep) {
    const Shape shape = c.shape(0);
    Shape dropped;
    for (int i = 0; i < shape.rank(); ++i) {
      if (std::find(r.axes.begin(), r.axes.end(), i) == r.axes.end()) dropped.push_back(shape[i]);
    }
    y = ops::Reshape(b, y, dropped);
  }
  return One(compose::CastTo(b, y, dtype));
}

template <bool kMax>
Outputs ArgExtreme(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(c.Int("axis", 0), c.rank(0)));
  const bool keep = c.Int("keepdims", 1) != 0;
  const bool last = c.Int("select_last_index", 0) != 0;
  const int64_t size = c.shape(0)[axis];
  Value x = c.In(0);
  if (last) x = compose::Reverse(c.b, x, axis);
  Value index = kMax ? ops::ArgMax(c.b, x, axis, keep) : ops::ArgMin(c.b, x, axis, keep);
  if (last) {
    index = ops::Sub(c.b, c.Scalar(static_cast<double>(size - 1), DType::kI64), index);
  }
  return One(index);
}

// 1 at the first maximum along the axis, else 0. Before opset 13 the dimensions from the axis on
// count as one.
Outputs Hardmax(NodeContext& c) {
  const Shape shape = c.shape(0);
  TANDEM_ASSIGN_OR_RETURN(const int axis,
                          NormalizeAxis(c.Int("axis", c.opset() < 13 ? 1 : -1), shape.rank()));
  Value x = c.In(0);
  int along = axis;
  if (c.opset() < 13) {
    x = ops::Reshape(c.b, x, {shape.Count(0, axis), shape.Count(axis, shape.rank())});
    along = 1;
  }
  const Shape flat = c.b.shape(x);
  const Value first = ops::ArgMax(c.b, x, along, true);
  Shape line;
  for (int i = 0; i < flat.rank(); ++i) line.push_back(i == along ? flat[i] : 1);
  TANDEM_RETURN_IF_ERROR(c.b.status());
  const Value positions = ops::Reshape(c.b, compose::Iota(c.b, flat[along]), line);
  const Value hit = ops::Cast(c.b, ops::Equal(c.b, positions, first), c.dtype(0));
  return One(ops::Reshape(c.b, hit, shape));
}

// Running sums or products along an axis in log2(n) steps (Hillis and Steele 1986): after step k
// element i holds the result of elements i - 2^k + 1 .. i.
template <Value (*kCombine)(Builder&, Value, Value), int kNeutral>
Outputs Cumulative(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const std::vector<int64_t> axes, c.ConstantInts(1, "axis"));
  if (axes.size() != 1) return InvalidArgument("axis has ", axes.size(), " values");
  TANDEM_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(axes[0], c.rank(0)));
  const bool exclusive = c.Int("exclusive", 0) != 0, reverse = c.Int("reverse", 0) != 0;
  const Shape shape = c.shape(0);
  const int64_t n = shape[axis];
  Value x = c.In(0);
  // Elements move `distance` places up; the first ones become neutral.
  const auto shift = [&](Value v, int64_t distance) {
    std::vector<int64_t> before(shape.rank(), 0), after(shape.rank(), 0);
    before[axis] = distance;
    const Value kept = compose::SliceAxis(c.b, v, axis, 0, n - distance);
    return ops::Pad(c.b, kept, before, after, kNeutral);
  };
  if (reverse) x = compose::Reverse(c.b, x, axis);
  if (exclusive && n > 0) x = shift(x, 1);
  for (int64_t distance = 1; distance < n; distance *= 2) {
    x = kCombine(c.b, x, shift(x, distance));
  }
  if (reverse) x = compose::Reverse(c.b, x, axis);
  return One(compose::CastTo(c.b, x, c.dtype(0)));
}

constexpr OnnxOp ReduceOp(std::string_view name, Outputs (*convert)(NodeContext&)) {
  return {.name = name,
          .convert = convert,
          .min_inputs = 1,
          .max_inputs = 2,
          .shape_inputs = InputSet(1)};
}
constexpr OnnxOp CumulativeOp(std::string_view name, Outputs (*convert)(NodeContext&)) {
  return {.name = name,
          .convert = convert,
          .min_inputs = 2,
          .max_inputs = 2,
          .shape_inputs = InputSet(1)};
}

constexpr OnnxOp kOps[] = {
    {.name = "ArgMax", .convert = ArgExtreme<true>},
    {.name = "ArgMin", .convert = ArgExtreme<false>},
    CumulativeOp("CumProd", Cumulative<ops::Mul, 1>),
    CumulativeOp("CumSum", Cumulative<ops::Add, 0>),
    {.name = "Hardmax", .convert = Hardmax},
    ReduceOp("ReduceL1", Reduce<ops::Abs, ops::ReduceSum, Map>),
    ReduceOp("ReduceL2", Reduce<ops::Square, ops::ReduceSum, Root>),
    ReduceOp("ReduceLogSum", Reduce<Map, ops::ReduceSum, Logarithm>),
    ReduceOp("ReduceLogSumExp", ReduceLogSumExp),
    ReduceOp("ReduceMax", Reduce<Map, ops::ReduceMax, Map>),
    ReduceOp("ReduceMean", Reduce<Map, Average, Map>),
    ReduceOp("ReduceMin", Reduce<Map, ops::ReduceMin, Map>),
    ReduceOp("ReduceProd", Reduce<Map, ops::ReduceProd, Map>),
    ReduceOp("ReduceSum", Reduce<Map, ops::ReduceSum, Map>),
    ReduceOp("ReduceSumSquare", Reduce<ops::Square, ops::ReduceSum, Map>),
};

}  // namespace

std::span<const OnnxOp> OnnxReduceOps() { return kOps; }

}  // namespace tandem

#include "engine/formats/onnx_compose.h"

#include <algorithm>
#include <numbers>
#include <numeric>
#include <utility>

#include "engine/base/error.h"
#include "engine/ops/ops.h"

namespace tandem::compose {

Value Like(Builder& b, double value, Value x) { return b.Scalar(value, b.dtype(x)); }

Value AddScalar(Builder& b, Value x, double value) {
  return value == 0 ? x : ops::Add(b, x, Like(b, value, x));
}

Value Scale(Builder& b, Value x, double factor) {
  return factor == 1 ? x : ops::Mul(b, x, Like(b, factor, x));
}

Value Greater(Builder& b, Value x, Value y) { return ops::Less(b, y, x); }

Value GreaterOrEqual(Builder& b, Value x, Value y) { return ops::LessOrEqual(b, y, x); }

Value CastTo(Builder& b, Value x, DType dtype) {
  return b.dtype(x) == dtype ? x : ops::Cast(b, x, dtype);
}

Value SwapAxes(Builder& b, Value x, int i, int j) {
  std::vector<int64_t> permutation(b.shape(x).rank());
  std::iota(permutation.begin(), permutation.end(), 0);
  if (b.ok()) std::swap(permutation[i], permutation[j]);
  return ops::Transpose(b, x, std::move(permutation));
}

Value SliceAxis(Builder& b, Value x, int axis, int64_t begin, int64_t end) {
  if (!b.ok()) return {};
  const Shape shape = b.shape(x);
  if (begin == 0 && end == shape[axis]) return x;
  std::vector<int64_t> starts(shape.rank(), 0), ends = Dims(shape), steps(shape.rank(), 1);
  starts[axis] = begin;
  ends[axis] = end;
  return ops::Slice(b, x, std::move(starts), std::move(ends), std::move(steps));
}

Value Reverse(Builder& b, Value x, int axis) {
  if (!b.ok()) return {};
  const Shape shape = b.shape(x);
  if (shape[axis] <= 1) return x;
  std::vector<int64_t> starts(shape.rank(), 0), ends = Dims(shape), steps(shape.rank(), 1);
  starts[axis] = shape[axis] - 1;
  ends[axis] = -1;
  steps[axis] = -1;
  return ops::Slice(b, x, std::move(starts), std::move(ends), std::move(steps));
}

Value ExpandAxis(Builder& b, Value x, int axis) {
  std::vector<int64_t> dims = Dims(b.shape(x));
  if (!b.ok()) return {};
  dims.insert(dims.begin() + axis, 1);
  return ops::Reshape(b, x, Shape(dims));
}

Value DropAxis(Builder& b, Value x, int axis) {
  std::vector<int64_t> dims = Dims(b.shape(x));
  if (!b.ok()) return {};
  dims.erase(dims.begin() + axis);
  return ops::Reshape(b, x, Shape(dims));
}

Value AsChannels(Builder& b, Value x, int trailing) {
  Shape shape{b.shape(x).num_elements()};
  for (int i = 0; i < trailing; ++i) shape.push_back(1);
  return ops::Reshape(b, x, shape);
}

Value Iota(Builder& b, int64_t n) {
  constexpr int64_t kMost = int64_t{1} << 26;
  if (!b.ok()) return {};
  if (n > kMost) return b.Fail(ResourceExhausted("a table of ", n, " indices"));
  Tensor tensor(DType::kI64, {n});
  std::iota(tensor.data<int64_t>().begin(), tensor.data<int64_t>().end(), int64_t{0});
  return b.Constant(std::move(tensor));
}

Value Atan(Builder& b, Value x) {
  // |x| above tan(3 pi / 8): pi/2 + atan(-1/|x|); above tan(pi / 8): pi/4 + atan((|x|-1)/(|x|+1)).
  constexpr double kTan3Pi8 = 2.414213562373095, kTanPi8 = 0.4142135623730950;
  const Value a = ops::Abs(b, x), one = Like(b, 1, x), zero = Like(b, 0, x);
  const Value large = Greater(b, a, Like(b, kTan3Pi8, x));
  const Value middle = Greater(b, a, Like(b, kTanPi8, x));
  // Divisors that are never 0, so that no branch not taken makes a NaN gradient.
  const Value inverse = ops::Neg(b, ops::Reciprocal(b, ops::Max(b, a, one)));
  const Value shifted = ops::Div(b, ops::Sub(b, ops::Min(b, a, Like(b, 4, x)), one),
                                 ops::Add(b, ops::Min(b, a, Like(b, 4, x)), one));
  const Value t = ops::Where(b, large, inverse, ops::Where(b, middle, shifted, a));
  const Value offset = ops::Where(b, large, Like(b, std::numbers::pi / 2, x),
                                  ops::Where(b, middle, Like(b, std::numbers::pi / 4, x), zero));
  const Value z = ops::Square(b, t);
  Value p = Like(b, 8.05374449538e-2, x);
  for (const double c : {-1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1}) {
    p = AddScalar(b, ops::Mul(b, p, z), c);
  }
  const Value magnitude = ops::Add(b, offset, ops::Add(b, t, ops::Mul(b, t, ops::Mul(b, p, z))));
  return ops::Where(b, ops::Less(b, x, zero), ops::Neg(b, magnitude), magnitude);
}

std::vector<int64_t> Dims(const Shape& shape) { return {shape.begin(), shape.end()}; }

absl::StatusOr<std::vector<int>> NormalizeAxes(std::span<const int64_t> axes, int rank) {
  std::vector<int> normal;
  for (const int64_t axis : axes) {
    TANDEM_ASSIGN_OR_RETURN(const int n, NormalizeAxis(axis, rank));
    if (std::find(normal.begin(), normal.end(), n) != normal.end()) {
      return InvalidArgument("axis ", n, " is named twice");
    }
    normal.push_back(n);
  }
  return normal;
}

}  // namespace tandem::compose

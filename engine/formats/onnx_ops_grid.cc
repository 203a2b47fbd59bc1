// Sampling at the points of a grid (Jaderberg et al., "Spatial transformer networks", 2015).
#include <cmath>
#include <numeric>
#include <utility>

#include "engine/base/error.h"
#include "engine/formats/onnx_compose.h"
#include "engine/formats/onnx_ops.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

constexpr int64_t kMaxPoints = int64_t{1} << 26;

// The centres of n cells of [-1, 1], or n points from end to end.
std::vector<double> AxisPoints(int64_t n, bool align_corners) {
  std::vector<double> points(n);
  for (int64_t i = 0; i < n; ++i) {
    const auto place = static_cast<double>(i), count = static_cast<double>(n);
    points[i] =
        align_corners ? (n == 1 ? 0 : 2 * place / (count - 1) - 1) : (2 * place + 1) / count - 1;
  }
  return points;
}

// theta (N, K, K + 1) times each point (x, y, [z,] 1) of a regular grid: (N, [D,] H, W, K).
Outputs AffineGrid(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const std::vector<int64_t> size, c.ConstantInts(1, "size"));
  const bool align_corners = c.Int("align_corners", 0) != 0;
  const int k = static_cast<int>(size.size()) - 2;
  if (k != 2 && k != 3) return InvalidArgument("size has ", size.size(), " values");
  if (c.shape(0) != Shape{size[0], k, k + 1}) {
    return InvalidArgument("theta is ", c.shape(0).ToString(), ", expected ",
                           Shape{size[0], k, k + 1}.ToString());
  }
  int64_t count = 1;
  std::vector<std::vector<double>> points;
  Shape shape{size[0]};
  for (int i = 0; i < k; ++i) {
    if (size[2 + i] < 1 || size[2 + i] > kMaxPoints / count) {
      return InvalidArgument("size[", 2 + i, "] is ", size[2 + i]);
    }
    count *= size[2 + i];
    shape.push_back(size[2 + i]);
    points.push_back(AxisPoints(size[2 + i], align_corners));
  }
  shape.push_back(k);
  Tensor base(DType::kF32, {count, k + 1});
  for (int64_t p = 0; p < count; ++p) {
    int64_t rest = p;
    for (int axis = k - 1; axis >= 0; --axis) {  // the last dimension is x
      base.data<float>()[p * (k + 1) + (k - 1 - axis)] =
          static_cast<float>(points[axis][rest % size[2 + axis]]);
      rest /= size[2 + axis];
    }
    base.data<float>()[p * (k + 1) + k] = 1;
  }
  const Value grid = compose::CastTo(c.b, c.b.Constant(std::move(base)), c.dtype(0));
  return One(ops::Reshape(c.b, ops::MatMul(c.b, grid, c.In(0), false, true), shape));
}

enum class Padding : uint8_t { kZeros, kBorder, kReflection };

// One dimension of the sampled tensor.
struct SampledAxis {
  int64_t size = 0;
  double low = 0, high = 0;  // where reflection turns
};

// x bounced between low and high.
Value Reflect(Builder& b, Value x, const SampledAxis& a) {
  const double range = a.high - a.low;
  if (range <= 0) return ops::BroadcastTo(b, compose::Like(b, a.low, x), Shape(b.shape(x)));
  const Value distance = ops::Abs(b, compose::AddScalar(b, x, -a.low));
  const Value phase = ops::Mod(b, distance, compose::Like(b, 2 * range, x));
  const Value back = ops::Abs(b, compose::AddScalar(b, phase, -range));
  return ops::Sub(b, compose::Like(b, a.low + range, x), back);
}

Value ClampTo(Builder& b, Value x, double low, double high) {
  return ops::Min(b, ops::Max(b, x, compose::Like(b, low, x)), compose::Like(b, high, x));
}

// An element to read along one dimension, and its share.
struct Tap {
  Value index;   // i64
  Value weight;  // invalid: 1
};

Tap MakeTap(Builder& b, Value place, Value weight, const SampledAxis& a, Padding padding) {
  const double last = static_cast<double>(a.size - 1);
  if (padding == Padding::kZeros) {
    const Value zero = compose::Like(b, 0, place);
    const Value inside = ops::And(b, ops::LessOrEqual(b, zero, place),
                                  ops::LessOrEqual(b, place, compose::Like(b, last, place)));
    weight = ops::Where(b, inside, weight.valid() ? weight : compose::Like(b, 1, place), zero);
  } else if (padding == Padding::kReflection) {
    place = Reflect(b, place, a);
  }
  return {ops::Cast(b, ClampTo(b, place, 0, last), DType::kI64), weight};
}

// Keys 1981 with a = -0.75, for a tap `distance` away.
Value CubicWeight(Builder& b, Value distance) {
  constexpr double kA = -0.75;
  const Value x = ops::Abs(b, distance);
  const auto poly = [&](std::initializer_list<double> coefficients) {
    Value p;
    for (const double k : coefficients) {
      p = p.valid() ? compose::AddScalar(b, ops::Mul(b, p, x), k) : compose::Like(b, k, x);
    }
    return p;
  };
  const Value near = poly({kA + 2, -(kA + 3), 0, 1});
  const Value far = poly({kA, -5 * kA, 8 * kA, -4 * kA});
  return ops::Where(b, ops::LessOrEqual(b, x, compose::Like(b, 1, x)), near, far);
}

// The taps for coordinates in [-1, 1].
std::vector<Tap> AxisTaps(Builder& b, Value coordinate, const SampledAxis& a, bool align_corners,
                          const std::string& mode, Padding padding) {
  const auto size = static_cast<double>(a.size);
  Value place =
      align_corners
          ? compose::Scale(b, compose::AddScalar(b, coordinate, 1), (size - 1) / 2)
          : compose::AddScalar(b, compose::Scale(b, compose::AddScalar(b, coordinate, 1), size / 2),
                               -0.5);
  if (mode == "nearest") place = ops::Round(b, place);
  if (padding == Padding::kBorder) place = ClampTo(b, place, 0, size - 1);
  if (padding == Padding::kReflection) place = Reflect(b, place, a);
  if (mode == "nearest") return {MakeTap(b, ops::Round(b, place), Value{}, a, padding)};
  const Value floor = ops::Floor(b, place);
  const bool cubic = mode == "cubic";
  std::vector<Tap> taps;
  for (int k = cubic ? -1 : 0; k <= (cubic ? 2 : 1); ++k) {
    const Value at = compose::AddScalar(b, floor, k);
    const Value distance = ops::Sub(b, place, at);
    const Value weight = cubic ? CubicWeight(b, distance)
                               : ops::Sub(b, compose::Like(b, 1, distance), ops::Abs(b, distance));
    taps.push_back(MakeTap(b, at, weight, a, padding));
  }
  return taps;
}

// The weighted sum of `rows` (N size..., C) over all combinations of taps: (points, C).
Value SumTaps(Builder& b, Value rows, Value batch_start, const std::vector<std::vector<Tap>>& taps,
              const std::vector<SampledAxis>& axes) {
  Value sum;
  std::vector<size_t> pick(taps.size(), 0);
  while (b.ok()) {
    Value index, weight;
    for (size_t a = 0; a < taps.size(); ++a) {
      const Tap& tap = taps[a][pick[a]];
      index = a == 0 ? tap.index
                     : ops::Add(b, compose::Scale(b, index, static_cast<double>(axes[a].size)),
                                tap.index);
      if (tap.weight.valid()) {
        weight = weight.valid() ? ops::Mul(b, weight, tap.weight) : tap.weight;
      }
    }
    index = ops::Add(b, index, batch_start);
    Value part = ops::Gather(b, rows, index, 0);
    if (weight.valid() && b.ok()) {
      part = ops::Mul(b, part, compose::ExpandAxis(b, weight, b.shape(weight).rank()));
    }
    sum = sum.valid() ? ops::Add(b, sum, part) : part;
    size_t a = 0;
    while (a < taps.size() && ++pick[a] == taps[a].size()) pick[a++] = 0;
    if (a == taps.size()) break;
  }
  return sum;
}

// x (N, C, [D,] H, W) at grid (N, ..., K) of points (x, y[, z]): (N, C, ...)
Outputs GridSample(NodeContext& c) {
  Builder& b = c.b;
  const Shape x = c.shape(0), grid = c.shape(1);
  const int k = x.rank() - 2;
  if ((k != 2 && k != 3) || grid.rank() != x.rank() || grid[0] != x[0] || grid[-1] != k ||
      x.num_elements() == 0) {
    return InvalidArgument("input ", x.ToString(), " and grid ", grid.ToString());
  }
  std::string mode = c.String("mode", c.opset() < 20 ? "bilinear" : "linear");
  if (mode == "bilinear") mode = "linear";
  if (mode == "bicubic") mode = "cubic";
  if (mode != "linear" && mode != "nearest" && mode != "cubic") {
    return InvalidArgument("attribute mode='", mode, "' is unknown");
  }
  if (mode == "cubic" && k == 3) return Unimplemented("cubic sampling of volumes");
  const std::string padding_mode = c.String("padding_mode", "zeros");
  Padding padding = Padding::kZeros;
  if (padding_mode == "border") {
    padding = Padding::kBorder;
  } else if (padding_mode == "reflection") {
    padding = Padding::kReflection;
  } else if (padding_mode != "zeros") {
    return InvalidArgument("attribute padding_mode='", padding_mode, "' is unknown");
  }
  const bool align_corners = c.Int("align_corners", 0) != 0;
  std::vector<SampledAxis> axes;
  std::vector<std::vector<Tap>> taps;
  for (int a = 0; a < k; ++a) {
    const auto size = static_cast<double>(x[2 + a]);
    axes.push_back({.size = x[2 + a],
                    .low = align_corners ? 0 : -0.5,
                    .high = align_corners ? size - 1 : size - 0.5});
    const Value coordinate = compose::DropAxis(
        b, compose::SliceAxis(b, c.In(1), k + 1, k - 1 - a, k - a), k + 1);  // (N, ...)
    taps.push_back(AxisTaps(b, compose::CastTo(b, coordinate, c.dtype(0)), axes[a], align_corners,
                            mode, padding));
  }
  std::vector<int64_t> channels_last = {0};
  for (int i = 2; i < x.rank(); ++i) channels_last.push_back(i);
  channels_last.push_back(1);
  const int64_t plane = x.Count(2, x.rank());
  const Value rows =
      ops::Reshape(b, ops::Transpose(b, c.In(0), channels_last), {x[0] * plane, x[1]});
  Shape per_batch{x[0]};
  for (int i = 0; i < k; ++i) per_batch.push_back(1);
  const Value start = ops::Reshape(
      b, compose::Scale(b, compose::Iota(b, x[0]), static_cast<double>(plane)), per_batch);
  const Value y = SumTaps(b, rows, start, taps, axes);  // (N, ..., C)
  std::vector<int64_t> channels_first = {0, k + 1};
  for (int i = 1; i <= k; ++i) channels_first.push_back(i);
  return One(ops::Transpose(b, y, channels_first));
}

constexpr OnnxOp kOps[] = {
    {.name = "AffineGrid",
     .convert = AffineGrid,
     .min_inputs = 2,
     .max_inputs = 2,
     .shape_inputs = InputSet(1)},
    {.name = "GridSample", .convert = GridSample, .min_inputs = 2, .max_inputs = 2},
};

}  // namespace

std::span<const OnnxOp> OnnxGridOps() { return kOps; }

}  // namespace tandem

// Convolutions, poolings and matrix products.
#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/base/error.h"
#include "engine/formats/onnx_compose.h"
#include "engine/formats/onnx_ops.h"
#include "engine/formats/onnx_window.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

using compose::Dims;

std::vector<int64_t> SpatialDims(const Shape& shape) {
  std::vector<int64_t> dims;
  for (int i = 2; i < shape.rank(); ++i) dims.push_back(shape[i]);
  return dims;
}

std::vector<int64_t> SpatialAxes(int rank) {
  std::vector<int64_t> axes;
  for (int i = 2; i < rank; ++i) axes.push_back(i);
  return axes;
}

ops::ConvOptions OptionsOf(const OnnxWindow& window, int64_t groups) {
  return {.strides = window.strides,
          .pads_begin = window.pads_begin,
          .pads_end = window.pads_end,
          .dilations = window.dilations,
          .groups = groups};
}

absl::Status CheckWeight(NodeContext& c) {
  if (c.rank(1) == c.rank(0) && c.rank(0) >= 3) return absl::OkStatus();
  return InvalidArgument("input ", c.shape(0).ToString(), " and weight ", c.shape(1).ToString(),
                         ": expected equal ranks of 3 or more");
}

// For what has no form over three dimensions.
absl::Status CheckPlanar(const OnnxWindow& window) {
  if (window.spatial() <= 2) return absl::OkStatus();
  return Unimplemented("over ", window.spatial(), " spatial dimensions it is not supported");
}

Outputs Conv(NodeContext& c) {
  TANDEM_RETURN_IF_ERROR(CheckWeight(c));
  TANDEM_ASSIGN_OR_RETURN(const OnnxWindow window, ReadWindow(c, SpatialDims(c.shape(1))));
  return One(ConvSpatial(c.b, c.In(0), c.In(1), c.In(2), OptionsOf(window, c.Int("group", 1))));
}

// What a window makes of x's dimensions when it is transposed: stride (size - 1) + extent.
absl::StatusOr<std::vector<int64_t>> TransposedExtents(const Shape& x, const OnnxWindow& window) {
  std::vector<int64_t> whole;
  for (int i = 0; i < window.spatial(); ++i) {
    const int64_t size = x[i + 2];
    const int64_t extent = (window.kernel[i] - 1) * window.dilations[i] + 1;
    if (size < 1 || size > kMaxTensorBytes / window.strides[i] || extent > kMaxTensorBytes) {
      return InvalidArgument("dimension ", i + 2, " of ", x.ToString(), " with stride ",
                             window.strides[i], " and a kernel over ", extent);
    }
    whole.push_back(window.strides[i] * (size - 1) + extent);
  }
  return whole;
}

// Where a transposed convolution's whole output is cut (or, where negative, extended by zeros).
struct Cut {
  std::vector<int64_t> begin, end;
};

absl::StatusOr<Cut> TransposedPadding(NodeContext& c, const OnnxWindow& window,
                                      const std::vector<int64_t>& whole,
                                      const std::vector<int64_t>& output_padding) {
  const Shape x = c.shape(0);
  const int spatial = window.spatial();
  const std::vector<int64_t> pads = c.Ints("pads"), wanted = c.Ints("output_shape");
  const std::string auto_pad = c.String("auto_pad", "NOTSET");
  const bool same = auto_pad == "SAME_UPPER" || auto_pad == "SAME_LOWER";
  if (auto_pad != "NOTSET" && auto_pad != "VALID" && !same) {
    return InvalidArgument("attribute auto_pad='", auto_pad, "' is unknown");
  }
  if (!pads.empty() && static_cast<int>(pads.size()) != 2 * spatial) {
    return InvalidArgument("attribute pads has ", pads.size(), " entries, expected ", 2 * spatial);
  }
  if (!wanted.empty() && static_cast<int>(wanted.size()) != spatial) {
    return InvalidArgument("attribute output_shape has ", wanted.size(), " entries, expected ",
                           spatial);
  }
  Cut cut;
  for (int i = 0; i < spatial; ++i) {
    if (wanted.empty() && !same) {
      cut.begin.push_back(pads.empty() ? 0 : pads[i]);
      cut.end.push_back((pads.empty() ? 0 : pads[spatial + i]) - output_padding[i]);
      continue;
    }
    const int64_t size = wanted.empty() ? x[i + 2] * window.strides[i] : wanted[i];
    if (size < 1 || size > (int64_t{1} << 31)) {
      return InvalidArgument("attribute output_shape has ", size);
    }
    const int64_t total = whole[i] + output_padding[i] - size;
    const int64_t half = std::max<int64_t>(0, total) / 2;
    cut.begin.push_back(auto_pad == "SAME_UPPER" || total < 0 ? half : total - half);
    cut.end.push_back(total - cut.begin.back() - output_padding[i]);
  }
  return cut;
}

// The transposed convolution is the gradient of a convolution by its input: unpadded it makes
// stride (input - 1) + extent elements of each dimension, of which padding cuts some.
Outputs ConvTranspose(NodeContext& c) {
  TANDEM_RETURN_IF_ERROR(CheckWeight(c));
  const Shape x = c.shape(0), weight = c.shape(1);
  TANDEM_ASSIGN_OR_RETURN(OnnxWindow window, ReadUnpaddedWindow(c, SpatialDims(weight)));
  TANDEM_RETURN_IF_ERROR(CheckPlanar(window));
  const int64_t groups = c.Int("group", 1);
  if (groups < 1 || groups > x[1]) return InvalidArgument("attribute group=", groups);
  const int spatial = window.spatial();
  std::vector<int64_t> output_padding = c.Ints("output_padding");
  if (output_padding.empty()) output_padding.assign(spatial, 0);
  if (static_cast<int>(output_padding.size()) != spatial) {
    return InvalidArgument("attribute output_padding has ", output_padding.size(), " entries");
  }
  TANDEM_ASSIGN_OR_RETURN(const std::vector<int64_t> whole, TransposedExtents(x, window));
  TANDEM_ASSIGN_OR_RETURN(const Cut cut, TransposedPadding(c, window, whole, output_padding));
  window.pads_begin = cut.begin;
  window.pads_end = cut.end;
  return One(ops::ConvTranspose(c.b, c.In(0), c.In(1), c.In(2), OptionsOf(window, groups)));
}

ops::PoolOptions PoolOptionsOf(NodeContext& c, const OnnxWindow& window) {
  return {.kernel = window.kernel,
          .strides = window.strides,
          .pads_begin = window.pads_begin,
          .pads_end = window.pads_end,
          .dilations = window.dilations,
          .ceil_mode = c.Int("ceil_mode", 0) != 0};
}

// Offsets of each (n, c) plane within the whole tensor: (N, C, 1, ...) i64.
Value PlaneOffsets(Builder& b, const Shape& shape) {
  Shape offsets{shape[0], shape[1]};
  for (int i = 2; i < shape.rank(); ++i) offsets.push_back(1);
  const Value planes = ops::Reshape(b, compose::Iota(b, shape[0] * shape[1]), offsets);
  return compose::Scale(b, planes, static_cast<double>(shape.Count(2, shape.rank())));
}

Outputs MaxPool(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const OnnxWindow window, ReadWindow(c, {}));
  const int64_t column_major = c.Int("storage_order", 0);
  const Shape x = c.shape(0);
  const ops::PoolOptions options = PoolOptionsOf(c, window);
  if (!c.WantsOutput(1)) return One(MaxPoolSpatial(c.b, c.In(0), options));
  TANDEM_RETURN_IF_ERROR(CheckPlanar(window));
  const std::vector<Value> pooled = ops::MaxPool(c.b, c.In(0), options);
  // ONNX counts places in the whole tensor; in column-major order within a plane if so asked.
  Value indices = pooled[1];
  if (column_major != 0 && x.rank() == 4) {
    const Value width = c.Scalar(static_cast<double>(x[3]), DType::kI64);
    const Value row = ops::Div(c.b, indices, width);
    const Value column = ops::Sub(c.b, indices, ops::Mul(c.b, row, width));
    indices = ops::Add(c.b, compose::Scale(c.b, column, static_cast<double>(x[2])), row);
  }
  return std::vector<Value>{pooled[0], ops::Add(c.b, indices, PlaneOffsets(c.b, x))};
}

// Adds x's elements at the places that MaxPool gave; places outside the output are moved inside.
Outputs MaxUnpool(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const OnnxWindow window, ReadWindow(c, {}));
  TANDEM_RETURN_IF_ERROR(CheckPlanar(window));
  const Shape x = c.shape(0);
  Shape shape{x[0], x[1]};
  TANDEM_ASSIGN_OR_RETURN(const std::vector<int64_t> whole, TransposedExtents(x, window));
  for (int i = 0; i < window.spatial(); ++i) {
    shape.push_back(whole[i] - window.pads_begin[i] - window.pads_end[i]);
    if (shape[-1] < 1) return InvalidArgument("the padding leaves nothing of dimension ", i + 2);
  }
  if (c.shape(1) != x) {
    return InvalidArgument("indices ", c.shape(1).ToString(), " for input ", x.ToString());
  }
  if (c.Has(2)) {
    TANDEM_ASSIGN_OR_RETURN(const std::vector<int64_t> dims, c.ConstantInts(2, "output_shape"));
    TANDEM_ASSIGN_OR_RETURN(shape, Shape::Checked(dims, 4, "output_shape"));
    if (shape.rank() != x.rank() || shape[0] != x[0] || shape[1] != x[1]) {
      return InvalidArgument("output_shape ", shape.ToString(), " for input ", x.ToString());
    }
  }
  const Value local = ops::Sub(c.b, c.In(1), PlaneOffsets(c.b, shape));
  const Value last = c.Scalar(static_cast<double>(shape.Count(2, shape.rank()) - 1), DType::kI64);
  const Value inside = ops::Min(c.b, ops::Max(c.b, local, c.Scalar(0, DType::kI64)), last);
  return One(ops::MaxUnpool(c.b, c.In(0), inside, shape));
}

Outputs AveragePool(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const OnnxWindow window, ReadWindow(c, {}));
  ops::PoolOptions options = PoolOptionsOf(c, window);
  options.count_include_pad = c.Int("count_include_pad", 0) != 0;
  return One(AveragePoolSpatial(c.b, c.In(0), options));
}

// |x|^p and its inverse.
Value Power(Builder& b, Value x, double p) {
  const Value a = ops::Abs(b, x);
  if (p == 1) return a;
  if (p == 2) return ops::Square(b, x);
  return ops::Pow(b, a, compose::Like(b, p, x));
}
Value Root(Builder& b, Value x, double p) {
  if (p == 1) return x;
  if (p == 2) return ops::Sqrt(b, x);
  return ops::Pow(b, x, compose::Like(b, 1 / p, x));
}

// (sum |x|^p)^(1/p) over each window: from the average, whose divisor counts padding too.
Outputs LpPool(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const OnnxWindow window, ReadWindow(c, {}));
  const double p = c.opset() < 2 ? c.Float("p", 2) : static_cast<double>(c.Int("p", 2));
  if (!(p > 0)) return InvalidArgument("attribute p=", p);
  TANDEM_RETURN_IF_ERROR(c.RequireInt("ceil_mode", 0));
  ops::PoolOptions options = PoolOptionsOf(c, window);
  options.count_include_pad = true;
  double count = 1;
  for (const int64_t size : window.kernel) count *= static_cast<double>(size);
  const Value mean = AveragePoolSpatial(c.b, Power(c.b, c.In(0), p), options);
  return One(Root(c.b, compose::Scale(c.b, mean, count), p));
}

absl::Status CheckSpatial(NodeContext& c) {
  if (c.rank(0) >= 3) return absl::OkStatus();
  return InvalidArgument("input is ", c.shape(0).ToString(),
                         ", expected N, C and spatial dimensions");
}

Outputs GlobalAveragePool(NodeContext& c) {
  TANDEM_RETURN_IF_ERROR(CheckSpatial(c));
  return One(ops::ReduceMean(c.b, c.In(0), SpatialAxes(c.rank(0)), true));
}

Outputs GlobalMaxPool(NodeContext& c) {
  TANDEM_RETURN_IF_ERROR(CheckSpatial(c));
  return One(ops::ReduceMax(c.b, c.In(0), SpatialAxes(c.rank(0)), true));
}

Outputs GlobalLpPool(NodeContext& c) {
  TANDEM_RETURN_IF_ERROR(CheckSpatial(c));
  const double p = c.opset() < 2 ? c.Float("p", 2) : static_cast<double>(c.Int("p", 2));
  if (!(p > 0)) return InvalidArgument("attribute p=", p);
  const Value sum = ops::ReduceSum(c.b, Power(c.b, c.In(0), p), SpatialAxes(c.rank(0)), true);
  return One(Root(c.b, sum, p));
}

// y = x / (bias + alpha / size * (sum of x^2 over `size` neighbouring channels))^beta
Outputs Lrn(NodeContext& c) {
  TANDEM_RETURN_IF_ERROR(CheckSpatial(c));
  const int64_t size = c.Int("size", 0);
  if (size < 1 || size > 4096) return InvalidArgument("attribute size=", size);
  const double alpha = c.Float("alpha", 0.0001), beta = c.Float("beta", 0.75);
  const double bias = c.Float("bias", 1);
  const Shape shape = c.shape(0);
  // Channels as the first of two spatial dimensions; the average over a window of `size`, padding
  // counted, is the sum over size.
  const Value square = ops::Reshape(c.b, ops::Square(c.b, c.In(0)),
                                    {shape[0], 1, shape[1], shape.Count(2, shape.rank())});
  const Value mean = ops::AveragePool(c.b, square,
                                      {.kernel = {size, 1},
                                       .strides = {1, 1},
                                       .pads_begin = {(size - 1) / 2, 0},
                                       .pads_end = {size - 1 - (size - 1) / 2, 0},
                                       .dilations = {1, 1},
                                       .count_include_pad = true});
  TANDEM_RETURN_IF_ERROR(c.b.status());
  const Value scale =
      compose::AddScalar(c.b, compose::Scale(c.b, ops::Reshape(c.b, mean, shape), alpha), bias);
  return One(ops::Div(c.b, c.In(0), ops::Pow(c.b, scale, c.Scalar(beta, c.dtype(0)))));
}

// NumPy's matmul: a vector on the left is a row, on the right a column.
Outputs MatMul(NodeContext& c) {
  if (c.rank(0) == 0 || c.rank(1) == 0) return InvalidArgument("an input is a scalar");
  Value a = c.In(0), x = c.In(1);
  const bool row = c.rank(0) == 1, column = c.rank(1) == 1;
  if (row) a = compose::ExpandAxis(c.b, a, 0);
  if (column) x = compose::ExpandAxis(c.b, x, 1);
  Value y = ops::MatMul(c.b, a, x);
  TANDEM_RETURN_IF_ERROR(c.b.status());
  if (row) y = compose::DropAxis(c.b, y, c.b.shape(y).rank() - 2);
  if (column) y = compose::DropAxis(c.b, y, c.b.shape(y).rank() - 1);
  return One(y);
}

// alpha A' B' + beta C
Outputs Gemm(NodeContext& c) {
  if (c.rank(0) != 2 || c.rank(1) != 2) {
    return InvalidArgument("inputs are ", c.shape(0).ToString(), " and ", c.shape(1).ToString(),
                           ", expected matrices");
  }
  const double alpha = c.Float("alpha", 1), beta = c.Float("beta", 1);
  const bool transpose_a = c.Int("transA", 0) != 0, transpose_b = c.Int("transB", 0) != 0;
  if (c.opset() < 7) c.IgnoreAttribute("broadcast");  // from opset 7 on C always broadcasts
  const int64_t n = c.shape(1)[transpose_b ? 0 : 1];
  const bool bias = c.Has(2) && alpha == 1 && beta == 1 && c.shape(2) == Shape{n};
  Value y = ops::MatMul(c.b, c.In(0), c.In(1), transpose_a, transpose_b, bias ? c.In(2) : Value{});
  TANDEM_RETURN_IF_ERROR(c.b.status());
  if (bias) return One(y);
  y = compose::Scale(c.b, y, alpha);
  if (!c.Has(2) || beta == 0) return One(y);
  const Shape shape = c.b.shape(y);
  y = ops::Add(c.b, y, compose::Scale(c.b, c.In(2), beta));
  if (c.b.ok() && c.b.shape(y) != shape) {
    return InvalidArgument("C ", c.shape(2).ToString(), " does not broadcast to ",
                           shape.ToString());
  }
  return One(y);
}

constexpr OnnxOp kOps[] = {
    Op("AveragePool", AveragePool),
    Op("Conv", Conv, 2, 3),
    Op("ConvTranspose", ConvTranspose, 2, 3),
    Op("Gemm", Gemm, 2, 3),
    Op("GlobalAveragePool", GlobalAveragePool),
    Op("GlobalLpPool", GlobalLpPool),
    Op("GlobalMaxPool", GlobalMaxPool),
    Op("LRN", Lrn),
    Op("LpPool", LpPool),
    Op("MatMul", MatMul, 2, 2),
    Op("MaxPool", MaxPool),
    Op("MaxUnpool", MaxUnpool, 2, 3, InputSet(2)),
};

}  // namespace

std::span<const OnnxOp> OnnxNnOps() { return kOps; }

}  // namespace tandem

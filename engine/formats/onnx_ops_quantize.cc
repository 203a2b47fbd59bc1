// Quantization, and products of quantized tensors with exact integer sums.
#include <algorithm>
#include <limits>
#include <utility>

#include "engine/base/error.h"
#include "engine/formats/onnx_compose.h"
#include "engine/formats/onnx_ops.h"
#include "engine/formats/onnx_tensor.h"
#include "engine/formats/onnx_window.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

struct Limits {
  double low, high;
};
absl::StatusOr<Limits> LimitsOf(DType dtype) {
  switch (dtype) {
    case DType::kU8:
      return Limits{0, 255};
    case DType::kI8:
      return Limits{-128, 127};
    case DType::kU16:
      return Limits{0, 65535};
    case DType::kI16:
      return Limits{-32768, 32767};
    default:
      return Unimplemented("quantizing to ", DTypeName(dtype), " is not supported");
  }
}

// A scale or zero point in a form that broadcasts against x: a scalar, one for each place along
// `axis`, or one for each block of block_size places.
absl::StatusOr<Value> PerAxis(NodeContext& c, Value v, const Shape& x, int axis,
                              int64_t block_size) {
  Builder& b = c.b;
  const Shape shape = b.shape(v);
  if (shape.num_elements() == 1 && block_size == 0) return ops::Reshape(b, v, Shape());
  if (shape.rank() == 1 && block_size == 0 && axis < x.rank() && shape[0] == x[axis]) {
    return compose::AsChannels(b, v, x.rank() - 1 - axis);
  }
  bool blocked = block_size > 0 && x.rank() > 0 && shape.rank() == x.rank();
  for (int i = 0; blocked && i < x.rank(); ++i) blocked = i == axis || shape[i] == x[i];
  if (!blocked || shape[axis] != (x[axis] + block_size - 1) / block_size) {
    return InvalidArgument("a scale or zero point of ", shape.ToString(), " for ", x.ToString(),
                           " along axis ", axis, " with block_size=", block_size);
  }
  const Value block =
      ops::Div(b, compose::Iota(b, x[axis]), b.Constant(Tensor::Scalar<int64_t>(block_size)));
  return ops::Gather(b, v, block, axis);
}

struct Quantization {
  int axis = 0;
  int64_t block_size = 0;
};

absl::StatusOr<Quantization> ReadQuantization(NodeContext& c) {
  Quantization q;
  const int64_t axis = c.Int("axis", 1);
  q.block_size = c.Int("block_size", 0);
  if (q.block_size < 0) return InvalidArgument("attribute block_size=", q.block_size);
  if (c.rank(0) > 1) {
    TANDEM_ASSIGN_OR_RETURN(q.axis, NormalizeAxis(axis, c.rank(0)));
  }
  return q;
}

absl::StatusOr<DType> DTypeAttribute(NodeContext& c, std::string_view name, DType otherwise) {
  const int64_t type = c.Int(name, 0);
  if (type == 0) return otherwise;
  if (type < 0 || type > 1000) return InvalidArgument("attribute ", name, "=", type);
  return DTypeFromOnnx(static_cast<int32_t>(type), StrCat("attribute '", name, "'"));
}

// saturate(round(x / scale) + zero_point); round halves to even. zero_point is of the result's
// type.
absl::StatusOr<Value> Saturate(Builder& b, Value ratio, Value zero_point, DType dtype) {
  TANDEM_ASSIGN_OR_RETURN(const Limits limits, LimitsOf(dtype));
  Value y = ops::Round(b, ratio);
  if (zero_point.valid()) y = ops::Add(b, y, ops::Cast(b, zero_point, b.dtype(y)));
  y = ops::Max(b, y, compose::Like(b, limits.low, y));
  return ops::Cast(b, ops::Min(b, y, compose::Like(b, limits.high, y)), dtype);
}

Outputs QuantizeLinear(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const Quantization q, ReadQuantization(c));
  c.IgnoreAttribute("saturate");  // of the 8-bit floats
  TANDEM_ASSIGN_OR_RETURN(const DType dtype,
                          DTypeAttribute(c, "output_dtype", c.Has(2) ? c.dtype(2) : DType::kU8));
  if (c.Has(2) && c.dtype(2) != dtype) {
    return InvalidArgument("output_dtype ", DTypeName(dtype), " for a zero point of ",
                           DTypeName(c.dtype(2)));
  }
  TANDEM_ASSIGN_OR_RETURN(DType precision, DTypeAttribute(c, "precision", c.dtype(1)));
  precision = ComputeDType(precision);
  if (!IsFloat(precision)) {
    return Unimplemented("dividing in ", DTypeName(precision), " is not supported");
  }
  const Shape x = c.shape(0);
  TANDEM_ASSIGN_OR_RETURN(const Value scale, PerAxis(c, c.In(1), x, q.axis, q.block_size));
  Value zero_point;
  if (c.Has(2)) {
    TANDEM_ASSIGN_OR_RETURN(zero_point, PerAxis(c, c.In(2), x, q.axis, q.block_size));
  }
  const Value ratio = ops::Div(c.b, compose::CastTo(c.b, c.In(0), precision),
                               compose::CastTo(c.b, scale, precision));
  TANDEM_ASSIGN_OR_RETURN(const Value y, Saturate(c.b, ratio, zero_point, dtype));
  return One(y);
}

Outputs DequantizeLinear(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const Quantization q, ReadQuantization(c));
  TANDEM_ASSIGN_OR_RETURN(DType dtype, DTypeAttribute(c, "output_dtype", c.dtype(1)));
  dtype = ComputeDType(dtype);
  const Shape x = c.shape(0);
  TANDEM_ASSIGN_OR_RETURN(const Value scale, PerAxis(c, c.In(1), x, q.axis, q.block_size));
  // Through i32, whose differences of 16-bit values are exact.
  Value y = compose::CastTo(c.b, c.In(0), DType::kI32);
  if (c.Has(2)) {
    TANDEM_ASSIGN_OR_RETURN(const Value zero, PerAxis(c, c.In(2), x, q.axis, q.block_size));
    y = ops::Sub(c.b, y, compose::CastTo(c.b, zero, DType::kI32));
  }
  return One(ops::Mul(c.b, ops::Cast(c.b, y, dtype), compose::CastTo(c.b, scale, dtype)));
}

// To u8 with a scale and a zero point from the range of x and 0.
Outputs DynamicQuantizeLinear(NodeContext& c) {
  Builder& b = c.b;
  const Value x = c.In(0), zero = c.Scalar(0), most = c.Scalar(255);
  const Value high = ops::Max(b, zero, ops::ReduceMax(b, x, {}, false));
  const Value low = ops::Min(b, zero, ops::ReduceMin(b, x, {}, false));
  const Value scale = ops::Div(b, ops::Sub(b, high, low), most);
  // A tensor of zeros has scale 0: its quotients are 0 / 1.
  const Value divisor = ops::Where(b, ops::Equal(b, scale, zero), c.Scalar(1), scale);
  TANDEM_ASSIGN_OR_RETURN(const Value zero_point,
                          Saturate(b, ops::Div(b, ops::Neg(b, low), divisor), Value{}, DType::kU8));
  TANDEM_ASSIGN_OR_RETURN(const Value y,
                          Saturate(b, ops::Div(b, x, divisor), zero_point, DType::kU8));
  return std::vector<Value>{y, scale, zero_point};
}

// x - zero_point as i32, in which products of 8-bit differences are summed exactly.
absl::StatusOr<Value> Centred(NodeContext& c, int i, int zero, const Shape& broadcast) {
  const DType dtype = c.dtype(i);
  if (dtype != DType::kU8 && dtype != DType::kI8) {
    return Unimplemented("input ", i, " of ", DTypeName(dtype), " is not supported");
  }
  const Value x = ops::Cast(c.b, c.In(i), DType::kI32);
  if (!c.Has(zero)) return x;
  if (c.dtype(zero) != dtype) {
    return InvalidArgument("input ", i, " is ", DTypeName(dtype), ", its zero point ",
                           DTypeName(c.dtype(zero)));
  }
  Value z = ops::Cast(c.b, c.In(zero), DType::kI32);
  if (broadcast.rank() > 0 && c.rank(zero) == 1) {
    z = c.shape(zero).num_elements() == 1 ? ops::Reshape(c.b, z, Shape())
                                          : ops::Reshape(c.b, z, broadcast);
  }
  return ops::Sub(c.b, x, z);
}

// A vector of one value a row of matrices: (M) as (M, 1).
Shape Rows(NodeContext& c, int i) { return {c.shape(i).num_elements(), 1}; }
Shape Columns(NodeContext& c, int i) { return {c.shape(i).num_elements()}; }

Outputs MatMulInteger(NodeContext& c) {
  if (c.rank(0) < 2 || c.rank(1) < 2) return Unimplemented("vectors are not supported");
  TANDEM_ASSIGN_OR_RETURN(const Value a, Centred(c, 0, 2, c.Has(2) ? Rows(c, 2) : Shape()));
  TANDEM_ASSIGN_OR_RETURN(const Value x, Centred(c, 1, 3, c.Has(3) ? Columns(c, 3) : Shape()));
  return One(ops::MatMul(c.b, a, x));
}

// A scale as a float that broadcasts over rows or columns.
Value ScaleOf(NodeContext& c, int i, const Shape& broadcast) {
  if (c.shape(i).num_elements() == 1) return ops::Reshape(c.b, c.In(i), Shape());
  return c.rank(i) == 1 ? ops::Reshape(c.b, c.In(i), broadcast) : c.In(i);
}

// {a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero}
Outputs QLinearMatMul(NodeContext& c) {
  if (c.rank(0) < 2 || c.rank(3) < 2) return Unimplemented("vectors are not supported");
  TANDEM_ASSIGN_OR_RETURN(const Value a, Centred(c, 0, 2, Rows(c, 2)));
  TANDEM_ASSIGN_OR_RETURN(const Value x, Centred(c, 3, 5, Columns(c, 5)));
  Builder& b = c.b;
  const Value product = ops::Cast(b, ops::MatMul(b, a, x), DType::kF32);
  const Value scaled =
      ops::Mul(b, ops::Mul(b, product, ScaleOf(c, 1, Rows(c, 1))), ScaleOf(c, 4, Columns(c, 4)));
  TANDEM_ASSIGN_OR_RETURN(const Value y, Saturate(b, ops::Div(b, scaled, ScaleOf(c, 6, Rows(c, 6))),
                                                  ScaleOf(c, 7, Rows(c, 7)), c.dtype(7)));
  return One(y);
}

// A convolution of whole numbers, exact: in f32 over so few channels at a time that no sum passes
// 2^24, added as i32. Padding is 0, so x is centred already.
absl::StatusOr<Value> ExactConv(NodeContext& c, Value x, Value weight, const OnnxWindow& window) {
  Builder& b = c.b;
  TANDEM_RETURN_IF_ERROR(b.status());
  const Shape w = b.shape(weight);
  const int64_t groups = c.Int("group", 1), taps = w.Count(2, w.rank());
  constexpr int64_t kExactTerms = (int64_t{1} << 24) / (255 * 255);
  const int64_t channels = std::max<int64_t>(1, kExactTerms / std::max<int64_t>(1, taps));
  if (taps > kExactTerms || (groups != 1 && w[1] > channels)) {
    return Unimplemented("weight ", w.ToString(), " in ", groups, " groups is not supported");
  }
  const ops::ConvOptions options = {.strides = window.strides,
                                    .pads_begin = window.pads_begin,
                                    .pads_end = window.pads_end,
                                    .dilations = window.dilations,
                                    .groups = groups};
  x = ops::Cast(b, x, DType::kF32);
  weight = ops::Cast(b, weight, DType::kF32);
  Value sum;
  for (int64_t begin = 0; begin < w[1]; begin += channels) {
    const int64_t end = std::min(w[1], begin + channels);
    const bool whole = begin == 0 && end == w[1];
    const Value part = ConvSpatial(b, whole ? x : compose::SliceAxis(b, x, 1, begin, end),
                                   compose::SliceAxis(b, weight, 1, begin, end), {}, options);
    const Value exact = ops::Cast(b, part, DType::kI32);
    sum = begin == 0 ? exact : ops::Add(b, sum, exact);
    TANDEM_RETURN_IF_ERROR(b.status());
  }
  return sum;
}

absl::StatusOr<OnnxWindow> IntegerWindow(NodeContext& c, int weight) {
  if (c.rank(weight) != c.rank(0) || c.rank(0) < 3 || c.shape(weight).num_elements() == 0 ||
      (c.Int("group", 1) == 1 && c.shape(weight)[1] != c.shape(0)[1])) {
    return InvalidArgument("input ", c.shape(0).ToString(), " and weight ",
                           c.shape(weight).ToString());
  }
  std::vector<int64_t> kernel;
  for (int i = 2; i < c.rank(weight); ++i) kernel.push_back(c.shape(weight)[i]);
  return ReadWindow(c, std::move(kernel));
}

// One value an output channel as (O, 1, ...), against the weight.
Shape OutputChannels(NodeContext& c, int i, int weight) {
  Shape shape{c.shape(i).num_elements()};
  for (int k = 1; k < c.rank(weight); ++k) shape.push_back(1);
  return shape;
}

Outputs ConvInteger(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const OnnxWindow window, IntegerWindow(c, 1));
  TANDEM_ASSIGN_OR_RETURN(const Value x, Centred(c, 0, 2, Shape()));
  TANDEM_ASSIGN_OR_RETURN(const Value w,
                          Centred(c, 1, 3, c.Has(3) ? OutputChannels(c, 3, 1) : Shape()));
  TANDEM_ASSIGN_OR_RETURN(const Value y, ExactConv(c, x, w, window));
  return One(y);
}

// {x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias}
Outputs QLinearConv(NodeContext& c) {
  Builder& b = c.b;
  TANDEM_ASSIGN_OR_RETURN(const OnnxWindow window, IntegerWindow(c, 3));
  TANDEM_ASSIGN_OR_RETURN(const Value x, Centred(c, 0, 2, Shape()));
  TANDEM_ASSIGN_OR_RETURN(const Value w, Centred(c, 3, 5, OutputChannels(c, 5, 3)));
  TANDEM_ASSIGN_OR_RETURN(Value sum, ExactConv(c, x, w, window));
  if (c.Has(8)) sum = ops::Add(b, sum, compose::AsChannels(b, c.In(8), window.spatial()));
  const Value w_scale = c.shape(4).num_elements() == 1
                            ? ops::Reshape(b, c.In(4), Shape())
                            : compose::AsChannels(b, c.In(4), window.spatial());
  const Value scale = ops::Div(b, ops::Mul(b, ops::Reshape(b, c.In(1), Shape()), w_scale),
                               ops::Reshape(b, c.In(6), Shape()));
  TANDEM_ASSIGN_OR_RETURN(const Value y,
                          Saturate(b, ops::Mul(b, ops::Cast(b, sum, DType::kF32), scale),
                                   ops::Reshape(b, c.In(7), Shape()), c.dtype(7)));
  return One(y);
}

constexpr uint32_t kAllFixed = 0xffffffff;
constexpr OnnxOp FixedOp(std::string_view name, Outputs (*convert)(NodeContext&), int min_inputs,
                         int max_inputs, uint32_t fixed_inputs) {
  return {.name = name,
          .convert = convert,
          .min_inputs = min_inputs,
          .max_inputs = max_inputs,
          .fixed_inputs = fixed_inputs};
}

constexpr OnnxOp kOps[] = {
    FixedOp("ConvInteger", ConvInteger, 2, 4, kAllFixed),
    FixedOp("DequantizeLinear", DequantizeLinear, 2, 3, InputSet(1, 2)),
    FixedOp("DynamicQuantizeLinear", DynamicQuantizeLinear, 1, 1, 0),
    FixedOp("MatMulInteger", MatMulInteger, 2, 4, kAllFixed),
    FixedOp("QLinearConv", QLinearConv, 8, 9, kAllFixed),
    FixedOp("QLinearMatMul", QLinearMatMul, 8, 8, kAllFixed),
    FixedOp("QuantizeLinear", QuantizeLinear, 2, 3, InputSet(1, 2)),
};

}  // namespace

std::span<const OnnxOp> OnnxQuantizeOps() { return kOps; }

}  // namespace tandem

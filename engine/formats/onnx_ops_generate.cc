// Tensors made from shapes and settings: constants, ranges, masks, windows.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <utility>

#include "engine/base/error.h"
#include "engine/formats/onnx_compose.h"
#include "engine/formats/onnx_ops.h"
#include "engine/formats/onnx_tensor.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

// Tensors that a node may make, in elements.
constexpr int64_t kMaxTable = int64_t{1} << 26;

Outputs ShapeOf(NodeContext& c) {
  const Shape shape = c.shape(0);
  const auto clamp = [&](int64_t i) {
    return std::clamp<int64_t>(i < 0 ? i + shape.rank() : i, 0, shape.rank());
  };
  const int64_t start = clamp(c.Int("start", 0));
  const int64_t end = std::max(start, clamp(c.Int("end", shape.rank())));
  return One(c.Int64s(shape.dims().subspan(start, end - start)));
}

Outputs Size(NodeContext& c) {
  return One(c.b.Constant(Tensor::Scalar<int64_t>(c.shape(0).num_elements())));
}

Outputs Constant(NodeContext& c) {
  if (c.node().attribute_size() != 1) {
    return InvalidArgument(c.node().attribute_size(), " attributes, expected one");
  }
  if (const onnx::TensorProto* tensor = c.TensorAttribute("value"); tensor != nullptr) {
    return c.FromProto(*tensor);
  }
  if (c.HasAttribute("value_float")) {
    return One(c.b.Constant(Tensor::Scalar(static_cast<float>(c.Float("value_float", 0)))));
  }
  if (c.HasAttribute("value_int")) {
    return One(c.b.Constant(Tensor::Scalar<int64_t>(c.Int("value_int", 0))));
  }
  if (c.HasAttribute("value_ints")) return One(c.Int64s(c.Ints("value_ints")));
  if (c.HasAttribute("value_floats")) {
    const std::vector<double> values = c.Floats("value_floats");
    Tensor tensor(DType::kF32, {static_cast<int64_t>(values.size())});
    std::copy(values.begin(), values.end(), tensor.data<float>().begin());
    return One(c.b.Constant(std::move(tensor)));
  }
  return Unimplemented("attribute '", c.node().attribute(0).name(), "' is not supported");
}

Outputs ConstantOfShape(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const std::vector<int64_t> dims, c.ConstantInts(0, "shape"));
  Value value = c.Scalar(0);
  if (const onnx::TensorProto* tensor = c.TensorAttribute("value"); tensor != nullptr) {
    TANDEM_ASSIGN_OR_RETURN(const std::vector<Value> given, c.FromProto(*tensor));
    value = given[0];
    if (c.b.shape(value).num_elements() != 1) {
      return InvalidArgument("attribute value has ", c.b.shape(value).ToString(),
                             " elements, expected one");
    }
    value = ops::Reshape(c.b, value, Shape());
  }
  TANDEM_ASSIGN_OR_RETURN(const Shape shape,
                          Shape::Checked(dims, SizeOf(c.b.dtype(value)), "shape"));
  return One(ops::BroadcastTo(c.b, value, shape));
}

template <typename T>
Outputs MakeRange(NodeContext& c, T start, T limit, T delta) {
  if (delta == 0) return InvalidArgument("delta is 0");
  const double count = std::ceil((static_cast<double>(limit) - static_cast<double>(start)) /
                                 static_cast<double>(delta));
  if (!(count <= static_cast<double>(kMaxTable))) {
    return ResourceExhausted("a range of ", count, " elements");
  }
  Tensor tensor(TypeOf<T>(), {count > 0 ? static_cast<int64_t>(count) : 0});
  std::span<T> values = tensor.data<T>();
  for (size_t i = 0; i < values.size(); ++i) {
    if constexpr (std::is_integral_v<T>) {  // unsigned: a product may pass the limit on the way
      values[i] = static_cast<T>(static_cast<uint64_t>(start) + i * static_cast<uint64_t>(delta));
    } else {
      values[i] = start + static_cast<T>(i) * delta;
    }
  }
  return One(c.b.Constant(std::move(tensor)));
}

Outputs Range(NodeContext& c) {
  for (int i = 0; i < 3; ++i) {
    if (c.shape(i).num_elements() != 1 || c.dtype(i) != c.dtype(0)) {
      return InvalidArgument("input ", i, " is ", c.b.type(c.In(i)).ToString(),
                             ", expected a scalar of one type");
    }
  }
  if (IsFloat(c.dtype(0))) {
    double values[3];
    for (int i = 0; i < 3; ++i) {
      TANDEM_ASSIGN_OR_RETURN(const Tensor* tensor, c.ConstantInput(i, "start, limit or delta"));
      values[i] = ElementAsDouble(*tensor, 0);
    }
    if (c.dtype(0) == DType::kF64) return MakeRange<double>(c, values[0], values[1], values[2]);
    return MakeRange<float>(c, static_cast<float>(values[0]), static_cast<float>(values[1]),
                            static_cast<float>(values[2]));
  }
  int64_t values[3];
  for (int i = 0; i < 3; ++i) {
    TANDEM_ASSIGN_OR_RETURN(const std::vector<int64_t> ints,
                            c.ConstantInts(i, "start, limit or delta"));
    values[i] = ints[0];
  }
  TANDEM_ASSIGN_OR_RETURN(const std::vector<Value> range,
                          MakeRange<int64_t>(c, values[0], values[1], values[2]));
  return One(compose::CastTo(c.b, range[0], c.dtype(0)));
}

// column - row of each place of a matrix: (rows, columns) i64.
absl::StatusOr<Value> Diagonals(NodeContext& c, int64_t rows, int64_t columns) {
  if (rows > kMaxTable || columns > kMaxTable || rows * columns > kMaxTable) {
    return ResourceExhausted("a matrix of ", rows, " x ", columns);
  }
  const Value row = ops::Reshape(c.b, compose::Iota(c.b, rows), {rows, 1});
  return ops::Sub(c.b, compose::Iota(c.b, columns), row);
}

Outputs Trilu(NodeContext& c) {
  const Shape shape = c.shape(0);
  if (shape.rank() < 2) return InvalidArgument("input is ", shape.ToString(), ", not matrices");
  int64_t k = 0;
  if (c.Has(1)) {
    TANDEM_ASSIGN_OR_RETURN(const std::vector<int64_t> given, c.ConstantInts(1, "k"));
    if (given.size() != 1) return InvalidArgument("k is no scalar");
    k = given[0];
  }
  TANDEM_ASSIGN_OR_RETURN(const Value diagonal, Diagonals(c, shape[-2], shape[-1]));
  const Value limit = c.b.Constant(Tensor::Scalar<int64_t>(k));
  const Value mask = c.Int("upper", 1) != 0 ? ops::LessOrEqual(c.b, limit, diagonal)
                                            : ops::LessOrEqual(c.b, diagonal, limit);
  return One(ops::Where(c.b, mask, c.In(0), compose::Like(c.b, 0, c.In(0))));
}

Outputs EyeLike(NodeContext& c) {
  const Shape shape = c.shape(0);
  if (shape.rank() != 2) return InvalidArgument("input is ", shape.ToString(), ", not a matrix");
  DType dtype = c.dtype(0);
  if (c.HasAttribute("dtype")) {
    const int64_t type = c.Int("dtype", 0);
    if (type < 0 || type > 1000) return InvalidArgument("attribute dtype=", type);
    TANDEM_ASSIGN_OR_RETURN(dtype, DTypeFromOnnx(static_cast<int32_t>(type), "attribute 'dtype'"));
  }
  TANDEM_ASSIGN_OR_RETURN(const Value diagonal, Diagonals(c, shape[0], shape[1]));
  const Value k = c.b.Constant(Tensor::Scalar<int64_t>(c.Int("k", 0)));
  return One(ops::Cast(c.b, ops::Equal(c.b, diagonal, k), ComputeDType(dtype)));
}

// a0 - a1 cos(2 pi i / n) + a2 cos(4 pi i / n), n the size, or for a symmetric window the size - 1.
template <int kA0, int kA1, int kA2>  // in millionths
Outputs Window(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const std::vector<int64_t> size, c.ConstantInts(0, "size"));
  if (size.size() != 1 || size[0] < 1 || size[0] > kMaxTable) {
    return InvalidArgument("size is no number from 1 to ", kMaxTable);
  }
  const int64_t type = c.Int("output_datatype", onnx::TensorProto::FLOAT);
  if (type < 0 || type > 1000) return InvalidArgument("attribute output_datatype=", type);
  TANDEM_ASSIGN_OR_RETURN(const DType dtype,
                          DTypeFromOnnx(static_cast<int32_t>(type), "attribute 'output_datatype'"));
  const bool periodic = c.Int("periodic", 1) != 0;
  const double n = std::max<double>(1, static_cast<double>(periodic ? size[0] : size[0] - 1));
  Tensor window(DType::kF64, {size[0]});
  for (int64_t i = 0; i < size[0]; ++i) {
    const double angle = 2 * std::numbers::pi * static_cast<double>(i) / n;
    window.data<double>()[i] =
        (kA0 - kA1 * std::cos(angle) + kA2 * std::cos(2 * angle)) / 1'000'000.0;
  }
  return One(c.b.Constant(CastTensor(window, ComputeDType(dtype))));
}

constexpr OnnxOp kOps[] = {
    Op("BlackmanWindow", Window<420'000, 500'000, 80'000>, 1, 1, InputSet(0)),
    Op("Constant", Constant, 0, 0),
    Op("ConstantOfShape", ConstantOfShape, 1, 1, InputSet(0)),
    {.name = "EyeLike", .convert = EyeLike, .fixed_inputs = InputSet(0)},
    Op("HammingWindow", Window<543'478, 456'522, 0>, 1, 1, InputSet(0)),
    Op("HannWindow", Window<500'000, 500'000, 0>, 1, 1, InputSet(0)),
    Op("Range", Range, 3, 3, InputSet(0, 1, 2)),
    Op("Shape", ShapeOf),
    Op("Size", Size),
    Op("Trilu", Trilu, 1, 2, InputSet(1)),
};

}  // namespace

std::span<const OnnxOp> OnnxGenerateOps() { return kOps; }

}  // namespace tandem

// Pooling over windows of one or two spatial dimensions, as ONNX's MaxPool and AveragePool define
// it, and the adjoints.
#include <algorithm>

#include "engine/ops/definitions.h"
#include "engine/ops/inference.h"
#include "engine/ops/window.h"

namespace tandem::ops {
namespace {

Attributes PoolAttributes(const PoolOptions& options) {
  return {{"kernel", options.kernel},
          {"strides", options.strides},
          {"pads_begin", options.pads_begin},
          {"pads_end", options.pads_end},
          {"dilations", options.dilations},
          {"ceil_mode", int64_t{options.ceil_mode}},
          {"count_include_pad", int64_t{options.count_include_pad}}};
}

PoolOptions OptionsOf(const Attributes& attributes) {
  return {.kernel = attributes.Ints("kernel"),
          .strides = attributes.Ints("strides"),
          .pads_begin = attributes.Ints("pads_begin"),
          .pads_end = attributes.Ints("pads_end"),
          .dilations = attributes.Ints("dilations"),
          .ceil_mode = attributes.Int("ceil_mode") != 0,
          .count_include_pad = attributes.Int("count_include_pad") != 0};
}

// Every window must hold an input element: a maximum or a mean of none is not a number.
absl::Status CheckWindows(const WindowDim& dim, int64_t input, int64_t output) {
  for (int64_t o = 0; o < output; ++o) {
    const int64_t start = dim.Start(o);
    const int64_t tap = (std::max<int64_t>(0, -start) + dim.dilation - 1) / dim.dilation;
    if (tap >= dim.kernel || start + tap * dim.dilation >= input) {
      return InvalidArgument("window ", o, " of ", output, " lies within the padding (kernel ",
                             dim.kernel, ", stride ", dim.stride, ", dilation ", dim.dilation,
                             ", padding ", dim.pad_begin, " and ", dim.pad_end, ", input ", input,
                             ")");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Shape> PoolShape(const Shape& x, const Attributes& attributes) {
  if (x.rank() != 3 && x.rank() != 4) {
    return InvalidArgument("x ", x.ToString(), " has rank ", x.rank(),
                           ", expected 3 or 4: one or two spatial dimensions");
  }
  const std::vector<int64_t>& kernel = attributes.Ints("kernel");
  if (static_cast<int>(kernel.size()) != x.rank() - 2) {
    return InvalidArgument("kernel ", Shape(std::span<const int64_t>(kernel)).ToString(), " has ",
                           kernel.size(), " entries, x ", x.ToString(), " has ", x.rank() - 2,
                           " spatial dimensions");
  }
  TANDEM_ASSIGN_OR_RETURN(const Window window, ReadWindow(attributes, kernel));
  const bool ceil_mode = attributes.Int("ceil_mode") != 0;
  std::vector<int64_t> y = {x[0], x[1]};
  for (int i = 0; i < static_cast<int>(window.size()); ++i) {
    TANDEM_ASSIGN_OR_RETURN(const int64_t extent, OutputExtent(window[i], x[i + 2], ceil_mode));
    TANDEM_RETURN_IF_ERROR(CheckWindows(window[i], x[i + 2], extent));
    y.push_back(extent);
  }
  // As i64: MaxPool's indices.
  return Shape::Checked(y, SizeOf(DType::kI64), "the output");
}

Types InferMaxPool(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireNumber(args, 0, "x"));
  TANDEM_ASSIGN_OR_RETURN(const Shape y, PoolShape(args.shape(0), args.attributes));
  return std::vector<TensorType>{{args.type(0).dtype, y}, {DType::kI64, y}};
}

Types InferMaxPoolGrad(const InferArgs& args) {
  const DType dtype = args.type(0).dtype;
  const Shape& dy = args.shape(0);
  TANDEM_RETURN_IF_ERROR(RequireNumber(args, 0, "dy"));
  TANDEM_RETURN_IF_ERROR(RequireDType(args, 1, "indices", DType::kI64));
  TANDEM_RETURN_IF_ERROR(RequireShape(args, 1, "indices", dy));
  TANDEM_ASSIGN_OR_RETURN(
      const Shape x, Shape::Checked(args.attributes.Ints("x_shape"), SizeOf(dtype), "x_shape"));
  if (dy.rank() < 3 || x.rank() != dy.rank() || x[0] != dy[0] || x[1] != dy[1]) {
    return InvalidArgument("dy ", dy.ToString(), " and x_shape ", x.ToString(),
                           ": expected equal ranks of 3 or more, batches and channels");
  }
  if (x.num_elements() == 0 && dy.num_elements() != 0) {
    return InvalidArgument("x_shape ", x.ToString(), " has no place for dy ", dy.ToString());
  }
  return std::vector<TensorType>{{dtype, x}};
}

Types InferAveragePool(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireFloat(args, 0, "x"));
  TANDEM_ASSIGN_OR_RETURN(Shape y, PoolShape(args.shape(0), args.attributes));
  return std::vector<TensorType>{{args.type(0).dtype, std::move(y)}};
}

Types InferAveragePoolGrad(const InferArgs& args) {
  const DType dtype = args.type(0).dtype;
  TANDEM_RETURN_IF_ERROR(RequireFloat(args, 0, "dy"));
  TANDEM_ASSIGN_OR_RETURN(
      const Shape x, Shape::Checked(args.attributes.Ints("x_shape"), SizeOf(dtype), "x_shape"));
  TANDEM_ASSIGN_OR_RETURN(const Shape y, PoolShape(x, args.attributes));
  TANDEM_RETURN_IF_ERROR(RequireShape(args, 0, "dy", y));
  return std::vector<TensorType>{{dtype, x}};
}

// dx = dy at each maximum's place; the indices are piecewise constant.
std::vector<Value> MaxPoolGradient(Builder& b, const GradientArgs& g) {
  if (!g.cotangent(0).valid()) return {Value{}};
  return {MaxPoolGrad(b, g.cotangent(0), g.out(1), b.shape(g.in(0)))};
}

// For a cotangent c of dx: d(dy) = c at the indices, a gather from the flattened planes.
std::vector<Value> MaxPoolGradGradient(Builder& b, const GradientArgs& g) {
  const Value c = g.cotangent();
  const Shape& shape = b.shape(c);
  if (!b.ok()) return {Value{}, Value{}};
  const int64_t planes = shape[0] * shape[1], plane = shape.Count(2, shape.rank());
  Shape offsets_shape = {shape[0], shape[1]};
  for (int i = 2; i < shape.rank(); ++i) offsets_shape.push_back(1);
  Tensor offsets(DType::kI64, offsets_shape);
  for (int64_t i = 0; i < planes; ++i) offsets.data<int64_t>()[i] = i * plane;
  const Value positions = Add(b, g.in(1), b.Constant(std::move(offsets)));
  return {Gather(b, Reshape(b, c, Shape{planes * plane}), positions, 0), Value{}};
}

// dx = AveragePoolGrad(dy): each element of dy spread evenly over its window
std::vector<Value> AveragePoolGradient(Builder& b, const GradientArgs& g) {
  return {AveragePoolGrad(b, g.cotangent(), b.shape(g.in(0)), OptionsOf(g.node.attributes))};
}

// The adjoint of the adjoint: d(dy) = AveragePool(c) for a cotangent c of dx.
std::vector<Value> AveragePoolGradGradient(Builder& b, const GradientArgs& g) {
  return {AveragePool(b, g.cotangent(), OptionsOf(g.node.attributes))};
}

double WindowElements(const Attributes& attributes) {
  double elements = 1;
  for (int64_t size : attributes.Ints("kernel")) elements *= static_cast<double>(size);
  return elements;
}
// A comparison or an addition a tap.
double PoolFlops(std::span<const TensorType* const>, std::span<const TensorType> outputs,
                 const Attributes& attributes) {
  return WindowElements(attributes) * static_cast<double>(outputs[0].shape.num_elements());
}
double PoolGradFlops(std::span<const TensorType* const> inputs, std::span<const TensorType>,
                     const Attributes& attributes) {
  return WindowElements(attributes) * static_cast<double>(inputs[0]->shape.num_elements());
}

// Called for nodes whose inference succeeded: the window is good.
Geometry PoolGeometry(std::span<const TensorType* const>, const Attributes& attributes) {
  const auto window = ReadWindow(attributes, attributes.Ints("kernel"));
  return window.ok() ? GeometryOf(*window) : Geometry{};
}

}  // namespace

constinit const OpDef kMaxPool = {.name = "MaxPool",
                                  .infer = InferMaxPool,
                                  .gradient = MaxPoolGradient,
                                  .flops = PoolFlops,
                                  .geometry = PoolGeometry};
constinit const OpDef kMaxPoolGrad = {.name = "MaxPoolGrad",
                                      .min_inputs = 2,
                                      .max_inputs = 2,
                                      .infer = InferMaxPoolGrad,
                                      .gradient = MaxPoolGradGradient,
                                      .flops = FlopsPerElement<1>};
constinit const OpDef kAveragePool = {.name = "AveragePool",
                                      .infer = InferAveragePool,
                                      .gradient = AveragePoolGradient,
                                      .flops = PoolFlops,
                                      .geometry = PoolGeometry};
constinit const OpDef kAveragePoolGrad = {.name = "AveragePoolGrad",
                                          .infer = InferAveragePoolGrad,
                                          .gradient = AveragePoolGradGradient,
                                          .flops = PoolGradFlops};

std::vector<Value> MaxPool(Builder& b, Value x, const PoolOptions& options) {
  return b.AddMulti(kMaxPool, {{x}}, PoolAttributes(options), 2);
}

Value MaxPoolGrad(Builder& b, Value dy, Value indices, const Shape& x_shape) {
  return b.Add(kMaxPoolGrad, {dy, indices}, {{"x_shape", DimsOf(x_shape)}});
}

Value MaxUnpool(Builder& b, Value x, Value indices, const Shape& shape) {
  return MaxPoolGrad(b, x, indices, shape);
}

Value AveragePool(Builder& b, Value x, const PoolOptions& options) {
  return b.Add(kAveragePool, {x}, PoolAttributes(options));
}

Value AveragePoolGrad(Builder& b, Value dy, const Shape& x_shape, const PoolOptions& options) {
  Attributes attributes = PoolAttributes(options);
  attributes.Set("x_shape", DimsOf(x_shape));
  return b.Add(kAveragePoolGrad, {dy}, std::move(attributes));
}

}  // namespace tandem::ops

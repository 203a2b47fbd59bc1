// Convolution: cross-correlation as ONNX's Conv defines it, and its two adjoints.
//
// With the padding, y[n,o,p] = bias[o] + sum over i, k of x[n,i, p stride - pad + k dilation]
// w[o,i,k] is bilinear in x and w, so that the three operators are one another's gradients.
#include <algorithm>

#include "engine/ops/definitions.h"
#include "engine/ops/inference.h"
#include "engine/ops/window.h"

namespace tandem::ops {
namespace {

std::string_view Plural(int64_t n) { return n == 1 ? "" : "s"; }

Attributes ConvAttributes(const ConvOptions& options) {
  return {{"strides", options.strides},
          {"pads_begin", options.pads_begin},
          {"pads_end", options.pads_end},
          {"dilations", options.dilations},
          {"groups", options.groups}};
}

ConvOptions OptionsOf(const Attributes& attributes) {
  return {.strides = attributes.Ints("strides"),
          .pads_begin = attributes.Ints("pads_begin"),
          .pads_end = attributes.Ints("pads_end"),
          .dilations = attributes.Ints("dilations"),
          .groups = attributes.Int("groups")};
}

absl::Status CheckChannels(const Shape& x, const Shape& weight, int64_t groups) {
  if (groups < 1) return InvalidArgument("groups is ", groups, ", expected at least 1");
  for (int64_t dim : weight) {
    if (dim < 1) return InvalidArgument("weight ", weight.ToString(), " is empty");
  }
  if (weight[0] % groups != 0) {
    return InvalidArgument("weight ", weight.ToString(), ": ", weight[0],
                           " output channels do not divide into ", groups, " group",
                           Plural(groups));
  }
  // By division: weight[1] * groups could overflow.
  if (x[1] % groups != 0 || x[1] / groups != weight[1]) {
    return InvalidArgument("x ", x.ToString(), " has ", x[1], " channels, weight ",
                           weight.ToString(), " expects ", weight[1], " in each of ", groups,
                           " group", Plural(groups));
  }
  return absl::OkStatus();
}

// The output's shape for x (N, C, spatial) and weight (O, C / groups, kernel).
absl::StatusOr<Shape> ConvShape(const Shape& x, const Shape& weight, const Attributes& attributes) {
  if (x.rank() != 3 && x.rank() != 4) {
    return InvalidArgument("x ", x.ToString(), " has rank ", x.rank(),
                           ", expected 3 or 4: one or two spatial dimensions");
  }
  if (weight.rank() != x.rank()) {
    return InvalidArgument("weight ", weight.ToString(), " has rank ", weight.rank(),
                           ", expected x's rank of ", x.rank());
  }
  TANDEM_RETURN_IF_ERROR(CheckChannels(x, weight, attributes.Int("groups")));
  TANDEM_ASSIGN_OR_RETURN(const Window window, ReadWindow(attributes, weight.dims().subspan(2)));
  std::vector<int64_t> y = {x[0], weight[0]};
  for (int i = 0; i < static_cast<int>(window.size()); ++i) {
    TANDEM_ASSIGN_OR_RETURN(const int64_t extent, OutputExtent(window[i], x[i + 2], false));
    y.push_back(extent);
  }
  return Shape::Checked(y, SizeOf(DType::kF64), "the output");
}

// A shape attribute of a type's tensor, checked: for the operators that are told their output.
absl::StatusOr<TensorType> TypeAttribute(const InferArgs& args, std::string_view name) {
  const DType dtype = args.type(0).dtype;
  TANDEM_ASSIGN_OR_RETURN(Shape shape,
                          Shape::Checked(args.attributes.Ints(name), SizeOf(dtype), name));
  return TensorType{dtype, std::move(shape)};
}

absl::Status RequireOutput(const Shape& dy, const Shape& expected) {
  if (dy == expected) return absl::OkStatus();
  return InvalidArgument("dy ", dy.ToString(), ", expected ", expected.ToString(),
                         ", the shape of the convolution's output");
}

Types InferConv(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireFloat(args, 0, "x"));
  TANDEM_RETURN_IF_ERROR(RequireSameDType(args, 0, 1));
  TANDEM_ASSIGN_OR_RETURN(Shape y, ConvShape(args.shape(0), args.shape(1), args.attributes));
  if (args.has(2)) {
    TANDEM_RETURN_IF_ERROR(RequireSameDType(args, 0, 2));
    TANDEM_RETURN_IF_ERROR(RequireShape(args, 2, "bias", Shape{y[1]}));
  }
  return std::vector<TensorType>{{args.type(0).dtype, std::move(y)}};
}

Types InferConvInputGrad(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireFloat(args, 0, "dy"));
  TANDEM_RETURN_IF_ERROR(RequireSameDType(args, 0, 1));
  TANDEM_ASSIGN_OR_RETURN(TensorType x, TypeAttribute(args, "x_shape"));
  TANDEM_ASSIGN_OR_RETURN(const Shape y, ConvShape(x.shape, args.shape(1), args.attributes));
  TANDEM_RETURN_IF_ERROR(RequireOutput(args.shape(0), y));
  return std::vector<TensorType>{std::move(x)};
}

Types InferConvWeightGrad(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireFloat(args, 0, "dy"));
  TANDEM_RETURN_IF_ERROR(RequireSameDType(args, 0, 1));
  TANDEM_ASSIGN_OR_RETURN(TensorType weight, TypeAttribute(args, "weight_shape"));
  TANDEM_ASSIGN_OR_RETURN(const Shape y, ConvShape(args.shape(1), weight.shape, args.attributes));
  TANDEM_RETURN_IF_ERROR(RequireOutput(args.shape(0), y));
  return std::vector<TensorType>{std::move(weight)};
}

// dx = ConvInputGrad(dy, w), dw = ConvWeightGrad(dy, x), dbias = sum of dy over all but channels
std::vector<Value> ConvGradient(Builder& b, const GradientArgs& g) {
  const ConvOptions options = OptionsOf(g.node.attributes);
  const Value dy = g.cotangent(), x = g.in(0), weight = g.in(1);
  std::vector<Value> result(g.node.inputs.size());
  if (g.needs[0]) result[0] = ConvInputGrad(b, dy, weight, b.shape(x), options);
  if (g.needs[1]) result[1] = ConvWeightGrad(b, dy, x, b.shape(weight), options);
  if (g.in(2).valid() && g.needs[2]) {
    std::vector<int64_t> axes = {0};
    for (int i = 2; i < b.shape(dy).rank(); ++i) axes.push_back(i);
    result[2] = ReduceSum(b, dy, axes, false);
  }
  return result;
}

// x' = ConvInputGrad(y', w) is linear in both: for a cotangent c of x', dy' = Conv(c, w) and
// dw = ConvWeightGrad(y', c).
std::vector<Value> ConvInputGradGradient(Builder& b, const GradientArgs& g) {
  const ConvOptions options = OptionsOf(g.node.attributes);
  const Value c = g.cotangent(), weight = g.in(1);
  std::vector<Value> result(2);
  if (g.needs[0]) result[0] = Conv(b, c, weight, Value{}, options);
  if (g.needs[1]) result[1] = ConvWeightGrad(b, g.in(0), c, b.shape(weight), options);
  return result;
}

// w' = ConvWeightGrad(y', x): for a cotangent c of w', dy' = Conv(x, c) and dx = ConvInputGrad(y',
// c).
std::vector<Value> ConvWeightGradGradient(Builder& b, const GradientArgs& g) {
  const ConvOptions options = OptionsOf(g.node.attributes);
  const Value c = g.cotangent(), dy = g.in(0), x = g.in(1);
  std::vector<Value> result(2);
  if (g.needs[0]) result[0] = Conv(b, x, c, Value{}, options);
  if (g.needs[1]) result[1] = ConvInputGrad(b, dy, c, b.shape(x), options);
  return result;
}

// A multiply-add a tap of each output, padding included; one more addition for a bias.
double ConvMultiplyAdds(const Shape& y, const Shape& weight) {
  return 2.0 * static_cast<double>(y.num_elements()) *
         static_cast<double>(weight.Count(1, weight.rank()));
}
double ConvFlops(std::span<const TensorType* const> inputs, std::span<const TensorType> outputs,
                 const Attributes&) {
  const Shape& y = outputs[0].shape;
  const bool bias = inputs.size() > 2 && inputs[2] != nullptr;
  return ConvMultiplyAdds(y, inputs[1]->shape) +
         (bias ? static_cast<double>(y.num_elements()) : 0.0);
}
double ConvInputGradFlops(std::span<const TensorType* const> inputs, std::span<const TensorType>,
                          const Attributes&) {
  return ConvMultiplyAdds(inputs[0]->shape, inputs[1]->shape);
}
double ConvWeightGradFlops(std::span<const TensorType* const> inputs,
                           std::span<const TensorType> outputs, const Attributes&) {
  return ConvMultiplyAdds(inputs[0]->shape, outputs[0].shape);
}

// Called for nodes whose inference succeeded: the window is good.
Geometry ConvGeometry(std::span<const TensorType* const> inputs, const Attributes& attributes) {
  const auto window = ReadWindow(attributes, inputs[1]->shape.dims().subspan(2));
  return window.ok() ? GeometryOf(*window) : Geometry{};
}
Geometry ConvInputGradGeometry(std::span<const TensorType* const> inputs,
                               const Attributes& attributes) {
  Geometry geometry = ConvGeometry(inputs, attributes);
  geometry.transposed = true;
  return geometry;
}

}  // namespace

constinit const OpDef kConv = {.name = "Conv",
                               .min_inputs = 2,
                               .max_inputs = 3,
                               .infer = InferConv,
                               .gradient = ConvGradient,
                               .flops = ConvFlops,
                               .geometry = ConvGeometry};
constinit const OpDef kConvInputGrad = {.name = "ConvInputGrad",
                                        .min_inputs = 2,
                                        .max_inputs = 2,
                                        .infer = InferConvInputGrad,
                                        .gradient = ConvInputGradGradient,
                                        .flops = ConvInputGradFlops,
                                        .geometry = ConvInputGradGeometry};
constinit const OpDef kConvWeightGrad = {.name = "ConvWeightGrad",
                                         .min_inputs = 2,
                                         .max_inputs = 2,
                                         .infer = InferConvWeightGrad,
                                         .gradient = ConvWeightGradGradient,
                                         .flops = ConvWeightGradFlops};

Value Conv(Builder& b, Value x, Value weight, Value bias, const ConvOptions& options) {
  if (!bias.valid()) return b.Add(kConv, {x, weight}, ConvAttributes(options));
  return b.Add(kConv, {x, weight, bias}, ConvAttributes(options));
}

Value ConvInputGrad(Builder& b, Value dy, Value weight, const Shape& x_shape,
                    const ConvOptions& options) {
  Attributes attributes = ConvAttributes(options);
  attributes.Set("x_shape", DimsOf(x_shape));
  return b.Add(kConvInputGrad, {dy, weight}, std::move(attributes));
}

namespace {

// What is wrong with a transposed convolution's numbers; afterwards none of its sizes can overflow.
absl::Status CheckTransposed(const Shape& x, const Shape& weight, const ConvOptions& options,
                             const std::vector<int64_t>& output_padding) {
  if ((x.rank() != 3 && x.rank() != 4) || weight.rank() != x.rank()) {
    return InvalidArgument("x ", x.ToString(), " and weight ", weight.ToString(),
                           ": expected equal ranks of 3 or 4");
  }
  const size_t spatial = x.rank() - 2;
  for (const auto* list : {&options.strides, &options.dilations, &options.pads_begin,
                           &options.pads_end, &output_padding}) {
    const bool positive = list == &options.strides || list == &options.dilations;
    const int64_t low = positive ? 1 : list == &output_padding ? 0 : -kMaxExtent;
    if (list->size() != spatial) {
      return InvalidArgument("a list of ", list->size(), " strides, dilations or paddings for ",
                             spatial, " spatial dimensions");
    }
    for (int64_t value : *list) {
      if (value < low || value > kMaxExtent) {
        return InvalidArgument("stride, dilation or padding ", value, " is outside [", low, ", ",
                               kMaxExtent, "]");
      }
    }
  }
  for (int i = 2; i < x.rank(); ++i) {
    if (x[i] < 1 || x[i] > kMaxExtent || weight[i] < 1 || weight[i] > kMaxExtent) {
      return InvalidArgument("x ", x.ToString(), " and weight ", weight.ToString(), ": dimension ",
                             i, " is outside [1, ", kMaxExtent, "]");
    }
  }
  if (options.groups < 1 || options.groups > x[1]) {
    return InvalidArgument("groups is ", options.groups, " for ", x[1], " channels");
  }
  return absl::OkStatus();
}

}  // namespace

Value ConvTranspose(Builder& b, Value x, Value weight, Value bias, const ConvOptions& options,
                    const std::vector<int64_t>& output_padding) {
  if (!b.ok()) return {};
  const Shape in = b.shape(x), w = b.shape(weight);
  const int spatial = in.rank() - 2;
  std::vector<int64_t> more = output_padding;
  if (more.empty()) more.assign(std::max(0, spatial), 0);
  const absl::Status status = CheckTransposed(in, w, options, more);
  if (!status.ok()) return b.Fail(Annotate(status, "[ConvTranspose]"));
  ConvOptions forward = options;
  Shape out{in[0], w[1] * options.groups};
  std::vector<int64_t> before(2, 0), after(2, 0);
  bool pad = false;
  for (int i = 0; i < spatial; ++i) {
    // Output padding is what less padding at the end would leave; past zero, it is zeros.
    const int64_t end = options.pads_end[i] - more[i];
    forward.pads_begin[i] = std::max<int64_t>(0, options.pads_begin[i]);
    forward.pads_end[i] = std::max<int64_t>(0, end);
    before.push_back(std::max<int64_t>(0, -options.pads_begin[i]));
    after.push_back(std::max<int64_t>(0, -end));
    pad = pad || before.back() > 0 || after.back() > 0;
    out.push_back(options.strides[i] * (in[i + 2] - 1) + (w[i + 2] - 1) * options.dilations[i] + 1 -
                  forward.pads_begin[i] - forward.pads_end[i]);
    if (out[-1] < 1) {
      return b.Fail(
          InvalidArgument("[ConvTranspose] the padding leaves nothing of dimension ", i + 2));
    }
  }
  Value y = ConvInputGrad(b, x, weight, out, forward);
  if (pad) y = Pad(b, y, before, after);
  if (!bias.valid() || !b.ok()) return y;
  Shape channels{out[1]};
  for (int i = 0; i < spatial; ++i) channels.push_back(1);
  return Add(b, y, Reshape(b, bias, channels));
}

Value ConvWeightGrad(Builder& b, Value dy, Value x, const Shape& weight_shape,
                     const ConvOptions& options) {
  Attributes attributes = ConvAttributes(options);
  attributes.Set("weight_shape", DimsOf(weight_shape));
  return b.Add(kConvWeightGrad, {dy, x}, std::move(attributes));
}

}  // namespace tandem::ops

// Noise by the run's random key, and the operators that draw by themselves.
#include <cmath>

#include "engine/ops/definitions.h"
#include "engine/ops/inference.h"

namespace tandem::ops {
namespace {

absl::Status RequireKey(const InferArgs& args, int i) {
  TANDEM_RETURN_IF_ERROR(RequireDType(args, i, "key", DType::kI64));
  return RequireShape(args, i, "key", Shape{2});
}

absl::Status RequireF32OrF64(DType dtype, std::string_view what) {
  if (dtype == DType::kF32 || dtype == DType::kF64) return absl::OkStatus();
  return InvalidArgument(what, " is ", DTypeName(dtype), ", expected f32 or f64");
}

Types InferRandom(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireKey(args, 0));
  const auto dtype = static_cast<DType>(args.attributes.Int("dtype"));
  TANDEM_RETURN_IF_ERROR(RequireF32OrF64(dtype, "noise"));
  return std::vector<TensorType>{{dtype, ShapeAttribute(args.attributes, "shape")}};
}

Types InferGumbelSoftmax(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireKey(args, 0));
  TANDEM_RETURN_IF_ERROR(RequireDType(args, 1, "logits", DType::kF32));
  const Shape& shape = args.shape(1);
  if (shape.rank() == 0 || shape[-1] == 0) {
    return InvalidArgument("logits have shape ", shape.ToString(), ": no categories");
  }
  const double temperature = args.attributes.Float("temperature");
  // Its reciprocal is taken in f32.
  if (!(temperature >= 1e-30) || !(temperature <= 1e30)) {
    return InvalidArgument("temperature is ", temperature, ", must be in [1e-30, 1e30]");
  }
  return std::vector<TensorType>{args.type(1)};
}

// dlogits = softmax'(y, dy) / temperature: the noise is no longer needed.
std::vector<Value> GumbelSoftmaxGradient(Builder& b, const GradientArgs& g) {
  const Value scale = b.Scalar(1 / g.node.attributes.Float("temperature"));
  return {Value{}, Mul(b, SoftmaxGrad(b, g.out(), g.cotangent()), scale)};
}

std::vector<Value> LowerGumbelSoftmax(Builder& b, const Node& node) {
  const Value logits = node.inputs[1];
  const Shape shape = b.shape(logits);
  const Value noise = b.Add(kRandom, {node.inputs[0]},
                            {{"noise", static_cast<int64_t>(Noise::kGumbel)},
                             {"dtype", static_cast<int64_t>(DType::kF32)},
                             {"shape", DimsOf(shape)},
                             {"stream", node.attributes.Int("stream")}});
  const Value scale = b.Scalar(1 / node.attributes.Float("temperature"));
  return {Softmax(b, Mul(b, Add(b, logits, noise), scale))};
}

Types InferStraightThrough(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireSameDType(args, 0, 1));
  TANDEM_RETURN_IF_ERROR(RequireShape(args, 1, "surrogate", args.shape(0)));
  return std::vector<TensorType>{args.type(0)};
}

// dvalue = 0, dsurrogate = dy
std::vector<Value> StraightThroughGradient(Builder&, const GradientArgs& g) {
  return {Value{}, g.cotangent()};
}

std::vector<Value> LowerStraightThrough(Builder&, const Node& node) { return {node.inputs[0]}; }

Types InferRandomGamma(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireKey(args, 0));
  TANDEM_RETURN_IF_ERROR(RequireF32OrF64(args.type(1).dtype, "concentration"));
  return std::vector<TensorType>{args.type(1)};
}

std::vector<Value> RandomGammaGradient(Builder& b, const GradientArgs& g) {
  return {Value{}, RandomGammaGrad(b, g.in(1), g.out(), g.cotangent())};
}

Types InferRandomGammaGrad(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireF32OrF64(args.type(0).dtype, "concentration"));
  for (int i = 1; i < 3; ++i) {
    TANDEM_RETURN_IF_ERROR(RequireSameDType(args, 0, i));
    TANDEM_RETURN_IF_ERROR(RequireShape(args, i, i == 1 ? "log_draw" : "dy", args.shape(0)));
  }
  return std::vector<TensorType>{args.type(0)};
}

// Ten rounds of Philox and one or two logarithms.
template <int kPerElement>
double FlopsPerOutput(std::span<const TensorType* const>, std::span<const TensorType> outputs,
                      const Attributes&) {
  return kPerElement * static_cast<double>(outputs[0].shape.num_elements());
}

// logits, lse, temperature, top_k, top_p, min_p, key
Types InferSampleTokens(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireDType(args, 0, "logits", DType::kF32));
  TANDEM_RETURN_IF_ERROR(RequireRank(args, 0, "logits", 2));
  const Shape rows{args.shape(0)[0]};
  if (args.shape(0)[1] < 1) return InvalidArgument("logits have no vocabulary");
  struct Row {
    std::string_view name;
    DType dtype;
  };
  constexpr Row kRows[] = {{"lse", DType::kF32},
                           {"temperature", DType::kF32},
                           {"top_k", DType::kI32},
                           {"top_p", DType::kF64},
                           {"min_p", DType::kF64}};
  for (int i = 0; i < 5; ++i) {
    TANDEM_RETURN_IF_ERROR(RequireDType(args, i + 1, kRows[i].name, kRows[i].dtype));
    TANDEM_RETURN_IF_ERROR(RequireShape(args, i + 1, kRows[i].name, rows));
  }
  TANDEM_RETURN_IF_ERROR(RequireDType(args, 6, "key", DType::kU64));
  TANDEM_RETURN_IF_ERROR(RequireShape(args, 6, "key", Shape{3, rows[0]}));
  return std::vector<TensorType>{{DType::kI32, rows}, {DType::kF32, rows}, {DType::kF32, rows}};
}

}  // namespace

constinit const OpDef kRandom = {
    .name = "Random", .infer = InferRandom, .flops = FlopsPerOutput<50>};
constinit const OpDef kGumbelSoftmax = {.name = "GumbelSoftmax",
                                        .min_inputs = 2,
                                        .max_inputs = 2,
                                        .infer = InferGumbelSoftmax,
                                        .gradient = GumbelSoftmaxGradient,
                                        .lower = LowerGumbelSoftmax,
                                        .flops = FlopsPerOutput<60>};
constinit const OpDef kStraightThrough = {.name = "StraightThrough",
                                          .min_inputs = 2,
                                          .max_inputs = 2,
                                          .infer = InferStraightThrough,
                                          .gradient = StraightThroughGradient,
                                          .lower = LowerStraightThrough,
                                          .flops = NoFlops};
constinit const OpDef kRandomGamma = {.name = "RandomGamma",
                                      .min_inputs = 2,
                                      .max_inputs = 2,
                                      .infer = InferRandomGamma,
                                      .gradient = RandomGammaGradient,
                                      .flops = FlopsPerOutput<200>};
constinit const OpDef kRandomGammaGrad = {.name = "RandomGammaGrad",
                                          .min_inputs = 3,
                                          .max_inputs = 3,
                                          .infer = InferRandomGammaGrad,
                                          .flops = FlopsPerOutput<1000>};
constinit const OpDef kSampleTokens = {
    .name = "SampleTokens", .min_inputs = 7, .max_inputs = 7, .infer = InferSampleTokens};

Value Random(Builder& b, Noise noise, DType dtype, const Shape& shape, Value key) {
  std::vector<int64_t> dims = DimsOf(shape);
  return b.Add(kRandom, {key.valid() ? key : b.RandomKey()},
               {{"noise", static_cast<int64_t>(noise)},
                {"dtype", static_cast<int64_t>(dtype)},
                {"shape", std::move(dims)},
                {"stream", b.NextRandomStream()}});
}

Value GumbelSoftmax(Builder& b, Value logits, double temperature) {
  return b.Add(kGumbelSoftmax, {b.RandomKey(), logits},
               {{"temperature", temperature}, {"stream", b.NextRandomStream()}});
}

Value StraightThrough(Builder& b, Value value, Value surrogate) {
  return b.Add(kStraightThrough, {value, surrogate});
}

Value RandomGamma(Builder& b, Value concentration) {
  return b.Add(kRandomGamma, {b.RandomKey(), concentration}, {{"stream", b.NextRandomStream()}});
}

Value RandomGammaGrad(Builder& b, Value concentration, Value log_draw, Value dy) {
  return b.Add(kRandomGammaGrad, {concentration, log_draw, dy});
}

std::vector<Value> SampleTokens(Builder& b, Value logits, Value lse, Value temperature, Value top_k,
                                Value top_p, Value min_p, Value key) {
  return b.AddMulti(kSampleTokens, {{logits, lse, temperature, top_k, top_p, min_p, key}}, {}, 3);
}

}  // namespace tandem::ops

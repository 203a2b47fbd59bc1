// Optimizer steps over flat parameters.
#include <limits>

#include "engine/ops/definitions.h"
#include "engine/ops/inference.h"

namespace tandem::ops {
namespace {

Types InferSumOfSquares(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireFloat(args, 0, "x"));
  TANDEM_RETURN_IF_ERROR(RequireRank(args, 0, "x", 1));
  return std::vector<TensorType>{{DType::kF64, Shape{}}};
}

absl::Status RequireF64(const InferArgs& args, int i, std::string_view what, const Shape& shape) {
  TANDEM_RETURN_IF_ERROR(RequireDType(args, i, what, DType::kF64));
  return RequireShape(args, i, what, shape);
}

Types InferOptimizerControl(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireF64(args, 0, "sum_of_squares", Shape{}));
  TANDEM_RETURN_IF_ERROR(RequireF64(args, 1, "hyper", Shape{kHyperCount}));
  TANDEM_RETURN_IF_ERROR(RequireF64(args, 2, "state", Shape{kStateCount}));
  return std::vector<TensorType>{{DType::kF64, Shape{kControlCount}}, args.type(2)};
}

// p, g, then `moments` arrays, all f32 (P); decay, control -> p and the moments
Types InferStep(const InferArgs& args, std::span<const std::string_view> moments) {
  TANDEM_RETURN_IF_ERROR(RequireRank(args, 0, "p", 1));
  const int count = static_cast<int>(moments.size()), decay = 2 + count;
  for (int i = 0; i < decay; ++i) {
    const std::string_view name = i < 2 ? (i == 0 ? "p" : "g") : moments[i - 2];
    TANDEM_RETURN_IF_ERROR(RequireDType(args, i, name, DType::kF32));
    TANDEM_RETURN_IF_ERROR(RequireShape(args, i, name, args.shape(0)));
  }
  TANDEM_RETURN_IF_ERROR(RequireDType(args, decay, "decay", DType::kU8));
  TANDEM_RETURN_IF_ERROR(RequireShape(args, decay, "decay", args.shape(0)));
  TANDEM_RETURN_IF_ERROR(RequireF64(args, decay + 1, "control", Shape{kControlCount}));
  std::vector<TensorType> types(1 + count, args.type(0));
  if (!args.attributes.Has("copy")) return types;
  const auto copy = static_cast<DType>(args.attributes.Int("copy"));
  if (copy != DType::kBF16 && copy != DType::kF16) {
    return InvalidArgument("a copy of the parameters in ", DTypeName(copy));
  }
  types.push_back({copy, args.shape(0)});
  return types;
}

// Adds p' in the type of the attribute `copy`, if there is one.
std::vector<Value> WithCopy(Builder& b, const Node& node, std::vector<Value> outputs) {
  if (node.attributes.Has("copy")) {
    outputs.push_back(Cast(b, outputs[0], static_cast<DType>(node.attributes.Int("copy"))));
  }
  return outputs;
}

Attributes StepAttributes(const char* flag, bool value, std::optional<DType> copy) {
  Attributes attributes = {{flag, int64_t{value}}};
  if (copy.has_value()) attributes.Set("copy", static_cast<int64_t>(*copy));
  return attributes;
}

Types InferAdamStep(const InferArgs& args) {
  constexpr std::string_view kMoments[] = {"m", "v"};
  return InferStep(args, kMoments);
}

Types InferSgdStep(const InferArgs& args) {
  constexpr std::string_view kMoments[] = {"buffer"};
  return InferStep(args, kMoments);
}

// sum(x^2), squared and added in f64
std::vector<Value> LowerSumOfSquares(Builder& b, const Node& node) {
  return {ReduceSum(b, Square(b, Cast(b, node.inputs[0], DType::kF64)), {}, false)};
}

// Element i of a vector, (1).
Value Element(Builder& b, Value vector, int64_t i) { return Slice(b, vector, {i}, {i + 1}, {1}); }

std::vector<Value> LowerOptimizerControl(Builder& b, const Node& node) {
  const auto hyper = [&](int64_t i) { return Element(b, node.inputs[1], i); };
  const auto state = [&](int64_t i) { return Element(b, node.inputs[2], i); };
  const auto number = [&](double x) { return Reshape(b, b.Scalar(x, DType::kF64), Shape{1}); };
  const Value zero = number(0), one = number(1);
  const Value sum = Reshape(b, node.inputs[0], Shape{1}), scale = state(kStateLossScale);
  const Value finite = Less(b, sum, number(std::numeric_limits<double>::infinity()));
  const Value norm = Div(b, Sqrt(b, sum), scale);
  const Value step = Add(b, state(kStateStep), one);
  const Value max_norm = hyper(kHyperMaxGradNorm);
  const Value clip = Where(b, And(b, finite, Less(b, zero, max_norm)),
                           Min(b, one, Div(b, max_norm, Add(b, norm, number(1e-6)))), one);
  const auto bias = [&](int64_t beta) { return Sub(b, one, Pow(b, hyper(beta), step)); };
  const Value control = Concat(
      b,
      {hyper(kHyperLearningRate), hyper(kHyperBeta1), hyper(kHyperBeta2), hyper(kHyperEpsilon),
       hyper(kHyperWeightDecay), bias(kHyperBeta1), bias(kHyperBeta2), Div(b, clip, scale),
       hyper(kHyperMomentum), Cast(b, finite, DType::kF64), norm, scale},
      0);

  const Value good = Add(b, state(kStateGoodSteps), one);
  const Value grow = LessOrEqual(b, hyper(kHyperGrowthInterval), good);
  const auto limited = [&](Value s) {
    s = Max(b, s, number(std::numeric_limits<float>::min()));
    return Min(b, s, number(std::numeric_limits<float>::max()));
  };
  const Value grown = Where(b, grow, limited(Mul(b, scale, hyper(kHyperGrowth))), scale);
  const Value backed_off = limited(Mul(b, scale, hyper(kHyperBackoff)));
  const Value next = Concat(
      b,
      {Where(b, finite, step, state(kStateStep)),
       Where(b, finite, state(kStateSkipped), Add(b, state(kStateSkipped), one)),
       Where(b, finite, grown, backed_off), Where(b, And(b, finite, Not(b, grow)), good, zero)},
      0);
  return {control, next};
}

// The entries of a control vector, f32 (1) each, and the choice between a step and none.
struct Control {
  Builder& b;
  Value control;
  Value operator[](int64_t i) const { return Cast(b, Element(b, control, i), DType::kF32); }
  Value Choose(Value stepped, Value old) const {
    const Value apply = Less(b, b.Scalar(0), (*this)[kControlApply]);
    return Where(b, apply, stepped, old);
  }
};

// With g' = scale g, w = weight_decay * decay:
//   Adam: g' += w p;  AdamW: p -= lr w p;  then for both
//   m' = m + (1 - beta1) (g' - m);  v' = beta2 v + (1 - beta2) g'^2
//   p' = p - lr / c1 * m' / (sqrt(v') / sqrt(c2) + eps),  c = 1 - beta^t
std::vector<Value> LowerAdamStep(Builder& b, const Node& node) {
  const Value m = node.inputs[2], v = node.inputs[3], one = b.Scalar(1);
  const Control control{b, node.inputs[5]};
  const Value lr = control[kControlLearningRate];
  const Value beta1 = control[kControlBeta1], beta2 = control[kControlBeta2];
  const Value weight_decay =
      Mul(b, Cast(b, node.inputs[4], DType::kF32), control[kControlWeightDecay]);
  Value p = node.inputs[0], g = Mul(b, node.inputs[1], control[kControlGradScale]);
  if (node.attributes.Int("decoupled") != 0) {
    p = Mul(b, p, Sub(b, one, Mul(b, lr, weight_decay)));
  } else {
    g = Add(b, g, Mul(b, weight_decay, p));
  }
  const Value m_new = Add(b, m, Mul(b, Sub(b, one, beta1), Sub(b, g, m)));
  const Value v_new = Add(b, Mul(b, v, beta2), Mul(b, Sub(b, one, beta2), Square(b, g)));
  const Value root =
      Add(b, Div(b, Sqrt(b, v_new), Sqrt(b, control[kControlBias2])), control[kControlEpsilon]);
  const Value step = Mul(b, Div(b, lr, control[kControlBias1]), Div(b, m_new, root));
  return WithCopy(b, node,
                  {control.Choose(Sub(b, p, step), node.inputs[0]), control.Choose(m_new, m),
                   control.Choose(v_new, v)});
}

// With g' = scale g + weight_decay decay p:  buffer' = momentum buffer + g';
//   p' = p - lr buffer', or p - lr (g' + momentum buffer')
std::vector<Value> LowerSgdStep(Builder& b, const Node& node) {
  const Value p = node.inputs[0], buffer = node.inputs[2];
  const Control control{b, node.inputs[4]};
  const Value momentum = control[kControlMomentum];
  const Value weight_decay =
      Mul(b, Cast(b, node.inputs[3], DType::kF32), control[kControlWeightDecay]);
  const Value scaled = Mul(b, node.inputs[1], control[kControlGradScale]);
  const Value g = Add(b, scaled, Mul(b, weight_decay, p));
  const Value used = Less(b, b.Scalar(0), momentum);
  const Value accumulated = Add(b, Mul(b, buffer, momentum), g);
  Value direction = accumulated;
  if (node.attributes.Int("nesterov") != 0) direction = Add(b, g, Mul(b, momentum, accumulated));
  direction = Where(b, used, direction, g);
  const Value step = Mul(b, control[kControlLearningRate], direction);
  return WithCopy(b, node,
                  {control.Choose(Sub(b, p, step), p),
                   control.Choose(Where(b, used, accumulated, buffer), buffer)});
}

}  // namespace

constinit const OpDef kSumOfSquares = {.name = "SumOfSquares",
                                       .infer = InferSumOfSquares,
                                       .lower = LowerSumOfSquares,
                                       .flops = FlopsPerElement<2>};
constinit const OpDef kOptimizerControl = {.name = "OptimizerControl",
                                           .min_inputs = 3,
                                           .max_inputs = 3,
                                           .infer = InferOptimizerControl,
                                           .lower = LowerOptimizerControl,
                                           .flops = NoFlops};
constinit const OpDef kAdamStep = {.name = "AdamStep",
                                   .min_inputs = 6,
                                   .max_inputs = 6,
                                   .infer = InferAdamStep,
                                   .lower = LowerAdamStep,
                                   .flops = FlopsPerElement<16>};
constinit const OpDef kSgdStep = {.name = "SgdStep",
                                  .min_inputs = 5,
                                  .max_inputs = 5,
                                  .infer = InferSgdStep,
                                  .lower = LowerSgdStep,
                                  .flops = FlopsPerElement<7>};

Value SumOfSquares(Builder& b, Value x) { return b.Add(kSumOfSquares, {x}); }

std::vector<Value> OptimizerControl(Builder& b, Value sum_of_squares, Value hyper, Value state) {
  return b.AddMulti(kOptimizerControl, {{sum_of_squares, hyper, state}}, {}, 2);
}

std::vector<Value> AdamStep(Builder& b, Value p, Value g, Value m, Value v, Value decay,
                            Value control, bool decoupled, std::optional<DType> copy) {
  return b.AddMulti(kAdamStep, {{p, g, m, v, decay, control}},
                    StepAttributes("decoupled", decoupled, copy), copy.has_value() ? 4 : 3);
}

std::vector<Value> SgdStep(Builder& b, Value p, Value g, Value buffer, Value decay, Value control,
                           bool nesterov, std::optional<DType> copy) {
  return b.AddMulti(kSgdStep, {{p, g, buffer, decay, control}},
                    StepAttributes("nesterov", nesterov, copy), copy.has_value() ? 3 : 2);
}

}  // namespace tandem::ops

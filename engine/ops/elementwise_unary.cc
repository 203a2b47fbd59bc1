// Elementwise operators of one input, and the fused derivatives (x, dy) -> dx.
#include <cmath>
#include <numbers>

#include "engine/ops/definitions.h"
#include "engine/ops/inference.h"

namespace tandem::ops {
namespace {

constexpr double kGeluTanhCubic = 0.044715;

Value C(Builder& b, double value, Value like) { return b.Scalar(value, b.dtype(like)); }
Value Scaled(Builder& b, Value x, double factor) { return Mul(b, x, C(b, factor, x)); }
Value OneMinus(Builder& b, Value x) { return Sub(b, C(b, 1, x), x); }

Types InferNot(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireDType(args, 0, "input", DType::kBool));
  return std::vector<TensorType>{args.type(0)};
}

// dx = -dy
std::vector<Value> NegGradient(Builder& b, const GradientArgs& g) {
  return {Neg(b, g.cotangent())};
}
// dx = dy sign(x): 0 at the kink, as PyTorch.
std::vector<Value> AbsGradient(Builder& b, const GradientArgs& g) {
  return {Mul(b, g.cotangent(), Sign(b, g.in(0)))};
}
// Piecewise constant: no gradient flows.
std::vector<Value> NoGradient(Builder&, const GradientArgs&) { return {Value{}}; }
// dx = dy y
std::vector<Value> ExpGradient(Builder& b, const GradientArgs& g) {
  return {Mul(b, g.cotangent(), g.out())};
}
// dx = dy / x
std::vector<Value> LogGradient(Builder& b, const GradientArgs& g) {
  return {Div(b, g.cotangent(), g.in(0))};
}
// dx = dy / (2 y)
std::vector<Value> SqrtGradient(Builder& b, const GradientArgs& g) {
  return {Div(b, Scaled(b, g.cotangent(), 0.5), g.out())};
}
// dx = -dy y^3 / 2
std::vector<Value> RsqrtGradient(Builder& b, const GradientArgs& g) {
  const Value cube = Mul(b, Square(b, g.out()), g.out());
  return {Mul(b, Scaled(b, g.cotangent(), -0.5), cube)};
}
// dx = -dy y^2
std::vector<Value> ReciprocalGradient(Builder& b, const GradientArgs& g) {
  return {Neg(b, Mul(b, g.cotangent(), Square(b, g.out())))};
}
// dx = dy (1 - y^2)
std::vector<Value> TanhGradient(Builder& b, const GradientArgs& g) {
  return {Mul(b, g.cotangent(), OneMinus(b, Square(b, g.out())))};
}
// dx = dy y (1 - y)
std::vector<Value> SigmoidGradient(Builder& b, const GradientArgs& g) {
  return {Mul(b, g.cotangent(), Mul(b, g.out(), OneMinus(b, g.out())))};
}
// dx = dy 2 / sqrt(pi) exp(-x^2)
std::vector<Value> ErfGradient(Builder& b, const GradientArgs& g) {
  const Value bell = Exp(b, Neg(b, Square(b, g.in(0))));
  return {Mul(b, g.cotangent(), Scaled(b, bell, 2 * std::numbers::inv_sqrtpi))};
}
// dx = dy [y > 0]: 0 at the kink, as PyTorch. By y, so that x need not be kept.
std::vector<Value> ReluGradient(Builder& b, const GradientArgs& g) {
  return {ReluGrad(b, g.out(), g.cotangent())};
}
std::vector<Value> GeluGradient(Builder& b, const GradientArgs& g) {
  return {GeluGrad(b, g.in(0), g.cotangent())};
}
std::vector<Value> GeluTanhGradient(Builder& b, const GradientArgs& g) {
  return {GeluTanhGrad(b, g.in(0), g.cotangent())};
}
std::vector<Value> SiluGradient(Builder& b, const GradientArgs& g) {
  return {SiluGrad(b, g.in(0), g.cotangent())};
}
// dx = dy sigmoid(x)
std::vector<Value> SoftplusGradient(Builder& b, const GradientArgs& g) {
  return {Mul(b, g.cotangent(), Sigmoid(b, g.in(0)))};
}
// dx = dy cos(x)
std::vector<Value> SinGradient(Builder& b, const GradientArgs& g) {
  return {Mul(b, g.cotangent(), Cos(b, g.in(0)))};
}
// dx = -dy sin(x)
std::vector<Value> CosGradient(Builder& b, const GradientArgs& g) {
  return {Neg(b, Mul(b, g.cotangent(), Sin(b, g.in(0))))};
}
// dx = 2 dy x
std::vector<Value> SquareGradient(Builder& b, const GradientArgs& g) {
  return {Mul(b, Scaled(b, g.cotangent(), 2), g.in(0))};
}
// dx = dy psi(x)
std::vector<Value> LgammaGradient(Builder& b, const GradientArgs& g) {
  return {Mul(b, g.cotangent(), Digamma(b, g.in(0)))};
}
// dx = dy psi'(x)
std::vector<Value> DigammaGradient(Builder& b, const GradientArgs& g) {
  return {Mul(b, g.cotangent(), Trigamma(b, g.in(0)))};
}
// dx = dy / (1 + x)
std::vector<Value> Log1pGradient(Builder& b, const GradientArgs& g) {
  return {Div(b, g.cotangent(), Add(b, g.in(0), C(b, 1, g.in(0))))};
}
// dx = dy (y + 1)
std::vector<Value> Expm1Gradient(Builder& b, const GradientArgs& g) {
  return {Mul(b, g.cotangent(), Add(b, g.out(), C(b, 1, g.out())))};
}
// dx = 0; d dy = dz [x > 0]
std::vector<Value> ReluGradGradient(Builder& b, const GradientArgs& g) {
  return {Value{}, ReluGrad(b, g.in(0), g.cotangent())};
}

// Phi(x) = (1 + erf(x / sqrt 2)) / 2, the normal distribution function.
Value NormalCdf(Builder& b, Value x) {
  const Value erf = Erf(b, Scaled(b, x, 1 / std::numbers::sqrt2));
  return Scaled(b, Add(b, erf, C(b, 1, x)), 0.5);
}
// tanh(sqrt(2 / pi) (x + 0.044715 x^3))
Value GeluTanhInner(Builder& b, Value x) {
  const Value cube = Mul(b, Square(b, x), x);
  const Value inner = Add(b, x, Scaled(b, cube, kGeluTanhCubic));
  return Tanh(b, Scaled(b, inner, std::numbers::sqrt2 * std::numbers::inv_sqrtpi));
}

// x Phi(x) (Hendrycks and Gimpel 2016)
std::vector<Value> LowerGelu(Builder& b, const Node& node) {
  const Value x = node.inputs[0];
  return {Mul(b, x, NormalCdf(b, x))};
}
// x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2
std::vector<Value> LowerGeluTanh(Builder& b, const Node& node) {
  const Value x = node.inputs[0];
  return {Mul(b, Scaled(b, x, 0.5), Add(b, GeluTanhInner(b, x), C(b, 1, x)))};
}
// x sigmoid(x)
std::vector<Value> LowerSilu(Builder& b, const Node& node) {
  return {Mul(b, node.inputs[0], Sigmoid(b, node.inputs[0]))};
}
// max(x, 0) + log(1 + exp(-|x|)): neither overflows.
std::vector<Value> LowerSoftplus(Builder& b, const Node& node) {
  const Value x = node.inputs[0];
  const Value tail = Log(b, Add(b, Exp(b, Neg(b, Abs(b, x))), C(b, 1, x)));
  return {Add(b, Relu(b, x), tail)};
}
// dy where x > 0, else 0
std::vector<Value> LowerReluGrad(Builder& b, const Node& node) {
  const Value x = node.inputs[0], zero = C(b, 0, x);
  return {Where(b, Less(b, zero, x), node.inputs[1], zero)};
}
// dy (Phi(x) + x phi(x)), phi(x) = exp(-x^2 / 2) / sqrt(2 pi)
std::vector<Value> LowerGeluGrad(Builder& b, const Node& node) {
  const Value x = node.inputs[0];
  const Value bell = Exp(b, Scaled(b, Square(b, x), -0.5));
  const Value density = Scaled(b, bell, std::numbers::inv_sqrtpi / std::numbers::sqrt2);
  return {Mul(b, node.inputs[1], Add(b, NormalCdf(b, x), Mul(b, x, density)))};
}
// With t = tanh(u): dy ((1 + t) / 2 + x (1 - t^2) / 2 u'), u' = sqrt(2 / pi) (1 + 3 0.044715 x^2)
std::vector<Value> LowerGeluTanhGrad(Builder& b, const Node& node) {
  const Value x = node.inputs[0];
  const Value t = GeluTanhInner(b, x);
  const Value slope = Scaled(b, Add(b, Scaled(b, Square(b, x), 3 * kGeluTanhCubic), C(b, 1, x)),
                             std::numbers::sqrt2 * std::numbers::inv_sqrtpi);
  const Value bend = Mul(b, Mul(b, x, OneMinus(b, Square(b, t))), slope);
  const Value sum = Add(b, Add(b, t, C(b, 1, x)), bend);
  return {Mul(b, node.inputs[1], Scaled(b, sum, 0.5))};
}
// With s = sigmoid(x): dy s (1 + x (1 - s))
std::vector<Value> LowerSiluGrad(Builder& b, const Node& node) {
  const Value x = node.inputs[0];
  const Value s = Sigmoid(b, x);
  const Value bend = Add(b, Mul(b, x, OneMinus(b, s)), C(b, 1, x));
  return {Mul(b, node.inputs[1], Mul(b, s, bend))};
}

}  // namespace

constinit const OpDef kNeg = {.name = "Neg", .infer = InferNumber, .gradient = NegGradient};
constinit const OpDef kAbs = {.name = "Abs", .infer = InferNumber, .gradient = AbsGradient};
constinit const OpDef kSign = {.name = "Sign", .infer = InferNumber, .gradient = NoGradient};
constinit const OpDef kExp = {.name = "Exp", .infer = InferFloat, .gradient = ExpGradient};
constinit const OpDef kLog = {.name = "Log", .infer = InferFloat, .gradient = LogGradient};
constinit const OpDef kSqrt = {.name = "Sqrt", .infer = InferFloat, .gradient = SqrtGradient};
constinit const OpDef kRsqrt = {.name = "Rsqrt", .infer = InferFloat, .gradient = RsqrtGradient};
constinit const OpDef kReciprocal = {
    .name = "Reciprocal", .infer = InferFloat, .gradient = ReciprocalGradient};
constinit const OpDef kTanh = {.name = "Tanh", .infer = InferFloat, .gradient = TanhGradient};
constinit const OpDef kSigmoid = {
    .name = "Sigmoid", .infer = InferFloat, .gradient = SigmoidGradient};
constinit const OpDef kErf = {.name = "Erf", .infer = InferFloat, .gradient = ErfGradient};
constinit const OpDef kRelu = {.name = "Relu", .infer = InferNumber, .gradient = ReluGradient};
constinit const OpDef kGelu = {
    .name = "Gelu", .infer = InferFloat, .gradient = GeluGradient, .lower = LowerGelu};
constinit const OpDef kGeluTanh = {
    .name = "GeluTanh", .infer = InferFloat, .gradient = GeluTanhGradient, .lower = LowerGeluTanh};
constinit const OpDef kSilu = {
    .name = "Silu", .infer = InferFloat, .gradient = SiluGradient, .lower = LowerSilu};
constinit const OpDef kSoftplus = {
    .name = "Softplus", .infer = InferFloat, .gradient = SoftplusGradient, .lower = LowerSoftplus};
constinit const OpDef kSin = {.name = "Sin", .infer = InferFloat, .gradient = SinGradient};
constinit const OpDef kCos = {.name = "Cos", .infer = InferFloat, .gradient = CosGradient};
constinit const OpDef kFloor = {.name = "Floor", .infer = InferFloat, .gradient = NoGradient};
constinit const OpDef kCeil = {.name = "Ceil", .infer = InferFloat, .gradient = NoGradient};
constinit const OpDef kRound = {.name = "Round", .infer = InferFloat, .gradient = NoGradient};
constinit const OpDef kSquare = {
    .name = "Square", .infer = InferNumber, .gradient = SquareGradient};
constinit const OpDef kNot = {.name = "Not", .infer = InferNot};

// About as many operations as an asymptotic series and its shift take.
constinit const OpDef kLgamma = {.name = "Lgamma",
                                 .infer = InferFloat,
                                 .gradient = LgammaGradient,
                                 .flops = FlopsPerElement<60>};
constinit const OpDef kDigamma = {.name = "Digamma",
                                  .infer = InferFloat,
                                  .gradient = DigammaGradient,
                                  .flops = FlopsPerElement<60>};
constinit const OpDef kTrigamma = {
    .name = "Trigamma", .infer = InferFloat, .flops = FlopsPerElement<60>};
constinit const OpDef kLog1p = {.name = "Log1p", .infer = InferFloat, .gradient = Log1pGradient};
constinit const OpDef kExpm1 = {.name = "Expm1", .infer = InferFloat, .gradient = Expm1Gradient};

constinit const OpDef kReluGrad = {.name = "ReluGrad",
                                   .min_inputs = 2,
                                   .max_inputs = 2,
                                   .infer = InferFloatPair,
                                   .gradient = ReluGradGradient,
                                   .lower = LowerReluGrad};
constinit const OpDef kGeluGrad = {.name = "GeluGrad",
                                   .min_inputs = 2,
                                   .max_inputs = 2,
                                   .infer = InferFloatPair,
                                   .lower = LowerGeluGrad};
constinit const OpDef kGeluTanhGrad = {.name = "GeluTanhGrad",
                                       .min_inputs = 2,
                                       .max_inputs = 2,
                                       .infer = InferFloatPair,
                                       .lower = LowerGeluTanhGrad};
constinit const OpDef kSiluGrad = {.name = "SiluGrad",
                                   .min_inputs = 2,
                                   .max_inputs = 2,
                                   .infer = InferFloatPair,
                                   .lower = LowerSiluGrad};

#define OP(name) \
  Value name(Builder& b, Value x) { return b.Add(k##name, {x}); }
TANDEM_UNARY_OPS(OP)
#undef OP
#define OP(name) \
  Value name(Builder& b, Value x, Value dy) { return b.Add(k##name, {x, dy}); }
TANDEM_UNARY_GRAD_OPS(OP)
#undef OP

}  // namespace tandem::ops

// Arithmetic, comparisons, logic, casts and the functions of calculus.
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

using compose::Like;
using UnaryFunction = Value (*)(Builder&, Value);
using BinaryFunction = Value (*)(Builder&, Value, Value);

// Functions of one input.
template <UnaryFunction kFunction>
Outputs Unary(NodeContext& c) {
  c.IgnoreAttribute("consumed_inputs");  // of opset 1, "legacy optimization attribute"
  return One(kFunction(c.b, c.In(0)));
}

// Before opset 7 the second input may be broadcast by attributes: its dimensions stand at `axis`.
absl::StatusOr<Value> SecondOperand(NodeContext& c) {
  Value y = c.In(1);
  if (c.opset() >= 7) return y;
  c.IgnoreAttribute("consumed_inputs");
  const int64_t broadcast = c.Int("broadcast", 0);
  const int64_t axis = c.Int("axis", c.rank(0) - c.rank(1));
  const Shape shape = c.shape(1);
  if (broadcast == 0) {
    if (c.shape(0) == shape) return y;
    return InvalidArgument("inputs of ", c.shape(0).ToString(), " and ", shape.ToString(),
                           " need broadcast=1 before opset 7");
  }
  if (axis < 0 || axis + shape.rank() > c.rank(0)) {
    return InvalidArgument("axis ", axis, " does not fit ", shape.ToString(), " into ",
                           c.shape(0).ToString());
  }
  Shape aligned = shape;
  while (axis + aligned.rank() < c.rank(0)) aligned.push_back(1);
  return ops::Reshape(c.b, y, aligned);
}

// Arithmetic, comparisons, logic.
template <BinaryFunction kFunction>
Outputs Binary(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const Value second, SecondOperand(c));
  return One(kFunction(c.b, c.In(0), second));
}

// The exponent may have another type; the result has the base's.
Outputs Pow(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const Value second, SecondOperand(c));
  const DType dtype = c.dtype(0);
  // Exactly, where the exponent is a small whole number; and without ln(x) in the gradient.
  const Tensor* exponent = c.b.constant(second);
  if (exponent != nullptr && exponent->num_elements() == 1 && c.rank(1) <= c.rank(0) &&
      IsFloat(dtype)) {
    const double value = ElementAsDouble(*exponent, 0);
    if (value == 1) return One(c.In(0));
    if (value == 2) return One(ops::Square(c.b, c.In(0)));
    if (value == 0.5) return One(ops::Sqrt(c.b, c.In(0)));
  }
  // Integers go through f64, which has the exact result wherever an i64 result below 2^53 fits.
  const DType common = IsFloat(dtype) ? dtype : DType::kF64;
  const Value y =
      ops::Pow(c.b, compose::CastTo(c.b, c.In(0), common), compose::CastTo(c.b, second, common));
  return One(compose::CastTo(c.b, y, dtype));
}

// The remainder has the divisor's sign (Python's %), or with fmod=1 the dividend's (C's fmod).
// ops::Mod is the first of integers and the second of floats.
Outputs Mod(NodeContext& c) {
  const bool fmod = c.Int("fmod", 0) != 0, floats = IsFloat(c.dtype(0));
  const Value x = c.In(0), y = c.In(1);
  if (fmod && !floats) {
    return One(ops::Sub(c.b, x, ops::Mul(c.b, y, ops::Div(c.b, x, y))));
  }
  const Value r = ops::Mod(c.b, x, y);
  if (fmod || !floats) return One(r);
  const Value zero = Like(c.b, 0, x);
  const Value differs = ops::Xor(c.b, ops::Less(c.b, r, zero), ops::Less(c.b, y, zero));
  const Value wrong = ops::And(c.b, differs, ops::Not(c.b, ops::Equal(c.b, r, zero)));
  return One(ops::Where(c.b, wrong, ops::Add(c.b, r, y), r));
}

// Sum, Max, Min of any number of inputs; Mean divides.
template <BinaryFunction kFunction, bool kMean = false>
Outputs Variadic(NodeContext& c) {
  c.IgnoreAttribute("consumed_inputs");
  Value y = c.In(0);
  for (int i = 1; i < c.count(); ++i) {
    if (!c.Has(i)) return InvalidArgument("input ", i, " is missing");
    y = kFunction(c.b, y, c.In(i));
  }
  return One(kMean ? compose::Scale(c.b, y, 1.0 / c.count()) : y);
}

Outputs Where(NodeContext& c) { return One(ops::Where(c.b, c.In(0), c.In(1), c.In(2))); }

Outputs Identity(NodeContext& c) { return One(c.In(0)); }

// To f16 and bf16: rounded to their values, kept in f32.
Value CastLikeOnnx(Builder& b, Value x, DType to) {
  if (ComputeDType(to) == to) return compose::CastTo(b, x, to);
  return ops::Cast(b, ops::Cast(b, x, to), DType::kF32);
}

Outputs Cast(NodeContext& c) {
  DType to;
  if (c.opset() < 6) {
    const std::string name = c.String("to", "");
    onnx::TensorProto_DataType type;
    if (!onnx::TensorProto_DataType_Parse(name, &type)) {
      return InvalidArgument("attribute to='", name, "' is no element type");
    }
    TANDEM_ASSIGN_OR_RETURN(to, DTypeFromOnnx(type, "attribute 'to'"));
  } else {
    const int64_t type = c.Int("to", 0);
    if (type < 0 || type > std::numeric_limits<int32_t>::max()) {
      return InvalidArgument("attribute to=", type, " is no element type");
    }
    TANDEM_ASSIGN_OR_RETURN(to, DTypeFromOnnx(static_cast<int32_t>(type), "attribute 'to'"));
  }
  // Both concern the 8-bit floats alone.
  c.IgnoreAttribute("saturate");
  c.IgnoreAttribute("round_mode");
  return One(CastLikeOnnx(c.b, c.In(0), to));
}

Outputs CastLike(NodeContext& c) {
  c.IgnoreAttribute("saturate");
  c.IgnoreAttribute("round_mode");
  return One(CastLikeOnnx(c.b, c.In(0), c.dtype(1)));
}

Outputs IsNaN(NodeContext& c) { return One(ops::Not(c.b, ops::Equal(c.b, c.In(0), c.In(0)))); }

Outputs IsInf(NodeContext& c) {
  const double infinity = std::numeric_limits<double>::infinity();
  const bool positive = c.Int("detect_positive", 1) != 0;
  const bool negative = c.Int("detect_negative", 1) != 0;
  const Value x = c.In(0);
  const Value up = ops::Equal(c.b, x, Like(c.b, infinity, x));
  const Value down = ops::Equal(c.b, x, Like(c.b, -infinity, x));
  if (positive && negative) return One(ops::Or(c.b, up, down));
  if (positive) return One(up);
  if (negative) return One(down);
  return One(ops::And(c.b, up, down));  // never
}

Value Tan(Builder& b, Value x) { return ops::Div(b, ops::Sin(b, x), ops::Cos(b, x)); }

// asin(x) = 2 atan(x / (1 + sqrt(1 - x^2)))
Value Asin(Builder& b, Value x) {
  const Value one = Like(b, 1, x);
  const Value root = ops::Sqrt(b, ops::Mul(b, ops::Sub(b, one, x), ops::Add(b, one, x)));
  return compose::Scale(b, compose::Atan(b, ops::Div(b, x, compose::AddScalar(b, root, 1))), 2);
}

// acos(x) = 2 atan(sqrt((1 - x) / (1 + x)))
Value Acos(Builder& b, Value x) {
  const Value one = Like(b, 1, x);
  const Value ratio = ops::Div(b, ops::Sub(b, one, x), ops::Add(b, one, x));
  return compose::Scale(b, compose::Atan(b, ops::Sqrt(b, ratio)), 2);
}

// sinh(x) = 2 t / (1 - t^2) with t = tanh(x / 2) where |x| < 1, which loses nothing near 0.
Value Sinh(Builder& b, Value x) {
  const Value one = Like(b, 1, x);
  const Value small = ops::Min(b, ops::Max(b, x, Like(b, -1, x)), one);
  const Value t = ops::Tanh(b, compose::Scale(b, small, 0.5));
  const Value near = ops::Div(b, compose::Scale(b, t, 2), ops::Sub(b, one, ops::Square(b, t)));
  const Value far =
      compose::Scale(b, ops::Sub(b, ops::Exp(b, x), ops::Exp(b, ops::Neg(b, x))), 0.5);
  return ops::Where(b, ops::Less(b, ops::Abs(b, x), one), near, far);
}

Value Cosh(Builder& b, Value x) {
  return compose::Scale(b, ops::Add(b, ops::Exp(b, x), ops::Exp(b, ops::Neg(b, x))), 0.5);
}

// ln(1 + x) for x > -1, from ln(u) x / (u - 1) with u = 1 + x rounded (Kahan).
Value Log1p(Builder& b, Value x) {
  const Value u = compose::AddScalar(b, x, 1);
  const Value exact = ops::Equal(b, u, Like(b, 1, x));
  const Value rest = ops::Where(b, exact, Like(b, 1, x), compose::AddScalar(b, u, -1));
  return ops::Where(b, exact, x, ops::Div(b, ops::Mul(b, ops::Log(b, u), x), rest));
}

// asinh(x) = sign(x) ln(1 + |x| + x^2 / (1 + sqrt(1 + x^2)))
Value Asinh(Builder& b, Value x) {
  const Value a = ops::Abs(b, x), square = ops::Square(b, x);
  const Value root = ops::Sqrt(b, compose::AddScalar(b, square, 1));
  const Value tail = ops::Div(b, square, compose::AddScalar(b, root, 1));
  return ops::Mul(b, ops::Sign(b, x), Log1p(b, ops::Add(b, a, tail)));
}

// acosh(x) = ln(1 + (x - 1) + sqrt((x - 1) (x + 1)))
Value Acosh(Builder& b, Value x) {
  const Value over = compose::AddScalar(b, x, -1);
  const Value root = ops::Sqrt(b, ops::Mul(b, over, compose::AddScalar(b, x, 1)));
  return Log1p(b, ops::Add(b, over, root));
}

// atanh(x) = sign(x) ln(1 + 2 |x| / (1 - |x|)) / 2
Value Atanh(Builder& b, Value x) {
  const Value a = ops::Abs(b, x);
  const Value ratio = ops::Div(b, compose::Scale(b, a, 2), ops::Sub(b, Like(b, 1, x), a));
  return ops::Mul(b, ops::Sign(b, x), compose::Scale(b, Log1p(b, ratio), 0.5));
}

constexpr OnnxOp Op1(std::string_view name, Outputs (*convert)(NodeContext&)) {
  return {.name = name, .convert = convert};
}
constexpr OnnxOp Op2(std::string_view name, Outputs (*convert)(NodeContext&)) {
  return {.name = name, .convert = convert, .min_inputs = 2, .max_inputs = 2};
}
constexpr OnnxOp OpN(std::string_view name, Outputs (*convert)(NodeContext&)) {
  return {.name = name, .convert = convert, .min_inputs = 1, .max_inputs = kAnyCount};
}

constexpr OnnxOp kOps[] = {
    Op1("Abs", Unary<ops::Abs>),
    Op1("Acos", Unary<Acos>),
    Op1("Acosh", Unary<Acosh>),
    Op2("Add", Binary<ops::Add>),
    Op2("And", Binary<ops::And>),
    Op1("Asin", Unary<Asin>),
    Op1("Asinh", Unary<Asinh>),
    Op1("Atan", Unary<compose::Atan>),
    Op1("Atanh", Unary<Atanh>),
    Op1("Cast", Cast),
    {.name = "CastLike",
     .convert = CastLike,
     .min_inputs = 2,
     .max_inputs = 2,
     .fixed_inputs = InputSet(1)},
    Op1("Ceil", Unary<ops::Ceil>),
    Op1("Cos", Unary<ops::Cos>),
    Op1("Cosh", Unary<Cosh>),
    Op2("Div", Binary<ops::Div>),
    Op2("Equal", Binary<ops::Equal>),
    Op1("Erf", Unary<ops::Erf>),
    Op1("Exp", Unary<ops::Exp>),
    Op1("Floor", Unary<ops::Floor>),
    Op2("Greater", Binary<compose::Greater>),
    Op2("GreaterOrEqual", Binary<compose::GreaterOrEqual>),
    Op1("Identity", Identity),
    Op1("IsInf", IsInf),
    Op1("IsNaN", IsNaN),
    Op2("Less", Binary<ops::Less>),
    Op2("LessOrEqual", Binary<ops::LessOrEqual>),
    Op1("Log", Unary<ops::Log>),
    OpN("Max", Variadic<ops::Max>),
    OpN("Mean", Variadic<ops::Add, true>),
    OpN("Min", Variadic<ops::Min>),
    Op2("Mod", Mod),
    Op2("Mul", Binary<ops::Mul>),
    Op1("Neg", Unary<ops::Neg>),
    Op1("Not", Unary<ops::Not>),
    Op2("Or", Binary<ops::Or>),
    {.name = "Pow", .convert = Pow, .min_inputs = 2, .max_inputs = 2, .fixed_inputs = InputSet(1)},
    Op1("Reciprocal", Unary<ops::Reciprocal>),
    Op1("Round", Unary<ops::Round>),
    Op1("Sign", Unary<ops::Sign>),
    Op1("Sin", Unary<ops::Sin>),
    Op1("Sinh", Unary<Sinh>),
    Op1("Sqrt", Unary<ops::Sqrt>),
    Op2("Sub", Binary<ops::Sub>),
    OpN("Sum", Variadic<ops::Add>),
    Op1("Tan", Unary<Tan>),
    {.name = "Where", .convert = Where, .min_inputs = 3, .max_inputs = 3},
    Op2("Xor", Binary<ops::Xor>),
};

}  // namespace

std::span<const OnnxOp> OnnxMathOps() { return kOps; }

}  // namespace tandem

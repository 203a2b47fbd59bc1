// Elementwise operators of two or three inputs, broadcast as NumPy does; Cast; SwiGLU.
#include "engine/ops/definitions.h"
#include "engine/ops/inference.h"

namespace tandem::ops {
namespace {

Value C(Builder& b, double value, Value like) { return b.Scalar(value, b.dtype(like)); }

absl::StatusOr<Shape> InferBroadcast(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireSameDType(args, 0, 1));
  return BroadcastShapes(args.shape(0), args.shape(1));
}

Types InferArithmetic(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireNumber(args, 0, "input 0"));
  TANDEM_ASSIGN_OR_RETURN(Shape shape, InferBroadcast(args));
  return std::vector<TensorType>{{args.type(0).dtype, std::move(shape)}};
}

Types InferComparison(const InferArgs& args) {
  TANDEM_ASSIGN_OR_RETURN(Shape shape, InferBroadcast(args));
  return std::vector<TensorType>{{DType::kBool, std::move(shape)}};
}

Types InferLogical(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireDType(args, 0, "input 0", DType::kBool));
  return InferComparison(args);
}

Types InferWhere(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireDType(args, 0, "condition", DType::kBool));
  TANDEM_RETURN_IF_ERROR(RequireSameDType(args, 1, 2));
  TANDEM_ASSIGN_OR_RETURN(Shape values, BroadcastShapes(args.shape(1), args.shape(2)));
  TANDEM_ASSIGN_OR_RETURN(Shape shape, BroadcastShapes(args.shape(0), values));
  return std::vector<TensorType>{{args.type(1).dtype, std::move(shape)}};
}

Types InferCast(const InferArgs& args) {
  return std::vector<TensorType>{{static_cast<DType>(args.attributes.Int("to")), args.shape(0)}};
}

Types InferSwiGluGrad(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(InferFloatPair(args).status());
  TANDEM_RETURN_IF_ERROR(RequireSameDType(args, 0, 2));
  TANDEM_RETURN_IF_ERROR(RequireShape(args, 2, "dy", args.shape(0)));
  return std::vector<TensorType>{args.type(0), args.type(0)};
}

// The cotangents of both inputs: make(i) for those that are needed, summed over what input i was
// broadcast along.
template <typename Make>
std::vector<Value> Broadcasted(Builder& b, const GradientArgs& g, Make make) {
  std::vector<Value> result(g.node.inputs.size());
  for (int i = 0; i < static_cast<int>(result.size()); ++i) {
    if (!g.needs[i]) continue;
    const Value full = make(i);
    if (full.valid()) result[i] = SumToShape(b, full, b.shape(g.in(i)));
  }
  return result;
}

// dx = dz; dy = dz
std::vector<Value> AddGradient(Builder& b, const GradientArgs& g) {
  return Broadcasted(b, g, [&](int) { return g.cotangent(); });
}
// dx = dz; dy = -dz
std::vector<Value> SubGradient(Builder& b, const GradientArgs& g) {
  std::vector<Value> result = Broadcasted(b, g, [&](int) { return g.cotangent(); });
  if (g.needs[1]) result[1] = Neg(b, result[1]);
  return result;
}
// dx = dz y; dy = dz x
std::vector<Value> MulGradient(Builder& b, const GradientArgs& g) {
  return Broadcasted(b, g, [&](int i) { return Mul(b, g.cotangent(), g.in(1 - i)); });
}
// dx = dz / y; dy = -dz z / y
std::vector<Value> DivGradient(Builder& b, const GradientArgs& g) {
  const Value dx = Div(b, g.cotangent(), g.in(1));
  return Broadcasted(b, g, [&](int i) { return i == 0 ? dx : Neg(b, Mul(b, dx, g.out())); });
}
// dx = dz y x^(y-1), 0 where y = 0; dy = dz z ln(x), 0 where x = 0 and y >= 0 (as PyTorch).
std::vector<Value> PowGradient(Builder& b, const GradientArgs& g) {
  const Value x = g.in(0), y = g.in(1), zero = C(b, 0, x);
  return Broadcasted(b, g, [&](int i) {
    if (i == 0) {
      const Value dx = Mul(b, g.cotangent(), Mul(b, y, Pow(b, x, Sub(b, y, C(b, 1, y)))));
      return Where(b, Equal(b, y, zero), zero, dx);
    }
    const Value flat = And(b, Equal(b, x, zero), LessOrEqual(b, zero, y));
    const Value dy = Mul(b, g.cotangent(), Mul(b, g.out(), Log(b, x)));
    return Where(b, flat, zero, dy);
  });
}
// The cotangent goes to the input that was chosen; a tie halves it, as PyTorch.
std::vector<Value> Choose(Builder& b, const GradientArgs& g, Value first_wins) {
  const Value dz = g.cotangent(), zero = C(b, 0, dz);
  const Value tie = Equal(b, g.in(0), g.in(1));
  const Value half = Mul(b, dz, C(b, 0.5, dz));
  return Broadcasted(b, g, [&](int i) {
    const Value won = i == 0 ? Where(b, first_wins, dz, zero) : Where(b, first_wins, zero, dz);
    return Where(b, tie, half, won);
  });
}
// dx = dz [x > y] + dz [x = y] / 2; dy = dz [x < y] + dz [x = y] / 2
std::vector<Value> MaxGradient(Builder& b, const GradientArgs& g) {
  return Choose(b, g, Less(b, g.in(1), g.in(0)));
}
// dx = dz [x < y] + dz [x = y] / 2; dy = dz [x > y] + dz [x = y] / 2
std::vector<Value> MinGradient(Builder& b, const GradientArgs& g) {
  return Choose(b, g, Less(b, g.in(0), g.in(1)));
}
// z = x - y trunc(x / y): dx = dz; dy = -dz trunc(x / y), which is (z - x) / y, a whole number.
std::vector<Value> ModGradient(Builder& b, const GradientArgs& g) {
  return Broadcasted(b, g, [&](int i) {
    if (i == 0) return g.cotangent();
    return Mul(b, g.cotangent(), Round(b, Div(b, Sub(b, g.out(), g.in(0)), g.in(1))));
  });
}
// dx = dz where the condition holds, else 0; dy the other way round.
std::vector<Value> WhereGradient(Builder& b, const GradientArgs& g) {
  const Value dz = g.cotangent(), zero = C(b, 0, dz);
  return Broadcasted(b, g, [&](int i) {
    if (i == 0) return Value{};
    return i == 1 ? Where(b, g.in(0), dz, zero) : Where(b, g.in(0), zero, dz);
  });
}
// Between floats dx is dz in x's type; integers and bools pass no gradient.
std::vector<Value> CastGradient(Builder& b, const GradientArgs& g) {
  const DType from = b.dtype(g.in(0));
  if (!IsFloat(from) || !IsFloat(b.dtype(g.out()))) return {Value{}};
  return {Cast(b, g.cotangent(), from)};
}
std::vector<Value> SwiGluGradient(Builder& b, const GradientArgs& g) {
  return SwiGluGrad(b, g.in(0), g.in(1), g.cotangent());
}

std::vector<Value> LowerSwiGlu(Builder& b, const Node& node) {
  return {Mul(b, Silu(b, node.inputs[0]), node.inputs[1])};
}
// d gate = dy up silu'(gate); d up = dy silu(gate)
std::vector<Value> LowerSwiGluGrad(Builder& b, const Node& node) {
  const Value gate = node.inputs[0], up = node.inputs[1], dy = node.inputs[2];
  return {SiluGrad(b, gate, Mul(b, dy, up)), Mul(b, dy, Silu(b, gate))};
}

constexpr OpDef Binary(std::string_view name, decltype(OpDef::infer) infer,
                       decltype(OpDef::gradient) gradient = nullptr) {
  return {.name = name, .min_inputs = 2, .max_inputs = 2, .infer = infer, .gradient = gradient};
}

}  // namespace

constinit const OpDef kAdd = Binary("Add", InferArithmetic, AddGradient);
constinit const OpDef kSub = Binary("Sub", InferArithmetic, SubGradient);
constinit const OpDef kMul = Binary("Mul", InferArithmetic, MulGradient);
// Integers truncate toward zero; an integer divided by zero is 0.
constinit const OpDef kDiv = Binary("Div", InferArithmetic, DivGradient);
constinit const OpDef kPow = Binary("Pow", InferArithmetic, PowGradient);
constinit const OpDef kMax = Binary("Max", InferArithmetic, MaxGradient);
constinit const OpDef kMin = Binary("Min", InferArithmetic, MinGradient);
// Integers: the divisor's sign (ONNX's fmod=0), modulo zero is 0. Floats: C's fmod (fmod=1).
constinit const OpDef kMod = Binary("Mod", InferArithmetic, ModGradient);
constinit const OpDef kEqual = Binary("Equal", InferComparison);
constinit const OpDef kLess = Binary("Less", InferComparison);
constinit const OpDef kLessOrEqual = Binary("LessOrEqual", InferComparison);
constinit const OpDef kAnd = Binary("And", InferLogical);
constinit const OpDef kOr = Binary("Or", InferLogical);
constinit const OpDef kXor = Binary("Xor", InferLogical);
constinit const OpDef kWhere = {.name = "Where",
                                .min_inputs = 3,
                                .max_inputs = 3,
                                .infer = InferWhere,
                                .gradient = WhereGradient};
constinit const OpDef kCast = {
    .name = "Cast", .infer = InferCast, .gradient = CastGradient, .flops = NoFlops};
constinit const OpDef kSwiGlu = {.name = "SwiGlu",
                                 .min_inputs = 2,
                                 .max_inputs = 2,
                                 .infer = InferFloatPair,
                                 .gradient = SwiGluGradient,
                                 .lower = LowerSwiGlu,
                                 .flops = FlopsPerElement<5>};
constinit const OpDef kSwiGluGrad = {.name = "SwiGluGrad",
                                     .min_inputs = 3,
                                     .max_inputs = 3,
                                     .infer = InferSwiGluGrad,
                                     .lower = LowerSwiGluGrad,
                                     .flops = FlopsPerElement<12>};

#define OP(name) \
  Value name(Builder& b, Value x, Value y) { return b.Add(k##name, {x, y}); }
TANDEM_BINARY_OPS(OP)
#undef OP

Value Where(Builder& b, Value condition, Value x, Value y) {
  return b.Add(kWhere, {condition, x, y});
}

Value Cast(Builder& b, Value x, DType to) {
  if (b.ok() && b.dtype(x) == to) return x;
  return b.Add(kCast, {x}, {{"to", static_cast<int64_t>(to)}});
}

Value SwiGlu(Builder& b, Value gate, Value up) { return b.Add(kSwiGlu, {gate, up}); }

std::vector<Value> SwiGluGrad(Builder& b, Value gate, Value up, Value dy) {
  return b.AddMulti(kSwiGluGrad, {{gate, up, dy}}, {}, 2);
}

}  // namespace tandem::ops

// Cases of the elementwise operators of one input, of their derivatives, and of SwiGLU and Cast.
#include <cmath>
#include <numbers>

#include "tests/engine/op_cases.h"

namespace tandem::testing {
namespace {

using UnaryOp = Value (*)(Builder&, Value);
using GradOp = Value (*)(Builder&, Value, Value);
using Scalar = double (*)(double);

double SigmoidOf(double x) { return 1 / (1 + std::exp(-x)); }
double GeluOf(double x) { return 0.5 * x * (1 + std::erf(x / std::numbers::sqrt2)); }
double GeluTanhOf(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
}
double SiluOf(double x) { return x * SigmoidOf(x); }
double SignOf(double x) { return (x > 0) - (x < 0); }

// The derivative of ln Gamma, after a shift so far that three terms of the series do.
double DigammaOf(double x) {
  double sum = 0;
  for (; x < 1000; x += 1) sum -= 1 / x;
  return sum + std::log(x) - 0.5 / x - 1 / (12 * x * x) + 1 / (120 * x * x * x * x);
}
double TrigammaOf(double x) {
  double sum = 0;
  for (; x < 1000; x += 1) sum += 1 / (x * x);
  return sum + 1 / x + 0.5 / (x * x) + 1 / (6 * x * x * x) - 1 / (30 * x * x * x * x * x);
}

struct UnaryCase {
  const char* name;
  UnaryOp op;
  Scalar f;
  double low = -3, high = 3;
  std::vector<double> avoid = {};
  std::vector<Kink> kinks = {};
  bool gradient = true;
};

const std::vector<UnaryCase>& UnaryCases() {
  static const auto* const cases = new std::vector<UnaryCase>{
      {"Neg", ops::Neg, [](double x) { return -x; }},
      {"Abs", ops::Abs, [](double x) { return std::abs(x); }, -3, 3, {0}, {{{0}, {0}}}},
      {"Sign", ops::Sign, SignOf, -3, 3, {0}, {{{0}, {0}}}},
      {"Exp", ops::Exp, [](double x) { return std::exp(x); }},
      {"Log", ops::Log, [](double x) { return std::log(x); }, 0.1, 5},
      {"Sqrt", ops::Sqrt, [](double x) { return std::sqrt(x); }, 0.1, 5},
      {"Rsqrt", ops::Rsqrt, [](double x) { return 1 / std::sqrt(x); }, 0.2, 5},
      {"Reciprocal", ops::Reciprocal, [](double x) { return 1 / x; }, 0.3, 5},
      {"Tanh", ops::Tanh, [](double x) { return std::tanh(x); }},
      {"Sigmoid", ops::Sigmoid, SigmoidOf},
      {"Erf", ops::Erf, [](double x) { return std::erf(x); }},
      {"Relu", ops::Relu, [](double x) { return std::fmax(x, 0); }, -3, 3, {0}, {{{0}, {0}}}},
      {"Gelu", ops::Gelu, GeluOf},
      {"GeluTanh", ops::GeluTanh, GeluTanhOf},
      {"Silu", ops::Silu, SiluOf},
      {"Softplus", ops::Softplus, [](double x) { return std::log1p(std::exp(x)); }},
      {"Sin", ops::Sin, [](double x) { return std::sin(x); }},
      {"Cos", ops::Cos, [](double x) { return std::cos(x); }},
      {"Floor",
       ops::Floor,
       [](double x) { return std::floor(x); },
       -3,
       3,
       {-3, -2, -1, 0, 1, 2, 3},
       {{{1}, {0}}}},
      {"Ceil",
       ops::Ceil,
       [](double x) { return std::ceil(x); },
       -3,
       3,
       {-3, -2, -1, 0, 1, 2, 3},
       {{{1}, {0}}}},
      {"Round",
       ops::Round,
       [](double x) { return std::nearbyint(x); },
       -3,
       3,
       {-2.5, -1.5, -0.5, 0.5, 1.5, 2.5},
       {{{0.5}, {0}}}},
      {"Square", ops::Square, [](double x) { return x * x; }},
      {"Lgamma", ops::Lgamma, [](double x) { return std::lgamma(x); }, 0.3, 12},
      {"Digamma", ops::Digamma, DigammaOf, 0.3, 12},
      {"Trigamma", ops::Trigamma, TrigammaOf, 0.3, 12, {}, {}, false},
      {"Log1p", ops::Log1p, [](double x) { return std::log1p(x); }, -0.9, 3},
      {"Expm1", ops::Expm1, [](double x) { return std::expm1(x); }},
  };
  return *cases;
}

OpCase MakeUnary(const UnaryCase& u, DType dtype, Shape shape) {
  OpCase c;
  c.name = absl::StrCat(u.name, "_", std::string(DTypeName(dtype)));
  c.inputs = {
      {.shape = std::move(shape), .dtype = dtype, .low = u.low, .high = u.high, .avoid = u.avoid}};
  c.build = [op = u.op](Builder& b, const Values& x) { return Values{op(b, x[0])}; };
  c.reference = [f = u.f](const Refs& x) { return Refs{Map(x[0], f)}; };
  c.gradient = u.gradient;
  return c;
}

void AddUnary(std::vector<OpCase>& cases) {
  for (const UnaryCase& u : UnaryCases()) {
    OpCase f32 = MakeUnary(u, DType::kF32, Shape{3, 37});
    f32.kinks = u.kinks;
    f32.bench = {{.shape = Shape{1 << 20}, .low = u.low, .high = u.high}};
    cases.push_back(f32);
    OpCase f64 = MakeUnary(u, DType::kF64, Shape{2, 3});
    f64.tolerance = 1e-12;
    cases.push_back(f64);
    for (DType half : {DType::kBF16, DType::kF16}) {
      OpCase c = MakeUnary(u, half, Shape{1029});  // more than one chunk
      c.tolerance = half == DType::kBF16 ? 4e-3 : 6e-4;
      c.gradient = false;  // too coarse for a difference quotient
      cases.push_back(c);
    }
  }
  for (DType integer : {DType::kI8, DType::kI16, DType::kI32, DType::kI64, DType::kU8}) {
    for (const UnaryCase& u : UnaryCases()) {
      const std::string name = u.name;
      if (name != "Abs" && name != "Sign" && name != "Relu" && name != "Square" && name != "Neg") {
        continue;
      }
      const bool is_signed = integer != DType::kU8;
      if (!is_signed && name == "Neg") continue;
      OpCase c = MakeUnary(u, integer, Shape{5, 3});
      c.inputs[0].low = is_signed ? -9 : 0;
      c.inputs[0].high = 9;
      c.gradient = false;
      cases.push_back(c);
    }
  }
  OpCase negate = {
      .name = "Not",
      .inputs = {{.shape = Shape{7, 5}, .dtype = DType::kBool, .low = 0, .high = 1}},
      .build = [](Builder& b, const Values& x) { return Values{ops::Not(b, x[0])}; },
      .reference =
          [](const Refs& x) { return Refs{Map(x[0], [](double v) { return v == 0 ? 1 : 0; })}; }};
  negate.gradient = false;
  cases.push_back(negate);
}

// (x, dy) -> dy f'(x), f' by a difference quotient of f: good to about 1e-9.
void AddUnaryGrad(std::vector<OpCase>& cases) {
  struct GradCase {
    const char* name;
    GradOp op;
    Scalar f;
  };
  const GradCase table[] = {
      {"ReluGrad", ops::ReluGrad, [](double x) { return std::fmax(x, 0); }},
      {"GeluGrad", ops::GeluGrad, GeluOf},
      {"GeluTanhGrad", ops::GeluTanhGrad, GeluTanhOf},
      {"SiluGrad", ops::SiluGrad, SiluOf},
  };
  for (const GradCase& g : table) {
    for (DType dtype : {DType::kF32, DType::kF64, DType::kBF16, DType::kF16}) {
      OpCase c;
      c.name = absl::StrCat(g.name, "_", std::string(DTypeName(dtype)));
      c.inputs = {{.shape = Shape{3, 37}, .dtype = dtype, .low = -3, .high = 3, .avoid = {0}},
                  {.shape = Shape{3, 37}, .dtype = dtype}};
      c.build = [op = g.op](Builder& b, const Values& x) { return Values{op(b, x[0], x[1])}; };
      c.reference = [f = g.f](const Refs& x) {
        return Refs{Zip(x[0], x[1], [f](double at, double dy) {
          return dy * (f(at + 1e-6) - f(at - 1e-6)) / 2e-6;
        })};
      };
      if (dtype == DType::kBF16) c.tolerance = 8e-3;
      if (dtype == DType::kF16) c.tolerance = 1e-3;
      // Only the derivative of a piecewise constant derivative is a rule of its own.
      c.gradient = g.op == static_cast<GradOp>(ops::ReluGrad) && dtype == DType::kF32;
      if (dtype == DType::kF32) c.bench = {{.shape = Shape{1 << 20}}, {.shape = Shape{1 << 20}}};
      cases.push_back(c);
    }
  }
}

void AddSwiGlu(std::vector<OpCase>& cases) {
  const CaseInput input{.shape = Shape{5, 19}};
  const CaseInput large{.shape = Shape{512, 2048}};
  cases.push_back(
      {.name = "SwiGlu",
       .inputs = {input, input},
       .build = [](Builder& b, const Values& x) { return Values{ops::SwiGlu(b, x[0], x[1])}; },
       .reference =
           [](const Refs& x) {
             return Refs{Zip(x[0], x[1], [](double g, double u) { return SiluOf(g) * u; })};
           },
       .bench = {large, large}});
  OpCase grad = {
      .name = "SwiGluGrad",
      .inputs = {input, input, input},
      .build = [](Builder& b, const Values& x) { return ops::SwiGluGrad(b, x[0], x[1], x[2]); },
      .reference =
          [](const Refs& x) {
            const auto slope = [](double g) { return SigmoidOf(g) * (1 + g * (1 - SigmoidOf(g))); };
            const auto times = [](double a, double b) { return a * b; };
            return Refs{Zip(Zip(x[1], x[2], times), Map(x[0], slope), times),
                        Zip(Map(x[0], SiluOf), x[2], times)};
          },
      .bench = {large, large, large}};
  grad.gradient = false;
  cases.push_back(grad);
}

void AddCast(std::vector<OpCase>& cases) {
  const DType all[] = {DType::kF32, DType::kF64, DType::kF16, DType::kBF16, DType::kI8,
                       DType::kI16, DType::kI32, DType::kI64, DType::kU8,   DType::kU16,
                       DType::kU32, DType::kU64, DType::kBool};
  for (DType from : all) {
    for (DType to : all) {
      if (from == to) continue;
      OpCase c;
      c.name =
          absl::StrCat("Cast_", std::string(DTypeName(from)), "_to_", std::string(DTypeName(to)));
      // Whole numbers and quarters, which every float holds exactly.
      c.inputs = {{.shape = Shape{6}, .dtype = from, .values = {0, 1, 2.75, 3.5, 100, 0.25}}};
      c.build = [to](Builder& b, const Values& x) { return Values{ops::Cast(b, x[0], to)}; };
      c.reference = [to](const Refs& x) {
        return Refs{Map(x[0], [to](double v) {
          if (to == DType::kBool) return v != 0 ? 1.0 : 0.0;
          return IsFloat(to) ? v : std::trunc(v);
        })};
      };
      c.gradient = IsFloat(from) && IsFloat(to);
      if (to == DType::kBF16 && from == DType::kF32) c.bench = {{.shape = Shape{1 << 20}}};
      if (SizeOf(from) == 2 || SizeOf(to) == 2) c.gradient_tolerance = 1e-2;
      cases.push_back(c);
    }
  }
  // Out of range: integers saturate, NaN becomes 0.
  OpCase c;
  c.name = "Cast_saturates";
  c.inputs = {{.shape = Shape{4}, .values = {-1e10, 1e10, 300, std::nan("")}}};
  c.build = [](Builder& b, const Values& x) { return Values{ops::Cast(b, x[0], DType::kI8)}; };
  c.reference = [](const Refs&) { return Refs{Ref(Shape{4}, {-128, 127, 127, 0})}; };
  c.gradient = false;
  cases.push_back(c);
}

}  // namespace

std::vector<OpCase> ElementwiseCases() {
  std::vector<OpCase> cases;
  AddUnary(cases);
  AddUnaryGrad(cases);
  AddSwiGlu(cases);
  AddCast(cases);
  return cases;
}

}  // namespace tandem::testing

// Cases of the elementwise operators of two and three inputs, over the ways they broadcast.
#include <cmath>

#include "tests/engine/op_cases.h"

namespace tandem::testing {
namespace {

using BinaryOp = Value (*)(Builder&, Value, Value);
using Scalar2 = double (*)(double, double);

struct Shapes {
  const char* name;
  Shape x, y;
};

const std::vector<Shapes>& BroadcastShapesTable() {
  static const auto* const table = new std::vector<Shapes>{
      {"same", {3, 19}, {3, 19}},
      {"scalar_right", {3, 7}, {}},
      {"scalar_left", {1, 1}, {3, 7}},
      {"row", {4, 9}, {9}},
      {"row_left", {9}, {2, 4, 9}},
      {"column", {4, 9}, {4, 1}},
      {"column_left", {4, 1}, {4, 9}},
      {"outer", {5, 1}, {1, 17}},
      {"channels", {2, 3, 2, 5}, {3, 1, 1}},
      {"between", {2, 1, 3, 1, 2}, {2, 4, 3, 2, 2}},
      {"both", {3, 1, 4}, {1, 5, 4}},
      {"empty", {0, 3}, {3}},
  };
  return *table;
}

double PythonMod(double x, double y) { return y == 0 ? 0 : x - y * std::floor(x / y); }
double IntegerDiv(double x, double y) { return y == 0 ? 0 : std::trunc(x / y); }
double Plus(double x, double y) { return x + y; }
double Minus(double x, double y) { return x - y; }
double Times(double x, double y) { return x * y; }
double Over(double x, double y) { return x / y; }
double PowOf(double x, double y) { return std::pow(x, y); }
double MaxOf(double x, double y) { return x > y ? x : y; }
double MinOf(double x, double y) { return x < y ? x : y; }
double EqualOf(double x, double y) { return x == y ? 1 : 0; }
double LessOf(double x, double y) { return x < y ? 1 : 0; }
double LessOrEqualOf(double x, double y) { return x <= y ? 1 : 0; }

OpCase MakeBinary(const std::string& name, BinaryOp op, Scalar2 f, CaseInput x, CaseInput y) {
  OpCase c;
  c.name = name;
  c.inputs = {std::move(x), std::move(y)};
  c.build = [op](Builder& b, const Values& v) { return Values{op(b, v[0], v[1])}; };
  c.reference = [f](const Refs& v) { return Refs{Zip(v[0], v[1], f)}; };
  return c;
}

struct FloatCase {
  const char* name;
  BinaryOp op;
  Scalar2 f;
  double low = -2, high = 2;      // of x
  double y_low = -2, y_high = 2;  // of y
  std::vector<Kink> kinks = {};
  bool gradient = true;
};

// Random operands of Max and Min do not tie; their kinks are the ties.
const std::vector<FloatCase>& FloatCases() {
  static const auto* const cases = new std::vector<FloatCase>{
      {"Add", ops::Add, Plus},
      {"Sub", ops::Sub, Minus},
      {"Mul", ops::Mul, Times},
      {"Div", ops::Div, Over, -2, 2, 0.5, 2},
      {"Pow", ops::Pow, PowOf, 0.3, 2, -2, 3},
      {"Max", ops::Max, MaxOf, -2, 2, -2, 2, {{{1, 1}, {0.5, 0.5}}}},
      {"Min", ops::Min, MinOf, -2, 2, -2, 2, {{{1, 1}, {0.5, 0.5}}}},
      {"Mod", ops::Mod, [](double x, double y) { return std::fmod(x, y); }, 3.2, 3.9, 1.1, 1.5},
      {"Equal", ops::Equal, EqualOf, -2, 2, -2, 2, {}, false},
      {"Less", ops::Less, LessOf, -2, 2, -2, 2, {}, false},
      {"LessOrEqual", ops::LessOrEqual, LessOrEqualOf, -2, 2, -2, 2, {}, false},
  };
  return *cases;
}

void AddFloats(std::vector<OpCase>& cases) {
  for (const FloatCase& f : FloatCases()) {
    for (const Shapes& s : BroadcastShapesTable()) {
      OpCase c = MakeBinary(absl::StrCat(f.name, "_", s.name), f.op, f.f,
                            {.shape = s.x, .low = f.low, .high = f.high},
                            {.shape = s.y, .low = f.y_low, .high = f.y_high});
      c.gradient = f.gradient;
      if (std::string(s.name) == "same") {
        c.kinks = f.kinks;
        c.bench = {{.shape = Shape{1 << 20}, .low = f.low, .high = f.high},
                   {.shape = Shape{1 << 20}, .low = f.y_low, .high = f.y_high}};
      } else if (f.op == static_cast<BinaryOp>(ops::Add) && std::string(s.name) == "row") {
        c.bench = {{.shape = Shape{1024, 1024}}, {.shape = Shape{1024}}};
      } else if (f.op == static_cast<BinaryOp>(ops::Mul) && std::string(s.name) == "column") {
        c.bench = {{.shape = Shape{1024, 1024}}, {.shape = Shape{1024, 1}}};
      } else if (f.op == static_cast<BinaryOp>(ops::Add) && std::string(s.name) == "channels") {
        c.bench = {{.shape = Shape{16, 64, 32, 32}}, {.shape = Shape{64, 1, 1}}};
      }
      cases.push_back(c);
    }
    for (DType dtype : {DType::kF64, DType::kBF16, DType::kF16}) {
      OpCase c = MakeBinary(absl::StrCat(f.name, "_", std::string(DTypeName(dtype))), f.op, f.f,
                            {.shape = Shape{4, 3}, .dtype = dtype, .low = f.low, .high = f.high},
                            {.shape = Shape{3}, .dtype = dtype, .low = f.y_low, .high = f.y_high});
      c.gradient = f.gradient && dtype == DType::kF64;
      c.tolerance = dtype == DType::kF64 ? 1e-12 : dtype == DType::kF16 ? 6e-4 : 4e-3;
      cases.push_back(c);
    }
  }
  // Where the rule for Pow's gradient has its special cases: y = 0, and x = 0 (with y = 2).
  OpCase pow = MakeBinary("Pow_at_zero", ops::Pow, PowOf, {.shape = Shape{1}, .low = 1, .high = 2},
                          {.shape = Shape{1}});
  pow.kinks = {{{0, 2}, {0, 0}}, {{0, 0}, {0, 0}}, {{3, 0}, {0, std::log(3.0f)}}};
  cases.push_back(pow);
}

void AddIntegers(std::vector<OpCase>& cases) {
  struct IntegerCase {
    const char* name;
    BinaryOp op;
    Scalar2 f;
    double y_low = -9;
  };
  const IntegerCase table[] = {
      {"Add", ops::Add, Plus},
      {"Sub", ops::Sub, Minus},
      {"Mul", ops::Mul, Times},
      {"Div", ops::Div, IntegerDiv},
      {"Mod", ops::Mod, PythonMod},
      {"Pow", ops::Pow, PowOf, 0},
      {"Max", ops::Max, MaxOf},
      {"Min", ops::Min, MinOf},
      {"Equal", ops::Equal, EqualOf},
      {"Less", ops::Less, LessOf},
      {"LessOrEqual", ops::LessOrEqual, LessOrEqualOf},
  };
  for (const IntegerCase& i : table) {
    for (DType dtype : {DType::kI8, DType::kI16, DType::kI32, DType::kI64, DType::kU8, DType::kU16,
                        DType::kU32, DType::kU64}) {
      const bool is_signed = dtype <= DType::kI64;
      if (!is_signed && i.op == static_cast<BinaryOp>(ops::Sub)) continue;
      const bool power = i.op == static_cast<BinaryOp>(ops::Pow);
      OpCase c = MakeBinary(
          absl::StrCat(i.name, "_", std::string(DTypeName(dtype))), i.op, i.f,
          {.shape = Shape{20, 3}, .dtype = dtype, .low = is_signed ? -9.0 : 0.0, .high = 9},
          {.shape = Shape{20, 1},
           .dtype = dtype,
           .low = is_signed ? i.y_low : 0.0,
           .high = power ? 2.0 : 9.0});
      c.gradient = false;
      cases.push_back(c);
    }
  }
  // What C++ leaves undefined: dividing by zero gives 0, the lowest value / -1 wraps around.
  const CaseInput low{.shape = Shape{4}, .dtype = DType::kI32, .values = {-2147483648.0, 7, -7, 7}};
  const CaseInput by{.shape = Shape{4}, .dtype = DType::kI32, .values = {-1, 0, 2, -2}};
  const auto expect = [](double a, double b, double c, double d) {
    return [=](const Refs&) { return Refs{Ref(Shape{4}, {a, b, c, d})}; };
  };
  OpCase div = MakeBinary("Div_i32_edges", ops::Div, nullptr, low, by);
  div.reference = expect(-2147483648.0, 0, -3, -3);
  OpCase mod = MakeBinary("Mod_i32_edges", ops::Mod, nullptr, low, by);
  mod.reference = expect(0, 0, 1, -1);
  OpCase power = MakeBinary("Pow_i32_edges", ops::Pow, nullptr,
                            {.shape = Shape{4}, .dtype = DType::kI32, .values = {-1, 1, 5, -2}},
                            {.shape = Shape{4}, .dtype = DType::kI32, .values = {-3, -4, -1, 31}});
  power.reference = expect(-1, 1, 0, -2147483648.0);
  for (OpCase* c : {&div, &mod, &power}) {
    c->gradient = false;
    cases.push_back(*c);
  }
}

void AddLogical(std::vector<OpCase>& cases) {
  struct LogicalCase {
    const char* name;
    BinaryOp op;
    Scalar2 f;
  };
  const LogicalCase table[] = {
      {"And", ops::And, [](double x, double y) { return x != 0 && y != 0 ? 1.0 : 0.0; }},
      {"Or", ops::Or, [](double x, double y) { return x != 0 || y != 0 ? 1.0 : 0.0; }},
      {"Xor", ops::Xor, [](double x, double y) { return x != y ? 1.0 : 0.0; }},
      {"Equal_bool", ops::Equal, EqualOf},
  };
  for (const LogicalCase& l : table) {
    OpCase c = MakeBinary(l.name, l.op, l.f,
                          {.shape = Shape{5, 7}, .dtype = DType::kBool, .low = 0, .high = 1},
                          {.shape = Shape{5, 1}, .dtype = DType::kBool, .low = 0, .high = 1});
    c.gradient = false;
    cases.push_back(c);
  }
}

void AddWhere(std::vector<OpCase>& cases) {
  struct WhereCase {
    const char* name;
    Shape condition, x, y;
    DType dtype = DType::kF32;
  };
  const WhereCase table[] = {
      {"same", {4, 9}, {4, 9}, {4, 9}},          {"scalar_y", {4, 9}, {4, 9}, {}},
      {"scalar_x", {4, 9}, {}, {4, 9}},          {"scalars", {4, 9}, {1}, {}},
      {"condition_row", {9}, {4, 9}, {4, 1}},    {"condition_scalar", {}, {4, 9}, {9}},
      {"mixed", {2, 1, 5}, {3, 1}, {2, 3, 1}},   {"i8", {3, 5}, {3, 5}, {5}, DType::kI8},
      {"f16", {3, 5}, {3, 5}, {5}, DType::kF16}, {"i64", {3, 5}, {3, 5}, {5}, DType::kI64},
  };
  for (const WhereCase& w : table) {
    OpCase c;
    c.name = absl::StrCat("Where_", w.name);
    c.inputs = {{.shape = w.condition, .dtype = DType::kBool, .low = 0, .high = 1},
                {.shape = w.x, .dtype = w.dtype, .low = -9, .high = 9},
                {.shape = w.y, .dtype = w.dtype, .low = -9, .high = 9}};
    c.build = [](Builder& b, const Values& v) { return Values{ops::Where(b, v[0], v[1], v[2])}; };
    c.reference = [](const Refs& v) {
      // x where the condition holds, plus y where it does not.
      const Ref x = Zip(v[0], v[1], [](double hit, double value) { return hit != 0 ? value : 0; });
      const Ref y = Zip(v[0], v[2], [](double hit, double value) { return hit != 0 ? 0 : value; });
      return Refs{Zip(x, y, Plus)};
    };
    c.gradient = w.dtype == DType::kF32;
    if (std::string(w.name) == "scalar_y") {
      c.bench = {{.shape = Shape{1 << 20}, .dtype = DType::kBool, .low = 0, .high = 1},
                 {.shape = Shape{1 << 20}},
                 {.shape = Shape{}}};
    }
    cases.push_back(c);
  }
}

}  // namespace

std::vector<OpCase> BroadcastCases() {
  std::vector<OpCase> cases;
  AddFloats(cases);
  AddIntegers(cases);
  AddLogical(cases);
  AddWhere(cases);
  return cases;
}

}  // namespace tandem::testing

// Cases of the matrix product.
#include <algorithm>
#include <cmath>

#include "tests/engine/op_cases.h"

namespace tandem::testing {
namespace {

Ref Product(const Ref& a, const Ref& b, bool ta, bool tb, const Ref* bias) {
  const auto leading = [](const Shape& s) { return Shape(s.dims().first(s.rank() - 2)); };
  Shape shape = *BroadcastShapes(leading(a.shape), leading(b.shape));
  const int64_t m = a.shape[ta ? -1 : -2], k = a.shape[ta ? -2 : -1];
  const int64_t n = b.shape[tb ? -2 : -1];
  Shape shape_a = shape, shape_b = shape;
  for (int64_t d : {a.shape[-2], a.shape[-1]}) shape_a.push_back(d);
  for (int64_t d : {b.shape[-2], b.shape[-1]}) shape_b.push_back(d);
  const Ref x = Expand(a, shape_a), y = Expand(b, shape_b);
  const int64_t batch = shape.num_elements();
  shape.push_back(m);
  shape.push_back(n);
  Ref out(shape);
  for (int64_t p = 0; p < batch; ++p) {
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        double sum = bias != nullptr ? bias->v[j] : 0;
        for (int64_t l = 0; l < k; ++l) {
          sum += x.v[p * m * k + (ta ? l * m + i : i * k + l)] *
                 y.v[p * k * n + (tb ? j * k + l : l * n + j)];
        }
        out.v[(p * m + i) * n + j] = sum;
      }
    }
  }
  return out;
}

struct MatMulSpec {
  const char* name;
  Shape a, b;
  bool ta = false, tb = false, bias = false;
  DType dtype = DType::kF32;
  Shape bench_a = {}, bench_b = {};
};

OpCase MakeMatMul(const MatMulSpec& s) {
  OpCase c;
  c.name = absl::StrCat("MatMul_", s.name);
  const bool whole = !IsFloat(s.dtype);
  const double range = whole ? 9 : 1;
  c.inputs = {{.shape = s.a, .dtype = s.dtype, .low = -range, .high = range},
              {.shape = s.b, .dtype = s.dtype, .low = -range, .high = range}};
  const Shape width{s.b[s.tb ? -2 : -1]};
  if (s.bias) c.inputs.push_back({.shape = width, .dtype = s.dtype, .low = -range, .high = range});
  c.build = [s](Builder& b, const Values& x) {
    return Values{ops::MatMul(b, x[0], x[1], s.ta, s.tb, s.bias ? x[2] : Value{})};
  };
  c.reference = [s](const Refs& x) {
    return Refs{Product(x[0], x[1], s.ta, s.tb, s.bias ? &x[2] : nullptr)};
  };
  c.tolerance = s.dtype == DType::kF64 ? 1e-12 : s.dtype == DType::kF32 ? 1e-5 : 2e-2;
  c.gradient = s.dtype == DType::kF32 || s.dtype == DType::kF64;
  if (s.bench_a.rank() > 0) {
    c.bench = {{.shape = s.bench_a}, {.shape = s.bench_b}};
    if (s.bias) c.bench.push_back({.shape = Shape{s.bench_b[s.tb ? -2 : -1]}});
  }
  return c;
}

struct FusedSpec {
  const char* name;
  Shape a, b;
  const char* activation = "";
  bool bias = false, up = false, residual = false;
  bool ta = false, tb = false;
};

double Activated(const std::string& op, double x) {
  if (op == "Relu") return std::max(x, 0.0);
  if (op == "Silu") return x / (1 + std::exp(-x));
  if (op == "Gelu") return x / 2 * std::erfc(-x / std::sqrt(2.0));
  if (op == "GeluTanh") {
    return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  }
  return x;
}

OpCase MakeFused(const FusedSpec& s) {
  OpCase c;
  c.name = absl::StrCat("FusedMatMul_", s.name);
  c.inputs = {{.shape = s.a, .low = -1, .high = 1}, {.shape = s.b, .low = -1, .high = 1}};
  if (s.bias) c.inputs.push_back({.shape = Shape{s.b[s.tb ? -2 : -1]}, .low = -1, .high = 1});
  if (s.up) c.inputs.push_back({.shape = s.b, .low = -1, .high = 1});
  if (s.residual) {
    c.inputs.push_back({.shape = Product(Ref(s.a), Ref(s.b), s.ta, s.tb, nullptr).shape});
  }
  c.build = [s](Builder& b, const Values& x) {
    size_t next = 2;
    ops::MatMulEpilogue epilogue{.bias = {}, .activation = s.activation, .up = {}, .residual = {}};
    if (s.bias) epilogue.bias = x[next++];
    if (s.up) epilogue.up = x[next++];
    if (s.residual) epilogue.residual = x[next];
    return Values{ops::FusedMatMul(b, x[0], x[1], s.ta, s.tb, epilogue)};
  };
  c.reference = [s](const Refs& x) {
    size_t next = 2;
    Ref out = Product(x[0], x[1], s.ta, s.tb, s.bias ? &x[next++] : nullptr);
    for (double& v : out.v) v = Activated(s.up ? "Silu" : s.activation, v);
    if (s.up) {
      const Ref up = Product(x[0], x[next++], s.ta, s.tb, nullptr);
      for (size_t i = 0; i < out.v.size(); ++i) out.v[i] *= up.v[i];
    }
    for (size_t i = 0; s.residual && i < out.v.size(); ++i) out.v[i] += x[next].v[i];
    return Refs{out};
  };
  c.tolerance = 1e-5;
  c.gradient = false;
  return c;
}

// l (..., D, D) with a diagonal away from 0; its upper triangle is anything.
OpCase MakeTriangularSolve(const std::string& name, Shape l, Shape rhs, bool transpose,
                           DType dtype) {
  OpCase c;
  c.name = absl::StrCat("TriangularSolve_", name);
  const int64_t d = l[-1];
  Ref matrix(l);
  for (size_t i = 0; i < matrix.v.size(); ++i) {
    const auto row = static_cast<int64_t>(i) / d % d, column = static_cast<int64_t>(i) % d;
    matrix.v[i] = 0.25 * static_cast<double>((i * 7 + 3) % 11) - 1;
    if (row == column) matrix.v[i] = row % 2 == 0 ? 2.5 : -1.75;
    if (column > row) matrix.v[i] = 1e4;
  }
  c.inputs = {{.shape = l, .dtype = dtype, .values = matrix.v}, {.shape = rhs, .dtype = dtype}};
  c.build = [transpose](Builder& b, const Values& x) {
    return Values{ops::TriangularSolve(b, x[0], x[1], transpose)};
  };
  c.reference = [transpose](const Refs& x) {
    Ref out = x[1];
    const int64_t size = x[0].shape[-1], columns = out.shape[-1];
    const int64_t batch = size * columns == 0 ? 0 : out.shape.num_elements() / (size * columns);
    for (int64_t p = 0; p < batch; ++p) {
      const double* m = x[0].v.data() + p * size * size;
      double* y = out.v.data() + p * size * columns;
      for (int64_t k = 0; k < columns; ++k) {
        for (int64_t s = 0; s < size; ++s) {
          const int64_t i = transpose ? size - 1 - s : s;
          for (int64_t j = 0; j < size; ++j) {
            const bool known = transpose ? j > i : j < i;
            const double factor = transpose ? m[j * size + i] : m[i * size + j];
            if (known) y[i * columns + k] -= factor * y[j * columns + k];
          }
          y[i * columns + k] /= m[i * size + i];
        }
      }
    }
    return Refs{out};
  };
  c.tolerance = dtype == DType::kF64 ? 1e-12 : 2e-5;
  c.gradient_tolerance = 1e-4;
  return c;
}

}  // namespace

std::vector<OpCase> LinearCases() {
  const MatMulSpec specs[] = {
      {"plain", {3, 5}, {5, 4}, false, false, false, DType::kF32, {512, 512}, {512, 512}},
      {"ta", {5, 3}, {5, 4}, true, false, false, DType::kF32, {512, 512}, {512, 512}},
      {"tb", {3, 5}, {4, 5}, false, true, false, DType::kF32, {512, 512}, {512, 512}},
      {"ta_tb", {5, 3}, {4, 5}, true, true},
      {"bias", {3, 5}, {5, 4}, false, false, true},
      {"ta_bias", {5, 3}, {5, 4}, true, false, true},
      {"tb_bias", {3, 5}, {4, 5}, false, true, true, DType::kF32, {64, 576}, {1536, 576}},
      {"one_row", {1, 40}, {33, 40}, false, true, false, DType::kF32, {1, 2048}, {2048, 2048}},
      {"rows", {2, 3, 5}, {5, 4}, false, false, true, DType::kF32, {8, 64, 512}, {512, 512}},
      {"rows_tb", {2, 3, 5}, {4, 5}, false, true},
      {"batch",
       {2, 3, 5},
       {2, 5, 4},
       false,
       false,
       false,
       DType::kF32,
       {12, 128, 64},
       {12, 64, 128}},
      {"batch_ta", {2, 5, 3}, {2, 5, 4}, true, false},
      {"batch_shared_a", {3, 5}, {2, 5, 4}},
      {"batch_shared_ta", {5, 3}, {2, 4, 5}, true, true},
      {"batch_shared_b_ta", {2, 5, 3}, {5, 4}, true},
      {"batch_broadcast", {2, 1, 3, 5}, {3, 5, 4}},
      {"batch_groups", {2, 3, 3, 5}, {2, 1, 5, 4}, false, false, true},
      {"batch_between", {2, 1, 2, 3, 4}, {1, 3, 1, 4, 2}},
      {"no_inner", {3, 0}, {0, 4}, false, false, true},
      {"no_rows", {0, 3}, {3, 4}},
      {"f64", {2, 3, 5}, {5, 4}, false, false, true, DType::kF64},
      {"f64_ta_tb", {2, 1, 5, 3}, {3, 4, 5}, true, true, false, DType::kF64},
      {"i32", {3, 5}, {5, 4}, false, false, false, DType::kI32},
      {"i64_bias", {3, 5}, {5, 4}, false, false, true, DType::kI64},
      {"bf16", {3, 5}, {5, 4}, false, false, true, DType::kBF16},
      {"f16", {3, 5}, {4, 5}, false, true, false, DType::kF16},
  };
  std::vector<OpCase> cases;
  for (const MatMulSpec& s : specs) cases.push_back(MakeMatMul(s));
  const FusedSpec fused[] = {
      {.name = "relu", .a = {3, 5}, .b = {5, 4}, .activation = "Relu"},
      {.name = "silu_bias",
       .a = {3, 5},
       .b = {4, 5},
       .activation = "Silu",
       .bias = true,
       .tb = true},
      {.name = "gelu_ta",
       .a = {5, 3},
       .b = {5, 4},
       .activation = "Gelu",
       .residual = true,
       .ta = true},
      {.name = "gelu_tanh",
       .a = {2, 3, 5},
       .b = {5, 4},
       .activation = "GeluTanh",
       .bias = true,
       .residual = true},
      {.name = "residual", .a = {2, 1, 3, 5}, .b = {3, 5, 4}, .residual = true},
      {.name = "swiglu", .a = {3, 5}, .b = {5, 4}, .up = true},
      {.name = "swiglu_residual",
       .a = {2, 3, 5},
       .b = {4, 5},
       .up = true,
       .residual = true,
       .tb = true},
      {.name = "swiglu_batch", .a = {2, 2, 3, 5}, .b = {2, 1, 5, 4}, .up = true},
  };
  for (const FusedSpec& s : fused) cases.push_back(MakeFused(s));
  for (const bool transpose : {false, true}) {
    const std::string suffix = transpose ? "_transposed" : "";
    for (const DType dtype : {DType::kF32, DType::kF64}) {
      const std::string type = absl::StrCat(suffix, "_", std::string(DTypeName(dtype)));
      cases.push_back(
          MakeTriangularSolve("one" + type, Shape{4, 4}, Shape{4, 1}, transpose, dtype));
      cases.push_back(MakeTriangularSolve("batch" + type, Shape{2, 3, 5, 5}, Shape{2, 3, 5, 7},
                                          transpose, dtype));
    }
    cases.push_back(MakeTriangularSolve("wide" + suffix, Shape{2, 6, 6}, Shape{2, 6, 150},
                                        transpose, DType::kF32));
    cases.push_back(MakeTriangularSolve("scalar" + suffix, Shape{3, 1, 1}, Shape{3, 1, 2},
                                        transpose, DType::kF32));
    cases.push_back(MakeTriangularSolve("no_columns" + suffix, Shape{3, 3}, Shape{3, 0}, transpose,
                                        DType::kF32));
  }
  return cases;
}

}  // namespace tandem::testing

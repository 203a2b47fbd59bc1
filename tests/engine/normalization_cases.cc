// Cases of softmax and of the normalisations, and of their gradient operators.
#include <algorithm>
#include <cmath>

#include "tests/engine/op_cases.h"

namespace tandem::testing {
namespace {

constexpr double kEpsilon = 1e-3;  // large enough to see whether it is used

// f(row, width) on copies of the last dimension's rows.
template <typename F>
Ref ByRow(const Ref& x, F f) {
  Ref out = x;
  const int64_t width = x.shape[-1];
  for (size_t i = 0; i < out.v.size(); i += width) f(&out.v[i], width);
  return out;
}

double LogSumExp(const double* x, int64_t n) {
  const double max = *std::max_element(x, x + n);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(x[i] - max);
  return max + std::log(sum);
}
Ref LogSoftmaxOf(const Ref& x) {
  return ByRow(x, [](double* row, int64_t n) {
    const double lse = LogSumExp(row, n);
    for (int64_t i = 0; i < n; ++i) row[i] -= lse;
  });
}
Ref SoftmaxOf(const Ref& x) {
  return Map(LogSoftmaxOf(x), [](double v) { return std::exp(v); });
}

Ref Multiply(const Ref& a, const Ref& b) {
  return Zip(a, b, [](double x, double y) { return x * y; });
}
Ref RowMean(const Ref& x) {
  Shape shape = x.shape;
  const int64_t width = shape[-1];
  shape[-1] = 1;
  Ref out(shape);
  for (size_t i = 0; i < x.v.size(); ++i) out.v[i / width] += x.v[i] / static_cast<double>(width);
  return out;
}
// (..., 1) -> (...), and back
Ref Squeeze(Ref x) {
  x.shape = Shape(x.shape.dims().first(x.shape.rank() - 1));
  return x;
}
Ref Unsqueeze(Ref x) {
  x.shape.push_back(1);
  return x;
}
Ref SumRows(const Ref& x) {
  Ref out(Shape{x.shape[-1]});
  for (size_t i = 0; i < x.v.size(); ++i) out.v[i % out.v.size()] += x.v[i];
  return out;
}
double Minus(double x, double y) { return x - y; }

Refs LayerNormOf(const Ref& x, const Ref* gamma, const Ref* beta, bool centre) {
  const Ref mean = RowMean(x);
  const Ref centred = centre ? Zip(x, mean, Minus) : x;
  const Ref rstd = Map(RowMean(Multiply(centred, centred)),
                       [](double v) { return 1 / std::sqrt(v + kEpsilon); });
  Ref y = Multiply(centred, rstd);
  if (gamma != nullptr) y = Multiply(y, *gamma);
  if (beta != nullptr) y = Zip(y, *beta, [](double a, double b) { return a + b; });
  return centre ? Refs{y, Squeeze(mean), Squeeze(rstd)} : Refs{y, Squeeze(rstd)};
}

// dx, dgamma, dbeta, from h = (x - mean) rstd.
Refs NormGradOf(const Ref& h, const Ref& rstd, const Ref& dy, const Ref* gamma, bool centre) {
  const Ref e = gamma != nullptr ? Multiply(dy, *gamma) : dy;
  Ref inner = Zip(e, Multiply(h, RowMean(Multiply(e, h))), Minus);
  if (centre) inner = Zip(inner, RowMean(e), Minus);
  return {Multiply(inner, rstd), SumRows(Multiply(dy, h)), SumRows(dy)};
}

void AddSoftmax(std::vector<OpCase>& cases) {
  struct Spec {
    const char* name;
    Value (*op)(Builder&, Value);
    Ref (*f)(const Ref&);
  };
  const Spec table[] = {{"Softmax", ops::Softmax, SoftmaxOf},
                        {"LogSoftmax", ops::LogSoftmax, LogSoftmaxOf}};
  for (const Spec& s : table) {
    for (const Shape& shape : {Shape{4, 19}, Shape{2, 3, 5}, Shape{7}, Shape{3, 1}}) {
      OpCase c;
      c.name = absl::StrCat(s.name, "_", shape.rank(), "d_", shape[-1]);
      c.inputs = {{.shape = shape, .low = -4, .high = 4}};
      c.build = [op = s.op](Builder& b, const Values& x) { return Values{op(b, x[0])}; };
      c.reference = [f = s.f](const Refs& x) { return Refs{f(x[0])}; };
      if (shape[-1] == 19) c.bench = {{.shape = Shape{1024, 1024}}};
      cases.push_back(c);
    }
    // Far from zero: nothing may overflow.
    OpCase c;
    c.name = absl::StrCat(s.name, "_large");
    c.inputs = {{.shape = Shape{1, 3}, .values = {1000, 998, -1000}}};
    c.build = [op = s.op](Builder& b, const Values& x) { return Values{op(b, x[0])}; };
    c.reference = [f = s.f](const Refs& x) { return Refs{f(x[0])}; };
    c.tolerance = 1e-4;  // an f32 near 1000 is that coarse
    cases.push_back(c);
  }
  const CaseInput logits{.shape = Shape{4, 9}}, large{.shape = Shape{1024, 1024}};
  // (y, dy); y is what a softmax gives, so its rows come from one inside the case.
  OpCase grad;
  grad.name = "SoftmaxGrad";
  grad.inputs = {{.shape = Shape{4, 9}, .low = 0, .high = 0.3}, logits};
  grad.build = [](Builder& b, const Values& x) { return Values{ops::SoftmaxGrad(b, x[0], x[1])}; };
  grad.reference = [](const Refs& x) {
    const Ref dot = Map(RowMean(Multiply(x[0], x[1])),
                        [n = x[0].shape[-1]](double v) { return v * static_cast<double>(n); });
    return Refs{Multiply(x[0], Zip(x[1], dot, Minus))};
  };
  grad.gradient = false;
  grad.bench = {large, large};
  cases.push_back(grad);
  grad.name = "LogSoftmaxGrad";
  grad.inputs[0] = {.shape = Shape{4, 9}, .low = -4, .high = -1};
  grad.build = [](Builder& b, const Values& x) {
    return Values{ops::LogSoftmaxGrad(b, x[0], x[1])};
  };
  grad.reference = [](const Refs& x) {
    const Ref sum =
        Map(RowMean(x[1]), [n = x[0].shape[-1]](double v) { return v * static_cast<double>(n); });
    return Refs{Zip(x[1], Multiply(Map(x[0], [](double v) { return std::exp(v); }), sum), Minus)};
  };
  cases.push_back(grad);
}

void AddNorms(std::vector<OpCase>& cases) {
  for (const int optional : {0, 1, 2, 3}) {  // 1: gamma, 2: beta
    const bool gamma = (optional & 1) != 0, beta = (optional & 2) != 0;
    OpCase c;
    c.name = absl::StrCat("LayerNorm", gamma ? "_gamma" : "", beta ? "_beta" : "");
    c.inputs = {{.shape = Shape{2, 3, 10}}, {.shape = Shape{10}}, {.shape = Shape{10}}};
    c.build = [=](Builder& b, const Values& x) {
      return ops::LayerNorm(b, x[0], gamma ? x[1] : Value{}, beta ? x[2] : Value{}, kEpsilon);
    };
    c.reference = [=](const Refs& x) {
      return LayerNormOf(x[0], gamma ? &x[1] : nullptr, beta ? &x[2] : nullptr, true);
    };
    c.gradient_tolerance = 1e-4;
    if (optional == 3) {
      c.bench = {{.shape = Shape{1024, 768}}, {.shape = Shape{768}}, {.shape = Shape{768}}};
    }
    cases.push_back(c);
    if (beta) continue;
    c.name = absl::StrCat("RmsNorm", gamma ? "_gamma" : "");
    c.inputs.pop_back();
    c.build = [=](Builder& b, const Values& x) {
      return ops::RmsNorm(b, x[0], gamma ? x[1] : Value{}, kEpsilon);
    };
    c.reference = [=](const Refs& x) {
      return LayerNormOf(x[0], gamma ? &x[1] : nullptr, nullptr, false);
    };
    if (gamma) c.bench = {{.shape = Shape{1024, 768}}, {.shape = Shape{768}}};
    cases.push_back(c);
  }
}

void AddNormGrads(std::vector<OpCase>& cases) {
  for (const bool gamma : {false, true}) {
    OpCase c;
    c.name = absl::StrCat("LayerNormGrad", gamma ? "_gamma" : "");
    const CaseInput x{.shape = Shape{2, 3, 10}};
    c.inputs = {x,
                {.shape = Shape{10}},
                {.shape = Shape{2, 3}},
                {.shape = Shape{2, 3}, .low = 0.5, .high = 2},
                x};
    c.build = [gamma](Builder& b, const Values& v) {
      return ops::LayerNormGrad(b, v[0], gamma ? v[1] : Value{}, v[2], v[3], v[4]);
    };
    c.reference = [gamma](const Refs& v) {
      const Ref rstd = Unsqueeze(v[3]);
      const Ref h = Multiply(Zip(v[0], Unsqueeze(v[2]), Minus), rstd);
      return NormGradOf(h, rstd, v[4], gamma ? &v[1] : nullptr, true);
    };
    c.gradient = false;
    c.tolerance = 1e-5;
    if (gamma) {
      c.bench = {{.shape = Shape{1024, 768}},
                 {.shape = Shape{768}},
                 {.shape = Shape{1024}},
                 {.shape = Shape{1024}},
                 {.shape = Shape{1024, 768}}};
    }
    cases.push_back(c);
    OpCase r = c;
    r.name = absl::StrCat("RmsNormGrad", gamma ? "_gamma" : "");
    r.inputs.erase(r.inputs.begin() + 2);
    if (gamma) r.bench.erase(r.bench.begin() + 2);
    r.build = [gamma](Builder& b, const Values& v) {
      return ops::RmsNormGrad(b, v[0], gamma ? v[1] : Value{}, v[2], v[3]);
    };
    r.reference = [gamma](const Refs& v) {
      const Ref rstd = Unsqueeze(v[2]);
      Refs all = NormGradOf(Multiply(v[0], rstd), rstd, v[3], gamma ? &v[1] : nullptr, false);
      all.pop_back();
      return all;
    };
    cases.push_back(r);
  }
}

}  // namespace

std::vector<OpCase> NormalizationCases() {
  std::vector<OpCase> cases;
  AddSoftmax(cases);
  AddNorms(cases);
  AddNormGrads(cases);
  return cases;
}

}  // namespace tandem::testing

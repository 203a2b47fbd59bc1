// Cases of the optimizer's operators.
#include <cmath>

#include "tests/engine/op_cases.h"

namespace tandem::testing {
namespace {

// torch.optim.Adam and AdamW in double; x: p, g, m, v, decay, hyper.
Refs AdamOf(const Refs& x, bool decoupled) {
  const std::vector<double>& h = x[5].v;
  const double lr = h[0], beta1 = h[1], beta2 = h[2], eps = h[3];
  Ref p = x[0], m = x[2], v = x[3];
  for (size_t i = 0; i < p.v.size(); ++i) {
    const double decay = x[4].v[i] != 0 ? h[4] : 0;
    double g = x[1].v[i] * h[7];
    if (decoupled) {
      p.v[i] *= 1 - lr * decay;
    } else {
      g += decay * p.v[i];
    }
    m.v[i] += (1 - beta1) * (g - m.v[i]);
    v.v[i] = beta2 * v.v[i] + (1 - beta2) * g * g;
    p.v[i] -= lr / h[5] * m.v[i] / (std::sqrt(v.v[i]) / std::sqrt(h[6]) + eps);
  }
  return {p, m, v};
}

std::vector<CaseInput> AdamInputs(int64_t n, DType hyper_dtype, double lr) {
  const CaseInput x{.shape = Shape{n}};
  const double beta1 = 0.9, beta2 = 0.99;
  return {x,
          x,
          {.shape = Shape{n}, .low = -0.1, .high = 0.1},
          {.shape = Shape{n}, .low = 0.01, .high = 0.1},
          {.shape = Shape{n}, .dtype = DType::kU8, .low = 0, .high = 1},
          {.shape = Shape{8},
           .dtype = hyper_dtype,
           .values = {lr, beta1, beta2, 1e-3, 0.1, 1 - std::pow(beta1, 3), 1 - std::pow(beta2, 3),
                      0.5}}};
}

}  // namespace

std::vector<OpCase> OptimizerCases() {
  std::vector<OpCase> cases;
  for (const bool decoupled : {false, true}) {
    for (const DType hyper : {DType::kF32, DType::kF64}) {
      for (const double lr : {0.02, 0.0}) {
        OpCase c;
        c.name = absl::StrCat(decoupled ? "AdamW_" : "Adam_", std::string(DTypeName(hyper)),
                              lr == 0 ? "_zero_lr" : "");
        c.inputs = AdamInputs(61, hyper, lr);
        c.build = [decoupled](Builder& b, const Values& x) {
          return ops::AdamStep(b, x[0], x[1], x[2], x[3], x[4], x[5], decoupled);
        };
        c.reference = [decoupled](const Refs& x) { return AdamOf(x, decoupled); };
        c.gradient = false;
        if (decoupled && hyper == DType::kF64 && lr > 0) {
          c.bench = AdamInputs(1 << 20, hyper, lr);
          c.bench[4].low = 1;
        }
        cases.push_back(c);
      }
    }
  }
  OpCase c;
  c.name = "SumOfSquares";
  c.inputs = {{.shape = Shape{100003}}};
  c.build = [](Builder& b, const Values& x) { return Values{ops::SumOfSquares(b, x[0])}; };
  c.reference = [](const Refs& x) {
    double sum = 0;
    for (double v : x[0].v) sum += v * v;
    return Refs{Ref(Shape{}, {sum})};
  };
  c.tolerance = 1e-12;
  c.gradient = false;
  c.bench = {{.shape = Shape{1 << 20}}};
  cases.push_back(c);
  return cases;
}

}  // namespace tandem::testing

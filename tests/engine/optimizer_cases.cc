// Cases of the optimizer's operators.
#include <algorithm>
#include <cfloat>
#include <cmath>

#include "tests/engine/op_cases.h"

namespace tandem::testing {
namespace {

// torch.optim.Adam and AdamW in double; x: p, g, m, v, decay, control.
Refs AdamOf(const Refs& x, bool decoupled) {
  const std::vector<double>& c = x[5].v;
  const double lr = c[ops::kControlLearningRate], eps = c[ops::kControlEpsilon];
  const double beta1 = c[ops::kControlBeta1], beta2 = c[ops::kControlBeta2];
  Ref p = x[0], m = x[2], v = x[3];
  if (c[ops::kControlApply] == 0) return {p, m, v};
  for (size_t i = 0; i < p.v.size(); ++i) {
    const double decay = x[4].v[i] != 0 ? c[ops::kControlWeightDecay] : 0;
    double g = x[1].v[i] * c[ops::kControlGradScale];
    if (decoupled) {
      p.v[i] *= 1 - lr * decay;
    } else {
      g += decay * p.v[i];
    }
    m.v[i] += (1 - beta1) * (g - m.v[i]);
    v.v[i] = beta2 * v.v[i] + (1 - beta2) * g * g;
    p.v[i] -= lr / c[ops::kControlBias1] * m.v[i] /
              (std::sqrt(v.v[i]) / std::sqrt(c[ops::kControlBias2]) + eps);
  }
  return {p, m, v};
}

// torch.optim.SGD in double; x: p, g, buffer, decay, control.
Refs SgdOf(const Refs& x, bool nesterov) {
  const std::vector<double>& c = x[4].v;
  const double momentum = c[ops::kControlMomentum];
  Ref p = x[0], buffer = x[2];
  if (c[ops::kControlApply] == 0) return {p, buffer};
  for (size_t i = 0; i < p.v.size(); ++i) {
    double g = x[1].v[i] * c[ops::kControlGradScale];
    if (x[3].v[i] != 0) g += c[ops::kControlWeightDecay] * p.v[i];
    if (momentum != 0) {
      buffer.v[i] = momentum * buffer.v[i] + g;
      g = nesterov ? g + momentum * buffer.v[i] : buffer.v[i];
    }
    p.v[i] -= c[ops::kControlLearningRate] * g;
  }
  return {p, buffer};
}

// x: sum of squares, hyper, state.
Refs ControlOf(const Refs& x) {
  const double sum = x[0].v[0];
  const std::vector<double>&h = x[1].v, &s = x[2].v;
  const bool finite = std::isfinite(sum);
  const double scale = s[ops::kStateLossScale], t = s[ops::kStateStep] + 1;
  const double norm = std::sqrt(sum) / scale, max_norm = h[ops::kHyperMaxGradNorm];
  const double clip = finite && max_norm > 0 ? std::min(1.0, max_norm / (norm + 1e-6)) : 1;
  const Ref control(Shape{ops::kControlCount},
                    {h[ops::kHyperLearningRate], h[ops::kHyperBeta1], h[ops::kHyperBeta2],
                     h[ops::kHyperEpsilon], h[ops::kHyperWeightDecay],
                     1 - std::pow(h[ops::kHyperBeta1], t), 1 - std::pow(h[ops::kHyperBeta2], t),
                     clip / scale, h[ops::kHyperMomentum], finite ? 1.0 : 0.0, norm, scale});
  Ref next = x[2];
  if (finite) {
    next.v[ops::kStateStep] += 1;
    next.v[ops::kStateGoodSteps] += 1;
    if (next.v[ops::kStateGoodSteps] == h[ops::kHyperGrowthInterval]) {
      next.v[ops::kStateLossScale] = std::min<double>(scale * h[ops::kHyperGrowth], FLT_MAX);
      next.v[ops::kStateGoodSteps] = 0;
    }
  } else {
    next.v[ops::kStateSkipped] += 1;
    next.v[ops::kStateLossScale] = std::max<double>(scale * h[ops::kHyperBackoff], FLT_MIN);
    next.v[ops::kStateGoodSteps] = 0;
  }
  return {control, next};
}

CaseInput Control(double lr, double momentum, bool apply) {
  const double beta1 = 0.9, beta2 = 0.99;
  return {.shape = Shape{ops::kControlCount},
          .dtype = DType::kF64,
          .values = {lr, beta1, beta2, 1e-3, 0.1, 1 - std::pow(beta1, 3), 1 - std::pow(beta2, 3),
                     0.5, momentum, apply ? 1.0 : 0.0, 1, 1}};
}

std::vector<CaseInput> AdamInputs(int64_t n, double lr, bool apply) {
  const CaseInput x{.shape = Shape{n}};
  return {x,
          x,
          {.shape = Shape{n}, .low = -0.1, .high = 0.1},
          {.shape = Shape{n}, .low = 0.01, .high = 0.1},
          {.shape = Shape{n}, .dtype = DType::kU8, .low = 0, .high = 1},
          Control(lr, 0, apply)};
}

std::vector<CaseInput> SgdInputs(int64_t n, double momentum, bool apply) {
  const CaseInput x{.shape = Shape{n}};
  return {x,
          x,
          x,
          {.shape = Shape{n}, .dtype = DType::kU8, .low = 0, .high = 1},
          Control(0.02, momentum, apply)};
}

// The case once more, with p' in 16 bits as its last output.
template <typename Step>
OpCase WithCopy(OpCase c, DType copy, Step step) {
  c.name += StrCat("_", DTypeName(copy));
  c.build = [copy, step](Builder& b, const Values& x) { return step(b, x, copy); };
  c.reference = [reference = c.reference](const Refs& x) {
    Refs outputs = reference(x);
    outputs.push_back(outputs[0]);
    return outputs;
  };
  c.tolerance = copy == DType::kBF16 ? 4e-3 : 5e-4;
  return c;
}

void AddAdam(std::vector<OpCase>& cases) {
  for (const bool decoupled : {false, true}) {
    for (const std::string_view kind : {"", "_zero_lr", "_skipped"}) {
      const double lr = kind == "_zero_lr" ? 0 : 0.02;
      OpCase c;
      c.name = StrCat(decoupled ? "AdamW" : "Adam", kind);
      c.inputs = AdamInputs(61, lr, kind != "_skipped");
      c.build = [decoupled](Builder& b, const Values& x) {
        return ops::AdamStep(b, x[0], x[1], x[2], x[3], x[4], x[5], decoupled);
      };
      c.reference = [decoupled](const Refs& x) { return AdamOf(x, decoupled); };
      c.gradient = false;
      cases.push_back(WithCopy(c, decoupled ? DType::kBF16 : DType::kF16,
                               [decoupled](Builder& b, const Values& x, DType copy) {
                                 return ops::AdamStep(b, x[0], x[1], x[2], x[3], x[4], x[5],
                                                      decoupled, copy);
                               }));
      if (decoupled && kind.empty()) {
        c.bench = AdamInputs(1 << 20, lr, true);
        c.bench[4].low = 1;
      }
      cases.push_back(c);
    }
  }
}

void AddSgd(std::vector<OpCase>& cases) {
  for (const bool nesterov : {false, true}) {
    for (const std::string_view kind : {"", "_momentum", "_skipped"}) {
      const double momentum = kind.empty() ? 0 : 0.9;
      OpCase c;
      c.name = StrCat(nesterov ? "SgdNesterov" : "Sgd", kind);
      c.inputs = SgdInputs(61, momentum, kind != "_skipped");
      c.build = [nesterov](Builder& b, const Values& x) {
        return ops::SgdStep(b, x[0], x[1], x[2], x[3], x[4], nesterov);
      };
      c.reference = [nesterov](const Refs& x) { return SgdOf(x, nesterov); };
      c.gradient = false;
      cases.push_back(WithCopy(c, nesterov ? DType::kBF16 : DType::kF16,
                               [nesterov](Builder& b, const Values& x, DType copy) {
                                 return ops::SgdStep(b, x[0], x[1], x[2], x[3], x[4], nesterov,
                                                     copy);
                               }));
      if (!nesterov && kind == "_momentum") {
        c.bench = SgdInputs(1 << 20, momentum, true);
        c.bench[3].low = 1;
      }
      cases.push_back(c);
    }
  }
}

void AddControl(std::vector<OpCase>& cases) {
  struct Given {
    std::string_view name;
    double sum, max_norm, scale, good;
  };
  // The growth interval is 5.
  for (const Given& given :
       {Given{"unclipped", 9, 0, 4, 1}, Given{"clipped", 9, 0.25, 4, 1},
        Given{"below_the_limit", 9, 7, 4, 3}, Given{"grows", 9, 0, 4, 4},
        Given{"grows_to_the_end", 9, 0, 0x1.8p127, 4}, Given{"overflow", INFINITY, 1, 4, 4},
        Given{"shrinks_to_the_end", INFINITY, 1, 0x1p-126, 0}}) {
    OpCase c;
    c.name = StrCat("OptimizerControl_", given.name);
    c.inputs = {{.shape = Shape{}, .dtype = DType::kF64, .values = {given.sum}},
                {.shape = Shape{ops::kHyperCount},
                 .dtype = DType::kF64,
                 .values = {0.02, 0.9, 0.999, 1e-8, 0.1, 0.8, given.max_norm, 3, 0.25, 5}},
                {.shape = Shape{ops::kStateCount},
                 .dtype = DType::kF64,
                 .values = {6, 2, given.scale, given.good}}};
    c.build = [](Builder& b, const Values& x) {
      return ops::OptimizerControl(b, x[0], x[1], x[2]);
    };
    c.reference = ControlOf;
    c.tolerance = 1e-14;
    c.gradient = false;
    cases.push_back(c);
  }
}

}  // namespace

std::vector<OpCase> OptimizerCases() {
  std::vector<OpCase> cases;
  AddAdam(cases);
  AddSgd(cases);
  AddControl(cases);
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

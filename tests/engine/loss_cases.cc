// Cases of the fused losses.
#include <algorithm>
#include <cmath>

#include "tests/engine/op_cases.h"

namespace tandem::testing {
namespace {

constexpr int64_t kRows = 5, kClasses = 19;

double LogSumExp(const Ref& x, int64_t row) {
  const auto begin = x.v.begin() + row * x.shape[1], end = begin + x.shape[1];
  const double max = *std::max_element(begin, end);
  double sum = 0;
  for (auto it = begin; it != end; ++it) sum += std::exp(*it - max);
  return max + std::log(sum);
}

CaseInput Targets(int64_t rows, int64_t classes) {
  return {.shape = Shape{rows},
          .dtype = DType::kI32,
          .low = 0,
          .high = static_cast<double>(classes - 1)};
}

}  // namespace

std::vector<OpCase> LossCases() {
  std::vector<OpCase> cases;
  const CaseInput logits{.shape = Shape{kRows, kClasses}, .low = -4, .high = 4};
  const CaseInput large{.shape = Shape{512, 32000}, .low = -4, .high = 4};
  OpCase c;
  c.name = "SoftmaxCrossEntropy";
  c.inputs = {logits, Targets(kRows, kClasses)};
  c.build = [](Builder& b, const Values& x) { return ops::SoftmaxCrossEntropy(b, x[0], x[1]); };
  c.reference = [](const Refs& x) {
    Ref loss(x[1].shape), lse(x[1].shape);
    for (int64_t i = 0; i < x[0].shape[0]; ++i) {
      const auto target = static_cast<int64_t>(x[1].v[i]);
      lse.v[i] = LogSumExp(x[0], i);
      loss.v[i] = lse.v[i] - x[0].v[i * x[0].shape[1] + target];
    }
    return Refs{loss, lse};
  };
  c.bench = {large, Targets(512, 32000)};
  cases.push_back(c);
  // A row of one class has no loss.
  c.name = "SoftmaxCrossEntropy_one_class";
  c.inputs = {{.shape = Shape{3, 1}}, Targets(3, 1)};
  c.bench.clear();
  cases.push_back(c);

  // Its lse is the forward pass's: the kernel relies on rows of softmax that sum to 1.
  OpCase g;
  g.name = "SoftmaxCrossEntropyGrad";
  g.inputs = {logits, Targets(kRows, kClasses), {.shape = Shape{kRows}}};
  g.build = [](Builder& b, const Values& x) {
    const Value lse = ops::SoftmaxCrossEntropy(b, x[0], x[1])[1];
    return Values{ops::SoftmaxCrossEntropyGrad(b, x[0], x[1], lse, x[2])};
  };
  g.reference = [](const Refs& x) {
    Ref out(x[0].shape);
    for (size_t i = 0; i < out.v.size(); ++i) {
      const size_t row = i / kClasses;
      const double hit = static_cast<double>(i % kClasses) == x[1].v[row] ? 1 : 0;
      const double lse = LogSumExp(x[0], static_cast<int64_t>(row));
      out.v[i] = (std::exp(x[0].v[i] - lse) - hit) * x[2].v[row];
    }
    return Refs{out};
  };
  g.gradient = false;
  g.bench = {large, Targets(512, 32000), {.shape = Shape{512}}};
  cases.push_back(g);
  return cases;
}

}  // namespace tandem::testing

// Gradient estimators against exact gradients, on a Gaussian and on a categorical toy problem.
#include "engine/sample/gradient_estimator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <numbers>

#include "engine/ops/expression.h"

namespace tandem {
namespace {

using ops::Expr;
using ::testing::HasSubstr;

// A model without parameters, from a function over the builder.
class FunctionSource : public GraphSource {
 public:
  using Function = std::function<Value(Builder&, std::span<const Value>)>;
  FunctionSource(std::vector<IoSpec> inputs, Function f)
      : inputs_(std::move(inputs)), f_(std::move(f)) {}
  std::string_view format() const override { return "test"; }
  const std::vector<IoSpec>& inputs() const override { return inputs_; }
  const std::vector<IoSpec>& outputs() const override { return outputs_; }
  const std::vector<ParameterInfo>& parameters() const override { return parameters_; }
  absl::StatusOr<std::vector<Value>> Build(Builder& b,
                                           std::span<const Value> inputs) const override {
    const Value y = f_(b, inputs);
    TANDEM_RETURN_IF_ERROR(b.status());
    return std::vector<Value>{y};
  }

 private:
  std::vector<IoSpec> inputs_;
  std::vector<IoSpec> outputs_ = {{"f", DType::kF32, {-1}}};
  std::vector<ParameterInfo> parameters_;
  Function f_;
};

std::unique_ptr<Model> MakeModel(std::vector<IoSpec> inputs, FunctionSource::Function f) {
  return std::make_unique<Model>(
      "f", std::make_shared<FunctionSource>(std::move(inputs), std::move(f)), ParameterStore({}));
}

// f(z) = sum over the row of z^2.
std::unique_ptr<Model> SumOfSquares() {
  return MakeModel({{"z", DType::kF32, {-1, -1}}}, [](Builder& b, std::span<const Value> in) {
    return SumLast(Square(Expr(b, in[0]))).value();
  });
}

// f(one-hot z (N, 3, 4)) = (sum of z w)^2 + z[0, 1] z[1, 2], which is not linear in z.
constexpr double kWeights[12] = {0.5, -1, 2, 0.3, 1.5, 0.2, -0.7, 1, -0.4, 0.9, 0.1, -1.2};
double OfClasses(const int64_t* c) {
  const double dot = kWeights[c[0]] + kWeights[4 + c[1]] + kWeights[8 + c[2]];
  return dot * dot + (c[0] == 1 && c[1] == 2 ? 1 : 0);
}
std::unique_ptr<Model> OneHotFunction() {
  return MakeModel({{"z", DType::kF32, {-1, 3, 4}}}, [](Builder& b, std::span<const Value> in) {
    const int64_t rows = b.shape(in[0])[0];
    Tensor w(DType::kF32, {12, 1});
    for (int i = 0; i < 12; ++i) w.data<float>()[i] = static_cast<float>(kWeights[i]);
    const Value flat = ops::Reshape(b, in[0], Shape{rows, 12});
    const Expr dot{b, ops::Reshape(b, ops::MatMul(b, flat, b.Constant(std::move(w))), Shape{rows})};
    const auto at = [&](int64_t i) {
      const Value v = ops::Slice(b, flat, {0, i}, {rows, i + 1}, {1, 1});
      return Expr{b, ops::Reshape(b, v, Shape{rows})};
    };
    return (Square(dot) + at(1) * at(6)).value();
  });
}
std::unique_ptr<Model> ClassFunction() {
  return MakeModel({{"z", DType::kI64, {-1, 3}}}, [](Builder& b, std::span<const Value> in) {
    Tensor table(DType::kF32, {4, 4, 4});
    for (int64_t i = 0; i < 64; ++i) {
      const int64_t c[3] = {i / 16, i / 4 % 4, i % 4};
      table.data<float>()[i] = static_cast<float>(OfClasses(c));
    }
    const int64_t rows = b.shape(in[0])[0];
    const Value scale = b.Constant(Tensor::Of<int64_t>({3}, {16, 4, 1}));
    const Value at = ops::ReduceSum(b, ops::Mul(b, in[0], scale), {-1}, false);
    return ops::Reshape(
        b, ops::Gather(b, ops::Reshape(b, b.Constant(std::move(table)), Shape{64}), at, 0),
        Shape{rows});
  });
}

EstimatorOptions Gaussian(Estimator estimator) {
  EstimatorOptions o;
  o.distribution.family = Family::kNormal;
  o.parameters.emplace_back("loc", Tensor::Of<float>({3}, {0.5F, -1, 2}));
  o.parameters.emplace_back("scale", Tensor::Of<float>({1}, {0.8F}));
  o.estimator = estimator;
  o.seed = 11;
  return o;
}

EstimatorOptions Classes(Estimator estimator, const char* name = "logits") {
  EstimatorOptions o;
  o.distribution.family = Family::kCategorical;
  o.parameters.emplace_back(
      name, Tensor::Of<double>({3, 4}, {0.5, 1, 2, 0.1, 1, 0.4, 0.3, 1.5, 2, 0.2, 1, 1}));
  o.estimator = estimator;
  o.seed = 5;
  return o;
}

GradientEstimate Estimate(Model& model, EstimatorOptions options, int steps) {
  auto estimator = GradientEstimator::Create(std::move(options));
  EXPECT_TRUE(estimator.ok()) << estimator.status();
  if (!estimator.ok()) return {};
  for (int i = 0; i < steps; ++i) {
    const absl::Status status = (*estimator)->Step(model);
    EXPECT_TRUE(status.ok()) << status;
    if (!status.ok()) return {};
  }
  return (*estimator)->estimate();
}

void ExpectUnbiased(const GradientEstimate& estimate, const std::vector<std::vector<double>>& want,
                    std::string_view where) {
  ASSERT_EQ(estimate.parameters.size(), want.size()) << where;
  for (size_t p = 0; p < want.size(); ++p) {
    ASSERT_EQ(estimate.parameters[p].gradient.size(), want[p].size()) << where;
    for (size_t i = 0; i < want[p].size(); ++i) {
      const double error =
          std::sqrt(estimate.parameters[p].variance[i] / static_cast<double>(estimate.draws));
      EXPECT_NEAR(estimate.parameters[p].gradient[i], want[p][i], 4 * error + 1e-5)
          << where << " " << estimate.parameters[p].name << "[" << i << "]";
    }
  }
}

// E sum z^2 = sum (loc^2 + scale^2): d/dloc = 2 loc, d/dscale = 2 n scale.
const std::vector<std::vector<double>> kGaussianGradient = {{1, -2, 4}, {2 * 3 * 0.8}};

TEST(GradientEstimator, EveryEstimatorIsUnbiasedOnAGaussian) {
  const auto model = SumOfSquares();
  ExpectUnbiased(Estimate(*model, Gaussian(Estimator::kPathwise), 200), kGaussianGradient, "path");
  ExpectUnbiased(Estimate(*model, Gaussian(Estimator::kMeasureValued), 200), kGaussianGradient,
                 "measure");
  for (Baseline baseline :
       {Baseline::kNone, Baseline::kRunningMean, Baseline::kLeaveOneOut, Baseline::kOptimal}) {
    EstimatorOptions o = Gaussian(Estimator::kScoreFunction);
    o.baseline = baseline;
    ExpectUnbiased(Estimate(*model, std::move(o), 200), kGaussianGradient,
                   StrCat("score ", static_cast<int>(baseline)));
  }
}

TEST(GradientEstimator, TheValueIsTheMeanOfF) {
  const auto model = SumOfSquares();
  const GradientEstimate e = Estimate(*model, Gaussian(Estimator::kPathwise), 200);
  EXPECT_EQ(e.draws, 200 * 256);
  EXPECT_EQ(e.evaluations, e.draws);
  EXPECT_EQ(e.gradient_evaluations, e.draws);
  const double want = 0.25 + 1 + 4 + 3 * 0.64;
  EXPECT_NEAR(e.value, want, 4 * std::sqrt(e.value_variance / static_cast<double>(e.draws)));
}

TEST(GradientEstimator, VariancesAreTheTheoryS) {
  // f = z^2, z ~ N(m, 1): pathwise 2 z has variance 4; the score (z - m) z^2 has m^4 + 14 m^2 + 15.
  const auto model = SumOfSquares();
  const double m = 1.5;
  const auto variance = [&](Estimator estimator, Baseline baseline) {
    EstimatorOptions o;
    o.distribution.family = Family::kNormal;
    o.parameters.emplace_back("loc", Tensor::Of<double>({1}, {m}));
    o.parameters.emplace_back("scale", Tensor::Of<double>({1}, {1}));
    o.estimator = estimator;
    o.baseline = baseline;
    o.seed = 3;
    return Estimate(*model, std::move(o), 1000).parameters[0].variance[0];
  };
  const double pathwise = variance(Estimator::kPathwise, Baseline::kNone);
  const double score = variance(Estimator::kScoreFunction, Baseline::kNone);
  const double theory = std::pow(m, 4) + 14 * m * m + 15;
  EXPECT_NEAR(pathwise, 4, 0.05 * 4);
  EXPECT_NEAR(score, theory, 0.05 * theory);
  EXPECT_NEAR(score / pathwise, theory / 4, 0.07 * theory / 4);
  // With the mean E f = m^2 + 1 taken away: E (f - E f)^2 e^2 - 4 m^2 = 8 m^2 + 10 with e = z - m.
  const double centred = 8 * m * m + 10;
  EXPECT_NEAR(variance(Estimator::kScoreFunction, Baseline::kLeaveOneOut), centred, 0.08 * centred);
  EXPECT_NEAR(variance(Estimator::kScoreFunction, Baseline::kRunningMean), centred, 0.08 * centred);
  // The best constant is E f e^2 / E e^2 = m^2 + 3; E (f - c)^2 e^2 - 4 m^2 = 8 m^2 + 6.
  const double best = 8 * m * m + 6;
  EXPECT_NEAR(variance(Estimator::kScoreFunction, Baseline::kOptimal), best, 0.08 * best);
}

// The exact gradient by differences of the sum over outcomes.
std::vector<double> ExactByDifferences(std::vector<double> theta, bool logits) {
  const auto mean = [&](const std::vector<double>& t) {
    double p[3][4], total = 0;
    for (int j = 0; j < 3; ++j) {
      double sum = 0;
      for (int k = 0; k < 4; ++k) sum += p[j][k] = logits ? std::exp(t[j * 4 + k]) : t[j * 4 + k];
      for (double& v : p[j]) v /= sum;
    }
    for (int64_t i = 0; i < 64; ++i) {
      const int64_t c[3] = {i / 16, i / 4 % 4, i % 4};
      total += p[0][c[0]] * p[1][c[1]] * p[2][c[2]] * OfClasses(c);
    }
    return total;
  };
  std::vector<double> gradient;
  for (double& x : theta) {
    const double before = x;
    x = before + 1e-6;
    const double above = mean(theta);
    x = before - 1e-6;
    gradient.push_back((above - mean(theta)) / 2e-6);
    x = before;
  }
  return gradient;
}

TEST(GradientEstimator, EveryUnbiasedEstimatorIsOneOnClasses) {
  for (const char* name : {"logits", "probs"}) {
    const EstimatorOptions base = Classes(Estimator::kScoreFunction, name);
    const auto theta = base.parameters[0].second.data<double>();
    const std::vector<std::vector<double>> want = {
        ExactByDifferences({theta.begin(), theta.end()}, name == std::string("logits"))};
    for (const auto& model : {OneHotFunction(), ClassFunction()}) {
      for (Baseline baseline :
           {Baseline::kNone, Baseline::kRunningMean, Baseline::kLeaveOneOut, Baseline::kOptimal}) {
        EstimatorOptions o = Classes(Estimator::kScoreFunction, name);
        o.baseline = baseline;
        ExpectUnbiased(Estimate(*model, std::move(o), 100), want,
                       StrCat(name, " score ", static_cast<int>(baseline)));
      }
      ExpectUnbiased(Estimate(*model, Classes(Estimator::kMeasureValued, name), 50), want,
                     StrCat(name, " measure"));
      auto exact = GradientEstimator::Create(Classes(Estimator::kScoreFunction, name));
      ASSERT_TRUE(exact.ok());
      const auto sum = (*exact)->Exact(*model);
      ASSERT_TRUE(sum.ok()) << sum.status();
      for (size_t i = 0; i < 12; ++i) {
        EXPECT_NEAR(sum->gradients[0].data<double>()[i], want[0][i], 1e-5);
      }
    }
  }
}

TEST(GradientEstimator, BitsAndRatesToo) {
  const auto model = SumOfSquares();
  for (const char* name : {"logits", "probs"}) {
    EstimatorOptions o;
    o.distribution.family = Family::kBernoulli;
    o.parameters.emplace_back(name, Tensor::Of<float>({2}, {0.3F, 0.6F}));
    // E sum z^2 = sum p.
    std::vector<double> want = {1, 1};
    if (name == std::string("logits")) {
      for (int i = 0; i < 2; ++i) {
        const double p = 1 / (1 + std::exp(i == 0 ? -0.3 : -0.6));
        want[i] = p * (1 - p);
      }
    }
    for (Estimator estimator : {Estimator::kScoreFunction, Estimator::kMeasureValued}) {
      EstimatorOptions each;
      each.distribution = o.distribution;
      each.parameters.emplace_back(name, o.parameters[0].second.Clone());
      each.estimator = estimator;
      ExpectUnbiased(Estimate(*model, std::move(each), 100), {want}, name);
    }
  }
  for (Estimator estimator :
       {Estimator::kPathwise, Estimator::kScoreFunction, Estimator::kMeasureValued}) {
    EstimatorOptions o;
    o.distribution.family = Family::kExponential;
    o.parameters.emplace_back("rate", Tensor::Of<float>({2}, {1, 2}));
    o.estimator = estimator;
    // E z^2 = 2 / rate^2.
    ExpectUnbiased(Estimate(*model, std::move(o), 200), {{-4, -0.5}}, "exponential");
  }
}

TEST(GradientEstimator, RelaxedEstimatorsAreThePathwiseOnesOfTheRelaxedFamily) {
  // Biased for the classes' expectation, but unbiased for E f(soft z): against the difference of
  // two long runs with common noise, by the pathwise estimator of that family.
  const auto model = OneHotFunction();
  EstimatorOptions relaxed = Classes(Estimator::kPathwise);
  relaxed.distribution.family = Family::kGumbelSoftmax;
  relaxed.distribution.temperature = 0.5;
  EstimatorOptions gumbel = Classes(Estimator::kGumbelSoftmax);
  gumbel.temperature = 0.5;
  const GradientEstimate a = Estimate(*model, std::move(relaxed), 20);
  const GradientEstimate b = Estimate(*model, std::move(gumbel), 20);
  EXPECT_EQ(a.parameters[0].gradient, b.parameters[0].gradient);
  EXPECT_EQ(a.value, b.value);
  EstimatorOptions straight = Classes(Estimator::kStraightThrough);
  straight.temperature = 0.5;
  const GradientEstimate c = Estimate(*model, std::move(straight), 200);
  EXPECT_NE(a.parameters[0].gradient, c.parameters[0].gradient);
  // Forward, straight-through sees classes: E f is the exact one.
  auto exact = GradientEstimator::Create(Classes(Estimator::kScoreFunction));
  const auto sum = (*exact)->Exact(*model);
  ASSERT_TRUE(sum.ok()) << sum.status();
  EXPECT_NEAR(c.value, sum->value, 4 * std::sqrt(c.value_variance / static_cast<double>(c.draws)));
}

TEST(GradientEstimator, LinearStraightThroughOfBitsFollowsTheRelaxation) {
  const auto model = MakeModel({{"z", DType::kF32, {-1, 1}}}, [](Builder& b, auto in) {
    return SumLast(3 * Expr(b, in[0])).value();
  });
  EstimatorOptions o;
  o.distribution.family = Family::kBernoulli;
  o.parameters.emplace_back("logits", Tensor::Of<float>({1}, {0.4F}));
  o.estimator = Estimator::kStraightThrough;
  const GradientEstimate e = Estimate(*model, std::move(o), 200);
  // Hard forward: f is 0 or 3, with mean 3 sigmoid(0.4).
  EXPECT_NEAR(e.value, 3 / (1 + std::exp(-0.4)),
              4 * std::sqrt(e.value_variance / static_cast<double>(e.draws)));
  EXPECT_GT(e.parameters[0].gradient[0], 0.1);
}

TEST(GradientEstimator, OtherInputsAreTheSameForEveryDraw) {
  const auto model = MakeModel(
      {{"z", DType::kF32, {-1, 2}}, {"x", DType::kF32, {-1, 2}}},
      [](Builder& b, auto in) { return SumLast(Expr(b, in[0]) * Expr(b, in[1])).value(); });
  const auto options = [] {
    EstimatorOptions o;
    o.distribution.family = Family::kNormal;
    o.parameters.emplace_back("loc", Tensor::Of<float>({2}, {0, 0}));
    o.parameters.emplace_back("scale", Tensor::Of<float>({2}, {1, 1}));
    o.input = "z";
    return o;
  };
  EstimatorOptions o = options();
  o.inputs.emplace_back("x", Tensor::Of<float>({1, 2}, {5, -7}));
  const GradientEstimate e = Estimate(*model, std::move(o), 1);
  EXPECT_EQ(e.parameters[0].gradient, (std::vector<double>{5, -7}));
  auto missing = GradientEstimator::Create(options());
  ASSERT_TRUE(missing.ok());
  EXPECT_THAT((*missing)->Step(*model).message(), HasSubstr("input 'x' is not given"));
}

TEST(GradientEstimator, SeedAndBatchSizeMatter) {
  const auto model = SumOfSquares();
  const auto gradient = [&](uint64_t seed, int64_t batch) {
    EstimatorOptions o = Gaussian(Estimator::kPathwise);
    o.seed = seed;
    o.batch_draws = batch;
    return Estimate(*model, std::move(o), 2).parameters[0].gradient;
  };
  EXPECT_EQ(gradient(1, 64), gradient(1, 64));
  EXPECT_NE(gradient(1, 64), gradient(2, 64));
  EXPECT_NE(gradient(1, 64), gradient(1, 32));
}

TEST(GradientEstimator, BadRequestsSayWhatWasWrong) {
  const auto create = [](EstimatorOptions o) {
    return std::string(GradientEstimator::Create(std::move(o)).status().message());
  };
  EXPECT_THAT(create(Classes(Estimator::kPathwise)), HasSubstr("no gradient flows"));
  EXPECT_THAT(create(Gaussian(Estimator::kGumbelSoftmax)), HasSubstr("relax bernoulli"));
  EstimatorOptions o = Gaussian(Estimator::kPathwise);
  o.baseline = Baseline::kOptimal;
  EXPECT_THAT(create(std::move(o)), HasSubstr("a baseline belongs to score_function"));
  o = Gaussian(Estimator::kPathwise);
  o.temperature = 2;
  EXPECT_THAT(create(std::move(o)), HasSubstr("temperature belongs"));
  o = Gaussian(Estimator::kPathwise);
  o.batch_draws = 1;
  EXPECT_THAT(create(std::move(o)), HasSubstr("batch_draws is 1"));
  EstimatorOptions laplace = Gaussian(Estimator::kMeasureValued);
  laplace.distribution.family = Family::kLaplace;
  EXPECT_THAT(create(std::move(laplace)), HasSubstr("measure_valued is known for"));

  const auto step = [](Model& model, EstimatorOptions options) {
    auto estimator = GradientEstimator::Create(std::move(options));
    EXPECT_TRUE(estimator.ok()) << estimator.status();
    return std::string((*estimator)->Step(model).message());
  };
  EXPECT_THAT(step(*ClassFunction(), Gaussian(Estimator::kPathwise)),
              HasSubstr("draws of normal are real numbers"));
  EXPECT_THAT(step(*ClassFunction(), Classes(Estimator::kGumbelSoftmax)),
              HasSubstr("no gradient flows through integers"));
  EXPECT_THAT(step(*OneHotFunction(), Gaussian(Estimator::kPathwise)), HasSubstr("do not fit"));
  EstimatorOptions named = Gaussian(Estimator::kPathwise);
  named.input = "y";
  EXPECT_THAT(step(*SumOfSquares(), std::move(named)), HasSubstr("no input 'y', only z"));
  const auto wide = MakeModel({{"z", DType::kF32, {-1, 3}}},
                              [](Builder&, std::span<const Value> in) { return in[0]; });
  EXPECT_THAT(step(*wide, Gaussian(Estimator::kPathwise)), HasSubstr("expected one"));
  const auto root = MakeModel({{"z", DType::kF32, {-1, 3}}}, [](Builder& b, auto in) {
    return SumLast(Sqrt(0 * Expr(b, in[0]))).value();  // 0, with derivative 0 times infinity
  });
  EXPECT_THAT(step(*root, Gaussian(Estimator::kPathwise)), HasSubstr("the gradient of 'loc' is"));
  // Small requests for large steps.
  EstimatorOptions bits;
  bits.distribution.family = Family::kBernoulli;
  bits.parameters.emplace_back("logits", Tensor::Zeros({DType::kF32, {131072}}));
  bits.estimator = Estimator::kMeasureValued;
  bits.batch_draws = 2;
  EXPECT_THAT(step(*SumOfSquares(), std::move(bits)), HasSubstr("is too large"));
  EstimatorOptions many;
  many.distribution.family = Family::kCategorical;
  many.parameters.emplace_back("logits", Tensor::Zeros({DType::kF32, {500000}}));
  many.estimator = Estimator::kMeasureValued;
  many.batch_draws = 2;
  EXPECT_THAT(step(*SumOfSquares(), std::move(many)), HasSubstr("classes"));
  auto gaussian = GradientEstimator::Create(Gaussian(Estimator::kPathwise));
  EXPECT_THAT((*gaussian)->Exact(*SumOfSquares()).status().message(), HasSubstr("not of normal"));
}

}  // namespace
}  // namespace tandem

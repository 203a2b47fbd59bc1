// The random operators: distributions, and that the numbers depend on the key, the node and the
// element alone.
#include "engine/backend/cpu/kernels/random.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <numeric>

#include "engine/backend/backend.h"
#include "engine/backend/cpu/kernels/gamma.h"
#include "engine/base/philox.h"
#include "engine/base/threads.h"
#include "engine/exec/plan.h"
#include "engine/graph/gradient.h"
#include "engine/ops/ops.h"
#include "hwy/targets.h"
#include "tests/engine/special_functions.h"

namespace tandem {
namespace {

using ops::Noise;
constexpr int64_t kDraws = 1'000'000;
constexpr double kEuler = 0.577215664901532861;

// Random123's known answers for philox4x32-10: (counter, key) -> words.
TEST(PhiloxTest, GivesTheKnownAnswers) {
  using Words = Philox::Words;
  EXPECT_EQ(Philox::Block(0, 0, 0), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox::Block(~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox::Block(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(PhiloxTest, UniformNeverReachesAnEnd) {
  EXPECT_EQ(Philox::Uniform(0), 0x1p-25f);
  EXPECT_EQ(Philox::Uniform(~0u), 1 - 0x1p-24f);
}

TEST(PhiloxTest, FoldTellsSeedsAndCallsApart) {
  EXPECT_NE(Philox::Fold(0, 0), Philox::Fold(0, 1));
  EXPECT_NE(Philox::Fold(0, 0), Philox::Fold(1, 0));
  EXPECT_NE(Philox::Fold(0, 1), Philox::Fold(1, 0));
}

std::unique_ptr<Plan> Compile(Builder& b, const std::vector<Value>& outputs) {
  for (Value v : outputs) b.Output(v);
  absl::StatusOr<Graph> graph = b.Finish();
  EXPECT_TRUE(graph.ok()) << graph.status();
  absl::StatusOr<std::unique_ptr<Plan>> plan = Plan::Compile(*std::move(graph), CpuBackend());
  EXPECT_TRUE(plan.ok()) << plan.status();
  return *std::move(plan);
}

std::vector<Tensor> Outputs(Plan& plan, std::vector<const Tensor*> inputs = {}) {
  absl::StatusOr<std::vector<Tensor>> outputs = RunPlan(plan, inputs);
  EXPECT_TRUE(outputs.ok()) << outputs.status();
  return *std::move(outputs);
}

Tensor Draw(Noise noise, DType dtype, int64_t n, uint64_t seed = 7, uint64_t call = 3) {
  Builder b;
  const std::unique_ptr<Plan> plan = Compile(b, {ops::Random(b, noise, dtype, Shape{n})});
  plan->SetRandomKey(seed, call);
  return std::move(Outputs(*plan)[0]);
}

bool SameBits(const Tensor& a, const Tensor& b) {
  return a.type() == b.type() && std::memcmp(a.raw(), b.raw(), a.bytes()) == 0;
}

std::vector<double> AsDoubles(const Tensor& t) {
  std::vector<double> v(t.num_elements());
  for (size_t i = 0; i < v.size(); ++i) v[i] = ElementAsDouble(t, static_cast<int64_t>(i));
  return v;
}

struct Distribution {
  const char* name;
  Noise noise;
  double mean, variance;
  double fourth;  // central moment: gives the variance's own error
  double (*cdf)(double);
};
constexpr double kPi2 = std::numbers::pi * std::numbers::pi;
const Distribution kDistributions[] = {
    {"uniform", Noise::kUniform, 0.5, 1.0 / 12, 1.0 / 80, [](double x) { return x; }},
    {"normal", Noise::kNormal, 0, 1, 3,
     [](double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); }},
    {"gumbel", Noise::kGumbel, kEuler, kPi2 / 6, 5.4 * kPi2* kPi2 / 36,
     [](double x) { return std::exp(-std::exp(-x)); }},
    {"exponential", Noise::kExponential, 1, 1, 9, [](double x) { return -std::expm1(-x); }},
    {"logistic", Noise::kLogistic, 0, kPi2 / 3, 4.2 * kPi2* kPi2 / 9,
     [](double x) { return 1 / (1 + std::exp(-x)); }},
    {"laplace", Noise::kLaplace, 0, 2, 24,
     [](double x) { return x < 0 ? 0.5 * std::exp(x) : 1 - 0.5 * std::exp(-x); }},
};

class NoiseTest : public ::testing::TestWithParam<std::tuple<Distribution, DType>> {};

TEST_P(NoiseTest, HasTheDistributionsMomentsAndShape) {
  const auto& [d, dtype] = GetParam();
  const std::vector<double> x = AsDoubles(Draw(d.noise, dtype, kDraws));
  const auto n = static_cast<double>(kDraws);
  double mean = 0, variance = 0, neighbours = 0;
  for (double v : x) mean += v / n;
  for (size_t i = 0; i < x.size(); ++i) {
    variance += (x[i] - d.mean) * (x[i] - d.mean) / n;
    if (i > 0) neighbours += (x[i] - d.mean) * (x[i - 1] - d.mean) / n;
  }
  EXPECT_NEAR(mean, d.mean, 4 * std::sqrt(d.variance / n));
  EXPECT_NEAR(variance, d.variance, 4 * std::sqrt((d.fourth - d.variance * d.variance) / n));
  EXPECT_NEAR(neighbours, 0, 4 * d.variance / std::sqrt(n));
  EXPECT_LT(testing::KolmogorovSmirnov(x, d.cdf), 1.95);
  for (double v : x) ASSERT_TRUE(std::isfinite(v));
  if (d.noise == Noise::kUniform) {
    EXPECT_GT(*std::min_element(x.begin(), x.end()), 0);
    EXPECT_LT(*std::max_element(x.begin(), x.end()), 1);
  }
}

// The squares of the two normals that come of one pair of words must not be related either.
TEST_P(NoiseTest, ElementsOfOneBlockAreUncorrelated) {
  const auto& [d, dtype] = GetParam();
  const std::vector<double> x = AsDoubles(Draw(d.noise, dtype, kDraws));
  for (const size_t lag : {size_t{16}, size_t{32}, size_t{48}}) {
    double sum = 0, squares = 0;
    const size_t n = x.size() - lag;
    for (size_t i = 0; i < n; ++i) {
      const double a = x[i] - d.mean, b = x[i + lag] - d.mean;
      sum += a * b;
      squares += (a * a - d.variance) * (b * b - d.variance);
    }
    const double root = std::sqrt(static_cast<double>(n));
    EXPECT_LT(std::abs(sum), 4 * d.variance * root) << "lag " << lag;
    EXPECT_LT(std::abs(squares), 4 * (d.fourth - d.variance * d.variance) * root) << "lag " << lag;
  }
}

TEST_P(NoiseTest, ALongerDrawBeginsWithTheShorter) {
  const auto& [d, dtype] = GetParam();
  const Tensor whole = Draw(d.noise, dtype, 1000);
  for (const int64_t n : {1, 15, 16, 17, 31, 32, 63, 64, 65, 100, 129, 999}) {
    const Tensor part = Draw(d.noise, dtype, n);
    EXPECT_EQ(0, std::memcmp(part.raw(), whole.raw(), part.bytes())) << n;
  }
}

TEST_P(NoiseTest, ThreadsChangeNoBit) {
  const auto& [d, dtype] = GetParam();
  const int threads = ThreadCount();
  SetThreadCount(1);
  const Tensor one = Draw(d.noise, dtype, 100'003);
  SetThreadCount(3);
  const Tensor three = Draw(d.noise, dtype, 100'003);
  SetThreadCount(threads);
  EXPECT_TRUE(SameBits(one, three));
}

TEST_P(NoiseTest, SeedCallAndNodeEachChangeTheNoise) {
  const auto& [d, dtype] = GetParam();
  const Tensor base = Draw(d.noise, dtype, 100, 7, 3);
  EXPECT_TRUE(SameBits(base, Draw(d.noise, dtype, 100, 7, 3)));
  EXPECT_FALSE(SameBits(base, Draw(d.noise, dtype, 100, 8, 3)));
  EXPECT_FALSE(SameBits(base, Draw(d.noise, dtype, 100, 7 + (uint64_t{1} << 32), 3)));
  EXPECT_FALSE(SameBits(base, Draw(d.noise, dtype, 100, 7, 4)));
  EXPECT_FALSE(SameBits(base, Draw(d.noise, dtype, 100, 7, 3 + (uint64_t{1} << 32))));
  Builder b;
  const Value x = ops::Random(b, d.noise, dtype, Shape{100});
  const Value y = ops::Random(b, d.noise, dtype, Shape{100});
  const std::unique_ptr<Plan> plan = Compile(b, {x, y});
  plan->SetRandomKey(7, 3);
  const std::vector<Tensor> outputs = Outputs(*plan);
  EXPECT_TRUE(SameBits(base, outputs[0]));
  EXPECT_FALSE(SameBits(base, outputs[1]));
}

std::string NoiseName(const ::testing::TestParamInfo<NoiseTest::ParamType>& info) {
  return StrCat(std::get<0>(info.param).name, "_", DTypeName(std::get<1>(info.param)));
}
INSTANTIATE_TEST_SUITE_P(All, NoiseTest,
                         ::testing::Combine(::testing::ValuesIn(kDistributions),
                                            ::testing::Values(DType::kF32, DType::kF64)),
                         NoiseName);

// --- Graphs with noise ---------------------------------------------------------------------------

TEST(RandomGraphTest, TheKeyIsOneValueAndNoInput) {
  Builder b;
  const Value key = b.RandomKey();
  EXPECT_EQ(key, b.RandomKey());
  EXPECT_EQ(b.type(key), (TensorType{DType::kI64, {2}}));
  EXPECT_EQ(b.NextRandomStream(), 0);
  EXPECT_EQ(b.NextRandomStream(), 1);
  EXPECT_TRUE(b.graph().inputs().empty());
  // As a value of its own it is what the plan was given.
  const std::unique_ptr<Plan> plan = Compile(b, {key, ops::Add(b, key, key)});
  EXPECT_EQ(Outputs(*plan)[0].data<int64_t>()[1], 0);
  plan->SetRandomKey(5, ~uint64_t{0});
  const std::vector<Tensor> outputs = Outputs(*plan);
  EXPECT_EQ(outputs[0].data<int64_t>()[0], 5);
  EXPECT_EQ(outputs[0].data<int64_t>()[1], -1);
  EXPECT_EQ(outputs[1].data<int64_t>()[0], 10);
}

TEST(RandomGraphTest, NoiseIsNeverFolded) {
  Builder b(EvaluateNode);
  const Value noise = ops::Random(b, Noise::kNormal, DType::kF32, Shape{4});
  const Value sum = ops::Add(b, noise, b.Scalar(1));
  EXPECT_EQ(b.constant(noise), nullptr);
  EXPECT_EQ(b.constant(sum), nullptr);
  const std::unique_ptr<Plan> plan = Compile(b, {sum});
  plan->SetRandomKey(1, 1);
  const Tensor first = std::move(Outputs(*plan)[0]);
  plan->SetRandomKey(1, 2);
  EXPECT_FALSE(SameBits(first, Outputs(*plan)[0]));
}

TEST(RandomGraphTest, RejectsWhatItCannotDraw) {
  const auto error = [](auto build) {
    Builder b;
    build(b);
    return std::string(b.status().message());
  };
  EXPECT_EQ(error([](Builder& b) { ops::Random(b, Noise::kNormal, DType::kI32, Shape{4}); }),
            "[Random] noise is i32, expected f32 or f64");
  EXPECT_EQ(error([](Builder& b) {
              ops::GumbelSoftmax(b, b.Input("x", {DType::kF32, {2, 3}}), 0);
            }),
            "[GumbelSoftmax] temperature is 0, must be in [1e-30, 1e30]");
  EXPECT_EQ(error([](Builder& b) {
              ops::GumbelSoftmax(b, b.Input("x", {DType::kF32, {2, 0}}), 1);
            }),
            "[GumbelSoftmax] logits have shape (2,0): no categories");
  EXPECT_EQ(error([](Builder& b) {
              ops::RandomGamma(b, b.Input("x", {DType::kI64, {2}}));
            }),
            "[RandomGamma] concentration is i64, expected f32 or f64");
  EXPECT_EQ(error([](Builder& b) {
              ops::TopK(b, b.Input("x", {DType::kF32, {2, 3}}), 4);
            }),
            "[TopK] k is 4, outside [0, 3] of (2,3)");
  EXPECT_EQ(error([](Builder& b) {
              ops::TriangularSolve(b, b.Input("l", {DType::kF32, {2, 3, 3}}),
                                   b.Input("r", {DType::kF32, {3, 3, 1}}));
            }),
            "[TriangularSolve] l (2,3,3), rhs (3,3,1): expected (..., D, D) and (..., D, N)");
  EXPECT_EQ(
      error([](Builder& b) {
        ops::StraightThrough(b, b.Input("v", {DType::kF32, {2}}), b.Input("s", {DType::kF32, {3}}));
      }),
      "[StraightThrough] surrogate is f32(3), expected shape (2)");
}

TEST(RandomGraphTest, StraightThroughGivesTheSurrogateTheWholeCotangent) {
  Builder b;
  const Value value = b.Input("value", {DType::kF32, {3}});
  const Value surrogate = b.Input("surrogate", {DType::kF32, {3}});
  const Value cotangent = b.Input("cotangent", {DType::kF32, {3}});
  const Value y = ops::StraightThrough(b, value, surrogate);
  const Value wrt[] = {value, surrogate};
  const auto gradients = Gradient(b, y, wrt, cotangent);
  ASSERT_TRUE(gradients.ok()) << gradients.status();
  const std::unique_ptr<Plan> plan = Compile(b, {y, (*gradients)[0], (*gradients)[1]});
  EXPECT_EQ(plan->step_count(), 0);  // nothing is left to compute
  const Tensor v = Tensor::Of<float>({3}, {1, 2, 3}), s = Tensor::Of<float>({3}, {4, 5, 6});
  const Tensor c = Tensor::Of<float>({3}, {7, 8, 9});
  const std::vector<Tensor> outputs = Outputs(*plan, {&v, &s, &c});
  EXPECT_TRUE(SameBits(outputs[0], v));
  EXPECT_TRUE(SameBits(outputs[1], Tensor::Zeros(v.type())));
  EXPECT_TRUE(SameBits(outputs[2], c));
}

// The fused kernel's noise is Random's: with a temperature that makes y one-hot, its place is the
// largest of logits + noise; and the logarithm gives the noise back.
TEST(RandomGraphTest, GumbelSoftmaxUsesTheBitsOfRandom) {
  constexpr int64_t kRows = 40, kCols = 333;
  Builder b;
  const Value logits = b.Input("x", {DType::kF32, {kRows, kCols}});
  const Value noise = b.Add(*FindOp("Random"), {b.RandomKey()},
                            {{"noise", static_cast<int64_t>(Noise::kGumbel)},
                             {"dtype", static_cast<int64_t>(DType::kF32)},
                             {"shape", std::vector<int64_t>{kRows, kCols}},
                             {"stream", int64_t{0}}});
  const Value soft = ops::GumbelSoftmax(b, logits, 1.0);
  const std::unique_ptr<Plan> plan =
      Compile(b, {soft, ops::Softmax(b, ops::Add(b, logits, noise))});
  plan->SetRandomKey(11, 12);
  Tensor x(DType::kF32, {kRows, kCols});
  for (size_t i = 0; i < x.data<float>().size(); ++i) {
    x.data<float>()[i] = static_cast<float>(i % 7) * 0.25f;
  }
  const std::vector<Tensor> outputs = Outputs(*plan, {&x});
  for (int64_t i = 0; i < x.num_elements(); ++i) {
    const double got = ElementAsDouble(outputs[0], i), want = ElementAsDouble(outputs[1], i);
    ASSERT_NEAR(got, want, 1e-6 * want) << i;
  }
}

TEST(RandomGraphTest, GumbelSoftmaxPicksCategoriesByTheirProbability) {
  constexpr int64_t kRows = 200'000, kCols = 5;
  const double p[kCols] = {0.05, 0.4, 0.15, 0.3, 0.1};
  Builder b;
  const Value logits = b.Input("x", {DType::kF32, {kRows, kCols}});
  const std::unique_ptr<Plan> plan =
      Compile(b, {ops::ArgMax(b, ops::GumbelSoftmax(b, logits, 0.5), 1, false)});
  Tensor x(DType::kF32, {kRows, kCols});
  for (int64_t i = 0; i < kRows * kCols; ++i) {
    x.data<float>()[i] = static_cast<float>(std::log(p[i % kCols]));
  }
  const std::vector<Tensor> outputs = Outputs(*plan, {&x});
  double counts[kCols] = {}, chi = 0;
  for (const int64_t k : outputs[0].data<int64_t>()) counts[k] += 1;
  for (int64_t k = 0; k < kCols; ++k) {
    chi += std::pow(counts[k] - kRows * p[k], 2) / (kRows * p[k]);
  }
  EXPECT_LT(chi, 18.5);  // 4 degrees of freedom: one in a thousand
}

TEST(RandomGraphTest, GumbelSoftmaxKeepsMaskedCategoriesOutAndPassesNaNOn) {
  Builder b;
  const Value logits = b.Input("x", {DType::kF32, {2, 100}});
  const std::unique_ptr<Plan> plan = Compile(b, {ops::GumbelSoftmax(b, logits, 1)});
  Tensor x = Tensor::Zeros({DType::kF32, {2, 100}});
  for (int i = 0; i < 50; ++i) x.data<float>()[i] = -INFINITY;
  x.data<float>()[170] = NAN;
  const std::vector<Tensor> outputs = Outputs(*plan, {&x});
  const std::span<const float> y = outputs[0].data<float>();
  double sum = 0;
  for (int i = 0; i < 100; ++i) sum += y[i];
  for (int i = 0; i < 50; ++i) EXPECT_EQ(y[i], 0);
  EXPECT_NEAR(sum, 1, 1e-6);
  for (int i = 100; i < 200; ++i) EXPECT_TRUE(std::isnan(y[i]));
}

// --- The gamma distribution ----------------------------------------------------------------------

class GammaTest : public ::testing::TestWithParam<std::tuple<double, DType>> {};

TEST_P(GammaTest, HasTheDistribution) {
  const auto [concentration, dtype] = GetParam();
  Builder b;
  const Value a = b.Input("a", {dtype, {kDraws}});
  const std::unique_ptr<Plan> plan = Compile(b, {ops::RandomGamma(b, a)});
  plan->SetRandomKey(5, 6);
  Tensor x(dtype, {kDraws});
  for (int64_t i = 0; i < kDraws; ++i) {
    if (dtype == DType::kF32) {
      x.data<float>()[i] = static_cast<float>(concentration);
    } else {
      x.data<double>()[i] = concentration;
    }
  }
  const double exact = ElementAsDouble(x, 0);
  const std::vector<double> log_z = AsDoubles(Outputs(*plan, {&x})[0]);
  double mean = 0, variance = 0;
  const auto n = static_cast<double>(kDraws);
  for (double v : log_z) mean += v / n;
  for (double v : log_z) variance += (v - mean) * (v - mean) / n;
  // E ln z = psi(a), Var ln z = psi'(a); its fourth moment is below 9 times the square.
  const double expected = cpu::Trigamma(exact);
  EXPECT_NEAR(mean, cpu::Digamma(exact), 4 * std::sqrt(expected / n));
  EXPECT_NEAR(variance, expected, 4 * expected * std::sqrt(8 / n));
  EXPECT_LT(
      testing::KolmogorovSmirnov(log_z, [&](double v) { return testing::LogGammaCdf(exact, v); }),
      1.95);
}

INSTANTIATE_TEST_SUITE_P(All, GammaTest,
                         ::testing::Combine(::testing::Values(0.01, 0.3, 0.999, 1.0, 2.5, 40.0,
                                                              1000.0),
                                            ::testing::Values(DType::kF32, DType::kF64)));

// Against differences of the distribution function, from the 1e-9 quantile to the 1 - 1e-9.
TEST(GammaGradientTest, IsTheImplicitDerivative) {
  for (double a = 0.01; a < 1.1e4; a *= 1.23) {
    double log_z =
        a < 1 ? (std::log(1e-9) + std::lgamma(a + 1)) / a : std::log(a) - 8 / std::sqrt(a);
    double worst = 0;
    int checked = 0;
    const double step = a < 1 ? -log_z / 60 : 0.2 / std::sqrt(a);
    for (; checked < 400; log_z += step) {
      const testing::GammaTail tail = testing::GammaTailOf(a, log_z);
      if (tail.log_probability < std::log(1e-9)) {
        if (tail.upper) break;
        continue;
      }
      const double want = testing::LogGammaSlope(a, log_z);
      const double got = cpu::LogGammaGradient(a, log_z);
      worst = std::max(worst, std::abs(got / want - 1));
      ++checked;
    }
    EXPECT_GT(checked, 20) << a;
    EXPECT_LT(worst, 1e-6) << "concentration " << a;
  }
}

// In closed form: z = -ln u for concentration 1 has d log z / da = ... no elementary one, but the
// limit z -> 0 has: (psi(a + 1) - ln z) / a; and for a large concentration about 1 / a.
TEST(GammaGradientTest, HasItsLimits) {
  for (const double a : {1e-3, 0.01, 0.5, 3.0, 20.0}) {
    const double log_z = -800 - 1e4 / a;
    EXPECT_NEAR(cpu::LogGammaGradient(a, log_z) * a / (cpu::Digamma(a + 1) - log_z), 1, 1e-12);
  }
  for (const double a : {1e9, 1e11, 1e13, 1e100}) {
    EXPECT_NEAR(cpu::LogGammaGradient(a, std::log(a)) * a, 1, 1e-4) << a;
  }
  EXPECT_TRUE(std::isnan(cpu::LogGammaGradient(-1, 0)));
  EXPECT_TRUE(std::isnan(cpu::LogGammaGradient(1, NAN)));
}

// Through the graph, and its expectation: d E[ln z] / da = psi'(a).
TEST(GammaGradientTest, AveragesToTheMeansDerivative) {
  for (const double a : {0.05, 0.7, 3.0, 50.0}) {
    Builder b;
    const Value one = b.Input("a", {DType::kF64, {1}});
    const Value draws = ops::RandomGamma(b, ops::BroadcastTo(b, one, Shape{100'000}));
    const Value mean = ops::ReduceMean(b, draws, {0}, true);
    const auto gradient = Gradient(b, mean, std::span<const Value>(&one, 1));
    ASSERT_TRUE(gradient.ok()) << gradient.status();
    const std::unique_ptr<Plan> plan = Compile(b, *gradient);
    const Tensor x = Tensor::Of<double>({1}, {a});
    EXPECT_NEAR(Outputs(*plan, {&x})[0].data<double>()[0] / cpu::Trigamma(a), 1, 0.02) << a;
  }
}

TEST(SpecialFunctionsTest, GammaFamilyMatchesClosedForms) {
  using std::numbers::pi;
  for (double x = 1e-6; x < 1e7; x *= 1.37) {
    const double want = std::lgamma(x);
    EXPECT_NEAR(cpu::Lgamma(x), want, 1e-12 * std::max(0.1, std::abs(want))) << x;
    // psi(x + 1) = psi(x) + 1 / x, psi'(x + 1) = psi'(x) - 1 / x^2
    EXPECT_NEAR(cpu::Digamma(x + 1) - 1 / x, cpu::Digamma(x), 1e-13 * (1 + 1 / x) + 1e-14 * 20)
        << x;
    EXPECT_NEAR(cpu::Trigamma(x + 1) + 1 / (x * x), cpu::Trigamma(x), 1e-13 * (1 + 1 / (x * x)))
        << x;
  }
  EXPECT_NEAR(cpu::Digamma(1), -kEuler, 1e-15);
  EXPECT_NEAR(cpu::Digamma(0.5), -kEuler - 2 * std::numbers::ln2, 1e-14);
  EXPECT_NEAR(cpu::Trigamma(1), pi * pi / 6, 1e-14);
  EXPECT_NEAR(cpu::Trigamma(0.5), pi * pi / 2, 1e-13);
  for (const double x : {-0.5, -1.25, -3.7, -20.1}) {
    EXPECT_NEAR(cpu::Lgamma(x), std::lgamma(x), 1e-12 * std::abs(std::lgamma(x))) << x;
    EXPECT_NEAR(cpu::Digamma(x + 1) - 1 / x, cpu::Digamma(x), 1e-12) << x;
    EXPECT_NEAR(cpu::Trigamma(x + 1) + 1 / (x * x), cpu::Trigamma(x), 1e-11) << x;
  }
  EXPECT_EQ(cpu::Lgamma(1), 0);
  EXPECT_EQ(cpu::Lgamma(2), 0);
  for (const double x : {0.0, -1.0, -7.0, double{INFINITY}, double{-INFINITY}}) {
    EXPECT_EQ(cpu::Lgamma(x), INFINITY) << x;
  }
  EXPECT_EQ(cpu::Digamma(0), -INFINITY);
  EXPECT_TRUE(std::isnan(cpu::Digamma(-2)));
  EXPECT_EQ(cpu::Digamma(INFINITY), INFINITY);
  EXPECT_EQ(cpu::Trigamma(-2), INFINITY);
  EXPECT_EQ(cpu::Trigamma(INFINITY), 0);
  for (const auto f : {cpu::Lgamma, cpu::Digamma, cpu::Trigamma}) EXPECT_TRUE(std::isnan(f(NAN)));
}

// --- Every instruction set -----------------------------------------------------------------------

class TargetTest : public ::testing::Test {
 protected:
  void TearDown() override { Use(0); }
  // 0: whatever suits the machine.
  static void Use(int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
  // Best first: each with all lesser ones, of which the best that was compiled will run.
  static std::vector<int64_t> Targets() {
    std::vector<int64_t> result;
    for (int64_t bits = hwy::SupportedTargets(); bits != 0; bits &= bits - 1) {
      result.push_back(bits);
    }
    return result;
  }
};

uint64_t Hash(const void* data, size_t bytes) {
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (size_t i = 0; i < bytes; ++i) {
    hash = (hash ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3;
  }
  return hash;
}

constexpr cpu::NoiseKind kKinds[] = {cpu::NoiseKind::kUniform,  cpu::NoiseKind::kNormal,
                                     cpu::NoiseKind::kGumbel,   cpu::NoiseKind::kExponential,
                                     cpu::NoiseKind::kLogistic, cpu::NoiseKind::kLaplace};
const cpu::NoiseStream kStream = {.key = Philox::Fold(1, 2), .stream = 3};

// The bits of 100,001 elements, as they were on the machine that this was written on: another
// machine, compiler or instruction set gives the same.
TEST_F(TargetTest, NoiseHasTheSameBitsOnEveryMachine) {
  constexpr uint64_t kF32[] = {1894351786664331202u, 2087814689549964977u,  13946799675683544422u,
                               1033516371569163457u, 15201225386771619191u, 17415248899768688497u};
  constexpr uint64_t kF64[] = {10804462105781973613u, 5254986172040157030u, 15926224538857016597u,
                               15941893562720883328u, 7588733563450947959u, 6370227467085360512u};
  for (const int64_t target : Targets()) {
    Use(target);
    for (size_t k = 0; k < std::size(kKinds); ++k) {
      std::vector<float> x(100'001);
      cpu::FillNoise(kKinds[k], kStream, x.data(), static_cast<int64_t>(x.size()));
      EXPECT_EQ(Hash(x.data(), x.size() * sizeof(float)), kF32[k])
          << "kind " << k << " on " << hwy::TargetName(target & -target);
    }
  }
  for (size_t k = 0; k < std::size(kKinds); ++k) {
    std::vector<double> x(100'001);
    cpu::FillNoise(kKinds[k], kStream, x.data(), static_cast<int64_t>(x.size()));
    EXPECT_EQ(Hash(x.data(), x.size() * sizeof(double)), kF64[k]) << "kind " << k;
  }
}

TEST_F(TargetTest, GammaDrawsHaveTheSameBitsOnEveryMachine) {
  std::vector<double> x(100'001);
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = cpu::DrawLogGamma(0.01 * static_cast<double>(1 + i % 1000), kStream, i);
  }
  EXPECT_EQ(Hash(x.data(), x.size() * sizeof(double)), 11539091942846005643u);
}

// Wherever multiplications and additions are fused, that is on all but the oldest.
TEST_F(TargetTest, GumbelSoftmaxHasTheSameBitsOnEveryFusedInstructionSet) {
  std::vector<float> x(11 * 1003), first;
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 37 % 101) * 0.03f;
  for (const int64_t target : Targets()) {
    Use(target);
    const std::string name = hwy::TargetName(target & -target);
    if (name.starts_with("SSE") || name.starts_with("SSSE") || name.starts_with("EMU") ||
        name == "SCALAR")
      continue;
    std::vector<float> y(x.size());
    cpu::GumbelSoftmax(x.data(), kStream, 1.25f, y.data(), 11, 1003);
    if (first.empty()) first = y;
    EXPECT_EQ(0, std::memcmp(first.data(), y.data(), y.size() * sizeof(float))) << name;
  }
  EXPECT_FALSE(first.empty());
}

}  // namespace
}  // namespace tandem

// Stochastic approximation: theoretical rates over many replications, exact small cases, resumption
// and refusals.
#include "engine/sample/approximation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numbers>

#include "engine/base/error.h"
#include "engine/base/philox.h"
#include "engine/sample/approximation_token.h"

namespace tandem {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Standard normals by Box and Muller, from Philox: the same on every run.
class Normals {
 public:
  explicit Normals(uint64_t seed) : seed_(seed) {}
  double operator()() {
    const Philox::Words w = Philox::Block(seed_, 77, position_++);
    const double u = (w[0] + 0.5) * 0x1p-32, v = (w[1] + 0.5) * 0x1p-32;
    return std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v);
  }

 private:
  const uint64_t seed_;
  uint64_t position_ = 0;
};

Approximation Started(ApproximationOptions options) {
  auto started = Approximation::Start(std::move(options));
  EXPECT_TRUE(started.ok()) << started.status();
  return *std::move(started);
}

// Observes as the next step.
void Tell(Approximation& approximation, std::vector<double> values) {
  const absl::Status status = approximation.Observe(approximation.Answer().step, values);
  ASSERT_TRUE(status.ok()) << status;
}

void ExpectError(const absl::Status& status, absl::StatusCode code, const std::string& text) {
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(text));
}
void ExpectRefused(ApproximationOptions options, const std::string& text) {
  ExpectError(Approximation::Start(std::move(options)).status(), absl::StatusCode::kInvalidArgument,
              text);
}

// Alphas whose corrected first step a / (1 - (1 - a)^1) rounds away from 1.
TEST(AverageTest, TheFirstExponentialStepIsWhole) {
  for (double alpha : {0.25, 0.33, 0.061, 0.228, 0.404, 0.45, 0.67}) {
    Approximation a = Started(AverageOptions{.kind = AverageKind::kExponential, .step = alpha});
    for (int i = 0; i < 3; ++i) {
      Tell(a, {5});
      const auto answer = a.Answer();
      EXPECT_EQ(answer.estimate, std::vector<double>{5}) << alpha;
      if (i > 0) {
        EXPECT_EQ(answer.variance, std::vector<double>{0}) << alpha;
      }
      EXPECT_TRUE(Approximation::Restore(a.Serialize()).ok()) << alpha;
    }
  }
}

// --- averages ------------------------------------------------------------------------------------

TEST(AverageTest, MeanVarianceAndStandardErrorAreTheSamples) {
  Approximation a = Started(AverageOptions{.dimension = 2});
  EXPECT_TRUE(a.Answer().estimate.empty());
  EXPECT_EQ(a.Answer().step_size, 1);
  Tell(a, {1e9 + 1, 10});
  EXPECT_THAT(a.Answer().estimate, ElementsAre(1e9 + 1, 10));
  EXPECT_TRUE(a.Answer().variance.empty()) << "one observation has no variance";
  Tell(a, {1e9 + 2, 20, 1e9 + 6, 60});
  const ApproximationAnswer answer = a.Answer();
  EXPECT_EQ(answer.step, 2);
  EXPECT_EQ(answer.observations, 3);
  EXPECT_THAT(answer.estimate, ElementsAre(1e9 + 3, 30));
  // Of 1, 2, 6: (4 + 1 + 9) / 2; no digit lost to the large mean.
  EXPECT_NEAR(answer.variance[0], 7, 1e-6);
  EXPECT_NEAR(answer.variance[1], 700, 1e-9);
  EXPECT_NEAR(answer.standard_error[1], std::sqrt(700.0 / 3), 1e-9);
  EXPECT_EQ(answer.step_size, 0.25);
  EXPECT_TRUE(answer.queries.empty());
}

// n Var(mean) = sigma^2, and the reported standard error says so.
TEST(AverageTest, TheMeanReachesItsRate) {
  constexpr int kReplications = 4000, kCount = 400;
  constexpr double kSigma = 3;
  Normals noise(1);
  double squares = 0, reported = 0;
  for (int r = 0; r < kReplications; ++r) {
    Approximation a = Started(AverageOptions{});
    std::vector<double> values(kCount);
    for (double& v : values) v = 5 + kSigma * noise();
    Tell(a, values);
    squares += std::pow(a.Answer().estimate[0] - 5, 2);
    reported += std::pow(a.Answer().standard_error[0], 2);
  }
  const double rate = kSigma * kSigma, statistical = 4 * std::sqrt(2.0 / kReplications);
  EXPECT_NEAR(kCount * squares / kReplications / rate, 1, statistical);
  EXPECT_NEAR(kCount * reported / kReplications / rate, 1, 0.02);
}

TEST(AverageTest, ConstantStepBeginsWithTheFirstAndForgets) {
  Approximation a = Started(AverageOptions{.kind = AverageKind::kConstantStep, .step = 0.25});
  Tell(a, {8});
  EXPECT_THAT(a.Answer().estimate, ElementsAre(8));
  EXPECT_EQ(a.Answer().step_size, 0.25);
  Tell(a, {16, 0});
  EXPECT_THAT(a.Answer().estimate, ElementsAre(7.5));  // 8 -> 10 -> 7.5
  // Weights 9/16, 3/16, 4/16: the variance is the weighted one, made unbiased.
  const double w[] = {9.0 / 16, 3.0 / 16, 4.0 / 16}, x[] = {8, 16, 0};
  double spread = 0, squares = 0;
  for (int i = 0; i < 3; ++i) {
    spread += w[i] * std::pow(x[i] - 7.5, 2);
    squares += w[i] * w[i];
  }
  EXPECT_NEAR(a.Answer().variance[0], spread / (1 - squares), 1e-12);
  EXPECT_NEAR(a.Answer().standard_error[0], std::sqrt(spread / (1 - squares) * squares), 1e-12);
}

TEST(AverageTest, ExponentialAverageWithAndWithoutCorrection) {
  const std::vector<double> xs = {3, -1, 4, 1, -5, 9};
  constexpr double kAlpha = 0.3;
  double sum = 0, weights = 0, biased = 7;
  for (double x : xs) {
    sum = (1 - kAlpha) * sum + kAlpha * x;
    weights = (1 - kAlpha) * weights + kAlpha;
    biased = (1 - kAlpha) * biased + kAlpha * x;
  }
  AverageOptions options{.kind = AverageKind::kExponential, .step = kAlpha};
  Approximation corrected = Started(options);
  Tell(corrected, xs);
  EXPECT_NEAR(corrected.Answer().estimate[0], sum / weights, 1e-12);
  EXPECT_EQ(corrected.Answer().variance.size(), 1u);
  options.bias_correction = false;
  options.initial = 7;
  Approximation plain = Started(options);
  Tell(plain, xs);
  EXPECT_NEAR(plain.Answer().estimate[0], biased, 1e-12);
  EXPECT_TRUE(plain.Answer().variance.empty() && plain.Answer().standard_error.empty());
  options.step = 1;  // no memory at all
  options.bias_correction = true;
  Approximation last = Started(options);
  Tell(last, xs);
  EXPECT_THAT(last.Answer().estimate, ElementsAre(9));
  EXPECT_TRUE(last.Answer().variance.empty());
}

// --- quantiles -----------------------------------------------------------------------------------

TEST(QuantileTest, ExactAtFirst) {
  Approximation a = Started(QuantileOptions{{0.25, 0.5, 1 - 1.0 / 16}});
  std::vector<double> values;
  for (int i = 0; i < 33; ++i) values.push_back((i * 7) % 33);  // 0..32, shuffled
  Tell(a, values);
  EXPECT_THAT(a.Answer().estimate, ElementsAre(8, 16, 30));
  EXPECT_TRUE(a.Answer().standard_error.empty()) << "still exact: 160 are wanted first";
  EXPECT_EQ(a.Answer().observations, 33);
}

// n Var(q) = p (1 - p) / f^2, the rate of the sample quantile, with the standard error to match.
TEST(QuantileTest, ReachesTheRateOfTheSampleQuantile) {
  constexpr int kReplications = 300, kCount = 10000;
  const std::vector<double> probabilities = {0.05, 0.5, 0.9, 0.99};
  Normals noise(2);
  std::vector<double> squares(4), reported(4), exact(4), density(4);
  for (int i = 0; i < 4; ++i) {  // exponential with mean 2
    exact[i] = -2 * std::log1p(-probabilities[i]);
    density[i] = (1 - probabilities[i]) / 2;
  }
  for (int r = 0; r < kReplications; ++r) {
    Approximation a = Started(QuantileOptions{probabilities});
    std::vector<double> values(kCount);
    for (double& v : values) v = std::pow(noise(), 2) + std::pow(noise(), 2);
    Tell(a, values);
    const ApproximationAnswer answer = a.Answer();
    EXPECT_TRUE(std::is_sorted(answer.estimate.begin(), answer.estimate.end()));
    for (int i = 0; i < 4; ++i) {
      squares[i] += std::pow(answer.estimate[i] - exact[i], 2) / kReplications;
      reported[i] += answer.standard_error[i] / kReplications;
    }
  }
  for (int i = 0; i < 4; ++i) {
    const double p = probabilities[i];
    const double theory = std::sqrt(p * (1 - p) / kCount) / density[i];
    // Within 4 statistical errors of the theory, and 15% for the steps before the density is known.
    EXPECT_NEAR(std::sqrt(squares[i]) / theory, 1, 4 / std::sqrt(2.0 * kReplications) + 0.15) << p;
    EXPECT_NEAR(reported[i] / theory, 1, 0.1) << p;
  }
}

TEST(QuantileTest, NeverCrossesAndSurvivesConstants) {
  std::vector<double> probabilities;
  for (int i = 1; i < 100; ++i) probabilities.push_back(i / 100.0);
  Approximation a = Started(QuantileOptions{probabilities});
  Normals noise(3);
  for (int step = 0; step < 200; ++step) {
    std::vector<double> values(50, 1.5);
    if (step > 30) {
      for (double& v : values) v = step % 3 == 0 ? 0 : noise() * 1e3;
    }
    Tell(a, values);
    const std::vector<double> q = a.Answer().estimate;
    ASSERT_TRUE(std::is_sorted(q.begin(), q.end())) << "step " << step;
  }
}

// --- root finding --------------------------------------------------------------------------------

constexpr double kSlope = 2, kRoot = 1.5;

// Robbins-Monro on h(x) = slope (x - root) + sigma noise.
ApproximationAnswer FindRoot(const IterationOptions& options, int steps, double sigma,
                             Normals& noise) {
  Approximation a = Started(options);
  for (int k = 0; k < steps; ++k) {
    const double x = a.Answer().queries[0][0];
    Tell(a, {kSlope * (x - kRoot) + sigma * noise()});
  }
  return a.Answer();
}

// k E|x - root|^2 -> a^2 sigma^2 / (2 a h' - 1) for steps a/k (Chung 1954).
TEST(RobbinsMonroTest, ReachesItsRate) {
  constexpr int kReplications = 1500, kSteps = 1500;
  constexpr double kSigma = 0.7;
  for (double scale : {0.4, 1 / kSlope, 1.0}) {
    IterationOptions options{.start = {kRoot + 0.3}, .step = {.scale = scale}};
    Normals noise(4);
    double squares = 0;
    for (int r = 0; r < kReplications; ++r) {
      squares += std::pow(FindRoot(options, kSteps, kSigma, noise).estimate[0] - kRoot, 2);
    }
    const double theory = scale * scale * kSigma * kSigma / (2 * scale * kSlope - 1);
    EXPECT_NEAR(kSteps * squares / kReplications / theory, 1, 4 * std::sqrt(2.0 / kReplications))
        << "scale " << scale;
  }
}

// The average reaches the optimum, sigma^2 / h'^2, whatever the scale; the last iterate does not.
TEST(RobbinsMonroTest, PolyakAveragingReachesTheOptimalRate) {
  constexpr int kReplications = 600, kSteps = 6000;
  constexpr double kSigma = 0.7, kOptimum = kSigma * kSigma / (kSlope * kSlope);
  for (double scale : {0.5, 1.0}) {
    IterationOptions options{.start = {kRoot},
                             .step = {.scale = scale, .offset = 0, .exponent = 2.0 / 3},
                             .average = true};
    Normals noise(5);
    double averaged = 0, last = 0, reported = 0;
    for (int r = 0; r < kReplications; ++r) {
      const ApproximationAnswer answer = FindRoot(options, kSteps, kSigma, noise);
      averaged += std::pow(answer.average[0] - kRoot, 2) / kReplications;
      last += std::pow(answer.estimate[0] - kRoot, 2) / kReplications;
      reported += std::pow(answer.standard_error[0], 2) / kReplications;
    }
    EXPECT_NEAR(kSteps * averaged / kOptimum, 1, 4 * std::sqrt(2.0 / kReplications) + 0.05);
    EXPECT_GT(last, 3 * averaged);
    EXPECT_NEAR(reported / averaged, 1, 0.3) << "batch means";
  }
}

TEST(RobbinsMonroTest, TakesTheDocumentedSteps) {
  IterationOptions options{.start = {1, -8},
                           .lower = {-3, -3},
                           .upper = {2, 3},
                           .step = {.scale = 2, .offset = 3, .exponent = 0.5}};
  Approximation a = Started(options);
  EXPECT_THAT(a.Answer().estimate, ElementsAre(1, -3)) << "the start is projected";
  EXPECT_EQ(a.Answer().step_size, 1);  // 2 / sqrt(1 + 3)
  ASSERT_EQ(a.Answer().queries.size(), 1u);
  EXPECT_THAT(a.Answer().queries[0], ElementsAre(1, -3));
  Tell(a, {0.5, -10});
  EXPECT_THAT(a.Answer().estimate, ElementsAre(0.5, 3)) << "and so is every iterate";
  EXPECT_EQ(a.Answer().step_size, 2 / std::sqrt(5.0));
  EXPECT_TRUE(a.Answer().average.empty() && a.Answer().standard_error.empty());
}

TEST(RobbinsMonroTest, TheAverageBeginsWhereItIsToldTo) {
  IterationOptions options{.start = {0},
                           .step = {.scale = 1, .offset = 0, .exponent = 0},
                           .average = true,
                           .average_after = 2};
  Approximation a = Started(options);
  for (double h : {-100.0, 90.0}) Tell(a, {h});
  EXPECT_TRUE(a.Answer().average.empty());
  for (double h : {4.0, -2.0}) Tell(a, {h});  // iterates 6 and 8
  EXPECT_THAT(a.Answer().average, ElementsAre(7));
}

// --- minimisation --------------------------------------------------------------------------------

// f(x) = sum of i-weighted squares around 1, with a cubic term so that differences have a bias.
double Bowl(const std::vector<double>& x) {
  double f = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double d = x[i] - 1;
    f += (0.5 + 0.25 * static_cast<double>(i)) * d * d + 0.3 * d * d * d * (d > -0.5 && d < 0.5);
  }
  return f;
}

double SquaredDistance(const std::vector<double>& x) {
  double sum = 0;
  for (double v : x) sum += (v - 1) * (v - 1);
  return sum;
}

// Mean squared error after `few` and after `many` steps: the exponent of the decay between them.
double DecayExponent(const IterationOptions& options, int few, int many, double sigma,
                     int replications) {
  double at_few = 0, at_many = 0;
  Normals noise(6);
  for (int r = 0; r < replications; ++r) {
    IterationOptions seeded = options;
    seeded.seed = r;
    Approximation a = Started(seeded);
    for (int k = 0; k < many; ++k) {
      const ApproximationAnswer answer = a.Answer();
      if (k == few) at_few += SquaredDistance(answer.estimate);
      std::vector<double> values;
      for (const auto& query : answer.queries) values.push_back(Bowl(query) + sigma * noise());
      Tell(a, values);
    }
    at_many += SquaredDistance(a.Answer().estimate);
  }
  return std::log(at_many / at_few) / std::log(static_cast<double>(many) / few);
}

// With steps a/k and differences c/k^(1/6) the squared error falls as k^(-2/3) (Fabian 1967).
TEST(MinimisationTest, KieferWolfowitzAndSpsaReachTheirRate) {
  IterationOptions options{.kind = IterationKind::kKieferWolfowitz,
                           .start = {1.2, 0.9},
                           .step = {.scale = 2, .offset = 5, .exponent = 1},
                           .difference = {.scale = 0.4, .offset = 0, .exponent = 1.0 / 6}};
  EXPECT_NEAR(DecayExponent(options, 200, 12800, 0.1, 60), -2.0 / 3, 0.12);
  options.kind = IterationKind::kSpsa;
  EXPECT_NEAR(DecayExponent(options, 200, 12800, 0.1, 60), -2.0 / 3, 0.12);
  // Spall's practical gains: k^-(0.602 - 2 x 0.101) = k^-0.4.
  options.step = {.scale = 0.5, .offset = 10, .exponent = 0.602};
  options.difference = {.scale = 0.3, .offset = 0, .exponent = 0.101};
  EXPECT_NEAR(DecayExponent(options, 200, 12800, 0.1, 60), -0.4, 0.12);
}

TEST(MinimisationTest, KieferWolfowitzTakesTheDocumentedStep) {
  IterationOptions options{.kind = IterationKind::kKieferWolfowitz,
                           .start = {1, 2},
                           .upper = {},
                           .step = {.scale = 0.5, .offset = 0, .exponent = 1},
                           .difference = {.scale = 0.5, .offset = 3, .exponent = 0.5}};
  Approximation a = Started(options);
  const ApproximationAnswer answer = a.Answer();
  EXPECT_EQ(answer.difference, 0.25);  // 0.5 / sqrt(1 + 3)
  EXPECT_THAT(answer.queries, ElementsAre(ElementsAre(1.25, 2), ElementsAre(0.75, 2),
                                          ElementsAre(1, 2.25), ElementsAre(1, 1.75)));
  Tell(a, {3, 1, 5, 6});  // slopes 4 and -2
  EXPECT_THAT(a.Answer().estimate, ElementsAre(1 - 0.5 * 4, 2 + 0.5 * 2));
}

TEST(MinimisationTest, QueriesStayInTheBox) {
  IterationOptions options{.kind = IterationKind::kKieferWolfowitz,
                           .start = {0, 1, 5},
                           .lower = {0, 0, 5},
                           .upper = {4, 1, 5},
                           .step = {.scale = 0.125, .offset = 0, .exponent = 0},
                           .difference = {.scale = 0.5, .offset = 0, .exponent = 0}};
  Approximation a = Started(options);
  EXPECT_THAT(a.Answer().queries,
              ElementsAre(ElementsAre(0.5, 1, 5), ElementsAre(0, 1, 5), ElementsAre(0, 1, 5),
                          ElementsAre(0, 0.5, 5), ElementsAre(0, 1, 5), ElementsAre(0, 1, 5)));
  // One-sided where the box cuts: slopes -2 and 4 over half the distance; the third cannot move.
  Tell(a, {1, 2, 3, 1, 8, 9});
  EXPECT_THAT(a.Answer().estimate, ElementsAre(0.25, 0.5, 5));
  options.kind = IterationKind::kSpsa;
  Approximation spsa = Started(options);
  for (const auto& query : spsa.Answer().queries) {
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_GE(query[i], options.lower[i]);
      EXPECT_LE(query[i], options.upper[i]);
    }
  }
}

TEST(MinimisationTest, SpsaDrawsItsSignsFromTheSeed) {
  IterationOptions options{.kind = IterationKind::kSpsa,
                           .start = std::vector<double>(1000, 0),
                           .step = {.scale = 1, .offset = 0, .exponent = 0},
                           .difference = {.scale = 1, .offset = 0, .exponent = 0},
                           .seed = 9};
  Approximation a = Started(options), again = Started(options);
  options.seed = 10;
  Approximation other = Started(options);
  const std::vector<double> plus = a.Answer().queries[0];
  EXPECT_EQ(plus, again.Answer().queries[0]);
  EXPECT_NE(plus, other.Answer().queries[0]);
  double sum = 0;
  for (double sign : plus) {
    EXPECT_EQ(std::abs(sign), 1);
    sum += sign;
  }
  EXPECT_LT(std::abs(sum), 4 * std::sqrt(1000)) << "as many of either";
  Tell(a, {3, 1});  // slope 2 x sign / 2
  for (size_t i = 0; i < plus.size(); ++i) EXPECT_EQ(a.Answer().estimate[i], -plus[i]);
  std::vector<double> step = a.Answer().queries[0];
  for (size_t i = 0; i < plus.size(); ++i) step[i] -= a.Answer().estimate[i];
  EXPECT_NE(step, plus) << "other signs at every step";
}

TEST(GradientDescentTest, FollowsPyTorchsFormulas) {
  IterationOptions options{.kind = IterationKind::kGradient,
                           .start = {1},
                           .step = {.scale = 0.1, .offset = 0, .exponent = 0}};
  Approximation plain = Started(options);
  options.rule = DescentRule::kMomentum;
  options.momentum = 0.5;
  Approximation momentum = Started(options);
  options.rule = DescentRule::kAdam;
  options.beta1 = 0.8;
  options.beta2 = 0.9;
  options.epsilon = 0.01;
  Approximation adam = Started(options);
  double x = 1, y = 1, velocity = 0, z = 1, m = 0, v = 0;
  int t = 0;
  for (double g : {2.0, -1.0, 0.5}) {
    ++t;
    for (Approximation* a : {&plain, &momentum, &adam}) Tell(*a, {g});
    x -= 0.1 * g;
    velocity = 0.5 * velocity + g;
    y -= 0.1 * velocity;
    m = 0.8 * m + 0.2 * g;
    v = 0.9 * v + 0.1 * g * g;
    z -= 0.1 * (m / (1 - std::pow(0.8, t))) / (std::sqrt(v / (1 - std::pow(0.9, t))) + 0.01);
    EXPECT_NEAR(plain.Answer().estimate[0], x, 1e-14);
    EXPECT_NEAR(momentum.Answer().estimate[0], y, 1e-14);
    EXPECT_NEAR(adam.Answer().estimate[0], z, 1e-14);
  }
}

// --- all methods: resumption, repeats, refusals
// ------------------------------------------------------

std::vector<ApproximationOptions> AllMethods() {
  const StepLaw slow{.scale = 0.3, .offset = 1, .exponent = 0.7};
  IterationOptions root{.start = {3, -2}, .step = slow, .average = true, .average_after = 3};
  IterationOptions kiefer = root, spsa = root, momentum = root, adam = root;
  kiefer.kind = IterationKind::kKieferWolfowitz;
  kiefer.lower = {-5, -5};
  kiefer.upper = {5, 5};
  spsa.kind = IterationKind::kSpsa;
  spsa.seed = 4;
  momentum.kind = adam.kind = IterationKind::kGradient;
  momentum.rule = DescentRule::kMomentum;
  adam.rule = DescentRule::kAdam;
  return {AverageOptions{},
          AverageOptions{.kind = AverageKind::kConstantStep, .dimension = 2},
          AverageOptions{.kind = AverageKind::kExponential, .bias_correction = false, .initial = 1},
          QuantileOptions{{0.1, 0.5, 0.75}},
          root,
          kiefer,
          spsa,
          momentum,
          adam};
}

std::vector<double> ValuesFor(const ApproximationAnswer& answer,
                              const ApproximationOptions& options, Normals& noise) {
  std::vector<double> values;
  const auto* iteration = std::get_if<IterationOptions>(&options);
  if (iteration == nullptr) {
    for (int i = 0; i < 10; ++i) values.push_back(noise());
  } else if (answer.queries.size() > 1) {
    for (const auto& q : answer.queries) values.push_back(Bowl(q) + 0.1 * noise());
  } else {
    for (double x : answer.queries[0]) values.push_back(x - 1 + 0.1 * noise());
  }
  return values;
}

void ExpectSame(const ApproximationAnswer& a, const ApproximationAnswer& b) {
  EXPECT_EQ(a.step, b.step);
  EXPECT_EQ(a.observations, b.observations);
  EXPECT_EQ(a.queries, b.queries);
  EXPECT_EQ(a.estimate, b.estimate);
  EXPECT_EQ(a.average, b.average);
  EXPECT_EQ(a.variance, b.variance);
  EXPECT_EQ(a.standard_error, b.standard_error);
  EXPECT_EQ(a.step_size, b.step_size);
  EXPECT_EQ(a.difference, b.difference);
}

TEST(ResumeTest, ATokenContinuesWithTheSameBits) {
  for (const ApproximationOptions& options : AllMethods()) {
    Normals noise(8);
    Approximation whole = Started(options), broken = Started(options);
    for (int k = 0; k < 200; ++k) {
      const std::vector<double> values = ValuesFor(whole.Answer(), options, noise);
      Tell(whole, values);
      if (k % 7 == 3) {
        auto restored = Approximation::Restore(broken.Serialize());
        ASSERT_TRUE(restored.ok()) << restored.status();
        EXPECT_EQ(restored->Serialize(), broken.Serialize());
        broken = *std::move(restored);
      }
      Tell(broken, values);
      ExpectSame(whole.Answer(), broken.Answer());
    }
    EXPECT_EQ(whole.Serialize(), broken.Serialize());
    if (const auto* i = std::get_if<IterationOptions>(&options); i != nullptr && i->average) {
      EXPECT_FALSE(whole.Answer().average.empty());
    }
  }
}

TEST(ResumeTest, ObservationsApplyExactlyOnce) {
  for (const ApproximationOptions& options : AllMethods()) {
    Normals noise(9);
    Approximation a = Started(options);
    std::vector<double> first = ValuesFor(a.Answer(), options, noise);
    Tell(a, first);
    const std::vector<double> values = ValuesFor(a.Answer(), options, noise);
    Tell(a, values);
    const std::string before = a.Serialize();
    EXPECT_TRUE(a.Observe(1, values).ok()) << "a repeat of the last";
    EXPECT_EQ(a.Serialize(), before);
    std::vector<double> others = values;
    others[0] += 1;
    ExpectError(a.Observe(1, others), absl::StatusCode::kAborted, "with other values");
    ExpectError(a.Observe(0, first), absl::StatusCode::kFailedPrecondition,
                "answers step 0, but the approximation is at step 2");
    ExpectError(a.Observe(3, values), absl::StatusCode::kFailedPrecondition, "step 3");
    ExpectError(a.Observe(-1, values), absl::StatusCode::kFailedPrecondition, "step -1");
    EXPECT_EQ(a.Serialize(), before);
    // The repeat is known from a token too.
    auto restored = Approximation::Restore(before);
    ASSERT_TRUE(restored.ok());
    EXPECT_TRUE(restored->Observe(1, values).ok());
    ExpectError(restored->Observe(1, others), absl::StatusCode::kAborted, "with other values");
  }
}

TEST(ResumeTest, BadObservationsLeaveTheStateAlone) {
  for (const ApproximationOptions& options : AllMethods()) {
    Normals noise(10);
    Approximation a = Started(options);
    Tell(a, ValuesFor(a.Answer(), options, noise));
    const std::string before = a.Serialize();
    std::vector<double> values = ValuesFor(a.Answer(), options, noise);
    for (double bad : {NAN, INFINITY, -INFINITY}) {
      values.back() = bad;
      ExpectError(a.Observe(1, values), absl::StatusCode::kInvalidArgument,
                  StrCat("observation[", values.size() - 1, "] is "));
    }
    ExpectError(a.Observe(1, {}), absl::StatusCode::kInvalidArgument, "values");
    ExpectError(a.Observe(1, std::vector<double>(kMaxObservationValues + 1)),
                absl::StatusCode::kInvalidArgument, "at most 1048576");
    EXPECT_EQ(a.Serialize(), before);
  }
  Approximation pairs = Started(AverageOptions{.dimension = 2});
  ExpectError(pairs.Observe(0, std::vector<double>(3)), absl::StatusCode::kInvalidArgument,
              "3 values, expected a positive multiple of the dimension 2");
  Approximation root = Started(IterationOptions{.start = {1, 2}});
  ExpectError(root.Observe(0, std::vector<double>(4)), absl::StatusCode::kInvalidArgument,
              "4 values, expected 2");
  Approximation kiefer =
      Started(IterationOptions{.kind = IterationKind::kKieferWolfowitz, .start = {1, 2}});
  ExpectError(kiefer.Observe(0, std::vector<double>(2)), absl::StatusCode::kInvalidArgument,
              "2 values, expected 4");
  Approximation far = Started(AverageOptions{});
  Tell(far, {-1.7e308});
  ExpectError(far.Observe(1, std::vector<double>{1.7e308}), absl::StatusCode::kOutOfRange,
              "leaves the range of double");
  EXPECT_THAT(far.Answer().estimate, ElementsAre(-1.7e308));
}

TEST(ResumeTest, DamagedAndForeignTokensAreRefused) {
  for (const ApproximationOptions& options : AllMethods()) {
    Normals noise(11);
    Approximation a = Started(options);
    for (int k = 0; k < 30; ++k) Tell(a, ValuesFor(a.Answer(), options, noise));
    const std::string token = a.Serialize();
    for (size_t i = 0; i < token.size(); ++i) {
      std::string damaged = token;
      damaged[i] = static_cast<char>(damaged[i] ^ 0x10);
      EXPECT_FALSE(Approximation::Restore(damaged).ok()) << "byte " << i;
      EXPECT_FALSE(Approximation::Restore(token.substr(0, i)).ok()) << "cut at " << i;
    }
  }
  ExpectError(Approximation::Restore("").status(), absl::StatusCode::kInvalidArgument,
              "not one of an approximation");
}

// A token with the right checksum over any other bytes.
std::string Resealed(std::string token) {
  token.resize(token.size() - sizeof(uint64_t));
  const uint64_t checksum = Fnv1a(token);
  token.append(reinterpret_cast<const char*>(&checksum), sizeof(checksum));
  return token;
}

// Whoever writes tokens can make their checksum right: whatever then is accepted must still work.
TEST(ResumeTest, ForgedTokensNeverCrash) {
  int accepted = 0, refused = 0;
  for (const ApproximationOptions& options : AllMethods()) {
    Normals noise(12);
    Approximation a = Started(options);
    for (int k = 0; k < 40; ++k) Tell(a, ValuesFor(a.Answer(), options, noise));
    const std::string token = a.Serialize();
    for (size_t i = 0; i + 8 < token.size(); ++i) {
      for (const int64_t word : {int64_t{-1}, int64_t{0}, int64_t{1}, INT64_MAX, INT64_MIN,
                                 int64_t{1} << 61, int64_t{0x7ff0000000000000}}) {
        std::string forged = token;
        std::memcpy(forged.data() + i, &word, sizeof(word));
        auto restored = Approximation::Restore(Resealed(forged));
        if (!restored.ok()) {
          EXPECT_EQ(restored.status().code(), absl::StatusCode::kInvalidArgument);
          ++refused;
          continue;
        }
        ++accepted;
        const ApproximationAnswer answer = restored->Answer();
        (void)restored->Observe(answer.step, ValuesFor(answer, options, noise));
        EXPECT_FALSE(restored->Serialize().empty());
      }
    }
  }
  EXPECT_GT(accepted, 100) << "some numbers may have any value";
  EXPECT_GT(refused, 1000);
}

TEST(ResumeTest, AForgedTokenIsRefusedByName) {
  Approximation a = Started(AverageOptions{});
  Tell(a, {1, 2, 3});
  std::string token = a.Serialize();
  const auto with = [&](size_t at, auto value) {
    std::string forged = token;
    std::memcpy(forged.data() + at, &value, sizeof(value));
    return Approximation::Restore(Resealed(forged)).status();
  };
  ExpectError(with(6, uint16_t{2}), absl::StatusCode::kInvalidArgument, "version 2");
  ExpectError(with(8, uint8_t{9}), absl::StatusCode::kInvalidArgument, "no known method");
  ExpectError(with(9, int64_t{1} << 60), absl::StatusCode::kInvalidArgument,
              "no approximation can have");
  ExpectError(with(26, int64_t{0}), absl::StatusCode::kInvalidArgument, "the dimension is 0");
  ExpectError(Approximation::Restore(Resealed(token + "x")).status(),
              absl::StatusCode::kInvalidArgument, "not as long as its contents");
}

TEST(OptionsTest, EveryBadOptionIsNamed) {
  ExpectRefused(AverageOptions{.dimension = 0}, "the dimension is 0");
  ExpectRefused(AverageOptions{.dimension = kMaxApproximationDimension + 1},
                "expected 1 to 262144");
  for (double step : {0.0, -1.0, 1.5, double{NAN}}) {
    ExpectRefused(AverageOptions{.kind = AverageKind::kConstantStep, .step = step}, "step is");
    ExpectRefused(AverageOptions{.kind = AverageKind::kExponential, .step = step}, "step is");
  }
  ExpectRefused(AverageOptions{.initial = INFINITY}, "initial is inf");
  ExpectRefused(QuantileOptions{}, "0 probabilities");
  ExpectRefused(QuantileOptions{std::vector<double>(257, 0.5)}, "257 probabilities");
  ExpectRefused(QuantileOptions{{0.5, 1}}, "probabilities[1] is 1");
  ExpectRefused(QuantileOptions{{NAN}}, "probabilities[0] is nan");
  ExpectRefused(QuantileOptions{{0.5, 0.5}}, "not above the one before");
  const IterationOptions good{.start = {1, 2}};
  const auto refused = [&](const std::function<void(IterationOptions&)>& change,
                           const std::string& text) {
    IterationOptions options = good;
    change(options);
    ExpectRefused(options, text);
  };
  refused([](auto& o) { o.start = {}; }, "the dimension is 0");
  refused([](auto& o) { o.start = {1, NAN}; }, "start[1] is nan");
  refused([](auto& o) { o.start.resize(kMaxApproximationDimension + 1); }, "262144");
  refused(
      [](auto& o) {
        o.kind = IterationKind::kKieferWolfowitz;
        o.start.resize(kMaxKieferWolfowitzDimension + 1);
      },
      "expected 1 to 512");
  refused([](auto& o) { o.lower = {1, 2}; }, "2 lower and 0 upper bounds for 2 dimensions");
  refused([](auto& o) { o.lower = o.upper = {1, 2, 3}; }, "3 lower and 3 upper");
  refused([](auto& o) { o.lower = {0, 3}, o.upper = {1, 2}; }, "lower[1] is 3, above upper[1], 2");
  refused([](auto& o) { o.lower = {0, 0}, o.upper = {1, INFINITY}; }, "upper[1] is inf");
  for (double bad : {0.0, -1.0, double{INFINITY}, double{NAN}}) {
    refused([&](auto& o) { o.step.scale = bad; }, "step.scale is");
    refused([&](auto& o) { o.difference.scale = bad; }, "difference.scale is");
    refused([&](auto& o) { o.epsilon = bad; }, "epsilon is");
  }
  refused([](auto& o) { o.step.offset = -1; }, "step.offset is -1");
  refused([](auto& o) { o.step.exponent = 1.1; }, "step.exponent is 1.1");
  refused([](auto& o) { o.difference.exponent = -0.1; }, "difference.exponent is -0.1");
  refused([](auto& o) { o.average_after = -1; }, "average_after is -1");
  refused([](auto& o) { o.momentum = 1; }, "momentum is 1");
  refused([](auto& o) { o.beta1 = -0.1; }, "beta1 is -0.1");
  refused([](auto& o) { o.beta2 = 1; }, "beta2 is 1");
}

}  // namespace
}  // namespace tandem

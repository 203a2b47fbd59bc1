// Distributions: densities against goldens, draws against distribution functions at 1e6 draws with
// fixed seeds, gradients against differences of the same noise.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numbers>

#include "engine/sample/sample_distribution.h"
#include "tests/engine/distribution_goldens.h"
#include "tests/engine/special_functions.h"

namespace tandem {
namespace {

using testing::ChiSquareScore;
using ::testing::HasSubstr;
using testing::KolmogorovSmirnov;

constexpr int64_t kMany = 1000000;
constexpr double kKsLimit = 1.95, kChiLimit = 3.1;

Tensor Make(DType dtype, const Shape& shape, const std::vector<double>& values) {
  return CastTensor(Tensor::Of<double>(shape, std::span<const double>(values)), dtype);
}

std::vector<double> Doubles(const Tensor& tensor) {
  std::vector<double> values;
  for (int64_t i = 0; i < tensor.num_elements(); ++i) values.push_back(ElementAsDouble(tensor, i));
  return values;
}

using Parameters = std::vector<GoldenParameter>;

DrawOptions Options(const DistributionOptions& distribution, const Parameters& parameters,
                    DType dtype, int64_t draws = 1, uint64_t seed = 7) {
  DrawOptions options;
  options.distribution = distribution;
  for (const GoldenParameter& p : parameters) {
    options.parameters.emplace_back(p.name, Make(dtype, p.shape, p.values));
  }
  options.draws = draws;
  options.seed = seed;
  return options;
}

DrawResult Sample(const DrawOptions& options) {
  PlanCache plans;
  absl::StatusOr<DrawResult> result = SampleDistribution(options, plans);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? *std::move(result) : DrawResult();
}

std::vector<double> Draw(Family family, const Parameters& parameters, int64_t draws,
                         DType dtype = DType::kF32, uint64_t seed = 7) {
  const DrawResult result = Sample(Options({.family = family}, parameters, dtype, draws, seed));
  return result.draws ? Doubles(*result.draws) : std::vector<double>();
}

Parameters Scalars(const std::vector<std::pair<std::string, double>>& named) {
  Parameters parameters;
  for (const auto& [name, value] : named) parameters.push_back({name, {}, {value}});
  return parameters;
}

// --- densities
// --------------------------------------------------------------------------------------

TEST(Distribution, LogDensitiesAndEntropiesAreTheClosedForms) {
  for (const DistributionGolden& golden : DistributionGoldens()) {
    for (DType dtype : {DType::kF64, DType::kF32}) {
      DrawOptions options = Options(golden.options, golden.parameters, dtype);
      const absl::StatusOr<Distribution> d = Distribution::Create(options.distribution, [&] {
        std::vector<std::pair<std::string, TensorType>> types;
        for (const auto& [name, tensor] : options.parameters) {
          types.emplace_back(name, tensor.type());
        }
        return types;
      }());
      ASSERT_TRUE(d.ok()) << d.status();
      options.values = Make(d->draw_type({}).dtype, golden.shape, golden.values);
      options.log_density = true;
      options.entropy = !golden.entropies.empty();
      const DrawResult result = Sample(options);
      const std::string where = StrCat(d->family_name(), " ", DTypeName(dtype));
      // f32 rounds the parameters and the values before anything is computed.
      const double tolerance = dtype == DType::kF64 ? 1e-12 : 1e-6;
      ASSERT_TRUE(result.log_density) << where;
      const std::vector<double> got = Doubles(*result.log_density);
      ASSERT_EQ(got.size(), golden.log_densities.size()) << where;
      for (size_t i = 0; i < got.size(); ++i) {
        const double want = golden.log_densities[i];
        EXPECT_NEAR(got[i], want, tolerance * std::max(1.0, std::abs(want))) << where << " " << i;
      }
      if (golden.entropies.empty()) continue;
      const std::vector<double> entropy = Doubles(*result.entropy);
      ASSERT_EQ(entropy.size(), golden.entropies.size()) << where;
      for (size_t i = 0; i < entropy.size(); ++i) {
        EXPECT_NEAR(entropy[i], golden.entropies[i], tolerance * 4) << where << " " << i;
      }
    }
  }
}

TEST(Distribution, OutsideTheSupportTheLogDensityIsMinusInfinity) {
  const auto density = [](Family family, const Parameters& parameters, double value) {
    DrawOptions options = Options({.family = family}, parameters, DType::kF64);
    options.values = family == Family::kCategorical ? Make(DType::kI64, {}, {value})
                                                    : Make(DType::kF64, {}, {value});
    options.log_density = true;
    return Doubles(*Sample(options).log_density)[0];
  };
  const Parameters positive = Scalars({{"concentration", 2}, {"rate", 1}});
  const Parameters unit = Scalars({{"concentration1", 2}, {"concentration0", 3}});
  const Parameters classes = {{"logits", {3}, {0, 1, 2}}};
  EXPECT_EQ(density(Family::kGamma, positive, -1), -INFINITY);
  EXPECT_EQ(density(Family::kLogNormal, Scalars({{"loc", 0}, {"scale", 1}}), -1), -INFINITY);
  EXPECT_EQ(density(Family::kBeta, unit, 1.5), -INFINITY);
  EXPECT_EQ(density(Family::kUniform, Scalars({{"low", 0}, {"high", 1}}), 1), -INFINITY);
  EXPECT_EQ(density(Family::kUniform, Scalars({{"low", 0}, {"high", 1}}), 0), 0);
  EXPECT_EQ(density(Family::kExponential, Scalars({{"rate", 1}}), -0.1), -INFINITY);
  EXPECT_EQ(density(Family::kBernoulli, Scalars({{"logits", 0}}), 0.5), -INFINITY);
  EXPECT_EQ(density(Family::kCategorical, classes, 3), -INFINITY);
  EXPECT_EQ(density(Family::kCategorical, classes, -1), -INFINITY);
}

// --- draws
// ------------------------------------------------------------------------------------------

struct Univariate {
  Family family;
  Parameters parameters;
  std::function<double(double)> cdf;
};

std::vector<Univariate> UnivariateCases() {
  const auto scaled = [](double loc, double scale, auto cdf) {
    return [=](double x) { return cdf((x - loc) / scale); };
  };
  const Parameters loc_scale = Scalars({{"loc", -1.5}, {"scale", 2.5}});
  const auto logistic = [](double z) { return 1 / (1 + std::exp(-z)); };
  const auto laplace = [](double z) { return z < 0 ? 0.5 * std::exp(z) : 1 - 0.5 * std::exp(-z); };
  const auto gumbel = [](double z) { return std::exp(-std::exp(-z)); };
  std::vector<Univariate> cases = {
      {Family::kNormal, loc_scale, scaled(-1.5, 2.5, testing::NormalCdf)},
      {Family::kLogNormal, Scalars({{"loc", 0.5}, {"scale", 0.8}}),
       [](double x) { return testing::NormalCdf((std::log(x) - 0.5) / 0.8); }},
      {Family::kUniform, Scalars({{"low", -3}, {"high", 5}}), [](double x) { return (x + 3) / 8; }},
      {Family::kExponential, Scalars({{"rate", 0.3}}),
       [](double x) { return -std::expm1(-0.3 * x); }},
      {Family::kLaplace, loc_scale, scaled(-1.5, 2.5, laplace)},
      {Family::kLogistic, loc_scale, scaled(-1.5, 2.5, logistic)},
      {Family::kGumbel, loc_scale, scaled(-1.5, 2.5, gumbel)},
      {Family::kStudentT, Scalars({{"df", 3.5}, {"loc", 1}, {"scale", 2}}),
       [](double x) { return testing::StudentTCdf(3.5, (x - 1) / 2); }},
  };
  for (double c : {0.2, 1.0, 7.5}) {
    cases.push_back({Family::kGamma, Scalars({{"concentration", c}, {"rate", 2}}),
                     [c](double x) { return testing::GammaCdf(c, 2 * x); }});
  }
  cases.push_back({Family::kBeta, Scalars({{"concentration1", 0.5}, {"concentration0", 2.5}}),
                   [](double x) { return testing::BetaCdf(0.5, 2.5, x); }});
  return cases;
}

TEST(Distribution, ContinuousDrawsPassKolmogorovSmirnov) {
  for (const Univariate& c : UnivariateCases()) {
    for (DType dtype : {DType::kF32, DType::kF64}) {
      const std::vector<double> draws = Draw(c.family, c.parameters, kMany, dtype);
      ASSERT_EQ(static_cast<int64_t>(draws.size()), kMany);
      EXPECT_LT(KolmogorovSmirnov(draws, c.cdf), kKsLimit)
          << static_cast<int>(c.family) << " " << DTypeName(dtype);
    }
  }
}

TEST(Distribution, MomentsAreTheFamilies) {
  struct Case {
    Family family;
    Parameters parameters;
    double mean, variance;
  };
  const double e = std::numbers::egamma, pi2 = std::numbers::pi * std::numbers::pi;
  const std::vector<Case> cases = {
      {Family::kNormal, Scalars({{"loc", 3}, {"scale", 2}}), 3, 4},
      {Family::kUniform, Scalars({{"low", -1}, {"high", 3}}), 1, 16.0 / 12},
      {Family::kExponential, Scalars({{"rate", 4}}), 0.25, 1.0 / 16},
      {Family::kLaplace, Scalars({{"loc", -1}, {"scale", 0.5}}), -1, 0.5},
      {Family::kLogistic, Scalars({{"loc", 2}, {"scale", 0.5}}), 2, 0.25 * pi2 / 3},
      {Family::kGumbel, Scalars({{"loc", 1}, {"scale", 2}}), 1 + 2 * e, 4 * pi2 / 6},
      {Family::kGamma, Scalars({{"concentration", 3}, {"rate", 2}}), 1.5, 0.75},
      {Family::kBeta, Scalars({{"concentration1", 2}, {"concentration0", 3}}), 0.4, 0.04},
      {Family::kBernoulli, Scalars({{"probs", 0.3}}), 0.3, 0.21},
      {Family::kStudentT, Scalars({{"df", 9}, {"loc", 1}, {"scale", 1}}), 1, 9.0 / 7}};
  for (const Case& c : cases) {
    const std::vector<double> draws = Draw(c.family, c.parameters, kMany);
    double sum = 0, squares = 0, fourths = 0;
    for (double x : draws) sum += x;
    const double n = kMany, mean = sum / n;
    for (double x : draws) {
      const double d = (x - c.mean) * (x - c.mean);
      squares += d;
      fourths += d * d;
    }
    const double variance = squares / n;
    EXPECT_NEAR(mean, c.mean, 4 * std::sqrt(c.variance / n)) << static_cast<int>(c.family);
    EXPECT_NEAR(variance, c.variance, 4 * std::sqrt((fourths / n - variance * variance) / n))
        << static_cast<int>(c.family);
  }
}

TEST(Distribution, MultivariateNormalHasItsCovariance) {
  const std::vector<double> l = {0.9, 0, 0, 0.4, 1.2, 0, -0.3, 0.5, 0.8};
  const std::vector<double> loc = {1, -2, 3};
  const std::vector<double> draws =
      Draw(Family::kMultivariateNormal, {{"loc", {3}, loc}, {"scale_tril", {3, 3}, l}}, kMany);
  // Whitened coordinates are standard normal and uncorrelated.
  std::vector<double> z[3];
  for (int64_t i = 0; i < kMany; ++i) {
    double u[3];
    for (int r = 0; r < 3; ++r) {
      double v = draws[i * 3 + r] - loc[r];
      for (int c = 0; c < r; ++c) v -= l[r * 3 + c] * u[c];
      u[r] = v / l[r * 3 + r];
      z[r].push_back(u[r]);
    }
  }
  for (int r = 0; r < 3; ++r) {
    EXPECT_LT(KolmogorovSmirnov(z[r], testing::NormalCdf), kKsLimit);
    for (int c = 0; c < r; ++c) {
      double dot = 0;
      for (int64_t i = 0; i < kMany; ++i) dot += z[r][i] * z[c][i];
      EXPECT_NEAR(dot / kMany, 0, 4 / std::sqrt(kMany));
    }
  }
}

TEST(Distribution, ADiagonalScalesEachCoordinate) {
  const std::vector<double> loc = {1, -2}, scale = {0.5, 3};
  const std::vector<double> draws =
      Draw(Family::kMultivariateNormal, {{"loc", {2}, loc}, {"scale_diag", {2}, scale}}, kMany);
  for (int r = 0; r < 2; ++r) {
    std::vector<double> z;
    for (int64_t i = 0; i < kMany; ++i) z.push_back((draws[i * 2 + r] - loc[r]) / scale[r]);
    EXPECT_LT(KolmogorovSmirnov(z, testing::NormalCdf), kKsLimit) << r;
  }
}

TEST(Distribution, AMatrixOfEachBatchElementIsItsOwn) {
  const std::vector<double> l = {1, 0, 0.5, 2, 3, 0, -1, 0.25};
  const DrawResult result =
      Sample(Options({.family = Family::kMultivariateNormal},
                     {{"loc", {2}, {1, 2}}, {"scale_tril", {2, 2, 2}, l}}, DType::kF64, 200000));
  ASSERT_EQ(result.draws->shape(), (Shape{200000, 2, 2}));
  const std::vector<double> draws = Doubles(*result.draws);
  for (int batch = 0; batch < 2; ++batch) {
    const double* m = l.data() + batch * 4;
    const double want[2][2] = {{m[0] * m[0], m[0] * m[2]},
                               {m[0] * m[2], m[2] * m[2] + m[3] * m[3]}};
    for (int r = 0; r < 2; ++r) {
      for (int c = 0; c < 2; ++c) {
        double sum = 0;
        for (int64_t i = 0; i < 200000; ++i) {
          const double* x = draws.data() + (i * 2 + batch) * 2;
          sum += (x[r] - (r + 1)) * (x[c] - (c + 1));
        }
        EXPECT_NEAR(sum / 200000, want[r][c], 0.02 * (want[r][r] + want[c][c]));
      }
    }
  }
}

TEST(Distribution, DirichletMarginalsAreBeta) {
  const std::vector<double> c = {0.4, 1.5, 3};
  const std::vector<double> draws = Draw(Family::kDirichlet, {{"concentration", {3}, c}}, kMany);
  for (int k = 0; k < 3; ++k) {
    std::vector<double> marginal;
    for (int64_t i = 0; i < kMany; ++i) marginal.push_back(draws[i * 3 + k]);
    EXPECT_LT(KolmogorovSmirnov(marginal,
                                [&](double x) { return testing::BetaCdf(c[k], 4.9 - c[k], x); }),
              kKsLimit)
        << k;
  }
}

std::vector<double> Softmax(std::vector<double> logits) {
  double sum = 0;
  for (double& l : logits) sum += l = std::exp(l);
  for (double& l : logits) l /= sum;
  return logits;
}

TEST(Distribution, DiscreteDrawsPassChiSquare) {
  const std::vector<double> logits = {0.5, -1, 2, 0, -3};
  for (DType dtype : {DType::kF32, DType::kF64}) {
    std::vector<double> counts(5), ones(2);
    for (double x : Draw(Family::kCategorical, {{"logits", {5}, logits}}, kMany, dtype)) {
      counts.at(static_cast<size_t>(x)) += 1;
    }
    EXPECT_LT(ChiSquareScore(counts, Softmax(logits)), kChiLimit);
    for (double x : Draw(Family::kBernoulli, Scalars({{"logits", -1.2}}), kMany, dtype)) {
      ones.at(static_cast<size_t>(x)) += 1;
    }
    const double p = 1 / (1 + std::exp(1.2));
    EXPECT_LT(ChiSquareScore(ones, {1 - p, p}), kChiLimit);
  }
}

TEST(Distribution, AClassOfProbabilityZeroIsNeverDrawn) {
  for (double x : Draw(Family::kCategorical, {{"probs", {3}, {0.5, 0, 2}}}, 100000))
    EXPECT_NE(x, 1);
}

TEST(Distribution, TopKIsWithoutReplacementInTheOrderOfPlackettAndLuce) {
  const std::vector<double> logits = {0.5, -1, 1.2, 0};
  const std::vector<double> p = Softmax(logits);
  const DrawResult result = Sample(Options({.family = Family::kGumbelTopK, .k = 2},
                                           {{"logits", {4}, logits}}, DType::kF32, kMany));
  const std::vector<double> draws = Doubles(*result.draws);
  std::map<std::pair<int, int>, double> seen;
  for (int64_t i = 0; i < kMany; ++i) {
    seen[{static_cast<int>(draws[2 * i]), static_cast<int>(draws[2 * i + 1])}] += 1;
  }
  std::vector<double> counts, probabilities;
  for (int a = 0; a < 4; ++a) {
    for (int b = 0; b < 4; ++b) {
      if (a == b) continue;
      counts.push_back(seen[{a, b}]);
      probabilities.push_back(p[a] * p[b] / (1 - p[a]));
    }
  }
  EXPECT_EQ(seen.size(), 12U);
  EXPECT_LT(ChiSquareScore(counts, probabilities), kChiLimit);
}

TEST(Distribution, RelaxedDrawsHaveTheConcreteDistribution) {
  const double t = 0.6, logit = 0.8;
  const auto cdf = [&](double x) {
    return 1 / (1 + std::exp(logit - t * (std::log(x) - std::log1p(-x))));
  };
  const DrawResult one = Sample(Options({.family = Family::kRelaxedBernoulli, .temperature = t},
                                        Scalars({{"logits", logit}}), DType::kF64, kMany));
  EXPECT_LT(KolmogorovSmirnov(Doubles(*one.draws), cdf), kKsLimit);
  // Of two classes, the first's share is a relaxed Bernoulli variable.
  for (DType dtype : {DType::kF64, DType::kF32}) {
    const DrawResult two = Sample(Options({.family = Family::kGumbelSoftmax, .temperature = t},
                                          {{"logits", {2}, {logit, 0}}}, dtype, kMany));
    std::vector<double> first;
    for (int64_t i = 0; i < kMany; ++i) first.push_back(ElementAsDouble(*two.draws, 2 * i));
    EXPECT_LT(KolmogorovSmirnov(first, cdf), kKsLimit);
  }
}

TEST(Distribution, StraightThroughDrawsAreOneHotWithTheSoftGradient) {
  const std::vector<double> logits = {0.5, -1, 2};
  DistributionOptions d{.family = Family::kGumbelSoftmax, .temperature = 0.7};
  DrawOptions options = Options(d, {{"logits", {3}, logits}}, DType::kF64, 4);
  options.draw_cotangents = Make(DType::kF64, {4, 3}, {1, 2, 3, -1, 0, 1, 0.5, 0.2, 0.1, 3, 2, -5});
  const DrawResult soft = Sample(options);
  options.distribution.straight_through = true;
  const DrawResult hard = Sample(options);
  for (int i = 0; i < 4; ++i) {
    int largest = 0;
    double sum = 0;
    for (int k = 0; k < 3; ++k) {
      sum += ElementAsDouble(*hard.draws, i * 3 + k);
      if (ElementAsDouble(*soft.draws, i * 3 + k) > ElementAsDouble(*soft.draws, i * 3 + largest)) {
        largest = k;
      }
    }
    EXPECT_EQ(ElementAsDouble(*hard.draws, i * 3 + largest), 1);
    EXPECT_EQ(sum, 1);
  }
  EXPECT_EQ(Doubles(hard.gradients[0]), Doubles(soft.gradients[0]));
}

TEST(Distribution, TemperaturesThatPrintAlikeAreNotOne) {
  PlanCache plans;
  const auto draws = [&](double temperature) {
    const auto result = SampleDistribution(
        Options({.family = Family::kRelaxedBernoulli, .temperature = temperature},
                Scalars({{"logits", 0.5}}), DType::kF64, 3),
        plans);
    return Doubles(*result->draws);
  };
  EXPECT_NE(draws(0.5), draws(0.50000001));
}

TEST(Distribution, LargeRequestsAreComputedWithoutTheCache) {
  const Parameters p = Scalars({{"loc", 0}, {"scale", 1}});
  std::vector<double> many = Draw(Family::kNormal, p, 300000);
  many.resize(1000);
  EXPECT_EQ(many, Draw(Family::kNormal, p, 1000));
}

TEST(Distribution, TheSeedDecidesAndLongerSequencesBeginWithShorterOnes) {
  const Parameters p = {{"loc", {3}, {0, 1, 2}}, {"scale", {1}, {1}}};
  const std::vector<double> five = Draw(Family::kNormal, p, 5);
  EXPECT_EQ(five, Draw(Family::kNormal, p, 5));
  EXPECT_NE(five, Draw(Family::kNormal, p, 5, DType::kF32, /*seed=*/8));
  std::vector<double> nine = Draw(Family::kNormal, p, 9);
  nine.resize(five.size());
  EXPECT_EQ(nine, five);
}

// --- gradients
// ----------------------------------------------------------------------------------------

std::vector<double> Cotangents(int64_t n) {
  std::vector<double> values;
  for (int64_t i = 0; i < n; ++i) values.push_back(std::sin(1.7 * static_cast<double>(i) + 0.3));
  return values;
}

double Dot(const Tensor& a, const Tensor& b) {
  double sum = 0;
  for (int64_t i = 0; i < a.num_elements(); ++i) {
    sum += ElementAsDouble(a, i) * ElementAsDouble(b, i);
  }
  return sum;
}

// Central differences of `value` in each element of each parameter.
void ExpectGradients(DrawOptions options, const std::vector<Tensor>& gradients,
                     const std::function<double(const DrawOptions&)>& value,
                     const std::string& where) {
  ASSERT_EQ(gradients.size(), options.parameters.size()) << where;
  constexpr double h = 1e-6;
  for (size_t p = 0; p < gradients.size(); ++p) {
    for (int64_t i = 0; i < gradients[p].num_elements(); ++i) {
      double& x = options.parameters[p].second.data<double>()[i];
      if (options.parameters[p].first == "scale_tril" && x == 0) continue;  // stays 0
      const double before = x;
      x = before + h;
      const double above = value(options);
      x = before - h;
      const double below = value(options);
      x = before;
      const double want = (above - below) / (2 * h);
      EXPECT_NEAR(gradients[p].data<double>()[i], want, 1e-6 * std::max(1.0, std::abs(want)))
          << where << " " << options.parameters[p].first << "[" << i << "]";
    }
  }
}

TEST(Distribution, DrawGradientsAreDifferencesOfTheSameNoise) {
  for (const DistributionGolden& golden : DistributionGoldens()) {
    switch (golden.options.family) {
      // Rejection draws jump as the parameters move; their gradient is tested below.
      case Family::kGamma:
      case Family::kBeta:
      case Family::kDirichlet:
      case Family::kStudentT:
      case Family::kBernoulli:
      case Family::kCategorical:
      case Family::kGumbelTopK:
        continue;
      default:
        break;
    }
    DrawOptions options = Options(golden.options, golden.parameters, DType::kF64, 3);
    const Shape shape = Sample(options).draws->shape();
    options.draw_cotangents = Make(DType::kF64, shape, Cotangents(shape.num_elements()));
    const DrawResult result = Sample(options);
    ExpectGradients(
        std::move(options), result.gradients,
        [](const DrawOptions& o) { return Dot(*Sample(o).draws, *o.draw_cotangents); },
        StrCat("family ", static_cast<int>(golden.options.family)));
  }
}

TEST(Distribution, ScoresAreDifferencesOfTheLogDensityAtFixedDraws) {
  for (const DistributionGolden& golden : DistributionGoldens()) {
    DrawOptions options = Options(golden.options, golden.parameters, DType::kF64, 3);
    options.log_density = true;
    const DrawResult drawn = Sample(options);
    const Shape shape = drawn.log_density->shape();
    options.log_density_cotangents = Make(DType::kF64, shape, Cotangents(shape.num_elements()));
    const DrawResult result = Sample(options);
    options.values = drawn.draws->Clone();
    const auto log_density = [](const DrawOptions& o) {
      return Dot(*Sample(o).log_density, *o.log_density_cotangents);
    };
    ExpectGradients(std::move(options), result.gradients, log_density,
                    StrCat("family ", static_cast<int>(golden.options.family)));
  }
}

TEST(Distribution, GammaGradientFollowsTheQuantile) {
  // dz/dc at a fixed quantile: -(dF/dc) / p(z) (Figurnov et al. 2018, equation 6).
  for (double c : {0.3, 1.0, 4.0, 50.0}) {
    DrawOptions options = Options(
        {.family = Family::kGamma},
        {{"concentration", {16}, std::vector<double>(16, c)}, {"rate", {}, {1}}}, DType::kF64, 1);
    options.draw_cotangents = Make(DType::kF64, {1, 16}, std::vector<double>(16, 1));
    const DrawResult result = Sample(options);
    for (int i = 0; i < 16; ++i) {
      const double z = ElementAsDouble(*result.draws, i), h = 1e-5 * c;
      const double slope = (testing::GammaCdf(c + h, z) - testing::GammaCdf(c - h, z)) / (2 * h);
      const double density = std::exp((c - 1) * std::log(z) - z - std::lgamma(c));
      const double want = -slope / density;
      EXPECT_NEAR(ElementAsDouble(result.gradients[0], i), want, 2e-4 * std::abs(want) + 1e-9)
          << c << " " << z;
    }
  }
}

// The mean of the draws' gradients of sum(x^2) against the derivative of E sum(x^2).
void ExpectMeanGradient(Family family, const Parameters& parameters, size_t which,
                        const std::vector<double>& want) {
  const int64_t n = 60000;
  DrawOptions options = Options({.family = family}, parameters, DType::kF64, n);
  const DrawResult drawn = Sample(options);
  std::vector<double> slopes = Doubles(*drawn.draws);
  for (double& x : slopes) x *= 2;
  const Shape shape = drawn.draws->shape();
  options.draw_cotangents = Make(DType::kF64, shape, slopes);
  const DrawResult all = Sample(options);
  // The spread, from twenty blocks.
  constexpr int kBlocks = 20;
  std::vector<std::vector<double>> blocks;
  for (int block = 0; block < kBlocks; ++block) {
    std::vector<double> part(slopes.size(), 0.0);
    const size_t size = slopes.size() / kBlocks;
    std::copy_n(slopes.begin() + static_cast<int64_t>(size * block), size,
                part.begin() + static_cast<int64_t>(size * block));
    options.draw_cotangents = Make(DType::kF64, shape, part);
    blocks.push_back(Doubles(Sample(options).gradients[which]));
  }
  for (size_t i = 0; i < want.size(); ++i) {
    const double mean = ElementAsDouble(all.gradients[which], static_cast<int64_t>(i)) / n;
    double spread = 0;
    for (const auto& block : blocks) {
      const double d = block[i] / (n / kBlocks) - mean;
      spread += d * d / (kBlocks - 1);
    }
    EXPECT_NEAR(mean, want[i], 4 * std::sqrt(spread / kBlocks)) << static_cast<int>(family);
  }
}

TEST(Distribution, GammaFamilyGradientsAreUnbiased) {
  // E x^2 = a (a + 1) / ((a + b)(a + b + 1))
  const auto beta = [](double a, double b) { return a * (a + 1) / ((a + b) * (a + b + 1)); };
  constexpr double h = 1e-5;
  ExpectMeanGradient(Family::kBeta, Scalars({{"concentration1", 0.7}, {"concentration0", 2}}), 0,
                     {(beta(0.7 + h, 2) - beta(0.7 - h, 2)) / (2 * h)});
  ExpectMeanGradient(Family::kBeta, Scalars({{"concentration1", 0.7}, {"concentration0", 2}}), 1,
                     {(beta(0.7, 2 + h) - beta(0.7, 2 - h)) / (2 * h)});
  const auto dirichlet = [](std::vector<double> c) {
    const double total = c[0] + c[1] + c[2];
    double sum = 0;
    for (double a : c) sum += a * (a + 1) / (total * (total + 1));
    return sum;
  };
  std::vector<double> want;
  for (int k = 0; k < 3; ++k) {
    std::vector<double> above = {0.5, 1.5, 3}, below = above;
    above[k] += h;
    below[k] -= h;
    want.push_back((dirichlet(above) - dirichlet(below)) / (2 * h));
  }
  ExpectMeanGradient(Family::kDirichlet, {{"concentration", {3}, {0.5, 1.5, 3}}}, 0, want);
  // E x^2 = df / (df - 2)
  ExpectMeanGradient(Family::kStudentT, Scalars({{"df", 12}, {"loc", 0}, {"scale", 1}}), 0,
                     {-2.0 / 100});
}

// --- errors
// -------------------------------------------------------------------------------------------

TEST(Distribution, BadRequestsSayWhatWasWrong) {
  const auto error = [](const DrawOptions& options) {
    PlanCache plans;
    return std::string(SampleDistribution(options, plans).status().message());
  };
  const auto normal = [](const Parameters& p) {
    return Options({.family = Family::kNormal}, p, DType::kF32);
  };
  EXPECT_THAT(error(normal(Scalars({{"loc", 0}}))), HasSubstr("are loc, scale; got loc"));
  EXPECT_THAT(error(normal(Scalars({{"loc", 0}, {"scale", 0}}))),
              HasSubstr("scale[0] is 0, must be above 0"));
  EXPECT_THAT(error(normal(Scalars({{"loc", NAN}, {"scale", 1}}))), HasSubstr("must be finite"));
  EXPECT_THAT(error(normal({{"loc", {2}, {0, 0}}, {"scale", {3}, {1, 1, 1}}})),
              HasSubstr("batch shape of scale"));
  EXPECT_THAT(error(normal({{"loc", {0}, {}}, {"scale", {}, {1}}})), HasSubstr("no elements"));
  DrawOptions mixed = normal(Scalars({{"loc", 0}, {"scale", 1}}));
  mixed.parameters[1].second = Tensor::Scalar(1.0);
  EXPECT_THAT(error(mixed), HasSubstr("all must be the same"));
  DrawOptions warm = normal(Scalars({{"loc", 0}, {"scale", 1}}));
  warm.distribution.temperature = 2;
  EXPECT_THAT(error(warm), HasSubstr("temperature does not apply to normal"));
  EXPECT_THAT(
      error(Options({.family = Family::kUniform}, Scalars({{"low", 1}, {"high", 1}}), DType::kF32)),
      HasSubstr("low 1 is not below high 1"));
  EXPECT_THAT(
      error(Options({.family = Family::kMultivariateNormal},
                    {{"loc", {2}, {0, 0}}, {"scale_tril", {2, 2}, {1, 1, 0, 1}}}, DType::kF32)),
      HasSubstr("above the diagonal"));
  const Parameters classes = {{"logits", {3}, {0, 1, 2}}};
  EXPECT_THAT(error(Options({.family = Family::kGumbelTopK, .k = 4}, classes, DType::kF32)),
              HasSubstr("k is 4, must be in [1, 3]"));
  DrawOptions entropy = Options({.family = Family::kGumbelTopK}, classes, DType::kF32);
  entropy.entropy = true;
  EXPECT_THAT(error(entropy), HasSubstr("no closed form"));
  DrawOptions gradient = Options({.family = Family::kCategorical}, classes, DType::kF32);
  gradient.draw_cotangents = Make(DType::kF32, {1}, {1});
  EXPECT_THAT(error(gradient), HasSubstr("no gradient flows through draws of categorical"));
  DrawOptions shape = normal(Scalars({{"loc", 0}, {"scale", 1}}));
  shape.draw_cotangents = Make(DType::kF32, {2}, {1, 1});
  EXPECT_THAT(error(shape), HasSubstr("draw_cotangents is f32(2), expected f32(1)"));
  DrawOptions many = normal({{"loc", {1000}, std::vector<double>(1000)}, {"scale", {}, {1}}});
  many.draws = 100000;
  EXPECT_THAT(error(many), HasSubstr("ask for fewer draws"));
  many.draws = 0;
  EXPECT_THAT(error(many), HasSubstr("draws is 0"));
  // Small requests for large answers, refused before anything is computed.
  const std::vector<double> zeros(1 << 16), ones(1 << 16, 1);
  EXPECT_THAT(
      error(Options({.family = Family::kUniform},
                    {{"low", {1 << 16, 1}, zeros}, {"high", {1, 1 << 16}, ones}}, DType::kF32)),
      HasSubstr("ask for fewer draws"));
  const std::vector<double> wide(40960);
  DrawOptions ranked = Options({.family = Family::kGumbelTopK, .k = 40960},
                               {{"logits", {40960}, wide}}, DType::kF32);
  ranked.log_density = true;
  EXPECT_THAT(error(ranked), HasSubstr("log-densities are of at most 1024 classes in order"));
}

}  // namespace
}  // namespace tandem

// Hard metrics against values computed by hand; the smooth ones against plain loops, their
// gradients against finite differences, and their convergence to the hard ones.
#include "engine/train/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <random>

#include "engine/base/error.h"

namespace tandem {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pointwise;

Tensor Random(Shape shape, uint64_t seed, double scale = 2) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal(0, scale);
  Tensor tensor(DType::kF32, std::move(shape));
  for (float& v : tensor.data<float>()) v = static_cast<float>(normal(random));
  return tensor;
}
Tensor F32(Shape shape, std::vector<float> values) { return Tensor::Of<float>(shape, values); }
Tensor I64(Shape shape, std::vector<int64_t> values) { return Tensor::Of<int64_t>(shape, values); }

const MetricValue& ValueOf(const MetricReport& report, Metric metric) {
  for (const MetricValue& value : report.values) {
    if (value.metric == metric) return value;
  }
  ADD_FAILURE() << "no such metric";
  return report.values[0];
}

void ExpectError(const absl::Status& status, const std::string& text) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(text));
}

// Six examples of three classes; predicted 0 0 1 2 2 0.
Tensor SixLogits() {
  return F32({6, 3}, {2, 1, 0, 1, 0.5, 0, 0, 3, 1, 0, 1, 2, 1, 0, 4, 2, 1, 1.5});
}
Tensor SixTargets() { return I64({6}, {0, 1, 1, 2, 0, 0}); }

class MetricsTest : public testing::Test {
 protected:
  MetricReport Classes(const Tensor& logits, const Tensor& targets,
                       const EvaluationOptions& options = {},
                       const std::vector<int64_t>& top_k = {}) {
    auto report = EvaluateClasses(logits, targets, top_k, options, plans_);
    EXPECT_TRUE(report.ok()) << report.status();
    return *std::move(report);
  }
  MetricReport Labels(const Tensor& logits, const Tensor& labels,
                      const EvaluationOptions& options = {}, double threshold = 0.5) {
    auto report = EvaluateLabels(logits, labels, threshold, options, plans_);
    EXPECT_TRUE(report.ok()) << report.status();
    return *std::move(report);
  }
  MetricReport Bleu(const Tensor& logits, const std::vector<int64_t>& lengths,
                    const std::vector<std::vector<Tokens>>& references,
                    const EvaluationOptions& options = {}, const BleuOptions& bleu = {}) {
    auto report = EvaluateBleu(logits, lengths, references, bleu, options, plans_);
    EXPECT_TRUE(report.ok()) << report.status();
    return *std::move(report);
  }

  // The gradients of all the metrics' smooth versions against central differences.
  using Evaluate = std::function<MetricReport(const Tensor&, const EvaluationOptions&)>;
  static void CheckGradients(const Tensor& predictions, EvaluationOptions options,
                             const Evaluate& evaluate) {
    const MetricReport report = evaluate(predictions, options);
    for (const Metric metric : options.gradients) {
      const MetricValue& value = ValueOf(report, metric);
      ASSERT_TRUE(value.gradient.has_value());
      ASSERT_EQ(value.gradient->shape(), predictions.shape());
      double largest = 0;
      for (float g : value.gradient->data<float>())
        largest = std::max<double>(largest, std::abs(g));
      EXPECT_GT(largest, 1e-3);
      EvaluationOptions plain = options;
      plain.gradients.clear();
      for (int64_t i = 0; i < predictions.num_elements(); i += 1 + i % 3) {
        constexpr float kStep = 4e-3f;
        Tensor up = predictions.Clone(), down = predictions.Clone();
        up.data<float>()[i] += kStep;
        down.data<float>()[i] -= kStep;
        const double difference = (*ValueOf(evaluate(up, plain), metric).smooth -
                                   *ValueOf(evaluate(down, plain), metric).smooth) /
                                  (double{up.data<float>()[i]} - down.data<float>()[i]);
        EXPECT_NEAR(value.gradient->data<float>()[i], difference, 3e-3 * largest + 2e-4)
            << "element " << i;
      }
    }
  }

  PlanCache plans_{16};
};

TEST_F(MetricsTest, HardMetricsOfClasses) {
  const MetricReport report = Classes(SixLogits(), SixTargets(), {}, {1, 2, 3});
  EXPECT_DOUBLE_EQ(ValueOf(report, Metric::kAccuracy).hard, 4.0 / 6);
  EXPECT_DOUBLE_EQ(ValueOf(report, Metric::kF1Micro).hard, 4.0 / 6);
  // Class 0: 2 hits of 3 predicted, 3 actual; class 1: 1 of 1, 2; class 2: 1 of 2, 1.
  EXPECT_THAT(report.f1, ElementsAre(4.0 / 6, 2.0 / 3, 2.0 / 3));
  EXPECT_THAT(report.support, ElementsAre(3, 2, 1));
  EXPECT_DOUBLE_EQ(ValueOf(report, Metric::kF1Macro).hard, 2.0 / 3);
  std::map<int64_t, double> top;
  for (const MetricValue& value : report.values) {
    if (value.metric == Metric::kTopKAccuracy) top[value.k] = value.hard;
  }
  EXPECT_THAT(top, ElementsAre(std::pair(1, 4.0 / 6), std::pair(2, 1.0), std::pair(3, 1.0)));
}

TEST_F(MetricsTest, AClassThatNeverOccursHasNoF1) {
  const MetricReport report = Classes(F32({2, 3}, {5, 1, 0, 1, 5, 0}), I64({2}, {0, 1}));
  EXPECT_THAT(report.f1, ElementsAre(1, 1, 0));
  EXPECT_DOUBLE_EQ(ValueOf(report, Metric::kF1Macro).hard, 2.0 / 3);
  EXPECT_EQ(ValueOf(report, Metric::kAccuracy).hard, 1);
}

TEST_F(MetricsTest, TheFirstOfEqualsIsTheLarger) {
  const Tensor logits = F32({2, 2}, {1, 1, 1, 1});
  EXPECT_EQ(ValueOf(Classes(logits, I64({2}, {0, 0})), Metric::kAccuracy).hard, 1);
  EXPECT_EQ(ValueOf(Classes(logits, I64({2}, {1, 1})), Metric::kAccuracy).hard, 0);
}

TEST_F(MetricsTest, SmoothMetricsOfClassesAreTheExpectations) {
  const Tensor logits = SixLogits(), targets = SixTargets();
  constexpr double kTemperature = 0.7;
  double hits[3] = {}, predicted[3] = {}, accuracy = 0;
  for (int i = 0; i < 6; ++i) {
    double p[3], sum = 0;
    for (int c = 0; c < 3; ++c) {
      sum += p[c] = std::exp(logits.data<float>()[3 * i + c] / kTemperature);
    }
    const int64_t target = targets.data<int64_t>()[i];
    for (int c = 0; c < 3; ++c) predicted[c] += p[c] / sum;
    hits[target] += p[target] / sum;
    accuracy += p[target] / sum / 6;
  }
  const MetricReport report = Classes(logits, targets, {.temperature = kTemperature});
  EXPECT_NEAR(*ValueOf(report, Metric::kAccuracy).smooth, accuracy, 1e-6);
  EXPECT_NEAR(*ValueOf(report, Metric::kF1Micro).smooth, accuracy, 1e-6);
  const double members[3] = {3, 2, 1};
  double macro = 0;
  for (int c = 0; c < 3; ++c) {
    const double f1 = 2 * hits[c] / (predicted[c] + members[c]);
    EXPECT_NEAR(report.smooth_f1[c], f1, 1e-6);
    macro += f1 / 3;
  }
  EXPECT_NEAR(*ValueOf(report, Metric::kF1Macro).smooth, macro, 1e-6);
}

TEST_F(MetricsTest, HardAndSmoothMetricsOfLabels) {
  const Tensor logits = F32({2, 3}, {2, -1, 0.5, -3, 1, -0.5});
  const Tensor labels = I64({2, 3}, {1, 1, 0, 0, 1, 0});
  const MetricReport report = Labels(logits, labels, {.temperature = 2});
  EXPECT_DOUBLE_EQ(ValueOf(report, Metric::kAccuracy).hard, 4.0 / 6);
  EXPECT_THAT(report.f1, ElementsAre(1, 2.0 / 3, 0));
  EXPECT_DOUBLE_EQ(ValueOf(report, Metric::kF1Micro).hard, 4.0 / 6);
  EXPECT_DOUBLE_EQ(ValueOf(report, Metric::kF1Macro).hard, 5.0 / 9);
  EXPECT_THAT(report.support, ElementsAre(1, 2, 0));
  double agreed = 0, hits = 0, total = 0;
  for (int i = 0; i < 6; ++i) {
    const double p = 1 / (1 + std::exp(-logits.data<float>()[i] / 2));
    const double t = static_cast<double>(labels.data<int64_t>()[i]);
    agreed += (p * t + (1 - p) * (1 - t)) / 6;
    hits += p * t;
    total += p + t;
  }
  EXPECT_NEAR(*ValueOf(report, Metric::kAccuracy).smooth, agreed, 1e-6);
  EXPECT_NEAR(*ValueOf(report, Metric::kF1Micro).smooth, 2 * hits / total, 1e-6);
  // At a threshold of 0.8 only the logit 2 is over (its probability is 0.88).
  const MetricReport strict = Labels(logits, labels, {.temperature = 0.01}, 0.8);
  EXPECT_THAT(strict.f1, ElementsAre(1, 0, 0));
  EXPECT_NEAR(*ValueOf(strict, Metric::kF1Macro).smooth, 1.0 / 3, 1e-6);
}

TEST_F(MetricsTest, ProbabilitiesAreAsGoodAsTheirLogits) {
  const Tensor logits = SixLogits();
  Tensor softmax(DType::kF32, {6, 3}), sigmoid(DType::kF32, {6, 3});
  for (int i = 0; i < 6; ++i) {
    double sum = 0;
    for (int c = 0; c < 3; ++c) sum += std::exp(logits.data<float>()[3 * i + c]);
    for (int c = 0; c < 3; ++c) {
      const double e = std::exp(logits.data<float>()[3 * i + c]);
      softmax.data<float>()[3 * i + c] = static_cast<float>(e / sum);
      sigmoid.data<float>()[3 * i + c] = static_cast<float>(e / (1 + e));
    }
  }
  const EvaluationOptions by_logits{.temperature = 0.6},
      by_probability{.probabilities = true, .temperature = 0.6};
  const Tensor labels = I64({6, 3}, {1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 1});
  for (const Metric metric : {Metric::kAccuracy, Metric::kF1Micro, Metric::kF1Macro}) {
    const MetricReport a = Classes(logits, SixTargets(), by_logits);
    const MetricReport b = Classes(softmax, SixTargets(), by_probability);
    EXPECT_EQ(ValueOf(a, metric).hard, ValueOf(b, metric).hard);
    EXPECT_NEAR(*ValueOf(a, metric).smooth, *ValueOf(b, metric).smooth, 1e-5);
    const MetricReport c = Labels(logits, labels, by_logits, 0.6);
    const MetricReport d = Labels(sigmoid, labels, by_probability, 0.6);
    EXPECT_EQ(ValueOf(c, metric).hard, ValueOf(d, metric).hard);
    EXPECT_NEAR(*ValueOf(c, metric).smooth, *ValueOf(d, metric).smooth, 1e-5);
  }
  // Certainty is no trouble.
  const MetricReport certain = Classes(F32({2, 2}, {1, 0, 0, 1}), I64({2}, {0, 0}),
                                       {.probabilities = true, .gradients = {Metric::kAccuracy}});
  EXPECT_NEAR(*ValueOf(certain, Metric::kAccuracy).smooth, 0.5, 1e-6);
  for (float g : ValueOf(certain, Metric::kAccuracy).gradient->data<float>()) {
    EXPECT_TRUE(std::isfinite(g));
  }
}

TEST_F(MetricsTest, GradientsAgreeWithFiniteDifferences) {
  EvaluationOptions options{.temperature = 1.5,
                            .gradients = {Metric::kAccuracy, Metric::kF1Micro, Metric::kF1Macro}};
  const Tensor targets = I64({8}, {0, 1, 2, 3, 3, 1, 0, 0});
  CheckGradients(Random({8, 4}, 1), options, [&](const Tensor& x, const EvaluationOptions& o) {
    return Classes(x, targets, o);
  });
  Tensor labels = I64({8, 4}, std::vector<int64_t>(32, 0));
  for (int i = 0; i < 32; ++i) labels.data<int64_t>()[i] = i * i % 7 % 2;
  CheckGradients(Random({8, 4}, 2), options, [&](const Tensor& x, const EvaluationOptions& o) {
    return Labels(x, labels, o, 0.4);
  });
  Tensor probabilities(DType::kF32, {8, 4});
  for (int i = 0; i < 32; ++i) {
    probabilities.data<float>()[i] =
        0.1f + 0.3f * static_cast<float>((i + i / 4) % 4 == 0) + 0.1f * static_cast<float>(i % 4);
  }
  options.probabilities = true;
  CheckGradients(probabilities, options,
                 [&](const Tensor& x, const EvaluationOptions& o) { return Labels(x, labels, o); });
}

// --- BLEU
// ------------------------------------------------------------------------------------------

// Logits whose argmax are those tokens.
Tensor LogitsOf(const Tokens& tokens, int64_t vocabulary, uint64_t seed) {
  Tensor logits = Random({static_cast<int64_t>(tokens.size()), vocabulary}, seed, 0.5);
  for (size_t t = 0; t < tokens.size(); ++t) {
    logits.data<float>()[static_cast<int64_t>(t) * vocabulary + tokens[t]] += 4;
  }
  return logits;
}

// The example of Papineni et al.: "the the the the the the the" against two references.
TEST_F(MetricsTest, BleuClipsAsPapineniDoes) {
  // the=0 cat=1 is=2 on=3 mat=4 there=5 a=6
  const std::vector<std::vector<Tokens>> references = {{{0, 1, 2, 3, 0, 4}, {5, 2, 6, 1, 3, 0, 4}}};
  const MetricReport report =
      Bleu(LogitsOf(Tokens(7, 0), 8, 3), {7}, references, {}, {.max_order = 1});
  EXPECT_THAT(report.precisions, ElementsAre(2.0 / 7));
  EXPECT_EQ(report.reference_tokens, 7) << "the closest length";
  EXPECT_DOUBLE_EQ(ValueOf(report, Metric::kBleu).hard, 2.0 / 7);
}

TEST_F(MetricsTest, CorpusBleuByHand) {
  const Tokens first = {1, 2, 3, 4, 5, 6}, second = {7, 8, 9, 1, 2};
  const std::vector<std::vector<Tokens>> references = {{{1, 2, 3, 4, 9, 6}},
                                                       {{7, 8, 9, 1, 3, 2, 2}}};
  Tokens all = first;
  all.insert(all.end(), second.begin(), second.end());
  const Tensor logits = LogitsOf(all, 10, 4);
  const MetricReport report = Bleu(logits, {6, 5}, references);
  // Unigrams 5/6 + 5/5, bigrams 3/5 + 3/4, trigrams 2/4 + 2/3, 4-grams 1/3 + 1/2.
  EXPECT_THAT(report.precisions, ElementsAre(10.0 / 11, 6.0 / 9, 4.0 / 7, 2.0 / 5));
  EXPECT_EQ(report.hypothesis_tokens, 11);
  EXPECT_EQ(report.reference_tokens, 13);
  const double penalty = std::exp(1 - 13.0 / 11);
  EXPECT_DOUBLE_EQ(report.brevity_penalty, penalty);
  EXPECT_NEAR(ValueOf(report, Metric::kBleu).hard,
              penalty * std::pow(10.0 / 11 * 6 / 9 * 4 / 7 * 2 / 5, 0.25), 1e-12);
  const MetricReport added = Bleu(logits, {6, 5}, references, {}, {.max_order = 2, .add_k = 1});
  EXPECT_THAT(added.precisions, ElementsAre(10.0 / 11, 7.0 / 10)) << "not to unigrams";
  EXPECT_NEAR(ValueOf(added, Metric::kBleu).hard, penalty * std::sqrt(10.0 / 11 * 7 / 10), 1e-12);
}

TEST_F(MetricsTest, BleuWithoutNGramsIsZero) {
  const MetricReport report =
      Bleu(LogitsOf({1, 2}, 4, 5), {2}, {{{1, 2}}}, {.gradients = {Metric::kBleu}});
  EXPECT_EQ(ValueOf(report, Metric::kBleu).hard, 0);
  EXPECT_EQ(*ValueOf(report, Metric::kBleu).smooth, 0);
  EXPECT_THAT(ValueOf(report, Metric::kBleu).gradient->data<float>(), testing::Each(0.0f));
  // Long enough, but its reference is not, and it is the other way round with the second.
  const MetricReport crossed =
      Bleu(LogitsOf({1, 2, 3, 1, 2, 3}, 4, 5), {5, 1}, {{{1, 2}}, {{3, 1, 2, 3, 1}}});
  EXPECT_EQ(ValueOf(crossed, Metric::kBleu).hard, 0);
  EXPECT_NEAR(*ValueOf(crossed, Metric::kBleu).smooth, 0, 1e-6);
}

// The sum that metrics.h cites, term by term.
TEST_F(MetricsTest, SmoothBleuIsZhukovAndKretovs) {
  const std::vector<int64_t> lengths = {5, 4};
  const std::vector<std::vector<Tokens>> references = {{{1, 2, 1, 2, 0}, {1, 1}}, {{3, 0, 3}}};
  const Tensor logits = Random({9, 4}, 6, 1);
  constexpr double kTemperature = 0.8;
  std::vector<std::vector<double>> p(9, std::vector<double>(4));
  for (int t = 0; t < 9; ++t) {
    double sum = 0;
    for (int v = 0; v < 4; ++v) {
      sum += p[t][v] = std::exp(logits.data<float>()[4 * t + v] / kTemperature);
    }
    for (double& x : p[t]) x /= sum;
  }
  double log_bleu = 0;
  for (int n = 1; n <= 2; ++n) {
    double matches = 0, total = 0;
    int64_t begin = 0;
    for (size_t s = 0; s < lengths.size(); ++s) {
      std::map<Tokens, double> limits;
      for (const Tokens& reference : references[s]) {
        std::map<Tokens, double> counts;
        for (size_t i = 0; i + n <= reference.size(); ++i) {
          ++counts[Tokens(reference.begin() + i, reference.begin() + i + n)];
        }
        for (const auto& [gram, count] : counts) limits[gram] = std::max(limits[gram], count);
      }
      const int64_t places = lengths[s] - n + 1;
      total += static_cast<double>(places);
      for (const auto& [gram, limit] : limits) {
        std::vector<double> at(places, 1);
        double sum = 0;
        for (int64_t i = 0; i < places; ++i) {
          for (int j = 0; j < n; ++j) at[i] *= p[begin + i + j][gram[j]];
          sum += at[i];
        }
        for (double x : at) matches += x * std::min(1.0, limit / (1 + sum - x));
      }
      begin += lengths[s];
    }
    log_bleu += std::log(matches / total) / 2;
  }
  const MetricReport report =
      Bleu(logits, lengths, references, {.temperature = kTemperature}, {.max_order = 2});
  EXPECT_EQ(report.brevity_penalty, 1);
  EXPECT_NEAR(*ValueOf(report, Metric::kBleu).smooth, std::exp(log_bleu), 1e-6);
}

TEST_F(MetricsTest, BleuGradientsAgreeWithFiniteDifferences) {
  const EvaluationOptions options{.temperature = 1.2, .gradients = {Metric::kBleu}};
  for (const double add_k : {0.0, 0.5}) {
    CheckGradients(LogitsOf({1, 2, 3, 1, 2, 0, 4, 4, 4}, 5, 7), options,
                   [&](const Tensor& x, const EvaluationOptions& o) {
                     return Bleu(x, {5, 4}, {{{1, 2, 3, 1, 4, 2, 0}}, {{0, 4, 4, 1}}}, o,
                                 {.max_order = 3, .add_k = add_k});
                   });
  }
}

// --- the limit
// -------------------------------------------------------------------------------------

// As the temperature falls, each smooth metric comes to its hard one.
TEST_F(MetricsTest, TheSmoothConvergesToTheHard) {
  Tensor logits = Random({40, 6}, 8), scores = Random({40, 6}, 12);
  Tensor targets(DType::kI64, {40}), labels(DType::kI64, {40, 6});
  std::mt19937_64 random(9);
  for (int64_t& t : targets.data<int64_t>()) t = static_cast<int64_t>(random() % 6);
  for (int64_t& t : labels.data<int64_t>()) t = static_cast<int64_t>(random() % 2);
  for (int64_t i = 0; i < 40; ++i) logits.data<float>()[6 * i + targets.data<int64_t>()[i]] += 2;
  for (int64_t i = 0; i < 240; ++i) {
    float& score = scores.data<float>()[i];
    score += labels.data<int64_t>()[i] == 1 ? 2.0f : -2.0f;
    score += score > 0 ? 0.1f : -0.1f;  // a score that is almost a tie would want to be colder
  }
  const Tokens hypothesis = {1, 2, 3, 4, 5, 1, 2, 2, 3, 4};
  const Tensor tokens = LogitsOf(hypothesis, 6, 10);
  std::map<std::string, std::vector<double>> distances;
  const std::vector<double> temperatures = {4, 1, 0.25, 0.05, 0.01, 1e-3, 1e-5};
  for (const double temperature : temperatures) {
    const EvaluationOptions options{.temperature = temperature};
    const auto add = [&](const char* task, const MetricReport& report) {
      for (const MetricValue& value : report.values) {
        distances[StrCat(task, static_cast<int>(value.metric))].push_back(
            std::abs(value.hard - *value.smooth));
      }
    };
    add("classes", Classes(logits, targets, options));
    add("labels", Labels(scores, labels, options));
    add("bleu", Bleu(tokens, {6, 4}, {{{1, 2, 3, 4, 5}}, {{2, 2, 3, 4, 4}}}, options));
  }
  ASSERT_EQ(distances.size(), 7u);
  for (const auto& [name, values] : distances) {
    EXPECT_GT(values[0], 0.05) << name << ": hot is far";
    EXPECT_LT(values.back(), 1e-6) << name;
    for (size_t i = 4; i < values.size(); ++i) {
      EXPECT_LE(values[i], values[i - 1] + 1e-6) << name << " at " << temperatures[i];
    }
  }
}

// --- refusals
// --------------------------------------------------------------------------------------

TEST_F(MetricsTest, BadArgumentsAreNamed) {
  const auto classes = [&](const Tensor& x, const Tensor& t, EvaluationOptions options = {},
                           std::vector<int64_t> top_k = {}) {
    return EvaluateClasses(x, t, top_k, options, plans_).status();
  };
  for (const double bad : {0.0, -1.0, 1e-31, 1e31, double{NAN}, double{INFINITY}}) {
    ExpectError(classes(SixLogits(), SixTargets(), {.temperature = bad}), "temperature is ");
  }
  ExpectError(classes(SixTargets(), SixTargets()), "predictions are i64");
  ExpectError(classes(F32({6}, std::vector<float>(6)), SixTargets()), "expected two dimensions");
  ExpectError(classes(Tensor(DType::kF32, {0, 3}), I64({0}, {})), "shape (0,3)");
  Tensor bad = SixLogits();
  bad.data<float>()[5] = NAN;
  ExpectError(classes(bad, SixTargets()), "prediction (1, 2) is nan");
  ExpectError(classes(F32({1, 1}, {1e30f}), I64({1}, {0}), {.temperature = 1e-10}),
              "too large for the temperature");
  ExpectError(classes(SixLogits(), SixTargets(), {.probabilities = true}),
              "prediction (0, 0) is 2, expected a probability");
  ExpectError(classes(F32({1, 2}, {0.5, 0.4}), I64({1}, {0}), {.probabilities = true}),
              "row 0 sum to 0.9");
  ExpectError(classes(SixLogits(), SixLogits()), "targets are f32");
  ExpectError(classes(SixLogits(), I64({5}, {0, 0, 0, 0, 0})), "shape (5), expected (6)");
  ExpectError(classes(SixLogits(), I64({6}, {0, 0, 3, 0, 0, 0})), "element 2 of the targets is 3");
  ExpectError(classes(SixLogits(), I64({6}, {0, 0, -1, 0, 0, 0})), "is -1, expected 0 to 2");
  ExpectError(classes(SixLogits(), SixTargets(), {}, {0}), "top_k is 0");
  ExpectError(classes(SixLogits(), SixTargets(), {}, {4}), "top_k is 4, expected 1 to the 3");
  ExpectError(classes(SixLogits(), SixTargets(), {.gradients = {Metric::kBleu}}),
              "no gradient of BLEU");
  ExpectError(classes(SixLogits(), SixTargets(), {.gradients = {Metric::kTopKAccuracy}}),
              "no gradient of top-k accuracy");

  const auto labels = [&](const Tensor& t, double threshold) {
    return EvaluateLabels(SixLogits(), t, threshold, {}, plans_).status();
  };
  for (const double threshold : {0.0, 1.0, double{NAN}}) {
    ExpectError(labels(I64({6, 3}, std::vector<int64_t>(18)), threshold), "threshold is ");
  }
  ExpectError(labels(I64({6, 3}, std::vector<int64_t>(18, 2)), 0.5),
              "labels is 2, expected 0 to 1");
  ExpectError(labels(SixTargets(), 0.5), "labels have shape (6), expected (6,3)");

  const auto bleu = [&](std::vector<int64_t> lengths, std::vector<std::vector<Tokens>> references,
                        BleuOptions options = {}) {
    return EvaluateBleu(SixLogits(), lengths, references, options, {}, plans_).status();
  };
  ExpectError(bleu({6}, {}), "1 hypotheses for the references of 0");
  ExpectError(bleu({5}, {{{1}}}), "6 positions, the hypotheses only 5");
  ExpectError(bleu({0, 6}, {{{1}}, {{1}}}), "hypothesis 0 has length 0");
  ExpectError(bleu({4, 3}, {{{1}}, {{1}}}), "hypothesis 1 has length 3, expected 1 to the 2");
  ExpectError(bleu({INT64_MAX, 2}, {{{1}}, {{1}}}), "hypothesis 0 has length");
  ExpectError(bleu({6}, {{}}), "hypothesis 0 has no reference");
  ExpectError(bleu({6}, {{{}}}), "reference 0 of hypothesis 0 has no tokens");
  ExpectError(bleu({6}, {{{1, 3}}}), "token 1 of reference 0 of hypothesis 0 is 3, outside");
  ExpectError(bleu({6}, {{{-1}}}), "is -1, outside");
  ExpectError(bleu({6}, {{Tokens((1 << 18) + 1, 0)}}), "more than 262144 tokens");
  ExpectError(bleu({6}, {{{1}}}, {.max_order = 0}), "max_order is 0");
  ExpectError(bleu({6}, {{{1}}}, {.max_order = 9}), "expected 1 to 8");
  ExpectError(bleu({6}, {{{1}}}, {.max_order = 4, .add_k = -1}), "add_k is -1");
  Tokens distinct(3000);
  for (int i = 0; i < 3000; ++i) distinct[i] = i;
  ExpectError(EvaluateBleu(Tensor::Zeros({DType::kF32, {3000, 3000}}), std::vector<int64_t>{3000},
                           std::vector<std::vector<Tokens>>{{distinct}}, {}, {}, plans_)
                  .status(),
              "more than 4194304 pairs");
}

TEST_F(MetricsTest, OtherDtypesAreTheSame) {
  const MetricReport f32 = Classes(SixLogits(), SixTargets());
  for (const DType dtype : {DType::kF64, DType::kF16, DType::kBF16}) {
    const MetricReport other =
        Classes(CastTensor(SixLogits(), dtype), SixTargets(), {.gradients = {Metric::kF1Macro}});
    EXPECT_EQ(*ValueOf(other, Metric::kF1Macro).smooth, *ValueOf(f32, Metric::kF1Macro).smooth);
    EXPECT_EQ(ValueOf(other, Metric::kF1Macro).gradient->dtype(), DType::kF32);
  }
  EXPECT_EQ(Classes(SixLogits(), CastTensor(SixTargets(), DType::kU8)).f1, f32.f1);
}

}  // namespace
}  // namespace tandem

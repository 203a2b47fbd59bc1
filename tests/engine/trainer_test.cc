// Training: PyTorch's formulas, accumulation, and the recorded reference of a real model.
#include "engine/train/trainer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "engine/formats/huggingface.h"
#include "tests/engine/language_model.h"
#include "tests/engine/material.h"

namespace tandem {
namespace {

OptimizerOptions ReferenceOptimizer() {
  OptimizerOptions o;
  o.learning_rate = 1e-3;
  o.beta2 = 0.99;
  o.weight_decay = 0.1;
  o.max_grad_norm = 1;
  return o;
}

Batch TokenBatch(std::vector<TokenSequence> sequences) {
  Batch batch;
  batch.sequences = std::move(sequences);
  return batch;
}

TEST(TrainerTest, FollowsTheReferenceTrajectory) {
  const std::string folder = MaterialPath("llama/stories260K/");
  TANDEM_NEED_MATERIAL("llama/stories260K/hf-f32");
  absl::StatusOr<LoadedModel> loaded = LoadHuggingFace(folder + "hf-f32");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  Model model("stories", loaded->source, std::move(loaded->parameters));
  const auto reference = nlohmann::json::parse(ReadFile(folder + "reference/train_reference.json"));
  const auto tokens = reference["token_ids"].get<std::vector<int32_t>>();
  const Batch batch = TokenBatch({{.tokens = tokens, .targets = {}, .weights = {}}});
  auto trainer = Trainer::Create(&model, {}, ReferenceOptimizer(), {});
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  int64_t steps = 0;
  for (const auto& expected : reference["trajectory"]) {
    absl::StatusOr<LossReport> loss = (*trainer)->ForwardBackward(batch);
    ASSERT_TRUE(loss.ok()) << loss.status();
    const double want = expected["loss_before"];
    EXPECT_NEAR(loss->loss, want, 1e-4 * want) << "step " << steps;
    if (steps == 0) {
      EXPECT_EQ(loss->tokens, static_cast<int64_t>(tokens.size()) - 1);
      for (size_t i = 0; i < model.source().parameters().size(); ++i) {
        const ParameterInfo& info = model.source().parameters()[i];
        double sum = 0;
        for (float g : (*trainer)->gradient(static_cast<int>(i))) sum += double{g} * g;
        const double norm = reference["grad_norm_per_tensor"][info.name];
        EXPECT_NEAR(std::sqrt(sum), norm, 1e-4 * norm) << info.name;
      }
    }
    absl::StatusOr<StepReport> step = (*trainer)->OptimStep();
    ASSERT_TRUE(step.ok()) << step.status();
    const double norm = expected["grad_norm"];
    EXPECT_NEAR(step->grad_norm, norm, 1e-4 * norm) << "step " << steps;
    EXPECT_FALSE(step->skipped);
    EXPECT_EQ(step->step, ++steps);
  }
  EXPECT_EQ(model.weights_version(), 1 + steps);
}

TEST(TrainerTest, AccumulatedMicroBatchesAreOneBatch) {
  const auto config = TinyConfig(DecoderArchitecture::kLlama);
  auto whole = MakeModel(config), parts = MakeModel(config);
  Objective sum;
  sum.reduction = Reduction::kSum;
  auto a = Trainer::Create(whole.get(), sum, ReferenceOptimizer(), {});
  auto b = Trainer::Create(parts.get(), sum, ReferenceOptimizer(), {});
  ASSERT_TRUE(a.ok() && b.ok()) << a.status() << b.status();
  std::vector<TokenSequence> sequences;
  for (uint32_t s = 0; s < 3; ++s) {
    sequences.push_back({.tokens = RandomTokens(20 + s, 61, s), .targets = {}, .weights = {}});
    ASSERT_TRUE((*b)->ForwardBackward(TokenBatch({sequences.back()})).ok());
  }
  EXPECT_EQ((*b)->micro_step(), 3);
  ASSERT_TRUE((*a)->ForwardBackward(TokenBatch(sequences)).ok());
  for (size_t i = 0; i < whole->source().parameters().size(); ++i) {
    const auto x = (*a)->gradient(static_cast<int>(i)), y = (*b)->gradient(static_cast<int>(i));
    double difference = 0, norm = 0;
    for (size_t k = 0; k < x.size(); ++k) {
      difference += (x[k] - y[k]) * (x[k] - y[k]);
      norm += double{x[k]} * x[k];
    }
    EXPECT_LE(std::sqrt(difference), 1e-5 * std::sqrt(norm) + 1e-7);
  }
}

TEST(TrainerTest, GradientsAgreeWithFiniteDifferences) {
  for (auto architecture : {DecoderArchitecture::kLlama, DecoderArchitecture::kGpt2}) {
    auto model = MakeModel(TinyConfig(architecture));
    auto trainer = Trainer::Create(model.get(), {}, {}, {});
    ASSERT_TRUE(trainer.ok());
    std::vector<float> weights(30, 1.0f);
    weights[3] = 0.25f;
    weights[7] = 0;
    const Batch batch =
        TokenBatch({{.tokens = RandomTokens(40, 61, 5), .targets = {}, .weights = {}},
                    {.tokens = RandomTokens(30, 61, 6),
                     .targets = RandomTokens(30, 61, 7),
                     .weights = weights}});
    ASSERT_TRUE((*trainer)->ForwardBackward(batch).ok());
    // Along the gradient itself: (L(w + h g) - L(w - h g)) / 2h = |g|^2.
    double norm2 = 0;
    std::vector<std::vector<float>> gradients;
    for (size_t i = 0; i < model->source().parameters().size(); ++i) {
      const auto g = (*trainer)->gradient(static_cast<int>(i));
      gradients.emplace_back(g.begin(), g.end());
      for (float x : g) norm2 += double{x} * x;
    }
    const auto loss_at = [&](double h) {
      for (size_t i = 0; i < gradients.size(); ++i) {
        const auto values = model->parameters().values(static_cast<int>(i));
        for (size_t k = 0; k < values.size(); ++k) {
          values[k] += static_cast<float>(h * gradients[i][k]);
        }
      }
      const auto loss = Trainer::Evaluate(model.get(), {}, batch);
      EXPECT_TRUE(loss.ok());
      return loss.ok() ? loss->loss : 0;
    };
    const double h = 1e-3 / std::sqrt(norm2);
    const double up = loss_at(h), down = loss_at(-2 * h);
    EXPECT_NEAR((up - down) / (2 * h), norm2, 5e-3 * norm2);
  }
}

TEST(TrainerTest, FrozenParametersStay) {
  auto model = MakeModel(TinyConfig(DecoderArchitecture::kLlama));
  auto trainer = Trainer::Create(model.get(), {}, ReferenceOptimizer(),
                                 {"model.layers.0.*", "model.norm.weight"});
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  const auto copy = [&] {
    return std::vector<float>(model->parameters().flat(),
                              model->parameters().flat() + model->parameters().flat_size());
  };
  const std::vector<float> before = copy();
  const Batch batch =
      TokenBatch({{.tokens = RandomTokens(20, 61, 1), .targets = {}, .weights = {}}});
  ASSERT_TRUE((*trainer)->ForwardBackward(batch).ok());
  ASSERT_TRUE((*trainer)->OptimStep().ok());
  const std::vector<float> after = copy();
  for (size_t i = 0; i < model->source().parameters().size(); ++i) {
    const ParameterInfo& info = model->source().parameters()[i];
    const bool frozen =
        info.name.rfind("model.layers.0.", 0) == 0 || info.name == "model.norm.weight";
    const int64_t at = model->parameters().offset(static_cast<int>(i));
    bool changed = false;
    for (int64_t k = 0; k < info.shape.num_elements(); ++k)
      changed |= before[at + k] != after[at + k];
    EXPECT_EQ(changed, !frozen) << info.name;
  }
  EXPECT_FALSE(Trainer::Create(model.get(), {}, {}, {"nothing.like.it"}).ok());
}

TEST(TrainerTest, GradientsThatAreNotFiniteSkipTheStep) {
  auto model = MakeModel(TinyConfig(DecoderArchitecture::kGpt2));
  auto trainer = Trainer::Create(model.get(), {}, ReferenceOptimizer(), {});
  ASSERT_TRUE(trainer.ok());
  const Batch batch =
      TokenBatch({{.tokens = RandomTokens(20, 61, 1), .targets = {}, .weights = {}}});
  const float saved = model->parameters().flat()[0];
  model->parameters().flat()[0] = std::numeric_limits<float>::infinity();
  ASSERT_TRUE((*trainer)->ForwardBackward(batch).ok());
  absl::StatusOr<StepReport> step = (*trainer)->OptimStep();
  ASSERT_TRUE(step.ok());
  EXPECT_TRUE(step->skipped);
  EXPECT_EQ(step->step, 0);
  EXPECT_EQ(model->weights_version(), 1);
  model->parameters().flat()[0] = saved;
  ASSERT_TRUE((*trainer)->ForwardBackward(batch).ok());
  step = (*trainer)->OptimStep();
  ASSERT_TRUE(step.ok());
  EXPECT_FALSE(step->skipped);
  EXPECT_EQ(step->step, 1);
  EXPECT_EQ((*trainer)->skipped_steps(), 1);
}

TEST(TrainerTest, BadBatchesAreNamedAndChangeNothing) {
  auto model = MakeModel(TinyConfig(DecoderArchitecture::kGpt2));
  auto trainer = Trainer::Create(model.get(), {}, {}, {});
  ASSERT_TRUE(trainer.ok());
  const auto expect = [&](const Batch& batch, std::string_view part) {
    const absl::Status status = (*trainer)->ForwardBackward(batch).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_NE(std::string(status.message()).find(part), std::string::npos) << status;
  };
  expect(Batch(), "empty");
  expect(TokenBatch({{.tokens = {}, .targets = {}, .weights = {}}}), "sequence 0 has no tokens");
  expect(TokenBatch({{.tokens = {1, 61}, .targets = {}, .weights = {}}}), "token 1 is 61");
  expect(TokenBatch({{.tokens = {1, 2}, .targets = {3}, .weights = {}}}), "1 targets");
  expect(TokenBatch({{.tokens = {1, 2}, .targets = {3, -2}, .weights = {}}}), "target 1 is -2");
  expect(TokenBatch({{.tokens = {1, 2}, .targets = {}, .weights = {1, NAN}}}), "weight 1");
  expect(TokenBatch({{.tokens = RandomTokens(161, 61, 1), .targets = {}, .weights = {}}}),
         "at most 160");
  EXPECT_EQ((*trainer)->micro_step(), 0);
  EXPECT_EQ((*trainer)->OptimStep().status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(OptimizerOptionsTest, ValidateNamesTheField) {
  const auto expect = [](auto change, std::string_view name) {
    OptimizerOptions o;
    change(o);
    const absl::Status status = o.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(std::string(status.message()).find(name), std::string::npos) << status;
  };
  EXPECT_TRUE(OptimizerOptions().Validate().ok());
  expect([](auto& o) { o.learning_rate = NAN; }, "learning_rate");
  expect([](auto& o) { o.learning_rate = -1; }, "learning_rate");
  expect([](auto& o) { o.beta1 = 1; }, "beta1");
  expect([](auto& o) { o.beta2 = INFINITY; }, "beta2");
  expect([](auto& o) { o.epsilon = 0; }, "epsilon");
  expect([](auto& o) { o.weight_decay = -0.1; }, "weight_decay");
  expect([](auto& o) { o.max_grad_norm = NAN; }, "max_grad_norm");
}

}  // namespace
}  // namespace tandem

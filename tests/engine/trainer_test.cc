// Training: PyTorch's formulas, accumulation, and the recorded reference of a real model.
#include "engine/train/trainer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
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

// The parameters that one step with weight decay leaves other than one without: by name.
std::vector<std::string> Decayed(bool decoupled, const std::function<void(OptimizerOptions&)>& set,
                                 int64_t* elements = nullptr) {
  const Batch batch =
      TokenBatch({{.tokens = RandomTokens(20, 61, 5), .targets = {}, .weights = {}}});
  std::unique_ptr<Model> models[2];
  for (int decay = 0; decay < 2; ++decay) {
    models[decay] = MakeModel(TinyConfig(DecoderArchitecture::kGpt2));
    ParameterStore& store = models[decay]->parameters();
    for (size_t i = 0; i < models[decay]->source().parameters().size(); ++i) {
      for (float& x : store.values(static_cast<int>(i))) x += 0.5f;  // zeros would hide decay
    }
    OptimizerOptions options;
    options.kind = decoupled ? OptimizerKind::kAdamW : OptimizerKind::kAdam;
    options.epsilon =
        1;  // else Adam's first step is the gradient's sign, whatever decay adds to it
    set(options);
    options.weight_decay = decay == 0 ? 0 : 0.3;
    auto trainer = Trainer::Create(models[decay].get(), {}, options, {});
    EXPECT_TRUE(trainer.ok()) << trainer.status();
    EXPECT_TRUE((*trainer)->ForwardBackward(batch).ok());
    EXPECT_TRUE((*trainer)->OptimStep().ok());
    if (elements != nullptr) *elements = (*trainer)->decayed_parameters();
  }
  std::vector<std::string> names;
  for (size_t i = 0; i < models[0]->source().parameters().size(); ++i) {
    const auto a = models[0]->parameters().values(static_cast<int>(i));
    const auto b = models[1]->parameters().values(static_cast<int>(i));
    if (!std::equal(a.begin(), a.end(), b.begin())) {
      names.push_back(models[0]->source().parameters()[i].name);
    }
  }
  return names;
}

TEST(TrainerTest, WeightDecayLeavesOutRolesAndNamesOnRequest) {
  const auto model = MakeModel(TinyConfig(DecoderArchitecture::kGpt2));
  const auto expected = [&](const std::function<bool(const ParameterInfo&)>& decays,
                            int64_t* elements) {
    std::vector<std::string> names;
    *elements = 0;
    for (const ParameterInfo& info : model->source().parameters()) {
      if (!decays(info)) continue;
      names.push_back(info.name);
      *elements += info.shape.num_elements();
    }
    EXPECT_FALSE(names.empty());
    return names;
  };
  using Role = ParameterRole;
  int64_t want = 0, got = 0;
  for (const bool decoupled : {true, false}) {
    SCOPED_TRACE(decoupled ? "AdamW" : "Adam");
    // By default matrices alone; embeddings are matrices.
    auto names = expected([](const auto& p) { return p.shape.rank() > 1; }, &want);
    EXPECT_EQ(Decayed(
                  decoupled, [](auto&) {}, &got),
              names);
    EXPECT_EQ(got, want);
    names = expected([](const auto&) { return true; }, &want);
    EXPECT_EQ(Decayed(
                  decoupled, [](auto& o) { o.decay_vectors = true; }, &got),
              names);
    EXPECT_EQ(got, want);
    for (const Role role : {Role::kWeight, Role::kBias, Role::kNorm, Role::kEmbedding}) {
      names = expected([&](const auto& p) { return p.role != role; }, &want);
      const auto set = [&](OptimizerOptions& o) {
        o.decay_vectors = true;
        o.no_decay_roles = {role};
      };
      EXPECT_EQ(Decayed(decoupled, set, &got), names) << static_cast<int>(role);
      EXPECT_EQ(got, want);
    }
    const auto by_name = [](OptimizerOptions& o) {
      o.no_decay = {"transformer.wte.weight", "transformer.h.1*"};
    };
    names = expected(
        [](const auto& p) {
          return p.shape.rank() > 1 && p.name != "transformer.wte.weight" &&
                 p.name.rfind("transformer.h.1", 0) != 0;
        },
        &want);
    EXPECT_EQ(Decayed(decoupled, by_name), names);
  }
  OptimizerOptions options;
  options.no_decay = {"absent*"};
  const absl::Status status =
      Trainer::Create(MakeModel(TinyConfig(DecoderArchitecture::kGpt2)).get(), {}, options, {})
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(status.message()).find("absent*"), std::string::npos) << status;
}

// torch.optim.SGD, step by step in double, from the trainer's own gradients.
TEST(TrainerTest, SgdFollowsPyTorchsFormulas) {
  struct Given {
    double momentum, weight_decay;
    bool nesterov;
  };
  for (const Given& given :
       {Given{0, 0, false}, Given{0.9, 0, false}, Given{0.9, 0.1, false}, Given{0.8, 0.1, true}}) {
    auto model = MakeModel(TinyConfig(DecoderArchitecture::kGpt2));
    OptimizerOptions options;
    options.kind = OptimizerKind::kSgd;
    options.learning_rate = 0.05;
    options.momentum = given.momentum;
    options.nesterov = given.nesterov;
    options.weight_decay = given.weight_decay;
    options.decay_vectors = true;
    auto trainer = Trainer::Create(model.get(), {}, options, {});
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    const Batch batch =
        TokenBatch({{.tokens = RandomTokens(20, 61, 1), .targets = {}, .weights = {}}});
    const std::span<const float> values = std::as_const(*model).parameters().values(0);
    std::vector<double> p(values.begin(), values.end()), buffer(p.size());
    for (int step = 0; step < 3; ++step) {
      ASSERT_TRUE((*trainer)->ForwardBackward(batch).ok());
      for (size_t i = 0; i < p.size(); ++i) {
        const double g = (*trainer)->gradient(0)[i] + given.weight_decay * p[i];
        buffer[i] = step == 0 ? g : given.momentum * buffer[i] + g;
        p[i] -= 0.05 * (given.nesterov        ? g + given.momentum * buffer[i]
                        : given.momentum != 0 ? buffer[i]
                                              : g);
      }
      ASSERT_TRUE((*trainer)->OptimStep().ok());
    }
    double difference = 0;
    for (size_t i = 0; i < p.size(); ++i) {
      difference = std::max(difference, std::abs(p[i] - values[i]));
    }
    EXPECT_LT(difference, 1e-6) << given.momentum << " " << given.weight_decay;
  }
}

TEST(TrainerTest, SgdKeepsOneMomentNotTwo) {
  auto model = MakeModel(TinyConfig(DecoderArchitecture::kGpt2));
  OptimizerOptions options;
  const auto bytes = [&] {
    return (*Trainer::Create(model.get(), {}, options, {}))->state_bytes();
  };
  const int64_t adam = bytes();
  options.kind = OptimizerKind::kSgd;
  EXPECT_EQ(adam - bytes(), model->parameters().flat_size() * 4);
}

TEST(TrainerTest, NesterovMayChangeDuringTrainingTheKindMayNot) {
  std::vector<float> after[2];
  for (int changed = 0; changed < 2; ++changed) {
    auto model = MakeModel(TinyConfig(DecoderArchitecture::kGpt2));
    OptimizerOptions options;
    options.kind = OptimizerKind::kSgd;
    options.momentum = 0.9;
    options.nesterov = changed == 0;
    auto trainer = Trainer::Create(model.get(), {}, options, {});
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    options.nesterov = true;
    ASSERT_TRUE((*trainer)->SetOptimizer(options).ok());
    const Batch batch =
        TokenBatch({{.tokens = RandomTokens(20, 61, 1), .targets = {}, .weights = {}}});
    ASSERT_TRUE((*trainer)->ForwardBackward(batch).ok());
    ASSERT_TRUE((*trainer)->OptimStep().ok());
    const float* flat = model->parameters().flat();
    after[changed].assign(flat, flat + model->parameters().flat_size());
    options.kind = OptimizerKind::kAdam;
    EXPECT_EQ((*trainer)->SetOptimizer(options).code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(after[0], after[1]);
}

TEST(TrainerTest, WeightDecayMayChangeDuringTraining) {
  auto model = MakeModel(TinyConfig(DecoderArchitecture::kGpt2));
  auto trainer = Trainer::Create(model.get(), {}, {}, {});
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  OptimizerOptions options = (*trainer)->optimizer();
  options.no_decay_roles = {ParameterRole::kWeight, ParameterRole::kEmbedding};
  ASSERT_TRUE((*trainer)->SetOptimizer(options).ok());
  EXPECT_EQ((*trainer)->decayed_parameters(), 0);
  options.no_decay_roles.clear();
  options.no_decay = {"nothing"};
  EXPECT_EQ((*trainer)->SetOptimizer(options).code(), absl::StatusCode::kInvalidArgument);
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
  expect([](auto& o) { o.momentum = 1; }, "momentum");
  expect([](auto& o) { o.momentum = NAN; }, "momentum");
  expect([](auto& o) { o.nesterov = true; }, "nesterov");
  expect([](auto& o) { o.max_grad_norm = NAN; }, "max_grad_norm");
}

}  // namespace
}  // namespace tandem

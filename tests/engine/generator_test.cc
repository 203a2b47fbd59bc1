// Sampling: the promise of equal bits, and each option.
#include "engine/sample/generator.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "engine/formats/huggingface.h"
#include "engine/sample/token_sampler.h"
#include "engine/train/trainer.h"
#include "tests/engine/language_model.h"
#include "tests/engine/material.h"

namespace tandem {
namespace {

struct Sample {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs, sampling_logprobs, prompt_logprobs;
  FinishReason finish = FinishReason::kNone;
  absl::Status status;
};

Generator::TokenCallback Collect(Sample* sample) {
  return [sample](const absl::Status& status, const SampledToken& token) {
    sample->status = status;
    if (!status.ok()) return false;
    sample->tokens.push_back(token.token);
    sample->logprobs.push_back(token.logprob);
    sample->sampling_logprobs.push_back(token.sampling_logprob);
    if (!token.prompt_logprobs.empty()) sample->prompt_logprobs = token.prompt_logprobs;
    sample->finish = token.finish;
    return true;
  };
}

void Drain(Generator& generator) {
  for (int i = 0; generator.HasWork() && i < 10000; ++i) generator.Step();
  EXPECT_FALSE(generator.HasWork());
}

uint32_t Bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

// Architecture, precision, and the size of a head: 64 is what tensor cores have kernels for.
class BitEqualTest
    : public testing::TestWithParam<std::tuple<DecoderArchitecture, Precision, int64_t>> {
 protected:
  static DecoderConfig Config() {
    const auto [architecture, precision, head_dim] = GetParam();
    DecoderConfig config = TinyConfig(architecture);
    if (head_dim != config.head_dim) {
      config.layers = 1;
      config.heads = 2;
      config.kv_heads = architecture == DecoderArchitecture::kLlama ? 1 : 2;
      config.head_dim = head_dim;
      config.hidden_size = config.heads * head_dim;
    }
    return config;
  }
};

// Generate (alone; beside others; with the prompt in chunks), Score and the training forward give
// the same bits.
TEST_P(BitEqualTest, GenerateScoreAndTrainingAgree) {
  auto model = MakeModel(Config(), 1, std::get<Precision>(GetParam()));
  const std::vector<int32_t> prompt = RandomTokens(45, 61, 3);
  SamplingOptions options;
  options.max_tokens = 50;
  options.seed = 11;
  options.prompt_logprobs = true;
  Sample alone;
  {
    auto generator = Generator::Create(model.get(), {});
    ASSERT_TRUE(generator.ok());
    ASSERT_TRUE((*generator)->Add(prompt, options, Collect(&alone)).ok());
    Drain(**generator);
  }
  ASSERT_EQ(alone.tokens.size(), 50u);
  EXPECT_EQ(alone.finish, FinishReason::kLength);

  Sample beside;
  std::vector<Sample> others(9);
  {
    Generator::Options small;
    small.prompt_chunk_tokens = 7;
    small.max_sequences = 6;
    auto generator = Generator::Create(model.get(), small);
    ASSERT_TRUE(generator.ok());
    for (uint32_t i = 0; i < others.size(); ++i) {
      SamplingOptions other = options;
      other.seed = 100 + i;
      other.max_tokens = 3 + 9 * i;
      ASSERT_TRUE(
          (*generator)->Add(RandomTokens(1 + 7 * i, 61, i), other, Collect(&others[i])).ok());
      if (i == 4) {
        ASSERT_TRUE((*generator)->Add(prompt, options, Collect(&beside)).ok());
      }
    }
    Drain(**generator);
  }
  EXPECT_EQ(alone.tokens, beside.tokens);

  std::vector<int32_t> whole = prompt;
  whole.insert(whole.end(), alone.tokens.begin(), alone.tokens.end());
  auto scores = ScoreSequences(model.get(), {RandomTokens(33, 61, 8), whole, {5}});
  ASSERT_TRUE(scores.ok()) << scores.status();
  Batch batch;
  batch.sequences.push_back({.tokens = whole, .targets = {}, .weights = {}});
  batch.sequences.push_back({.tokens = RandomTokens(70, 61, 9), .targets = {}, .weights = {}});
  auto trainer = Trainer::Create(model.get(), {}, {}, {});
  ASSERT_TRUE(trainer.ok());
  auto trained = (*trainer)->ForwardBackward(batch);
  ASSERT_TRUE(trained.ok()) << trained.status();

  ASSERT_EQ(alone.prompt_logprobs.size(), prompt.size());
  ASSERT_EQ(beside.prompt_logprobs.size(), prompt.size());
  EXPECT_TRUE(std::isnan(alone.prompt_logprobs[0]));
  for (size_t i = 1; i < whole.size(); ++i) {
    const bool generated = i >= prompt.size();
    const float a = generated ? alone.logprobs[i - prompt.size()] : alone.prompt_logprobs[i];
    const float b = generated ? beside.logprobs[i - prompt.size()] : beside.prompt_logprobs[i];
    EXPECT_EQ(Bits(a), Bits(b)) << "position " << i;
    EXPECT_EQ(Bits(a), Bits((*scores)[1][i])) << "position " << i;
    EXPECT_EQ(Bits(a), Bits(trained->logprobs[i - 1])) << "position " << i;
  }
}

std::string ConfigName(const testing::TestParamInfo<BitEqualTest::ParamType>& info) {
  const auto& [architecture, precision, head_dim] = info.param;
  return StrCat(architecture == DecoderArchitecture::kLlama ? "Llama" : "Gpt2", "_",
                PrecisionName(precision), "_", head_dim);
}

INSTANTIATE_TEST_SUITE_P(
    Decoders, BitEqualTest,
    testing::Combine(testing::Values(DecoderArchitecture::kLlama, DecoderArchitecture::kGpt2),
                     testing::Values(Precision::kF32, Precision::kBF16, Precision::kF16),
                     testing::Values(12, 64)),
    ConfigName);

// Weights that change under a running generation: each token is what Score gives with its weights.
TEST(GeneratorTest, FollowsTheLiveWeights) {
  auto model = MakeModel(TinyConfig(DecoderArchitecture::kLlama));
  OptimizerOptions optimizer;
  optimizer.learning_rate = 0.01;
  auto trainer = Trainer::Create(model.get(), {}, optimizer, {});
  auto generator = Generator::Create(model.get(), {});
  ASSERT_TRUE(trainer.ok() && generator.ok());
  const std::vector<int32_t> prompt = RandomTokens(10, 61, 3);
  std::vector<int32_t> tokens = prompt;
  SamplingOptions options;
  options.max_tokens = 12;
  std::vector<SampledToken> sampled;
  ASSERT_TRUE((*generator)
                  ->Add(prompt, options,
                        [&](const absl::Status&, const SampledToken& t) {
                          sampled.push_back(t);
                          return true;
                        })
                  .ok());
  Batch batch;
  batch.sequences.push_back({.tokens = RandomTokens(50, 61, 4), .targets = {}, .weights = {}});
  while ((*generator)->HasWork()) {
    const size_t before = sampled.size();
    (*generator)->Step();
    if (sampled.size() > before) {
      tokens.push_back(sampled.back().token);
      auto score = ScoreSequences(model.get(), {tokens});
      ASSERT_TRUE(score.ok());
      EXPECT_EQ(Bits(score->at(0).back()), Bits(sampled.back().logprob));
      EXPECT_EQ(sampled.back().weights_version, model->weights_version());
    }
    if (sampled.size() % 3 == 2) {
      ASSERT_TRUE((*trainer)->ForwardBackward(batch).ok());
      ASSERT_TRUE((*trainer)->OptimStep().ok());
    }
  }
  EXPECT_EQ(sampled.size(), 12u);
  EXPECT_GT(sampled.back().weights_version, sampled.front().weights_version);
  EXPECT_GT((*generator)->statistics().recomputed_tokens, 0);
}

TEST(GeneratorTest, RealModelGivesTheReferenceTokens) {
  const std::string folder = MaterialPath("llama/stories260K/");
  TANDEM_NEED_MATERIAL("llama/stories260K/hf-f32");
  for (const char* layout : {"hf-f32", "hf-bf16-untied"}) {
    absl::StatusOr<LoadedModel> loaded = LoadHuggingFace(folder + layout);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    Model model("stories", loaded->source, std::move(loaded->parameters));
    auto generator = Generator::Create(&model, {});
    ASSERT_TRUE(generator.ok());
    const auto reference =
        nlohmann::json::parse(ReadFile(folder + "reference/greedy_" + layout + ".json"));
    for (const auto& expected : reference["results"]) {
      const auto want = expected["generated_ids"].get<std::vector<int32_t>>();
      SamplingOptions options;
      options.temperature = 0;
      options.max_tokens = static_cast<int64_t>(want.size());
      options.stop_token_ids = {1, 2};
      Sample sample;
      ASSERT_TRUE((*generator)->Add(expected["prompt_ids"], options, Collect(&sample)).ok());
      Drain(**generator);
      ASSERT_GE(sample.tokens.size(), want.size());
      for (size_t i = 0; i < want.size(); ++i) {
        EXPECT_EQ(sample.tokens[i], want[i]) << layout << " token " << i;
        EXPECT_NEAR(sample.logprobs[i], expected["steps"][i]["logprob"].get<double>(), 1e-4);
      }
    }
  }
}

TEST(GeneratorTest, CancelFreesPagesAndErrorsAreNamed) {
  auto model = MakeModel(TinyConfig(DecoderArchitecture::kGpt2));
  auto generator = Generator::Create(model.get(), {});
  ASSERT_TRUE(generator.ok());
  Sample sample;
  SamplingOptions options;
  options.max_tokens = 100;
  auto id = (*generator)->Add(RandomTokens(20, 61, 1), options, Collect(&sample));
  ASSERT_TRUE(id.ok());
  (*generator)->Step();
  (*generator)->Step();
  EXPECT_GT((*generator)->statistics().cache_pages_used, 0);
  (*generator)->Cancel(*id);
  EXPECT_FALSE((*generator)->HasWork());
  EXPECT_EQ((*generator)->statistics().cache_pages_used, 0);
  EXPECT_EQ(sample.tokens.size(), 2u);

  const auto expect = [&](std::vector<int32_t> prompt, SamplingOptions o, std::string_view part) {
    const absl::Status status = (*generator)->Add(std::move(prompt), o, Collect(&sample)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_NE(std::string(status.message()).find(part), std::string::npos) << status;
  };
  expect({}, {}, "empty");
  expect({61}, {}, "61");
  expect(RandomTokens(100, 61, 1), options, "160 positions");
  const auto with = [](auto change) {
    SamplingOptions o;
    change(o);
    return o;
  };
  expect({1}, with([](auto& o) { o.temperature = NAN; }), "temperature");
  expect({1}, with([](auto& o) { o.temperature = -1; }), "temperature");
  expect({1}, with([](auto& o) { o.top_p = 0; }), "top_p");
  expect({1}, with([](auto& o) { o.min_p = 1.5; }), "min_p");
  expect({1}, with([](auto& o) { o.max_tokens = 0; }), "max_tokens");
  expect({1}, with([](auto& o) { o.repetition_penalty = 0; }), "repetition_penalty");
  expect({1}, with([](auto& o) { o.logit_bias[99] = 1; }), "logit_bias");
  expect({1}, with([](auto& o) { o.stop_token_ids = {-4}; }), "stop_token_ids");
  expect({1}, with([](auto& o) { o.logprobs = 21; }), "logprobs");
}

// One row of logits, drawn many times: frequencies follow the distribution, each cut holds.
class SamplerTest : public testing::Test {
 protected:
  std::vector<int64_t> Draw(const SamplingOptions& base, int count = 20000) {
    std::vector<int64_t> counts(logits_.size(), 0);
    for (int i = 0; i < count; ++i) {
      SamplingOptions options = base;
      options.seed = static_cast<uint64_t>(i);
      ++counts[Once(options).token];
    }
    return counts;
  }
  SampledToken Once(const SamplingOptions& options) {
    double sum = 0;
    for (float x : logits_) sum += std::exp(x);
    return SampleToken(logits_, static_cast<float>(std::log(sum)), options,
                       {.tokens = history_, .prompt_tokens = 1, .eos_token_ids = eos_}, scratch_);
  }
  std::vector<float> logits_ = {1.0f, 0.0f, 2.0f, -1.0f, 1.5f};
  std::vector<int32_t> history_ = {2, 4, 4};  // prompt 2, generated 4 4
  std::vector<int32_t> eos_ = {2};
  std::vector<float> scratch_;
};

TEST_F(SamplerTest, FrequenciesFollowTheSoftmax) {
  for (double temperature : {1.0, 0.5}) {
    SamplingOptions options;
    options.temperature = temperature;
    const std::vector<int64_t> counts = Draw(options);
    double sum = 0, chi2 = 0;
    for (float x : logits_) sum += std::exp(x / temperature);
    for (size_t i = 0; i < logits_.size(); ++i) {
      const double expected = 20000 * std::exp(logits_[i] / temperature) / sum;
      chi2 += (static_cast<double>(counts[i]) - expected) *
              (static_cast<double>(counts[i]) - expected) / expected;
    }
    EXPECT_LT(chi2, 18.47) << "0.999 quantile of chi-square with 4 degrees of freedom";
  }
}

TEST_F(SamplerTest, EachCutKeepsWhatItSays) {
  SamplingOptions options;
  options.top_k = 2;
  std::vector<int64_t> counts = Draw(options, 2000);
  EXPECT_EQ(counts[0] + counts[1] + counts[3], 0);
  EXPECT_GT(counts[4], 0);
  options = {};
  options.top_p = 0.4;  // the likeliest alone has 0.45
  counts = Draw(options, 500);
  EXPECT_EQ(counts[2], 500);
  options = {};
  options.min_p = 0.5;  // exp(1.5 - 2) = 0.61 stays, exp(1 - 2) = 0.37 does not
  counts = Draw(options, 2000);
  EXPECT_EQ(counts[0] + counts[1] + counts[3], 0);
  EXPECT_GT(counts[4], 0);
  // The reported probability is of what was drawn from.
  EXPECT_NEAR(std::exp(Once(options).sampling_logprob),
              std::exp(logits_[Once(options).token]) / (std::exp(2.0) + std::exp(1.5)), 1e-5);
}

TEST_F(SamplerTest, PenaltiesBiasAndMinTokens) {
  SamplingOptions greedy;
  greedy.temperature = 0;
  EXPECT_EQ(Once(greedy).token, 2);
  SamplingOptions o = greedy;
  o.repetition_penalty = 3;  // 2 / 3 and 1.5 / 3 fall below 1
  EXPECT_EQ(Once(o).token, 0);
  o = greedy;
  o.logit_bias[3] = 10;
  EXPECT_EQ(Once(o).token, 3);
  o = greedy;
  o.min_tokens = 3;  // token 2 ends a sequence; two are generated
  EXPECT_EQ(Once(o).token, 4);
  o.presence_penalty = 0.6;  // 1.5 - 0.6 < 1
  EXPECT_EQ(Once(o).token, 0);
  o.presence_penalty = 0;
  o.frequency_penalty = 0.3;  // twice
  EXPECT_EQ(Once(o).token, 0);
  o.frequency_penalty = 0.2;
  EXPECT_EQ(Once(o).token, 4);
  o = greedy;
  o.logprobs = 3;
  const SampledToken token = Once(o);
  ASSERT_EQ(token.top_logprobs.size(), 3u);
  EXPECT_EQ(token.top_logprobs[0].first, 2);
  EXPECT_EQ(token.top_logprobs[1].first, 4);
  EXPECT_EQ(token.top_logprobs[0].second, token.logprob);
}

TEST_F(SamplerTest, SeedAndStreamDecide) {
  SamplingOptions o;
  const std::vector<int64_t> many = Draw(o, 50);
  std::vector<int32_t> a, b, c;
  for (int i = 0; i < 50; ++i) {
    history_.push_back(0);
    o.stream = 0;
    a.push_back(Once(o).token);
    b.push_back(Once(o).token);
    o.stream = 1;
    c.push_back(Once(o).token);
  }
  EXPECT_EQ(a, b);
  EXPECT_NE(a, c);
}

}  // namespace
}  // namespace tandem

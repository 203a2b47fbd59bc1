// Decoders against a forward pass in double precision, real trained weights, and their own
// promises: packing changes nothing, serving has training's bits, initial weights are the same
// everywhere.
#include "engine/nn/decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include "engine/backend/backend.h"
#include "engine/exec/plan.h"
#include "engine/formats/huggingface.h"
#include "engine/graph/gradient.h"
#include "engine/nn/initialize.h"
#include "engine/ops/ops.h"
#include "nlohmann/json.hpp"
#include "tests/engine/decoder_reference.h"
#include "tests/engine/material.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;
using Tokens = std::vector<int32_t>;

DecoderConfig TinyLlama() {
  DecoderConfig c;
  c.architecture = DecoderArchitecture::kLlama;
  c.vocab_size = 19;
  c.layers = 2;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = 6;
  c.hidden_size = 20;
  c.intermediate_size = 28;
  c.max_positions = 80;
  c.norm_epsilon = 1e-3;
  c.rope_theta = 100;
  c.initializer_std = 0.3;
  return c;
}

DecoderConfig TinyGpt2() {
  DecoderConfig c;
  c.architecture = DecoderArchitecture::kGpt2;
  c.vocab_size = 23;
  c.layers = 3;
  c.heads = 2;
  c.kv_heads = 2;
  c.head_dim = 8;
  c.hidden_size = 16;
  c.intermediate_size = 40;
  c.max_positions = 70;
  c.norm_epsilon = 1e-3;
  c.tie_embeddings = true;
  c.bias = true;
  c.activation = DecoderActivation::kGelu;
  c.initializer_std = 0.3;
  return c;
}

// Random everywhere, so that no norm or bias is neutral.
ParameterStore RandomParameters(const DecoderSource& source, uint64_t seed) {
  ParameterStore store = InitializeParameters(source, seed);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 0.3f);
  for (size_t i = 0; i < source.parameters().size(); ++i) {
    if (source.parameters()[i].shape.rank() != 1) continue;
    for (float& x : store.values(static_cast<int>(i))) x += normal(random);
  }
  return store;
}

std::shared_ptr<const DecoderSource> Source(const DecoderConfig& config) {
  auto source = DecoderSource::Create(config);
  EXPECT_TRUE(source.ok()) << source.status();
  return source.ok() ? *source : nullptr;
}

// Inputs of packed sequences, in the order of the graph's inputs.
struct Packed {
  Tensor tokens, positions, query_start;
  std::vector<const Tensor*> inputs() const { return {&tokens, &positions, &query_start}; }
};

Packed Pack(const std::vector<Tokens>& sequences) {
  Tokens tokens, positions, start = {0};
  for (const Tokens& sequence : sequences) {
    for (size_t i = 0; i < sequence.size(); ++i) positions.push_back(static_cast<int32_t>(i));
    tokens.insert(tokens.end(), sequence.begin(), sequence.end());
    start.push_back(static_cast<int32_t>(tokens.size()));
  }
  const auto tensor = [](const Tokens& v) {
    return Tensor::Of<int32_t>({static_cast<int64_t>(v.size())}, v);
  };
  return {tensor(tokens), tensor(positions), tensor(start)};
}

SequenceValues AddInputs(Builder& builder, const Packed& packed) {
  SequenceValues s;
  s.tokens = builder.Input("tokens", packed.tokens.type());
  s.positions = builder.Input("positions", packed.positions.type());
  s.query_start = builder.Input("query_start", packed.query_start.type());
  return s;
}

std::vector<Tensor> RunGraph(Builder& builder, std::vector<const Tensor*> inputs,
                             const ParameterStore& parameters) {
  absl::StatusOr<Graph> graph = builder.Finish();
  EXPECT_TRUE(graph.ok()) << graph.status();
  if (!graph.ok()) return {};
  auto plan = Plan::Compile(*std::move(graph), CpuBackend());
  EXPECT_TRUE(plan.ok()) << plan.status();
  if (!plan.ok()) return {};
  auto outputs = RunPlan(**plan, inputs, parameters.pointers());
  EXPECT_TRUE(outputs.ok()) << outputs.status();
  return outputs.ok() ? *std::move(outputs) : std::vector<Tensor>{};
}

// Logits of packed sequences; `rows` empty: of all tokens.
Tensor Logits(const DecoderSource& source, const ParameterStore& parameters,
              const std::vector<Tokens>& sequences, const Tokens& rows = {}) {
  const Packed packed = Pack(sequences);
  Builder builder(EvaluateNode);
  SequenceValues s = AddInputs(builder, packed);
  std::vector<const Tensor*> inputs = packed.inputs();
  const Tensor wanted = Tensor::Of<int32_t>({static_cast<int64_t>(rows.size())}, rows);
  if (!rows.empty()) {
    s.logit_rows = builder.Input("rows", wanted.type());
    inputs.push_back(&wanted);
  }
  builder.Output(source.BuildLogits(builder, s));
  std::vector<Tensor> outputs = RunGraph(builder, inputs, parameters);
  return outputs.empty() ? Tensor() : std::move(outputs[0]);
}

double MaxError(const Tensor& logits, int64_t first_row,
                const std::vector<std::vector<double>>& expected) {
  const int64_t v = logits.shape()[1];
  double error = 0;
  for (size_t t = 0; t < expected.size(); ++t) {
    for (int64_t i = 0; i < v; ++i) {
      const double got = logits.data<float>()[(first_row + static_cast<int64_t>(t)) * v + i];
      error = std::max(error, std::abs(got - expected[t][i]));
    }
  }
  return error;
}

Tokens RandomTokens(int64_t vocab, int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  Tokens tokens(count);
  for (int32_t& t : tokens) {
    t = std::uniform_int_distribution<int32_t>(0, static_cast<int32_t>(vocab) - 1)(random);
  }
  return tokens;
}

void CheckAgainstReference(const DecoderConfig& config) {
  const auto source = Source(config);
  ASSERT_NE(source, nullptr);
  const ParameterStore parameters = RandomParameters(*source, 5);
  const std::vector<Tokens> sequences = {RandomTokens(config.vocab_size, 37, 1),
                                         RandomTokens(config.vocab_size, 1, 2),
                                         RandomTokens(config.vocab_size, 9, 3)};
  const Tensor logits = Logits(*source, parameters, sequences);
  ASSERT_EQ(logits.shape(), (Shape{47, config.vocab_size}));
  const DecoderReference reference(*source, parameters);
  int64_t row = 0;
  double largest = 0;
  for (const Tokens& sequence : sequences) {
    const auto expected = reference.Logits(sequence);
    EXPECT_LT(MaxError(logits, row, expected), 1e-4);
    for (const auto& r : expected) {
      for (double x : r) largest = std::max(largest, std::abs(x));
    }
    row += static_cast<int64_t>(sequence.size());
  }
  EXPECT_GT(largest, 0.5);  // else the comparison would say little
}

TEST(Decoder, LlamaAgreesWithTheReference) {
  for (const bool tie : {false, true}) {
    DecoderConfig config = TinyLlama();
    config.tie_embeddings = tie;
    CheckAgainstReference(config);
  }
}

TEST(Decoder, LlamaWithBiasesAgreesWithTheReference) {
  DecoderConfig config = TinyLlama();
  config.attention_bias = true;
  CheckAgainstReference(config);
  config.mlp_bias = true;
  config.kv_heads = 1;
  CheckAgainstReference(config);
}

TEST(Decoder, ScaledRotaryPositionsAgreeWithTheReference) {
  DecoderConfig config = TinyLlama();
  config.head_dim = 12;
  config.rope_scaling = {.kind = RopeScaling::Kind::kLinear, .factor = 3};
  CheckAgainstReference(config);
  // Of the wavelengths 6 to 290, some are scaled, some not, and some lie between.
  config.rope_scaling = {.kind = RopeScaling::Kind::kLlama3,
                         .factor = 8,
                         .low_freq_factor = 1,
                         .high_freq_factor = 4,
                         .original_max_positions = 64};
  CheckAgainstReference(config);
}

TEST(Decoder, Gpt2AgreesWithTheReference) {
  for (const bool bias : {false, true}) {
    for (const auto activation : {DecoderActivation::kGelu, DecoderActivation::kGeluTanh}) {
      DecoderConfig config = TinyGpt2();
      config.bias = bias;
      config.activation = activation;
      config.tie_embeddings = !bias;
      CheckAgainstReference(config);
    }
  }
}

TEST(Decoder, WantedRowsAndNeighboursDoNotChangeBits) {
  for (const DecoderConfig& config : {TinyLlama(), TinyGpt2()}) {
    const auto source = Source(config);
    const ParameterStore parameters = RandomParameters(*source, 6);
    const Tokens a = RandomTokens(config.vocab_size, 40, 4),
                 b = RandomTokens(config.vocab_size, 7, 5);
    const Tensor all = Logits(*source, parameters, {a, b});
    const Tensor alone = Logits(*source, parameters, {b});
    const Tensor rows = Logits(*source, parameters, {a, b}, {46, 3});
    ASSERT_EQ(rows.shape(), (Shape{2, config.vocab_size}));
    const size_t row_bytes = sizeof(float) * config.vocab_size;
    const auto row = [&](const Tensor& t, int64_t i) {
      return t.data<float>().data() + i * config.vocab_size;
    };
    EXPECT_EQ(std::memcmp(row(all, 40), row(alone, 0), 7 * row_bytes), 0);
    EXPECT_EQ(std::memcmp(row(all, 46), row(rows, 0), row_bytes), 0);
    EXPECT_EQ(std::memcmp(row(all, 3), row(rows, 1), row_bytes), 0);
  }
}

// A prompt in two chunks, then tokens one by one, through a paged KV cache whose blocks are not in
// order: every row has the bits of the whole sequence at once.
TEST(Decoder, ServingFromACacheHasTrainingsBits) {
  constexpr int64_t kBlock = 32, kBlocks = 5;
  for (const DecoderConfig& config : {TinyLlama(), TinyGpt2()}) {
    const auto source = Source(config);
    const ParameterStore parameters = RandomParameters(*source, 7);
    const Tokens tokens = RandomTokens(config.vocab_size, 70, 6);
    const Tensor whole = Logits(*source, parameters, {tokens});
    const TensorType k_type = {DType::kF32, {kBlocks, config.kv_heads, config.head_dim, kBlock}};
    const TensorType v_type = {DType::kF32, {kBlocks, config.kv_heads, kBlock, config.head_dim}};
    std::vector<Tensor> caches;
    for (int64_t i = 0; i < config.layers; ++i) {
      caches.push_back(Tensor::Zeros(k_type));
      caches.push_back(Tensor::Zeros(v_type));
    }
    const Tensor block_table = Tensor::Of<int32_t>({1, 3}, {3, 1, 4});
    int32_t past = 0;
    for (const int32_t count : {33, 30, 1, 1, 1, 2, 2}) {
      Packed packed = Pack({Tokens(tokens.begin() + past, tokens.begin() + past + count)});
      for (int32_t& p : packed.positions.data<int32_t>()) p += past;
      const Tensor past_length = Tensor::Of<int32_t>({1}, {past});
      Builder builder(EvaluateNode);
      SequenceValues s = AddInputs(builder, packed);
      std::vector<const Tensor*> inputs = packed.inputs();
      s.past_length = builder.Input("past_length", past_length.type());
      s.block_table = builder.Input("block_table", block_table.type());
      inputs.insert(inputs.end(), {&past_length, &block_table});
      for (int64_t i = 0; i < config.layers; ++i) {
        s.k_cache.push_back(builder.Input("k", k_type));
        s.v_cache.push_back(builder.Input("v", v_type));
        inputs.insert(inputs.end(), {&caches[2 * i], &caches[2 * i + 1]});
      }
      builder.Output(source->BuildLogits(builder, s));
      const std::vector<Tensor> outputs = RunGraph(builder, inputs, parameters);
      ASSERT_EQ(outputs.size(), 1u);
      EXPECT_EQ(std::memcmp(outputs[0].raw(), whole.data<float>().data() + past * config.vocab_size,
                            outputs[0].bytes()),
                0)
          << "tokens " << past << " to " << past + count;
      past += count;
    }
    EXPECT_EQ(past, 70);
  }
}

TEST(Decoder, ForwardByName) {
  const auto source = Source(TinyGpt2());
  const ParameterStore parameters = RandomParameters(*source, 8);
  const Tokens tokens = RandomTokens(23, 11, 7);
  const Tensor expected = Logits(*source, parameters, {tokens});
  Model model("tiny", source, RandomParameters(*source, 8));
  Tensor ids(DType::kI64, {11});
  std::copy(tokens.begin(), tokens.end(), ids.data<int64_t>().begin());
  const auto outputs = model.Forward({{"input_ids", &ids}});
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  ASSERT_EQ((*outputs)[0].type(), expected.type());
  EXPECT_EQ(std::memcmp((*outputs)[0].raw(), expected.raw(), expected.bytes()), 0);
  const Tensor long_ids = Tensor::Zeros({DType::kI64, {71}});
  EXPECT_THAT(std::string(model.Forward({{"input_ids", &long_ids}}).status().message()),
              HasSubstr("71 tokens, expected 1 to 70"));
  const Tensor none = Tensor::Zeros({DType::kI64, {0}});
  EXPECT_FALSE(model.Forward({{"input_ids", &none}}).ok());
}

// --- stories260K ---------------------------------------------------------------------------------

// Log-probabilities of the tokens after each position, against the reference's own.
void CheckGreedy(const std::string& folder) {
  TANDEM_NEED_MATERIAL("llama/stories260K/" + folder);
  const auto model = LoadHuggingFace(MaterialPath("llama/stories260K/" + folder));
  ASSERT_TRUE(model.ok()) << model.status();
  const auto& source = dynamic_cast<const DecoderSource&>(*model->source);
  const Json reference =
      Json::parse(ReadFile(MaterialPath("llama/stories260K/reference/greedy_" + folder + ".json")));
  ASSERT_FALSE(reference["results"].empty());
  for (const Json& item : reference["results"]) {
    Tokens tokens = item["prompt_ids"];
    const size_t prompt = tokens.size();
    for (int32_t id : item["generated_ids"]) tokens.push_back(id);
    const Tensor logits = Logits(source, model->parameters, {tokens});
    for (size_t step = 0; step < item["steps"].size(); ++step) {
      const auto row = logits.data<float>().subspan((prompt + step - 1) * 512, 512);
      double sum = 0;
      for (float x : row) sum += std::exp(static_cast<double>(x));
      for (const Json& top : item["steps"][step]["top5"]) {
        const double logprob = row[top[0].get<size_t>()] - std::log(sum);
        ASSERT_NEAR(logprob, top[1].get<double>(), 1e-4) << "step " << step;
      }
      EXPECT_EQ(std::max_element(row.begin(), row.end()) - row.begin(),
                item["steps"][step]["id"].get<int64_t>());
    }
  }
}

TEST(Stories260K, LogProbabilitiesOfTheF32Model) { CheckGreedy("hf-f32"); }
TEST(Stories260K, LogProbabilitiesOfTheBf16UntiedModel) { CheckGreedy("hf-bf16-untied"); }

TEST(Stories260K, LossAndGradientsAgreeWithTheReference) {
  TANDEM_NEED_MATERIAL("llama/stories260K/reference/train_reference.json");
  const auto model = LoadHuggingFace(MaterialPath("llama/stories260K/hf-f32"));
  ASSERT_TRUE(model.ok()) << model.status();
  const Json reference =
      Json::parse(ReadFile(MaterialPath("llama/stories260K/reference/train_reference.json")));
  const Tokens ids = reference["token_ids"];
  const Packed packed = Pack({Tokens(ids.begin(), ids.end() - 1)});
  const Tensor targets = Tensor::Of<int32_t>({static_cast<int64_t>(ids.size()) - 1},
                                             Tokens(ids.begin() + 1, ids.end()));
  Builder builder(EvaluateNode);
  const SequenceValues s = AddInputs(builder, packed);
  const Value target = builder.Input("targets", targets.type());
  const Value logits = model->source->BuildLogits(builder, s);
  const Value loss = ops::ReduceMean(builder, ops::SoftmaxCrossEntropy(builder, logits, target)[0],
                                     {}, /*keep=*/false);
  std::vector<Value> wrt;
  const auto& infos = model->source->parameters();
  for (size_t i = 0; i < infos.size(); ++i) {
    wrt.push_back(
        builder.Parameter(static_cast<int32_t>(i), infos[i].name, {DType::kF32, infos[i].shape}));
  }
  const auto gradients = Gradient(builder, loss, wrt);
  ASSERT_TRUE(gradients.ok()) << gradients.status();
  builder.Output(loss);
  for (const Value g : *gradients) builder.Output(g);
  std::vector<const Tensor*> inputs = packed.inputs();
  inputs.push_back(&targets);
  const std::vector<Tensor> outputs = RunGraph(builder, inputs, model->parameters);
  ASSERT_EQ(outputs.size(), infos.size() + 1);
  const double expected_loss = reference["loss"];
  EXPECT_NEAR(outputs[0].data<float>()[0], expected_loss, 1e-4 * expected_loss);
  double total = 0;
  for (size_t i = 0; i < infos.size(); ++i) {
    double square = 0;
    for (float g : outputs[i + 1].data<float>()) square += static_cast<double>(g) * g;
    const double expected = reference["grad_norm_per_tensor"].at(infos[i].name);
    EXPECT_NEAR(std::sqrt(square), expected, 1e-4 * expected) << infos[i].name;
    total += square;
  }
  const double expected_norm = reference["grad_norm"];
  EXPECT_NEAR(std::sqrt(total), expected_norm, 1e-4 * expected_norm);
}

// --- configuration and initialisation
// --------------------------------------------------------------

TEST(DecoderConfig, ErrorsNameTheField) {
  const auto error = [](auto&& change, DecoderConfig config) {
    change(config);
    return std::string(DecoderSource::Create(config).status().message());
  };
  using C = DecoderConfig;
  EXPECT_THAT(error([](C& c) { c.vocab_size = 0; }, TinyLlama()), HasSubstr("vocab_size is 0"));
  EXPECT_THAT(error([](C& c) { c.layers = -1; }, TinyLlama()), HasSubstr("layers is -1"));
  EXPECT_THAT(error([](C& c) { c.heads = 1 << 20; }, TinyLlama()), HasSubstr("heads is 1048576"));
  EXPECT_THAT(error([](C& c) { c.kv_heads = 3; }, TinyLlama()),
              HasSubstr("heads 4 is not a multiple of kv_heads 3"));
  EXPECT_THAT(error([](C& c) { c.head_dim = 7; }, TinyLlama()), HasSubstr("head_dim is 7"));
  EXPECT_THAT(error([](C& c) { c.hidden_size = INT64_MAX; }, TinyLlama()),
              HasSubstr("hidden_size"));
  EXPECT_THAT(error([](C& c) { c.intermediate_size = 0; }, TinyLlama()),
              HasSubstr("intermediate_size is 0"));
  EXPECT_THAT(error([](C& c) { c.max_positions = 0; }, TinyLlama()), HasSubstr("max_positions"));
  EXPECT_THAT(error([](C& c) { c.norm_epsilon = 0; }, TinyLlama()), HasSubstr("norm_epsilon"));
  EXPECT_THAT(error([](C& c) { c.norm_epsilon = std::nan(""); }, TinyLlama()),
              HasSubstr("norm_epsilon"));
  EXPECT_THAT(error([](C& c) { c.rope_theta = 0; }, TinyLlama()), HasSubstr("rope_theta"));
  EXPECT_THAT(error([](C& c) { c.initializer_std = -1; }, TinyLlama()),
              HasSubstr("initializer_std"));
  EXPECT_THAT(error([](C& c) { c.activation = DecoderActivation::kGelu; }, TinyLlama()),
              HasSubstr("activation"));
  EXPECT_THAT(error([](C& c) { c.bias = true; }, TinyLlama()), HasSubstr("bias"));
  EXPECT_THAT(error(
                  [](C& c) {
                    c.eos_token_ids = {3, 19};
                  },
                  TinyLlama()),
              HasSubstr("eos_token_id 19"));
  EXPECT_THAT(error([](C& c) { c.bos_token_id = -1; }, TinyLlama()), HasSubstr("bos_token_id -1"));
  EXPECT_THAT(error([](C& c) { c.max_positions = 1 << 22, c.head_dim = 1024; }, TinyLlama()),
              HasSubstr("table of rotary positions"));
  EXPECT_THAT(
      error([](C& c) { c.layers = 1024, c.hidden_size = 1 << 17, c.intermediate_size = 1 << 19; },
            TinyLlama()),
      HasSubstr("bytes of parameters"));
  EXPECT_THAT(error(
                  [](C& c) {
                    c.rope_scaling = {RopeScaling::Kind::kLinear, 0.5};
                  },
                  TinyLlama()),
              HasSubstr("rope_scaling.factor is 0.5"));
  EXPECT_THAT(error(
                  [](C& c) {
                    c.rope_scaling = {RopeScaling::Kind::kLlama3, 8, 4, 1, 64};
                  },
                  TinyLlama()),
              HasSubstr("expected 0 < low < high"));
  EXPECT_THAT(error([](C& c) { c.kv_heads = 1; }, TinyGpt2()), HasSubstr("kv_heads is 1"));
  EXPECT_THAT(error([](C& c) { c.head_dim = 4; }, TinyGpt2()), HasSubstr("is not hidden_size 16"));
  EXPECT_THAT(error([](C& c) { c.activation = DecoderActivation::kSilu; }, TinyGpt2()),
              HasSubstr("activation"));
  EXPECT_THAT(error([](C& c) { c.mlp_bias = true; }, TinyGpt2()), HasSubstr("mlp_bias"));
}

TEST(DecoderSource, ParametersHaveTheStandardNamesAndLayouts) {
  const auto shape = [](const DecoderSource& source, const std::string& name) {
    for (const ParameterInfo& info : source.parameters()) {
      if (info.name == name) return info.shape.ToString();
    }
    return std::string("none");
  };
  const auto llama = Source(TinyLlama());
  EXPECT_EQ(llama->parameters().size(), 1u + 2 * 9 + 2);
  EXPECT_EQ(shape(*llama, "model.embed_tokens.weight"), "(19,20)");
  EXPECT_EQ(shape(*llama, "model.layers.1.self_attn.q_proj.weight"), "(24,20)");
  EXPECT_EQ(shape(*llama, "model.layers.1.self_attn.k_proj.weight"), "(12,20)");
  EXPECT_EQ(shape(*llama, "model.layers.0.self_attn.o_proj.weight"), "(20,24)");
  EXPECT_EQ(shape(*llama, "model.layers.0.mlp.down_proj.weight"), "(20,28)");
  EXPECT_EQ(shape(*llama, "model.layers.0.self_attn.q_proj.bias"), "none");
  EXPECT_EQ(shape(*llama, "lm_head.weight"), "(19,20)");
  const auto gpt2 = Source(TinyGpt2());
  EXPECT_EQ(gpt2->parameters().size(), 2u + 3 * 12 + 2);
  EXPECT_EQ(shape(*gpt2, "transformer.wpe.weight"), "(70,16)");
  EXPECT_EQ(shape(*gpt2, "transformer.h.2.attn.c_attn.weight"), "(16,48)");
  EXPECT_EQ(shape(*gpt2, "transformer.h.2.attn.c_attn.bias"), "(48)");
  EXPECT_EQ(shape(*gpt2, "transformer.h.0.mlp.c_proj.weight"), "(40,16)");
  EXPECT_EQ(shape(*gpt2, "lm_head.weight"), "none");
  EXPECT_EQ(gpt2->sequence()->max_positions, 70);
  EXPECT_EQ(llama->sequence()->kv_heads, 2);
}

TEST(Initialize, DrawsTheRightDistributions) {
  DecoderConfig config = TinyGpt2();
  config.vocab_size = 4000;
  config.initializer_std = 0.02;
  const auto source = Source(config);
  const ParameterStore a = InitializeParameters(*source, 1), b = InitializeParameters(*source, 2);
  const ParameterStore again = InitializeParameters(*source, 1);
  EXPECT_EQ(std::memcmp(a.flat(), again.flat(), sizeof(float) * a.flat_size()), 0);
  for (size_t i = 0; i < source->parameters().size(); ++i) {
    const ParameterInfo& info = source->parameters()[i];
    const auto values = a.values(static_cast<int>(i));
    double sum = 0, square = 0;
    for (float x : values) sum += x, square += static_cast<double>(x) * x;
    const double n = static_cast<double>(values.size());
    if (info.role == ParameterRole::kNorm) {
      EXPECT_EQ(sum, n) << info.name;
      EXPECT_EQ(square, n) << info.name;
    } else if (info.role == ParameterRole::kBias) {
      EXPECT_EQ(square, 0) << info.name;
    } else {
      const double std = info.name.ends_with("c_proj.weight") ? 0.02 / std::sqrt(6.0) : 0.02;
      EXPECT_NEAR(sum / n, 0, 5 * std / std::sqrt(n)) << info.name;
      EXPECT_NEAR(std::sqrt(square / n) / std, 1, 5 / std::sqrt(2 * n)) << info.name;
      EXPECT_NE(values[0], b.values(static_cast<int>(i))[0]);
      EXPECT_NE(values[0], a.values(static_cast<int>(i == 0 ? 1 : 0))[0]);
    }
  }
}

TEST(Initialize, BoxMullerIsExact) {
  double error = 0;
  std::mt19937_64 random(3);
  for (int i = 0; i < 100000; ++i) {
    const double u1 = (static_cast<double>(random() >> 40) + 0.5) * 0x1p-24;
    const double u2 = (static_cast<double>(random() >> 40) + 0.5) * 0x1p-24;
    const auto [a, b] = BoxMuller(u1, u2);
    const double radius = std::sqrt(-2 * std::log(u1));
    error = std::max(error, std::abs(a - radius * std::cos(2 * M_PI * u2)));
    error = std::max(error, std::abs(b - radius * std::sin(2 * M_PI * u2)));
  }
  EXPECT_LT(error, 1e-14);
}

TEST(Initialize, BitsAreFixed) {
  // From another implementation of the same definition; a change would change every run from a
  // seed.
  const auto source = Source(TinyLlama());
  const ParameterStore store = InitializeParameters(*source, 42);
  const auto bits = [&](int parameter, int i) {
    return std::bit_cast<uint32_t>(store.values(parameter)[i]);
  };
  EXPECT_EQ(bits(0, 0), 0xbe95056bu);
  EXPECT_EQ(bits(0, 379), 0x3e289406u);
  EXPECT_EQ(bits(5, 7), 0x3d768432u);
}

}  // namespace
}  // namespace tandem

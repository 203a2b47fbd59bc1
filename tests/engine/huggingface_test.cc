// Hugging Face folders: what loads, what is refused by name, and that a saved folder is the same
// model with the same bits.
#include "engine/formats/huggingface.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <map>

#include "engine/formats/safetensors.h"
#include "engine/formats/tokenizer.h"
#include "engine/nn/initialize.h"
#include "nlohmann/json.hpp"
#include "tests/engine/material.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

Json LlamaJson() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"vocab_size", 11},
          {"hidden_size", 8},
          {"intermediate_size", 12},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 2},
          {"num_key_value_heads", 1},
          {"max_position_embeddings", 32},
          {"rms_norm_eps", 1e-5},
          {"tie_word_embeddings", true},
          {"hidden_act", "silu"},
          {"rope_scaling", nullptr},
          {"torch_dtype", "float32"},
          {"bos_token_id", 1},
          {"eos_token_id", {2, 3}}};
}

Json Gpt2Json() {
  return {{"architectures", {"GPT2LMHeadModel"}},
          {"vocab_size", 11},
          {"n_embd", 8},
          {"n_layer", 2},
          {"n_head", 2},
          {"n_positions", 16},
          {"n_ctx", 16},
          {"activation_function", "gelu_new"},
          {"resid_pdrop", 0.1},
          {"eos_token_id", 50256}};
}

std::string ConfigError(Json json, const std::string& field, const Json& value) {
  json[field] = value;
  return std::string(ParseHuggingFaceConfig(json.dump()).status().message());
}

TEST(HuggingFaceConfig, Llama) {
  const auto config = ParseHuggingFaceConfig(LlamaJson().dump());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->architecture, DecoderArchitecture::kLlama);
  EXPECT_EQ(config->head_dim, 4);
  EXPECT_EQ(config->kv_heads, 1);
  EXPECT_EQ(config->rope_theta, 10000);
  EXPECT_EQ(config->max_positions, 32);
  EXPECT_TRUE(config->tie_embeddings);
  EXPECT_FALSE(config->attention_bias);
  EXPECT_EQ(config->bos_token_id, 1);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(2, 3));
  Json json = LlamaJson();
  json["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 500000.0}};
  json["attention_bias"] = true;
  json.erase("num_key_value_heads");
  const auto other = ParseHuggingFaceConfig(json.dump());
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ(other->rope_theta, 500000);
  EXPECT_EQ(other->kv_heads, 2);
  EXPECT_TRUE(other->attention_bias);
}

TEST(HuggingFaceConfig, RopeScaling) {
  Json json = LlamaJson();
  json["rope_scaling"] = Json::parse(
      R"({"factor": 32.0, "high_freq_factor": 4.5, "low_freq_factor": 1.5,
          "original_max_position_embeddings": 8000, "rope_type": "llama3"})");
  auto config = ParseHuggingFaceConfig(json.dump());
  ASSERT_TRUE(config.ok()) << config.status();
  const RopeScaling expected = {RopeScaling::Kind::kLlama3, 32, 1.5, 4.5, 8000};
  EXPECT_EQ(config->rope_scaling, expected);
  EXPECT_EQ(*ParseHuggingFaceConfig(WriteHuggingFaceConfig(*config, DType::kF32)), *config);
  json["rope_scaling"] = {{"type", "linear"}, {"factor", 2}};
  config = ParseHuggingFaceConfig(json.dump());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->rope_scaling.kind, RopeScaling::Kind::kLinear);
  EXPECT_EQ(config->rope_scaling.factor, 2);
  EXPECT_EQ(*ParseHuggingFaceConfig(WriteHuggingFaceConfig(*config, DType::kF32)), *config);
}

TEST(HuggingFaceConfig, Gpt2) {
  const auto config = ParseHuggingFaceConfig(Gpt2Json().dump());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->architecture, DecoderArchitecture::kGpt2);
  EXPECT_EQ(config->intermediate_size, 32);
  EXPECT_EQ(config->activation, DecoderActivation::kGeluTanh);
  EXPECT_TRUE(config->bias);
  EXPECT_TRUE(config->tie_embeddings);
  EXPECT_TRUE(config->eos_token_ids.empty());  // 50256 is beyond this vocabulary
  Json json = Gpt2Json();
  json["bias"] = false;
  json["n_inner"] = 20;
  json["activation_function"] = "gelu";
  const auto other = ParseHuggingFaceConfig(json.dump());
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_FALSE(other->bias);
  EXPECT_EQ(other->intermediate_size, 20);
  EXPECT_EQ(other->activation, DecoderActivation::kGelu);
}

TEST(HuggingFaceConfig, WhatIsNotSupportedIsNamed) {
  EXPECT_THAT(ConfigError(LlamaJson(), "rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}}),
              HasSubstr("rope_scaling has type dynamic"));
  EXPECT_THAT(ConfigError(LlamaJson(), "rope_parameters", {{"rope_type", "yarn"}}),
              HasSubstr("rope_parameters has type yarn"));
  EXPECT_THAT(ConfigError(LlamaJson(), "rope_scaling",
                          {{"type", "linear"}, {"factor", 2.0}, {"mscale", 1.5}}),
              HasSubstr("rope_scaling: field mscale (1.5)"));
  EXPECT_THAT(ConfigError(LlamaJson(), "rope_scaling", {{"type", "linear"}}),
              HasSubstr("rope_scaling.factor is 0"));
  EXPECT_THAT(ConfigError(LlamaJson(), "rope_scaling", {{"type", "llama3"}, {"factor", 8.0}}),
              HasSubstr("rope_scaling: original_max_position_embeddings is missing"));
  EXPECT_THAT(ConfigError(LlamaJson(), "rope_scaling", "linear"), HasSubstr("expected an object"));
  EXPECT_THAT(ConfigError(LlamaJson(), "hidden_act", "gelu"), HasSubstr("hidden_act is gelu"));
  EXPECT_THAT(ConfigError(LlamaJson(), "sliding_window", 4096), HasSubstr("sliding_window (4096)"));
  EXPECT_THAT(ConfigError(LlamaJson(), "quantization_config", {{"bits", 4}}),
              HasSubstr("quantization_config"));
  EXPECT_THAT(ConfigError(LlamaJson(), "model_type", "mistral"),
              HasSubstr("model_type is \"mistral\""));
  EXPECT_THAT(ConfigError(LlamaJson(), "architectures", {"MistralForCausalLM"}),
              HasSubstr("architecture MistralForCausalLM"));
  EXPECT_THAT(ConfigError(Gpt2Json(), "activation_function", "relu"),
              HasSubstr("activation_function is relu"));
  EXPECT_THAT(ConfigError(Gpt2Json(), "scale_attn_weights", false),
              HasSubstr("scale_attn_weights is false"));
  EXPECT_THAT(ConfigError(Gpt2Json(), "scale_attn_by_inverse_layer_idx", true),
              HasSubstr("scale_attn_by_inverse_layer_idx is true"));
  EXPECT_THAT(ConfigError(Gpt2Json(), "add_cross_attention", true),
              HasSubstr("add_cross_attention"));
  // A feature that is written down as absent is no feature.
  EXPECT_EQ(ConfigError(LlamaJson(), "sliding_window", nullptr), "");
  EXPECT_EQ(ConfigError(LlamaJson(), "use_sliding_window", false), "");
}

TEST(HuggingFaceConfig, MalformedFieldsAreNamed) {
  EXPECT_THAT(ConfigError(LlamaJson(), "hidden_size", "8"),
              HasSubstr("hidden_size is \"8\", expected an integer"));
  EXPECT_THAT(ConfigError(LlamaJson(), "hidden_size", 8.5), HasSubstr("hidden_size is 8.5"));
  EXPECT_THAT(ConfigError(LlamaJson(), "vocab_size", UINT64_MAX), HasSubstr("vocab_size is 1844"));
  EXPECT_THAT(ConfigError(LlamaJson(), "vocab_size", -5), HasSubstr("vocab_size is -5"));
  EXPECT_THAT(ConfigError(LlamaJson(), "num_attention_heads", 0), HasSubstr("heads is 0"));
  EXPECT_THAT(ConfigError(LlamaJson(), "num_hidden_layers", nullptr),
              HasSubstr("num_hidden_layers is missing"));
  EXPECT_THAT(ConfigError(LlamaJson(), "tie_word_embeddings", 1),
              HasSubstr("tie_word_embeddings is 1, expected true or false"));
  EXPECT_THAT(ConfigError(LlamaJson(), "rms_norm_eps", "x"), HasSubstr("rms_norm_eps"));
  EXPECT_THAT(ConfigError(LlamaJson(), "architectures", "LlamaForCausalLM"),
              HasSubstr("architectures"));
  for (const char* text : {"", "{", "[]", "null", "{\"architectures\": []}"}) {
    EXPECT_FALSE(ParseHuggingFaceConfig(text).ok()) << text;
  }
  EXPECT_THAT(
      std::string(
          ParseHuggingFaceConfig(R"({"vocab_size": 1, "vocab_size": 2})").status().message()),
      HasSubstr("'vocab_size' appears twice"));
  EXPECT_THAT(
      std::string(ParseHuggingFaceConfig("{\"a\":" + std::string(1000000, '[')).status().message()),
      HasSubstr("nested deeper"));
}

TEST(HuggingFaceConfig, WhatIsWrittenReadsBack) {
  for (Json json : {LlamaJson(), Gpt2Json()}) {
    auto config = ParseHuggingFaceConfig(json.dump());
    ASSERT_TRUE(config.ok());
    const auto check = [&] {
      const auto again = ParseHuggingFaceConfig(WriteHuggingFaceConfig(*config, DType::kBF16));
      ASSERT_TRUE(again.ok()) << again.status();
      EXPECT_EQ(*again, *config);
    };
    check();
    config->norm_epsilon = 3e-6;
    config->initializer_std = 0.013;
    config->tie_embeddings = !config->tie_embeddings;
    config->eos_token_ids = {7};
    config->bos_token_id = std::nullopt;
    check();
    if (config->architecture == DecoderArchitecture::kLlama) {
      config->rope_theta = 123456.5;
      config->mlp_bias = true;
      config->head_dim = 10;
    } else {
      config->bias = false;
      config->activation = DecoderActivation::kGelu;
    }
    check();
  }
}

// --- folders
// -----------------------------------------------------------------------------------------

// A folder of that configuration with random weights, its tensors changed by `change`.
using Tensors = std::map<std::string, SafetensorsSource>;

class FolderMaker {
 public:
  explicit FolderMaker(const Json& config) : config_(config) {
    source_ = DecoderSource::Create(ParseHuggingFaceConfig(config.dump()).value()).value();
    store_ = std::make_unique<ParameterStore>(InitializeParameters(*source_, 9));
    for (size_t i = 0; i < source_->parameters().size(); ++i) {
      const ParameterInfo& info = source_->parameters()[i];
      tensors[info.name] = {info.name,
                            {info.shape.begin(), info.shape.end()},
                            DType::kF32,
                            store_->values(static_cast<int>(i))};
    }
  }
  void Write(const TemporaryFolder& folder) const {
    WriteFile(folder / "config.json", config_.dump());
    WriteShard(folder / "model.safetensors", [](const std::string&) { return true; });
  }
  void WriteShard(const std::string& path,
                  const std::function<bool(const std::string&)>& wanted) const {
    std::vector<SafetensorsSource> sources;
    for (const auto& [name, tensor] : tensors) {
      if (!wanted(name)) continue;
      sources.push_back(tensor);
      sources.back().name = name;
    }
    ASSERT_TRUE(WriteSafetensors(path, sources, {}).ok());
  }
  const DecoderSource& source() const { return *source_; }
  const ParameterStore& store() const { return *store_; }

  Tensors tensors;

 private:
  Json config_;
  std::shared_ptr<const DecoderSource> source_;
  std::unique_ptr<ParameterStore> store_;
};

std::string LoadError(const FolderMaker& maker) {
  const TemporaryFolder folder;
  maker.Write(folder);
  return std::string(LoadHuggingFace(folder.path()).status().message());
}

void ExpectSameWeights(const LoadedModel& model, const FolderMaker& maker) {
  ASSERT_EQ(model.parameters.flat_size(), maker.store().flat_size());
  EXPECT_EQ(std::memcmp(model.parameters.flat(), maker.store().flat(),
                        sizeof(float) * maker.store().flat_size()),
            0);
}

TEST(HuggingFace, LoadsItsOwnKindOfFolder) {
  for (const Json& config : {LlamaJson(), Gpt2Json()}) {
    const FolderMaker maker(config);
    const TemporaryFolder folder;
    EXPECT_FALSE(IsHuggingFaceFolder(folder.path()));
    maker.Write(folder);
    EXPECT_TRUE(IsHuggingFaceFolder(folder.path()));
    const auto model = LoadHuggingFace(folder.path());
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ(model->source->format(), "huggingface");
    ExpectSameWeights(*model, maker);
  }
}

TEST(HuggingFace, GenerationConfigAddsEndTokens) {
  const TemporaryFolder folder;
  FolderMaker(LlamaJson()).Write(folder);
  WriteFile(folder / "generation_config.json", R"({"eos_token_id": [3, 5, 999]})");
  const auto model = LoadHuggingFace(folder.path());
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_THAT(model->source->sequence()->eos_token_ids, ElementsAre(2, 3, 5));
  WriteFile(folder / "generation_config.json", R"({"eos_token_id": "x"})");
  EXPECT_THAT(std::string(LoadHuggingFace(folder.path()).status().message()),
              HasSubstr("eos_token_id is \"x\""));
}

TEST(HuggingFace, ErrorsNameTheTensor) {
  FolderMaker missing(LlamaJson());
  missing.tensors.erase("model.layers.1.mlp.up_proj.weight");
  EXPECT_THAT(LoadError(missing), HasSubstr("model.layers.1.mlp.up_proj.weight (12,8) is missing"));
  FolderMaker extra(LlamaJson());
  extra.tensors["model.layers.2.input_layernorm.weight"] =
      extra.tensors["model.layers.1.input_layernorm.weight"];
  EXPECT_THAT(LoadError(extra),
              HasSubstr("model.layers.2.input_layernorm.weight is not part of the model"));
  FolderMaker shape(LlamaJson());
  shape.tensors["model.norm.weight"].shape = {2, 4};
  EXPECT_THAT(LoadError(shape), HasSubstr("model.norm.weight is (2,4), expected (8)"));
  FolderMaker tied(LlamaJson());
  tied.tensors["lm_head.weight"] = tied.tensors["model.embed_tokens.weight"];
  EXPECT_EQ(LoadError(tied), "");
  std::vector<float> other(88, 0.5f);
  tied.tensors["lm_head.weight"].values = other;
  EXPECT_THAT(LoadError(tied), HasSubstr("lm_head.weight differs from the embedding"));
}

TEST(HuggingFace, OldBuffersAndNamesAreKnown) {
  // openai-community/gpt2's own file: no "transformer.", and the causal mask beside the weights.
  FolderMaker gpt2(Gpt2Json());
  const std::vector<float> mask(16 * 16);
  Tensors renamed;
  for (const auto& [name, tensor] : gpt2.tensors) {
    renamed[name.substr(std::string("transformer.").size())] = tensor;
  }
  renamed["h.0.attn.bias"] = {"", {1, 1, 16, 16}, DType::kF32, mask};
  renamed["h.0.attn.masked_bias"] = {"", {}, DType::kF32, std::span(mask).first(1)};
  gpt2.tensors = renamed;
  const TemporaryFolder folder;
  gpt2.Write(folder);
  const auto model = LoadHuggingFace(folder.path());
  ASSERT_TRUE(model.ok()) << model.status();
  ExpectSameWeights(*model, gpt2);
  // Both spellings of one tensor are one too many.
  gpt2.tensors["transformer.wte.weight"] = gpt2.tensors["wte.weight"];
  EXPECT_THAT(LoadError(gpt2), HasSubstr("wte.weight is there twice"));

  FolderMaker llama(LlamaJson());
  llama.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = {
      "", {4}, DType::kF32, std::span(mask).first(4)};
  EXPECT_EQ(LoadError(llama), "");
}

TEST(HuggingFace, AHostileConfigurationAllocatesNothing) {
  Json config = LlamaJson();
  const FolderMaker maker(config);
  const TemporaryFolder folder;
  maker.Write(folder);
  config["num_hidden_layers"] = 1000;
  config["hidden_size"] = 8192;
  config["head_dim"] = 4;
  config["vocab_size"] = 4000000;
  WriteFile(folder / "config.json", config.dump());
  EXPECT_THAT(std::string(LoadHuggingFace(folder.path()).status().message()),
              HasSubstr("expected ("));
}

TEST(HuggingFace, Shards) {
  const FolderMaker maker(LlamaJson());
  const TemporaryFolder folder;
  WriteFile(folder / "config.json", LlamaJson().dump());
  EXPECT_THAT(std::string(LoadHuggingFace(folder.path()).status().message()),
              HasSubstr("neither model.safetensors nor"));
  const auto first = [](const std::string& name) { return name.find("layers.0") != name.npos; };
  maker.WriteShard(folder / "model-00001-of-00002.safetensors", first);
  maker.WriteShard(folder / "model-00002-of-00002.safetensors",
                   [&](const std::string& name) { return !first(name); });
  Json map = Json::object();
  for (const auto& [name, tensor] : maker.tensors) {
    map[name] =
        first(name) ? "model-00001-of-00002.safetensors" : "model-00002-of-00002.safetensors";
  }
  const auto load = [&](const Json& weight_map) {
    WriteFile(folder / "model.safetensors.index.json", Json{{"weight_map", weight_map}}.dump());
    return LoadHuggingFace(folder.path());
  };
  const auto model = load(map);
  ASSERT_TRUE(model.ok()) << model.status();
  ExpectSameWeights(*model, maker);
  for (const char* hostile : {"../model.safetensors", "/etc/passwd", "a/b.safetensors", "",
                              ".safetensors", "model.bin", "..\\x.safetensors"}) {
    Json changed = map;
    changed["model.norm.weight"] = hostile;
    EXPECT_THAT(std::string(load(changed).status().message()),
                HasSubstr("expected the name of a .safetensors file in the same folder"))
        << hostile;
  }
  Json lacking = map;
  lacking["model.norm.weight"] = "model-00003-of-00002.safetensors";
  EXPECT_EQ(load(lacking).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(load(Json::object()).ok());
}

TEST(HuggingFace, SaveAndLoadKeepBitsAndTypes) {
  for (const Json& config : {LlamaJson(), Gpt2Json()}) {
    FolderMaker maker(config);
    int i = 0;
    for (auto& [name, tensor] : maker.tensors) {
      tensor.file_dtype = i++ % 3 == 0 ? DType::kF32 : i % 2 == 0 ? DType::kF16 : DType::kBF16;
    }
    const TemporaryFolder origin, saved, again;
    maker.Write(origin);
    WriteFile(origin / "tokenizer_config.json", "{}");
    WriteFile(origin / "notes.txt", "not the model's");
    const auto model = LoadHuggingFace(origin.path());
    ASSERT_TRUE(model.ok()) << model.status();
    const std::string target = saved / "deep/folder";
    ASSERT_TRUE(SaveHuggingFace(*model->source, model->parameters, target, origin.path()).ok());
    EXPECT_EQ(ReadFile(target + "/config.json"), ReadFile(origin / "config.json"));
    EXPECT_EQ(ReadFile(target + "/tokenizer_config.json"), "{}");
    EXPECT_FALSE(std::filesystem::exists(target + "/notes.txt"));
    const auto copy = LoadHuggingFace(target);
    ASSERT_TRUE(copy.ok()) << copy.status();
    EXPECT_EQ(std::memcmp(copy->parameters.flat(), model->parameters.flat(),
                          sizeof(float) * model->parameters.flat_size()),
              0);
    for (size_t p = 0; p < model->source->parameters().size(); ++p) {
      EXPECT_EQ(copy->source->parameters()[p].file_dtype,
                model->source->parameters()[p].file_dtype);
    }
    // Without an origin the configuration is written from the source.
    ASSERT_TRUE(SaveHuggingFace(*model->source, model->parameters, again.path(), "").ok());
    const auto third = LoadHuggingFace(again.path());
    ASSERT_TRUE(third.ok()) << third.status();
    EXPECT_EQ(dynamic_cast<const DecoderSource&>(*third->source).config(),
              dynamic_cast<const DecoderSource&>(*model->source).config());
  }
}

TEST(HuggingFace, ARealFolderComesBackByteForByte) {
  TANDEM_NEED_MATERIAL("llama/stories260K");
  for (const char* name : {"hf-f32", "hf-bf16-untied"}) {
    const std::string origin = MaterialPath(std::string("llama/stories260K/") + name);
    const auto model = LoadHuggingFace(origin);
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ(model->source->parameters()[0].file_dtype,
              std::string(name) == "hf-f32" ? DType::kF32 : DType::kBF16);
    const TemporaryFolder folder;
    ASSERT_TRUE(SaveHuggingFace(*model->source, model->parameters, folder.path(), origin).ok());
    for (const char* file :
         {"config.json", "tokenizer.model", "tokenizer.json", "tokenizer_config.json",
          "special_tokens_map.json", "generation_config.json"}) {
      EXPECT_EQ(ReadFile(folder / file), ReadFile(origin + "/" + file)) << file;
    }
    const auto a = SafetensorsFile::Open(origin + "/model.safetensors");
    const auto b = SafetensorsFile::Open(folder / "model.safetensors");
    ASSERT_TRUE(a.ok() && b.ok());
    EXPECT_EQ(a->header().tensors.size(), b->header().tensors.size());
    const auto copy = LoadHuggingFace(folder.path());
    ASSERT_TRUE(copy.ok()) << copy.status();
    EXPECT_EQ(std::memcmp(copy->parameters.flat(), model->parameters.flat(),
                          sizeof(float) * model->parameters.flat_size()),
              0);
    EXPECT_TRUE(LoadTokenizer(folder.path()).ok());
  }
}

}  // namespace
}  // namespace tandem

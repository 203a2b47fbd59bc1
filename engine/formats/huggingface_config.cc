#include "engine/formats/huggingface_config.h"

#include <set>

#include "engine/formats/json.h"

namespace tandem {
namespace {

using Json = nlohmann::json;

// Fields without influence on a forward pass: bookkeeping, defaults of generate(), dropout, outputs
// that are not asked for here, and heads other than the language model's.
constexpr std::string_view kWithoutEffect[] = {"_attn_implementation",
                                               "_attn_implementation_autoset",
                                               "_commit_hash",
                                               "_name_or_path",
                                               "attention_dropout",
                                               "attn_pdrop",
                                               "bad_words_ids",
                                               "begin_suppress_tokens",
                                               "chunk_size_feed_forward",
                                               "decoder_start_token_id",
                                               "diversity_penalty",
                                               "do_sample",
                                               "dtype",
                                               "early_stopping",
                                               "embd_pdrop",
                                               "encoder_no_repeat_ngram_size",
                                               "exponential_decay_length_penalty",
                                               "finetuning_task",
                                               "forced_bos_token_id",
                                               "forced_eos_token_id",
                                               "gradient_checkpointing",
                                               "id2label",
                                               "is_decoder",
                                               "keys_to_ignore_at_inference",
                                               "label2id",
                                               "length_penalty",
                                               "max_length",
                                               "min_length",
                                               "model_type",
                                               "n_ctx",
                                               "no_repeat_ngram_size",
                                               "num_beam_groups",
                                               "num_beams",
                                               "num_return_sequences",
                                               "output_attentions",
                                               "output_hidden_states",
                                               "output_scores",
                                               "pad_token_id",
                                               "prefix",
                                               "pretraining_tp",
                                               "problem_type",
                                               "remove_invalid_values",
                                               "reorder_and_upcast_attn",
                                               "repetition_penalty",
                                               "resid_pdrop",
                                               "return_dict",
                                               "return_dict_in_generate",
                                               "sep_token_id",
                                               "suppress_tokens",
                                               "task_specific_params",
                                               "temperature",
                                               "tf_legacy_loss",
                                               "tokenizer_class",
                                               "top_k",
                                               "top_p",
                                               "torch_dtype",
                                               "torchscript",
                                               "transformers_version",
                                               "typical_p",
                                               "use_bfloat16",
                                               "use_cache",
                                               "summary_activation",
                                               "summary_first_dropout",
                                               "summary_proj_to_labels",
                                               "summary_type",
                                               "summary_use_proj"};

// Reads fields, remembers which were read, and keeps the first error.
class ConfigReader {
 public:
  explicit ConfigReader(const Json& json, std::string where = "config.json")
      : json_(json), where_(std::move(where)) {}

  int64_t Int(const std::string& name) {
    const Json* value = Find(name);
    if (value == nullptr) {
      Fail(InvalidArgument(where_, ": ", name, " is missing"));
      return 0;
    }
    return ToInt(name, *value);
  }
  int64_t Int(const std::string& name, int64_t otherwise) {
    const Json* value = Find(name);
    return value == nullptr ? otherwise : ToInt(name, *value);
  }
  double Float(const std::string& name, double otherwise) {
    const Json* value = Find(name);
    if (value == nullptr) return otherwise;
    if (!value->is_number()) return Expected(name, *value, "a number"), otherwise;
    return value->get<double>();
  }
  bool Bool(const std::string& name, bool otherwise) {
    const Json* value = Find(name);
    if (value == nullptr) return otherwise;
    if (!value->is_boolean()) return Expected(name, *value, "true or false"), otherwise;
    return value->get<bool>();
  }
  std::string String(const std::string& name, const std::string& otherwise) {
    const Json* value = Find(name);
    if (value == nullptr) return otherwise;
    if (!value->is_string()) return Expected(name, *value, "a string"), otherwise;
    return value->get<std::string>();
  }
  // A token id or a list of them.
  std::vector<int64_t> Ids(const std::string& name) {
    const Json* value = Find(name);
    std::vector<int64_t> ids;
    if (value == nullptr) return ids;
    if (!value->is_array()) return {ToInt(name, *value)};
    for (const Json& id : *value) ids.push_back(ToInt(name, id));
    return ids;
  }
  // The field may be absent, null, or have the one value that is supported.
  void Only(const std::string& name, const Json& supported) {
    const Json* value = Find(name);
    if (value != nullptr && *value != supported) {
      Fail(Unimplemented(where_, ": ", name, " is ", DescribeJson(*value), "; only ",
                         DescribeJson(supported), " is supported"));
    }
  }
  // Absent or null.
  const Json* Find(const std::string& name) {
    read_.insert(name);
    const auto found = json_.find(name);
    return found == json_.end() || found->is_null() ? nullptr : &*found;
  }
  void Fail(absl::Status status) {
    if (status_.ok()) status_ = std::move(status);
  }
  // The first error; else one for a field that was not read and means something (or may).
  absl::Status Finish() const {
    if (!status_.ok()) return status_;
    const std::set<std::string_view> ignored(std::begin(kWithoutEffect), std::end(kWithoutEffect));
    for (const auto& [name, value] : json_.items()) {
      if (read_.contains(name) || ignored.contains(name)) continue;
      // Absent features are written as null, false or nothing.
      if (value.is_null() || value == false || (value.is_structured() && value.empty())) continue;
      return Unimplemented(where_, ": field ", name, " (", DescribeJson(value),
                           ") is not supported");
    }
    return absl::OkStatus();
  }

 private:
  void Expected(const std::string& name, const Json& value, std::string_view what) {
    Fail(InvalidArgument(where_, ": ", name, " is ", DescribeJson(value), ", expected ", what));
  }
  int64_t ToInt(const std::string& name, const Json& value) {
    // is_number_unsigned also covers values above int64's, which would turn negative.
    if (!value.is_number_integer() ||
        (value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX})) {
      Expected(name, value, "an integer");
      return 0;
    }
    return value.get<int64_t>();
  }

  const Json& json_;
  std::string where_;
  std::set<std::string> read_;
  absl::Status status_;
};

// Ids that the vocabulary does not have (defaults of a larger one, or -1) can never occur.
void ReadSpecialTokens(ConfigReader& reader, DecoderConfig& config) {
  auto exists = [&](int64_t id) { return id >= 0 && id < config.vocab_size; };
  const std::vector<int64_t> bos = reader.Ids("bos_token_id");
  if (!bos.empty() && exists(bos[0])) config.bos_token_id = static_cast<int32_t>(bos[0]);
  for (int64_t id : reader.Ids("eos_token_id")) {
    if (exists(id)) config.eos_token_ids.push_back(static_cast<int32_t>(id));
  }
}

// {"rope_type": ..., "factor": ..., ...}; newer versions also keep rope_theta here.
void ReadRopeFields(ConfigReader& reader, const std::string& where, DecoderConfig& config) {
  const Json* json = reader.Find(where);
  if (json == nullptr) return;
  if (!json->is_object()) {
    reader.Fail(InvalidArgument("config.json: ", where, " is ", DescribeJson(*json),
                                ", expected an object"));
    return;
  }
  ConfigReader fields(*json, "config.json: " + where);
  RopeScaling& scaling = config.rope_scaling;
  const std::string type = fields.String("rope_type", fields.String("type", "default"));
  config.rope_theta = fields.Float("rope_theta", config.rope_theta);
  if (type == "linear" || type == "llama3") {
    scaling.kind = type == "linear" ? RopeScaling::Kind::kLinear : RopeScaling::Kind::kLlama3;
    scaling.factor = fields.Float("factor", 0);
  } else if (type != "default") {
    fields.Fail(Unimplemented("config.json: ", where, " has type ", type,
                              "; default, linear and llama3 are supported"));
  }
  if (type == "llama3") {
    scaling.low_freq_factor = fields.Float("low_freq_factor", 0);
    scaling.high_freq_factor = fields.Float("high_freq_factor", 0);
    scaling.original_max_positions = fields.Int("original_max_position_embeddings");
  }
  reader.Fail(fields.Finish());
}

absl::StatusOr<DecoderConfig> ParseLlama(const Json& json) {
  ConfigReader reader(json);
  DecoderConfig c;
  c.architecture = DecoderArchitecture::kLlama;
  reader.Find("architectures");
  reader.Only("model_type", "llama");
  c.vocab_size = reader.Int("vocab_size");
  c.layers = reader.Int("num_hidden_layers");
  c.heads = reader.Int("num_attention_heads");
  c.kv_heads = reader.Int("num_key_value_heads", c.heads);
  c.hidden_size = reader.Int("hidden_size");
  c.head_dim = reader.Int("head_dim", c.heads > 0 ? c.hidden_size / c.heads : 0);
  c.intermediate_size = reader.Int("intermediate_size");
  c.max_positions = reader.Int("max_position_embeddings");
  c.norm_epsilon = reader.Float("rms_norm_eps", 1e-6);
  c.initializer_std = reader.Float("initializer_range", 0.02);
  c.tie_embeddings = reader.Bool("tie_word_embeddings", false);
  c.attention_bias = reader.Bool("attention_bias", false);
  c.mlp_bias = reader.Bool("mlp_bias", false);
  const std::string activation = reader.String("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") {
    reader.Fail(
        Unimplemented("config.json: hidden_act is ", activation, "; only silu is supported"));
  }
  c.rope_theta = reader.Float("rope_theta", 10000);
  ReadRopeFields(reader, "rope_scaling", c);
  ReadRopeFields(reader, "rope_parameters", c);
  ReadSpecialTokens(reader, c);
  TANDEM_RETURN_IF_ERROR(reader.Finish());
  TANDEM_RETURN_IF_ERROR(Annotate(c.Validate(), "config.json"));
  return c;
}

absl::StatusOr<DecoderConfig> ParseGpt2(const Json& json) {
  ConfigReader reader(json);
  DecoderConfig c;
  c.architecture = DecoderArchitecture::kGpt2;
  reader.Find("architectures");
  reader.Only("model_type", "gpt2");
  c.vocab_size = reader.Int("vocab_size");
  c.layers = reader.Int("n_layer");
  c.heads = reader.Int("n_head");
  c.kv_heads = c.heads;
  c.hidden_size = reader.Int("n_embd");
  c.head_dim = c.heads > 0 ? c.hidden_size / c.heads : 0;
  const int64_t inner = reader.Int("n_inner", -1);  // null: four times the width
  // A width out of bounds is refused below; until then it must not overflow.
  c.intermediate_size = inner != -1 ? inner : 4 * std::min<int64_t>(c.hidden_size, INT32_MAX);
  c.max_positions = reader.Int("n_positions");
  c.norm_epsilon = reader.Float("layer_norm_epsilon", 1e-5);
  c.initializer_std = reader.Float("initializer_range", 0.02);
  c.tie_embeddings = reader.Bool("tie_word_embeddings", true);
  c.bias = reader.Bool("bias", true);
  const std::string activation = reader.String("activation_function", "gelu_new");
  if (activation == "gelu") {
    c.activation = DecoderActivation::kGelu;
  } else {
    c.activation = DecoderActivation::kGeluTanh;
    if (activation != "gelu_new" && activation != "gelu_pytorch_tanh") {
      reader.Fail(Unimplemented("config.json: activation_function is ", activation,
                                "; gelu, gelu_new and gelu_pytorch_tanh are supported"));
    }
  }
  reader.Only("scale_attn_weights", true);
  reader.Only("scale_attn_by_inverse_layer_idx", false);
  reader.Only("add_cross_attention", false);
  ReadSpecialTokens(reader, c);
  TANDEM_RETURN_IF_ERROR(reader.Finish());
  TANDEM_RETURN_IF_ERROR(Annotate(c.Validate(), "config.json"));
  return c;
}

Json RopeScalingJson(const RopeScaling& s) {
  if (s.kind == RopeScaling::Kind::kNone) return nullptr;
  if (s.kind == RopeScaling::Kind::kLinear) {
    // "type" for versions that know no "rope_type".
    return {{"rope_type", "linear"}, {"type", "linear"}, {"factor", s.factor}};
  }
  return {{"rope_type", "llama3"},
          {"factor", s.factor},
          {"low_freq_factor", s.low_freq_factor},
          {"high_freq_factor", s.high_freq_factor},
          {"original_max_position_embeddings", s.original_max_positions}};
}

Json TokenIds(const std::vector<int32_t>& ids) {
  if (ids.empty()) return nullptr;
  if (ids.size() == 1) return ids[0];
  return ids;
}

}  // namespace

absl::StatusOr<DecoderConfig> ParseHuggingFaceConfig(std::string_view text) {
  TANDEM_ASSIGN_OR_RETURN(const Json json, ParseJson(text, "config.json"));
  if (!json.is_object()) return InvalidArgument("config.json: not an object");
  const auto found = json.find("architectures");
  if (found == json.end() || !found->is_array() || found->size() != 1 || !(*found)[0].is_string()) {
    return InvalidArgument("config.json: architectures must be a list of one name");
  }
  const std::string& architecture = (*found)[0].get_ref<const std::string&>();
  if (architecture == "LlamaForCausalLM") return ParseLlama(json);
  if (architecture == "GPT2LMHeadModel") return ParseGpt2(json);
  return Unimplemented("config.json: architecture ", architecture,
                       "; LlamaForCausalLM and GPT2LMHeadModel are supported");
}

std::string WriteHuggingFaceConfig(const DecoderConfig& c, DType dtype) {
  Json json = {{"torch_dtype", dtype == DType::kF16    ? "float16"
                               : dtype == DType::kBF16 ? "bfloat16"
                                                       : "float32"},
               {"vocab_size", c.vocab_size},
               {"initializer_range", c.initializer_std},
               {"tie_word_embeddings", c.tie_embeddings},
               {"bos_token_id", nullptr},
               {"eos_token_id", TokenIds(c.eos_token_ids)}};
  if (c.bos_token_id) json["bos_token_id"] = *c.bos_token_id;
  if (c.architecture == DecoderArchitecture::kLlama) {
    json.update({{"architectures", {"LlamaForCausalLM"}},
                 {"model_type", "llama"},
                 {"hidden_size", c.hidden_size},
                 {"intermediate_size", c.intermediate_size},
                 {"num_hidden_layers", c.layers},
                 {"num_attention_heads", c.heads},
                 {"num_key_value_heads", c.kv_heads},
                 {"head_dim", c.head_dim},
                 {"hidden_act", "silu"},
                 {"max_position_embeddings", c.max_positions},
                 {"rms_norm_eps", c.norm_epsilon},
                 {"rope_theta", c.rope_theta},
                 {"rope_scaling", RopeScalingJson(c.rope_scaling)},
                 {"attention_bias", c.attention_bias},
                 {"mlp_bias", c.mlp_bias}});
  } else {
    json.update(
        {{"architectures", {"GPT2LMHeadModel"}},
         {"model_type", "gpt2"},
         {"n_embd", c.hidden_size},
         {"n_inner", c.intermediate_size},
         {"n_layer", c.layers},
         {"n_head", c.heads},
         {"n_positions", c.max_positions},
         {"layer_norm_epsilon", c.norm_epsilon},
         {"activation_function", c.activation == DecoderActivation::kGelu ? "gelu" : "gelu_new"},
         // No dropout, also where others go on training.
         {"attn_pdrop", 0.0},
         {"embd_pdrop", 0.0},
         {"resid_pdrop", 0.0}});
    // Hugging Face's class knows no such field; it makes absent biases zeros.
    if (!c.bias) json["bias"] = false;
  }
  return json.dump(2) + "\n";
}

}  // namespace tandem

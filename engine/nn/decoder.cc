#include "engine/nn/decoder.h"

#include <cmath>
#include <numbers>
#include <numeric>

#include "engine/ops/ops.h"

namespace tandem {
namespace {

// Above any published model, and small enough that the product of any three fits in 64 bits.
constexpr int64_t kMaxVocab = int64_t{1} << 22;
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxHeads = 1024;
constexpr int64_t kMaxHeadDim = 1024;
constexpr int64_t kMaxHidden = int64_t{1} << 17;
constexpr int64_t kMaxIntermediate = int64_t{1} << 19;
constexpr int64_t kMaxPositions = int64_t{1} << 22;
constexpr int64_t kMaxRopeTableBytes = int64_t{1} << 30;

absl::Status CheckSize(std::string_view field, int64_t value, int64_t max) {
  if (value >= 1 && value <= max) return absl::OkStatus();
  return InvalidArgument("decoder configuration: ", field, " is ", value, ", expected 1 to ", max);
}

absl::Status CheckSizes(const DecoderConfig& c) {
  TANDEM_RETURN_IF_ERROR(CheckSize("vocab_size", c.vocab_size, kMaxVocab));
  TANDEM_RETURN_IF_ERROR(CheckSize("layers", c.layers, kMaxLayers));
  TANDEM_RETURN_IF_ERROR(CheckSize("heads", c.heads, kMaxHeads));
  TANDEM_RETURN_IF_ERROR(CheckSize("kv_heads", c.kv_heads, kMaxHeads));
  TANDEM_RETURN_IF_ERROR(CheckSize("head_dim", c.head_dim, kMaxHeadDim));
  TANDEM_RETURN_IF_ERROR(CheckSize("hidden_size", c.hidden_size, kMaxHidden));
  TANDEM_RETURN_IF_ERROR(CheckSize("intermediate_size", c.intermediate_size, kMaxIntermediate));
  return CheckSize("max_positions", c.max_positions, kMaxPositions);
}

absl::Status CheckNumbers(const DecoderConfig& c) {
  if (!(c.norm_epsilon > 0 && c.norm_epsilon < 1)) {
    return InvalidArgument("decoder configuration: norm_epsilon is ", c.norm_epsilon,
                           ", expected above 0 and below 1");
  }
  if (!(c.initializer_std >= 0 && c.initializer_std <= 100)) {
    return InvalidArgument("decoder configuration: initializer_std is ", c.initializer_std,
                           ", expected 0 to 100");
  }
  return absl::OkStatus();
}

absl::Status CheckRopeScaling(const RopeScaling& s) {
  if (s.kind == RopeScaling::Kind::kNone) return absl::OkStatus();
  if (!(s.factor >= 1 && s.factor <= 1e6)) {
    return InvalidArgument("decoder configuration: rope_scaling.factor is ", s.factor,
                           ", expected 1 to 1e6");
  }
  if (s.kind == RopeScaling::Kind::kLinear) return absl::OkStatus();
  if (!(s.low_freq_factor > 0 && s.high_freq_factor > s.low_freq_factor &&
        s.high_freq_factor <= 1e6)) {
    return InvalidArgument("decoder configuration: rope_scaling.low_freq_factor is ",
                           s.low_freq_factor, " and high_freq_factor ", s.high_freq_factor,
                           ", expected 0 < low < high <= 1e6");
  }
  return CheckSize("rope_scaling.original_max_positions", s.original_max_positions, kMaxPositions);
}

absl::Status CheckLlama(const DecoderConfig& c) {
  if (c.activation != DecoderActivation::kSilu) {
    return Unimplemented("decoder configuration: activation of Llama must be silu");
  }
  if (c.bias) {
    return InvalidArgument(
        "decoder configuration: bias is GPT-2's; Llama has attention_bias and mlp_bias");
  }
  if (c.head_dim % 2 != 0) {
    return InvalidArgument("decoder configuration: head_dim is ", c.head_dim,
                           ", expected an even number for rotary positions");
  }
  if (!(c.rope_theta >= 1 && c.rope_theta <= 1e12)) {
    return InvalidArgument("decoder configuration: rope_theta is ", c.rope_theta,
                           ", expected 1 to 1e12");
  }
  if (c.max_positions * c.head_dim > kMaxRopeTableBytes / int64_t{sizeof(float)}) {
    return InvalidArgument("decoder configuration: max_positions ", c.max_positions, " x head_dim ",
                           c.head_dim, " make a table of rotary positions above ",
                           kMaxRopeTableBytes, " bytes");
  }
  return CheckRopeScaling(c.rope_scaling);
}

absl::Status CheckGpt2(const DecoderConfig& c) {
  if (c.activation == DecoderActivation::kSilu) {
    return Unimplemented("decoder configuration: activation of GPT-2 must be gelu or gelu_tanh");
  }
  if (c.attention_bias || c.mlp_bias) {
    return InvalidArgument(
        "decoder configuration: attention_bias and mlp_bias are Llama's; GPT-2 has bias");
  }
  if (c.kv_heads != c.heads) {
    return InvalidArgument("decoder configuration: kv_heads is ", c.kv_heads, ", expected heads (",
                           c.heads, ") for GPT-2");
  }
  if (c.heads * c.head_dim != c.hidden_size) {
    return InvalidArgument("decoder configuration: heads ", c.heads, " x head_dim ", c.head_dim,
                           " is not hidden_size ", c.hidden_size);
  }
  return absl::OkStatus();
}

// `frequency`, in radians a position, after the configuration's scaling.
double ScaleFrequency(double frequency, const RopeScaling& s) {
  if (s.kind == RopeScaling::Kind::kLinear) return frequency / s.factor;
  const double wavelength = 2 * std::numbers::pi / frequency;
  const double turns = static_cast<double>(s.original_max_positions) / wavelength;
  if (turns < s.low_freq_factor) return frequency / s.factor;
  if (turns > s.high_freq_factor) return frequency;
  const double kept = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
  return (1 - kept) * frequency / s.factor + kept * frequency;
}

// As ops::RopeTable, with scaled frequencies.
Tensor ScaledRopeTable(const DecoderConfig& c) {
  const int64_t half = c.head_dim / 2;
  Tensor table(DType::kF32, {c.max_positions, c.head_dim});
  const std::span<float> values = table.data<float>();
  for (int64_t i = 0; i < half; ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(c.head_dim);
    const double frequency = ScaleFrequency(std::pow(c.rope_theta, exponent), c.rope_scaling);
    for (int64_t p = 0; p < c.max_positions; ++p) {
      const double angle = static_cast<double>(p) * frequency;
      values[p * c.head_dim + i] = static_cast<float>(std::cos(angle));
      values[p * c.head_dim + half + i] = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

}  // namespace

absl::Status DecoderConfig::Validate() const {
  TANDEM_RETURN_IF_ERROR(CheckSizes(*this));
  TANDEM_RETURN_IF_ERROR(CheckNumbers(*this));
  if (heads % kv_heads != 0) {
    return InvalidArgument("decoder configuration: heads ", heads,
                           " is not a multiple of kv_heads ", kv_heads);
  }
  TANDEM_RETURN_IF_ERROR(architecture == DecoderArchitecture::kLlama ? CheckLlama(*this)
                                                                     : CheckGpt2(*this));
  // With the bounds above every term is below 2^62; as doubles, their sum cannot overflow.
  const double attention = static_cast<double>(hidden_size) * static_cast<double>(head_dim) *
                           static_cast<double>(2 * heads + 2 * kv_heads);
  const double mlp =
      3.0 * static_cast<double>(hidden_size) * static_cast<double>(intermediate_size);
  const double embeddings =
      (2.0 * static_cast<double>(vocab_size) + static_cast<double>(max_positions)) *
      static_cast<double>(hidden_size);
  const double bytes = 4.0 * (static_cast<double>(layers) * (attention + mlp) + embeddings);
  if (bytes > static_cast<double>(kMaxTensorBytes)) {
    return InvalidArgument("decoder configuration: about ", bytes, " bytes of parameters, at most ",
                           kMaxTensorBytes, " are possible");
  }
  auto check_id = [&](std::string_view field, int32_t id) {
    if (id >= 0 && id < vocab_size) return absl::OkStatus();
    return InvalidArgument("decoder configuration: ", field, " ", id, " is outside [0, ",
                           vocab_size, ")");
  };
  if (bos_token_id) TANDEM_RETURN_IF_ERROR(check_id("bos_token_id", *bos_token_id));
  for (int32_t id : eos_token_ids) TANDEM_RETURN_IF_ERROR(check_id("eos_token_id", id));
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const DecoderSource>> DecoderSource::Create(
    DecoderConfig config, std::string_view format, std::span<const DType> file_dtypes) {
  TANDEM_RETURN_IF_ERROR(config.Validate());
  std::shared_ptr<DecoderSource> source(new DecoderSource(std::move(config), format));
  if (!file_dtypes.empty()) {
    if (file_dtypes.size() != source->parameters_.size()) {
      return InvalidArgument("decoder: ", file_dtypes.size(), " file types for ",
                             source->parameters_.size(), " parameters");
    }
    for (size_t i = 0; i < file_dtypes.size(); ++i) {
      source->parameters_[i].file_dtype = file_dtypes[i];
    }
  }
  return source;
}

DecoderSource::DecoderSource(DecoderConfig config, std::string_view format)
    : config_(std::move(config)), format_(format) {
  sequence_ = {.vocab_size = config_.vocab_size,
               .layers = config_.layers,
               .heads = config_.heads,
               .kv_heads = config_.kv_heads,
               .head_dim = config_.head_dim,
               .max_positions = config_.max_positions,
               .eos_token_ids = config_.eos_token_ids,
               .bos_token_id = config_.bos_token_id};
  inputs_ = {{"input_ids", DType::kI64, {-1}}};
  outputs_ = {{"logits", DType::kF32, {-1, config_.vocab_size}}};
  if (config_.architecture == DecoderArchitecture::kLlama) {
    AddLlamaParameters();
  } else {
    AddGpt2Parameters();
  }
}

void DecoderSource::AddParameter(std::string name, Shape shape, ParameterRole role, double std) {
  index_[name] = static_cast<int32_t>(parameters_.size());
  parameters_.push_back({.name = std::move(name), .shape = std::move(shape), .role = role});
  initial_std_.push_back(std);
}

void DecoderSource::AddLinear(const std::string& name, int64_t in, int64_t out, bool bias,
                              double std) {
  const bool out_first = config_.architecture == DecoderArchitecture::kLlama;
  AddParameter(name + ".weight", out_first ? Shape{out, in} : Shape{in, out},
               ParameterRole::kWeight, std);
  if (bias) AddParameter(name + ".bias", {out}, ParameterRole::kBias);
}

void DecoderSource::AddNorm(const std::string& name, bool bias) {
  AddParameter(name + ".weight", {config_.hidden_size}, ParameterRole::kNorm);
  if (bias) AddParameter(name + ".bias", {config_.hidden_size}, ParameterRole::kBias);
}

void DecoderSource::AddLlamaParameters() {
  const DecoderConfig& c = config_;
  const double std = c.initializer_std;
  const double residual_std = std / std::sqrt(2.0 * static_cast<double>(c.layers));
  const int64_t q_dim = c.heads * c.head_dim, kv_dim = c.kv_heads * c.head_dim;
  AddParameter("model.embed_tokens.weight", {c.vocab_size, c.hidden_size},
               ParameterRole::kEmbedding, std);
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    const std::string at = StrCat("model.layers.", layer, ".");
    AddNorm(at + "input_layernorm", false);
    AddLinear(at + "self_attn.q_proj", c.hidden_size, q_dim, c.attention_bias, std);
    AddLinear(at + "self_attn.k_proj", c.hidden_size, kv_dim, c.attention_bias, std);
    AddLinear(at + "self_attn.v_proj", c.hidden_size, kv_dim, c.attention_bias, std);
    AddLinear(at + "self_attn.o_proj", q_dim, c.hidden_size, c.attention_bias, residual_std);
    AddNorm(at + "post_attention_layernorm", false);
    AddLinear(at + "mlp.gate_proj", c.hidden_size, c.intermediate_size, c.mlp_bias, std);
    AddLinear(at + "mlp.up_proj", c.hidden_size, c.intermediate_size, c.mlp_bias, std);
    AddLinear(at + "mlp.down_proj", c.intermediate_size, c.hidden_size, c.mlp_bias, residual_std);
  }
  AddNorm("model.norm", false);
  if (!c.tie_embeddings) {
    AddParameter("lm_head.weight", {c.vocab_size, c.hidden_size}, ParameterRole::kWeight, std);
  }
}

void DecoderSource::AddGpt2Parameters() {
  const DecoderConfig& c = config_;
  const double std = c.initializer_std;
  const double residual_std = std / std::sqrt(2.0 * static_cast<double>(c.layers));
  AddParameter("transformer.wte.weight", {c.vocab_size, c.hidden_size}, ParameterRole::kEmbedding,
               std);
  AddParameter("transformer.wpe.weight", {c.max_positions, c.hidden_size},
               ParameterRole::kEmbedding, std);
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    const std::string at = StrCat("transformer.h.", layer, ".");
    AddNorm(at + "ln_1", c.bias);
    AddLinear(at + "attn.c_attn", c.hidden_size, 3 * c.hidden_size, c.bias, std);
    AddLinear(at + "attn.c_proj", c.hidden_size, c.hidden_size, c.bias, residual_std);
    AddNorm(at + "ln_2", c.bias);
    AddLinear(at + "mlp.c_fc", c.hidden_size, c.intermediate_size, c.bias, std);
    AddLinear(at + "mlp.c_proj", c.intermediate_size, c.hidden_size, c.bias, residual_std);
  }
  AddNorm("transformer.ln_f", c.bias);
  if (!c.tie_embeddings) {
    AddParameter("lm_head.weight", {c.vocab_size, c.hidden_size}, ParameterRole::kWeight, std);
  }
}

absl::StatusOr<std::vector<Value>> DecoderSource::Build(Builder& builder,
                                                        std::span<const Value> inputs) const {
  TANDEM_RETURN_IF_ERROR(builder.status());
  if (inputs.size() != 1) {
    return InvalidArgument("decoder: ", inputs.size(), " inputs, expected 1 (input_ids)");
  }
  const TensorType& type = builder.type(inputs[0]);
  if (type.dtype != DType::kI64 || type.shape.rank() != 1) {
    return InvalidArgument("decoder: input_ids is ", type.ToString(), ", expected i64(-1)");
  }
  const int64_t tokens = type.shape[0];
  if (tokens < 1 || tokens > config_.max_positions) {
    return InvalidArgument("decoder: input_ids has ", tokens, " tokens, expected 1 to ",
                           config_.max_positions);
  }
  Tensor positions(DType::kI32, {tokens});
  std::iota(positions.data<int32_t>().begin(), positions.data<int32_t>().end(), 0);
  SequenceValues sequence;
  sequence.tokens = ops::Cast(builder, inputs[0], DType::kI32);
  sequence.positions = builder.Constant(std::move(positions));
  sequence.query_start =
      builder.Constant(Tensor::Of<int32_t>({2}, {0, static_cast<int32_t>(tokens)}));
  const Value logits = BuildLogits(builder, sequence);
  TANDEM_RETURN_IF_ERROR(builder.status());
  return std::vector<Value>{logits};
}

const std::shared_ptr<const Tensor>& DecoderSource::rope_table() const {
  std::call_once(rope_once_, [this] {
    const bool scaled = config_.rope_scaling.kind != RopeScaling::Kind::kNone;
    rope_table_ = std::make_shared<const Tensor>(
        scaled ? ScaledRopeTable(config_)
               : ops::RopeTable(config_.rope_theta, config_.head_dim, config_.max_positions));
  });
  return rope_table_;
}

}  // namespace tandem

// Decoder-only language models: Llama (Touvron et al. 2023) and GPT-2 (Radford et al. 2019).
//
// A DecoderSource turns a DecoderConfig into graphs over packed sequences. Parameters have the
// names and layouts of Hugging Face's LlamaForCausalLM and GPT2LMHeadModel, so that their files are
// the standard ones: Llama's linear weights are (out, in), GPT-2's are (in, out).
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "engine/exec/model.h"

namespace tandem {

enum class DecoderArchitecture : uint8_t { kLlama, kGpt2 };
enum class DecoderActivation : uint8_t { kSilu, kGelu, kGeluTanh };

// Changes of the rotary frequencies that let a model reach beyond the positions it first had.
struct RopeScaling {
  enum class Kind : uint8_t {
    kNone,
    kLinear,  // Chen et al. 2023: all frequencies divided by factor
    kLlama3,  // Llama 3.1: the low ones, smoothly between two wavelengths
  };
  Kind kind = Kind::kNone;
  double factor = 1;
  // kLlama3: wavelengths above original_max_positions / low_freq_factor are scaled, those below
  // original_max_positions / high_freq_factor are not.
  double low_freq_factor = 1, high_freq_factor = 4;
  int64_t original_max_positions = 8192;
  bool operator==(const RopeScaling&) const = default;
};

struct DecoderConfig {
  DecoderArchitecture architecture = DecoderArchitecture::kLlama;
  int64_t vocab_size = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;  // query heads share them in groups; GPT-2: equal to heads
  int64_t head_dim = 0;  // GPT-2: hidden_size / heads
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t max_positions = 0;
  double norm_epsilon = 1e-5;
  double rope_theta = 10000;    // Llama only
  RopeScaling rope_scaling;     // Llama only
  bool tie_embeddings = false;  // the head is the token embedding
  // GPT-2: every linear layer and norm has a bias (false: none has, nanoGPT's bias=False).
  bool bias = false;
  // Llama: which linear layers have biases.
  bool attention_bias = false;
  bool mlp_bias = false;
  // Llama: kSilu (the gate of SwiGLU); GPT-2: kGelu or kGeluTanh.
  DecoderActivation activation = DecoderActivation::kSilu;
  double initializer_std = 0.02;
  std::optional<int32_t> bos_token_id;
  std::vector<int32_t> eos_token_ids;

  // Every size is positive, bounded, and agrees with the others; no product of them can overflow
  // afterwards. Errors name the field.
  absl::Status Validate() const;
  bool operator==(const DecoderConfig&) const = default;
};

class DecoderSource : public GraphSource {
 public:
  // `format` is "decoder" or "huggingface"; `file_dtypes` has one entry a parameter in parameters()
  // order, or is empty (all f32).
  static absl::StatusOr<std::shared_ptr<const DecoderSource>> Create(
      DecoderConfig config, std::string_view format = "decoder",
      std::span<const DType> file_dtypes = {});

  std::string_view format() const override { return format_; }
  // One sequence: "input_ids" (-1) i64 -> "logits" (-1, vocab_size) f32. Ids must be in
  // [0, vocab_size): whoever calls checks them, kernels clamp.
  const std::vector<IoSpec>& inputs() const override { return inputs_; }
  const std::vector<IoSpec>& outputs() const override { return outputs_; }
  const std::vector<ParameterInfo>& parameters() const override { return parameters_; }
  absl::StatusOr<std::vector<Value>> Build(Builder& builder,
                                           std::span<const Value> inputs) const override;
  const SequenceModelInfo* sequence() const override { return &sequence_; }
  // Logits (R, V). Uses Attention, or PagedAttention where sequences.k_cache is not empty; all else
  // is the same graph. Positions must be below max_positions.
  Value BuildLogits(Builder& builder, const SequenceValues& sequences) const override;

  const DecoderConfig& config() const { return config_; }
  // The standard deviation that parameter i is drawn with at initialisation; 0 for constants (norms
  // begin as ones, biases as zeros). Projections into the residual stream have
  // initializer_std / sqrt(2 layers), as GPT-2's do.
  double initial_std(int i) const { return initial_std_[i]; }

 private:
  friend class DecoderGraph;
  DecoderSource(DecoderConfig config, std::string_view format);
  void AddParameter(std::string name, Shape shape, ParameterRole role, double std = 0);
  void AddLinear(const std::string& name, int64_t in, int64_t out, bool bias, double std);
  void AddNorm(const std::string& name, bool bias);
  void AddLlamaParameters();
  void AddGpt2Parameters();
  // (max_positions, head_dim), made when a first graph needs it.
  const std::shared_ptr<const Tensor>& rope_table() const;

  DecoderConfig config_;
  std::string format_;
  SequenceModelInfo sequence_;
  std::vector<IoSpec> inputs_, outputs_;
  std::vector<ParameterInfo> parameters_;
  std::vector<double> initial_std_;
  absl::flat_hash_map<std::string, int32_t> index_;  // of a parameter, by name
  mutable std::once_flag rope_once_;
  mutable std::shared_ptr<const Tensor> rope_table_;
};

}  // namespace tandem

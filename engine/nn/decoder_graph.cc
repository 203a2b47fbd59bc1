// The forward graphs of the decoders. N tokens, H heads of D, Hkv key/value heads, C = hidden_size.
#include <cmath>

#include "engine/nn/decoder.h"
#include "engine/ops/ops.h"

namespace tandem {

class DecoderGraph {
 public:
  DecoderGraph(Builder& builder, const DecoderSource& source, const SequenceValues& sequences)
      : b_(builder), source_(source), config_(source.config()), sequences_(sequences) {}

  Value Llama();
  Value Gpt2();

 private:
  // The parameter of that name, or an invalid value where the configuration has none (a bias).
  Value Parameter(const std::string& name);
  Value Linear(Value x, const std::string& name);
  Value Norm(Value x, const std::string& name);
  Value Attention(Value q, Value k, Value v, int64_t layer);  // (N, H, D) ... -> (N, H * D)
  Value LlamaAttention(Value x, const std::string& at, int64_t layer);
  Value LlamaMlp(Value x, const std::string& at);
  Value Gpt2Attention(Value x, const std::string& at, int64_t layer);
  Value Gpt2Mlp(Value x, const std::string& at);
  // Final norm and head, of the wanted rows alone: (R, V)
  Value Head(Value x, const std::string& norm, const std::string& embedding);

  Builder& b_;
  const DecoderSource& source_;
  const DecoderConfig& config_;
  const SequenceValues& sequences_;
  int64_t tokens_ = 0;
  Value rope_table_;
};

Value DecoderGraph::Parameter(const std::string& name) {
  const auto found = source_.index_.find(name);
  if (found == source_.index_.end()) return {};
  const ParameterInfo& info = source_.parameters_[found->second];
  return b_.Parameter(found->second, info.name, {DType::kF32, info.shape});
}

Value DecoderGraph::Linear(Value x, const std::string& name) {
  const bool out_first = config_.architecture == DecoderArchitecture::kLlama;
  return ops::MatMul(b_, x, Parameter(name + ".weight"), /*transpose_a=*/false,
                     /*transpose_b=*/out_first, Parameter(name + ".bias"));
}

Value DecoderGraph::Norm(Value x, const std::string& name) {
  const Value gamma = Parameter(name + ".weight");
  if (config_.architecture == DecoderArchitecture::kLlama) {
    return ops::RmsNorm(b_, x, gamma, config_.norm_epsilon)[0];
  }
  return ops::LayerNorm(b_, x, gamma, Parameter(name + ".bias"), config_.norm_epsilon)[0];
}

Value DecoderGraph::Attention(Value q, Value k, Value v, int64_t layer) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(config_.head_dim));
  const SequenceValues& s = sequences_;
  const Value out =
      s.k_cache.empty()
          ? ops::Attention(b_, q, k, v, s.query_start, scale)[0]
          : ops::PagedAttention(b_, q, k, v, s.query_start, s.past_length, s.block_table,
                                s.k_cache[layer], s.v_cache[layer], scale);
  return ops::Reshape(b_, out, {tokens_, config_.heads * config_.head_dim});
}

Value DecoderGraph::LlamaAttention(Value x, const std::string& at, int64_t layer) {
  const Shape q_shape = {tokens_, config_.heads, config_.head_dim};
  const Shape kv_shape = {tokens_, config_.kv_heads, config_.head_dim};
  Value q = ops::Reshape(b_, Linear(x, at + "q_proj"), q_shape);
  Value k = ops::Reshape(b_, Linear(x, at + "k_proj"), kv_shape);
  const Value v = ops::Reshape(b_, Linear(x, at + "v_proj"), kv_shape);
  q = ops::Rope(b_, q, sequences_.positions, rope_table_);
  k = ops::Rope(b_, k, sequences_.positions, rope_table_);
  return Linear(Attention(q, k, v, layer), at + "o_proj");
}

Value DecoderGraph::LlamaMlp(Value x, const std::string& at) {
  const Value gate = Linear(x, at + "gate_proj");
  const Value up = Linear(x, at + "up_proj");
  return Linear(ops::SwiGlu(b_, gate, up), at + "down_proj");
}

Value DecoderGraph::Gpt2Attention(Value x, const std::string& at, int64_t layer) {
  const int64_t c = config_.hidden_size;
  const Value qkv = Linear(x, at + "c_attn");  // (N, 3 C): q, k, v side by side
  Value parts[3];
  for (int64_t i = 0; i < 3; ++i) {
    // A copy of 3 C floats a token, beside the 3 C^2 multiply-adds that made them.
    parts[i] = ops::Slice(b_, qkv, {0, i * c}, {tokens_, (i + 1) * c}, {1, 1});
    parts[i] = ops::Reshape(b_, parts[i], {tokens_, config_.heads, config_.head_dim});
  }
  return Linear(Attention(parts[0], parts[1], parts[2], layer), at + "c_proj");
}

Value DecoderGraph::Gpt2Mlp(Value x, const std::string& at) {
  const Value hidden = Linear(x, at + "c_fc");
  const Value active = config_.activation == DecoderActivation::kGelu ? ops::Gelu(b_, hidden)
                                                                      : ops::GeluTanh(b_, hidden);
  return Linear(active, at + "c_proj");
}

Value DecoderGraph::Head(Value x, const std::string& norm, const std::string& embedding) {
  b_.SetScope("head");
  // Norms and products work row by row, so the rows that nobody wants cost nothing here.
  if (sequences_.logit_rows.valid()) x = ops::Gather(b_, x, sequences_.logit_rows, 0);
  x = Norm(x, norm);
  const Value weight = Parameter(config_.tie_embeddings ? embedding : "lm_head.weight");
  return ops::MatMul(b_, x, weight, /*transpose_a=*/false, /*transpose_b=*/true);
}

Value DecoderGraph::Llama() {
  tokens_ = b_.shape(sequences_.tokens).num_elements();
  rope_table_ = b_.Constant(source_.rope_table());
  b_.SetScope("embedding");
  Value x = ops::Gather(b_, Parameter("model.embed_tokens.weight"), sequences_.tokens, 0);
  for (int64_t layer = 0; layer < config_.layers; ++layer) {
    const std::string at = StrCat("model.layers.", layer, ".");
    b_.SetScope(at + "self_attn");
    const Value attention =
        LlamaAttention(Norm(x, at + "input_layernorm"), at + "self_attn.", layer);
    x = ops::Add(b_, x, attention);
    b_.SetScope(at + "mlp");
    x = ops::Add(b_, x, LlamaMlp(Norm(x, at + "post_attention_layernorm"), at + "mlp."));
  }
  return Head(x, "model.norm", "model.embed_tokens.weight");
}

Value DecoderGraph::Gpt2() {
  tokens_ = b_.shape(sequences_.tokens).num_elements();
  b_.SetScope("embedding");
  Value x = ops::Add(b_, ops::Gather(b_, Parameter("transformer.wte.weight"), sequences_.tokens, 0),
                     ops::Gather(b_, Parameter("transformer.wpe.weight"), sequences_.positions, 0));
  for (int64_t layer = 0; layer < config_.layers; ++layer) {
    const std::string at = StrCat("transformer.h.", layer, ".");
    b_.SetScope(at + "attn");
    x = ops::Add(b_, x, Gpt2Attention(Norm(x, at + "ln_1"), at + "attn.", layer));
    b_.SetScope(at + "mlp");
    x = ops::Add(b_, x, Gpt2Mlp(Norm(x, at + "ln_2"), at + "mlp."));
  }
  return Head(x, "transformer.ln_f", "transformer.wte.weight");
}

Value DecoderSource::BuildLogits(Builder& builder, const SequenceValues& sequences) const {
  if (!builder.ok()) return {};
  if (!sequences.tokens.valid() || !sequences.positions.valid() || !sequences.query_start.valid()) {
    return builder.Fail(InvalidArgument("decoder: tokens, positions and query_start are needed"));
  }
  if (builder.shape(sequences.tokens).rank() != 1 ||
      builder.shape(sequences.tokens) != builder.shape(sequences.positions)) {
    return builder.Fail(InvalidArgument(
        "decoder: tokens ", builder.type(sequences.tokens).ToString(), " and positions ",
        builder.type(sequences.positions).ToString(), ", expected both (N)"));
  }
  const size_t caches = sequences.k_cache.size();
  if (caches != sequences.v_cache.size() ||
      (caches != 0 && caches != static_cast<size_t>(config_.layers))) {
    return builder.Fail(InvalidArgument("decoder: ", caches, " k caches and ",
                                        sequences.v_cache.size(), " v caches for ", config_.layers,
                                        " layers"));
  }
  DecoderGraph graph(builder, *this, sequences);
  const Value logits =
      config_.architecture == DecoderArchitecture::kLlama ? graph.Llama() : graph.Gpt2();
  builder.SetScope("");
  return logits;
}

}  // namespace tandem

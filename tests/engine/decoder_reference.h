// A decoder's forward pass in double precision, written from the papers and independent of the
// graph: for tests.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "engine/nn/decoder.h"

namespace tandem {

class DecoderReference {
 public:
  DecoderReference(const DecoderSource& source, const ParameterStore& parameters)
      : c_(source.config()), source_(source), parameters_(parameters) {}

  // Logits (N, V) of one sequence.
  std::vector<std::vector<double>> Logits(const std::vector<int32_t>& tokens) const {
    const bool llama = c_.architecture == DecoderArchitecture::kLlama;
    std::vector<std::vector<double>> x;
    for (size_t t = 0; t < tokens.size(); ++t) x.push_back(Embed(tokens[t], t));
    for (int64_t layer = 0; layer < c_.layers; ++layer) {
      const std::string at =
          llama ? StrCat("model.layers.", layer, ".") : StrCat("transformer.h.", layer, ".");
      const auto attention = Attend(x, at);
      for (size_t t = 0; t < x.size(); ++t) {
        Accumulate(x[t], attention[t]);
        Accumulate(x[t], llama ? LlamaMlp(x[t], at) : Gpt2Mlp(x[t], at));
      }
    }
    std::vector<std::vector<double>> logits;
    for (const auto& row : x) {
      const auto h = Norm(row, llama ? "model.norm" : "transformer.ln_f");
      const auto head = W(!c_.tie_embeddings ? "lm_head.weight"
                          : llama            ? "model.embed_tokens.weight"
                                             : "transformer.wte.weight");
      logits.emplace_back(c_.vocab_size, 0.0);
      for (int64_t v = 0; v < c_.vocab_size; ++v) {
        for (int64_t i = 0; i < c_.hidden_size; ++i) {
          logits.back()[v] += h[i] * head[v * c_.hidden_size + i];
        }
      }
    }
    return logits;
  }

 private:
  using Row = std::vector<double>;

  // The parameter's values, or nothing where the configuration has none.
  std::span<const float> W(const std::string& name) const {
    const auto& infos = source_.parameters();
    for (size_t i = 0; i < infos.size(); ++i) {
      if (infos[i].name == name) return parameters_.values(static_cast<int>(i));
    }
    return {};
  }
  static void Accumulate(Row& to, const Row& from) {
    for (size_t i = 0; i < to.size(); ++i) to[i] += from[i];
  }

  Row Embed(int32_t token, size_t position) const {
    const bool llama = c_.architecture == DecoderArchitecture::kLlama;
    const auto table = W(llama ? "model.embed_tokens.weight" : "transformer.wte.weight");
    Row row(c_.hidden_size);
    for (int64_t i = 0; i < c_.hidden_size; ++i) {
      row[i] = table[token * c_.hidden_size + i];
      if (!llama) row[i] += W("transformer.wpe.weight")[position * c_.hidden_size + i];
    }
    return row;
  }

  Row Norm(const Row& x, const std::string& name) const {
    const bool llama = c_.architecture == DecoderArchitecture::kLlama;
    const auto gamma = W(name + ".weight"), beta = W(name + ".bias");
    const double n = static_cast<double>(x.size());
    double mean = 0, square = 0;
    for (double v : x) mean += llama ? 0 : v / n;
    for (double v : x) square += (v - mean) * (v - mean) / n;
    Row y(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      y[i] = (x[i] - mean) / std::sqrt(square + c_.norm_epsilon) * gamma[i];
      if (!beta.empty()) y[i] += beta[i];
    }
    return y;
  }

  Row Linear(const Row& x, const std::string& name) const {
    const auto w = W(name + ".weight"), bias = W(name + ".bias");
    const size_t in = x.size(), out = w.size() / in;
    const bool out_first = c_.architecture == DecoderArchitecture::kLlama;
    Row y(out);
    for (size_t o = 0; o < out; ++o) {
      if (!bias.empty()) y[o] = bias[o];
      for (size_t i = 0; i < in; ++i) y[o] += x[i] * (out_first ? w[o * in + i] : w[i * out + o]);
    }
    return y;
  }

  double Scale(double frequency) const {
    const RopeScaling& s = c_.rope_scaling;
    if (s.kind == RopeScaling::Kind::kNone) return frequency;
    if (s.kind == RopeScaling::Kind::kLinear) return frequency / s.factor;
    const double wavelength = 2 * M_PI / frequency;
    const double original = static_cast<double>(s.original_max_positions);
    if (wavelength > original / s.low_freq_factor) return frequency / s.factor;
    if (wavelength < original / s.high_freq_factor) return frequency;
    const double smooth =
        (original / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
    return (1 - smooth) * frequency / s.factor + smooth * frequency;
  }

  // Rotates the pairs (i, i + D/2) of every head by position * theta^(-2 i / D).
  void Rotate(Row& x, size_t position) const {
    const int64_t d = c_.head_dim;
    for (size_t head = 0; head < x.size() / d; ++head) {
      for (int64_t i = 0; i < d / 2; ++i) {
        const double angle =
            static_cast<double>(position) *
            Scale(std::pow(c_.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(d)));
        double &a = x[head * d + i], &b = x[head * d + i + d / 2];
        const double rotated = a * std::cos(angle) - b * std::sin(angle);
        b = b * std::cos(angle) + a * std::sin(angle);
        a = rotated;
      }
    }
  }

  std::vector<Row> Attend(const std::vector<Row>& x, const std::string& at) const {
    const bool llama = c_.architecture == DecoderArchitecture::kLlama;
    const int64_t d = c_.head_dim, group = c_.heads / c_.kv_heads;
    std::vector<Row> q, k, v, out;
    for (size_t t = 0; t < x.size(); ++t) {
      if (llama) {
        const Row h = Norm(x[t], at + "input_layernorm");
        q.push_back(Linear(h, at + "self_attn.q_proj"));
        k.push_back(Linear(h, at + "self_attn.k_proj"));
        v.push_back(Linear(h, at + "self_attn.v_proj"));
        Rotate(q.back(), t);
        Rotate(k.back(), t);
      } else {
        const Row qkv = Linear(Norm(x[t], at + "ln_1"), at + "attn.c_attn");
        const auto part = [&](int64_t i) {
          return Row(qkv.begin() + i * c_.hidden_size, qkv.begin() + (i + 1) * c_.hidden_size);
        };
        q.push_back(part(0));
        k.push_back(part(1));
        v.push_back(part(2));
      }
      Row mixed(c_.heads * d, 0.0);
      for (int64_t head = 0; head < c_.heads; ++head) {
        Row weight(t + 1);
        double sum = 0;
        for (size_t s = 0; s <= t; ++s) {
          double score = 0;
          for (int64_t i = 0; i < d; ++i) score += q[t][head * d + i] * k[s][head / group * d + i];
          sum += weight[s] = std::exp(score / std::sqrt(static_cast<double>(d)));
        }
        for (size_t s = 0; s <= t; ++s) {
          for (int64_t i = 0; i < d; ++i) {
            mixed[head * d + i] += weight[s] / sum * v[s][head / group * d + i];
          }
        }
      }
      out.push_back(Linear(mixed, at + (llama ? "self_attn.o_proj" : "attn.c_proj")));
    }
    return out;
  }

  Row LlamaMlp(const Row& x, const std::string& at) const {
    const Row h = Norm(x, at + "post_attention_layernorm");
    Row gate = Linear(h, at + "mlp.gate_proj");
    const Row up = Linear(h, at + "mlp.up_proj");
    for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
    return Linear(gate, at + "mlp.down_proj");
  }

  Row Gpt2Mlp(const Row& x, const std::string& at) const {
    Row h = Linear(Norm(x, at + "ln_2"), at + "mlp.c_fc");
    for (double& v : h) {
      v = c_.activation == DecoderActivation::kGelu
              ? v / 2 * (1 + std::erf(v / std::sqrt(2.0)))
              : v / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
    }
    return Linear(h, at + "mlp.c_proj");
  }

  const DecoderConfig& c_;
  const DecoderSource& source_;
  const ParameterStore& parameters_;
};

}  // namespace tandem

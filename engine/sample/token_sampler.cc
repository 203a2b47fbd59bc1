#include "engine/sample/token_sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/container/flat_hash_map.h"
#include "engine/base/philox.h"

namespace tandem {
namespace {

absl::Status Range(std::string_view name, double value, double low, double high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return InvalidArgument(name, " is ", value, ", must be in [", low, ", ", high, "]");
}

// Larger logit first, the lower id on ties.
struct ByLogit {
  std::span<const float> logits;
  bool operator()(int32_t a, int32_t b) const {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  }
};

void Penalize(std::span<float> logits, const SamplingOptions& options,
              const TokenHistory& history) {
  const auto generated = static_cast<int64_t>(history.tokens.size()) - history.prompt_tokens;
  if (options.repetition_penalty != 1) {
    std::vector<int32_t> seen(history.tokens.begin(), history.tokens.end());
    std::sort(seen.begin(), seen.end());
    seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
    const auto penalty = static_cast<float>(options.repetition_penalty);
    for (int32_t t : seen) logits[t] = logits[t] > 0 ? logits[t] / penalty : logits[t] * penalty;
  }
  if (options.presence_penalty != 0 || options.frequency_penalty != 0) {
    absl::flat_hash_map<int32_t, int64_t> counts;
    for (int32_t t : history.tokens.last(generated)) ++counts[t];
    for (const auto& [t, count] : counts) {
      logits[t] -= static_cast<float>(options.presence_penalty +
                                      options.frequency_penalty * static_cast<double>(count));
    }
  }
  for (const auto& [t, bias] : options.logit_bias) logits[t] += bias;
  if (generated < options.min_tokens) {
    for (int32_t t : history.eos_token_ids) {
      if (t >= 0 && t < static_cast<int64_t>(logits.size())) logits[t] = -INFINITY;
    }
    for (int32_t t : options.stop_token_ids) logits[t] = -INFINITY;
  }
}

// The ids that may be drawn, likeliest first where any cut is on.
std::vector<int32_t> Candidates(std::span<const float> logits, const SamplingOptions& options) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto vocab = static_cast<int64_t>(ids.size());
  const bool cut_k = options.top_k > 0 && options.top_k < vocab;
  if (!cut_k && options.top_p >= 1 && options.min_p <= 0) return ids;
  const ByLogit order{logits};
  if (cut_k) {
    std::nth_element(ids.begin(), ids.begin() + options.top_k - 1, ids.end(), order);
    ids.resize(options.top_k);
  }
  std::sort(ids.begin(), ids.end(), order);
  const double top = logits[ids[0]];
  if (options.top_p < 1) {
    double total = 0;
    for (int32_t t : ids) total += std::exp(logits[t] - top);
    double sum = 0;
    size_t keep = 0;
    while (keep < ids.size() && sum < options.top_p * total)
      sum += std::exp(logits[ids[keep++]] - top);
    ids.resize(std::max<size_t>(1, keep));
  }
  if (options.min_p > 0) {
    size_t keep = 1;
    while (keep < ids.size() && std::exp(logits[ids[keep]] - top) >= options.min_p) ++keep;
    ids.resize(keep);
  }
  return ids;
}

// Standard Gumbel noise of one token at one position.
double GumbelNoise(const SamplingOptions& options, uint64_t position, int32_t token) {
  const uint64_t counter = position << 32 | static_cast<uint32_t>(token) / 4;
  const Philox::Words words = Philox::Block(options.seed, options.stream, counter);
  return -std::log(-std::log(static_cast<double>(Philox::Uniform(words[token % 4]))));
}

}  // namespace

absl::Status SamplingOptions::Validate(int64_t vocab_size) const {
  constexpr double kMany = 1e6;
  TANDEM_RETURN_IF_ERROR(Range("max_tokens", static_cast<double>(max_tokens), 1, 1e9));
  TANDEM_RETURN_IF_ERROR(
      Range("min_tokens", static_cast<double>(min_tokens), 0, static_cast<double>(max_tokens)));
  TANDEM_RETURN_IF_ERROR(Range("temperature", temperature, 0, kMany));
  TANDEM_RETURN_IF_ERROR(Range("top_k", static_cast<double>(top_k), 0, 1e9));
  TANDEM_RETURN_IF_ERROR(Range("top_p", top_p, 1e-9, 1));
  TANDEM_RETURN_IF_ERROR(Range("min_p", min_p, 0, 1));
  TANDEM_RETURN_IF_ERROR(Range("repetition_penalty", repetition_penalty, 1e-6, kMany));
  TANDEM_RETURN_IF_ERROR(Range("presence_penalty", presence_penalty, -kMany, kMany));
  TANDEM_RETURN_IF_ERROR(Range("frequency_penalty", frequency_penalty, -kMany, kMany));
  TANDEM_RETURN_IF_ERROR(Range("logprobs", static_cast<double>(logprobs), 0, 20));
  const auto last = static_cast<double>(vocab_size - 1);
  for (const auto& [token, bias] : logit_bias) {
    TANDEM_RETURN_IF_ERROR(Range("logit_bias token", token, 0, last));
    TANDEM_RETURN_IF_ERROR(Range("logit_bias", bias, -kMany, kMany));
  }
  for (int32_t token : stop_token_ids) {
    TANDEM_RETURN_IF_ERROR(Range("stop_token_ids", token, 0, last));
  }
  return absl::OkStatus();
}

SampledToken SampleToken(std::span<const float> logits, float lse, const SamplingOptions& options,
                         const TokenHistory& history, std::vector<float>& scratch) {
  scratch.assign(logits.begin(), logits.end());
  const std::span<float> scaled(scratch);
  Penalize(scaled, options, history);
  SampledToken sampled;
  if (options.temperature == 0) {
    sampled.token =
        static_cast<int32_t>(std::max_element(scaled.begin(), scaled.end()) - scaled.begin());
    sampled.sampling_logprob = 0;
  } else {
    const auto temperature = static_cast<float>(options.temperature);
    for (float& x : scaled) x /= temperature;
    const std::vector<int32_t> ids = Candidates(scaled, options);
    const uint64_t position = history.tokens.size();
    double best = -INFINITY;
    double top = -INFINITY;
    sampled.token = ids[0];
    for (int32_t t : ids) {
      top = std::max<double>(top, scaled[t]);
      const double score = scaled[t] + GumbelNoise(options, position, t);
      if (score > best) {
        best = score;
        sampled.token = t;
      }
    }
    double sum = 0;
    for (int32_t t : ids) sum += std::exp(scaled[t] - top);
    sampled.sampling_logprob = static_cast<float>(scaled[sampled.token] - top - std::log(sum));
  }
  sampled.logprob = logits[sampled.token] - lse;
  if (options.logprobs > 0) {
    std::vector<int32_t> ids(logits.size());
    std::iota(ids.begin(), ids.end(), 0);
    const size_t count = std::min<size_t>(options.logprobs, ids.size());
    std::partial_sort(ids.begin(), ids.begin() + static_cast<int64_t>(count), ids.end(),
                      ByLogit{logits});
    for (size_t i = 0; i < count; ++i) {
      sampled.top_logprobs.emplace_back(ids[i], logits[ids[i]] - lse);
    }
  }
  return sampled;
}

}  // namespace tandem

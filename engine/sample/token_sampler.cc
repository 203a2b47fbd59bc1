#include "engine/sample/token_sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/container/flat_hash_map.h"

namespace tandem {
namespace {

absl::Status Range(std::string_view name, double value, double low, double high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return InvalidArgument(name, " is ", value, ", must be in [", low, ", ", high, "]");
}

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

DrawOptions DrawOptionsOf(const SamplingOptions& options, uint64_t position) {
  return {.temperature = static_cast<float>(options.temperature),
          .top_k = options.top_k,
          .top_p = options.top_p,
          .min_p = options.min_p,
          .seed = options.seed,
          .stream = options.stream,
          .position = position};
}

SampledToken SampleToken(std::span<const float> logits, float lse, const SamplingOptions& options,
                         const TokenHistory& history, std::vector<float>& scratch) {
  scratch.assign(logits.begin(), logits.end());
  const std::span<float> scaled(scratch);
  Penalize(scaled, options, history);
  const DrawnToken drawn = DrawToken(scaled, DrawOptionsOf(options, history.tokens.size()));
  SampledToken sampled;
  sampled.token = drawn.token;
  sampled.sampling_logprob = drawn.sampling_logprob;
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

#include "engine/base/draw_token.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/base/philox.h"

namespace tandem {
namespace {

// The ids that may be drawn, likeliest first where any cut is on.
std::vector<int32_t> Candidates(std::span<const float> logits, const DrawOptions& options) {
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
double GumbelNoise(const DrawOptions& options, int32_t token) {
  const uint64_t counter = options.position << 32 | static_cast<uint32_t>(token) / 4;
  const Philox::Words words = Philox::Block(options.seed, options.stream, counter);
  return -std::log(-std::log(static_cast<double>(Philox::Uniform(words[token % 4]))));
}

}  // namespace

DrawnToken DrawToken(std::span<float> logits, const DrawOptions& options) {
  if (options.temperature == 0) {
    return {static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()),
            0};
  }
  for (float& x : logits) x /= options.temperature;
  const std::vector<int32_t> ids = Candidates(logits, options);
  double best = -INFINITY, top = -INFINITY;
  DrawnToken drawn{ids[0], 0};
  for (int32_t t : ids) {
    top = std::max<double>(top, logits[t]);
    const double score = logits[t] + GumbelNoise(options, t);
    if (score > best) {
      best = score;
      drawn.token = t;
    }
  }
  double sum = 0;
  for (int32_t t : ids) sum += std::exp(logits[t] - top);
  drawn.sampling_logprob = static_cast<float>(logits[drawn.token] - top - std::log(sum));
  return drawn;
}

}  // namespace tandem

// From one row of logits to a token: temperature, top-k, top-p and min-p, then the Gumbel-max draw.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace tandem {

// An order of tokens: larger logit first, the lower id on ties.
struct ByLogit {
  std::span<const float> logits;
  bool operator()(int32_t a, int32_t b) const {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  }
};

struct DrawOptions {
  float temperature = 1;  // 0: the largest logit, the first of equals
  int64_t top_k = 0;      // 0: off
  double top_p = 1;       // (0, 1]; 1: off
  double min_p = 0;       // [0, 1]; 0: off
  // Of the noise, in Philox4x32-10: position tokens come before this one.
  uint64_t seed = 0, stream = 0, position = 0;
};

struct DrawnToken {
  int32_t token = 0;
  float sampling_logprob = 0;  // of the distribution drawn from; 0 at temperature 0
};

// In order: logits / temperature, the top_k largest, of these the likeliest that together have
// top_p of the probability, of these those with at least min_p of the likeliest's; of equal logits
// the first token counts as the larger. Each left has Gumbel noise keyed by (seed, stream,
// position, token), and the largest sum wins: so a draw does not depend on what else is in the
// batch. `logits` (V >= 1) are overwritten.
DrawnToken DrawToken(std::span<float> logits, const DrawOptions& options);

}  // namespace tandem

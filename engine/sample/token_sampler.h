// From one row of logits to a token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/base/draw_token.h"
#include "engine/sample/generator.h"

namespace tandem {

// The tokens so far, as penalties see them.
struct TokenHistory {
  std::span<const int32_t> tokens;  // prompt, then generated
  int64_t prompt_tokens = 0;
  std::span<const int32_t> eos_token_ids;
};

// The part of the options that a draw takes once logits are penalised.
DrawOptions DrawOptionsOf(const SamplingOptions& options, uint64_t position);

// Draws the token at position history.tokens.size(). `logits` (V) are the model's, `lse` their
// log-sum-exp. In order: repetition, presence and frequency penalties, logit_bias, min_tokens (no
// end of sequence yet), then DrawToken. `scratch` keeps its memory between calls. Fills all of
// SampledToken but version and finish.
SampledToken SampleToken(std::span<const float> logits, float lse, const SamplingOptions& options,
                         const TokenHistory& history, std::vector<float>& scratch);

}  // namespace tandem

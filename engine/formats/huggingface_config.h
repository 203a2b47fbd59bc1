// config.json of Hugging Face's LlamaForCausalLM and GPT2LMHeadModel.
#pragma once

#include <string>
#include <string_view>

#include "engine/nn/decoder.h"

namespace tandem {

// Errors name a field that is missing, malformed, unknown, or whose value would change the result
// in a way that is not supported (other rope_scaling than linear and llama3, sliding_window,
// another hidden_act ...). Dropout
// probabilities are accepted: nothing is dropped here. One field is an addition of Tandem's own:
// "bias": false in a GPT-2 configuration, nanoGPT's model without biases.
absl::StatusOr<DecoderConfig> ParseHuggingFaceConfig(std::string_view json);

// The config.json of `config`, for weights of type `dtype`; ParseHuggingFaceConfig reads it back.
std::string WriteHuggingFaceConfig(const DecoderConfig& config, DType dtype);

}  // namespace tandem

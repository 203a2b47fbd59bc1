// Model folders as Hugging Face's transformers write them: config.json, model.safetensors (or
// model.safetensors.index.json and its shards), tokenizer files.
#pragma once

#include <string>

#include "engine/formats/huggingface_config.h"
#include "engine/formats/loaded_model.h"

namespace tandem {

// True if `folder` has a config.json: what makes it a Hugging Face folder.
bool IsHuggingFaceFolder(const std::string& folder);

// LlamaForCausalLM and GPT2LMHeadModel with F32, F16 or BF16 weights, which become f32
// (ParameterInfo.file_dtype remembers). Nothing is allocated for weights before all tensors' names
// and shapes have been checked against the configuration. Errors name the file, the field or the
// tensor, what was expected and what was found.
absl::StatusOr<LoadedModel> LoadHuggingFace(const std::string& folder);

// Writes config.json and model.safetensors (each weight in its file_dtype) into `folder`, made if
// it is not there, and copies tokenizer and generation files from `origin`, the folder that the
// model came from (empty: none). Every file appears whole or not at all, the weights last.
// `source` must be a DecoderSource.
absl::Status SaveHuggingFace(const GraphSource& source, const ParameterStore& parameters,
                             const std::string& folder, const std::string& origin);

}  // namespace tandem

// Small language models for tests.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "engine/exec/model.h"
#include "engine/nn/decoder.h"
#include "engine/nn/initialize.h"
#include "tests/engine/test_device.h"

namespace tandem {

inline DecoderConfig TinyConfig(DecoderArchitecture architecture) {
  DecoderConfig c;
  c.architecture = architecture;
  c.vocab_size = 61;
  c.layers = 2;
  c.heads = 4;
  c.hidden_size = 48;
  c.head_dim = 12;
  c.max_positions = 160;
  c.initializer_std = 0.2;
  c.tie_embeddings = true;
  if (architecture == DecoderArchitecture::kLlama) {
    c.kv_heads = 2;
    c.intermediate_size = 100;
  } else {
    c.kv_heads = 4;
    c.intermediate_size = 192;
    c.bias = true;
    c.activation = DecoderActivation::kGelu;
  }
  return c;
}

inline std::unique_ptr<Model> MakeModel(const DecoderConfig& config, uint64_t seed = 1,
                                        Precision precision = Precision::kF32) {
  auto source = DecoderSource::Create(config);
  EXPECT_TRUE(source.ok()) << source.status();
  if (!source.ok()) return nullptr;
  auto model = std::make_unique<Model>("tiny", *source, InitializeParameters(**source, seed), precision);
  const absl::Status moved = model->MoveTo(TestDevice());
  EXPECT_TRUE(moved.ok()) << moved;
  return model;
}

inline std::vector<int32_t> RandomTokens(int64_t count, int64_t vocab, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& t : tokens) t = static_cast<int32_t>(random() % vocab);
  return tokens;
}

}  // namespace tandem

// Generator: token sampling over a Model, with a paged KV cache and continuous batching.
//
// Every method runs on the compute thread; Step() does one bounded piece of work: a chunk of one
// prompt, or one token for every running sequence. A weight change between two steps makes the
// cached keys and values of running sequences stale: they are recomputed with the new weights
// before the next token, so that each token's log-probability is what Score would give with the
// weights whose version it carries.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/exec/model.h"

namespace tandem {

struct SamplingOptions {
  int64_t max_tokens = 128, min_tokens = 0;
  double temperature = 1;  // 0: greedy
  int64_t top_k = 0;       // 0: off
  double top_p = 1, min_p = 0;
  double repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  std::map<int32_t, float> logit_bias;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  uint64_t seed = 0;
  uint64_t stream = 0;   // which of the n samples: another stream of the same seed
  int64_t logprobs = 0;  // this many likeliest tokens with each
  bool prompt_logprobs = false;
  // Ranges, NaN, and token ids against vocab_size; messages name the field.
  absl::Status Validate(int64_t vocab_size) const;
};

enum class FinishReason : uint8_t { kNone, kStop, kLength };

struct SampledToken {
  int32_t token = 0;
  float logprob = 0;           // of the model's distribution
  float sampling_logprob = 0;  // of the distribution drawn from
  std::vector<std::pair<int32_t, float>> top_logprobs;
  int64_t weights_version = 0;
  FinishReason finish = FinishReason::kNone;
  // With the first token, if asked for: one a prompt token, the first is NaN.
  std::vector<float> prompt_logprobs;
};

class Generator {
 public:
  // Called on the compute thread for every token; returns false to end the sequence (a stop text
  // was found, the client went away). It may call Add and Cancel, for its own sequence too. After
  // an error (`status` not OK) it is not called again.
  using TokenCallback = std::function<bool(const absl::Status& status, const SampledToken& token)>;

  struct Options {
    int64_t max_sequences = 64;  // running at once; more wait
    int64_t max_waiting = 1024;  // then RESOURCE_EXHAUSTED
    int64_t prompt_chunk_tokens = 256;
    int64_t kv_cache_bytes = int64_t{256} << 20;
  };
  // FAILED_PRECONDITION: the model is no language model. RESOURCE_EXHAUSTED: no memory for the
  // cache.
  static absl::StatusOr<std::unique_ptr<Generator>> Create(Model* model, Options options);
  virtual ~Generator() = default;

  // Queues a request. Errors: an empty or too long prompt, a token out of range, bad options.
  // Returns an id for Cancel.
  virtual absl::StatusOr<int64_t> Add(std::vector<int32_t> prompt, SamplingOptions options,
                                      TokenCallback callback) = 0;
  // Frees the sequence's place; its callback is not called any more. Unknown ids are ignored.
  virtual void Cancel(int64_t id) = 0;
  // Whether Step() has anything to do.
  virtual bool HasWork() const = 0;
  virtual void Step() = 0;

  struct Statistics {
    int64_t running = 0, waiting = 0, cache_pages_used = 0, cache_pages = 0;
    int64_t prompt_tokens = 0, generated_tokens = 0, recomputed_tokens = 0;
  };
  virtual Statistics statistics() const = 0;
};

// Log-probabilities of each sequence's tokens given those before: entry 0 is NaN. By the training
// forward over packed sequences.
absl::StatusOr<std::vector<std::vector<float>>> ScoreSequences(
    Model* model, const std::vector<std::vector<int32_t>>& sequences);

}  // namespace tandem

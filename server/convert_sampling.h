// Sampling's messages, to and from the engine (see convert.h).
#pragma once

#include "engine/sample/generator.h"
#include "tandem/v1/sampling.pb.h"

namespace tandem::server {

// How many samples and stop texts one request may ask for.
inline constexpr int32_t kMaxSamples = 256;
inline constexpr int kMaxStopTexts = 16;
inline constexpr size_t kMaxStopBytes = 256;

// Samples per request: 1 where unset.
absl::StatusOr<int32_t> SampleCount(const v1::GenerateRequest& request);

// The sampling options of sample 0, without max_tokens where it is unset (then 0), and without the
// seed. Unset fields are neutral.
absl::StatusOr<SamplingOptions> FromProto(const v1::GenerateRequest& request, int64_t vocab_size);

// Everything of a token but its text and index.
void ToProto(const SampledToken& token, v1::GenerateResponse* out);

}  // namespace tandem::server

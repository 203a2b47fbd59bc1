// Messages about models, to and from the engine (see convert.h).
#pragma once

#include "server/model_store.h"
#include "tandem/v1/models.pb.h"

namespace tandem::server {

// A decoder's configuration with the documented defaults where fields are unset.
absl::StatusOr<NewDecoder> FromProto(const v1::DecoderConfig& config, uint64_t seed);

// Compute thread only, as it reads what is the compute thread's.
void ToProto(const ModelEntry& entry, bool with_hash, v1::Model* out);

}  // namespace tandem::server

// Stochastic approximation's messages, to and from the engine (see convert.h).
#pragma once

#include <optional>

#include "engine/sample/approximation.h"
#include "tandem/v1/approximation.pb.h"

namespace tandem::server {

// Unset fields take the documented defaults; values are checked where the approximation starts.
absl::StatusOr<ApproximationOptions> FromProto(const v1::Approximation& approximation);
void ToProto(const ApproximationAnswer& answer, std::string token, v1::ApproximateResponse* out);

// One request of a stream whose approximation is `current`, none before the first: starts, resumes
// or continues it, and answers. Errors leave it as it was.
absl::Status Approximate(const v1::ApproximateRequest& request,
                         std::optional<Approximation>* current, v1::ApproximateResponse* response);

}  // namespace tandem::server

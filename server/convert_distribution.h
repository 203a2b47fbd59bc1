// Distributions' messages, to and from the engine (see convert.h).
#pragma once

#include "engine/sample/sample_distribution.h"
#include "tandem/v1/distributions.pb.h"

namespace tandem::server {

// A distribution's options and its named parameters; values are not checked against the family.
struct DistributionMessage {
  DistributionOptions options;
  std::vector<std::pair<std::string, Tensor>> parameters;
};
absl::StatusOr<DistributionMessage> FromProto(const v1::Distribution& distribution);

// All but the seed.
absl::StatusOr<DrawOptions> FromProto(const v1::SampleDistributionRequest& request);
// All but the seed; `options` names the gradients.
void ToProto(const DrawResult& result, const DrawOptions& options,
             v1::SampleDistributionResponse* response);

}  // namespace tandem::server

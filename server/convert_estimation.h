// Gradient estimation's messages, to and from the engine (see convert.h).
#pragma once

#include "engine/sample/gradient_estimator.h"
#include "tandem/v1/estimation.pb.h"

namespace tandem::server {

// When an estimation ends.
struct EstimationLimits {
  double standard_error = 0;  // 0: not by that
  int64_t max_draws = 65536;
};

absl::StatusOr<EstimationLimits> LimitsFromProto(const v1::EstimateGradientRequest& request);
// All but the seed; batches hold at most limits.max_draws.
absl::StatusOr<EstimatorOptions> FromProto(const v1::EstimateGradientRequest& request,
                                           const EstimationLimits& limits);

void ToProto(const GradientEstimate& estimate, v1::EstimateGradientResponse* response);
void ToProto(const GradientEstimator::ExactGradient& exact, v1::EstimateGradientResponse* response);

}  // namespace tandem::server

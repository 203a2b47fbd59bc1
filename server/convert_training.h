// Training's messages, to and from the engine (see convert.h).
#pragma once

#include "engine/train/trainer.h"
#include "tandem/v1/training.pb.h"

namespace tandem::server {

// Unset fields take the documented defaults.
absl::StatusOr<Objective> FromProto(const v1::Objective& objective);
v1::Objective ToProto(const Objective& objective);

absl::StatusOr<OptimizerOptions> FromProto(const v1::Optimizer& optimizer);
// Of a model that computes in `precision`.
absl::StatusOr<LossScaling> FromProto(const v1::LossScaling& scaling, Precision precision);
v1::LossScaling ToProto(const LossScaling& scaling);
v1::Optimizer ToProto(const OptimizerOptions& options);

// `options` with the parameters that are set.
absl::StatusOr<OptimizerOptions> WithParameters(OptimizerOptions options,
                                                const v1::OptimizerParameters& parameters);

absl::StatusOr<Batch> FromProto(const v1::Batch& batch);

void ToProto(const LossReport& report, bool return_logprobs, int64_t weights_version,
             v1::ForwardBackwardResponse* out);
void ToProto(const LossReport& report, bool return_logprobs, int64_t weights_version,
             v1::EvaluateResponse* out);
void ToProto(const StepReport& report, int64_t weights_version, v1::OptimStepResponse* out);
void ToProto(const Trainer& trainer, const Model& model, v1::Training* out);

}  // namespace tandem::server

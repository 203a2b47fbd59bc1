// The graph of one step of a gradient estimator. Internal to gradient_estimator.cc.
#pragma once

#include <span>

#include "engine/sample/gradient_estimator.h"

namespace tandem {

// Inputs: the parameters, then options.inputs. Outputs, f64, R = options.batch_draws: f(z) (R);
// then for each parameter of P elements (R, P): the draws' gradients, or for kScoreFunction their
// scores.
absl::StatusOr<Graph> BuildEstimatorStep(const GraphSource& model, const EstimatorOptions& options,
                                         const Distribution& distribution);

// Inputs: the parameters, options.inputs, then the outcomes (R, ...), R = kBernoulli's 2^n or
// kCategorical's K^n. Outputs, f64: E f (), then the gradient of each parameter.
absl::StatusOr<Graph> BuildExactGradient(const GraphSource& model, const EstimatorOptions& options,
                                         const Distribution& distribution,
                                         const TensorType& outcomes);

// Rows of the model's batch that one draw costs: forward, and backward.
int64_t EvaluationsPerDraw(const EstimatorOptions& options, const Distribution& distribution);
bool Differentiates(Estimator estimator);

}  // namespace tandem

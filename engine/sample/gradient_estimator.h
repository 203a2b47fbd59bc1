// Monte Carlo estimates of d/dtheta E_{z ~ p(theta)}[f(z)] for a model f.
//
// Mohamed et al., "Monte Carlo Gradient Estimation in Machine Learning" (JMLR 2020), whose names
// are used. Each draw z is a row of the model's batch and the model gives one number a row; rows
// must not influence each other (they do not in any model without batch statistics).
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/exec/model.h"
#include "engine/sample/distribution.h"

namespace tandem {

enum class Estimator : uint8_t {
  kPathwise,         // reparameterised families, f differentiable; unbiased
  kScoreFunction,    // any family, any f (REINFORCE, Williams 1992); unbiased
  kGumbelSoftmax,    // of kBernoulli, kCategorical: pathwise through the relaxed family; biased
  kStraightThrough,  // the same with hard draws forward; biased
  kMeasureValued,    // kNormal, kExponential, kBernoulli, kCategorical; any f; unbiased
};

// What the score function subtracts from f. All keep it unbiased: the baseline of a draw depends on
// other draws only.
enum class Baseline : uint8_t {
  kNone,
  kRunningMean,  // the mean of f over the draws before
  kLeaveOneOut,  // the mean of f over the batch's other draws
  kOptimal,  // sum(f s^2) / sum(s^2) over the other draws, s the score of each parameter element
};

struct EstimatorOptions {
  DistributionOptions distribution;
  std::vector<std::pair<std::string, Tensor>> parameters;
  Estimator estimator = Estimator::kPathwise;
  Baseline baseline = Baseline::kNone;  // kScoreFunction only
  double temperature = 1;               // kGumbelSoftmax and kStraightThrough only
  std::string input;                    // the model's input that takes z; empty: the only one
  std::string output;                   // the model's output that is f; empty: the only one
  // The model's other inputs, the same for every draw; a first dimension of 1 is repeated where the
  // model's is variable.
  std::vector<std::pair<std::string, Tensor>> inputs;
  int64_t batch_draws = 256;  // draws a step; at least 2
  uint64_t seed = 0;
};

// A running mean of draws' gradients of one parameter, elementwise.
struct ParameterEstimate {
  std::string name;
  Shape shape;
  std::vector<double> gradient;  // the mean
  std::vector<double> variance;  // of one draw's estimate
};

struct GradientEstimate {
  std::vector<ParameterEstimate> parameters;
  int64_t draws = 0;
  int64_t evaluations = 0;               // of f, forward
  int64_t gradient_evaluations = 0;      // of f's derivative
  double value = 0, value_variance = 0;  // of f(z): mean, and of one draw
  int64_t weights_version = 0;
  double seconds = 0;  // computing

  // The largest of the gradients' elements' standard errors, sqrt(variance / draws).
  double standard_error() const;
};

// Compute thread only.
class GradientEstimator {
 public:
  // Errors: what the distribution says; an estimator that does not apply, and why; a model whose
  // input or output does not fit the draws.
  static absl::StatusOr<std::unique_ptr<GradientEstimator>> Create(EstimatorOptions options);

  // Adds one batch of draws, with the model's current weights.
  absl::Status Step(Model& model);
  const GradientEstimate& estimate() const { return estimate_; }

  // The gradient and E f, by summing over all outcomes: of kBernoulli and kCategorical with at most
  // kMaxOutcomes of them.
  static constexpr int64_t kMaxOutcomes = 4096;
  struct ExactGradient {
    double value = 0;
    std::vector<Tensor> gradients;  // f64, one a parameter
  };
  absl::StatusOr<ExactGradient> Exact(Model& model) const;

 private:
  GradientEstimator() = default;
  void Accumulate(const std::vector<Tensor>& outputs);

  EstimatorOptions options_;
  std::optional<Distribution> distribution_;  // as given
  std::string key_;
  GradientEstimate estimate_;
  std::vector<std::vector<double>> squares_;  // sums of squared deviations, a parameter
  double value_squares_ = 0;
  int64_t steps_ = 0;
};

}  // namespace tandem

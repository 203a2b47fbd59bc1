#include "server/convert_estimation.h"

#include <algorithm>
#include <cmath>

#include "server/convert.h"
#include "server/convert_distribution.h"

namespace tandem::server {
namespace {

absl::StatusOr<Estimator> FromProto(v1::GradientEstimatorKind kind, Family family) {
  switch (kind) {
    case v1::GRADIENT_ESTIMATOR_KIND_UNSPECIFIED:
      return IsDiscrete(family) ? Estimator::kScoreFunction : Estimator::kPathwise;
    case v1::GRADIENT_ESTIMATOR_KIND_PATHWISE:
      return Estimator::kPathwise;
    case v1::GRADIENT_ESTIMATOR_KIND_SCORE_FUNCTION:
      return Estimator::kScoreFunction;
    case v1::GRADIENT_ESTIMATOR_KIND_GUMBEL_SOFTMAX:
      return Estimator::kGumbelSoftmax;
    case v1::GRADIENT_ESTIMATOR_KIND_STRAIGHT_THROUGH:
      return Estimator::kStraightThrough;
    case v1::GRADIENT_ESTIMATOR_KIND_MEASURE_VALUED:
      return Estimator::kMeasureValued;
    default:
      return InvalidArgument("estimator ", static_cast<int>(kind),
                             " is not a known GradientEstimatorKind");
  }
}

absl::StatusOr<Baseline> FromProto(v1::BaselineKind kind, Estimator estimator) {
  switch (kind) {
    case v1::BASELINE_KIND_UNSPECIFIED:
      return estimator == Estimator::kScoreFunction ? Baseline::kLeaveOneOut : Baseline::kNone;
    case v1::BASELINE_KIND_NONE:
      return Baseline::kNone;
    case v1::BASELINE_KIND_RUNNING_MEAN:
      return Baseline::kRunningMean;
    case v1::BASELINE_KIND_LEAVE_ONE_OUT:
      return Baseline::kLeaveOneOut;
    case v1::BASELINE_KIND_OPTIMAL:
      return Baseline::kOptimal;
    default:
      return InvalidArgument("baseline ", static_cast<int>(kind), " is not a known BaselineKind");
  }
}

v1::Tensor DoublesToProto(const Shape& shape, const std::vector<double>& values) {
  return ToProto(Tensor::Of<double>(shape, std::span<const double>(values)));
}

}  // namespace

absl::StatusOr<EstimationLimits> LimitsFromProto(const v1::EstimateGradientRequest& request) {
  EstimationLimits limits;
  if (request.has_standard_error()) {
    limits.standard_error = request.standard_error();
    if (!(limits.standard_error > 0) || !std::isfinite(limits.standard_error)) {
      return InvalidArgument("standard_error is ", limits.standard_error,
                             ", must be above 0 and finite");
    }
  }
  if (request.has_max_draws()) limits.max_draws = request.max_draws();
  if (limits.max_draws < 2) {
    return InvalidArgument("max_draws is ", limits.max_draws, ", must be at least 2");
  }
  return limits;
}

absl::StatusOr<EstimatorOptions> FromProto(const v1::EstimateGradientRequest& request,
                                           const EstimationLimits& limits) {
  EstimatorOptions options;
  TANDEM_ASSIGN_OR_RETURN(DistributionMessage distribution, FromProto(request.distribution()));
  options.distribution = distribution.options;
  options.parameters = std::move(distribution.parameters);
  TANDEM_ASSIGN_OR_RETURN(options.estimator,
                          FromProto(request.estimator(), options.distribution.family));
  TANDEM_ASSIGN_OR_RETURN(options.baseline, FromProto(request.baseline(), options.estimator));
  if (request.has_temperature()) options.temperature = request.temperature();
  options.input = request.input();
  options.output = request.output();
  constexpr int kMaxInputs = 4096;
  if (request.inputs_size() > kMaxInputs) {
    return InvalidArgument("inputs has ", request.inputs_size(), " entries, at most ", kMaxInputs,
                           " are allowed");
  }
  for (const v1::NamedTensor& named : request.inputs()) {
    TANDEM_ASSIGN_OR_RETURN(Tensor tensor,
                            FromProto(named.tensor(), StrCat("input '", named.name(), "'")));
    options.inputs.emplace_back(named.name(), std::move(tensor));
  }
  if (request.has_batch_draws()) options.batch_draws = request.batch_draws();
  options.batch_draws = std::min(options.batch_draws, limits.max_draws);
  return options;
}

void ToProto(const GradientEstimate& estimate, v1::EstimateGradientResponse* response) {
  const auto draws = static_cast<double>(estimate.draws);
  for (const ParameterEstimate& p : estimate.parameters) {
    auto* out = response->add_parameters();
    out->set_name(p.name);
    *out->mutable_gradient() = DoublesToProto(p.shape, p.gradient);
    *out->mutable_variance() = DoublesToProto(p.shape, p.variance);
    std::vector<double> errors;
    for (double v : p.variance) errors.push_back(std::sqrt(v / draws));
    *out->mutable_standard_error() = DoublesToProto(p.shape, errors);
  }
  response->set_value(estimate.value);
  response->set_value_standard_error(std::sqrt(estimate.value_variance / draws));
  response->set_draws(estimate.draws);
  response->set_evaluations(estimate.evaluations);
  response->set_gradient_evaluations(estimate.gradient_evaluations);
  response->set_seconds(estimate.seconds);
  response->set_max_standard_error(estimate.standard_error());
  response->set_weights_version(estimate.weights_version);
}

void ToProto(const GradientEstimator::ExactGradient& exact,
             v1::EstimateGradientResponse* response) {
  response->set_exact_value(exact.value);
  for (size_t i = 0; i < exact.gradients.size(); ++i) {
    *response->mutable_parameters(static_cast<int>(i))->mutable_exact() =
        ToProto(exact.gradients[i]);
  }
}

}  // namespace tandem::server

#include "server/convert_approximation.h"

#include <utility>

#include "engine/base/error.h"

namespace tandem::server {
namespace {

using Doubles = google::protobuf::RepeatedField<double>;

std::vector<double> ToVector(const Doubles& values) { return {values.begin(), values.end()}; }

StepLaw FromProto(const v1::StepLaw& law, StepLaw out) {
  if (law.has_scale()) out.scale = law.scale();
  if (law.has_offset()) out.offset = law.offset();
  if (law.has_exponent()) out.exponent = law.exponent();
  return out;
}

// The fields that all iterations have. One bound stands for all coordinates.
template <typename Method>
IterationOptions IterationOf(IterationKind kind, const Method& method, StepLaw default_step) {
  IterationOptions out;
  out.kind = kind;
  out.start = ToVector(method.start());
  const auto bounds = [&](const Doubles& values) {
    if (values.size() != 1) return ToVector(values);
    return std::vector<double>(out.start.size(), values[0]);
  };
  out.lower = bounds(method.box().lower());
  out.upper = bounds(method.box().upper());
  out.step = FromProto(method.step(), default_step);
  out.average = method.has_average();
  out.average_after = method.average().after();
  return out;
}

AverageOptions FromProto(const v1::MeanMethod& method) {
  AverageOptions out;
  if (method.has_dimension()) out.dimension = method.dimension();
  if (method.has_constant_step()) {
    out.kind = AverageKind::kConstantStep;
    out.step = method.constant_step();
  }
  return out;
}

absl::StatusOr<ApproximationOptions> FromProto(const v1::ExponentialAverageMethod& method) {
  AverageOptions out;
  out.kind = AverageKind::kExponential;
  if (method.has_dimension()) out.dimension = method.dimension();
  out.step = method.alpha();
  out.bias_correction = !method.no_bias_correction();
  if (method.has_initial() && out.bias_correction) {
    return InvalidArgument(
        "exponential_average.initial is set, but bias correction makes it have no effect; set "
        "no_bias_correction too");
  }
  out.initial = method.initial();
  return out;
}

absl::StatusOr<ApproximationOptions> FromProto(const v1::GradientDescentMethod& method) {
  IterationOptions out =
      IterationOf(IterationKind::kGradient, method, {.scale = 0.01, .offset = 0, .exponent = 0});
  switch (method.rule()) {
    case v1::DESCENT_RULE_UNSPECIFIED:
    case v1::DESCENT_RULE_PLAIN:
      break;
    case v1::DESCENT_RULE_MOMENTUM:
      out.rule = DescentRule::kMomentum;
      break;
    case v1::DESCENT_RULE_ADAM:
      out.rule = DescentRule::kAdam;
      break;
    default:
      return InvalidArgument("gradient_descent.rule ", static_cast<int>(method.rule()),
                             " is not a known DescentRule");
  }
  absl::Status status;
  const auto take = [&](bool present, double value, const char* field, DescentRule rule,
                        double& to) {
    if (!present) return;
    if (rule != out.rule && status.ok()) {
      status = InvalidArgument("gradient_descent.", field, " is set, but the rule has none");
    }
    to = value;
  };
  take(method.has_momentum(), method.momentum(), "momentum", DescentRule::kMomentum, out.momentum);
  take(method.has_beta1(), method.beta1(), "beta1", DescentRule::kAdam, out.beta1);
  take(method.has_beta2(), method.beta2(), "beta2", DescentRule::kAdam, out.beta2);
  take(method.has_epsilon(), method.epsilon(), "epsilon", DescentRule::kAdam, out.epsilon);
  TANDEM_RETURN_IF_ERROR(status);
  return out;
}

}  // namespace

absl::StatusOr<ApproximationOptions> FromProto(const v1::Approximation& approximation) {
  switch (approximation.method_case()) {
    case v1::Approximation::kMean:
      return FromProto(approximation.mean());
    case v1::Approximation::kExponentialAverage:
      return FromProto(approximation.exponential_average());
    case v1::Approximation::kQuantile:
      return QuantileOptions{ToVector(approximation.quantile().probabilities())};
    case v1::Approximation::kRobbinsMonro:
      return IterationOf(IterationKind::kRobbinsMonro, approximation.robbins_monro(), StepLaw());
    case v1::Approximation::kKieferWolfowitz: {
      const v1::KieferWolfowitzMethod& method = approximation.kiefer_wolfowitz();
      IterationOptions out = IterationOf(IterationKind::kKieferWolfowitz, method, StepLaw());
      out.difference =
          FromProto(method.difference(), {.scale = 1, .offset = 0, .exponent = 1.0 / 6});
      return out;
    }
    case v1::Approximation::kSpsa: {
      const v1::SpsaMethod& method = approximation.spsa();
      IterationOptions out = IterationOf(IterationKind::kSpsa, method,
                                         {.scale = 0.1, .offset = 10, .exponent = 0.602});
      out.difference =
          FromProto(method.difference(), {.scale = 0.1, .offset = 0, .exponent = 0.101});
      out.seed = method.seed();
      return out;
    }
    case v1::Approximation::kGradientDescent:
      return FromProto(approximation.gradient_descent());
    case v1::Approximation::METHOD_NOT_SET:
      break;
  }
  return InvalidArgument("approximation.method is not set");
}

void ToProto(const ApproximationAnswer& answer, std::string token, v1::ApproximateResponse* out) {
  const auto copy = [](const std::vector<double>& from, Doubles* to) {
    to->Add(from.begin(), from.end());
  };
  out->set_step(answer.step);
  out->set_observations(answer.observations);
  for (const std::vector<double>& query : answer.queries) {
    copy(query, out->add_queries()->mutable_coordinates());
  }
  copy(answer.estimate, out->mutable_estimate());
  copy(answer.average, out->mutable_average());
  copy(answer.variance, out->mutable_variance());
  copy(answer.standard_error, out->mutable_standard_error());
  out->set_step_size(answer.step_size);
  if (answer.difference != 0) out->set_difference(answer.difference);
  out->set_resume_token(std::move(token));
}

absl::Status Approximate(const v1::ApproximateRequest& request,
                         std::optional<Approximation>* current, v1::ApproximateResponse* response) {
  std::optional<Approximation> next;
  const bool starts = request.start_case() != v1::ApproximateRequest::START_NOT_SET;
  if (starts && current->has_value()) {
    return InvalidArgument(
        "the stream has its approximation already: only the first request may carry an "
        "approximation or a resume token");
  }
  if (!starts && !current->has_value()) {
    return InvalidArgument(
        "the first request of a stream must carry an approximation or a resume token");
  }
  if (!starts && !request.has_observation()) {
    return InvalidArgument("the request carries no observation");
  }
  if (request.has_approximation()) {
    TANDEM_ASSIGN_OR_RETURN(ApproximationOptions options, FromProto(request.approximation()));
    TANDEM_ASSIGN_OR_RETURN(next, Approximation::Start(std::move(options)));
  } else if (starts) {
    TANDEM_ASSIGN_OR_RETURN(next, Approximation::Restore(request.resume_token()));
  }
  Approximation& approximation = starts ? *next : **current;
  if (request.has_observation()) {
    const v1::Observation& observation = request.observation();
    TANDEM_RETURN_IF_ERROR(approximation.Observe(
        observation.step(),
        {observation.values().data(), static_cast<size_t>(observation.values_size())}));
  }
  ToProto(approximation.Answer(), approximation.Serialize(), response);
  if (starts) *current = std::move(next);
  return absl::OkStatus();
}

}  // namespace tandem::server

#include "server/convert_distribution.h"

#include "server/convert.h"

namespace tandem::server {
namespace {

static_assert(v1::DISTRIBUTION_FAMILY_GUMBEL_TOP_K == kFamilies &&
                  static_cast<int>(Family::kGumbelTopK) + 1 == kFamilies,
              "the wire's families are the engine's, one further on");

absl::StatusOr<std::optional<Tensor>> OptionalTensor(bool present, const v1::Tensor& tensor,
                                                     std::string_view field) {
  if (!present) return std::optional<Tensor>();
  TANDEM_ASSIGN_OR_RETURN(Tensor out, FromProto(tensor, field));
  return std::optional<Tensor>(std::move(out));
}

}  // namespace

absl::StatusOr<DistributionMessage> FromProto(const v1::Distribution& distribution) {
  const int family = distribution.family();
  if (family < 1 || family > kFamilies) {
    return InvalidArgument("distribution.family ", family,
                           family == 0 ? " is not set" : " is unknown");
  }
  DistributionMessage out;
  out.options.family = static_cast<Family>(family - 1);
  if (distribution.has_temperature()) out.options.temperature = distribution.temperature();
  out.options.straight_through = distribution.straight_through();
  if (distribution.has_k()) out.options.k = distribution.k();
  constexpr int kMaxParameters = 8;  // more than any family has
  if (distribution.parameters_size() > kMaxParameters) {
    return InvalidArgument("distribution.parameters has ", distribution.parameters_size(),
                           " entries; no family has that many");
  }
  for (const v1::NamedTensor& named : distribution.parameters()) {
    for (const auto& [name, tensor] : out.parameters) {
      if (name == named.name()) {
        return InvalidArgument("distribution.parameters has '", name, "' twice");
      }
    }
    TANDEM_ASSIGN_OR_RETURN(
        Tensor tensor,
        FromProto(named.tensor(), StrCat("distribution parameter '", named.name(), "'")));
    out.parameters.emplace_back(named.name(), std::move(tensor));
  }
  return out;
}

absl::StatusOr<DrawOptions> FromProto(const v1::SampleDistributionRequest& request) {
  TANDEM_ASSIGN_OR_RETURN(DistributionMessage distribution, FromProto(request.distribution()));
  DrawOptions options;
  options.distribution = distribution.options;
  options.parameters = std::move(distribution.parameters);
  if (request.has_values() && request.has_draws()) {
    return InvalidArgument("draws with values: nothing is drawn");
  }
  if (request.has_draws()) options.draws = request.draws();
  // Values are given for their log-density.
  options.log_density = request.log_density() || request.has_values();
  options.entropy = request.entropy();
  TANDEM_ASSIGN_OR_RETURN(
      options.draw_cotangents,
      OptionalTensor(request.has_draw_cotangents(), request.draw_cotangents(), "draw_cotangents"));
  TANDEM_ASSIGN_OR_RETURN(
      options.log_density_cotangents,
      OptionalTensor(request.has_log_density_cotangents(), request.log_density_cotangents(),
                     "log_density_cotangents"));
  TANDEM_ASSIGN_OR_RETURN(options.values,
                          OptionalTensor(request.has_values(), request.values(), "values"));
  return options;
}

void ToProto(const DrawResult& result, const DrawOptions& options,
             v1::SampleDistributionResponse* response) {
  if (result.draws) *response->mutable_draws() = ToProto(*result.draws);
  if (result.log_density) *response->mutable_log_density() = ToProto(*result.log_density);
  if (result.entropy) *response->mutable_entropy() = ToProto(*result.entropy);
  for (size_t i = 0; i < result.gradients.size(); ++i) {
    v1::NamedTensor* gradient = response->add_gradients();
    gradient->set_name(options.parameters[i].first);
    *gradient->mutable_tensor() = ToProto(result.gradients[i]);
  }
}

}  // namespace tandem::server

// The catalogue of activations as messages.
#include <algorithm>
#include <set>

#include "server/convert.h"
#include "server/convert_models.h"

namespace tandem::server {
namespace {

constexpr int32_t kMaxPoints = 4096, kDefaultPoints = 201;
constexpr double kMaxAbscissa = 1e6;

absl::StatusOr<std::vector<float>> Abscissae(const v1::ListActivationsRequest& request) {
  const double from = request.has_from() ? request.from() : -5;
  const double to = request.has_to() ? request.to() : 5;
  const int32_t points = request.has_points() ? request.points() : kDefaultPoints;
  for (const auto& [name, value] : {std::pair("from", from), std::pair("to", to)}) {
    TANDEM_RETURN_IF_ERROR(CheckFinite(value, name));
    if (std::abs(value) > kMaxAbscissa) {
      return InvalidArgument(name, " is ", value, ", beyond ", kMaxAbscissa);
    }
  }
  if (!(from < to)) return InvalidArgument("from is ", from, ", not below to, which is ", to);
  if (points != 0 && (points < 2 || points > kMaxPoints)) {
    return InvalidArgument("points is ", points, ", expected 0 or 2 to ", kMaxPoints);
  }
  std::vector<float> x(points);
  for (int32_t i = 0; i < points; ++i) {
    x[i] = static_cast<float>(from + (to - from) * i / (points - 1));
  }
  return x;
}

}  // namespace

absl::StatusOr<ActivationRequest> FromProto(const v1::ListActivationsRequest& request) {
  ActivationRequest out;
  TANDEM_ASSIGN_OR_RETURN(out.x, Abscissae(request));
  std::set<std::string> named;
  for (const std::string& name : request.names()) {
    const Activation* const activation = FindActivation(name);
    if (activation == nullptr) return NotFound("no activation is called '", name, "'");
    if (!named.insert(name).second) return InvalidArgument("'", name, "' is named twice");
    out.activations.push_back(activation);
  }
  if (request.names().empty()) {
    for (const Activation& activation : Activations()) out.activations.push_back(&activation);
  }
  for (const Activation* activation : out.activations) {
    std::vector<double>& values = out.parameters.emplace_back();
    for (const ActivationParameter& p : activation->parameters) values.push_back(p.value);
    for (const auto& [name, value] : request.parameters()) {
      const auto& all = activation->parameters;
      const auto at = std::find_if(all.begin(), all.end(),
                                   [&](const ActivationParameter& p) { return p.name == name; });
      if (at == all.end()) {
        return InvalidArgument("activation '", activation->name, "' has no parameter '", name, "'");
      }
      values[at - all.begin()] = value;
    }
  }
  return out;
}

absl::Status Fill(const ActivationRequest& request, v1::ListActivationsResponse* response) {
  response->mutable_x()->Add(request.x.begin(), request.x.end());
  for (size_t i = 0; i < request.activations.size(); ++i) {
    const Activation& activation = *request.activations[i];
    const std::vector<double>& parameters = request.parameters[i];
    TANDEM_ASSIGN_OR_RETURN(const ActivationCurve curve,
                            RunActivation(activation, parameters, request.x));
    v1::Activation* out = response->add_activations();
    out->set_name(std::string(activation.name));
    out->set_formula(std::string(activation.formula));
    out->set_source(std::string(activation.source));
    out->set_note(std::string(activation.note));
    for (size_t k = 0; k < parameters.size(); ++k) {
      auto* parameter = out->add_parameters();
      parameter->set_name(std::string(activation.parameters[k].name));
      parameter->set_value(parameters[k]);
    }
    for (const std::string& op : curve.operators) out->add_operators(op);
    for (std::string_view op : activation.onnx) out->add_onnx_operators(std::string(op));
    if (activation.kinks != nullptr) {
      for (double kink : activation.kinks(parameters)) out->add_kinks(kink);
    }
    out->mutable_y()->Add(curve.y.begin(), curve.y.end());
    out->mutable_dy()->Add(curve.dy.begin(), curve.dy.end());
  }
  return absl::OkStatus();
}

}  // namespace tandem::server

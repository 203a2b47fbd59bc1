// Analyses of models, and their parameters, as messages.
#include <algorithm>

#include "server/convert_models.h"

namespace tandem::server {
namespace {

struct RolePair {
  ParameterRole role;
  v1::ParameterRole wire;
};
constexpr RolePair kRoles[] = {{ParameterRole::kWeight, v1::PARAMETER_ROLE_WEIGHT},
                               {ParameterRole::kBias, v1::PARAMETER_ROLE_BIAS},
                               {ParameterRole::kNorm, v1::PARAMETER_ROLE_NORM},
                               {ParameterRole::kEmbedding, v1::PARAMETER_ROLE_EMBEDDING}};

void ToProto(const ReceptiveField& field, const Shape& input, v1::ReceptiveField* out) {
  for (size_t d = 0; d < field.dims.size(); ++d) {
    const AxisField& dim = field.dims[d];
    auto* message = out->add_dimensions();
    switch (dim.kind) {
      case AxisField::Kind::kWindow:
        message->set_extent(v1::ReceptiveField::EXTENT_WINDOW);
        message->set_size(dim.size());
        message->set_stride(dim.stride());
        message->set_offset(dim.offset());
        break;
      case AxisField::Kind::kWhole: {
        const int64_t size = input[static_cast<int>(d) + 2];
        message->set_extent(v1::ReceptiveField::EXTENT_WHOLE_INPUT);
        message->set_size(size);
        message->set_offset(static_cast<double>(size - 1) / 2);
        break;
      }
      case AxisField::Kind::kUnknown:
        message->set_extent(v1::ReceptiveField::EXTENT_UNKNOWN);
        break;
    }
  }
  out->set_note(field.note);
}

void ToProto(const LayerCost& layer, const Shape& input, v1::AnalyzeModelResponse::Layer* out) {
  out->set_name(layer.name);
  out->set_op(std::string(layer.op));
  for (int64_t dim : layer.output_shape) out->add_output_shape(dim);
  out->set_parameters(layer.parameters);
  out->set_bias_parameters(layer.bias_parameters);
  out->set_flops(layer.flops);
  out->set_bias_flops(layer.bias_flops);
  out->set_fused_bias(layer.fused_bias);
  out->set_macs(layer.macs);
  out->set_output_bytes(layer.output_bytes);
  out->set_bytes_moved(layer.bytes_moved);
  out->set_arithmetic_intensity(layer.arithmetic_intensity());
  if (layer.field) ToProto(*layer.field, input, out->mutable_receptive_field());
}

}  // namespace

void ToProto(const GraphSource& source, const std::vector<TensorType>& inputs,
             const ModelAnalysis& analysis, v1::AnalyzeModelResponse* out) {
  const GraphCost& cost = analysis.cost;
  Shape spatial;
  if (cost.input.valid()) {
    // A front end's graph takes its inputs in the source's order.
    const auto index = static_cast<size_t>(analysis.spatial_input);
    spatial = inputs[index].shape;
    out->set_spatial_input(source.inputs()[index].name);
    for (int i = 2; i < spatial.rank(); ++i) out->add_spatial_sizes(spatial[i]);
  }
  for (const LayerCost& layer : cost.layers) ToProto(layer, spatial, out->add_layers());
  out->set_parameters(analysis.parameters);
  out->set_bias_parameters(analysis.bias_parameters);
  out->set_parameter_bytes(analysis.parameter_bytes);
  out->set_bias_bytes(analysis.bias_parameters * static_cast<int64_t>(sizeof(float)));
  out->set_flops(cost.flops);
  out->set_bias_flops(cost.bias_flops);
  out->set_macs(cost.macs);
  out->set_bytes_moved(cost.bytes_moved);
  out->set_arithmetic_intensity(cost.arithmetic_intensity());
  out->set_activation_bytes(cost.activation_bytes);
  out->set_forward_peak_bytes(analysis.forward_peak_bytes);
  if (analysis.training_error.ok()) {
    out->set_training_peak_bytes(analysis.training_peak_bytes);
    out->set_training_state_bytes(analysis.training_state_bytes);
  } else {
    out->set_training_error(std::string(analysis.training_error.message()));
  }
}

void ToProto(const MeasuredTime& time, v1::AnalyzeModelResponse* out) {
  out->set_measured_repetitions(time.repetitions);
  const auto& layers = out->layers();
  const bool same =
      std::equal(layers.begin(), layers.end(), time.layer_ops.begin(), time.layer_ops.end(),
                 [](const auto& layer, const std::string& op) { return layer.op() == op; });
  for (int i = 0; same && i < layers.size(); ++i) {
    out->mutable_layers(i)->set_seconds(time.layer_seconds[i]);
  }
}

void ToProto(const MeasuredField& field, v1::AnalyzeModelResponse::Verification* out) {
  out->set_layer(field.layer);
  out->mutable_position()->Add(field.position.begin(), field.position.end());
  out->mutable_expected_low()->Add(field.expected_low.begin(), field.expected_low.end());
  out->mutable_expected_high()->Add(field.expected_high.begin(), field.expected_high.end());
  out->mutable_measured_low()->Add(field.measured_low.begin(), field.measured_low.end());
  out->mutable_measured_high()->Add(field.measured_high.begin(), field.measured_high.end());
  out->set_agrees(field.agrees());
}

v1::ParameterRole ToProto(ParameterRole role) {
  for (const RolePair& pair : kRoles) {
    if (pair.role == role) return pair.wire;
  }
  return v1::PARAMETER_ROLE_UNSPECIFIED;
}

absl::StatusOr<ParameterRole> FromProto(v1::ParameterRole role, std::string_view what) {
  for (const RolePair& pair : kRoles) {
    if (pair.wire == role) return pair.role;
  }
  return InvalidArgument(what, " ", static_cast<int>(role), " is not a known ParameterRole");
}

void ToProto(const ParameterInfo& info, v1::Parameter* out) {
  out->set_name(info.name);
  for (int64_t dim : info.shape) out->add_shape(dim);
  out->set_role(ToProto(info.role));
  out->set_elements(info.shape.num_elements());
}

}  // namespace tandem::server

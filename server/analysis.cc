#include "server/analysis.h"

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "engine/exec/plan.h"

namespace tandem::server {
namespace {

// Along the spatial dimensions (those after batch and channel) of one value.
struct Field {
  std::vector<int64_t> size, stride;
};

// The field behind a window over `in`; none before the first window means one input position.
Field Behind(const Field* in, const Geometry& geometry) {
  const size_t dims = geometry.kernel.size();
  Field out;
  if (in != nullptr && in->size.size() == dims) {
    out = *in;
  } else {
    out.size.assign(dims, 1);
    out.stride.assign(dims, 1);
  }
  for (size_t i = 0; i < dims; ++i) {
    const int64_t reach = (geometry.kernel[i] - 1) * geometry.dilation[i];
    if (geometry.transposed) {
      out.size[i] += reach / geometry.stride[i] * out.stride[i];
      out.stride[i] = std::max<int64_t>(1, out.stride[i] / geometry.stride[i]);
    } else {
      out.size[i] += reach * out.stride[i];
      out.stride[i] *= geometry.stride[i];
    }
  }
  return out;
}

bool SameSpatialSizes(const Shape& a, const Shape& b) {
  return a.rank() == b.rank() && a.rank() > 2 &&
         std::equal(a.begin() + 2, a.end(), b.begin() + 2, b.end());
}

class Analyzer {
 public:
  explicit Analyzer(const Graph& graph) : graph_(graph) {}

  LayerAnalysis Layer(const Node& node) {
    std::vector<const TensorType*> inputs;
    std::vector<TensorType> outputs;
    LayerAnalysis layer;
    layer.name = node.name;
    layer.op = node.op->name;
    for (Value v : node.inputs) {
      inputs.push_back(v.valid() ? &graph_.type(v) : nullptr);
      if (v.valid() && graph_.info(v).kind == ValueKind::kParameter) {
        layer.parameters += graph_.type(v).shape.num_elements();
      }
    }
    for (Value v : node.outputs) {
      outputs.push_back(graph_.type(v));
      layer.output_bytes += graph_.type(v).bytes();
    }
    if (!outputs.empty()) layer.output_shape = outputs[0].shape;
    layer.flops = node.op->flops != nullptr
                      ? node.op->flops(inputs, outputs, node.attributes)
                      : static_cast<double>(outputs.empty() ? 0 : outputs[0].shape.num_elements());
    if (const std::optional<Field> field = FieldOf(node, inputs)) {
      layer.receptive_field = field->size;
      layer.stride = field->stride;
      for (Value v : node.outputs) fields_[v.id] = *field;
    }
    return layer;
  }

 private:
  std::optional<Field> FieldOf(const Node& node, const std::vector<const TensorType*>& inputs) {
    if (node.inputs.empty() || node.outputs.empty()) return std::nullopt;
    if (node.op->geometry != nullptr) {
      const auto it = node.inputs[0].valid() ? fields_.find(node.inputs[0].id) : fields_.end();
      return Behind(it == fields_.end() ? nullptr : &it->second,
                    node.op->geometry(inputs, node.attributes));
    }
    // Position by position: the largest of its inputs' fields, as long as they are aligned.
    std::optional<Field> field;
    for (Value v : node.inputs) {
      const auto it = v.valid() ? fields_.find(v.id) : fields_.end();
      if (it == fields_.end()) continue;
      if (!SameSpatialSizes(graph_.type(v).shape, graph_.type(node.outputs[0]).shape)) {
        return std::nullopt;
      }
      if (field && field->stride != it->second.stride) return std::nullopt;
      if (!field) field = it->second;
      for (size_t i = 0; i < field->size.size(); ++i) {
        field->size[i] = std::max(field->size[i], it->second.size[i]);
      }
    }
    return field;
  }

  const Graph& graph_;
  std::map<int32_t, Field> fields_;  // by value
};

}  // namespace

absl::StatusOr<ModelAnalysis> Analyze(const GraphSource& source,
                                      const std::vector<TensorType>& inputs) {
  Builder builder(EvaluateNode);
  std::vector<Value> values;
  for (size_t i = 0; i < inputs.size(); ++i) {
    values.push_back(builder.Input(source.inputs()[i].name, inputs[i]));
  }
  TANDEM_ASSIGN_OR_RETURN(const std::vector<Value> outputs, source.Build(builder, values));
  for (Value v : outputs) builder.Output(v);
  TANDEM_ASSIGN_OR_RETURN(Graph graph, builder.Finish());
  ModelAnalysis analysis;
  Analyzer analyzer(graph);
  for (const Node& node : graph.nodes()) {
    const LayerAnalysis& layer = analysis.layers.emplace_back(analyzer.Layer(node));
    analysis.flops += layer.flops;
    analysis.activation_bytes += layer.output_bytes;
  }
  for (const ParameterInfo& info : source.parameters()) {
    analysis.parameters += info.shape.num_elements();
    if (info.role == ParameterRole::kBias) {
      analysis.bias_parameters += info.shape.num_elements();
    }
  }
  TANDEM_ASSIGN_OR_RETURN(const std::unique_ptr<Plan> plan,
                          Plan::Compile(std::move(graph), CpuBackend()));
  analysis.forward_peak_bytes = plan->arena_bytes();
  return analysis;
}

}  // namespace tandem::server

#include "engine/graph/analysis.h"

#include <utility>

namespace tandem {
namespace {

bool IsContraction(std::string_view op) {
  for (std::string_view name : {"MatMul", "Conv", "ConvInputGrad", "ConvWeightGrad", "Attention",
                                "PagedAttention", "AttentionGrad"}) {
    if (op == name) return true;
  }
  return false;
}

// Of the optional third input that products and convolutions add to each output element.
bool FusesBias(const Node& node) {
  return (node.op->name == "MatMul" || node.op->name == "Conv") && node.inputs.size() > 2 &&
         node.inputs[2].valid();
}

// A gather reads the rows that it takes, not the table.
double BytesMoved(const Graph& graph, const Node& node) {
  if (node.op->name == "Reshape") return 0;
  double bytes = 0;
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    if (!node.inputs[i].valid()) continue;
    const bool table = node.op->name == "Gather" && i == 0;
    const TensorType& type = graph.type(table ? node.outputs[0] : node.inputs[i]);
    bytes += static_cast<double>(type.bytes());
  }
  for (Value v : node.outputs) bytes += static_cast<double>(graph.type(v).bytes());
  return bytes;
}

// What a reshape renames is the reader's own.
Value Renamed(const Graph& graph, Value v) {
  while (v.valid() && graph.info(v).kind == ValueKind::kNode) {
    const Node& node = graph.nodes()[graph.info(v).index];
    if (node.op->name != "Reshape") break;
    v = node.inputs[0];
  }
  return v;
}

LayerCost CostOf(const Graph& graph, const Node& node, const std::vector<bool>& is_bias) {
  LayerCost layer;
  layer.name = node.name;
  layer.op = node.op->name;
  std::vector<const TensorType*> inputs;
  std::vector<TensorType> outputs;
  double biases = 0;
  for (Value v : node.inputs) {
    inputs.push_back(v.valid() ? &graph.type(v) : nullptr);
    const Value source = Renamed(graph, v);
    if (node.op->name == "Reshape" || !source.valid() ||
        graph.info(source).kind != ValueKind::kParameter) {
      continue;
    }
    const int64_t elements = graph.type(source).shape.num_elements();
    layer.parameters += elements;
    const auto index = static_cast<size_t>(graph.info(source).index);
    if (index < is_bias.size() && is_bias[index]) {
      layer.bias_parameters += elements;
      biases += 1;
    }
  }
  for (Value v : node.outputs) {
    outputs.push_back(graph.type(v));
    if (node.op->name != "Reshape") layer.output_bytes += graph.type(v).bytes();
  }
  double elements = 0;
  if (!outputs.empty()) {
    layer.output_shape = outputs[0].shape;
    elements = static_cast<double>(outputs[0].shape.num_elements());
  }
  layer.flops =
      node.op->flops != nullptr ? node.op->flops(inputs, outputs, node.attributes) : elements;
  layer.fused_bias = FusesBias(node);
  if (layer.flops > 0) layer.bias_flops = biases * elements;
  if (IsContraction(layer.op)) {
    layer.macs = (layer.flops - (layer.fused_bias ? elements : 0)) / 2;
  }
  layer.bytes_moved = BytesMoved(graph, node);
  return layer;
}

}  // namespace

GraphCost AnalyzeGraph(const Graph& graph, const std::vector<bool>& is_bias) {
  GraphCost cost;
  cost.input = SpatialInput(graph);
  std::vector<std::optional<ReceptiveField>> fields(graph.value_count());
  if (cost.input.valid()) fields = ReceptiveFields(graph, cost.input);
  for (const Node& node : graph.nodes()) {
    LayerCost& layer = cost.layers.emplace_back(CostOf(graph, node, is_bias));
    if (!node.outputs.empty()) layer.field = std::move(fields[node.outputs[0].id]);
    cost.flops += layer.flops;
    cost.bias_flops += layer.bias_flops;
    cost.macs += layer.macs;
    cost.bytes_moved += layer.bytes_moved;
    cost.activation_bytes += layer.output_bytes;
  }
  return cost;
}

}  // namespace tandem

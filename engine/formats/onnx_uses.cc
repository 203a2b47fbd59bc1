#include "engine/formats/onnx_uses.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "engine/formats/onnx_ops.h"

namespace tandem {
namespace {

// Goes over the nodes from the outputs to the inputs. Errs on the side of more shape names and more
// trained names; names of subgraphs share one set with their graph's.
class UseAnalysis {
 public:
  explicit UseAnalysis(const GraphIndex& index) : index_(index) {}

  void Visit(const onnx::GraphProto& graph, ValueUses& uses) {
    VisitNodes(graph.node(), index_.Order(&graph), uses);
  }

 private:
  template <typename Nodes>
  void VisitNodes(const Nodes& nodes, std::span<const int> order, ValueUses& uses) {
    for (auto it = order.rbegin(); it != order.rend(); ++it) VisitNode(nodes[*it], uses);
  }

  void VisitNode(const onnx::NodeProto& node, ValueUses& uses) {
    bool decides = false, trained = false;
    for (const std::string& output : node.output()) {
      decides = decides || uses.shape.contains(output);
      trained = trained || uses.trained.contains(output);
    }
    if (const onnx::FunctionProto* function = index_.FindFunction(node); function != nullptr) {
      const ValueUses& inside = FunctionUses(*function);
      for (int i = 0; i < node.input_size(); ++i) {
        const std::string& parameter = function->input(i);
        if (decides || inside.shape.contains(parameter)) uses.shape.insert(node.input(i));
        if (inside.trained.contains(parameter)) uses.trained.insert(node.input(i));
      }
      return;
    }
    const OnnxOp& op = *FindOnnxOp(node.op_type());
    // The shape of a tensor is known whether or not its values are.
    if (node.op_type() == "Shape" || node.op_type() == "Size") return;
    const bool passes_on = IsView(node.op_type());
    for (int i = 0; i < node.input_size(); ++i) {
      const auto in = [i](uint32_t set) { return i < 32 && ((set >> i) & 1) != 0; };
      if (decides || in(op.shape_inputs)) uses.shape.insert(node.input(i));
      if (!in(op.shape_inputs | op.fixed_inputs) && (trained || !passes_on)) {
        uses.trained.insert(node.input(i));
      }
    }
    for (const onnx::AttributeProto& attribute : node.attribute()) {
      if (!attribute.has_g()) continue;
      for (const onnx::ValueInfoProto& output : attribute.g().output()) {
        if (decides) uses.shape.insert(output.name());
        uses.trained.insert(output.name());
      }
      Visit(attribute.g(), uses);
      // A body's inputs stand where its node's inputs do.
      const int inputs = std::min(attribute.g().input_size(), node.input_size());
      for (int i = 0; i < inputs; ++i) {
        if (uses.shape.contains(attribute.g().input(i).name())) uses.shape.insert(node.input(i));
      }
    }
  }

  // What goes through one of these is used as its output is.
  static bool IsView(std::string_view op) {
    return op == "Identity" || op == "Cast" || op == "Reshape" || op == "Squeeze" ||
           op == "Unsqueeze" || op == "Transpose" || op == "Flatten";
  }

  const ValueUses& FunctionUses(const onnx::FunctionProto& function) {
    const auto it = functions_.find(&function);
    if (it != functions_.end()) return *it->second;
    auto uses = std::make_unique<ValueUses>();
    for (const std::string& output : function.output()) uses->trained.insert(output);
    VisitNodes(function.node(), index_.Order(&function), *uses);
    return *(functions_[&function] = std::move(uses));
  }

  const GraphIndex& index_;
  absl::flat_hash_map<const onnx::FunctionProto*, std::unique_ptr<ValueUses>> functions_;
};

}  // namespace

ValueUses AnalyzeUses(const GraphIndex& index, const onnx::GraphProto& graph) {
  ValueUses uses;
  for (const onnx::ValueInfoProto& output : graph.output()) uses.trained.insert(output.name());
  UseAnalysis(index).Visit(graph, uses);
  return uses;
}

}  // namespace tandem

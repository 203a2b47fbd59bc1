#include "engine/formats/onnx_convert.h"

#include <utility>

#include "engine/base/error.h"
#include "engine/formats/onnx_ops.h"
#include "engine/formats/onnx_tensor.h"

namespace tandem {
namespace {

// A small file may not become a large process: unrolled loops, calls of calls, folded constants,
// single values.
constexpr int64_t kMaxConvertedNodes = 200'000;
constexpr int64_t kMaxGraphNodes = 1'000'000;
constexpr int64_t kMaxConstantBytes = int64_t{1} << 30;
constexpr int64_t kMaxValueBytes = int64_t{16} << 30;

}  // namespace

GraphConverter::GraphConverter(const GraphIndex& index, Builder& builder)
    : index_(index), b_(builder), seen_values_(builder.graph().value_count()) {}

Value GraphConverter::Scope::Find(std::string_view name) const {
  for (const Scope* scope = this; scope != nullptr; scope = scope->parent) {
    const auto it = scope->values.find(name);
    if (it != scope->values.end()) return it->second;
  }
  return {};
}

Outputs GraphConverter::Convert(const onnx::GraphProto& graph,
                                absl::flat_hash_map<std::string_view, Value> bound) {
  Scope scope;
  scope.values = std::move(bound);
  Outputs outputs = ConvertGraph(graph, scope);
  b_.SetScope("");
  return outputs;
}

Outputs GraphConverter::ConvertGraph(const onnx::GraphProto& graph, Scope& scope) {
  for (const int i : index_.Order(&graph)) {
    TANDEM_RETURN_IF_ERROR(ConvertNode(graph.node(i), scope));
  }
  std::vector<Value> outputs;
  for (const onnx::ValueInfoProto& output : graph.output()) {
    outputs.push_back(scope.Find(output.name()));
    if (!outputs.back().valid()) {
      return InvalidArgument("nothing makes the output '", output.name(), "'");
    }
  }
  return outputs;
}

Outputs GraphConverter::ConvertSubgraph(const onnx::GraphProto& graph,
                                        std::span<const Value> inputs, const Scope& outer) {
  if (graph.input_size() != static_cast<int>(inputs.size())) {
    return InvalidArgument("subgraph '", graph.name(), "' has ", graph.input_size(),
                           " inputs, expected ", inputs.size());
  }
  Scope scope;
  scope.parent = &outer;
  scope.function = outer.function;
  scope.attributes = outer.attributes;
  for (const onnx::TensorProto& tensor : graph.initializer()) {
    scope.values[tensor.name()] = b_.Constant(index_.constant(&tensor));
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    scope.values[graph.input(static_cast<int>(i)).name()] = inputs[i];
  }
  return ConvertGraph(graph, scope);
}

Outputs GraphConverter::CallFunction(const onnx::FunctionProto& function,
                                     const onnx::NodeProto& node, std::span<const Value> inputs,
                                     const Scope& caller) {
  AttributeMap attributes;
  for (const onnx::AttributeProto& attribute : node.attribute()) {
    const onnx::AttributeProto* given = &attribute;
    if (!attribute.ref_attr_name().empty()) {
      const auto it = caller.attributes->find(attribute.ref_attr_name());
      if (it == caller.attributes->end()) continue;
      given = it->second;
    }
    bool declared = false;
    for (const std::string& name : function.attribute()) {
      declared = declared || name == attribute.name();
    }
    if (!declared) {
      return Unimplemented("attribute '", attribute.name(), "' is not one of the function's");
    }
    attributes[attribute.name()] = given;
  }
  Scope scope;
  scope.function = &function;
  scope.attributes = &attributes;
  for (size_t i = 0; i < inputs.size(); ++i) {
    scope.values[function.input(static_cast<int>(i))] = inputs[i];
  }
  for (const int i : index_.Order(&function)) {
    TANDEM_RETURN_IF_ERROR(ConvertNode(function.node(i), scope));
  }
  std::vector<Value> outputs;
  for (const std::string& name : function.output()) outputs.push_back(scope.Find(name));
  return outputs;
}

absl::Status GraphConverter::ConvertNode(const onnx::NodeProto& node, Scope& scope) {
  const std::string label = StrCat("node ", NodeLabel(node));
  std::vector<Value> inputs;
  for (const std::string& name : node.input()) {
    inputs.push_back(name.empty() ? Value{} : scope.Find(name));
    // A function's optional input that its caller left out stays absent.
    if (!inputs.back().valid() && !name.empty() && scope.function == nullptr) {
      return InvalidArgument(label, ": '", name, "' has no value");
    }
  }
  if (++converted_ > kMaxConvertedNodes) {
    return ResourceExhausted(label, ": the model unrolls to more than ", kMaxConvertedNodes,
                             " nodes");
  }
  Outputs outputs;
  if (const onnx::FunctionProto* function = index_.FindFunction(node); function != nullptr) {
    outputs = CallFunction(*function, node, inputs, scope);
  } else {
    const NodeContext::Callbacks callbacks = {
        .build_subgraph =
            [&](const onnx::GraphProto& graph, std::span<const Value> values) {
              return ConvertSubgraph(graph, values, scope);
            },
        .read_constant =
            [&](const onnx::TensorProto& proto) -> absl::StatusOr<std::shared_ptr<const Tensor>> {
          std::shared_ptr<const Tensor> tensor = index_.constant(&proto);
          if (tensor == nullptr) return Internal("a tensor that was not read");
          return tensor;
        }};
    b_.SetScope(!node.name().empty() || node.output_size() == 0 ? node.name() : node.output(0));
    const OpsetVersions& opsets = index_.opsets(scope.function);
    NodeContext context(b_, node, opsets.at(""), inputs, callbacks, scope.attributes);
    const OnnxOp& op = *FindOnnxOp(node.op_type());
    for (int i = 0; i < op.min_inputs; ++i) {
      if (!inputs[i].valid()) return InvalidArgument(label, ": input ", i, " is missing");
    }
    outputs = op.convert(context);
    if (outputs.ok()) TANDEM_RETURN_IF_ERROR(Annotate(context.CheckAttributes(), label));
  }
  if (b_.ok() && !outputs.ok()) return Annotate(outputs.status(), label);
  TANDEM_RETURN_IF_ERROR(Annotate(b_.status(), label));
  for (int i = 0; i < node.output_size(); ++i) {
    if (node.output(i).empty()) continue;
    if (i >= static_cast<int>(outputs->size()) || !(*outputs)[i].valid()) {
      return Unimplemented(label, ": output ", i, " ('", node.output(i), "') is not supported");
    }
    scope.values[node.output(i)] = (*outputs)[i];
  }
  return Annotate(CheckBudget(), label);
}

absl::Status GraphConverter::CheckBudget() {
  const Graph& graph = b_.graph();
  if (static_cast<int64_t>(graph.nodes().size()) > kMaxGraphNodes) {
    return ResourceExhausted("the model unrolls to more than ", kMaxGraphNodes, " steps");
  }
  for (; seen_values_ < graph.value_count(); ++seen_values_) {
    const ValueInfo& info = graph.info(Value{seen_values_});
    if (info.type.bytes() > kMaxValueBytes) {
      return ResourceExhausted("makes ", info.type.ToString(), ": more than ", kMaxValueBytes,
                               " bytes");
    }
    // A tensor of the file's own is shared, not copied.
    if (info.constant != nullptr && info.constant.use_count() == 1) {
      constant_bytes_ += info.type.bytes();
    }
  }
  if (constant_bytes_ > kMaxConstantBytes) {
    return ResourceExhausted("folding makes more than ", kMaxConstantBytes, " bytes of constants");
  }
  return absl::OkStatus();
}

}  // namespace tandem

#include "engine/graph/gradient.h"

#include <algorithm>
#include <utility>

namespace tandem {
namespace {

Tensor Filled(const TensorType& type, double value) {
  Tensor tensor = Tensor::Zeros(type);
  if (value != 0) {
    const Tensor element = CastTensor(Tensor::Scalar(value), type.dtype);
    auto* bytes = static_cast<std::byte*>(tensor.raw());
    const auto* one = static_cast<const std::byte*>(element.raw());
    for (int64_t i = 0; i < tensor.bytes(); i += element.bytes()) {
      std::copy(one, one + element.bytes(), bytes + i);
    }
  }
  return tensor;
}

}  // namespace

absl::StatusOr<std::vector<Value>> Gradient(Builder& builder, Value loss,
                                            std::span<const Value> wrt, Value cotangent) {
  TANDEM_RETURN_IF_ERROR(builder.status());
  const TensorType loss_type = builder.type(loss);
  if (!IsFloat(loss_type.dtype)) {
    return InvalidArgument("the loss is ", loss_type.ToString(), ", not a floating-point value");
  }
  if (!cotangent.valid()) {
    if (loss_type.shape.num_elements() != 1) {
      return InvalidArgument("the loss has shape ", loss_type.shape.ToString(),
                             "; without a cotangent it must be one element");
    }
    cotangent = builder.Constant(Filled(loss_type, 1));
  } else if (builder.type(cotangent) != loss_type) {
    return InvalidArgument("the cotangent is ", builder.type(cotangent).ToString(), ", the loss ",
                           loss_type.ToString());
  }

  // Which values depend on wrt: only those get cotangents.
  const size_t node_count = builder.graph().nodes().size();
  std::vector<bool> depends(builder.graph().value_count(), false);
  for (Value v : wrt) depends[v.id] = true;
  for (const Node& node : builder.graph().nodes()) {
    const bool any = std::any_of(node.inputs.begin(), node.inputs.end(),
                                 [&](Value v) { return v.valid() && depends[v.id]; });
    for (Value v : node.outputs) {
      if (any && IsFloat(builder.type(v).dtype)) depends[v.id] = true;
    }
  }

  std::vector<Value> cotangents(depends.size());
  cotangents[loss.id] = cotangent;
  const OpDef* add = FindOp("Add");
  for (size_t i = node_count; i-- > 0;) {
    // A copy: the rule below adds nodes and so moves the graph's list.
    const Node node = builder.graph().nodes()[i];
    std::vector<Value> outputs;
    bool reached = false;
    for (Value v : node.outputs) {
      outputs.push_back(depends[v.id] ? cotangents[v.id] : Value{});
      reached |= outputs.back().valid();
    }
    if (!reached) continue;
    std::vector<bool> needs;
    for (Value v : node.inputs) needs.push_back(v.valid() && depends[v.id]);
    if (node.op->gradient == nullptr) {
      return Unimplemented("[", node.op->name, node.name.empty() ? "" : " ", node.name,
                           "] has no gradient, and the loss depends on parameters through it");
    }
    builder.SetScope(node.name);
    const std::vector<Value> found =
        node.op->gradient(builder, {.node = node, .cotangents = outputs, .needs = needs});
    TANDEM_RETURN_IF_ERROR(builder.status());
    for (size_t k = 0; k < node.inputs.size() && k < found.size(); ++k) {
      if (!needs[k] || !found[k].valid()) continue;
      const Value input = node.inputs[k];
      if (builder.type(found[k]) != builder.type(input)) {
        return Internal("[", node.op->name, "] gradient of input ", k, " is ",
                        builder.type(found[k]).ToString(), ", the input ",
                        builder.type(input).ToString());
      }
      Value& sum = cotangents[input.id];
      sum = sum.valid() ? builder.Add(*add, {sum, found[k]}) : found[k];
    }
  }
  builder.SetScope("");
  std::vector<Value> results;
  for (Value v : wrt) {
    const Value found = cotangents[v.id];
    results.push_back(found.valid() ? found : builder.Constant(Filled(builder.type(v), 0)));
  }
  TANDEM_RETURN_IF_ERROR(builder.status());
  return results;
}

}  // namespace tandem

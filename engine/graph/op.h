// OpDef: all that the graph knows of an operator. Kernels live in the backends.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "engine/graph/graph.h"

namespace tandem {

class Builder;

// What shape inference sees. An absent optional input has a null type.
struct InferArgs {
  std::span<const TensorType* const> inputs;
  const Attributes& attributes;

  int count() const { return static_cast<int>(inputs.size()); }
  bool has(int i) const { return i < count() && inputs[i] != nullptr; }
  const TensorType& type(int i) const { return *inputs[i]; }
  const Shape& shape(int i) const { return inputs[i]->shape; }
};

// What a gradient rule sees. `cotangents` has one entry an output (invalid: zero); the rule returns
// one entry an input (invalid: no gradient flows there). `needs` says which inputs matter.
struct GradientArgs {
  const Node& node;
  std::span<const Value> cotangents;
  std::vector<bool> needs;

  Value in(int i) const {
    return i < static_cast<int>(node.inputs.size()) ? node.inputs[i] : Value{};
  }
  Value out(int i = 0) const { return node.outputs[i]; }
  Value cotangent(int i = 0) const { return cotangents[i]; }
};

// How an output position looks back at the input along the two (or one) spatial dimensions:
// window size, stride and padding before, per spatial dimension (analysis of receptive fields).
struct Geometry {
  std::vector<int64_t> kernel, stride, pad_begin, dilation;
  bool transposed = false;  // strides upsample: an output looks at kernel / stride inputs
};

struct OpDef {
  std::string_view name;
  // [min, max] inputs, trailing optional ones included.
  int min_inputs = 1;
  int max_inputs = 1;
  // Output types; errors need not name the operator, the Builder does.
  absl::StatusOr<std::vector<TensorType>> (*infer)(const InferArgs&) = nullptr;
  // Emits the cotangents of the inputs, as ordinary nodes. Null: not differentiable.
  std::vector<Value> (*gradient)(Builder&, const GradientArgs&) = nullptr;
  // The same outputs from simpler operators, for a backend without a kernel. Null: none.
  std::vector<Value> (*lower)(Builder&, const Node&) = nullptr;
  // Floating-point operations; a multiply-add counts as two. Null: one an output element.
  double (*flops)(std::span<const TensorType* const> inputs, std::span<const TensorType> outputs,
                  const Attributes&) = nullptr;
  // Null: every output position looks at the same position of the input.
  Geometry (*geometry)(std::span<const TensorType* const> inputs, const Attributes&) = nullptr;
};

// The operator of that name, or null.
const OpDef* FindOp(std::string_view name);
// The whole vocabulary, in the order of ops.h.
std::span<const OpDef* const> AllOps();

}  // namespace tandem

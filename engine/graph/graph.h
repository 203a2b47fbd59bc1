// Graph: nodes over the operator vocabulary (engine/ops/ops.h), every value of a concrete type.
//
// A graph is a list of nodes in execution order, made by a Builder (builder.h) and immutable
// afterwards. Values are inputs (given at every run), parameters (the model's weights), constants,
// the run's random key, or node outputs.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/graph/attributes.h"
#include "engine/tensor/tensor.h"

namespace tandem {

struct OpDef;

// A handle to a value of one graph; invalid by default, which stands for an absent optional input
// and for "no gradient".
struct Value {
  int32_t id = -1;
  bool valid() const { return id >= 0; }
  bool operator==(const Value&) const = default;
};

struct Node {
  const OpDef* op = nullptr;
  Attributes attributes;
  std::vector<Value> inputs;  // an absent optional input is an invalid Value
  std::vector<Value> outputs;
  std::string name;  // where it came from (an ONNX node's name, a layer); may be empty
};

// kRandomKey is the pass's random key (Builder::RandomKey), which every run may set anew; it is
// none of the graph's inputs.
enum class ValueKind : uint8_t { kInput, kParameter, kConstant, kRandomKey, kNode };

struct ValueInfo {
  TensorType type;
  ValueKind kind = ValueKind::kNode;
  int32_t index = 0;   // of the input, of the model's parameter, or of the node
  int32_t output = 0;  // which of the node's outputs
  std::string name;    // of inputs and parameters
  std::shared_ptr<const Tensor> constant;
};

class Graph {
 public:
  const std::vector<Node>& nodes() const { return nodes_; }
  const ValueInfo& info(Value v) const { return values_[v.id]; }
  const TensorType& type(Value v) const { return values_[v.id].type; }
  int32_t value_count() const { return static_cast<int32_t>(values_.size()); }
  const std::vector<Value>& inputs() const { return inputs_; }
  const std::vector<Value>& outputs() const { return outputs_; }

  // One line a node: for logs and tests.
  std::string ToString() const;

 private:
  friend class Builder;
  std::vector<Node> nodes_;
  std::vector<ValueInfo> values_;
  std::vector<Value> inputs_;
  std::vector<Value> outputs_;
};

}  // namespace tandem

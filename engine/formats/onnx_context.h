// NodeContext: one ONNX node being converted, as the functions of the operator table see it.
//
// Nothing is silently ignored: an attribute that the function did not ask for is an error after it
// returns, and one of another type than asked for is too.
//
// f16 and bf16 are computed in f32: the graph's inputs of these types are widened where they enter,
// its outputs rounded where they leave, and constants of these types are f32 inside.
#pragma once

#include <functional>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "engine/formats/onnx_proto.h"
#include "engine/graph/builder.h"

namespace tandem {

using Outputs = absl::StatusOr<std::vector<Value>>;

// The dtype that values of an ONNX dtype have inside a graph.
constexpr DType ComputeDType(DType dtype) {
  return dtype == DType::kF16 || dtype == DType::kBF16 ? DType::kF32 : dtype;
}

// Attributes may be references to the attributes of a call of the model-local function that the
// node stands in: by name, what the call gave.
using AttributeMap = absl::flat_hash_map<std::string, const onnx::AttributeProto*>;

class NodeContext {
 public:
  // Converts a subgraph attribute's nodes with these values for its inputs; returns its outputs.
  using SubgraphBuilder =
      std::function<Outputs(const onnx::GraphProto& graph, std::span<const Value> inputs)>;
  // The tensor of a Constant node, read once for all graphs; null: none is kept.
  using ConstantReader =
      std::function<absl::StatusOr<std::shared_ptr<const Tensor>>(const onnx::TensorProto& proto)>;
  struct Callbacks {
    SubgraphBuilder build_subgraph;
    ConstantReader read_constant;
  };

  NodeContext(Builder& builder, const onnx::NodeProto& node, int64_t opset,
              std::vector<Value> inputs, const Callbacks& callbacks,
              const AttributeMap* references = nullptr);
  NodeContext(const NodeContext&) = delete;
  NodeContext& operator=(const NodeContext&) = delete;

  Builder& b;
  const onnx::NodeProto& node() const { return node_; }
  // The version of the operator set that the node is of.
  int64_t opset() const { return opset_; }

  // Inputs. In() of an absent optional input is an invalid Value.
  int count() const { return static_cast<int>(inputs_.size()); }
  bool Has(int i) const { return i < count() && inputs_[i].valid(); }
  Value In(int i) const { return i < count() ? inputs_[i] : Value{}; }
  const std::vector<Value>& inputs() const { return inputs_; }
  // A copy: adding nodes moves what the builder holds.
  Shape shape(int i) const { return b.shape(In(i)); }
  int rank(int i) const { return b.shape(In(i)).rank(); }
  DType dtype(int i) const { return b.dtype(In(i)); }
  int output_count() const { return node_.output_size(); }
  bool WantsOutput(int i) const { return i < output_count() && !node_.output(i).empty(); }

  // Attributes, with the value of one that is not there.
  bool HasAttribute(std::string_view name) const { return Find(name) != nullptr; }
  int64_t Int(std::string_view name, int64_t otherwise);
  double Float(std::string_view name, double otherwise);
  std::string String(std::string_view name, std::string_view otherwise);
  std::vector<int64_t> Ints(std::string_view name);
  std::vector<double> Floats(std::string_view name);
  std::vector<std::string> Strings(std::string_view name);
  // Null when absent.
  const onnx::TensorProto* TensorAttribute(std::string_view name);
  const onnx::GraphProto* GraphAttribute(std::string_view name);
  // An attribute that old exporters leave behind and that has no meaning.
  void IgnoreAttribute(std::string_view name) { asked_.emplace(name); }
  // Unimplemented unless the attribute is absent or has this value.
  absl::Status RequireInt(std::string_view name, int64_t value);

  // Inputs whose values decide shapes. `what` names the input in the error when it is not constant.
  absl::StatusOr<const Tensor*> ConstantInput(int i, std::string_view what) const;
  absl::StatusOr<std::vector<int64_t>> ConstantInts(int i, std::string_view what) const;
  absl::StatusOr<std::vector<double>> ConstantFloats(int i, std::string_view what) const;
  // An integer list that is an attribute before opset `since` and input i from there on; nullopt
  // when it is given by neither.
  absl::StatusOr<std::optional<std::vector<int64_t>>> IntsAttributeOrInput(std::string_view name,
                                                                           int i, int64_t since);

  // Constants.
  Value Scalar(double value, DType dtype = DType::kF32) { return b.Scalar(value, dtype); }
  Value Int64s(std::span<const int64_t> values);
  // f16 and bf16 become f32.
  Outputs FromProto(const onnx::TensorProto& proto);
  Outputs Subgraph(const onnx::GraphProto& graph, std::span<const Value> inputs) {
    return callbacks_.build_subgraph(graph, inputs);
  }

  // The first wrong or unknown attribute, if any.
  absl::Status CheckAttributes() const;

 private:
  const onnx::AttributeProto* Find(std::string_view name) const;
  // Marks the attribute as asked for, and checks its type; null when absent or of another type.
  const onnx::AttributeProto* Ask(std::string_view name, onnx::AttributeProto_AttributeType type);

  const onnx::NodeProto& node_;
  int64_t opset_;
  std::vector<Value> inputs_;
  const Callbacks& callbacks_;
  const AttributeMap* references_;
  std::set<std::string, std::less<>> asked_;
  absl::Status attribute_error_;
};

// One output.
inline Outputs One(Value value) { return std::vector<Value>{value}; }

}  // namespace tandem

// GraphIndex: what is known of an ONNX model before any shape is: the checked structure of its
// graphs, the order of their nodes, and which values decide shapes or are trained.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "engine/formats/onnx_proto.h"
#include "engine/tensor/tensor.h"

namespace tandem {

// "'conv1' (Conv)": a node in messages; without a name, it goes by its first output.
std::string NodeLabel(const onnx::NodeProto& node);
// The default domain has two names.
inline std::string_view CanonicalDomain(std::string_view domain) {
  return domain == "ai.onnx" ? std::string_view() : domain;
}

// Operator set versions by domain.
using OpsetVersions = absl::flat_hash_map<std::string, int64_t>;
using NameSet = absl::flat_hash_set<std::string_view>;

class GraphIndex {
 public:
  // Checks the whole model, subgraphs and functions included: known operators and domains, unique
  // names, no value without a producer, no cycle, bounded nesting, readable tensors. The index
  // keeps pointers into the model. Tensors of the graph's own initializers are not read.
  static absl::StatusOr<GraphIndex> Make(const onnx::ModelProto& model);

  // The nodes of a graph or of a function in an order in which each finds its inputs made.
  std::span<const int> Order(const void* graph_or_function) const {
    return orders_.at(graph_or_function);
  }
  const OpsetVersions& opsets(const onnx::FunctionProto* function = nullptr) const {
    return opsets_.at(function);
  }
  // The model's own function of that name, or null.
  const onnx::FunctionProto* FindFunction(const onnx::NodeProto& node) const;
  // A tensor in an attribute, or an initializer of a subgraph; f16 and bf16 widened to f32.
  std::shared_ptr<const Tensor> constant(const onnx::TensorProto* proto) const {
    const auto it = constants_.find(proto);
    return it == constants_.end() ? nullptr : it->second;
  }

  // Names in the main graph whose values decide shapes.
  bool DecidesShapes(std::string_view name) const { return shape_names_.contains(name); }
  // Names in the main graph used as weights somewhere, not as settings alone.
  bool IsTrained(std::string_view name) const { return trained_names_.contains(name); }

 private:
  friend class GraphChecker;

  const onnx::ModelProto* model_ = nullptr;
  absl::flat_hash_map<const void*, std::vector<int>> orders_;
  absl::flat_hash_map<const onnx::FunctionProto*, OpsetVersions> opsets_;
  absl::flat_hash_map<std::pair<std::string_view, std::string_view>, const onnx::FunctionProto*>
      functions_;
  absl::flat_hash_map<const onnx::TensorProto*, std::shared_ptr<const Tensor>> constants_;
  NameSet shape_names_, trained_names_;
};

}  // namespace tandem

// GraphConverter: walks an ONNX model's nodes, with concrete input shapes, into a Builder.
#pragma once

#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "engine/formats/onnx_context.h"
#include "engine/formats/onnx_graph.h"

namespace tandem {

class GraphConverter {
 public:
  GraphConverter(const GraphIndex& index, Builder& builder);

  // The main graph; `bound` has its inputs, initializers and parameters, all by name. Returns its
  // outputs in order.
  Outputs Convert(const onnx::GraphProto& graph,
                  absl::flat_hash_map<std::string_view, Value> bound);

 private:
  struct Scope {
    const Scope* parent = nullptr;
    const onnx::FunctionProto* function = nullptr;
    const AttributeMap* attributes = nullptr;
    absl::flat_hash_map<std::string_view, Value> values;

    Value Find(std::string_view name) const;
  };

  Outputs ConvertGraph(const onnx::GraphProto& graph, Scope& scope);
  Outputs ConvertSubgraph(const onnx::GraphProto& graph, std::span<const Value> inputs,
                          const Scope& outer);
  Outputs CallFunction(const onnx::FunctionProto& function, const onnx::NodeProto& node,
                       std::span<const Value> inputs, const Scope& caller);
  absl::Status ConvertNode(const onnx::NodeProto& node, Scope& scope);
  // Bounds what folding and composition may add.
  absl::Status CheckBudget();

  const GraphIndex& index_;
  Builder& b_;
  int64_t converted_ = 0;
  int32_t seen_values_ = 0;
  int64_t constant_bytes_ = 0;
};

}  // namespace tandem

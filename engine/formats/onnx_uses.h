// What a graph's values are used for, known before any shape is.
#pragma once

#include "engine/formats/onnx_graph.h"

namespace tandem {

struct ValueUses {
  NameSet shape;    // decide shapes
  NameSet trained;  // used as weights somewhere, not as settings alone
};

// Goes over the nodes of a checked graph from its outputs to its inputs.
ValueUses AnalyzeUses(const GraphIndex& index, const onnx::GraphProto& graph);

}  // namespace tandem

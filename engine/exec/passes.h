// Graph to graph: what happens between a front end's graph and a plan.
#pragma once

#include "engine/backend/backend.h"
#include "engine/graph/graph.h"

namespace tandem {

// Drops nodes that no output needs, merges equal ones (same operator, attributes and inputs), and
// replaces those that the backend has no kernel for by their lowering. Inputs and outputs stay, in
// order. Errors: an operator with neither kernel nor lowering, named.
absl::StatusOr<Graph> Simplify(const Graph& graph, const Backend& backend);

}  // namespace tandem

// Reverse-mode differentiation, graph to graph.
#pragma once

#include <span>
#include <vector>

#include "engine/graph/builder.h"

namespace tandem {

// Appends to `builder` the nodes that compute d(loss)/d(wrt[i]) and returns them, each with the
// type of wrt[i] (zeros where the loss does not depend on it). `cotangent`, of loss's type, is the
// vector of the vector-Jacobian product; invalid means ones, which needs a loss of one element.
// Errors: an operator on the way without a gradient rule, named.
absl::StatusOr<std::vector<Value>> Gradient(Builder& builder, Value loss,
                                            std::span<const Value> wrt, Value cotangent = {});

}  // namespace tandem

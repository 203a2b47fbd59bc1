// Graph to graph: what happens between a front end's graph and a plan.
#pragma once

#include "engine/backend/backend.h"
#include "engine/graph/graph.h"

namespace tandem {

// Drops nodes that no output needs, merges equal ones (same operator, attributes and inputs), and
// replaces those that the backend has no kernel for by their lowering. A vector added to a matrix
// product that nothing else reads becomes the product's bias: the same bits, as kernels add a bias
// to the finished sum, and one pass over memory less. (Convolutions keep an addition apart: where
// their library adds a bias is its own affair, and bits would depend on what else reads the sum.)
// Where the backend has a FusedMatMul, a product takes in the activation, the SwiGlu of two products
// or the addition that alone reads it: the same bits again.
// Inputs and outputs stay, in order. Errors: an operator with neither kernel nor lowering, named.
//
// 16-bit floats: a node that the backend has no bf16 or f16 kernel for computes in f32, and its
// results are rounded. A matrix product whose only reader makes it f32 is not rounded first
// (MatMul's `out`), and a cast to f32 and back is none.
absl::StatusOr<Graph> Simplify(const Graph& graph, const Backend& backend);

// Casts of parameter i to `dtype` become parameter i + count: a copy of it in that type, which
// somebody keeps.
absl::StatusOr<Graph> ReadParameterCopies(const Graph& graph, DType dtype, int32_t count);

}  // namespace tandem

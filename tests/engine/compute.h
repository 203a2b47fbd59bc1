// Operators on tensors, for tests.
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "engine/exec/plan.h"
#include "engine/graph/builder.h"

namespace tandem {

// The outputs that `build` marks, for these inputs in order.
inline absl::StatusOr<std::vector<Tensor>> Compute(
    const std::vector<const Tensor*>& inputs,
    const std::function<absl::Status(Builder&, const std::vector<Value>&)>& build) {
  Builder b;
  std::vector<Value> values;
  for (const Tensor* tensor : inputs) values.push_back(b.Input("input", tensor->type()));
  TANDEM_RETURN_IF_ERROR(build(b, values));
  TANDEM_ASSIGN_OR_RETURN(Graph graph, b.Finish());
  TANDEM_ASSIGN_OR_RETURN(auto plan, Plan::Compile(std::move(graph), CpuBackend()));
  return RunPlan(*plan, inputs);
}

}  // namespace tandem

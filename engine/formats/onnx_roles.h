// What an ONNX graph's initializers are to the operators that read them.
#pragma once

#include <string_view>

#include "absl/container/flat_hash_map.h"
#include "engine/exec/model.h"
#include "engine/formats/onnx_proto.h"

namespace tandem {

// Biases (of Conv, Gemm, normalizations and recurrent operators, or added to a MatMul's or Conv's
// result), scales of normalizations, and tables that a Gather reads; every other initializer is a
// weight and not in the map, whose keys point into `graph`.
absl::flat_hash_map<std::string_view, ParameterRole> ParameterRoles(const onnx::GraphProto& graph);

}  // namespace tandem

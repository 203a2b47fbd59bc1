#include "engine/formats/onnx_roles.h"

#include "absl/container/flat_hash_set.h"

namespace tandem {
namespace {

struct RoleOfInput {
  std::string_view op;
  int input;
  ParameterRole role;
};
constexpr RoleOfInput kRoles[] = {
    {"Conv", 2, ParameterRole::kBias},
    {"ConvTranspose", 2, ParameterRole::kBias},
    {"Gemm", 2, ParameterRole::kBias},
    {"BatchNormalization", 1, ParameterRole::kNorm},
    {"BatchNormalization", 2, ParameterRole::kBias},
    {"InstanceNormalization", 1, ParameterRole::kNorm},
    {"InstanceNormalization", 2, ParameterRole::kBias},
    {"LayerNormalization", 1, ParameterRole::kNorm},
    {"LayerNormalization", 2, ParameterRole::kBias},
    {"GroupNormalization", 1, ParameterRole::kNorm},
    {"GroupNormalization", 2, ParameterRole::kBias},
    {"RMSNormalization", 1, ParameterRole::kNorm},
    {"LSTM", 3, ParameterRole::kBias},
    {"GRU", 3, ParameterRole::kBias},
    {"RNN", 3, ParameterRole::kBias},
    {"Gather", 0, ParameterRole::kEmbedding},
};

bool IsLinear(std::string_view op) {
  return op == "MatMul" || op == "Gemm" || op == "Conv" || op == "ConvTranspose";
}

}  // namespace

absl::flat_hash_map<std::string_view, ParameterRole> ParameterRoles(const onnx::GraphProto& graph) {
  absl::flat_hash_set<std::string_view> linear_results, vectors;
  for (const onnx::NodeProto& node : graph.node()) {
    if (IsLinear(node.op_type()) && node.output_size() > 0) linear_results.insert(node.output(0));
  }
  for (const onnx::TensorProto& tensor : graph.initializer()) {
    int wide = 0;
    for (const int64_t dim : tensor.dims()) wide += dim != 1 ? 1 : 0;
    if (wide <= 1) vectors.insert(tensor.name());
  }
  absl::flat_hash_map<std::string_view, ParameterRole> roles;
  for (const onnx::NodeProto& node : graph.node()) {
    if (node.op_type() == "Add" && node.input_size() == 2) {
      for (int i = 0; i < 2; ++i) {
        if (vectors.contains(node.input(i)) && linear_results.contains(node.input(1 - i))) {
          roles[node.input(i)] = ParameterRole::kBias;
        }
      }
      continue;
    }
    for (const RoleOfInput& rule : kRoles) {
      if (rule.op == node.op_type() && rule.input < node.input_size()) {
        roles[node.input(rule.input)] = rule.role;
      }
    }
  }
  return roles;
}

}  // namespace tandem

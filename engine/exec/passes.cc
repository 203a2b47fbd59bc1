#include "engine/exec/passes.h"

#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "engine/graph/builder.h"

namespace tandem {
namespace {

std::vector<bool> LiveNodes(const Graph& graph) {
  std::vector<bool> live(graph.nodes().size(), false);
  std::vector<bool> wanted(graph.value_count(), false);
  for (Value v : graph.outputs()) wanted[v.id] = true;
  for (size_t i = graph.nodes().size(); i-- > 0;) {
    const Node& node = graph.nodes()[i];
    for (Value v : node.outputs) live[i] = live[i] || wanted[v.id];
    if (!live[i]) continue;
    for (Value v : node.inputs) {
      if (v.valid()) wanted[v.id] = true;
    }
  }
  return live;
}

// Alias operators need no kernel: the plan gives the output the input's memory.
bool NeedsKernel(const OpDef& op) { return op.name != "Reshape"; }

// One sweep; sets `lowered` if a lowering put in operators that another sweep must look at.
absl::StatusOr<Graph> Sweep(const Graph& graph, const Backend& backend, bool* lowered) {
  Builder builder;
  std::vector<Value> map(graph.value_count());
  const std::vector<bool> live = LiveNodes(graph);
  for (Value v : graph.inputs()) {
    map[v.id] = builder.Input(graph.info(v).name, graph.type(v));
  }
  const auto mapped = [&](Value v) {
    if (!v.valid() || map[v.id].valid()) return v.valid() ? map[v.id] : Value{};
    const ValueInfo& info = graph.info(v);
    switch (info.kind) {
      case ValueKind::kParameter:
        map[v.id] = builder.Parameter(info.index, info.name, info.type);
        break;
      case ValueKind::kRandomKey:
        map[v.id] = builder.RandomKey();
        break;
      default:
        map[v.id] = builder.Constant(info.constant);
    }
    return map[v.id];
  };
  absl::flat_hash_map<std::string, std::vector<Value>> seen;
  for (size_t i = 0; i < graph.nodes().size(); ++i) {
    if (!live[i]) continue;
    Node node = graph.nodes()[i];
    std::string key = StrCat(node.op->name, "|", node.attributes.ToString());
    for (Value& v : node.inputs) {
      v = mapped(v);
      absl::StrAppend(&key, "|", v.id);
    }
    std::vector<Value>& results = seen[key];
    if (results.empty()) {
      builder.SetScope(node.name);
      if (NeedsKernel(*node.op) && backend.Find(node.op->name) == nullptr) {
        if (node.op->lower == nullptr) {
          return Unimplemented("[", node.op->name, "] has no kernel on ", backend.name());
        }
        results = node.op->lower(builder, node);
        *lowered = true;
      } else {
        results = builder.AddMulti(*node.op, node.inputs, node.attributes,
                                   static_cast<int>(node.outputs.size()));
      }
      TANDEM_RETURN_IF_ERROR(builder.status());
    }
    for (size_t k = 0; k < node.outputs.size(); ++k) map[node.outputs[k].id] = results[k];
  }
  for (Value v : graph.outputs()) builder.Output(mapped(v));
  return builder.Finish();
}

}  // namespace

absl::StatusOr<Graph> Simplify(const Graph& graph, const Backend& backend) {
  bool lowered = false;
  TANDEM_ASSIGN_OR_RETURN(Graph result, Sweep(graph, backend, &lowered));
  for (int rounds = 0; lowered; ++rounds) {
    if (rounds == 8) return Internal("lowering does not end");
    lowered = false;
    TANDEM_ASSIGN_OR_RETURN(result, Sweep(result, backend, &lowered));
  }
  return result;
}

}  // namespace tandem

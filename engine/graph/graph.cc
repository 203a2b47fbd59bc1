#include "engine/graph/graph.h"

#include "absl/strings/str_cat.h"
#include "engine/graph/op.h"

namespace tandem {

std::string Graph::ToString() const {
  std::string text;
  const auto append = [&](Value v) {
    if (!v.valid()) {
      absl::StrAppend(&text, " -");
      return;
    }
    absl::StrAppend(&text, " %", v.id, ":", type(v).ToString());
  };
  for (const Node& node : nodes_) {
    for (Value v : node.outputs) append(v);
    text += StrCat(" = ", node.op->name, "[", node.attributes.ToString(), "]");
    for (Value v : node.inputs) append(v);
    absl::StrAppend(&text, "\n");
  }
  return text;
}

}  // namespace tandem

#include "engine/formats/onnx_ops.h"

#include "absl/container/flat_hash_map.h"

namespace tandem {

const OnnxOp* FindOnnxOp(std::string_view name) {
  static const auto* const by_name = [] {
    auto* map = new absl::flat_hash_map<std::string_view, const OnnxOp*>;
    for (const auto family :
         {OnnxMathOps(),          OnnxActivationOps(), OnnxReduceOps(),   OnnxShapeOps(),
          OnnxIndexOps(),         OnnxPadOps(),        OnnxGenerateOps(), OnnxNnOps(),
          OnnxNormalizationOps(), OnnxControlOps(),    OnnxResizeOps(),   OnnxRecurrentOps(),
          OnnxLossOps(),          OnnxAttentionOps(),  OnnxEinsumOps(),   OnnxQuantizeOps(),
          OnnxStateOps(),         OnnxGridOps(),       OnnxBitOps(),      OnnxRandomOps()}) {
      for (const OnnxOp& op : family) map->emplace(op.name, &op);
    }
    return map;
  }();
  const auto it = by_name->find(name);
  return it == by_name->end() ? nullptr : it->second;
}

}  // namespace tandem

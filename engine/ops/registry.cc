#include <unordered_map>

#include "engine/ops/definitions.h"

namespace tandem {
namespace {

#define OP(name) &ops::k##name,
constexpr const OpDef* kOps[] = {TANDEM_ALL_OPS(OP)};
#undef OP

}  // namespace

std::span<const OpDef* const> AllOps() { return kOps; }

const OpDef* FindOp(std::string_view name) {
  static const auto* const by_name = [] {
    auto* map = new std::unordered_map<std::string_view, const OpDef*>;
    for (const OpDef* op : kOps) map->emplace(op->name, op);
    return map;
  }();
  const auto it = by_name->find(name);
  return it == by_name->end() ? nullptr : it->second;
}

}  // namespace tandem

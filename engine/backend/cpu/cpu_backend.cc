#include <unordered_map>

#include "engine/backend/cpu/kernels_table.h"

namespace tandem {
namespace {

class Cpu final : public Backend {
 public:
  Cpu() {
#define OP(op) kernels_.emplace(ops::k##op.name, &cpu::k##op##Kernel);
    TANDEM_CPU_KERNELS(OP)
#undef OP
  }
  std::string_view name() const override { return "cpu"; }
  const Kernel* Find(std::string_view op) const override {
    const auto it = kernels_.find(op);
    return it == kernels_.end() ? nullptr : it->second;
  }

 private:
  std::unordered_map<std::string_view, const Kernel*> kernels_;
};

}  // namespace

const Backend& CpuBackend() {
  static const Cpu* const backend = new Cpu;
  return *backend;
}

}  // namespace tandem

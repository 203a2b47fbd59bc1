#include <unistd.h>

#include <cstdlib>
#include <cstring>
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
  bool host_memory() const override { return true; }
  int64_t memory_bytes() const override {
    return static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
  }
  absl::StatusOr<void*> Allocate(int64_t bytes) const override {
    if (bytes == 0) return nullptr;
    // Rounded up, so that a vector load at the last element stays inside.
    void* memory = std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
    if (memory == nullptr) return ResourceExhausted("no memory for ", bytes, " bytes");
    return memory;
  }
  void Free(void* memory) const override { std::free(memory); }
  void Upload(void* to, const void* from_host, int64_t bytes) const override {
    Copy(to, from_host, bytes);
  }
  void Download(void* to_host, const void* from, int64_t bytes) const override {
    Copy(to_host, from, bytes);
  }
  void Copy(void* to, const void* from, int64_t bytes) const override {
    if (bytes > 0) std::memmove(to, from, static_cast<size_t>(bytes));
  }
  void Zero(void* to, int64_t bytes) const override {
    if (bytes > 0) std::memset(to, 0, static_cast<size_t>(bytes));
  }
  absl::Status Finish() const override { return absl::OkStatus(); }

 private:
  std::unordered_map<std::string_view, const Kernel*> kernels_;
};

}  // namespace

const Backend& CpuBackend() {
  static const Cpu* const backend = new Cpu;
  return *backend;
}

}  // namespace tandem

// Backend: a device. Memory, and a table from operator to kernel.
#pragma once

#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "engine/graph/op.h"

namespace tandem {

// One node to bind: everything but the addresses.
struct KernelSpec {
  const OpDef* op = nullptr;
  const Attributes* attributes = nullptr;
  std::vector<TensorType> inputs;  // an absent optional input has present[i] == false
  std::vector<bool> present;
  std::vector<TensorType> outputs;

  bool has(int i) const { return i < static_cast<int>(inputs.size()) && present[i]; }
  const Shape& in(int i) const { return inputs[i].shape; }
  const Shape& out(int i = 0) const { return outputs[i].shape; }
  DType dtype(int i = 0) const { return inputs[i].dtype; }
};

// The addresses of one run. Inputs that are absent are null.
struct KernelArgs {
  std::span<const void* const> inputs;
  std::span<void* const> outputs;
  void* scratch;  // BoundKernel::scratch_bytes, 64-byte aligned

  template <typename T>
  const T* in(int i) const {
    return static_cast<const T*>(inputs[i]);
  }
  template <typename T>
  T* out(int i = 0) const {
    return static_cast<T*>(outputs[i]);
  }
};

// A kernel for one KernelSpec. run() does not allocate and does not throw.
struct BoundKernel {
  std::function<void(const KernelArgs&)> run;
  int64_t scratch_bytes = 0;
};

struct Kernel {
  // Checks that this backend can do the spec (dtypes above all) and prepares it; Unimplemented,
  // with the operator and the dtype, where it cannot.
  absl::StatusOr<BoundKernel> (*bind)(const KernelSpec&) = nullptr;
  // The planner may give output 0 the memory of any input of equal byte size when this is true:
  // element i of the output depends on element i of the inputs alone.
  bool in_place = false;
  // An output but the first that nobody reads comes as a null pointer, and takes no memory.
  bool skips_unused_outputs = false;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;  // "cpu"
  // The kernel of that operator, or null. Thread-safe.
  virtual const Kernel* Find(std::string_view op) const = 0;
};

// The CPU backend; it lives as long as the process.
const Backend& CpuBackend();

}  // namespace tandem

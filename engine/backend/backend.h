// Backend: a device. Memory, and a table from operator to kernel.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/graph/op.h"

namespace tandem {

class Backend;

// One node to bind: everything but the addresses.
struct KernelSpec {
  const Backend* backend = nullptr;  // the one that binds; outlives the kernel
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

// The addresses of one run, in the backend's memory. Inputs that are absent are null.
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

// A kernel for one KernelSpec. run() does not allocate and does not throw; on a device it enqueues,
// and what goes wrong there Backend::Finish reports.
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

// Work that a backend recorded; the backend must outlive it.
class Recording {
 public:
  virtual ~Recording() = default;
  // Submits the work once more: the same kernels on the same addresses.
  virtual void Replay() = 0;
};

// Memory is the device's own: only kernels and the copies below may touch it, unless host_memory().
// Copies and kernels run in the order of the calls, all from one thread at a time.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;  // "cpu", "cuda:0"
  // The kernel of that operator, or null. Thread-safe.
  virtual const Kernel* Find(std::string_view op) const = 0;

  // The host may read and write the memory.
  virtual bool host_memory() const = 0;
  // Of the device: what plans, weights and caches must share.
  virtual int64_t memory_bytes() const = 0;
  // At least 64-byte aligned and uninitialised; null for 0 bytes. RESOURCE_EXHAUSTED: how much was
  // asked for and how much there is.
  virtual absl::StatusOr<void*> Allocate(int64_t bytes) const = 0;
  virtual void Free(void* memory) const = 0;
  // From the host's memory, which may change as soon as this returns; to the host's, which is there
  // when this returns; within the device; zeros.
  virtual void Upload(void* to, const void* from_host, int64_t bytes) const = 0;
  virtual void Download(void* to_host, const void* from, int64_t bytes) const = 0;
  virtual void Copy(void* to, const void* from, int64_t bytes) const = 0;
  virtual void Zero(void* to, int64_t bytes) const = 0;
  // Records what `submit` submits, instead of running it; null where that cannot be: nothing ran.
  virtual std::unique_ptr<Recording> Record(const std::function<void()>& submit) const {
    (void)submit;
    return nullptr;
  }
  // Waits until all is done. The first error since the last call; one that the device does not
  // recover from comes again every time.
  virtual absl::Status Finish() const = 0;
};

// Memory of a backend that frees itself. The backend must outlive it.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  static absl::StatusOr<DeviceMemory> Allocate(const Backend& backend, int64_t bytes);
  DeviceMemory(DeviceMemory&& other) noexcept { *this = std::move(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(backend_, other.backend_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceMemory() {
    if (data_ != nullptr) backend_->Free(data_);
  }
  std::byte* data() const { return static_cast<std::byte*>(data_); }
  int64_t bytes() const { return bytes_; }

 private:
  const Backend* backend_ = nullptr;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// The CPU backend; it lives as long as the process.
const Backend& CpuBackend();

// "cpu", or "cuda:N": GPU number N of those that the driver shows. It lives as long as the process;
// asking again gives the same one. INVALID_ARGUMENT: no such name. UNAVAILABLE: no CUDA library, no
// driver, or no such GPU; the message says which.
absl::StatusOr<const Backend*> FindBackend(std::string_view device);

}  // namespace tandem

// The CUDA backend: an NVIDIA GPU, through libtandem_cuda.so.
//
// One stream a backend: kernels and copies run in the order of the calls. Bindings (one file a
// family beside this one) turn a KernelSpec into a call of the library.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "engine/backend/backend.h"
#include "engine/backend/cuda/library.h"

namespace tandem::cuda {

class Device final : public Backend {
 public:
  static absl::StatusOr<std::unique_ptr<Device>> Open(const Library& library, int device);
  ~Device() override;

  std::string_view name() const override { return name_; }
  const Kernel* Find(std::string_view op) const override;
  bool host_memory() const override { return false; }
  int64_t memory_bytes() const override { return info_.memory_bytes; }
  absl::StatusOr<void*> Allocate(int64_t bytes) const override;
  void Free(void* memory) const override;
  void Upload(void* to, const void* from_host, int64_t bytes) const override;
  void Download(void* to_host, const void* from, int64_t bytes) const override;
  void Copy(void* to, const void* from, int64_t bytes) const override;
  void Zero(void* to, int64_t bytes) const override;
  std::unique_ptr<Recording> Record(const std::function<void()>& submit) const override;
  absl::Status Finish() const override;

  const Library& library() const { return library_; }
  tandem_cuda_stream stream() const { return stream_; }
  const tandem_cuda_device_info& info() const { return info_; }
  // 90 for compute capability 9.0.
  int capability() const { return 10 * info_.major + info_.minor; }
  // Keeps the first error for Finish; `what` names the call. A kernel that does not take its sizes,
  // and a lack of memory, are of this run alone; anything else the device does not recover from.
  void Check(int error, const char* what) const;
  // Makes this device current for the calling thread.
  void Use() const;

 private:
  class Graph;
  static constexpr int kLeastCapability = 80;

  Device(const Library& library, int number)
      : library_(library), number_(number), name_(StrCat("cuda:", number)) {}
  absl::Status Start();

  const Library& library_;
  const int number_;
  std::string name_;
  tandem_cuda_device_info info_{};
  tandem_cuda_stream stream_ = nullptr;
  mutable std::mutex mutex_;
  mutable absl::Status error_;      // for good; guarded by mutex_
  mutable absl::Status run_error_;  // since the last Finish; guarded by mutex_
};

// The device that a kernel is being bound for.
inline const Device& DeviceOf(const KernelSpec& spec) {
  return static_cast<const Device&>(*spec.backend);
}

// A library function with the name that errors give.
template <typename Function>
struct Call;
template <typename... Parameters>
struct Call<int(Parameters...)> {
  int (*function)(Parameters...) = nullptr;
  const Device* device = nullptr;
  const char* name = "";
  void operator()(Parameters... arguments) const { device->Check(function(arguments...), name); }
};
// One that computes a number, and cannot fail.
template <typename... Parameters>
struct Call<int64_t(Parameters...)> {
  int64_t (*function)(Parameters...) = nullptr;
  const Device* device = nullptr;
  const char* name = "";
  int64_t operator()(Parameters... arguments) const { return function(arguments...); }
};

// The function of the spec's device's library; Unimplemented where that library lacks it.
template <typename Function>
absl::StatusOr<Call<Function>> FindCall(const KernelSpec& spec, const char* name) {
  const Device& device = DeviceOf(spec);
  Function* const function = device.library().Find<Function>(name);
  if (function == nullptr) return Unimplemented(device.library().path(), " has no ", name);
  return Call<Function>{function, &device, name};
}
// TANDEM_CUDA_CALL(negate, tandem_cuda_negate, spec): a local `negate` that can be called like the
// function and captured by the kernel's closure.
#define TANDEM_CUDA_CALL(local, function, spec) \
  TANDEM_ASSIGN_OR_RETURN(const auto local,     \
                          ::tandem::cuda::FindCall<decltype(function)>(spec, #function))

}  // namespace tandem::cuda

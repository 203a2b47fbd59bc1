// The device that a test runs on: TANDEM_TEST_DEVICE ("cpu" unless set), so that CTest runs one
// program on several; CUDA's by TANDEM_CUDA_LIBRARY, which for these is the emulated one.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "engine/backend/backend.h"

namespace tandem {

inline const Backend& TestDevice() {
  static const Backend* const device = [] {
    const char* const name = std::getenv("TANDEM_TEST_DEVICE");
    const absl::StatusOr<const Backend*> found = FindBackend(name == nullptr ? "cpu" : name);
    if (!found.ok()) {
      std::fprintf(stderr, "%s\n", found.status().ToString().c_str());
      std::abort();
    }
    return *found;
  }();
  return *device;
}

// The reason to skip a test of an operator that a device has no kernel for, else empty. What a
// kernel's binding refuses is no reason.
inline std::string NoKernel(const absl::Status& status) {
  const std::string message(status.message());
  const bool skip = TestDevice().name() != "cpu" && absl::IsUnimplemented(status) &&
                    message.find("has no kernel on") != std::string::npos;
  return skip ? message : "";
}

// Another backend's memory with kernels of one's own choice.
class WrappedBackend : public Backend {
 public:
  explicit WrappedBackend(const Backend& inner) : inner_(inner) {}
  const Kernel* Find(std::string_view op) const override { return inner_.Find(op); }
  bool host_memory() const override { return inner_.host_memory(); }
  int64_t memory_bytes() const override { return inner_.memory_bytes(); }
  absl::StatusOr<void*> Allocate(int64_t bytes) const override { return inner_.Allocate(bytes); }
  void Free(void* memory) const override { inner_.Free(memory); }
  void Upload(void* to, const void* from_host, int64_t bytes) const override {
    inner_.Upload(to, from_host, bytes);
  }
  void Download(void* to_host, const void* from, int64_t bytes) const override {
    inner_.Download(to_host, from, bytes);
  }
  void Copy(void* to, const void* from, int64_t bytes) const override {
    inner_.Copy(to, from, bytes);
  }
  void Zero(void* to, int64_t bytes) const override { inner_.Zero(to, bytes); }
  std::unique_ptr<Recording> Record(const std::function<void()>& submit) const override {
    return inner_.Record(submit);
  }
  absl::Status Finish() const override { return inner_.Finish(); }

 protected:
  const Backend& inner_;
};

}  // namespace tandem

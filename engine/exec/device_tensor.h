// DeviceTensor: a tensor in a backend's memory, for state that stays there between runs.
#pragma once

#include <utility>
#include <vector>

#include "engine/exec/plan.h"

namespace tandem {

class DeviceTensor {
 public:
  DeviceTensor() = default;
  static absl::StatusOr<DeviceTensor> Zeros(const Backend& backend, TensorType type);

  const TensorType& type() const { return type_; }
  int64_t bytes() const { return memory_.bytes(); }  // 0: never made
  // As Plan::Run takes it; `offset` bytes on.
  Address address(int64_t offset = 0) const { return OnDevice(memory_.data() + offset); }
  // All of it from the host, or bytes [offset, offset + bytes) to it.
  void Set(const Tensor& tensor);
  void Read(void* to_host, int64_t offset, int64_t bytes) const;

 private:
  const Backend* backend_ = nullptr;
  TensorType type_;
  DeviceMemory memory_;
};

}  // namespace tandem

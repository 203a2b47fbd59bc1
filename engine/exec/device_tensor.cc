#include "engine/exec/device_tensor.h"

namespace tandem {

absl::StatusOr<DeviceTensor> DeviceTensor::Zeros(const Backend& backend, TensorType type) {
  DeviceTensor tensor;
  TANDEM_ASSIGN_OR_RETURN(tensor.memory_, DeviceMemory::Allocate(backend, type.bytes()));
  backend.Zero(tensor.memory_.data(), type.bytes());
  tensor.backend_ = &backend;
  tensor.type_ = std::move(type);
  return tensor;
}

void DeviceTensor::Set(const Tensor& tensor) {
  backend_->Upload(memory_.data(), tensor.raw(), bytes());
}

void DeviceTensor::Read(void* to_host, int64_t offset, int64_t bytes) const {
  backend_->Download(to_host, memory_.data() + offset, bytes);
}

}  // namespace tandem

#include "engine/backend/backend.h"

namespace tandem {

absl::StatusOr<DeviceMemory> DeviceMemory::Allocate(const Backend& backend, int64_t bytes) {
  DeviceMemory memory;
  TANDEM_ASSIGN_OR_RETURN(memory.data_, backend.Allocate(bytes));
  memory.backend_ = &backend;
  memory.bytes_ = bytes;
  return memory;
}

}  // namespace tandem

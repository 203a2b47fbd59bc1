// The checks of a safetensors header, apart from files.
#pragma once

#include "engine/formats/safetensors.h"

namespace tandem {

// The format's limit.
inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;

// Where the data of a file of file_bytes begins, from its first 8 bytes (`prefix`).
absl::StatusOr<uint64_t> SafetensorsDataBegin(std::span<const std::byte> prefix,
                                              uint64_t file_bytes);

}  // namespace tandem

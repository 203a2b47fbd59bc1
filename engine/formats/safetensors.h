// The safetensors format (https://github.com/huggingface/safetensors): 8 bytes of header length,
// little-endian; a JSON header; tensors side by side without holes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/dtype.h"
#include "engine/base/error.h"

namespace tandem {

struct SafetensorsTensor {
  std::string name;
  std::string file_type;       // "F32", "BF16", "F8_E4M3" ...: any type of the format
  std::optional<DType> dtype;  // none: a type that has no DType here
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // bytes in the data section

  uint64_t bytes() const { return end - begin; }
};

struct SafetensorsHeader {
  std::vector<SafetensorsTensor> tensors;       // in the order of their data
  std::map<std::string, std::string> metadata;  // "__metadata__"
  uint64_t data_begin = 0;                      // offset of the data section in the file
};

// Checks the header of a file of file_bytes, of which `prefix` is the beginning, up to the end of
// the header at least. Accepts exactly what the format's reference implementation accepts, less
// duplicate keys and unknown fields. Errors say what is wrong and where.
absl::StatusOr<SafetensorsHeader> ParseSafetensors(std::span<const std::byte> prefix,
                                                   uint64_t file_bytes);

// An open file. Thread-safe once open: reads are positioned.
class SafetensorsFile {
 public:
  static absl::StatusOr<SafetensorsFile> Open(const std::string& path);
  SafetensorsFile(SafetensorsFile&& other) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) = delete;
  ~SafetensorsFile();

  const std::string& path() const { return path_; }
  const SafetensorsHeader& header() const { return header_; }
  // One of header().tensors, into `values` of exactly as many elements. Types: F32, F16, BF16;
  // UNIMPLEMENTED names any other.
  absl::Status ReadFloats(const SafetensorsTensor& tensor, std::span<float> values) const;

 private:
  SafetensorsFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  absl::Status ReadAt(uint64_t offset, std::span<std::byte> bytes) const;

  std::string path_;
  int fd_ = -1;
  SafetensorsHeader header_;
};

struct SafetensorsSource {
  std::string name;
  std::vector<int64_t> shape;
  DType file_dtype = DType::kF32;  // f32, f16 or bf16: what `values` become, to nearest even
  std::span<const float> values;
};

// Writes a file atomically. The data begins at a multiple of 8 bytes; larger elements come first
// within it, so that every tensor is aligned to its element.
absl::Status WriteSafetensors(const std::string& path, std::span<const SafetensorsSource> tensors,
                              const std::map<std::string, std::string>& metadata);

}  // namespace tandem

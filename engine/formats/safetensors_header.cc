#include "engine/formats/safetensors_header.h"

#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "nlohmann/json.hpp"

namespace tandem {
namespace {

struct FileType {
  std::string_view name;
  uint64_t bits;
  std::optional<DType> dtype;
};

constexpr FileType kFileTypes[] = {
    {"BOOL", 8, DType::kBool},
    {"U8", 8, DType::kU8},
    {"I8", 8, DType::kI8},
    {"U16", 16, DType::kU16},
    {"I16", 16, DType::kI16},
    {"F16", 16, DType::kF16},
    {"BF16", 16, DType::kBF16},
    {"U32", 32, DType::kU32},
    {"I32", 32, DType::kI32},
    {"F32", 32, DType::kF32},
    {"U64", 64, DType::kU64},
    {"I64", 64, DType::kI64},
    {"F64", 64, DType::kF64},
    {"C64", 64, std::nullopt},
    {"F4", 4, std::nullopt},
    {"F6_E2M3", 6, std::nullopt},
    {"F6_E3M2", 6, std::nullopt},
    {"F8_E5M2", 8, std::nullopt},
    {"F8_E4M3", 8, std::nullopt},
    {"F8_E8M0", 8, std::nullopt},
    {"F8_E4M3FNUZ", 8, std::nullopt},
    {"F8_E5M2FNUZ", 8, std::nullopt},
};

const FileType* FindFileType(std::string_view name) {
  for (const FileType& type : kFileTypes) {
    if (type.name == name) return &type;
  }
  return nullptr;
}

// Reads the header's JSON as a stream, since the format allows only this:
//   {"__metadata__": {string: string}, name: {"dtype": .., "shape": [..], "data_offsets": [b, e]}}
// A tree of a hostile 100 MB header would take gigabytes.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  SafetensorsHeader header;
  absl::Status status;

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool number_float(double, const std::string&) override { return Unexpected("a fraction"); }
  bool number_integer(int64_t) override { return Unexpected("a negative number"); }
  bool binary(binary_t&) override { return Unexpected("binary data"); }

  bool number_unsigned(uint64_t value) override {
    if (place_ == Place::kShape) {
      if (value > uint64_t{INT64_MAX}) return Unexpected("a dimension that is too large");
      tensor_.shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (place_ == Place::kOffsets && offsets_ < 2) {
      (offsets_ == 0 ? tensor_.begin : tensor_.end) = value;
      ++offsets_;
      return true;
    }
    return Unexpected("a number");
  }

  bool string(std::string& value) override {
    if (place_ == Place::kMetadata) {
      header.metadata[key_] = value;
      return true;
    }
    if (place_ == Place::kTensor && key_ == "dtype") {
      tensor_.file_type = value;
      return true;
    }
    return Unexpected("a string");
  }

  bool start_object(std::size_t) override {
    if (place_ == Place::kBegin) {
      place_ = Place::kTop;
      return true;
    }
    if (place_ != Place::kTop) return Unexpected("an object");
    fields_.clear();
    if (key_ == "__metadata__") {
      place_ = Place::kMetadata;
      return true;
    }
    place_ = Place::kTensor;
    tensor_ = {};
    tensor_.name = key_;
    offsets_ = 0;
    return true;
  }

  bool key(std::string& value) override {
    key_ = value;
    if (place_ == Place::kTensor && value != "dtype" && value != "shape" &&
        value != "data_offsets") {
      return Fail("unknown field ", value, " of tensor ", tensor_.name);
    }
    auto& keys = place_ == Place::kTop ? names_ : fields_;
    if (!keys.insert(value).second) return Fail("duplicate key ", value);
    return true;
  }

  bool end_object() override {
    if (place_ == Place::kTensor) {
      for (const char* field : {"dtype", "shape", "data_offsets"}) {
        if (!fields_.contains(field)) {
          return Fail("tensor ", tensor_.name, " has no ", field);
        }
      }
      header.tensors.push_back(std::move(tensor_));
    }
    place_ = place_ == Place::kTop ? Place::kEnd : Place::kTop;
    return true;
  }

  bool start_array(std::size_t) override {
    if (place_ == Place::kTensor && key_ == "shape") {
      place_ = Place::kShape;
      return true;
    }
    if (place_ == Place::kTensor && key_ == "data_offsets") {
      place_ = Place::kOffsets;
      return true;
    }
    return Unexpected("an array");
  }

  bool end_array() override {
    if (place_ == Place::kOffsets && offsets_ != 2) {
      return Fail("data_offsets of tensor ", tensor_.name, " are not two numbers");
    }
    place_ = Place::kTensor;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception& error) override {
    return Fail("byte ", position, ": ", error.what());
  }

 private:
  enum class Place { kBegin, kTop, kMetadata, kTensor, kShape, kOffsets, kEnd };

  template <typename... Pieces>
  bool Fail(const Pieces&... pieces) {
    status = InvalidArgument("safetensors header: ", pieces...);
    return false;
  }
  bool Unexpected(const char* what) { return Fail("unexpected ", what, " at key '", key_, "'"); }

  Place place_ = Place::kBegin;
  std::string key_;
  SafetensorsTensor tensor_;
  int offsets_ = 0;
  absl::flat_hash_set<std::string> names_, fields_;
};

// The bytes that the tensor's type and shape need, or an error.
absl::StatusOr<uint64_t> ExpectedBytes(const SafetensorsTensor& tensor, const FileType& type) {
  uint64_t bits = type.bits;
  for (int64_t dim : tensor.shape) {
    if (__builtin_mul_overflow(bits, static_cast<uint64_t>(dim), &bits)) {
      return InvalidArgument("safetensors header: tensor ", tensor.name,
                             ": the shape's size overflows");
    }
  }
  if (bits % 8 != 0) {
    return InvalidArgument("safetensors header: tensor ", tensor.name, ": ", bits,
                           " bits are not whole bytes");
  }
  return bits / 8;
}

absl::Status CheckTensors(SafetensorsHeader& header, uint64_t data_bytes) {
  std::stable_sort(header.tensors.begin(), header.tensors.end(),
                   [](const SafetensorsTensor& a, const SafetensorsTensor& b) {
                     return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
                   });
  uint64_t expected_begin = 0;
  for (SafetensorsTensor& tensor : header.tensors) {
    if (tensor.begin != expected_begin || tensor.end < tensor.begin) {
      return InvalidArgument("safetensors header: tensor ", tensor.name, " lies at [", tensor.begin,
                             ", ", tensor.end, "), expected to begin at ", expected_begin);
    }
    const FileType* type = FindFileType(tensor.file_type);
    if (type == nullptr) {
      return InvalidArgument("safetensors header: tensor ", tensor.name, " has unknown dtype ",
                             tensor.file_type);
    }
    tensor.dtype = type->dtype;
    TANDEM_ASSIGN_OR_RETURN(const uint64_t bytes, ExpectedBytes(tensor, *type));
    if (bytes != tensor.bytes()) {
      return InvalidArgument("safetensors header: tensor ", tensor.name, " has ", tensor.bytes(),
                             " bytes, its dtype and shape need ", bytes);
    }
    expected_begin = tensor.end;
  }
  if (expected_begin != data_bytes) {
    return InvalidArgument("safetensors: ", data_bytes, " bytes of data, the header describes ",
                           expected_begin);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<uint64_t> SafetensorsDataBegin(std::span<const std::byte> prefix,
                                              uint64_t file_bytes) {
  if (file_bytes < 8 || prefix.size() < 8) {
    return InvalidArgument("safetensors: ", file_bytes, " bytes, a header needs 8 at least");
  }
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<uint64_t>(prefix[i]);
  if (length > kMaxSafetensorsHeaderBytes) {
    return InvalidArgument("safetensors: a header of ", length, " bytes, at most ",
                           kMaxSafetensorsHeaderBytes, " are allowed");
  }
  if (length > file_bytes - 8) {
    return InvalidArgument("safetensors: a header of ", length, " bytes in a file of ", file_bytes);
  }
  return 8 + length;
}

absl::StatusOr<SafetensorsHeader> ParseSafetensors(std::span<const std::byte> prefix,
                                                   uint64_t file_bytes) {
  TANDEM_ASSIGN_OR_RETURN(const uint64_t data_begin, SafetensorsDataBegin(prefix, file_bytes));
  if (prefix.size() < data_begin) {
    return InvalidArgument("safetensors: ", prefix.size(), " bytes of a header that ends at ",
                           data_begin);
  }
  const char* text = reinterpret_cast<const char*>(prefix.data());
  HeaderReader reader;
  if (!nlohmann::json::sax_parse(text + 8, text + data_begin, &reader)) {
    return reader.status.ok() ? InvalidArgument("safetensors header: malformed") : reader.status;
  }
  reader.header.data_begin = data_begin;
  TANDEM_RETURN_IF_ERROR(CheckTensors(reader.header, file_bytes - data_begin));
  return std::move(reader.header);
}

}  // namespace tandem

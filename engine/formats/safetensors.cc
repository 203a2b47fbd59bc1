#include "engine/formats/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "engine/formats/atomic_file.h"
#include "engine/formats/safetensors_header.h"
#include "nlohmann/json.hpp"

namespace tandem {
namespace {

constexpr size_t kChunkElements = size_t{1} << 18;

template <typename T>
void Convert(std::span<const std::byte> bytes, std::span<float> values) {
  for (size_t i = 0; i < values.size(); ++i) {
    T element;
    std::memcpy(&element, bytes.data() + i * sizeof(T), sizeof(T));
    values[i] = static_cast<float>(element);
  }
}

template <typename T>
void Convert(std::span<const float> values, std::span<std::byte> bytes) {
  for (size_t i = 0; i < values.size(); ++i) {
    const T element(values[i]);
    std::memcpy(bytes.data() + i * sizeof(T), &element, sizeof(T));
  }
}

absl::StatusOr<std::string_view> FileTypeOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    case DType::kBF16:
      return "BF16";
    default:
      return Unimplemented("safetensors: writing ", std::string(DTypeName(dtype)));
  }
}

absl::Status WriteValues(AtomicFile& file, const SafetensorsSource& tensor) {
  if (tensor.file_dtype == DType::kF32) return file.Write(std::as_bytes(tensor.values));
  std::vector<std::byte> chunk;
  for (size_t begin = 0; begin < tensor.values.size(); begin += kChunkElements) {
    const auto values =
        tensor.values.subspan(begin, std::min(kChunkElements, tensor.values.size() - begin));
    chunk.resize(2 * values.size());
    if (tensor.file_dtype == DType::kF16) {
      Convert<F16>(values, chunk);
    } else {
      Convert<BF16>(values, chunk);
    }
    TANDEM_RETURN_IF_ERROR(file.Write(chunk));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  // O_NONBLOCK: opening a named pipe must not wait for a writer.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    if (errno == ENOENT) return NotFound(path, ": no such file");
    return FailedPrecondition("cannot open ", path, ": ", strerror(errno));
  }
  SafetensorsFile file(path, fd);
  struct stat info = {};
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    return InvalidArgument(path, ": not a regular file");
  }
  const uint64_t size = static_cast<uint64_t>(info.st_size);
  std::vector<std::byte> prefix(static_cast<size_t>(std::min<uint64_t>(size, 8)));
  TANDEM_RETURN_IF_ERROR(file.ReadAt(0, prefix));
  absl::StatusOr<uint64_t> data_begin = SafetensorsDataBegin(prefix, size);
  if (!data_begin.ok()) return Annotate(data_begin.status(), path);
  prefix.resize(static_cast<size_t>(*data_begin));
  TANDEM_RETURN_IF_ERROR(file.ReadAt(0, prefix));
  absl::StatusOr<SafetensorsHeader> header = ParseSafetensors(prefix, size);
  if (!header.ok()) return Annotate(header.status(), path);
  file.header_ = *std::move(header);
  return file;
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      header_(std::move(other.header_)) {}

SafetensorsFile::~SafetensorsFile() {
  if (fd_ >= 0) close(fd_);
}

absl::Status SafetensorsFile::ReadAt(uint64_t offset, std::span<std::byte> bytes) const {
  while (!bytes.empty()) {
    const ssize_t got = pread(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FailedPrecondition("cannot read ", path_, ": ", strerror(errno));
    if (got == 0) return InvalidArgument(path_, ": ended at byte ", offset, " while being read");
    offset += static_cast<uint64_t>(got);
    bytes = bytes.subspan(static_cast<size_t>(got));
  }
  return absl::OkStatus();
}

absl::Status SafetensorsFile::ReadFloats(const SafetensorsTensor& tensor,
                                         std::span<float> values) const {
  if (tensor.dtype != DType::kF32 && tensor.dtype != DType::kF16 && tensor.dtype != DType::kBF16) {
    return Unimplemented(path_, ": tensor ", tensor.name, " is ", tensor.file_type,
                         "; F32, F16 and BF16 can be read as weights");
  }
  const size_t element_bytes = static_cast<size_t>(SizeOf(*tensor.dtype));
  if (tensor.bytes() != values.size() * element_bytes) {
    return InvalidArgument(path_, ": tensor ", tensor.name, " has ", tensor.bytes() / element_bytes,
                           " elements, expected ", values.size());
  }
  uint64_t offset = header_.data_begin + tensor.begin;
  if (*tensor.dtype == DType::kF32) return ReadAt(offset, std::as_writable_bytes(values));
  std::vector<std::byte> chunk;
  while (!values.empty()) {
    const size_t count = std::min(values.size(), kChunkElements);
    chunk.resize(count * element_bytes);
    TANDEM_RETURN_IF_ERROR(ReadAt(offset, chunk));
    if (tensor.dtype == DType::kF16) {
      Convert<F16>(chunk, values.first(count));
    } else {
      Convert<BF16>(chunk, values.first(count));
    }
    offset += chunk.size();
    values = values.subspan(count);
  }
  return absl::OkStatus();
}

absl::Status WriteSafetensors(const std::string& path, std::span<const SafetensorsSource> tensors,
                              const std::map<std::string, std::string>& metadata) {
  std::vector<const SafetensorsSource*> order;
  for (const SafetensorsSource& tensor : tensors) order.push_back(&tensor);
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return SizeOf(a->file_dtype) > SizeOf(b->file_dtype);
  });
  nlohmann::json header = nlohmann::json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (const SafetensorsSource* tensor : order) {
    TANDEM_ASSIGN_OR_RETURN(const std::string_view type, FileTypeOf(tensor->file_dtype));
    uint64_t elements = 1;
    for (int64_t dim : tensor->shape) elements *= static_cast<uint64_t>(dim);
    if (elements != tensor->values.size()) {
      return InvalidArgument("safetensors: tensor ", tensor->name, " has ", tensor->values.size(),
                             " values for a shape of ", elements);
    }
    if (header.contains(tensor->name)) {
      return InvalidArgument("safetensors: two tensors named ", tensor->name);
    }
    const uint64_t end = offset + elements * static_cast<uint64_t>(SizeOf(tensor->file_dtype));
    header[tensor->name] = {
        {"dtype", type}, {"shape", tensor->shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  text.resize((text.size() + 7) / 8 * 8, ' ');
  if (text.size() > kMaxSafetensorsHeaderBytes) {
    return InvalidArgument("safetensors: a header of ", text.size(), " bytes, at most ",
                           kMaxSafetensorsHeaderBytes, " are allowed");
  }
  TANDEM_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::Create(path));
  std::byte length[8];
  for (int i = 0; i < 8; ++i) length[i] = static_cast<std::byte>(uint64_t{text.size()} >> (8 * i));
  TANDEM_RETURN_IF_ERROR(file.Write(length));
  TANDEM_RETURN_IF_ERROR(file.Write(text));
  for (const SafetensorsSource* tensor : order) {
    TANDEM_RETURN_IF_ERROR(WriteValues(file, *tensor));
  }
  return file.Commit();
}

}  // namespace tandem

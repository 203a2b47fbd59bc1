#include <filesystem>
#include <fstream>
#include <sstream>

#include "client/command/command.h"
#include "engine/formats/npy.h"
#include "engine/formats/onnx_tensor.h"

namespace tandem::command {

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return NotFound("'", path, "' is not a file that can be read");
  }
  std::ifstream file(path, std::ios::binary);
  std::ostringstream contents;
  contents << file.rdbuf();
  if (!file) return absl::UnavailableError(StrCat("cannot read '", path, "'"));
  return contents.str();
}

absl::Status WriteFile(const std::string& path, std::string_view contents) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(contents.data(), static_cast<std::streamsize>(contents.size()));
  file.close();
  if (!file) return absl::UnavailableError(StrCat("cannot write '", path, "'"));
  return absl::OkStatus();
}

absl::StatusOr<Tensor> ReadTensorFile(const std::string& path) {
  TANDEM_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path));
  const std::string ending = std::filesystem::path(path).extension();
  if (ending == ".npy") {
    absl::StatusOr<Tensor> tensor = ReadNpy(bytes);
    if (!tensor.ok()) return Annotate(tensor.status(), path);
    return tensor;
  }
  if (ending == ".pb") {
    onnx::TensorProto proto;
    if (!proto.ParseFromString(bytes)) return InvalidArgument(path, ": not an ONNX TensorProto");
    return TensorFromProto(proto, path);
  }
  return InvalidArgument("'", path, "' ends in neither .npy nor .pb");
}

}  // namespace tandem::command

#include <filesystem>
#include <fstream>
#include <sstream>

#include "client/command/command.h"
#include "engine/formats/npy.h"
#include "engine/formats/onnx_tensor.h"

namespace tandem::command {

absl::StatusOr<std::pair<std::string, std::string>> SplitArgument(std::string_view option,
                                                                  const std::string& text,
                                                                  std::string_view form) {
  const size_t equals = text.find('=');
  if (equals != std::string::npos) {
    return std::make_pair(text.substr(0, equals), text.substr(equals + 1));
  }
  return InvalidArgument(option, "'", text, "' is not ", form);
}

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

v1::DataType ToProto(DType dtype) {
  // The proto's enumeration is the engine's, shifted by one for "unspecified".
  return static_cast<v1::DataType>(static_cast<int>(dtype) + 1);
}

v1::Tensor ToProto(const Tensor& tensor) {
  v1::Tensor out;
  out.set_dtype(ToProto(tensor.dtype()));
  for (int64_t dim : tensor.shape()) out.add_shape(dim);
  out.set_data(tensor.raw(), tensor.bytes());
  return out;
}

absl::StatusOr<Tensor> FromProto(const v1::Tensor& tensor) {
  if (tensor.dtype() < v1::DATA_TYPE_F32 || tensor.dtype() > v1::DATA_TYPE_BOOL) {
    return Internal("a tensor has the unknown dtype ", static_cast<int>(tensor.dtype()));
  }
  const auto dtype = static_cast<DType>(static_cast<int>(tensor.dtype()) - 1);
  TANDEM_ASSIGN_OR_RETURN(
      Shape shape, Shape::Checked({tensor.shape().data(), static_cast<size_t>(tensor.shape_size())},
                                  SizeOf(dtype), "tensor"));
  Tensor out(dtype, std::move(shape));
  if (out.bytes() != static_cast<int64_t>(tensor.data().size())) {
    return Internal("a tensor has the wrong number of bytes");
  }
  std::copy(tensor.data().begin(), tensor.data().end(), static_cast<char*>(out.raw()));
  return out;
}

}  // namespace tandem::command

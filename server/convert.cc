#include "server/convert.h"

#include <cmath>
#include <cstring>

namespace tandem::server {
namespace {

struct DTypePair {
  DType dtype;
  v1::DataType wire;
};
constexpr DTypePair kDTypes[] = {
    {DType::kF32, v1::DATA_TYPE_F32},  {DType::kF64, v1::DATA_TYPE_F64},
    {DType::kF16, v1::DATA_TYPE_F16},  {DType::kBF16, v1::DATA_TYPE_BF16},
    {DType::kI8, v1::DATA_TYPE_I8},    {DType::kI16, v1::DATA_TYPE_I16},
    {DType::kI32, v1::DATA_TYPE_I32},  {DType::kI64, v1::DATA_TYPE_I64},
    {DType::kU8, v1::DATA_TYPE_U8},    {DType::kU16, v1::DATA_TYPE_U16},
    {DType::kU32, v1::DATA_TYPE_U32},  {DType::kU64, v1::DATA_TYPE_U64},
    {DType::kBool, v1::DATA_TYPE_BOOL}};

}  // namespace

absl::StatusOr<DType> FromProto(v1::DataType dtype, std::string_view what) {
  for (const DTypePair& pair : kDTypes) {
    if (pair.wire == dtype) return pair.dtype;
  }
  return InvalidArgument(what, ": dtype ", static_cast<int>(dtype), " is not a known DataType");
}

v1::DataType ToProto(DType dtype) {
  for (const DTypePair& pair : kDTypes) {
    if (pair.dtype == dtype) return pair.wire;
  }
  return v1::DATA_TYPE_UNSPECIFIED;
}

absl::StatusOr<Tensor> TensorFromBytes(DType dtype, std::span<const int64_t> dims,
                                       std::string_view bytes, std::string_view what) {
  TANDEM_ASSIGN_OR_RETURN(Shape shape, Shape::Checked(dims, SizeOf(dtype), what));
  TensorType type{dtype, std::move(shape)};
  if (static_cast<int64_t>(bytes.size()) != type.bytes()) {
    return InvalidArgument(what, ": ", type.ToString(), " needs ", type.bytes(), " bytes, got ",
                           bytes.size());
  }
  if (dtype == DType::kBool) {
    for (size_t i = 0; i < bytes.size(); ++i) {
      const auto value = static_cast<uint8_t>(bytes[i]);
      if (value > 1) {
        return InvalidArgument(what, ": bool element ", i, " is ", static_cast<int>(value),
                               ", expected 0 or 1");
      }
    }
  }
  Tensor tensor(std::move(type));
  if (!bytes.empty()) std::memcpy(tensor.raw(), bytes.data(), bytes.size());
  return tensor;
}

absl::StatusOr<Tensor> FromProto(const v1::Tensor& tensor, std::string_view what) {
  TANDEM_ASSIGN_OR_RETURN(const DType dtype, FromProto(tensor.dtype(), what));
  return TensorFromBytes(dtype, {tensor.shape().data(), static_cast<size_t>(tensor.shape_size())},
                         tensor.data(), what);
}

v1::Tensor ToProto(const Tensor& tensor) {
  v1::Tensor out;
  out.set_dtype(ToProto(tensor.dtype()));
  for (int64_t dim : tensor.shape()) out.add_shape(dim);
  out.set_data(tensor.raw(), tensor.bytes());
  return out;
}

void ToProto(const IoSpec& spec, v1::TensorSpec* out) {
  out->set_name(spec.name);
  out->set_dtype(ToProto(spec.dtype));
  for (int64_t dim : spec.dims) out->add_shape(dim);
}

absl::Status CheckFinite(double value, std::string_view field) {
  if (std::isfinite(value)) return absl::OkStatus();
  return InvalidArgument(field, " is ", value, ", expected a finite number");
}

}  // namespace tandem::server

#include "engine/formats/onnx_tensor.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <utility>

#include "engine/base/error.h"

namespace tandem {
namespace {

static_assert(std::endian::native == std::endian::little, "raw_data is little-endian");

using onnx::TensorProto;

struct TypePair {
  int32_t onnx;
  DType dtype;
};
constexpr TypePair kTypes[] = {
    {TensorProto::FLOAT, DType::kF32},   {TensorProto::DOUBLE, DType::kF64},
    {TensorProto::FLOAT16, DType::kF16}, {TensorProto::BFLOAT16, DType::kBF16},
    {TensorProto::INT8, DType::kI8},     {TensorProto::INT16, DType::kI16},
    {TensorProto::INT32, DType::kI32},   {TensorProto::INT64, DType::kI64},
    {TensorProto::UINT8, DType::kU8},    {TensorProto::UINT16, DType::kU16},
    {TensorProto::UINT32, DType::kU32},  {TensorProto::UINT64, DType::kU64},
    {TensorProto::BOOL, DType::kBool},
};

// How many values each data field holds; only one of them may hold any.
struct FieldSizes {
  int64_t raw, floats, int32s, int64s, doubles, uint64s, strings;
  int64_t filled() const {
    return (raw > 0) + (floats > 0) + (int32s > 0) + (int64s > 0) + (doubles > 0) + (uint64s > 0) +
           (strings > 0);
  }
};

FieldSizes SizesOf(const TensorProto& proto) {
  return {static_cast<int64_t>(proto.raw_data().size()),
          proto.float_data_size(),
          proto.int32_data_size(),
          proto.int64_data_size(),
          proto.double_data_size(),
          proto.uint64_data_size(),
          proto.string_data_size()};
}

// Values of one of the typed fields, narrowed to T; an integer that does not fit is an error, save
// in the fields that hold the bits of 16-bit floats.
template <typename T, typename Field>
absl::Status CopyField(const Field& field, std::string_view what, Tensor& tensor) {
  std::span<T> out = tensor.data<T>();
  for (int64_t i = 0; i < tensor.num_elements(); ++i) {
    const auto value = field.Get(static_cast<int>(i));
    if constexpr (std::is_same_v<T, F16> || std::is_same_v<T, BF16>) {
      if (value < 0 || value > 0xffff) {
        return InvalidArgument(what, ": ", value, " is not the bits of a 16-bit float");
      }
      out[i].bits = static_cast<uint16_t>(value);
    } else if constexpr (std::is_same_v<T, bool>) {
      out[i] = value != 0;
    } else {
      out[i] = static_cast<T>(value);
      if constexpr (std::is_integral_v<T>) {
        if (!std::in_range<T>(value)) {
          return InvalidArgument(what, ": ", value, " does not fit ", DTypeName(TypeOf<T>()));
        }
      }
    }
  }
  return absl::OkStatus();
}

// The number of values in the field that ONNX prescribes for the dtype.
int64_t TypedCount(DType dtype, const FieldSizes& sizes) {
  switch (dtype) {
    case DType::kF32:
      return sizes.floats;
    case DType::kF64:
      return sizes.doubles;
    case DType::kI64:
      return sizes.int64s;
    case DType::kU32:
    case DType::kU64:
      return sizes.uint64s;
    default:
      return sizes.int32s;
  }
}

absl::Status CopyTyped(const TensorProto& proto, std::string_view what, Tensor& tensor) {
  switch (tensor.dtype()) {
    case DType::kF32:
      return CopyField<float>(proto.float_data(), what, tensor);
    case DType::kF64:
      return CopyField<double>(proto.double_data(), what, tensor);
    case DType::kF16:
      return CopyField<F16>(proto.int32_data(), what, tensor);
    case DType::kBF16:
      return CopyField<BF16>(proto.int32_data(), what, tensor);
    case DType::kI8:
      return CopyField<int8_t>(proto.int32_data(), what, tensor);
    case DType::kI16:
      return CopyField<int16_t>(proto.int32_data(), what, tensor);
    case DType::kI32:
      return CopyField<int32_t>(proto.int32_data(), what, tensor);
    case DType::kI64:
      return CopyField<int64_t>(proto.int64_data(), what, tensor);
    case DType::kU8:
      return CopyField<uint8_t>(proto.int32_data(), what, tensor);
    case DType::kU16:
      return CopyField<uint16_t>(proto.int32_data(), what, tensor);
    case DType::kU32:
      return CopyField<uint32_t>(proto.uint64_data(), what, tensor);
    case DType::kU64:
      return CopyField<uint64_t>(proto.uint64_data(), what, tensor);
    case DType::kBool:
      return CopyField<bool>(proto.int32_data(), what, tensor);
  }
  return Internal(what, ": unknown dtype");
}

}  // namespace

absl::StatusOr<DType> DTypeFromOnnx(int32_t data_type, std::string_view what) {
  for (const TypePair& pair : kTypes) {
    if (pair.onnx == data_type) return pair.dtype;
  }
  if (data_type == TensorProto::UNDEFINED) return InvalidArgument(what, ": no element type");
  // 8 string, 14 and 15 complex, 17 and above 8-bit, 4-bit and 2-bit types of later IR versions.
  constexpr int32_t kLastKnown = 26;
  if (data_type < 0 || data_type > kLastKnown) {
    return InvalidArgument(what, ": unknown element type ", data_type);
  }
  const std::string name =
      onnx::TensorProto_DataType_IsValid(data_type)
          ? onnx::TensorProto_DataType_Name(static_cast<onnx::TensorProto_DataType>(data_type))
          : StrCat("number ", data_type);
  return Unimplemented(what, ": element type ", name, " is not supported");
}

int32_t DTypeToOnnx(DType dtype) {
  for (const TypePair& pair : kTypes) {
    if (pair.dtype == dtype) return pair.onnx;
  }
  return TensorProto::UNDEFINED;
}

absl::StatusOr<Tensor> TensorFromProto(const TensorProto& proto, std::string_view what) {
  TANDEM_ASSIGN_OR_RETURN(const DType dtype, DTypeFromOnnx(proto.data_type(), what));
  if (proto.data_location() == TensorProto::EXTERNAL || proto.external_data_size() > 0) {
    return Unimplemented(what,
                         ": its data is in an external file, which is not supported; save the "
                         "model as one file");
  }
  if (proto.has_segment()) return Unimplemented(what, ": tensor segments are not supported");
  const std::span<const int64_t> dims(proto.dims().data(), static_cast<size_t>(proto.dims_size()));
  TANDEM_ASSIGN_OR_RETURN(const Shape shape, Shape::Checked(dims, SizeOf(dtype), what));
  const FieldSizes sizes = SizesOf(proto);
  if (sizes.filled() > 1) {
    return InvalidArgument(what, ": values in more than one data field (raw_data has ", sizes.raw,
                           " bytes)");
  }
  const int64_t count = shape.num_elements();
  if (sizes.raw > 0 || (proto.has_raw_data() && sizes.filled() == 0)) {
    const int64_t expected = count * SizeOf(dtype);
    if (sizes.raw != expected) {
      return InvalidArgument(what, ": ", DTypeName(dtype), shape.ToString(), " needs ", expected,
                             " bytes of raw_data, there are ", sizes.raw);
    }
    Tensor tensor(dtype, shape);
    std::memcpy(tensor.raw(), proto.raw_data().data(), static_cast<size_t>(sizes.raw));
    if (dtype == DType::kBool) {  // any other byte in a C++ bool is undefined behaviour
      auto* bytes = static_cast<uint8_t*>(tensor.raw());
      std::transform(bytes, bytes + count, bytes, [](uint8_t byte) { return byte != 0; });
    }
    return tensor;
  }
  const int64_t found = TypedCount(dtype, sizes);
  if (found != count) {
    return InvalidArgument(what, ": ", DTypeName(dtype), shape.ToString(), " needs ", count,
                           " values, there are ", found);
  }
  Tensor tensor(dtype, shape);
  TANDEM_RETURN_IF_ERROR(CopyTyped(proto, what, tensor));
  return tensor;
}

void TensorToProto(const Tensor& tensor, std::string_view name, TensorProto* proto) {
  proto->Clear();
  proto->set_name(std::string(name));
  proto->set_data_type(DTypeToOnnx(tensor.dtype()));
  for (const int64_t dim : tensor.shape()) proto->add_dims(dim);
  proto->set_raw_data(tensor.raw(), static_cast<size_t>(tensor.bytes()));
}

}  // namespace tandem

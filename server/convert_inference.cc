#include "server/convert_inference.h"

#include <limits>
#include <set>

#include "absl/strings/match.h"
#include "server/convert.h"

namespace tandem::server {
namespace {

using Contents = inference::InferTensorContents;

struct Datatype {
  DType dtype;
  std::string_view name;
};
constexpr Datatype kDatatypes[] = {
    {DType::kBool, "BOOL"},  {DType::kU8, "UINT8"},   {DType::kU16, "UINT16"},
    {DType::kU32, "UINT32"}, {DType::kU64, "UINT64"}, {DType::kI8, "INT8"},
    {DType::kI16, "INT16"},  {DType::kI32, "INT32"},  {DType::kI64, "INT64"},
    {DType::kF16, "FP16"},   {DType::kBF16, "BF16"},  {DType::kF32, "FP32"},
    {DType::kF64, "FP64"}};

// "seed", and keys that the protocol and its clients reserve, which ask for nothing that changes
// the answer here.
bool IsReserved(const std::string& key) {
  return key == "seed" || key == "priority" || key == "timeout" || key == "headers" ||
         key == "binary_data_output" || absl::StartsWith(key, "sequence_") ||
         absl::StartsWith(key, "triton_");
}
bool IsReservedForTensor(const std::string& key) {
  return key == "binary_data" || key == "binary_data_size";
}

template <typename Map, typename Allowed>
absl::Status CheckParameters(const Map& parameters, Allowed allowed, std::string_view what) {
  for (const auto& [key, value] : parameters) {
    if (!allowed(key)) return InvalidArgument(what, " '", key, "' is not supported");
  }
  return absl::OkStatus();
}

// The name of a field of `contents` that is filled though it is not `expected`, or empty.
std::string_view OtherField(const Contents& contents, std::string_view expected) {
  const std::pair<std::string_view, int> sizes[] = {
      {"bool_contents", contents.bool_contents_size()},
      {"int_contents", contents.int_contents_size()},
      {"int64_contents", contents.int64_contents_size()},
      {"uint_contents", contents.uint_contents_size()},
      {"uint64_contents", contents.uint64_contents_size()},
      {"fp32_contents", contents.fp32_contents_size()},
      {"fp64_contents", contents.fp64_contents_size()},
      {"bytes_contents", contents.bytes_contents_size()}};
  for (const auto& [name, size] : sizes) {
    if (size != 0 && name != expected) return name;
  }
  return {};
}

// Elements of T from the field that carries them; narrower integers are checked for range.
template <typename T, typename Values>
absl::StatusOr<Tensor> FromContents(const Contents& contents, const Values& values,
                                    std::string_view field, const Shape& shape,
                                    std::string_view what) {
  if (const std::string_view other = OtherField(contents, field); !other.empty()) {
    return InvalidArgument(what, ": elements are in ", other, ", expected ", field);
  }
  if (values.size() != shape.num_elements()) {
    return InvalidArgument(what, ": shape ", shape.ToString(), " needs ", shape.num_elements(),
                           " elements, ", field, " has ", values.size());
  }
  Tensor tensor(TypeOf<T>(), shape);
  const std::span<T> out = tensor.data<T>();
  for (int i = 0; i < values.size(); ++i) {
    const auto value = values[i];
    if constexpr (std::is_integral_v<T> && sizeof(T) < sizeof(value)) {
      if (value < std::numeric_limits<T>::min() || value > std::numeric_limits<T>::max()) {
        return InvalidArgument(what, ": ", field, "[", i, "] is ", value, ", out of range");
      }
    }
    out[i] = static_cast<T>(value);
  }
  return tensor;
}

absl::StatusOr<Tensor> TypedInput(DType dtype, const Shape& shape, const Contents& c,
                                  std::string_view what) {
  switch (dtype) {
    case DType::kBool:
      return FromContents<bool>(c, c.bool_contents(), "bool_contents", shape, what);
    case DType::kI8:
      return FromContents<int8_t>(c, c.int_contents(), "int_contents", shape, what);
    case DType::kI16:
      return FromContents<int16_t>(c, c.int_contents(), "int_contents", shape, what);
    case DType::kI32:
      return FromContents<int32_t>(c, c.int_contents(), "int_contents", shape, what);
    case DType::kI64:
      return FromContents<int64_t>(c, c.int64_contents(), "int64_contents", shape, what);
    case DType::kU8:
      return FromContents<uint8_t>(c, c.uint_contents(), "uint_contents", shape, what);
    case DType::kU16:
      return FromContents<uint16_t>(c, c.uint_contents(), "uint_contents", shape, what);
    case DType::kU32:
      return FromContents<uint32_t>(c, c.uint_contents(), "uint_contents", shape, what);
    case DType::kU64:
      return FromContents<uint64_t>(c, c.uint64_contents(), "uint64_contents", shape, what);
    case DType::kF32:
      return FromContents<float>(c, c.fp32_contents(), "fp32_contents", shape, what);
    case DType::kF64:
      return FromContents<double>(c, c.fp64_contents(), "fp64_contents", shape, what);
    case DType::kF16:
    case DType::kBF16:
      break;
  }
  return InvalidArgument(what, ": ", DatatypeName(dtype),
                         " has no contents field, it needs raw_input_contents");
}

}  // namespace

std::string_view DatatypeName(DType dtype) {
  for (const Datatype& datatype : kDatatypes) {
    if (datatype.dtype == dtype) return datatype.name;
  }
  return "";
}

absl::StatusOr<DType> DatatypeFromName(std::string_view name, std::string_view what) {
  for (const Datatype& datatype : kDatatypes) {
    if (datatype.name == name) return datatype.dtype;
  }
  if (name == "BYTES") return Unimplemented(what, ": datatype BYTES is not supported");
  return InvalidArgument(what, ": datatype '", name, "' is not known");
}

absl::StatusOr<std::optional<uint64_t>> SeedFromProto(const inference::ModelInferRequest& request) {
  const auto it = request.parameters().find("seed");
  if (it == request.parameters().end()) return std::optional<uint64_t>();
  const auto& value = it->second;
  if (value.has_uint64_param()) return std::optional<uint64_t>(value.uint64_param());
  if (!value.has_int64_param() || value.int64_param() < 0) {
    return InvalidArgument("parameter 'seed' must be an integer of at least 0");
  }
  return std::optional<uint64_t>(static_cast<uint64_t>(value.int64_param()));
}

absl::StatusOr<NamedTensors> InputsFromProto(const inference::ModelInferRequest& request) {
  TANDEM_RETURN_IF_ERROR(CheckParameters(request.parameters(), IsReserved, "parameter"));
  const bool raw = request.raw_input_contents_size() != 0;
  if (raw && request.raw_input_contents_size() != request.inputs_size()) {
    return InvalidArgument("raw_input_contents has ", request.raw_input_contents_size(),
                           " entries for ", request.inputs_size(), " inputs");
  }
  NamedTensors inputs;
  std::set<std::string> names;
  for (int i = 0; i < request.inputs_size(); ++i) {
    const auto& input = request.inputs(i);
    const std::string what = StrCat("input '", input.name(), "'");
    if (!names.insert(input.name()).second) return InvalidArgument(what, " is given twice");
    TANDEM_RETURN_IF_ERROR(
        CheckParameters(input.parameters(), IsReservedForTensor, StrCat(what, ": parameter")));
    TANDEM_ASSIGN_OR_RETURN(const DType dtype, DatatypeFromName(input.datatype(), what));
    const std::span<const int64_t> dims(input.shape().data(),
                                        static_cast<size_t>(input.shape_size()));
    if (raw) {
      if (input.has_contents()) {
        return InvalidArgument(what, " has contents beside raw_input_contents");
      }
      TANDEM_ASSIGN_OR_RETURN(Tensor tensor,
                              TensorFromBytes(dtype, dims, request.raw_input_contents(i), what));
      inputs.emplace_back(input.name(), std::move(tensor));
    } else {
      TANDEM_ASSIGN_OR_RETURN(const Shape shape, Shape::Checked(dims, SizeOf(dtype), what));
      TANDEM_ASSIGN_OR_RETURN(Tensor tensor, TypedInput(dtype, shape, input.contents(), what));
      inputs.emplace_back(input.name(), std::move(tensor));
    }
  }
  return inputs;
}

absl::StatusOr<std::vector<int>> RequestedOutputs(const inference::ModelInferRequest& request,
                                                  const std::vector<IoSpec>& outputs) {
  std::vector<int> wanted;
  if (request.outputs_size() == 0) {
    for (size_t i = 0; i < outputs.size(); ++i) wanted.push_back(static_cast<int>(i));
    return wanted;
  }
  std::set<std::string> names;
  for (const auto& output : request.outputs()) {
    const std::string what = StrCat("output '", output.name(), "'");
    if (!names.insert(output.name()).second) return InvalidArgument(what, " is requested twice");
    TANDEM_RETURN_IF_ERROR(
        CheckParameters(output.parameters(), IsReservedForTensor, StrCat(what, ": parameter")));
    int found = -1;
    std::string known;
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (outputs[i].name == output.name()) found = static_cast<int>(i);
      known += StrCat(i == 0 ? "'" : ", '", outputs[i].name, "'");
    }
    if (found < 0) {
      return InvalidArgument("model '", request.model_name(), "' has no ", what, "; it has ",
                             known);
    }
    wanted.push_back(found);
  }
  return wanted;
}

void AddOutput(const std::string& name, const Tensor& tensor,
               inference::ModelInferResponse* response) {
  auto* output = response->add_outputs();
  output->set_name(name);
  output->set_datatype(std::string(DatatypeName(tensor.dtype())));
  for (int64_t dim : tensor.shape()) output->add_shape(dim);
  response->add_raw_output_contents(tensor.raw(), tensor.bytes());
}

void ToProto(const IoSpec& spec, inference::ModelMetadataResponse::TensorMetadata* out) {
  out->set_name(spec.name);
  out->set_datatype(std::string(DatatypeName(spec.dtype)));
  for (int64_t dim : spec.dims) out->add_shape(dim);
}

}  // namespace tandem::server

// onnx::TensorProto to Tensor and back.
#pragma once

#include <string_view>

#include "engine/formats/onnx_proto.h"
#include "engine/tensor/tensor.h"

namespace tandem {

// The dtype of an ONNX element type. Errors: Unimplemented for the types that have none here
// (strings, complex, 8- and 4-bit floats, 4-bit integers), InvalidArgument for no type at all;
// `what` begins the message.
absl::StatusOr<DType> DTypeFromOnnx(int32_t data_type, std::string_view what);
int32_t DTypeToOnnx(DType dtype);

// Nothing is allocated from the declared dimensions before the data is seen to fill them exactly.
// Errors: external data, segments, sizes that disagree, values in the wrong field.
absl::StatusOr<Tensor> TensorFromProto(const onnx::TensorProto& proto, std::string_view what);
// As raw_data.
void TensorToProto(const Tensor& tensor, std::string_view name, onnx::TensorProto* proto);

}  // namespace tandem

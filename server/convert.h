// Between messages of the wire and the engine's types. Everything from a client is checked here:
// sizes before memory is allocated, enumerations, numbers that are not finite. Errors name the
// field.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "engine/exec/model.h"
#include "tandem/v1/models.pb.h"
#include "tandem/v1/tensor.pb.h"

namespace tandem::server {

absl::StatusOr<DType> FromProto(v1::DataType dtype, std::string_view what);
v1::DataType ToProto(DType dtype);

// `what` begins error messages: "tensor 'x'".
absl::StatusOr<Tensor> FromProto(const v1::Tensor& tensor, std::string_view what);
v1::Tensor ToProto(const Tensor& tensor);
void ToProto(const IoSpec& spec, v1::TensorSpec* out);

// A tensor of untrusted bytes: a valid shape, exactly its bytes, and only 0 and 1 in a bool.
absl::StatusOr<Tensor> TensorFromBytes(DType dtype, std::span<const int64_t> dims,
                                       std::string_view bytes, std::string_view what);

// An optional float or double of a request, finite or refused.
absl::Status CheckFinite(double value, std::string_view field);

}  // namespace tandem::server

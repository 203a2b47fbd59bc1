// The Open Inference Protocol's messages, to and from the engine (see convert.h).
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/exec/model.h"
#include "inference/open_inference.pb.h"

namespace tandem::server {

// "FP32", "INT64", "BOOL" ...
std::string_view DatatypeName(DType dtype);
// Errors: BYTES, which this engine has no tensors of, and names that the protocol does not know.
absl::StatusOr<DType> DatatypeFromName(std::string_view name, std::string_view what);

using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

// The inputs, from raw_input_contents or from each input's contents, never both. Parameters that
// the protocol or its clients reserve, and "seed", are let through; any other is an error that
// names it.
absl::StatusOr<NamedTensors> InputsFromProto(const inference::ModelInferRequest& request);

// The request's parameter "seed", which fixes the draws of a graph's random nodes; none: they
// differ at each call.
absl::StatusOr<std::optional<uint64_t>> SeedFromProto(const inference::ModelInferRequest& request);

// The outputs that the request wants, all if it names none, in its order, as indices of `outputs`.
absl::StatusOr<std::vector<int>> RequestedOutputs(const inference::ModelInferRequest& request,
                                                  const std::vector<IoSpec>& outputs);

// Appends one output with its raw bytes.
void AddOutput(const std::string& name, const Tensor& tensor,
               inference::ModelInferResponse* response);

void ToProto(const IoSpec& spec, inference::ModelMetadataResponse::TensorMetadata* out);

}  // namespace tandem::server

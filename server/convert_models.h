// Messages about models, to and from the engine (see convert.h).
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "engine/exec/model_analysis.h"
#include "engine/nn/activations.h"
#include "server/model_store.h"
#include "tandem/v1/models.pb.h"

namespace tandem::server {

// A decoder's configuration with the documented defaults where fields are unset.
absl::StatusOr<NewDecoder> FromProto(const v1::DecoderConfig& config, uint64_t seed);

// The types of a model's inputs for an analysis: the sizes that the request names, else 1 for each
// variable size, or 16 tokens of a language model.
absl::StatusOr<std::vector<TensorType>> InputTypes(const v1::AnalyzeModelRequest& request,
                                                   const GraphSource& source);
void ToProto(const GraphSource& source, const std::vector<TensorType>& inputs,
             const ModelAnalysis& analysis, v1::AnalyzeModelResponse* out);
void ToProto(const MeasuredTime& time, v1::AnalyzeModelResponse* out);
void ToProto(const MeasuredField& field, v1::AnalyzeModelResponse::Verification* out);

v1::Precision ToProto(Precision precision);
// Unspecified: none.
absl::StatusOr<std::optional<Precision>> FromProto(v1::Precision precision);
// Opens the device, if one is named, which may take seconds. Errors as FindBackend's.
absl::StatusOr<Placement> ToPlacement(v1::Precision precision, const std::string& device);

v1::ParameterRole ToProto(ParameterRole role);
absl::StatusOr<ParameterRole> FromProto(v1::ParameterRole role, std::string_view what);
void ToProto(const ParameterInfo& info, v1::Parameter* out);

// The activations that the request names, with parameters; checks everything in it but their
// ranges.
struct ActivationRequest {
  std::vector<const Activation*> activations;
  std::vector<std::vector<double>> parameters;  // of each
  std::vector<float> x;
};
absl::StatusOr<ActivationRequest> FromProto(const v1::ListActivationsRequest& request);
// Runs them; compute thread.
absl::Status Fill(const ActivationRequest& request, v1::ListActivationsResponse* response);

// Compute thread only, as it reads what is the compute thread's.
void ToProto(const ModelEntry& entry, bool with_hash, v1::Model* out);

}  // namespace tandem::server

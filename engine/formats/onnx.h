// ONNX models: the file's bytes to a graph source with parameters, and back.
//
// Which initializers are trained: those of f32, f16 or bf16 and at least one dimension that some
// operator uses as a weight. Constants stay what the file says: other dtypes; scalars; values that
// decide shapes; and settings, such as a BatchNormalization's running statistics, a Clip's limits
// or a Pow's exponent. Values inside Constant nodes are constants too.
//
// f16 and bf16 models are computed in f32: inputs are widened, outputs rounded.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/formats/loaded_model.h"

namespace tandem {

class OnnxSource : public GraphSource {
 public:
  // The file's bytes with the parameters' current values in their initializers (in the file's
  // dtype) and everything else as it was. Errors: parameters not of this source; above protobuf's 2
  // GB.
  virtual absl::StatusOr<std::string> Serialize(const ParameterStore& parameters) const = 0;

  // Inputs that decide shapes (a Reshape's target ...): Build() needs constants for these.
  virtual const std::vector<bool>& shape_inputs() const = 0;
};

struct LoadedOnnx {
  std::shared_ptr<const OnnxSource> source;
  ParameterStore parameters;
};

// Reads a model from untrusted bytes. Nothing outside them is read. Errors: InvalidArgument for a
// malformed or inconsistent model, Unimplemented for what this engine does not have, naming node,
// operator, domain and attribute.
absl::StatusOr<LoadedOnnx> LoadOnnx(std::string_view bytes);

// The model as ONNX bytes; `source` must come from LoadOnnx.
absl::StatusOr<std::string> SerializeOnnx(const GraphSource& source,
                                          const ParameterStore& parameters);

}  // namespace tandem

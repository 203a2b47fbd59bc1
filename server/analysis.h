// What a model's forward graph costs, layer by layer, for given input sizes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/exec/model.h"

namespace tandem::server {

struct LayerAnalysis {
  std::string name;
  std::string op;
  Shape output_shape;        // of the first output
  int64_t parameters = 0;    // elements of the parameters that it reads
  double flops = 0;          // a multiply-add counts as two
  int64_t output_bytes = 0;  // of all outputs
  // How much of the input one output position sees along each spatial dimension, and how far apart
  // two neighbours look (Dumoulin and Visin 2016, section 5): for chains that begin with a
  // convolution or a pool, else empty.
  std::vector<int64_t> receptive_field, stride;
};

struct ModelAnalysis {
  std::vector<LayerAnalysis> layers;
  int64_t parameters = 0, bias_parameters = 0;  // elements
  double flops = 0;
  int64_t activation_bytes = 0;    // of all outputs
  int64_t forward_peak_bytes = 0;  // what a forward pass needs for intermediate values
};

// Builds and plans the forward graph for inputs of these types, in source.inputs() order. Touches
// no weights: any thread may call it. Errors: what Build and Plan::Compile say.
absl::StatusOr<ModelAnalysis> Analyze(const GraphSource& source,
                                      const std::vector<TensorType>& inputs);

}  // namespace tandem::server

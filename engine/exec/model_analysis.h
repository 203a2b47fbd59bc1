// What a model costs for given input sizes: its forward graph layer by layer (graph/analysis.h),
// the memory that forward passes and training need, and, measured on the model itself, the time of
// each layer and the receptive field that gradients show.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/exec/model.h"
#include "engine/graph/analysis.h"

namespace tandem {

struct ModelAnalysis {
  GraphCost cost;          // of the graph that a plan runs, after the passes
  int spatial_input = -1;  // index of the input that receptive fields are on; -1: none
  int64_t parameters = 0, bias_parameters = 0;  // elements
  int64_t parameter_bytes = 0;                  // as f32
  int64_t forward_peak_bytes = 0;  // what a forward pass needs for intermediate values and scratch
  // The same for forward and backward pass with a loss on the first output (mean squares, or
  // cross-entropy of a language model's tokens) and gradients of all parameters; what training then
  // keeps besides (gradients, Adam's moments, the decay mask). Absent: training_error says why.
  int64_t training_peak_bytes = 0, training_state_bytes = 0;
  absl::Status training_error;
};

// Builds and plans the graphs for inputs of these types, in source.inputs() order. Touches no
// weights: any thread may call it. Errors: what Build and Plan::Compile say.
absl::StatusOr<ModelAnalysis> AnalyzeModel(const GraphSource& source,
                                           const std::vector<TensorType>& inputs);

// Seconds of each layer of AnalyzeModel(model.source(), inputs), the mean of a few forward passes
// on made-up inputs. Compute thread only. RESOURCE_EXHAUSTED: the inputs and the plan are too
// large.
struct MeasuredTime {
  std::vector<double> layer_seconds;
  // Of each, as the model's device runs it: the layers of AnalyzeModel, unless the device lowers
  // other operators than the CPU does, or fuses some.
  std::vector<std::string> layer_ops;
  int repetitions = 0;
};
absl::StatusOr<MeasuredTime> MeasureTime(Model& model, const std::vector<TensorType>& inputs);

// Which input positions have a gradient of one output position that is not zero, beside those that
// the recursion names.
struct MeasuredField {
  int32_t layer = -1;             // of the analysis; its first output is what is differentiated
  std::vector<int64_t> position;  // in the middle of the output, one a spatial dimension
  // Bounds, both included, within the input; low > high: no gradient at all.
  std::vector<int64_t> expected_low, expected_high, measured_low, measured_high;
  bool agrees() const { return expected_low == measured_low && expected_high == measured_high; }
};

// Of the last layer whose field is a window (layer = -1: of that one). The gradient of the sum over
// everything but the spatial position is taken for several inputs, rising and falling along each
// dimension so that maxima move, and random: what shows in any counts. With the model's own
// weights, zeros among them may show less than the recursion allows. Compute thread only. Errors:
// FAILED_PRECONDITION where no layer has a window; what Gradient says.
absl::StatusOr<MeasuredField> MeasureReceptiveField(Model& model,
                                                    const std::vector<TensorType>& inputs,
                                                    int32_t layer = -1);

}  // namespace tandem

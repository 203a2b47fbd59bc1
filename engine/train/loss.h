// Losses: from a batch to the graph's inputs, and from a model's outputs to one loss an element.
//
// The graph computes the unreduced losses; reduction happens outside, in double, and reaches the
// gradient as the cotangent of the losses (weight_i x scale). So one plan serves every reduction
// and every set of weights. A loss that is not a mean over the batch is one element.
#pragma once

#include <string>
#include <vector>

#include "engine/train/trainer.h"

namespace tandem {

// A checked batch, ready to bind: names and types follow the order of the graph's inputs.
struct LossInputs {
  bool packed = false;                // token sequences
  std::vector<Tensor> owned;          // what the batch did not hold in the right form
  std::vector<const Tensor*> inputs;  // the model's inputs, then the target
  std::vector<float> weights;         // (elements) of the losses; empty: ones
  int64_t sequences = 0;              // packed: S
  bool class_targets = false;         // the target's elements are class indices
};

// The objective's own values, and that the model has the output it names.
absl::Status CheckObjective(const Model& model, const Objective& objective);

// Checks names, types, sizes and token ranges; errors name the tensor or the sequence and position.
absl::StatusOr<LossInputs> PrepareBatch(const Model& model, const Objective& objective,
                                        const Batch& batch);

// Adds inputs of those types to the builder and the losses, of any shape, computed from them.
absl::StatusOr<Value> BuildLosses(Builder& builder, const Model& model, const Objective& objective,
                                  const LossInputs& inputs);

// Part of a plan's key: everything of the objective and the inputs that shapes the graph.
std::string LossKey(const Objective& objective, const LossInputs& inputs);

// Reduces losses (elements) as the objective says; fills all of the report but the time.
LossReport ReduceLosses(const Objective& objective, const LossInputs& inputs, const Tensor& losses);

}  // namespace tandem

// Trainer: loss, gradients and optimizer over a Model, in place.
//
// Every method runs on the compute thread. Parameters, gradients and optimizer state are flat
// arrays of one layout (ParameterStore), so an optimizer step is one pass.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/exec/device_tensor.h"
#include "engine/exec/model.h"
#include "engine/ops/ops.h"

namespace tandem {

// kSoftAccuracy, kSoftF1: 1 - the smooth metric of metrics.h; F1 (macro) is one loss for the batch.
enum class Loss : uint8_t {
  kCrossEntropy,
  kMse,
  kL1,
  kHuber,
  kBceWithLogits,
  kGraphOutput,
  kSoftAccuracy,
  kSoftF1
};
enum class Reduction : uint8_t { kMean, kSum };

struct Objective {
  Loss loss = Loss::kCrossEntropy;
  Reduction reduction = Reduction::kMean;
  std::string output;             // empty: the only one
  std::string target = "target";  // the batch's tensor to compare with
  double huber_delta = 1;
  double temperature = 1;  // kSoftAccuracy, kSoftF1
};

// kAdamW decays the weights themselves; kAdam and kSgd add weight_decay times them to the gradient.
enum class OptimizerKind : uint8_t { kAdamW, kAdam, kSgd };

struct OptimizerOptions {
  OptimizerKind kind = OptimizerKind::kAdamW;
  double learning_rate = 1e-3, weight_decay = 0.01;
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;  // kAdamW, kAdam
  double momentum = 0;                                // kSgd; 0: none
  bool nesterov = false;                              // kSgd; needs momentum
  double max_grad_norm = 0;                           // 0: no clipping
  // Weight decay applies to every parameter but: those of fewer than two dimensions, unless
  // decay_vectors; those of these roles; those of these names (exact, or prefixes ending in '*').
  bool decay_vectors = false;
  std::vector<ParameterRole> no_decay_roles;
  std::vector<std::string> no_decay;
  absl::Status Validate() const;
};

// The loss is multiplied by a scale before the backward pass and the gradients are divided by it
// again, so that f16 gradients do not vanish. PyTorch's GradScaler: after growth_interval steps
// without overflow the scale is multiplied by growth_factor; a step whose gradients are not finite
// is skipped, and multiplies it by backoff_factor.
struct LossScaling {
  enum class Mode : uint8_t { kNone, kStatic, kDynamic };
  Mode mode = Mode::kNone;
  double initial_scale = 65536;  // kStatic: of every step
  double growth_factor = 2, backoff_factor = 0.5;
  int64_t growth_interval = 2000;
  absl::Status Validate() const;
};

struct TokenSequence {
  std::vector<int32_t> tokens;
  std::vector<int32_t> targets;  // -1: not trained. Empty: the next token, none for the last
  std::vector<float> weights;    // empty: ones
};

struct Batch {
  std::vector<std::pair<std::string, Tensor>> tensors;
  std::vector<TokenSequence> sequences;
};

struct LossReport {
  double loss = 0;  // reduced
  double loss_sum = 0, weight_sum = 0;
  int64_t tokens = 0;  // trained positions or loss elements
  // Cross-entropy: the log-probability of each target, one a position (packed sequences in order, 0
  // where there is no target) or a row.
  std::vector<float> logprobs;
  double seconds = 0;
};

struct StepReport {
  double grad_norm = 0;  // before clipping
  bool skipped = false;  // gradients not finite
  int64_t step = 0;
  double loss_scale = 1;  // of these gradients
  double seconds = 0;
};

class Trainer {
 public:
  // `frozen`: exact parameter names or prefixes ending in '*'; an entry that matches nothing is an
  // error, as is one of optimizer.no_decay. The model must outlive the trainer.
  static absl::StatusOr<std::unique_ptr<Trainer>> Create(Model* model, Objective objective,
                                                         OptimizerOptions optimizer,
                                                         const std::vector<std::string>& frozen,
                                                         const LossScaling& loss_scaling = {});
  // Adds the batch's gradients to the accumulated ones. Errors leave everything as it was.
  absl::StatusOr<LossReport> ForwardBackward(const Batch& batch);
  // Applies and clears the accumulated gradients. FAILED_PRECONDITION when there are none. One plan
  // over all parameters: norm, decision and update; the report is read when it has run.
  absl::StatusOr<StepReport> OptimStep();
  // Forgets the accumulated gradients.
  void DropGradients() { micro_step_ = 0; }
  // The loss of a batch, nothing changed; the model need not be in training. Random nodes draw the
  // same in every evaluation (seed 0, call 0).
  static absl::StatusOr<LossReport> Evaluate(Model* model, const Objective& objective,
                                             const Batch& batch);

  const Objective& objective() const { return objective_; }
  const OptimizerOptions& optimizer() const { return optimizer_; }
  absl::Status SetOptimizer(const OptimizerOptions& options);
  // Of the graph's random nodes (dropout, reparameterised draws). Each ForwardBackward draws by
  // (seed, optimizer steps so far, micro-batch), so that a training run that is resumed at that
  // point draws the same.
  void SetRandomSeed(uint64_t seed) { random_seed_ = seed; }
  uint64_t random_seed() const { return random_seed_; }
  const LossScaling& loss_scaling() const { return loss_scaling_; }
  double loss_scale() const { return state_[ops::kStateLossScale]; }  // of the next gradients
  int64_t step() const { return static_cast<int64_t>(state_[ops::kStateStep]); }
  int64_t skipped_steps() const { return static_cast<int64_t>(state_[ops::kStateSkipped]); }
  int64_t micro_step() const { return micro_step_; }
  int64_t trainable_parameters() const { return trainable_parameters_; }
  int64_t state_bytes() const;
  double last_loss() const { return last_loss_; }
  const std::vector<std::string>& frozen() const { return frozen_; }
  // Elements that weight decay applies to.
  int64_t decayed_parameters() const { return decayed_parameters_; }
  // The accumulated gradient of parameter i, times loss_scale() (tests and diagnostics).
  std::vector<float> gradient(int i) const;

 private:
  Trainer(Model* model, Objective objective, OptimizerOptions optimizer,
          std::vector<std::string> frozen, const LossScaling& loss_scaling);
  absl::Status SelectTrainable();
  absl::Status CompileStep();
  std::array<double, ops::kHyperCount> Hyperparameters() const;
  absl::Status CheckNoDecay(const std::vector<std::string>& patterns) const;
  bool Decays(const ParameterInfo& info) const;
  void FillDecay();

  Model* model_;
  Objective objective_;
  OptimizerOptions optimizer_;
  std::vector<std::string> frozen_;
  std::vector<int32_t> trainable_;  // parameter indices
  LossScaling loss_scaling_;
  // Flat, in the layout of ParameterStore; zero where a parameter is frozen or padding.
  DeviceTensor gradients_;                     // (P) f32
  DeviceTensor first_moment_, second_moment_;  // (P) f32; kSgd: the momentum buffer, and none
  DeviceTensor decay_;                         // (P) u8: 1 where weight decay applies
  // (P) f32, of the second and later micro-batches; made when needed
  DeviceTensor partial_gradients_;
  std::unique_ptr<Plan> add_plan_, step_plan_;
  std::array<double, ops::kStateCount> state_{};  // as ops::OptimizerControl has it
  int64_t micro_step_ = 0, trainable_parameters_ = 0, decayed_parameters_ = 0;
  uint64_t random_seed_ = 0;
  double last_loss_ = 0;
};

}  // namespace tandem

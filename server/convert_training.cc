#include "server/convert_training.h"

#include <cmath>
#include <set>

#include "engine/train/metrics.h"
#include "server/convert.h"
#include "server/convert_models.h"

namespace tandem::server {
namespace {

struct LossPair {
  Loss loss;
  v1::Loss wire;
};
constexpr LossPair kLosses[] = {{Loss::kCrossEntropy, v1::LOSS_CROSS_ENTROPY},
                                {Loss::kMse, v1::LOSS_MSE},
                                {Loss::kL1, v1::LOSS_L1},
                                {Loss::kHuber, v1::LOSS_HUBER},
                                {Loss::kBceWithLogits, v1::LOSS_BCE_WITH_LOGITS},
                                {Loss::kGraphOutput, v1::LOSS_GRAPH_OUTPUT},
                                {Loss::kSoftAccuracy, v1::LOSS_SOFT_ACCURACY},
                                {Loss::kSoftF1, v1::LOSS_SOFT_F1}};

bool HasTemperature(Loss loss) { return loss == Loss::kSoftAccuracy || loss == Loss::kSoftF1; }

absl::StatusOr<TokenSequence> FromProto(const v1::Sequence& sequence, std::string_view what) {
  const int tokens = sequence.tokens_size();
  if (tokens == 0) return InvalidArgument(what, ".tokens is empty");
  if (sequence.targets_size() != 0 && sequence.targets_size() != tokens) {
    return InvalidArgument(what, ".targets has ", sequence.targets_size(), " entries for ", tokens,
                           " tokens");
  }
  if (sequence.weights_size() != 0 && sequence.weights_size() != tokens) {
    return InvalidArgument(what, ".weights has ", sequence.weights_size(), " entries for ", tokens,
                           " tokens");
  }
  for (int i = 0; i < sequence.weights_size(); ++i) {
    TANDEM_RETURN_IF_ERROR(CheckFinite(sequence.weights(i), StrCat(what, ".weights[", i, "]")));
  }
  TokenSequence out;
  out.tokens.assign(sequence.tokens().begin(), sequence.tokens().end());
  out.targets.assign(sequence.targets().begin(), sequence.targets().end());
  out.weights.assign(sequence.weights().begin(), sequence.weights().end());
  return out;
}

}  // namespace

absl::StatusOr<Objective> FromProto(const v1::Objective& objective) {
  Objective out;
  bool known = false;
  for (const LossPair& pair : kLosses) {
    if (pair.wire == objective.loss()) {
      out.loss = pair.loss;
      known = true;
    }
  }
  if (!known) {
    return objective.loss() == v1::LOSS_UNSPECIFIED
               ? InvalidArgument("objective.loss is not set")
               : InvalidArgument("objective.loss ", static_cast<int>(objective.loss()),
                                 " is not a known Loss");
  }
  switch (objective.reduction()) {
    case v1::REDUCTION_UNSPECIFIED:
    case v1::REDUCTION_MEAN:
      out.reduction = Reduction::kMean;
      break;
    case v1::REDUCTION_SUM:
      out.reduction = Reduction::kSum;
      break;
    default:
      return InvalidArgument("objective.reduction ", static_cast<int>(objective.reduction()),
                             " is not a known Reduction");
  }
  out.output = objective.output();
  if (!objective.target().empty()) out.target = objective.target();
  if (objective.has_huber_delta()) {
    if (!(objective.huber_delta() > 0) || !std::isfinite(objective.huber_delta())) {
      return InvalidArgument("objective.huber_delta is ", objective.huber_delta(),
                             ", expected a positive number");
    }
    if (out.loss != Loss::kHuber) {
      return InvalidArgument("objective.huber_delta is set, but the loss is not LOSS_HUBER");
    }
    out.huber_delta = objective.huber_delta();
  }
  if (objective.has_temperature()) {
    const absl::Status valid = CheckTemperature(objective.temperature());
    if (!valid.ok()) return Annotate(valid, "objective");
    if (!HasTemperature(out.loss)) {
      return InvalidArgument(
          "objective.temperature is set, but the loss is neither LOSS_SOFT_ACCURACY nor "
          "LOSS_SOFT_F1");
    }
    out.temperature = objective.temperature();
  }
  return out;
}

v1::Objective ToProto(const Objective& objective) {
  v1::Objective out;
  for (const LossPair& pair : kLosses) {
    if (pair.loss == objective.loss) out.set_loss(pair.wire);
  }
  out.set_reduction(objective.reduction == Reduction::kMean ? v1::REDUCTION_MEAN
                                                            : v1::REDUCTION_SUM);
  out.set_output(objective.output);
  out.set_target(objective.target);
  if (objective.loss == Loss::kHuber) out.set_huber_delta(objective.huber_delta);
  if (HasTemperature(objective.loss)) out.set_temperature(objective.temperature);
  return out;
}

absl::StatusOr<OptimizerOptions> WithParameters(OptimizerOptions options,
                                                const v1::OptimizerParameters& parameters) {
  absl::Status status;
  const auto take = [&](bool present, double value, const char* field, double& out) {
    if (!present) return;
    if (status.ok()) status = CheckFinite(value, field);
    out = value;
  };
  const v1::OptimizerParameters& p = parameters;
  const bool sgd = options.kind == OptimizerKind::kSgd;
  const auto refuse = [&](bool present, const char* field, const char* kind) {
    if (present && status.ok()) {
      status = InvalidArgument(field, " is set, but the optimizer is ", kind);
    }
  };
  refuse(sgd && p.has_beta1(), "beta1", "SGD");
  refuse(sgd && p.has_beta2(), "beta2", "SGD");
  refuse(sgd && p.has_epsilon(), "epsilon", "SGD");
  refuse(!sgd && p.has_momentum(), "momentum", "Adam");
  take(p.has_momentum(), p.momentum(), "momentum", options.momentum);
  take(p.has_learning_rate(), p.learning_rate(), "learning_rate", options.learning_rate);
  take(p.has_beta1(), p.beta1(), "beta1", options.beta1);
  take(p.has_beta2(), p.beta2(), "beta2", options.beta2);
  take(p.has_epsilon(), p.epsilon(), "epsilon", options.epsilon);
  take(p.has_weight_decay(), p.weight_decay(), "weight_decay", options.weight_decay);
  take(p.has_max_grad_norm(), p.max_grad_norm(), "max_grad_norm", options.max_grad_norm);
  TANDEM_RETURN_IF_ERROR(status);
  TANDEM_RETURN_IF_ERROR(options.Validate());
  return options;
}

absl::StatusOr<OptimizerOptions> FromProto(const v1::Optimizer& optimizer) {
  OptimizerOptions options;
  switch (optimizer.kind()) {
    case v1::OPTIMIZER_KIND_UNSPECIFIED:
    case v1::OPTIMIZER_KIND_ADAMW:
      options.kind = OptimizerKind::kAdamW;
      break;
    case v1::OPTIMIZER_KIND_ADAM:
      options.kind = OptimizerKind::kAdam;
      options.weight_decay = 0;
      break;
    case v1::OPTIMIZER_KIND_SGD:
      options.kind = OptimizerKind::kSgd;
      options.weight_decay = 0;
      break;
    default:
      return InvalidArgument("optimizer.kind ", static_cast<int>(optimizer.kind()),
                             " is not a known OptimizerKind");
  }
  if (optimizer.nesterov() && options.kind != OptimizerKind::kSgd) {
    return InvalidArgument("optimizer.nesterov is set, but the optimizer is Adam");
  }
  options.nesterov = optimizer.nesterov();
  options.decay_vectors = optimizer.decay_vectors();
  for (int role : optimizer.no_decay_roles()) {
    TANDEM_ASSIGN_OR_RETURN(
        options.no_decay_roles.emplace_back(),
        FromProto(static_cast<v1::ParameterRole>(role), "optimizer.no_decay_roles"));
  }
  options.no_decay.assign(optimizer.no_decay().begin(), optimizer.no_decay().end());
  return WithParameters(options, optimizer.parameters());
}

v1::Optimizer ToProto(const OptimizerOptions& options) {
  v1::Optimizer out;
  const bool sgd = options.kind == OptimizerKind::kSgd;
  out.set_kind(sgd                                     ? v1::OPTIMIZER_KIND_SGD
               : options.kind == OptimizerKind::kAdamW ? v1::OPTIMIZER_KIND_ADAMW
                                                       : v1::OPTIMIZER_KIND_ADAM);
  out.set_nesterov(options.nesterov);
  out.set_decay_vectors(options.decay_vectors);
  for (ParameterRole role : options.no_decay_roles) out.add_no_decay_roles(ToProto(role));
  for (const std::string& name : options.no_decay) out.add_no_decay(name);
  v1::OptimizerParameters* parameters = out.mutable_parameters();
  parameters->set_learning_rate(options.learning_rate);
  if (sgd) {
    parameters->set_momentum(options.momentum);
  } else {
    parameters->set_beta1(options.beta1);
    parameters->set_beta2(options.beta2);
    parameters->set_epsilon(options.epsilon);
  }
  parameters->set_weight_decay(options.weight_decay);
  parameters->set_max_grad_norm(options.max_grad_norm);
  return out;
}

absl::StatusOr<LossScaling> FromProto(const v1::LossScaling& scaling, Precision precision) {
  LossScaling out;
  using Mode = LossScaling::Mode;
  switch (scaling.mode()) {
    case v1::LOSS_SCALING_MODE_UNSPECIFIED:
      out.mode = precision == Precision::kF16 ? Mode::kDynamic : Mode::kNone;
      break;
    case v1::LOSS_SCALING_MODE_NONE:
      out.mode = Mode::kNone;
      break;
    case v1::LOSS_SCALING_MODE_STATIC:
      out.mode = Mode::kStatic;
      break;
    case v1::LOSS_SCALING_MODE_DYNAMIC:
      out.mode = Mode::kDynamic;
      break;
    default:
      return InvalidArgument("loss_scaling.mode ", static_cast<int>(scaling.mode()),
                             " is not a known LossScalingMode");
  }
  const bool dynamic = out.mode == Mode::kDynamic;
  if (out.mode == Mode::kNone && scaling.has_initial_scale()) {
    return InvalidArgument("loss_scaling.initial_scale is set, but the loss is not scaled");
  }
  const char* const unused = scaling.has_growth_factor()     ? "growth_factor"
                             : scaling.has_backoff_factor()  ? "backoff_factor"
                             : scaling.has_growth_interval() ? "growth_interval"
                                                             : nullptr;
  if (!dynamic && unused != nullptr) {
    return InvalidArgument("loss_scaling.", unused, " is set, but the mode is not DYNAMIC");
  }
  if (scaling.has_initial_scale()) out.initial_scale = scaling.initial_scale();
  if (scaling.has_growth_factor()) out.growth_factor = scaling.growth_factor();
  if (scaling.has_backoff_factor()) out.backoff_factor = scaling.backoff_factor();
  if (scaling.has_growth_interval()) out.growth_interval = scaling.growth_interval();
  const absl::Status valid = out.Validate();
  if (!valid.ok()) return Annotate(valid, "loss_scaling");
  return out;
}

v1::LossScaling ToProto(const LossScaling& scaling) {
  v1::LossScaling out;
  switch (scaling.mode) {
    case LossScaling::Mode::kNone:
      out.set_mode(v1::LOSS_SCALING_MODE_NONE);
      return out;
    case LossScaling::Mode::kStatic:
      out.set_mode(v1::LOSS_SCALING_MODE_STATIC);
      break;
    case LossScaling::Mode::kDynamic:
      out.set_mode(v1::LOSS_SCALING_MODE_DYNAMIC);
      out.set_growth_factor(scaling.growth_factor);
      out.set_backoff_factor(scaling.backoff_factor);
      out.set_growth_interval(scaling.growth_interval);
      break;
  }
  out.set_initial_scale(scaling.initial_scale);
  return out;
}

absl::StatusOr<Batch> FromProto(const v1::Batch& batch) {
  if (batch.tensors_size() != 0 && batch.sequences_size() != 0) {
    return InvalidArgument("batch has both tensors and sequences");
  }
  if (batch.tensors_size() == 0 && batch.sequences_size() == 0) {
    return InvalidArgument("batch is empty: it needs tensors or sequences");
  }
  Batch out;
  std::set<std::string> names;
  for (const v1::NamedTensor& named : batch.tensors()) {
    if (!names.insert(named.name()).second) {
      return InvalidArgument("batch tensor '", named.name(), "' is given twice");
    }
    TANDEM_ASSIGN_OR_RETURN(
        Tensor tensor,
        server::FromProto(named.tensor(), StrCat("batch tensor '", named.name(), "'")));
    out.tensors.emplace_back(named.name(), std::move(tensor));
  }
  for (int i = 0; i < batch.sequences_size(); ++i) {
    TANDEM_ASSIGN_OR_RETURN(TokenSequence sequence,
                            FromProto(batch.sequences(i), StrCat("batch.sequences[", i, "]")));
    out.sequences.push_back(std::move(sequence));
  }
  return out;
}

void ToProto(const LossReport& report, bool return_logprobs, int64_t weights_version,
             v1::ForwardBackwardResponse* out) {
  if (return_logprobs) out->mutable_logprobs()->Add(report.logprobs.begin(), report.logprobs.end());
  out->set_loss(report.loss);
  out->set_loss_sum(report.loss_sum);
  out->set_weight_sum(report.weight_sum);
  out->set_tokens(report.tokens);
  out->set_weights_version(weights_version);
  out->set_forward_backward_seconds(report.seconds);
}

void ToProto(const LossReport& report, bool return_logprobs, int64_t weights_version,
             v1::EvaluateResponse* out) {
  if (return_logprobs) out->mutable_logprobs()->Add(report.logprobs.begin(), report.logprobs.end());
  out->set_loss(report.loss);
  out->set_loss_sum(report.loss_sum);
  out->set_weight_sum(report.weight_sum);
  out->set_tokens(report.tokens);
  out->set_weights_version(weights_version);
}

void ToProto(const StepReport& report, int64_t weights_version, v1::OptimStepResponse* out) {
  out->set_grad_norm(report.grad_norm);
  out->set_skipped(report.skipped);
  out->set_step(report.step);
  out->set_weights_version(weights_version);
  out->set_optimizer_seconds(report.seconds);
  out->set_loss_scale(report.loss_scale);
}

void ToProto(const Trainer& trainer, const Model& model, v1::Training* out) {
  out->set_model(model.name());
  *out->mutable_objective() = ToProto(trainer.objective());
  *out->mutable_optimizer() = ToProto(trainer.optimizer());
  out->set_step(trainer.step());
  out->set_skipped_steps(trainer.skipped_steps());
  out->set_micro_step(trainer.micro_step());
  out->set_weights_version(model.weights_version());
  out->set_trainable_parameters(trainer.trainable_parameters());
  out->set_state_bytes(trainer.state_bytes());
  out->set_last_loss(trainer.last_loss());
  for (const std::string& name : trainer.frozen()) out->add_frozen(name);
  out->set_seed(trainer.random_seed());
  out->set_decayed_parameters(trainer.decayed_parameters());
  *out->mutable_loss_scaling() = ToProto(trainer.loss_scaling());
  out->set_loss_scale(trainer.loss_scale());
}

}  // namespace tandem::server

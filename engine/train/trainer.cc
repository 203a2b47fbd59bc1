#include "engine/train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <span>
#include <utility>

#include "absl/strings/str_join.h"
#include "engine/graph/gradient.h"
#include "engine/ops/ops.h"
#include "engine/train/loss.h"

namespace tandem {
namespace {

constexpr int64_t kFloatBytes = sizeof(float);

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

absl::Status CheckRange(std::string_view name, double value, double low, bool low_open,
                        double high) {
  if (std::isfinite(value) && (low_open ? value > low : value >= low) && value < high) {
    return absl::OkStatus();
  }
  return InvalidArgument(
      name, " is ", value, ", must be ", low_open ? "above " : "at least ", low,
      std::isinf(high) ? std::string(" and finite") : StrCat(" and below ", high));
}

// The class indices of a target, against the number of classes that the graph has.
absl::Status CheckTargets(const Plan& plan, const LossInputs& inputs) {
  int64_t classes = 0;
  for (const Node& node : plan.graph().nodes()) {
    if (node.op->name == "SoftmaxCrossEntropy")
      classes = plan.graph().type(node.inputs[0]).shape[-1];
  }
  const Tensor& target = *inputs.inputs.back();
  for (int64_t i = 0; i < target.num_elements(); ++i) {
    const int64_t value = ElementAsInt(target, i);
    if (value < 0 || value >= classes) {
      return InvalidArgument("target element ", i, " is ", value, ", outside the classes [0, ",
                             classes, ")");
    }
  }
  return absl::OkStatus();
}

// A plan of one node over flat parameters: inputs in, outputs out.
using FlatBuild = std::function<std::vector<Value>(Builder&, const std::vector<Value>&)>;
absl::StatusOr<std::unique_ptr<Plan>> FlatPlan(const Backend& backend,
                                               std::span<const TensorType> inputs,
                                               const FlatBuild& build) {
  Builder builder;
  std::vector<Value> values;
  for (const TensorType& type : inputs) values.push_back(builder.Input("", type));
  for (Value v : build(builder, values)) builder.Output(v);
  TANDEM_ASSIGN_OR_RETURN(Graph graph, builder.Finish());
  return Plan::Compile(std::move(graph), backend);
}

bool Matches(const std::string& name, const std::string& pattern) {
  if (!pattern.empty() && pattern.back() == '*') {
    return name.compare(0, pattern.size() - 1, pattern, 0, pattern.size() - 1) == 0;
  }
  return name == pattern;
}

}  // namespace

absl::Status OptimizerOptions::Validate() const {
  constexpr double kInf = INFINITY;
  TANDEM_RETURN_IF_ERROR(CheckRange("learning_rate", learning_rate, 0, false, kInf));
  TANDEM_RETURN_IF_ERROR(CheckRange("beta1", beta1, 0, false, 1));
  TANDEM_RETURN_IF_ERROR(CheckRange("beta2", beta2, 0, false, 1));
  TANDEM_RETURN_IF_ERROR(CheckRange("epsilon", epsilon, 0, true, kInf));
  TANDEM_RETURN_IF_ERROR(CheckRange("weight_decay", weight_decay, 0, false, kInf));
  TANDEM_RETURN_IF_ERROR(CheckRange("momentum", momentum, 0, false, 1));
  if (nesterov && !(momentum > 0)) return InvalidArgument("nesterov needs a momentum above 0");
  return CheckRange("max_grad_norm", max_grad_norm, 0, false, kInf);
}

absl::Status LossScaling::Validate() const {
  constexpr double kInf = INFINITY, kLargest = std::numeric_limits<float>::max();
  TANDEM_RETURN_IF_ERROR(CheckRange("initial_scale", initial_scale, 0x1p-126, false, kLargest));
  TANDEM_RETURN_IF_ERROR(CheckRange("growth_factor", growth_factor, 1, true, kInf));
  TANDEM_RETURN_IF_ERROR(CheckRange("backoff_factor", backoff_factor, 0, true, 1));
  if (growth_interval < 1) {
    return InvalidArgument("growth_interval is ", growth_interval, ", must be at least 1");
  }
  return absl::OkStatus();
}

Trainer::Trainer(Model* model, Objective objective, OptimizerOptions optimizer,
                 std::vector<std::string> frozen, const LossScaling& loss_scaling)
    : model_(model),
      objective_(std::move(objective)),
      optimizer_(std::move(optimizer)),
      frozen_(std::move(frozen)),
      loss_scaling_(loss_scaling) {
  const bool scales = loss_scaling.mode != LossScaling::Mode::kNone;
  state_[ops::kStateLossScale] = scales ? loss_scaling.initial_scale : 1;
}

absl::StatusOr<std::unique_ptr<Trainer>> Trainer::Create(Model* model, Objective objective,
                                                         OptimizerOptions optimizer,
                                                         const std::vector<std::string>& frozen,
                                                         const LossScaling& loss_scaling) {
  TANDEM_RETURN_IF_ERROR(optimizer.Validate());
  TANDEM_RETURN_IF_ERROR(loss_scaling.Validate());
  TANDEM_RETURN_IF_ERROR(CheckObjective(*model, objective));
  std::unique_ptr<Trainer> trainer(
      new Trainer(model, std::move(objective), optimizer, frozen, loss_scaling));
  TANDEM_RETURN_IF_ERROR(trainer->CheckNoDecay(optimizer.no_decay));
  TANDEM_RETURN_IF_ERROR(trainer->SelectTrainable());
  const int64_t size = model->parameters().flat_size();
  const TensorType flat{DType::kF32, {size}};
  const Backend& backend = model->backend();
  TANDEM_ASSIGN_OR_RETURN(trainer->gradients_, DeviceTensor::Zeros(backend, flat));
  TANDEM_ASSIGN_OR_RETURN(trainer->first_moment_, DeviceTensor::Zeros(backend, flat));
  if (optimizer.kind != OptimizerKind::kSgd) {
    TANDEM_ASSIGN_OR_RETURN(trainer->second_moment_, DeviceTensor::Zeros(backend, flat));
  }
  TANDEM_ASSIGN_OR_RETURN(trainer->decay_, DeviceTensor::Zeros(backend, {DType::kU8, {size}}));
  trainer->FillDecay();
  const TensorType summands[] = {flat, flat};
  TANDEM_ASSIGN_OR_RETURN(trainer->add_plan_,
                          FlatPlan(backend, summands, [](Builder& b, const std::vector<Value>& in) {
                            return std::vector<Value>{ops::Add(b, in[0], in[1])};
                          }));
  TANDEM_RETURN_IF_ERROR(trainer->CompileStep());
  return trainer;
}

// hyper, state, g, decay, p, m and, but for SGD, v -> control, state', p', m', v' and, in mixed
// precision, the copy of p' that the model reads
absl::Status Trainer::CompileStep() {
  const TensorType& flat = gradients_.type();
  const int64_t size = flat.shape[0];
  std::vector<TensorType> inputs = {{DType::kF64, {ops::kHyperCount}},
                                    {DType::kF64, {ops::kStateCount}},
                                    flat,
                                    {DType::kU8, {size}},
                                    flat,
                                    flat};
  const OptimizerOptions& o = optimizer_;
  if (o.kind != OptimizerKind::kSgd) inputs.push_back(flat);
  std::optional<DType> copy;
  if (model_->precision() != Precision::kF32) copy = PrecisionDType(model_->precision());
  const auto build = [&o, copy](Builder& b, const std::vector<Value>& in) {
    const Value g = in[2], decay = in[3];
    std::vector<Value> out = ops::OptimizerControl(b, ops::SumOfSquares(b, g), in[0], in[1]);
    const Value control = out[0];
    for (Value v : o.kind == OptimizerKind::kSgd
                       ? ops::SgdStep(b, in[4], g, in[5], decay, control, o.nesterov, copy)
                       : ops::AdamStep(b, in[4], g, in[5], in[6], decay, control,
                                       o.kind == OptimizerKind::kAdamW, copy)) {
      out.push_back(v);
    }
    return out;
  };
  TANDEM_ASSIGN_OR_RETURN(step_plan_, FlatPlan(model_->backend(), inputs, build));
  return absl::OkStatus();
}

absl::Status Trainer::SelectTrainable() {
  const std::vector<ParameterInfo>& infos = model_->source().parameters();
  std::vector<bool> used(frozen_.size(), false);
  for (size_t i = 0; i < infos.size(); ++i) {
    bool is_frozen = false;
    for (size_t k = 0; k < frozen_.size(); ++k) {
      if (!Matches(infos[i].name, frozen_[k])) continue;
      is_frozen = true;
      used[k] = true;
    }
    if (is_frozen) continue;
    trainable_.push_back(static_cast<int32_t>(i));
    trainable_parameters_ += infos[i].shape.num_elements();
  }
  for (size_t k = 0; k < frozen_.size(); ++k) {
    if (!used[k]) {
      return InvalidArgument("frozen '", frozen_[k], "' matches no parameter of model '",
                             model_->name(), "'");
    }
  }
  if (trainable_.empty()) {
    return InvalidArgument("model '", model_->name(), "' has no parameter left to train");
  }
  return absl::OkStatus();
}

absl::Status Trainer::CheckNoDecay(const std::vector<std::string>& patterns) const {
  const std::vector<ParameterInfo>& infos = model_->source().parameters();
  for (const std::string& pattern : patterns) {
    if (std::none_of(infos.begin(), infos.end(),
                     [&](const ParameterInfo& info) { return Matches(info.name, pattern); })) {
      return InvalidArgument("no_decay '", pattern, "' matches no parameter of model '",
                             model_->name(), "'");
    }
  }
  return absl::OkStatus();
}

bool Trainer::Decays(const ParameterInfo& info) const {
  const OptimizerOptions& o = optimizer_;
  if (!o.decay_vectors && info.shape.rank() < 2) return false;
  if (std::find(o.no_decay_roles.begin(), o.no_decay_roles.end(), info.role) !=
      o.no_decay_roles.end()) {
    return false;
  }
  return std::none_of(o.no_decay.begin(), o.no_decay.end(),
                      [&](const std::string& pattern) { return Matches(info.name, pattern); });
}

void Trainer::FillDecay() {
  const std::vector<ParameterInfo>& infos = model_->source().parameters();
  Tensor mask = Tensor::Zeros(decay_.type());
  const std::span<uint8_t> decay = mask.data<uint8_t>();
  decayed_parameters_ = 0;
  for (int32_t i : trainable_) {
    if (!Decays(infos[i])) continue;
    const int64_t begin = model_->parameters().offset(i), size = infos[i].shape.num_elements();
    std::fill_n(decay.begin() + begin, size, uint8_t{1});
    decayed_parameters_ += size;
  }
  decay_.Set(mask);
}

absl::StatusOr<LossReport> Trainer::ForwardBackward(const Batch& batch) {
  const Stopwatch watch;
  TANDEM_ASSIGN_OR_RETURN(LossInputs inputs, PrepareBatch(*model_, objective_, batch));
  const std::string key =
      StrCat("train ", absl::StrJoin(frozen_, ","), " ", LossKey(objective_, inputs));
  TANDEM_ASSIGN_OR_RETURN(Plan * plan, model_->plans().Get(key, [&]() -> absl::StatusOr<Graph> {
    Builder builder(EvaluateNode);
    TANDEM_ASSIGN_OR_RETURN(const Value losses, BuildLosses(builder, *model_, objective_, inputs));
    const Value cotangent = builder.Input("cotangent", builder.type(losses));
    std::vector<Value> wrt;
    for (int32_t i : trainable_) {
      const ParameterInfo& info = model_->source().parameters()[i];
      wrt.push_back(builder.Parameter(i, info.name, {DType::kF32, info.shape}));
    }
    TANDEM_ASSIGN_OR_RETURN(const std::vector<Value> gradients,
                            Gradient(builder, losses, wrt, cotangent));
    builder.Output(losses);
    for (Value v : gradients) builder.Output(v);
    return builder.Finish();
  }));
  if (inputs.class_targets) TANDEM_RETURN_IF_ERROR(CheckTargets(*plan, inputs));

  // The cotangent of the losses: weight / what MEAN divides by, times the loss scale.
  Tensor losses(plan->output_types()[0]);
  Tensor cotangent(losses.type());
  double divisor = 1;
  if (objective_.reduction == Reduction::kMean) {
    divisor = inputs.weights.empty() ? static_cast<double>(losses.num_elements()) : 0;
    for (float w : inputs.weights) divisor += w;
    if (divisor == 0) divisor = 1;  // no trained position: zero gradients
  }
  std::span<float> scale = cotangent.data<float>();
  for (size_t i = 0; i < scale.size(); ++i) {
    const double weight = inputs.weights.empty() ? 1 : inputs.weights[i];
    scale[i] = static_cast<float>(weight / divisor * loss_scale());
  }

  if (micro_step_ > 0 && partial_gradients_.bytes() == 0) {
    TANDEM_ASSIGN_OR_RETURN(partial_gradients_,
                            DeviceTensor::Zeros(model_->backend(), gradients_.type()));
  }
  const DeviceTensor& target = micro_step_ == 0 ? gradients_ : partial_gradients_;
  std::vector<Address> in, out;
  for (const Tensor* tensor : inputs.inputs) in.push_back(OnHost(*tensor));
  in.push_back(OnHost(cotangent));
  out.push_back(OnHost(losses));
  for (int32_t i : trainable_) {
    out.push_back(target.address(model_->parameters().offset(i) * kFloatBytes));
  }
  // Skipped steps count: drawing the numbers again that overflowed would overflow again.
  plan->SetRandomKey(random_seed_, (static_cast<uint64_t>(step() + skipped_steps()) << 32) |
                                       static_cast<uint64_t>(micro_step_));
  TANDEM_ASSIGN_OR_RETURN(const std::span<const void* const> parameters,
                          model_->ParameterAddresses());
  TANDEM_RETURN_IF_ERROR(plan->Run(in, parameters, out));
  if (micro_step_ > 0) {
    const Address summands[] = {gradients_.address(), partial_gradients_.address()};
    TANDEM_RETURN_IF_ERROR(add_plan_->Run(summands, {}, {{gradients_.address()}}));
  }
  ++micro_step_;
  LossReport report = ReduceLosses(objective_, inputs, losses);
  last_loss_ = report.loss;
  report.seconds = watch.seconds();
  return report;
}

absl::StatusOr<StepReport> Trainer::OptimStep() {
  if (micro_step_ == 0) {
    return FailedPrecondition("model '", model_->name(),
                              "' has no accumulated gradients: call ForwardBackward first");
  }
  const Stopwatch watch;
  const std::array<double, ops::kHyperCount> hyper = Hyperparameters();
  std::array<double, ops::kControlCount> control{};
  const Address p = OnDevice(model_->parameters().data());
  std::vector<Address> in = {
      OnHost(hyper.data()),   OnHost(state_.data()), gradients_.address(), decay_.address(), p,
      first_moment_.address()};
  std::vector<Address> out = {OnHost(control.data()), OnHost(state_.data()), p,
                              first_moment_.address()};
  if (optimizer_.kind != OptimizerKind::kSgd) {
    in.push_back(second_moment_.address());
    out.push_back(second_moment_.address());
  }
  if (model_->precision() != Precision::kF32) {
    TANDEM_ASSIGN_OR_RETURN(const Address copies, model_->ParameterCopies());
    out.push_back(copies);
  }
  TANDEM_RETURN_IF_ERROR(step_plan_->Run(in, {}, out));
  micro_step_ = 0;
  StepReport report;
  report.grad_norm = control[ops::kControlGradNorm];
  report.skipped = control[ops::kControlApply] == 0;
  report.loss_scale = control[ops::kControlLossScale];
  if (!report.skipped) model_->BumpWeightsVersion(/*copies_written=*/true);
  report.step = step();
  report.seconds = watch.seconds();
  return report;
}

std::array<double, ops::kHyperCount> Trainer::Hyperparameters() const {
  const bool dynamic = loss_scaling_.mode == LossScaling::Mode::kDynamic;
  std::array<double, ops::kHyperCount> hyper{};
  hyper[ops::kHyperLearningRate] = optimizer_.learning_rate;
  hyper[ops::kHyperBeta1] = optimizer_.beta1;
  hyper[ops::kHyperBeta2] = optimizer_.beta2;
  hyper[ops::kHyperEpsilon] = optimizer_.epsilon;
  hyper[ops::kHyperWeightDecay] = optimizer_.weight_decay;
  hyper[ops::kHyperMomentum] = optimizer_.momentum;
  hyper[ops::kHyperMaxGradNorm] = optimizer_.max_grad_norm;
  hyper[ops::kHyperGrowth] = dynamic ? loss_scaling_.growth_factor : 1;
  hyper[ops::kHyperBackoff] = dynamic ? loss_scaling_.backoff_factor : 1;
  hyper[ops::kHyperGrowthInterval] = static_cast<double>(loss_scaling_.growth_interval);
  return hyper;
}

absl::StatusOr<LossReport> Trainer::Evaluate(Model* model, const Objective& objective,
                                             const Batch& batch) {
  const Stopwatch watch;
  TANDEM_RETURN_IF_ERROR(CheckObjective(*model, objective));
  TANDEM_ASSIGN_OR_RETURN(LossInputs inputs, PrepareBatch(*model, objective, batch));
  const std::string key = StrCat("evaluate ", LossKey(objective, inputs));
  TANDEM_ASSIGN_OR_RETURN(Plan * plan, model->plans().Get(key, [&]() -> absl::StatusOr<Graph> {
    Builder builder(EvaluateNode);
    TANDEM_ASSIGN_OR_RETURN(const Value losses, BuildLosses(builder, *model, objective, inputs));
    builder.Output(losses);
    return builder.Finish();
  }));
  if (inputs.class_targets) TANDEM_RETURN_IF_ERROR(CheckTargets(*plan, inputs));
  plan->SetRandomKey(0, 0);
  TANDEM_ASSIGN_OR_RETURN(const std::span<const void* const> parameters,
                          model->ParameterAddresses());
  TANDEM_ASSIGN_OR_RETURN(const std::vector<Tensor> losses,
                          RunPlan(*plan, inputs.inputs, parameters));
  LossReport report = ReduceLosses(objective, inputs, losses[0]);
  report.seconds = watch.seconds();
  return report;
}

absl::Status Trainer::SetOptimizer(const OptimizerOptions& options) {
  TANDEM_RETURN_IF_ERROR(options.Validate());
  if (options.kind != optimizer_.kind) {
    return InvalidArgument("the kind of optimizer cannot change during training");
  }
  TANDEM_RETURN_IF_ERROR(CheckNoDecay(options.no_decay));
  const bool decay_changed = options.decay_vectors != optimizer_.decay_vectors ||
                             options.no_decay_roles != optimizer_.no_decay_roles ||
                             options.no_decay != optimizer_.no_decay;
  const OptimizerOptions before = std::exchange(optimizer_, options);
  if (options.nesterov != before.nesterov) {
    if (const absl::Status compiled = CompileStep(); !compiled.ok()) {
      optimizer_ = before;
      return compiled;
    }
  }
  if (decay_changed) FillDecay();
  return absl::OkStatus();
}

int64_t Trainer::state_bytes() const {
  return gradients_.bytes() + first_moment_.bytes() + second_moment_.bytes() + decay_.bytes() +
         partial_gradients_.bytes();
}

std::vector<float> Trainer::gradient(int i) const {
  std::vector<float> values(model_->source().parameters()[i].shape.num_elements());
  gradients_.Read(values.data(), model_->parameters().offset(i) * kFloatBytes,
                  static_cast<int64_t>(values.size()) * kFloatBytes);
  return values;
}

}  // namespace tandem

// Bindings of the optimizer's step.
#include "engine/backend/cuda/floats.h"
#include "engine/backend/cuda/kernels_table.h"
#include "engine/ops/ops.h"

namespace tandem::cuda {
namespace {

// The library's vectors are the operators'.
#define TANDEM_SAME_PLACE(ours, theirs) \
  static_assert(int64_t{TANDEM_CUDA_##theirs} == int64_t{ops::k##ours})
TANDEM_SAME_PLACE(HyperLearningRate, HYPER_LEARNING_RATE);
TANDEM_SAME_PLACE(HyperBeta1, HYPER_BETA1);
TANDEM_SAME_PLACE(HyperBeta2, HYPER_BETA2);
TANDEM_SAME_PLACE(HyperEpsilon, HYPER_EPSILON);
TANDEM_SAME_PLACE(HyperWeightDecay, HYPER_WEIGHT_DECAY);
TANDEM_SAME_PLACE(HyperMomentum, HYPER_MOMENTUM);
TANDEM_SAME_PLACE(HyperMaxGradNorm, HYPER_MAX_GRAD_NORM);
TANDEM_SAME_PLACE(HyperGrowth, HYPER_GROWTH);
TANDEM_SAME_PLACE(HyperBackoff, HYPER_BACKOFF);
TANDEM_SAME_PLACE(HyperGrowthInterval, HYPER_GROWTH_INTERVAL);
TANDEM_SAME_PLACE(HyperCount, HYPER_COUNT);
TANDEM_SAME_PLACE(StateStep, STATE_STEP);
TANDEM_SAME_PLACE(StateSkipped, STATE_SKIPPED);
TANDEM_SAME_PLACE(StateLossScale, STATE_LOSS_SCALE);
TANDEM_SAME_PLACE(StateGoodSteps, STATE_GOOD_STEPS);
TANDEM_SAME_PLACE(StateCount, STATE_COUNT);
TANDEM_SAME_PLACE(ControlLearningRate, CONTROL_LEARNING_RATE);
TANDEM_SAME_PLACE(ControlBeta1, CONTROL_BETA1);
TANDEM_SAME_PLACE(ControlBeta2, CONTROL_BETA2);
TANDEM_SAME_PLACE(ControlEpsilon, CONTROL_EPSILON);
TANDEM_SAME_PLACE(ControlWeightDecay, CONTROL_WEIGHT_DECAY);
TANDEM_SAME_PLACE(ControlBias1, CONTROL_BIAS1);
TANDEM_SAME_PLACE(ControlBias2, CONTROL_BIAS2);
TANDEM_SAME_PLACE(ControlGradScale, CONTROL_GRAD_SCALE);
TANDEM_SAME_PLACE(ControlMomentum, CONTROL_MOMENTUM);
TANDEM_SAME_PLACE(ControlApply, CONTROL_APPLY);
TANDEM_SAME_PLACE(ControlGradNorm, CONTROL_GRAD_NORM);
TANDEM_SAME_PLACE(ControlLossScale, CONTROL_LOSS_SCALE);
TANDEM_SAME_PLACE(ControlCount, CONTROL_COUNT);
#undef TANDEM_SAME_PLACE

absl::StatusOr<BoundKernel> BindSumOfSquares(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireFloat(spec, 0));
  TANDEM_CUDA_CALL(squares, tandem_cuda_sum_of_squares, spec);
  TANDEM_CUDA_CALL(scratch, tandem_cuda_sum_of_squares_scratch, spec);
  const int64_t n = spec.in(0).num_elements();
  const int32_t dtype = Number(spec.dtype());
  int64_t bytes = 0;
  scratch(n, &bytes);
  return BoundKernel{[=](const KernelArgs& args) {
                       squares(dtype, args.inputs[0], args.out<double>(), args.scratch, n,
                               squares.device->stream());
                     },
                     bytes};
}

absl::StatusOr<BoundKernel> BindOptimizerControl(const KernelSpec& spec) {
  TANDEM_CUDA_CALL(control, tandem_cuda_optimizer_control, spec);
  return BoundKernel{[=](const KernelArgs& args) {
    control(args.in<double>(0), args.in<double>(1), args.in<double>(2), args.out<double>(0),
            args.out<double>(1), control.device->stream());
  }};
}

// p, g, the moments, decay, control -> p', the moments' and, if the node has it, the copy of p'.
// `flag` is the attribute that the library's flag says.
absl::StatusOr<BoundKernel> BindStep(const KernelSpec& spec, const char* flag, int moments,
                                     const Call<decltype(tandem_cuda_adam_step)>& step) {
  tandem_cuda_optimizer_step_params params = {};
  params.n = spec.in(0).num_elements();
  params.flag = spec.attributes->Int(flag) != 0 ? 1 : 0;
  params.copy_dtype = Number(spec.outputs.back().dtype);
  const bool copies = static_cast<int>(spec.outputs.size()) > 1 + moments;
  return BoundKernel{[=](const KernelArgs& args) {
    tandem_cuda_optimizer_step_params p = params;
    p.p = args.in<float>(0);
    p.g = args.in<float>(1);
    p.m = args.in<float>(2);
    if (moments > 1) p.v = args.in<float>(3);
    p.decay = args.in<uint8_t>(2 + moments);
    p.control = args.in<double>(3 + moments);
    p.p_out = args.out<float>(0);
    p.m_out = args.out<float>(1);
    if (moments > 1) p.v_out = args.out<float>(2);
    if (copies) p.p_copy = args.outputs[1 + moments];
    step(&p, step.device->stream());
  }};
}

absl::StatusOr<BoundKernel> BindAdamStep(const KernelSpec& spec) {
  TANDEM_CUDA_CALL(step, tandem_cuda_adam_step, spec);
  return BindStep(spec, "decoupled", 2, step);
}

absl::StatusOr<BoundKernel> BindSgdStep(const KernelSpec& spec) {
  TANDEM_CUDA_CALL(step, tandem_cuda_sgd_step, spec);
  return BindStep(spec, "nesterov", 1, step);
}

}  // namespace

constinit const Kernel kSumOfSquaresKernel = {.bind = BindSumOfSquares};
constinit const Kernel kOptimizerControlKernel = {.bind = BindOptimizerControl};
// Not in_place: p' may lie on p, but not on g, and the planner would not know.
constinit const Kernel kAdamStepKernel = {.bind = BindAdamStep};
constinit const Kernel kSgdStepKernel = {.bind = BindSgdStep};

}  // namespace tandem::cuda

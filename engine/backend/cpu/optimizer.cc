// Kernels of the optimizer steps.
#include "engine/backend/cpu/kernels/optimizer.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/backend/cpu/dtypes.h"
#include "engine/backend/cpu/kernels_table.h"

namespace tandem::cpu {
namespace {

absl::StatusOr<BoundKernel> BindSumOfSquares(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireF32(spec, 0));
  const int64_t n = spec.in(0).num_elements();
  return BoundKernel{
      [n](const KernelArgs& args) { *args.out<double>() = SumOfSquares(args.in<float>(0), n); }};
}

double NormalF32(double x) {
  return std::clamp(x, static_cast<double>(std::numeric_limits<float>::min()),
                    static_cast<double>(std::numeric_limits<float>::max()));
}

void OptimizerControl(double sum, const double* hyper, const double* state, double* control,
                      double* next) {
  const double scale = state[ops::kStateLossScale], step = state[ops::kStateStep] + 1;
  const double skipped = state[ops::kStateSkipped], good = state[ops::kStateGoodSteps] + 1;
  const bool finite = std::isfinite(sum);
  const double norm = std::sqrt(sum) / scale, max_norm = hyper[ops::kHyperMaxGradNorm];
  const double clip = finite && max_norm > 0 ? std::min(1.0, max_norm / (norm + 1e-6)) : 1;
  control[ops::kControlLearningRate] = hyper[ops::kHyperLearningRate];
  control[ops::kControlBeta1] = hyper[ops::kHyperBeta1];
  control[ops::kControlBeta2] = hyper[ops::kHyperBeta2];
  control[ops::kControlEpsilon] = hyper[ops::kHyperEpsilon];
  control[ops::kControlWeightDecay] = hyper[ops::kHyperWeightDecay];
  control[ops::kControlBias1] = 1 - std::pow(hyper[ops::kHyperBeta1], step);
  control[ops::kControlBias2] = 1 - std::pow(hyper[ops::kHyperBeta2], step);
  control[ops::kControlGradScale] = clip / scale;
  control[ops::kControlMomentum] = hyper[ops::kHyperMomentum];
  control[ops::kControlApply] = finite ? 1 : 0;
  control[ops::kControlGradNorm] = norm;
  control[ops::kControlLossScale] = scale;
  const bool grow = finite && good >= hyper[ops::kHyperGrowthInterval];
  double next_scale = scale;
  if (!finite) next_scale = NormalF32(scale * hyper[ops::kHyperBackoff]);
  if (grow) next_scale = NormalF32(scale * hyper[ops::kHyperGrowth]);
  next[ops::kStateStep] = finite ? step : step - 1;
  next[ops::kStateSkipped] = finite ? skipped : skipped + 1;
  next[ops::kStateLossScale] = next_scale;
  next[ops::kStateGoodSteps] = finite && !grow ? good : 0;
}

absl::StatusOr<BoundKernel> BindOptimizerControl(const KernelSpec&) {
  return BoundKernel{[](const KernelArgs& args) {
    OptimizerControl(*args.in<double>(0), args.in<double>(1), args.in<double>(2),
                     args.out<double>(0), args.out<double>(1));
  }};
}

// The hyperparameters as the kernel takes them. It corrects the bias from the step's number, where
// the operator is given c1 = 1 - beta1^t and c2 = 1 - beta2^t. Since
//   lr / c1 * m / (sqrt(v) / sqrt(c2) + eps) = (lr sqrt(c2) / c1) * m / (sqrt(v) + eps sqrt(c2)),
// a step so late that its own correction is 1 takes these two instead.
AdamWParams AdamParams(const double* control, bool decoupled) {
  const double lr = control[ops::kControlLearningRate];
  const double root = std::sqrt(control[ops::kControlBias2]);
  AdamWParams params;
  params.lr = lr * root / control[ops::kControlBias1];
  params.beta1 = control[ops::kControlBeta1];
  params.beta2 = control[ops::kControlBeta2];
  params.eps = control[ops::kControlEpsilon] * root;
  params.weight_decay = control[ops::kControlWeightDecay];
  // Decoupled decay is lr * weight_decay with the learning rate itself.
  if (decoupled) params.weight_decay *= params.lr == 0 ? 0 : lr / params.lr;
  params.step = std::numeric_limits<int64_t>::max();
  params.grad_scale = static_cast<float>(control[ops::kControlGradScale]);
  params.adamw = decoupled;
  return params;
}

SgdParams SgdParamsOf(const double* control, bool nesterov) {
  SgdParams params;
  params.lr = control[ops::kControlLearningRate];
  params.momentum = control[ops::kControlMomentum];
  params.weight_decay = control[ops::kControlWeightDecay];
  params.nesterov = nesterov;
  params.first_step = false;  // a buffer of zeros says the same
  params.grad_scale = static_cast<float>(control[ops::kControlGradScale]);
  return params;
}

// Calls f(begin, end, decays) for each run of equal flags.
template <typename F>
void ForEachRun(const uint8_t* decay, int64_t n, F f) {
  for (int64_t begin = 0; begin < n;) {
    int64_t end = begin + 1;
    while (end < n && (decay[end] != 0) == (decay[begin] != 0)) ++end;
    f(begin, end, decay[begin] != 0);
    begin = end;
  }
}

// Writes p' in 16 bits too, where the node has that output.
void WriteCopy(const KernelArgs& args, size_t output, DType dtype, int64_t n) {
  if (output >= args.outputs.size()) return;
  if (dtype == DType::kBF16) {
    Convert(args.out<float>(0), args.out<BF16>(static_cast<int>(output)), n);
  } else {
    Convert(args.out<float>(0), args.out<F16>(static_cast<int>(output)), n);
  }
}

absl::StatusOr<BoundKernel> BindAdamStep(const KernelSpec& spec) {
  const int64_t n = spec.in(0).num_elements(), bytes = spec.inputs[0].bytes();
  const bool decoupled = spec.attributes->Int("decoupled") != 0;
  const DType copy = spec.outputs.back().dtype;
  return BoundKernel{[=](const KernelArgs& args) {
    CopyBytes(args.outputs[0], args.inputs[0], bytes);
    CopyBytes(args.outputs[1], args.inputs[2], bytes);
    CopyBytes(args.outputs[2], args.inputs[3], bytes);
    const auto* control = args.in<double>(5);
    if (control[ops::kControlApply] == 0) return WriteCopy(args, 3, copy, n);
    AdamWParams params = AdamParams(control, decoupled);
    const double weight_decay = params.weight_decay;
    ForEachRun(args.in<uint8_t>(4), n, [&](int64_t begin, int64_t end, bool decays) {
      params.weight_decay = decays ? weight_decay : 0;
      AdamWStep(params, args.out<float>(0) + begin, args.in<float>(1) + begin,
                args.out<float>(1) + begin, args.out<float>(2) + begin, end - begin);
    });
    WriteCopy(args, 3, copy, n);
  }};
}

absl::StatusOr<BoundKernel> BindSgdStep(const KernelSpec& spec) {
  const int64_t n = spec.in(0).num_elements(), bytes = spec.inputs[0].bytes();
  const bool nesterov = spec.attributes->Int("nesterov") != 0;
  const DType copy = spec.outputs.back().dtype;
  return BoundKernel{[=](const KernelArgs& args) {
    CopyBytes(args.outputs[0], args.inputs[0], bytes);
    CopyBytes(args.outputs[1], args.inputs[2], bytes);
    const auto* control = args.in<double>(4);
    if (control[ops::kControlApply] == 0) return WriteCopy(args, 2, copy, n);
    SgdParams params = SgdParamsOf(control, nesterov);
    const double weight_decay = params.weight_decay;
    ForEachRun(args.in<uint8_t>(3), n, [&](int64_t begin, int64_t end, bool decays) {
      params.weight_decay = decays ? weight_decay : 0;
      SgdStep(params, args.out<float>(0) + begin, args.in<float>(1) + begin,
              args.out<float>(1) + begin, end - begin);
    });
    WriteCopy(args, 2, copy, n);
  }};
}

}  // namespace

constinit const Kernel kSumOfSquaresKernel = {.bind = BindSumOfSquares};
constinit const Kernel kOptimizerControlKernel = {.bind = BindOptimizerControl};
// Not in_place: p' may lie on p, but not on g, and the planner would not know.
constinit const Kernel kAdamStepKernel = {.bind = BindAdamStep};
constinit const Kernel kSgdStepKernel = {.bind = BindSgdStep};

}  // namespace tandem::cpu

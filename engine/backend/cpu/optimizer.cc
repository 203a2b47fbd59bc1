// Kernels of the optimizer steps.
#include "engine/backend/cpu/kernels/optimizer.h"

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

// The hyperparameters as the kernel takes them. It corrects the bias from the step's number, where
// the operator is given c1 = 1 - beta1^t and c2 = 1 - beta2^t. Since
//   lr / c1 * m / (sqrt(v) / sqrt(c2) + eps) = (lr sqrt(c2) / c1) * m / (sqrt(v) + eps sqrt(c2)),
// a step so late that its own correction is 1 takes these two instead.
template <typename T>
AdamWParams Hyperparameters(const T* hyper, bool decoupled) {
  const double lr = hyper[0], c1 = hyper[5], root = std::sqrt(static_cast<double>(hyper[6]));
  AdamWParams params;
  params.lr = lr * root / c1;
  params.beta1 = hyper[1];
  params.beta2 = hyper[2];
  params.eps = hyper[3] * root;
  params.weight_decay = hyper[4];
  // Decoupled decay is lr * weight_decay with the learning rate itself.
  if (decoupled) params.weight_decay *= params.lr == 0 ? 0 : lr / params.lr;
  params.step = std::numeric_limits<int64_t>::max();
  params.grad_scale = static_cast<float>(hyper[7]);
  params.adamw = decoupled;
  return params;
}

// The end of the run of equal flags that starts at `begin`.
int64_t RunEnd(const uint8_t* flags, int64_t begin, int64_t n) {
  int64_t end = begin + 1;
  while (end < n && (flags[end] != 0) == (flags[begin] != 0)) ++end;
  return end;
}

absl::StatusOr<BoundKernel> BindAdamStep(const KernelSpec& spec) {
  const int64_t n = spec.in(0).num_elements(), bytes = spec.inputs[0].bytes();
  const bool decoupled = spec.attributes->Int("decoupled") != 0;
  const bool exact = spec.dtype(5) == DType::kF64;
  return BoundKernel{[=](const KernelArgs& args) {
    AdamWParams params = exact ? Hyperparameters(args.in<double>(5), decoupled)
                               : Hyperparameters(args.in<float>(5), decoupled);
    CopyBytes(args.outputs[0], args.inputs[0], bytes);
    CopyBytes(args.outputs[1], args.inputs[2], bytes);
    CopyBytes(args.outputs[2], args.inputs[3], bytes);
    const float* g = args.in<float>(1);
    const auto* decay = args.in<uint8_t>(4);
    const double weight_decay = params.weight_decay;
    for (int64_t begin = 0; begin < n;) {
      const int64_t end = RunEnd(decay, begin, n);
      params.weight_decay = decay[begin] != 0 ? weight_decay : 0;
      AdamWStep(params, args.out<float>(0) + begin, g + begin, args.out<float>(1) + begin,
                args.out<float>(2) + begin, end - begin);
      begin = end;
    }
  }};
}

}  // namespace

constinit const Kernel kSumOfSquaresKernel = {.bind = BindSumOfSquares};
// Not in_place: p' may lie on p, but not on g, and the planner would not know.
constinit const Kernel kAdamStepKernel = {.bind = BindAdamStep};

}  // namespace tandem::cpu

// Bindings of the fused losses.
#include "engine/backend/cuda/floats.h"
#include "engine/backend/cuda/kernels_table.h"

namespace tandem::cuda {
namespace {

// logits, targets -> loss, lse
absl::StatusOr<BoundKernel> BindSoftmaxCrossEntropy(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireFloat(spec, 0));
  TANDEM_RETURN_IF_ERROR(RequireF32Statistic(spec.outputs[0].dtype));
  TANDEM_CUDA_CALL(cross_entropy, tandem_cuda_cross_entropy, spec);
  const Matrix m(spec.in(0));
  const int32_t dtype = Number(spec.dtype());
  return BoundKernel{[=](const KernelArgs& args) {
    cross_entropy(dtype, args.inputs[0], args.in<int32_t>(1), args.out<float>(0),
                  args.out<float>(1), m.rows, m.cols, cross_entropy.device->stream());
  }};
}

// logits, targets, lse, dloss -> dlogits
absl::StatusOr<BoundKernel> BindSoftmaxCrossEntropyGrad(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireFloat(spec, 0));
  TANDEM_RETURN_IF_ERROR(RequireF32Statistic(spec.dtype(2)));
  TANDEM_CUDA_CALL(grad, tandem_cuda_cross_entropy_grad, spec);
  const Matrix m(spec.in(0));
  const int32_t dtype = Number(spec.dtype());
  return BoundKernel{[=](const KernelArgs& args) {
    grad(dtype, args.inputs[0], args.in<int32_t>(1), args.in<float>(2), args.in<float>(3),
         args.outputs[0], m.rows, m.cols, grad.device->stream());
  }};
}

}  // namespace

constinit const Kernel kSoftmaxCrossEntropyKernel = {.bind = BindSoftmaxCrossEntropy};
// A row of the output depends on that row of the inputs alone, which the kernel reads first.
constinit const Kernel kSoftmaxCrossEntropyGradKernel = {.bind = BindSoftmaxCrossEntropyGrad,
                                                         .in_place = true};

}  // namespace tandem::cuda

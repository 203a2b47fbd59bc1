// Bindings of softmax and of the normalisations.
#include "engine/backend/cuda/floats.h"
#include "engine/backend/cuda/kernels_table.h"

namespace tandem::cuda {
namespace {

absl::StatusOr<BoundKernel> BindRmsNorm(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireFloat(spec, 0));
  TANDEM_RETURN_IF_ERROR(RequireF32Statistic(spec.outputs[1].dtype));
  TANDEM_CUDA_CALL(norm, tandem_cuda_rms_norm, spec);
  const Matrix m(spec.in(0));
  const int32_t dtype = Number(spec.dtype());
  const auto epsilon = static_cast<float>(spec.attributes->Float("epsilon"));
  return BoundKernel{[=](const KernelArgs& args) {
    norm(dtype, args.inputs[0], OptionalInput(args, 1), epsilon, args.outputs[0],
         args.out<float>(1), m.rows, m.cols, norm.device->stream());
  }};
}

absl::StatusOr<BoundKernel> BindLayerNorm(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireFloat(spec, 0));
  TANDEM_RETURN_IF_ERROR(RequireF32Statistic(spec.outputs[1].dtype));
  TANDEM_CUDA_CALL(norm, tandem_cuda_layer_norm, spec);
  const Matrix m(spec.in(0));
  const int32_t dtype = Number(spec.dtype());
  const auto epsilon = static_cast<float>(spec.attributes->Float("epsilon"));
  return BoundKernel{[=](const KernelArgs& args) {
    norm(dtype, args.inputs[0], OptionalInput(args, 1), OptionalInput(args, 2), epsilon,
         args.outputs[0], args.out<float>(1), args.out<float>(2), m.rows, m.cols,
         norm.device->stream());
  }};
}

// LayerNorm: x, mean, rstd, dy, gamma -> dx, dgamma, dbeta. RmsNorm: x, rstd, dy, gamma -> dx,
// dgamma.
template <bool kLayer>
absl::StatusOr<BoundKernel> BindNormGrad(const KernelSpec& spec) {
  constexpr int kRstd = kLayer ? 2 : 1;
  TANDEM_RETURN_IF_ERROR(RequireFloat(spec, 0));
  TANDEM_RETURN_IF_ERROR(RequireF32Statistic(spec.dtype(kRstd)));
  TANDEM_CUDA_CALL(grad, tandem_cuda_norm_grad, spec);
  TANDEM_CUDA_CALL(scratch, tandem_cuda_norm_grad_scratch, spec);
  const Matrix m(spec.in(0));
  const int32_t dtype = Number(spec.dtype());
  int64_t bytes = 0;
  scratch(dtype, m.rows, m.cols, kLayer ? 1 : 0, &bytes);
  return BoundKernel{[=](const KernelArgs& args) {
                       tandem_cuda_norm_grad_params params = {};
                       params.x = args.inputs[0];
                       params.mean = kLayer ? args.in<float>(1) : nullptr;
                       params.rstd = args.in<float>(kRstd);
                       params.dy = args.inputs[kRstd + 1];
                       params.gamma = OptionalInput(args, kRstd + 2);
                       params.dx = args.outputs[0];
                       params.dgamma = args.outputs[1];
                       params.dbeta = kLayer ? args.outputs[2] : nullptr;
                       params.scratch = args.scratch;
                       params.rows = m.rows;
                       params.cols = m.cols;
                       params.dtype = dtype;
                       grad(&params, grad.device->stream());
                     },
                     bytes};
}

// x -> y and (y, dy) -> dx
template <typename RowsCall>
BoundKernel BindRows(const KernelSpec& spec, const RowsCall& call) {
  const Matrix m(spec.in(0));
  const int32_t dtype = Number(spec.dtype());
  return {[=](const KernelArgs& args) {
    call(dtype, args.inputs[0], args.outputs[0], m.rows, m.cols, call.device->stream());
  }};
}
template <typename RowsCall>
BoundKernel BindRowsGrad(const KernelSpec& spec, const RowsCall& call) {
  const Matrix m(spec.in(0));
  const int32_t dtype = Number(spec.dtype());
  return {[=](const KernelArgs& args) {
    call(dtype, args.inputs[0], args.inputs[1], args.outputs[0], m.rows, m.cols,
         call.device->stream());
  }};
}

absl::StatusOr<BoundKernel> BindSoftmax(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireFloat(spec, 0));
  TANDEM_CUDA_CALL(softmax, tandem_cuda_softmax, spec);
  return BindRows(spec, softmax);
}

absl::StatusOr<BoundKernel> BindLogSoftmax(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireFloat(spec, 0));
  TANDEM_CUDA_CALL(softmax, tandem_cuda_log_softmax, spec);
  return BindRows(spec, softmax);
}

absl::StatusOr<BoundKernel> BindSoftmaxGrad(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireFloat(spec, 0));
  TANDEM_CUDA_CALL(grad, tandem_cuda_softmax_grad, spec);
  return BindRowsGrad(spec, grad);
}

absl::StatusOr<BoundKernel> BindLogSoftmaxGrad(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireFloat(spec, 0));
  TANDEM_CUDA_CALL(grad, tandem_cuda_log_softmax_grad, spec);
  return BindRowsGrad(spec, grad);
}

}  // namespace

// The row kernels take an output that is an input of the same shape.
constinit const Kernel kSoftmaxKernel = {.bind = BindSoftmax, .in_place = true};
constinit const Kernel kSoftmaxGradKernel = {.bind = BindSoftmaxGrad, .in_place = true};
constinit const Kernel kLogSoftmaxKernel = {.bind = BindLogSoftmax, .in_place = true};
constinit const Kernel kLogSoftmaxGradKernel = {.bind = BindLogSoftmaxGrad, .in_place = true};
constinit const Kernel kRmsNormKernel = {.bind = BindRmsNorm};
constinit const Kernel kRmsNormGradKernel = {.bind = BindNormGrad<false>};
constinit const Kernel kLayerNormKernel = {.bind = BindLayerNorm};
constinit const Kernel kLayerNormGradKernel = {.bind = BindNormGrad<true>};

}  // namespace tandem::cuda

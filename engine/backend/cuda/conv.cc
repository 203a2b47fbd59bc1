// Bindings of convolution and its adjoints.
#include <limits>

#include "engine/backend/cuda/cuda_backend.h"
#include "engine/backend/cuda/kernels_table.h"
#include "engine/backend/cuda/spatial_window.h"

namespace tandem::cuda {
namespace {

absl::StatusOr<tandem_cuda_conv_params> ReadConv(const KernelSpec& spec, const Shape& x_shape,
                                                 const Shape& weight_shape, const Shape& y_shape) {
  TANDEM_RETURN_IF_ERROR(RequireKernelFloat(spec));
  const Shape x = ops::AsPlane(x_shape), weight = ops::AsPlane(weight_shape);
  TANDEM_ASSIGN_OR_RETURN(const tandem_cuda_window_params window,
                          ReadCudaWindow(spec, weight_shape.dims().subspan(2), x_shape, y_shape));
  const int64_t groups = spec.attributes->Int("groups");
  const int64_t taps = weight.Count(1, 4), backward_taps = weight.Count(2, 4) * weight[0] / groups;
  const int64_t pixels = x[0] * std::max(window.in_h * window.in_w, window.out_h * window.out_w);
  // Kernels round up to tiles in 32 bits.
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - 1024;
  if (taps > kMost || backward_taps > kMost || pixels > kMost) {
    return Unimplemented("x ", x_shape.ToString(), ", weight ", weight_shape.ToString(),
                         " on CUDA: batch times pixels, or the taps of a sum, above ", kMost);
  }
  return tandem_cuda_conv_params{.window = window,
                                 .batch = x[0],
                                 .groups = groups,
                                 .in_channels = x[1],
                                 .out_channels = weight[0],
                                 .dtype = static_cast<int32_t>(spec.dtype())};
}

absl::StatusOr<BoundKernel> BindConv(const KernelSpec& spec) {
  TANDEM_ASSIGN_OR_RETURN(const tandem_cuda_conv_params params,
                          ReadConv(spec, spec.in(0), spec.in(1), spec.out()));
  TANDEM_CUDA_CALL(conv, tandem_cuda_conv, spec);
  const bool bias = spec.has(2);
  return BoundKernel{[=](const KernelArgs& args) {
    conv(args.outputs[0], args.inputs[0], args.inputs[1], bias ? args.inputs[2] : nullptr, &params,
         conv.device->stream());
  }};
}

absl::StatusOr<BoundKernel> BindConvInputGrad(const KernelSpec& spec) {
  TANDEM_ASSIGN_OR_RETURN(const tandem_cuda_conv_params params,
                          ReadConv(spec, spec.out(), spec.in(1), spec.in(0)));
  TANDEM_CUDA_CALL(grad, tandem_cuda_conv_input_grad, spec);
  return BoundKernel{[=](const KernelArgs& args) {
    grad(args.outputs[0], args.inputs[0], args.inputs[1], &params, grad.device->stream());
  }};
}

absl::StatusOr<BoundKernel> BindConvWeightGrad(const KernelSpec& spec) {
  TANDEM_ASSIGN_OR_RETURN(const tandem_cuda_conv_params params,
                          ReadConv(spec, spec.in(1), spec.out(), spec.in(0)));
  TANDEM_CUDA_CALL(grad, tandem_cuda_conv_weight_grad, spec);
  TANDEM_CUDA_CALL(scratch_bytes, tandem_cuda_conv_weight_grad_scratch_bytes, spec);
  return BoundKernel{.run =
                         [=](const KernelArgs& args) {
                           grad(args.outputs[0], args.inputs[0], args.inputs[1], &params,
                                args.scratch, grad.device->stream());
                         },
                     .scratch_bytes = scratch_bytes(&params)};
}

}  // namespace

constinit const Kernel kConvKernel = {.bind = BindConv};
constinit const Kernel kConvInputGradKernel = {.bind = BindConvInputGrad};
constinit const Kernel kConvWeightGradKernel = {.bind = BindConvWeightGrad};

}  // namespace tandem::cuda

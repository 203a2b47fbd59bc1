// What the bindings of convolution, pooling and resizing share.
#pragma once

#include <limits>

#include "engine/backend/cuda/cuda_backend.h"
#include "engine/ops/window.h"

namespace tandem::cuda {

// The types that the spatial kernels compute with.
inline absl::Status RequireKernelFloat(const KernelSpec& spec) {
  switch (spec.dtype()) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
      return absl::OkStatus();
    default:
      return Unimplemented(DTypeName(spec.dtype()), " on CUDA, supported: f32, f16, bf16");
  }
}

// The window behind the node's attributes, over x (N, C, [H,] W) to y.
inline absl::StatusOr<tandem_cuda_window_params> ReadCudaWindow(const KernelSpec& spec,
                                                                std::span<const int64_t> kernel,
                                                                const Shape& x_shape,
                                                                const Shape& y_shape) {
  TANDEM_ASSIGN_OR_RETURN(const ops::Window read, ops::ReadWindow(*spec.attributes, kernel));
  const ops::Window window = ops::AsPlane(read);
  const Shape x = ops::AsPlane(x_shape), y = ops::AsPlane(y_shape);
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const int64_t taps = window[0].kernel * window[1].kernel;
  if (x[2] * x[3] > kMost || y[2] * y[3] > kMost || taps > kMost) {
    return Unimplemented("x ", x_shape.ToString(), ", y ", y_shape.ToString(),
                         " on CUDA: planes or kernels of 2^31 elements or more");
  }
  const ops::WindowDim &h = window[0], &w = window[1];
  return tandem_cuda_window_params{.in_h = x[2],
                                   .in_w = x[3],
                                   .out_h = y[2],
                                   .out_w = y[3],
                                   .kernel_h = h.kernel,
                                   .kernel_w = w.kernel,
                                   .stride_h = h.stride,
                                   .stride_w = w.stride,
                                   .dilation_h = h.dilation,
                                   .dilation_w = w.dilation,
                                   .pad_top = h.pad_begin,
                                   .pad_left = w.pad_begin,
                                   .pad_bottom = h.pad_end,
                                   .pad_right = w.pad_end};
}

}  // namespace tandem::cuda

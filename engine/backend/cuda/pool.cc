// Bindings of pooling and its adjoints.
#include <algorithm>
#include <limits>

#include "engine/backend/cuda/cuda_backend.h"
#include "engine/backend/cuda/kernels_table.h"
#include "engine/backend/cuda/spatial_window.h"

namespace tandem::cuda {
namespace {

absl::StatusOr<tandem_cuda_window_params> ReadPool(const KernelSpec& spec, const Shape& x,
                                                   const Shape& y) {
  return ReadCudaWindow(spec, spec.attributes->Ints("kernel"), x, y);
}

// Whether to go by maxima over 1, 2, 4 ... taps: where the windows' taps are many times the
// elements that they are taken from.
bool WorthSliding(const tandem_cuda_window_params& w) {
  const auto taps = [](int64_t kernel, int64_t in) {
    return static_cast<double>(std::min(kernel, in));
  };
  const double visits =
      taps(w.kernel_h, w.in_h) * taps(w.kernel_w, w.in_w) * static_cast<double>(w.out_h * w.out_w);
  return visits > 256.0 * static_cast<double>(w.in_h * w.in_w + w.out_h * w.out_w);
}

bool CanSlide(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

absl::StatusOr<BoundKernel> BindMaxPool(const KernelSpec& spec) {
  switch (spec.dtype()) {
    case DType::kF32:
    case DType::kF64:
    case DType::kF16:
    case DType::kBF16:
    case DType::kI8:
    case DType::kU8:
    case DType::kI32:
    case DType::kI64:
      break;
    default:
      return Unimplemented(DTypeName(spec.dtype()),
                           " on CUDA, supported: f32, f64, f16, bf16, i8, u8, i32, i64");
  }
  TANDEM_ASSIGN_OR_RETURN(const tandem_cuda_window_params window,
                          ReadPool(spec, spec.in(0), spec.out()));
  const auto dtype = static_cast<int32_t>(spec.dtype());
  const int64_t planes = spec.in(0)[0] * spec.in(0)[1];
  if (CanSlide(spec.dtype()) && WorthSliding(window)) {
    TANDEM_CUDA_CALL(pool, tandem_cuda_sliding_maximum, spec);
    TANDEM_CUDA_CALL(scratch_bytes, tandem_cuda_sliding_maximum_scratch_bytes, spec);
    return BoundKernel{.run =
                           [=](const KernelArgs& args) {
                             pool(args.outputs[0], args.out<int64_t>(1), args.inputs[0], planes,
                                  &window, dtype, args.scratch, pool.device->stream());
                           },
                       .scratch_bytes = scratch_bytes(planes, &window)};
  }
  TANDEM_CUDA_CALL(pool, tandem_cuda_max_pool, spec);
  return BoundKernel{[=](const KernelArgs& args) {
    pool(args.outputs[0], args.out<int64_t>(1), args.inputs[0], planes, &window, dtype,
         pool.device->stream());
  }};
}

absl::StatusOr<BoundKernel> BindMaxPoolGrad(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireKernelFloat(spec));
  const Shape &dy = spec.in(0), &x = spec.out();
  const int64_t planes = x[0] * x[1];
  const int64_t out = dy.Count(2, dy.rank()), in = x.Count(2, x.rank());
  if (std::max(in, out) > std::numeric_limits<int32_t>::max()) {
    return Unimplemented("dy ", dy.ToString(), " on CUDA: planes of 2^31 elements or more");
  }
  TANDEM_CUDA_CALL(grad, tandem_cuda_max_pool_grad, spec);
  TANDEM_CUDA_CALL(scratch_bytes, tandem_cuda_max_pool_grad_scratch_bytes, spec);
  const auto dtype = static_cast<int32_t>(spec.dtype());
  return BoundKernel{.run =
                         [=](const KernelArgs& args) {
                           grad(args.outputs[0], args.inputs[0], args.in<int64_t>(1), planes, in,
                                out, dtype, args.scratch, grad.device->stream());
                         },
                     .scratch_bytes = scratch_bytes(planes, out)};
}

absl::StatusOr<BoundKernel> BindAveragePool(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireKernelFloat(spec));
  TANDEM_ASSIGN_OR_RETURN(const tandem_cuda_window_params window,
                          ReadPool(spec, spec.in(0), spec.out()));
  TANDEM_CUDA_CALL(pool, tandem_cuda_average_pool, spec);
  const auto dtype = static_cast<int32_t>(spec.dtype());
  const auto include = static_cast<int32_t>(spec.attributes->Int("count_include_pad"));
  const int64_t planes = spec.in(0)[0] * spec.in(0)[1];
  return BoundKernel{[=](const KernelArgs& args) {
    pool(args.outputs[0], args.inputs[0], planes, &window, include, dtype, pool.device->stream());
  }};
}

absl::StatusOr<BoundKernel> BindAveragePoolGrad(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireKernelFloat(spec));
  TANDEM_ASSIGN_OR_RETURN(const tandem_cuda_window_params window,
                          ReadPool(spec, spec.out(), spec.in(0)));
  TANDEM_CUDA_CALL(grad, tandem_cuda_average_pool_grad, spec);
  const auto dtype = static_cast<int32_t>(spec.dtype());
  const auto include = static_cast<int32_t>(spec.attributes->Int("count_include_pad"));
  const int64_t planes = spec.out()[0] * spec.out()[1];
  return BoundKernel{[=](const KernelArgs& args) {
    grad(args.outputs[0], args.inputs[0], planes, &window, include, dtype, grad.device->stream());
  }};
}

}  // namespace

constinit const Kernel kMaxPoolKernel = {.bind = BindMaxPool, .skips_unused_outputs = true};
constinit const Kernel kMaxPoolGradKernel = {.bind = BindMaxPoolGrad};
constinit const Kernel kAveragePoolKernel = {.bind = BindAveragePool};
constinit const Kernel kAveragePoolGradKernel = {.bind = BindAveragePoolGrad};

}  // namespace tandem::cuda

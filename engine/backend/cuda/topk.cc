// Binding of TopK.
#include "engine/backend/cuda/cuda_backend.h"
#include "engine/backend/cuda/kernels_table.h"

namespace tandem::cuda {
namespace {

absl::StatusOr<BoundKernel> BindTopK(const KernelSpec& spec) {
  const Shape& shape = spec.in(0);
  const int64_t n = shape[-1], rows = shape.Count(0, shape.rank() - 1);
  const int64_t k = spec.attributes->Int("k");
  if (k > TANDEM_CUDA_TOPK_MOST || n > INT32_MAX) {
    return Unimplemented("the ", k, " best of ", n, " are not supported on CUDA: at most ",
                         TANDEM_CUDA_TOPK_MOST, " of ", INT32_MAX);
  }
  TANDEM_CUDA_CALL(topk, tandem_cuda_topk, spec);
  const int32_t largest = spec.attributes->Int("largest") != 0 ? 1 : 0;
  const auto dtype = static_cast<int32_t>(spec.dtype());
  return BoundKernel{[=](const KernelArgs& args) {
    topk(largest, dtype, args.outputs[0], args.out<int64_t>(1), args.inputs[0], rows, n, k,
         topk.device->stream());
  }};
}

}  // namespace

constinit const Kernel kTopKKernel = {.bind = BindTopK};

}  // namespace tandem::cuda

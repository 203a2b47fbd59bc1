// Bindings of the elementwise operators.
#include "engine/backend/cuda/cuda_backend.h"
#include "engine/backend/cuda/kernels_table.h"

namespace tandem::cuda {
namespace {

absl::StatusOr<BoundKernel> BindNeg(const KernelSpec& spec) {
  if (spec.dtype() != DType::kF32) return Unimplemented("no kernel for ", DTypeName(spec.dtype()));
  TANDEM_CUDA_CALL(negate, tandem_cuda_negate, spec);
  const int64_t n = spec.out().num_elements();
  return BoundKernel{[=](const KernelArgs& args) {
    negate(args.out<float>(), args.in<float>(0), n, negate.device->stream());
  }};
}

}  // namespace

constinit const Kernel kNegKernel = {.bind = BindNeg, .in_place = true};

}  // namespace tandem::cuda

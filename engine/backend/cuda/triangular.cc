// Binding of TriangularSolve.
#include "engine/backend/cuda/cuda_backend.h"
#include "engine/backend/cuda/kernels_table.h"

namespace tandem::cuda {
namespace {

absl::StatusOr<BoundKernel> BindTriangularSolve(const KernelSpec& spec) {
  TANDEM_CUDA_CALL(solve, tandem_cuda_triangular_solve, spec);
  const Shape& shape = spec.out();
  const int64_t size = shape[-2], columns = shape[-1], batch = shape.Count(0, shape.rank() - 2);
  const int32_t transposed = spec.attributes->Int("transpose_l") != 0 ? 1 : 0;
  const auto dtype = static_cast<int32_t>(spec.dtype());
  return BoundKernel{[=](const KernelArgs& args) {
    solve(dtype, transposed, args.outputs[0], args.inputs[0], args.inputs[1], batch, size, columns,
          solve.device->stream());
  }};
}

}  // namespace

constinit const Kernel kTriangularSolveKernel = {.bind = BindTriangularSolve};

}  // namespace tandem::cuda

// Bindings of rotary positions and of the gradient of an embedding.
#include <limits>

#include "engine/backend/cuda/floats.h"
#include "engine/backend/cuda/kernels_table.h"

namespace tandem::cuda {
namespace {

// x, positions, table
absl::StatusOr<BoundKernel> BindRope(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireFloat(spec, 0));
  TANDEM_CUDA_CALL(rope, tandem_cuda_rope, spec);
  const Shape& x = spec.in(0);
  tandem_cuda_rope_params params = {};
  params.tokens = x[0];
  params.heads = x[1];
  params.head_dim = x[2];
  params.x_stride = params.out_stride = x[1] * x[2];
  params.table_positions = spec.in(2)[0];
  params.dtype = Number(spec.dtype());
  params.table_dtype = Number(spec.dtype(2));
  params.inverse = spec.attributes->Int("inverse") != 0 ? 1 : 0;
  return BoundKernel{[=](const KernelArgs& args) {
    tandem_cuda_rope_params p = params;
    p.x = args.inputs[0];
    p.positions = args.in<int32_t>(1);
    p.table = args.inputs[2];
    p.out = args.outputs[0];
    rope(&p, rope.device->stream());
  }};
}

absl::Status RequireSummable(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kF64:
    case DType::kBF16:
    case DType::kF16:
    case DType::kI32:
    case DType::kI64:
      return absl::OkStatus();
    default:
      return UnsupportedDType(dtype);
  }
}

// dy, indices
absl::StatusOr<BoundKernel> BindGatherGrad(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireSummable(spec.dtype()));
  TANDEM_CUDA_CALL(grad, tandem_cuda_gather_grad, spec);
  TANDEM_CUDA_CALL(scratch, tandem_cuda_gather_grad_scratch, spec);
  const Shape& out = spec.out();
  tandem_cuda_gather_grad_params params = {};
  params.rows = spec.in(1).num_elements();
  params.cols = out.Count(1, out.rank());
  params.vocabulary = out[0];
  params.dtype = Number(spec.dtype());
  params.id_dtype = Number(spec.dtype(1));
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - 1024;
  if (params.rows > kMost || params.vocabulary > kMost) {
    return Unimplemented("a gradient of ", params.rows, " rows into ", params.vocabulary,
                         " is not supported on CUDA");
  }
  int64_t bytes = 0;
  scratch(params.rows, params.vocabulary, &bytes);
  return BoundKernel{[=](const KernelArgs& args) {
                       tandem_cuda_gather_grad_params p = params;
                       p.dy = args.inputs[0];
                       p.ids = args.inputs[1];
                       p.out = args.outputs[0];
                       p.scratch = args.scratch;
                       grad(&p, grad.device->stream());
                     },
                     bytes};
}

}  // namespace

// Not in_place: out may lie on x, but not on positions or table, and the planner would not know.
constinit const Kernel kRopeKernel = {.bind = BindRope};
constinit const Kernel kGatherGradKernel = {.bind = BindGatherGrad};

}  // namespace tandem::cuda

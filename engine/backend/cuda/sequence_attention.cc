// Bindings of the attention operators.
#include <limits>

#include "engine/backend/cuda/cuda_backend.h"
#include "engine/backend/cuda/kernels_table.h"

namespace tandem::cuda {
namespace {

constexpr int64_t kMaxHeadDim = 256;

// All that binding knows.
absl::StatusOr<tandem_cuda_attention_params> Sizes(const KernelSpec& spec) {
  const DType dtype = spec.dtype();
  if (dtype != DType::kF32 && dtype != DType::kF16 && dtype != DType::kBF16) {
    return Unimplemented("no kernel for ", DTypeName(dtype));
  }
  const Shape &q = spec.in(0), &k = spec.in(1);
  if (q[2] > kMaxHeadDim) {
    return Unimplemented("head dimension ", q[2], " is above ", kMaxHeadDim);
  }
  const double scale = spec.attributes->Float("scale");
  if (!(scale > 0)) return Unimplemented("scale ", scale, " is not above 0");
  if (q[0] * q[1] > std::numeric_limits<int32_t>::max() / 2 || k[1] > 65535) {
    return Unimplemented("q ", q.ToString(), " is too large");
  }
  tandem_cuda_attention_params p{};
  p.dtype = static_cast<int32_t>(dtype);
  p.capability = DeviceOf(spec).capability();
  p.tokens = static_cast<int32_t>(q[0]);
  p.sequences = static_cast<int32_t>(spec.in(3)[0] - 1);
  p.heads = static_cast<int32_t>(q[1]);
  p.kv_heads = static_cast<int32_t>(k[1]);
  p.head_dim = static_cast<int32_t>(q[2]);
  p.scale = static_cast<float>(scale);
  return p;
}

void SetInputs(const KernelArgs& args, tandem_cuda_attention_params& p) {
  p.q = args.inputs[0];
  p.k = args.inputs[1];
  p.v = args.inputs[2];
  p.query_start = args.in<int32_t>(3);
}

absl::StatusOr<BoundKernel> BindAttention(const KernelSpec& spec) {
  TANDEM_ASSIGN_OR_RETURN(const tandem_cuda_attention_params params, Sizes(spec));
  TANDEM_CUDA_CALL(attention, tandem_cuda_attention, spec);
  return BoundKernel{[=](const KernelArgs& args) {
    tandem_cuda_attention_params p = params;
    SetInputs(args, p);
    p.out = args.outputs[0];
    p.lse = args.out<float>(1);
    attention(&p, attention.device->stream());
  }};
}

// q, k, v, query_start, out, lse, dout -> dq, dk, dv
absl::StatusOr<BoundKernel> BindAttentionGrad(const KernelSpec& spec) {
  TANDEM_ASSIGN_OR_RETURN(const tandem_cuda_attention_params params, Sizes(spec));
  TANDEM_CUDA_CALL(gradient, tandem_cuda_attention_grad, spec);
  return BoundKernel{[=](const KernelArgs& args) {
                       tandem_cuda_attention_grad_params g{};
                       g.forward = params;
                       SetInputs(args, g.forward);
                       // The backward pass only reads these two.
                       g.forward.out = const_cast<void*>(args.inputs[4]);
                       g.forward.lse = const_cast<float*>(args.in<float>(5));
                       g.dout = args.inputs[6];
                       g.dq = args.outputs[0];
                       g.dk = args.outputs[1];
                       g.dv = args.outputs[2];
                       g.delta = static_cast<float*>(args.scratch);
                       gradient(&g, gradient.device->stream());
                     },
                     int64_t{params.tokens} * params.heads * static_cast<int64_t>(sizeof(float))};
}

// q, k, v, query_start, past_length, block_table, k_cache, v_cache
absl::StatusOr<BoundKernel> BindPagedAttention(const KernelSpec& spec) {
  TANDEM_ASSIGN_OR_RETURN(tandem_cuda_attention_params params, Sizes(spec));
  if (spec.dtype(6) != spec.dtype() || spec.dtype(7) != spec.dtype()) {
    return Unimplemented("a cache of ", DTypeName(spec.dtype(6)), " for queries of ",
                         DTypeName(spec.dtype()));
  }
  params.blocks_per_sequence = static_cast<int32_t>(spec.in(5)[1]);
  params.pages = static_cast<int32_t>(spec.in(6)[0]);
  TANDEM_CUDA_CALL(attention, tandem_cuda_paged_attention, spec);
  TANDEM_CUDA_CALL(scratch, tandem_cuda_paged_attention_scratch, spec);
  int64_t scratch_bytes = 0;
  scratch(&params, &scratch_bytes);
  return BoundKernel{[=](const KernelArgs& args) {
                       tandem_cuda_attention_params p = params;
                       SetInputs(args, p);
                       p.past_length = args.in<int32_t>(4);
                       p.block_table = args.in<int32_t>(5);
                       // The caches are written in place: that is the operator's meaning.
                       p.k_cache = const_cast<void*>(args.inputs[6]);
                       p.v_cache = const_cast<void*>(args.inputs[7]);
                       p.out = args.outputs[0];
                       p.scratch = args.scratch;
                       attention(&p, attention.device->stream());
                     },
                     scratch_bytes};
}

}  // namespace

constinit const Kernel kAttentionKernel = {.bind = BindAttention};
constinit const Kernel kAttentionGradKernel = {.bind = BindAttentionGrad};
constinit const Kernel kPagedAttentionKernel = {.bind = BindPagedAttention};

}  // namespace tandem::cuda

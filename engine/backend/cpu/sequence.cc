// Kernels of the operators over packed sequences.
#include <algorithm>
#include <limits>

#include "engine/backend/cpu/dtypes.h"
#include "engine/backend/cpu/kernels/attention.h"
#include "engine/backend/cpu/kernels/rowwise.h"
#include "engine/backend/cpu/kernels_table.h"

namespace tandem::cpu {
namespace {

absl::StatusOr<BoundKernel> BindRope(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireF32(spec, 0));
  const Shape& x = spec.in(0);
  RopeParams params;
  params.tokens = x[0];
  params.heads = x[1];
  params.head_dim = x[2];
  params.in_token_stride = params.out_token_stride = x[1] * x[2];
  const int64_t positions = spec.in(2)[0];
  const bool inverse = spec.attributes->Int("inverse") != 0;
  if (positions > std::numeric_limits<int32_t>::max() / 2) {
    return Unimplemented("a table of ", positions, " positions");
  }
  return BoundKernel{
      [=](const KernelArgs& args) {
        // The kernel's two tables, one row a position, are here the two halves of one: its rows are
        // half as wide as ours, so ours are every second of them.
        const auto* given = args.in<int32_t>(1);
        auto* rows = static_cast<int32_t*>(args.scratch);
        for (int64_t i = 0; i < params.tokens; ++i) {
          rows[i] = 2 * static_cast<int32_t>(std::clamp<int64_t>(given[i], 0, positions - 1));
        }
        const float* cosine = args.in<float>(2);
        Rope(params, args.in<float>(0), rows, cosine, cosine + params.head_dim / 2, inverse,
             args.out<float>());
      },
      params.tokens * static_cast<int64_t>(sizeof(int32_t))};
}

// Everything of the forward pass that binding knows.
absl::StatusOr<AttentionParams> Sizes(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireF32(spec, 0));
  const Shape &q = spec.in(0), &k = spec.in(1);
  if (q[2] > kMaxAttentionHeadDim) {
    return Unimplemented("head dimension ", q[2], " is above ", kMaxAttentionHeadDim);
  }
  AttentionParams params{};
  params.tokens = q[0];
  params.sequences = spec.in(3)[0] - 1;
  params.heads = q[1];
  params.kv_heads = k[1];
  params.head_dim = q[2];
  params.q_stride = q[1] * q[2];
  params.k_stride = params.v_stride = k[1] * k[2];
  params.scale = static_cast<float>(spec.attributes->Float("scale"));
  return params;
}

absl::StatusOr<BoundKernel> BindAttention(const KernelSpec& spec) {
  TANDEM_ASSIGN_OR_RETURN(const AttentionParams params, Sizes(spec));
  return BoundKernel{[params](const KernelArgs& args) {
                       AttentionParams p = params;
                       p.q = args.in<float>(0);
                       p.k = args.in<float>(1);
                       p.v = args.in<float>(2);
                       p.query_start = args.in<int32_t>(3);
                       p.out = args.out<float>(0);
                       p.lse = args.out<float>(1);
                       AttentionForward(p, args.scratch);
                     },
                     AttentionScratchBytes(params)};
}

// q, k, v, query_start, out, lse, dout -> dq, dk, dv
absl::StatusOr<BoundKernel> BindAttentionGrad(const KernelSpec& spec) {
  AttentionBackwardParams params{};
  TANDEM_ASSIGN_OR_RETURN(params.forward, Sizes(spec));
  params.grad_q_stride = params.forward.q_stride;
  params.grad_k_stride = params.grad_v_stride = params.forward.k_stride;
  return BoundKernel{[params](const KernelArgs& args) {
                       AttentionBackwardParams p = params;
                       p.forward.q = args.in<float>(0);
                       p.forward.k = args.in<float>(1);
                       p.forward.v = args.in<float>(2);
                       p.forward.query_start = args.in<int32_t>(3);
                       // The backward pass only reads these two.
                       p.forward.out = const_cast<float*>(args.in<float>(4));
                       p.forward.lse = const_cast<float*>(args.in<float>(5));
                       p.grad_out = args.in<float>(6);
                       p.grad_q = args.out<float>(0);
                       p.grad_k = args.out<float>(1);
                       p.grad_v = args.out<float>(2);
                       AttentionBackward(p, args.scratch);
                     },
                     AttentionBackwardScratchBytes(params)};
}

// q, k, v, query_start, past_length, block_table, k_cache, v_cache
absl::StatusOr<BoundKernel> BindPagedAttention(const KernelSpec& spec) {
  TANDEM_ASSIGN_OR_RETURN(const AttentionParams sizes, Sizes(spec));
  PagedAttentionParams params{};
  params.tokens = sizes.tokens;
  params.sequences = sizes.sequences;
  params.heads = sizes.heads;
  params.kv_heads = sizes.kv_heads;
  params.head_dim = sizes.head_dim;
  params.blocks_per_sequence = spec.in(5)[1];
  params.q_stride = sizes.q_stride;
  params.k_stride = sizes.k_stride;
  params.v_stride = sizes.v_stride;
  params.scale = sizes.scale;
  return BoundKernel{[params](const KernelArgs& args) {
                       PagedAttentionParams p = params;
                       p.q = args.in<float>(0);
                       p.k = args.in<float>(1);
                       p.v = args.in<float>(2);
                       p.query_start = args.in<int32_t>(3);
                       p.past_length = args.in<int32_t>(4);
                       p.block_table = args.in<int32_t>(5);
                       // The caches are written in place: that is the operator's meaning.
                       p.k_cache = const_cast<float*>(args.in<float>(6));
                       p.v_cache = const_cast<float*>(args.in<float>(7));
                       p.out = args.out<float>();
                       PagedAttentionForward(p, args.scratch);
                     },
                     PagedAttentionScratchBytes(params)};
}

}  // namespace

constinit const Kernel kRopeKernel = {.bind = BindRope, .in_place = true};
constinit const Kernel kAttentionKernel = {.bind = BindAttention};
constinit const Kernel kAttentionGradKernel = {.bind = BindAttentionGrad};
constinit const Kernel kPagedAttentionKernel = {.bind = BindPagedAttention};

}  // namespace tandem::cpu

// Attention's entry points, and the kernels around it: writing the cache, merging splits, delta.
#include "engine/backend/cuda/kernels/attention_kernels.h"

namespace tandem::cuda {
namespace {

constexpr int kRowThreads = 128;  // four rows a block, one a warp

// The sequence of a token: the last one that starts at or before it.
__device__ __forceinline__ int SequenceOf(const int32_t* query_start, int sequences, int token) {
  int low = 0, high = sequences - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (query_start[middle] <= token) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// `units` of type U make a row of one token and head.
template <typename U>
__global__ void WriteCache(AttentionParams p, int units) {
  const int64_t all = static_cast<int64_t>(p.tokens) * p.kv_heads * units;
  for (int64_t i = GridIndex(); i < all; i += GridStride()) {
    const int64_t row = i / units;
    const int unit = static_cast<int>(i - row * units);
    const int token = static_cast<int>(row / p.kv_heads), head = static_cast<int>(row % p.kv_heads);
    const int sequence = SequenceOf(p.query_start, p.sequences, token);
    const int position = p.past_length[sequence] + token - p.query_start[sequence];
    const int64_t page = p.block_table[static_cast<int64_t>(sequence) * p.blocks_per_sequence +
                                       position / kPageKeys];
    const int64_t to =
        ((page * p.kv_heads + head) * kPageKeys + position % kPageKeys) * units + unit;
    static_cast<U*>(p.k_cache)[to] = static_cast<const U*>(p.k)[i];
    static_cast<U*>(p.v_cache)[to] = static_cast<const U*>(p.v)[i];
  }
}

// One warp a (token, head).
template <typename T>
__global__ void __launch_bounds__(kRowThreads) MergePartials(AttentionParams p, int splits) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kRowThreads / 32) + warp;
  if (row >= static_cast<int64_t>(p.tokens) * p.heads) return;
  const int token = static_cast<int>(row / p.heads), head = static_cast<int>(row % p.heads);
  const int sequence = SequenceOf(p.query_start, p.sequences, token);
  const int keys = p.past_length[sequence] + token - p.query_start[sequence] + 1;
  const Partials partials(p, splits);
  const float c = p.scale * kLog2e;
  float m = partials.m[row], l = partials.l[row], o[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    if (lane + 32 * j < p.head_dim) o[j] = partials.o[row * p.head_dim + lane + 32 * j];
  }
  for (int z = 1; z < SplitsOf(keys); ++z) {
    const int64_t at = PartialRow(p, z, token, head);
    const Merge merge = MergeSplits(m, l, partials.m[at], partials.l[at], c);
    m = merge.m;
    l = merge.l;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (lane + 32 * j < p.head_dim) {
        o[j] = MergedOutput(merge, o[j], partials.o[at * p.head_dim + lane + 32 * j]);
      }
    }
  }
  const float inverse = 1.0f / l;
  T* const out = static_cast<T*>(p.out) + row * p.head_dim;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    if (lane + 32 * j < p.head_dim) FromFloat(Normalized(o[j], inverse), &out[lane + 32 * j]);
  }
  if (p.lse != nullptr && lane == 0) p.lse[row] = LogSumExp(m, l, p.scale);
}

// delta = rowsum(dout * out), one warp a row.
template <typename T>
__global__ void __launch_bounds__(kRowThreads) Delta(AttentionGradParams p) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kRowThreads / 32) + warp;
  if (row >= static_cast<int64_t>(p.forward.tokens) * p.forward.heads) return;
  const int head_dim = p.forward.head_dim;
  const T* const out = static_cast<const T*>(p.forward.out) + row * head_dim;
  const T* const dout = static_cast<const T*>(p.dout) + row * head_dim;
  float sum = 0;
  for (int d = lane; d < head_dim; d += 32) sum = fmaf(ToFloat(out[d]), ToFloat(dout[d]), sum);
  for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(kFullWarp, sum, mask);
  if (lane == 0) p.delta[row] = sum;
}

unsigned RowBlocks(const AttentionParams& p) {
  constexpr int64_t kRows = kRowThreads / 32;
  return static_cast<unsigned>((static_cast<int64_t>(p.tokens) * p.heads + kRows - 1) / kRows);
}

// Few rows leave the device idle unless their keys are split over the grid.
int GridSplits(const AttentionParams& p) {
  constexpr int kBlocksThatFill = 264;
  if (p.whole_rows != 0) return 1;
  const int tiles = TileBound(p.tokens, p.sequences, p.heads / p.kv_heads, 64);
  if (static_cast<int64_t>(tiles) * p.kv_heads >= kBlocksThatFill) return 1;
  const int splits = SplitsOf(static_cast<int64_t>(p.blocks_per_sequence) * kPageKeys);
  return splits > 1 ? splits : 1;
}

bool HasKernel(const AttentionParams& p) {
  return (p.dtype == TANDEM_CUDA_F32 || p.dtype == TANDEM_CUDA_F16 ||
          p.dtype == TANDEM_CUDA_BF16) &&
         p.head_dim <= 256 && p.scale > 0;
}

bool OnTensorCores(const AttentionParams& p) {
  return p.dtype != TANDEM_CUDA_F32 && (p.head_dim == 64 || p.head_dim == 128);
}

cudaError_t Forward(const AttentionParams& p, int splits, cudaStream_t stream) {
  if (OnTensorCores(p)) {
    return p.capability == 90 ? AttentionHopper(p, splits, stream)
                              : AttentionMma(p, splits, stream);
  }
  return AttentionGeneric(p, splits, stream);
}

cudaError_t LaunchWriteCache(const AttentionParams& p, cudaStream_t stream) {
  const int row_bytes = p.head_dim * (p.dtype == TANDEM_CUDA_F32 ? 4 : 2);
  const int unit = row_bytes % 16 == 0 ? 16 : row_bytes % 4 == 0 ? 4 : 2, units = row_bytes / unit;
  const unsigned grid = BlocksFor(static_cast<int64_t>(p.tokens) * p.kv_heads * units, 256);
  if (unit == 16) return Launch(WriteCache<uint4>, grid, 256, 0, stream, p, units);
  if (unit == 4) return Launch(WriteCache<uint32_t>, grid, 256, 0, stream, p, units);
  return Launch(WriteCache<uint16_t>, grid, 256, 0, stream, p, units);
}

cudaError_t LaunchMerge(const AttentionParams& p, int splits, cudaStream_t stream) {
  const auto kernel = p.dtype == TANDEM_CUDA_F32   ? MergePartials<float>
                      : p.dtype == TANDEM_CUDA_F16 ? MergePartials<F16>
                                                   : MergePartials<Bf16>;
  return Launch(kernel, RowBlocks(p), kRowThreads, 0, stream, p, splits);
}

}  // namespace
}  // namespace tandem::cuda

using namespace tandem::cuda;

int tandem_cuda_attention(const struct tandem_cuda_attention_params* params,
                          tandem_cuda_stream stream) {
  AttentionParams p = *params;
  p.past_length = p.block_table = nullptr;
  if (!HasKernel(p)) return TANDEM_CUDA_UNSUPPORTED;
  return Forward(p, 1, static_cast<cudaStream_t>(stream));
}

int tandem_cuda_paged_attention_scratch(const struct tandem_cuda_attention_params* params,
                                        int64_t* bytes) {
  const int splits = GridSplits(*params);
  *bytes = splits > 1 ? Partials::Bytes(*params, splits) : 0;
  return HasKernel(*params) ? cudaSuccess : TANDEM_CUDA_UNSUPPORTED;
}

int tandem_cuda_paged_attention(const struct tandem_cuda_attention_params* params,
                                tandem_cuda_stream opaque) {
  const AttentionParams& p = *params;
  const auto stream = static_cast<cudaStream_t>(opaque);
  if (!HasKernel(p)) return TANDEM_CUDA_UNSUPPORTED;
  cudaError_t error = LaunchWriteCache(p, stream);
  if (error != cudaSuccess) return error;
  const int splits = GridSplits(p);
  error = Forward(p, splits, stream);
  if (error != cudaSuccess || splits == 1) return error;
  return LaunchMerge(p, splits, stream);
}

int tandem_cuda_attention_grad(const struct tandem_cuda_attention_grad_params* params,
                               tandem_cuda_stream opaque) {
  AttentionGradParams p = *params;
  const auto stream = static_cast<cudaStream_t>(opaque);
  p.forward.past_length = p.forward.block_table = nullptr;
  if (!HasKernel(p.forward)) return TANDEM_CUDA_UNSUPPORTED;
  const auto kernel = p.forward.dtype == TANDEM_CUDA_F32   ? Delta<float>
                      : p.forward.dtype == TANDEM_CUDA_F16 ? Delta<F16>
                                                           : Delta<Bf16>;
  const cudaError_t error = Launch(kernel, RowBlocks(p.forward), kRowThreads, 0, stream, p);
  if (error != cudaSuccess) return error;
  if (OnTensorCores(p.forward)) {
    return p.forward.capability == 90 ? AttentionGradHopper(p, stream)
                                      : AttentionGradMma(p, stream);
  }
  return AttentionGradGeneric(p, stream);
}

// Attention in plain f32 arithmetic for any head dimension up to 256: small models, f32, parity.
//
// Four warps a block, four rows a warp. For scores a lane is a key (its dot products are chains in
// order of d); for outputs a lane is every 32nd of the head's dimensions.
#include "engine/backend/cuda/kernels/attention_kernels.h"

namespace tandem::cuda {
namespace {

constexpr int kThreads = 128, kRows = 16, kWarpRows = 4, kKeys = 32;

struct Shared {
  float *q, *kv, *probability;  // (kRows, D), (kKeys, D + 1), (kRows, kKeyBlock)

  __host__ __device__ static size_t Bytes(int head_dim) {
    return sizeof(float) * (kRows * head_dim + kKeys * (head_dim + 1) + kRows * kKeyBlock);
  }
  __device__ explicit Shared(int head_dim) {
    q = reinterpret_cast<float*>(DynamicShared());
    kv = q + kRows * head_dim;
    probability = kv + kKeys * (head_dim + 1);
  }
};

// Rows `first`... of keys or values; zero from `end` on.
template <typename T>
__device__ void LoadKeys(const KeyRows<T>& rows, int first, int end, int head_dim, float* to) {
#pragma unroll 2
  for (int i = static_cast<int>(threadIdx.x); i < kKeys * head_dim; i += kThreads) {
    const int key = i / head_dim, d = i - key * head_dim;
    to[key * (head_dim + 1) + d] = first + key < end ? ToFloat(rows.Row(first + key)[d]) : 0.0f;
  }
}

// The running softmax of a warp's rows; l is a part a lane.
template <int kLaneDims>
struct Softmax {
  float m[kWarpRows], l[kWarpRows], o[kWarpRows][kLaneDims];

  __device__ void Clear() {
#pragma unroll
    for (int i = 0; i < kWarpRows; ++i) {
      m[i] = -INFINITY;
      l[i] = 0;
#pragma unroll
      for (int j = 0; j < kLaneDims; ++j) o[i][j] = 0;
    }
  }
  __device__ void SumLanes() {
#pragma unroll
    for (int i = 0; i < kWarpRows; ++i) {
      for (int mask = 16; mask > 0; mask /= 2) l[i] += __shfl_xor_sync(kFullWarp, l[i], mask);
    }
  }
  __device__ void MergeLater(const Softmax& later, float c) {
#pragma unroll
    for (int i = 0; i < kWarpRows; ++i) {
      const Merge merge = MergeSplits(m[i], l[i], later.m[i], later.l[i], c);
      m[i] = merge.m;
      l[i] = merge.l;
#pragma unroll
      for (int j = 0; j < kLaneDims; ++j) o[i][j] = MergedOutput(merge, o[i][j], later.o[i][j]);
    }
  }
};

// One block of keys for the warp's rows, the first of which is `row`.
template <typename T, int kLaneDims>
__device__ void KeyBlockStep(const AttentionParams& p, const QueryTile& tile, const Shared& shared,
                             const KeyRows<T>& keys, const KeyRows<T>& values, int block,
                             Softmax<kLaneDims>& sum) {
  const int row = static_cast<int>(threadIdx.x) / 32 * kWarpRows;
  const int lane = static_cast<int>(threadIdx.x) % 32, first = block * kKeyBlock;
  const int end = tile.Keys(), head_dim = p.head_dim;
  const float c = p.scale * kLog2e;
  float s[kWarpRows][kKeyBlock / kKeys];
#pragma unroll
  for (int part = 0; part < kKeyBlock / kKeys; ++part) {
    __syncthreads();
    LoadKeys(keys, first + part * kKeys, end, head_dim, shared.kv);
    __syncthreads();
    const float* const key = shared.kv + lane * (head_dim + 1);
#pragma unroll
    for (int i = 0; i < kWarpRows; ++i) s[i][part] = 0;
#pragma unroll 4
    for (int d = 0; d < head_dim; ++d) {
#pragma unroll
      for (int i = 0; i < kWarpRows; ++i) {
        s[i][part] = fmaf(shared.q[(row + i) * head_dim + d], key[d], s[i][part]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kWarpRows; ++i) {
    const int position = row + i < tile.rows ? tile.Position(row + i) : -1;
    float m = sum.m[i];
#pragma unroll
    for (int part = 0; part < kKeyBlock / kKeys; ++part) {
      if (first + part * kKeys + lane > position) s[i][part] = -INFINITY;
      m = fmaxf(m, s[i][part]);
    }
    for (int mask = 16; mask > 0; mask /= 2) m = fmaxf(m, __shfl_xor_sync(kFullWarp, m, mask));
    const float scale = Rescale(sum.m[i], m, c), mc = ScaledMaximum(m, c);
    sum.m[i] = m;
    sum.l[i] *= scale;
#pragma unroll
    for (int part = 0; part < kKeyBlock / kKeys; ++part) {
      const float probability = Probability(s[i][part], mc, c);
      sum.l[i] += probability;
      shared.probability[(row + i) * kKeyBlock + part * kKeys + lane] = probability;
    }
#pragma unroll
    for (int j = 0; j < kLaneDims; ++j) sum.o[i][j] *= scale;
  }
  for (int part = 0; part < kKeyBlock / kKeys; ++part) {
    __syncthreads();
    LoadKeys(values, first + part * kKeys, end, head_dim, shared.kv);
    __syncthreads();
#pragma unroll 2
    for (int key = 0; key < kKeys; ++key) {
      const float* const value = shared.kv + key * (head_dim + 1);
      const float* const weight = shared.probability + row * kKeyBlock + part * kKeys + key;
#pragma unroll
      for (int j = 0; j < kLaneDims; ++j) {
        const int d = lane + 32 * j;
        if (d < head_dim) {
#pragma unroll
          for (int i = 0; i < kWarpRows; ++i) {
            sum.o[i][j] = fmaf(weight[i * kKeyBlock], value[d], sum.o[i][j]);
          }
        }
      }
    }
  }
}

template <typename T, int kLaneDims>
__global__ void __launch_bounds__(kThreads) Forward(AttentionParams p, int splits) {
  QueryTile tile;
  if (!FindQueryTile(p, static_cast<int>(gridDim.x - 1 - blockIdx.x), kRows, &tile)) return;
  const int kv_head = static_cast<int>(blockIdx.y), split = static_cast<int>(blockIdx.z);
  const int blocks = (tile.KeyEnd() + kKeyBlock - 1) / kKeyBlock;
  const int first = splits > 1 ? split * kSplitBlocks : 0;
  const int last = splits > 1 && blocks > first + kSplitBlocks ? first + kSplitBlocks : blocks;
  if (first >= last) return;
  const int head_dim = p.head_dim;
  const Shared shared(head_dim);
  for (int i = static_cast<int>(threadIdx.x); i < kRows * head_dim; i += kThreads) {
    const int row = i / head_dim, d = i - row * head_dim;
    float value = 0;
    if (row < tile.rows) {
      const int64_t at =
          static_cast<int64_t>(tile.Token(row)) * p.heads + kv_head * tile.group + tile.Head(row);
      value = ToFloat(static_cast<const T*>(p.q)[at * head_dim + d]);
    }
    shared.q[i] = value;
  }
  const KeyRows<T> keys = KeyRowsOf<T>(p, p.k, p.k_cache, tile.sequence, tile.start, kv_head);
  const KeyRows<T> values = KeyRowsOf<T>(p, p.v, p.v_cache, tile.sequence, tile.start, kv_head);
  const float c = p.scale * kLog2e;
  Softmax<kLaneDims> sum, all;
  sum.Clear();
  for (int block = first; block < last; ++block) {
    if (block != first && block % kSplitBlocks == 0) {
      sum.SumLanes();
      if (block == kSplitBlocks) {
        all = sum;
      } else {
        all.MergeLater(sum, c);
      }
      sum.Clear();
    }
    KeyBlockStep<T>(p, tile, shared, keys, values, block, sum);
  }
  sum.SumLanes();
  if (last - first > kSplitBlocks) {
    all.MergeLater(sum, c);
    sum = all;
  }
  const Partials partials(p, splits);
  const int row = static_cast<int>(threadIdx.x) / 32 * kWarpRows;
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < kWarpRows; ++i) {
    if (row + i >= tile.rows) continue;
    const int64_t at = PartialRow(p, splits > 1 ? split : 0, tile.Token(row + i),
                                  kv_head * tile.group + tile.Head(row + i));
    const float inverse = 1.0f / sum.l[i];
#pragma unroll
    for (int j = 0; j < kLaneDims; ++j) {
      const int d = lane + 32 * j;
      if (d >= head_dim) continue;
      if (splits > 1) {
        partials.o[at * head_dim + d] = sum.o[i][j];
      } else {
        FromFloat(Normalized(sum.o[i][j], inverse), &static_cast<T*>(p.out)[at * head_dim + d]);
      }
    }
    if (lane == 0 && splits > 1) {
      partials.m[at] = sum.m[i];
      partials.l[at] = sum.l[i];
    } else if (lane == 0 && p.lse != nullptr) {
      p.lse[at] = LogSumExp(sum.m[i], sum.l[i], p.scale);
    }
  }
}

template <typename T>
cudaError_t LaunchForward(const AttentionParams& p, int splits, cudaStream_t stream) {
  const auto tiles =
      static_cast<unsigned>(TileBound(p.tokens, p.sequences, p.heads / p.kv_heads, kRows));
  const dim3 grid(tiles, static_cast<unsigned>(p.kv_heads), static_cast<unsigned>(splits));
  const auto kernel = p.head_dim <= 64    ? Forward<T, 2>
                      : p.head_dim <= 128 ? Forward<T, 4>
                                          : Forward<T, 8>;
  return Launch(kernel, grid, kThreads, Shared::Bytes(p.head_dim), stream, p, splits);
}

}  // namespace

cudaError_t AttentionGeneric(const AttentionParams& p, int splits, cudaStream_t stream) {
  if (p.dtype == TANDEM_CUDA_F32) return LaunchForward<float>(p, splits, stream);
  if (p.dtype == TANDEM_CUDA_F16) return LaunchForward<F16>(p, splits, stream);
  return LaunchForward<Bf16>(p, splits, stream);
}

}  // namespace tandem::cuda

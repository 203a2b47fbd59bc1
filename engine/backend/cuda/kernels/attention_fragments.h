// The softmax on accumulators of 16 rows a warp, for both tensor-core families. Values stand as
// mma.sync and wgmma leave them: with g = lane / 4 and t = lane % 4, s[4 j + {0, 1}] is row g,
// columns 8 j + 2 t + {0, 1}, and s[4 j + {2, 3}] is row g + 8.
#pragma once

#include "engine/backend/cuda/kernels/attention_schedule.h"

namespace tandem::cuda {

// Two values rounded to T, the first in the lower half.
template <typename T>
__device__ __forceinline__ uint32_t Pack(float low, float high) {
  return FromFloat<T>(low).bits | static_cast<uint32_t>(FromFloat<T>(high).bits) << 16;
}
#ifdef __CUDACC__
template <>
__device__ __forceinline__ uint32_t Pack<Bf16>(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
template <>
__device__ __forceinline__ uint32_t Pack<F16>(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
#endif

// Columns 16 step... of s as the A operand of the next product.
template <typename T, int kSize>
__device__ __forceinline__ void PackOperand(const float (&s)[kSize], int step, uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = Pack<T>(s[8 * step + 2 * i], s[8 * step + 2 * i + 1]);
}

// The running softmax of a thread's two rows, g and g + 8; l is a part a lane of the four.
template <int kOutputs>
struct RowSoftmax {
  float m[2], l[2], o[kOutputs];

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      m[r] = -INFINITY;
      l[r] = 0;
    }
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) o[i] = 0;
  }
};

// Scores of keys `first`... beyond the rows' positions become -inf.
__device__ __forceinline__ void MaskScores(float (&s)[kKeyBlock / 2], int first,
                                           const int (&position)[2]) {
  const int column = first + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int i = 0; i < kKeyBlock / 2; ++i) {
    if (column + i / 4 * 8 + i % 2 > position[i / 2 % 2]) s[i] = -INFINITY;
  }
}

// Scores become probabilities under the new maximum; scale is what earlier sums, of which l is
// done here, are multiplied by.
__device__ __forceinline__ void SoftmaxStep(float (&s)[kKeyBlock / 2], float (&m)[2], float (&l)[2],
                                            float (&scale)[2], float c) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float now = m[r];
#pragma unroll
    for (int i = 2 * r; i < kKeyBlock / 2; i += 4) now = fmaxf(now, fmaxf(s[i], s[i + 1]));
    now = fmaxf(now, __shfl_xor_sync(kFullWarp, now, 1));
    now = fmaxf(now, __shfl_xor_sync(kFullWarp, now, 2));
    const float mc = ScaledMaximum(now, c);
    scale[r] = Rescale(m[r], now, c);
    m[r] = now;
    float sum[2] = {0, 0};
#pragma unroll
    for (int i = 2 * r; i < kKeyBlock / 2; i += 4) {
      s[i] = Probability(s[i], mc, c);
      s[i + 1] = Probability(s[i + 1], mc, c);
      sum[0] += s[i];
      sum[1] += s[i + 1];
    }
    l[r] = fmaf(l[r], scale[r], sum[0] + sum[1]);
  }
}
template <int kOutputs>
__device__ __forceinline__ void RescaleOutputs(float (&o)[kOutputs], const float (&scale)[2]) {
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) o[i] *= scale[i / 2 % 2];
}
__device__ __forceinline__ void SumLanes(float (&l)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    l[r] += __shfl_xor_sync(kFullWarp, l[r], 1);
    l[r] += __shfl_xor_sync(kFullWarp, l[r], 2);
  }
}

// The merged splits so far of a thread's rows; their outputs stay in shared memory, `stash[i *
// stride]` for output i, since few blocks meet a second split.
struct SplitStash {
  float* stash;
  int stride;
  float m[2], l[2];

  // Takes a finished split in (l summed over lanes); `first`: nothing is here yet.
  template <int kOutputs>
  __device__ __forceinline__ void Put(const RowSoftmax<kOutputs>& split, bool first, float c) {
    Merge merge[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!first) merge[r] = MergeSplits(m[r], l[r], split.m[r], split.l[r], c);
      m[r] = first ? split.m[r] : merge[r].m;
      l[r] = first ? split.l[r] : merge[r].l;
    }
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) {
      float& kept = stash[i * stride];
      kept = first ? split.o[i] : MergedOutput(merge[i / 2 % 2], kept, split.o[i]);
    }
  }
  template <int kOutputs>
  __device__ __forceinline__ void Take(RowSoftmax<kOutputs>& all) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      all.m[r] = m[r];
      all.l[r] = l[r];
    }
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) all.o[i] = stash[i * stride];
  }
};

// Writes rows `row` + {0, 8} of the tile, l summed over lanes: out and lse, or the split's partial.
template <typename T, int kOutputs>
__device__ __forceinline__ void WriteRows(const AttentionParams& p, const QueryTile& tile,
                                          int kv_head, int row, int splits, int split,
                                          const RowSoftmax<kOutputs>& sum) {
  const int lane = static_cast<int>(threadIdx.x) % 4;
  constexpr int kHeadDim = 2 * kOutputs;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int i = row + 8 * r;
    if (i >= tile.rows) continue;
    const int64_t at =
        PartialRow(p, splits > 1 ? split : 0, tile.Token(i), kv_head * tile.group + tile.Head(i));
    if (splits > 1) {
      const Partials partials(p, splits);
      if (lane == 0) {
        partials.m[at] = sum.m[r];
        partials.l[at] = sum.l[r];
      }
      float* const o = partials.o + at * kHeadDim + 2 * lane;
#pragma unroll
      for (int j = 0; j < kOutputs / 4; ++j) {
        *reinterpret_cast<float2*>(o + 8 * j) =
            make_float2(sum.o[4 * j + 2 * r], sum.o[4 * j + 2 * r + 1]);
      }
      continue;
    }
    if (lane == 0 && p.lse != nullptr) p.lse[at] = LogSumExp(sum.m[r], sum.l[r], p.scale);
    const float inverse = 1.0f / sum.l[r];
    T* const out = static_cast<T*>(p.out) + at * kHeadDim + 2 * lane;
#pragma unroll
    for (int j = 0; j < kOutputs / 4; ++j) {
      *reinterpret_cast<uint32_t*>(out + 8 * j) = Pack<T>(
          Normalized(sum.o[4 * j + 2 * r], inverse), Normalized(sum.o[4 * j + 2 * r + 1], inverse));
    }
  }
}

// Half r (rows g or g + 8) of accumulators to row `row` of a tensor of as many columns.
template <typename T, int kSize>
__device__ __forceinline__ void WriteGradientRow(void* to, int64_t row, int r, float scale,
                                                 const float (&sum)[kSize]) {
  T* const out = static_cast<T*>(to) + row * (2 * kSize) + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int j = 0; j < kSize / 4; ++j) {
    *reinterpret_cast<uint32_t*>(out + 8 * j) =
        Pack<T>(sum[4 * j + 2 * r] * scale, sum[4 * j + 2 * r + 1] * scale);
  }
}

// The key blocks of one block of threads: [first, last), or none.
struct KeyRange {
  int first, last;

  __device__ __forceinline__ KeyRange(const QueryTile& tile, int splits, int split) {
    last = (tile.KeyEnd() + kKeyBlock - 1) / kKeyBlock;
    first = splits > 1 ? split * kSplitBlocks : 0;
    if (splits > 1 && last > first + kSplitBlocks) last = first + kSplitBlocks;
  }
};

// Whether a block of threads may come to a second split.
inline bool NeedsStash(const AttentionParams& p, int splits) {
  const int64_t keys =
      p.block_table != nullptr ? static_cast<int64_t>(p.blocks_per_sequence) * kPageKeys : p.tokens;
  return splits == 1 && keys > kSplitKeys;
}

}  // namespace tandem::cuda

// What attention kernels share: how sequences are cut into tiles, and the softmax's arithmetic.
#pragma once

#include "engine/backend/cuda/kernels/device.h"
#include "engine/backend/cuda/kernels/ptx.h"
#include "engine/backend/cuda/kernels/tandem_cuda.h"

namespace tandem::cuda {

using AttentionParams = tandem_cuda_attention_params;
using AttentionGradParams = tandem_cuda_attention_grad_params;

inline constexpr int kKeyBlock = 128;    // keys between two updates of the running softmax
inline constexpr int kSplitBlocks = 16;  // key blocks of a split
inline constexpr int kSplitKeys = kKeyBlock * kSplitBlocks;
inline constexpr int kPageKeys = 32;
inline constexpr float kLog2e = 1.4426950408889634f;

// --- tiles --------------------------------------------------------------------------------------
// The rows of a sequence for one key/value head are (token, head of its group), tokens outermost;
// `group` rows a token. A tile is some of a sequence's rows. Tiles are numbered over all sequences.

__host__ __device__ __forceinline__ int TilesOf(int tokens, int group, int tile_rows) {
  return static_cast<int>((static_cast<int64_t>(tokens) * group + tile_rows - 1) / tile_rows);
}
// At least the number of tiles, from what the host knows.
__host__ __device__ __forceinline__ int TileBound(int tokens, int sequences, int group,
                                                  int tile_rows) {
  const int64_t full = static_cast<int64_t>(tokens) * group / tile_rows;
  return static_cast<int>(full + (sequences < tokens ? sequences : tokens));
}
// Splits of the most keys that a sequence can have.
__host__ __device__ __forceinline__ int SplitsOf(int64_t keys) {
  return static_cast<int>((keys + kSplitKeys - 1) / kSplitKeys);
}

// Finds tile `tile`; false beyond the last one. All lanes of a warp together; `tile` becomes the
// number within the sequence.
__device__ __forceinline__ bool FindTile(const int32_t* query_start, int sequences, int group,
                                         int tile_rows, int* tile, int* sequence) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  for (int base = 0; base < sequences; base += 32) {
    const int i = base + lane;
    const int count =
        i < sequences ? TilesOf(query_start[i + 1] - query_start[i], group, tile_rows) : 0;
    int end = count;  // inclusive prefix sum
    for (int delta = 1; delta < 32; delta *= 2) {
      const int before = __shfl_up_sync(kFullWarp, end, static_cast<unsigned>(delta));
      if (lane >= delta) end += before;
    }
    const unsigned beyond = __ballot_sync(kFullWarp, end > *tile);
    if (beyond != 0) {
      const int first = __ffs(static_cast<int>(beyond)) - 1;
      *tile -= __shfl_sync(kFullWarp, end - count, first);
      *sequence = base + first;
      return true;
    }
    *tile -= __shfl_sync(kFullWarp, end, 31);
  }
  return false;
}

// Some rows of one sequence.
struct QueryTile {
  int sequence, start, tokens, past;  // start: the packed index of the sequence's first token
  int row, rows;                      // the first, and how many
  int group;

  // Of row i of the tile.
  __device__ __forceinline__ int Token(int i) const { return start + (row + i) / group; }
  __device__ __forceinline__ int Head(int i) const { return (row + i) % group; }
  __device__ __forceinline__ int Position(int i) const { return past + (row + i) / group; }
  // Keys that any row sees, and those of the sequence.
  __device__ __forceinline__ int KeyEnd() const { return Position(rows - 1) + 1; }
  __device__ __forceinline__ int Keys() const { return past + tokens; }
};

__device__ __forceinline__ bool FindQueryTile(const AttentionParams& p, int tile, int tile_rows,
                                              QueryTile* found) {
  found->group = p.heads / p.kv_heads;
  int sequence = 0;
  if (!FindTile(p.query_start, p.sequences, found->group, tile_rows, &tile, &sequence))
    return false;
  found->sequence = sequence;
  found->start = p.query_start[sequence];
  found->tokens = p.query_start[sequence + 1] - found->start;
  found->past = p.past_length != nullptr ? p.past_length[sequence] : 0;
  found->row = tile * tile_rows;
  const int left = found->tokens * found->group - found->row;
  found->rows = left < tile_rows ? left : tile_rows;
  return true;
}

// Row `position` of a sequence's keys (or values) for one head, (D): in the packed tensor, or in
// the cache.
template <typename T>
struct KeyRows {
  const T* base;
  const int32_t* pages;  // null: packed
  int64_t stride;        // packed: from token to token; paged: from page to page
  int head_dim;

  __device__ __forceinline__ const T* Row(int position) const {
    if (pages == nullptr) return base + position * stride;
    return base + pages[position / kPageKeys] * stride + position % kPageKeys * head_dim;
  }
};
template <typename T>
__device__ __forceinline__ KeyRows<T> KeyRowsOf(const AttentionParams& p, const void* packed,
                                                const void* cache, int sequence, int start,
                                                int kv_head) {
  const int64_t head_dim = p.head_dim;
  if (p.block_table == nullptr) {
    const int64_t stride = p.kv_heads * head_dim;
    return {static_cast<const T*>(packed) + start * stride + kv_head * head_dim, nullptr, stride,
            p.head_dim};
  }
  return {static_cast<const T*>(cache) + kv_head * (kPageKeys * head_dim),
          p.block_table + static_cast<int64_t>(sequence) * p.blocks_per_sequence,
          p.kv_heads * (kPageKeys * head_dim), p.head_dim};
}

// --- softmax ------------------------------------------------------------------------------------
// m is the largest score q.k so far (-inf: none), l the sum of 2^((s - m) c), c = scale log2(e).

// What sums under maximum `before` are multiplied by under maximum `now` >= before.
__device__ __forceinline__ float Rescale(float before, float now, float c) {
  return before == now ? 1.0f : Exp2Approx((before - now) * c);
}
// 2^((s - m) c), with mc from ScaledMaximum; 0 for s = -inf.
__device__ __forceinline__ float ScaledMaximum(float m, float c) {
  return m == -INFINITY ? 0.0f : m * c;
}
__device__ __forceinline__ float Probability(float s, float mc, float c) {
  return Exp2Approx(fmaf(s, c, -mc));
}

// The factors that merge the softmax of later keys into that of earlier ones. Merging nothing (m =
// -inf, l = 0, zeros) changes nothing.
struct Merge {
  float m, l, earlier, later;
};
__device__ __forceinline__ Merge MergeSplits(float m1, float l1, float m2, float l2, float c) {
  Merge r;
  r.m = fmaxf(m1, m2);
  r.earlier = Rescale(m1, r.m, c);
  r.later = Rescale(m2, r.m, c);
  r.l = fmaf(l2, r.later, l1 * r.earlier);
  return r;
}
__device__ __forceinline__ float MergedOutput(const Merge& merge, float o1, float o2) {
  return fmaf(o2, merge.later, o1 * merge.earlier);
}
// Adding zero makes one zero of the two: which one came would depend on masked keys.
__device__ __forceinline__ float Normalized(float o, float inverse_l) {
  return fmaf(o, inverse_l, 0.0f);
}
__device__ __forceinline__ float LogSumExp(float m, float l, float scale) {
  return fmaf(m, scale, logf(l));
}

// --- partial results of splits
// -------------------------------------------------------------------- In scratch, for split z of
// packed token n and head h: o (Z, N, H, D), then m and l (Z, N, H), f32.

struct Partials {
  float *o, *m, *l;

  __host__ __device__ static int64_t Bytes(const AttentionParams& p, int splits) {
    return static_cast<int64_t>(splits) * p.tokens * p.heads * (p.head_dim + 2) * 4;
  }
  __host__ __device__ Partials(const AttentionParams& p, int splits) {
    const int64_t rows = static_cast<int64_t>(splits) * p.tokens * p.heads;
    o = static_cast<float*>(p.scratch);
    m = o + rows * p.head_dim;
    l = m + rows;
  }
};
// The row of those arrays.
__device__ __forceinline__ int64_t PartialRow(const AttentionParams& p, int split, int token,
                                              int head) {
  return (static_cast<int64_t>(split) * p.tokens + token) * p.heads + head;
}

}  // namespace tandem::cuda

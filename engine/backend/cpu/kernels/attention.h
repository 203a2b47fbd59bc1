// Causal self-attention over packed sequences of unequal length, with grouped-query heads: forward,
// backward, and forward over a paged key/value cache. f32. FlashAttention's recurrence (Dao et al.
// 2022, Dao 2023): keys are read in blocks, the softmax is kept as a running maximum and sum, and
// no (T, T) matrix exists.
//
// Contract:
// - The output of a query depends on its own row, on the keys and values of its sequence up to its
//   position, and on nothing else: its bits are the same in AttentionForward, in
//   PagedAttentionForward as prefill, as prefill cut at any points and as one-token decode, beside
//   any neighbours, for any thread count. Per (query, key) the score is one chain of fused
//   multiply-adds over d; keys come in blocks of kAttentionBlock aligned to position 0 of the
//   sequence, merged in order; row sums fold in a fixed tree, whatever the vector width.
// - Cache slots beyond a query's position are never part of an arithmetic result: they may hold
//   anything.
// - Gradients have the same bits for any thread count.
// - Nothing here allocates, throws or checks its input. The caller guarantees 1 <= head_dim <=
//   kMaxAttentionHeadDim, heads % kv_heads == 0, query_start[0] == 0, query_start[sequences] ==
//   tokens, ascending; sequences may be empty. Scratch may be unaligned; its size holds for the
//   thread count (SetThreadCount) at the call that asked for it.
// - Called from one thread at a time, as engine/base/threads.h demands.
#pragma once

#include <cstdint>

namespace tandem::cpu {

// Keys in a block, aligned to position 0 of each sequence; also the page of the KV cache.
inline constexpr int64_t kAttentionBlock = 32;
inline constexpr int64_t kMaxAttentionHeadDim = 256;

// N tokens, S sequences, H query heads, Hkv key/value heads, D head_dim. Query head h attends to
// key/value head h / (H / Hkv). A stride is the number of elements from one token to the next, so a
// fused QKV matrix needs no copy.
struct AttentionParams {
  int64_t tokens, sequences, heads, kv_heads, head_dim;
  const int32_t* query_start;            // (S+1): sequence s has tokens [start[s], start[s+1])
  const float *q, *k, *v;                // (N, H, D), (N, Hkv, D), (N, Hkv, D)
  int64_t q_stride, k_stride, v_stride;  // >= H*D, >= Hkv*D, >= Hkv*D
  float scale;                           // score = scale * q . k
  float* out;                            // (N, H, D) contiguous
  float* lse;                            // (N, H) natural log-sum-exp of the scores, or null
};

int64_t AttentionScratchBytes(const AttentionParams& params);
void AttentionForward(const AttentionParams& params, void* scratch);

// The gradients of sum(grad_out * out). forward.out and forward.lse (not null) are
// AttentionForward's results. The three gradients are overwritten; they may lie in one fused
// matrix.
struct AttentionBackwardParams {
  AttentionParams forward;
  const float* grad_out;            // (N, H, D) contiguous
  float *grad_q, *grad_k, *grad_v;  // (N, H, D), (N, Hkv, D), (N, Hkv, D)
  int64_t grad_q_stride, grad_k_stride, grad_v_stride;
};

int64_t AttentionBackwardScratchBytes(const AttentionBackwardParams& params);
void AttentionBackward(const AttentionBackwardParams& params, void* scratch);

// Serving. The keys and values of the new tokens are written to the cache, then each new token
// attends to its whole sequence. Token i of sequence s has position past_length[s] + i. Position p
// lies in page block_table[s * blocks_per_sequence + p / kAttentionBlock], slot p %
// kAttentionBlock; blocks_per_sequence covers every position. Within one call no page may be
// written by two sequences; read-only pages (a shared prefix) may be shared.
struct PagedAttentionParams {
  int64_t tokens, sequences, heads, kv_heads, head_dim;
  const int32_t* query_start;  // (S+1) packed offsets of the new tokens
  const int32_t* past_length;  // (S) tokens of the sequence already in the cache
  const int32_t* block_table;  // (S, blocks_per_sequence) page ids
  int64_t blocks_per_sequence;
  const float *q, *k, *v;  // the new tokens': (N, H, D), (N, Hkv, D), (N, Hkv, D)
  int64_t q_stride, k_stride, v_stride;
  float* k_cache;  // (pages, Hkv, D, kAttentionBlock): keys are the lanes
  float* v_cache;  // (pages, Hkv, kAttentionBlock, D)
  float scale;
  float* out;  // (N, H, D) contiguous
};

int64_t PagedAttentionScratchBytes(const PagedAttentionParams& params);
void PagedAttentionForward(const PagedAttentionParams& params, void* scratch);

}  // namespace tandem::cpu

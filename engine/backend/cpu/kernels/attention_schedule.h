// How attention's work is cut into items and handed to threads; internal to the attention kernels.
// An item is computed by one thread and shares no output with another, so neither the cut nor the
// thread that takes it can change a result.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "engine/backend/cpu/kernels/attention.h"
#include "engine/base/threads.h"

namespace tandem::cpu::attention {

// Packed query rows have a constant stride, so that their offsets are immediates, and one that is
// an odd number of cache lines, so that the rows of a tile spread over the cache's sets.
inline constexpr int64_t kRowStride = kMaxAttentionHeadDim + 16;

// Heads of one group in an item, and query rows in an item: as many as fit the second-level cache,
// since each packed key block is read by all of them.
inline constexpr int64_t kItemHeads = 8;
inline constexpr int64_t kItemRows = kItemHeads * kAttentionBlock;

// Both kinds of forward pass. k == nullptr means paged.
struct ForwardProblem {
  int64_t sequences, heads, kv_heads, head_dim;
  const int32_t *query_start, *past_length;  // past_length may be null: all zero
  const float *q, *k, *v;
  int64_t q_stride, k_stride, v_stride;
  const float *k_cache, *v_cache;
  const int32_t* block_table;
  int64_t blocks_per_sequence;
  float scale;
  float *out, *lse;

  int64_t Group() const { return heads / kv_heads; }
  int64_t Past(int64_t s) const { return past_length == nullptr ? 0 : past_length[s]; }
  int64_t NewTokens(int64_t s) const { return query_start[s + 1] - query_start[s]; }
};

// Query heads [head_begin, head_end) of one key/value head, for the new tokens whose positions lie
// in blocks [block_begin, block_end).
struct ForwardItem {
  int64_t sequence, kv_head, head_begin, head_end, block_begin, block_end;
};

// Of one sequence and key/value head: the pairs of a key block in [key_begin, key_end) and a query
// block in [query_begin, query_end), whose gradients are those of the keys and values, of the
// queries, or both.
struct BackwardItem {
  int64_t sequence, kv_head, key_begin, key_end, query_begin, query_end;
  bool grad_key_value, grad_query;
};

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

inline float* AlignScratch(void* scratch) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(scratch);
  return reinterpret_cast<float*>(static_cast<char*>(scratch) + (-address & 63));
}

// Enough threads that each has work worth waking it for, some 10 us of it.
inline int64_t ThreadsFor(double flops, int64_t items) {
  const double worth = std::min(flops / 4e5, 1e6);
  return std::max<int64_t>(
      1, std::min({static_cast<int64_t>(worth), items, static_cast<int64_t>(ThreadCount())}));
}

// Calls body(item, thread slot) for every item, on `threads` threads that take the next item when
// done with one: items of causal attention are unequal.
template <typename Body>
void ForEachItem(int64_t items, int64_t threads, Body&& body) {
  std::atomic<int64_t> next{0};
  ParallelFor(threads, 1, [&](int64_t slot, int64_t) {
    for (int64_t item = next.fetch_add(1, std::memory_order_relaxed); item < items;
         item = next.fetch_add(1, std::memory_order_relaxed)) {
      body(item, slot);
    }
  });
}

// The s with first[s] <= item < first[s + 1]; first is (sequences + 1), ascending from 0.
inline int64_t FindSequence(const int64_t* first, int64_t sequences, int64_t item) {
  return std::upper_bound(first, first + sequences + 1, item) - first - 1;
}

}  // namespace tandem::cpu::attention

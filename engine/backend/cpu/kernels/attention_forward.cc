#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/backend/cpu/kernels/attention_forward.cc"

#include <algorithm>
#include <cstdint>
#include <limits>

#include "engine/backend/cpu/kernels/attention.h"
#include "engine/backend/cpu/kernels/attention_schedule.h"
#include "hwy/foreach_target.h"  // must come before highway.h and what includes it
// clang-format off
#include "hwy/highway.h"
#include "hwy/contrib/math/math-inl.h"
#include "engine/backend/cpu/kernels/attention_recurrence-inl.h"
#include "engine/backend/cpu/kernels/attention_tile-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::attention::HWY_NAMESPACE {

// The tokens of one query block that are new, as positions.
struct Span {
  int64_t begin, end;
};
inline Span NewPositions(const ForwardProblem& p, int64_t sequence, int64_t block) {
  const int64_t past = p.Past(sequence);
  return {std::max(past, block * kAttentionBlock),
          std::min(past + p.NewTokens(sequence), (block + 1) * kAttentionBlock)};
}

// Calls body(row, token, head) for each row of an item in order: by block, then head, then token.
template <typename Body>
HWY_INLINE void ForEachRow(const ForwardProblem& p, const ForwardItem& item, Body&& body) {
  const int64_t to_token = p.query_start[item.sequence] - p.Past(item.sequence);
  int64_t row = 0;
  for (int64_t block = item.block_begin; block < item.block_end; ++block) {
    const Span span = NewPositions(p, item.sequence, block);
    for (int64_t head = item.head_begin; head < item.head_end; ++head) {
      for (int64_t at = span.begin; at < span.end; ++at) body(row++, to_token + at, head);
    }
  }
}

// Keys (D, 32) and values (32, D) of a block: a page of the cache, or packed from the token rows.
HWY_INLINE void LoadBlock(const ForwardProblem& p, const ForwardItem& item, int64_t block,
                          const ForwardScratch& s, const float** keys, const float** values) {
  const int64_t page_size = p.head_dim * kAttentionBlock;
  if (p.k == nullptr) {
    const int64_t page = p.block_table[item.sequence * p.blocks_per_sequence + block];
    *keys = p.k_cache + (page * p.kv_heads + item.kv_head) * page_size;
    *values = p.v_cache + (page * p.kv_heads + item.kv_head) * page_size;
    return;
  }
  const int64_t first = block * kAttentionBlock;
  const int64_t count = std::min(kAttentionBlock, p.NewTokens(item.sequence) - first);
  const int64_t token = p.query_start[item.sequence] + first;
  const int64_t column = item.kv_head * p.head_dim;
  TransposeKeys(p.k + token * p.k_stride + column, p.k_stride, count, p.head_dim, s.key_block);
  CopyRows(p.v + token * p.v_stride + column, p.v_stride, count, p.head_dim, s.value_block,
           p.head_dim);
  *keys = s.key_block;
  *values = s.value_block;
}

// All rows of query block `block` against one key block.
HWY_INLINE void AttendBlock(const ForwardProblem& p, const ForwardItem& item, int64_t block,
                            int64_t key_block, int64_t first_row, const float* keys,
                            const float* values, const ForwardScratch& s) {
  const Span span = NewPositions(p, item.sequence, block);
  const int64_t tokens = span.end - span.begin;
  const int64_t rows = tokens * (item.head_end - item.head_begin);
  for (int64_t r = 0; r < rows; r += kAttentionBlock) {
    RowTile tile = {std::min(kAttentionBlock, rows - r), nullptr};
    int32_t visible[kAttentionBlock];
    if (block == key_block) {
      for (int64_t i = 0; i < tile.rows; ++i) {
        visible[i] = static_cast<int32_t>((span.begin + (r + i) % tokens) % kAttentionBlock + 1);
      }
      tile.visible = visible;
    }
    AttendTile(tile, first_row + r, keys, values, p.head_dim, s);
  }
}

// out = acc / sum; lse = ln 2 * max + ln sum.
HWY_INLINE void FinishItem(const ForwardProblem& p, const ForwardItem& item, int64_t rows,
                           const ForwardScratch& s) {
  const Lanes d;
  HWY_ALIGN float inverse[kItemRows + kSumLanes];
  float* lse = s.scores;  // (kItemRows): done with the scores
  for (int64_t r = 0; r < rows; ++r) inverse[r] = FoldLanes(s.row_sum + r * kSumLanes);
  for (int64_t r = rows; r < rows + kSumLanes; ++r) inverse[r] = 1.0f;
  const auto ln2 = hn::Set(d, 0.693147180559945f);
  for (int64_t r = 0; r < rows; r += kLanes) {
    const auto sum = hn::LoadU(d, inverse + r);
    hn::StoreU(hn::Div(hn::Set(d, 1.0f), sum), d, inverse + r);
    if (p.lse == nullptr) continue;
    hn::StoreU(hn::MulAdd(hn::LoadU(d, s.row_max + r), ln2, hn::Log(d, sum)), d, lse + r);
  }
  ForEachRow(p, item, [&](int64_t row, int64_t token, int64_t head) HWY_ATTR {
    ScaleCopy(s.acc + row * s.acc_stride, inverse[row], p.head_dim,
              p.out + (token * p.heads + head) * p.head_dim);
    if (p.lse != nullptr) p.lse[token * p.heads + head] = lse[row];
  });
}

void RunForwardItem(const ForwardProblem& p, const ForwardItem& item, float* scratch) {
  const ForwardScratch s = CarveForward(p.head_dim, scratch);
  const float to_base_2 = static_cast<float>(p.scale * 1.4426950408889634);
  int64_t rows = 0;
  ForEachRow(p, item, [&](int64_t row, int64_t token, int64_t head) HWY_ATTR {
    ScaleCopy(p.q + token * p.q_stride + head * p.head_dim, to_base_2, p.head_dim,
              s.q + row * kRowStride);
    rows = row + 1;
  });
  std::fill_n(s.acc, rows * s.acc_stride, 0.0f);
  std::fill_n(s.row_sum, rows * kSumLanes, 0.0f);
  std::fill_n(s.row_max, rows + kSumLanes, -std::numeric_limits<float>::infinity());
  for (int64_t key_block = 0; key_block < item.block_end; ++key_block) {
    const float *keys, *values;
    LoadBlock(p, item, key_block, s, &keys, &values);
    int64_t row = 0;
    for (int64_t block = item.block_begin; block < item.block_end; ++block) {
      const Span span = NewPositions(p, item.sequence, block);
      if (block >= key_block) AttendBlock(p, item, block, key_block, row, keys, values, s);
      row += (span.end - span.begin) * (item.head_end - item.head_begin);
    }
  }
  FinishItem(p, item, rows, s);
}

// Writes the new keys and values of one sequence and head to their pages.
void WriteCache(const PagedAttentionParams& p, int64_t sequence, int64_t kv_head) {
  const int64_t past = p.past_length[sequence];
  const int64_t end = past + p.query_start[sequence + 1] - p.query_start[sequence];
  const int64_t to_token = p.query_start[sequence] - past;
  const int64_t column = kv_head * p.head_dim;
  for (int64_t at = past; at < end;) {
    const int64_t slot = at % kAttentionBlock;
    const int64_t count = std::min(kAttentionBlock - slot, end - at);
    const int64_t page = p.block_table[sequence * p.blocks_per_sequence + at / kAttentionBlock];
    const int64_t offset = (page * p.kv_heads + kv_head) * p.head_dim * kAttentionBlock;
    const int64_t token = to_token + at;
    TransposeKeys(p.k + token * p.k_stride + column, p.k_stride, count, p.head_dim,
                  p.k_cache + offset + slot);
    CopyRows(p.v + token * p.v_stride + column, p.v_stride, count, p.head_dim,
             p.v_cache + offset + slot * p.head_dim, p.head_dim);
    at += count;
  }
}

}  // namespace tandem::cpu::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {
namespace attention {
HWY_EXPORT(RunForwardItem);
HWY_EXPORT(WriteCache);

namespace {

int64_t ThreadScratchFloats(int64_t dim) {
  return kItemRows * kRowStride + kItemRows * RoundUp(dim, 16) + kItemRows * 17 + 16 +
         2 * RoundUp(dim * kAttentionBlock, 16) + kAttentionBlock * kAttentionBlock;
}

int64_t ForwardScratchBytes(int64_t sequences, int64_t dim) {
  return 64 + RoundUp((sequences + 1) * 8, 64) +
         ThreadCount() * ThreadScratchFloats(dim) * static_cast<int64_t>(sizeof(float));
}

// An item's query blocks: more share one packed key block, fewer balance better.
int64_t BlocksPerItem(int64_t group) {
  return std::max<int64_t>(1, kItemHeads / 2 / std::min(group, kItemHeads));
}

int64_t FirstBlock(const ForwardProblem& p, int64_t s) { return p.Past(s) / kAttentionBlock; }

int64_t TilesOf(const ForwardProblem& p, int64_t s) {
  if (p.NewTokens(s) == 0) return 0;
  const int64_t end = CeilDiv(p.Past(s) + p.NewTokens(s), kAttentionBlock);
  return CeilDiv(end - FirstBlock(p, s), BlocksPerItem(p.Group()));
}

ForwardItem ItemAt(const ForwardProblem& p, const int64_t* first, int64_t item) {
  const int64_t s = FindSequence(first, p.sequences, item);
  const int64_t chunks = CeilDiv(p.Group(), kItemHeads);
  const int64_t columns = p.kv_heads * chunks;
  const int64_t index = item - first[s];
  // The last tile first: it has the most keys.
  const int64_t tile = TilesOf(p, s) - 1 - index / columns;
  const int64_t kv_head = index % columns / chunks;
  const int64_t head = kv_head * p.Group() + index % chunks * kItemHeads;
  const int64_t block = FirstBlock(p, s) + tile * BlocksPerItem(p.Group());
  const int64_t blocks_end = CeilDiv(p.Past(s) + p.NewTokens(s), kAttentionBlock);
  return {.sequence = s,
          .kv_head = kv_head,
          .head_begin = head,
          .head_end = std::min(head + kItemHeads, (kv_head + 1) * p.Group()),
          .block_begin = block,
          .block_end = std::min(block + BlocksPerItem(p.Group()), blocks_end)};
}

void RunForward(const ForwardProblem& p, void* scratch) {
  float* aligned = AlignScratch(scratch);
  int64_t* first = reinterpret_cast<int64_t*>(aligned);
  float* thread_scratch = aligned + RoundUp((p.sequences + 1) * 8, 64) / 4;
  const int64_t columns = p.kv_heads * CeilDiv(p.Group(), kItemHeads);
  double flops = 0;
  first[0] = 0;
  for (int64_t s = 0; s < p.sequences; ++s) {
    first[s + 1] = first[s] + TilesOf(p, s) * columns;
    const double fresh = static_cast<double>(p.NewTokens(s));
    flops += 4.0 * fresh * (static_cast<double>(p.Past(s)) + fresh / 2) *
             static_cast<double>(p.heads * p.head_dim);
  }
  const int64_t items = first[p.sequences];
  const int64_t stride = ThreadScratchFloats(p.head_dim);
  const auto run = HWY_DYNAMIC_DISPATCH(RunForwardItem);
  ForEachItem(items, ThreadsFor(flops, items), [&](int64_t item, int64_t slot) {
    run(p, ItemAt(p, first, item), thread_scratch + slot * stride);
  });
}

// The pages of one call are distinct for each (sequence, head), so these do not interfere.
void RunWriteCache(const PagedAttentionParams& p) {
  const int64_t pairs = p.sequences * p.kv_heads;
  const double work = 16.0 * static_cast<double>(p.tokens * p.kv_heads * p.head_dim);
  const auto write = HWY_DYNAMIC_DISPATCH(WriteCache);
  ForEachItem(pairs, ThreadsFor(work, pairs),
              [&](int64_t item, int64_t) { write(p, item / p.kv_heads, item % p.kv_heads); });
}

}  // namespace
}  // namespace attention

int64_t AttentionScratchBytes(const AttentionParams& params) {
  return attention::ForwardScratchBytes(params.sequences, params.head_dim);
}

void AttentionForward(const AttentionParams& params, void* scratch) {
  const attention::ForwardProblem problem = {.sequences = params.sequences,
                                             .heads = params.heads,
                                             .kv_heads = params.kv_heads,
                                             .head_dim = params.head_dim,
                                             .query_start = params.query_start,
                                             .past_length = nullptr,
                                             .q = params.q,
                                             .k = params.k,
                                             .v = params.v,
                                             .q_stride = params.q_stride,
                                             .k_stride = params.k_stride,
                                             .v_stride = params.v_stride,
                                             .k_cache = nullptr,
                                             .v_cache = nullptr,
                                             .block_table = nullptr,
                                             .blocks_per_sequence = 0,
                                             .scale = params.scale,
                                             .out = params.out,
                                             .lse = params.lse};
  attention::RunForward(problem, scratch);
}

int64_t PagedAttentionScratchBytes(const PagedAttentionParams& params) {
  return attention::ForwardScratchBytes(params.sequences, params.head_dim);
}

void PagedAttentionForward(const PagedAttentionParams& params, void* scratch) {
  attention::RunWriteCache(params);
  const attention::ForwardProblem problem = {.sequences = params.sequences,
                                             .heads = params.heads,
                                             .kv_heads = params.kv_heads,
                                             .head_dim = params.head_dim,
                                             .query_start = params.query_start,
                                             .past_length = params.past_length,
                                             .q = params.q,
                                             .k = nullptr,
                                             .v = nullptr,
                                             .q_stride = params.q_stride,
                                             .k_stride = 0,
                                             .v_stride = 0,
                                             .k_cache = params.k_cache,
                                             .v_cache = params.v_cache,
                                             .block_table = params.block_table,
                                             .blocks_per_sequence = params.blocks_per_sequence,
                                             .scale = params.scale,
                                             .out = params.out,
                                             .lse = nullptr};
  attention::RunForward(problem, scratch);
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE

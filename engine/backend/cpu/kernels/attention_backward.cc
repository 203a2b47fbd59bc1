#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/backend/cpu/kernels/attention_backward.cc"

#include <algorithm>
#include <cstdint>

#include "engine/backend/cpu/kernels/attention.h"
#include "engine/backend/cpu/kernels/attention_schedule.h"
#include "hwy/foreach_target.h"  // must come before highway.h and what includes it
// clang-format off
#include "hwy/highway.h"
#include "engine/backend/cpu/kernels/attention_tile-inl.h"
// clang-format on

// With S = scale Q K^T (causal), P = softmax(S) = exp(S - lse), O = P V:
//   dV = P^T dO,  dP = dO V^T,  delta = rowsum(dO * O)
//   dS = P * (dP - delta),  dQ = scale dS K,  dK = scale dS^T Q
// One pair of a key block and a query block at a time: dK and dV add up over query heads and query
// blocks, dQ over key blocks, each in ascending order whichever thread does it.
HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::attention::HWY_NAMESPACE {

struct BackwardScratch {
  float* q;                            // (kAttentionBlock, kRowStride) q * scale * log2(e)
  float* grad_out;                     // (kAttentionBlock, kRowStride)
  float* p;                            // (queries, keys) of the pair
  float* grad_s;                       // (queries, keys)
  float *key_columns, *value_columns;  // (D, kAttentionBlock)
  float* key_rows;                     // (kAttentionBlock, D)
  float *grad_k, *grad_v;              // (kAttentionBlock, D)
};

inline BackwardScratch CarveBackward(int64_t dim, float* at) {
  constexpr int64_t kScores = kAttentionBlock * kAttentionBlock;
  const int64_t block = kAttentionBlock * dim;
  BackwardScratch s;
  s.q = at;
  s.grad_out = s.q + kAttentionBlock * kRowStride;
  s.p = s.grad_out + kAttentionBlock * kRowStride;
  s.grad_s = s.p + kScores;
  s.key_columns = s.grad_s + kScores;
  s.value_columns = s.key_columns + block;
  s.key_rows = s.value_columns + block;
  s.grad_k = s.key_rows + block;
  s.grad_v = s.grad_k + block;
  return s;
}

// One head's pair of blocks. On the diagonal query r sees keys 0..r; off it, all 32.
struct Pair {
  int64_t queries, keys;
  bool diagonal;
};

// p = 2^(s - lse), grad_s = p * (grad_p - delta), both 0 where the key is not visible.
HWY_INLINE void GradScoreRow(int64_t visible, float lse, float delta, float* p, float* grad_s) {
  const Lanes d;
  const auto lse_lanes = hn::Set(d, lse);
  const auto delta_lanes = hn::Set(d, delta);
  for (int64_t i = 0; i < kAttentionBlock; i += kLanes) {
    if (i >= visible) {
      hn::StoreU(hn::Zero(d), d, p + i);
      hn::StoreU(hn::Zero(d), d, grad_s + i);
      continue;
    }
    auto weight = PowerOfTwo(d, hn::Sub(hn::LoadU(d, p + i), lse_lanes));
    auto grad = hn::Mul(weight, hn::Sub(hn::LoadU(d, grad_s + i), delta_lanes));
    if (visible - i < kLanes) {
      const auto mask = hn::FirstN(d, static_cast<size_t>(visible - i));
      weight = hn::IfThenElseZero(mask, weight);
      grad = hn::IfThenElseZero(mask, grad);
    }
    hn::StoreU(weight, d, p + i);
    hn::StoreU(grad, d, grad_s + i);
  }
}

// s.p and s.grad_s from the packed blocks; lse (base 2) and delta are the queries' (queries).
HWY_INLINE void GradScores(const Pair& pair, const float* lse, const float* delta, int64_t dim,
                           const BackwardScratch& s) {
  for (int64_t r = 0; r < pair.queries; r += kTileRows) {
    const int64_t rows = std::min<int64_t>(kTileRows, pair.queries - r);
    const int64_t lanes = pair.diagonal ? WholeLanes(r + rows) : kAttentionBlock;
    const int64_t scores = r * kAttentionBlock;
    Multiply<kRowStride, 1, Start::kZero>(rows, s.q + r * kRowStride, s.key_columns,
                                          kAttentionBlock, dim, nullptr, s.p + scores,
                                          kAttentionBlock, lanes);
    Multiply<kRowStride, 1, Start::kZero>(rows, s.grad_out + r * kRowStride, s.value_columns,
                                          kAttentionBlock, dim, nullptr, s.grad_s + scores,
                                          kAttentionBlock, lanes);
  }
  for (int64_t r = 0; r < pair.queries; ++r) {
    GradScoreRow(pair.diagonal ? r + 1 : kAttentionBlock, lse[r], delta[r],
                 s.p + r * kAttentionBlock, s.grad_s + r * kAttentionBlock);
  }
}

// grad_k += grad_s^T q, grad_v += p^T grad_out.
HWY_INLINE void AddGradKeyValue(const Pair& pair, int64_t dim, const BackwardScratch& s) {
  for (int64_t key = 0; key < pair.keys; key += kTileRows) {
    const int64_t rows = std::min<int64_t>(kTileRows, pair.keys - key);
    const int64_t from = pair.diagonal ? key : 0;  // the first query that sees any of these keys
    const int64_t at = from * kAttentionBlock + key;
    Multiply<1, kAttentionBlock, Start::kAdd>(rows, s.p + at, s.grad_out + from * kRowStride,
                                              kRowStride, pair.queries - from, nullptr,
                                              s.grad_v + key * dim, dim, dim);
    Multiply<1, kAttentionBlock, Start::kAdd>(rows, s.grad_s + at, s.q + from * kRowStride,
                                              kRowStride, pair.queries - from, nullptr,
                                              s.grad_k + key * dim, dim, dim);
  }
}

// grad_q = or += grad_s k; the diagonal pair is a query's last, and brings the scale in.
HWY_INLINE void AddGradQuery(const Pair& pair, bool first, float scale, int64_t dim,
                             const BackwardScratch& s, float* grad_q, int64_t stride) {
  for (int64_t r = 0; r < pair.queries; r += kTileRows) {
    const int64_t rows = std::min<int64_t>(kTileRows, pair.queries - r);
    const int64_t keys = pair.diagonal ? r + rows : pair.keys;
    const float* grad_s = s.grad_s + r * kAttentionBlock;
    if (first) {
      Multiply<kAttentionBlock, 1, Start::kZero>(rows, grad_s, s.key_rows, dim, keys, nullptr,
                                                 grad_q + r * stride, stride, dim);
    } else {
      Multiply<kAttentionBlock, 1, Start::kAdd>(rows, grad_s, s.key_rows, dim, keys, nullptr,
                                                grad_q + r * stride, stride, dim);
    }
  }
  if (!pair.diagonal) return;
  for (int64_t r = 0; r < pair.queries; ++r) {
    ScaleCopy(grad_q + r * stride, scale, dim, grad_q + r * stride);
  }
}

HWY_INLINE void ScaleRows(const float* from, int64_t from_stride, float factor, int64_t rows,
                          int64_t dim, float* to, int64_t to_stride) {
  for (int64_t r = 0; r < rows; ++r) {
    ScaleCopy(from + r * from_stride, factor, dim, to + r * to_stride);
  }
}

// All query blocks of the item and all heads of its group against one packed key block.
HWY_INLINE void RunKeyBlock(const AttentionBackwardParams& b, const BackwardItem& item,
                            int64_t key_block, const float* lse, const float* delta,
                            const BackwardScratch& s) {
  const AttentionParams& p = b.forward;
  const int64_t dim = p.head_dim;
  const int64_t begin = p.query_start[item.sequence], end = p.query_start[item.sequence + 1];
  const float to_base_2 = static_cast<float>(p.scale * 1.4426950408889634);
  const int64_t group = p.heads / p.kv_heads;
  for (int64_t head = item.kv_head * group; head < (item.kv_head + 1) * group; ++head) {
    for (int64_t block = std::max(key_block, item.query_begin); block < item.query_end; ++block) {
      const int64_t token = begin + block * kAttentionBlock;
      const Pair pair = {std::min(kAttentionBlock, end - token),
                         std::min(kAttentionBlock, end - begin - key_block * kAttentionBlock),
                         block == key_block};
      ScaleRows(p.q + token * p.q_stride + head * dim, p.q_stride, to_base_2, pair.queries, dim,
                s.q, kRowStride);
      CopyRows(b.grad_out + (token * p.heads + head) * dim, p.heads * dim, pair.queries, dim,
               s.grad_out, kRowStride);
      GradScores(pair, lse + head * p.tokens + token, delta + head * p.tokens + token, dim, s);
      if (item.grad_key_value) AddGradKeyValue(pair, dim, s);
      if (item.grad_query) {
        AddGradQuery(pair, key_block == 0, p.scale, dim, s,
                     b.grad_q + token * b.grad_q_stride + head * dim, b.grad_q_stride);
      }
    }
  }
}

// lse (H, N) in base 2 and delta (H, N), as Prepare leaves them.
void RunBackwardItem(const AttentionBackwardParams& b, const BackwardItem& item, const float* lse,
                     const float* delta, float* scratch) {
  const AttentionParams& p = b.forward;
  const int64_t dim = p.head_dim;
  const BackwardScratch s = CarveBackward(dim, scratch);
  const int64_t begin = p.query_start[item.sequence], end = p.query_start[item.sequence + 1];
  const int64_t column = item.kv_head * dim;
  for (int64_t block = item.key_begin; block < item.key_end; ++block) {
    const int64_t token = begin + block * kAttentionBlock;
    const int64_t keys = std::min(kAttentionBlock, end - token);
    const float* k = p.k + token * p.k_stride + column;
    TransposeKeys(k, p.k_stride, keys, dim, s.key_columns);
    TransposeKeys(p.v + token * p.v_stride + column, p.v_stride, keys, dim, s.value_columns);
    CopyRows(k, p.k_stride, keys, dim, s.key_rows, dim);
    std::fill_n(s.grad_k, keys * dim, 0.0f);
    std::fill_n(s.grad_v, keys * dim, 0.0f);
    RunKeyBlock(b, item, block, lse, delta, s);
    if (!item.grad_key_value) continue;
    // The packed q carries scale * log2(e): what is left of grad_k's scale is ln 2.
    ScaleRows(s.grad_k, dim, 0.693147180559945f, keys, dim,
              b.grad_k + token * b.grad_k_stride + column, b.grad_k_stride);
    CopyRows(s.grad_v, dim, keys, dim, b.grad_v + token * b.grad_v_stride + column,
             b.grad_v_stride);
  }
}

// sum of a[i] * b[i], in kSumLanes lanes that fold in a fixed tree.
HWY_INLINE float Dot(const float* a, const float* b, int64_t count) {
  const Lanes d;
  HWY_ALIGN float sums[kSumLanes] = {};
  HWY_ALIGN float last[2][kSumLanes] = {};
  for (int64_t i = 0; i < count; i += kSumLanes) {
    const float *x = a + i, *y = b + i;
    if (count - i < kSumLanes) {
      std::copy_n(x, count - i, last[0]);
      std::copy_n(y, count - i, last[1]);
      x = last[0];
      y = last[1];
    }
    HWY_UNROLL(4)
    for (int64_t j = 0; j < kSumLanes; j += kLanes) {
      hn::Store(hn::MulAdd(hn::LoadU(d, x + j), hn::LoadU(d, y + j), hn::Load(d, sums + j)), d,
                sums + j);
    }
  }
  return FoldLanes(sums);
}

// lse and delta of tokens [begin, end), heads outermost: a query block's are then adjacent.
void Prepare(const AttentionBackwardParams& b, int64_t begin, int64_t end, float* lse,
             float* delta) {
  const AttentionParams& p = b.forward;
  for (int64_t token = begin; token < end; ++token) {
    for (int64_t head = 0; head < p.heads; ++head) {
      const int64_t row = token * p.heads + head;
      lse[head * p.tokens + token] = p.lse[row] * 1.44269504088896f;
      delta[head * p.tokens + token] =
          Dot(b.grad_out + row * p.head_dim, p.out + row * p.head_dim, p.head_dim);
    }
  }
}

}  // namespace tandem::cpu::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {
namespace attention {
HWY_EXPORT(RunBackwardItem);
HWY_EXPORT(Prepare);

namespace {

// Query blocks in an item that computes grad_q alone: they share each packed key block.
constexpr int64_t kQueryBlocks = 4;

int64_t ThreadScratchFloats(int64_t dim) {
  return 2 * kAttentionBlock * kRowStride + 2 * kAttentionBlock * kAttentionBlock +
         5 * kAttentionBlock * dim;
}

int64_t BlocksOf(const AttentionParams& p, int64_t s) {
  return CeilDiv(p.query_start[s + 1] - p.query_start[s], kAttentionBlock);
}

// Whole: an item is a sequence and key/value head, 5 products a pair. Cut: the key/value gradients
// are items apart from the query gradients and recompute the scores, 7 products a pair; for when
// there are too few heads and sequences to keep the threads busy. The same bits either way.
struct Schedule {
  bool whole;
  int64_t threads;
};

Schedule Plan(const AttentionParams& p) {
  double total = 0, largest = 0;
  int64_t pairs = 0, blocks = 0;
  for (int64_t s = 0; s < p.sequences; ++s) {
    const double length = static_cast<double>(p.query_start[s + 1] - p.query_start[s]);
    total += length * length;
    largest = std::max(largest, length * length);
    pairs += length > 0 ? p.kv_heads : 0;
    blocks += BlocksOf(p, s) * p.kv_heads;
  }
  const double flops = 5.0 * total * static_cast<double>(p.heads * p.head_dim);
  const int64_t threads = ThreadsFor(flops, blocks);
  const double share = total * static_cast<double>(p.kv_heads) / static_cast<double>(threads);
  const bool whole = threads == 1 || (pairs >= threads && largest <= 1.2 * share);
  return {whole, threads};
}

int64_t ItemsOf(const AttentionParams& p, int64_t s, bool whole) {
  const int64_t blocks = BlocksOf(p, s);
  if (whole) return blocks == 0 ? 0 : p.kv_heads;
  return (blocks + CeilDiv(blocks, kQueryBlocks)) * p.kv_heads;
}

BackwardItem ItemAt(const AttentionParams& p, const int64_t* first, int64_t item, bool whole) {
  const int64_t s = FindSequence(first, p.sequences, item);
  const int64_t blocks = BlocksOf(p, s);
  const int64_t index = (item - first[s]) / p.kv_heads;
  BackwardItem result = {.sequence = s,
                         .kv_head = (item - first[s]) % p.kv_heads,
                         .key_begin = 0,
                         .key_end = blocks,
                         .query_begin = 0,
                         .query_end = blocks,
                         .grad_key_value = true,
                         .grad_query = true};
  if (whole) return result;
  // Longest first: the last query blocks have the most keys, the first key block the most queries.
  const int64_t query_items = CeilDiv(blocks, kQueryBlocks);
  if (index < query_items) {
    result.query_begin = (query_items - 1 - index) * kQueryBlocks;
    result.query_end = std::min(result.query_begin + kQueryBlocks, blocks);
    result.key_end = result.query_end;
    result.grad_key_value = false;
  } else {
    result.key_begin = index - query_items;
    result.key_end = result.key_begin + 1;
    result.grad_query = false;
  }
  return result;
}

int64_t BackwardScratchBytes(const AttentionParams& p) {
  return 64 + RoundUp((p.sequences + 1) * 8, 64) + 2 * RoundUp(p.tokens * p.heads * 4, 64) +
         ThreadCount() * ThreadScratchFloats(p.head_dim) * 4;
}

void RunBackward(const AttentionBackwardParams& params, void* scratch) {
  const AttentionParams& p = params.forward;
  float* at = AlignScratch(scratch);
  int64_t* first = reinterpret_cast<int64_t*>(at);
  float* lse = at + RoundUp((p.sequences + 1) * 8, 64) / 4;
  float* delta = lse + RoundUp(p.tokens * p.heads, 16);
  float* thread_scratch = delta + RoundUp(p.tokens * p.heads, 16);

  const Schedule schedule = Plan(p);
  first[0] = 0;
  for (int64_t s = 0; s < p.sequences; ++s) {
    first[s + 1] = first[s] + ItemsOf(p, s, schedule.whole);
  }
  const auto prepare = HWY_DYNAMIC_DISPATCH(Prepare);
  ForEachItem(CeilDiv(p.tokens, kAttentionBlock), schedule.threads, [&](int64_t item, int64_t) {
    const int64_t begin = item * kAttentionBlock;
    prepare(params, begin, std::min(p.tokens, begin + kAttentionBlock), lse, delta);
  });
  const auto run = HWY_DYNAMIC_DISPATCH(RunBackwardItem);
  const int64_t stride = ThreadScratchFloats(p.head_dim);
  ForEachItem(first[p.sequences], schedule.threads, [&](int64_t item, int64_t slot) {
    run(params, ItemAt(p, first, item, schedule.whole), lse, delta, thread_scratch + slot * stride);
  });
}

}  // namespace
}  // namespace attention

int64_t AttentionBackwardScratchBytes(const AttentionBackwardParams& params) {
  return attention::BackwardScratchBytes(params.forward);
}

void AttentionBackward(const AttentionBackwardParams& params, void* scratch) {
  attention::RunBackward(params, scratch);
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE

// The online softmax of a forward pass: query rows that share a position block meet one key block
// after another. Training, prefill and decode all consist of AttendTile and nothing else.
#if defined(TANDEM_BACKEND_CPU_KERNELS_ATTENTION_RECURRENCE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_BACKEND_CPU_KERNELS_ATTENTION_RECURRENCE_INL_H_
#undef TANDEM_BACKEND_CPU_KERNELS_ATTENTION_RECURRENCE_INL_H_
#else
#define TANDEM_BACKEND_CPU_KERNELS_ATTENTION_RECURRENCE_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

#include "engine/backend/cpu/kernels/attention.h"
#include "engine/backend/cpu/kernels/attention_schedule.h"
#include "engine/backend/cpu/kernels/attention_tile-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::attention::HWY_NAMESPACE {

struct ForwardScratch {
  float* q;            // (kItemRows, kRowStride) scaled to base 2: q * scale * log2(e)
  float* acc;          // (kItemRows, acc_stride) sum of p * v
  float* row_sum;      // (kItemRows, kSumLanes) sum of p
  float* row_max;      // (kItemRows + kSumLanes) running maximum of the base-2 scores
  float* key_block;    // (D, kAttentionBlock)
  float* value_block;  // (kAttentionBlock, D)
  float* scores;       // (kAttentionBlock, kAttentionBlock)
  int64_t acc_stride;
};

// Query rows that share a position block, and how many keys of the current block each one sees.
struct RowTile {
  int64_t rows;
  const int32_t* visible;  // (rows), each 1..kAttentionBlock; null: all keys

  // Of rows [begin, begin + count).
  int64_t Fewest(int64_t begin, int64_t count) const {
    if (visible == nullptr) return kAttentionBlock;
    int64_t result = kAttentionBlock;
    for (int64_t r = begin; r < begin + count; ++r) result = std::min<int64_t>(result, visible[r]);
    return result;
  }
  int64_t Most(int64_t begin, int64_t count) const {
    if (visible == nullptr) return kAttentionBlock;
    int64_t result = 0;
    for (int64_t r = begin; r < begin + count; ++r) result = std::max<int64_t>(result, visible[r]);
    return result;
  }
};

inline ForwardScratch CarveForward(int64_t dim, float* at) {
  ForwardScratch s;
  s.acc_stride = RoundUp(dim, kSumLanes);
  s.q = at;
  s.acc = s.q + kItemRows * kRowStride;
  s.row_sum = s.acc + kItemRows * s.acc_stride;
  s.row_max = s.row_sum + kItemRows * kSumLanes;
  s.key_block = s.row_max + kItemRows + kSumLanes;
  s.value_block = s.key_block + dim * kAttentionBlock;
  s.scores = s.value_block + RoundUp(dim * kAttentionBlock, kSumLanes);
  return s;
}

// scores[r][key] = q[r] . key, for at least the visible keys.
HWY_INLINE void ScoreTile(const RowTile& tile, const float* q, const float* keys, int64_t dim,
                          float* scores) {
  for (int64_t r = 0; r < tile.rows; r += kTileRows) {
    const int64_t rows = std::min<int64_t>(kTileRows, tile.rows - r);
    const int64_t lanes = WholeLanes(tile.Most(r, rows));
    Multiply<kRowStride, 1, Start::kZero>(rows, q + r * kRowStride, keys, kAttentionBlock, dim,
                                          nullptr, scores + r * kAttentionBlock, kAttentionBlock,
                                          lanes);
  }
}

// The largest visible score of a row; masked lanes become -inf, for the exponential to make 0.
template <bool kAll>
HWY_INLINE float MaxScore(float* scores, int64_t visible) {
  const Lanes d;
  const auto lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
  auto max = lowest;
  for (int64_t i = 0; i < visible; i += kLanes) {
    auto s = hn::LoadU(d, scores + i);
    if (!kAll && visible - i < kLanes) {
      s = hn::IfThenElse(hn::FirstN(d, static_cast<size_t>(visible - i)), s, lowest);
      hn::StoreU(s, d, scores + i);
    }
    max = hn::Max(max, s);
  }
  return hn::GetLane(hn::MaxOfLanes(d, max));
}

// scores become p = 2^(score - max); sums = sums * correction + p, folded to kSumLanes lanes.
template <bool kAll>
HWY_INLINE void ExponentiateRow(float* scores, int64_t visible, float max, float correction,
                                float* sums) {
  const Lanes d;
  const auto max_lanes = hn::Set(d, max);
  const auto factor = hn::Set(d, correction);
  HWY_UNROLL(4)
  for (int64_t i = 0; i < kSumLanes; i += kLanes) {
    auto p = hn::Zero(d);
    if (kAll || i < visible) {
      p = PowerOfTwo(d, hn::Sub(hn::LoadU(d, scores + i), max_lanes));
      hn::StoreU(p, d, scores + i);
    }
    if (kAll || i + kSumLanes < visible) {
      float* upper = scores + i + kSumLanes;
      const auto p_upper = PowerOfTwo(d, hn::Sub(hn::LoadU(d, upper), max_lanes));
      hn::StoreU(p_upper, d, upper);
      p = hn::Add(p, p_upper);
    }
    hn::StoreU(hn::MulAdd(hn::LoadU(d, sums + i), factor, p), d, sums + i);
  }
}

// One step of the online softmax: scores become p, correction = 2^(old max - new max).
template <bool kAll>
HWY_NOINLINE void SoftmaxTile(const RowTile& tile, float* scores, float* row_max, float* row_sum,
                              float* correction) {
  const Lanes d;
  HWY_ALIGN float max[kAttentionBlock] = {};
  for (int64_t r = 0; r < tile.rows; ++r) {
    max[r] = MaxScore<kAll>(scores + r * kAttentionBlock, kAll ? kAttentionBlock : tile.visible[r]);
  }
  for (int64_t r = 0; r < tile.rows; r += kLanes) {
    const auto old_max = hn::LoadU(d, row_max + r);
    const auto new_max = hn::Max(old_max, hn::Load(d, max + r));
    hn::Store(new_max, d, max + r);
    hn::Store(PowerOfTwo(d, hn::Sub(old_max, new_max)), d, correction + r);
  }
  for (int64_t r = 0; r < tile.rows; ++r) {
    row_max[r] = max[r];
    ExponentiateRow<kAll>(scores + r * kAttentionBlock, kAll ? kAttentionBlock : tile.visible[r],
                          max[r], correction[r], row_sum + r * kSumLanes);
  }
}

// acc = acc * correction + p . values, over the visible keys alone: a probability of zero times a
// value that is not there could be NaN.
HWY_INLINE void ValueTile(const RowTile& tile, const float* p, const float* values, int64_t dim,
                          const float* correction, float* acc, int64_t acc_stride) {
  for (int64_t r = 0; r < tile.rows; r += kTileRows) {
    const int64_t rows = std::min<int64_t>(kTileRows, tile.rows - r);
    const int64_t common = tile.Fewest(r, rows);
    Multiply<kAttentionBlock, 1, Start::kScaled>(rows, p + r * kAttentionBlock, values, dim, common,
                                                 correction + r, acc + r * acc_stride, acc_stride,
                                                 dim);
    if (tile.visible == nullptr) continue;
    for (int64_t i = r; i < r + rows; ++i) {
      const int64_t more = tile.visible[i] - common;
      if (more == 0) continue;
      Multiply<kAttentionBlock, 1, Start::kAdd>(1, p + i * kAttentionBlock + common,
                                                values + common * dim, dim, more, nullptr,
                                                acc + i * acc_stride, acc_stride, dim);
    }
  }
}

// The one routine that all of training, prefill and decode consist of: rows of one position block
// meet one key block.
HWY_INLINE void AttendTile(const RowTile& tile, int64_t row, const float* keys, const float* values,
                           int64_t dim, const ForwardScratch& s) {
  HWY_ALIGN float correction[kAttentionBlock];
  ScoreTile(tile, s.q + row * kRowStride, keys, dim, s.scores);
  float* sums = s.row_sum + row * kSumLanes;
  if (tile.visible == nullptr) {
    SoftmaxTile<true>(tile, s.scores, s.row_max + row, sums, correction);
  } else {
    SoftmaxTile<false>(tile, s.scores, s.row_max + row, sums, correction);
  }
  ValueTile(tile, s.scores, values, dim, correction, s.acc + row * s.acc_stride, s.acc_stride);
}

}  // namespace tandem::cpu::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif

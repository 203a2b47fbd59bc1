// The SIMD pieces of attention, once per target: small matrix products with rows as scalars and one
// axis as lanes, 2^x, and packing. Everything below is elementwise in the lanes or has a fixed
// order, so no result depends on the vector width or on where in a tile a row lies.
#if defined(TANDEM_BACKEND_CPU_KERNELS_ATTENTION_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_BACKEND_CPU_KERNELS_ATTENTION_TILE_INL_H_
#undef TANDEM_BACKEND_CPU_KERNELS_ATTENTION_TILE_INL_H_
#else
#define TANDEM_BACKEND_CPU_KERNELS_ATTENTION_TILE_INL_H_
#endif

#include <cstdint>
#include <type_traits>

#include "engine/backend/cpu/kernels/attention.h"
#include "engine/backend/cpu/kernels/attention_schedule.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::attention::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A block of scores has 32 lanes, so vectors wider than half of it are capped.
using Lanes = hn::CappedTag<float, kAttentionBlock / 2>;
inline constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(Lanes()));
// Rows whose sums stay in registers: 8 x 2 vectors of 32 registers, 4 x 2 of 16.
inline constexpr int kTileRows = kLanes >= 16 ? 8 : 4;

// 2^x to 2 ulp for x <= 127; 0 below -127; exactly 1 at 0; NaN stays NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V PowerOfTwo(D d, V x) {
  const hn::RebindToSigned<D> di;
  const V lowest = hn::Set(d, -127.0f);
  x = hn::IfThenElse(hn::Lt(x, lowest), lowest, x);
  // The last bit of 1.5 * 2^23 is worth 1: the low bits of the sum are x rounded.
  const V round = hn::Set(d, 0x1.8p23f);
  const V shifted = hn::Add(x, round);
  const V f = hn::Sub(x, hn::Sub(shifted, round));
  // 2^f on [-1/2, 1/2], relative error 3e-9 before rounding.
  V p = hn::Set(d, 0.00015461444854736328f);
  p = hn::MulAdd(p, f, hn::Set(d, 0.0013400427997112274f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.009618056938052177f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.05550327152013779f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.24022650718688965f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.6931471824645996f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::BitCast(di, shifted));
  const V power = hn::BitCast(d, hn::Add(exponent, hn::Set(di, 0x3F800000)));
  return hn::Mul(p, power);
}

// Sums across lanes are kept in this many lanes whatever the vector width, and fold to one number
// at the very end. A row of probabilities has key i and key i + 16 of every block in lane i.
inline constexpr int64_t kSumLanes = kAttentionBlock / 2;

// The sum of kSumLanes lanes in a fixed tree: lanes 8 apart, then 4, 2, 1. Overwrites them.
template <int kHalf = kSumLanes / 2>
HWY_INLINE float FoldLanes(float* sums) {
  if constexpr (kHalf == 0) {
    return sums[0];
  } else {
    const hn::CappedTag<float, kHalf> d;
    constexpr int64_t kWidth = static_cast<int64_t>(hn::MaxLanes(d));
    for (int64_t i = 0; i < kHalf; i += kWidth) {
      hn::StoreU(hn::Add(hn::LoadU(d, sums + i), hn::LoadU(d, sums + i + kHalf)), d, sums + i);
    }
    return FoldLanes<kHalf / 2>(sums);
  }
}

enum class Start { kZero, kScaled, kAdd };  // c = 0 | c * row_scale[r] | c, before the products

// c[r][lane] (+)= sum over k, in order, of a[r][k] * b[k][lane]; a[r][k] is at a + r*kARow +
// k*kAStep.
template <int kARow, int kAStep, Start kStart, int kRows, int kVectors, class D>
HWY_INLINE void MultiplyTile(D d, const float* HWY_RESTRICT a, const float* HWY_RESTRICT b,
                             int64_t b_stride, int64_t steps, const float* HWY_RESTRICT row_scale,
                             float* HWY_RESTRICT c, int64_t c_stride) {
  using V = hn::Vec<D>;
  constexpr int64_t kWidth = static_cast<int64_t>(hn::MaxLanes(D()));
  V sum[kRows][kVectors];
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) {
      if constexpr (kStart == Start::kZero) {
        sum[r][v] = hn::Zero(d);
      } else {
        sum[r][v] = hn::LoadU(d, c + r * c_stride + v * kWidth);
        if constexpr (kStart == Start::kScaled) {
          sum[r][v] = hn::Mul(sum[r][v], hn::Set(d, row_scale[r]));
        }
      }
    }
  }
  for (int64_t k = 0; k < steps; ++k) {
    V lanes[kVectors];
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) lanes[v] = hn::LoadU(d, b + k * b_stride + v * kWidth);
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      const V scalar = hn::Set(d, a[r * kARow + k * kAStep]);
      HWY_UNROLL(4)
      for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(scalar, lanes[v], sum[r][v]);
    }
  }
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) hn::StoreU(sum[r][v], d, c + r * c_stride + v * kWidth);
  }
}

// The lanes left over, in ever narrower vectors: nothing is read or written beyond the last lane.
template <int kARow, int kAStep, Start kStart, int kRows, int kWidth>
HWY_INLINE void MultiplyTail(const float* a, const float* b, int64_t b_stride, int64_t steps,
                             const float* row_scale, float* c, int64_t c_stride, int64_t lanes) {
  if constexpr (kWidth >= 1) {
    if (lanes >= kWidth) {
      const hn::CappedTag<float, kWidth> d;
      MultiplyTile<kARow, kAStep, kStart, kRows, 1>(d, a, b, b_stride, steps, row_scale, c,
                                                    c_stride);
      b += kWidth;
      c += kWidth;
      lanes -= kWidth;
    }
    MultiplyTail<kARow, kAStep, kStart, kRows, kWidth / 2>(a, b, b_stride, steps, row_scale, c,
                                                           c_stride, lanes);
  }
}

template <int kARow, int kAStep, Start kStart, int kRows>
HWY_NOINLINE void MultiplyRows(const float* a, const float* b, int64_t b_stride, int64_t steps,
                               const float* row_scale, float* c, int64_t c_stride, int64_t lanes) {
  const Lanes d;
  // Few rows need more vectors side by side to hide the latency of the sums.
  constexpr int kWide = kRows <= kTileRows / 2 ? 4 : 2;
  for (; lanes >= kWide * kLanes; lanes -= kWide * kLanes, b += kWide * kLanes, c += kWide * kLanes)
    MultiplyTile<kARow, kAStep, kStart, kRows, kWide>(d, a, b, b_stride, steps, row_scale, c,
                                                      c_stride);
  for (; lanes >= kLanes; lanes -= kLanes, b += kLanes, c += kLanes)
    MultiplyTile<kARow, kAStep, kStart, kRows, 1>(d, a, b, b_stride, steps, row_scale, c, c_stride);
  if (lanes > 0) {
    MultiplyTail<kARow, kAStep, kStart, kRows, kLanes / 2>(a, b, b_stride, steps, row_scale, c,
                                                           c_stride, lanes);
  }
}

// At most kTileRows rows.
template <int kARow, int kAStep, Start kStart>
HWY_INLINE void Multiply(int64_t rows, const float* a, const float* b, int64_t b_stride,
                         int64_t steps, const float* row_scale, float* c, int64_t c_stride,
                         int64_t lanes) {
  const auto part = [&](auto count) HWY_ATTR {
    constexpr int kRows = decltype(count)::value;
    if (rows < kRows) return;
    MultiplyRows<kARow, kAStep, kStart, kRows>(a, b, b_stride, steps, row_scale, c, c_stride,
                                               lanes);
    rows -= kRows;
    a += kRows * kARow;
    c += kRows * c_stride;
    if (row_scale != nullptr) row_scale += kRows;
  };
  if constexpr (kTileRows >= 8) part(std::integral_constant<int, 8>());
  part(std::integral_constant<int, 4>());
  part(std::integral_constant<int, 2>());
  part(std::integral_constant<int, 1>());
}

// to[i] = from[i] * factor
HWY_INLINE void ScaleCopy(const float* from, float factor, int64_t count, float* to) {
  const Lanes d;
  const auto scale = hn::Set(d, factor);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    hn::StoreU(hn::Mul(hn::LoadU(d, from + i), scale), d, to + i);
  for (; i < count; ++i) to[i] = from[i] * factor;
}

// rows x D at from_stride, row by row.
HWY_INLINE void CopyRows(const float* from, int64_t from_stride, int64_t rows, int64_t dim,
                         float* to, int64_t to_stride) {
  for (int64_t r = 0; r < rows; ++r)
    ScaleCopy(from + r * from_stride, 1.0f, dim, to + r * to_stride);
}

// to[d * kAttentionBlock + i] = from[i * from_stride + d] for i < keys, d < dim. The other columns
// stay as they are: scores of keys that are not there are computed in their lanes, and never used.
HWY_INLINE void TransposeKeys(const float* from, int64_t from_stride, int64_t keys, int64_t dim,
                              float* to) {
  constexpr int64_t kTo = kAttentionBlock;
  int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  {
    const hn::CappedTag<float, 4> d;
    for (; i + 4 <= keys; i += 4) {
      const float* row = from + i * from_stride;
      int64_t j = 0;
      for (; j + 4 <= dim; j += 4) {
        const auto r0 = hn::LoadU(d, row + j);
        const auto r1 = hn::LoadU(d, row + from_stride + j);
        const auto r2 = hn::LoadU(d, row + 2 * from_stride + j);
        const auto r3 = hn::LoadU(d, row + 3 * from_stride + j);
        const auto a = hn::InterleaveLower(d, r0, r2), b = hn::InterleaveUpper(d, r0, r2);
        const auto e = hn::InterleaveLower(d, r1, r3), f = hn::InterleaveUpper(d, r1, r3);
        float* column = to + j * kTo + i;
        hn::StoreU(hn::InterleaveLower(d, a, e), d, column);
        hn::StoreU(hn::InterleaveUpper(d, a, e), d, column + kTo);
        hn::StoreU(hn::InterleaveLower(d, b, f), d, column + 2 * kTo);
        hn::StoreU(hn::InterleaveUpper(d, b, f), d, column + 3 * kTo);
      }
      for (; j < dim; ++j) {
        for (int64_t n = 0; n < 4; ++n) to[j * kTo + i + n] = row[n * from_stride + j];
      }
    }
  }
#endif
  for (; i < keys; ++i) {
    for (int64_t j = 0; j < dim; ++j) to[j * kTo + i] = from[i * from_stride + j];
  }
}

// The whole vectors that hold `count` lanes of a block.
HWY_INLINE int64_t WholeLanes(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

}  // namespace tandem::cpu::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif

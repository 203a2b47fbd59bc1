#include "engine/backend/cpu/kernels/resampling.h"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "engine/base/threads.h"
#include "hwy/cache_control.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/backend/cpu/kernels/resampling.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per instruction set.
#include "engine/backend/cpu/kernels/vector_math-inl.h"

#ifndef TANDEM_CPU_KERNELS_RESAMPLING_PIECE_
#define TANDEM_CPU_KERNELS_RESAMPLING_PIECE_
namespace tandem::cpu {

// Elements of one row between the two passes: they stay in the first-level cache.
inline constexpr int64_t kResampleLine = 2 * kResampleReach;
// Rows that repeat one another are written together, this many at most.
inline constexpr int64_t kRepeats = 8;

// The output columns [first, first + columns) of output rows [row, row_end) of one plane.
struct ResamplePiece {
  const ResampleParams* p;
  const float* x;  // the plane's
  float* y;
  int64_t out_columns;
  int64_t row, row_end;
  int64_t first, columns;
  bool stream;  // y is too large to stay in a cache
};

}  // namespace tandem::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu {
namespace HWY_NAMESPACE {

using I32 = hn::RebindToSigned<F32>;

HWY_INLINE bool Aligned(const float* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; }

// dst[j] = sum over k < kCount of w[k] rows[k][j]; kCount 0: `count` of them.
template <int kCount>
HWY_INLINE void SumRows(const float* const* rows, const float* w, int64_t count, int64_t n,
                        bool stream, float* dst) {
  const F32 d;
  if constexpr (kCount > 0) count = kCount;
  ForEachVector(d, static_cast<size_t>(n), [&](size_t j, auto part) TANDEM_VECTOR_LAMBDA {
    VecF32 sum = hn::Mul(hn::Set(d, w[0]), Load(d, rows[0] + j, part));
    for (int64_t k = 1; k < count; ++k) {
      sum = hn::MulAdd(hn::Set(d, w[k]), Load(d, rows[k] + j, part), sum);
    }
    if constexpr (std::is_same_v<decltype(part), Whole>) {
      if (stream) return hn::Stream(sum, d, dst + j);
    }
    Store(sum, d, dst + j, part);
  });
}

// dst[j] += sum over k < count of w[k] rows[k][j]
HWY_INLINE void AddRows(const float* const* rows, const float* w, int64_t count, int64_t n,
                        float* dst) {
  const F32 d;
  ForEachVector(d, static_cast<size_t>(n), [&](size_t j, auto part) TANDEM_VECTOR_LAMBDA {
    VecF32 sum = Load(d, dst + j, part);
    for (int64_t k = 0; k < count; ++k) {
      sum = hn::MulAdd(hn::Set(d, w[k]), Load(d, rows[k] + j, part), sum);
    }
    Store(sum, d, dst + j, part);
  });
}

// One row of the first pass: columns [from, from + n) of output row o, to dst.
HWY_INLINE void Down(const Band& band, const float* x, int64_t row_size, int64_t o, int64_t from,
                     int64_t n, bool stream, float* dst) {
  constexpr int64_t kRows = 8;
  const float* rows[kRows];
  float w[kRows];
  int64_t count = 0;
  bool begun = false;
  for (int64_t k = 0; k < band.taps; ++k) {
    const float weight = band.weights[k * band.stride + o];
    if (weight == 0.0f) continue;
    if (count == kRows) {
      begun ? AddRows(rows, w, count, n, dst) : SumRows<kRows>(rows, w, count, n, false, dst);
      begun = true;
      count = 0;
    }
    rows[count] = x + (band.first[o] + k) * row_size + from;
    w[count++] = weight;
  }
  if (begun) return AddRows(rows, w, count, n, dst);
  switch (count) {
    case 0:
      std::fill(dst, dst + n, 0.0f);
      return;
    case 1:
      return SumRows<1>(rows, w, count, n, stream, dst);
    case 2:
      return SumRows<2>(rows, w, count, n, stream, dst);
    case 3:
      return SumRows<3>(rows, w, count, n, stream, dst);
    case 4:
      return SumRows<4>(rows, w, count, n, stream, dst);
    default:
      return SumRows<0>(rows, w, count, n, stream, dst);
  }
}

// How a vector of outputs finds its taps: all first taps within one vector of the input, within
// two, or anywhere.
enum class Fetch { kOneVector, kTwoVectors, kGather };

// src[first[o] - base + k] for the lanes of one vector.
template <Fetch kFetch>
struct Taps {
  HWY_INLINE Taps(const int32_t* first, int64_t last_lane, int64_t origin, const float* src) {
    const I32 d;
    const int64_t base = std::min(first[0], first[last_lane]);
    from = src + (base - origin);
    index = hn::Sub(hn::LoadU(d, first), hn::Set(d, static_cast<int32_t>(base)));
  }
  HWY_INLINE VecF32 operator()(int64_t k) const {
    const F32 d;
    const I32 di;
    if constexpr (kFetch == Fetch::kGather) {
      return hn::GatherIndex(d, from + k, index);
    } else if constexpr (kFetch == Fetch::kOneVector) {
      return hn::TableLookupLanes(hn::LoadU(d, from + k), hn::IndicesFromVec(d, index));
    } else {
      const auto lanes = static_cast<int32_t>(hn::Lanes(d));
      const auto wrapped = hn::And(index, hn::Set(di, lanes - 1));
      const auto indices = hn::IndicesFromVec(d, wrapped);
      const auto second = hn::RebindMask(d, hn::Gt(index, hn::Set(di, lanes - 1)));
      return hn::IfThenElse(second, hn::TableLookupLanes(hn::LoadU(d, from + k + lanes), indices),
                            hn::TableLookupLanes(hn::LoadU(d, from + k), indices));
    }
  }
  const float* from;
  hn::Vec<I32> index;
};

// The sum over taps for outputs that are two inputs apart: two taps from one pair of loads. The
// same additions in the same order.
template <int kTaps>
HWY_INLINE VecF32 SumPairs(const float* from, const float* weights, int64_t stride, int64_t taps) {
  const F32 d;
  VecF32 even, odd;
  hn::LoadInterleaved2(d, from, even, odd);
  VecF32 sum = hn::Mul(hn::LoadU(d, weights), even);
  if constexpr (kTaps > 0) taps = kTaps;
  for (int64_t k = 1; k < taps; ++k) {
    if (k % 2 == 0) hn::LoadInterleaved2(d, from + k, even, odd);
    sum = hn::MulAdd(hn::LoadU(d, weights + k * stride), k % 2 == 0 ? even : odd, sum);
  }
  return sum;
}

// The second pass: outputs [begin, end) of a row, from `src`, whose element 0 is input `origin`, to
// `repeats` rows of y. kTaps 0: any number; -1: one of weight 1.
template <Fetch kFetch, int kTaps>
HWY_INLINE void AlongOf(const Band& band, int64_t begin, int64_t end, int64_t origin,
                        const float* src, int64_t repeats, int64_t row_size, bool stream,
                        float* y) {
  const F32 d;
  const auto last_lane = static_cast<int64_t>(hn::Lanes(d)) - 1;
  const float* weights = band.weights.data();
  const int64_t stride = band.stride, taps = kTaps > 0 ? kTaps : band.taps;
  ForEachVector(d, static_cast<size_t>(end - begin), [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    const int64_t o = begin + static_cast<int64_t>(i);
    VecF32 sum;
    if (kFetch == Fetch::kTwoVectors && kTaps >= 0 && band.in_pairs[o / Band::kLanes] != 0) {
      sum = SumPairs<kTaps>(src + (band.first[o] - origin), weights + o, stride, taps);
    } else {
      const Taps<kFetch> tap(&band.first[o], last_lane, origin, src);
      sum = tap(0);
      if constexpr (kTaps >= 0) {
        sum = hn::Mul(hn::LoadU(d, weights + o), sum);
        for (int64_t k = 1; k < taps; ++k) {
          sum = hn::MulAdd(hn::LoadU(d, weights + k * stride + o), tap(k), sum);
        }
      }
    }
    for (int64_t r = 0; r < repeats; ++r) {
      if constexpr (std::is_same_v<decltype(part), Whole>) {
        if (stream) {
          hn::Stream(sum, d, y + r * row_size + i);
          continue;
        }
      }
      Store(sum, d, y + r * row_size + i, part);
    }
  });
}

template <Fetch kFetch>
HWY_INLINE void AlongBy(const Band& band, int64_t begin, int64_t end, int64_t origin,
                        const float* src, int64_t repeats, int64_t row_size, bool stream,
                        float* y) {
  if (band.copies) {
    return AlongOf<kFetch, -1>(band, begin, end, origin, src, repeats, row_size, stream, y);
  }
  switch (band.taps) {
    case 2:
      return AlongOf<kFetch, 2>(band, begin, end, origin, src, repeats, row_size, stream, y);
    case 4:
      return AlongOf<kFetch, 4>(band, begin, end, origin, src, repeats, row_size, stream, y);
    default:
      return AlongOf<kFetch, 0>(band, begin, end, origin, src, repeats, row_size, stream, y);
  }
}

HWY_INLINE void Along(const Band& band, int64_t begin, int64_t end, int64_t origin,
                      const float* src, int64_t repeats, int64_t row_size, bool stream, float* y) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(F32()));
  const int64_t spread = lanes == 8 ? band.spread8 : lanes == 16 ? band.spread16 : 2 * lanes;
  if (lanes > 1 && spread < lanes) {
    return AlongBy<Fetch::kOneVector>(band, begin, end, origin, src, repeats, row_size, stream, y);
  }
  if (lanes > 1 && spread < 2 * lanes) {
    return AlongBy<Fetch::kTwoVectors>(band, begin, end, origin, src, repeats, row_size, stream, y);
  }
  AlongBy<Fetch::kGather>(band, begin, end, origin, src, repeats, row_size, stream, y);
}

void ResamplePieceOf(const ResamplePiece& t) {
  const ResampleParams& p = *t.p;
  const Band *down = p.down, *along = p.along;
  // Loads of whole vectors run past what is used.
  HWY_ALIGN float line[kResampleLine + 64];
  int64_t from = t.first, n = t.columns;
  if (along != nullptr) {
    const int64_t a = along->first[t.first], b = along->first[t.first + t.columns - 1];
    from = std::min(a, b);
    n = std::max(a, b) + along->taps - from;
  }
  for (int64_t o = t.row; o < t.row_end;) {
    int64_t repeats = 1;
    while (down != nullptr && down->copies && repeats < kRepeats && o + repeats < t.row_end &&
           down->first[o + repeats] == down->first[o]) {
      ++repeats;
    }
    float* y = t.y + o * t.out_columns + t.first;
    bool stream = t.stream;
    for (int64_t r = 0; r < repeats; ++r) stream = stream && Aligned(y + r * t.out_columns);
    if (along == nullptr) {
      if (down->copies) {
        const float* row = t.x + down->first[o] * p.columns + from;
        for (int64_t r = 0; r < repeats; ++r) {
          std::memcpy(y + r * t.out_columns, row, static_cast<size_t>(n) * sizeof(float));
        }
      } else {
        Down(*down, t.x, p.columns, o, from, n, stream && down->taps <= 8, y);
      }
    } else if (along->reach > kResampleReach) {
      // Too wide for the line, and `down` is null: straight from memory.
      AlongBy<Fetch::kGather>(*along, t.first, t.first + t.columns, 0, t.x + o * p.columns, 1,
                              t.out_columns, stream, y);
    } else {
      if (down != nullptr && !down->copies) {
        Down(*down, t.x, p.columns, o, from, n, false, line);
      } else {
        const int64_t row = down == nullptr ? o : down->first[o];
        std::memcpy(line, t.x + row * p.columns + from, static_cast<size_t>(n) * sizeof(float));
      }
      Along(*along, t.first, t.first + t.columns, from, line, repeats, t.out_columns, stream, y);
    }
    o += repeats;
  }
  if (t.stream) hwy::FlushStream();
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {

HWY_EXPORT(ResamplePieceOf);

namespace {

// Outputs larger than this would push everything else out of the caches anyway.
constexpr int64_t kStreamBytes = int64_t{16} << 20;

// Input elements that outputs [begin, end) look at, first to last.
int64_t Span(const std::vector<int32_t>& first, int64_t taps, int64_t begin, int64_t end) {
  return std::abs(first[end - 1] - first[begin]) + taps;
}

// Output columns of one piece: as many as the line between the passes has room for.
int64_t TileColumns(const Band& band) {
  int64_t tile = band.stride;
  for (bool fits = false; !fits && tile > Band::kLanes; tile = fits ? tile : tile / 2) {
    tile = (tile + Band::kLanes - 1) / Band::kLanes * Band::kLanes;
    fits = true;
    for (int64_t o = 0; o < band.output && fits; o += tile) {
      fits = Span(band.first, band.taps, o, std::min(band.output, o + tile)) <= kResampleLine;
    }
  }
  return std::max(tile, Band::kLanes);
}

}  // namespace

Band::Band(int64_t size, const std::vector<int32_t>& rows, const std::vector<int64_t>& begin,
           const std::vector<double>& values)
    : input(size), output(static_cast<int64_t>(rows.size())) {
  for (int64_t o = 0; o < output; ++o) taps = std::max(taps, begin[o + 1] - begin[o]);
  stride = (output + kLanes - 1) / kLanes * kLanes;
  weights.assign(taps * stride, 0.0f);
  copies = taps == 1;
  for (int64_t o = 0; o < stride; ++o) {
    if (o >= output) {
      first.push_back(first.back());
      continue;
    }
    // A row near the input's end begins earlier, so that it has all its taps inside.
    const auto start = static_cast<int32_t>(std::min<int64_t>(rows[o], input - taps));
    first.push_back(start);
    for (int64_t k = begin[o]; k < begin[o + 1]; ++k) {
      weights[(rows[o] - start + k - begin[o]) * stride + o] = static_cast<float>(values[k]);
    }
    copies = copies && begin[o + 1] - begin[o] == 1 && values[begin[o]] == 1.0;
  }
  for (int64_t o = 0; o < stride; o += 8) {
    spread8 = std::max<int64_t>(spread8, std::abs(first[o + 7] - first[o]));
  }
  for (int64_t o = 0; o < stride; o += kLanes) {
    spread16 = std::max<int64_t>(spread16, std::abs(first[o + kLanes - 1] - first[o]));
  }
  for (int64_t block = 0; block < stride; block += kLanes) {
    bool pairs = true;
    for (int64_t o = block + 1; o < block + kLanes; ++o) {
      pairs = pairs && first[o] == first[o - 1] + 2;
    }
    in_pairs.push_back(pairs ? 1 : 0);
  }
  reach = spread16 + taps;
}

void Resample(const ResampleParams& params, const float* x, float* y) {
  const auto run = HWY_DYNAMIC_DISPATCH(ResamplePieceOf);
  const int64_t out_rows = params.down == nullptr ? params.rows : params.down->output;
  const int64_t out_columns = params.along == nullptr ? params.columns : params.along->output;
  const int64_t tile = params.along == nullptr ? kResampleLine : TileColumns(*params.along);
  const int64_t tiles = (out_columns + tile - 1) / tile;
  const bool stream = params.planes * out_rows * out_columns * 4 >= kStreamBytes;
  // Pieces in the order (plane, tile, row): neighbouring rows share what they read.
  ParallelFor(params.planes * tiles * out_rows,
              16384 / std::max<int64_t>(1, std::min(tile, out_columns)),
              [&](int64_t begin, int64_t end) {
                while (begin < end) {
                  const int64_t row = begin % out_rows, piece = begin / out_rows;
                  const int64_t plane = piece / tiles, first = piece % tiles * tile;
                  const int64_t row_end = std::min(out_rows, row + end - begin);
                  run({.p = &params,
                       .x = x + plane * params.rows * params.columns,
                       .y = y + plane * out_rows * out_columns,
                       .out_columns = out_columns,
                       .row = row,
                       .row_end = row_end,
                       .first = first,
                       .columns = std::min(tile, out_columns - first),
                       .stream = stream});
                  begin += row_end - row;
                }
              });
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE

#include "engine/backend/cpu/kernels/sliding_maximum.h"

#include <algorithm>
#include <cstddef>
#include <limits>

#include "engine/base/threads.h"
#include "hwy/cache_control.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/backend/cpu/kernels/sliding_maximum.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per instruction set.
#include "engine/backend/cpu/kernels/sliding_maximum-inl.h"
#include "engine/backend/cpu/kernels/vector_math-inl.h"

#ifndef TANDEM_CPU_KERNELS_SLIDING_MAXIMUM_TILE_
#define TANDEM_CPU_KERNELS_SLIDING_MAXIMUM_TILE_
namespace tandem::cpu {

// One piece of work: the output columns [first, first + columns) of one plane.
struct SlidingTile {
  const Pool2dParams* p;
  const float* x;  // the plane's
  float* y;
  int64_t* index;  // null: not wanted
  int64_t first, columns;
  bool stream;  // y and index are too large to stay in a cache
  PairBuffer line, block, rows, suffix, prefix;
  int64_t row_stride;  // of rows and suffix
};

}  // namespace tandem::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu {
namespace HWY_NAMESPACE {

// The input row h as the tile's windows see it: `line` with the padding written out, or the row
// itself where all that whole vectors may touch lies in it. `start` is the column of element 0.
HWY_INLINE const float* TileRow(const SlidingTile& t, int64_t h, int64_t start, int64_t n) {
  const Pool2dParams& p = *t.p;
  const float* row = t.x + h * p.in_w;
  const int64_t end = start + n + p.kernel_w + 2 * kColumn + 16;
  if (start >= 0 && end <= p.in_w) return row + start;
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  const int64_t from = std::max<int64_t>(start, 0), to = std::min(end, p.in_w);
  float* line = t.line.value;
  std::fill(line, line + (from - start), kLowest);
  std::copy(row + from, row + std::max(from, to), line + (from - start));
  std::fill(line + (std::max(from, to) - start), line + (end - start), kLowest);
  return line;
}

// Maxima along row h of the tile, to `sink`. False: see SlideRowOf.
template <class E, class Sink>
HWY_INLINE bool SlideRow(const SlidingTile& t, int64_t h, Sink sink) {
  const Pool2dParams& p = *t.p;
  const int64_t n = (t.columns - 1) * p.stride_w + 1;
  const int64_t start = t.first * p.stride_w - p.pad_left;
  const auto low = static_cast<int32_t>(h * p.in_w);
  const Row row{TileRow(t, h, start, n), static_cast<int32_t>(low + start), low, start < 0};
  if (p.stride_w == 1) return Slide<E>(row, n, p.kernel_w, t.block, t.suffix, sink);
  // The row's copy is no longer needed once the windows are: `line` may take the results, as they
  // are written behind what is read.
  if (!Slide<E>(row, n, p.kernel_w, t.block, t.suffix, ToBuffer<E>{t.line})) return false;
  constexpr int64_t kHere[] = {0};
  for (int64_t o = 0; o < t.columns; ++o) {
    t.line.value[o] = t.line.value[o * p.stride_w];
    if constexpr (E::kPlaces) t.line.place[o] = t.line.place[o * p.stride_w];
  }
  CombineOf<1, E>(
      t.columns, kHere, [&](int64_t i) TANDEM_VECTOR_LAMBDA { return E::Load(t.line, i); }, sink);
  return true;
}

template <class E>
HWY_INLINE ToOutput<E> OutputRow(const SlidingTile& t, int64_t oh) {
  const int64_t at = oh * t.p->out_w + t.first;
  float* y = t.y + at;
  int64_t* index = t.index == nullptr ? nullptr : t.index + at;
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; };
  return {y, index, t.columns, t.stream && aligned(y) && aligned(index)};
}

// Maxima over rows of the rows' maxima: the same two halves of a window, a row being the element.
template <class E>
HWY_INLINE void SlideDown(const SlidingTile& t) {
  const Pool2dParams& p = *t.p;
  const int64_t k = p.kernel_h, width = t.columns;
  const auto row = [&](int64_t h) { return t.rows + h * t.row_stride; };
  const auto suffix = [&](int64_t h) { return t.suffix + h % k * t.row_stride; };
  const auto combine = [&](PairBuffer a, PairBuffer b, auto sink) TANDEM_VECTOR_LAMBDA {
    const auto lanes = static_cast<int64_t>(hn::Lanes(F32()));
    for (int64_t i = 0; i < width; i += lanes) sink(i, E::First(E::Load(a, i), E::Load(b, i)));
  };
  const auto copy = [&](PairBuffer a, auto sink) TANDEM_VECTOR_LAMBDA {
    const auto lanes = static_cast<int64_t>(hn::Lanes(F32()));
    for (int64_t i = 0; i < width; i += lanes) sink(i, E::Load(a, i));
  };
  int64_t suffix_block = -1, prefix_block = -1, prefix_end = 0;
  for (int64_t oh = 0; oh < p.out_h; ++oh) {
    const int64_t start = oh * p.stride_h - p.pad_top;
    const int64_t begin = std::max<int64_t>(start, 0), last = std::min(start + k, p.in_h) - 1;
    const auto sink = OutputRow<E>(t, oh);
    if (last == begin) {
      copy(row(begin), sink);
      continue;
    }
    if (last - begin < 4) {
      int64_t offsets[4];
      for (int64_t i = 0; i <= last - begin; ++i) offsets[i] = i * t.row_stride;
      const PairBuffer from = row(begin);
      Combine<E>(
          width, static_cast<int>(last - begin + 1), offsets,
          [&](int64_t i) TANDEM_VECTOR_LAMBDA { return E::Load(from, i); }, sink);
      continue;
    }
    const int64_t block = begin / k, last_block = last / k;
    const int64_t block_end = std::min((block + 1) * k, p.in_h);
    const bool needs_prefix = last + 1 != block_end || begin == block * k;
    if (needs_prefix) {
      if (prefix_block != last_block) {
        prefix_block = last_block;
        prefix_end = last_block * k + 1;
        copy(row(last_block * k), ToBuffer<E>{t.prefix});
      }
      for (; prefix_end <= last; ++prefix_end) {
        combine(t.prefix, row(prefix_end), ToBuffer<E>{t.prefix});
      }
      if (begin == last_block * k) {
        copy(t.prefix, sink);
        continue;
      }
    }
    if (suffix_block != block) {
      suffix_block = block;
      copy(row(block_end - 1), ToBuffer<E>{suffix(block_end - 1)});
      for (int64_t h = block_end - 2; h >= block * k; --h) {
        combine(row(h), suffix(h + 1), ToBuffer<E>{suffix(h)});
      }
    }
    if (needs_prefix) {
      combine(suffix(begin), t.prefix, sink);
    } else {
      copy(suffix(begin), sink);
    }
  }
}

template <class E>
bool SlideTile(const SlidingTile& t) {
  const Pool2dParams& p = *t.p;
  if (p.kernel_h == 1) {
    for (int64_t oh = 0; oh < p.out_h; ++oh) {
      if (!SlideRow<E>(t, oh * p.stride_h - p.pad_top, OutputRow<E>(t, oh))) return false;
    }
    return true;
  }
  for (int64_t h = 0; h < p.in_h; ++h) {
    if (!SlideRow<E>(t, h, ToBuffer<E>{t.rows + h * t.row_stride})) return false;
  }
  SlideDown<E>(t);
  return true;
}

// Most tiles have no NaN; the others are done again.
void SlidingMaximumTile(const SlidingTile& t) {
  if (t.index != nullptr) {
    if (!SlideTile<Maximum<true, false>>(t)) SlideTile<Maximum<true, true>>(t);
  } else {
    if (!SlideTile<Maximum<false, false>>(t)) SlideTile<Maximum<false, true>>(t);
  }
  if (t.stream) hwy::FlushStream();
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {

HWY_EXPORT(SlidingMaximumTile);

namespace {

// Outputs larger than this would push everything else out of the caches anyway.
constexpr int64_t kStreamBytes = int64_t{16} << 20;

bool EveryWindowHasInput(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad) {
  return out >= 1 && pad < kernel && (out - 1) * stride - pad < in;
}

int64_t RoundUp(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace

SlidingLayout::SlidingLayout(const Pool2dParams& p) {
  const bool possible = p.dilation_h == 1 && p.dilation_w == 1 && p.planes > 0 &&
                        EveryWindowHasInput(p.in_h, p.out_h, p.kernel_h, p.stride_h, p.pad_top) &&
                        EveryWindowHasInput(p.in_w, p.out_w, p.kernel_w, p.stride_w, p.pad_left);
  // About what one output costs, in steps over a vector: here, some a column and a row that windows
  // of the strides pass over; there, one a tap.
  const int64_t along = p.kernel_w <= 4 ? 2 : p.kernel_w <= 16 ? 3 : 6;
  const int64_t steps = p.stride_h * p.stride_w * along + (p.stride_w > 1 ? 4 : 0) +
                        (p.kernel_h == 1 ? 0 : 2 + 2 * p.stride_h);
  pays = possible && p.kernel_h * p.kernel_w > steps;
  if (!pays) return;
  // Tiles long enough that few windows cross their ends, small enough for the nearest caches.
  const int64_t rows = p.kernel_h == 1 ? 1 : p.in_h;
  const int64_t span =
      std::max({4 * p.kernel_w, std::min<int64_t>(2048, 32768 / rows), int64_t{64}});
  tile = std::min(RoundUp(std::max<int64_t>(1, span / p.stride_w), kColumn), p.out_w);
  tiles = (p.out_w + tile - 1) / tile;
  const int64_t n = (tile - 1) * p.stride_w + 1;
  line = RoundUp(n + p.kernel_w + kSlack, kColumn);
  const int64_t down =
      p.kernel_h == 1 ? 0 : (p.in_h + std::min(p.kernel_h, p.in_h) + 1) * RoundUp(tile, kColumn);
  const int64_t suffix = p.kernel_w + kSlack;
  scratch = (2 * line + suffix + down + kSlack) * 8;
  scratch = RoundUp(scratch, 64);
}

void SlidingMaximum2d(const Pool2dParams& params, const SlidingLayout& layout, const float* x,
                      float* y, int64_t* index, void* scratch) {
  const auto run = HWY_DYNAMIC_DISPATCH(SlidingMaximumTile);
  const int64_t in = params.in_h * params.in_w, out = params.out_h * params.out_w;
  const int64_t pieces = params.planes * layout.tiles;
  const bool stream = params.planes * out * 4 >= kStreamBytes;
  const int64_t slots = std::min(params.slots, pieces);
  ParallelFor(slots, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      auto* memory = static_cast<char*>(scratch) + slot * layout.scratch;
      const auto take = [&memory](int64_t n) {
        PairBuffer buffer{reinterpret_cast<float*>(memory),
                          reinterpret_cast<int32_t*>(memory + n * 4)};
        memory += n * 8;
        return buffer;
      };
      const int64_t stride = RoundUp(layout.tile, kColumn);
      SlidingTile t{.p = &params,
                    .x = nullptr,
                    .y = nullptr,
                    .index = nullptr,
                    .first = 0,
                    .columns = 0,
                    .stream = stream,
                    .line = take(layout.line),
                    .block = take(layout.line),
                    .rows = {},
                    .suffix = {},
                    .prefix = {},
                    .row_stride = stride};
      if (params.kernel_h > 1) {
        t.rows = take(params.in_h * stride);
        t.prefix = take(stride);
      }
      // Along a row and down the columns one after the other: the larger of the two.
      t.suffix = take(
          std::max(params.kernel_w + kSlack,
                   params.kernel_h == 1 ? 0 : std::min(params.kernel_h, params.in_h) * stride));
      for (int64_t piece = slots == 0 ? 0 : pieces * slot / slots;
           piece < pieces * (slot + 1) / slots; ++piece) {
        const int64_t plane = piece / layout.tiles;
        t.x = x + plane * in;
        t.y = y + plane * out;
        t.index = index == nullptr ? nullptr : index + plane * out;
        t.first = piece % layout.tiles * layout.tile;
        t.columns = std::min(layout.tile, params.out_w - t.first);
        run(t);
      }
    }
  });
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE

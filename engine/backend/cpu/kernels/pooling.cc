#include "engine/backend/cpu/kernels/pooling.h"

#include <algorithm>
#include <atomic>
#include <limits>

#include "engine/backend/cpu/kernels/sliding_maximum.h"
#include "engine/base/threads.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/backend/cpu/kernels/pooling.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per instruction set.
#include "engine/backend/cpu/kernels/places-inl.h"
#include "engine/backend/cpu/kernels/vector_math-inl.h"

// Index arithmetic, the same for every instruction set: included once.
#ifndef TANDEM_CPU_KERNELS_POOLING_GEOMETRY_
#define TANDEM_CPU_KERNELS_POOLING_GEOMETRY_
namespace tandem::cpu {

struct IndexRange {
  int64_t begin, end;
};

// The k in [0, count) for which low <= start + k * step < high; step >= 1. May be empty.
inline IndexRange Inside(int64_t start, int64_t step, int64_t count, int64_t low, int64_t high) {
  const int64_t begin = start >= low ? 0 : (low - start + step - 1) / step;
  const int64_t end = start >= high ? 0 : (high - start + step - 1) / step;
  return {std::min(begin, count), std::max(std::min(begin, count), std::min(end, count))};
}

// One axis of a window.
struct PoolAxis {
  int64_t in, out, kernel, stride, dilation, pad_before, pad_after;
  // Outputs(k) of the first few taps, whose divisions would cost more than a short row.
  static constexpr int64_t kKept = 8;
  IndexRange kept[kKept] = {};

  void KeepOutputs() {
    for (int64_t k = 0; k < std::min(kKept, kernel); ++k) {
      kept[k] = Inside(k * dilation - pad_before, stride, out, 0, in);
    }
  }
  int64_t Start(int64_t o) const { return o * stride - pad_before; }
  // The taps of output o that lie on the input.
  IndexRange Taps(int64_t o) const { return Inside(Start(o), dilation, kernel, 0, in); }
  // The outputs whose tap k lies on the input.
  IndexRange Outputs(int64_t k) const {
    return k < kKept ? kept[k] : Inside(k * dilation - pad_before, stride, out, 0, in);
  }
  // The outputs all of whose taps do.
  IndexRange Interior() const {
    const IndexRange first = Outputs(0), last = Outputs(kernel - 1);
    const int64_t begin = std::max(first.begin, last.begin);
    return {begin, std::max(begin, std::min(first.end, last.end))};
  }
  // Windows of two inputs side by side, all of them on the input.
  bool Pairs() const {
    return kernel == 2 && stride == 2 && dilation == 1 && pad_before == 0 && 2 * out <= in;
  }
  // What a mean divides by.
  int64_t Count(int64_t o, bool include_pad) const {
    const IndexRange taps =
        include_pad ? Inside(Start(o), dilation, kernel, -pad_before, in + pad_after) : Taps(o);
    return taps.end - taps.begin;
  }
};

struct PoolAxes {
  explicit PoolAxes(const Pool2dParams& p)
      : h{p.in_h, p.out_h, p.kernel_h, p.stride_h, p.dilation_h, p.pad_top, p.pad_bottom},
        w{p.in_w, p.out_w, p.kernel_w, p.stride_w, p.dilation_w, p.pad_left, p.pad_right} {
    h.KeepOutputs();
    w.KeepOutputs();
  }
  bool TwoByTwo() const { return h.Pairs() && w.Pairs(); }
  PoolAxis h, w;
};

// One plane of MaxPool2dBackward.
struct Scatter {
  int64_t in, out;
  const float* dy;
  const int64_t* index;
  float* dx;
};
// Elements of dy that one thread takes at a time; how sums are grouped depends on it.
inline constexpr int64_t kScatterChunk = 65536;

}  // namespace tandem::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu {
namespace HWY_NAMESPACE {

// Lanes [begin, end) of x[start], x[start + stride] ...: elements of a plane of `size`, of which
// the other lanes may lie outside; those are anything.
HWY_INLINE VecF32 LoadStrided(F32 d, const float* x, int64_t size, int64_t start, int64_t stride,
                              int64_t begin, int64_t end) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  if (stride <= 2 && start >= 0 && start + stride * lanes <= size) {
    if (stride == 1) return hn::LoadU(d, x + start);
    VecF32 even, odd;
    hn::LoadInterleaved2(d, x + start, even, odd);
    return even;
  }
  HWY_ALIGN float gathered[hn::MaxLanes(d)] = {};
  for (int64_t k = begin; k < end; ++k) gathered[k] = x[start + k * stride];
  return hn::Load(d, gathered);
}

// tap(v, on_input, start) for each tap of the outputs from (oh, first) on, a vector's worth, in
// row-major order: v the input elements start, start + stride ..., on_input a mask of the lanes
// whose element exists.
template <class Tap>
HWY_INLINE void ForEachTap(F32 d, const PoolAxes& axes, const float* x, int64_t oh, int64_t first,
                           Tap tap) {
  const PoolAxis &h = axes.h, &w = axes.w;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t size = h.in * w.in;
  const IndexRange rows = h.Taps(oh);
  for (int64_t kh = rows.begin; kh < rows.end; ++kh) {
    const int64_t row = (h.Start(oh) + kh * h.dilation) * w.in;
    for (int64_t kw = 0; kw < w.kernel; ++kw) {
      const IndexRange outputs = w.Outputs(kw);
      const int64_t begin = std::max<int64_t>(outputs.begin - first, 0);
      const int64_t end = std::min(outputs.end - first, lanes);
      if (begin >= end) continue;
      const int64_t start = row + w.Start(first) + kw * w.dilation;
      const auto on_input = hn::AndNot(hn::FirstN(d, static_cast<size_t>(begin)),
                                       hn::FirstN(d, static_cast<size_t>(end)));
      tap(LoadStrided(d, x, size, start, w.stride, begin, end), on_input, start);
    }
  }
}

// Where v takes the place of the maximum m: it is larger, or the first NaN.
HWY_INLINE auto Replaces(VecF32 v, VecF32 m) { return hn::AndNot(hn::Le(v, m), hn::Eq(m, m)); }

// Windows of 2 by 2, two apart, without padding: as many outputs as can be done without reading
// past `available` elements from the second row's first. The same choices as tap by tap.
HWY_INLINE size_t MaxPool2x2(const float* x, size_t in_w, size_t available, int32_t place, float* y,
                             int64_t* index, size_t n) {
  const F32 d;
  const I32 di;
  const size_t lanes = hn::Lanes(d);
  const auto iota = hn::Iota(di, 0);
  size_t done = 0;
  ForEachVector(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    if (2 * (i + lanes) > available) return;
    VecF32 a, b, c, e;
    hn::LoadInterleaved2(d, x + 2 * i, a, b);
    hn::LoadInterleaved2(d, x + in_w + 2 * i, c, e);
    const auto take_b = Replaces(b, a);
    const VecF32 ab = hn::IfThenElse(take_b, b, a);
    const auto take_c = Replaces(c, ab);
    const VecF32 abc = hn::IfThenElse(take_c, c, ab);
    const auto take_e = Replaces(e, abc);
    Store(hn::IfThenElse(take_e, e, abc), d, y + i, part);
    done = std::min(n, i + lanes);
    if (index == nullptr) return;
    const auto first = hn::Set(di, place + 2 * static_cast<int32_t>(i));
    const auto at = hn::Add(hn::Add(iota, iota), first);
    const auto below = hn::Add(at, hn::Set(di, static_cast<int32_t>(in_w)));
    const auto one = hn::Set(di, 1);
    auto where = hn::IfThenElse(hn::RebindMask(di, take_b), hn::Add(at, one), at);
    where = hn::IfThenElse(hn::RebindMask(di, take_c), below, where);
    where = hn::IfThenElse(hn::RebindMask(di, take_e), hn::Add(below, one), where);
    StorePlaces(where, index + i, part);
  });
  return done;
}

void MaxPoolPlane(const PoolAxes& axes, const float* x, float* y, int64_t* index) {
  const F32 d;
  const I32 di;
  const PoolAxis &h = axes.h, &w = axes.w;
  const auto steps = hn::Mul(hn::Iota(di, 0), hn::Set(di, static_cast<int32_t>(w.stride)));
  for (int64_t oh = 0; oh < h.out; ++oh, y += w.out, index += index == nullptr ? 0 : w.out) {
    int64_t done = 0;
    if (axes.TwoByTwo()) {
      const int64_t at = 2 * oh * w.in;
      const int64_t available = h.in * w.in - at - w.in;
      done = static_cast<int64_t>(
          MaxPool2x2(x + at, static_cast<size_t>(w.in), static_cast<size_t>(available),
                     static_cast<int32_t>(at), y, index, static_cast<size_t>(w.out)));
    }
    ForEachVector(
        d, static_cast<size_t>(w.out - done), [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
          const int64_t first = done + static_cast<int64_t>(i);
          VecF32 max = hn::Set(d, -std::numeric_limits<float>::infinity());
          auto place = hn::Set(di, -1);
          ForEachTap(d, axes, x, oh, first,
                     [&](VecF32 v, auto on_input, int64_t start) TANDEM_VECTOR_LAMBDA {
                       // A first -inf is no larger than the initial one, but it has a place.
                       const auto none = hn::RebindMask(d, hn::Lt(place, hn::Zero(di)));
                       const auto change = hn::And(hn::Or(Replaces(v, max), none), on_input);
                       max = hn::IfThenElse(change, v, max);
                       const auto here = hn::Add(hn::Set(di, static_cast<int32_t>(start)), steps);
                       place = hn::IfThenElse(hn::RebindMask(di, change), here, place);
                     });
          Store(max, d, y + first, part);
          if (index != nullptr) StorePlaces(place, index + first, part);
        });
  }
}

// Along one dimension the places of maxima never fall. Then chunk c of dy adds to a stretch of dx
// that no other chunk adds to: from its first place to the next chunk's. What earlier chunks have
// for its first place it adds itself; what it has for the next chunk's it leaves. False, and dx is
// anything, where the places do fall or leave the plane.
bool ScatterRising(const Scatter& s, int64_t c, int64_t chunks) {
  const hn::ScalableTag<int64_t> d;
  const int64_t begin = c * kScatterChunk, end = std::min(s.out, begin + kScatterChunk);
  if (s.out == 0) {
    std::fill(s.dx, s.dx + s.in, 0.0f);
    return true;
  }
  const int64_t low = c == 0 ? 0 : s.index[begin];
  const bool last = c + 1 == chunks;
  const int64_t high = last ? s.in : s.index[end];
  if (s.index[begin] < 0 || low > high || high > s.in || s.index[end - 1] > high ||
      s.index[end - 1] >= s.in) {
    return false;
  }
  std::fill(s.dx + low, s.dx + high, 0.0f);
  if (c > 0 && low < high) {
    int64_t before = begin;
    while (before > 0 && s.index[before - 1] == low) --before;
    float sum = 0.0f;
    for (; before < begin; ++before) sum += s.dy[before];
    s.dx[low] = sum;
  }
  constexpr int64_t kBlock = 8;
  int64_t k = begin;
  for (; k + kBlock < end; k += kBlock) {
    const int64_t* at = s.index + k;
    auto falls = hn::Gt(hn::LoadU(d, at), hn::LoadU(d, at + 1));
    for (size_t i = hn::Lanes(d); i < kBlock; i += hn::Lanes(d)) {
      falls = hn::Or(falls, hn::Gt(hn::LoadU(d, at + i), hn::LoadU(d, at + i + 1)));
    }
    if (!hn::AllFalse(d, falls)) return false;
    const float* dy = s.dy + k;
    if (at[0] == at[kBlock - 1]) {
      if (at[0] == high) continue;
      s.dx[at[0]] += ((dy[0] + dy[1]) + (dy[2] + dy[3])) + ((dy[4] + dy[5]) + (dy[6] + dy[7]));
      continue;
    }
    // at[7] may be `high`; at[0..6] may be too, then at[7] is.
    if (at[kBlock - 1] < high) {
      for (int64_t i = 0; i < kBlock; ++i) s.dx[at[i]] += dy[i];
    } else {
      for (int64_t i = 0; i < kBlock && at[i] < high; ++i) s.dx[at[i]] += dy[i];
    }
  }
  for (; k < end; ++k) {
    if (k + 1 < end && s.index[k] > s.index[k + 1]) return false;
    if (s.index[k] < high) s.dx[s.index[k]] += s.dy[k];
  }
  return true;
}

// One output's sum, for windows wider than the output row (global pooling). dilation 1.
HWY_INLINE float WindowSum(const float* x, int64_t in_w, int64_t rows, int64_t columns) {
  const F32 d;
  const auto sum = [&](const float* from, int64_t n) TANDEM_VECTOR_LAMBDA {
    return SumOver(d, static_cast<size_t>(n), [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
      return Load(d, from + i, part);
    });
  };
  if (columns == in_w) return sum(x, rows * columns);
  float total = 0.0f;
  for (int64_t r = 0; r < rows; ++r) total += sum(x + r * in_w, columns);
  return total;
}

// The means of one output row, windows of 2 by 2 side by side; `available` as for MaxPool2x2.
HWY_INLINE void AverageRow2x2(const float* x, size_t in_w, size_t available, float* y, size_t n) {
  const F32 d;
  const size_t lanes = hn::Lanes(d);
  const VecF32 quarter = hn::Set(d, 0.25f);
  size_t done = 0;
  ForEachVector(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    if (2 * (i + lanes) > available) return;
    VecF32 a, b, c, e;
    hn::LoadInterleaved2(d, x + 2 * i, a, b);
    hn::LoadInterleaved2(d, x + in_w + 2 * i, c, e);
    Store(hn::Mul(hn::Add(hn::Add(a, b), hn::Add(c, e)), quarter), d, y + i, part);
    done = std::min(n, i + lanes);
  });
  for (size_t i = done; i < n; ++i) {
    const float* below = x + in_w + 2 * i;
    y[i] = ((x[2 * i] + x[2 * i + 1]) + (below[0] + below[1])) * 0.25f;
  }
}

// The sums of one output row.
HWY_INLINE void SumRowOfWindows(const PoolAxes& axes, int64_t oh, const float* x, float* y) {
  const PoolAxis &h = axes.h, &w = axes.w;
  const IndexRange rows = h.Taps(oh);
  const int64_t top = h.Start(oh);
  if (w.kernel > w.out && w.dilation == 1 && h.dilation == 1) {
    for (int64_t ow = 0; ow < w.out; ++ow) {
      const IndexRange columns = w.Taps(ow);
      const int64_t at = (top + rows.begin) * w.in + w.Start(ow) + columns.begin;
      y[ow] = rows.begin == rows.end || columns.begin == columns.end
                  ? 0.0f
                  : WindowSum(x + at, w.in, rows.end - rows.begin, columns.end - columns.begin);
    }
    return;
  }
  const F32 d;
  ForEachVector(d, static_cast<size_t>(w.out), [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    VecF32 sum = hn::Zero(d);
    ForEachTap(d, axes, x, oh, static_cast<int64_t>(i),
               [&](VecF32 v, auto on_input, int64_t)
                   TANDEM_VECTOR_LAMBDA { sum = hn::Add(sum, hn::IfThenElseZero(on_input, v)); });
    Store(sum, d, y + i, part);
  });
}

void AveragePoolPlane(const PoolAxes& axes, bool include_pad, const float* x, float* y) {
  const PoolAxis &h = axes.h, &w = axes.w;
  const IndexRange interior = w.Interior();
  const bool two_by_two = axes.TwoByTwo();
  for (int64_t oh = 0; oh < h.out; ++oh, y += w.out) {
    if (two_by_two) {
      const int64_t at = 2 * oh * w.in;
      AverageRow2x2(x + at, static_cast<size_t>(w.in), static_cast<size_t>(h.in * w.in - at - w.in),
                    y, static_cast<size_t>(w.out));
      continue;
    }
    SumRowOfWindows(axes, oh, x, y);
    const int64_t rows = h.Count(oh, include_pad);
    const auto divide = [&](int64_t begin, int64_t end) {
      for (int64_t ow = begin; ow < end; ++ow) {
        const int64_t count = rows * w.Count(ow, include_pad);
        y[ow] = count == 0 ? 0.0f : y[ow] / static_cast<float>(count);
      }
    };
    divide(0, interior.begin);
    const float whole = static_cast<float>(rows * w.kernel);
    for (int64_t ow = interior.begin; ow < interior.end && rows > 0; ++ow) y[ow] /= whole;
    divide(interior.end, w.out);
  }
}

// The common case of AveragePoolBackwardPlane, windows of 2 by 2 side by side: dy / 4 to each of
// four inputs.
void AveragePool2x2BackwardPlane(const PoolAxes& axes, const float* dy, float* dx) {
  const F32 d;
  const size_t lanes = hn::Lanes(d);
  const size_t in_w = static_cast<size_t>(axes.w.in), n = static_cast<size_t>(axes.w.out);
  const VecF32 quarter = hn::Set(d, 0.25f);
  std::fill(dx, dx + axes.h.in * axes.w.in, 0.0f);
  for (int64_t oh = 0; oh < axes.h.out; ++oh, dy += n, dx += 2 * in_w) {
    size_t i = 0;
    for (; i + lanes <= n; i += lanes) {
      const VecF32 share = hn::Mul(hn::LoadU(d, dy + i), quarter);
      hn::StoreInterleaved2(share, share, d, dx + 2 * i);
      hn::StoreInterleaved2(share, share, d, dx + in_w + 2 * i);
    }
    for (; i < n; ++i) {
      const float share = dy[i] * 0.25f;
      dx[2 * i] = dx[2 * i + 1] = dx[in_w + 2 * i] = dx[in_w + 2 * i + 1] = share;
    }
  }
}

// Spreads one plane of dy / count over its windows, output by output.
void AveragePoolBackwardPlane(const PoolAxes& axes, bool include_pad, const float* dy, float* dx) {
  const PoolAxis &h = axes.h, &w = axes.w;
  if (axes.TwoByTwo()) return AveragePool2x2BackwardPlane(axes, dy, dx);
  const IndexRange interior = w.Interior();
  std::fill(dx, dx + h.in * w.in, 0.0f);
  for (int64_t oh = 0; oh < h.out; ++oh) {
    const IndexRange rows = h.Taps(oh);
    const int64_t row_count = h.Count(oh, include_pad);
    for (int64_t ow = 0; ow < w.out; ++ow) {
      const bool whole = ow >= interior.begin && ow < interior.end;
      const IndexRange columns = whole ? IndexRange{0, w.kernel} : w.Taps(ow);
      const int64_t count = row_count * (whole ? w.kernel : w.Count(ow, include_pad));
      if (count == 0) continue;
      const float share = dy[oh * w.out + ow] / static_cast<float>(count);
      for (int64_t kh = rows.begin; kh < rows.end; ++kh) {
        float* row = dx + (h.Start(oh) + kh * h.dilation) * w.in + w.Start(ow);
        for (int64_t kw = columns.begin; kw < columns.end; ++kw) row[kw * w.dilation] += share;
      }
    }
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {

HWY_EXPORT(MaxPoolPlane);
HWY_EXPORT(ScatterRising);
HWY_EXPORT(AveragePoolPlane);
HWY_EXPORT(AveragePoolBackwardPlane);

namespace {

// plane(i) for every plane, about 16K element visits to a thread at least.
template <class Plane>
void ForEachPlane(const Pool2dParams& p, int64_t visits, Plane plane) {
  ParallelFor(p.planes, 16384 / std::max<int64_t>(1, visits), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) plane(i);
  });
}

// Plane by plane, element after element.
void ScatterAnywhere(const Scatter& s) {
  std::fill(s.dx, s.dx + s.in, 0.0f);
  for (int64_t k = 0; k < s.out; ++k) {
    s.dx[std::clamp<int64_t>(s.index[k], 0, s.in - 1)] += s.dy[k];
  }
}

int64_t WindowVisits(const Pool2dParams& p) { return p.out_h * p.out_w * p.kernel_h * p.kernel_w; }

}  // namespace

int64_t MaxPool2dScratchBytes(const Pool2dParams& params) {
  const SlidingLayout sliding(params);
  return sliding.pays ? sliding.scratch * params.slots : 0;
}

void MaxPool2d(const Pool2dParams& params, const float* x, float* y, int64_t* index,
               void* scratch) {
  const SlidingLayout sliding(params);
  if (sliding.pays) return SlidingMaximum2d(params, sliding, x, y, index, scratch);
  const auto run = HWY_DYNAMIC_DISPATCH(MaxPoolPlane);
  const PoolAxes axes(params);
  const int64_t in = params.in_h * params.in_w, out = params.out_h * params.out_w;
  ForEachPlane(params, WindowVisits(params), [&](int64_t i) {
    run(axes, x + i * in, y + i * out, index == nullptr ? nullptr : index + i * out);
  });
}

void MaxPool2dBackward(int64_t planes, int64_t in, int64_t out, const float* dy,
                       const int64_t* index, float* dx) {
  const auto rising = HWY_DYNAMIC_DISPATCH(ScatterRising);
  const int64_t chunks = std::max<int64_t>(1, (out + kScatterChunk - 1) / kScatterChunk);
  const auto plane = [&](int64_t i) {
    return Scatter{in, out, dy + i * out, index + i * out, dx + i * in};
  };
  if (planes >= ThreadCount()) {
    ParallelFor(planes, 16384 / (in + out + 1), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        bool ok = true;
        for (int64_t c = 0; c < chunks && ok; ++c) ok = rising(plane(i), c, chunks);
        if (!ok) ScatterAnywhere(plane(i));
      }
    });
    return;
  }
  for (int64_t i = 0; i < planes; ++i) {
    std::atomic<bool> ok = true;
    ParallelFor(chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end && ok; ++c) {
        if (!rising(plane(i), c, chunks)) ok = false;
      }
    });
    if (!ok) ScatterAnywhere(plane(i));
  }
}

void AveragePool2d(const Pool2dParams& params, bool count_include_pad, const float* x, float* y) {
  const auto run = HWY_DYNAMIC_DISPATCH(AveragePoolPlane);
  const PoolAxes axes(params);
  const int64_t in = params.in_h * params.in_w, out = params.out_h * params.out_w;
  ForEachPlane(params, WindowVisits(params),
               [&](int64_t i) { run(axes, count_include_pad, x + i * in, y + i * out); });
}

void AveragePool2dBackward(const Pool2dParams& params, bool count_include_pad, const float* dy,
                           float* dx) {
  const auto run = HWY_DYNAMIC_DISPATCH(AveragePoolBackwardPlane);
  const PoolAxes axes(params);
  const int64_t in = params.in_h * params.in_w, out = params.out_h * params.out_w;
  ForEachPlane(params, in + WindowVisits(params),
               [&](int64_t i) { run(axes, count_include_pad, dy + i * out, dx + i * in); });
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE

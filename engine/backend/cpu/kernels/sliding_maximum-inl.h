// Maxima of all windows of one row: the heart of sliding_maximum.cc, which alone includes it, after
// hwy/foreach_target.h.
#if defined(TANDEM_CPU_KERNELS_SLIDING_MAXIMUM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_KERNELS_SLIDING_MAXIMUM_INL_H_
#undef TANDEM_CPU_KERNELS_SLIDING_MAXIMUM_INL_H_
#else
#define TANDEM_CPU_KERNELS_SLIDING_MAXIMUM_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "engine/backend/cpu/kernels/places-inl.h"
#include "engine/backend/cpu/kernels/sliding_maximum.h"
#include "engine/backend/cpu/kernels/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu {
namespace HWY_NAMESPACE {

// What is known of a piece of a window: its maximum and, with kPlaces, where that is. Where there
// may be NaN, comparing takes more instructions.
template <bool kHasPlaces, bool kNan>
struct Maximum;

// Where b takes the place of a: it is larger, or the first NaN.
template <bool kNan>
HWY_INLINE auto TakesOver(VecF32 b, VecF32 a) {
  if constexpr (kNan) {
    return hn::AndNot(hn::Le(b, a), hn::Eq(a, a));
  } else {
    return hn::Gt(b, a);
  }
}

template <bool kNan>
struct Maximum<false, kNan> {
  static constexpr bool kPlaces = false, kMayBeNan = kNan;
  VecF32 value;

  HWY_INLINE static Maximum Load(PairBuffer from, int64_t i) {
    return {hn::LoadU(F32(), from.value + i)};
  }
  HWY_INLINE static Maximum Of(VecF32 v, VecI32) { return {v}; }
  HWY_INLINE void Store(PairBuffer to, int64_t i) const { hn::StoreU(value, F32(), to.value + i); }
  HWY_INLINE static Maximum First(Maximum a, Maximum b) {
    if constexpr (!kNan) return {hn::Max(a.value, b.value)};
    return {hn::IfThenElse(TakesOver<kNan>(b.value, a.value), b.value, a.value)};
  }
#if HWY_TARGET != HWY_SCALAR
  // The upper half of a, then the lower half of b.
  HWY_INLINE static Maximum Middle(Maximum a, Maximum b) {
    return {hn::ConcatLowerUpper(F32(), b.value, a.value)};
  }
#endif
};

template <bool kNan>
struct Maximum<true, kNan> {
  static constexpr bool kPlaces = true, kMayBeNan = kNan;
  VecF32 value;
  VecI32 place;

  HWY_INLINE static Maximum Load(PairBuffer from, int64_t i) {
    return {hn::LoadU(F32(), from.value + i), hn::LoadU(I32(), from.place + i)};
  }
  HWY_INLINE static Maximum Of(VecF32 v, VecI32 at) { return {v, at}; }
  HWY_INLINE void Store(PairBuffer to, int64_t i) const {
    hn::StoreU(value, F32(), to.value + i);
    hn::StoreU(place, I32(), to.place + i);
  }
  HWY_INLINE static Maximum First(Maximum a, Maximum b) {
    const auto take = TakesOver<kNan>(b.value, a.value);
    return {hn::IfThenElse(take, b.value, a.value),
            hn::IfThenElse(hn::RebindMask(I32(), take), b.place, a.place)};
  }
#if HWY_TARGET != HWY_SCALAR
  HWY_INLINE static Maximum Middle(Maximum a, Maximum b) {
    return {hn::ConcatLowerUpper(F32(), b.value, a.value),
            hn::ConcatLowerUpper(I32(), b.place, a.place)};
  }
#endif
};

// A row as windows see it: x[i] has the place `first + i`, or `low` if that is more: padding before
// the row has the place of the row's first element, which it is never told apart from.
struct Row {
  const float* x;
  int32_t first, low;
  bool padded;  // first < low
};

// The first maxima of kTaps neighbours; and whether all taps so far were numbers, told by the last
// one of each vector.
template <class E, int kTaps, bool kPadded>
struct Neighbours {
  explicit HWY_INLINE Neighbours(const Row& row)
      : x(row.x),
        iota(hn::Iota(I32(), row.first)),
        low(hn::Set(I32(), row.low)),
        clean(hn::Eq(hn::Zero(F32()), hn::Zero(F32()))) {
    for (int k = 0; k + 1 < kTaps; ++k) numbers = numbers && x[k] == x[k];
  }
  HWY_INLINE E operator()(int64_t i) {
    const F32 d;
    const I32 di;
    const auto at = hn::Add(iota, hn::Set(di, static_cast<int32_t>(i)));
    const auto place = [&](int k) TANDEM_VECTOR_LAMBDA {
      const auto there = hn::Add(at, hn::Set(di, k));
      return kPadded ? hn::Max(there, low) : there;
    };
    VecF32 v = hn::LoadU(d, x + i);
    E e = E::Of(v, place(0));
    HWY_UNROLL(4)
    for (int k = 1; k < kTaps; ++k) {
      v = hn::LoadU(d, x + i + k);
      e = E::First(e, E::Of(v, place(k)));
    }
    if constexpr (!E::kMayBeNan) clean = hn::And(clean, hn::Eq(v, v));
    return e;
  }
  HWY_INLINE bool AllNumbers() const {
    return E::kMayBeNan || (numbers && hn::AllTrue(F32(), clean));
  }

  const float* x;
  VecI32 iota, low;
  decltype(hn::Eq(VecF32(), VecF32())) clean;
  bool numbers = true;
};

// Where results go: a buffer with room for whole vectors.
template <class E>
struct ToBuffer {
  PairBuffer to;
  HWY_INLINE void operator()(int64_t i, const E& e) const { e.Store(to, i); }
};

// The operator's outputs, exactly n of them.
template <class E>
struct ToOutput {
  float* y;
  int64_t* index;
  int64_t n;
  bool stream;  // y is aligned then

  HWY_INLINE void operator()(int64_t i, const E& e) const {
    const F32 d;
    const auto lanes = static_cast<int64_t>(hn::Lanes(d));
    if (HWY_LIKELY(i + lanes <= n)) {
      if (stream) {
        hn::Stream(e.value, d, y + i);
      } else {
        hn::StoreU(e.value, d, y + i);
      }
      if constexpr (E::kPlaces) {
        stream ? StorePlaces<true>(e.place, index + i) : StorePlaces<false>(e.place, index + i);
      }
      return;
    }
    HWY_ALIGN float values[hn::MaxLanes(d)];
    hn::Store(e.value, d, values);
    std::copy(values, values + (n - i), y + i);
    if constexpr (E::kPlaces) {
      HWY_ALIGN int32_t places[hn::MaxLanes(d)];
      hn::Store(e.place, I32(), places);
      std::copy(places, places + (n - i), index + i);
    }
  }
};

// sink(i, the first maximum of load(i + offsets[0]), ..., load(i + offsets[kCount - 1])) for i in
// [0, n), whole vectors.
template <int kCount, class E, class Load, class Sink>
HWY_INLINE void CombineOf(int64_t n, const int64_t* offsets, Load load, Sink sink) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(F32()));
  // The first load is at 0: of one load there need be no offsets.
  const int64_t o1 = kCount > 1 ? offsets[1] : 0, o2 = kCount > 2 ? offsets[2] : 0,
                o3 = kCount > 3 ? offsets[3] : 0;
  for (int64_t i = 0; i < n; i += lanes) {
    E e = load(i);
    if constexpr (kCount > 1) e = E::First(e, load(i + o1));
    if constexpr (kCount > 2) e = E::First(e, load(i + o2));
    if constexpr (kCount > 3) e = E::First(e, load(i + o3));
    sink(i, e);
  }
}

template <class E, class Load, class Sink>
HWY_INLINE void Combine(int64_t n, int count, const int64_t* offsets, Load load, Sink sink) {
  switch (count) {
    case 1:
      return CombineOf<1, E>(n, offsets, load, sink);
    case 2:
      return CombineOf<2, E>(n, offsets, load, sink);
    case 3:
      return CombineOf<3, E>(n, offsets, load, sink);
    default:
      return CombineOf<4, E>(n, offsets, load, sink);
  }
}

// Windows of w <= 4 * piece from maxima of `piece` neighbours: at most four pieces, the last one
// flush with the window's end.
template <class E, class Load, class Sink>
HWY_INLINE void CombinePieces(int64_t n, int64_t w, int64_t piece, Load load, Sink sink) {
  int64_t offsets[4] = {0, piece, 2 * piece, 3 * piece};
  const int count = static_cast<int>((w + piece - 1) / piece);
  offsets[count - 1] = w - piece;
  Combine<E>(n, count, offsets, load, sink);
}

// The general case: columns[i] is the maximum of kColumn neighbours from i on, so that rows of
// kColumn of them are what a window of m rows is slid over, lane by lane; the last piece again is
// flush with the end. suffix holds m rows.
template <class E, class Sink>
HWY_INLINE void SlideBlocks(int64_t n, int64_t w, PairBuffer columns, PairBuffer suffix,
                            Sink sink) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(F32()));
  const int64_t m = w / kColumn, rows = (n + kColumn - 1) / kColumn;
  const int64_t flush = w - kColumn;
  for (int64_t block = 0; block < rows; block += m) {
    for (int64_t lane = 0; lane < kColumn; lane += lanes) {
      E e = E::Load(columns, (block + m - 1) * kColumn + lane);
      e.Store(suffix, (m - 1) * kColumn + lane);
      for (int64_t r = m - 2; r >= 0; --r) {
        e = E::First(E::Load(columns, (block + r) * kColumn + lane), e);
        e.Store(suffix, r * kColumn + lane);
      }
    }
    for (int64_t lane = 0; lane < kColumn; lane += lanes) {
      const int64_t first = block * kColumn + lane;
      if (first < n) sink(first, E::First(E::Load(suffix, lane), E::Load(columns, first + flush)));
      E prefix = E::Load(columns, (block + m) * kColumn + lane);
      const int64_t end = std::min(m, rows - block);
      for (int64_t r = 1; r < end; ++r) {
        const int64_t i = first + r * kColumn;
        if (r > 1) prefix = E::First(prefix, E::Load(columns, i + (m - 1) * kColumn));
        const E both = E::First(E::Load(suffix, r * kColumn + lane), prefix);
        if (i < n) sink(i, E::First(both, E::Load(columns, i + flush)));
      }
    }
  }
}

// sink(i, the first maximum of kTaps neighbours) for i in [0, n). False, as below: there is a NaN.
template <class E, int kTaps, bool kPadded, class Sink>
HWY_INLINE bool SlideTaps(const Row& row, int64_t n, Sink sink) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(F32()));
  Neighbours<E, kTaps, kPadded> neighbours(row);
  for (int64_t i = 0; i < n; i += lanes) sink(i, neighbours(i));
  return neighbours.AllNumbers();
}

// to[i] = the maximum of kColumn neighbours from i on, for i in [0, n).
template <class E, bool kPadded>
HWY_INLINE bool FindColumns(const Row& row, int64_t n, PairBuffer to) {
#if HWY_TARGET == HWY_AVX2
  // Half a vector's width from loads; then whole vectors' from halves, and two vectors'.
  constexpr int64_t kLanes = 8;
  Neighbours<E, 4, kPadded> neighbours(row);
  E four = neighbours(0), next = neighbours(kLanes);
  E eight = E::First(four, E::Middle(four, next));
  for (int64_t i = 0; i < n; i += kLanes) {
    four = next;
    next = neighbours(i + 2 * kLanes);
    const E next_eight = E::First(four, E::Middle(four, next));
    E::First(eight, next_eight).Store(to, i);
    eight = next_eight;
  }
  return neighbours.AllNumbers();
#else
  constexpr int64_t kFours[] = {0, 4, 8, 12};
  const bool numbers = SlideTaps<E, 4, kPadded>(row, n + kColumn, ToBuffer<E>{to});
  // In place: each step reads at and after what it writes.
  CombineOf<4, E>(
      n, kFours, [&](int64_t i) TANDEM_VECTOR_LAMBDA { return E::Load(to, i); }, ToBuffer<E>{to});
  return numbers;
#endif
}

// sink(i, the first maximum of x[i], ..., x[i + w - 1]) for i in [0, n). block and suffix are
// buffers of n + w + kSlack and w. False where E takes all for numbers and one is NaN; what went to
// the sink is worth nothing then.
template <class E, bool kPadded, class Sink>
HWY_INLINE bool SlideRowOf(const Row& row, int64_t n, int64_t w, PairBuffer block,
                           PairBuffer suffix, Sink sink) {
  const auto loaded = [&](int64_t i) TANDEM_VECTOR_LAMBDA { return E::Load(block, i); };
  switch (w) {
    case 1:
      return SlideTaps<E, 1, kPadded>(row, n, sink);
    case 2:
      return SlideTaps<E, 2, kPadded>(row, n, sink);
    case 3:
      return SlideTaps<E, 3, kPadded>(row, n, sink);
    case 4:
      return SlideTaps<E, 4, kPadded>(row, n, sink);
    default:
      break;
  }
  if (w <= kColumn) {
    const bool numbers = SlideTaps<E, 4, kPadded>(row, n + w, ToBuffer<E>{block});
    CombinePieces<E>(n, w, 4, loaded, sink);
    return numbers;
  }
  if (!FindColumns<E, kPadded>(row, n + w, block)) return false;
  if (w <= 4 * kColumn) {
    CombinePieces<E>(n, w, kColumn, loaded, sink);
  } else {
    SlideBlocks<E>(n, w, block, suffix, sink);
  }
  return true;
}

template <class E, class Sink>
HWY_INLINE bool Slide(const Row& row, int64_t n, int64_t w, PairBuffer block, PairBuffer suffix,
                      Sink sink) {
  if (E::kPlaces && row.padded) return SlideRowOf<E, true>(row, n, w, block, suffix, sink);
  return SlideRowOf<E, false>(row, n, w, block, suffix, sink);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::cpu
HWY_AFTER_NAMESPACE();

#endif  // TANDEM_CPU_KERNELS_SLIDING_MAXIMUM_INL_H_

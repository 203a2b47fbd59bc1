// Places within a plane, i32 in vectors, stored as the i64 that the outside sees. Include it after
// hwy/foreach_target.h.
#if defined(TANDEM_CPU_KERNELS_PLACES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_KERNELS_PLACES_INL_H_
#undef TANDEM_CPU_KERNELS_PLACES_INL_H_
#else
#define TANDEM_CPU_KERNELS_PLACES_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "engine/backend/cpu/kernels/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu {
namespace HWY_NAMESPACE {

using I32 = hn::RebindToSigned<F32>;
using VecI32 = hn::Vec<I32>;

// A whole vector; with kStream past the caches, `to` aligned to a vector then.
template <bool kStream>
HWY_INLINE void StorePlaces(VecI32 places, int64_t* to) {
#if HWY_TARGET == HWY_SCALAR
  *to = hn::GetLane(places);
#else
  const hn::Repartition<int64_t, I32> wide;
  const hn::Half<I32> half;
  const auto low = hn::PromoteTo(wide, hn::LowerHalf(half, places));
  const auto high = hn::PromoteTo(wide, hn::UpperHalf(half, places));
  if constexpr (kStream) {
    hn::Stream(low, wide, to);
    hn::Stream(high, wide, to + hn::Lanes(wide));
  } else {
    hn::StoreU(low, wide, to);
    hn::StoreU(high, wide, to + hn::Lanes(wide));
  }
#endif
}
HWY_INLINE void StorePlaces(VecI32 places, int64_t* to, Whole) { StorePlaces<false>(places, to); }
HWY_INLINE void StorePlaces(VecI32 places, int64_t* to, Part part) {
  const I32 d;
  HWY_ALIGN int32_t lanes[hn::MaxLanes(d)];
  hn::Store(places, d, lanes);
  std::copy(lanes, lanes + part.count, to);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::cpu
HWY_AFTER_NAMESPACE();

#endif  // TANDEM_CPU_KERNELS_PLACES_INL_H_

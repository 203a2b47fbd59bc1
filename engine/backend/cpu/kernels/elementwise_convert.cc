#include "engine/backend/cpu/kernels/elementwise.h"
#include "engine/base/threads.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/backend/cpu/kernels/elementwise_convert.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per instruction set.
#include "engine/backend/cpu/kernels/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu {
namespace HWY_NAMESPACE {

using I32 = hn::RebindToSigned<F32>;
using U16 = hn::Rebind<uint16_t, I32>;
using VecI32 = hn::Vec<I32>;

// All in integers, not by the CPU's conversions: those keep other NaN bits than dtype.h, and not
// every instruction set has them. Signed compares suffice: a magnitude has no sign bit.

HWY_INLINE VecI32 BF16Bits(I32 d, VecI32 u) {
  const VecI32 magnitude = hn::And(u, hn::Set(d, 0x7fffffff));
  const VecI32 upper = hn::And(hn::ShiftRight<16>(u), hn::Set(d, 0xffff));
  const VecI32 even = hn::And(upper, hn::Set(d, 1));
  const VecI32 rounded = hn::ShiftRight<16>(hn::Add(u, hn::Add(even, hn::Set(d, 0x7fff))));
  const auto nan = hn::Gt(magnitude, hn::Set(d, 0x7f800000));
  return hn::IfThenElse(nan, hn::Or(upper, hn::Set(d, 0x40)), hn::And(rounded, hn::Set(d, 0xffff)));
}

HWY_INLINE VecI32 F16Bits(I32 d, VecI32 u) {
  const F32 df;
  const VecI32 magnitude = hn::And(u, hn::Set(d, 0x7fffffff));
  const VecI32 sign = hn::And(hn::ShiftRight<16>(u), hn::Set(d, 0x8000));
  const VecI32 even = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(d, 1));
  const VecI32 normal =
      hn::ShiftRight<13>(hn::Add(magnitude, hn::Add(even, hn::Set(d, 0xfff - 0x38000000))));
  // Adding 0.5 leaves the rounded mantissa, in units of 2^-24, in the low bits.
  const VecI32 subnormal =
      hn::Sub(hn::BitCast(d, hn::Add(hn::BitCast(df, magnitude), hn::Set(df, 0.5f))),
              hn::Set(d, 0x3f000000));
  VecI32 bits = hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, 0x38800000)), subnormal, normal);
  bits = hn::IfThenElse(hn::Gt(magnitude, hn::Set(d, 0x477fffff)), hn::Set(d, 0x7c00), bits);
  bits = hn::IfThenElse(hn::Gt(magnitude, hn::Set(d, 0x7f800000)), hn::Set(d, 0x7e00), bits);
  return hn::Or(sign, bits);
}

HWY_INLINE VecI32 FromBF16Bits(I32, VecI32 bits) { return hn::ShiftLeft<16>(bits); }

HWY_INLINE VecI32 FromF16Bits(I32 d, VecI32 bits) {
  const F32 df;
  const VecI32 magnitude = hn::And(bits, hn::Set(d, 0x7fff));
  const VecI32 sign = hn::ShiftLeft<16>(hn::And(bits, hn::Set(d, 0x8000)));
  const VecI32 shifted = hn::ShiftLeft<13>(magnitude);
  const VecI32 normal = hn::Add(shifted, hn::Set(d, 112 << 23));
  const VecI32 special = hn::Or(shifted, hn::Set(d, 0x7f800000));
  const VecI32 subnormal =
      hn::BitCast(d, hn::Mul(hn::ConvertTo(df, magnitude), hn::Set(df, 0x1p-24f)));
  VecI32 result = hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, 0x400)), subnormal, normal);
  result = hn::IfThenElse(hn::Gt(magnitude, hn::Set(d, 0x7bff)), special, result);
  return hn::Or(sign, result);
}

template <class Bits>
HWY_INLINE void Narrow(const float* x, uint16_t* y, size_t n, Bits bits) {
  const F32 d;
  const I32 di;
  const U16 du;
  ForEachVector(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    // Each fits in 16 bits, so the saturating demotion changes nothing.
    const auto narrow = hn::DemoteTo(du, bits(di, hn::BitCast(di, Load(d, x + i, part))));
    if constexpr (std::is_same_v<decltype(part), Whole>) {
      hn::StoreU(narrow, du, y + i);
    } else {
      HWY_ALIGN uint16_t lanes[hn::MaxLanes(du)];
      hn::StoreU(narrow, du, lanes);
      std::memcpy(y + i, lanes, part.count * sizeof(uint16_t));
    }
  });
}

template <class Bits>
HWY_INLINE void Widen(const uint16_t* x, float* y, size_t n, Bits bits) {
  const F32 d;
  const I32 di;
  const U16 du;
  ForEachVector(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    if constexpr (std::is_same_v<decltype(part), Whole>) {
      hn::StoreU(hn::BitCast(d, bits(di, hn::PromoteTo(di, hn::LoadU(du, x + i)))), d, y + i);
    } else {
      HWY_ALIGN uint16_t lanes[hn::MaxLanes(du)] = {};
      std::memcpy(lanes, x + i, part.count * sizeof(uint16_t));
      Store(hn::BitCast(d, bits(di, hn::PromoteTo(di, hn::LoadU(du, lanes)))), d, y + i, part);
    }
  });
}

void F32ToBF16Range(const float* x, uint16_t* y, size_t n) {
  Narrow(x, y, n, [](I32 d, VecI32 u) TANDEM_VECTOR_LAMBDA { return BF16Bits(d, u); });
}
void F32ToF16Range(const float* x, uint16_t* y, size_t n) {
  Narrow(x, y, n, [](I32 d, VecI32 u) TANDEM_VECTOR_LAMBDA { return F16Bits(d, u); });
}
void BF16ToF32Range(const uint16_t* x, float* y, size_t n) {
  Widen(x, y, n, [](I32 d, VecI32 u) TANDEM_VECTOR_LAMBDA { return FromBF16Bits(d, u); });
}
void F16ToF32Range(const uint16_t* x, float* y, size_t n) {
  Widen(x, y, n, [](I32 d, VecI32 u) TANDEM_VECTOR_LAMBDA { return FromF16Bits(d, u); });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {

HWY_EXPORT(F32ToBF16Range);
HWY_EXPORT(F32ToF16Range);
HWY_EXPORT(BF16ToF32Range);
HWY_EXPORT(F16ToF32Range);

namespace {

constexpr int64_t kGrain = 16384;  // elements

template <class From, class To, class Range>
void Convert(const From* x, To* y, int64_t n, Range range) {
  ParallelFor(n, kGrain, [&](int64_t begin, int64_t end) {
    range(x + begin, y + begin, static_cast<size_t>(end - begin));
  });
}

}  // namespace

static_assert(sizeof(BF16) == sizeof(uint16_t) && sizeof(F16) == sizeof(uint16_t));

void ConvertF32ToBF16(const float* x, BF16* y, int64_t n) {
  Convert(x, reinterpret_cast<uint16_t*>(y), n, HWY_DYNAMIC_DISPATCH(F32ToBF16Range));
}
void ConvertBF16ToF32(const BF16* x, float* y, int64_t n) {
  Convert(reinterpret_cast<const uint16_t*>(x), y, n, HWY_DYNAMIC_DISPATCH(BF16ToF32Range));
}
void ConvertF32ToF16(const float* x, F16* y, int64_t n) {
  Convert(x, reinterpret_cast<uint16_t*>(y), n, HWY_DYNAMIC_DISPATCH(F32ToF16Range));
}
void ConvertF16ToF32(const F16* x, float* y, int64_t n) {
  Convert(reinterpret_cast<const uint16_t*>(x), y, n, HWY_DYNAMIC_DISPATCH(F16ToF32Range));
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE

// Vector loops and f32 functions that the kernels share. Compiled once per instruction set: include
// it after hwy/foreach_target.h.
//
// Every function maps a lane to a lane, so a value's bits depend on that value alone; a loop's
// last, partial vector goes through the same code with padding. NaN stays NaN everywhere.
#if defined(TANDEM_CPU_KERNELS_VECTOR_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_KERNELS_VECTOR_MATH_INL_H_
#undef TANDEM_CPU_KERNELS_VECTOR_MATH_INL_H_
#else
#define TANDEM_CPU_KERNELS_VECTOR_MATH_INL_H_
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Follows a lambda's parameters: the instruction set's attribute, and never a call.
#undef TANDEM_VECTOR_LAMBDA
#define TANDEM_VECTOR_LAMBDA HWY_ATTR __attribute__((always_inline))

using F32 = hn::ScalableTag<float>;
using VecF32 = hn::Vec<F32>;

// Which part of a vector a step of a loop covers: all of it, or the first `count` lanes.
struct Whole {};
struct Part {
  size_t count;
};

// Masked loads and stores of 32-bit lanes touch no memory past the end on AVX2 either; Highway's
// macro says otherwise for the sake of narrower lanes.
#undef TANDEM_MASKED_MEMORY
#define TANDEM_MASKED_MEMORY (!HWY_MEM_OPS_MIGHT_FAULT || HWY_TARGET == HWY_AVX2)

// d has 32-bit lanes.
template <class D, typename T = hn::TFromD<D>>
HWY_INLINE hn::Vec<D> Load(D d, const T* p, Whole) {
  return hn::LoadU(d, p);
}
// Lanes past the end are zero; memory past the end is not touched.
template <class D, typename T = hn::TFromD<D>>
HWY_INLINE hn::Vec<D> Load(D d, const T* p, Part part) {
#if TANDEM_MASKED_MEMORY
  return hn::MaskedLoad(hn::FirstN(d, part.count), d, p);
#else
  HWY_ALIGN T lanes[hn::MaxLanes(d)] = {};
  std::memcpy(lanes, p, part.count * sizeof(T));
  return hn::Load(d, lanes);
#endif
}
template <class D, typename T = hn::TFromD<D>>
HWY_INLINE void Store(hn::Vec<D> v, D d, T* p, Whole) {
  hn::StoreU(v, d, p);
}
template <class D, typename T = hn::TFromD<D>>
HWY_INLINE void Store(hn::Vec<D> v, D d, T* p, Part part) {
#if TANDEM_MASKED_MEMORY
  hn::BlendedStore(v, hn::FirstN(d, part.count), d, p);
#else
  HWY_ALIGN T lanes[hn::MaxLanes(d)];
  hn::Store(v, d, lanes);
  std::memcpy(p, lanes, part.count * sizeof(T));
#endif
}
// Zero in the lanes past the end.
HWY_INLINE VecF32 ZeroPastEnd(F32, VecF32 v, Whole) { return v; }
HWY_INLINE VecF32 ZeroPastEnd(F32 d, VecF32 v, Part part) {
  return hn::IfThenElseZero(hn::FirstN(d, part.count), v);
}

// step(i, Whole or Part) over [0, n).
template <class Step>
HWY_INLINE void ForEachVector(F32 d, size_t n, Step step) {
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) step(i, Whole{});
  if (i < n) step(i, Part{n - i});
}

// The sum of term(i, Whole or Part) over [0, n), all lanes; a Part's unused lanes must be zero.
// Four accumulators, emptied into one total every 64 vectors so that long rows keep their accuracy;
// the order depends on n alone.
template <class Term>
HWY_INLINE float SumOver(F32 d, size_t n, Term term) {
  const size_t lanes = hn::Lanes(d);
  VecF32 total = hn::Zero(d);
  size_t i = 0;
  while (i < n) {
    VecF32 s0 = hn::Zero(d), s1 = hn::Zero(d), s2 = hn::Zero(d), s3 = hn::Zero(d);
    const size_t end = n - i < 64 * lanes ? n : i + 64 * lanes;
    for (; i + 4 * lanes <= end; i += 4 * lanes) {
      s0 = hn::Add(s0, term(i, Whole{}));
      s1 = hn::Add(s1, term(i + lanes, Whole{}));
      s2 = hn::Add(s2, term(i + 2 * lanes, Whole{}));
      s3 = hn::Add(s3, term(i + 3 * lanes, Whole{}));
    }
    for (; i + lanes <= end; i += lanes) s0 = hn::Add(s0, term(i, Whole{}));
    if (i < end) {
      s1 = hn::Add(s1, term(i, Part{end - i}));
      i = end;
    }
    total = hn::Add(total, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)));
  }
  return hn::GetLane(hn::SumOfLanes(d, total));
}

HWY_INLINE VecF32 MaxNaN(VecF32 a, VecF32 b) {
  return hn::IfThenElse(hn::IsNaN(a), a, hn::IfThenElse(hn::IsNaN(b), b, hn::Max(a, b)));
}
HWY_INLINE VecF32 MinNaN(VecF32 a, VecF32 b) {
  return hn::IfThenElse(hn::IsNaN(a), a, hn::IfThenElse(hn::IsNaN(b), b, hn::Min(a, b)));
}
HWY_INLINE VecF32 CapAbove(F32 d, VecF32 x, float limit) {
  const VecF32 bound = hn::Set(d, limit);
  return hn::IfThenElse(hn::Gt(x, bound), bound, x);
}
HWY_INLINE VecF32 CapBelow(F32 d, VecF32 x, float limit) {
  const VecF32 bound = hn::Set(d, limit);
  return hn::IfThenElse(hn::Lt(x, bound), bound, x);
}

// x = n ln2 + r with |r| <= ln2 / 2: e^r - 1, and n as a float whose low mantissa bits are n.
HWY_INLINE VecF32 ExpReducedMinus1(F32 d, VecF32 x, VecF32* n_plus_magic) {
  const VecF32 magic = hn::Set(d, 12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  *n_plus_magic = hn::MulAdd(x, hn::Set(d, 1.44269504089f), magic);
  const VecF32 n = hn::Sub(*n_plus_magic, magic);
  VecF32 r = hn::NegMulAdd(n, hn::Set(d, 0.693145751953125f), x);  // ln2 in two parts: n * high
  r = hn::NegMulAdd(n, hn::Set(d, 1.428606765330187e-6f), r);      // is exact
  const VecF32 r2 = hn::Mul(r, r);
  VecF32 p =
      hn::MulAdd(hn::Set(d, 1.98527617612853646e-4f), r, hn::Set(d, 1.39304355252534151e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 8.33336077630519867e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 4.16664853692054749e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.66666671633720398e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.5f));
  return hn::MulAdd(p, r2, r);
}

// e^x within 1 ulp; overflows to infinity, underflows through the subnormals to 0.
HWY_INLINE VecF32 Exp(F32 d, VecF32 x) {
  const hn::RebindToSigned<F32> di;
  x = CapBelow(d, CapAbove(d, x, 89.0f), -104.0f);
  VecF32 magic_n;
  const VecF32 p = hn::Add(ExpReducedMinus1(d, x, &magic_n), hn::Set(d, 1.0f));
  // 2^n in two factors: n is in [-150, 128], wider than the exponent.
  const auto n = hn::Sub(hn::BitCast(di, magic_n), hn::Set(di, 0x4b400000));
  const auto half = hn::ShiftRight<1>(n);
  const auto bias = hn::Set(di, 127);
  const auto s0 = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(half, bias)));
  const auto s1 = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(hn::Sub(n, half), bias)));
  return hn::Mul(hn::Mul(p, s0), s1);
}

// e^x for x <= 88 within 1 ulp; below -87.3, where the result would be subnormal, 0.
HWY_INLINE VecF32 ExpBelow88(F32 d, VecF32 x) {
  const hn::RebindToSigned<F32> di;
  VecF32 magic_n;
  const VecF32 p = hn::Add(ExpReducedMinus1(d, x, &magic_n), hn::Set(d, 1.0f));
  // Shifting leaves n of the mantissa bits; adding it to p's exponent multiplies by 2^n.
  const auto shifted = hn::ShiftLeft<23>(hn::BitCast(di, magic_n));
  const VecF32 y = hn::BitCast(d, hn::Add(hn::BitCast(di, p), shifted));
  const VecF32 kept = hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -87.3f)), y);
  return hn::IfThenElse(hn::IsNaN(x), x, kept);
}

// ln(x) for positive, finite x within 2 ulp.
HWY_INLINE VecF32 LogPositive(F32 d, VecF32 x) { return hn::Log(d, x); }

// ln(x): -inf at 0, NaN below.
HWY_INLINE VecF32 Log(F32 d, VecF32 x) {
  const VecF32 zero = hn::Zero(d);
  const VecF32 infinity = hn::Set(d, HUGE_VALF);
  VecF32 y = LogPositive(d, x);
  y = hn::IfThenElse(hn::Lt(x, infinity), y, x);  // infinity and NaN
  y = hn::IfThenElse(hn::Eq(x, zero), hn::Neg(infinity), y);
  return hn::IfThenElse(hn::Lt(x, zero), hn::NaN(d), y);
}

// ln(1 + x) for 0 <= x <= 1. Kahan's correction: 1 + x rounds to y, and ln'(y) (x - (y - 1)) is
// what the rounding lost.
HWY_INLINE VecF32 Log1pUnit(F32 d, VecF32 x) {
  const VecF32 one = hn::Set(d, 1.0f);
  const VecF32 y = hn::Add(x, one);
  const VecF32 lost = hn::Sub(x, hn::Sub(y, one));
  return hn::Add(LogPositive(d, y), hn::Div(lost, y));
}

HWY_INLINE VecF32 Tanh(F32 d, VecF32 x) {
  const hn::RebindToSigned<F32> di;
  const VecF32 one = hn::Set(d, 1.0f);
  // tanh a = m / (m + 2), m = e^2a - 1; past 9.1 it rounds to 1.
  const VecF32 a = CapAbove(d, hn::Abs(x), 9.2f);
  VecF32 magic_n;
  const VecF32 q = ExpReducedMinus1(d, hn::Add(a, a), &magic_n);
  const auto n = hn::Sub(hn::BitCast(di, magic_n), hn::Set(di, 0x4b400000));
  const VecF32 scale = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(n, hn::Set(di, 127))));
  const VecF32 m = hn::MulAdd(scale, q, hn::Sub(scale, one));
  return hn::CopySign(hn::Div(m, hn::Add(m, hn::Set(d, 2.0f))), x);
}

HWY_INLINE VecF32 Sigmoid(F32 d, VecF32 x) {
  const VecF32 one = hn::Set(d, 1.0f);
  return hn::Div(one, hn::Add(one, Exp(d, hn::Neg(x))));
}

// erf(t) for |t| < 0.9: t + t P(t^2), a minimax fit of relative error 3e-10 before rounding.
HWY_INLINE VecF32 ErfSmall(F32 d, VecF32 t) {
  const VecF32 s = hn::Mul(t, t);
  VecF32 p = hn::MulAdd(hn::Set(d, 8.51310477e-05f), s, hn::Set(d, -0.000817563947f));
  p = hn::MulAdd(p, s, hn::Set(d, 0.00520385918f));
  p = hn::MulAdd(p, s, hn::Set(d, -0.0268605085f));
  p = hn::MulAdd(p, s, hn::Set(d, 0.11283715f));
  p = hn::MulAdd(p, s, hn::Set(d, -0.37612635f));
  p = hn::MulAdd(p, s, hn::Set(d, 0.128379167f));
  return hn::MulAdd(p, t, t);
}

// erfc(t) for t >= 0.88: exp(-t P(t)), a minimax fit on [0.88, 10.2] of absolute error 2e-8 before
// rounding (relative 1e-4 at t = 10); 0 beyond, where f32 has no more digits.
HWY_INLINE VecF32 ErfcLarge(F32 d, VecF32 t) {
  t = CapAbove(d, t, 10.2f);
  VecF32 p = hn::MulAdd(hn::Set(d, -1.5435598e-09f), t, hn::Set(d, 1.04881446e-07f));
  p = hn::MulAdd(p, t, hn::Set(d, -3.10689882e-06f));
  p = hn::MulAdd(p, t, hn::Set(d, 5.32935197e-05f));
  p = hn::MulAdd(p, t, hn::Set(d, -0.000593678594f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.00457945158f));
  p = hn::MulAdd(p, t, hn::Set(d, -0.0256057994f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.108296839f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.633938625f));
  p = hn::MulAdd(p, t, hn::Set(d, 1.12893969f));
  return Exp(d, hn::Neg(hn::Mul(p, t)));
}

HWY_INLINE VecF32 Erf(F32 d, VecF32 x) {
  const VecF32 t = hn::Abs(x);
  const VecF32 large = hn::CopySign(hn::Sub(hn::Set(d, 1.0f), ErfcLarge(d, t)), x);
  return hn::IfThenElse(hn::Lt(t, hn::Set(d, 0.9f)), ErfSmall(d, x), large);
}

// The standard normal distribution function, without cancellation in its lower tail.
HWY_INLINE VecF32 NormalCdf(F32 d, VecF32 x) {
  const VecF32 half = hn::Set(d, 0.5f);
  const VecF32 z = hn::Mul(x, hn::Set(d, 0.70710678118654752f));
  const VecF32 t = hn::Abs(z);
  const VecF32 tail = hn::Mul(half, ErfcLarge(d, t));
  const VecF32 large =
      hn::IfThenElse(hn::Lt(x, hn::Zero(d)), tail, hn::Sub(hn::Set(d, 1.0f), tail));
  const VecF32 small = hn::MulAdd(half, ErfSmall(d, z), half);
  return hn::IfThenElse(hn::Lt(t, hn::Set(d, 0.9f)), small, large);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::cpu
HWY_AFTER_NAMESPACE();

#endif  // TANDEM_CPU_KERNELS_VECTOR_MATH_INL_H_

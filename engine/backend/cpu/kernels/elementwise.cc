#include "engine/backend/cpu/kernels/elementwise.h"

#include "engine/base/threads.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/backend/cpu/kernels/elementwise.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per instruction set.
#include "engine/backend/cpu/kernels/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu {
namespace HWY_NAMESPACE {

template <class Function>
HWY_INLINE void Map(const float* x, float* y, size_t n, Function f) {
  const F32 d;
  ForEachVector(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    Store(f(d, Load(d, x + i, part)), d, y + i, part);
  });
}

template <class Function>
HWY_INLINE void Map(const float* x, const float* z, float* y, size_t n, Function f) {
  const F32 d;
  ForEachVector(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    Store(f(d, Load(d, x + i, part), Load(d, z + i, part)), d, y + i, part);
  });
}

// Beyond this, and for infinities and NaN, sine and cosine are the library's: the vector range
// reduction runs out of digits.
constexpr float kTrigonometricRange = 30000.0f;

template <class Function, class Fallback>
HWY_INLINE VecF32 WithinRange(F32 d, VecF32 x, Function f, Fallback fallback) {
  const auto inside = hn::Le(hn::Abs(x), hn::Set(d, kTrigonometricRange));
  const VecF32 y = f(d, hn::IfThenElseZero(inside, x));
  if (HWY_LIKELY(hn::AllTrue(d, inside))) return y;
  HWY_ALIGN float in[hn::MaxLanes(d)];
  HWY_ALIGN float out[hn::MaxLanes(d)];
  hn::Store(x, d, in);
  hn::Store(y, d, out);
  for (size_t i = 0; i < hn::Lanes(d); ++i) {
    if (!(std::fabs(in[i]) <= kTrigonometricRange)) {
      out[i] = static_cast<float>(fallback(static_cast<double>(in[i])));
    }
  }
  return hn::Load(d, out);
}

HWY_INLINE VecF32 Sign(F32 d, VecF32 x) {
  const VecF32 zero = hn::Zero(d);
  const VecF32 one = hn::CopySign(hn::Set(d, 1.0f), x);
  return hn::IfThenElse(hn::Eq(x, zero), zero, hn::IfThenElse(hn::IsNaN(x), x, one));
}

// max(x, 0) + ln(1 + e^-|x|).
HWY_INLINE VecF32 Softplus(F32 d, VecF32 x) {
  const VecF32 e = Exp(d, hn::Neg(hn::Abs(x)));
  return hn::Add(hn::IfThenZeroElse(hn::Lt(x, hn::Zero(d)), x), Log1pUnit(d, e));
}

// Kahan's correction as in Log1pUnit; past 2^24 there is nothing to correct, nor at -1 and at
// infinity, where the quotient would be no number.
HWY_INLINE VecF32 Log1p(F32 d, VecF32 x) {
  const VecF32 one = hn::Set(d, 1.0f);
  const VecF32 y = hn::Add(x, one);
  const VecF32 lost = hn::Div(hn::Sub(x, hn::Sub(y, one)), y);
  const auto corrected = hn::And(hn::Gt(x, hn::Set(d, -1.0f)), hn::Lt(x, hn::Set(d, 0x1p24f)));
  const VecF32 z = hn::Add(Log(d, y), hn::IfThenElseZero(corrected, lost));
  return hn::IfThenElse(hn::Eq(x, hn::Zero(d)), x, z);  // keeps -0
}

// e^x - 1 = 2^n (e^r - 1) + (2^n - 1), as in Tanh.
HWY_INLINE VecF32 Expm1(F32 d, VecF32 x) {
  const hn::RebindToSigned<F32> di;
  const VecF32 one = hn::Set(d, 1.0f);
  // Below -17.4 it rounds to -1, above 88.8 to infinity. The scale has one bit less than 2^128
  // needs: it is put on in two factors.
  const VecF32 a = CapBelow(d, CapAbove(d, x, 89.0f), -18.0f);
  VecF32 magic_n;
  const VecF32 q = ExpReducedMinus1(d, a, &magic_n);
  const auto n = hn::Sub(hn::BitCast(di, magic_n), hn::Set(di, 0x4b400000));
  const auto scale_bits = hn::ShiftLeft<23>(hn::Add(n, hn::Set(di, 126)));
  const VecF32 half_scale = hn::BitCast(d, scale_bits);  // 2^(n - 1)
  const VecF32 half = hn::MulAdd(half_scale, q, hn::Sub(half_scale, hn::Set(d, 0.5f)));
  const VecF32 y = hn::Add(half, half);
  return hn::IfThenElse(hn::Eq(x, hn::Zero(d)), x,
                        hn::IfThenElse(hn::Lt(x, hn::Set(d, -18.0f)), hn::Neg(one), y));
}

HWY_INLINE VecF32 Silu(F32 d, VecF32 x) { return hn::Mul(x, Sigmoid(d, x)); }

// The argument u of gelu_tanh(x) = x sigmoid(2u), doubled: 2 sqrt(2/pi) (x + 0.044715 x^3).
HWY_INLINE VecF32 GeluTanhArgument(F32 d, VecF32 x) {
  const VecF32 x2 = hn::Mul(x, x);
  const VecF32 scale = hn::MulAdd(x2, hn::Set(d, 0.0713548162726f), hn::Set(d, 1.59576912160573f));
  return hn::Mul(x, scale);
}
HWY_INLINE VecF32 GeluTanh(F32 d, VecF32 x) {
  return hn::Mul(x, Sigmoid(d, GeluTanhArgument(d, x)));
}

void UnaryRange(Unary op, const float* x, float* y, size_t n) {
  const auto run = [&](auto f) TANDEM_VECTOR_LAMBDA { Map(x, y, n, f); };
  switch (op) {
    case Unary::kNeg:
      return run([](F32, VecF32 v) TANDEM_VECTOR_LAMBDA { return hn::Neg(v); });
    case Unary::kAbs:
      return run([](F32, VecF32 v) TANDEM_VECTOR_LAMBDA { return hn::Abs(v); });
    case Unary::kSign:
      return run([](F32 d, VecF32 v) TANDEM_VECTOR_LAMBDA { return Sign(d, v); });
    case Unary::kExp:
      return run([](F32 d, VecF32 v) TANDEM_VECTOR_LAMBDA { return Exp(d, v); });
    case Unary::kLog:
      return run([](F32 d, VecF32 v) TANDEM_VECTOR_LAMBDA { return Log(d, v); });
    case Unary::kSqrt:
      return run([](F32, VecF32 v) TANDEM_VECTOR_LAMBDA { return hn::Sqrt(v); });
    case Unary::kRsqrt:
      return run([](F32 d, VecF32 v)
                     TANDEM_VECTOR_LAMBDA { return hn::Div(hn::Set(d, 1.0f), hn::Sqrt(v)); });
    case Unary::kReciprocal:
      return run([](F32 d, VecF32 v) TANDEM_VECTOR_LAMBDA { return hn::Div(hn::Set(d, 1.0f), v); });
    case Unary::kTanh:
      return run([](F32 d, VecF32 v) TANDEM_VECTOR_LAMBDA { return Tanh(d, v); });
    case Unary::kSigmoid:
      return run([](F32 d, VecF32 v) TANDEM_VECTOR_LAMBDA { return Sigmoid(d, v); });
    case Unary::kErf:
      return run([](F32 d, VecF32 v) TANDEM_VECTOR_LAMBDA { return Erf(d, v); });
    case Unary::kRelu:
      return run([](F32 d, VecF32 v) TANDEM_VECTOR_LAMBDA {
        return hn::IfThenZeroElse(hn::Le(v, hn::Zero(d)), v);
      });
    case Unary::kGelu:
      return run([](F32 d, VecF32 v) TANDEM_VECTOR_LAMBDA { return hn::Mul(v, NormalCdf(d, v)); });
    case Unary::kGeluTanh:
      return run([](F32 d, VecF32 v) TANDEM_VECTOR_LAMBDA { return GeluTanh(d, v); });
    case Unary::kSilu:
      return run([](F32 d, VecF32 v) TANDEM_VECTOR_LAMBDA { return Silu(d, v); });
    case Unary::kSoftplus:
      return run([](F32 d, VecF32 v) TANDEM_VECTOR_LAMBDA { return Softplus(d, v); });
    case Unary::kSin:
      return run([](F32 d, VecF32 v) TANDEM_VECTOR_LAMBDA {
        return WithinRange(
            d, v, [](F32 e, VecF32 w) TANDEM_VECTOR_LAMBDA { return hn::Sin(e, w); },
            [](double a) { return std::sin(a); });
      });
    case Unary::kCos:
      return run([](F32 d, VecF32 v) TANDEM_VECTOR_LAMBDA {
        return WithinRange(
            d, v, [](F32 e, VecF32 w) TANDEM_VECTOR_LAMBDA { return hn::Cos(e, w); },
            [](double a) { return std::cos(a); });
      });
    case Unary::kFloor:
      return run([](F32, VecF32 v) TANDEM_VECTOR_LAMBDA { return hn::Floor(v); });
    case Unary::kCeil:
      return run([](F32, VecF32 v) TANDEM_VECTOR_LAMBDA { return hn::Ceil(v); });
    case Unary::kRound:
      return run([](F32, VecF32 v) TANDEM_VECTOR_LAMBDA { return hn::Round(v); });
    case Unary::kSquare:
      return run([](F32, VecF32 v) TANDEM_VECTOR_LAMBDA { return hn::Mul(v, v); });
    case Unary::kLog1p:
      return run([](F32 d, VecF32 v) TANDEM_VECTOR_LAMBDA { return Log1p(d, v); });
    case Unary::kExpm1:
      return run([](F32 d, VecF32 v) TANDEM_VECTOR_LAMBDA { return Expm1(d, v); });
  }
}

// d/dx x Phi(x) = Phi(x) + x phi(x).
HWY_INLINE VecF32 GeluGrad(F32 d, VecF32 x) {
  const VecF32 density =
      hn::Mul(hn::Set(d, 0.398942280401f), Exp(d, hn::Mul(hn::Mul(x, x), hn::Set(d, -0.5f))));
  return hn::MulAdd(x, density, NormalCdf(d, x));
}

// With s = sigmoid(a(x)): d/dx x s = s + x s (1 - s) a'(x), and 1 - s = e^-a s; |a| < 88.
HWY_INLINE VecF32 SigmoidGateGrad(F32 d, VecF32 x, VecF32 a, VecF32 da) {
  const VecF32 one = hn::Set(d, 1.0f);
  const VecF32 e = ExpBelow88(d, hn::Neg(a));
  const VecF32 s = hn::Div(one, hn::Add(one, e));
  return hn::MulAdd(hn::Mul(hn::Mul(x, da), s), hn::Mul(e, s), s);
}

HWY_INLINE VecF32 GeluTanhGrad(F32 d, VecF32 x) {
  // Past 10 the slope is 0 or 1.
  x = CapBelow(d, CapAbove(d, x, 10.0f), -10.0f);
  const VecF32 da =
      hn::MulAdd(hn::Mul(x, x), hn::Set(d, 0.214064448818f), hn::Set(d, 1.59576912160573f));
  return SigmoidGateGrad(d, x, GeluTanhArgument(d, x), da);
}

// d/dx x sigmoid(x); past 85 it is 0 or 1.
HWY_INLINE VecF32 SiluGrad(F32 d, VecF32 x) {
  x = CapBelow(d, CapAbove(d, x, 85.0f), -85.0f);
  return SigmoidGateGrad(d, x, x, hn::Set(d, 1.0f));
}

void UnaryGradRange(UnaryGrad op, const float* x, const float* dy, float* dx, size_t n) {
  switch (op) {
    case UnaryGrad::kGelu:
      return Map(x, dy, dx, n, [](F32 d, VecF32 v, VecF32 g) TANDEM_VECTOR_LAMBDA {
        return hn::Mul(g, GeluGrad(d, v));
      });
    case UnaryGrad::kGeluTanh:
      return Map(x, dy, dx, n, [](F32 d, VecF32 v, VecF32 g) TANDEM_VECTOR_LAMBDA {
        return hn::Mul(g, GeluTanhGrad(d, v));
      });
    case UnaryGrad::kSilu:
      return Map(x, dy, dx, n, [](F32 d, VecF32 v, VecF32 g) TANDEM_VECTOR_LAMBDA {
        return hn::Mul(g, SiluGrad(d, v));
      });
    case UnaryGrad::kRelu:
      return Map(x, dy, dx, n, [](F32 d, VecF32 v, VecF32 g) TANDEM_VECTOR_LAMBDA {
        return hn::IfThenZeroElse(hn::Le(v, hn::Zero(d)), g);
      });
  }
}

void SwiGluRange(const float* gate, const float* up, float* out, size_t n) {
  Map(gate, up, out, n,
      [](F32 d, VecF32 g, VecF32 u) TANDEM_VECTOR_LAMBDA { return hn::Mul(Silu(d, g), u); });
}

// dgate = dy up silu'(gate); dup = dy silu(gate).
void SwiGluBackwardRange(const float* gate, const float* up, const float* dy, float* dgate,
                         float* dup, size_t n) {
  const F32 d;
  ForEachVector(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    const VecF32 g = Load(d, gate + i, part), u = Load(d, up + i, part), c = Load(d, dy + i, part);
    Store(hn::Mul(hn::Mul(c, u), SiluGrad(d, g)), d, dgate + i, part);
    Store(hn::Mul(c, Silu(d, g)), d, dup + i, part);
  });
}

void AxpyRange(float alpha, const float* x, float* y, size_t n) {
  Map(x, y, y, n, [alpha](F32 d, VecF32 v, VecF32 w) TANDEM_VECTOR_LAMBDA {
    return hn::MulAdd(hn::Set(d, alpha), v, w);
  });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {

HWY_EXPORT(UnaryRange);
HWY_EXPORT(UnaryGradRange);
HWY_EXPORT(SwiGluRange);
HWY_EXPORT(SwiGluBackwardRange);
HWY_EXPORT(AxpyRange);

namespace {
constexpr int64_t kGrain = 16384;  // elements: a few microseconds, about a thread's wake-up
}

void RunUnary(Unary op, const float* x, float* y, int64_t n) {
  const auto range = HWY_DYNAMIC_DISPATCH(UnaryRange);
  ParallelFor(n, kGrain, [&](int64_t begin, int64_t end) {
    range(op, x + begin, y + begin, static_cast<size_t>(end - begin));
  });
}

void RunUnaryGrad(UnaryGrad op, const float* x, const float* dy, float* dx, int64_t n) {
  const auto range = HWY_DYNAMIC_DISPATCH(UnaryGradRange);
  ParallelFor(n, kGrain, [&](int64_t begin, int64_t end) {
    range(op, x + begin, dy + begin, dx + begin, static_cast<size_t>(end - begin));
  });
}

void SwiGlu(const float* gate, const float* up, float* out, int64_t n) {
  const auto range = HWY_DYNAMIC_DISPATCH(SwiGluRange);
  ParallelFor(n, kGrain, [&](int64_t begin, int64_t end) {
    range(gate + begin, up + begin, out + begin, static_cast<size_t>(end - begin));
  });
}

void SwiGluBackward(const float* gate, const float* up, const float* dy, float* dgate, float* dup,
                    int64_t n) {
  const auto range = HWY_DYNAMIC_DISPATCH(SwiGluBackwardRange);
  ParallelFor(n, kGrain, [&](int64_t begin, int64_t end) {
    range(gate + begin, up + begin, dy + begin, dgate + begin, dup + begin,
          static_cast<size_t>(end - begin));
  });
}

void Axpy(float alpha, const float* x, float* y, int64_t n) {
  const auto range = HWY_DYNAMIC_DISPATCH(AxpyRange);
  ParallelFor(n, kGrain, [&](int64_t begin, int64_t end) {
    range(alpha, x + begin, y + begin, static_cast<size_t>(end - begin));
  });
}

void AddTo(const float* x, float* y, int64_t n) { Axpy(1.0f, x, y, n); }

}  // namespace tandem::cpu
#endif  // HWY_ONCE

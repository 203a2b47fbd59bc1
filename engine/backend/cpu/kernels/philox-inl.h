// Philox4x32-10 (engine/base/philox.h) and noise in vectors of f32, 64 elements at a time. Compiled
// once per instruction set: include it after hwy/foreach_target.h.
//
// The same bits on every instruction set: integer operations, IEEE + - * / sqrt, and multiply-adds
// that round once everywhere.
#if defined(TANDEM_CPU_KERNELS_PHILOX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_KERNELS_PHILOX_INL_H_
#undef TANDEM_CPU_KERNELS_PHILOX_INL_H_
#else
#define TANDEM_CPU_KERNELS_PHILOX_INL_H_
#endif

#include <cmath>

#include "engine/backend/cpu/kernels/random.h"
#include "engine/backend/cpu/kernels/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu {
namespace HWY_NAMESPACE {

using U32 = hn::RebindToUnsigned<F32>;
using I32 = hn::RebindToSigned<F32>;
using U64 = hn::Repartition<uint64_t, U32>;
using VecU32 = hn::Vec<U32>;
using VecU64 = hn::Vec<U64>;

constexpr size_t kNoiseGroup = 64;   // f32 elements
constexpr size_t kNoiseBlocks = 16;  // Philox blocks a group: no vector has more lanes

// a b + c, rounded once.
HWY_INLINE VecF32 Fma(F32 d, VecF32 a, VecF32 b, VecF32 c) {
#if HWY_NATIVE_FMA
  (void)d;
  return hn::MulAdd(a, b, c);
#else
  HWY_ALIGN float x[hn::MaxLanes(d)];
  HWY_ALIGN float y[hn::MaxLanes(d)];
  HWY_ALIGN float z[hn::MaxLanes(d)];
  hn::Store(a, d, x);
  hn::Store(b, d, y);
  hn::Store(c, d, z);
  for (size_t i = 0; i < hn::Lanes(d); ++i) x[i] = std::fma(x[i], y[i], z[i]);
  return hn::Load(d, x);
#endif
}
HWY_INLINE VecF32 Fma(F32 d, VecF32 a, float b, VecF32 c) { return Fma(d, a, hn::Set(d, b), c); }
HWY_INLINE VecF32 Fma(F32 d, VecF32 a, VecF32 b, float c) { return Fma(d, a, b, hn::Set(d, c)); }
HWY_INLINE VecF32 Fma(F32 d, VecF32 a, float b, float c) {
  return Fma(d, a, hn::Set(d, b), hn::Set(d, c));
}

// -ln(1 - g) - e ln 2, for 1 - g in [sqrt(1/2), sqrt(2)] (the coefficients of Cephes' logf).
HWY_INLINE VecF32 MinusLogReduced(F32 d, VecF32 g, VecF32 e) {
  VecF32 p = Fma(d, g, 7.0376836292e-2f, 1.1514610310e-1f);
  p = Fma(d, p, g, 1.1676998740e-1f);
  p = Fma(d, p, g, 1.2420140846e-1f);
  p = Fma(d, p, g, 1.4249322787e-1f);
  p = Fma(d, p, g, 1.6668057665e-1f);
  p = Fma(d, p, g, 2.0000714765e-1f);
  p = Fma(d, p, g, 2.4999993993e-1f);
  p = Fma(d, p, g, 3.3333331174e-1f);
  p = Fma(d, p, g, 0.5f);
  return Fma(d, e, -0.69314718056f, Fma(d, hn::Mul(g, g), p, g));
}

// x = 2^e (1 - g), 1 - g in [sqrt(1/2), sqrt(2)), of a positive normal x.
HWY_INLINE void SplitExponent(F32 d, VecF32 x, VecF32* g, VecF32* e) {
  const I32 di;
  const auto bits = hn::BitCast(di, x);
  const auto exponent = hn::ShiftRight<23>(hn::Sub(bits, hn::Set(di, 0x3f3504f3)));
  *g = hn::Sub(hn::Set(d, 1.0f), hn::BitCast(d, hn::Sub(bits, hn::ShiftLeft<23>(exponent))));
  *e = hn::ConvertTo(d, exponent);
}

HWY_INLINE VecF32 MinusLogOfNormal(F32 d, VecF32 x) {
  VecF32 g, e;
  SplitExponent(d, x, &g, &e);
  return MinusLogReduced(d, g, e);
}

// (2 floor(w / 2) + 1) / 2^32, rounded to f32: 1 is possible.
HWY_INLINE VecF32 UnitInterval(F32 d, VecU32 w) {
  const I32 di;
  return Fma(d, hn::ConvertTo(d, hn::BitCast(di, hn::ShiftRight<1>(w))), 0x1p-31f, 0x1p-32f);
}

// -ln((w + 1/2) / 2^32), to UnitInterval's 31 bits where that is below 3/4, positive, with all of
// f32's digits near 0 too: there from 1 - u, which has them, and not from u.
HWY_INLINE VecF32 MinusLogUniform(F32 d, VecU32 w) {
  const I32 di;
  const VecF32 u = UnitInterval(d, w);
  VecF32 g, e;
  SplitExponent(d, u, &g, &e);
  const VecF32 rest = hn::ConvertTo(d, hn::BitCast(di, hn::Not(w)));  // where w >= 2^30 * 3
  g = hn::IfThenElse(hn::Gt(u, hn::Set(d, 0.75f)), Fma(d, rest, 0x1p-32f, 0x1p-33f), g);
  return MinusLogReduced(d, g, e);
}

// Sine and cosine of 2 pi w / 2^32 (Cephes' sinf and cosf).
HWY_INLINE void SinCosTurns(F32 d, VecU32 w, VecF32* sin, VecF32* cos) {
  const U32 du;
  const I32 di;
  const VecU32 q = hn::ShiftRight<30>(hn::Add(w, hn::Set(du, 1u << 29)));
  const auto turns = hn::BitCast(di, hn::Sub(w, hn::ShiftLeft<30>(q)));
  const VecF32 x = hn::Mul(hn::ConvertTo(d, turns), hn::Set(d, 6.283185307f * 0x1p-32f));
  const VecF32 z = hn::Mul(x, x);
  VecF32 s = Fma(d, z, -1.9515295891e-4f, 8.3321608736e-3f);
  s = Fma(d, s, z, -1.6666654611e-1f);
  s = Fma(d, hn::Mul(s, z), x, x);
  VecF32 c = Fma(d, z, 2.443315711809948e-5f, -1.388731625493765e-3f);
  c = Fma(d, c, z, 4.166664568298827e-2f);
  c = Fma(d, hn::Mul(c, z), z, Fma(d, z, -0.5f, 1.0f));
  const auto odd =
      hn::MaskFromVec(hn::BitCast(d, hn::Neg(hn::BitCast(di, hn::And(q, hn::Set(du, 1u))))));
  // The quadrant's bit 1 is the sine's sign, that of the next quadrant the cosine's.
  const VecU32 minus_sin = hn::ShiftLeft<31>(hn::ShiftRight<1>(q));
  const VecU32 minus_cos = hn::ShiftLeft<31>(hn::ShiftRight<1>(hn::Add(q, hn::Set(du, 1u))));
  *sin = hn::Xor(hn::IfThenElse(odd, c, s), hn::BitCast(d, minus_sin));
  *cos = hn::Xor(hn::IfThenElse(odd, s, c), hn::BitCast(d, minus_cos));
}

// Blocks one to a 64-bit lane; the upper halves are never read.
struct PhiloxLanes {
  VecU64 c0, c1, c2, c3;

  HWY_INLINE void Round(U64 d, uint32_t k0, uint32_t k1) {
    const U32 d32;
    const VecU64 p0 = hn::MulEven(hn::BitCast(d32, c0), hn::Set(d32, kM0));
    const VecU64 p1 = hn::MulEven(hn::BitCast(d32, c2), hn::Set(d32, kM1));
    c0 = hn::Xor3(hn::ShiftRight<32>(p1), c1, hn::Set(d, uint64_t{k0}));
    c2 = hn::Xor3(hn::ShiftRight<32>(p0), c3, hn::Set(d, uint64_t{k1}));
    c1 = p1;
    c3 = p0;
  }

  static constexpr uint32_t kM0 = 0xD2511F53, kM1 = 0xCD9E8D57;
};

// What the first two rounds compute of the counter's three words that a group has in common.
struct PhiloxPrefix {
  uint64_t r1_c3, r2_p0, r2_c1_k0;  // after round 1: c3 ^ k1; in round 2: M0 c0; c1 ^ k0
  uint64_t r2_k1_p0;                // in round 2: hi(M0 c0) ^ k1

  PhiloxPrefix(const NoiseStream& stream, uint64_t first) {
    const auto k0 = static_cast<uint32_t>(stream.key), k1 = static_cast<uint32_t>(stream.key >> 32);
    const uint64_t p1 = uint64_t{PhiloxLanes::kM1} * (stream.stream & 0xffffffff);
    const uint64_t c0 = (p1 >> 32) ^ (first >> 32) ^ k0;
    r1_c3 = (stream.stream >> 32) ^ k1;
    r2_p0 = uint64_t{PhiloxLanes::kM0} * (c0 & 0xffffffff);
    r2_c1_k0 = (p1 & 0xffffffff) ^ (k0 + kW0);
    r2_k1_p0 = (r2_p0 >> 32) ^ (k1 + kW1);
  }

  // The state after two rounds of the blocks whose lowest words are c0.
  HWY_INLINE PhiloxLanes Start(U64 d, VecU64 c0) const {
    const U32 d32;
    const VecU64 p0 = hn::MulEven(hn::BitCast(d32, c0), hn::Set(d32, PhiloxLanes::kM0));
    const VecU64 c2 = hn::Xor(hn::ShiftRight<32>(p0), hn::Set(d, r1_c3));
    const VecU64 p1 = hn::MulEven(hn::BitCast(d32, c2), hn::Set(d32, PhiloxLanes::kM1));
    return {.c0 = hn::Xor(hn::ShiftRight<32>(p1), hn::Set(d, r2_c1_k0)),
            .c1 = p1,
            .c2 = hn::Xor(p0, hn::Set(d, r2_k1_p0)),
            .c3 = hn::Set(d, r2_p0)};
  }

  static constexpr uint32_t kW0 = 0x9E3779B9, kW1 = 0xBB67AE85;
};

// emit(i, words of blocks [first + i, first + i + lanes) as an array of four vectors) for i = 0,
// lanes, ... below 16; `first` is a multiple of 16.
template <class Emit>
HWY_INLINE void PhiloxGroup(const NoiseStream& stream, uint64_t first, Emit emit) {
  const U32 d32;
  const U64 d;
  const size_t lanes = hn::Lanes(d32);
  const VecU64 steps = hn::ShiftLeft<1>(hn::Iota(d, 0));
  const PhiloxPrefix prefix(stream, first);
  for (size_t i = 0; i < kNoiseBlocks; i += lanes) {
    const VecU64 even_blocks = hn::Add(hn::Set(d, (first & 0xffffffff) + i), steps);
    PhiloxLanes even = prefix.Start(d, even_blocks);
    PhiloxLanes odd = prefix.Start(d, hn::Add(even_blocks, hn::Set(d, uint64_t{1})));
    auto k0 = static_cast<uint32_t>(stream.key), k1 = static_cast<uint32_t>(stream.key >> 32);
    for (uint32_t round = 2; round < 10; ++round) {
      even.Round(d, k0 + round * PhiloxPrefix::kW0, k1 + round * PhiloxPrefix::kW1);
      odd.Round(d, k0 + round * PhiloxPrefix::kW0, k1 + round * PhiloxPrefix::kW1);
    }
    const auto merge = [&](VecU64 a, VecU64 b) TANDEM_VECTOR_LAMBDA {
      return hn::OddEven(hn::BitCast(d32, hn::ShiftLeft<32>(b)), hn::BitCast(d32, a));
    };
    emit(i, merge(even.c0, odd.c0), merge(even.c1, odd.c1), merge(even.c2, odd.c2),
         merge(even.c3, odd.c3));
  }
}

template <NoiseKind kind>
HWY_INLINE VecF32 NoiseOf(F32 d, VecU32 w) {
  const U32 du;
  if constexpr (kind == NoiseKind::kUniform) {
    return hn::Min(UnitInterval(d, w), hn::Set(d, 1 - 0x1p-24f));
  } else if constexpr (kind == NoiseKind::kExponential) {
    return MinusLogUniform(d, w);
  } else if constexpr (kind == NoiseKind::kGumbel) {
    return MinusLogOfNormal(d, MinusLogUniform(d, w));
  } else if constexpr (kind == NoiseKind::kLogistic) {
    return hn::Sub(MinusLogUniform(d, hn::Not(w)), MinusLogUniform(d, w));
  } else {
    static_assert(kind == NoiseKind::kLaplace);
    // The lowest bit is the sign, the others an exponential.
    const VecF32 magnitude = MinusLogUniform(d, hn::Or(w, hn::Set(du, 1u)));
    return hn::Xor(magnitude, hn::BitCast(d, hn::ShiftLeft<31>(w)));
  }
}

// emit(i, noise of elements [64 group + i, 64 group + i + lanes)) over the group.
template <NoiseKind kind, class Emit>
HWY_INLINE void NoiseGroup(F32 d, const NoiseStream& stream, uint64_t group, Emit emit) {
  PhiloxGroup(stream, group * kNoiseBlocks,
              [&](size_t i, VecU32 w0, VecU32 w1, VecU32 w2, VecU32 w3) TANDEM_VECTOR_LAMBDA {
                if constexpr (kind == NoiseKind::kNormal) {
                  const auto pair = [&](size_t at, VecU32 r, VecU32 angle) TANDEM_VECTOR_LAMBDA {
                    const VecF32 radius =
                        hn::Sqrt(hn::Mul(hn::Set(d, 2.0f), MinusLogUniform(d, r)));
                    VecF32 sin, cos;
                    SinCosTurns(d, angle, &sin, &cos);
                    emit(at, hn::Mul(radius, cos));
                    emit(at + kNoiseBlocks, hn::Mul(radius, sin));
                  };
                  pair(i, w0, w1);
                  pair(i + 2 * kNoiseBlocks, w2, w3);
                } else {
                  emit(i, NoiseOf<kind>(d, w0));
                  emit(i + kNoiseBlocks, NoiseOf<kind>(d, w1));
                  emit(i + 2 * kNoiseBlocks, NoiseOf<kind>(d, w2));
                  emit(i + 3 * kNoiseBlocks, NoiseOf<kind>(d, w3));
                }
              });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::cpu
HWY_AFTER_NAMESPACE();

#endif  // TANDEM_CPU_KERNELS_PHILOX_INL_H_

// Philox4x32-10 (Salmon et al., SC'11), as engine/base/philox.h, and doubles' logarithm, sine and
// cosine in operations that IEEE 754 rounds exactly (after fdlibm, Sun Microsystems 1993): the bits
// of the CPU's kernels.
#pragma once

#include <cstdint>

#include "engine/backend/cuda/kernels/device.h"

namespace tandem::cuda {

struct PhiloxWords {
  uint32_t word[4];
};

__device__ __forceinline__ PhiloxWords Philox(uint64_t key, uint64_t stream, uint64_t position) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  uint32_t c0 = static_cast<uint32_t>(position), c1 = static_cast<uint32_t>(position >> 32);
  uint32_t c2 = static_cast<uint32_t>(stream), c3 = static_cast<uint32_t>(stream >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const uint32_t high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// In (0, 1), never an end: 24 random bits, centred.
__device__ __forceinline__ float PhiloxUniform(uint32_t word) {
  const float centre = (static_cast<float>(word >> 8) + 0.5f) * 0x1p-24f;
  return centre < 1 ? centre : 1 - 0x1p-24f;
}

// The key of a run: {seed, call}.
__device__ __forceinline__ uint64_t FoldKey(const uint64_t* key) {
  const PhiloxWords w = Philox(key[0], ~uint64_t{0}, key[1]);
  return w.word[0] | static_cast<uint64_t>(w.word[1]) << 32;
}

__device__ __forceinline__ uint64_t BitsOf(double x) {
#ifdef __CUDACC__
  return static_cast<uint64_t>(__double_as_longlong(x));
#else
  return std::bit_cast<uint64_t>(x);
#endif
}
__device__ __forceinline__ double OfBits(uint64_t bits) {
#ifdef __CUDACC__
  return __longlong_as_double(static_cast<long long>(bits));
#else
  return std::bit_cast<double>(bits);
#endif
}

// ln(1 + f) for 1 + f in [sqrt(1/2), sqrt(2)], plus e ln 2.
__device__ __forceinline__ double LogReduced(double f, double e) {
  const double s = f / (2 + f);
  const double z = s * s, w = z * z;
  const double even = w * (3.999999999940941908e-01 +
                           w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
  const double odd = z * (6.666666666666735130e-01 +
                          w * (2.857142874366239149e-01 +
                               w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
  const double half = 0.5 * f * f;
  const double low = s * (half + (even + odd)) + e * 1.90821492927058770002e-10;
  return e * 6.93147180369123816490e-01 - ((half - low) - f);
}

// ln(x) for positive, finite x.
__device__ __forceinline__ double ExactLog(double x) {
  const bool subnormal = x < 0x1p-1022;
  if (subnormal) x *= 0x1p54;
  // The exponent that leaves a mantissa in [sqrt(1/2), sqrt(2)).
  const uint64_t bits = BitsOf(x);
  const int64_t e = static_cast<int64_t>(bits - 0x3FE6A09E667F3BCDu) >> 52;
  const double m = OfBits(bits - (static_cast<uint64_t>(e) << 52));
  const double y = LogReduced(m - 1, static_cast<double>(e));
  return subnormal ? y - 54 * 0.693147180559945309 : y;
}

// ln(1 + x) for x > -1 with Kahan's correction of what rounding 1 + x lost.
__device__ __forceinline__ double ExactLog1p(double x) {
  const double y = 1 + x;
  return ExactLog(y) + (x - (y - 1)) / y;
}

// Sine and cosine of 2 pi turns / 2^64.
__device__ __forceinline__ void SinCosOfTurns(uint64_t turns, double* sin, double* cos) {
  constexpr double kRadians = 6.283185307179586477 * 0x1p-64;
  const uint64_t quadrant = (turns + (uint64_t{1} << 61)) >> 62;
  const double x = static_cast<double>(static_cast<int64_t>(turns - (quadrant << 62))) * kRadians;
  const double z = x * x;
  double s = -2.50507602534068634195e-08 + z * 1.58969099521155010221e-10;
  s = -1.98412698298579493134e-04 + z * (2.75573137070700676789e-06 + z * s);
  s = x + x * z * (-1.66666666666666324348e-01 + z * (8.33333333332248946124e-03 + z * s));
  double c = 2.08757232129817482790e-09 + z * -1.13596475577881948265e-11;
  c = 2.48015872894767294178e-05 + z * (-2.75573143513906633035e-07 + z * c);
  c = 4.16666666666666019037e-02 + z * (-1.38888888888741095749e-03 + z * c);
  c = 1 - (0.5 * z - z * z * c);
  const bool odd = (quadrant & 1) != 0;
  *sin = odd ? c : s;
  *cos = odd ? s : c;
  if ((quadrant & 2) != 0) *sin = -*sin;
  if (((quadrant + 1) & 2) != 0) *cos = -*cos;
}

}  // namespace tandem::cuda

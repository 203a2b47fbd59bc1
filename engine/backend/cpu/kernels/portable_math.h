// Functions of one double whose bits are the same on every machine: + - * / and sqrt alone, which
// IEEE 754 rounds exactly. (The library's logarithm differs between its versions and CPUs.)
//
// After fdlibm (Sun Microsystems, 1993): below 1 ulp for the logarithm, sine and cosine.
#pragma once

#include <bit>
#include <cstdint>

namespace tandem::cpu::portable {

// ln(1 + f) for 1 + f in [sqrt(1/2), sqrt(2)], plus e ln 2.
inline double LogReduced(double f, double e) {
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
inline double Log(double x) {
  if (x < 0x1p-1022) return Log(x * 0x1p54) - 54 * 0.693147180559945309;
  // The exponent that leaves a mantissa in [sqrt(1/2), sqrt(2)).
  const auto bits = std::bit_cast<uint64_t>(x);
  const int64_t e = static_cast<int64_t>(bits - 0x3FE6A09E667F3BCD) >> 52;
  const auto m = std::bit_cast<double>(bits - (static_cast<uint64_t>(e) << 52));
  return LogReduced(m - 1, static_cast<double>(e));
}

// ln(1 + x) for x > -1 with Kahan's correction of what rounding 1 + x lost.
inline double Log1p(double x) {
  const double y = 1 + x;
  return Log(y) + (x - (y - 1)) / y;
}

struct SinCos {
  double sin, cos;
};
// Of 2 pi turns / 2^64.
inline SinCos OfTurns(uint64_t turns) {
  constexpr double kRadians = 6.283185307179586477 * 0x1p-64;
  const uint64_t quadrant = (turns + (uint64_t{1} << 61)) >> 62;
  const double x = static_cast<double>(static_cast<int64_t>(turns - (quadrant << 62))) * kRadians;
  const double z = x * x;
  double sin = -2.50507602534068634195e-08 + z * 1.58969099521155010221e-10;
  sin = -1.98412698298579493134e-04 + z * (2.75573137070700676789e-06 + z * sin);
  sin = x + x * z * (-1.66666666666666324348e-01 + z * (8.33333333332248946124e-03 + z * sin));
  double cos = 2.08757232129817482790e-09 + z * -1.13596475577881948265e-11;
  cos = 2.48015872894767294178e-05 + z * (-2.75573143513906633035e-07 + z * cos);
  cos = 4.16666666666666019037e-02 + z * (-1.38888888888741095749e-03 + z * cos);
  cos = 1 - (0.5 * z - z * z * cos);
  switch (quadrant) {
    case 1:
      return {cos, -sin};
    case 2:
      return {-sin, -cos};
    case 3:
      return {-cos, sin};
    default:
      return {sin, cos};
  }
}

}  // namespace tandem::cpu::portable

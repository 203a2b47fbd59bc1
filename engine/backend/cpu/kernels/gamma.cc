#include "engine/backend/cpu/kernels/gamma.h"

#include <cmath>
#include <limits>
#include <numbers>

#include "engine/backend/cpu/kernels/portable_math.h"

namespace tandem::cpu {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kAsymptotic = 10;  // from here on the series below have all of a double's digits

// sin(pi x), of x's distance to the nearest even integer.
double SinPi(double x) {
  const double r = x - 2 * std::nearbyint(x / 2);
  return std::sin(std::numbers::pi * r);
}

// The sum of c[k] z^k.
template <int n>
double Polynomial(const double (&c)[n], double z) {
  double sum = c[n - 1];
  for (int k = n - 2; k >= 0; --k) sum = sum * z + c[k];
  return sum;
}

// (x - 1/2) ln x - x + ln(2 pi) / 2 + sum B_2k / (2k (2k - 1) x^(2k - 1))
double Stirling(double x) {
  constexpr double kSeries[] = {1.0 / 12,   -1.0 / 360,      1.0 / 1260, -1.0 / 1680,
                                1.0 / 1188, -691.0 / 360360, 1.0 / 156,  -3617.0 / 122400};
  constexpr double kHalfLogTwoPi = 0.918938533204672742;
  const double y = 1 / x;
  const double tail = kHalfLogTwoPi + y * Polynomial(kSeries, y * y);
  return (x - 0.5) * portable::Log(x) - x + tail;
}

}  // namespace

double Lgamma(double x) {
  if (std::isnan(x)) return x;
  if (std::isinf(x)) return kInfinity;
  if (x <= 0) {
    const double sin = SinPi(x);
    if (x == std::floor(x)) return kInfinity;
    return portable::Log(std::numbers::pi / std::abs(sin)) - Lgamma(1 - x);
  }
  if (x == 1 || x == 2) return 0;
  // Gamma(x) = Gamma(x + n) / (x (x + 1) ... (x + n - 1))
  double product = 1;
  for (; x < kAsymptotic; x += 1) product *= x;
  const double y = Stirling(x);
  return product == 1 ? y : y - portable::Log(product);
}

double Digamma(double x) {
  constexpr double kSeries[] = {1.0 / 12,  -1.0 / 120,     1.0 / 252, -1.0 / 240,
                                1.0 / 132, -691.0 / 32760, 1.0 / 12,  -3617.0 / 8160};
  if (x == 0) return -kInfinity;
  if (std::isnan(x) || x == kInfinity) return x;
  if (x < 0) {
    if (x == std::floor(x)) return kNaN;
    // psi(x) = psi(1 - x) - pi / tan(pi x)
    const double r = x - std::nearbyint(x);
    return Digamma(1 - x) - std::numbers::pi / std::tan(std::numbers::pi * r);
  }
  double sum = 0;
  for (; x < kAsymptotic; x += 1) sum += 1 / x;
  const double y = 1 / x, z = y * y;
  return portable::Log(x) - 0.5 * y - z * Polynomial(kSeries, z) - sum;
}

double Trigamma(double x) {
  constexpr double kSeries[] = {1.0 / 6,  -1.0 / 30,     1.0 / 42, -1.0 / 30,
                                5.0 / 66, -691.0 / 2730, 7.0 / 6,  -3617.0 / 510};
  if (std::isnan(x)) return x;
  if (x == kInfinity) return 0;
  if (x <= 0) {
    if (x == std::floor(x)) return kInfinity;
    // psi'(x) = (pi / sin(pi x))^2 - psi'(1 - x)
    const double root = std::numbers::pi / SinPi(x);
    return root * root - Trigamma(1 - x);
  }
  double sum = 0;
  for (; x < kAsymptotic; x += 1) sum += 1 / (x * x);
  const double y = 1 / x, z = y * y;
  return sum + (y + z * (0.5 + y * Polynomial(kSeries, z)));
}

double DrawLogGamma(double concentration, const NoiseStream& stream, uint64_t i) {
  if (!(concentration > 0)) return kNaN;
  if (concentration == kInfinity) return kInfinity;
  const auto words = [&](uint64_t attempt) {
    return Philox::Block(stream.key, stream.stream | attempt << 32, i);
  };
  double boost = 0;
  double shape = concentration;
  if (concentration < 1) {
    const Philox::Words w = words(0);
    const uint64_t bits = (w[0] | uint64_t{w[1]} << 32) >> 12;
    boost = portable::Log((static_cast<double>(bits) + 0.5) * 0x1p-52) / concentration;
    shape += 1;
  }
  const double d = shape - 1.0 / 3, c = 1 / std::sqrt(9 * d);
  // Each attempt is accepted with a probability above 0.95.
  constexpr int kAttempts = 1000;
  for (uint64_t attempt = 1; attempt <= kAttempts; ++attempt) {
    const Philox::Words w = words(attempt);
    // 52 bits for the radius, 44 for the angle, 32 for the decision.
    const uint64_t radius_bits = w[0] | uint64_t{w[2] & 0xfffff} << 32;
    const uint64_t angle = uint64_t{w[1]} << 32 | (w[2] & 0xfff00000);
    const double u = (static_cast<double>(radius_bits) + 0.5) * 0x1p-52;
    const double x = std::sqrt(-2 * portable::Log(u)) * portable::OfTurns(angle).cos;
    const double root = c * x;
    if (!(root > -1)) continue;
    const double decision = (static_cast<double>(w[3]) + 0.5) * 0x1p-32, x2 = x * x;
    const double log_v = 3 * portable::Log1p(root);
    if (decision < 1 - 0.0331 * (x2 * x2)) return portable::Log(d) + log_v + boost;
    const double cube = root * (3 + root * (3 + root));  // v - 1
    if (portable::Log(decision) < 0.5 * x2 + d * (log_v - cube)) {
      return portable::Log(d) + log_v + boost;
    }
  }
  return portable::Log(d) + boost;  // near the mode; one in 1e1000
}

namespace {

// The lower incomplete gamma function's series with its derivative, for z up to about the
// concentration a: with S = sum c_n, c_n = z^n / ((a + 1) ... (a + n)),
//   -dF/da / (z f) = -(S (ln z - psi(a + 1)) + dS/da) / a.
double GradientBySeries(double a, double log_z, double z) {
  double term = 1, sum = 1, harmonic = 0, slope = 0;
  for (int n = 1; n < 1000; ++n) {
    const double next = 1 / (a + n);
    term *= z * next;
    harmonic += next;
    sum += term;
    slope += term * harmonic;
    if (term * (1 + harmonic) < 1e-17 * sum) break;
  }
  return (slope - sum * (log_z - Digamma(a + 1))) / a;
}

// Integral of f over [0, end]: Gauss and Legendre's 8 points on each of 6 panels.
template <class F>
double Integrate(double end, F f) {
  constexpr double kNodes[] = {0.1834346424956498, 0.5255324099163290, 0.7966664774136267,
                               0.9602898564975363};
  constexpr double kWeights[] = {0.3626837833783620, 0.3137066458778873, 0.2223810344533745,
                                 0.1012285362903763};
  constexpr int kPanels = 6;
  const double half = end / (2 * kPanels);
  double sum = 0;
  for (int panel = 0; panel < kPanels; ++panel) {
    const double middle = (2 * panel + 1) * half;
    for (int k = 0; k < 4; ++k) {
      sum += kWeights[k] * (f(middle - half * kNodes[k]) + f(middle + half * kNodes[k]));
    }
  }
  return sum * half;
}

}  // namespace

// With t = z e^v in the integrals that define F and 1 - F, and h(v) = a v - z (e^v - 1),
//   -dF/da / (z f) = integral over v > 0 of (ln z - psi(a) + v) e^h(v)
//                  = integral over v < 0 of (psi(a) - ln z - v) e^h(v):
// the side of the tail that z lies in has no cancellation. h is concave and below
// -|z - a| |v| - z v^2 / 2 for v > 0, which says where e^h has faded.
double LogGammaGradient(double a, double log_z) {
  if (!(a > 0) || std::isnan(log_z)) return kNaN;
  const double z = std::exp(log_z);
  // (1 + O(1 / sqrt(a))) / a; z itself is no longer known to a standard deviation.
  if (a > 1e12 || std::isinf(z)) return 1 / a;
  if (z <= 1 || (z <= a && a <= 30)) return GradientBySeries(a, log_z, z);
  const double offset = log_z - Digamma(a);
  if (z >= a) {
    const double end = 74 / (z - a + std::sqrt((z - a) * (z - a) + 74 * z));
    return Integrate(end,
                     [&](double v) { return (offset + v) * std::exp(a * v - z * std::expm1(v)); });
  }
  const double end = 148 / (a - z + std::sqrt((a - z) * (a - z) + 148 * z));
  return Integrate(end,
                   [&](double v) { return (v - offset) * std::exp(-a * v - z * std::expm1(-v)); });
}

}  // namespace tandem::cpu

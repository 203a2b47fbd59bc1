// The gamma distribution in double, for tests: its distribution function by series and continued
// fraction (Press et al., Numerical Recipes, 6.2), in log space.
#pragma once

#include <cmath>

namespace tandem::testing {

// ln of the smaller of P(a, z) and 1 - P(a, z), z = e^log_z, and which one it is.
struct GammaTail {
  double log_probability;
  bool upper;
};
inline GammaTail GammaTailOf(double a, double log_z) {
  const double z = std::exp(log_z);
  if (z < a + 1) {
    double term = 1 / a, sum = term;
    for (int n = 1; n < 100000 && term > 1e-17 * sum; ++n) {
      term *= z / (a + n);
      sum += term;
    }
    return {a * log_z - z + std::log(sum) - std::lgamma(a), false};
  }
  constexpr double kTiny = 1e-300;
  double b = z + 1 - a, c = 1 / kTiny, d = 1 / b, h = d;
  for (int i = 1; i < 100000; ++i) {
    const double an = -i * (i - a);
    b += 2;
    d = an * d + b;
    d = 1 / (std::abs(d) < kTiny ? kTiny : d);
    c = b + an / c;
    c = std::abs(c) < kTiny ? kTiny : c;
    const double factor = d * c;
    h *= factor;
    if (std::abs(factor - 1) < 1e-16) break;
  }
  return {a * log_z - z + std::log(h) - std::lgamma(a), true};
}

inline double GammaCdf(double a, double log_z) {
  const auto [log_probability, upper] = GammaTailOf(a, log_z);
  return upper ? -std::expm1(log_probability) : std::exp(log_probability);
}

// d log z / da at a fixed quantile, by differences of the tail that z lies in.
inline double LogGammaSlope(double a, double log_z) {
  // Fourth order; some thousandths of a standard deviation, as rounding of ln P asks for.
  const double h = 1e-3 * a / (1 + 0.2 * std::sqrt(a));
  const bool upper = GammaTailOf(a, log_z).upper;
  const auto cdf = [&](double at) {
    const GammaTail tail = GammaTailOf(at, log_z);
    const double p = std::exp(tail.log_probability);
    if (tail.upper == upper) return p;
    return 1 - p;
  };
  const double slope =
      (8 * (cdf(a + h) - cdf(a - h)) - (cdf(a + 2 * h) - cdf(a - 2 * h))) / (12 * h);
  const double log_density = a * log_z - std::exp(log_z) - std::lgamma(a);  // of log z
  return (upper ? slope : -slope) / std::exp(log_density);
}

}  // namespace tandem::testing

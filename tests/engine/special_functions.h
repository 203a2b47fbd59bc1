// Distribution functions in double, for tests: incomplete gamma and beta by series and continued
// fraction (Press et al., Numerical Recipes, 6.2 and 6.4), and Kolmogorov-Smirnov's and Pearson's
// statistics.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <vector>

namespace tandem::testing {

inline double NormalCdf(double z) { return 0.5 * std::erfc(-z / std::numbers::sqrt2); }

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

// P(a, e^log_z).
inline double LogGammaCdf(double a, double log_z) {
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

// P(a, x) = integral of t^(a-1) e^-t over [0, x] / Gamma(a).
inline double GammaCdf(double a, double x) { return x <= 0 ? 0 : LogGammaCdf(a, std::log(x)); }

// I_x(a, b)
inline double BetaCdf(double a, double b, double x) {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  if (x > (a + 1) / (a + b + 2)) return 1 - BetaCdf(b, a, 1 - x);
  double c = 1, d = 1 / (1 - (a + b) * x / (a + 1)), h = d;
  for (int m = 1; m < 100000; ++m) {
    const double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    d = 1 / (1 + even * d);
    c = 1 + even / c;
    h *= d * c;
    const double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    d = 1 / (1 + odd * d);
    c = 1 + odd / c;
    h *= d * c;
    if (std::abs(d * c - 1) < 1e-15) break;
  }
  const double log_beta = std::lgamma(a) + std::lgamma(b) - std::lgamma(a + b);
  return std::exp(a * std::log(x) + b * std::log1p(-x) - log_beta) / a * h;
}

inline double StudentTCdf(double df, double z) {
  const double tail = 0.5 * BetaCdf(0.5 * df, 0.5, df / (df + z * z));
  return z > 0 ? 1 - tail : tail;
}

// sqrt(n) sup |F_n - F|; above 1.95 has probability 0.001.
inline double KolmogorovSmirnov(std::vector<double> draws,
                                const std::function<double(double)>& cdf) {
  std::sort(draws.begin(), draws.end());
  const double n = static_cast<double>(draws.size());
  double most = 0;
  for (size_t i = 0; i < draws.size(); ++i) {
    const double f = cdf(draws[i]);
    const double at = static_cast<double>(i);
    most = std::max({most, (at + 1) / n - f, f - at / n});
  }
  return std::sqrt(n) * most;
}

// Pearson's statistic in standard deviations above its mean, by Wilson and Hilferty (1931): above
// 3.1 has probability 0.001.
inline double ChiSquareScore(const std::vector<double>& counts,
                             const std::vector<double>& probabilities) {
  double total = 0, statistic = 0;
  for (double c : counts) total += c;
  for (size_t i = 0; i < counts.size(); ++i) {
    const double expected = total * probabilities[i];
    statistic += (counts[i] - expected) * (counts[i] - expected) / expected;
  }
  const double df = static_cast<double>(counts.size()) - 1;
  const double spread = 2 / (9 * df);
  return (std::cbrt(statistic / df) - (1 - spread)) / std::sqrt(spread);
}

}  // namespace tandem::testing

// Distribution functions in double, for tests: incomplete gamma and beta by series and continued
// fraction (Abramowitz and Stegun 6.5.29, 6.5.31, 26.5.8), and Kolmogorov-Smirnov's and Pearson's
// statistics.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <vector>

namespace tandem::testing {

inline double NormalCdf(double z) { return 0.5 * std::erfc(-z / std::numbers::sqrt2); }

// P(a, x) = integral of t^(a-1) e^-t over [0, x] / Gamma(a).
inline double GammaCdf(double a, double x) {
  if (x <= 0) return 0;
  const double front = std::exp(a * std::log(x) - x - std::lgamma(a));
  if (x < a + 1) {
    double term = 1 / a, sum = term;
    for (int n = 1; n < 100000 && term > sum * 1e-17; ++n) {
      term *= x / (a + n);
      sum += term;
    }
    return front * sum;
  }
  double b = x + 1 - a, c = 1e300, d = 1 / b, h = d;  // Lentz
  for (int n = 1; n < 100000; ++n) {
    const double an = -n * (n - a);
    b += 2;
    d = 1 / (an * d + b);
    c = b + an / c;
    h *= d * c;
    if (std::abs(d * c - 1) < 1e-16) break;
  }
  return 1 - front * h;
}

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

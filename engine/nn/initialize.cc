#include "engine/nn/initialize.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <numbers>
#include <tuple>

#include "engine/base/philox.h"

namespace tandem {
namespace {

// sum of c[i] z^i
template <size_t n>
double Polynomial(const std::array<double, n>& c, double z) {
  double sum = c[n - 1];
  for (size_t i = n - 1; i-- > 0;) sum = sum * z + c[i];
  return sum;
}

// ln(u) for a normal u > 0: u = m 2^e with m near 1, and ln m = 2 atanh((m - 1) / (m + 1)) by its
// series.
double Log(double u) {
  static constexpr auto kSeries = [] {
    std::array<double, 12> c{};
    for (size_t i = 0; i < c.size(); ++i) c[i] = 1.0 / static_cast<double>(2 * i + 1);
    return c;
  }();
  const uint64_t bits = std::bit_cast<uint64_t>(u);
  int e = static_cast<int>(bits >> 52) - 1022;
  double m = std::bit_cast<double>((bits & ((uint64_t{1} << 52) - 1)) | uint64_t{1022} << 52);
  if (m < 0.70710678118654752) {
    m *= 2;
    --e;
  }
  const double s = (m - 1) / (m + 1);  // |s| < 0.172
  return 2 * s * Polynomial(kSeries, s * s) + e * std::numbers::ln2;
}

// Taylor's coefficients in x^2 of cos x (`first` = 0) or sin x / x (`first` = 1).
constexpr std::array<double, 10> Taylor(int first) {
  std::array<double, 10> c{};
  double factorial = 1;
  for (int i = 0; i < 10; ++i) {
    if (i > 0) factorial *= -(2.0 * i + first) * (2.0 * i + first - 1);
    c[i] = 1 / factorial;
  }
  return c;
}

// Cosine and sine of `turn` full turns, turn in [0, 1), from the nearest quarter.
std::pair<double, double> CosSin(double turn) {
  static constexpr std::array<double, 10> kCosine = Taylor(0), kSine = Taylor(1);
  const int quarter = static_cast<int>(std::floor(4 * turn + 0.5));
  const double x = (turn - 0.25 * quarter) * (2 * std::numbers::pi);
  const double cosine = Polynomial(kCosine, x * x);
  const double sine = x * Polynomial(kSine, x * x);
  switch (quarter & 3) {
    case 0:
      return {cosine, sine};
    case 1:
      return {-sine, cosine};
    case 2:
      return {-cosine, -sine};
    default:
      return {sine, -cosine};
  }
}

void FillNormal(std::span<float> values, uint64_t seed, uint64_t stream, double std) {
  const int64_t size = static_cast<int64_t>(values.size());
  for (int64_t begin = 0; begin < size; begin += 4) {
    const Philox::Words words = Philox::Block(seed, stream, static_cast<uint64_t>(begin / 4));
    double normal[4];
    for (int pair = 0; pair < 4; pair += 2) {
      std::tie(normal[pair], normal[pair + 1]) =
          BoxMuller(Philox::Uniform(words[pair]), Philox::Uniform(words[pair + 1]));
    }
    for (int64_t i = begin; i < std::min(begin + 4, size); ++i) {
      values[i] = static_cast<float>(std * normal[i - begin]);
    }
  }
}

}  // namespace

std::pair<double, double> BoxMuller(double u1, double u2) {
  const double radius = std::sqrt(-2 * Log(u1));
  const auto [cosine, sine] = CosSin(u2);
  return {radius * cosine, radius * sine};
}

ParameterStore InitializeParameters(const DecoderSource& source, uint64_t seed) {
  const std::vector<ParameterInfo>& infos = source.parameters();
  ParameterStore store(infos);
  for (int i = 0; i < static_cast<int>(infos.size()); ++i) {
    const std::span<float> values = store.values(i);
    if (infos[i].role == ParameterRole::kNorm) {
      std::fill(values.begin(), values.end(), 1.0f);
    } else if (infos[i].role == ParameterRole::kBias) {
      std::fill(values.begin(), values.end(), 0.0f);
    } else {
      FillNormal(values, seed, static_cast<uint64_t>(i), source.initial_std(i));
    }
  }
  return store;
}

}  // namespace tandem

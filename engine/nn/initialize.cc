#include "engine/nn/initialize.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <tuple>

#include "engine/base/philox.h"

namespace tandem {
namespace {

// ln(u), u > 0: u = m 2^e with m near 1, and ln m = 2 atanh((m - 1) / (m + 1)) by its series.
double Log(double u) {
  int e = 0;
  double m = std::frexp(u, &e);  // exact
  if (m < 0.70710678118654752) {
    m *= 2;
    --e;
  }
  const double s = (m - 1) / (m + 1);  // |s| < 0.172
  const double z = s * s;
  double sum = 0;
  for (int k = 23; k >= 1; k -= 2) sum = sum * z + 1.0 / k;
  return 2 * s * sum + e * std::numbers::ln2;
}

// Cosine and sine of `turn` full turns, turn in [0, 1): Taylor's series within an eighth of a turn
// of the nearest quarter.
std::pair<double, double> CosSin(double turn) {
  const int quarter = static_cast<int>(4 * turn + 0.5);
  const double x = (turn - 0.25 * quarter) * (2 * std::numbers::pi);
  const double z = x * x;
  double cosine = 1, sine = 1;
  for (int k = 18; k >= 2; k -= 2) cosine = 1 - cosine * z / (k * (k - 1));
  for (int k = 19; k >= 3; k -= 2) sine = 1 - sine * z / (k * (k - 1));
  sine *= x;
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

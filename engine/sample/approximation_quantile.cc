// Tierney, "A space-efficient recursive procedure for estimating a quantile of an unknown
// distribution" (1983): Robbins-Monro on P(x <= q) - p with steps 1 / (n density), the density at q
// estimated alongside. It begins from a sample, of which it is exact until then.
#include <algorithm>
#include <cmath>

#include "engine/base/error.h"
#include "engine/sample/approximation.h"

namespace tandem {
namespace {

// The first sample is large enough to hold some ten observations beyond each quantile, within
// reason: before that, one observation in the tail would throw the estimate far.
constexpr double kBeyond = 10;
constexpr int64_t kMinFirst = 32, kMaxFirst = 4096;

double TailOf(double probability) { return std::min(probability, 1 - probability); }

int64_t FirstSize(const QuantileOptions& options) {
  double size = kMinFirst;
  for (double p : options.probabilities) size = std::max(size, std::ceil(kBeyond / TailOf(p)));
  return static_cast<int64_t>(std::min<double>(size, kMaxFirst));
}

// Of a sorted sample, interpolated linearly (NumPy's default).
double SampleQuantile(const std::vector<double>& sorted, double probability) {
  const double place = probability * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return std::lerp(sorted[below], sorted[above], place - static_cast<double>(below));
}

}  // namespace

QuantileState::QuantileState(const QuantileOptions&) {}

absl::Status QuantileState::CheckSize(const QuantileOptions& options, size_t values) const {
  if (values == 0) return InvalidArgument("the observation has no values");
  // One observation is applied at once: it may not keep its thread for long.
  constexpr size_t kMaxUpdates = size_t{1} << 22;
  const size_t most = kMaxUpdates / options.probabilities.size();
  if (values <= most) return absl::OkStatus();
  return InvalidArgument("the observation has ", values, " values; with ",
                         options.probabilities.size(), " quantiles send at most ", most,
                         " at a time");
}

void QuantileState::Apply(const QuantileOptions& options, std::span<const double> values) {
  const int64_t first_size = FirstSize(options);
  const size_t quantiles = options.probabilities.size();
  for (double x : values) {
    ++count;
    if (count <= first_size) {
      first.insert(std::upper_bound(first.begin(), first.end(), x), x);
      if (count < first_size) continue;
      for (double p : options.probabilities) {
        // The spread of the middle half of the tail beyond p, and as much on the other side.
        const double half = TailOf(p) / 2;
        const double q = SampleQuantile(first, p);
        double spread = SampleQuantile(first, p + half) - SampleQuantile(first, p - half);
        if (!(spread > 0)) spread = (first.back() - first.front()) * 2 * half;
        if (!(spread > 0)) spread = std::max(std::abs(q), 1.0) * 2 * half;
        quantile.push_back(q);
        density.push_back(2 * half / spread);
        window.push_back(spread / 2);
      }
      first.clear();
      continue;
    }
    const auto n = static_cast<double>(count);
    const double growth = n / static_cast<double>(first_size);
    const double narrowing = std::pow(growth, -0.2), bound = 4 * std::pow(growth, 0.25);
    for (size_t i = 0; i < quantiles; ++i) {
      const double p = options.probabilities[i];
      const double half_width = window[i] * narrowing;
      const double seen = std::abs(x - quantile[i]) <= half_width ? 1 / (2 * half_width) : 0;
      // 1 / density, but no more than a slowly growing multiple of what the first sample had.
      const double scale = std::min(1 / density[i], bound * 2 * window[i] / TailOf(p));
      quantile[i] += scale / n * (p - (x <= quantile[i] ? 1 : 0));
      density[i] += (seen - density[i]) / n;
    }
    for (size_t i = 1; i < quantiles; ++i) quantile[i] = std::max(quantile[i], quantile[i - 1]);
  }
}

void QuantileState::Answer(const QuantileOptions& options, ApproximationAnswer* answer) const {
  answer->observations = count;
  answer->step_size = 1 / static_cast<double>(count + 1);
  if (count == 0) return;
  if (quantile.empty()) {
    for (double p : options.probabilities) answer->estimate.push_back(SampleQuantile(first, p));
    return;
  }
  answer->estimate = quantile;
  for (size_t i = 0; i < quantile.size(); ++i) {
    const double p = options.probabilities[i];
    answer->standard_error.push_back(std::sqrt(p * (1 - p) / static_cast<double>(count)) /
                                     density[i]);
  }
}

bool QuantileState::Consistent(const QuantileOptions& options) const {
  const bool begun = count >= FirstSize(options);
  const size_t tracked = begun ? options.probabilities.size() : 0;
  const auto positive = [](double v) { return v > 0; };
  return count >= 0 && first.size() == (begun ? 0 : static_cast<size_t>(count)) &&
         std::is_sorted(first.begin(), first.end()) && quantile.size() == tracked &&
         density.size() == tracked && window.size() == tracked &&
         std::is_sorted(quantile.begin(), quantile.end()) &&
         std::all_of(density.begin(), density.end(), positive) &&
         std::all_of(window.begin(), window.end(), positive);
}

}  // namespace tandem

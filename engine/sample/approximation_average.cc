#include <algorithm>
#include <cmath>

#include "engine/base/error.h"
#include "engine/sample/approximation.h"

namespace tandem {
namespace {

// The step of observation k = 1, 2, ...: m += step (x - m).
double StepAt(const AverageOptions& options, int64_t k) {
  switch (options.kind) {
    case AverageKind::kMean:
      return 1 / static_cast<double>(k);
    case AverageKind::kConstantStep:
      return k == 1 ? 1 : options.step;
    case AverageKind::kExponential:
      break;
  }
  if (!options.bias_correction || options.step == 1) return options.step;
  // The corrected average is one with steps a / (1 - (1 - a)^k): 1 at first, which rounding misses.
  if (k == 1) return 1;
  return std::min(1.0,
                  options.step / -std::expm1(static_cast<double>(k) * std::log1p(-options.step)));
}

// Whether the weights of the observations sum to one, so that a variance can be told.
bool Weighted(const AverageOptions& options) {
  return options.kind != AverageKind::kExponential || options.bias_correction;
}

}  // namespace

AverageState::AverageState(const AverageOptions& options)
    : mean(options.dimension, Weighted(options) ? 0 : options.initial),
      spread(options.dimension, 0) {}

absl::Status AverageState::CheckSize(const AverageOptions& options, size_t values) const {
  const auto count_given = static_cast<int64_t>(values);
  if (count_given > 0 && count_given % options.dimension == 0) return absl::OkStatus();
  return InvalidArgument("the observation has ", values,
                         " values, expected a positive multiple of ", "the dimension ",
                         options.dimension);
}

void AverageState::Apply(const AverageOptions& options, std::span<const double> values) {
  const size_t dimension = mean.size();
  for (size_t at = 0; at < values.size(); at += dimension) {
    const double step = StepAt(options, ++count);
    for (size_t i = 0; i < dimension; ++i) {
      if (step == 1) {  // all weight on this one, without the rounding of 0 + (x - 0)
        mean[i] = values[at + i];
        spread[i] = 0;
        continue;
      }
      const double deviation = values[at + i] - mean[i];
      mean[i] += step * deviation;
      spread[i] = (1 - step) * (spread[i] + step * deviation * deviation);
    }
    squared_weights = (1 - step) * (1 - step) * squared_weights + step * step;
  }
}

void AverageState::Answer(const AverageOptions& options, ApproximationAnswer* answer) const {
  answer->observations = count;
  answer->step_size = StepAt(options, count + 1);
  if (count == 0) return;
  answer->estimate = mean;
  // With one observation, or all weight on one, nothing is known of the variance.
  if (!Weighted(options) || count < 2 || squared_weights >= 1) return;
  for (double s : spread) {
    answer->variance.push_back(s / (1 - squared_weights));
    answer->standard_error.push_back(std::sqrt(answer->variance.back() * squared_weights));
  }
}

bool AverageState::Consistent(const AverageOptions& options) const {
  const auto dimension = static_cast<size_t>(options.dimension);
  return mean.size() == dimension && spread.size() == dimension && squared_weights >= 0 &&
         squared_weights <= 1 && count >= 0 &&
         std::all_of(spread.begin(), spread.end(), [](double s) { return s >= 0; });
}

}  // namespace tandem

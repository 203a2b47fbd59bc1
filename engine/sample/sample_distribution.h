// Draws of a distribution with their log-densities, its entropy, and parameter gradients.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/exec/model.h"
#include "engine/sample/distribution.h"

namespace tandem {

// What one answer may hold, in elements: of draws, and of the noise behind them (a categorical draw
// needs K numbers).
inline constexpr int64_t kMaxDrawElements = int64_t{1} << 24;
inline constexpr int64_t kMaxNoiseElements = int64_t{1} << 26;

struct DrawOptions {
  DistributionOptions distribution;
  std::vector<std::pair<std::string, Tensor>> parameters;
  int64_t draws = 1;  // at least 1
  uint64_t seed = 0;
  bool log_density = false;
  bool entropy = false;
  // (draws, B..., event...), of the parameters' dtype: asks for the gradient of
  // sum(draws x draw_cotangents) through the draws.
  std::optional<Tensor> draw_cotangents;
  // (draws, B...): asks for, added, the gradient of sum(log_density x log_density_cotangents) with
  // the draws held fixed.
  std::optional<Tensor> log_density_cotangents;
  // (any number of leading dimensions..., B..., event...): their log-density; nothing is drawn.
  std::optional<Tensor> values;
};

struct DrawResult {
  std::optional<Tensor> draws, log_density, entropy;
  std::vector<Tensor> gradients;  // one a parameter, if cotangents were given
};

// Log-densities and entropies are computed in double and rounded to the parameters' dtype. `plans`
// belongs to the calling thread. Errors: bad parameters, cotangents or values, named.
absl::StatusOr<DrawResult> SampleDistribution(const DrawOptions& options, PlanCache& plans);

}  // namespace tandem

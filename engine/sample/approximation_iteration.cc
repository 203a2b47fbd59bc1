#include <algorithm>
#include <cmath>

#include "engine/base/error.h"
#include "engine/base/philox.h"
#include "engine/sample/approximation.h"

namespace tandem {
namespace {

// Batch means tell a standard error from so many batches on.
constexpr int64_t kMinBatches = 8;

double Projected(const IterationOptions& options, size_t i, double value) {
  if (options.lower.empty()) return value;
  return std::clamp(value, options.lower[i], options.upper[i]);
}

// The random signs of SPSA's step k: one bit a coordinate.
double SignOf(const IterationOptions& options, int64_t k, size_t i) {
  const Philox::Words words = Philox::Block(options.seed, static_cast<uint64_t>(k), i / 128);
  return (words[i / 32 % 4] >> (i % 32)) % 2 == 0 ? -1 : 1;
}

// Batch m = 1, 2, ... ends with averaged iterate (1.5 m)^e. Iterates of steps k^-g forget their
// past in about k^g steps; batches that end at m^(1/(1-g)) grow as fast, and the factor makes them
// longer by a few times; squares outgrow the fixed memory of constant steps.
double BatchEnd(const IterationOptions& options, int64_t m) {
  if (options.step.exponent >= 1) return INFINITY;
  const double exponent = std::max(2.0, 1 / (1 - options.step.exponent));
  return std::pow(1.5 * static_cast<double>(m), exponent);
}

bool Differences(const IterationOptions& options) {
  return options.kind == IterationKind::kKieferWolfowitz || options.kind == IterationKind::kSpsa;
}

// The two points of coordinate i that a difference is taken between, at step k.
struct Ends {
  double plus, minus;
};
Ends EndsAt(const IterationOptions& options, const std::vector<double>& x, size_t i, double c) {
  return {Projected(options, i, x[i] + c), Projected(options, i, x[i] - c)};
}
// A difference across points that coincide, in a box without width, says nothing.
double Quotient(double difference, const Ends& ends) {
  return ends.plus == ends.minus ? 0 : difference / (ends.plus - ends.minus);
}

std::vector<double> GradientOf(const IterationOptions& options, const IterationState& state,
                               std::span<const double> values) {
  if (!Differences(options)) return {values.begin(), values.end()};
  const int64_t k = state.steps + 1;
  const double c = options.difference.At(k);
  std::vector<double> gradient(state.x.size());
  for (size_t i = 0; i < gradient.size(); ++i) {
    if (options.kind == IterationKind::kKieferWolfowitz) {
      gradient[i] = Quotient(values[2 * i] - values[2 * i + 1], EndsAt(options, state.x, i, c));
    } else {
      const double sign = SignOf(options, k, i);
      gradient[i] = Quotient(values[0] - values[1], EndsAt(options, state.x, i, sign * c));
    }
  }
  return gradient;
}

// Turns the gradient into the direction of the rule.
void ApplyRule(const IterationOptions& options, IterationState* state,
               std::vector<double>* gradient) {
  const auto k = static_cast<double>(state->steps + 1);
  for (size_t i = 0; i < gradient->size(); ++i) {
    double& g = (*gradient)[i];
    if (options.rule == DescentRule::kMomentum) {
      g = state->first_moment[i] = options.momentum * state->first_moment[i] + g;
    } else if (options.rule == DescentRule::kAdam) {
      double& m = state->first_moment[i];
      double& v = state->second_moment[i];
      m = options.beta1 * m + (1 - options.beta1) * g;
      v = options.beta2 * v + (1 - options.beta2) * g * g;
      g = m / (1 - std::pow(options.beta1, k)) /
          (std::sqrt(v / (1 - std::pow(options.beta2, k))) + options.epsilon);
    }
  }
}

void AddToAverage(const IterationOptions& options, IterationState* state) {
  const auto n = static_cast<double>(++state->averaged);
  const auto in_batch = static_cast<double>(++state->batch_size);
  for (size_t i = 0; i < state->x.size(); ++i) {
    state->average[i] += (state->x[i] - state->average[i]) / n;
    state->batch_mean[i] += (state->x[i] - state->batch_mean[i]) / in_batch;
  }
  if (n < BatchEnd(options, state->batches + 1)) return;
  // The batch is complete: West's weighted update with its size as weight.
  for (size_t i = 0; i < state->x.size(); ++i) {
    const double deviation = state->batch_mean[i] - state->batches_mean[i];
    state->batches_mean[i] += in_batch / n * deviation;
    state->batches_spread[i] += in_batch * (1 - in_batch / n) * deviation * deviation;
    state->batch_mean[i] = 0;
  }
  ++state->batches;
  state->batch_size = 0;
}

}  // namespace

double StepLaw::At(int64_t k) const {
  if (exponent == 0) return scale;
  return scale / std::pow(static_cast<double>(k) + offset, exponent);
}

IterationState::IterationState(const IterationOptions& options) : x(options.start) {
  for (size_t i = 0; i < x.size(); ++i) x[i] = Projected(options, i, x[i]);
  if (options.rule != DescentRule::kPlain) first_moment.assign(x.size(), 0);
  if (options.rule == DescentRule::kAdam) second_moment.assign(x.size(), 0);
  if (!options.average) return;
  for (auto* v : {&average, &batch_mean, &batches_mean, &batches_spread}) v->assign(x.size(), 0);
}

absl::Status IterationState::CheckSize(const IterationOptions& options, size_t values) const {
  size_t expected = x.size();
  if (options.kind == IterationKind::kKieferWolfowitz) expected = 2 * x.size();
  if (options.kind == IterationKind::kSpsa) expected = 2;
  if (values == expected) return absl::OkStatus();
  return InvalidArgument("the observation has ", values, " values, expected ", expected,
                         Differences(options) ? ", one a query" : ", one a coordinate");
}

void IterationState::Apply(const IterationOptions& options, std::span<const double> values) {
  std::vector<double> direction = GradientOf(options, *this, values);
  ApplyRule(options, this, &direction);
  const double step = options.step.At(steps + 1);
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = Projected(options, i, x[i] - step * direction[i]);
  }
  ++steps;
  if (options.average && steps > options.average_after) AddToAverage(options, this);
}

void IterationState::Answer(const IterationOptions& options, ApproximationAnswer* answer) const {
  const int64_t k = steps + 1;
  answer->observations = steps;
  answer->step_size = options.step.At(k);
  answer->estimate = x;
  if (Differences(options)) {
    const double c = answer->difference = options.difference.At(k);
    const bool spsa = options.kind == IterationKind::kSpsa;
    answer->queries.assign(spsa ? 2 : 2 * x.size(), x);
    for (size_t i = 0; i < x.size(); ++i) {
      const Ends ends = EndsAt(options, x, i, spsa ? SignOf(options, k, i) * c : c);
      answer->queries[spsa ? 0 : 2 * i][i] = ends.plus;
      answer->queries[spsa ? 1 : 2 * i + 1][i] = ends.minus;
    }
  } else {
    answer->queries = {x};
  }
  if (averaged == 0) return;
  answer->average = average;
  if (batches < kMinBatches) return;
  for (double spread : batches_spread) {
    answer->standard_error.push_back(
        std::sqrt(spread / static_cast<double>(batches - 1) / static_cast<double>(averaged)));
  }
}

bool IterationState::Consistent(const IterationOptions& options) const {
  const size_t dimension = x.size(), averages = options.average ? dimension : 0;
  const auto negative = [](double v) { return v < 0; };
  for (size_t i = 0; i < dimension; ++i) {
    if (x[i] != Projected(options, i, x[i])) return false;
  }
  return first_moment.size() == (options.rule != DescentRule::kPlain ? dimension : 0) &&
         second_moment.size() == (options.rule == DescentRule::kAdam ? dimension : 0) &&
         average.size() == averages && batch_mean.size() == averages &&
         batches_mean.size() == averages && batches_spread.size() == averages &&
         averaged == (options.average ? std::max<int64_t>(0, steps - options.average_after) : 0) &&
         batches >= 0 && batches <= averaged && batch_size >= 0 &&
         batch_size <= averaged - batches &&
         std::none_of(batches_spread.begin(), batches_spread.end(), negative) &&
         std::none_of(second_moment.begin(), second_moment.end(), negative);
}

}  // namespace tandem

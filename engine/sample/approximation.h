// Stochastic approximation, online: an observation in, the next point and estimate out.
//
// Pure state machines in double precision: no clock, no randomness but Philox(seed), so the same
// observations give the same bits, also when a token from Serialize() is restored on the way. Not
// thread-safe.
//
// Methods, each with what it is told and what it follows:
// - averages: observations (n, D). Welford (1962), West (1979).
// - quantiles: scalars. Robbins-Monro with density-scaled steps, Tierney (1983).
// - iterations of a point x (D), projected onto a box, x <- P(x - a_k g_k):
//   Robbins-Monro root finding (1951): g = h(x), one noisy value a coordinate;
//   Kiefer-Wolfowitz (1952): central differences, 2 D noisy values f(x + c_k e_1), f(x - c_k e_1),
//   f(x + c_k e_2), ...;
//   SPSA (Spall 1992): 2 noisy values f(x + c_k d), f(x - c_k d), d of random signs;
//   gradient descent: g = a stochastic gradient at x; plain, momentum, Adam.
//   Averages of the iterates: Polyak and Juditsky (1992); their standard error by batch means over
//   growing batches, Chen, Lee, Tong and Zhang (2020).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"

namespace tandem {

// Bounds on what one approximation may hold and one observation may bring.
inline constexpr int64_t kMaxApproximationDimension = int64_t{1} << 18;
inline constexpr int64_t kMaxKieferWolfowitzDimension = 512;  // 2 D points of D coordinates
inline constexpr int64_t kMaxQuantiles = 256;
inline constexpr int64_t kMaxObservationValues = int64_t{1} << 20;

// scale / (k + offset)^exponent at step k = 1, 2, ...; exponent 0: constant.
struct StepLaw {
  double scale = 1;     // > 0
  double offset = 0;    // >= 0
  double exponent = 1;  // [0, 1]: beyond 1 the steps sum to a finite reach
  double At(int64_t k) const;
};

enum class AverageKind : uint8_t {
  kMean,          // steps 1/k
  kConstantStep,  // the first observation, then m += step (x - m)
  kExponential,   // sum of step (1 - step)^i x_{k-i}, divided by the weights' sum if corrected
};
struct AverageOptions {
  AverageKind kind = AverageKind::kMean;
  int64_t dimension = 1;
  double step = 0.1;            // (0, 1]; kConstantStep and kExponential
  bool bias_correction = true;  // kExponential
  double initial = 0;           // kExponential without bias correction: where it begins
};

struct QuantileOptions {
  std::vector<double> probabilities;  // strictly increasing, within (0, 1)
};

enum class IterationKind : uint8_t { kRobbinsMonro, kKieferWolfowitz, kSpsa, kGradient };
enum class DescentRule : uint8_t { kPlain, kMomentum, kAdam };  // PyTorch's formulas
struct IterationOptions {
  IterationKind kind = IterationKind::kRobbinsMonro;
  std::vector<double> start = {};  // (D)
  std::vector<double> lower = {},
                      upper = {};  // (D) or empty: the box; the points to evaluate lie in it too
  StepLaw step = {};               // a_k
  bool average = false;            // of the iterates after the first `average_after`
  int64_t average_after = 0;
  StepLaw difference = {};                 // c_k; Kiefer-Wolfowitz, SPSA
  uint64_t seed = 0;                       // SPSA
  DescentRule rule = DescentRule::kPlain;  // gradient descent
  double momentum = 0.9, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;
};

using ApproximationOptions = std::variant<AverageOptions, QuantileOptions, IterationOptions>;

struct ApproximationAnswer {
  int64_t step = 0;          // Observe calls applied: what the next one must name
  int64_t observations = 0;  // averages and quantiles: values seen; iterations: steps
  std::vector<std::vector<double>> queries;  // where to evaluate next; none: anything goes
  std::vector<double> estimate;              // (D), or one a probability; empty: nothing seen yet
  std::vector<double> average;               // (D) of the iterates, if asked for and begun
  std::vector<double> variance;              // averages: of one observation, unbiased
  // Of `average` if there is one, else of `estimate`; empty where there is none (yet).
  std::vector<double> standard_error;
  double step_size = 0;   // that the next observation will be given
  double difference = 0;  // c_k of the queries; 0: none
};

// The states behind Approximation. Each is told checked values, answers, and lists its fields once
// (Fields) for serialisation and for the check that all numbers are finite.

struct AverageState {
  explicit AverageState(const AverageOptions& options);
  AverageState() = default;
  absl::Status CheckSize(const AverageOptions& options, size_t values) const;
  void Apply(const AverageOptions& options, std::span<const double> values);
  void Answer(const AverageOptions& options, ApproximationAnswer* answer) const;
  bool Consistent(const AverageOptions& options) const;
  template <typename Archive, typename Self>
  static void Fields(Archive& archive, Self& self) {
    archive(self.count, self.squared_weights, self.mean, self.spread);
  }

  int64_t count = 0;
  double squared_weights = 0;  // sum of the squares of the observations' weights: 1/n for the mean
  std::vector<double> mean, spread;  // (D); spread: weighted mean squared deviation
};

struct QuantileState {
  explicit QuantileState(const QuantileOptions& options);
  QuantileState() = default;
  absl::Status CheckSize(const QuantileOptions& options, size_t values) const;
  void Apply(const QuantileOptions& options, std::span<const double> values);
  void Answer(const QuantileOptions& options, ApproximationAnswer* answer) const;
  bool Consistent(const QuantileOptions& options) const;
  template <typename Archive, typename Self>
  static void Fields(Archive& archive, Self& self) {
    archive(self.count, self.first, self.quantile, self.density, self.window);
  }

  int64_t count = 0;
  std::vector<double> first;  // the first observations, sorted, until there are enough to begin
  std::vector<double> quantile, density, window;  // one a probability, once begun
};

struct IterationState {
  explicit IterationState(const IterationOptions& options);
  IterationState() = default;
  absl::Status CheckSize(const IterationOptions& options, size_t values) const;
  void Apply(const IterationOptions& options, std::span<const double> values);
  void Answer(const IterationOptions& options, ApproximationAnswer* answer) const;
  bool Consistent(const IterationOptions& options) const;
  template <typename Archive, typename Self>
  static void Fields(Archive& archive, Self& self) {
    archive(self.steps, self.x, self.first_moment, self.second_moment, self.averaged, self.average,
            self.batches, self.batch_size, self.batch_mean, self.batches_mean, self.batches_spread);
  }

  int64_t steps = 0;
  std::vector<double> x;                            // (D)
  std::vector<double> first_moment, second_moment;  // (D) where the rule has them
  // The averaged iterates, and their batches: the current one, and over the completed ones the mean
  // and the sum of size x (batch mean - mean)^2.
  int64_t averaged = 0;
  std::vector<double> average;  // (D) if asked for
  int64_t batches = 0, batch_size = 0;
  std::vector<double> batch_mean, batches_mean, batches_spread;  // (D) if asked for
};

class Approximation {
 public:
  // INVALID_ARGUMENT names the option.
  static absl::StatusOr<Approximation> Start(ApproximationOptions options);
  // From Serialize(). INVALID_ARGUMENT: not a token, damaged, of another version, or of values that
  // no approximation can have.
  static absl::StatusOr<Approximation> Restore(std::string_view token);

  // Applies the observation that answers `step`. Errors leave all as it was:
  // - INVALID_ARGUMENT: a wrong number of values; a value that is not finite, by its index;
  // - FAILED_PRECONDITION: another step than the current one; but a repeat of the last observation
  //   is OK and changes nothing, or ABORTED if its values differ from those that were applied;
  // - OUT_OF_RANGE: the state would overflow.
  absl::Status Observe(int64_t step, std::span<const double> values);
  ApproximationAnswer Answer() const;

  // All of it, with a version and a checksum: at most ten numbers of 8 bytes a dimension and a few
  // more.
  std::string Serialize() const;

 private:
  using State = std::variant<AverageState, QuantileState, IterationState>;
  Approximation(ApproximationOptions options, State state)
      : options_(std::move(options)), state_(std::move(state)) {}

  ApproximationOptions options_;
  State state_;  // the alternative of the same index as the options'
  int64_t step_ = 0;
  uint64_t last_observation_ = 0;  // hash of the values
};

}  // namespace tandem

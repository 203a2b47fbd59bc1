// Probability distributions as functions over a Builder: draws, log-densities and entropies are
// ordinary graphs, so any graph can contain them and Gradient differentiates them.
//
// Parameters are batched: their shapes, without what one event takes (a vector's or matrix' last
// dimensions), broadcast to the batch shape B. A draw has the shape (sample..., B..., event...).
// Draws are reparameterised (Kingma and Welling 2014; Figurnov et al. 2018 for the gamma family;
// Jang et al. and Maddison et al. 2017 for the relaxed ones), except for the discrete families,
// through which no gradient flows. All parameters are f32 or all f64; so are draws, log-densities
// and entropies, but for the classes of kCategorical and kGumbelTopK, which are i64.
#pragma once

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/graph/builder.h"

namespace tandem {

enum class Family : uint8_t {
  kNormal,              // loc, scale
  kLogNormal,           // loc, scale: exp of that normal
  kMultivariateNormal,  // loc (..., D) and scale_diag (..., D) or scale_tril (..., D, D)
  kUniform,             // low, high: [low, high)
  kExponential,         // rate
  kLaplace,             // loc, scale
  kLogistic,            // loc, scale
  kGumbel,              // loc, scale
  kGamma,               // concentration, rate
  kBeta,                // concentration1 (alpha), concentration0 (beta)
  kDirichlet,           // concentration (..., K)
  kStudentT,            // df, loc, scale
  kBernoulli,           // logits or probs; draws are 0 and 1
  kCategorical,         // logits or probs (..., K); draws are classes
  kRelaxedBernoulli,    // logits or probs; temperature
  kGumbelSoftmax,       // logits or probs (..., K); temperature; straight_through
  kGumbelTopK,          // logits or probs (..., K); k classes without replacement, in order of draw
};
inline constexpr int kFamilies = 17;
// Draws are of finitely many values; through all others a gradient flows.
bool IsDiscrete(Family family);
// A number in a plan's key, to the bit.
std::string ExactText(double value);

struct DistributionOptions {
  Family family = Family::kNormal;
  double temperature = 1;         // > 0; relaxed families only
  bool straight_through = false;  // kGumbelSoftmax: one-hot draws with the soft draws' gradient
  int64_t k = 1;                  // kGumbelTopK: in [1, K]
};

// What values a parameter may have.
enum class Constraint : uint8_t {
  kReal,
  kPositive,
  kProbability,    // [0, 1]
  kSimplex,        // non-negative, not all zero along the last dimension; normalised by use
  kLowerCholesky,  // a positive diagonal, zeros above it
};

class Distribution {
 public:
  // `parameters`: names and types, in any order. Errors name what is missing, unknown, of another
  // type, or does not broadcast.
  static absl::StatusOr<Distribution> Create(
      const DistributionOptions& options,
      std::span<const std::pair<std::string, TensorType>> parameters);

  const DistributionOptions& options() const { return options_; }
  std::string_view family_name() const;  // "normal"
  // Positions follow the order given to Create.
  const std::vector<std::string>& names() const { return names_; }
  Constraint constraint(int i) const { return constraints_[i]; }
  const Shape& batch_shape() const { return batch_; }
  const Shape& event_shape() const { return event_; }
  int64_t classes() const { return classes_; }  // K, or 0
  DType dtype() const { return dtype_; }
  TensorType draw_type(const Shape& sample) const;
  // The most elements that any tensor behind one draw has: of the draw, of its noise, of its
  // log-density. At most kMaxTensorBytes.
  int64_t elements_per_draw() const;
  bool discrete() const { return IsDiscrete(options_.family); }

  // The parameters' values, in Create's order, against their constraints; all must be finite.
  absl::Status CheckParameters(std::span<const Tensor* const> values) const;

  // `parameters` in Create's order. Errors go to the builder.
  Value Draw(Builder& b, std::span<const Value> parameters, const Shape& sample) const;
  // Of draws (sample..., B..., event...): (sample..., B...), in nats; -inf outside the support.
  // Straight-through draws have the probability of their class. kGumbelTopK: of at most kMaxRanked.
  static constexpr int64_t kMaxRanked = 1024;
  Value LogDensity(Builder& b, std::span<const Value> parameters, Value draws) const;
  // (B...), in nats; UNIMPLEMENTED where there is no closed form (the relaxed families,
  // kGumbelTopK).
  Value Entropy(Builder& b, std::span<const Value> parameters) const;

 private:
  friend class DistributionTerms;
  DistributionOptions options_;
  std::vector<std::string> names_;
  std::vector<Constraint> constraints_;
  Shape batch_, event_;
  int64_t classes_ = 0;
  DType dtype_ = DType::kF32;
};

}  // namespace tandem

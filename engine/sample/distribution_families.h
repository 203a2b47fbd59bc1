// The families' formulas, one record a family. Internal to distribution.cc.
#pragma once

#include <limits>
#include <span>
#include <string_view>

#include "engine/ops/expression.h"
#include "engine/sample/distribution.h"

namespace tandem {

struct ParameterSpec {
  std::string_view name;
  Constraint constraint;
  int event_rank = 0;  // trailing dimensions that belong to one event: 1 a vector, 2 a matrix
};

// What a family's formulas see.
class DistributionTerms {
 public:
  DistributionTerms(Builder& b, const Distribution& distribution, std::span<const Value> parameters,
                    Shape sample = {})
      : b_(b), d_(distribution), parameters_(parameters), sample_(std::move(sample)) {}

  Builder& builder() const { return b_; }
  const DistributionOptions& options() const { return d_.options(); }
  const Shape& sample() const { return sample_; }
  const Shape& batch() const { return d_.batch_shape(); }
  const Shape& event() const { return d_.event_shape(); }
  int64_t classes() const { return d_.classes(); }
  DType dtype() const { return d_.dtype(); }
  bool has(std::string_view name) const;
  // The parameter of that name, as given.
  ops::Expr operator[](std::string_view name) const;
  // From logits or probs: (..., K) or a Bernoulli's.
  ops::Expr ClassLogits() const;
  ops::Expr BernoulliLogits() const;

  // (sample..., B..., and `last`, if it is positive).
  Shape DrawShape(int64_t last = 0) const;
  ops::Expr Noise(ops::Noise noise, int64_t last = 0) const;
  ops::Expr Broadcast(ops::Expr x, const Shape& shape) const;

 private:
  Builder& b_;
  const Distribution& d_;
  std::span<const Value> parameters_;
  Shape sample_;
};

struct FamilyDef {
  std::string_view name;
  // One or two alternative sets of parameters.
  std::vector<std::vector<ParameterSpec>> signatures;
  bool discrete = false;
  ops::Expr (*draw)(const DistributionTerms&) = nullptr;
  ops::Expr (*log_density)(const DistributionTerms&, ops::Expr x) = nullptr;
  ops::Expr (*entropy)(const DistributionTerms&) = nullptr;  // null: no closed form
};

const FamilyDef& DefinitionOf(Family family);

}  // namespace tandem

#include "engine/sample/distribution.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>

#include "engine/sample/distribution_families.h"

namespace tandem {
namespace {

std::string NamesOf(const std::vector<ParameterSpec>& signature) {
  std::string names;
  for (const ParameterSpec& spec : signature) {
    names = StrCat(names, names.empty() ? "" : ", ", spec.name);
  }
  return names;
}

const ParameterSpec* Lookup(const std::vector<ParameterSpec>& signature, std::string_view name) {
  const auto it = std::find_if(signature.begin(), signature.end(),
                               [&](const ParameterSpec& spec) { return spec.name == name; });
  return it == signature.end() ? nullptr : &*it;
}

using Parameters = std::span<const std::pair<std::string, TensorType>>;

absl::StatusOr<const std::vector<ParameterSpec>*> SignatureOf(const FamilyDef& family,
                                                              Parameters given) {
  std::string expected, got;
  for (const auto& signature : family.signatures) {
    const bool matches =
        signature.size() == given.size() &&
        std::all_of(signature.begin(), signature.end(), [&](const ParameterSpec& spec) {
          return std::any_of(given.begin(), given.end(),
                             [&](const auto& parameter) { return parameter.first == spec.name; });
        });
    if (matches) return &signature;
    expected = StrCat(expected, expected.empty() ? "" : "; or ", NamesOf(signature));
  }
  for (const auto& [name, type] : given) got = StrCat(got, got.empty() ? "" : ", ", name);
  return InvalidArgument("the parameters of ", family.name, " are ", expected, "; got ",
                         got.empty() ? "none" : got);
}

absl::Status CheckOptions(const DistributionOptions& options, std::string_view name) {
  const bool relaxed =
      options.family == Family::kRelaxedBernoulli || options.family == Family::kGumbelSoftmax;
  if (!(options.temperature > 0) || !std::isfinite(options.temperature)) {
    return InvalidArgument("temperature is ", options.temperature, ", must be above 0 and finite");
  }
  if (!relaxed && options.temperature != 1) {
    return InvalidArgument("temperature does not apply to ", name);
  }
  if (options.straight_through && options.family != Family::kGumbelSoftmax) {
    return InvalidArgument("straight_through does not apply to ", name);
  }
  if (options.family != Family::kGumbelTopK && options.k != 1) {
    return InvalidArgument("k does not apply to ", name);
  }
  return absl::OkStatus();
}

Shape Leading(const Shape& shape, int event_rank) {
  return Shape(shape.dims().first(shape.rank() - event_rank));
}

absl::Status BadValue(std::string_view name, int64_t i, double value, std::string_view expected) {
  return InvalidArgument(name, "[", i, "] is ", value, ", must be ", expected);
}

absl::Status CheckSimplex(std::string_view name, const Tensor& tensor) {
  const int64_t classes = tensor.shape()[-1];
  for (int64_t begin = 0; begin < tensor.num_elements(); begin += classes) {
    double total = 0;
    for (int64_t i = begin; i < begin + classes; ++i) {
      const double p = ElementAsDouble(tensor, i);
      if (p < 0) return BadValue(name, i, p, "at least 0");
      total += p;
    }
    if (!(total > 0)) {
      return InvalidArgument(name, " from element ", begin, ": all ", classes,
                             " probabilities are 0");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckCholesky(std::string_view name, const Tensor& tensor) {
  const int64_t d = tensor.shape()[-1];
  for (int64_t i = 0; i < tensor.num_elements(); ++i) {
    const int64_t row = i / d % d, column = i % d;
    const double value = ElementAsDouble(tensor, i);
    if (row == column && !(value > 0)) {
      return BadValue(name, i, value, "above 0, as it is on the diagonal");
    }
    if (column > row && value != 0) {
      return BadValue(name, i, value, "0, as it is above the diagonal");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckConstraint(std::string_view name, Constraint constraint, const Tensor& tensor) {
  for (int64_t i = 0; i < tensor.num_elements(); ++i) {
    const double value = ElementAsDouble(tensor, i);
    if (!std::isfinite(value)) return BadValue(name, i, value, "finite");
    if (constraint == Constraint::kPositive && !(value > 0)) {
      return BadValue(name, i, value, "above 0");
    }
    if (constraint == Constraint::kProbability && !(value >= 0 && value <= 1)) {
      return BadValue(name, i, value, "in [0, 1]");
    }
  }
  if (constraint == Constraint::kSimplex) return CheckSimplex(name, tensor);
  if (constraint == Constraint::kLowerCholesky) return CheckCholesky(name, tensor);
  return absl::OkStatus();
}

// The element of a tensor that broadcasting to `shape` puts at index i there.
int64_t BroadcastIndex(const Shape& from, const Shape& shape, int64_t i) {
  int64_t index = 0, stride = 1;
  for (int k = 1; k <= shape.rank(); ++k) {
    const int64_t coordinate = i % shape[-k];
    i /= shape[-k];
    if (k > from.rank()) break;
    if (from[-k] != 1) index += coordinate * stride;
    stride *= from[-k];
  }
  return index;
}

}  // namespace

std::string ExactText(double value) { return StrCat(absl::Hex(std::bit_cast<uint64_t>(value))); }

bool IsDiscrete(Family family) { return DefinitionOf(family).discrete; }

absl::StatusOr<Distribution> Distribution::Create(const DistributionOptions& options,
                                                  Parameters parameters) {
  const FamilyDef& family = DefinitionOf(options.family);
  TANDEM_RETURN_IF_ERROR(CheckOptions(options, family.name));
  TANDEM_ASSIGN_OR_RETURN(const auto* signature, SignatureOf(family, parameters));
  Distribution d;
  d.options_ = options;
  d.dtype_ = parameters[0].second.dtype;
  std::optional<int64_t> width;  // of vectors and matrices
  for (const auto& [name, type] : parameters) {
    const ParameterSpec& spec = *Lookup(*signature, name);
    if (type.dtype != DType::kF32 && type.dtype != DType::kF64) {
      return InvalidArgument(name, " is ", DTypeName(type.dtype), ", must be f32 or f64");
    }
    if (type.dtype != d.dtype_) {
      return InvalidArgument(name, " is ", DTypeName(type.dtype), ", ", parameters[0].first, " ",
                             DTypeName(d.dtype_), ": all must be the same");
    }
    const Shape& shape = type.shape;
    if (shape.num_elements() == 0) {
      return InvalidArgument(name, " ", shape.ToString(), " has no elements");
    }
    if (shape.rank() < spec.event_rank) {
      return InvalidArgument(name, " ", shape.ToString(), " must have at least ", spec.event_rank,
                             " dimensions");
    }
    for (int k = 1; k <= spec.event_rank; ++k) {
      if (shape[-k] < 1 || shape[-k] != width.value_or(shape[-k])) {
        return InvalidArgument(name, " ", shape.ToString(), ": dimension ", shape.rank() - k,
                               " must be ", width ? StrCat(*width) : "at least 1");
      }
      width = shape[-k];
    }
    absl::StatusOr<Shape> batch = BroadcastShapes(d.batch_, Leading(shape, spec.event_rank));
    if (!batch.ok()) return Annotate(batch.status(), StrCat("batch shape of ", name));
    // Three broadcast dimensions may be more than any tensor.
    TANDEM_ASSIGN_OR_RETURN(d.batch_, Shape::Checked(batch->dims(), SizeOf(DType::kF64), "batch"));
    d.names_.push_back(name);
    d.constraints_.push_back(spec.constraint);
  }
  switch (options.family) {
    case Family::kMultivariateNormal:
    case Family::kDirichlet:
      d.event_ = {*width};
      break;
    case Family::kGumbelSoftmax:
      d.event_ = {*width};
      d.classes_ = *width;
      break;
    case Family::kCategorical:
      d.classes_ = *width;
      break;
    case Family::kGumbelTopK:
      if (options.k < 1 || options.k > *width) {
        return InvalidArgument("k is ", options.k, ", must be in [1, ", *width, "]");
      }
      d.event_ = {options.k};
      d.classes_ = *width;
      break;
    default:
      break;
  }
  return d;
}

std::string_view Distribution::family_name() const { return DefinitionOf(options_.family).name; }

TensorType Distribution::draw_type(const Shape& sample) const {
  const bool classes =
      options_.family == Family::kCategorical || options_.family == Family::kGumbelTopK;
  Shape shape = sample;
  for (int64_t dim : batch_) shape.push_back(dim);
  for (int64_t dim : event_) shape.push_back(dim);
  return {classes ? DType::kI64 : dtype_, std::move(shape)};
}

int64_t Distribution::elements_per_draw() const {
  const bool matrix =
      std::ranges::find(constraints_, Constraint::kLowerCholesky) != constraints_.end();
  const int64_t event = event_.num_elements();
  const int64_t each = std::max({int64_t{1}, classes_, matrix ? event * event : event});
  const int64_t batch = batch_.num_elements();
  return batch > kMaxTensorBytes / each ? kMaxTensorBytes : batch * each;
}

absl::Status Distribution::CheckParameters(std::span<const Tensor* const> values) const {
  for (size_t i = 0; i < names_.size(); ++i) {
    TANDEM_RETURN_IF_ERROR(CheckConstraint(names_[i], constraints_[i], *values[i]));
  }
  if (options_.family == Family::kUniform) {
    const int low = names_[0] == "low" ? 0 : 1;
    const Tensor &lows = *values[low], &highs = *values[1 - low];
    for (int64_t i = 0; i < batch_.num_elements(); ++i) {
      const double a = ElementAsDouble(lows, BroadcastIndex(lows.shape(), batch_, i));
      const double b = ElementAsDouble(highs, BroadcastIndex(highs.shape(), batch_, i));
      if (!(a < b)) return InvalidArgument("low ", a, " is not below high ", b, " (batch ", i, ")");
    }
  }
  return absl::OkStatus();
}

Value Distribution::Draw(Builder& b, std::span<const Value> parameters, const Shape& sample) const {
  if (!b.ok()) return {};
  return DefinitionOf(options_.family).draw({b, *this, parameters, sample}).value();
}

Value Distribution::LogDensity(Builder& b, std::span<const Value> parameters, Value draws) const {
  if (!b.ok()) return {};
  const Shape shape = b.shape(draws);
  const int sample_rank = shape.rank() - batch_.rank() - event_.rank();
  const bool fits = sample_rank >= 0 &&
                    b.type(draws) == draw_type(Shape(shape.dims().first(std::max(sample_rank, 0))));
  if (!fits) {
    return b.Fail(InvalidArgument("values of ", family_name(), " are ", b.type(draws).ToString(),
                                  ", expected ", draw_type({}).ToString(),
                                  " after any sample dimensions"));
  }
  if (options_.family == Family::kGumbelTopK && options_.k > kMaxRanked) {
    return b.Fail(InvalidArgument("k is ", options_.k, ": log-densities are of at most ",
                                  kMaxRanked, " classes in order"));
  }
  const DistributionTerms terms(b, *this, parameters, Shape(shape.dims().first(sample_rank)));
  return DefinitionOf(options_.family).log_density(terms, {b, draws}).value();
}

Value Distribution::Entropy(Builder& b, std::span<const Value> parameters) const {
  if (!b.ok()) return {};
  const FamilyDef& family = DefinitionOf(options_.family);
  if (family.entropy == nullptr) {
    return b.Fail(Unimplemented("the entropy of ", family.name,
                                " has no closed form: minus the mean of the draws' log-densities "
                                "estimates it"));
  }
  const DistributionTerms terms(b, *this, parameters);
  return terms.Broadcast(family.entropy(terms), batch_).value();
}

}  // namespace tandem

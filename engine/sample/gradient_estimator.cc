#include "engine/sample/gradient_estimator.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "engine/sample/estimator_graph.h"

namespace tandem {
namespace {

bool ClassesOrBits(Family family) {
  return family == Family::kBernoulli || family == Family::kCategorical;
}

absl::Status CheckEstimator(const EstimatorOptions& options, const Distribution& d) {
  const Family family = d.options().family;
  switch (options.estimator) {
    case Estimator::kPathwise:
      if (d.discrete()) {
        return InvalidArgument("pathwise: no gradient flows through draws of ", d.family_name(),
                               "; use score_function, or gumbel_softmax");
      }
      break;
    case Estimator::kGumbelSoftmax:
    case Estimator::kStraightThrough:
      if (!ClassesOrBits(family)) {
        return InvalidArgument(
            "gumbel_softmax and straight_through relax bernoulli and "
            "categorical, not ",
            d.family_name());
      }
      if (!(options.temperature > 0) || !std::isfinite(options.temperature)) {
        return InvalidArgument("temperature is ", options.temperature,
                               ", must be above 0 and finite");
      }
      break;
    case Estimator::kMeasureValued:
      if (!ClassesOrBits(family) && family != Family::kNormal && family != Family::kExponential) {
        return Unimplemented(
            "measure_valued is known for normal, exponential, bernoulli and "
            "categorical, not for ",
            d.family_name());
      }
      break;
    case Estimator::kScoreFunction:
      if (family == Family::kUniform) {
        return InvalidArgument("score_function: the support of uniform depends on its parameters");
      }
      break;
  }
  if (options.estimator != Estimator::kScoreFunction && options.baseline != Baseline::kNone) {
    return InvalidArgument("a baseline belongs to score_function alone");
  }
  const bool relaxed = options.estimator == Estimator::kGumbelSoftmax ||
                       options.estimator == Estimator::kStraightThrough;
  if (!relaxed && options.temperature != 1) {
    return InvalidArgument("temperature belongs to gumbel_softmax and straight_through alone");
  }
  if (options.batch_draws < 2 || options.batch_draws > 65536) {
    return InvalidArgument("batch_draws is ", options.batch_draws, ", must be in [2, 65536]");
  }
  return absl::OkStatus();
}

// Scores (R, P) become the draws' gradients (f - baseline) x score, in place.
void SubtractBaseline(Baseline baseline, std::span<const double> f, double mean_before,
                      int64_t draws_before, std::span<double> scores) {
  const auto rows = static_cast<int64_t>(f.size());
  const int64_t width = static_cast<int64_t>(scores.size()) / rows;
  std::vector<double> weighted(width), squares(width);  // sum of f s^2, of s^2
  double sum = 0;
  for (double v : f) sum += v;
  if (baseline == Baseline::kOptimal) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < width; ++i) {
        const double s2 = scores[r * width + i] * scores[r * width + i];
        weighted[i] += f[r] * s2;
        squares[i] += s2;
      }
    }
  }
  double running = mean_before;
  for (int64_t r = 0; r < rows; ++r) {
    const double others = (sum - f[r]) / static_cast<double>(rows - 1);
    for (int64_t i = 0; i < width; ++i) {
      double& g = scores[r * width + i];
      double b = 0;
      if (baseline == Baseline::kRunningMean) b = running;
      if (baseline == Baseline::kLeaveOneOut) b = others;
      if (baseline == Baseline::kOptimal) {
        const double rest = squares[i] - g * g;
        b = rest > 0 ? (weighted[i] - f[r] * g * g) / rest : 0;
      }
      g *= f[r] - b;
    }
    running += (f[r] - running) / static_cast<double>(draws_before + r + 1);
  }
}

// Draw number `count` of a running mean and sum of squared deviations (Welford 1962).
void Include(double x, int64_t count, double& mean, double& squares) {
  const double before = x - mean;
  mean += before / static_cast<double>(count);
  squares += before * (x - mean);
}

absl::StatusOr<std::vector<Tensor>> RunWith(Plan& plan, Model& model,
                                            const EstimatorOptions& options, uint64_t call,
                                            const Tensor* last = nullptr) {
  std::vector<const Tensor*> inputs;
  for (const auto& [name, tensor] : options.parameters) inputs.push_back(&tensor);
  for (const auto& [name, tensor] : options.inputs) inputs.push_back(&tensor);
  if (last != nullptr) inputs.push_back(last);
  plan.SetRandomKey(options.seed, call);
  TANDEM_ASSIGN_OR_RETURN(const std::span<const void* const> parameters,
                          model.ParameterAddresses());
  return RunPlan(plan, inputs, parameters);
}

// All joint outcomes of the batch: (K^n, B...).
Tensor Outcomes(const Distribution& d, int64_t count) {
  const int64_t n = d.batch_shape().num_elements(), k = d.classes() > 0 ? d.classes() : 2;
  const TensorType type = d.draw_type(Shape{count});
  Tensor outcomes(DType::kI64, type.shape);
  for (int64_t r = 0; r < count; ++r) {
    int64_t rest = r;
    for (int64_t i = 0; i < n; ++i) {
      outcomes.data<int64_t>()[r * n + i] = rest % k;
      rest /= k;
    }
  }
  return CastTensor(outcomes, type.dtype);
}

}  // namespace

double GradientEstimate::standard_error() const {
  double most = 0;
  for (const ParameterEstimate& p : parameters) {
    for (double v : p.variance) most = std::max(most, v);
  }
  return draws < 2 ? INFINITY : std::sqrt(most / static_cast<double>(draws));
}

absl::StatusOr<std::unique_ptr<GradientEstimator>> GradientEstimator::Create(
    EstimatorOptions options) {
  std::vector<std::pair<std::string, TensorType>> types;
  std::vector<const Tensor*> values;
  for (const auto& [name, tensor] : options.parameters) {
    types.emplace_back(name, tensor.type());
    values.push_back(&tensor);
  }
  TANDEM_ASSIGN_OR_RETURN(Distribution d, Distribution::Create(options.distribution, types));
  TANDEM_RETURN_IF_ERROR(CheckEstimator(options, d));
  // What a step holds of draws and of their gradients.
  int64_t elements = d.elements_per_draw();
  for (const Tensor* tensor : values) elements = std::max(elements, tensor->num_elements());
  constexpr int64_t kMaxElements = int64_t{1} << 25;
  if (elements > kMaxElements / options.batch_draws) {
    return InvalidArgument(options.batch_draws, " draws of gradients of ", elements,
                           " elements are more than ", kMaxElements, ": lower batch_draws");
  }
  // After the sizes: it takes as long as the batch is large.
  TANDEM_RETURN_IF_ERROR(d.CheckParameters(values));
  std::unique_ptr<GradientEstimator> estimator(new GradientEstimator());
  std::string& key = estimator->key_;
  key = StrCat("estimate/", static_cast<int>(d.options().family), "/",
               ExactText(d.options().temperature), "/",
               static_cast<int>(d.options().straight_through), "/", d.options().k, "/",
               static_cast<int>(options.estimator), "/", ExactText(options.temperature), "/",
               options.batch_draws, "/", options.input, "/", options.output);
  for (const auto& [name, type] : types) key += StrCat("/", name, type.ToString());
  for (const auto& [name, tensor] : options.inputs) {
    key += StrCat("/", name, tensor.type().ToString());
  }
  for (const auto& [name, tensor] : options.parameters) {
    const auto size = static_cast<size_t>(tensor.num_elements());
    estimator->estimate_.parameters.push_back(
        {name, tensor.shape(), std::vector<double>(size), std::vector<double>(size)});
    estimator->squares_.emplace_back(size);
  }
  estimator->distribution_ = std::move(d);
  estimator->options_ = std::move(options);
  return estimator;
}

absl::Status GradientEstimator::Step(Model& model) {
  const auto begin = std::chrono::steady_clock::now();
  TANDEM_ASSIGN_OR_RETURN(Plan * plan, model.plans().Get(key_, [&] {
    return BuildEstimatorStep(model.source(), options_, *distribution_);
  }));
  TANDEM_ASSIGN_OR_RETURN(std::vector<Tensor> outputs,
                          RunWith(*plan, model, options_, static_cast<uint64_t>(steps_)));
  const std::span<const double> f = outputs[0].data<double>();
  if (options_.estimator == Estimator::kScoreFunction) {
    for (size_t i = 1; i < outputs.size(); ++i) {
      SubtractBaseline(options_.baseline, f, estimate_.value, estimate_.draws,
                       outputs[i].data<double>());
    }
  }
  for (size_t k = 0; k < outputs.size(); ++k) {
    const std::span<const double> values = outputs[k].data<double>();
    const auto bad =
        std::find_if(values.begin(), values.end(), [](double v) { return !std::isfinite(v); });
    if (bad == values.end()) continue;
    const int64_t width = std::ssize(values) / std::ssize(f);
    const std::string what =
        k == 0 ? "f" : StrCat("the gradient of '", options_.parameters[k - 1].first, "'");
    return FailedPrecondition(what, " is ", *bad, " at draw ",
                              estimate_.draws + (bad - values.begin()) / width);
  }
  Accumulate(outputs);
  ++steps_;
  const int64_t rows = options_.batch_draws;
  estimate_.evaluations += rows * EvaluationsPerDraw(options_, *distribution_);
  if (Differentiates(options_.estimator)) estimate_.gradient_evaluations += rows;
  estimate_.weights_version = model.weights_version();
  estimate_.seconds +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return absl::OkStatus();
}

void GradientEstimator::Accumulate(const std::vector<Tensor>& outputs) {
  const int64_t rows = options_.batch_draws;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t count = ++estimate_.draws;
    Include(outputs[0].data<double>()[r], count, estimate_.value, value_squares_);
    for (size_t p = 0; p < squares_.size(); ++p) {
      const double* row = outputs[p + 1].data<double>().data() + r * std::ssize(squares_[p]);
      for (size_t i = 0; i < squares_[p].size(); ++i) {
        Include(row[i], count, estimate_.parameters[p].gradient[i], squares_[p][i]);
      }
    }
  }
  const auto freedom = static_cast<double>(estimate_.draws - 1);
  estimate_.value_variance = value_squares_ / freedom;
  for (size_t p = 0; p < squares_.size(); ++p) {
    for (size_t i = 0; i < squares_[p].size(); ++i) {
      estimate_.parameters[p].variance[i] = squares_[p][i] / freedom;
    }
  }
}

absl::StatusOr<GradientEstimator::ExactGradient> GradientEstimator::Exact(Model& model) const {
  const Distribution& d = *distribution_;
  if (!ClassesOrBits(d.options().family)) {
    return FailedPrecondition(
        "the exact gradient sums over outcomes: of bernoulli and categorical, "
        "not of ",
        d.family_name());
  }
  const int64_t k = d.classes() > 0 ? d.classes() : 2;
  int64_t count = 1;
  for (int64_t i = 0; i < d.batch_shape().num_elements() && count <= kMaxOutcomes; ++i) count *= k;
  if (count > kMaxOutcomes) {
    return FailedPrecondition(d.batch_shape().num_elements(), " variables of ", k,
                              " values have more than ", kMaxOutcomes, " joint outcomes");
  }
  const Tensor outcomes = Outcomes(d, count);
  TANDEM_ASSIGN_OR_RETURN(Plan * plan, model.plans().Get(StrCat(key_, "/exact"), [&] {
    return BuildExactGradient(model.source(), options_, d, outcomes.type());
  }));
  TANDEM_ASSIGN_OR_RETURN(std::vector<Tensor> outputs,
                          RunWith(*plan, model, options_, 0, &outcomes));
  ExactGradient exact;
  exact.value = outputs[0].data<double>()[0];
  for (size_t i = 1; i < outputs.size(); ++i) exact.gradients.push_back(std::move(outputs[i]));
  return exact;
}

}  // namespace tandem

#include "engine/sample/estimator_graph.h"

#include <algorithm>
#include <numbers>
#include <numeric>

#include "engine/graph/gradient.h"
#include "engine/ops/expression.h"

namespace tandem {
namespace {

using ops::Expr;

// Rows of the model's batch in one step.
constexpr int64_t kMaxRows = int64_t{1} << 20;
// Each is a pass of its own over the batch.
constexpr int64_t kMaxMeasuredClasses = 1024;

absl::StatusOr<size_t> FindSpec(const std::vector<IoSpec>& specs, const std::string& name,
                                std::string_view what) {
  if (name.empty() && specs.size() == 1) return 0;
  std::string known;
  for (size_t i = 0; i < specs.size(); ++i) {
    if (specs[i].name == name) return i;
    known = StrCat(known, known.empty() ? "" : ", ", specs[i].name);
  }
  if (name.empty()) return InvalidArgument("the model has the ", what, "s ", known, ": name one");
  return InvalidArgument("the model has no ", what, " '", name, "', only ", known);
}

class EstimatorGraph {
 public:
  EstimatorGraph(const GraphSource& model, const EstimatorOptions& options,
                 const Distribution& distribution)
      : model_(model), options_(options), d_(distribution), rows_(options.batch_draws) {}

  absl::StatusOr<Graph> Step() {
    TANDEM_RETURN_IF_ERROR(AddInputs());
    if (options_.estimator == Estimator::kMeasureValued) {
      TANDEM_RETURN_IF_ERROR(MeasureValued());
    } else {
      TANDEM_RETURN_IF_ERROR(ByGradient());
    }
    return b_.Finish();
  }

  absl::StatusOr<Graph> Exact(const TensorType& outcomes) {
    TANDEM_RETURN_IF_ERROR(AddInputs());
    const Value z = b_.Input("outcomes", outcomes);
    rows_ = outcomes.shape[0];
    const Value log_p = RowSum(d_.LogDensity(b_, parameters_, z), rows_);
    TANDEM_ASSIGN_OR_RETURN(const Value f, Evaluate(z, rows_));
    const Value p = ops::Cast(b_, ops::Exp(b_, log_p), DType::kF64);
    const Value mean = ops::ReduceSum(b_, ops::Mul(b_, p, f), {}, false);
    b_.Output(mean);
    TANDEM_ASSIGN_OR_RETURN(const std::vector<Value> gradients, Gradient(b_, mean, parameters_));
    for (Value v : gradients) b_.Output(ops::Cast(b_, v, DType::kF64));
    return b_.Finish();
  }

 private:
  absl::Status AddInputs() {
    for (const auto& [name, tensor] : options_.parameters) {
      parameters_.push_back(b_.Input(name, tensor.type()));
    }
    TANDEM_ASSIGN_OR_RETURN(input_, FindSpec(model_.inputs(), options_.input, "input"));
    TANDEM_ASSIGN_OR_RETURN(output_, FindSpec(model_.outputs(), options_.output, "output"));
    given_.resize(model_.inputs().size());
    for (const auto& [name, tensor] : options_.inputs) {
      TANDEM_ASSIGN_OR_RETURN(const size_t i, FindSpec(model_.inputs(), name, "input"));
      if (i == input_) return InvalidArgument("input '", name, "' takes the draws");
      if (given_[i].valid()) return InvalidArgument("input '", name, "' is given twice");
      TANDEM_RETURN_IF_ERROR(CheckInput(model_.inputs()[i], tensor));
      given_[i] = b_.Input(name, tensor.type());
    }
    for (size_t i = 0; i < given_.size(); ++i) {
      if (i != input_ && !given_[i].valid()) {
        return InvalidArgument("the model's input '", model_.inputs()[i].name, "' is not given");
      }
    }
    return b_.status();
  }

  // (R, ...) with a dimension for each of the batch's: a parameter of each draw's own.
  std::vector<Value> PerDraw() {
    std::vector<Value> values;
    for (size_t i = 0; i < parameters_.size(); ++i) {
      const Shape shape = PerDrawShape(static_cast<int>(i));
      Shape one = shape;
      one[0] = 1;
      values.push_back(ops::BroadcastTo(b_, ops::Reshape(b_, parameters_[i], one), shape));
    }
    return values;
  }
  Shape PerDrawShape(int i) const {
    const Shape& given = options_.parameters[i].second.shape();
    Shape shape{rows_};
    const int batch_rank = given.rank() - EventRank(i);
    for (int k = batch_rank; k < d_.batch_shape().rank(); ++k) shape.push_back(1);
    for (int64_t dim : given) shape.push_back(dim);
    return shape;
  }
  int EventRank(int i) const {
    if (d_.constraint(i) == Constraint::kLowerCholesky) return 2;
    const bool vectors = d_.classes() > 0 || d_.event_shape().rank() > 0;
    return vectors ? 1 : 0;
  }
  absl::StatusOr<Distribution> PerDrawDistribution(const DistributionOptions& options) const {
    std::vector<std::pair<std::string, TensorType>> types;
    for (size_t i = 0; i < parameters_.size(); ++i) {
      types.emplace_back(d_.names()[i], TensorType{d_.dtype(), PerDrawShape(static_cast<int>(i))});
    }
    return Distribution::Create(options, types);
  }

  // (R, anything) -> (R)
  Value RowSum(Value x, int64_t rows) {
    const int64_t n = b_.shape(x).num_elements();
    if (!b_.ok()) return {};
    return ops::ReduceSum(b_, ops::Reshape(b_, x, Shape{rows, n / rows}), {-1}, false);
  }

  DistributionOptions DrawnOptions() const {
    DistributionOptions drawn = d_.options();
    const bool straight = options_.estimator == Estimator::kStraightThrough;
    if (!straight && options_.estimator != Estimator::kGumbelSoftmax) return drawn;
    const bool classes = drawn.family == Family::kCategorical;
    drawn.family = classes ? Family::kGumbelSoftmax : Family::kRelaxedBernoulli;
    drawn.temperature = options_.temperature;
    drawn.straight_through = classes && straight;
    return drawn;
  }

  absl::Status ByGradient() {
    const std::vector<Value> mine = PerDraw();
    TANDEM_ASSIGN_OR_RETURN(const Distribution drawn, PerDrawDistribution(DrawnOptions()));
    Value z = drawn.Draw(b_, mine, {});
    if (options_.estimator == Estimator::kStraightThrough &&
        drawn.options().family == Family::kRelaxedBernoulli) {
      const Value above = ops::Less(b_, b_.Scalar(0.5, drawn.dtype()), z);
      z = ops::StraightThrough(b_, ops::Cast(b_, above, drawn.dtype()), z);
    }
    TANDEM_ASSIGN_OR_RETURN(const Value f, Evaluate(z, rows_));
    b_.Output(f);
    // Of the log-densities' own copy of the parameters, so that nothing passes through z.
    const bool score = options_.estimator == Estimator::kScoreFunction;
    const std::vector<Value> wrt = score ? PerDraw() : mine;
    const Value loss = score ? ops::Cast(b_, drawn.LogDensity(b_, wrt, z), DType::kF64) : f;
    const Value total = ops::ReduceSum(b_, loss, {}, false);
    TANDEM_RETURN_IF_ERROR(b_.status());
    TANDEM_ASSIGN_OR_RETURN(const std::vector<Value> gradients, Gradient(b_, total, wrt));
    for (size_t i = 0; i < gradients.size(); ++i) OutputGradient(gradients[i], i);
    return b_.status();
  }

  void OutputGradient(Value per_draw, size_t i) {
    const int64_t size = options_.parameters[i].second.num_elements();
    b_.Output(ops::Cast(b_, ops::Reshape(b_, per_draw, Shape{rows_, size}), DType::kF64));
  }

  // f of rows z, as f64 (rows).
  absl::StatusOr<Value> Evaluate(Value z, int64_t rows) {
    TANDEM_ASSIGN_OR_RETURN(const Value input, AsModelInput(z, rows));
    std::vector<Value> inputs = given_;
    inputs[input_] = input;
    for (size_t i = 0; i < inputs.size(); ++i) {
      const IoSpec& spec = model_.inputs()[i];
      Shape shape = b_.shape(inputs[i]);
      const bool repeats = i != input_ && !spec.dims.empty() && spec.dims[0] < 0 && shape[0] == 1;
      if (!repeats) continue;
      shape[0] = rows;
      inputs[i] = ops::BroadcastTo(b_, inputs[i], shape);
    }
    TANDEM_RETURN_IF_ERROR(b_.status());
    TANDEM_ASSIGN_OR_RETURN(const std::vector<Value> outputs, model_.Build(b_, inputs));
    const Value f = outputs[output_];
    const TensorType type = b_.type(f);
    if (type.shape.num_elements() != rows || !IsFloat(type.dtype)) {
      return InvalidArgument("the model's output '", model_.outputs()[output_].name, "' is ",
                             type.ToString(), " for ", rows,
                             " draws, expected one floating-point number a draw");
    }
    return ops::Cast(b_, ops::Reshape(b_, f, Shape{rows}), DType::kF64);
  }

  // Draws (rows, B..., E...) in the model's dtype and rank.
  absl::StatusOr<Value> AsModelInput(Value z, int64_t rows) {
    const IoSpec& spec = model_.inputs()[input_];
    const bool classes = !IsFloat(b_.dtype(z));
    if (spec.dims.empty() || (spec.dims[0] >= 0 && spec.dims[0] != rows)) {
      return InvalidArgument("the model's input '", spec.name,
                             "' has no variable first dimension for the draws");
    }
    if (!IsFloat(spec.dtype) && !d_.discrete()) {
      return InvalidArgument("the model's input '", spec.name, "' is ", DTypeName(spec.dtype),
                             ", but the draws of ", d_.family_name(), " are real numbers");
    }
    if (!IsFloat(spec.dtype) && Differentiates(options_.estimator)) {
      return InvalidArgument("the model's input '", spec.name, "' is ", DTypeName(spec.dtype),
                             ": no gradient flows through integers");
    }
    if (classes && IsFloat(spec.dtype)) z = OneHot(z);
    z = ops::Cast(b_, z, spec.dtype);
    const Shape shape = b_.shape(z);
    if (!b_.ok()) return b_.status();
    const auto does_not_fit = [&] {
      return InvalidArgument("draws of shape ", shape.ToString(), " do not fit the model's input '",
                             spec.name, "' of shape ", Shape(spec.dims).ToString());
    };
    if (shape.rank() == static_cast<int>(spec.dims.size())) {
      for (int i = 1; i < shape.rank(); ++i) {
        if (spec.dims[i] >= 0 && spec.dims[i] != shape[i]) return does_not_fit();
      }
      return z;
    }
    // As many elements a row, in the model's rank: at most one of its sizes may be unknown.
    int64_t row = shape.num_elements() / rows;
    Shape wanted{rows};
    int unknown = -1;
    for (size_t i = 1; i < spec.dims.size(); ++i) {
      wanted.push_back(std::max<int64_t>(1, spec.dims[i]));
      if (spec.dims[i] < 0) unknown = unknown < 0 ? static_cast<int>(i) : 0;
    }
    if (unknown > 0 && row % wanted.Count(1, wanted.rank()) == 0) {
      wanted[unknown] = row / wanted.Count(1, wanted.rank());
    }
    if (unknown == 0 || wanted.Count(1, wanted.rank()) != row) {
      return does_not_fit();
    }
    return ops::Reshape(b_, z, wanted);
  }

  Value OneHot(Value classes) {
    Shape column = b_.shape(classes);
    column.push_back(1);
    Tensor all(DType::kI64, {d_.classes()});
    std::iota(all.data<int64_t>().begin(), all.data<int64_t>().end(), 0);
    return ops::Cast(b_,
                     ops::Equal(b_, ops::Reshape(b_, classes, column), b_.Constant(std::move(all))),
                     d_.dtype());
  }

  // --- measure-valued
  // --------------------------------------------------------------------------------- The weak
  // derivative with respect to a parameter of one coordinate is c (E f(z+) - E f(z-)), z+ and z-
  // being z with that coordinate drawn from other measures (Mohamed et al., table 1).

  // Broadcast to the batch, flat: (n).
  Expr Flat(std::string_view name) {
    const auto it = std::find(d_.names().begin(), d_.names().end(), name);
    const Value v = parameters_[it - d_.names().begin()];
    const int64_t n = d_.batch_shape().num_elements();
    return {b_, ops::Reshape(b_, ops::BroadcastTo(b_, v, d_.batch_shape()), Shape{n})};
  }
  Expr Noise(ops::Noise noise) {
    const int64_t n = d_.batch_shape().num_elements();
    return {b_, ops::Random(b_, noise, d_.dtype(), Shape{rows_, n})};
  }
  // z (R, n) with coordinate j replaced by that of `by` (R, n): (R n, n), j counting fastest.
  Value Replaced(Value z, Value by) {
    const int64_t n = d_.batch_shape().num_elements();
    if (!eye_.valid()) {
      Tensor eye = Tensor::Zeros({DType::kBool, {n, n}});
      for (int64_t i = 0; i < n; ++i) eye.data<bool>()[i * n + i] = true;
      eye_ = b_.Constant(std::move(eye));
    }
    const Value rows = ops::Reshape(b_, z, Shape{rows_, 1, n});
    const Value replacement = ops::Reshape(b_, by, Shape{rows_, 1, n});
    const Value all = ops::Where(b_, eye_, replacement, rows);
    return ops::Reshape(b_, all, Shape{rows_ * n, n});
  }

  // A pair of measures and the parameter that they are the derivative of.
  struct Pair {
    size_t parameter;
    Value above, below;  // (R, n)
    Expr factor;         // (n)
  };

  size_t Position(std::string_view name) const {
    return std::find(d_.names().begin(), d_.names().end(), name) - d_.names().begin();
  }

  std::vector<Pair> Pairs() {
    std::vector<Pair> pairs;
    if (d_.options().family == Family::kNormal) {
      const Expr loc = Flat("loc"), scale = Flat("scale");
      // Weibull of shape 2 on either side.
      const Expr w = scale * Sqrt(2 * Noise(ops::Noise::kExponential));
      pairs.push_back({Position("loc"), (loc + w).value(), (loc - w).value(),
                       1 / (scale * std::sqrt(2 * std::numbers::pi))});
      // Double-sided Maxwell, and that times a uniform variable, which is normal.
      const Expr chi =
          Sqrt(Square(Noise(ops::Noise::kNormal)) + Square(Noise(ops::Noise::kNormal)) +
               Square(Noise(ops::Noise::kNormal)));
      const Expr side = Noise(ops::Noise::kUniform) < 0.5;
      const Expr m = scale * Where(side, -chi, chi);
      pairs.push_back({Position("scale"), (loc + m).value(),
                       (loc + m * Noise(ops::Noise::kUniform)).value(), 1 / scale});
    } else if (d_.options().family == Family::kExponential) {
      const Expr rate = Flat("rate");
      const Expr x = Noise(ops::Noise::kExponential) / rate;
      const Expr longer = x + Noise(ops::Noise::kExponential) / rate;  // Erlang of shape 2
      pairs.push_back({0, x.value(), longer.value(), 1 / rate});
    } else {  // kBernoulli
      const Expr parameter = Flat(d_.names()[0]);
      const Expr zero{b_, b_.Constant(Tensor::Zeros({d_.dtype(), {rows_, parameter.shape()[0]}}))};
      const Expr p = Sigmoid(parameter);
      pairs.push_back({0, (zero + 1).value(), zero.value(),
                       d_.names()[0] == "logits" ? p * (1 - p) : parameter * 0 + 1});
    }
    return pairs;
  }

  absl::Status MeasureValued() {
    const int64_t n = d_.batch_shape().num_elements();
    const int64_t per_draw = EvaluationsPerDraw(options_, d_);
    if (rows_ > kMaxRows / per_draw) {
      return InvalidArgument("a measure-valued step of ", rows_, " draws needs ", per_draw,
                             " rows of the model a draw, more than ", kMaxRows,
                             " in all: lower batch_draws");
    }
    // Every row holds the whole batch, or its classes.
    const int64_t row = std::max<int64_t>(n, d_.elements_per_draw());
    constexpr int64_t kMaxElements = int64_t{1} << 26;
    if (rows_ * per_draw > kMaxElements / row || d_.classes() > kMaxMeasuredClasses) {
      return InvalidArgument("a measure-valued step of ", rows_, " draws of ", row,
                             " elements is too large (more than ", kMaxElements,
                             " elements, or than ", kMaxMeasuredClasses,
                             " classes): lower batch_draws or use the score function");
    }
    const Value z = d_.Draw(b_, parameters_, Shape{rows_});
    if (d_.options().family == Family::kCategorical) return OverClasses(z);
    const Value flat = ops::Reshape(b_, z, Shape{rows_, n});
    const std::vector<Pair> pairs = Pairs();
    std::vector<Value> rows = {flat};
    for (const Pair& pair : pairs) {
      rows.push_back(Replaced(flat, pair.above));
      rows.push_back(Replaced(flat, pair.below));
    }
    const int64_t total = rows_ * per_draw;
    Shape shape{total};
    for (int64_t dim : d_.batch_shape()) shape.push_back(dim);
    const Value all = ops::Reshape(b_, ops::Concat(b_, rows, 0), shape);
    TANDEM_ASSIGN_OR_RETURN(const Value f, Evaluate(all, total));
    b_.Output(Part(f, 0, rows_));
    std::vector<Value> gradients(parameters_.size());
    for (size_t i = 0; i < pairs.size(); ++i) {
      const int64_t begin = rows_ + 2 * static_cast<int64_t>(i) * rows_ * n;
      const Expr above{b_, Part(f, begin, rows_ * n)};
      const Expr below{b_, Part(f, begin + rows_ * n, rows_ * n)};
      const Expr factor{b_, ops::Cast(b_, pairs[i].factor.value(), DType::kF64)};
      const Expr difference{b_, ops::Reshape(b_, (above - below).value(), Shape{rows_, n})};
      gradients[pairs[i].parameter] = (difference * factor).value();
    }
    OutputBatchGradients(gradients, {});
    return b_.status();
  }

  // Every class of each coordinate in turn, the others as drawn: p_k (f_k - sum_j p_j f_j).
  absl::Status OverClasses(Value z) {
    const int64_t n = d_.batch_shape().num_elements(), k = d_.classes();
    const Value flat = ops::Reshape(b_, z, Shape{rows_, n});
    std::vector<Value> rows = {flat};
    for (int64_t c = 0; c < k; ++c) {
      Tensor same(DType::kI64, {rows_, n});
      std::ranges::fill(same.data<int64_t>(), c);
      rows.push_back(Replaced(flat, b_.Constant(std::move(same))));
    }
    const int64_t total = rows_ * (1 + n * k);
    Shape shape{total};
    for (int64_t dim : d_.batch_shape()) shape.push_back(dim);
    TANDEM_ASSIGN_OR_RETURN(const Value f,
                            Evaluate(ops::Reshape(b_, ops::Concat(b_, rows, 0), shape), total));
    b_.Output(Part(f, 0, rows_));
    // (k, R, n) -> (R, n, k)
    const Value by_class = ops::Reshape(b_, Part(f, rows_, rows_ * n * k), Shape{k, rows_, n});
    const Expr values{b_, ops::Transpose(b_, by_class, {1, 2, 0})};
    Shape full = d_.batch_shape();
    full.push_back(k);
    const Value wide = ops::Cast(b_, ops::BroadcastTo(b_, parameters_[0], full), DType::kF64);
    const Expr given{b_, ops::Reshape(b_, wide, Shape{n, k})};
    const bool logits = d_.names()[0] == "logits";
    const Expr p = logits ? Exp(given - LogSumExp(given)) : given / SumLast(given, true);
    const Expr centred = values - SumLast(p * values, true);
    const Expr gradient = logits ? p * centred : centred / SumLast(given, true);
    OutputBatchGradients({gradient.value()}, Shape{k});
    return b_.status();
  }

  Value Part(Value f, int64_t begin, int64_t count) {
    return ops::Slice(b_, f, {begin}, {begin + count}, {1});
  }
  // (R, n, event...) summed to each parameter's own shape, which may broadcast.
  void OutputBatchGradients(const std::vector<Value>& gradients, const Shape& event) {
    Shape full{rows_};
    for (int64_t dim : d_.batch_shape()) full.push_back(dim);
    for (int64_t dim : event) full.push_back(dim);
    for (size_t i = 0; i < gradients.size(); ++i) {
      const Value whole = ops::Reshape(b_, gradients[i], full);
      OutputGradient(ops::SumToShape(b_, whole, PerDrawShape(static_cast<int>(i))), i);
    }
  }

  const GraphSource& model_;
  const EstimatorOptions& options_;
  const Distribution& d_;
  int64_t rows_;
  Builder b_{EvaluateNode};
  std::vector<Value> parameters_, given_;
  size_t input_ = 0, output_ = 0;
  Value eye_;  // (n, n) bool, made by Replaced
};

}  // namespace

bool Differentiates(Estimator estimator) {
  return estimator != Estimator::kScoreFunction && estimator != Estimator::kMeasureValued;
}

int64_t EvaluationsPerDraw(const EstimatorOptions& options, const Distribution& distribution) {
  if (options.estimator != Estimator::kMeasureValued) return 1;
  const int64_t n = distribution.batch_shape().num_elements();
  switch (distribution.options().family) {
    case Family::kCategorical:
      return 1 + n * distribution.classes();
    case Family::kNormal:
      return 1 + 4 * n;
    default:
      return 1 + 2 * n;
  }
}

absl::StatusOr<Graph> BuildEstimatorStep(const GraphSource& model, const EstimatorOptions& options,
                                         const Distribution& distribution) {
  return EstimatorGraph(model, options, distribution).Step();
}

absl::StatusOr<Graph> BuildExactGradient(const GraphSource& model, const EstimatorOptions& options,
                                         const Distribution& distribution,
                                         const TensorType& outcomes) {
  return EstimatorGraph(model, options, distribution).Exact(outcomes);
}

}  // namespace tandem

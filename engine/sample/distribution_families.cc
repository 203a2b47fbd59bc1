// Formulas as in Devroye, "Non-Uniform Random Variate Generation" (1986), and the papers named.
#include "engine/sample/distribution_families.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <numeric>

namespace tandem {
namespace {

using ops::Expr;
using Terms = DistributionTerms;
using std::numbers::egamma;
using std::numbers::pi;

const double kLog2Pi = std::log(2 * pi);

// A draw that belongs strictly inside (0, 1) or above 0, where rounding put it on the edge.
double Tiny(DType dtype) {
  return dtype == DType::kF32 ? double{std::numeric_limits<float>::min()}
                              : std::numeric_limits<double>::min();
}
double BelowOne(DType dtype) { return dtype == DType::kF32 ? 1 - 0x1p-24 : 1 - 0x1p-53; }
Expr InsideUnit(Expr x) { return Min(Max(x, Tiny(x.dtype())), BelowOne(x.dtype())); }

// The log-density where the condition holds, else that of what cannot happen.
Expr Within(Expr inside, Expr log_density) {
  return Where(inside, log_density, log_density.Like(-std::numeric_limits<double>::infinity()));
}
// Values outside the support would make the formula NaN, whose gradient Where cannot stop.
Expr Positive(Expr x) { return Where(x.Like(0) < x, x, x.Like(1)); }

// A constant of that shape, f(i) at element i.
Expr Table(const Terms& t, const Shape& shape, const std::function<double(int64_t)>& f) {
  Tensor table(DType::kF64, shape);
  for (int64_t i = 0; i < table.num_elements(); ++i) table.data<double>()[i] = f(i);
  return {t.builder(), t.builder().Constant(CastTensor(table, t.dtype()))};
}

// --- location and scale
// ---------------------------------------------------------------------------
template <ops::Noise noise>
Expr DrawLocScale(const Terms& t) {
  return t["loc"] + t["scale"] * t.Noise(noise);
}
Expr Standardize(const Terms& t, Expr x) { return (x - t["loc"]) / t["scale"]; }

Expr NormalTerm(Expr z) { return -0.5 * Square(z) - 0.5 * kLog2Pi; }
Expr NormalLogDensity(const Terms& t, Expr x) {
  return NormalTerm(Standardize(t, x)) - Log(t["scale"]);
}
// The location never matters to an entropy, but its batch does: Entropy broadcasts.
Expr NormalEntropy(const Terms& t) { return Log(t["scale"]) + 0.5 * (1 + kLog2Pi); }

Expr DrawLogNormal(const Terms& t) {
  return Max(Exp(DrawLocScale<ops::Noise::kNormal>(t)), Tiny(t.dtype()));
}
Expr LogNormalLogDensity(const Terms& t, Expr x) {
  const Expr log_x = Log(Positive(x));
  return Within(x.Like(0) < x, NormalLogDensity(t, log_x) - log_x);
}
Expr LogNormalEntropy(const Terms& t) { return NormalEntropy(t) + t["loc"]; }

Expr LaplaceLogDensity(const Terms& t, Expr x) {
  return -Abs(Standardize(t, x)) - Log(2 * t["scale"]);
}
Expr LaplaceEntropy(const Terms& t) { return Log(2 * t["scale"]) + 1; }

Expr LogisticLogDensity(const Terms& t, Expr x) {
  const Expr z = Standardize(t, x);
  return -z - 2 * Softplus(-z) - Log(t["scale"]);
}
Expr LogisticEntropy(const Terms& t) { return Log(t["scale"]) + 2; }

Expr GumbelLogDensity(const Terms& t, Expr x) {
  const Expr z = Standardize(t, x);
  return -z - Exp(-z) - Log(t["scale"]);
}
Expr GumbelEntropy(const Terms& t) { return Log(t["scale"]) + (1 + egamma); }

Expr DrawStudentT(const Terms& t) {
  const Expr half = t["df"] * 0.5;
  const Expr log_gamma{t.builder(),
                       ops::RandomGamma(t.builder(), t.Broadcast(half, t.DrawShape()).value())};
  // N / sqrt(chi^2 / df), chi^2 = 2 gamma
  const Expr ratio = Exp(0.5 * (Log(half) - log_gamma));
  return t["loc"] + t["scale"] * t.Noise(ops::Noise::kNormal) * ratio;
}
Expr StudentTLogDensity(const Terms& t, Expr x) {
  const Expr df = t["df"];
  return Lgamma(0.5 * (df + 1)) - Lgamma(0.5 * df) - 0.5 * Log(df * pi) - Log(t["scale"]) -
         0.5 * (df + 1) * Log1p(Square(Standardize(t, x)) / df);
}
Expr StudentTEntropy(const Terms& t) {
  const Expr df = t["df"], more = 0.5 * (df + 1), half = 0.5 * df;
  const Expr log_beta = Lgamma(half) + std::lgamma(0.5) - Lgamma(more);
  return more * (Digamma(more) - Digamma(half)) + 0.5 * Log(df) + log_beta + Log(t["scale"]);
}

// --- several dimensions
// ---------------------------------------------------------------------------- scale_tril without
// what stands above its diagonal, so that no gradient does either.
Expr LowerTriangle(const Terms& t) {
  const int64_t d = t.event()[0];
  return t["scale_tril"] * Table(t, {d, d}, [d](int64_t i) { return i % d <= i / d ? 1.0 : 0.0; });
}
Expr Diagonal(const Terms& t) {
  if (t.has("scale_diag")) return t["scale_diag"];
  const int64_t d = t.event()[0];
  const Expr tril = t["scale_tril"];
  Builder& b = t.builder();
  // (..., D, D) -> (..., D * D) -> every (D + 1)th
  Shape flat = tril.shape();
  const int rank = flat.rank();
  flat = Shape(flat.dims().first(rank - 2));
  flat.push_back(d * d);
  std::vector<int64_t> starts(rank - 1, 0), ends(flat.begin(), flat.end()), steps(rank - 1, 1);
  steps.back() = d + 1;
  return {b, ops::Slice(b, ops::Reshape(b, tril.value(), flat), starts, ends, steps)};
}
Expr DrawMultivariateNormal(const Terms& t) {
  const int64_t d = t.event()[0];
  const Expr noise = t.Noise(ops::Noise::kNormal, d);
  if (t.has("scale_diag")) return t["loc"] + t["scale_diag"] * noise;
  Builder& b = t.builder();
  const Expr tril = LowerTriangle(t);
  // One matrix for all draws is one product; else (..., 1, D) x (..., D, D)^T.
  if (tril.shape().rank() == 2) {
    return t["loc"] + Expr{b, ops::MatMul(b, noise.value(), tril.value(), false, true)};
  }
  Shape row = t.DrawShape(1);
  row.push_back(d);
  const Value product = ops::MatMul(b, ops::Reshape(b, noise.value(), row), tril.value(), false,
                                    /*transpose_b=*/true);
  return t["loc"] + Expr{b, ops::Reshape(b, product, t.DrawShape(d))};
}
// L^-1 (x - loc) for x (sample..., B..., D).
Expr Whiten(const Terms& t, Expr x) {
  if (t.has("scale_diag")) return (x - t["loc"]) / t["scale_diag"];
  Builder& b = t.builder();
  const int64_t d = t.event()[0], samples = t.sample().num_elements();
  const int batch_rank = t.batch().rank();
  // Draws become the right-hand sides' columns: (samples, B..., D) -> (B..., D, samples).
  Shape flat{samples}, matrices = t.batch();
  for (int64_t dim : t.batch()) flat.push_back(dim);
  flat.push_back(d);
  matrices.push_back(d);
  matrices.push_back(d);
  std::vector<int64_t> there(batch_rank + 2), back(batch_rank + 2);
  std::iota(there.begin(), there.end() - 1, 1);
  there.back() = 0;
  std::iota(back.begin() + 1, back.end(), 0);
  back.front() = batch_rank + 1;
  const Value centred = ops::Reshape(b, (x - t["loc"]).value(), flat);
  const Value solved = ops::TriangularSolve(b, t.Broadcast(LowerTriangle(t), matrices).value(),
                                            ops::Transpose(b, centred, there), false);
  return {b, ops::Reshape(b, ops::Transpose(b, solved, back), t.DrawShape(d))};
}
Expr MultivariateNormalLogDensity(const Terms& t, Expr x) {
  return SumLast(NormalTerm(Whiten(t, x))) - SumLast(Log(Diagonal(t)));
}
Expr MultivariateNormalEntropy(const Terms& t) {
  return SumLast(Log(Diagonal(t)) + 0.5 * (1 + kLog2Pi));
}

// --- intervals
// ------------------------------------------------------------------------------------
Expr DrawUniform(const Terms& t) {
  const Expr x = t["low"] + (t["high"] - t["low"]) * t.Noise(ops::Noise::kUniform);
  return Where(x < t["high"], x, t["low"]);  // the sum may round to high, which is outside
}
Expr UniformLogDensity(const Terms& t, Expr x) {
  return Within(t["low"] <= x && x < t["high"], -Log(t["high"] - t["low"]));
}
Expr UniformEntropy(const Terms& t) { return Log(t["high"] - t["low"]); }

Expr DrawExponential(const Terms& t) { return t.Noise(ops::Noise::kExponential) / t["rate"]; }
Expr ExponentialLogDensity(const Terms& t, Expr x) {
  return Within(x.Like(0) <= x, Log(t["rate"]) - t["rate"] * x);
}
Expr ExponentialEntropy(const Terms& t) { return 1 - Log(t["rate"]); }

// --- the gamma family: log-gammas of concentration c and rate 1
// --------------------------------------
Expr LogGammaDraw(const Terms& t, Expr concentration, int64_t last = 0) {
  return {t.builder(),
          ops::RandomGamma(t.builder(), t.Broadcast(concentration, t.DrawShape(last)).value())};
}
Expr DrawGamma(const Terms& t) {
  return Max(Exp(LogGammaDraw(t, t["concentration"])), Tiny(t.dtype())) / t["rate"];
}
Expr GammaLogDensity(const Terms& t, Expr x) {
  const Expr c = t["concentration"], inside = Positive(x);
  return Within(x.Like(0) < x,
                c * Log(t["rate"]) + (c - 1) * Log(inside) - t["rate"] * inside - Lgamma(c));
}
Expr GammaEntropy(const Terms& t) {
  const Expr c = t["concentration"];
  return c - Log(t["rate"]) + Lgamma(c) + (1 - c) * Digamma(c);
}

Expr DrawBeta(const Terms& t) {
  // g1 / (g1 + g0)
  return InsideUnit(
      Sigmoid(LogGammaDraw(t, t["concentration1"]) - LogGammaDraw(t, t["concentration0"])));
}
Expr LogBeta(Expr a, Expr b) { return Lgamma(a) + Lgamma(b) - Lgamma(a + b); }
Expr BetaLogDensity(const Terms& t, Expr x) {
  const Expr a = t["concentration1"], b = t["concentration0"];
  const Expr within = x.Like(0) < x && x < x.Like(1);
  const Expr inside = Where(within, x, x.Like(0.5));
  return Within(within, (a - 1) * Log(inside) + (b - 1) * Log1p(-inside) - LogBeta(a, b));
}
Expr BetaEntropy(const Terms& t) {
  const Expr a = t["concentration1"], b = t["concentration0"];
  return LogBeta(a, b) - (a - 1) * Digamma(a) - (b - 1) * Digamma(b) + (a + b - 2) * Digamma(a + b);
}

Expr DrawDirichlet(const Terms& t) {
  const Expr log_gammas = LogGammaDraw(t, t["concentration"], t.event()[0]);
  return Max(Exp(log_gammas - LogSumExp(log_gammas)), Tiny(t.dtype()));
}
Expr DirichletLogNormalizer(Expr c) { return SumLast(Lgamma(c)) - Lgamma(SumLast(c)); }
Expr DirichletLogDensity(const Terms& t, Expr x) {
  const Expr c = t["concentration"];
  return SumLast((c - 1) * Log(Max(x, Tiny(x.dtype())))) - DirichletLogNormalizer(c);
}
Expr DirichletEntropy(const Terms& t) {
  const Expr c = t["concentration"], total = SumLast(c);
  return DirichletLogNormalizer(c) + (total - static_cast<double>(t.event()[0])) * Digamma(total) -
         SumLast((c - 1) * Digamma(c));
}

// --- 0 and 1
// ----------------------------------------------------------------------------------------
Expr DrawBernoulli(const Terms& t) {
  const Expr p = t.has("probs") ? t["probs"] : Sigmoid(t["logits"]);
  const Expr hit = t.Noise(ops::Noise::kUniform) < p;
  return {t.builder(), ops::Cast(t.builder(), hit.value(), t.dtype())};
}
Expr BernoulliLogDensity(const Terms& t, Expr x) {
  Builder& b = t.builder();
  const Expr is_one{b, ops::Equal(b, x.value(), x.Like(1).value())};
  const Expr is_zero{b, ops::Equal(b, x.value(), x.Like(0).value())};
  const Expr known{b, ops::Or(b, is_one.value(), is_zero.value())};
  if (t.has("logits")) {
    const Expr logits = t["logits"];
    return Within(known, -Softplus(Where(is_one, -logits, logits)));
  }
  const Expr p = t["probs"];
  return Within(known, Log(Max(Where(is_one, p, 1 - p), Tiny(t.dtype()))));
}
Expr BernoulliEntropy(const Terms& t) {
  if (t.has("logits")) {
    const Expr logits = t["logits"];
    return Softplus(logits) - logits * Sigmoid(logits);
  }
  const Expr p = t["probs"], q = 1 - p;
  return -(p * Log(Max(p, Tiny(t.dtype()))) + q * Log(Max(q, Tiny(t.dtype()))));
}

Expr DrawRelaxedBernoulli(const Terms& t) {
  return InsideUnit(
      Sigmoid((t.BernoulliLogits() + t.Noise(ops::Noise::kLogistic)) / t.options().temperature));
}
// Maddison et al. 2017, appendix C.3.2: with d = logits - T logit(x),
// log p = log T + d - 2 softplus(d) - log x - log(1 - x).
Expr RelaxedBernoulliLogDensity(const Terms& t, Expr x) {
  const double temperature = t.options().temperature;
  const Expr within = x.Like(0) < x && x < x.Like(1);
  const Expr inside = Where(within, x, x.Like(0.5));
  const Expr log_x = Log(inside), log_rest = Log1p(-inside);
  const Expr d = t.BernoulliLogits() - temperature * (log_x - log_rest);
  return Within(within, d - 2 * Softplus(d) - log_x - log_rest + std::log(temperature));
}

// --- classes
// ----------------------------------------------------------------------------------------
Expr Perturbed(const Terms& t) {
  return t.ClassLogits() + t.Noise(ops::Noise::kGumbel, t.classes());
}
Expr DrawCategorical(const Terms& t) {
  return {t.builder(), ops::ArgMax(t.builder(), Perturbed(t).value(), -1, false)};
}
Expr LogProbabilities(const Terms& t) {
  const Expr logits = t.ClassLogits();
  return logits - LogSumExp(logits);
}
// table (B..., K) at classes (sample..., B..., extra...): of each draw, its own row of the table.
Expr Pick(const Terms& t, Expr table, Expr classes, int extra) {
  Builder& b = t.builder();
  const int64_t rows = t.batch().num_elements(), k = t.classes();
  Tensor base(DType::kI64, {rows});
  for (int64_t i = 0; i < rows; ++i) base.data<int64_t>()[i] = i * k;
  Shape aligned = t.batch();
  for (int i = 0; i < extra; ++i) aligned.push_back(1);
  Shape full = t.batch();
  full.push_back(k);
  const Value flat = ops::Reshape(b, t.Broadcast(table, full).value(), Shape{rows * k});
  const Expr offsets{b, ops::Reshape(b, b.Constant(std::move(base)), aligned)};
  return {b, ops::Gather(b, flat, (classes + offsets).value(), 0)};
}
// A class outside [0, K) has no probability; the look-up must not see it.
Expr KnownClass(const Terms& t, Expr x) {
  return x.Like(0) <= x && x < x.Like(static_cast<double>(t.classes()));
}
Expr CategoricalLogDensity(const Terms& t, Expr x) {
  const Expr known = KnownClass(t, x);
  return Within(known, Pick(t, LogProbabilities(t), Where(known, x, x.Like(0)), 0));
}
Expr CategoricalEntropy(const Terms& t) {
  const Expr log_p = LogProbabilities(t);
  return -SumLast(Exp(log_p) * log_p);
}

Expr DrawGumbelSoftmax(const Terms& t) {
  Builder& b = t.builder();
  const double temperature = t.options().temperature;
  Expr soft = t.ClassLogits();
  if (t.dtype() == DType::kF32) {
    const Expr logits = t.Broadcast(soft, t.DrawShape(t.classes()));
    soft = {b, ops::GumbelSoftmax(b, logits.value(), temperature)};
  } else {
    const Expr scaled = Perturbed(t) / temperature;
    soft = Exp(scaled - LogSumExp(scaled));
  }
  if (!t.options().straight_through) return soft;
  Tensor classes(DType::kI64, {t.classes()});
  std::iota(classes.data<int64_t>().begin(), classes.data<int64_t>().end(), 0);
  const Value largest = ops::ArgMax(b, soft.value(), -1, true);
  const Value hit = ops::Equal(b, largest, b.Constant(std::move(classes)));
  return {b, ops::StraightThrough(b, ops::Cast(b, hit, t.dtype()), soft.value())};
}
// Maddison et al. 2017, equation 10.
Expr GumbelSoftmaxLogDensity(const Terms& t, Expr x) {
  const double temperature = t.options().temperature, k = static_cast<double>(t.classes());
  const Expr logits = t.ClassLogits();
  if (t.options().straight_through) return SumLast(x * LogProbabilities(t));
  const Expr log_x = Log(Max(x, Tiny(x.dtype())));
  const Expr powers = LogSumExp(logits - temperature * log_x);
  return SumLast(logits - (temperature + 1) * log_x) - k * SumLast(powers) +
         (std::lgamma(k) + (k - 1) * std::log(temperature));
}

Expr DrawGumbelTopK(const Terms& t) {
  return {t.builder(), ops::TopK(t.builder(), Perturbed(t).value(), t.options().k)[1]};
}
// Kool et al. 2019: the product over the draws of p_i / (what was left), where what was left is
// summed from its parts, not as 1 minus what was taken, which would cancel.
Expr GumbelTopKLogDensity(const Terms& t, Expr x) {
  Builder& b = t.builder();
  const int64_t k = t.classes(), drawn = t.options().k;
  const Expr known = KnownClass(t, x);
  const Expr classes = Where(known, x, x.Like(0));
  const Expr log_p = Pick(t, LogProbabilities(t), classes, 1);  // (sample..., B..., drawn)
  // Marks of the classes drawn, (rows, K), by adding ones at row * K + class.
  const int64_t rows = t.DrawShape().num_elements();
  Tensor base(DType::kI64, {rows, 1});
  for (int64_t i = 0; i < rows; ++i) base.data<int64_t>()[i] = i * k;
  const Expr flat{b, ops::Reshape(b, classes.value(), Shape{rows, drawn})};
  const Expr at = flat + Expr{b, b.Constant(std::move(base))};
  const Expr ones = Table(t, {rows, drawn}, [](int64_t) { return 1.0; });
  const Value marks = ops::GatherGrad(b, ones.value(), at.value(), Shape{rows * k});
  const Expr taken{b, ops::Reshape(b, marks, t.DrawShape(k))};
  const Expr p = Exp(LogProbabilities(t));
  const Expr rest = SumLast(Where(taken.Like(0) < taken, p.Like(0), p), /*keep=*/true);
  // Those drawn at j or later: (..., drawn) x a lower triangle of ones.
  const Expr later =
      Table(t, {drawn, drawn}, [drawn](int64_t i) { return i / drawn >= i % drawn ? 1.0 : 0.0; });
  const Expr probabilities{b, ops::Reshape(b, Exp(log_p).value(), Shape{rows, drawn})};
  const Value tails = ops::MatMul(b, probabilities.value(), later.value());
  const Expr left = Expr{b, ops::Reshape(b, tails, t.DrawShape(drawn))} + rest;
  // A class twice, or an unknown one, cannot be drawn.
  const Expr twice{b, ops::ReduceMax(b, taken.value(), {-1}, true)};
  return SumLast(Within(known && twice < twice.Like(1.5), log_p - Log(left)));
}

#define LOC_SCALE                                                  \
  {                                                                \
    {"loc", Constraint::kReal}, { "scale", Constraint::kPositive } \
  }
#define CLASSES                            \
  {                                        \
    {{"logits", Constraint::kReal, 1}}, {  \
      { "probs", Constraint::kSimplex, 1 } \
    }                                      \
  }
#define ZERO_ONE                            \
  {                                         \
    {{"logits", Constraint::kReal}}, {      \
      { "probs", Constraint::kProbability } \
    }                                       \
  }

// In the order of Family.
const FamilyDef* Definitions() {
  static const FamilyDef kDefinitions[kFamilies] = {
      {.name = "normal",
       .signatures = {LOC_SCALE},
       .draw = DrawLocScale<ops::Noise::kNormal>,
       .log_density = NormalLogDensity,
       .entropy = NormalEntropy},
      {.name = "log_normal",
       .signatures = {LOC_SCALE},
       .draw = DrawLogNormal,
       .log_density = LogNormalLogDensity,
       .entropy = LogNormalEntropy},
      {.name = "multivariate_normal",
       .signatures = {{{"loc", Constraint::kReal, 1}, {"scale_diag", Constraint::kPositive, 1}},
                      {{"loc", Constraint::kReal, 1},
                       {"scale_tril", Constraint::kLowerCholesky, 2}}},
       .draw = DrawMultivariateNormal,
       .log_density = MultivariateNormalLogDensity,
       .entropy = MultivariateNormalEntropy},
      {.name = "uniform",
       .signatures = {{{"low", Constraint::kReal}, {"high", Constraint::kReal}}},
       .draw = DrawUniform,
       .log_density = UniformLogDensity,
       .entropy = UniformEntropy},
      {.name = "exponential",
       .signatures = {{{"rate", Constraint::kPositive}}},
       .draw = DrawExponential,
       .log_density = ExponentialLogDensity,
       .entropy = ExponentialEntropy},
      {.name = "laplace",
       .signatures = {LOC_SCALE},
       .draw = DrawLocScale<ops::Noise::kLaplace>,
       .log_density = LaplaceLogDensity,
       .entropy = LaplaceEntropy},
      {.name = "logistic",
       .signatures = {LOC_SCALE},
       .draw = DrawLocScale<ops::Noise::kLogistic>,
       .log_density = LogisticLogDensity,
       .entropy = LogisticEntropy},
      {.name = "gumbel",
       .signatures = {LOC_SCALE},
       .draw = DrawLocScale<ops::Noise::kGumbel>,
       .log_density = GumbelLogDensity,
       .entropy = GumbelEntropy},
      {.name = "gamma",
       .signatures = {{{"concentration", Constraint::kPositive}, {"rate", Constraint::kPositive}}},
       .draw = DrawGamma,
       .log_density = GammaLogDensity,
       .entropy = GammaEntropy},
      {.name = "beta",
       .signatures = {{{"concentration1", Constraint::kPositive},
                       {"concentration0", Constraint::kPositive}}},
       .draw = DrawBeta,
       .log_density = BetaLogDensity,
       .entropy = BetaEntropy},
      {.name = "dirichlet",
       .signatures = {{{"concentration", Constraint::kPositive, 1}}},
       .draw = DrawDirichlet,
       .log_density = DirichletLogDensity,
       .entropy = DirichletEntropy},
      {.name = "student_t",
       .signatures = {{{"df", Constraint::kPositive},
                       {"loc", Constraint::kReal},
                       {"scale", Constraint::kPositive}}},
       .draw = DrawStudentT,
       .log_density = StudentTLogDensity,
       .entropy = StudentTEntropy},
      {.name = "bernoulli",
       .signatures = ZERO_ONE,
       .discrete = true,
       .draw = DrawBernoulli,
       .log_density = BernoulliLogDensity,
       .entropy = BernoulliEntropy},
      {.name = "categorical",
       .signatures = CLASSES,
       .discrete = true,
       .draw = DrawCategorical,
       .log_density = CategoricalLogDensity,
       .entropy = CategoricalEntropy},
      {.name = "relaxed_bernoulli",
       .signatures = ZERO_ONE,
       .draw = DrawRelaxedBernoulli,
       .log_density = RelaxedBernoulliLogDensity},
      {.name = "gumbel_softmax",
       .signatures = CLASSES,
       .draw = DrawGumbelSoftmax,
       .log_density = GumbelSoftmaxLogDensity},
      {.name = "gumbel_top_k",
       .signatures = CLASSES,
       .discrete = true,
       .draw = DrawGumbelTopK,
       .log_density = GumbelTopKLogDensity},
  };
  return kDefinitions;
}

}  // namespace

const FamilyDef& DefinitionOf(Family family) { return Definitions()[static_cast<int>(family)]; }

bool DistributionTerms::has(std::string_view name) const {
  return std::find(d_.names().begin(), d_.names().end(), name) != d_.names().end();
}

Expr DistributionTerms::operator[](std::string_view name) const {
  const auto it = std::find(d_.names().begin(), d_.names().end(), name);
  return {b_, parameters_[it - d_.names().begin()]};
}

Expr DistributionTerms::ClassLogits() const {
  return has("logits") ? (*this)["logits"] : Log(Max((*this)["probs"], Tiny(dtype())));
}

Expr DistributionTerms::BernoulliLogits() const {
  if (has("logits")) return (*this)["logits"];
  const Expr p = (*this)["probs"];
  return Log(Max(p, Tiny(dtype()))) - Log(Max(1 - p, Tiny(dtype())));
}

Shape DistributionTerms::DrawShape(int64_t last) const {
  Shape shape = sample_;
  for (int64_t dim : batch()) shape.push_back(dim);
  if (last > 0) shape.push_back(last);
  return shape;
}

Expr DistributionTerms::Noise(ops::Noise noise, int64_t last) const {
  return {b_, ops::Random(b_, noise, dtype(), DrawShape(last))};
}

Expr DistributionTerms::Broadcast(Expr x, const Shape& shape) const {
  return x.shape() == shape ? x : Expr{b_, ops::BroadcastTo(b_, x.value(), shape)};
}

}  // namespace tandem

#include "engine/nn/activations.h"

#include <algorithm>
#include <cmath>

#include "engine/exec/plan.h"
#include "engine/graph/gradient.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace activations {
namespace {

Value Like(Builder& b, double value, Value x) { return b.Scalar(value, b.dtype(x)); }
Value Plus(Builder& b, Value x, double value) {
  return value == 0 ? x : ops::Add(b, x, Like(b, value, x));
}
Value Times(Builder& b, Value x, double factor) {
  return factor == 1 ? x : ops::Mul(b, x, Like(b, factor, x));
}
Value Above(Builder& b, Value x, double limit) { return ops::Less(b, Like(b, limit, x), x); }
Value Below(Builder& b, Value x, double limit) { return ops::Less(b, x, Like(b, limit, x)); }
Value Clip(Builder& b, Value x, double low, double high) {
  return ops::Min(b, ops::Max(b, x, Like(b, low, x)), Like(b, high, x));
}
Value Filled(Builder& b, double value, Value x) {
  return b.ok() ? ops::BroadcastTo(b, Like(b, value, x), Shape(b.shape(x))) : Value{};
}

}  // namespace

Value LeakyRelu(Builder& b, Value x, Value slope) {
  return ops::Where(b, Below(b, x, 0), ops::Mul(b, slope, x), x);
}

Value Elu(Builder& b, Value x, double alpha, double scale) {
  // e^x - 1 for x <= 0, and 0 above: the exponential never overflows, nor does its gradient, which
  // at 0 is that from below, as PyTorch's.
  const Value negative = ops::Where(b, Above(b, x, 0), Like(b, 0, x), x);
  const Value below = Plus(b, ops::Exp(b, Times(b, negative, 1 / scale)), -1);
  return ops::Add(b, ops::Relu(b, x), Times(b, below, alpha));
}

Value Selu(Builder& b, Value x, double alpha, double gamma) {
  return Times(b, Elu(b, x, alpha), gamma);
}

Value HardSigmoid(Builder& b, Value x, double alpha, double beta) {
  return ops::Min(b, ops::Relu(b, Plus(b, Times(b, x, alpha), beta)), Like(b, 1, x));
}

Value HardSwish(Builder& b, Value x) { return ops::Mul(b, x, HardSigmoid(b, x, 1.0 / 6, 0.5)); }

Value Softsign(Builder& b, Value x) { return ops::Div(b, x, Plus(b, ops::Abs(b, x), 1)); }

Value Mish(Builder& b, Value x) { return ops::Mul(b, x, ops::Tanh(b, ops::Softplus(b, x))); }

Value Swish(Builder& b, Value x, double beta) {
  if (beta == 1) return ops::Silu(b, x);
  return ops::Mul(b, x, ops::Sigmoid(b, Times(b, x, beta)));
}

Value ThresholdedRelu(Builder& b, Value x, double threshold) {
  return ops::Where(b, Above(b, x, threshold), x, Like(b, 0, x));
}

Value Shrink(Builder& b, Value x, double lambda, double bias) {
  const Value inner = ops::Where(b, Above(b, x, lambda), Plus(b, x, -bias), Like(b, 0, x));
  return ops::Where(b, Below(b, x, -lambda), Plus(b, x, bias), inner);
}

}  // namespace activations

namespace {

using namespace activations;  // NOLINT: the functions above, by their own names
using P = std::span<const double>;

constexpr double kAny = 1e6;        // parameters beyond are a mistake, and overflow f32 soon
constexpr double kPositive = 1e-3;  // the least of those that must be above 0
constexpr double kSeluAlpha = 1.67326319217681884765625;
constexpr double kSeluGamma = 1.05070102214813232421875;

std::vector<double> AtZero(P) { return {0}; }

Value Threshold(Builder& b, Value x) {
  return ops::Where(b, Below(b, x, 0), Filled(b, 0, x), Filled(b, 1, x));
}

// softmax((x, 0))_1: what two classes make of the difference of their logits.
Value SoftmaxOfTwo(Builder& b, Value x) {
  if (!b.ok()) return {};
  const Shape shape = b.shape(x);
  const int64_t n = shape.num_elements();
  const Value column = ops::Reshape(b, x, {n, 1});
  const Value both = ops::Softmax(b, ops::Concat(b, {column, Filled(b, 0, column)}, 1));
  return ops::Reshape(b, ops::Slice(b, both, {0, 0}, {n, 1}, {1, 1}), shape);
}

const std::vector<Activation>& Steps() {
  static const auto* const list = new std::vector<Activation>{
      {"threshold",
       "1 if x >= 0, else 0",
       "McCulloch and Pitts 1943; Rosenblatt 1958",
       {},
       {},
       [](Builder& b, Value x, P) { return Threshold(b, x); },
       AtZero,
       "derivative 0: trained through a surrogate, as the next"},
      {"threshold_boxcar",
       "1 if x >= 0, else 0; backward as min(1, max(0, x / width + 1/2))",
       "Bengio, Leonard and Courville 2013; Neftci, Mostafa and Zenke 2019",
       {{"width", 1, kPositive, kAny}},
       {},
       [](Builder& b, Value x, P p) {
         const Value line = Plus(b, Times(b, x, 1 / p[0]), 0.5);
         return ops::StraightThrough(b, Threshold(b, x), Clip(b, line, 0, 1));
       },
       [](P p) {
         return std::vector<double>{-p[0] / 2, 0, p[0] / 2};
       },
       "the derivative is the surrogate's: a boxcar, 1 / width around 0"},
      {"sign",
       "-1, 0 or 1",
       "Rosenblatt 1958; Hubara et al. 2016",
       {},
       {"Sign"},
       [](Builder& b, Value x, P) { return ops::Sign(b, x); },
       AtZero,
       "derivative 0: trained through a surrogate, as the next"},
      {"sign_straight_through",
       "-1, 0 or 1; backward as min(1, max(-1, x))",
       "Hubara et al. 2016",
       {},
       {},
       [](Builder& b, Value x, P) {
         return ops::StraightThrough(b, ops::Sign(b, x), Clip(b, x, -1, 1));
       },
       [](P) {
         return std::vector<double>{-1, 0, 1};
       },
       "the derivative is the surrogate's"},
      {"linear",
       "slope x",
       "Widrow and Hoff 1960",
       {{"slope", 1, -kAny, kAny}},
       {"Identity"},
       [](Builder& b, Value x, P p) { return Times(b, x, p[0]); }},
      {"hard_sigmoid",
       "min(1, max(0, alpha x + beta))",
       "Courbariaux et al. 2015",
       {{"alpha", 0.2, kPositive, kAny}, {"beta", 0.5, -kAny, kAny}},
       {"HardSigmoid"},
       [](Builder& b, Value x, P p) { return HardSigmoid(b, x, p[0], p[1]); },
       [](P p) {
         return std::vector<double>{-p[1] / p[0], (1 - p[1]) / p[0]};
       }},
      {"hard_tanh",
       "min(1, max(-1, x))",
       "Collobert 2004",
       {},
       {"Clip"},
       [](Builder& b, Value x, P) { return Clip(b, x, -1, 1); },
       [](P) {
         return std::vector<double>{-1, 1};
       }},
  };
  return *list;
}

const std::vector<Activation>& Sigmoids() {
  static const auto* const list = new std::vector<Activation>{
      {"sigmoid",
       "1 / (1 + e^-x)",
       "Verhulst 1845; Rumelhart, Hinton and Williams 1986",
       {},
       {"Sigmoid"},
       [](Builder& b, Value x, P) { return ops::Sigmoid(b, x); }},
      {"log_sigmoid",
       "log(1 / (1 + e^-x))",
       "the log-likelihood of logistic regression",
       {},
       {},
       [](Builder& b, Value x, P) { return ops::Neg(b, ops::Softplus(b, ops::Neg(b, x))); }},
      {"softmax",
       "e^x / (e^x + 1): softmax((x, 0))_1",
       "Bridle 1990",
       {},
       {"Softmax"},
       [](Builder& b, Value x, P) { return SoftmaxOfTwo(b, x); },
       nullptr,
       "over a vector; here of one logit, the other 0"},
      {"tanh",
       "(e^x - e^-x) / (e^x + e^-x)",
       "Rumelhart, Hinton and Williams 1986",
       {},
       {"Tanh"},
       [](Builder& b, Value x, P) { return ops::Tanh(b, x); }},
      {"scaled_tanh",
       "1.7159 tanh(2 x / 3)",
       "LeCun et al. 1998",
       {},
       {},
       [](Builder& b, Value x, P) { return Times(b, ops::Tanh(b, Times(b, x, 2.0 / 3)), 1.7159); }},
      {"softsign",
       "x / (1 + |x|)",
       "Bergstra et al. 2009",
       {},
       {"Softsign"},
       [](Builder& b, Value x, P) { return Softsign(b, x); }},
      {"isru",
       "x / sqrt(1 + alpha x^2)",
       "Carlile et al. 2017",
       {{"alpha", 1, 0, kAny}},
       {},
       [](Builder& b, Value x, P p) {
         return ops::Mul(b, x, ops::Rsqrt(b, Plus(b, Times(b, ops::Square(b, x), p[0]), 1)));
       }},
  };
  return *list;
}

const std::vector<Activation>& Rectifiers() {
  static const auto* const list = new std::vector<Activation>{
      {"relu",
       "max(x, 0)",
       "Fukushima 1969; Nair and Hinton 2010",
       {},
       {"Relu"},
       [](Builder& b, Value x, P) { return ops::Relu(b, x); },
       AtZero},
      {"leaky_relu",
       "x if x >= 0, else alpha x",
       "Maas et al. 2013",
       {{"alpha", 0.01, -kAny, kAny}},
       {"LeakyRelu"},
       [](Builder& b, Value x, P p) { return LeakyRelu(b, x, Like(b, p[0], x)); },
       AtZero},
      {"prelu",
       "x if x >= 0, else a x",
       "He et al. 2015",
       {{"a", 0.25, -kAny, kAny}},
       {"PRelu"},
       [](Builder& b, Value x, P p) { return LeakyRelu(b, x, Like(b, p[0], x)); },
       AtZero,
       "a is learnt, one for all or one a channel"},
      {"rrelu",
       "x if x >= 0, else (lower + upper) / 2 x",
       "Xu et al. 2015",
       {{"lower", 1.0 / 8, -kAny, kAny}, {"upper", 1.0 / 3, -kAny, kAny}},
       {},
       [](Builder& b, Value x, P p) { return LeakyRelu(b, x, Like(b, (p[0] + p[1]) / 2, x)); },
       AtZero,
       "in training the slope is drawn from [lower, upper] for each element; this is its mean"},
      {"relu6",
       "min(max(x, 0), 6)",
       "Krizhevsky 2010",
       {},
       {"Clip"},
       [](Builder& b, Value x, P) { return ops::Min(b, ops::Relu(b, x), Like(b, 6, x)); },
       [](P) {
         return std::vector<double>{0, 6};
       }},
      {"thresholded_relu",
       "x if x > theta, else 0",
       "Konda, Memisevic and Krueger 2014",
       {{"theta", 1, -kAny, kAny}},
       {"ThresholdedRelu"},
       [](Builder& b, Value x, P p) { return ThresholdedRelu(b, x, p[0]); },
       [](P p) { return std::vector<double>{p[0]}; }},
      {"squared_relu",
       "max(x, 0)^2",
       "So et al. 2021",
       {},
       {},
       [](Builder& b, Value x, P) { return ops::Square(b, ops::Relu(b, x)); }},
      {"maxout",
       "max(x, slope x + offset)",
       "Goodfellow et al. 2013",
       {{"slope", -0.5, -kAny, 0.999}, {"offset", 0, -kAny, kAny}},
       {"Max"},
       [](Builder& b, Value x, P p) { return ops::Max(b, x, Plus(b, Times(b, x, p[0]), p[1])); },
       [](P p) { return std::vector<double>{p[1] / (1 - p[0])}; },
       "of several affine maps, all learnt; here of two, the first the identity"},
  };
  return *list;
}

const std::vector<Activation>& Exponentials() {
  static const auto* const list = new std::vector<Activation>{
      {"elu",
       "x if x > 0, else alpha (e^x - 1)",
       "Clevert, Unterthiner and Hochreiter 2015",
       {{"alpha", 1, -kAny, kAny}},
       {"Elu"},
       [](Builder& b, Value x, P p) { return Elu(b, x, p[0]); },
       AtZero,
       "smooth where alpha is 1"},
      {"selu",
       "1.0507 elu(x; 1.6733)",
       "Klambauer et al. 2017",
       {},
       {"Selu"},
       [](Builder& b, Value x, P) { return Selu(b, x, kSeluAlpha, kSeluGamma); },
       AtZero},
      {"celu",
       "max(x, 0) + alpha (e^min(x / alpha, 0) - 1)",
       "Barron 2017",
       {{"alpha", 1, kPositive, kAny}},
       {"Celu"},
       [](Builder& b, Value x, P p) { return Elu(b, x, p[0], p[0]); }},
      {"softplus",
       "log(1 + e^(beta x)) / beta",
       "Dugas et al. 2001",
       {{"beta", 1, kPositive, kAny}},
       {"Softplus"},
       [](Builder& b, Value x, P p) {
         return Times(b, ops::Softplus(b, Times(b, x, p[0])), 1 / p[0]);
       }},
      {"silu",
       "x / (1 + e^-x)",
       "Elfwing, Uchibe and Doya 2018",
       {},
       {"Swish"},
       [](Builder& b, Value x, P) { return ops::Silu(b, x); }},
      {"swish",
       "x / (1 + e^(-beta x))",
       "Ramachandran, Zoph and Le 2017",
       {{"beta", 1, -kAny, kAny}},
       {"Swish"},
       [](Builder& b, Value x, P p) { return Swish(b, x, p[0]); }},
      {"hard_swish",
       "x min(1, max(0, x / 6 + 1/2))",
       "Howard et al. 2019",
       {},
       {"HardSwish"},
       [](Builder& b, Value x, P) { return HardSwish(b, x); },
       [](P) {
         return std::vector<double>{-3, 3};
       }},
      {"mish",
       "x tanh(log(1 + e^x))",
       "Misra 2019",
       {},
       {"Mish"},
       [](Builder& b, Value x, P) { return Mish(b, x); }},
      {"gelu",
       "x Phi(x) = x (1 + erf(x / sqrt 2)) / 2",
       "Hendrycks and Gimpel 2016",
       {},
       {"Gelu"},
       [](Builder& b, Value x, P) { return ops::Gelu(b, x); }},
      {"gelu_tanh",
       "x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2",
       "Hendrycks and Gimpel 2016",
       {},
       {"Gelu"},
       [](Builder& b, Value x, P) { return ops::GeluTanh(b, x); }},
      {"quick_gelu",
       "x / (1 + e^(-1.702 x))",
       "Hendrycks and Gimpel 2016",
       {},
       {"Swish"},
       [](Builder& b, Value x, P) { return Swish(b, x, 1.702); }},
  };
  return *list;
}

const std::vector<Activation>& ShrinkersAndWaves() {
  static const auto* const list = new std::vector<Activation>{
      {"softshrink",
       "x - lambda sign(x) if |x| > lambda, else 0",
       "Donoho 1995",
       {{"lambda", 0.5, 0, kAny}},
       {"Shrink"},
       [](Builder& b, Value x, P p) { return Shrink(b, x, p[0], p[0]); },
       [](P p) {
         return std::vector<double>{-p[0], p[0]};
       }},
      {"hardshrink",
       "x if |x| > lambda, else 0",
       "Donoho and Johnstone 1994",
       {{"lambda", 0.5, 0, kAny}},
       {"Shrink"},
       [](Builder& b, Value x, P p) { return Shrink(b, x, p[0], 0); },
       [](P p) {
         return std::vector<double>{-p[0], p[0]};
       }},
      {"tanhshrink",
       "x - tanh(x)",
       "PyTorch",
       {},
       {},
       [](Builder& b, Value x, P) { return ops::Sub(b, x, ops::Tanh(b, x)); }},
      {"sin",
       "sin(omega x)",
       "Parascandolo et al. 2016; Sitzmann et al. 2020",
       {{"omega", 1, -1000, 1000}},
       {"Sin"},
       [](Builder& b, Value x, P p) { return ops::Sin(b, Times(b, x, p[0])); }},
      {"snake",
       "x + sin(a x)^2 / a",
       "Ziyin, Hartwig and Ueda 2020",
       {{"a", 1, kPositive, 1000}},
       {},
       [](Builder& b, Value x, P p) {
         const Value wave = ops::Square(b, ops::Sin(b, Times(b, x, p[0])));
         return ops::Add(b, x, Times(b, wave, 1 / p[0]));
       }},
      {"gaussian",
       "e^(-x^2)",
       "Broomhead and Lowe 1988",
       {},
       {},
       [](Builder& b, Value x, P) { return ops::Exp(b, ops::Neg(b, ops::Square(b, x))); }},
  };
  return *list;
}

const std::vector<Activation>& Gates() {
  constexpr std::string_view kNote = "a gate: times a second input, here 1";
  static const auto* const list = new std::vector<Activation>{
      {"bilinear",
       "x u",
       "Dauphin et al. 2017; Shazeer 2020",
       {},
       {},
       [](Builder& b, Value x, P) { return ops::Mul(b, x, Filled(b, 1, x)); },
       nullptr,
       kNote},
      {"glu",
       "sigmoid(x) u",
       "Dauphin et al. 2017",
       {},
       {},
       [](Builder& b, Value x, P) { return ops::Mul(b, ops::Sigmoid(b, x), Filled(b, 1, x)); },
       nullptr,
       kNote},
      {"reglu",
       "relu(x) u",
       "Shazeer 2020",
       {},
       {},
       [](Builder& b, Value x, P) { return ops::Mul(b, ops::Relu(b, x), Filled(b, 1, x)); },
       AtZero,
       kNote},
      {"geglu",
       "gelu(x) u",
       "Shazeer 2020",
       {},
       {},
       [](Builder& b, Value x, P) { return ops::Mul(b, ops::Gelu(b, x), Filled(b, 1, x)); },
       nullptr,
       kNote},
      {"swiglu",
       "silu(x) u",
       "Shazeer 2020",
       {},
       {},
       [](Builder& b, Value x, P) { return ops::SwiGlu(b, x, Filled(b, 1, x)); },
       nullptr,
       kNote},
  };
  return *list;
}

}  // namespace

std::span<const Activation> Activations() {
  static const auto* const all = [] {
    auto* list = new std::vector<Activation>;
    for (const auto* family :
         {&Steps(), &Sigmoids(), &Rectifiers(), &Exponentials(), &ShrinkersAndWaves(), &Gates()}) {
      list->insert(list->end(), family->begin(), family->end());
    }
    return list;
  }();
  return *all;
}

const Activation* FindActivation(std::string_view name) {
  for (const Activation& activation : Activations()) {
    if (activation.name == name) return &activation;
  }
  return nullptr;
}

absl::StatusOr<ActivationCurve> RunActivation(const Activation& activation,
                                              std::span<const double> parameters,
                                              std::span<const float> x) {
  if (parameters.size() != activation.parameters.size()) {
    return InvalidArgument(activation.name, " has ", activation.parameters.size(),
                           " parameters, got ", parameters.size());
  }
  for (size_t i = 0; i < parameters.size(); ++i) {
    const ActivationParameter& p = activation.parameters[i];
    if (!(parameters[i] >= p.low && parameters[i] <= p.high)) {
      return InvalidArgument(activation.name, ": ", p.name, " is ", parameters[i], ", outside [",
                             p.low, ", ", p.high, "]");
    }
  }
  const int64_t count = std::max<int64_t>(static_cast<int64_t>(x.size()), 1);
  Tensor points = Tensor::Zeros({DType::kF32, {count}});
  std::copy(x.begin(), x.end(), points.data<float>().begin());
  Builder builder(EvaluateNode);
  const Value in = builder.Input("x", points.type());
  const Value y = activation.build(builder, in, parameters);
  TANDEM_RETURN_IF_ERROR(builder.status());
  ActivationCurve curve;
  for (const Node& node : builder.graph().nodes()) {
    const std::string op(node.op->name);
    if (std::find(curve.operators.begin(), curve.operators.end(), op) == curve.operators.end()) {
      curve.operators.push_back(op);
    }
  }
  const Value ones = builder.Input("ones", points.type());
  TANDEM_ASSIGN_OR_RETURN(const std::vector<Value> dy, Gradient(builder, y, {&in, 1}, ones));
  builder.Output(y);
  builder.Output(dy[0]);
  TANDEM_ASSIGN_OR_RETURN(Graph graph, builder.Finish());
  TANDEM_ASSIGN_OR_RETURN(const std::unique_ptr<Plan> plan,
                          Plan::Compile(std::move(graph), CpuBackend()));
  Tensor cotangent = Tensor::Zeros(points.type());
  for (float& one : cotangent.data<float>()) one = 1;
  const Tensor* inputs[] = {&points, &cotangent};
  TANDEM_ASSIGN_OR_RETURN(const std::vector<Tensor> outputs, RunPlan(*plan, inputs));
  const std::span<const float> values = outputs[0].data<float>(), slopes = outputs[1].data<float>();
  curve.y.assign(values.begin(), values.begin() + static_cast<int64_t>(x.size()));
  curve.dy.assign(slopes.begin(), slopes.begin() + static_cast<int64_t>(x.size()));
  return curve;
}

}  // namespace tandem

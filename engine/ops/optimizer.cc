// Optimizer steps over flat parameters.
#include "engine/ops/definitions.h"
#include "engine/ops/inference.h"

namespace tandem::ops {
namespace {

constexpr int64_t kHyperparameters = 8;

Types InferSumOfSquares(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireFloat(args, 0, "x"));
  TANDEM_RETURN_IF_ERROR(RequireRank(args, 0, "x", 1));
  return std::vector<TensorType>{{DType::kF64, Shape{}}};
}

// p, g, m, v, decay, hyper
Types InferAdamStep(const InferArgs& args) {
  constexpr std::string_view kNames[] = {"p", "g", "m", "v", "decay", "hyper"};
  TANDEM_RETURN_IF_ERROR(RequireRank(args, 0, "p", 1));
  for (int i = 0; i < 5; ++i) {
    const DType dtype = i == 4 ? DType::kU8 : DType::kF32;
    TANDEM_RETURN_IF_ERROR(RequireDType(args, i, kNames[i], dtype));
    TANDEM_RETURN_IF_ERROR(RequireShape(args, i, kNames[i], args.shape(0)));
  }
  // f64 keeps 1 - beta2 exact to more than four digits.
  if (args.type(5).dtype != DType::kF64) {
    TANDEM_RETURN_IF_ERROR(RequireDType(args, 5, kNames[5], DType::kF32));
  }
  TANDEM_RETURN_IF_ERROR(RequireShape(args, 5, kNames[5], Shape{kHyperparameters}));
  return std::vector<TensorType>(3, args.type(0));
}

// sum(x^2), squared and added in f64
std::vector<Value> LowerSumOfSquares(Builder& b, const Node& node) {
  return {ReduceSum(b, Square(b, Cast(b, node.inputs[0], DType::kF64)), {}, false)};
}

// With g' = scale g, w = weight_decay * decay:
//   Adam: g' += w p;  AdamW: p -= lr w p;  then for both
//   m' = m + (1 - beta1) (g' - m);  v' = beta2 v + (1 - beta2) g'^2
//   p' = p - lr / c1 * m' / (sqrt(v') / sqrt(c2) + eps),  c = 1 - beta^t
std::vector<Value> LowerAdamStep(Builder& b, const Node& node) {
  const Value m = node.inputs[2], v = node.inputs[3];
  std::vector<Value> hyper;
  for (int64_t i = 0; i < kHyperparameters; ++i) {
    const Value element = Slice(b, node.inputs[5], {i}, {i + 1}, {1});  // (1)
    hyper.push_back(Cast(b, element, DType::kF32));
  }
  const Value lr = hyper[0], beta1 = hyper[1], beta2 = hyper[2], one = b.Scalar(1);
  const Value weight_decay = Mul(b, Cast(b, node.inputs[4], DType::kF32), hyper[4]);
  Value p = node.inputs[0], g = Mul(b, node.inputs[1], hyper[7]);
  if (node.attributes.Int("decoupled") != 0) {
    p = Mul(b, p, Sub(b, one, Mul(b, lr, weight_decay)));
  } else {
    g = Add(b, g, Mul(b, weight_decay, p));
  }
  const Value m_new = Add(b, m, Mul(b, Sub(b, one, beta1), Sub(b, g, m)));
  const Value v_new = Add(b, Mul(b, v, beta2), Mul(b, Sub(b, one, beta2), Square(b, g)));
  const Value root = Add(b, Div(b, Sqrt(b, v_new), Sqrt(b, hyper[6])), hyper[3]);
  const Value step = Mul(b, Div(b, lr, hyper[5]), Div(b, m_new, root));
  return {Sub(b, p, step), m_new, v_new};
}

}  // namespace

constinit const OpDef kSumOfSquares = {.name = "SumOfSquares",
                                       .infer = InferSumOfSquares,
                                       .lower = LowerSumOfSquares,
                                       .flops = FlopsPerElement<2>};
constinit const OpDef kAdamStep = {.name = "AdamStep",
                                   .min_inputs = 6,
                                   .max_inputs = 6,
                                   .infer = InferAdamStep,
                                   .lower = LowerAdamStep,
                                   .flops = FlopsPerElement<16>};

Value SumOfSquares(Builder& b, Value x) { return b.Add(kSumOfSquares, {x}); }

std::vector<Value> AdamStep(Builder& b, Value p, Value g, Value m, Value v, Value decay,
                            Value hyper, bool decoupled) {
  return b.AddMulti(kAdamStep, {{p, g, m, v, decay, hyper}}, {{"decoupled", int64_t{decoupled}}},
                    3);
}

}  // namespace tandem::ops

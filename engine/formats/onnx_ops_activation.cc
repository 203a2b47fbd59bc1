// Activations, element by element.
#include <limits>

#include "engine/base/error.h"
#include "engine/formats/onnx_compose.h"
#include "engine/formats/onnx_ops.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

using compose::Like;

template <Value (*kFunction)(Builder&, Value)>
Outputs Unary(NodeContext& c) {
  c.IgnoreAttribute("consumed_inputs");  // of opset 1, "legacy optimization attribute"
  return One(kFunction(c.b, c.In(0)));
}

// x where x >= 0, else slope x.
Value Leaky(Builder& b, Value x, Value slope) {
  return ops::Where(b, ops::Less(b, x, Like(b, 0, x)), ops::Mul(b, slope, x), x);
}

Outputs LeakyRelu(NodeContext& c) {
  c.IgnoreAttribute("consumed_inputs");
  return One(Leaky(c.b, c.In(0), Like(c.b, c.Float("alpha", 0.01), c.In(0))));
}

Outputs PRelu(NodeContext& c) {
  c.IgnoreAttribute("consumed_inputs");
  Value slope = c.In(1);
  // Before opset 7 a slope is one a channel, dimension 1.
  if (c.opset() < 7 && c.rank(1) == 1 && c.rank(0) > 2) {
    slope = compose::AsChannels(c.b, slope, c.rank(0) - 2);
  }
  return One(Leaky(c.b, c.In(0), slope));
}

// e^x - 1 for x <= 0, and 0 above: the exponential never overflows, nor does its gradient.
Value ExpBelowZero(Builder& b, Value x) {
  return compose::AddScalar(b, ops::Exp(b, ops::Min(b, x, Like(b, 0, x))), -1);
}

// max(x, 0) + alpha (e^min(x / scale, 0) - 1)
Value EluLike(Builder& b, Value x, double alpha, double scale) {
  const Value below = ExpBelowZero(b, compose::Scale(b, x, 1 / scale));
  return ops::Add(b, ops::Relu(b, x), compose::Scale(b, below, alpha));
}

Outputs Elu(NodeContext& c) {
  c.IgnoreAttribute("consumed_inputs");
  return One(EluLike(c.b, c.In(0), c.Float("alpha", 1), 1));
}

Outputs Celu(NodeContext& c) {
  const double alpha = c.Float("alpha", 1);
  if (!(alpha > 0)) return Unimplemented("attribute alpha=", alpha, ", not above 0");
  return One(EluLike(c.b, c.In(0), alpha, alpha));
}

Outputs Selu(NodeContext& c) {
  c.IgnoreAttribute("consumed_inputs");
  const double alpha = c.Float("alpha", c.opset() < 6 ? 1.6732 : 1.67326319217681884765625);
  const double gamma = c.Float("gamma", c.opset() < 6 ? 1.0507 : 1.05070102214813232421875);
  return One(compose::Scale(c.b, EluLike(c.b, c.In(0), alpha, 1), gamma));
}

Outputs Gelu(NodeContext& c) {
  const std::string approximate = c.String("approximate", "none");
  if (approximate == "none") return One(ops::Gelu(c.b, c.In(0)));
  if (approximate == "tanh") return One(ops::GeluTanh(c.b, c.In(0)));
  return InvalidArgument("attribute approximate='", approximate, "' is neither none nor tanh");
}

// min(1, max(0, alpha x + beta))
Value HardSigmoid(Builder& b, Value x, double alpha, double beta) {
  const Value line = compose::AddScalar(b, compose::Scale(b, x, alpha), beta);
  return ops::Min(b, ops::Relu(b, line), Like(b, 1, x));
}

Outputs HardSigmoid(NodeContext& c) {
  c.IgnoreAttribute("consumed_inputs");
  return One(HardSigmoid(c.b, c.In(0), c.Float("alpha", 0.2), c.Float("beta", 0.5)));
}

Outputs HardSwish(NodeContext& c) {
  return One(ops::Mul(c.b, c.In(0), HardSigmoid(c.b, c.In(0), 1.0 / 6, 0.5)));
}

Value Softsign(Builder& b, Value x) {
  return ops::Div(b, x, compose::AddScalar(b, ops::Abs(b, x), 1));
}

Value Mish(Builder& b, Value x) { return ops::Mul(b, x, ops::Tanh(b, ops::Softplus(b, x))); }

Outputs ThresholdedRelu(NodeContext& c) {
  const Value x = c.In(0);
  const Value above = compose::Greater(c.b, x, Like(c.b, c.Float("alpha", 1), x));
  return One(ops::Where(c.b, above, x, Like(c.b, 0, x)));
}

Outputs Swish(NodeContext& c) {
  const double alpha = c.Float("alpha", 1);
  const Value x = c.In(0);
  if (alpha == 1) return One(ops::Silu(c.b, x));
  return One(ops::Mul(c.b, x, ops::Sigmoid(c.b, compose::Scale(c.b, x, alpha))));
}

// x + bias below -lambd, x - bias above lambd, else 0.
Outputs Shrink(NodeContext& c) {
  const double lambd = c.Float("lambd", 0.5), bias = c.Float("bias", 0);
  const Value x = c.In(0);
  const Value below = ops::Less(c.b, x, Like(c.b, -lambd, x));
  const Value above = compose::Greater(c.b, x, Like(c.b, lambd, x));
  const Value inner = ops::Where(c.b, above, compose::AddScalar(c.b, x, -bias), Like(c.b, 0, x));
  return One(ops::Where(c.b, below, compose::AddScalar(c.b, x, bias), inner));
}

// min(max(x, low), high); the limits are attributes before opset 11.
Outputs Clip(NodeContext& c) {
  Value x = c.In(0), low, high;
  if (c.opset() < 11) {
    c.IgnoreAttribute("consumed_inputs");
    if (c.HasAttribute("min")) low = Like(c.b, c.Float("min", 0), x);
    if (c.HasAttribute("max")) high = Like(c.b, c.Float("max", 0), x);
  } else {
    for (int i = 1; i <= 2; ++i) {
      if (c.Has(i) && c.shape(i).num_elements() != 1) {
        return InvalidArgument("limit ", i, " is ", c.shape(i).ToString(), ", expected a scalar");
      }
    }
    if (c.Has(1)) low = ops::Reshape(c.b, c.In(1), Shape());
    if (c.Has(2)) high = ops::Reshape(c.b, c.In(2), Shape());
  }
  if (low.valid()) x = ops::Max(c.b, x, low);
  if (high.valid()) x = ops::Min(c.b, x, high);
  return One(x);
}

// Inference: the input; the mask, where asked for, is all true.
Outputs Dropout(NodeContext& c) {
  c.IgnoreAttribute("consumed_inputs");
  c.IgnoreAttribute("seed");
  if (c.opset() < 12) c.IgnoreAttribute("ratio");
  if (c.opset() < 7 && c.Int("is_test", 0) == 0) {
    return Unimplemented("attribute is_test=0 (training) is not supported");
  }
  if (c.Has(2)) {
    TANDEM_ASSIGN_OR_RETURN(const Tensor* training, c.ConstantInput(2, "training_mode"));
    double ratio = 0.5;
    if (c.Has(1)) {
      TANDEM_ASSIGN_OR_RETURN(const Tensor* given, c.ConstantInput(1, "ratio"));
      if (given->num_elements() != 1) return InvalidArgument("ratio is not a scalar");
      ratio = ElementAsDouble(*given, 0);
    }
    if (training->num_elements() != 1) return InvalidArgument("training_mode is not a scalar");
    if (ElementAsInt(*training, 0) != 0 && ratio != 0) {
      return Unimplemented("training_mode with a ratio of ", ratio, " is not supported");
    }
  }
  Value mask;
  if (c.WantsOutput(1)) mask = ops::BroadcastTo(c.b, c.Scalar(1, DType::kBool), c.shape(0));
  return std::vector<Value>{c.In(0), mask};
}

constexpr OnnxOp Op1(std::string_view name, Outputs (*convert)(NodeContext&)) {
  return {.name = name, .convert = convert};
}

constexpr OnnxOp kOps[] = {
    Op1("Celu", Celu),
    {.name = "Clip",
     .convert = Clip,
     .min_inputs = 1,
     .max_inputs = 3,
     .fixed_inputs = InputSet(1, 2)},
    {.name = "Dropout",
     .convert = Dropout,
     .min_inputs = 1,
     .max_inputs = 3,
     .shape_inputs = InputSet(1, 2)},
    Op1("Elu", Elu),
    Op1("Gelu", Gelu),
    Op1("HardSigmoid", HardSigmoid),
    Op1("HardSwish", HardSwish),
    Op1("LeakyRelu", LeakyRelu),
    Op1("Mish", Unary<Mish>),
    {.name = "PRelu", .convert = PRelu, .min_inputs = 2, .max_inputs = 2},
    Op1("Relu", Unary<ops::Relu>),
    Op1("Selu", Selu),
    Op1("Shrink", Shrink),
    Op1("Sigmoid", Unary<ops::Sigmoid>),
    Op1("Softplus", Unary<ops::Softplus>),
    Op1("Softsign", Unary<Softsign>),
    Op1("Swish", Swish),
    Op1("Tanh", Unary<ops::Tanh>),
    Op1("ThresholdedRelu", ThresholdedRelu),
};

}  // namespace

std::span<const OnnxOp> OnnxActivationOps() { return kOps; }

}  // namespace tandem

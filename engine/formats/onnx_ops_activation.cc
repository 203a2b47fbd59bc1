// Activations, element by element.
#include <limits>

#include "engine/base/error.h"
#include "engine/formats/onnx_compose.h"
#include "engine/formats/onnx_ops.h"
#include "engine/nn/activations.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

using compose::Like;

template <Value (*kFunction)(Builder&, Value)>
Outputs Unary(NodeContext& c) {
  c.IgnoreAttribute("consumed_inputs");  // of opset 1, "legacy optimization attribute"
  return One(kFunction(c.b, c.In(0)));
}

Outputs LeakyRelu(NodeContext& c) {
  c.IgnoreAttribute("consumed_inputs");
  return One(activations::LeakyRelu(c.b, c.In(0), Like(c.b, c.Float("alpha", 0.01), c.In(0))));
}

Outputs PRelu(NodeContext& c) {
  c.IgnoreAttribute("consumed_inputs");
  Value slope = c.In(1);
  // Before opset 7 a slope is one a channel, dimension 1.
  if (c.opset() < 7 && c.rank(1) == 1 && c.rank(0) > 2) {
    slope = compose::AsChannels(c.b, slope, c.rank(0) - 2);
  }
  return One(activations::LeakyRelu(c.b, c.In(0), slope));
}

Outputs Elu(NodeContext& c) {
  c.IgnoreAttribute("consumed_inputs");
  return One(activations::Elu(c.b, c.In(0), c.Float("alpha", 1)));
}

Outputs Celu(NodeContext& c) {
  const double alpha = c.Float("alpha", 1);
  if (!(alpha > 0)) return Unimplemented("attribute alpha=", alpha, ", not above 0");
  return One(activations::Elu(c.b, c.In(0), alpha, alpha));
}

Outputs Selu(NodeContext& c) {
  c.IgnoreAttribute("consumed_inputs");
  const double alpha = c.Float("alpha", c.opset() < 6 ? 1.6732 : 1.67326319217681884765625);
  const double gamma = c.Float("gamma", c.opset() < 6 ? 1.0507 : 1.05070102214813232421875);
  return One(activations::Selu(c.b, c.In(0), alpha, gamma));
}

Outputs Gelu(NodeContext& c) {
  const std::string approximate = c.String("approximate", "none");
  if (approximate == "none") return One(ops::Gelu(c.b, c.In(0)));
  if (approximate == "tanh") return One(ops::GeluTanh(c.b, c.In(0)));
  return InvalidArgument("attribute approximate='", approximate, "' is neither none nor tanh");
}

Outputs HardSigmoid(NodeContext& c) {
  c.IgnoreAttribute("consumed_inputs");
  return One(activations::HardSigmoid(c.b, c.In(0), c.Float("alpha", 0.2), c.Float("beta", 0.5)));
}

Outputs ThresholdedRelu(NodeContext& c) {
  return One(activations::ThresholdedRelu(c.b, c.In(0), c.Float("alpha", 1)));
}

Outputs Swish(NodeContext& c) { return One(activations::Swish(c.b, c.In(0), c.Float("alpha", 1))); }

Outputs Shrink(NodeContext& c) {
  const double lambda = c.Float("lambd", 0.5);
  return One(activations::Shrink(c.b, c.In(0), lambda, c.Float("bias", 0)));
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
    Op1("Elu", Elu),
    Op1("Gelu", Gelu),
    Op1("HardSigmoid", HardSigmoid),
    Op1("HardSwish", Unary<activations::HardSwish>),
    Op1("LeakyRelu", LeakyRelu),
    Op1("Mish", Unary<activations::Mish>),
    {.name = "PRelu", .convert = PRelu, .min_inputs = 2, .max_inputs = 2},
    Op1("Relu", Unary<ops::Relu>),
    Op1("Selu", Selu),
    Op1("Shrink", Shrink),
    Op1("Sigmoid", Unary<ops::Sigmoid>),
    Op1("Softplus", Unary<ops::Softplus>),
    Op1("Softsign", Unary<activations::Softsign>),
    Op1("Swish", Swish),
    Op1("Tanh", Unary<ops::Tanh>),
    Op1("ThresholdedRelu", ThresholdedRelu),
};

}  // namespace

std::span<const OnnxOp> OnnxActivationOps() { return kOps; }

}  // namespace tandem

// Operators that draw random numbers.
//
// A node draws by the run's random key and by its own place in the graph, so that every run of a
// model draws anew and two nodes never share their noise. The attribute `seed` is added to the
// run's seed, by its f32's bits (an integer's value in Dropout): with the same value a model draws
// the same sequence of runs again, with another a different one.
#include <bit>
#include <limits>

#include "engine/base/error.h"
#include "engine/formats/onnx_compose.h"
#include "engine/formats/onnx_ops.h"
#include "engine/formats/onnx_tensor.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

Value KeyOf(NodeContext& c, int64_t seed) {
  return ops::Add(c.b, c.b.RandomKey(), c.Int64s(std::vector<int64_t>{seed, 0}));
}
// Invalid (the run's own) without a seed.
Value Key(NodeContext& c) {
  if (!c.HasAttribute("seed")) return {};
  return KeyOf(c, std::bit_cast<uint32_t>(static_cast<float>(c.Float("seed", 0))));
}

absl::StatusOr<DType> DTypeAttribute(NodeContext& c, DType otherwise) {
  if (!c.HasAttribute("dtype")) return otherwise;
  const int64_t type = c.Int("dtype", 0);
  if (type < 0 || type > 1000) return InvalidArgument("attribute dtype=", type);
  TANDEM_ASSIGN_OR_RETURN(const DType dtype,
                          DTypeFromOnnx(static_cast<int32_t>(type), "attribute 'dtype'"));
  return ComputeDType(dtype);
}

// scale * noise + offset, drawn in f32 or f64 as the output is.
Outputs Affine(NodeContext& c, ops::Noise noise, const Shape& shape, DType dtype, double scale,
               double offset) {
  if (!IsFloat(dtype)) return InvalidArgument("dtype is ", DTypeName(dtype), ", not a float");
  const Value drawn = ops::Random(c.b, noise, dtype, shape, Key(c));
  return One(compose::AddScalar(c.b, compose::Scale(c.b, drawn, scale), offset));
}

// mean + scale N(0, 1), or U(low, high).
template <ops::Noise noise>
Outputs Noisy(NodeContext& c, const Shape& shape, DType dtype) {
  if constexpr (noise == ops::Noise::kNormal) {
    const double scale = c.Float("scale", 1), mean = c.Float("mean", 0);
    return Affine(c, noise, shape, dtype, scale, mean);
  }
  const double high = c.Float("high", 1), low = c.Float("low", 0);
  return Affine(c, noise, shape, dtype, high - low, low);
}

template <ops::Noise noise>
Outputs OfShape(NodeContext& c) {
  if (!c.HasAttribute("shape")) return InvalidArgument("attribute 'shape' is missing");
  const std::vector<int64_t> dims = c.Ints("shape");
  TANDEM_ASSIGN_OR_RETURN(const Shape shape, Shape::Checked(dims, sizeof(double), "shape"));
  TANDEM_ASSIGN_OR_RETURN(const DType dtype, DTypeAttribute(c, DType::kF32));
  return Noisy<noise>(c, shape, dtype);
}

template <ops::Noise noise>
Outputs Like(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const DType dtype, DTypeAttribute(c, c.dtype(0)));
  return Noisy<noise>(c, c.shape(0), dtype);
}

// 1 with the probability that the input gives, else 0. No gradient.
Outputs Bernoulli(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const DType dtype, DTypeAttribute(c, c.dtype(0)));
  const Value u = ops::Random(c.b, ops::Noise::kUniform, c.dtype(0), c.shape(0), Key(c));
  return One(ops::Cast(c.b, ops::Less(c.b, u, c.In(0)), dtype));
}

// Categories by the Gumbel-max trick: the place of the largest log-probability with noise.
Outputs Multinomial(NodeContext& c) {
  const Shape shape = c.shape(0);
  if (shape.rank() != 2 || shape[1] == 0) {
    return InvalidArgument("input is ", shape.ToString(), ", expected (batch, classes)");
  }
  const int64_t samples = c.Int("sample_size", 1);
  if (samples < 1) return InvalidArgument("attribute sample_size=", samples);
  TANDEM_ASSIGN_OR_RETURN(const DType dtype, DTypeAttribute(c, DType::kI32));
  if (dtype != DType::kI32 && dtype != DType::kI64) {
    return InvalidArgument("dtype is ", DTypeName(dtype), ", expected i32 or i64");
  }
  TANDEM_ASSIGN_OR_RETURN(const Shape drawn, Shape::Checked({{shape[0], samples, shape[1]}},
                                                            sizeof(double), "the noise"));
  const Value noise = ops::Random(c.b, ops::Noise::kGumbel, c.dtype(0), drawn, Key(c));
  const Value logits = ops::Reshape(c.b, c.In(0), Shape{shape[0], 1, shape[1]});
  const Value category = ops::ArgMax(c.b, ops::Add(c.b, logits, noise), 2, false);
  return One(ops::Cast(c.b, category, dtype));
}

// In training a mask of 1 - ratio ones, and the input under it times 1 / (1 - ratio); else the
// input and a mask of ones. Training is what training_mode says, before opset 12 never but where
// is_test=0 (before opset 7).
Outputs Dropout(NodeContext& c) {
  c.IgnoreAttribute("consumed_inputs");
  double ratio = 0.5;
  bool training = false;
  if (c.opset() < 12) {
    ratio = c.Float("ratio", 0.5);
    training = c.opset() < 7 && c.Int("is_test", 0) == 0;
  } else {
    if (c.Has(1)) {
      TANDEM_ASSIGN_OR_RETURN(const Tensor* given, c.ConstantInput(1, "ratio"));
      if (given->num_elements() != 1) return InvalidArgument("ratio is not a scalar");
      ratio = ElementAsDouble(*given, 0);
    }
    if (c.Has(2)) {
      TANDEM_ASSIGN_OR_RETURN(const Tensor* mode, c.ConstantInput(2, "training_mode"));
      if (mode->num_elements() != 1) return InvalidArgument("training_mode is not a scalar");
      training = ElementAsInt(*mode, 0) != 0;
    }
  }
  Builder& b = c.b;
  const Value x = c.In(0);
  // An integer, other than in the operators above.
  const Value key = c.HasAttribute("seed") ? KeyOf(c, c.Int("seed", 0)) : Value{};
  Value y = x, mask;
  if (training && ratio != 0) {
    if (!(ratio > 0 && ratio < 1)) return InvalidArgument("ratio is ", ratio, ", not in [0, 1)");
    const Value u = ops::Random(b, ops::Noise::kUniform, DType::kF32, c.shape(0), key);
    mask = ops::Less(b, b.Scalar(ratio), u);
    y = ops::Where(b, mask, compose::Scale(b, x, 1 / (1 - ratio)), compose::Like(b, 0, x));
  } else if (c.WantsOutput(1)) {
    mask = ops::BroadcastTo(b, c.Scalar(1, DType::kBool), c.shape(0));
  }
  if (!c.WantsOutput(1)) return std::vector<Value>{y, Value{}};
  // Before opset 10 the mask has the input's type.
  return std::vector<Value>{y, c.opset() < 10 ? ops::Cast(b, mask, c.dtype(0)) : mask};
}

constexpr OnnxOp LikeOp(std::string_view name, Outputs (*convert)(NodeContext&)) {
  return {.name = name, .convert = convert, .fixed_inputs = InputSet(0)};
}

constexpr OnnxOp kOps[] = {
    {.name = "Bernoulli", .convert = Bernoulli},
    {.name = "Dropout",
     .convert = Dropout,
     .min_inputs = 1,
     .max_inputs = 3,
     .shape_inputs = InputSet(1, 2)},
    {.name = "Multinomial", .convert = Multinomial},
    {.name = "RandomNormal",
     .convert = OfShape<ops::Noise::kNormal>,
     .min_inputs = 0,
     .max_inputs = 0},
    LikeOp("RandomNormalLike", Like<ops::Noise::kNormal>),
    {.name = "RandomUniform",
     .convert = OfShape<ops::Noise::kUniform>,
     .min_inputs = 0,
     .max_inputs = 0},
    LikeOp("RandomUniformLike", Like<ops::Noise::kUniform>),
};

}  // namespace

std::span<const OnnxOp> OnnxRandomOps() { return kOps; }

}  // namespace tandem

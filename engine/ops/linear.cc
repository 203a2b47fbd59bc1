// Matrix products, and solving with a triangular matrix.
#include <algorithm>

#include "engine/ops/definitions.h"
#include "engine/ops/inference.h"

namespace tandem::ops {
namespace {

struct Flags {
  bool transpose_a, transpose_b;
  explicit Flags(const Attributes& attributes)
      : transpose_a(attributes.Int("transpose_a") != 0),
        transpose_b(attributes.Int("transpose_b") != 0) {}
};

Types InferMatMul(const InferArgs& args) {
  const Shape &a = args.shape(0), &b = args.shape(1);
  TANDEM_RETURN_IF_ERROR(RequireNumber(args, 0, "a"));
  TANDEM_RETURN_IF_ERROR(RequireSameDType(args, 0, 1));
  if (a.rank() < 2 || b.rank() < 2) {
    return InvalidArgument("a ", a.ToString(), " x b ", b.ToString(), ": rank below 2");
  }
  const Flags flags(args.attributes);
  const int64_t m = a[flags.transpose_a ? -1 : -2], k = a[flags.transpose_a ? -2 : -1];
  const int64_t k_b = b[flags.transpose_b ? -1 : -2], n = b[flags.transpose_b ? -2 : -1];
  if (k != k_b) {
    return InvalidArgument("a ", a.ToString(), flags.transpose_a ? " transposed" : "", " x b ",
                           b.ToString(), flags.transpose_b ? " transposed" : "", ": inner ", k,
                           " != ", k_b);
  }
  absl::StatusOr<Shape> out =
      BroadcastShapes(Shape(a.dims().first(a.rank() - 2)), Shape(b.dims().first(b.rank() - 2)));
  if (!out.ok()) {
    return InvalidArgument("a ", a.ToString(), " x b ", b.ToString(), ": batch ",
                           out.status().message());
  }
  out->push_back(m);
  out->push_back(n);
  if (args.has(2)) {
    TANDEM_RETURN_IF_ERROR(RequireSameDType(args, 0, 2));
    TANDEM_RETURN_IF_ERROR(RequireShape(args, 2, "bias", Shape{n}));
  }
  const DType dtype = args.type(0).dtype;
  const auto to = static_cast<DType>(args.attributes.Int("out", static_cast<int64_t>(dtype)));
  const bool half = dtype == DType::kBF16 || dtype == DType::kF16;
  if (to != dtype && (!half || to != DType::kF32)) {
    return InvalidArgument("a is ", args.type(0).ToString(), ", its product cannot be ",
                           DTypeName(to));
  }
  return std::vector<TensorType>{{to, *std::move(out)}};
}

// Many rows and one matrix, a (..., M, K) x b (K, N): one product of R = ... M rows.
bool RowsTimesMatrix(const Shape& a, const Shape& b, Flags flags) {
  return !flags.transpose_a && a.rank() > 2 && b.rank() == 2;
}

Value FlattenRows(Builder& b, Value x) {
  const Shape shape = b.shape(x);
  return Reshape(b, x, Shape{shape.Count(0, shape.rank() - 1), shape[-1]});
}

// With C = op(A) op(B), op transposing or not:
//   dA = dC op(B)^T, or op(B) dC^T where A is stored transposed;
//   dB = op(A)^T dC, or dC^T op(A) where B is stored transposed;
//   dbias = dC summed over its rows;
// summed over the batch dimensions that were broadcast.
std::vector<Value> MatMulGradient(Builder& b, const GradientArgs& g) {
  const Value x = g.in(0), y = g.in(1);
  Value dz = g.cotangent();
  if (b.dtype(dz) != b.dtype(x)) dz = Cast(b, dz, b.dtype(x));
  const Flags flags(g.node.attributes);
  const bool ta = flags.transpose_a, tb = flags.transpose_b;
  const Shape x_shape = b.shape(x), y_shape = b.shape(y);
  std::vector<Value> result(g.node.inputs.size());
  if (g.needs[0]) {
    const Value dx = ta ? MatMul(b, y, dz, tb, true) : MatMul(b, dz, y, false, !tb);
    result[0] = SumToShape(b, dx, x_shape);
  }
  if (g.needs[1]) {
    const bool flat = RowsTimesMatrix(x_shape, y_shape, flags);
    const Value rows = flat ? FlattenRows(b, x) : x;
    const Value d_rows = flat ? FlattenRows(b, dz) : dz;
    const Value dy = tb ? MatMul(b, d_rows, rows, true, ta) : MatMul(b, rows, d_rows, !ta, false);
    result[1] = SumToShape(b, dy, y_shape);
  }
  if (result.size() > 2 && g.needs[2]) {
    const Shape bias = b.shape(g.in(2));
    result[2] = SumToShape(b, dz, bias);
  }
  return result;
}

// Places of FusedMatMul's inputs; all but the first two are optional.
enum FusedInput : int { kLeft, kRight, kBias, kUp, kResidual, kFusedInputs };

bool IsFusedActivation(std::string_view op) {
  return op == "Relu" || op == "Silu" || op == "Gelu" || op == "GeluTanh";
}

Types InferFusedMatMul(const InferArgs& args) {
  const auto product = std::min<size_t>(args.inputs.size(), kUp);
  TANDEM_ASSIGN_OR_RETURN(
      std::vector<TensorType> types,
      InferMatMul({.inputs = args.inputs.first(product), .attributes = args.attributes}));
  const std::string& activation = args.attributes.String("activation");
  if (!activation.empty() && !IsFusedActivation(activation)) {
    return InvalidArgument("activation ", activation, ", expected Relu, Silu, Gelu or GeluTanh");
  }
  if (!IsFloat(types[0].dtype)) {
    return InvalidArgument("a is ", args.type(kLeft).ToString(), ", expected floating point");
  }
  if (args.has(kUp)) {
    if (args.has(kBias) || !activation.empty()) {
      return InvalidArgument("up goes with neither bias nor activation");
    }
    TANDEM_RETURN_IF_ERROR(RequireSameDType(args, kRight, kUp));
    TANDEM_RETURN_IF_ERROR(RequireShape(args, kUp, "up", args.shape(kRight)));
  }
  if (args.has(kResidual) && args.type(kResidual) != types[0]) {
    return InvalidArgument("residual is ", args.type(kResidual).ToString(), ", expected ",
                           types[0].ToString());
  }
  return types;
}

std::vector<Value> LowerFusedMatMul(Builder& b, const Node& node) {
  const auto in = [&node](size_t i) { return i < node.inputs.size() ? node.inputs[i] : Value{}; };
  const Flags flags(node.attributes);
  std::optional<DType> out;
  if (node.attributes.Has("out")) out = static_cast<DType>(node.attributes.Int("out"));
  const auto product = [&](Value right, Value bias) {
    return MatMul(b, in(kLeft), right, flags.transpose_a, flags.transpose_b, bias, out);
  };
  Value x = product(in(kRight), in(kBias));
  const std::string& activation = node.attributes.String("activation");
  if (!activation.empty()) x = b.Add(*FindOp(activation), {x});
  if (in(kUp).valid()) x = SwiGlu(b, x, product(in(kUp), {}));
  if (in(kResidual).valid()) x = Add(b, in(kResidual), x);
  return {x};
}

// 2 M N K a product, and the bias
double MatMulFlops(std::span<const TensorType* const> inputs, std::span<const TensorType> outputs,
                   const Attributes& attributes) {
  const Shape& a = inputs[0]->shape;
  const auto out = static_cast<double>(outputs[0].shape.num_elements());
  const auto inner = static_cast<double>(a[Flags(attributes).transpose_a ? -2 : -1]);
  const bool bias = inputs.size() > 2 && inputs[2] != nullptr;
  return out * (2 * inner + (bias ? 1 : 0));
}

Types InferTriangularSolve(const InferArgs& args) {
  const Shape &l = args.shape(0), &rhs = args.shape(1);
  const DType dtype = args.type(0).dtype;
  if (dtype != DType::kF32 && dtype != DType::kF64) {
    return InvalidArgument("l is ", args.type(0).ToString(), ", expected f32 or f64");
  }
  TANDEM_RETURN_IF_ERROR(RequireSameDType(args, 0, 1));
  const int rank = l.rank();
  const bool fits = rank >= 2 && rhs.rank() == rank && l[-1] == l[-2] && rhs[-2] == l[-1] &&
                    Shape(l.dims().first(rank - 2)) == Shape(rhs.dims().first(rank - 2));
  if (!fits) {
    return InvalidArgument("l ", l.ToString(), ", rhs ", rhs.ToString(),
                           ": expected (..., D, D) and (..., D, N)");
  }
  return std::vector<TensorType>{args.type(1)};
}

// With L x = b: db = L^-T dx, dL = -tril(db x^T). With L^T x = b: db = L^-1 dx, dL = -tril(x db^T).
std::vector<Value> TriangularSolveGradient(Builder& b, const GradientArgs& g) {
  const Value l = g.in(0), x = g.out();
  const bool transposed = g.node.attributes.Int("transpose_l") != 0;
  const Value db = TriangularSolve(b, l, g.cotangent(), !transposed);
  if (!g.needs[0] || !b.ok()) return {Value{}, db};
  const Value full = transposed ? MatMul(b, x, db, false, true) : MatMul(b, db, x, false, true);
  const int64_t n = b.shape(l)[-1];
  Tensor lower = Tensor::Zeros({DType::kBool, {n, n}});
  for (int64_t i = 0; i < n; ++i) std::fill_n(lower.data<bool>().begin() + i * n, i + 1, true);
  const Value zero = b.Scalar(0, b.dtype(l));
  return {Where(b, b.Constant(std::move(lower)), Neg(b, full), zero), db};
}

// One or two products, and an operation an element for each thing that follows.
double FusedMatMulFlops(std::span<const TensorType* const> inputs,
                        std::span<const TensorType> outputs, const Attributes& attributes) {
  const auto has = [&inputs](size_t i) { return i < inputs.size() && inputs[i] != nullptr; };
  const auto out = static_cast<double>(outputs[0].shape.num_elements());
  double flops =
      MatMulFlops(inputs.first(std::min<size_t>(inputs.size(), kUp)), outputs, attributes);
  if (has(kUp)) flops = 2 * flops + out;
  if (!attributes.String("activation").empty()) flops += out;
  return has(kResidual) ? flops + out : flops;
}

// N columns of D^2 / 2 multiply-adds.
double TriangularSolveFlops(std::span<const TensorType* const> inputs,
                            std::span<const TensorType> outputs, const Attributes&) {
  return static_cast<double>(outputs[0].shape.num_elements()) *
         static_cast<double>(inputs[0]->shape[-1]);
}

}  // namespace

constinit const OpDef kMatMul = {.name = "MatMul",
                                 .min_inputs = 2,
                                 .max_inputs = 3,
                                 .infer = InferMatMul,
                                 .gradient = MatMulGradient,
                                 .flops = MatMulFlops};

constinit const OpDef kFusedMatMul = {.name = "FusedMatMul",
                                      .min_inputs = 2,
                                      .max_inputs = kFusedInputs,
                                      .infer = InferFusedMatMul,
                                      .lower = LowerFusedMatMul,
                                      .flops = FusedMatMulFlops};

constinit const OpDef kTriangularSolve = {.name = "TriangularSolve",
                                          .min_inputs = 2,
                                          .max_inputs = 2,
                                          .infer = InferTriangularSolve,
                                          .gradient = TriangularSolveGradient,
                                          .flops = TriangularSolveFlops};

Value TriangularSolve(Builder& b, Value l, Value rhs, bool transpose_l) {
  return b.Add(kTriangularSolve, {l, rhs}, {{"transpose_l", int64_t{transpose_l}}});
}

Value MatMul(Builder& b, Value a, Value x, bool transpose_a, bool transpose_b, Value bias,
             std::optional<DType> out) {
  Attributes attributes = {{"transpose_a", int64_t{transpose_a}},
                           {"transpose_b", int64_t{transpose_b}}};
  if (out.has_value()) attributes.Set("out", static_cast<int64_t>(*out));
  if (!bias.valid()) return b.Add(kMatMul, {a, x}, std::move(attributes));
  return b.Add(kMatMul, {a, x, bias}, std::move(attributes));
}

Value FusedMatMul(Builder& b, Value a, Value x, bool transpose_a, bool transpose_b,
                  const MatMulEpilogue& epilogue, std::optional<DType> out) {
  Attributes attributes = {{"transpose_a", int64_t{transpose_a}},
                           {"transpose_b", int64_t{transpose_b}},
                           {"activation", epilogue.activation}};
  if (out.has_value()) attributes.Set("out", static_cast<int64_t>(*out));
  return b.Add(kFusedMatMul, {a, x, epilogue.bias, epilogue.up, epilogue.residual},
               std::move(attributes));
}

}  // namespace tandem::ops

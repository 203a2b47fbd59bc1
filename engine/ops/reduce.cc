#include "engine/ops/reduce.h"

#include <algorithm>
#include <numeric>

#include "engine/ops/definitions.h"
#include "engine/ops/inference.h"

namespace tandem::ops {

absl::StatusOr<std::vector<int>> ReductionAxes(const Attributes& attributes, int rank) {
  const std::vector<int64_t>& given = attributes.Ints("axes");
  std::vector<int> axes;
  if (given.empty()) {
    axes.resize(rank);
    std::iota(axes.begin(), axes.end(), 0);
    return axes;
  }
  for (int64_t axis : given) {
    TANDEM_ASSIGN_OR_RETURN(const int normal, NormalizeAxis(axis, rank));
    axes.push_back(normal);
  }
  std::sort(axes.begin(), axes.end());
  const auto twice = std::adjacent_find(axes.begin(), axes.end());
  if (twice != axes.end()) return InvalidArgument("axis ", *twice, " is named twice");
  return axes;
}

Shape KeptShape(Shape shape, const std::vector<int>& axes) {
  for (int axis : axes) shape[axis] = 1;
  return shape;
}

namespace {

Shape ReducedShape(const Shape& shape, const std::vector<int>& axes, bool keep) {
  if (keep) return KeptShape(shape, axes);
  Shape out;
  for (int i = 0; i < shape.rank(); ++i) {
    if (!std::binary_search(axes.begin(), axes.end(), i)) out.push_back(shape[i]);
  }
  return out;
}

Types InferReduce(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireNumber(args, 0, "input"));
  TANDEM_ASSIGN_OR_RETURN(const std::vector<int> axes,
                          ReductionAxes(args.attributes, args.shape(0).rank()));
  return std::vector<TensorType>{
      {args.type(0).dtype, ReducedShape(args.shape(0), axes, args.attributes.Int("keep") != 0)}};
}

Types InferArg(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireNumber(args, 0, "input"));
  const Shape& shape = args.shape(0);
  TANDEM_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(args.attributes.Int("axis"), shape.rank()));
  if (shape[axis] == 0) {
    return InvalidArgument("axis ", axis, " of ", shape.ToString(), " has no elements");
  }
  return std::vector<TensorType>{
      {DType::kI64, ReducedShape(shape, {axis}, args.attributes.Int("keep") != 0)}};
}

Types InferTopK(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireNumber(args, 0, "input"));
  const DType dtype = args.type(0).dtype;
  Shape shape = args.shape(0);
  const int64_t k = args.attributes.Int("k");
  if (shape.rank() == 0) return InvalidArgument("input has no dimension to search");
  if (k < 0 || k > shape[-1]) {
    return InvalidArgument("k is ", k, ", outside [0, ", shape[-1], "] of ", shape.ToString());
  }
  shape[-1] = k;
  return std::vector<TensorType>{{dtype, shape}, {DType::kI64, shape}};
}

// dx = dy at the indices, 0 elsewhere: over the flattened x, with each row's offset added.
std::vector<Value> TopKGradient(Builder& b, const GradientArgs& g) {
  if (!g.cotangent(0).valid()) return {Value{}};
  const Shape shape = b.shape(g.in(0));
  const int64_t rows = shape.Count(0, shape.rank() - 1), cols = shape[-1];
  const int64_t k = g.node.attributes.Int("k");
  Tensor offsets(DType::kI64, Shape{rows, 1});
  for (int64_t r = 0; r < rows; ++r) offsets.data<int64_t>()[r] = r * cols;
  const Value index = Add(b, Reshape(b, g.out(1), Shape{rows, k}), b.Constant(std::move(offsets)));
  const Value dx = GatherGrad(b, Reshape(b, g.cotangent(0), Shape{rows * k}),
                              Reshape(b, index, Shape{rows * k}), Shape{rows * cols});
  return {Reshape(b, dx, shape)};
}

// What a gradient needs of a reduction. (Copies: adding nodes moves the builder's own shapes.)
struct Reduction {
  std::vector<int64_t> axes;
  Shape shape;  // of the input
  Shape kept;   // with the axes at size 1

  Reduction(const Builder& b, const GradientArgs& g) : shape(b.shape(g.in(0))) {
    const std::vector<int> normal = *ReductionAxes(g.node.attributes, shape.rank());
    axes.assign(normal.begin(), normal.end());
    kept = KeptShape(shape, normal);
  }
};

// dx = dy, broadcast over the axes
std::vector<Value> ReduceSumGradient(Builder& b, const GradientArgs& g) {
  const Reduction r(b, g);
  return {BroadcastTo(b, Reshape(b, g.cotangent(), r.kept), r.shape)};
}

// dx = dy [x = y] / (how many x = y): ties share evenly, as PyTorch's amax.
std::vector<Value> ReduceExtremeGradient(Builder& b, const GradientArgs& g) {
  const Value x = g.in(0);
  if (b.shape(x).rank() == 0) return {g.cotangent()};
  const Reduction r(b, g);
  const Value hit = Cast(b, Equal(b, x, Reshape(b, g.out(), r.kept)), b.dtype(x));
  const Value share = Div(b, Reshape(b, g.cotangent(), r.kept), ReduceSum(b, hit, r.axes, true));
  return {Mul(b, hit, share)};
}

// dx = dy * (product of the others). With z = [x = 0], x' = x but 1 where z, and p' the product of
// x': it is p' / x' where no other element is 0, else 0.
std::vector<Value> ReduceProdGradient(Builder& b, const GradientArgs& g) {
  const Value x = g.in(0);
  if (b.shape(x).rank() == 0) return {g.cotangent()};
  const Reduction r(b, g);
  const Value zero = b.Scalar(0, b.dtype(x)), one = b.Scalar(1, b.dtype(x));
  const Value is_zero = Equal(b, x, zero);
  const Value others = Where(b, is_zero, one, x);
  const Value product = ReduceProd(b, others, r.axes, true);
  const Value zeros = Where(b, is_zero, one, zero);
  const Value alone = Equal(b, ReduceSum(b, zeros, r.axes, true), zeros);
  const Value dy = Reshape(b, g.cotangent(), r.kept);
  return {Where(b, alone, Div(b, Mul(b, dy, product), others), zero)};
}

Attributes AxesAttributes(std::vector<int64_t> axes, bool keep) {
  return {{"axes", std::move(axes)}, {"keep", int64_t{keep}}};
}

}  // namespace

constinit const OpDef kReduceSum = {.name = "ReduceSum",
                                    .infer = InferReduce,
                                    .gradient = ReduceSumGradient,
                                    .flops = FlopsPerElement<1>};
constinit const OpDef kReduceMax = {.name = "ReduceMax",
                                    .infer = InferReduce,
                                    .gradient = ReduceExtremeGradient,
                                    .flops = FlopsPerElement<1>};
constinit const OpDef kReduceMin = {.name = "ReduceMin",
                                    .infer = InferReduce,
                                    .gradient = ReduceExtremeGradient,
                                    .flops = FlopsPerElement<1>};
constinit const OpDef kReduceProd = {.name = "ReduceProd",
                                     .infer = InferReduce,
                                     .gradient = ReduceProdGradient,
                                     .flops = FlopsPerElement<1>};
constinit const OpDef kArgMax = {.name = "ArgMax", .infer = InferArg, .flops = FlopsPerElement<1>};
constinit const OpDef kArgMin = {.name = "ArgMin", .infer = InferArg, .flops = FlopsPerElement<1>};

constinit const OpDef kTopK = {
    .name = "TopK", .infer = InferTopK, .gradient = TopKGradient, .flops = FlopsPerElement<2>};

Value ReduceSum(Builder& b, Value x, std::vector<int64_t> axes, bool keep) {
  return b.Add(kReduceSum, {x}, AxesAttributes(std::move(axes), keep));
}
Value ReduceMax(Builder& b, Value x, std::vector<int64_t> axes, bool keep) {
  return b.Add(kReduceMax, {x}, AxesAttributes(std::move(axes), keep));
}
Value ReduceMin(Builder& b, Value x, std::vector<int64_t> axes, bool keep) {
  return b.Add(kReduceMin, {x}, AxesAttributes(std::move(axes), keep));
}
Value ReduceProd(Builder& b, Value x, std::vector<int64_t> axes, bool keep) {
  return b.Add(kReduceProd, {x}, AxesAttributes(std::move(axes), keep));
}

Value ReduceMean(Builder& b, Value x, std::vector<int64_t> axes, bool keep) {
  const Value sum = ReduceSum(b, x, std::move(axes), keep);
  if (!b.ok()) return {};
  const int64_t out = b.shape(sum).num_elements();
  const int64_t count = out == 0 ? 1 : b.shape(x).num_elements() / out;
  return Div(b, sum, b.Scalar(static_cast<double>(count), b.dtype(x)));
}

Value ArgMax(Builder& b, Value x, int64_t axis, bool keep) {
  return b.Add(kArgMax, {x}, {{"axis", axis}, {"keep", int64_t{keep}}});
}
Value ArgMin(Builder& b, Value x, int64_t axis, bool keep) {
  return b.Add(kArgMin, {x}, {{"axis", axis}, {"keep", int64_t{keep}}});
}

std::vector<Value> TopK(Builder& b, Value x, int64_t k, bool largest) {
  return b.AddMulti(kTopK, std::span<const Value>(&x, 1), {{"k", k}, {"largest", int64_t{largest}}},
                    2);
}

Value SumToShape(Builder& b, Value x, const Shape& to) {
  if (!b.ok()) return {};
  // Copies: `to` may belong to the builder, whose shapes move when it adds nodes.
  const Shape shape(to.dims()), from(b.shape(x).dims());
  if (from == shape) return x;
  const absl::StatusOr<Shape> both = BroadcastShapes(from, shape);
  if (!both.ok() || *both != from) {
    return b.Fail(InvalidArgument("[SumToShape] ", shape.ToString(), " does not broadcast to ",
                                  from.ToString()));
  }
  const int added = from.rank() - shape.rank();
  std::vector<int64_t> axes;
  for (int i = 0; i < from.rank(); ++i) {
    if (i < added || shape[i - added] != from[i]) axes.push_back(i);
  }
  if (axes.empty()) return Reshape(b, x, shape);
  return Reshape(b, ReduceSum(b, x, std::move(axes), false), shape);
}

}  // namespace tandem::ops

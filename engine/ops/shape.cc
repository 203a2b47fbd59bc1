#include "engine/ops/shape.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "engine/ops/definitions.h"
#include "engine/ops/inference.h"

namespace tandem::ops {

absl::StatusOr<Shape> SliceShape(const Shape& shape, const Attributes& attributes) {
  const std::vector<int64_t>& starts = attributes.Ints("starts");
  const std::vector<int64_t>& ends = attributes.Ints("ends");
  const std::vector<int64_t>& steps = attributes.Ints("steps");
  const size_t rank = shape.rank();
  if (starts.size() != rank || ends.size() != rank || steps.size() != rank) {
    return InvalidArgument(starts.size(), " starts, ", ends.size(), " ends and ", steps.size(),
                           " steps for rank ", rank);
  }
  Shape out;
  for (size_t i = 0; i < rank; ++i) {
    const int64_t begin = starts[i], end = ends[i], step = steps[i];
    const int64_t size = shape[static_cast<int>(i)];
    const bool ok = step > 0 ? 0 <= begin && begin <= end && end <= size
                             : step < 0 && step > std::numeric_limits<int64_t>::min() &&
                                   -1 <= end && end <= begin && begin < size;
    if (!ok) {
      return InvalidArgument("[", begin, ":", end, ":", step, "] is outside dimension ", i, " of ",
                             shape.ToString());
    }
    const int64_t span = step > 0 ? end - begin : begin - end;
    out.push_back(span == 0 ? 0 : 1 + (span - 1) / (step > 0 ? step : -step));
  }
  return out;
}

namespace {

Types InferReshape(const InferArgs& args) {
  const TensorType& x = args.type(0);
  TANDEM_ASSIGN_OR_RETURN(
      Shape shape, Shape::Checked(args.attributes.Ints("shape"), SizeOf(x.dtype), "the new shape"));
  if (shape.num_elements() != x.shape.num_elements()) {
    return InvalidArgument(x.shape.ToString(), " has ", x.shape.num_elements(), " elements, ",
                           shape.ToString(), " has ", shape.num_elements());
  }
  return std::vector<TensorType>{{x.dtype, std::move(shape)}};
}

Types InferTranspose(const InferArgs& args) {
  const Shape& x = args.shape(0);
  const std::vector<int64_t>& permutation = args.attributes.Ints("permutation");
  std::vector<bool> seen(x.rank(), false);
  Shape out;
  for (int64_t axis : permutation) {
    if (axis < 0 || axis >= x.rank() || seen[axis]) break;
    seen[axis] = true;
    out.push_back(x[static_cast<int>(axis)]);
  }
  if (out.rank() != x.rank() || permutation.size() != seen.size()) {
    return InvalidArgument(Shape(permutation).ToString(),
                           " is no permutation of the dimensions of ", x.ToString());
  }
  return std::vector<TensorType>{{args.type(0).dtype, std::move(out)}};
}

Types InferBroadcastTo(const InferArgs& args) {
  const TensorType& x = args.type(0);
  TANDEM_ASSIGN_OR_RETURN(
      Shape shape, Shape::Checked(args.attributes.Ints("shape"), SizeOf(x.dtype), "the new shape"));
  const absl::StatusOr<Shape> both = BroadcastShapes(x.shape, shape);
  if (!both.ok() || *both != shape) {
    return InvalidArgument(x.shape.ToString(), " does not broadcast to ", shape.ToString());
  }
  return std::vector<TensorType>{{x.dtype, std::move(shape)}};
}

Types InferSlice(const InferArgs& args) {
  TANDEM_ASSIGN_OR_RETURN(Shape shape, SliceShape(args.shape(0), args.attributes));
  return std::vector<TensorType>{{args.type(0).dtype, std::move(shape)}};
}

Types InferUnslice(const InferArgs& args) {
  const TensorType& y = args.type(0);
  TANDEM_ASSIGN_OR_RETURN(Shape shape, Shape::Checked(args.attributes.Ints("shape"),
                                                      SizeOf(y.dtype), "the whole shape"));
  TANDEM_ASSIGN_OR_RETURN(const Shape slice, SliceShape(shape, args.attributes));
  TANDEM_RETURN_IF_ERROR(RequireShape(args, 0, "the slice", slice));
  return std::vector<TensorType>{{y.dtype, std::move(shape)}};
}

Types InferPad(const InferArgs& args) {
  const TensorType& x = args.type(0);
  const std::vector<int64_t>& before = args.attributes.Ints("before");
  const std::vector<int64_t>& after = args.attributes.Ints("after");
  const size_t rank = x.shape.rank();
  if (before.size() != rank || after.size() != rank) {
    return InvalidArgument(before.size(), " sizes before and ", after.size(), " after for rank ",
                           rank);
  }
  Shape out;
  for (size_t i = 0; i < rank; ++i) {
    if (before[i] < 0 || after[i] < 0 || before[i] > kMaxTensorBytes ||
        after[i] > kMaxTensorBytes) {
      return InvalidArgument("padding (", before[i], ", ", after[i], ") of dimension ", i,
                             " is outside [0, ", kMaxTensorBytes, "]");
    }
    out.push_back(before[i] + x.shape[static_cast<int>(i)] + after[i]);
  }
  return std::vector<TensorType>{{x.dtype, std::move(out)}};
}

Types InferConcat(const InferArgs& args) {
  Shape out = args.shape(0);
  TANDEM_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(args.attributes.Int("axis"), out.rank()));
  for (int i = 1; i < args.count(); ++i) {
    TANDEM_RETURN_IF_ERROR(RequireSameDType(args, 0, i));
    Shape expected = args.shape(0);
    if (args.shape(i).rank() == out.rank()) expected[axis] = args.shape(i)[axis];
    if (args.shape(i) != expected) {
      return InvalidArgument("input ", i, " is ", args.shape(i).ToString(), ", input 0 ",
                             args.shape(0).ToString(), ": they differ beside axis ", axis);
    }
    out[axis] += args.shape(i)[axis];
  }
  return std::vector<TensorType>{{args.type(0).dtype, std::move(out)}};
}

Types InferGather(const InferArgs& args) {
  const Shape &x = args.shape(0), &indices = args.shape(1);
  TANDEM_RETURN_IF_ERROR(RequireIndex(args, 1, "indices"));
  TANDEM_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(args.attributes.Int("axis"), x.rank()));
  if (x[axis] == 0 && indices.num_elements() > 0) {
    return InvalidArgument("axis ", axis, " of ", x.ToString(), " has nothing to gather");
  }
  Shape out(x.dims().first(axis));
  for (int64_t dim : indices) out.push_back(dim);
  for (int i = axis + 1; i < x.rank(); ++i) out.push_back(x[i]);
  return std::vector<TensorType>{{args.type(0).dtype, std::move(out)}};
}

Types InferGatherGrad(const InferArgs& args) {
  const TensorType& dy = args.type(0);
  TANDEM_RETURN_IF_ERROR(RequireNumber(args, 0, "dy"));
  TANDEM_RETURN_IF_ERROR(RequireIndex(args, 1, "indices"));
  TANDEM_ASSIGN_OR_RETURN(Shape shape, Shape::Checked(args.attributes.Ints("shape"),
                                                      SizeOf(dy.dtype), "the gathered shape"));
  if (shape.rank() == 0 || (shape[0] == 0 && args.shape(1).num_elements() > 0)) {
    return InvalidArgument("nothing is gathered from ", shape.ToString());
  }
  Shape expected = args.shape(1);
  for (int i = 1; i < shape.rank(); ++i) expected.push_back(shape[i]);
  TANDEM_RETURN_IF_ERROR(RequireShape(args, 0, "dy", expected));
  return std::vector<TensorType>{{dy.dtype, std::move(shape)}};
}

// dx = dy in x's shape
std::vector<Value> ReshapeGradient(Builder& b, const GradientArgs& g) {
  return {Reshape(b, g.cotangent(), b.shape(g.in(0)))};
}
// dx = dy with its dimensions back where they came from
std::vector<Value> TransposeGradient(Builder& b, const GradientArgs& g) {
  const std::vector<int64_t>& permutation = g.node.attributes.Ints("permutation");
  std::vector<int64_t> inverse(permutation.size());
  for (size_t i = 0; i < permutation.size(); ++i) inverse[permutation[i]] = static_cast<int64_t>(i);
  return {Transpose(b, g.cotangent(), std::move(inverse))};
}
// dx = dy summed over what was broadcast
std::vector<Value> BroadcastToGradient(Builder& b, const GradientArgs& g) {
  return {SumToShape(b, g.cotangent(), b.shape(g.in(0)))};
}
// dx = dy at the slice, 0 elsewhere
std::vector<Value> SliceGradient(Builder& b, const GradientArgs& g) {
  const Attributes& a = g.node.attributes;
  return {Unslice(b, g.cotangent(), b.shape(g.in(0)), a.Ints("starts"), a.Ints("ends"),
                  a.Ints("steps"))};
}
// dy = dx at the slice
std::vector<Value> UnsliceGradient(Builder& b, const GradientArgs& g) {
  const Attributes& a = g.node.attributes;
  return {Slice(b, g.cotangent(), a.Ints("starts"), a.Ints("ends"), a.Ints("steps"))};
}
// dx = dy without the padding
std::vector<Value> PadGradient(Builder& b, const GradientArgs& g) {
  const std::vector<int64_t>& before = g.node.attributes.Ints("before");
  const Shape& x = b.shape(g.in(0));
  std::vector<int64_t> ends = before;
  for (size_t i = 0; i < ends.size(); ++i) ends[i] += x[static_cast<int>(i)];
  return {Slice(b, g.cotangent(), before, std::move(ends), std::vector<int64_t>(before.size(), 1))};
}
// d x_i = its part of dy
std::vector<Value> ConcatGradient(Builder& b, const GradientArgs& g) {
  const Shape y = b.shape(g.out());
  const int axis = *NormalizeAxis(g.node.attributes.Int("axis"), y.rank());
  std::vector<Value> result;
  std::vector<int64_t> starts(y.rank(), 0), ends = DimsOf(y);
  ends[axis] = 0;
  for (size_t i = 0; i < g.node.inputs.size(); ++i) {
    starts[axis] = ends[axis];
    ends[axis] += b.shape(g.node.inputs[i])[axis];
    result.push_back(g.needs[i]
                         ? Slice(b, g.cotangent(), starts, ends, std::vector<int64_t>(y.rank(), 1))
                         : Value{});
  }
  return result;
}
// dx[indices[i]] += dy[i]; along another axis than 0, with that axis brought to the front.
std::vector<Value> GatherGradient(Builder& b, const GradientArgs& g) {
  const Shape x = b.shape(g.in(0));
  const int axis = *NormalizeAxis(g.node.attributes.Int("axis"), x.rank());
  if (axis == 0) return {GatherGrad(b, g.cotangent(), g.in(1), x), Value{}};
  const int indices = b.shape(g.in(1)).rank();
  // dy: x[:axis] + indices + x[axis+1:]  ->  indices + x[:axis] + x[axis+1:]
  std::vector<int64_t> to_front(x.rank() - 1 + indices);
  std::iota(to_front.begin(), to_front.end(), 0);
  std::rotate(to_front.begin(), to_front.begin() + axis, to_front.begin() + axis + indices);
  // (x[axis],) + x[:axis] + x[axis+1:]  ->  x
  std::vector<int64_t> back(x.rank());
  std::iota(back.begin(), back.end(), 0);
  std::rotate(back.begin(), back.begin() + 1, back.begin() + axis + 1);
  Shape front{x[axis]};
  for (int i = 0; i < x.rank(); ++i) {
    if (i != axis) front.push_back(x[i]);
  }
  const Value dy = Transpose(b, g.cotangent(), std::move(to_front));
  return {Transpose(b, GatherGrad(b, dy, g.in(1), front), std::move(back)), Value{}};
}
// d dy[i] = dx[indices[i]]
std::vector<Value> GatherGradGradient(Builder& b, const GradientArgs& g) {
  return {Gather(b, g.cotangent(), g.in(1), 0), Value{}};
}

}  // namespace

constinit const OpDef kReshape = {
    .name = "Reshape", .infer = InferReshape, .gradient = ReshapeGradient, .flops = NoFlops};
constinit const OpDef kTranspose = {
    .name = "Transpose", .infer = InferTranspose, .gradient = TransposeGradient, .flops = NoFlops};
constinit const OpDef kBroadcastTo = {.name = "BroadcastTo",
                                      .infer = InferBroadcastTo,
                                      .gradient = BroadcastToGradient,
                                      .flops = NoFlops};
constinit const OpDef kSlice = {
    .name = "Slice", .infer = InferSlice, .gradient = SliceGradient, .flops = NoFlops};
constinit const OpDef kUnslice = {
    .name = "Unslice", .infer = InferUnslice, .gradient = UnsliceGradient, .flops = NoFlops};
constinit const OpDef kPad = {
    .name = "Pad", .infer = InferPad, .gradient = PadGradient, .flops = NoFlops};
constinit const OpDef kConcat = {.name = "Concat",
                                 .max_inputs = std::numeric_limits<int>::max(),
                                 .infer = InferConcat,
                                 .gradient = ConcatGradient,
                                 .flops = NoFlops};
constinit const OpDef kGather = {.name = "Gather",
                                 .min_inputs = 2,
                                 .max_inputs = 2,
                                 .infer = InferGather,
                                 .gradient = GatherGradient,
                                 .flops = NoFlops};
constinit const OpDef kGatherGrad = {.name = "GatherGrad",
                                     .min_inputs = 2,
                                     .max_inputs = 2,
                                     .infer = InferGatherGrad,
                                     .gradient = GatherGradGradient,
                                     .flops = FlopsPerElement<1>};

Value Reshape(Builder& b, Value x, const Shape& shape) {
  if (b.ok() && b.shape(x) == shape) return x;
  return b.Add(kReshape, {x}, {{"shape", DimsOf(shape)}});
}

Value Transpose(Builder& b, Value x, std::vector<int64_t> permutation) {
  if (b.ok() && static_cast<int>(permutation.size()) == b.shape(x).rank()) {
    bool identity = true;
    for (size_t i = 0; i < permutation.size(); ++i) {
      identity &= permutation[i] == static_cast<int64_t>(i);
    }
    if (identity) return x;
  }
  return b.Add(kTranspose, {x}, {{"permutation", std::move(permutation)}});
}

Value BroadcastTo(Builder& b, Value x, const Shape& shape) {
  if (b.ok() && b.shape(x) == shape) return x;
  return b.Add(kBroadcastTo, {x}, {{"shape", DimsOf(shape)}});
}

Value Slice(Builder& b, Value x, std::vector<int64_t> starts, std::vector<int64_t> ends,
            std::vector<int64_t> steps) {
  return b.Add(
      kSlice, {x},
      {{"starts", std::move(starts)}, {"ends", std::move(ends)}, {"steps", std::move(steps)}});
}

Value Unslice(Builder& b, Value y, const Shape& shape, std::vector<int64_t> starts,
              std::vector<int64_t> ends, std::vector<int64_t> steps) {
  return b.Add(kUnslice, {y},
               {{"shape", DimsOf(shape)},
                {"starts", std::move(starts)},
                {"ends", std::move(ends)},
                {"steps", std::move(steps)}});
}

Value Pad(Builder& b, Value x, std::vector<int64_t> before, std::vector<int64_t> after,
          double value) {
  return b.Add(kPad, {x},
               {{"before", std::move(before)}, {"after", std::move(after)}, {"value", value}});
}

Value Concat(Builder& b, std::vector<Value> xs, int64_t axis) {
  for (Value x : xs) {
    if (b.ok() && !x.valid()) return b.Fail(InvalidArgument("[Concat] an input is missing"));
  }
  return b.Add(kConcat, xs, {{"axis", axis}});
}

Value Gather(Builder& b, Value x, Value indices, int64_t axis) {
  return b.Add(kGather, {x, indices}, {{"axis", axis}});
}

Value GatherGrad(Builder& b, Value dy, Value indices, const Shape& shape) {
  return b.Add(kGatherGrad, {dy, indices}, {{"shape", DimsOf(shape)}});
}

}  // namespace tandem::ops

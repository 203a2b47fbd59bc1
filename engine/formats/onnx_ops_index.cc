// Reading and writing by index.
#include <algorithm>
#include <numeric>
#include <utility>

#include "engine/base/error.h"
#include "engine/formats/onnx_compose.h"
#include "engine/formats/onnx_ops.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

using compose::Dims;

// Indices that are known while the graph is built are checked; of others the kernels clamp what is
// out of bounds.
absl::Status CheckBounds(NodeContext& c, Value indices, int64_t size) {
  const Tensor* tensor = c.b.constant(indices);
  if (tensor == nullptr) return absl::OkStatus();
  for (int64_t i = 0; i < tensor->num_elements(); ++i) {
    const int64_t index = ElementAsInt(*tensor, i);
    if (index < -size || index >= size) {
      return InvalidArgument("index ", index, " is outside a dimension of size ", size);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckIndexType(NodeContext& c, int i) {
  if (c.dtype(i) == DType::kI32 || c.dtype(i) == DType::kI64) return absl::OkStatus();
  return InvalidArgument("indices are ", DTypeName(c.dtype(i)), ", expected i32 or i64");
}

Outputs Gather(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(c.Int("axis", 0), c.rank(0)));
  TANDEM_RETURN_IF_ERROR(CheckIndexType(c, 1));
  TANDEM_RETURN_IF_ERROR(CheckBounds(c, c.In(1), c.shape(0)[axis]));
  return One(ops::Gather(c.b, c.In(0), c.In(1), axis));
}

// Indices along one dimension as i64 in [0, size).
Value Wrap(Builder& b, Value indices, int64_t size) {
  const Value i = compose::CastTo(b, indices, DType::kI64);
  const Value n = b.Scalar(static_cast<double>(size), DType::kI64);
  const Value zero = b.Scalar(0, DType::kI64);
  const Value wrapped = ops::Where(b, ops::Less(b, i, zero), ops::Add(b, i, n), i);
  const Value last = b.Scalar(static_cast<double>(size - 1), DType::kI64);
  return ops::Min(b, ops::Max(b, wrapped, zero), last);
}

// Places in x, flattened, of GatherElements and ScatterElements: the index along `axis`, the own
// position along the others.
Value ElementPlaces(Builder& b, const Shape& x, Value indices, int axis) {
  const Shape shape = b.shape(indices);
  const auto strides = x.Strides();
  const auto scaled = [&](Value v, int i) {
    return compose::Scale(b, v, static_cast<double>(strides[i]));
  };
  Value places = scaled(Wrap(b, indices, x[axis]), axis);
  for (int i = 0; i < x.rank(); ++i) {
    if (i == axis) continue;
    Shape line;
    for (int k = 0; k < x.rank(); ++k) line.push_back(k == i ? shape[i] : 1);
    places = ops::Add(b, places, scaled(ops::Reshape(b, compose::Iota(b, shape[i]), line), i));
  }
  return places;
}

absl::Status CheckElements(NodeContext& c, int axis) {
  const Shape x = c.shape(0), indices = c.shape(1);
  TANDEM_RETURN_IF_ERROR(CheckIndexType(c, 1));
  bool fits = x.rank() == indices.rank();
  for (int i = 0; fits && i < x.rank(); ++i) fits = i == axis || indices[i] <= x[i];
  if (!fits || (x.num_elements() == 0 && indices.num_elements() > 0)) {
    return InvalidArgument("indices ", indices.ToString(), " for ", x.ToString());
  }
  return CheckBounds(c, c.In(1), x[axis]);
}

Value Flat(Builder& b, Value x) { return ops::Reshape(b, x, {b.shape(x).num_elements()}); }

Outputs GatherElements(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(c.Int("axis", 0), c.rank(0)));
  TANDEM_RETURN_IF_ERROR(CheckElements(c, axis));
  const Value places = ElementPlaces(c.b, c.shape(0), c.In(1), axis);
  return One(ops::Gather(c.b, Flat(c.b, c.In(0)), places, 0));
}

// x with `updates` put, or combined, at flat `places` of the same shape.
Outputs Scatter(NodeContext& c, Value x, Value places, Value updates) {
  const std::string reduction = c.String("reduction", "none");
  if (reduction != "none" && reduction != "add") {
    return Unimplemented("attribute reduction='", reduction, "' is not supported (none, add are)");
  }
  Builder& b = c.b;
  const Shape shape = b.shape(x);
  const Shape flat{shape.num_elements()};
  if (b.dtype(x) == DType::kBool) return Unimplemented("scattering bools is not supported");
  const Value p = Flat(b, places);
  const Value sum = ops::GatherGrad(b, Flat(b, updates), p, flat);
  if (reduction == "add") return One(ops::Add(b, x, ops::Reshape(b, sum, shape)));
  const Shape count{b.shape(p).num_elements()};
  const Value ones = ops::BroadcastTo(b, b.Scalar(1, DType::kI32), count);
  const Value hits = ops::GatherGrad(b, ones, p, flat);
  const Value hit = compose::Greater(b, hits, b.Scalar(0, DType::kI32));
  return One(ops::Reshape(b, ops::Where(b, hit, sum, Flat(b, x)), shape));
}

Outputs ScatterElements(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(c.Int("axis", 0), c.rank(0)));
  TANDEM_RETURN_IF_ERROR(CheckElements(c, axis));
  if (c.shape(2) != c.shape(1)) {
    return InvalidArgument("updates ", c.shape(2).ToString(), " for indices ",
                           c.shape(1).ToString());
  }
  return Scatter(c, c.In(0), ElementPlaces(c.b, c.shape(0), c.In(1), axis), c.In(2));
}

// Rows of index tuples (..., K) as places among x's first K dimensions from `from` on, flattened.
Value TuplePlaces(Builder& b, const Shape& x, Value indices, int from) {
  const Shape shape = b.shape(indices);
  const int last = shape.rank() - 1;
  const auto k = static_cast<int>(shape[last]);
  Value places;
  for (int i = 0; i < k; ++i) {
    const Value column = compose::DropAxis(b, compose::SliceAxis(b, indices, last, i, i + 1), last);
    const int64_t stride = x.Count(from + i + 1, from + k);
    const Value scaled =
        compose::Scale(b, Wrap(b, column, x[from + i]), static_cast<double>(stride));
    places = i == 0 ? scaled : ops::Add(b, places, scaled);
  }
  return places;
}

absl::Status CheckTuples(NodeContext& c, int batch) {
  const Shape x = c.shape(0), indices = c.shape(1);
  if (c.dtype(1) != DType::kI64) return InvalidArgument("indices are not i64");
  if (indices.rank() < batch + 1 || x.rank() < batch + 1 || indices[-1] < 1 ||
      indices[-1] > x.rank() - batch || (x.num_elements() == 0 && indices.num_elements() > 0)) {
    return InvalidArgument("indices ", indices.ToString(), " for ", x.ToString());
  }
  for (int i = 0; i < batch; ++i) {
    if (x[i] != indices[i]) {
      return InvalidArgument("indices ", indices.ToString(), " for ", x.ToString(), " with ", batch,
                             " batch dimensions");
    }
  }
  return absl::OkStatus();
}

// x (batch, tuple, rest), indices (batch, ..., K)
Outputs GatherNd(NodeContext& c) {
  const int64_t given = c.Int("batch_dims", 0);
  if (given < 0 || given > kMaxRank) return InvalidArgument("attribute batch_dims=", given);
  const int batch = static_cast<int>(given);
  TANDEM_RETURN_IF_ERROR(CheckTuples(c, batch));
  Builder& b = c.b;
  const Shape x = c.shape(0), indices = c.shape(1);
  const int end = batch + static_cast<int>(indices[-1]);
  const int64_t batches = x.Count(0, batch), tuple = x.Count(batch, end);
  Value places = TuplePlaces(b, x, c.In(1), batch);
  Shape line;
  for (int i = 0; i + 1 < indices.rank(); ++i) line.push_back(i < batch ? indices[i] : 1);
  const Value offsets = ops::Reshape(b, compose::Iota(b, batches), line);
  places = ops::Add(b, places, compose::Scale(b, offsets, static_cast<double>(tuple)));
  Shape rows{batches * tuple};
  for (int i = end; i < x.rank(); ++i) rows.push_back(x[i]);
  return One(ops::Gather(b, ops::Reshape(b, c.In(0), rows), places, 0));
}

// x (tuple, rest), indices (..., K), updates (..., rest)
Outputs ScatterNd(NodeContext& c) {
  TANDEM_RETURN_IF_ERROR(CheckTuples(c, 0));
  Builder& b = c.b;
  const Shape x = c.shape(0), indices = c.shape(1);
  const int k = static_cast<int>(indices[-1]);
  const int64_t rest = x.Count(k, x.rank()), rows = indices.Count(0, indices.rank() - 1);
  Shape expected(indices.dims().first(indices.rank() - 1));
  for (int i = k; i < x.rank(); ++i) expected.push_back(x[i]);
  if (c.shape(2) != expected) {
    return InvalidArgument("updates are ", c.shape(2).ToString(), ", expected ",
                           expected.ToString());
  }
  const Value tuples = ops::Reshape(b, TuplePlaces(b, x, c.In(1), 0), {rows, 1});
  const Value places =
      ops::Add(b, compose::Scale(b, tuples, static_cast<double>(rest)), compose::Iota(b, rest));
  return Scatter(c, c.In(0), places, c.In(2));
}

// values = {off, on}; 1 where position along the new axis is the index.
Outputs OneHot(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const Tensor* depth_tensor, c.ConstantInput(1, "depth"));
  if (depth_tensor->num_elements() != 1) return InvalidArgument("depth is no scalar");
  const int64_t depth = IsFloat(depth_tensor->dtype())
                            ? static_cast<int64_t>(ElementAsDouble(*depth_tensor, 0))
                            : ElementAsInt(*depth_tensor, 0);
  if (depth < 1 || depth > (int64_t{1} << 26)) return InvalidArgument("depth is ", depth);
  if (c.shape(2) != Shape{2}) return InvalidArgument("values are ", c.shape(2).ToString());
  Builder& b = c.b;
  TANDEM_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(c.Int("axis", -1), c.rank(0) + 1));
  const Value zero = b.Scalar(0, DType::kI64);
  Value i = compose::CastTo(b, c.In(0), DType::kI64);
  i = ops::Where(b, ops::Less(b, i, zero), compose::AddScalar(b, i, static_cast<double>(depth)), i);
  Shape line;
  for (int k = 0; k <= c.rank(0); ++k) line.push_back(k == axis ? depth : 1);
  const Value hit = ops::Equal(b, compose::ExpandAxis(b, i, axis),
                               ops::Reshape(b, compose::Iota(b, depth), line));
  const Value off = ops::Reshape(b, compose::SliceAxis(b, c.In(2), 0, 0, 1), Shape());
  const Value on = ops::Reshape(b, compose::SliceAxis(b, c.In(2), 0, 1, 2), Shape());
  return One(ops::Where(b, hit, on, off));
}

// The slices along an axis whose condition, known while the graph is built, holds.
Outputs Compress(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const std::vector<int64_t> condition, c.ConstantInts(1, "condition"));
  Value x = c.In(0);
  int axis = 0;
  if (c.HasAttribute("axis")) {
    TANDEM_ASSIGN_OR_RETURN(axis, NormalizeAxis(c.Int("axis", 0), c.rank(0)));
  } else {
    x = Flat(c.b, x);
  }
  std::vector<int64_t> kept;
  for (size_t i = 0; i < condition.size(); ++i) {
    if (condition[i] != 0) kept.push_back(static_cast<int64_t>(i));
  }
  const Value indices = c.Int64s(kept);
  TANDEM_RETURN_IF_ERROR(CheckBounds(c, indices, c.b.shape(x)[axis]));
  return One(ops::Gather(c.b, x, indices, axis));
}

// The places of a tensor's non-zero elements, (rank, count), where its values are known.
Outputs NonZero(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const Tensor* x, c.ConstantInput(0, "X"));
  const int rank = std::max(1, x->shape().rank());
  std::vector<int64_t> places;
  for (int64_t i = 0; i < x->num_elements(); ++i) {
    if (ElementAsDouble(*x, i) != 0) places.push_back(i);
  }
  const auto count = static_cast<int64_t>(places.size());
  Tensor indices(DType::kI64, {rank, count});
  const auto strides = x->shape().Strides();
  for (int64_t k = 0; k < count; ++k) {
    for (int i = 0; i < rank; ++i) {
      indices.data<int64_t>()[i * count + k] =
          x->shape().rank() == 0 ? 0 : places[k] / strides[i] % x->shape()[i];
    }
  }
  return One(c.b.Constant(std::move(indices)));
}

// The k largest (or smallest) along an axis, in order.
Outputs TopK(NodeContext& c) {
  int64_t k = 0;
  if (c.opset() < 10) {
    k = c.Int("k", 0);
  } else {
    TANDEM_ASSIGN_OR_RETURN(const std::vector<int64_t> given, c.ConstantInts(1, "K"));
    if (given.size() != 1) return InvalidArgument("K is no scalar");
    k = given[0];
  }
  TANDEM_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(c.Int("axis", -1), c.rank(0)));
  const bool largest = c.Int("largest", 1) != 0;
  c.IgnoreAttribute("sorted");  // sorted is one of the orders that sorted=0 allows
  const Shape shape = c.shape(0);
  if (k < 1 || k > shape[axis]) {
    return InvalidArgument("K=", k, " of a dimension of size ", shape[axis]);
  }
  const int last = shape.rank() - 1;
  if (axis == last) return ops::TopK(c.b, c.In(0), k, largest);
  std::vector<Value> found =
      ops::TopK(c.b, compose::SwapAxes(c.b, c.In(0), axis, last), k, largest);
  for (Value& v : found) v = compose::SwapAxes(c.b, v, axis, last);
  return found;
}

// Of each sequence the first sequence_lens[b] steps in reverse.
Outputs ReverseSequence(NodeContext& c) {
  const int64_t batch_axis = c.Int("batch_axis", 1), time_axis = c.Int("time_axis", 0);
  const Shape x = c.shape(0);
  if (x.rank() < 2 || batch_axis + time_axis != 1 || batch_axis * time_axis != 0) {
    return InvalidArgument("input ", x.ToString(), " with batch_axis=", batch_axis,
                           " and time_axis=", time_axis);
  }
  Builder& b = c.b;
  const int64_t batches = x[static_cast<int>(batch_axis)], steps = x[static_cast<int>(time_axis)];
  if (c.shape(1) != Shape{batches}) {
    return InvalidArgument("sequence_lens is ", c.shape(1).ToString());
  }
  // As (batch, time): the source of step t is length - 1 - t below the length, else t.
  const Value length = ops::Reshape(b, c.In(1), {batches, 1});
  const Value t = compose::Iota(b, steps);
  const Value mirrored = ops::Sub(b, compose::AddScalar(b, length, -1), t);
  Value source = ops::Where(b, ops::Less(b, t, length), mirrored, t);
  source = Wrap(b, source, steps);
  const Value rows = ops::Reshape(b, compose::Iota(b, batches), {batches, 1});
  if (batch_axis == 1) {  // x (time, batch, ...)
    source = ops::Transpose(b, source, {1, 0});
    const Value place = ops::Add(b, compose::Scale(b, source, static_cast<double>(batches)),
                                 ops::Transpose(b, rows, {1, 0}));
    return One(ops::Reshape(
        b,
        ops::Gather(b, ops::Reshape(b, c.In(0), {steps * batches, x.Count(2, x.rank())}), place, 0),
        x));
  }
  const Value place = ops::Add(b, compose::Scale(b, rows, static_cast<double>(steps)), source);
  return One(ops::Reshape(
      b,
      ops::Gather(b, ops::Reshape(b, c.In(0), {steps * batches, x.Count(2, x.rank())}), place, 0),
      x));
}

constexpr OnnxOp kOps[] = {
    Op("Compress", Compress, 2, 2, InputSet(1)),
    Op("Gather", Gather, 2, 2),
    Op("GatherElements", GatherElements, 2, 2),
    Op("GatherND", GatherNd, 2, 2),
    Op("NonZero", NonZero, 1, 1, InputSet(0)),
    {.name = "OneHot",
     .convert = OneHot,
     .min_inputs = 3,
     .max_inputs = 3,
     .shape_inputs = InputSet(1),
     .fixed_inputs = InputSet(2)},
    Op("ReverseSequence", ReverseSequence, 2, 2),
    Op("Scatter", ScatterElements, 3, 3),
    Op("ScatterElements", ScatterElements, 3, 3),
    Op("ScatterND", ScatterNd, 3, 3),
    Op("TopK", TopK, 1, 2, InputSet(1)),
};

}  // namespace

std::span<const OnnxOp> OnnxIndexOps() { return kOps; }

}  // namespace tandem

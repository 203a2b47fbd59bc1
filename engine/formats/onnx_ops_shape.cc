// Shapes and layout: reshaping, slicing, joining, padding; and tensors made from shapes.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <optional>
#include <utility>

#include "engine/base/error.h"
#include "engine/formats/onnx_compose.h"
#include "engine/formats/onnx_ops.h"
#include "engine/formats/onnx_tensor.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

using compose::Dims;

// Tables of indices that a node may need, in elements.
constexpr int64_t kMaxTable = int64_t{1} << 26;

absl::StatusOr<std::vector<int>> NormalizeAxes(std::span<const int64_t> axes, int rank) {
  std::vector<int> normal;
  for (const int64_t axis : axes) {
    TANDEM_ASSIGN_OR_RETURN(const int n, NormalizeAxis(axis, rank));
    if (std::find(normal.begin(), normal.end(), n) != normal.end()) {
      return InvalidArgument("axis ", n, " is named twice");
    }
    normal.push_back(n);
  }
  return normal;
}

// 0 keeps the input's dimension (unless allowzero), one -1 takes what is left.
absl::StatusOr<Shape> ReshapeTarget(const Shape& from, std::vector<int64_t> dims, bool allow_zero) {
  int wild = -1;
  int64_t known = 1;
  for (size_t i = 0; i < dims.size(); ++i) {
    if (dims[i] == 0 && !allow_zero) {
      if (static_cast<int>(i) >= from.rank()) {
        return InvalidArgument("target dimension ", i, " is 0, but the input has only ",
                               from.rank(), " dimensions");
      }
      dims[i] = from[static_cast<int>(i)];
    }
    if (dims[i] == -1) {
      if (wild >= 0) return InvalidArgument("two target dimensions are -1");
      wild = static_cast<int>(i);
    } else if (dims[i] < 0) {
      return InvalidArgument("target dimension ", i, " is ", dims[i]);
    } else if (__builtin_mul_overflow(known, dims[i], &known)) {
      return InvalidArgument("the target's size overflows");
    }
  }
  if (wild >= 0) {
    const int64_t elements = from.num_elements();
    if (known == 0 || elements % known != 0) {
      return InvalidArgument("-1 cannot make ", elements, " elements of ", known);
    }
    dims[wild] = elements / known;
  }
  return Shape::Checked(dims, 1, "the target shape");
}

Outputs Reshape(NodeContext& c) {
  std::vector<int64_t> dims;
  if (c.opset() < 5) {
    c.IgnoreAttribute("consumed_inputs");
    dims = c.Ints("shape");
  } else {
    if (!c.Has(1)) return InvalidArgument("input 1 (shape) is missing");
    TANDEM_ASSIGN_OR_RETURN(dims, c.ConstantInts(1, "shape"));
  }
  TANDEM_ASSIGN_OR_RETURN(const Shape shape,
                          ReshapeTarget(c.shape(0), dims, c.Int("allowzero", 0) != 0));
  return One(ops::Reshape(c.b, c.In(0), shape));
}

Outputs Flatten(NodeContext& c) {
  const Shape shape = c.shape(0);
  int64_t axis = c.Int("axis", 1);
  if (axis < -shape.rank() || axis > shape.rank()) {
    return InvalidArgument("axis ", axis, " is outside rank ", shape.rank());
  }
  if (axis < 0) axis += shape.rank();
  const int split = static_cast<int>(axis);
  return One(
      ops::Reshape(c.b, c.In(0), {shape.Count(0, split), shape.Count(split, shape.rank())}));
}

Outputs Squeeze(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const std::optional<std::vector<int64_t>> given,
                          c.IntsAttributeOrInput("axes", 1, 13));
  const Shape shape = c.shape(0);
  std::vector<int> axes;
  if (given.has_value()) {
    TANDEM_ASSIGN_OR_RETURN(axes, NormalizeAxes(*given, shape.rank()));
  }
  Shape out;
  for (int i = 0; i < shape.rank(); ++i) {
    const bool named = std::find(axes.begin(), axes.end(), i) != axes.end();
    if (named && shape[i] != 1) {
      return InvalidArgument("axis ", i, " of ", shape.ToString(), " is not of size 1");
    }
    if (!named && (given.has_value() || shape[i] != 1)) out.push_back(shape[i]);
  }
  return One(ops::Reshape(c.b, c.In(0), out));
}

Outputs Unsqueeze(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const std::optional<std::vector<int64_t>> given,
                          c.IntsAttributeOrInput("axes", 1, 13));
  if (!given.has_value()) return InvalidArgument("no axes");
  const Shape shape = c.shape(0);
  if (given->size() > kMaxRank) return InvalidArgument("more than ", kMaxRank, " axes");
  const int rank = shape.rank() + static_cast<int>(given->size());
  TANDEM_ASSIGN_OR_RETURN(const std::vector<int> axes, NormalizeAxes(*given, rank));
  Shape out;
  for (int i = 0, from = 0; i < rank; ++i) {
    const bool added = std::find(axes.begin(), axes.end(), i) != axes.end();
    out.push_back(added ? 1 : shape[from++]);
  }
  return One(ops::Reshape(c.b, c.In(0), out));
}

Outputs Transpose(NodeContext& c) {
  std::vector<int64_t> permutation = c.Ints("perm");
  if (permutation.empty()) {
    for (int i = c.rank(0) - 1; i >= 0; --i) permutation.push_back(i);
  }
  return One(ops::Transpose(c.b, c.In(0), std::move(permutation)));
}

Outputs Concat(NodeContext& c) {
  if (c.opset() >= 4 && !c.HasAttribute("axis")) return InvalidArgument("no axis");
  TANDEM_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(c.Int("axis", 1), c.rank(0)));
  return One(ops::Concat(c.b, c.inputs(), axis));
}

Outputs Split(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(c.Int("axis", 0), c.rank(0)));
  TANDEM_ASSIGN_OR_RETURN(const std::optional<std::vector<int64_t>> given,
                          c.IntsAttributeOrInput("split", 1, 13));
  const int64_t size = c.shape(0)[axis];
  const int64_t parts = c.Int("num_outputs", c.output_count());
  if (parts != c.output_count()) {
    return InvalidArgument("num_outputs=", parts, " for ", c.output_count(), " outputs");
  }
  std::vector<int64_t> sizes;
  if (given.has_value()) {
    sizes = *given;
  } else {
    if (parts == 0) return InvalidArgument("no outputs");
    // The last part is smaller where the size does not divide; before opset 18 it had to.
    const int64_t part = (size + parts - 1) / parts;
    for (int64_t i = 0; i < parts; ++i) {
      sizes.push_back(std::clamp<int64_t>(size - i * part, 0, part));
    }
    if (c.opset() < 18 && size % parts != 0) {
      return InvalidArgument("dimension ", axis, " of size ", size, " in ", parts, " equal parts");
    }
  }
  if (static_cast<int64_t>(sizes.size()) != parts) {
    return InvalidArgument(sizes.size(), " split sizes for ", parts, " outputs");
  }
  std::vector<Value> outputs;
  int64_t begin = 0;
  for (const int64_t part : sizes) {
    if (part < 0 || part > size - begin) {
      return InvalidArgument("split sizes go beyond dimension ", axis, " of size ", size);
    }
    outputs.push_back(compose::SliceAxis(c.b, c.In(0), axis, begin, begin + part));
    begin += part;
  }
  if (begin != size) {
    return InvalidArgument("split sizes sum to ", begin, ", dimension ", axis, " is ", size);
  }
  return outputs;
}

struct SliceRange {
  int64_t start, end, step;
};

// NumPy's clamping of x[start : end : step] to a dimension.
SliceRange ClampSlice(SliceRange range, int64_t size) {
  auto [start, end, step] = range;
  step = std::clamp(step, -(size + 1), size + 1);  // the same elements, and no overflow
  if (start < 0) start += size;
  if (end < 0) end += size;
  if (step > 0) {
    start = std::clamp<int64_t>(start, 0, size);
    end = std::clamp<int64_t>(end, start, size);
    return {start, end, step};
  }
  if (size == 0) return {0, 0, 1};
  start = std::clamp<int64_t>(start, -1, size - 1);
  end = std::clamp<int64_t>(end, -1, size - 1);
  if (start <= end) return {0, 0, 1};
  return {start, end, step};
}

Outputs Slice(NodeContext& c) {
  std::vector<int64_t> starts, ends, axes, steps;
  if (c.opset() < 10) {
    starts = c.Ints("starts");
    ends = c.Ints("ends");
    axes = c.Ints("axes");
  } else {
    if (!c.Has(1) || !c.Has(2)) return InvalidArgument("starts or ends are missing");
    TANDEM_ASSIGN_OR_RETURN(starts, c.ConstantInts(1, "starts"));
    TANDEM_ASSIGN_OR_RETURN(ends, c.ConstantInts(2, "ends"));
    if (c.Has(3)) {
      TANDEM_ASSIGN_OR_RETURN(axes, c.ConstantInts(3, "axes"));
    }
    if (c.Has(4)) {
      TANDEM_ASSIGN_OR_RETURN(steps, c.ConstantInts(4, "steps"));
    }
  }
  const Shape shape = c.shape(0);
  if (axes.empty()) {
    axes.resize(std::min<size_t>(starts.size(), kMaxRank + 1));
    std::iota(axes.begin(), axes.end(), 0);
  }
  if (steps.empty()) steps.assign(starts.size(), 1);
  if (ends.size() != starts.size() || axes.size() != starts.size() ||
      steps.size() != starts.size()) {
    return InvalidArgument(starts.size(), " starts, ", ends.size(), " ends, ", axes.size(),
                           " axes and ", steps.size(), " steps");
  }
  TANDEM_ASSIGN_OR_RETURN(const std::vector<int> normal, NormalizeAxes(axes, shape.rank()));
  std::vector<int64_t> from(shape.rank(), 0), to = Dims(shape), by(shape.rank(), 1);
  for (size_t i = 0; i < normal.size(); ++i) {
    if (steps[i] == 0) return InvalidArgument("step ", i, " is 0");
    const int axis = normal[i];
    const SliceRange range = ClampSlice({starts[i], ends[i], steps[i]}, shape[axis]);
    from[axis] = range.start;
    to[axis] = range.end;
    by[axis] = range.step;
  }
  return One(ops::Slice(c.b, c.In(0), from, to, by));
}

Outputs Expand(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const std::vector<int64_t> dims, c.ConstantInts(1, "shape"));
  TANDEM_ASSIGN_OR_RETURN(const Shape target, Shape::Checked(dims, 1, "the target shape"));
  TANDEM_ASSIGN_OR_RETURN(const Shape shape, BroadcastShapes(c.shape(0), target));
  return One(ops::BroadcastTo(c.b, c.In(0), shape));
}

// `count` copies of x one after another along an axis.
Value Repeat(Builder& b, Value x, int axis, int64_t count) {
  Shape shape = b.shape(x);
  Shape apart = shape;
  apart[axis] = count;
  for (int i = axis; i < shape.rank(); ++i) {
    if (i + 1 < shape.rank()) {
      apart[i + 1] = shape[i];
    } else {
      apart.push_back(shape[i]);
    }
  }
  const Value copies = ops::BroadcastTo(b, compose::ExpandAxis(b, x, axis), apart);
  if (!b.ok()) return {};
  shape[axis] *= count;
  return ops::Reshape(b, copies, shape);
}

Outputs Tile(NodeContext& c) {
  const Shape shape = c.shape(0);
  std::vector<int64_t> repeats;
  if (c.opset() < 6) {
    TANDEM_ASSIGN_OR_RETURN(const std::vector<int64_t> tiles, c.ConstantInts(1, "tiles"));
    TANDEM_ASSIGN_OR_RETURN(const std::vector<int64_t> axes, c.ConstantInts(2, "axis"));
    if (tiles.size() != 1 || axes.size() != 1) return InvalidArgument("tiles or axis is no scalar");
    TANDEM_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(axes[0], shape.rank()));
    repeats.assign(shape.rank(), 1);
    repeats[axis] = tiles[0];
  } else {
    TANDEM_ASSIGN_OR_RETURN(repeats, c.ConstantInts(1, "repeats"));
  }
  if (static_cast<int>(repeats.size()) != shape.rank()) {
    return InvalidArgument(repeats.size(), " repeats for ", shape.rank(), " dimensions");
  }
  Value y = c.In(0);
  for (int axis = 0; axis < shape.rank(); ++axis) {
    if (repeats[axis] < 0) return InvalidArgument("repeats[", axis, "] is ", repeats[axis]);
    if (repeats[axis] != 1) y = Repeat(c.b, y, axis, repeats[axis]);
    TANDEM_RETURN_IF_ERROR(c.b.status());
  }
  return One(y);
}

// Where an element of a padded dimension comes from, for the modes that copy.
int64_t PadSource(std::string_view mode, int64_t i, int64_t size) {
  if (mode == "edge") return std::clamp<int64_t>(i, 0, size - 1);
  if (mode == "wrap") return ((i % size) + size) % size;
  if (size == 1) return 0;
  const int64_t period = 2 * (size - 1);  // reflect
  const int64_t place = ((i % period) + period) % period;
  return place < size ? place : period - place;
}

absl::StatusOr<Value> PadByCopy(NodeContext& c, Value x, int axis, int64_t before, int64_t after,
                                std::string_view mode) {
  const int64_t size = c.b.shape(x)[axis];
  if (size == 0) return InvalidArgument("dimension ", axis, " is empty: nothing to ", mode);
  if (before > kMaxTable || after > kMaxTable || size > kMaxTable) {
    return ResourceExhausted("padding dimension ", axis, " by ", before, " and ", after);
  }
  Tensor indices(DType::kI64, {before + size + after});
  for (int64_t i = 0; i < indices.num_elements(); ++i) {
    indices.data<int64_t>()[i] = PadSource(mode, i - before, size);
  }
  return ops::Gather(c.b, x, c.b.Constant(std::move(indices)), axis);
}

// Padding for every dimension: befores then afters.
absl::StatusOr<std::vector<int64_t>> ReadPads(NodeContext& c) {
  const int rank = c.rank(0);
  std::vector<int64_t> pads, axes;
  if (c.opset() < 11) {
    pads = c.Ints(c.opset() < 2 ? "paddings" : "pads");
  } else {
    TANDEM_ASSIGN_OR_RETURN(pads, c.ConstantInts(1, "pads"));
  }
  if (c.Has(3)) {
    TANDEM_ASSIGN_OR_RETURN(axes, c.ConstantInts(3, "axes"));
  } else {
    axes.resize(rank);
    std::iota(axes.begin(), axes.end(), 0);
  }
  TANDEM_ASSIGN_OR_RETURN(const std::vector<int> normal, NormalizeAxes(axes, rank));
  if (pads.size() != 2 * normal.size()) {
    return InvalidArgument(pads.size(), " pads for ", normal.size(), " dimensions");
  }
  std::vector<int64_t> all(2 * rank, 0);
  for (size_t i = 0; i < normal.size(); ++i) {
    all[normal[i]] = pads[i];
    all[rank + normal[i]] = pads[normal.size() + i];
  }
  return all;
}

Outputs Pad(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const std::vector<int64_t> pads, ReadPads(c));
  const std::string mode = c.String("mode", "constant");
  const int rank = c.rank(0);
  double value = 0;
  if (c.opset() < 11) {
    value = c.Float("value", 0);
  } else if (c.Has(2)) {
    TANDEM_ASSIGN_OR_RETURN(const Tensor* constant, c.ConstantInput(2, "constant_value"));
    if (constant->num_elements() != 1) return InvalidArgument("constant_value is no scalar");
    value = ElementAsDouble(*constant, 0);
  }
  Value x = c.In(0);
  std::vector<int64_t> before(rank), after(rank);
  for (int axis = 0; axis < rank; ++axis) {  // negative padding cuts
    const int64_t size = c.b.shape(x)[axis];
    const int64_t head = pads[axis], tail = pads[rank + axis];
    const int64_t begin = std::max<int64_t>(0, head < -size ? size : -head);
    const int64_t end = size - std::max<int64_t>(0, tail < -size ? size : -tail);
    if (begin > end) return InvalidArgument("pads cut more than dimension ", axis, " has");
    x = compose::SliceAxis(c.b, x, axis, begin, end);
    before[axis] = std::max<int64_t>(0, head);
    after[axis] = std::max<int64_t>(0, tail);
  }
  if (mode == "constant") return One(ops::Pad(c.b, x, before, after, value));
  if (mode != "edge" && mode != "reflect" && mode != "wrap") {
    return InvalidArgument("attribute mode='", mode, "' is unknown");
  }
  for (int axis = 0; axis < rank; ++axis) {
    if (before[axis] == 0 && after[axis] == 0) continue;
    TANDEM_ASSIGN_OR_RETURN(x, PadByCopy(c, x, axis, before[axis], after[axis], mode));
    TANDEM_RETURN_IF_ERROR(c.b.status());
  }
  return One(x);
}

// Each axis of the target is reached by cutting or padding both ends alike, the odd one at the end.
Outputs CenterCropPad(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const std::vector<int64_t> target, c.ConstantInts(1, "shape"));
  const Shape shape = c.shape(0);
  std::vector<int64_t> given = c.Ints("axes");
  if (given.empty()) {
    given.resize(shape.rank());
    std::iota(given.begin(), given.end(), 0);
  }
  TANDEM_ASSIGN_OR_RETURN(const std::vector<int> axes, NormalizeAxes(given, shape.rank()));
  if (target.size() != axes.size()) {
    return InvalidArgument(target.size(), " sizes for ", axes.size(), " axes");
  }
  Value x = c.In(0);
  std::vector<int64_t> before(shape.rank(), 0), after(shape.rank(), 0);
  for (size_t i = 0; i < axes.size(); ++i) {
    const int axis = axes[i];
    if (target[i] < 0) return InvalidArgument("size ", i, " is ", target[i]);
    const int64_t extra = target[i] - shape[axis];
    if (extra < 0) {
      const int64_t begin = -extra / 2;
      x = compose::SliceAxis(c.b, x, axis, begin, begin + target[i]);
    } else {
      before[axis] = extra / 2;
      after[axis] = extra - extra / 2;
    }
  }
  return One(ops::Pad(c.b, x, before, after));
}

Outputs ShapeOf(NodeContext& c) {
  const Shape shape = c.shape(0);
  const auto clamp = [&](int64_t i) {
    return std::clamp<int64_t>(i < 0 ? i + shape.rank() : i, 0, shape.rank());
  };
  const int64_t start = clamp(c.Int("start", 0));
  const int64_t end = std::max(start, clamp(c.Int("end", shape.rank())));
  return One(c.Int64s(shape.dims().subspan(start, end - start)));
}

Outputs Size(NodeContext& c) {
  return One(c.b.Constant(Tensor::Scalar<int64_t>(c.shape(0).num_elements())));
}

Outputs Constant(NodeContext& c) {
  if (c.node().attribute_size() != 1) {
    return InvalidArgument(c.node().attribute_size(), " attributes, expected one");
  }
  if (const onnx::TensorProto* tensor = c.TensorAttribute("value"); tensor != nullptr) {
    return c.FromProto(*tensor);
  }
  if (c.HasAttribute("value_float")) {
    return One(c.b.Constant(Tensor::Scalar(static_cast<float>(c.Float("value_float", 0)))));
  }
  if (c.HasAttribute("value_int")) {
    return One(c.b.Constant(Tensor::Scalar<int64_t>(c.Int("value_int", 0))));
  }
  if (c.HasAttribute("value_ints")) return One(c.Int64s(c.Ints("value_ints")));
  if (c.HasAttribute("value_floats")) {
    const std::vector<double> values = c.Floats("value_floats");
    Tensor tensor(DType::kF32, {static_cast<int64_t>(values.size())});
    std::copy(values.begin(), values.end(), tensor.data<float>().begin());
    return One(c.b.Constant(std::move(tensor)));
  }
  return Unimplemented("attribute '", c.node().attribute(0).name(), "' is not supported");
}

Outputs ConstantOfShape(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const std::vector<int64_t> dims, c.ConstantInts(0, "shape"));
  Value value = c.Scalar(0);
  if (const onnx::TensorProto* tensor = c.TensorAttribute("value"); tensor != nullptr) {
    TANDEM_ASSIGN_OR_RETURN(const std::vector<Value> given, c.FromProto(*tensor));
    value = given[0];
    if (c.b.shape(value).num_elements() != 1) {
      return InvalidArgument("attribute value has ", c.b.shape(value).ToString(),
                             " elements, expected one");
    }
    value = ops::Reshape(c.b, value, Shape());
  }
  TANDEM_ASSIGN_OR_RETURN(const Shape shape, Shape::Checked(dims, SizeOf(c.b.dtype(value)), "shape"));
  return One(ops::BroadcastTo(c.b, value, shape));
}

template <typename T>
Outputs MakeRange(NodeContext& c, T start, T limit, T delta) {
  if (delta == 0) return InvalidArgument("delta is 0");
  const double count = std::ceil((static_cast<double>(limit) - static_cast<double>(start)) /
                                 static_cast<double>(delta));
  if (!(count <= static_cast<double>(kMaxTable))) {
    return ResourceExhausted("a range of ", count, " elements");
  }
  Tensor tensor(TypeOf<T>(), {count > 0 ? static_cast<int64_t>(count) : 0});
  std::span<T> values = tensor.data<T>();
  for (size_t i = 0; i < values.size(); ++i) {
    if constexpr (std::is_integral_v<T>) {  // unsigned: a product may pass the limit on the way
      values[i] = static_cast<T>(static_cast<uint64_t>(start) + i * static_cast<uint64_t>(delta));
    } else {
      values[i] = start + static_cast<T>(i) * delta;
    }
  }
  return One(c.b.Constant(std::move(tensor)));
}

Outputs Range(NodeContext& c) {
  for (int i = 0; i < 3; ++i) {
    if (c.shape(i).num_elements() != 1 || c.dtype(i) != c.dtype(0)) {
      return InvalidArgument("input ", i, " is ", c.b.type(c.In(i)).ToString(),
                             ", expected a scalar of one type");
    }
  }
  if (IsFloat(c.dtype(0))) {
    double values[3];
    for (int i = 0; i < 3; ++i) {
      TANDEM_ASSIGN_OR_RETURN(const Tensor* tensor, c.ConstantInput(i, "start, limit or delta"));
      values[i] = ElementAsDouble(*tensor, 0);
    }
    if (c.dtype(0) == DType::kF64) return MakeRange<double>(c, values[0], values[1], values[2]);
    return MakeRange<float>(c, static_cast<float>(values[0]), static_cast<float>(values[1]),
                            static_cast<float>(values[2]));
  }
  int64_t values[3];
  for (int i = 0; i < 3; ++i) {
    TANDEM_ASSIGN_OR_RETURN(const std::vector<int64_t> ints,
                            c.ConstantInts(i, "start, limit or delta"));
    values[i] = ints[0];
  }
  TANDEM_ASSIGN_OR_RETURN(const std::vector<Value> range,
                          MakeRange<int64_t>(c, values[0], values[1], values[2]));
  return One(compose::CastTo(c.b, range[0], c.dtype(0)));
}

// For DepthToSpace and SpaceToDepth.
absl::StatusOr<int64_t> BlockSize(NodeContext& c) {
  const int64_t block = c.Int("blocksize", 0);
  if (c.rank(0) != 4) return InvalidArgument("input is ", c.shape(0).ToString(), ", expected NCHW");
  if (block < 1 || block > (1 << 15)) return InvalidArgument("attribute blocksize=", block);
  return block;
}

Outputs DepthToSpace(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const int64_t r, BlockSize(c));
  const Shape x = c.shape(0);
  const std::string mode = c.String("mode", "DCR");
  if (x[1] % (r * r) != 0) {
    return InvalidArgument(x[1], " channels do not divide into blocks of ", r, " x ", r);
  }
  const int64_t depth = x[1] / (r * r);
  Value y;
  if (mode == "DCR") {
    y = ops::Reshape(c.b, c.In(0), {x[0], r, r, depth, x[2], x[3]});
    y = ops::Transpose(c.b, y, {0, 3, 4, 1, 5, 2});
  } else if (mode == "CRD") {
    y = ops::Reshape(c.b, c.In(0), {x[0], depth, r, r, x[2], x[3]});
    y = ops::Transpose(c.b, y, {0, 1, 4, 2, 5, 3});
  } else {
    return InvalidArgument("attribute mode='", mode, "' is neither DCR nor CRD");
  }
  return One(ops::Reshape(c.b, y, {x[0], depth, x[2] * r, x[3] * r}));
}

Outputs SpaceToDepth(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const int64_t r, BlockSize(c));
  const Shape x = c.shape(0);
  if (x[2] % r != 0 || x[3] % r != 0) {
    return InvalidArgument(x.ToString(), " does not divide into blocks of ", r, " x ", r);
  }
  Value y = ops::Reshape(c.b, c.In(0), {x[0], x[1], x[2] / r, r, x[3] / r, r});
  y = ops::Transpose(c.b, y, {0, 3, 5, 1, 2, 4});
  return One(ops::Reshape(c.b, y, {x[0], x[1] * r * r, x[2] / r, x[3] / r}));
}

// column - row of each place of a matrix: (rows, columns) i64.
absl::StatusOr<Value> Diagonals(NodeContext& c, int64_t rows, int64_t columns) {
  if (rows > kMaxTable || columns > kMaxTable || rows * columns > kMaxTable) {
    return ResourceExhausted("a matrix of ", rows, " x ", columns);
  }
  const Value row = ops::Reshape(c.b, compose::Iota(c.b, rows), {rows, 1});
  return ops::Sub(c.b, compose::Iota(c.b, columns), row);
}

Outputs Trilu(NodeContext& c) {
  const Shape shape = c.shape(0);
  if (shape.rank() < 2) return InvalidArgument("input is ", shape.ToString(), ", not matrices");
  int64_t k = 0;
  if (c.Has(1)) {
    TANDEM_ASSIGN_OR_RETURN(const std::vector<int64_t> given, c.ConstantInts(1, "k"));
    if (given.size() != 1) return InvalidArgument("k is no scalar");
    k = given[0];
  }
  TANDEM_ASSIGN_OR_RETURN(const Value diagonal, Diagonals(c, shape[-2], shape[-1]));
  const Value limit = c.b.Constant(Tensor::Scalar<int64_t>(k));
  const Value mask = c.Int("upper", 1) != 0 ? ops::LessOrEqual(c.b, limit, diagonal)
                                            : ops::LessOrEqual(c.b, diagonal, limit);
  return One(ops::Where(c.b, mask, c.In(0), compose::Like(c.b, 0, c.In(0))));
}

Outputs EyeLike(NodeContext& c) {
  const Shape shape = c.shape(0);
  if (shape.rank() != 2) return InvalidArgument("input is ", shape.ToString(), ", not a matrix");
  DType dtype = c.dtype(0);
  if (c.HasAttribute("dtype")) {
    const int64_t type = c.Int("dtype", 0);
    if (type < 0 || type > 1000) return InvalidArgument("attribute dtype=", type);
    TANDEM_ASSIGN_OR_RETURN(
        dtype, DTypeFromOnnx(static_cast<int32_t>(type), "attribute 'dtype'"));
  }
  TANDEM_ASSIGN_OR_RETURN(const Value diagonal, Diagonals(c, shape[0], shape[1]));
  const Value k = c.b.Constant(Tensor::Scalar<int64_t>(c.Int("k", 0)));
  return One(ops::Cast(c.b, ops::Equal(c.b, diagonal, k), ComputeDType(dtype)));
}

// a0 - a1 cos(2 pi i / n) + a2 cos(4 pi i / n), n the size, or for a symmetric window the size - 1.
template <int kA0, int kA1, int kA2>  // in millionths
Outputs Window(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const std::vector<int64_t> size, c.ConstantInts(0, "size"));
  if (size.size() != 1 || size[0] < 1 || size[0] > kMaxTable) {
    return InvalidArgument("size is no number from 1 to ", kMaxTable);
  }
  const int64_t type = c.Int("output_datatype", onnx::TensorProto::FLOAT);
  if (type < 0 || type > 1000) return InvalidArgument("attribute output_datatype=", type);
  TANDEM_ASSIGN_OR_RETURN(
      const DType dtype, DTypeFromOnnx(static_cast<int32_t>(type), "attribute 'output_datatype'"));
  const bool periodic = c.Int("periodic", 1) != 0;
  const double n = std::max<double>(1, static_cast<double>(periodic ? size[0] : size[0] - 1));
  Tensor window(DType::kF64, {size[0]});
  for (int64_t i = 0; i < size[0]; ++i) {
    const double angle = 2 * std::numbers::pi * static_cast<double>(i) / n;
    window.data<double>()[i] =
        (kA0 - kA1 * std::cos(angle) + kA2 * std::cos(2 * angle)) / 1'000'000.0;
  }
  return One(c.b.Constant(CastTensor(window, ComputeDType(dtype))));
}

constexpr OnnxOp Op(std::string_view name, Outputs (*convert)(NodeContext&), int min_inputs = 1,
                    int max_inputs = 1, uint32_t shape_inputs = 0) {
  return {.name = name,
          .convert = convert,
          .min_inputs = min_inputs,
          .max_inputs = max_inputs,
          .shape_inputs = shape_inputs};
}

constexpr OnnxOp kOps[] = {
    Op("BlackmanWindow", Window<420'000, 500'000, 80'000>, 1, 1, InputSet(0)),
    Op("CenterCropPad", CenterCropPad, 2, 2, InputSet(1)),
    Op("Concat", Concat, 1, kAnyCount),
    Op("Constant", Constant, 0, 0),
    Op("ConstantOfShape", ConstantOfShape, 1, 1, InputSet(0)),
    Op("DepthToSpace", DepthToSpace),
    Op("Expand", Expand, 2, 2, InputSet(1)),
    {.name = "EyeLike", .convert = EyeLike, .fixed_inputs = InputSet(0)},
    Op("Flatten", Flatten),
    Op("HammingWindow", Window<543'478, 456'522, 0>, 1, 1, InputSet(0)),
    Op("HannWindow", Window<500'000, 500'000, 0>, 1, 1, InputSet(0)),
    Op("Pad", Pad, 1, 4, InputSet(1, 2, 3)),
    Op("Range", Range, 3, 3, InputSet(0, 1, 2)),
    Op("Reshape", Reshape, 1, 2, InputSet(1)),
    Op("Shape", ShapeOf),
    Op("Size", Size),
    Op("Slice", Slice, 1, 5, InputSet(1, 2, 3, 4)),
    Op("SpaceToDepth", SpaceToDepth),
    Op("Split", Split, 1, 2, InputSet(1)),
    Op("Squeeze", Squeeze, 1, 2, InputSet(1)),
    Op("Tile", Tile, 2, 3, InputSet(1, 2)),
    Op("Transpose", Transpose),
    Op("Trilu", Trilu, 1, 2, InputSet(1)),
    Op("Unsqueeze", Unsqueeze, 1, 2, InputSet(1)),
};

}  // namespace

std::span<const OnnxOp> OnnxShapeOps() { return kOps; }

}  // namespace tandem

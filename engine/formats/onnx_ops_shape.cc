// Shapes and layout: reshaping, slicing, joining, repeating.
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
using compose::NormalizeAxes;

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
  return One(ops::Reshape(c.b, c.In(0), {shape.Count(0, split), shape.Count(split, shape.rank())}));
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
    return One(ops::PixelShuffle(c.b, c.In(0), r));
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

constexpr OnnxOp kOps[] = {
    Op("Concat", Concat, 1, kAnyCount),
    Op("DepthToSpace", DepthToSpace),
    Op("Expand", Expand, 2, 2, InputSet(1)),
    Op("Flatten", Flatten),
    Op("Reshape", Reshape, 1, 2, InputSet(1)),
    Op("Slice", Slice, 1, 5, InputSet(1, 2, 3, 4)),
    Op("SpaceToDepth", SpaceToDepth),
    Op("Split", Split, 1, 2, InputSet(1)),
    Op("Squeeze", Squeeze, 1, 2, InputSet(1)),
    Op("Tile", Tile, 2, 3, InputSet(1, 2)),
    Op("Transpose", Transpose),
    Op("Unsqueeze", Unsqueeze, 1, 2, InputSet(1)),
};

}  // namespace

std::span<const OnnxOp> OnnxShapeOps() { return kOps; }

}  // namespace tandem

// Padding and cutting.
#include <algorithm>
#include <numeric>
#include <utility>

#include "engine/base/error.h"
#include "engine/formats/onnx_compose.h"
#include "engine/formats/onnx_ops.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

using compose::NormalizeAxes;

// Tables of indices that a node may need, in elements.
constexpr int64_t kMaxTable = int64_t{1} << 26;

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

constexpr OnnxOp kOps[] = {
    Op("CenterCropPad", CenterCropPad, 2, 2, InputSet(1)),
    Op("Pad", Pad, 1, 4, InputSet(1, 2, 3)),
};

}  // namespace

std::span<const OnnxOp> OnnxPadOps() { return kOps; }

}  // namespace tandem

#include "engine/graph/receptive_field.h"

#include <algorithm>
#include <numeric>
#include <string_view>
#include <utility>

#include "engine/base/error.h"

namespace tandem {
namespace {

// Longer periods and wider windows come from no sensible network, and cost time or overflow: with
// these, the products below stay under 2^62.
constexpr int64_t kMaxPeriod = 256;
constexpr int64_t kMaxPosition = int64_t{1} << 30;

// An empty window: its ends survive additions of jumps.
constexpr int64_t kNoLow = kMaxPosition * 4, kNoHigh = -kMaxPosition * 4;

AxisField Unknown() { return {.kind = AxisField::Kind::kUnknown, .low = {}, .high = {}}; }
AxisField Whole() { return {.kind = AxisField::Kind::kWhole, .low = {}, .high = {}}; }

int64_t FloorDiv(int64_t a, int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }

// The one window that every position sees.
AxisField Constant(int64_t low, int64_t high) {
  return {.axis = -1, .jump = 0, .low = {low}, .high = {high}};
}

bool Reduces(const AxisField& f, int64_t divisor) {
  const int64_t period = f.period();
  if (period % divisor != 0 || f.jump * divisor % period != 0) return false;
  const int64_t step = f.jump * divisor / period;
  for (int64_t r = 0; r + divisor < period; ++r) {
    const bool empty = f.low[r] > f.high[r];
    if (empty != (f.low[r + divisor] > f.high[r + divisor])) return false;
    if (!empty &&
        (f.low[r] + step != f.low[r + divisor] || f.high[r] + step != f.high[r + divisor])) {
      return false;
    }
  }
  return true;
}

// The same field with its shortest period; unknown where it left the bounds.
AxisField Normalized(AxisField f) {
  for (int64_t r = 0; r < f.period(); ++r) {
    if (f.low[r] > f.high[r]) {
      f.low[r] = kNoLow;
      f.high[r] = kNoHigh;
    } else if (f.low[r] < -kMaxPosition || f.high[r] > kMaxPosition) {
      return Unknown();
    }
  }
  if (f.jump > kMaxPosition) return Unknown();
  for (int64_t divisor = 1; divisor < f.period(); ++divisor) {
    if (!Reduces(f, divisor)) continue;
    f.jump = f.jump * divisor / f.period();
    f.low.resize(divisor);
    f.high.resize(divisor);
    break;
  }
  return f;
}

struct Span {
  int64_t low = kNoLow, high = kNoHigh;
  void Add(const AxisField& in, int64_t position) {
    if (in.Empty(position)) return;
    low = std::min(low, in.Low(position));
    high = std::max(high, in.High(position));
  }
};

struct Taps {
  int64_t kernel, stride, pad, dilation;
};

// Output p looks at p stride - pad + k dilation. Taps a period apart look at the same phase, so
// that the first and last `period` taps hold both ends.
AxisField Forward(const AxisField& in, const Taps& w) {
  const int64_t period = in.period();
  const int64_t out_period = period / std::gcd(period, w.stride);
  AxisField out{.axis = in.axis, .low = {}, .high = {}};
  if (w.stride > kMaxPosition / std::max<int64_t>(in.jump, 1)) return Unknown();
  if (w.pad > kMaxPosition || w.pad < -kMaxPosition || w.kernel > kMaxPosition) return Unknown();
  out.jump = in.jump * (out_period * w.stride / period);
  const int64_t ends = std::min(w.kernel, period);
  for (int64_t r = 0; r < out_period; ++r) {
    Span span;
    for (int64_t k = 0; k < ends; ++k) {
      span.Add(in, r * w.stride - w.pad + k * w.dilation);
      span.Add(in, r * w.stride - w.pad + (w.kernel - 1 - k) * w.dilation);
    }
    out.low.push_back(span.low);
    out.high.push_back(span.high);
  }
  return Normalized(std::move(out));
}

// Output p looks at every whole (p + pad - k dilation) / stride.
AxisField Transposed(const AxisField& in, const Taps& w) {
  const int64_t period = in.period();
  if (w.stride > kMaxPeriod / period) return Unknown();
  AxisField out{.axis = in.axis, .jump = in.jump, .low = {}, .high = {}};
  const int64_t ends = std::min(w.kernel, period * (w.stride / std::gcd(w.stride, w.dilation)));
  for (int64_t r = 0; r < period * w.stride; ++r) {
    Span span;
    const auto look = [&](int64_t k) {
      const int64_t at = r + w.pad - k * w.dilation;
      if (at % w.stride == 0) span.Add(in, at / w.stride);
    };
    for (int64_t k = 0; k < ends; ++k) {
      look(k);
      look(w.kernel - 1 - k);
    }
    out.low.push_back(span.low);
    out.high.push_back(span.high);
  }
  return Normalized(std::move(out));
}

AxisField Moved(AxisField field, int axis) {
  field.axis = axis;
  return field;
}

bool Contains(const std::vector<int64_t>& list, int64_t value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

// One node: what its outputs see, from what its inputs see.
class NodeRule {
 public:
  NodeRule(const Graph& graph, const Node& node) : graph_(graph), node_(node) {}

  // Of input i, along one dimension.
  AxisField Through(int i, const AxisField& in) const {
    if (in.kind != AxisField::Kind::kWindow || in.axis < 0) return in;
    const std::string_view op = node_.op->name;
    if (node_.op->geometry != nullptr) return Window(i, in);
    if (op == "Reshape") return Reshape(in);
    if (op == "Transpose") return Transpose(in);
    if (op == "Slice") return Slice(in);
    if (op == "Pad") return Shifted(in, -node_.attributes.Ints("before")[in.axis]);
    if (op == "Concat") return in.axis == Axis() ? Unknown() : in;
    if (op == "Gather") return Gather(i, in);
    if (op == "MatMul") return MatMul(i, in);
    if (op.substr(0, 6) == "Reduce" || op.substr(0, 3) == "Arg") return Reduce(in);
    if (op == "Attention" || op == "PagedAttention" || op == "TriangularSolve") return Whole();
    if (MixesLastAxis(op) && in.axis == Input(i).rank() - 1) return Whole();
    return Pointwise(i, in);
  }

 private:
  const Shape& Input(int i) const { return graph_.type(node_.inputs[i]).shape; }
  const Shape& Output() const { return graph_.type(node_.outputs[0]).shape; }

  // The operator's one axis, counted from the front.
  int Axis() const {
    const auto axis = static_cast<int>(node_.attributes.Int("axis"));
    return axis < 0 ? axis + Input(0).rank() : axis;
  }

  static bool MixesLastAxis(std::string_view op) {
    for (std::string_view mixes :
         {"Softmax", "LogSoftmax", "GumbelSoftmax", "LayerNorm", "RmsNorm", "Rope", "TopK"}) {
      if (op == mixes) return true;
    }
    return false;
  }

  AxisField Window(int i, const AxisField& in) const {
    if (i != 0) return Whole();  // weights that depend on the input
    if (in.axis < 2) return in.axis == 1 && node_.inputs.size() > 1 ? Whole() : in;
    std::vector<const TensorType*> inputs;
    for (Value v : node_.inputs) inputs.push_back(v.valid() ? &graph_.type(v) : nullptr);
    const Geometry geometry = node_.op->geometry(inputs, node_.attributes);
    const int dim = in.axis - 2;
    if (dim >= static_cast<int>(geometry.kernel.size())) return Unknown();
    return BehindWindow(in, geometry, dim);
  }

  // Output position p is input position p + begin.
  static AxisField Shifted(const AxisField& in, int64_t begin) {
    return Forward(in, {.kernel = 1, .stride = 1, .pad = -begin, .dilation = 1});
  }

  // The axis stays if as many elements stand before it; it may also split off or take in axes that
  // vary faster, as in space-to-depth and depth-to-space.
  AxisField Reshape(const AxisField& in) const {
    const Shape &from = Input(0), &to = Output();
    const int64_t before = from.Count(0, in.axis), size = from[in.axis];
    for (int pass = 0; pass < 2; ++pass) {
      for (int axis = 0; axis < to.rank(); ++axis) {
        if (to.Count(0, axis) != before) continue;
        if (to[axis] == size) return Moved(in, axis);
        if (pass == 0 || to[axis] <= 1 || size <= 1) continue;
        if (to[axis] % size == 0) {
          return Moved(
              Transposed(
                  in,
                  {.kernel = to[axis] / size, .stride = to[axis] / size, .pad = 0, .dilation = 1}),
              axis);
        }
        if (size % to[axis] == 0) {
          return Moved(
              Forward(
                  in,
                  {.kernel = size / to[axis], .stride = size / to[axis], .pad = 0, .dilation = 1}),
              axis);
        }
      }
    }
    return Whole();
  }

  AxisField Transpose(const AxisField& in) const {
    const std::vector<int64_t>& permutation = node_.attributes.Ints("permutation");
    const auto at = std::find(permutation.begin(), permutation.end(), in.axis);
    return Moved(in, static_cast<int>(at - permutation.begin()));
  }

  AxisField Slice(const AxisField& in) const {
    const int64_t step = node_.attributes.Ints("steps")[in.axis];
    if (step < 1) return Unknown();
    return Forward(in, {.kernel = 1,
                        .stride = step,
                        .pad = -node_.attributes.Ints("starts")[in.axis],
                        .dilation = 1});
  }

  AxisField Gather(int i, const AxisField& in) const {
    const int axis = Axis();
    if (i != 0 || in.axis == axis) return Unknown();
    const int added = Input(1).rank() - 1;
    return Moved(in, in.axis < axis ? in.axis : in.axis + added);
  }

  AxisField MatMul(int i, const AxisField& in) const {
    const Shape& shape = Input(i);
    const int from_end = in.axis - shape.rank();
    if (i == 2) return Moved(in, Output().rank() - 1);
    if (from_end < -2) return Pointwise(i, in);
    const bool transposed = node_.attributes.Int(i == 0 ? "transpose_a" : "transpose_b") != 0;
    const int kept = (i == 0) != transposed ? -2 : -1;
    return from_end == kept ? Moved(in, Output().rank() + (i == 0 ? -2 : -1)) : Whole();
  }

  AxisField Reduce(const AxisField& in) const {
    std::vector<int64_t> axes;
    if (node_.attributes.Has("axes")) {
      axes = node_.attributes.Ints("axes");
    } else {
      axes = {node_.attributes.Int("axis")};
    }
    const int rank = Input(0).rank();
    for (int64_t& axis : axes) axis += axis < 0 ? rank : 0;
    if (axes.empty() || Contains(axes, in.axis)) return Whole();
    if (node_.attributes.Int("keep") != 0) return in;
    const auto gone =
        std::count_if(axes.begin(), axes.end(), [&](int64_t axis) { return axis < in.axis; });
    return Moved(in, in.axis - static_cast<int>(gone));
  }

  // Every position from the same position, with NumPy's broadcasting.
  AxisField Pointwise(int i, const AxisField& in) const {
    const int axis = in.axis + Output().rank() - Input(i).rank();
    if (axis < 0) return Unknown();
    const int64_t size = Input(i)[in.axis];
    if (size == Output()[axis]) return Moved(in, axis);
    return size == 1 ? Constant(in.Low(0), in.High(0)) : Unknown();
  }

  const Graph& graph_;
  const Node& node_;
};

std::string WhyUnknown(const Node& node, const std::vector<AxisField>& parts) {
  for (const AxisField& part : parts) {
    if (part.kind == AxisField::Kind::kUnknown) {
      return StrCat("the analysis does not follow ", node.op->name, " along a spatial dimension");
    }
  }
  std::string strides;
  for (const AxisField& part : parts) {
    if (part.kind != AxisField::Kind::kWindow) continue;
    strides += StrCat(strides.empty() ? "" : " and ", part.stride());
  }
  return StrCat("branches of strides ", strides, " meet");
}

}  // namespace

int64_t AxisField::Low(int64_t p) const {
  const int64_t m = FloorDiv(p, period());
  return low[p - m * period()] + m * jump;
}
int64_t AxisField::High(int64_t p) const {
  const int64_t m = FloorDiv(p, period());
  return high[p - m * period()] + m * jump;
}
bool AxisField::Empty(int64_t p) const {
  const int64_t r = p - FloorDiv(p, period()) * period();
  return low[r] > high[r];
}

int64_t AxisField::size() const {
  int64_t size = 0;
  for (int64_t r = 0; r < period(); ++r) size = std::max(size, high[r] - low[r] + 1);
  return size;
}

double AxisField::offset() const {
  for (int64_t r = 0; r < period(); ++r) {
    if (low[r] <= high[r]) return static_cast<double>(low[r] + high[r]) / 2;
  }
  return 0;
}

AxisField BehindWindow(const AxisField& in, const Geometry& window, int i) {
  const Taps taps = {window.kernel[i], window.stride[i], window.pad_begin[i], window.dilation[i]};
  return window.transposed ? Transposed(in, taps) : Forward(in, taps);
}

AxisField Union(const AxisField& a, const AxisField& b) {
  using Kind = AxisField::Kind;
  if (a.kind == Kind::kWhole || b.kind == Kind::kWhole) return Whole();
  if (a.kind == Kind::kUnknown || b.kind == Kind::kUnknown) return Unknown();
  const int64_t period = std::lcm(a.period(), b.period());
  if (a.axis != b.axis || a.jump * b.period() != b.jump * a.period() || period > kMaxPeriod) {
    return Unknown();
  }
  AxisField out{.axis = a.axis, .jump = a.jump * (period / a.period()), .low = {}, .high = {}};
  for (int64_t r = 0; r < period; ++r) {
    Span span;
    span.Add(a, r);
    span.Add(b, r);
    out.low.push_back(span.low);
    out.high.push_back(span.high);
  }
  return Normalized(std::move(out));
}

Value SpatialInput(const Graph& graph) {
  for (Value v : graph.inputs()) {
    if (IsFloat(graph.type(v).dtype) && graph.type(v).shape.rank() >= 3) return v;
  }
  return {};
}

std::vector<std::optional<ReceptiveField>> ReceptiveFields(const Graph& graph, Value input) {
  std::vector<std::optional<ReceptiveField>> fields(graph.value_count());
  ReceptiveField& own = fields[input.id].emplace();
  for (int axis = 2; axis < graph.type(input).shape.rank(); ++axis) {
    own.dims.push_back({.axis = axis, .low = {0}, .high = {0}});
  }
  const size_t dims = own.dims.size();
  for (const Node& node : graph.nodes()) {
    if (node.outputs.empty()) continue;
    const NodeRule rule(graph, node);
    std::optional<ReceptiveField> field;
    for (size_t d = 0; d < dims; ++d) {
      std::vector<AxisField> parts;
      std::string inherited;
      for (size_t i = 0; i < node.inputs.size(); ++i) {
        if (!node.inputs[i].valid() || !fields[node.inputs[i].id]) continue;
        const ReceptiveField& seen = *fields[node.inputs[i].id];
        parts.push_back(rule.Through(static_cast<int>(i), seen.dims[d]));
        if (inherited.empty()) inherited = seen.note;
      }
      if (parts.empty()) continue;
      AxisField sum = parts[0];
      for (size_t i = 1; i < parts.size(); ++i) sum = Union(sum, parts[i]);
      if (!field) field.emplace();
      if (sum.kind == AxisField::Kind::kUnknown && field->note.empty()) {
        field->note = inherited.empty() ? WhyUnknown(node, parts) : inherited;
      }
      field->dims.push_back(std::move(sum));
    }
    for (Value v : node.outputs) {
      fields[v.id] = field;
      if (!field) continue;
      const int rank = graph.type(v).shape.rank();
      for (AxisField& dim : fields[v.id]->dims) {
        if (dim.axis >= rank) dim = Whole();  // a statistic over the axis
      }
    }
  }
  return fields;
}

}  // namespace tandem

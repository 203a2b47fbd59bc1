// Resize: a linear map along each chosen dimension; its adjoint; and the rearrangements that stand
// in for upsampling.
#include "engine/ops/resize.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/ops/definitions.h"
#include "engine/ops/inference.h"

namespace tandem::ops {
namespace {

constexpr int64_t kMaxSize = int64_t{1} << 24;
constexpr int64_t kMaxWeights = int64_t{1} << 25;

int64_t NearestIndex(const std::string& mode, double place, int64_t size) {
  double index = std::floor(place);
  const double fraction = place - index;
  if (mode == "ceil") {
    index = std::ceil(place);
  } else if (mode == "round_prefer_floor") {
    index += fraction > 0.5 ? 1 : 0;
  } else if (mode == "round_prefer_ceil") {
    index += fraction >= 0.5 ? 1 : 0;
  }
  return static_cast<int64_t>(std::clamp(index, 0.0, static_cast<double>(size - 1)));
}

double LinearWeight(double distance) { return std::max(0.0, 1 - std::abs(distance)); }

// Keys 1981, equation (4).
double CubicWeight(double distance, double a) {
  const double x = std::abs(distance);
  if (x <= 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a;
  return 0;
}

// The interpolation filter around a place, its weights normalised to 1.
struct Filter {
  Filter(const ResizeOptions& options, double scale)
      : cubic(options.mode == "cubic"),
        a(options.cubic_a),
        exclude_outside(options.exclude_outside),
        shrink(options.antialias ? std::min(scale, 1.0) : 1.0),
        radius((cubic ? 2 : 1) / shrink) {}

  // Sets `row` to the weights of the taps from the first inside the input to the last, and returns
  // the first; taps outside count for the edge.
  int64_t Row(double place, int64_t input, std::vector<double>& row) const {
    // A place far outside, or NaN, looks at the edge as one just outside the filter's reach does.
    const auto edge = static_cast<double>(input - 1);
    place = place > -radius - 1 ? std::min(place, edge + radius + 1) : -radius - 1;
    const auto first = static_cast<int64_t>(std::floor(place - radius)) + 1;
    const auto last = static_cast<int64_t>(std::floor(place + radius));
    const int64_t low = std::clamp<int64_t>(first, 0, input - 1);
    const int64_t high = std::clamp<int64_t>(last, low, input - 1);
    row.assign(high - low + 1, 0.0);
    double total = 0;
    for (int64_t tap = first; tap <= last; ++tap) {
      if (exclude_outside && (tap < 0 || tap >= input)) continue;
      const double distance = (static_cast<double>(tap) - place) * shrink;
      const double weight = cubic ? CubicWeight(distance, a) : LinearWeight(distance);
      total += weight;
      row[std::clamp(tap, low, high) - low] += weight;
    }
    if (total == 0) return low;
    for (double& weight : row) weight /= total;
    return low;
  }

  bool cubic;
  double a;
  bool exclude_outside;
  double shrink, radius;
};

absl::Status OneOf(std::string_view what, const std::string& value,
                   std::initializer_list<std::string_view> known) {
  if (std::find(known.begin(), known.end(), value) != known.end()) return absl::OkStatus();
  return InvalidArgument(what, " '", value, "' is unknown");
}

Attributes ResizeAttributes(const ResizeOptions& options) {
  std::vector<int64_t> axes, sizes;
  std::vector<double> scales, roi;
  for (const ResizeAxis& a : options.axes) {
    axes.push_back(a.axis);
    sizes.push_back(a.size);
    scales.push_back(a.scale);
    roi.push_back(a.roi_start);
    roi.push_back(a.roi_end);
  }
  return {{"axes", std::move(axes)},
          {"sizes", std::move(sizes)},
          {"scales", std::move(scales)},
          {"roi", std::move(roi)},
          {"mode", options.mode},
          {"coordinates", options.coordinates},
          {"nearest", options.nearest},
          {"cubic_a", options.cubic_a},
          {"antialias", int64_t{options.antialias}},
          {"exclude_outside", int64_t{options.exclude_outside}}};
}

// As the builder functions wrote them.
ResizeOptions Unread(const Attributes& attributes) {
  ResizeOptions options{.axes = {},
                        .mode = attributes.String("mode"),
                        .coordinates = attributes.String("coordinates"),
                        .nearest = attributes.String("nearest"),
                        .cubic_a = attributes.Float("cubic_a"),
                        .antialias = attributes.Int("antialias") != 0,
                        .exclude_outside = attributes.Int("exclude_outside") != 0};
  for (size_t i = 0; i < attributes.Ints("axes").size(); ++i) {
    options.axes.push_back({.axis = attributes.Ints("axes")[i],
                            .size = attributes.Ints("sizes")[i],
                            .scale = attributes.Floats("scales")[i],
                            .roi_start = attributes.Floats("roi")[2 * i],
                            .roi_end = attributes.Floats("roi")[2 * i + 1]});
  }
  return options;
}

absl::Status RequireInterpolable(const InferArgs& args, std::string_view what) {
  if (args.attributes.String("mode") == "nearest") return absl::OkStatus();
  return RequireFloat(args, 0, what);
}

// x's shape after the resizing, whose tables are known to be of a sane size.
absl::StatusOr<Shape> ResizedShape(const Shape& x, const Attributes& attributes, DType dtype) {
  TANDEM_ASSIGN_OR_RETURN(const ResizeOptions options, ReadResizeOptions(attributes, x));
  std::vector<int64_t> y(x.begin(), x.end());
  for (const ResizeAxis& a : options.axes) y[a.axis] = a.size;
  return Shape::Checked(y, SizeOf(dtype), "the output");
}

Types InferResize(const InferArgs& args) {
  const DType dtype = args.type(0).dtype;
  TANDEM_RETURN_IF_ERROR(RequireInterpolable(args, "x"));
  TANDEM_ASSIGN_OR_RETURN(Shape y, ResizedShape(args.shape(0), args.attributes, dtype));
  return std::vector<TensorType>{{dtype, std::move(y)}};
}

Types InferResizeGrad(const InferArgs& args) {
  const DType dtype = args.type(0).dtype;
  TANDEM_RETURN_IF_ERROR(RequireFloat(args, 0, "dy"));
  TANDEM_ASSIGN_OR_RETURN(
      Shape x, Shape::Checked(args.attributes.Ints("x_shape"), SizeOf(dtype), "x_shape"));
  TANDEM_ASSIGN_OR_RETURN(const Shape y, ResizedShape(x, args.attributes, dtype));
  TANDEM_RETURN_IF_ERROR(RequireShape(args, 0, "dy", y));
  return std::vector<TensorType>{{dtype, std::move(x)}};
}

// dx = ResizeGrad(dy), whatever x is: the map is linear
std::vector<Value> ResizeGradient(Builder& b, const GradientArgs& g) {
  const Shape x = b.shape(g.in(0));
  return {ResizeGrad(b, g.cotangent(), x, Unread(g.node.attributes))};
}
// The adjoint's adjoint: d(dy) = Resize(c) for a cotangent c of dx
std::vector<Value> ResizeGradGradient(Builder& b, const GradientArgs& g) {
  return {Resize(b, g.cotangent(), Unread(g.node.attributes))};
}

// A multiply-add a tap that the filter has without stretching, for each dimension in turn.
double ResizeFlops(std::span<const TensorType* const> inputs, std::span<const TensorType> outputs,
                   const Attributes& attributes) {
  const std::string& mode = attributes.String("mode");
  const double taps = mode == "nearest" ? 0 : mode == "cubic" ? 4 : 2;
  const auto elements = std::max(inputs[0]->shape.num_elements(), outputs[0].shape.num_elements());
  return 2 * taps * static_cast<double>(attributes.Ints("axes").size()) *
         static_cast<double>(elements);
}

// Whether every output reads exactly dimension d of that window, cut at the input's ends.
bool ReadsWindow(const ResampleTable& table, const Geometry& window, int d) {
  const int64_t kernel = window.kernel[d], stride = window.stride[d], pad = window.pad_begin[d];
  for (int64_t o = 0; o < table.outputs(); ++o) {
    int64_t low = o * stride - pad, high = low + kernel - 1;
    if (window.transposed) {
      // The whole numbers (o + pad - k) / stride, k < kernel.
      const int64_t last = o + pad, first = last - kernel + 1;
      low = first <= 0 ? -(-first / stride) : (first + stride - 1) / stride;
      high = last / stride;
    }
    low = std::max<int64_t>(low, 0);
    high = std::min(high, table.input - 1);
    if (table.first[o] != low || table.count(o) != high - low + 1) return false;
  }
  return true;
}

// What a Resize of the last two dimensions (or the last) looks at: the filter's taps, at the
// scale's stride. Empty where no one window is what all outputs read: at ratios that are not whole,
// with aligned corners, or where one dimension grows and the other shrinks.
Geometry ResizeGeometry(std::span<const TensorType* const> inputs, const Attributes& attributes) {
  const Shape& x = inputs[0]->shape;
  const auto options = ReadResizeOptions(attributes, x);
  Geometry geometry;
  const int spatial = x.rank() - 2;
  if (!options.ok() || spatial < 1 || spatial > 2) return geometry;
  geometry.kernel.assign(spatial, 1);
  geometry.stride.assign(spatial, 1);
  geometry.pad_begin.assign(spatial, 0);
  geometry.dilation.assign(spatial, 1);
  for (const ResizeAxis& a : options->axes) geometry.transposed |= a.scale > 1;
  for (int i = 0; i < static_cast<int>(options->axes.size()); ++i) {
    const ResizeAxis& a = options->axes[i];
    const int d = static_cast<int>(a.axis) - 2;
    const auto table = MakeResampleTable(*options, i, x[static_cast<int>(a.axis)]);
    if (!table.ok() || d < 0 || table->outputs() == 0) return {};
    int64_t taps = 1;
    for (int64_t o = 0; o < table->outputs(); ++o) taps = std::max(taps, table->count(o));
    if (geometry.transposed) {
      geometry.stride[d] = std::max<int64_t>(1, std::llround(a.scale));
      geometry.kernel[d] = taps * geometry.stride[d];
      geometry.pad_begin[d] = (geometry.kernel[d] - geometry.stride[d]) / 2;
    } else {
      geometry.stride[d] = std::max<int64_t>(1, std::llround(1 / a.scale));
      geometry.kernel[d] = taps;
      geometry.pad_begin[d] = std::max<int64_t>(0, (taps - geometry.stride[d]) / 2);
    }
    if (!ReadsWindow(*table, geometry, d)) return {};
  }
  return geometry;
}

}  // namespace

double ResizePlace(const ResizeOptions& options, const ResizeAxis& a, int64_t input, int64_t o) {
  const std::string& coordinates = options.coordinates;
  const auto x = static_cast<double>(o);
  const auto in = static_cast<double>(input), out = static_cast<double>(a.size);
  if (coordinates == "asymmetric") return x / a.scale;
  if (coordinates == "align_corners") return a.size == 1 ? 0 : x * (in - 1) / (out - 1);
  if (coordinates == "pytorch_half_pixel") return a.size == 1 ? -0.5 : (x + 0.5) / a.scale - 0.5;
  if (coordinates == "half_pixel_symmetric") {
    const double adjustment = out / (a.scale * in);
    return in / 2 * (1 - adjustment) + (x + 0.5) / a.scale - 0.5;
  }
  if (coordinates == "tf_crop_and_resize") {
    if (a.size == 1) return 0.5 * (a.roi_start + a.roi_end) * (in - 1);
    return a.roi_start * (in - 1) + x * (a.roi_end - a.roi_start) * (in - 1) / (out - 1);
  }
  return (x + 0.5) / a.scale - 0.5;  // half_pixel
}

absl::StatusOr<ResizeOptions> ReadResizeOptions(const Attributes& attributes, const Shape& x) {
  ResizeOptions options = Unread(attributes);
  TANDEM_RETURN_IF_ERROR(OneOf("mode", options.mode, {"nearest", "linear", "cubic"}));
  TANDEM_RETURN_IF_ERROR(OneOf("coordinates", options.coordinates,
                               {"half_pixel", "half_pixel_symmetric", "pytorch_half_pixel",
                                "align_corners", "asymmetric", "tf_crop_and_resize"}));
  TANDEM_RETURN_IF_ERROR(OneOf("nearest", options.nearest,
                               {"round_prefer_floor", "round_prefer_ceil", "floor", "ceil"}));
  if (!std::isfinite(options.cubic_a)) return InvalidArgument("cubic_a is ", options.cubic_a);
  std::vector<bool> seen(x.rank(), false);
  for (ResizeAxis& a : options.axes) {
    TANDEM_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(a.axis, x.rank()));
    if (seen[axis]) return InvalidArgument("axis ", a.axis, " is given twice");
    seen[axis] = true;
    a.axis = axis;
    const int64_t input = x[axis];
    if (input < 1 || input > std::numeric_limits<int32_t>::max() || a.size < 1 ||
        a.size > kMaxSize) {
      return InvalidArgument("dimension ", axis, " of ", x.ToString(), " cannot become ", a.size);
    }
    if (a.scale == 0) a.scale = static_cast<double>(a.size) / static_cast<double>(input);
    // Beyond these a place in the input is no longer a sensible number.
    if (!(a.scale >= 1e-9 && a.scale <= 1e9)) {
      return InvalidArgument("scale ", a.scale, " of dimension ", axis, " is outside [1e-9, 1e9]");
    }
    if (!(std::abs(a.roi_start) <= 1e9 && std::abs(a.roi_end) <= 1e9)) {
      return InvalidArgument("region ", a.roi_start, " to ", a.roi_end, " of dimension ", axis);
    }
    const double shrink = options.antialias ? std::min(a.scale, 1.0) : 1.0;
    const double reach = (options.mode == "cubic" ? 4 : 2) / shrink + 1;
    if (options.mode != "nearest" &&
        reach * static_cast<double>(a.size) > static_cast<double>(kMaxWeights)) {
      return ResourceExhausted("interpolating dimension ", axis, " of ", x.ToString(), " to ",
                               a.size, " takes ", reach, " weights an element");
    }
  }
  return options;
}

absl::StatusOr<ResampleTable> MakeResampleTable(const ResizeOptions& options, int i,
                                                int64_t input) {
  const ResizeAxis& a = options.axes[i];
  ResampleTable table{.input = input, .first = {}, .begin = {0}, .weights = {}};
  const bool nearest = options.mode == "nearest";
  const Filter filter(options, a.scale);
  std::vector<double> row = {1.0};
  for (int64_t o = 0; o < a.size; ++o) {
    const double place = ResizePlace(options, a, input, o);
    const int64_t first =
        nearest ? NearestIndex(options.nearest, place, input) : filter.Row(place, input, row);
    table.first.push_back(static_cast<int32_t>(first));
    table.weights.insert(table.weights.end(), row.begin(), row.end());
    table.begin.push_back(static_cast<int64_t>(table.weights.size()));
    if (table.begin.back() > kMaxWeights) {
      return ResourceExhausted("interpolating ", input, " elements to ", a.size);
    }
  }
  return table;
}

ResampleTable ResampleTable::Transposed() const {
  const int64_t n = outputs();
  ResampleTable t{.input = n, .first = {}, .begin = {}, .weights = {}};
  std::vector<int32_t> last(input, -1);
  t.first.assign(input, 0);
  for (int64_t o = 0; o < n; ++o) {
    for (int64_t i = first[o]; i < first[o] + count(o); ++i) {
      if (last[i] < 0) t.first[i] = static_cast<int32_t>(o);
      last[i] = static_cast<int32_t>(o);
    }
  }
  t.begin.assign(1, 0);
  for (int64_t i = 0; i < input; ++i) {
    t.begin.push_back(t.begin.back() + (last[i] < 0 ? 0 : last[i] - t.first[i] + 1));
  }
  // An input that no output looks at: its row is empty, and lies where the one before it does, or,
  // at the beginning, where the first does that is looked at. So rows never rise and then fall.
  const auto seen = std::find_if(last.begin(), last.end(), [](int32_t o) { return o >= 0; });
  if (seen != last.end()) {
    const int64_t begin_of_seen = seen - last.begin();
    std::fill(t.first.begin(), t.first.begin() + begin_of_seen, t.first[begin_of_seen]);
    for (int64_t i = begin_of_seen + 1; i < input; ++i) {
      if (last[i] < 0) t.first[i] = t.first[i - 1];
    }
  }
  t.weights.assign(t.begin.back(), 0.0);
  for (int64_t o = 0; o < n; ++o) {
    for (int64_t k = 0; k < count(o); ++k) {
      const int64_t i = first[o] + k;
      t.weights[t.begin[i] + o - t.first[i]] = weights[begin[o] + k];
    }
  }
  return t;
}

bool ResampleTable::IsIdentity() const {
  if (outputs() != input) return false;
  for (int64_t o = 0; o < input; ++o) {
    if (first[o] != o || count(o) != 1 || weights[begin[o]] != 1.0) return false;
  }
  return true;
}

constinit const OpDef kResize = {.name = "Resize",
                                 .infer = InferResize,
                                 .gradient = ResizeGradient,
                                 .flops = ResizeFlops,
                                 .geometry = ResizeGeometry};
constinit const OpDef kResizeGrad = {.name = "ResizeGrad",
                                     .infer = InferResizeGrad,
                                     .gradient = ResizeGradGradient,
                                     .flops = ResizeFlops};

Value Resize(Builder& b, Value x, const ResizeOptions& options) {
  return b.Add(kResize, {x}, ResizeAttributes(options));
}

Value ResizeGrad(Builder& b, Value dy, const Shape& x_shape, const ResizeOptions& options) {
  Attributes attributes = ResizeAttributes(options);
  attributes.Set("x_shape", DimsOf(x_shape));
  return b.Add(kResizeGrad, {dy}, std::move(attributes));
}

namespace {

// x must be (N, C, H, W) whose dimensions `axes` divide by the factor, or by its square.
bool CheckDivides(Builder& b, std::string_view op, Value x, int64_t factor,
                  std::initializer_list<int> axes, bool squared) {
  if (!b.ok()) return false;
  const Shape shape = b.shape(x);
  bool ok = shape.rank() == 4 && factor >= 1 && factor <= (1 << 15);
  for (int axis : axes) ok = ok && shape[axis] % (squared ? factor * factor : factor) == 0;
  if (!ok) {
    b.Fail(InvalidArgument("[", op, "] x ", shape.ToString(), " with factor ", factor,
                           ": expected (N, C, H, W) that divides into blocks"));
  }
  return ok;
}

}  // namespace

Value PixelShuffle(Builder& b, Value x, int64_t factor) {
  const int64_t r = factor;
  if (!CheckDivides(b, "PixelShuffle", x, r, {1}, /*squared=*/true)) return {};
  const Shape s = b.shape(x);
  const int64_t channels = s[1] / (r * r);
  Value y = Reshape(b, x, Shape{s[0], channels, r, r, s[2], s[3]});
  y = Transpose(b, y, {0, 1, 4, 2, 5, 3});
  return Reshape(b, y, Shape{s[0], channels, s[2] * r, s[3] * r});
}

Value PixelUnshuffle(Builder& b, Value x, int64_t factor) {
  const int64_t r = factor;
  if (!CheckDivides(b, "PixelUnshuffle", x, r, {2, 3}, /*squared=*/false)) return {};
  const Shape s = b.shape(x);
  Value y = Reshape(b, x, Shape{s[0], s[1], s[2] / r, r, s[3] / r, r});
  y = Transpose(b, y, {0, 1, 3, 5, 2, 4});
  return Reshape(b, y, Shape{s[0], s[1] * r * r, s[2] / r, s[3] / r});
}

}  // namespace tandem::ops

// Resize and Upsample: one axis after another, each a constant matrix of interpolation weights.
#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>
#include <utility>

#include "engine/base/error.h"
#include "engine/formats/onnx_compose.h"
#include "engine/formats/onnx_ops.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

constexpr int64_t kMaxSize = int64_t{1} << 24;
// Elements of one axis' weights.
constexpr int64_t kMaxWeights = int64_t{1} << 26;

enum class Mode : uint8_t { kNearest, kLinear, kCubic };

struct ResizeSpec {
  Mode mode = Mode::kNearest;
  std::string coordinates, nearest;
  double cubic_a = -0.75;
  bool exclude_outside = false, antialias = false;
  double extrapolation = 0;
};

struct Axis {
  int axis = 0;
  int64_t input = 0, output = 0;
  double scale = 1;
  double roi_start = 0, roi_end = 1;
};

// The place in the input, in elements, of output element i.
double SourcePlace(const ResizeSpec& spec, const Axis& a, int64_t i) {
  const auto x = static_cast<double>(i);
  const auto input = static_cast<double>(a.input), output = static_cast<double>(a.output);
  if (spec.coordinates == "asymmetric") return x / a.scale;
  if (spec.coordinates == "align_corners") {
    return a.output == 1 ? 0 : x * (input - 1) / (output - 1);
  }
  if (spec.coordinates == "pytorch_half_pixel") {
    return a.output == 1 ? -0.5 : (x + 0.5) / a.scale - 0.5;
  }
  if (spec.coordinates == "half_pixel_symmetric") {
    const double adjustment = output / (a.scale * input);
    return input / 2 * (1 - adjustment) + (x + 0.5) / a.scale - 0.5;
  }
  if (spec.coordinates == "tf_crop_and_resize") {
    if (a.output == 1) return 0.5 * (a.roi_start + a.roi_end) * (input - 1);
    return a.roi_start * (input - 1) + x * (a.roi_end - a.roi_start) * (input - 1) / (output - 1);
  }
  return (x + 0.5) / a.scale - 0.5;  // half_pixel
}

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
  return std::clamp<int64_t>(static_cast<int64_t>(index), 0, size - 1);
}

double LinearWeight(double distance) { return std::max(0.0, 1 - std::abs(distance)); }

// Keys 1981, equation (4).
double CubicWeight(double distance, double a) {
  const double x = std::abs(distance);
  if (x <= 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a;
  return 0;
}

// The weights of output element i, added to its row: (input)
void FillRow(const ResizeSpec& spec, const Axis& a, double place, std::span<float> row) {
  // Antialiasing stretches the filter when scaling down.
  const double scale = spec.antialias ? std::min(a.scale, 1.0) : 1.0;
  const double radius = (spec.mode == Mode::kLinear ? 1 : 2) / scale;
  const auto first = static_cast<int64_t>(std::floor(place - radius)) + 1;
  const auto last = static_cast<int64_t>(std::floor(place + radius));
  double total = 0;
  const auto weight = [&](int64_t tap) {
    if (spec.exclude_outside && (tap < 0 || tap >= a.input)) return 0.0;
    const double distance = (static_cast<double>(tap) - place) * scale;
    return spec.mode == Mode::kLinear ? LinearWeight(distance)
                                      : CubicWeight(distance, spec.cubic_a);
  };
  for (int64_t tap = first; tap <= last; ++tap) total += weight(tap);
  if (total == 0) total = 1;
  for (int64_t tap = first; tap <= last; ++tap) {
    row[std::clamp<int64_t>(tap, 0, a.input - 1)] += static_cast<float>(weight(tap) / total);
  }
}

// Whether an output element lies outside the input and takes the extrapolation value.
bool IsOutside(const ResizeSpec& spec, const Axis& a, double place) {
  return spec.coordinates == "tf_crop_and_resize" &&
         (place < 0 || place > static_cast<double>(a.input - 1));
}

Value Nearest(Builder& b, Value x, const ResizeSpec& spec, const Axis& a) {
  std::vector<int64_t> indices(a.output);
  const int64_t factor = a.output / a.input;
  bool repeats = a.output % a.input == 0;  // each element `factor` times: no table needed
  for (int64_t i = 0; i < a.output; ++i) {
    indices[i] = NearestIndex(spec.nearest, SourcePlace(spec, a, i), a.input);
    repeats = repeats && indices[i] == i / factor;
  }
  if (!repeats) {
    return ops::Gather(
        b, x, b.Constant(Tensor::Of<int64_t>({a.output}, std::span<const int64_t>(indices))),
        a.axis);
  }
  Shape shape = b.shape(x);
  std::vector<int64_t> apart = compose::Dims(shape);
  apart.insert(apart.begin() + a.axis + 1, factor);
  const Value copies = ops::BroadcastTo(b, compose::ExpandAxis(b, x, a.axis + 1), Shape(apart));
  shape[a.axis] = a.output;
  return ops::Reshape(b, copies, shape);
}

// x times the weights along the axis.
Value Interpolate(Builder& b, Value x, const ResizeSpec& spec, const Axis& a) {
  Tensor weights = Tensor::Zeros({DType::kF32, {a.output, a.input}});
  for (int64_t i = 0; i < a.output; ++i) {
    FillRow(spec, a, SourcePlace(spec, a, i), weights.data<float>().subspan(i * a.input, a.input));
  }
  const int last = b.shape(x).rank() - 1;
  const Value front = compose::SwapAxes(b, x, a.axis, last);
  const Value w = compose::CastTo(b, b.Constant(std::move(weights)), b.dtype(x));
  return compose::SwapAxes(b, ops::MatMul(b, front, w, false, true), a.axis, last);
}

// Puts the extrapolation value where the axis leaves the input.
Value Extrapolate(Builder& b, Value y, const ResizeSpec& spec, const Axis& a) {
  Shape line;
  for (int i = 0; i < b.shape(y).rank(); ++i) line.push_back(i == a.axis ? a.output : 1);
  Tensor outside(DType::kBool, line);
  bool any = false;
  for (int64_t i = 0; i < a.output; ++i) {
    outside.data<bool>()[i] = IsOutside(spec, a, SourcePlace(spec, a, i));
    any = any || outside.data<bool>()[i];
  }
  if (!any) return y;
  return ops::Where(b, b.Constant(std::move(outside)), compose::Like(b, spec.extrapolation, y), y);
}

absl::Status CheckAxis(const Axis& a, Mode mode) {
  if (a.input < 1 || a.output < 1 || a.output > kMaxSize || !(a.scale > 0)) {
    return InvalidArgument("dimension ", a.axis, " of size ", a.input, " cannot become ", a.output,
                           " (scale ", a.scale, ")");
  }
  if (mode != Mode::kNearest && a.output > kMaxWeights / a.input) {
    return ResourceExhausted("interpolating dimension ", a.axis, " from ", a.input, " to ",
                             a.output);
  }
  return absl::OkStatus();
}

absl::StatusOr<ResizeSpec> ReadSpec(NodeContext& c) {
  ResizeSpec spec;
  const std::string mode = c.String("mode", "nearest");
  if (mode == "linear" || mode == "bilinear") {
    spec.mode = Mode::kLinear;
  } else if (mode == "cubic") {
    spec.mode = Mode::kCubic;
  } else if (mode != "nearest") {
    return InvalidArgument("attribute mode='", mode, "' is unknown");
  }
  const bool first_version = c.opset() < 11;  // asymmetric, rounding down
  spec.coordinates =
      c.String("coordinate_transformation_mode", first_version ? "asymmetric" : "half_pixel");
  spec.nearest = c.String("nearest_mode", first_version ? "floor" : "round_prefer_floor");
  spec.cubic_a = c.Float("cubic_coeff_a", -0.75);
  spec.exclude_outside = c.Int("exclude_outside", 0) != 0;
  spec.antialias = c.Int("antialias", 0) != 0;
  spec.extrapolation = c.Float("extrapolation_value", 0);
  for (const char* known : {"asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel",
                            "half_pixel_symmetric", "tf_crop_and_resize"}) {
    if (spec.coordinates == known) return spec;
  }
  return Unimplemented("attribute coordinate_transformation_mode='", spec.coordinates,
                       "' is not supported");
}

// A list that an input gives; absent, or empty, means not given.
absl::StatusOr<std::vector<double>> OptionalFloats(NodeContext& c, int i, std::string_view what) {
  if (!c.Has(i)) return std::vector<double>();
  return c.ConstantFloats(i, what);
}

// Output sizes and scales from `sizes`, which a policy may shrink or grow to keep proportions.
absl::Status ApplySizes(NodeContext& c, const std::vector<double>& sizes, std::vector<Axis>& axes) {
  const std::string policy = c.String("keep_aspect_ratio_policy", "stretch");
  std::optional<double> common;
  for (size_t i = 0; i < axes.size(); ++i) {
    if (axes[i].input < 1 || !(sizes[i] >= 1 && sizes[i] <= static_cast<double>(kMaxSize))) {
      return InvalidArgument("size ", sizes[i], " for dimension ", axes[i].axis, " of size ",
                             axes[i].input);
    }
    axes[i].output = static_cast<int64_t>(sizes[i]);
    axes[i].scale = sizes[i] / static_cast<double>(axes[i].input);
    if (policy == "not_larger") common = std::min(common.value_or(axes[i].scale), axes[i].scale);
    if (policy == "not_smaller") common = std::max(common.value_or(axes[i].scale), axes[i].scale);
  }
  if (policy != "stretch" && policy != "not_larger" && policy != "not_smaller") {
    return InvalidArgument("attribute keep_aspect_ratio_policy='", policy, "' is unknown");
  }
  if (!common.has_value()) return absl::OkStatus();
  for (Axis& a : axes) {
    a.scale = *common;
    a.output = static_cast<int64_t>(std::floor(*common * static_cast<double>(a.input) + 0.5));
  }
  return absl::OkStatus();
}

absl::Status ApplyScales(const std::vector<double>& scales, std::vector<Axis>& axes) {
  for (size_t i = 0; i < axes.size(); ++i) {
    axes[i].scale = scales[i];
    const double output = std::floor(static_cast<double>(axes[i].input) * scales[i]);
    if (!(output >= 1 && output <= static_cast<double>(kMaxSize))) {
      return InvalidArgument("scale ", scales[i], " for dimension ", axes[i].axis, " of size ",
                             axes[i].input);
    }
    axes[i].output = static_cast<int64_t>(output);
  }
  return absl::OkStatus();
}

Outputs ResizeAxes(NodeContext& c, const ResizeSpec& spec, const std::vector<Axis>& axes) {
  Value x = c.In(0);
  const DType dtype = c.dtype(0);
  if (spec.mode != Mode::kNearest && !IsFloat(dtype)) {
    return Unimplemented("interpolating ", DTypeName(dtype), " is not supported");
  }
  for (const Axis& a : axes) {
    TANDEM_RETURN_IF_ERROR(CheckAxis(a, spec.mode));
    const bool crops = spec.coordinates == "tf_crop_and_resize";
    if (a.input == a.output && a.scale == 1 && !crops) continue;
    x = spec.mode == Mode::kNearest ? Nearest(c.b, x, spec, a) : Interpolate(c.b, x, spec, a);
    TANDEM_RETURN_IF_ERROR(c.b.status());
  }
  for (const Axis& a : axes) x = Extrapolate(c.b, x, spec, a);
  return One(x);
}

Outputs Resize(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const ResizeSpec spec, ReadSpec(c));
  const bool first_version = c.opset() < 11;
  const Shape shape = c.shape(0);
  std::vector<int64_t> given = c.Ints("axes");
  if (given.empty()) {
    for (int i = 0; i < shape.rank(); ++i) given.push_back(i);
  }
  std::vector<Axis> axes;
  for (const int64_t axis : given) {
    TANDEM_ASSIGN_OR_RETURN(const int normal, NormalizeAxis(axis, shape.rank()));
    axes.push_back({.axis = normal, .input = shape[normal], .output = shape[normal]});
  }
  TANDEM_ASSIGN_OR_RETURN(const std::vector<double> roi,
                          OptionalFloats(c, first_version ? c.count() : 1, "roi"));
  TANDEM_ASSIGN_OR_RETURN(const std::vector<double> scales,
                          OptionalFloats(c, first_version ? 1 : 2, "scales"));
  TANDEM_ASSIGN_OR_RETURN(const std::vector<double> sizes, OptionalFloats(c, 3, "sizes"));
  if (scales.empty() == sizes.empty()) {
    return InvalidArgument("expected either scales or sizes, got ", scales.size(), " and ",
                           sizes.size(), " values");
  }
  if (std::max(scales.size(), sizes.size()) != axes.size()) {
    return InvalidArgument(scales.size(), " scales and ", sizes.size(), " sizes for ", axes.size(),
                           " axes");
  }
  if (spec.coordinates == "tf_crop_and_resize") {
    if (roi.size() != 2 * axes.size()) {
      return InvalidArgument("roi has ", roi.size(), " values for ", axes.size(), " axes");
    }
    for (size_t i = 0; i < axes.size(); ++i) {
      axes[i].roi_start = roi[i];
      axes[i].roi_end = roi[axes.size() + i];
    }
  }
  if (scales.empty()) {
    TANDEM_RETURN_IF_ERROR(ApplySizes(c, sizes, axes));
  } else {
    c.IgnoreAttribute("keep_aspect_ratio_policy");  // "not applicable when scales is used"
    TANDEM_RETURN_IF_ERROR(ApplyScales(scales, axes));
  }
  return ResizeAxes(c, spec, axes);
}

// Scales are an attribute before opset 9.
Outputs Upsample(NodeContext& c) {
  ResizeSpec spec;
  const std::string mode = c.String("mode", "nearest");
  if (mode != "nearest" && mode != "linear" && mode != "bilinear") {
    return InvalidArgument("attribute mode='", mode, "' is unknown");
  }
  spec.mode = mode == "nearest" ? Mode::kNearest : Mode::kLinear;
  spec.coordinates = "asymmetric";
  spec.nearest = "floor";
  std::vector<double> scales = c.Floats("scales");
  if (c.opset() >= 9) {
    TANDEM_ASSIGN_OR_RETURN(scales, c.ConstantFloats(1, "scales"));
  }
  const Shape shape = c.shape(0);
  if (static_cast<int>(scales.size()) != shape.rank()) {
    return InvalidArgument(scales.size(), " scales for ", shape.rank(), " dimensions");
  }
  std::vector<Axis> axes;
  for (int i = 0; i < shape.rank(); ++i) axes.push_back({.axis = i, .input = shape[i]});
  TANDEM_RETURN_IF_ERROR(ApplyScales(scales, axes));
  return ResizeAxes(c, spec, axes);
}

constexpr OnnxOp kOps[] = {
    {.name = "Resize",
     .convert = Resize,
     .min_inputs = 1,
     .max_inputs = 4,
     .shape_inputs = InputSet(1, 2, 3)},
    {.name = "Upsample",
     .convert = Upsample,
     .min_inputs = 1,
     .max_inputs = 2,
     .shape_inputs = InputSet(1)},
};

}  // namespace

std::span<const OnnxOp> OnnxResizeOps() { return kOps; }

}  // namespace tandem

// Resize and Upsample: what they say of sizes and scales, for ops::Resize.
#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "engine/base/error.h"
#include "engine/formats/onnx_compose.h"
#include "engine/formats/onnx_ops.h"
#include "engine/ops/ops.h"
#include "engine/ops/resize.h"

namespace tandem {
namespace {

constexpr int64_t kMaxSize = int64_t{1} << 24;

// The operator's options, and what it has beyond ops::Resize.
struct ResizeSpec {
  ops::ResizeOptions options;
  double extrapolation = 0;
};

struct Axis {
  int axis = 0;
  int64_t input = 0, output = 0;
  double scale = 1;
  double roi_start = 0, roi_end = 1;
};

// Puts the extrapolation value where options.axes[i] leaves the input.
Value Extrapolate(Builder& b, Value y, const ResizeSpec& spec, int i, int64_t input) {
  const ops::ResizeAxis& a = spec.options.axes[i];
  Shape line;
  for (int d = 0; d < b.shape(y).rank(); ++d) line.push_back(d == a.axis ? a.size : 1);
  Tensor outside(DType::kBool, line);
  bool any = false;
  for (int64_t o = 0; o < a.size; ++o) {
    const double place = ops::ResizePlace(spec.options, a, input, o);
    outside.data<bool>()[o] = place < 0 || place > static_cast<double>(input - 1);
    any = any || outside.data<bool>()[o];
  }
  if (!any) return y;
  return ops::Where(b, b.Constant(std::move(outside)), compose::Like(b, spec.extrapolation, y), y);
}

absl::StatusOr<ResizeSpec> ReadSpec(NodeContext& c) {
  ResizeSpec spec;
  ops::ResizeOptions& options = spec.options;
  options.mode = c.String("mode", "nearest");
  if (options.mode == "bilinear") options.mode = "linear";
  const bool first_version = c.opset() < 11;  // asymmetric, rounding down
  options.coordinates =
      c.String("coordinate_transformation_mode", first_version ? "asymmetric" : "half_pixel");
  options.nearest = c.String("nearest_mode", first_version ? "floor" : "round_prefer_floor");
  options.cubic_a = c.Float("cubic_coeff_a", -0.75);
  options.exclude_outside = c.Int("exclude_outside", 0) != 0;
  options.antialias = c.Int("antialias", 0) != 0;
  spec.extrapolation = c.Float("extrapolation_value", 0);
  return spec;
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

Outputs ResizeAxes(NodeContext& c, ResizeSpec spec, const std::vector<Axis>& axes) {
  const Value x = c.In(0);
  const DType dtype = c.dtype(0);
  const bool nearest = spec.options.mode == "nearest";
  if (!nearest && !IsFloat(dtype)) {
    return Unimplemented("interpolating ", DTypeName(dtype), " is not supported");
  }
  const bool crops = spec.options.coordinates == "tf_crop_and_resize";
  for (const Axis& a : axes) {
    if (a.input == a.output && a.scale == 1 && !crops) continue;
    spec.options.axes.push_back({.axis = a.axis,
                                 .size = a.output,
                                 .scale = a.scale,
                                 .roi_start = a.roi_start,
                                 .roi_end = a.roi_end});
  }
  if (spec.options.axes.empty()) return One(x);
  // Interpolation is in f32 or f64.
  const bool narrow = !nearest && SizeOf(dtype) < SizeOf(DType::kF32);
  Value y = compose::CastTo(c.b, x, narrow ? DType::kF32 : dtype);
  y = compose::CastTo(c.b, ops::Resize(c.b, y, spec.options), dtype);
  TANDEM_RETURN_IF_ERROR(c.b.status());
  for (size_t i = 0; crops && i < spec.options.axes.size(); ++i) {
    y = Extrapolate(c.b, y, spec, static_cast<int>(i), axes[i].input);
  }
  return One(y);
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
  if (spec.options.coordinates == "tf_crop_and_resize") {
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
  spec.options.mode = mode == "nearest" ? "nearest" : "linear";
  spec.options.coordinates = "asymmetric";
  spec.options.nearest = "floor";
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

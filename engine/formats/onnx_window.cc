#include "engine/formats/onnx_window.h"

#include <algorithm>

#include "engine/base/error.h"

namespace tandem {
namespace {

// Far above any window, far below what would overflow.
constexpr int64_t kMaxExtent = int64_t{1} << 31;

absl::Status CheckEntries(const std::vector<int64_t>& values, int expected, int64_t least,
                          std::string_view name) {
  if (static_cast<int>(values.size()) != expected) {
    return InvalidArgument("attribute ", name, " has ", values.size(), " entries, expected ",
                           expected);
  }
  for (const int64_t value : values) {
    if (value < least || value > kMaxExtent) {
      return InvalidArgument("attribute ", name, " has ", value, ", expected ", least, " to ",
                             kMaxExtent);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<OnnxWindow> ReadUnpaddedWindow(NodeContext& c, std::vector<int64_t> kernel) {
  const Shape x = c.shape(0);
  const int spatial = x.rank() - 2;
  if (spatial < 1) {
    return InvalidArgument("input is ", x.ToString(), ", expected N, C and spatial dimensions");
  }
  if (spatial > kMaxSpatial) {
    return Unimplemented("windows over ", spatial, " spatial dimensions are not supported");
  }
  OnnxWindow window;
  window.kernel = c.Ints("kernel_shape");
  if (window.kernel.empty()) window.kernel = kernel;
  if (!kernel.empty() && kernel != window.kernel) {
    return InvalidArgument("attribute kernel_shape does not agree with the weight's shape");
  }
  window.strides = c.Ints("strides");
  if (window.strides.empty()) window.strides.assign(spatial, 1);
  window.dilations = c.Ints("dilations");
  if (window.dilations.empty()) window.dilations.assign(spatial, 1);
  TANDEM_RETURN_IF_ERROR(CheckEntries(window.kernel, spatial, 1, "kernel_shape"));
  TANDEM_RETURN_IF_ERROR(CheckEntries(window.strides, spatial, 1, "strides"));
  TANDEM_RETURN_IF_ERROR(CheckEntries(window.dilations, spatial, 1, "dilations"));
  window.pads_begin.assign(spatial, 0);
  window.pads_end.assign(spatial, 0);
  return window;
}

absl::StatusOr<OnnxWindow> ReadWindow(NodeContext& c, std::vector<int64_t> kernel) {
  TANDEM_ASSIGN_OR_RETURN(OnnxWindow window, ReadUnpaddedWindow(c, std::move(kernel)));
  const Shape x = c.shape(0);
  const int spatial = window.spatial();
  const std::string auto_pad = c.String("auto_pad", "NOTSET");
  const std::vector<int64_t> pads = c.Ints("pads");
  if (auto_pad == "NOTSET") {
    if (pads.empty()) return window;
    TANDEM_RETURN_IF_ERROR(CheckEntries(pads, 2 * spatial, 0, "pads"));
    std::copy_n(pads.begin(), spatial, window.pads_begin.begin());
    std::copy_n(pads.begin() + spatial, spatial, window.pads_end.begin());
    return window;
  }
  if (auto_pad != "VALID" && auto_pad != "SAME_UPPER" && auto_pad != "SAME_LOWER") {
    return InvalidArgument("attribute auto_pad='", auto_pad, "' is unknown");
  }
  if (std::any_of(pads.begin(), pads.end(), [](int64_t pad) { return pad != 0; })) {
    return InvalidArgument("both auto_pad='", auto_pad, "' and pads are given");
  }
  if (auto_pad == "VALID") return window;
  for (int i = 0; i < spatial; ++i) {
    const int64_t size = x[i + 2], stride = window.strides[i];
    const int64_t output = (size + stride - 1) / stride;
    const int64_t extent = (window.kernel[i] - 1) * window.dilations[i] + 1;
    const int64_t total = std::max<int64_t>(0, (output - 1) * stride + extent - size);
    const int64_t less = total / 2, more = total - less;
    window.pads_begin[i] = auto_pad == "SAME_UPPER" ? less : more;
    window.pads_end[i] = auto_pad == "SAME_UPPER" ? more : less;
  }
  return window;
}

}  // namespace tandem

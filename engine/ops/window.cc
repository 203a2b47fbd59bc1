#include "engine/ops/window.h"

#include <algorithm>
#include <string>

#include "engine/base/error.h"

namespace tandem::ops {
namespace {

absl::StatusOr<std::vector<int64_t>> ReadEntries(const Attributes& attributes,
                                                 std::string_view name, size_t count,
                                                 int64_t least) {
  const std::vector<int64_t>& values = attributes.Ints(name);
  const std::string shown = Shape(std::span<const int64_t>(values)).ToString();
  if (values.size() != count) {
    return InvalidArgument(name, " ", shown, ": expected ", count,
                           " entries, one a spatial dimension");
  }
  for (int64_t value : values) {
    if (value < least || value > kMaxExtent) {
      return InvalidArgument(name, " ", shown, ": ", value, " is not within [", least, ", ",
                             kMaxExtent, "]");
    }
  }
  return values;
}

}  // namespace

absl::StatusOr<Window> ReadWindow(const Attributes& attributes, std::span<const int64_t> kernel) {
  const size_t count = kernel.size();
  TANDEM_ASSIGN_OR_RETURN(const auto strides, ReadEntries(attributes, "strides", count, 1));
  TANDEM_ASSIGN_OR_RETURN(const auto begin, ReadEntries(attributes, "pads_begin", count, 0));
  TANDEM_ASSIGN_OR_RETURN(const auto end, ReadEntries(attributes, "pads_end", count, 0));
  TANDEM_ASSIGN_OR_RETURN(const auto dilations, ReadEntries(attributes, "dilations", count, 1));
  Window window;
  for (size_t i = 0; i < count; ++i) {
    if (kernel[i] < 1 || kernel[i] > kMaxExtent) {
      return InvalidArgument("kernel ", Shape(kernel).ToString(), ": ", kernel[i],
                             " is not within [1, ", kMaxExtent, "]");
    }
    window.push_back({kernel[i], strides[i], begin[i], end[i], dilations[i]});
  }
  return window;
}

absl::StatusOr<int64_t> OutputExtent(const WindowDim& dim, int64_t input, bool ceil_mode) {
  if (input < 1) return InvalidArgument("a spatial dimension of the input is ", input);
  // The paddings are at most kMaxExtent each; an empty tensor's other sizes may be anything.
  const int64_t padded = std::min(input, kMaxExtent) + dim.pad_begin + dim.pad_end;
  if (padded > kMaxExtent || input > kMaxExtent) {
    return InvalidArgument("a spatial dimension of ", input, " with padding ", dim.pad_begin,
                           " and ", dim.pad_end, " is above the limit of ", kMaxExtent);
  }
  if (dim.extent() > padded) {
    return InvalidArgument("a kernel of ", dim.kernel, " with dilation ", dim.dilation, " spans ",
                           dim.extent(), ", more than the padded input's ", padded);
  }
  const int64_t room = padded - dim.extent();
  int64_t output = (room + (ceil_mode ? dim.stride - 1 : 0)) / dim.stride + 1;
  if (ceil_mode && dim.Start(output - 1) >= input) --output;
  return output;
}

Window AsPlane(const Window& window) {
  if (window.size() == 2) return window;
  return {WindowDim{}, window[0]};
}

Shape AsPlane(const Shape& shape) {
  return shape.rank() == 4 ? shape : Shape{shape[0], shape[1], 1, shape[2]};
}

Geometry GeometryOf(const Window& window) {
  Geometry geometry;
  for (const WindowDim& dim : window) {
    geometry.kernel.push_back(dim.kernel);
    geometry.stride.push_back(dim.stride);
    geometry.pad_begin.push_back(dim.pad_begin);
    geometry.dilation.push_back(dim.dilation);
  }
  return geometry;
}

}  // namespace tandem::ops

// The attributes of ONNX's sliding windows: kernel, strides, dilations, and padding with its modes.
#pragma once

#include <vector>

#include "engine/formats/onnx_context.h"

namespace tandem {

// One entry a spatial dimension.
struct OnnxWindow {
  std::vector<int64_t> kernel, strides, dilations, pads_begin, pads_end;
  int spatial() const { return static_cast<int>(kernel.size()); }
};

// Reads a node's window over x's dimensions 2 and up. Without a kernel_shape the kernel is
// `kernel`, which may be empty where the attribute is required; with both they must agree.
// auto_pad is resolved for a forward window (not of ConvTranspose).
absl::StatusOr<OnnxWindow> ReadWindow(NodeContext& c, std::vector<int64_t> kernel);
// The same, but leaves padding alone.
absl::StatusOr<OnnxWindow> ReadUnpaddedWindow(NodeContext& c, std::vector<int64_t> kernel);

}  // namespace tandem

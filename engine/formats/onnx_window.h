// The attributes of ONNX's sliding windows: kernel, strides, dilations, and padding with its modes.
#pragma once

#include <vector>

#include "engine/formats/onnx_context.h"
#include "engine/ops/ops.h"

namespace tandem {

inline constexpr int kMaxSpatial = 3;

// One entry a spatial dimension, of which there may be kMaxSpatial.
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

// As ops::Conv, MaxPool (values alone) and AveragePool, over three spatial dimensions too: there
// the depth is a sum of two-dimensional convolutions, or a pooling of its own.
Value ConvSpatial(Builder& b, Value x, Value weight, Value bias, const ops::ConvOptions& options);
Value MaxPoolSpatial(Builder& b, Value x, const ops::PoolOptions& options);
Value AveragePoolSpatial(Builder& b, Value x, const ops::PoolOptions& options);

}  // namespace tandem

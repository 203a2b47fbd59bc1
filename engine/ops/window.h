// A sliding window over one or two spatial dimensions: what convolution and pooling share.
//
// All numbers may come from a hostile file: ReadWindow and the extents below check them, so that
// neither they nor a kernel can overflow.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/graph/op.h"

namespace tandem::ops {

// The largest padded spatial extent: kernels keep offsets within a plane's row in 32 bits.
inline constexpr int64_t kMaxExtent = int64_t{1} << 24;

// One spatial dimension of a window.
struct WindowDim {
  int64_t kernel = 1, stride = 1, pad_begin = 0, pad_end = 0, dilation = 1;
  // Input positions from the first tap to the last, both included.
  int64_t extent() const { return (kernel - 1) * dilation + 1; }
  // The input position of the window's first tap; negative within the padding.
  int64_t Start(int64_t output) const { return output * stride - pad_begin; }
};

// One WindowDim a spatial dimension (1 or 2), outermost first.
using Window = std::vector<WindowDim>;

// The window of attributes `strides`, `pads_begin`, `pads_end`, `dilations` (one entry a spatial
// dimension each) with that kernel. Errors: another number of entries, a value out of range.
absl::StatusOr<Window> ReadWindow(const Attributes& attributes, std::span<const int64_t> kernel);

// Positions that the window takes over `input` elements: ONNX's formula; with ceil_mode the last
// position may end beyond the padding but must start inside the input or the padding before it.
// Errors: an empty input, a kernel that does not fit, an extent above kMaxExtent.
absl::StatusOr<int64_t> OutputExtent(const WindowDim& dim, int64_t input, bool ceil_mode);

// The same window over two dimensions: one spatial dimension W becomes (1, W).
Window AsPlane(const Window& window);
// (N, C, W) as (N, C, 1, W); a rank of 4 stays.
Shape AsPlane(const Shape& shape);

// The geometry of a window, for analysis.
Geometry GeometryOf(const Window& window);

}  // namespace tandem::ops

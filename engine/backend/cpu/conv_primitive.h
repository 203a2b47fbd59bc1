// What the convolution kernels ask oneDNN for: a problem, and primitives for parts of it.
#pragma once

#include <cstdint>
#include <dnnl.hpp>

#include "engine/backend/backend.h"
#include "engine/backend/cpu/onednn.h"
#include "engine/ops/window.h"

namespace tandem::cpu {

enum class ConvDirection : uint8_t { kForward, kInputGrad, kWeightGrad };

// A convolution over planes: one spatial dimension W is (1, W).
struct ConvProblem {
  ConvDirection direction;
  Shape x;       // (N, C, H, W)
  Shape weight;  // (O, C / groups, KH, KW)
  Shape y;       // (N, O, YH, YW)
  ops::Window window;
  int64_t groups;
  bool bias;  // forward only

  int64_t x_image() const { return x.Count(1, 4); }  // elements of one image
  int64_t y_image() const { return y.Count(1, 4); }
};

// The problem of a node with these shapes. Errors: another dtype than f32; kernels so large
// that oneDNN's generated code would explode, tensors so large that its 32-bit offsets could
// overflow.
absl::StatusOr<ConvProblem> ReadConvProblem(const KernelSpec& spec, ConvDirection direction,
                                            const Shape& x, const Shape& weight, const Shape& y);

// A primitive with the layouts that it wants and the layouts of a plan's tensors.
struct ConvPrimitive {
  dnnl::primitive primitive;
  dnnl::memory::desc x, weight, y, scratch;
  dnnl::memory::desc plain_x, plain_weight, plain_y;
  // One of oneDNN's direct convolutions, whose bits were seen to depend neither on the batch nor on
  // the threads. The others (im2col, batch-reduced products) cut their sums by both.
  bool direct;
};

// The primitive for `images` images and the first `outputs` of the output channels (plain_y has the
// strides of all channels), for as many threads as OpenMP has now. Throws dnnl::error.
ConvPrimitive MakeConvPrimitive(const ConvProblem& problem, int64_t images, int64_t outputs);

// The bias's layout; an empty one where the problem has none.
dnnl::memory::desc ConvBias(const ConvProblem& problem);

// ResourceExhausted where a kernel would need an unreasonable scratch (im2col of huge kernels).
absl::Status CheckScratch(int64_t scratch_bytes);

}  // namespace tandem::cpu

// f32 two-dimensional pooling over NCHW planes, as ONNX and PyTorch define it.
//
// Planes are independent and shared out over threads; bits do not depend on the thread count or on
// the other planes. Outputs must not overlap inputs. Nothing allocates or throws.
#pragma once

#include <cstdint>

namespace tandem::cpu {

// Output (oh, ow) sees inputs (oh * stride_h - pad_top + kh * dilation_h, likewise in w). out_h and
// out_w are the caller's (floor or ceil); kernel, stride and dilation are at least 1, pads at least
// 0, and in_h * in_w is below 2^31.
struct Pool2dParams {
  int64_t planes = 0;  // N * C
  int64_t in_h = 0, in_w = 0;
  int64_t out_h = 0, out_w = 0;
  int64_t kernel_h = 1, kernel_w = 1;
  int64_t stride_h = 1, stride_w = 1;
  int64_t dilation_h = 1, dilation_w = 1;
  int64_t pad_top = 0, pad_left = 0, pad_bottom = 0, pad_right = 0;
  // As many threads as there is scratch memory for; bits do not depend on it.
  int64_t slots = 1;
};

// Bytes, 64-byte aligned, that MaxPool2d needs beside its arguments.
int64_t MaxPool2dScratchBytes(const Pool2dParams& params);
// x (planes, in_h, in_w); y and index (planes, out_h, out_w). index, which may be null, is the
// place h * in_w + w of the maximum within its plane: the first one, in row-major order; a NaN is
// larger than any number. A window that lies in the padding gives -inf and index -1.
void MaxPool2d(const Pool2dParams& params, const float* x, float* y, int64_t* index, void* scratch);
// dx (planes, in) = the sum of dy (planes, out) over the elements whose index it is; an index
// outside a plane is moved to its nearest place.
void MaxPool2dBackward(int64_t planes, int64_t in, int64_t out, const float* dy,
                       const int64_t* index, float* dx);

// The mean over a window's elements; with count_include_pad the padding counts as zeros, but not
// what lies beyond it (ceil mode). A window without elements gives 0.
void AveragePool2d(const Pool2dParams& params, bool count_include_pad, const float* x, float* y);
void AveragePool2dBackward(const Pool2dParams& params, bool count_include_pad, const float* dy,
                           float* dx);

}  // namespace tandem::cpu

// A sliding window on the device.
#pragma once

#include "engine/backend/cuda/kernels/tandem_cuda.h"

namespace tandem::cuda {

struct WindowAxis {
  int in, out, kernel, stride, dilation, pad_begin, pad_end;

  // The input position of the first tap; negative within the padding.
  __host__ __device__ int Start(int o) const { return o * stride - pad_begin; }
  __host__ __device__ bool Holds(int position) const { return position >= 0 && position < in; }
  // Taps of output o within [low, high): the first, and how many.
  __host__ __device__ void Taps(int o, int low, int high, int* first, int* count) const {
    const int start = Start(o);
    const int begin = start >= low ? 0 : (low - start + dilation - 1) / dilation;
    const int end = start >= high ? 0 : (high - start + dilation - 1) / dilation;
    *first = begin < kernel ? begin : kernel;
    const int last = end < kernel ? end : kernel;
    *count = last > *first ? last - *first : 0;
  }
  // What a mean divides by.
  __host__ __device__ int Count(int o, bool include_pad) const {
    int first, count;
    Taps(o, include_pad ? -pad_begin : 0, include_pad ? in + pad_end : in, &first, &count);
    return count;
  }
};

struct Window {
  WindowAxis h, w;
  __host__ __device__ int64_t Inputs() const { return int64_t{h.in} * w.in; }
  __host__ __device__ int64_t Outputs() const { return int64_t{h.out} * w.out; }
};

inline Window MakeWindow(const tandem_cuda_window_params& p) {
  const auto axis = [](int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t dilation,
                       int64_t begin, int64_t end) {
    // Beyond the padded input a stride or a dilation makes no difference, and could overflow.
    const int64_t padded = in + begin + end;
    const auto within = [padded](int64_t v) { return static_cast<int>(v < padded ? v : padded); };
    return WindowAxis{static_cast<int>(in),     static_cast<int>(out),
                      static_cast<int>(kernel), within(stride < 1 ? 1 : stride),
                      within(dilation),         static_cast<int>(begin),
                      static_cast<int>(end)};
  };
  return {axis(p.in_h, p.out_h, p.kernel_h, p.stride_h, p.dilation_h, p.pad_top, p.pad_bottom),
          axis(p.in_w, p.out_w, p.kernel_w, p.stride_w, p.dilation_w, p.pad_left, p.pad_right)};
}

}  // namespace tandem::cuda

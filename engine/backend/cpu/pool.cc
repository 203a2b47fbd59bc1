// Pooling and its adjoints: the f32 kernels of kernels/pooling.h, and MaxPool of other numbers.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "engine/backend/cpu/kernels/pooling.h"
#include "engine/backend/cpu/kernels_table.h"
#include "engine/base/threads.h"
#include "engine/ops/window.h"

namespace tandem::cpu {
namespace {

absl::Status Unsupported(const KernelSpec& spec, std::string_view supported) {
  return Unimplemented(DTypeName(spec.dtype()), " on the CPU, supported: ", supported);
}

// x and y as planes: one spatial dimension W is (1, W).
absl::StatusOr<Pool2dParams> ReadPool(const KernelSpec& spec, const Shape& x_shape,
                                      const Shape& y_shape) {
  TANDEM_ASSIGN_OR_RETURN(const ops::Window read,
                          ops::ReadWindow(*spec.attributes, spec.attributes->Ints("kernel")));
  const ops::Window window = ops::AsPlane(read);
  const Shape x = ops::AsPlane(x_shape), y = ops::AsPlane(y_shape);
  if (x[2] * x[3] > std::numeric_limits<int32_t>::max()) {
    return Unimplemented("x ", x_shape.ToString(), " on the CPU: planes of 2^31 elements or more");
  }
  const ops::WindowDim &h = window[0], &w = window[1];
  return Pool2dParams{.planes = x[0] * x[1],
                      .in_h = x[2],
                      .in_w = x[3],
                      .out_h = y[2],
                      .out_w = y[3],
                      .kernel_h = h.kernel,
                      .kernel_w = w.kernel,
                      .stride_h = h.stride,
                      .stride_w = w.stride,
                      .dilation_h = h.dilation,
                      .dilation_w = w.dilation,
                      .pad_top = h.pad_begin,
                      .pad_left = w.pad_begin,
                      .pad_bottom = h.pad_end,
                      .pad_right = w.pad_end,
                      .slots = ThreadCount()};
}

// One plane, window by window; the first of equals wins and a NaN is larger than any number.
template <typename T>
void MaxPoolPlane(const Pool2dParams& p, const T* x, T* y, int64_t* index) {
  for (int64_t o = 0; o < p.out_h * p.out_w; ++o) {
    const int64_t top = o / p.out_w * p.stride_h - p.pad_top;
    const int64_t left = o % p.out_w * p.stride_w - p.pad_left;
    int64_t best = -1;
    for (int64_t kh = 0; kh < p.kernel_h; ++kh) {
      const int64_t h = top + kh * p.dilation_h;
      if (h < 0 || h >= p.in_h) continue;
      for (int64_t kw = 0; kw < p.kernel_w; ++kw) {
        const int64_t w = left + kw * p.dilation_w;
        if (w < 0 || w >= p.in_w) continue;
        const int64_t at = h * p.in_w + w;
        // `!(x <= best)` would also replace one NaN by the next.
        if (best < 0 || x[at] > x[best] || (x[at] != x[at] && x[best] == x[best])) best = at;
      }
    }
    y[o] = x[best];  // inference saw to it that every window holds an element
    if (index != nullptr) index[o] = best;
  }
}

template <typename T>
BoundKernel MaxPoolOf(const Pool2dParams& params) {
  return {.run = [params](const KernelArgs& args) {
    const int64_t in = params.in_h * params.in_w, out = params.out_h * params.out_w;
    auto* index = args.out<int64_t>(1);
    ParallelFor(params.planes, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        MaxPoolPlane(params, args.in<T>(0) + i * in, args.out<T>() + i * out,
                     index == nullptr ? nullptr : index + i * out);
      }
    });
  }};
}

BoundKernel MaxPoolOfFloats(const Pool2dParams& params) {
  return {.run =
              [params](const KernelArgs& args) {
                MaxPool2d(params, args.in<float>(0), args.out<float>(), args.out<int64_t>(1),
                          args.scratch);
              },
          .scratch_bytes = MaxPool2dScratchBytes(params)};
}

absl::StatusOr<BoundKernel> BindMaxPool(const KernelSpec& spec) {
  TANDEM_ASSIGN_OR_RETURN(const Pool2dParams params, ReadPool(spec, spec.in(0), spec.out()));
  switch (spec.dtype()) {
    case DType::kF32:
      return MaxPoolOfFloats(params);
    case DType::kF64:
      return MaxPoolOf<double>(params);
    case DType::kI8:
      return MaxPoolOf<int8_t>(params);
    case DType::kU8:
      return MaxPoolOf<uint8_t>(params);
    case DType::kI32:
      return MaxPoolOf<int32_t>(params);
    case DType::kI64:
      return MaxPoolOf<int64_t>(params);
    default:
      return Unsupported(spec, "f32, f64, i8, u8, i32, i64");
  }
}

absl::StatusOr<BoundKernel> BindMaxPoolGrad(const KernelSpec& spec) {
  if (spec.dtype() != DType::kF32) return Unsupported(spec, "f32");
  const Shape &dy = spec.in(0), &x = spec.out();
  const int64_t planes = x[0] * x[1];
  const int64_t in = dy.Count(2, dy.rank()), out = x.Count(2, x.rank());
  return BoundKernel{.run = [planes, in, out](const KernelArgs& args) {
    MaxPool2dBackward(planes, out, in, args.in<float>(0), args.in<int64_t>(1), args.out<float>());
  }};
}

absl::StatusOr<BoundKernel> BindAveragePool(const KernelSpec& spec) {
  if (spec.dtype() != DType::kF32) return Unsupported(spec, "f32");
  TANDEM_ASSIGN_OR_RETURN(const Pool2dParams params, ReadPool(spec, spec.in(0), spec.out()));
  const bool include = spec.attributes->Int("count_include_pad") != 0;
  return BoundKernel{.run = [params, include](const KernelArgs& args) {
    AveragePool2d(params, include, args.in<float>(0), args.out<float>());
  }};
}

absl::StatusOr<BoundKernel> BindAveragePoolGrad(const KernelSpec& spec) {
  if (spec.dtype() != DType::kF32) return Unsupported(spec, "f32");
  TANDEM_ASSIGN_OR_RETURN(const Pool2dParams params, ReadPool(spec, spec.out(), spec.in(0)));
  const bool include = spec.attributes->Int("count_include_pad") != 0;
  return BoundKernel{.run = [params, include](const KernelArgs& args) {
    AveragePool2dBackward(params, include, args.in<float>(0), args.out<float>());
  }};
}

}  // namespace

constinit const Kernel kMaxPoolKernel = {.bind = BindMaxPool, .skips_unused_outputs = true};
constinit const Kernel kMaxPoolGradKernel = {.bind = BindMaxPoolGrad};
constinit const Kernel kAveragePoolKernel = {.bind = BindAveragePool};
constinit const Kernel kAveragePoolGradKernel = {.bind = BindAveragePoolGrad};

}  // namespace tandem::cpu

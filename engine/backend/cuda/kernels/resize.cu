// Resampling along one dimension.
#include "engine/backend/cuda/kernels/device.h"
#include "engine/backend/cuda/kernels/quotient.h"
#include "engine/backend/cuda/kernels/tandem_cuda.h"

namespace tandem::cuda {
namespace {

constexpr int kThreads = 256;

struct Sizes {
  Sizes(int64_t outer, int64_t in, int64_t outputs, int64_t inner_size)
      : total(outer * outputs * inner_size),
        inputs(in),
        inner(inner_size),
        by_outputs(outputs),
        by_inner(inner_size) {}
  int64_t total;  // elements of y
  int64_t inputs, inner;
  Quotient by_outputs, by_inner;
};

// Element i of (outer, outputs, inner): its output, and the element of x (outer, inputs, inner) in
// row 0 of its line.
struct Place {
  int64_t output, x;
};
__device__ __forceinline__ Place PlaceOf(const Sizes& s, int64_t i) {
  int64_t inner, output;
  const int64_t outer = s.by_outputs.Of(s.by_inner.Of(i, &inner), &output);
  return {output, outer * s.inputs * s.inner + inner};
}

__device__ __forceinline__ float Sum(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double Sum(double a, double b, double c) { return __fma_rn(a, b, c); }
__device__ __forceinline__ double Wide(double x) { return x; }
__device__ __forceinline__ float Wide(float x) { return x; }
__device__ __forceinline__ float Wide(Bf16 x) { return ToFloat(x); }
__device__ __forceinline__ float Wide(F16 x) { return ToFloat(x); }
__device__ __forceinline__ void Narrow(double x, double* to) { *to = x; }
template <typename T>
__device__ __forceinline__ void Narrow(float x, T* to) {
  FromFloat(x, to);
}

template <typename To, typename From, typename Weight>
__global__ void __launch_bounds__(kThreads)
    Resample(To* y, const From* x, Sizes s, const int32_t* first, const int64_t* begin,
             const Weight* weights) {
  for (int64_t i = GridIndex(); i < s.total; i += GridStride()) {
    const Place place = PlaceOf(s, i);
    const From* from = x + place.x + first[place.output] * s.inner;
    Weight sum = 0;
    const int64_t end = begin[place.output + 1];
    for (int64_t k = begin[place.output]; k < end; ++k, from += s.inner) {
      sum = Sum(weights[k], Wide(*from), sum);
    }
    Narrow(sum, y + i);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    ResampleNearest(T* y, const T* x, Sizes s, const int32_t* first) {
  for (int64_t i = GridIndex(); i < s.total; i += GridStride()) {
    const Place place = PlaceOf(s, i);
    y[i] = x[place.x + first[place.output] * s.inner];
  }
}

template <typename To, typename From, typename Weight>
cudaError_t RunResample(void* y, const void* x, const tandem_cuda_resample_params& p,
                        cudaStream_t stream) {
  const Sizes s(p.outer, p.inputs, p.outputs, p.inner);
  return Launch(Resample<To, From, Weight>, BlocksFor(s.total, kThreads), kThreads, 0, stream,
                static_cast<To*>(y), static_cast<const From*>(x), s, p.first, p.begin,
                static_cast<const Weight*>(p.weights));
}

template <typename T>
cudaError_t RunNearest(void* y, const void* x, const int32_t* first, const Sizes& s,
                       cudaStream_t stream) {
  return Launch(ResampleNearest<T>, BlocksFor(s.total, kThreads), kThreads, 0, stream,
                static_cast<T*>(y), static_cast<const T*>(x), s, first);
}

}  // namespace
}  // namespace tandem::cuda

int tandem_cuda_resample(void* y, const void* x, const struct tandem_cuda_resample_params* params,
                         tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  const tandem_cuda_resample_params& p = *params;
  auto* const s = static_cast<cudaStream_t>(stream);
  const auto pair = [&p](int from, int to) { return p.x_dtype == from && p.y_dtype == to; };
  if (pair(TANDEM_CUDA_F32, TANDEM_CUDA_F32)) return RunResample<float, float, float>(y, x, p, s);
  if (pair(TANDEM_CUDA_F64, TANDEM_CUDA_F64)) {
    return RunResample<double, double, double>(y, x, p, s);
  }
  if (pair(TANDEM_CUDA_F16, TANDEM_CUDA_F16)) return RunResample<F16, F16, float>(y, x, p, s);
  if (pair(TANDEM_CUDA_F16, TANDEM_CUDA_F32)) return RunResample<float, F16, float>(y, x, p, s);
  if (pair(TANDEM_CUDA_F32, TANDEM_CUDA_F16)) return RunResample<F16, float, float>(y, x, p, s);
  if (pair(TANDEM_CUDA_BF16, TANDEM_CUDA_BF16)) return RunResample<Bf16, Bf16, float>(y, x, p, s);
  if (pair(TANDEM_CUDA_BF16, TANDEM_CUDA_F32)) return RunResample<float, Bf16, float>(y, x, p, s);
  if (pair(TANDEM_CUDA_F32, TANDEM_CUDA_BF16)) return RunResample<Bf16, float, float>(y, x, p, s);
  return TANDEM_CUDA_UNSUPPORTED;
}

int tandem_cuda_resample_nearest(void* y, const void* x, const int32_t* first, int64_t outer,
                                 int64_t inputs, int64_t outputs, int64_t inner,
                                 int32_t element_bytes, tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  const Sizes sizes(outer, inputs, outputs, inner);
  auto* const s = static_cast<cudaStream_t>(stream);
  switch (element_bytes) {
    case 1:
      return RunNearest<uint8_t>(y, x, first, sizes, s);
    case 2:
      return RunNearest<uint16_t>(y, x, first, sizes, s);
    case 4:
      return RunNearest<uint32_t>(y, x, first, sizes, s);
    case 8:
      return RunNearest<uint64_t>(y, x, first, sizes, s);
    default:
      return TANDEM_CUDA_UNSUPPORTED;
  }
}

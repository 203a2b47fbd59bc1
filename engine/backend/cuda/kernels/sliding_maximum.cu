// Maxima over large windows: the place of the maximum over 1, 2, 4 ... taps from each position on.
#include "engine/backend/cuda/kernels/device.h"
#include "engine/backend/cuda/kernels/maximum.h"
#include "engine/backend/cuda/kernels/quotient.h"
#include "engine/backend/cuda/kernels/tandem_cuda.h"
#include "engine/backend/cuda/kernels/window.h"

namespace tandem::cuda {
namespace {

constexpr int kThreads = 256;

// One axis of arrays (outer, axis.in, inner) of places, and what finds an element's plane.
struct Line {
  WindowAxis axis;
  int64_t outer;
  int inner;
  int64_t inputs;  // elements of x a plane
  Quotient plane;  // of places in that array
  Quotient inner_size, in_size, out_size;

  Line(const WindowAxis& a, int64_t outer_size, int inner_elements, int64_t plane_places,
       int64_t plane_inputs)
      : axis(a),
        outer(outer_size),
        inner(inner_elements),
        inputs(plane_inputs),
        plane(plane_places),
        inner_size(inner),
        in_size(a.in),
        out_size(a.out) {}
};

__global__ void __launch_bounds__(kThreads) FillPlaces(int* to, int64_t total, Quotient inputs) {
  for (int64_t i = GridIndex(); i < total; i += GridStride()) {
    int64_t place;
    inputs.Of(i, &place);
    to[i] = static_cast<int>(place);
  }
}

// to[p] = the better of from[p] and from[p + reach]: twice the taps.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    DoublePlaces(int* to, const int* from, const T* x, Line line, int reach) {
  const int64_t total = line.outer * line.axis.in * line.inner;
  for (int64_t i = GridIndex(); i < total; i += GridStride()) {
    int64_t at;
    line.in_size.Of(line.inner_size.Of(i), &at);
    const int other = at + reach < line.axis.in ? from[i + int64_t{reach} * line.inner] : -1;
    to[i] = Better(x + line.plane.Of(i) * line.inputs, from[i], other);
  }
}

// The outputs whose windows hold 2^level taps or more on the input, but not twice as many.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    TakePlaces(int* to, const int* from, const T* x, Line line, int level) {
  const WindowAxis& axis = line.axis;
  const int64_t total = line.outer * axis.out * line.inner;
  for (int64_t i = GridIndex(); i < total; i += GridStride()) {
    int64_t inner, position;
    const int64_t outer = line.out_size.Of(line.inner_size.Of(i, &inner), &position);
    const int o = static_cast<int>(position);
    int first, count;
    axis.Taps(o, 0, axis.in, &first, &count);
    if (count >> level != 1) continue;
    const int start = axis.Start(o) + first * axis.dilation;
    const int64_t at = (outer * axis.in + start) * line.inner + inner;
    const int64_t last = int64_t{count - (1 << level)} * axis.dilation * line.inner;
    to[i] = Better(x + line.plane.Of(at) * line.inputs, from[at], from[at + last]);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    TakeMaxima(T* y, int64_t* index, const int* places, const T* x, int64_t total, Quotient outputs,
               int64_t inputs) {
  for (int64_t i = GridIndex(); i < total; i += GridStride()) {
    y[i] = x[outputs.Of(i) * inputs + places[i]];
    if (index != nullptr) index[i] = places[i];
  }
}

// places (outer, in, inner), destroyed, becomes to (outer, out, inner); spare is as large.
template <typename T>
cudaError_t SlideAlong(const Line& line, int* to, int* places, int* spare, const T* x,
                       cudaStream_t stream) {
  const unsigned out_blocks = BlocksFor(line.outer * line.axis.out * line.inner, kThreads);
  const unsigned in_blocks = BlocksFor(line.outer * line.axis.in * line.inner, kThreads);
  for (int level = 0; (1 << level) <= line.axis.kernel; ++level) {
    cudaError_t error =
        Launch(TakePlaces<T>, out_blocks, kThreads, 0, stream, to, places, x, line, level);
    const int64_t reach = (int64_t{1} << level) * line.axis.dilation;
    if (error != cudaSuccess || reach >= line.axis.in) return error;
    error = Launch(DoublePlaces<T>, in_blocks, kThreads, 0, stream, spare, places, x, line,
                   static_cast<int>(reach));
    if (error != cudaSuccess) return error;
    int* const swap = places;
    places = spare;
    spare = swap;
  }
  return cudaSuccess;
}

// Elements of each of the three arrays of places.
int64_t PlacesOf(int64_t planes, const Window& w) {
  return planes * w.h.in * (w.w.in > w.w.out ? w.w.in : w.w.out);
}

template <typename T>
cudaError_t RunSliding(void* y, int64_t* index, const void* x, int64_t planes, const Window& w,
                       void* scratch, cudaStream_t stream) {
  const auto* const from = static_cast<const T*>(x);
  int* const a = static_cast<int*>(scratch);
  int* const b = a + PlacesOf(planes, w);
  int* const c = b + PlacesOf(planes, w);
  const int64_t inputs = w.Inputs(), total = planes * w.Outputs();
  cudaError_t error = Launch(FillPlaces, BlocksFor(planes * inputs, kThreads), kThreads, 0, stream,
                             a, planes * inputs, Quotient(inputs));
  if (error != cudaSuccess) return error;
  const Line rows(w.w, planes * w.h.in, 1, inputs, inputs);
  error = SlideAlong(rows, c, a, b, from, stream);
  if (error != cudaSuccess) return error;
  const Line columns(w.h, planes, w.w.out, int64_t{w.h.in} * w.w.out, inputs);
  int* const result = c + PlacesOf(planes, w);
  error = SlideAlong(columns, result, c, a, from, stream);
  if (error != cudaSuccess) return error;
  return Launch(TakeMaxima<T>, BlocksFor(total, kThreads), kThreads, 0, stream, static_cast<T*>(y),
                index, result, from, total, Quotient(w.Outputs()), inputs);
}

}  // namespace
}  // namespace tandem::cuda

int64_t tandem_cuda_sliding_maximum_scratch_bytes(int64_t planes,
                                                  const struct tandem_cuda_window_params* window) {
  const tandem::cuda::Window w = tandem::cuda::MakeWindow(*window);
  return 4 * (3 * tandem::cuda::PlacesOf(planes, w) + planes * w.Outputs());
}

int tandem_cuda_sliding_maximum(void* y, int64_t* index, const void* x, int64_t planes,
                                const struct tandem_cuda_window_params* window, int32_t dtype,
                                void* scratch, tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  const Window w = MakeWindow(*window);
  auto* const s = static_cast<cudaStream_t>(stream);
  switch (dtype) {
    case TANDEM_CUDA_F32:
      return RunSliding<float>(y, index, x, planes, w, scratch, s);
    case TANDEM_CUDA_F16:
      return RunSliding<F16>(y, index, x, planes, w, scratch, s);
    case TANDEM_CUDA_BF16:
      return RunSliding<Bf16>(y, index, x, planes, w, scratch, s);
    default:
      return TANDEM_CUDA_UNSUPPORTED;
  }
}

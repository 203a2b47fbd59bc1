// Pooling over windows and its adjoints.
#include "engine/backend/cuda/kernels/device.h"
#include "engine/backend/cuda/kernels/maximum.h"
#include "engine/backend/cuda/kernels/quotient.h"
#include "engine/backend/cuda/kernels/tandem_cuda.h"
#include "engine/backend/cuda/kernels/window.h"

namespace tandem::cuda {
namespace {

constexpr int kThreads = 256;
// From this many taps on a warp shares a window.
constexpr int64_t kTapsOfAWarp = 64;

// The taps of a window that lie on the input.
struct Taps {
  int top, left, rows, columns;
};
__device__ __forceinline__ Taps TapsOf(const Window& w, int oh, int ow) {
  int first_h, first_w;
  Taps t;
  w.h.Taps(oh, 0, w.h.in, &first_h, &t.rows);
  w.w.Taps(ow, 0, w.w.in, &first_w, &t.columns);
  t.top = w.h.Start(oh) + first_h * w.h.dilation;
  t.left = w.w.Start(ow) + first_w * w.w.dilation;
  return t;
}

// kLanes threads (1 or 32) a window.
template <int kLanes, typename T>
__global__ void __launch_bounds__(kThreads)
    MaxPool(T* y, int64_t* index, const T* x, int64_t total, Window w, Quotient outputs) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  for (int64_t i = GridIndex() / kLanes; i < total; i += GridStride() / kLanes) {
    int64_t rest;
    const T* const plane = x + outputs.Of(i, &rest) * w.Inputs();
    const int o = static_cast<int>(rest);
    const Taps taps = TapsOf(w, o / w.w.out, o % w.w.out);
    int best = -1;
    for (int k = lane; k < taps.rows * taps.columns; k += kLanes) {
      const int h = taps.top + k / taps.columns * w.h.dilation;
      best = Better(plane, best, h * w.w.in + taps.left + k % taps.columns * w.w.dilation);
    }
    for (int mask = kLanes / 2; mask > 0; mask /= 2) {
      best = Better(plane, best, __shfl_xor_sync(kFullWarp, best, mask));
    }
    if (lane != 0) continue;
    y[i] = plane[best < 0 ? 0 : best];
    if (index != nullptr) index[i] = best;
  }
}

template <typename T>
inline constexpr bool kIsFloat = sizeof(decltype(Comparable(T{}))) == 4 && !std::is_integral_v<T>;

template <typename T>
cudaError_t RunMaxPool(void* y, int64_t* index, const void* x, int64_t planes, const Window& w,
                       cudaStream_t stream) {
  const int64_t total = planes * w.Outputs();
  auto* const to = static_cast<T*>(y);
  const auto* const from = static_cast<const T*>(x);
  if constexpr (kIsFloat<T>) {
    if (int64_t{w.h.kernel} * w.w.kernel >= kTapsOfAWarp) {
      return Launch(MaxPool<32, T>, BlocksFor(total * 32, kThreads), kThreads, 0, stream, to, index,
                    from, total, w, Quotient(w.Outputs()));
    }
  }
  return Launch(MaxPool<1, T>, BlocksFor(total, kThreads), kThreads, 0, stream, to, index, from,
                total, w, Quotient(w.Outputs()));
}

// --- Its adjoint: elements sorted by where they go, then by their number; a thread adds up each
// place's.

constexpr int kChunk = 2048;  // sorted in shared memory
constexpr uint64_t kNoKey = ~uint64_t{0};

__device__ __forceinline__ uint64_t KeyOf(int64_t index, int64_t in, int64_t o) {
  const int64_t place = index < 0 ? 0 : index < in ? index : in - 1;
  return static_cast<uint64_t>(place) << 32 | static_cast<uint64_t>(o);
}

// Batcher's bitonic network, from sequences of `from` / 2 to sequences of `to`, over `size` keys in
// shared memory, of which the first is number `base` of a plane. Sizes are powers of two.
__device__ __forceinline__ void SortShared(uint64_t* keys, int size, int64_t base, int64_t from,
                                           int64_t to) {
  for (int64_t sequence = from; sequence <= to; sequence *= 2) {
    const int64_t half = sequence / 2;
    for (int j = static_cast<int>(half < size / 2 ? half : size / 2); j > 0; j /= 2) {
      __syncthreads();
      for (int t = static_cast<int>(threadIdx.x); t < size / 2; t += kThreads) {
        const int i = 2 * t - (t & (j - 1));
        const bool ascending = ((base + i) & sequence) == 0;
        const uint64_t a = keys[i], b = keys[i + j];
        if ((a > b) == ascending) {
          keys[i] = b;
          keys[i + j] = a;
        }
      }
    }
  }
  __syncthreads();
}

// If key p is its place's first: dx there = the sum of the place's elements of dy.
template <typename T>
__device__ __forceinline__ void AddPlace(T* dx, const T* dy, const uint64_t* keys, int64_t p,
                                         int64_t size) {
  const uint64_t first = keys[p], place = first >> 32;
  if (first == kNoKey || (p > 0 && keys[p - 1] >> 32 == place)) return;
  float sum = 0.0f;
  for (; p < size && keys[p] != kNoKey && keys[p] >> 32 == place; ++p) {
    sum += ToFloat(dy[keys[p] & 0xffffffffu]);
  }
  FromFloat(sum, dx + place);
}

// A plane a block; size >= out.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    ScatterPlane(T* dx, const T* dy, const int64_t* index, int64_t planes, int64_t in, int out,
                 int size) {
  __shared__ uint64_t keys[kChunk];
  for (int64_t plane = blockIdx.x; plane < planes; plane += gridDim.x) {
    T* const to = dx + plane * in;
    for (int64_t i = threadIdx.x; i < in; i += kThreads) FromFloat(0.0f, to + i);
    for (int o = static_cast<int>(threadIdx.x); o < size; o += kThreads) {
      keys[o] = o < out ? KeyOf(index[plane * out + o], in, o) : kNoKey;
    }
    SortShared(keys, size, 0, 2, size);
    for (int p = static_cast<int>(threadIdx.x); p < size; p += kThreads) {
      AddPlace(to, dy + plane * out, keys, p, size);
    }
    __syncthreads();
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    FillKeys(uint64_t* keys, T* dx, const int64_t* index, int64_t planes, int64_t in, int64_t out,
             int log_size) {
  const int64_t size = int64_t{1} << log_size;
  for (int64_t i = GridIndex(); i < planes * in; i += GridStride()) FromFloat(0.0f, dx + i);
  for (int64_t i = GridIndex(); i < planes * size; i += GridStride()) {
    const int64_t plane = i >> log_size, o = i & (size - 1);
    keys[i] = o < out ? KeyOf(index[plane * out + o], in, o) : kNoKey;
  }
}

// The steps within chunks of the sequences from `from` to `to`.
__global__ void __launch_bounds__(kThreads)
    SortChunks(uint64_t* keys, int64_t size, int64_t from, int64_t to) {
  __shared__ uint64_t chunk[kChunk];
  const int64_t base = int64_t{blockIdx.x} * kChunk;
  for (int i = static_cast<int>(threadIdx.x); i < kChunk; i += kThreads) chunk[i] = keys[base + i];
  SortShared(chunk, kChunk, base & (size - 1), from, to);
  for (int i = static_cast<int>(threadIdx.x); i < kChunk; i += kThreads) keys[base + i] = chunk[i];
}

// One step: keys `reach` apart.
__global__ void __launch_bounds__(kThreads)
    SortApart(uint64_t* keys, int64_t total, int64_t size, int64_t sequence, int64_t reach) {
  for (int64_t t = GridIndex(); t < total / 2; t += GridStride()) {
    const int64_t i = 2 * t - (t & (reach - 1));
    const bool ascending = (i & (size - 1) & sequence) == 0;
    const uint64_t a = keys[i], b = keys[i + reach];
    if ((a > b) == ascending) {
      keys[i] = b;
      keys[i + reach] = a;
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    ScatterSorted(T* dx, const T* dy, const uint64_t* keys, int64_t planes, int64_t in, int64_t out,
                  int log_size) {
  const int64_t size = int64_t{1} << log_size;
  for (int64_t i = GridIndex(); i < planes * size; i += GridStride()) {
    const int64_t plane = i >> log_size;
    AddPlace(dx + plane * in, dy + plane * out, keys + plane * size, i & (size - 1), size);
  }
}

// Keys of a plane, as a power of two.
int LogSize(int64_t out) {
  int log = 1;
  while (int64_t{1} << log < out) ++log;
  return log;
}

template <typename T>
cudaError_t RunMaxPoolGrad(void* dx, const void* dy, const int64_t* index, int64_t planes,
                           int64_t in, int64_t out, void* scratch, cudaStream_t stream) {
  auto* const to = static_cast<T*>(dx);
  const auto* const from = static_cast<const T*>(dy);
  const int log_size = LogSize(out);
  const int64_t size = int64_t{1} << log_size;
  if (size <= kChunk) {
    return Launch(ScatterPlane<T>, BlocksFor(planes, 1), kThreads, 0, stream, to, from, index,
                  planes, in, static_cast<int>(out), static_cast<int>(size));
  }
  auto* const keys = static_cast<uint64_t*>(scratch);
  const int64_t total = planes * size, most = total > planes * in ? total : planes * in;
  const unsigned blocks = BlocksFor(total, kThreads);
  cudaError_t error = Launch(FillKeys<T>, BlocksFor(most, kThreads), kThreads, 0, stream, keys, to,
                             index, planes, in, out, log_size);
  if (error != cudaSuccess) return error;
  const unsigned chunks = static_cast<unsigned>(total / kChunk);
  error = Launch(SortChunks, chunks, kThreads, 0, stream, keys, size, 2, kChunk);
  for (int64_t sequence = 2 * kChunk; sequence <= size && error == cudaSuccess; sequence *= 2) {
    for (int64_t reach = sequence / 2; reach >= kChunk; reach /= 2) {
      error = Launch(SortApart, blocks, kThreads, 0, stream, keys, total, size, sequence, reach);
      if (error != cudaSuccess) return error;
    }
    error = Launch(SortChunks, chunks, kThreads, 0, stream, keys, size, sequence, sequence);
  }
  if (error != cudaSuccess) return error;
  return Launch(ScatterSorted<T>, blocks, kThreads, 0, stream, to, from, keys, planes, in, out,
                log_size);
}

// --- Means.

// kLanes threads (1 or 32) a window.
template <int kLanes, typename T>
__global__ void __launch_bounds__(kThreads)
    AveragePool(T* y, const T* x, int64_t total, Window w, Quotient outputs, bool include_pad) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  for (int64_t i = GridIndex() / kLanes; i < total; i += GridStride() / kLanes) {
    int64_t rest;
    const T* const plane = x + outputs.Of(i, &rest) * w.Inputs();
    const int o = static_cast<int>(rest), oh = o / w.w.out, ow = o % w.w.out;
    const Taps taps = TapsOf(w, oh, ow);
    float sum = 0.0f;
    for (int k = lane; k < taps.rows * taps.columns; k += kLanes) {
      const int h = taps.top + k / taps.columns * w.h.dilation;
      sum += ToFloat(plane[h * w.w.in + taps.left + k % taps.columns * w.w.dilation]);
    }
    for (int mask = kLanes / 2; mask > 0; mask /= 2) {
      sum += __shfl_xor_sync(kFullWarp, sum, mask);
    }
    if (lane != 0) continue;
    const int64_t count = int64_t{w.h.Count(oh, include_pad)} * w.w.Count(ow, include_pad);
    FromFloat(count == 0 ? 0.0f : __fdiv_rn(sum, static_cast<float>(count)), y + i);
  }
}

// The outputs that see an input: the first, and one past the last.
__device__ __forceinline__ void Seeing(const WindowAxis& a, int i, int* begin, int* end) {
  const int high = i + a.pad_begin, low = high - (a.kernel - 1) * a.dilation;
  *begin = low <= 0 ? 0 : (low + a.stride - 1) / a.stride;
  *end = high / a.stride + 1 < a.out ? high / a.stride + 1 : a.out;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    AveragePoolGrad(T* dx, const T* dy, int64_t total, Window w, Quotient inputs,
                    bool include_pad) {
  for (int64_t i = GridIndex(); i < total; i += GridStride()) {
    int64_t rest;
    const T* const plane = dy + inputs.Of(i, &rest) * w.Outputs();
    const int at = static_cast<int>(rest), h = at / w.w.in, c = at % w.w.in;
    int row, row_end, column_begin, column_end;
    Seeing(w.h, h, &row, &row_end);
    Seeing(w.w, c, &column_begin, &column_end);
    float sum = 0.0f;
    for (; row < row_end; ++row) {
      if ((h - w.h.Start(row)) % w.h.dilation != 0) continue;
      const int rows = w.h.Count(row, include_pad);
      for (int column = column_begin; column < column_end; ++column) {
        if ((c - w.w.Start(column)) % w.w.dilation != 0) continue;
        const int64_t count = int64_t{rows} * w.w.Count(column, include_pad);
        const float share = ToFloat(plane[int64_t{row} * w.w.out + column]);
        sum += __fdiv_rn(share, static_cast<float>(count));
      }
    }
    FromFloat(sum, dx + i);
  }
}

template <typename T>
cudaError_t RunAveragePool(void* y, const void* x, int64_t planes, const Window& w, bool include,
                           cudaStream_t stream) {
  const int64_t total = planes * w.Outputs();
  auto* const to = static_cast<T*>(y);
  const auto* const from = static_cast<const T*>(x);
  if (int64_t{w.h.kernel} * w.w.kernel >= kTapsOfAWarp) {
    return Launch(AveragePool<32, T>, BlocksFor(total * 32, kThreads), kThreads, 0, stream, to,
                  from, total, w, Quotient(w.Outputs()), include);
  }
  return Launch(AveragePool<1, T>, BlocksFor(total, kThreads), kThreads, 0, stream, to, from, total,
                w, Quotient(w.Outputs()), include);
}

template <typename T>
cudaError_t RunAveragePoolGrad(void* dx, const void* dy, int64_t planes, const Window& w,
                               bool include, cudaStream_t stream) {
  return Launch(AveragePoolGrad<T>, BlocksFor(planes * w.Inputs(), kThreads), kThreads, 0, stream,
                static_cast<T*>(dx), static_cast<const T*>(dy), planes * w.Inputs(), w,
                Quotient(w.Inputs()), include);
}

}  // namespace
}  // namespace tandem::cuda

// clang-format off
#define CASE(number, type, call) \
  case number: {                 \
    using T = type;              \
    return call;                 \
  }
#define FLOATS(call)                                 \
  CASE(TANDEM_CUDA_F32, float, call)                 \
  CASE(TANDEM_CUDA_F16, tandem::cuda::F16, call)     \
  CASE(TANDEM_CUDA_BF16, tandem::cuda::Bf16, call)
#define NUMBERS(call)                                \
  FLOATS(call)                                       \
  CASE(TANDEM_CUDA_F64, double, call)                \
  CASE(TANDEM_CUDA_I8, int8_t, call)                 \
  CASE(TANDEM_CUDA_U8, uint8_t, call)                \
  CASE(TANDEM_CUDA_I32, int32_t, call)               \
  CASE(TANDEM_CUDA_I64, int64_t, call)
// clang-format on

int tandem_cuda_max_pool(void* y, int64_t* index, const void* x, int64_t planes,
                         const struct tandem_cuda_window_params* window, int32_t dtype,
                         tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  const Window w = MakeWindow(*window);
  auto* const s = static_cast<cudaStream_t>(stream);
  switch (dtype) {
    NUMBERS(RunMaxPool<T>(y, index, x, planes, w, s))
    default:
      return TANDEM_CUDA_UNSUPPORTED;
  }
}

int64_t tandem_cuda_max_pool_grad_scratch_bytes(int64_t planes, int64_t out) {
  const int64_t size = int64_t{1} << tandem::cuda::LogSize(out);
  return size <= tandem::cuda::kChunk ? 0 : 8 * planes * size;
}

int tandem_cuda_max_pool_grad(void* dx, const void* dy, const int64_t* index, int64_t planes,
                              int64_t in, int64_t out, int32_t dtype, void* scratch,
                              tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  auto* const s = static_cast<cudaStream_t>(stream);
  switch (dtype) {
    FLOATS(RunMaxPoolGrad<T>(dx, dy, index, planes, in, out, scratch, s))
    default:
      return TANDEM_CUDA_UNSUPPORTED;
  }
}

int tandem_cuda_average_pool(void* y, const void* x, int64_t planes,
                             const struct tandem_cuda_window_params* window,
                             int32_t count_include_pad, int32_t dtype, tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  const Window w = MakeWindow(*window);
  auto* const s = static_cast<cudaStream_t>(stream);
  switch (dtype) {
    FLOATS(RunAveragePool<T>(y, x, planes, w, count_include_pad != 0, s))
    default:
      return TANDEM_CUDA_UNSUPPORTED;
  }
}

int tandem_cuda_average_pool_grad(void* dx, const void* dy, int64_t planes,
                                  const struct tandem_cuda_window_params* window,
                                  int32_t count_include_pad, int32_t dtype,
                                  tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  const Window w = MakeWindow(*window);
  auto* const s = static_cast<cudaStream_t>(stream);
  switch (dtype) {
    FLOATS(RunAveragePoolGrad<T>(dx, dy, planes, w, count_include_pad != 0, s))
    default:
      return TANDEM_CUDA_UNSUPPORTED;
  }
}

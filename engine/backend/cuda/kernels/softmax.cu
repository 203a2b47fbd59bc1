// Softmax, its logarithm, and their gradients.
#include "engine/backend/cuda/kernels/log_sum_exp.h"

namespace tandem::cuda {
namespace {

struct SoftmaxParams {
  const void *x, *dy;  // the gradients': y and dy
  void* y;
  int64_t rows;
  int cols;
};

// A row of the block; rows past the last have no columns.
struct Row {
  int64_t start;
  int cols;
  __device__ __forceinline__ Row(const SoftmaxParams& p, int64_t first)
      : start((first + threadIdx.y) * p.cols), cols(first + threadIdx.y < p.rows ? p.cols : 0) {}
};

template <typename T, int N, bool kResident, bool kAligned>
__global__ void __launch_bounds__(512) Softmax(SoftmaxParams p) {
  const int step = N * static_cast<int>(blockDim.x) * kVector<T>;
  RowReducer reducer;
  for (int64_t first = blockIdx.x * int64_t{blockDim.y}; first < p.rows;
       first += int64_t{gridDim.x} * blockDim.y) {
    const Row row(p, first);
    const T* const x = static_cast<const T*>(p.x) + row.start;
    uint4 raw[N];
    OnlineSum total;
    for (int at = 0; kResident ? at == 0 : at < p.cols; at += step) {
      LoadRow<T, kAligned>(x, at, row.cols, -INFINITY, raw);
      total.Add<T>(raw);
    }
    total.Merge(reducer);
    // A row of -inf and one with +inf give NaN.
    const float max = total.max, scale = max < INFINITY ? 1.0f / total.sum : NAN;
    for (int at = 0; kResident ? at == 0 : at < p.cols; at += step) {
      if (!kResident) LoadRow<T, kAligned>(x, at, row.cols, -INFINITY, raw);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        float v[kVector<T>];
#pragma unroll
        for (int j = 0; j < kVector<T>; ++j) v[j] = expf(Element<T>(raw[i], j) - max) * scale;
        StoreVector<T, kAligned>(v, static_cast<T*>(p.y) + row.start, VectorStart<T>(at, i),
                                 row.cols);
      }
    }
  }
}

// Four vectors at a time, whatever the row's length and alignment: see OnlineSum.
template <typename T, bool kResident, bool kAligned>
__global__ void __launch_bounds__(512) LogSoftmax(SoftmaxParams p) {
  constexpr int N = kLseVectors;
  const int step = N * static_cast<int>(blockDim.x) * kVector<T>;
  __shared__ float lse_of_row[4];
  RowReducer reducer;
  for (int64_t first = blockIdx.x * int64_t{blockDim.y}; first < p.rows;
       first += int64_t{gridDim.x} * blockDim.y) {
    const Row row(p, first);
    const T* const x = static_cast<const T*>(p.x) + row.start;
    uint4 raw[N];
    OnlineSum total;
    for (int at = 0; kResident ? at == 0 : at < p.cols; at += step) {
      LoadRow<T, kAligned>(x, at, row.cols, -INFINITY, raw);
      total.Add<T>(raw);
    }
    total.Merge(reducer);
    if (threadIdx.x == 0) lse_of_row[threadIdx.y] = total.Lse();
    __syncthreads();
    const float lse = lse_of_row[threadIdx.y];
    for (int at = 0; kResident ? at == 0 : at < p.cols; at += step) {
      if (!kResident) LoadRow<T, kAligned>(x, at, row.cols, -INFINITY, raw);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        float v[kVector<T>];
#pragma unroll
        for (int j = 0; j < kVector<T>; ++j) v[j] = Element<T>(raw[i], j) - lse;
        StoreVector<T, kAligned>(v, static_cast<T*>(p.y) + row.start, VectorStart<T>(at, i),
                                 row.cols);
      }
    }
    __syncthreads();  // before the next row's lse
  }
}

// kLog: dx = dy - exp(y) sum(dy); else dx = y (dy - sum(y dy)).
template <typename T, int N, bool kResident, bool kAligned, bool kLog>
__global__ void __launch_bounds__(512) SoftmaxGrad(SoftmaxParams p) {
  const int step = N * static_cast<int>(blockDim.x) * kVector<T>;
  RowReducer reducer;
  for (int64_t first = blockIdx.x * int64_t{blockDim.y}; first < p.rows;
       first += int64_t{gridDim.x} * blockDim.y) {
    const Row row(p, first);
    const T* const y = static_cast<const T*>(p.x) + row.start;
    const T* const dy = static_cast<const T*>(p.dy) + row.start;
    uint4 a[N], b[N];
    float sum = 0;
    for (int at = 0; kResident ? at == 0 : at < p.cols; at += step) {
      if (kResident || !kLog) LoadRow<T, kAligned>(y, at, row.cols, 0.0f, a);
      LoadRow<T, kAligned>(dy, at, row.cols, 0.0f, b);
#pragma unroll
      for (int i = 0; i < N; ++i) {
#pragma unroll
        for (int j = 0; j < kVector<T>; ++j) {
          const float d = Element<T>(b[i], j);
          sum = kLog ? sum + d : fmaf(Element<T>(a[i], j), d, sum);
        }
      }
    }
    sum = reducer.Sum(sum);
    for (int at = 0; kResident ? at == 0 : at < p.cols; at += step) {
      if (!kResident) {
        LoadRow<T, kAligned>(y, at, row.cols, 0.0f, a);
        LoadRow<T, kAligned>(dy, at, row.cols, 0.0f, b);
      }
#pragma unroll
      for (int i = 0; i < N; ++i) {
        float v[kVector<T>];
#pragma unroll
        for (int j = 0; j < kVector<T>; ++j) {
          const float d = Element<T>(b[i], j), value = Element<T>(a[i], j);
          v[j] = kLog ? fmaf(-expf(value), sum, d) : value * (d - sum);
        }
        StoreVector<T, kAligned>(v, static_cast<T*>(p.y) + row.start, VectorStart<T>(at, i),
                                 row.cols);
      }
    }
  }
}

// f(T(), geometry, aligned) for the dtype.
template <typename F>
int WithRows(int dtype, SoftmaxParams& p, int64_t cols, int most, F f) {
  if (cols > kMaxColumns) return TANDEM_CUDA_UNSUPPORTED;
  p.cols = static_cast<int>(cols);
  return WithFloat(dtype, [&](auto zero) -> int {
    using T = decltype(zero);
    const bool aligned = RowsAligned(cols * static_cast<int64_t>(sizeof(T)), p.x, p.dy, p.y);
    return f(zero, GeometryOf(cols, kVector<T>, most), aligned);
  });
}

template <bool kLog>
int LaunchSoftmaxGrad(int dtype, SoftmaxParams p, int64_t cols, cudaStream_t stream) {
  // Two inputs: half the vectors of each.
  return WithRows(dtype, p, cols, 2, [&](auto zero, const RowGeometry& g, bool aligned) {
    using T = decltype(zero);
    using std::true_type, std::false_type;
    const auto launch = [&](auto kernel) -> int {
      return Launch(kernel, g.blocks(p.rows), g.block(), 0, stream, p);
    };
    if (!aligned) return launch(SoftmaxGrad<T, 1, false, false, kLog>);
    if (!g.resident) return launch(SoftmaxGrad<T, 2, false, true, kLog>);
    if (g.vectors == 1) return launch(SoftmaxGrad<T, 1, true, true, kLog>);
    return launch(SoftmaxGrad<T, 2, true, true, kLog>);
  });
}

}  // namespace
}  // namespace tandem::cuda

int tandem_cuda_softmax(int32_t dtype, const void* x, void* y, int64_t rows, int64_t cols,
                        tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  SoftmaxParams p = {.x = x, .dy = nullptr, .y = y, .rows = rows, .cols = 0};
  return WithRows(dtype, p, cols, 4, [&](auto zero, const RowGeometry& g, bool aligned) {
    using T = decltype(zero);
    return WithGeometry(g, aligned, [&](auto vectors, auto resident, auto vectored) -> int {
      return Launch(Softmax<T, vectors, resident, vectored>, g.blocks(rows), g.block(), 0,
                    static_cast<cudaStream_t>(stream), p);
    });
  });
}

int tandem_cuda_log_softmax(int32_t dtype, const void* x, void* y, int64_t rows, int64_t cols,
                            tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  SoftmaxParams p = {.x = x, .dy = nullptr, .y = y, .rows = rows, .cols = 0};
  return WithRows(dtype, p, cols, 4, [&](auto zero, const RowGeometry& g, bool aligned) -> int {
    using T = decltype(zero);
    const auto kernel = !aligned     ? LogSoftmax<T, false, false>
                        : g.resident ? LogSoftmax<T, true, true>
                                     : LogSoftmax<T, false, true>;
    return Launch(kernel, g.blocks(rows), g.block(), 0, static_cast<cudaStream_t>(stream), p);
  });
}

int tandem_cuda_softmax_grad(int32_t dtype, const void* y, const void* dy, void* dx, int64_t rows,
                             int64_t cols, tandem_cuda_stream stream) {
  const tandem::cuda::SoftmaxParams p = {.x = y, .dy = dy, .y = dx, .rows = rows, .cols = 0};
  return tandem::cuda::LaunchSoftmaxGrad<false>(dtype, p, cols, static_cast<cudaStream_t>(stream));
}

int tandem_cuda_log_softmax_grad(int32_t dtype, const void* y, const void* dy, void* dx,
                                 int64_t rows, int64_t cols, tandem_cuda_stream stream) {
  const tandem::cuda::SoftmaxParams p = {.x = y, .dy = dy, .y = dx, .rows = rows, .cols = 0};
  return tandem::cuda::LaunchSoftmaxGrad<true>(dtype, p, cols, static_cast<cudaStream_t>(stream));
}

// RmsNorm and LayerNorm.
#include "engine/backend/cuda/kernels/rows.h"

namespace tandem::cuda {
namespace {

struct NormParams {
  const void *x, *gamma, *beta;
  void* y;
  float *mean, *rstd;
  int64_t rows;
  float epsilon;
  int cols;
};

// The sum of (x - centre)^2 over the thread's vectors from `at` on, added to `sum`.
template <typename T, int N>
__device__ __forceinline__ float AddSquares(const uint4 (&x)[N], float centre, int at, int cols,
                                            float sum) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int count = Remaining(VectorStart<T>(at, i), cols);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      const float v = j < count ? Element<T>(x[i], j) - centre : 0.0f;
      sum = fmaf(v, v, sum);
    }
  }
  return sum;
}

template <typename T, int N>
__device__ __forceinline__ float AddAll(const uint4 (&x)[N], float sum) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) sum += Element<T>(x[i], j);
  }
  return sum;
}

template <typename T, bool kAligned, int N>
__device__ __forceinline__ void StoreNormalized(const NormParams& p, const uint4 (&x)[N],
                                                float centre, float scale, int at, int cols, T* y) {
  const T *gamma = static_cast<const T*>(p.gamma), *beta = static_cast<const T*>(p.beta);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int start = VectorStart<T>(at, i);
    float v[kVector<T>];
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) v[j] = (Element<T>(x[i], j) - centre) * scale;
    uint4 g[1] = {}, b[1] = {};
    if (gamma != nullptr) {
      LoadRow<T, kAligned>(gamma, at + i * static_cast<int>(blockDim.x) * kVector<T>, cols, 0.0f,
                           g);
    }
    if (beta != nullptr) {
      LoadRow<T, kAligned>(beta, at + i * static_cast<int>(blockDim.x) * kVector<T>, cols, 0.0f, b);
    }
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      if (gamma == nullptr) {
        v[j] = beta == nullptr ? v[j] : v[j] + Element<T>(b[0], j);
      } else {
        const float scaled = Element<T>(g[0], j);
        v[j] = beta == nullptr ? v[j] * scaled : fmaf(v[j], scaled, Element<T>(b[0], j));
      }
    }
    StoreVector<T, kAligned>(v, y, start, cols);
  }
}

// kLayer: LayerNorm, else RmsNorm. kResident: N vectors a thread are the whole row; otherwise it is
// read again, N vectors at a time, for each sum.
template <typename T, int N, bool kResident, bool kAligned, bool kLayer>
__global__ void __launch_bounds__(512) Norm(NormParams p) {
  const int step = N * static_cast<int>(blockDim.x) * kVector<T>;
  RowReducer reducer;
  for (int64_t first = blockIdx.x * int64_t{blockDim.y}; first < p.rows;
       first += int64_t{gridDim.x} * blockDim.y) {
    const int64_t row = first + threadIdx.y;
    const int cols = row < p.rows ? p.cols : 0;
    const T* x = static_cast<const T*>(p.x) + row * p.cols;
    uint4 raw[N];
    if (kResident) LoadRow<T, kAligned>(x, 0, cols, 0.0f, raw);
    float centre = 0, sum = 0;
    if (kLayer) {
      for (int at = 0; kResident ? at == 0 : at < p.cols; at += step) {
        if (!kResident) LoadRow<T, kAligned>(x, at, cols, 0.0f, raw);
        sum = AddAll<T>(raw, sum);
      }
      centre = reducer.Sum(sum) / static_cast<float>(p.cols);
      sum = 0;
    }
    for (int at = 0; kResident ? at == 0 : at < p.cols; at += step) {
      if (!kResident) LoadRow<T, kAligned>(x, at, cols, 0.0f, raw);
      sum = AddSquares<T>(raw, centre, at, cols, sum);
    }
    const float variance = reducer.Sum(sum) / static_cast<float>(p.cols);
    const float scale = 1.0f / sqrtf(variance + p.epsilon);
    T* y = static_cast<T*>(p.y) + row * p.cols;
    for (int at = 0; kResident ? at == 0 : at < p.cols; at += step) {
      if (!kResident) LoadRow<T, kAligned>(x, at, cols, 0.0f, raw);
      StoreNormalized<T, kAligned>(p, raw, centre, scale, at, cols, y);
    }
    if (threadIdx.x == 0 && row < p.rows) {
      if (kLayer) p.mean[row] = centre;
      p.rstd[row] = scale;
    }
  }
}

template <bool kLayer>
int LaunchNorm(int dtype, NormParams p, int64_t cols, cudaStream_t stream) {
  if (cols > kMaxColumns) return TANDEM_CUDA_UNSUPPORTED;
  p.cols = static_cast<int>(cols);
  return WithFloat(dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool aligned =
        RowsAligned(cols * static_cast<int64_t>(sizeof(T)), p.x, p.y, p.gamma, p.beta);
    const RowGeometry g = GeometryOf(cols, kVector<T>);
    return WithGeometry(g, aligned, [&](auto vectors, auto resident, auto vectored) {
      return static_cast<int>(Launch(Norm<T, vectors, resident, vectored, kLayer>, g.blocks(p.rows),
                                     g.block(), 0, stream, p));
    });
  });
}

}  // namespace
}  // namespace tandem::cuda

int tandem_cuda_rms_norm(int32_t dtype, const void* x, const void* gamma, float epsilon, void* y,
                         float* rstd, int64_t rows, int64_t cols, tandem_cuda_stream stream) {
  const tandem::cuda::NormParams p = {.x = x,
                                      .gamma = gamma,
                                      .beta = nullptr,
                                      .y = y,
                                      .mean = nullptr,
                                      .rstd = rstd,
                                      .rows = rows,
                                      .epsilon = epsilon,
                                      .cols = 0};
  return tandem::cuda::LaunchNorm<false>(dtype, p, cols, static_cast<cudaStream_t>(stream));
}

int tandem_cuda_layer_norm(int32_t dtype, const void* x, const void* gamma, const void* beta,
                           float epsilon, void* y, float* mean, float* rstd, int64_t rows,
                           int64_t cols, tandem_cuda_stream stream) {
  const tandem::cuda::NormParams p = {.x = x,
                                      .gamma = gamma,
                                      .beta = beta,
                                      .y = y,
                                      .mean = mean,
                                      .rstd = rstd,
                                      .rows = rows,
                                      .epsilon = epsilon,
                                      .cols = 0};
  return tandem::cuda::LaunchNorm<true>(dtype, p, cols, static_cast<cudaStream_t>(stream));
}

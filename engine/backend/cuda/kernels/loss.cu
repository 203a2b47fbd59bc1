// Log-sum-exp, cross entropy and its gradient.
#include "engine/backend/cuda/kernels/log_sum_exp.h"

namespace tandem::cuda {
namespace {

struct LossParams {
  const void* logits;
  const int32_t* targets;
  float *loss, *lse;
  const float* dloss;
  void* dlogits;
  int64_t rows;
  int cols;
};

__device__ __forceinline__ int Clamped(int32_t target, int cols) {
  return min(max(target, 0), cols - 1);
}

template <typename T, bool kAligned>
__global__ void __launch_bounds__(512) CrossEntropy(LossParams p) {
  constexpr int N = kLseVectors;
  const int step = N * static_cast<int>(blockDim.x) * kVector<T>;
  RowReducer reducer;
  for (int64_t first = blockIdx.x * int64_t{blockDim.y}; first < p.rows;
       first += int64_t{gridDim.x} * blockDim.y) {
    const int64_t row = first + threadIdx.y;
    const int cols = row < p.rows ? p.cols : 0;
    const T* const logits = static_cast<const T*>(p.logits) + row * p.cols;
    OnlineSum total;
    for (int at = 0; at < p.cols; at += step) {
      uint4 raw[N];
      LoadRow<T, kAligned>(logits, at, cols, -INFINITY, raw);
      total.Add<T>(raw);
    }
    total.Merge(reducer);
    if (threadIdx.x == 0 && cols > 0) {
      const float lse = total.Lse();
      p.lse[row] = lse;
      if (p.loss != nullptr) {
        p.loss[row] = lse - ToFloat(logits[Clamped(p.targets[row], cols)]);
      }
    }
  }
}

// The target's element is written when the sum of the others is there.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(512) CrossEntropyGrad(LossParams p) {
  constexpr int N = kLseVectors;
  const int step = N * static_cast<int>(blockDim.x) * kVector<T>;
  RowReducer reducer;
  for (int64_t first = blockIdx.x * int64_t{blockDim.y}; first < p.rows;
       first += int64_t{gridDim.x} * blockDim.y) {
    const int64_t row = first + threadIdx.y;
    const int cols = row < p.rows ? p.cols : 0;
    const T* const logits = static_cast<const T*>(p.logits) + row * p.cols;
    T* const dlogits = static_cast<T*>(p.dlogits) + row * p.cols;
    const int target = cols > 0 ? Clamped(p.targets[row], cols) : 0;
    const float lse = cols > 0 ? p.lse[row] : 0.0f, scale = cols > 0 ? p.dloss[row] : 0.0f;
    // The row's scalars are read before dlogits is written: of one class, it may lie on them.
    __syncthreads();
    float others = 0;
    for (int at = 0; at < p.cols; at += step) {
      uint4 raw[N];
      LoadRow<T, kAligned>(logits, at, cols, -INFINITY, raw);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const int start = VectorStart<T>(at, i);
        float v[kVector<T>];
#pragma unroll
        for (int j = 0; j < kVector<T>; ++j) {
          const float p_scaled = expf(Element<T>(raw[i], j) - lse) * scale;
          v[j] = scale == 0.0f || start + j == target ? 0.0f : p_scaled;
          if (start + j < cols) others += v[j];
        }
        StoreVector<T, kAligned>(v, dlogits, start, cols);
      }
    }
    others = reducer.Sum(others);
    // By the thread that has written the target's place.
    const int owner = target / kVector<T> % static_cast<int>(blockDim.x);
    if (owner == static_cast<int>(threadIdx.x) && cols > 0) {
      dlogits[target] = FromFloat<T>(scale == 0.0f ? 0.0f : -others);
    }
  }
}

// f(T(), geometry, aligned) for the dtype.
template <typename F>
int WithLogits(int dtype, LossParams& p, int64_t cols, F f) {
  if (cols > kMaxColumns) return TANDEM_CUDA_UNSUPPORTED;
  p.cols = static_cast<int>(cols);
  return WithFloat(dtype, [&](auto zero) -> int {
    using T = decltype(zero);
    const bool aligned = RowsAligned(cols * static_cast<int64_t>(sizeof(T)), p.logits, p.dlogits);
    return f(zero, GeometryOf(cols, kVector<T>, kLseVectors), aligned);
  });
}

int LaunchCrossEntropy(int dtype, LossParams p, int64_t cols, cudaStream_t stream) {
  return WithLogits(dtype, p, cols, [&](auto zero, const RowGeometry& g, bool aligned) -> int {
    using T = decltype(zero);
    return Launch(aligned ? CrossEntropy<T, true> : CrossEntropy<T, false>, g.blocks(p.rows),
                  g.block(), 0, stream, p);
  });
}

}  // namespace
}  // namespace tandem::cuda

int tandem_cuda_cross_entropy(int32_t dtype, const void* logits, const int32_t* targets,
                              float* loss, float* lse, int64_t rows, int64_t cols,
                              tandem_cuda_stream stream) {
  tandem::cuda::LossParams p = {};
  p.logits = logits;
  p.targets = targets;
  p.loss = loss;
  p.lse = lse;
  p.rows = rows;
  return tandem::cuda::LaunchCrossEntropy(dtype, p, cols, static_cast<cudaStream_t>(stream));
}

int tandem_cuda_cross_entropy_grad(int32_t dtype, const void* logits, const int32_t* targets,
                                   const float* lse, const float* dloss, void* dlogits,
                                   int64_t rows, int64_t cols, tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  LossParams p = {};
  p.logits = logits;
  p.targets = targets;
  p.lse = const_cast<float*>(lse);  // only read
  p.dloss = dloss;
  p.dlogits = dlogits;
  p.rows = rows;
  return WithLogits(dtype, p, cols, [&](auto zero, const RowGeometry& g, bool aligned) -> int {
    using T = decltype(zero);
    return Launch(aligned ? CrossEntropyGrad<T, true> : CrossEntropyGrad<T, false>, g.blocks(rows),
                  g.block(), 0, static_cast<cudaStream_t>(stream), p);
  });
}

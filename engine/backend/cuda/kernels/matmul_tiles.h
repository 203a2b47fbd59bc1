// What the kernels of the matrix product share: the order of tiles, edges, and the epilogue.
#pragma once

#include "engine/backend/cuda/kernels/device.h"
#include "engine/backend/cuda/kernels/tandem_cuda.h"

namespace tandem::cuda {

using MatMulParams = tandem_cuda_matmul_params;

// Tiles of all products of a batch, numbered so that consecutive ones share operands: down
// kTileGroup rows of tiles, then to the next column of tiles.
struct TileOrder {
  static constexpr int64_t kTileGroup = 8;
  struct Place {
    int64_t batch, row, column;  // of tiles
  };

  int64_t rows, columns, batch;  // tiles of one product; products

  __host__ __device__ __forceinline__ TileOrder(int64_t m, int64_t n, int64_t products, int tile_m,
                                                int tile_n)
      : rows((m + tile_m - 1) / tile_m), columns((n + tile_n - 1) / tile_n), batch(products) {}
  __host__ __device__ __forceinline__ int64_t Count() const { return rows * columns * batch; }
  __host__ __device__ __forceinline__ Place At(int64_t index) const {
    const int64_t product = index / (rows * columns), i = index - product * rows * columns;
    const int64_t group = i / (kTileGroup * columns), rest = i - group * kTileGroup * columns;
    const int64_t first = group * kTileGroup;
    const int64_t tall = rows - first < kTileGroup ? rows - first : kTileGroup;
    const int64_t column = rest / tall;
    return {product, first + rest - column * tall, column};
  }
};

// The grid of a kernel that strides over `count` tiles.
inline unsigned TileBlocks(int64_t count) {
  return static_cast<unsigned>(count < INT32_MAX ? count : INT32_MAX);
}

__host__ __device__ __forceinline__ int Clamp(int64_t value, int most) {
  return static_cast<int>(value < 0 ? 0 : value > most ? most : value);
}

// The epilogue's arithmetic, all in f32.
__device__ __forceinline__ float Silu(float x) { return x / (1.0f + expf(-x)); }

__device__ __forceinline__ float Activate(int activation, float x) {
  switch (activation) {
    case TANDEM_CUDA_ACTIVATION_RELU:
      return x < 0.0f ? 0.0f : x;
    case TANDEM_CUDA_ACTIVATION_SILU:
      return Silu(x);
    case TANDEM_CUDA_ACTIVATION_GELU:
      return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case TANDEM_CUDA_ACTIVATION_GELU_TANH:
      return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    default:
      return x;
  }
}

// Columns [column, column + count) of one row of one product, count <= N: v holds the sums on entry
// (and v2 those of b2). `at` is the row's offset in out. T: the operands' type.
template <typename T, typename Out, int N>
__device__ __forceinline__ void FinishAs(const MatMulParams& p, int64_t at, int64_t column,
                                         int count, const float (&v)[N], const float (&v2)[N]) {
  const T* bias = static_cast<const T*>(p.bias);
  const Out* residual = static_cast<const Out*>(p.residual);
  Out* out = static_cast<Out*>(p.out) + at + column;
  struct __align__(N * sizeof(Out)) Vector {
    Out v[N];
  }
  vector;
#pragma unroll
  for (int j = 0; j < N; ++j) {
    if (j >= count) break;
    float x = v[j];
    if (p.b2 != nullptr) {
      x = Silu(x) * v2[j];
    } else {
      if (bias != nullptr) x = x + ToFloat(bias[column + j]);
      x = Activate(p.activation, x);
    }
    if (residual != nullptr) x = x + ToFloat(residual[at + column + j]);
    vector.v[j] = FromFloat<Out>(x);
  }
  if (count == N && reinterpret_cast<uintptr_t>(out) % sizeof(Vector) == 0) {
    *reinterpret_cast<Vector*>(out) = vector;
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (j < count) out[j] = vector.v[j];
    }
  }
}

template <typename T, int N>
__device__ __forceinline__ void Finish(const MatMulParams& p, int64_t at, int64_t column, int count,
                                       const float (&v)[N], const float (&v2)[N]) {
  if constexpr (!std::is_same_v<T, float>) {
    if (p.out_dtype != TANDEM_CUDA_F32) return FinishAs<T, T, N>(p, at, column, count, v, v2);
  }
  FinishAs<T, float, N>(p, at, column, count, v, v2);
}

// The families of kernels, a file each. All take params that tandem_cuda_matmul has checked.
cudaError_t MatMulF32(const MatMulParams& p, int multiprocessors, cudaStream_t stream);
cudaError_t MatMulMmaBf16(const MatMulParams& p, int multiprocessors, cudaStream_t stream);
cudaError_t MatMulMmaF16(const MatMulParams& p, int multiprocessors, cudaStream_t stream);
cudaError_t MatMulPlain(const MatMulParams& p, cudaStream_t stream);

}  // namespace tandem::cuda

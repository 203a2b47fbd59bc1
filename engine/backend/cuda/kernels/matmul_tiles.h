// What the kernels of the matrix product share: edges and the epilogue.
#pragma once

#include "engine/backend/cuda/kernels/device.h"
#include "engine/backend/cuda/kernels/functions.h"
#include "engine/backend/cuda/kernels/tandem_cuda.h"
#include "engine/backend/cuda/kernels/tile_order.h"

namespace tandem::cuda {

using MatMulParams = tandem_cuda_matmul_params;

// The grid of a kernel that strides over `count` tiles.
inline unsigned TileBlocks(int64_t count) {
  return static_cast<unsigned>(count < INT32_MAX ? count : INT32_MAX);
}

__host__ __device__ __forceinline__ int Clamp(int64_t value, int most) {
  return static_cast<int>(value < 0 ? 0 : value > most ? most : value);
}

// x as the separate operator would have left it in memory.
template <typename Out>
__device__ __forceinline__ float Rounded(float x) {
  return ToFloat(FromFloat<Out>(x));
}
template <typename T>
__device__ __forceinline__ float Rounded(const MatMulParams& p, float x) {
  return p.out_dtype == TANDEM_CUDA_F32 ? x : Rounded<T>(x);
}

__device__ __forceinline__ float Activate(int activation, float x) {
  switch (activation) {
    case TANDEM_CUDA_ACTIVATION_RELU:
      return Unary(TANDEM_CUDA_UNARY_Relu, x);
    case TANDEM_CUDA_ACTIVATION_SILU:
      return Unary(TANDEM_CUDA_UNARY_Silu, x);
    case TANDEM_CUDA_ACTIVATION_GELU:
      return Unary(TANDEM_CUDA_UNARY_Gelu, x);
    case TANDEM_CUDA_ACTIVATION_GELU_TANH:
      return Unary(TANDEM_CUDA_UNARY_GeluTanh, x);
    default:
      return x;
  }
}

// Of the sums of the two products.
template <typename T>
__device__ __forceinline__ float SwiGlu(const MatMulParams& p, float gate, float up) {
  const float g = Rounded<T>(p, gate);
  return g * Sigmoid(g) * Rounded<T>(p, up);
}

// N neighbours in memory, moved at once where that is aligned.
template <typename T, int N>
struct __align__(N * sizeof(T)) Vector {
  T v[N];

  __device__ __forceinline__ static bool Aligned(const T* p) {
    return reinterpret_cast<uintptr_t>(p) % sizeof(Vector) == 0;
  }
  // The first `count` of them.
  __device__ __forceinline__ void Read(const T* p, int count) {
    if (count == N && Aligned(p)) {
      *this = *reinterpret_cast<const Vector*>(p);
      return;
    }
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = j < count ? p[j] : T{};
  }
  __device__ __forceinline__ void Write(T * p, int count) const {
    if (count == N && Aligned(p)) {
      *reinterpret_cast<Vector*>(p) = *this;
      return;
    }
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (j < count) p[j] = v[j];
    }
  }
};

// Adds the residual and writes columns [column, column + count) of one row of one product, count <=
// N. `at` is the row's offset in out.
template <typename Out, int N>
__device__ __forceinline__ void StoreAs(const MatMulParams& p, int64_t at, int64_t column,
                                        int count, float (&x)[N]) {
  Vector<Out, N> out;
  if (p.residual != nullptr) {
    out.Read(static_cast<const Out*>(p.residual) + at + column, count);
#pragma unroll
    for (int j = 0; j < N; ++j) x[j] = Rounded<Out>(x[j]) + ToFloat(out.v[j]);
  }
#pragma unroll
  for (int j = 0; j < N; ++j) out.v[j] = FromFloat<Out>(x[j]);
  out.Write(static_cast<Out*>(p.out) + at + column, count);
}

// The same by out's type, which is T, the operands', or f32.
template <typename T, int N>
__device__ __forceinline__ void Store(const MatMulParams& p, int64_t at, int64_t column, int count,
                                      float (&x)[N]) {
  if constexpr (!std::is_same_v<T, float>) {
    if (p.out_dtype != TANDEM_CUDA_F32) return StoreAs<T, N>(p, at, column, count, x);
  }
  StoreAs<float, N>(p, at, column, count, x);
}

// The whole epilogue of the sums x (those of b2 already in them).
template <typename T, int N>
__device__ __forceinline__ void Finish(const MatMulParams& p, int64_t at, int64_t column, int count,
                                       float (&x)[N]) {
#pragma unroll
  for (int j = 0; j < N; ++j) {
    if (p.bias != nullptr && j < count) {
      x[j] = x[j] + ToFloat(static_cast<const T*>(p.bias)[column + j]);
    }
    if (p.activation != 0) x[j] = Activate(p.activation, Rounded<T>(p, x[j]));
  }
  Store<T, N>(p, at, column, count, x);
}

// The families of kernels, a file each. All take params that tandem_cuda_matmul has checked.
cudaError_t MatMulF32(const MatMulParams& p, int multiprocessors, cudaStream_t stream);
cudaError_t MatMulTf32(const MatMulParams& p, int multiprocessors, cudaStream_t stream);
cudaError_t MatMulMmaBf16(const MatMulParams& p, int multiprocessors, cudaStream_t stream);
cudaError_t MatMulMmaF16(const MatMulParams& p, int multiprocessors, cudaStream_t stream);
cudaError_t MatMulWgmmaBf16(const MatMulParams& p, int multiprocessors, cudaStream_t stream);
cudaError_t MatMulWgmmaF16(const MatMulParams& p, int multiprocessors, cudaStream_t stream);
cudaError_t MatMulPlain(const MatMulParams& p, cudaStream_t stream);

}  // namespace tandem::cuda

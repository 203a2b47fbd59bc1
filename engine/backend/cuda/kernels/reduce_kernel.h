// The kernels of every reduction, and their order (see reduce.h): a warp a chunk of contiguous
// elements, or threads side by side along the columns. Both give the same bits.
//
// R, the reduction, is passed by value:
//   Acc                         what is combined
//   Acc Identity()
//   Acc Load(offset, index)     the element at `offset` of x, the index-th of its reduction
//   void LoadFour(offset, index, Acc*)   four contiguous ones
//   Acc Combine(Acc, Acc)       the first comes before the second
//   Acc Exchange(Acc, mask)     that of lane ^ mask
//   void Store(position, Acc)
#pragma once

#include <cstdint>

#include "engine/backend/cuda/kernels/device.h"
#include "engine/backend/cuda/kernels/tandem_cuda.h"

namespace tandem::cuda {

inline constexpr int kPartials = 128, kReduceThreads = 256;
inline constexpr int64_t kReduceChunk = TANDEM_CUDA_REDUCE_CHUNK;

struct ReduceSizes {
  int64_t columns, inner, n, chunks;  // columns: outer x inner
};

// inner = 1: warp w does chunk w % chunks of row w / chunks.
template <typename R>
__global__ void __launch_bounds__(kReduceThreads) ReduceRowsKernel(const R r, ReduceSizes sizes) {
  using Acc = typename R::Acc;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t warps = sizes.columns * sizes.chunks, step = GridStride() / 32;
  for (int64_t warp = GridIndex() / 32; warp < warps; warp += step) {
    const int64_t row = warp / sizes.chunks * sizes.n, begin = warp % sizes.chunks * kReduceChunk;
    const int64_t end = begin + kReduceChunk < sizes.n ? begin + kReduceChunk : sizes.n;
    Acc partial[4] = {r.Identity(), r.Identity(), r.Identity(), r.Identity()};
    int64_t i = begin + 4 * lane;
#pragma unroll 4
    for (; i + 4 <= end; i += kPartials) {
      Acc x[4];
      r.LoadFour(row + i, i, x);
#pragma unroll
      for (int k = 0; k < 4; ++k) partial[k] = r.Combine(partial[k], x[k]);
    }
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      if (i + k < end) partial[k] = r.Combine(partial[k], r.Load(row + i + k, i + k));
    }
    Acc result = r.Combine(r.Combine(partial[0], partial[1]), r.Combine(partial[2], partial[3]));
#pragma unroll
    for (int mask = 1; mask < 32; mask *= 2) {
      result = r.Combine(result, r.Exchange(result, mask));
    }
    if (lane == 0) r.Store(warp, result);
  }
}

// Any inner: blockDim.x columns, of each the partial results [16 y, 16 y + 16) by thread y.
template <typename R>
__global__ void __launch_bounds__(kReduceThreads, 1)
    ReduceColumnsKernel(const R r, ReduceSizes sizes) {
  using Acc = typename R::Acc;
  constexpr int kOwn = 16;
  auto* const shared = reinterpret_cast<Acc*>(DynamicShared());  // (blockDim.y, blockDim.x)
  const int own = kOwn * static_cast<int>(threadIdx.y);
  const int64_t tiles = (sizes.columns + blockDim.x - 1) / blockDim.x;
  for (int64_t block = blockIdx.x; block < tiles * sizes.chunks; block += gridDim.x) {
    const int64_t chunk = block / tiles, begin = chunk * kReduceChunk;
    const int64_t end = begin + kReduceChunk < sizes.n ? begin + kReduceChunk : sizes.n;
    const int64_t column = block % tiles * blockDim.x + threadIdx.x;
    const bool inside = column < sizes.columns;
    const int64_t outer = column / sizes.inner, inner = column - outer * sizes.inner;
    const int64_t from = outer * sizes.n * sizes.inner + inner;
    Acc partial[kOwn];
#pragma unroll
    for (int k = 0; k < kOwn; ++k) partial[k] = r.Identity();
    for (int64_t i = begin + own; inside && i < end; i += kPartials) {
#pragma unroll
      for (int k = 0; k < kOwn; ++k) {
        if (i + k < end) {
          partial[k] = r.Combine(partial[k], r.Load(from + (i + k) * sizes.inner, i + k));
        }
      }
    }
#pragma unroll
    for (int width = 1; width < kOwn; width *= 2) {
#pragma unroll
      for (int k = 0; k < kOwn; k += 2 * width) {
        partial[k] = r.Combine(partial[k], partial[k + width]);
      }
    }
    // The tree goes on over the threads of a column.
    for (unsigned width = 1; width < blockDim.y; width *= 2) {
      shared[threadIdx.y * blockDim.x + threadIdx.x] = partial[0];
      __syncthreads();
      if (threadIdx.y % (2 * width) == 0) {
        partial[0] =
            r.Combine(partial[0], shared[(threadIdx.y + width) * blockDim.x + threadIdx.x]);
      }
      __syncthreads();
    }
    if (inside && threadIdx.y == 0) {
      r.Store((outer * sizes.chunks + chunk) * sizes.inner + inner, partial[0]);
    }
  }
}

template <typename R>
cudaError_t LaunchReduce(const R& r, int64_t outer, int64_t n, int64_t inner, cudaStream_t stream) {
  const int64_t chunks = n > kReduceChunk ? (n + kReduceChunk - 1) / kReduceChunk : 1;
  const ReduceSizes sizes = {outer * inner, inner, n, chunks};
  if (inner == 1 && n > 32) {
    return Launch(ReduceRowsKernel<R>, BlocksFor(outer * chunks, kReduceThreads / 32, 132 * 64),
                  kReduceThreads, 0, stream, r, sizes);
  }
  const unsigned y = n <= 16 ? 1 : n <= 32 ? 2 : n <= 64 ? 4 : 8;
  const unsigned x = kReduceThreads / y;
  const int64_t blocks = (sizes.columns + x - 1) / x * chunks;
  return Launch(ReduceColumnsKernel<R>, BlocksFor(blocks, 1, 132 * 64), dim3(x, y),
                sizeof(typename R::Acc) * kReduceThreads, stream, r, sizes);
}

// Reduces x into the chunks' results, and those again until one is left. first(results) and
// next(source, results) make the reductions; no results means the output.
template <typename Acc, typename First, typename Next>
cudaError_t ReduceInPasses(int64_t outer, int64_t n, int64_t inner, void* scratch,
                           cudaStream_t stream, const First& first, const Next& next) {
  if (outer * inner == 0) return cudaSuccess;
  if (n <= kReduceChunk) return LaunchReduce(first(nullptr), outer, n, inner, stream);
  auto* results = static_cast<Acc*>(scratch);
  cudaError_t error = LaunchReduce(first(results), outer, n, inner, stream);
  while (error == cudaSuccess) {
    n = (n + kReduceChunk - 1) / kReduceChunk;
    if (n <= kReduceChunk) return LaunchReduce(next(results, nullptr), outer, n, inner, stream);
    Acc* const more = results + outer * n * inner;
    error = LaunchReduce(next(results, more), outer, n, inner, stream);
    results = more;
  }
  return error;
}

}  // namespace tandem::cuda

// What the kernels over the rows of a (rows, cols) matrix share: 16-byte vectors of a row in
// registers, and sums and maxima over a row.
//
// A row is the work of blockDim.x threads, a power of two from 32 that cols and the element size
// alone fix; blockDim.y rows share a block. Thread t holds the vectors t, t + blockDim.x, ... of
// its row, whether or not memory lets it load them as vectors, and sums are trees over the threads:
// so a row's bits depend neither on the other rows nor on where the row lies.
#pragma once

#include <type_traits>

#include "engine/backend/cuda/kernels/device.h"
#include "engine/backend/cuda/kernels/tandem_cuda.h"

namespace tandem::cuda {

// Elements of a vector.
template <typename T>
inline constexpr int kVector = 16 / static_cast<int>(sizeof(T));

// Columns are counted in 32 bits.
inline constexpr int64_t kMaxColumns = int64_t{1} << 30;

struct RowGeometry {
  unsigned threads = 32;  // a row's
  unsigned rows = 1;      // a block's
  int vectors = 1;        // a thread's: 1, 2 or 4
  bool resident = true;   // these are the whole row
  dim3 block() const { return dim3(threads, rows); }
  // At most; the kernels step on from there.
  unsigned blocks(int64_t count) const { return BlocksFor(count, rows, int64_t{1} << 30); }
};

// How rows of `cols` elements, `vector` of them 16 bytes, are shared out: as few threads as hold
// the row in `most` (2 or 4) vectors each, and where max_threads do not, as many vectors at a time.
inline RowGeometry GeometryOf(int64_t cols, int vector, int most = 4, unsigned max_threads = 512) {
  RowGeometry g;
  while (g.threads < max_threads && int64_t{g.threads} * most * vector < cols) g.threads *= 2;
  const int64_t whole = int64_t{g.threads} * vector;
  while (g.vectors < most && g.vectors * whole < cols) g.vectors *= 2;
  g.resident = g.vectors * whole >= cols;
  g.rows = g.threads < 128 ? 128 / g.threads : 1;
  return g;
}

// All pointers and the rows' starts fall on 16 bytes: rows can be moved as vectors.
template <typename... Pointers>
bool RowsAligned(int64_t row_bytes, Pointers... pointers) {
  return ((static_cast<uintptr_t>(row_bytes) | ... | reinterpret_cast<uintptr_t>(pointers)) & 15) ==
         0;
}

// f(T()) for the dtype's type; TANDEM_CUDA_UNSUPPORTED where it is no 16- or 32-bit float.
template <typename F>
int WithFloat(int dtype, F f) {
  switch (dtype) {
    case TANDEM_CUDA_F32:
      return f(float());
    case TANDEM_CUDA_BF16:
      return f(Bf16());
    case TANDEM_CUDA_F16:
      return f(F16());
    default:
      return TANDEM_CUDA_UNSUPPORTED;
  }
}

// f(vectors, resident, aligned) as integral constants. Rows that cannot be moved as vectors go one
// vector at a time: the same vectors in the same order.
template <typename F>
int WithGeometry(const RowGeometry& g, bool aligned, F f) {
  using std::false_type, std::integral_constant, std::true_type;
  if (!aligned) return f(integral_constant<int, 1>(), false_type(), false_type());
  if (!g.resident) return f(integral_constant<int, 4>(), false_type(), true_type());
  if (g.vectors == 1) return f(integral_constant<int, 1>(), true_type(), true_type());
  if (g.vectors == 2) return f(integral_constant<int, 2>(), true_type(), true_type());
  return f(integral_constant<int, 4>(), true_type(), true_type());
}

// --- Vectors ------------------------------------------------------------------------------------

__device__ __forceinline__ unsigned Word(const uint4& w, int i) {
  return i == 0 ? w.x : i == 1 ? w.y : i == 2 ? w.z : w.w;
}

// Element i of a vector; i is a constant once loops are unrolled.
template <typename T>
__device__ __forceinline__ float Element(const uint4& w, int i) {
  if constexpr (sizeof(T) == 4) {
    return __uint_as_float(Word(w, i));
  } else {
    return ToFloat(T{static_cast<uint16_t>(Word(w, i / 2) >> (16 * (i & 1)))});
  }
}

template <typename T>
__device__ __forceinline__ uint4 PackVector(const float (&v)[kVector<T>]) {
  unsigned words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      words[i] = __float_as_uint(v[i]);
    } else {
      words[i] = FromFloat<T>(v[2 * i]).bits |
                 static_cast<unsigned>(FromFloat<T>(v[2 * i + 1]).bits) << 16;
    }
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

template <typename T>
__device__ __forceinline__ uint4 FillVector(float fill) {
  float v[kVector<T>];
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j) v[j] = fill;
  return PackVector<T>(v);
}

// A vector element by element, `fill` past `count`.
template <typename T>
__device__ __forceinline__ uint4 LoadPart(const T* p, int count, float fill) {
  float v[kVector<T>];
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j) v[j] = j < count ? ToFloat(p[j]) : fill;
  return PackVector<T>(v);
}
template <typename T>
__device__ __forceinline__ void StorePart(const uint4& w, T* p, int count) {
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j) {
    if (j < count) p[j] = FromFloat<T>(Element<T>(w, j));
  }
}

// The first element of the thread's vector i of those from `at` on.
template <typename T>
__device__ __forceinline__ int VectorStart(int at, int i) {
  return at + (i * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * kVector<T>;
}
// Elements from `at` to the end of the row.
__device__ __forceinline__ int Remaining(int at, int cols) { return cols > at ? cols - at : 0; }

// The thread's N vectors of a row from element `at` on; `fill` past the end. A row that does not
// exist has no columns.
template <typename T, bool kAligned, int N>
__device__ __forceinline__ void LoadRow(const T* row, int at, int cols, float fill,
                                        uint4 (&out)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int start = VectorStart<T>(at, i);
    if constexpr (kAligned) {
      out[i] = FillVector<T>(fill);
      if (start < cols) out[i] = *reinterpret_cast<const uint4*>(row + start);
    } else {
      out[i] = LoadPart(row + start, Remaining(start, cols), fill);
    }
  }
}

template <typename T, bool kAligned>
__device__ __forceinline__ void StoreVector(const float (&v)[kVector<T>], T* row, int start,
                                            int cols) {
  const uint4 w = PackVector<T>(v);
  if constexpr (kAligned) {
    if (start < cols) *reinterpret_cast<uint4*>(row + start) = w;
  } else {
    StorePart(w, row + start, Remaining(start, cols));
  }
}

// --- Over a row ---------------------------------------------------------------------------------

// Sums and maxima over the blockDim.x threads of each row of the block; every thread of the row
// gets the result. All threads of the block must call alike.
class RowReducer {
 public:
  template <int K>
  __device__ __forceinline__ void Sum(float (&v)[K]) {
    Reduce(v, 0.0f, [](float a, float b) { return a + b; });
  }
  __device__ __forceinline__ float Sum(float v) {
    float one[1] = {v};
    Sum(one);
    return one[0];
  }
  // Of the numbers; a NaN is passed over.
  __device__ __forceinline__ float Max(float v) {
    float one[1] = {v};
    Reduce(one, -INFINITY, [](float a, float b) { return fmaxf(a, b); });
    return one[0];
  }

 private:
  template <int K, typename Combine>
  __device__ __forceinline__ void Reduce(float (&v)[K], float identity, Combine combine) {
    __shared__ float partial[2][2][32];
    static_assert(K <= 2);
    Warp(v, combine);
    const int warps = static_cast<int>(blockDim.x) / 32;
    if (warps == 1) return;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int first = static_cast<int>(threadIdx.y) * warps;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (lane == 0) partial[phase_][k][first + static_cast<int>(threadIdx.x) / 32] = v[k];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < K; ++k) v[k] = lane < warps ? partial[phase_][k][first + lane] : identity;
    Warp(v, combine);
    // The other half next: a warp may still be reading this one.
    phase_ ^= 1;
  }
  template <int K, typename Combine>
  __device__ __forceinline__ static void Warp(float (&v)[K], Combine combine) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
#pragma unroll
      for (int k = 0; k < K; ++k) v[k] = combine(v[k], __shfl_xor_sync(kFullWarp, v[k], mask));
    }
  }

  int phase_ = 0;
};

}  // namespace tandem::cuda

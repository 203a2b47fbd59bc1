// f32 without tensor cores: one chain of fused multiply-adds an element, in the order of k.
#include "engine/backend/cuda/kernels/matmul_tiles.h"

namespace tandem::cuda {
namespace {

constexpr int kStep = 16;  // of k, in shared memory at once
constexpr int kThreads = 256;

// Four elements of which the first `count` are there; the rest 0.
__device__ __forceinline__ float4 LoadFour(const float* p, int64_t count, bool aligned) {
  if (aligned && count >= 4) return *reinterpret_cast<const float4*>(p);
  return make_float4(count > 0 ? p[0] : 0.0f, count > 1 ? p[1] : 0.0f, count > 2 ? p[2] : 0.0f,
                     count > 3 ? p[3] : 0.0f);
}

// Moves tiles (kStep, kWidth) of one operand from global memory through registers to shared memory,
// rows of kWidth + kPad. kWidth counts rows of a or columns of b: "lines", of which the matrix has
// `lines`. Stored (lines, k) where along_k, else (k, lines).
template <int kWidth>
struct TileLoader {
  static constexpr int kPad = 4, kRow = kWidth + kPad;
  static constexpr int kFours = kWidth * kStep / 4;
  static constexpr int kEach = (kFours + kThreads - 1) / kThreads;

  const float* base;
  int64_t ld, lines, k;
  bool along_k, aligned;
  float4 held[kEach];

  __device__ __forceinline__ void Load(int64_t k0) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int four = static_cast<int>(threadIdx.x) + i * kThreads;
      if (kFours % kThreads != 0 && four >= kFours) break;
      if (along_k) {
        const int line = four / (kStep / 4);
        const int64_t at = k0 + four % (kStep / 4) * 4;
        held[i] = LoadFour(base + line * ld + at, line < lines ? k - at : 0, aligned);
      } else {
        const int line = four % (kWidth / 4) * 4;
        const int64_t at = k0 + four / (kWidth / 4);
        held[i] = LoadFour(base + at * ld + line, at < k ? lines - line : 0, aligned);
      }
    }
  }

  __device__ __forceinline__ void Store(float* tile) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int four = static_cast<int>(threadIdx.x) + i * kThreads;
      if (kFours % kThreads != 0 && four >= kFours) break;
      if (along_k) {
        float* to = tile + four % (kStep / 4) * 4 * kRow + four / (kStep / 4);
        to[0] = held[i].x;
        to[kRow] = held[i].y;
        to[2 * kRow] = held[i].z;
        to[3 * kRow] = held[i].w;
      } else {
        float* to = tile + four / (kWidth / 4) * kRow + four % (kWidth / 4) * 4;
        *reinterpret_cast<float4*>(to) = held[i];
      }
    }
  }
};

__device__ __forceinline__ bool Aligned(const float* p, int64_t ld) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && ld % 4 == 0;
}

// A thread's kCount lines of the kWidth of a tile: groups of up to four neighbours, so that shared
// memory is read in wide words without bank conflicts.
template <int kWidth, int kCount>
struct Lines {
  static constexpr int kVector = kCount < 4 ? kCount : 4, kGroups = kCount / kVector;
  static constexpr int kThreadsAcross = kWidth / kCount;
  __device__ __forceinline__ static int At(int thread, int i) {
    return i / kVector * (kWidth / kGroups) + thread * kVector + i % kVector;
  }
  __device__ __forceinline__ static void Read(const float* row, int thread, float (&to)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; i += kVector) {
      const float* from = row + At(thread, i);
      if constexpr (kVector == 4) {
        const float4 v = *reinterpret_cast<const float4*>(from);
        to[i] = v.x;
        to[i + 1] = v.y;
        to[i + 2] = v.z;
        to[i + 3] = v.w;
      } else {
#pragma unroll
        for (int j = 0; j < kVector; ++j) to[i + j] = from[j];
      }
    }
  }
};

// kM x kN of out a block, kRows x kColumns a thread.
template <int kM, int kN, int kRows, int kColumns, bool kDual>
struct F32Tile {
  using RowLines = Lines<kM, kRows>;
  using ColumnLines = Lines<kN, kColumns>;
  static_assert(RowLines::kThreadsAcross * ColumnLines::kThreadsAcross == kThreads);
  static constexpr int kProducts = kDual ? 2 : 1;
  static constexpr int kFloatsA = kStep * TileLoader<kM>::kRow;
  static constexpr int kFloatsB = kStep * TileLoader<kN>::kRow;
  static constexpr int kFloats = kFloatsA + kProducts * kFloatsB;  // one of two buffers
  static constexpr size_t kSharedBytes = 2 * kFloats * sizeof(float);

  float sums[kProducts][kRows][kColumns];

  __device__ __forceinline__ void Step(const float* shared, int row, int column, int at) {
    float a[kRows], b[kColumns];
    RowLines::Read(shared + at * TileLoader<kM>::kRow, row, a);
#pragma unroll
    for (int product = 0; product < kProducts; ++product) {
      ColumnLines::Read(shared + kFloatsA + product * kFloatsB + at * TileLoader<kN>::kRow, column,
                        b);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          sums[product][i][j] = __fmaf_rn(a[i], b[j], sums[product][i][j]);
        }
      }
    }
  }

  __device__ __forceinline__ void Run(const MatMulParams& p, const TileOrder::Place& place) {
    auto* shared = reinterpret_cast<float*>(DynamicShared());
    const int64_t m0 = place.row * kM, n0 = place.column * kN;
    const float* a = static_cast<const float*>(p.a) + place.batch * p.a_stride +
                     (p.transpose_a ? m0 : m0 * p.lda);
    const int64_t b_at = place.batch * p.b_stride + (p.transpose_b ? n0 * p.ldb : n0);
    const float* b = static_cast<const float*>(p.b) + b_at;
    TileLoader<kM> load_a{a, p.lda, p.m - m0, p.k, p.transpose_a == 0, Aligned(a, p.lda), {}};
    TileLoader<kN> load_b{b, p.ldb, p.n - n0, p.k, p.transpose_b != 0, Aligned(b, p.ldb), {}};
    TileLoader<kN> load_b2 = load_b;
    if constexpr (kDual) {
      load_b2.base = static_cast<const float*>(p.b2) + b_at;
      load_b2.aligned = Aligned(load_b2.base, p.ldb);
    }
    const int thread = static_cast<int>(threadIdx.x);
    const int row = thread / ColumnLines::kThreadsAcross;
    const int column = thread % ColumnLines::kThreadsAcross;
#pragma unroll
    for (int product = 0; product < kProducts; ++product) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) sums[product][i][j] = 0.0f;
      }
    }

    const auto load = [&](int64_t k0) {
      load_a.Load(k0);
      load_b.Load(k0);
      if constexpr (kDual) load_b2.Load(k0);
    };
    const auto store = [&](float* to) {
      load_a.Store(to);
      load_b.Store(to + kFloatsA);
      if constexpr (kDual) load_b2.Store(to + kFloatsA + kFloatsB);
    };
    if (p.k > 0) load(0);
    int buffer = 0;
    for (int64_t k0 = 0; k0 < p.k; k0 += kStep, buffer ^= 1) {
      float* const tile = shared + buffer * kFloats;
      store(tile);
      // One barrier a step: who stores into a buffer again has passed the barrier after its use.
      __syncthreads();
      if (k0 + kStep < p.k) load(k0 + kStep);
      if (p.k - k0 >= kStep) {
#pragma unroll
        for (int at = 0; at < kStep; ++at) Step(tile, row, column, at);
      } else {
        // Not with zeros up to kStep: they would turn a sum of -0 into +0.
        const int rest = static_cast<int>(p.k - k0);
        for (int at = 0; at < rest; ++at) Step(tile, row, column, at);
      }
    }

#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int64_t m = m0 + RowLines::At(row, i);
      if (m >= p.m) continue;
      const int64_t at = place.batch * p.out_stride + m * p.ld_out;
#pragma unroll
      for (int j = 0; j < kColumns; j += ColumnLines::kVector) {
        constexpr int kVector = ColumnLines::kVector;
        float x[kVector];
#pragma unroll
        for (int l = 0; l < kVector; ++l) {
          x[l] = sums[0][i][j + l];
          if constexpr (kDual) x[l] = SwiGlu<float>(p, x[l], sums[1][i][j + l]);
        }
        const int64_t n = n0 + ColumnLines::At(column, j);
        Finish<float, kVector>(p, at, n, Clamp(p.n - n, kVector), x);
      }
    }
    __syncthreads();  // the next tile stores into the first buffer
  }
};

template <int kM, int kN, int kRows, int kColumns, bool kDual>
__global__ void __launch_bounds__(kThreads, 1) F32Kernel(const MatMulParams p) {
  const TileOrder order(p.m, p.n, p.batch, kM, kN);
  for (int64_t i = blockIdx.x; i < order.Count(); i += gridDim.x) {
    F32Tile<kM, kN, kRows, kColumns, kDual> tile;
    tile.Run(p, order.At(i));
  }
}

template <int kM, int kN, int kRows, int kColumns, bool kDual>
cudaError_t LaunchF32(const MatMulParams& p, cudaStream_t stream) {
  const TileOrder order(p.m, p.n, p.batch, kM, kN);
  return Launch(F32Kernel<kM, kN, kRows, kColumns, kDual>, TileBlocks(order.Count()), kThreads,
                F32Tile<kM, kN, kRows, kColumns, kDual>::kSharedBytes, stream, p);
}

template <typename T>
__global__ void PlainKernel(const MatMulParams p) {
  const int64_t count = p.batch * p.m * p.n;
  for (int64_t i = GridIndex(); i < count; i += GridStride()) {
    const int64_t column = i % p.n, row = i / p.n % p.m, product = i / p.n / p.m;
    const T* a = static_cast<const T*>(p.a) + product * p.a_stride;
    const T* b = static_cast<const T*>(p.b) + product * p.b_stride;
    T sum = 0;
    for (int64_t l = 0; l < p.k; ++l) {
      const T x = a[p.transpose_a ? l * p.lda + row : row * p.lda + l];
      const T y = b[p.transpose_b ? column * p.ldb + l : l * p.ldb + column];
      sum += x * y;
    }
    if (p.bias != nullptr) sum += static_cast<const T*>(p.bias)[column];
    static_cast<T*>(p.out)[product * p.out_stride + row * p.ld_out + column] = sum;
  }
}

template <typename T>
cudaError_t LaunchPlain(const MatMulParams& p, cudaStream_t stream) {
  return Launch(PlainKernel<T>, BlocksFor(p.batch * p.m * p.n, 256), 256, 0, stream, p);
}

}  // namespace

cudaError_t MatMulF32(const MatMulParams& p, int multiprocessors, cudaStream_t stream) {
  if (p.b2 != nullptr) {
    return p.m <= 8 ? LaunchF32<8, 128, 1, 4, true>(p, stream)
                    : LaunchF32<64, 64, 4, 4, true>(p, stream);
  }
  if (p.m <= 8) return LaunchF32<8, 128, 1, 4, false>(p, stream);
  if (TileOrder(p.m, p.n, p.batch, 128, 128).Count() < multiprocessors) {
    return LaunchF32<64, 64, 4, 4, false>(p, stream);
  }
  return LaunchF32<128, 128, 8, 8, false>(p, stream);
}

cudaError_t MatMulPlain(const MatMulParams& p, cudaStream_t stream) {
  // Signed integers wrap as unsigned ones do.
  switch (p.dtype) {
    case TANDEM_CUDA_F64:
      return LaunchPlain<double>(p, stream);
    case TANDEM_CUDA_I32:
    case TANDEM_CUDA_U32:
      return LaunchPlain<uint32_t>(p, stream);
    case TANDEM_CUDA_I64:
    case TANDEM_CUDA_U64:
      return LaunchPlain<uint64_t>(p, stream);
    default:
      return static_cast<cudaError_t>(TANDEM_CUDA_UNSUPPORTED);
  }
}

}  // namespace tandem::cuda

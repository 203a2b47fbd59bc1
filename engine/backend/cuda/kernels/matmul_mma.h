// The matrix product by mma.sync: cp.async into a ring of swizzled tiles, ldmatrix, mma m16n8k16
// (bf16, f16) or m16n8k8 (f32 as tf32).
//
// The 16-bit types on devices other than sm_90, and tf32 on all. Included by one file a type, which
// instantiates it. Every tile shape takes k in the same steps.
#pragma once

#include "engine/backend/cuda/kernels/matmul_tiles.h"
#include "engine/backend/cuda/kernels/ptx.h"

namespace tandem::cuda {

// Whether this compilation has the kernels of T: sm_90a's own of 16 bits are in matmul_wgmma.h.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
template <typename T>
inline constexpr bool kHasMma = sizeof(T) == 4;
#else
template <typename T>
inline constexpr bool kHasMma = true;
#endif

// One operand's tile in shared memory, kWidth "lines" (rows of a, columns of b) by kDepth of k,
// stored as in global memory: rows along k, or (kMajorLines) rows along the lines. 16-byte chunks
// of a row are swizzled so that the eight rows of an ldmatrix lie in eight different bank groups.
template <typename T, int kWidth, int kDepth, bool kMajorLines>
struct MmaTile {
  static constexpr int kChunk = 16 / sizeof(T);  // elements
  static constexpr int kMmaDepth = 2 * kChunk;   // of k, an mma
  static constexpr int kRows = kMajorLines ? kDepth : kWidth;
  static constexpr int kRowChunks = (kMajorLines ? kWidth : kDepth) / kChunk;
  static constexpr int kElements = kWidth * kDepth;
  static_assert(kRowChunks == 2 || kRowChunks == 4 || kRowChunks % 8 == 0);

  // Element offset of a chunk.
  __device__ __forceinline__ static int At(int row, int chunk) {
    const int swizzle = kRowChunks % 8 == 0 ? row & 7
                        : kRowChunks == 4   ? row >> 1 & 3
                                            : row >> 2 & 1;
    return (row * kRowChunks + (chunk ^ swizzle)) * kChunk;
  }

  // Starts loading k0 .. k0 + kDepth of the lines at `base` (k = 0 there), of which `lines` and k
  // exist; the rest is 0. Not aligned: it is there at the next barrier all the same.
  template <int kThreads>
  __device__ __forceinline__ static void Load(T* tile, const T* base, int64_t ld, int64_t lines,
                                              int64_t k, int64_t k0, bool aligned) {
    constexpr int kChunks = kRows * kRowChunks;
#pragma unroll
    for (int i = 0; i < (kChunks + kThreads - 1) / kThreads; ++i) {
      const int index = static_cast<int>(threadIdx.x) + i * kThreads;
      if (kChunks % kThreads != 0 && index >= kChunks) break;
      const int row = index / kRowChunks, chunk = index % kRowChunks;
      const int64_t line = kMajorLines ? chunk * kChunk : row;
      const int64_t at = k0 + (kMajorLines ? row : chunk * kChunk);
      int valid = 0;
      if constexpr (kMajorLines) {
        valid = at < k ? Clamp(lines - line, kChunk) : 0;
      } else {
        valid = line < lines ? Clamp(k - at, kChunk) : 0;
      }
      const T* from = valid == 0 ? base : base + (kMajorLines ? at * ld + line : line * ld + at);
      T* const to = tile + At(row, chunk);
      if (aligned) {
        CopyAsync16(to, from, static_cast<int>(sizeof(T)) * valid);
      } else {
        for (int j = 0; j < kChunk; ++j) to[j] = j < valid ? from[j] : T{};
      }
    }
  }

  // Lines [line, line + 16) by k [k, k + kMmaDepth) of the tile, the halves of k called low and
  // high: r[0] = (lines 0-7, low), r[1] = (8-15, low), r[2] = (0-7, high), r[3] = (8-15, high): an
  // a operand, or two b operands {r[0], r[2]} and {r[1], r[3]}.
  __device__ __forceinline__ static void Fragment(unsigned (&r)[4], const T* tile, int line, int k,
                                                  int lane) {
    const int high_line = (lane & 8) != 0 ? 1 : 0, high_k = lane >> 4, row = lane & 7;
    if constexpr (!kMajorLines) {
      LoadMatrix4(r, tile + At(line + high_line * 8 + row, k / kChunk + high_k));
    } else if constexpr (sizeof(T) == 2) {
      LoadMatrix4Transposed(r, tile + At(k + high_k * 8 + row, line / 8 + high_line));
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = line + i % 2 * 8 + lane / 4;
        r[i] = __float_as_uint(tile[At(k + i / 2 * 4 + lane % 4, at / kChunk) + at % kChunk]);
      }
    }
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < 4; ++i) r[i] = ToTf32(__uint_as_float(r[i]));
    }
  }
};

template <typename T>
__device__ __forceinline__ void Mma(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                    unsigned b1) {
  if constexpr (sizeof(T) == 4) {
    Mma1688Tf32(c, a, b0, b1);
  } else {
    Mma16816<T>(c, a, b0, b1);
  }
}

// A block's tile kM x kN, of which a warp has kWarpM x kWarpN.
template <int kTileM, int kTileN, int kTileWarpM, int kTileWarpN, int kTileStages, bool kTileDual>
struct MmaShape {
  static constexpr int kM = kTileM, kN = kTileN, kWarpM = kTileWarpM, kWarpN = kTileWarpN;
  static constexpr int kStages = kTileStages;
  static constexpr bool kDual = kTileDual;
  static constexpr int kDepthBytes = 64;  // of k, a stage
  static constexpr int kWarpsAcross = kN / kWarpN;
  static constexpr int kThreads = kM / kWarpM * kWarpsAcross * 32;
  static constexpr int kProducts = kDual ? 2 : 1;
  static constexpr int kStageBytes = (kM + kProducts * kN) * kDepthBytes;
  static constexpr size_t kSharedBytes = size_t{kStages} * kStageBytes;
  static_assert(kWarpM % 16 == 0 && kWarpN % 16 == 0);
};

template <typename T, typename S, bool kTransposeA, bool kTransposeB>
__device__ __forceinline__ void MmaProduct(const MatMulParams& p) {
  constexpr int kDepth = S::kDepthBytes / sizeof(T);
  constexpr int kStageElements = S::kStageBytes / sizeof(T);
  using TileA = MmaTile<T, S::kM, kDepth, kTransposeA>;
  using TileB = MmaTile<T, S::kN, kDepth, !kTransposeB>;
  constexpr int kProducts = S::kProducts, kFragmentsM = S::kWarpM / 16,
                kFragmentsN = S::kWarpN / 16;
  T* const shared = reinterpret_cast<T*>(DynamicShared());
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int warp_m = warp / S::kWarpsAcross * S::kWarpM;
  const int warp_n = warp % S::kWarpsAcross * S::kWarpN;
  const auto aligned = [](const void* base, int64_t ld, int64_t stride) {
    return reinterpret_cast<uintptr_t>(base) % 16 == 0 && ld % TileA::kChunk == 0 &&
           stride % TileA::kChunk == 0;
  };
  const bool aligned_a = aligned(p.a, p.lda, p.a_stride);
  const bool aligned_b = aligned(p.b, p.ldb, p.b_stride) && (!S::kDual || aligned(p.b2, 0, 0));
  const int64_t steps = (p.k + kDepth - 1) / kDepth;

  const TileOrder order(p.m, p.n, p.batch, S::kM, S::kN);
  for (int64_t index = blockIdx.x; index < order.Count(); index += gridDim.x) {
    const TileOrder::Place place = order.At(index);
    const int64_t m0 = place.row * S::kM, n0 = place.column * S::kN;
    const T* const a =
        static_cast<const T*>(p.a) + place.batch * p.a_stride + (kTransposeA ? m0 : m0 * p.lda);
    const int64_t b_at = place.batch * p.b_stride + (kTransposeB ? n0 * p.ldb : n0);
    const auto load = [&](int64_t step) {
      T* const stage = shared + step % S::kStages * kStageElements;
      const int64_t k0 = step * kDepth;
      TileA::template Load<S::kThreads>(stage, a, p.lda, p.m - m0, p.k, k0, aligned_a);
#pragma unroll
      for (int product = 0; product < kProducts; ++product) {
        const T* const b = static_cast<const T*>(product == 0 ? p.b : p.b2) + b_at;
        TileB::template Load<S::kThreads>(stage + TileA::kElements + product * TileB::kElements, b,
                                          p.ldb, p.n - n0, p.k, k0, aligned_b);
      }
    };

    float sums[kProducts][kFragmentsM][2 * kFragmentsN][4];
#pragma unroll
    for (int product = 0; product < kProducts; ++product) {
#pragma unroll
      for (int i = 0; i < kFragmentsM; ++i) {
#pragma unroll
        for (int j = 0; j < 2 * kFragmentsN; ++j) {
#pragma unroll
          for (int l = 0; l < 4; ++l) sums[product][i][j][l] = 0.0f;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < S::kStages - 1; ++i) {
      if (i < steps) load(i);
      CommitCopies();
    }
    for (int64_t step = 0; step < steps; ++step) {
      WaitCopies<S::kStages - 2>();
      // This step's tiles are there for all, and nobody still reads the stage that is loaded next.
      __syncthreads();
      if (step + S::kStages - 1 < steps) load(step + S::kStages - 1);
      CommitCopies();
      const T* const stage = shared + step % S::kStages * kStageElements;
#pragma unroll
      for (int k = 0; k < kDepth; k += TileA::kMmaDepth) {
        unsigned fragments_a[kFragmentsM][4];
#pragma unroll
        for (int i = 0; i < kFragmentsM; ++i) {
          TileA::Fragment(fragments_a[i], stage, warp_m + i * 16, k, lane);
        }
#pragma unroll
        for (int product = 0; product < kProducts; ++product) {
#pragma unroll
          for (int j = 0; j < kFragmentsN; ++j) {
            unsigned b[4];
            TileB::Fragment(b, stage + TileA::kElements + product * TileB::kElements,
                            warp_n + j * 16, k, lane);
#pragma unroll
            for (int i = 0; i < kFragmentsM; ++i) {
              Mma<T>(sums[product][i][2 * j], fragments_a[i], b[0], b[2]);
              Mma<T>(sums[product][i][2 * j + 1], fragments_a[i], b[1], b[3]);
            }
          }
        }
      }
    }
    WaitCopies<0>();
    __syncthreads();  // the next tile loads into the stages

#pragma unroll
    for (int i = 0; i < kFragmentsM; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t m = m0 + warp_m + i * 16 + half * 8 + lane / 4;
        if (m >= p.m) continue;
        const int64_t at = place.batch * p.out_stride + m * p.ld_out;
#pragma unroll
        for (int j = 0; j < 2 * kFragmentsN; ++j) {
          const int64_t n = n0 + warp_n + j * 8 + lane % 4 * 2;
          float x[2] = {sums[0][i][j][2 * half], sums[0][i][j][2 * half + 1]};
          if constexpr (S::kDual) {
            x[0] = SwiGlu<T>(p, x[0], sums[1][i][j][2 * half]);
            x[1] = SwiGlu<T>(p, x[1], sums[1][i][j][2 * half + 1]);
          }
          Finish<T, 2>(p, at, n, Clamp(p.n - n, 2), x);
        }
      }
    }
  }
}

template <typename T, typename S, bool kTransposeA, bool kTransposeB>
__global__ void __launch_bounds__(S::kThreads, 1) MmaKernel(const MatMulParams p) {
  if constexpr (kHasMma<T>) MmaProduct<T, S, kTransposeA, kTransposeB>(p);
}

template <typename T, typename S>
cudaError_t LaunchMma(const MatMulParams& p, cudaStream_t stream) {
  const unsigned blocks = TileBlocks(TileOrder(p.m, p.n, p.batch, S::kM, S::kN).Count());
  const auto launch = [&](void (*kernel)(MatMulParams)) {
    return Launch(kernel, blocks, S::kThreads, S::kSharedBytes, stream, p);
  };
  if constexpr (!S::kDual) {
    if (p.transpose_a != 0) {
      return p.transpose_b != 0 ? launch(MmaKernel<T, S, true, true>)
                                : launch(MmaKernel<T, S, true, false>);
    }
  }
  return p.transpose_b != 0 ? launch(MmaKernel<T, S, false, true>)
                            : launch(MmaKernel<T, S, false, false>);
}

// The tile by the sizes; no choice changes the arithmetic of an element.
template <typename T>
cudaError_t MatMulMma(const MatMulParams& p, int multiprocessors, cudaStream_t stream) {
  using Large = MmaShape<128, 128, 64, 32, 4, false>;
  using Small = MmaShape<64, 64, 32, 32, 4, false>;
  using Flat = MmaShape<16, 128, 16, 32, 6, false>;
  if (p.b2 != nullptr) return LaunchMma<T, MmaShape<64, 64, 32, 32, 4, true>>(p, stream);
  if (p.m <= 16) return LaunchMma<T, Flat>(p, stream);
  if (TileOrder(p.m, p.n, p.batch, Large::kM, Large::kN).Count() < multiprocessors) {
    return LaunchMma<T, Small>(p, stream);
  }
  return LaunchMma<T, Large>(p, stream);
}

}  // namespace tandem::cuda

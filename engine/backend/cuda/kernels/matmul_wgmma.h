// The matrix product of sm_90: TMA into a ring of swizzled tiles, wgmma m64nNk16, persistent
// blocks.
//
// One warpgroup loads, the others multiply: 64 rows of the tile each, all its columns. The loader
// runs ahead into the next tile while the others are in the epilogue. Operands that the copy engine
// cannot read (pointers, leading dimensions or strides that are no multiples of 16 bytes) are
// copied by the loader's threads into the same places: the same products follow, so neither
// alignment nor the tile's shape changes a bit. Included by one file a type.
#pragma once

#include "engine/backend/cuda/kernels/hopper.h"
#include "engine/backend/cuda/kernels/matmul_tiles.h"

namespace tandem::cuda {

inline constexpr int kWgmmaDepth = 64;       // of k, a stage: a row of 128 bytes
inline constexpr int kAtomBytes = 64 * 128;  // 64 rows of 128 bytes

// A block's tile: kTileConsumers * 64 by kTileN, for one or (SwiGLU) two products.
template <int kTileConsumers, int kTileN, int kTileStages, bool kTileDual>
struct WgmmaShape {
  static constexpr int kConsumers = kTileConsumers, kM = 64 * kConsumers, kN = kTileN;
  static constexpr int kStages = kTileStages;
  static constexpr bool kDual = kTileDual;
  static constexpr int kProducts = kDual ? 2 : 1;
  static constexpr int kThreads = 128 * (1 + kConsumers);
  static constexpr int kBytesA = kM * 128, kBytesB = kN * 128;
  static constexpr int kStageBytes = kBytesA + kProducts * kBytesB;
  // A warp's 16 rows by 64 columns of f32, for the epilogue.
  static constexpr int kStagingBytes = 16 * 64 * 4;
  static constexpr int kStagingAt = kStages * kStageBytes;
  static constexpr int kBarriersAt = kStagingAt + 4 * kConsumers * kStagingBytes;
  static constexpr size_t kSharedBytes = kBarriersAt + 2 * kStages * sizeof(uint64_t);
  // Two consumers leave no more registers than this.
  static constexpr bool kMovesRegisters = kConsumers == 2;
  // Registers of the loader's threads and of the consumers', [1] where the copy engine loads. They
  // must come from what the launch was given, 168 a thread of three warpgroups: setmaxnreg waits
  // for ever for more.
  static constexpr int kLoader[2] = {56, 40}, kConsumer[2] = {224, 232};
  static_assert(kLoader[0] + 2 * kConsumer[0] <= 3 * 168 &&
                kLoader[1] + 2 * kConsumer[1] <= 3 * 168);
  static_assert(kN % 64 == 0 && kN <= 256 && kSharedBytes <= (227 << 10));
};

// Places of one operand's elements; lines are rows of a or columns of b. kK: stored (lines, k).
template <typename T, int kLines, Major kMajor>
struct WgmmaOperand {
  // Boxes of a stage's tile: along k all lines at once, else 64 of them each.
  static constexpr int kBoxes = kMajor == Major::kK ? 1 : kLines / 64;

  // The byte, in the tile, of 8 neighbours along the rows: chunk `chunk` of row `row`.
  __device__ __forceinline__ static int At(int row, int chunk) {
    if constexpr (kMajor == Major::kK) return row * 128 + ((chunk ^ (row & 7)) << 4);
    return chunk / 8 * kAtomBytes + row * 128 + (((chunk ^ row) & 7) << 4);
  }

  __device__ __forceinline__ static void LoadTma(char* tile, const CUtensorMap* map,
                                                 uint64_t* barrier, int line, int k, int product) {
    if constexpr (kMajor == Major::kK) {
      TmaLoad(tile, map, barrier, k, line, product);
    } else {
#pragma unroll
      for (int i = 0; i < kBoxes; ++i) {
        TmaLoad(tile + i * kAtomBytes, map, barrier, line + 64 * i, k, product);
      }
    }
  }

  // By 128 threads. `base` is of line 0 of the tile, k = 0; `lines` and k exist.
  __device__ __forceinline__ static void LoadElements(char* tile, const T* base, int64_t ld,
                                                      int64_t lines, int64_t k, int64_t k0,
                                                      int thread) {
    constexpr int kRowChunks = kMajor == Major::kK ? kWgmmaDepth / 8 : kLines / 8;
#pragma unroll 1
    for (int index = thread; index < kLines * (kWgmmaDepth / 8); index += 128) {
      const int row = index / kRowChunks, chunk = index % kRowChunks;
      const int64_t line = kMajor == Major::kK ? row : chunk * 8;
      const int64_t at = k0 + (kMajor == Major::kK ? chunk * 8 : row);
      const bool inside = line < lines && at < k;
      const int valid = !inside               ? 0
                        : kMajor == Major::kK ? Clamp(k - at, 8)
                                              : Clamp(lines - line, 8);
      const T* from = base + (kMajor == Major::kK ? line * ld + at : at * ld + line);
      uint32_t words[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t low = 2 * j < valid ? from[2 * j].bits : 0u;
        const uint32_t high = 2 * j + 1 < valid ? from[2 * j + 1].bits : 0u;
        words[j] = low | high << 16;
      }
      *reinterpret_cast<uint4*>(tile + At(row, chunk)) =
          make_uint4(words[0], words[1], words[2], words[3]);
    }
  }

  // Of lines [64 * block, 64 * (block + 1)) and, for b, all of them; k = 16 * step.
  __device__ __forceinline__ static uint64_t Descriptor(const char* tile, int block) {
    return WgmmaDescriptor(tile + block * kAtomBytes, kAtomBytes);
  }
  __device__ __forceinline__ static uint64_t Advance(uint64_t descriptor, int step) {
    return WgmmaAdvance(descriptor, kMajor == Major::kK ? 32u * step : 2048u * step);
  }
};

struct WgmmaMaps {
  CUtensorMap a, b, b2;
  int32_t step_a, step_b;  // 1: the maps' third coordinate is the product's number; 0: shared
};

template <int kStages>
struct Ring {
  int stage = 0;
  unsigned parity = 0;
  __device__ __forceinline__ void Next() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// The warp's 16 rows from its staging memory to `out`, 64 columns from n0. An element (row, column)
// of the staging memory is at StagingAt.
__device__ __forceinline__ int StagingAt(int row, int column) {
  return row * 64 + (((column >> 3) ^ (row & 7)) << 3 | (column & 7));
}

template <typename T>
__device__ __forceinline__ void FinishWarp(const MatMulParams& p, float* staging,
                                           const TileOrder::Place& place, int64_t m0, int64_t n0,
                                           int lane) {
  if (p.bias != nullptr || p.activation != 0) {
#pragma unroll 1
    for (int i = 0; i < 32; ++i) {
      const int column = i / 16 * 32 + lane, at = StagingAt(i % 16, column);
      const bool biased = p.bias != nullptr && n0 + column < p.n;
      const float bias = biased ? ToFloat(static_cast<const T*>(p.bias)[n0 + column]) : 0.0f;
      const float x = biased ? staging[at] + bias : staging[at];
      staging[at] = p.activation == 0 ? x : Activate(p.activation, Rounded<T>(p, x));
    }
    __syncwarp();
  }
#pragma unroll 1
  for (int i = 0; i < 4; ++i) {
    const int row = i * 4 + lane / 8, column = lane % 8 * 8;
    const int count = m0 + row < p.m ? Clamp(p.n - n0 - column, 8) : 0;
    if (count == 0) continue;
    const float* const from = staging + StagingAt(row, column);
    const float4 low = *reinterpret_cast<const float4*>(from);
    const float4 high = *reinterpret_cast<const float4*>(from + 4);
    float x[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    Store<T, 8>(p, place.batch * p.out_stride + (m0 + row) * p.ld_out, n0 + column, count, x);
  }
  __syncwarp();
}

template <typename T, typename S, bool kTransposeA, bool kTransposeB, bool kTma>
__global__ void __launch_bounds__(S::kThreads, 1)
    WgmmaKernel(const MatMulParams p, const __grid_constant__ WgmmaMaps maps) {
#if TANDEM_HOPPER
  constexpr Major kMajorA = kTransposeA ? Major::kMn : Major::kK;
  constexpr Major kMajorB = kTransposeB ? Major::kK : Major::kMn;
  using A = WgmmaOperand<T, S::kM, kMajorA>;
  using B = WgmmaOperand<T, S::kN, kMajorB>;
  char* const shared = DynamicShared();
  auto* const full = reinterpret_cast<uint64_t*>(shared + S::kBarriersAt);
  uint64_t* const empty = full + S::kStages;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  if (thread == 0) {
    for (int i = 0; i < S::kStages; ++i) {
      MbarrierInit(full + i, kTma ? 1 : 128);
      MbarrierInit(empty + i, 4 * S::kConsumers);
    }
    MbarrierInitFence();
  }
  __syncthreads();

  const TileOrder order(p.m, p.n, p.batch, S::kM, S::kN);
  const int64_t count = order.Count();
  const int steps = static_cast<int>((p.k + kWgmmaDepth - 1) / kWgmmaDepth);
  Ring<S::kStages> ring;
  if (thread >= 128 * S::kConsumers) {
    if constexpr (S::kMovesRegisters) RegistersDecrease<S::kLoader[kTma ? 1 : 0]>();
    if (kTma && thread != 128 * S::kConsumers) return;
    for (int64_t index = blockIdx.x; index < count; index += gridDim.x) {
      const TileOrder::Place place = order.At(index);
      for (int step = 0; step < steps; ++step, ring.Next()) {
        char* const stage = shared + ring.stage * S::kStageBytes;
        uint64_t* const barrier = full + ring.stage;
        MbarrierWait(empty + ring.stage, ring.parity ^ 1);
        if constexpr (kTma) {
          const int k0 = step * kWgmmaDepth, line_a = static_cast<int>(place.row) * S::kM,
                    line_b = static_cast<int>(place.column) * S::kN;
          const auto product = static_cast<int>(place.batch);
          MbarrierArriveExpect(barrier, S::kStageBytes);
          A::LoadTma(stage, &maps.a, barrier, line_a, k0, product * maps.step_a);
          B::LoadTma(stage + S::kBytesA, &maps.b, barrier, line_b, k0, product * maps.step_b);
          if constexpr (S::kDual) {
            B::LoadTma(stage + S::kBytesA + S::kBytesB, &maps.b2, barrier, line_b, k0,
                       product * maps.step_b);
          }
        } else {
          const int64_t k0 = int64_t{step} * kWgmmaDepth, m0 = place.row * S::kM,
                        n0 = place.column * S::kN;
          const int64_t a_at = place.batch * p.a_stride + (kTransposeA ? m0 : m0 * p.lda);
          const int64_t b_at = place.batch * p.b_stride + (kTransposeB ? n0 * p.ldb : n0);
          const int loader = thread - 128 * S::kConsumers;
          A::LoadElements(stage, static_cast<const T*>(p.a) + a_at, p.lda, p.m - m0, p.k, k0,
                          loader);
#pragma unroll 1
          for (int i = 0; i < S::kProducts; ++i) {
            B::LoadElements(stage + S::kBytesA + i * S::kBytesB,
                            static_cast<const T*>(i == 0 ? p.b : p.b2) + b_at, p.ldb, p.n - n0, p.k,
                            k0, loader);
          }
          FenceProxyAsync();
          MbarrierArrive(barrier);
        }
      }
    }
  } else {
    if constexpr (S::kMovesRegisters) RegistersIncrease<S::kConsumer[kTma ? 1 : 0]>();
    const int consumer = thread / 128;
    auto* const staging =
        reinterpret_cast<float*>(shared + S::kStagingAt + thread / 32 * S::kStagingBytes);
    for (int64_t index = blockIdx.x; index < count; index += gridDim.x) {
      float sums[S::kProducts][S::kN / 2];
#pragma unroll
      for (int product = 0; product < S::kProducts; ++product) {
#pragma unroll
        for (int i = 0; i < S::kN / 2; ++i) sums[product][i] = 0.0f;
      }
      int previous = 0;
      for (int step = 0; step < steps; ++step, ring.Next()) {
        const char* const stage = shared + ring.stage * S::kStageBytes;
        MbarrierWait(full + ring.stage, ring.parity);
#pragma unroll
        for (int product = 0; product < S::kProducts; ++product) {
          WgmmaFenceAccumulators(sums[product]);
        }
        WgmmaFence();
        const uint64_t a = A::Descriptor(stage, consumer);
#pragma unroll
        for (int i = 0; i < kWgmmaDepth / 16; ++i) {
#pragma unroll
          for (int product = 0; product < S::kProducts; ++product) {
            const uint64_t b = B::Descriptor(stage + S::kBytesA + product * S::kBytesB, 0);
            Wgmma<T, kMajorA, kMajorB>(sums[product], A::Advance(a, i), B::Advance(b, i), true);
          }
        }
        WgmmaCommit();
        // The step before is done with its stage; this one stays in flight.
        WgmmaWait<1>();
        if (step > 0 && lane == 0) MbarrierArrive(empty + previous);
        previous = ring.stage;
      }
      WgmmaWait<0>();
#pragma unroll
      for (int product = 0; product < S::kProducts; ++product) {
        WgmmaFenceAccumulators(sums[product]);
      }
      if (steps > 0 && lane == 0) MbarrierArrive(empty + previous);

      const TileOrder::Place place = order.At(index);
      const int64_t m0 = place.row * S::kM + thread / 32 * 16, n0 = place.column * S::kN;
#pragma unroll
      for (int piece = 0; piece < S::kN / 64; ++piece) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int at = (piece * 8 + j) * 4 + 2 * half;
            float2 x = make_float2(sums[0][at], sums[0][at + 1]);
            if constexpr (S::kDual) {
              x.x = SwiGlu<T>(p, x.x, sums[1][at]);
              x.y = SwiGlu<T>(p, x.y, sums[1][at + 1]);
            }
            *reinterpret_cast<float2*>(staging +
                                       StagingAt(lane / 4 + 8 * half, j * 8 + lane % 4 * 2)) = x;
          }
        }
        __syncwarp();
        FinishWarp<T>(p, staging, place, m0, n0 + piece * 64, lane);
      }
    }
  }
#endif
}

// What TMA can read: 16-byte aligned, and coordinates of 31 bits.
inline bool TmaReads(const void* base, int64_t ld, int64_t stride, const MatMulParams& p) {
  constexpr int64_t kMost = INT32_MAX;
  return reinterpret_cast<uintptr_t>(base) % 16 == 0 && ld % 8 == 0 && stride % 8 == 0 && p.k > 0 &&
         p.k <= kMost && p.m <= kMost && p.n <= kMost && p.batch <= kMost &&
         ld < int64_t{1} << 38 && stride < int64_t{1} << 38;
}

// The map of one operand whose tiles are kLines by kWgmmaDepth.
template <int kLines>
cudaError_t OperandMap(const void* base, int64_t lines, bool along_k, int64_t ld, int64_t stride,
                       const MatMulParams& p, CUtensorMap* map) {
  TensorMapSpec spec{};
  spec.base = base;
  spec.element_bytes = 2;
  spec.rank = 3;
  spec.sizes[0] = along_k ? p.k : lines;
  spec.sizes[1] = along_k ? lines : p.k;
  spec.sizes[2] = stride == 0 ? 1 : p.batch;
  spec.strides[1] = 2 * ld;
  spec.strides[2] = stride == 0 ? 16 : 2 * stride;
  spec.box[0] = 64;
  spec.box[1] = along_k ? kLines : kWgmmaDepth;
  spec.box[2] = 1;
  spec.swizzled = true;
  return MakeTensorMap(spec, map);
}

template <typename T, typename S, bool kTransposeA, bool kTransposeB, bool kTma>
cudaError_t LaunchWgmma(const MatMulParams& p, int multiprocessors, cudaStream_t stream) {
  WgmmaMaps maps{};
  if constexpr (kTma) {
    maps.step_a = p.a_stride != 0;
    maps.step_b = p.b_stride != 0;
    cudaError_t error = OperandMap<S::kM>(p.a, p.m, !kTransposeA, p.lda, p.a_stride, p, &maps.a);
    if (error != cudaSuccess) return error;
    error = OperandMap<S::kN>(p.b, p.n, kTransposeB, p.ldb, p.b_stride, p, &maps.b);
    if (error == cudaSuccess && S::kDual) {
      error = OperandMap<S::kN>(p.b2, p.n, kTransposeB, p.ldb, p.b_stride, p, &maps.b2);
    }
    if (error != cudaSuccess) return error;
  }
  const int64_t count = TileOrder(p.m, p.n, p.batch, S::kM, S::kN).Count();
  const int64_t most = int64_t{multiprocessors} * (S::kSharedBytes <= (113 << 10) ? 2 : 1);
  return Launch(WgmmaKernel<T, S, kTransposeA, kTransposeB, kTma>,
                static_cast<unsigned>(count < most ? count : most), S::kThreads, S::kSharedBytes,
                stream, p, maps);
}

// The tile by the sizes; no choice changes the arithmetic of an element.
template <typename T, bool kTransposeA, bool kTransposeB>
cudaError_t ChooseWgmma(const MatMulParams& p, int multiprocessors, cudaStream_t stream) {
  using Wide = WgmmaShape<2, 256, 4, false>;
  using Square = WgmmaShape<2, 128, 5, false>;
  const bool tma = TmaReads(p.a, p.lda, p.a_stride, p) && TmaReads(p.b, p.ldb, p.b_stride, p) &&
                   TmaReads(p.b2, p.ldb, p.b_stride, p);
  const auto tiles = [&p](int m, int n) { return TileOrder(p.m, p.n, p.batch, m, n).Count(); };
  if constexpr (!kTransposeA) {
    using SwiGlu = WgmmaShape<2, 128, 4, true>;
    using FlatSwiGlu = WgmmaShape<1, 64, 4, true>;
    using Flat = WgmmaShape<1, 64, 6, false>;
    if (p.b2 != nullptr) {
      if (!tma) {
        return LaunchWgmma<T, SwiGlu, false, kTransposeB, false>(p, multiprocessors, stream);
      }
      if (tiles(SwiGlu::kM, SwiGlu::kN) < multiprocessors) {
        return LaunchWgmma<T, FlatSwiGlu, false, kTransposeB, true>(p, multiprocessors, stream);
      }
      return LaunchWgmma<T, SwiGlu, false, kTransposeB, true>(p, multiprocessors, stream);
    }
    if (tma && (p.m <= 64 || tiles(Square::kM, Square::kN) < multiprocessors)) {
      return LaunchWgmma<T, Flat, false, kTransposeB, true>(p, multiprocessors, stream);
    }
  }
  if (!tma) {
    return LaunchWgmma<T, Square, kTransposeA, kTransposeB, false>(p, multiprocessors, stream);
  }
  if (tiles(Wide::kM, Wide::kN) < multiprocessors) {
    return LaunchWgmma<T, Square, kTransposeA, kTransposeB, true>(p, multiprocessors, stream);
  }
  return LaunchWgmma<T, Wide, kTransposeA, kTransposeB, true>(p, multiprocessors, stream);
}

template <typename T>
cudaError_t MatMulWgmma(const MatMulParams& p, int multiprocessors, cudaStream_t stream) {
  if (p.transpose_a != 0) {
    return p.transpose_b != 0 ? ChooseWgmma<T, true, true>(p, multiprocessors, stream)
                              : ChooseWgmma<T, true, false>(p, multiprocessors, stream);
  }
  return p.transpose_b != 0 ? ChooseWgmma<T, false, true>(p, multiprocessors, stream)
                            : ChooseWgmma<T, false, false>(p, multiprocessors, stream);
}

}  // namespace tandem::cuda

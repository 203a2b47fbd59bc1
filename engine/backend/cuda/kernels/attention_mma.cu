// Attention by mma.sync (sm_80 and later): bf16 and f16, head dimensions 64 and 128.
//
// A block has 64 rows of one key/value head, 16 a warp. Keys and values of a block of 128 are
// copied while the other of the two is used.
#include "engine/backend/cuda/kernels/attention_kernels.h"
#include "engine/backend/cuda/kernels/attention_mma.h"

namespace tandem::cuda {
namespace {

constexpr int kThreads = 128, kRows = 64;

// K, V, then the stash of merged splits.
template <int kD>
struct Shared {
  static constexpr int kTileBytes = kKeyBlock * kD * 2;
  static constexpr int kStashBytes = kRows * kD * 4;

  static size_t Bytes(bool stash) { return 2 * kTileBytes + (stash ? kStashBytes : 0); }
};

template <typename T, int kD>
__global__ void __launch_bounds__(kThreads, 2) Forward(AttentionParams p, int splits) {
  QueryTile tile;
  if (!FindQueryTile(p, static_cast<int>(gridDim.x - 1 - blockIdx.x), kRows, &tile)) return;
  const int kv_head = static_cast<int>(blockIdx.y), split = static_cast<int>(blockIdx.z);
  const KeyRange range(tile, splits, split);
  if (range.first >= range.last) return;
  char* const k_tile = DynamicShared();
  char* const v_tile = k_tile + Shared<kD>::kTileBytes;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const KeyRows<T> keys = KeyRowsOf<T>(p, p.k, p.k_cache, tile.sequence, tile.start, kv_head);
  const KeyRows<T> values = KeyRowsOf<T>(p, p.v, p.v_cache, tile.sequence, tile.start, kv_head);
  const auto copy = [&](char* to, const KeyRows<T>& from, int block) {
    const int first = block * kKeyBlock, end = tile.Keys();
    CopyTile<T, kD, kThreads>(to, kKeyBlock, [&](int i) {
      return first + i < end ? from.Row(first + i) : static_cast<const T*>(nullptr);
    });
    CommitCopies();
  };

  // Q passes through V's place into registers.
  CopyTile<T, kD, kThreads>(v_tile, kRows, [&](int i) {
    const int64_t row =
        static_cast<int64_t>(tile.Token(i)) * p.heads + kv_head * tile.group + tile.Head(i);
    return i < tile.rows ? static_cast<const T*>(p.q) + row * kD : static_cast<const T*>(nullptr);
  });
  CommitCopies();
  copy(k_tile, keys, range.first);
  WaitCopies<1>();
  __syncthreads();
  uint32_t q[kD / 16][4];
#pragma unroll
  for (int step = 0; step < kD / 16; ++step) {
    LoadA<kD>(RowBase<kD>(v_tile, 16 * warp), step, q[step]);
  }
  __syncthreads();

  const int row = 16 * warp + lane / 4;
  const bool active = 16 * warp < tile.rows;  // of the warp
  const int position[2] = {row < tile.rows ? tile.Position(row) : -1,
                           row + 8 < tile.rows ? tile.Position(row + 8) : -1};
  const float c = p.scale * kLog2e;
  SplitStash stash{
      reinterpret_cast<float*>(v_tile + Shared<kD>::kTileBytes) + threadIdx.x, kThreads, {}, {}};
  const OperandBase k_base = ColumnBase<kD>(k_tile), v_base = RowBase<kD>(v_tile, 0);
  RowSoftmax<kD / 2> sum;
  sum.Clear();
  for (int block = range.first; block < range.last; ++block) {
    if (block != range.first && block % kSplitBlocks == 0) {
      SumLanes(sum.l);
      stash.Put(sum, block == kSplitBlocks, c);
      sum.Clear();
    }
    copy(v_tile, values, block);
    WaitCopies<1>();
    __syncthreads();
    float s[kKeyBlock / 2];
    float scale[2];
    if (active) {
#pragma unroll
      for (int i = 0; i < kKeyBlock / 2; ++i) s[i] = 0;
      const OperandBase base = k_base.Renewed();
#pragma unroll
      for (int step = 0; step < kD / 16; ++step) {
#pragma unroll
        for (int j = 0; j < kKeyBlock / 16; ++j) {
          uint32_t b[4];
          LoadB<kD>(base, 16 * j, step, b);
          MmaColumns<T>(s, 2 * j, q[step], b[0], b[1]);
          MmaColumns<T>(s, 2 * j + 1, q[step], b[2], b[3]);
        }
      }
    }
    __syncthreads();
    if (block + 1 < range.last) {
      copy(k_tile, keys, block + 1);
    } else {
      CommitCopies();
    }
    if (active) {
      const int first = block * kKeyBlock;
      if (first + kKeyBlock - 1 > tile.Position(0)) MaskScores(s, first, position);
      SoftmaxStep(s, sum.m, sum.l, scale, c);
      RescaleOutputs(sum.o, scale);
    }
    WaitCopies<1>();
    __syncthreads();
    if (active) {
      const OperandBase base = v_base.Renewed();
#pragma unroll
      for (int step = 0; step < kKeyBlock / 16; ++step) {
        uint32_t a[4];
        PackOperand<T>(s, step, a);
#pragma unroll
        for (int j = 0; j < kD / 16; ++j) {
          uint32_t b[4];
          LoadBTransposed<kD>(base, 16 * step, j, b);
          MmaColumns<T>(sum.o, 2 * j, a, b[0], b[1]);
          MmaColumns<T>(sum.o, 2 * j + 1, a, b[2], b[3]);
        }
      }
    }
    __syncthreads();
  }
  SumLanes(sum.l);
  if (range.last - range.first > kSplitBlocks) {
    stash.Put(sum, false, c);
    stash.Take(sum);
  }
  WriteRows<T>(p, tile, kv_head, row, splits, split, sum);
}

template <typename T, int kD>
cudaError_t LaunchForward(const AttentionParams& p, int splits, cudaStream_t stream) {
  const auto tiles =
      static_cast<unsigned>(TileBound(p.tokens, p.sequences, p.heads / p.kv_heads, kRows));
  const dim3 grid(tiles, static_cast<unsigned>(p.kv_heads), static_cast<unsigned>(splits));
  return Launch(Forward<T, kD>, grid, kThreads, Shared<kD>::Bytes(NeedsStash(p, splits)), stream, p,
                splits);
}

}  // namespace

cudaError_t AttentionMma(const AttentionParams& p, int splits, cudaStream_t stream) {
  if (p.dtype == TANDEM_CUDA_F16) {
    return p.head_dim == 64 ? LaunchForward<F16, 64>(p, splits, stream)
                            : LaunchForward<F16, 128>(p, splits, stream);
  }
  return p.head_dim == 64 ? LaunchForward<Bf16, 64>(p, splits, stream)
                          : LaunchForward<Bf16, 128>(p, splits, stream);
}

}  // namespace tandem::cuda

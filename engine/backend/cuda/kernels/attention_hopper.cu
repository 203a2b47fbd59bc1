// Attention by wgmma and the copy engine (sm_90a): bf16 and f16, head dimensions 64 and 128.
//
// FlashAttention-3's plan (Shah et al. 2024): a producer warpgroup loads blocks of 128 keys and of
// their values, two of each in flight; each of one or two consumer warpgroups has 64 rows of one
// key/value head, and multiplies the next block's keys while the last block's values are still
// being summed. Few rows (decode) take one consumer, with the same instructions.
#include "engine/backend/cuda/kernels/attention_fragments.h"
#include "engine/backend/cuda/kernels/attention_kernels.h"
#include "engine/backend/cuda/kernels/hopper.h"

namespace tandem::cuda {
namespace {

constexpr int kGroupThreads = 128, kGroupRows = 64, kStages = 2;
// A box of the copy engine: rows of 64 values, swizzled as wgmma reads them.
constexpr int kBoxColumns = 64, kRowBytes = 128;

// Q (each consumer's), then the stages of K and of V, barriers, and the stash of merged splits.
template <int kD, int kConsumers>
struct Shared {
  static constexpr int kHalves = kD / kBoxColumns;
  static constexpr int kHalfBytes = kKeyBlock * kRowBytes, kTileBytes = kHalves * kHalfBytes;
  static constexpr int kGroupQBytes = kGroupRows * kD * 2;
  static constexpr int kKeysAt = kConsumers * kGroupQBytes;
  static constexpr int kValuesAt = kKeysAt + kStages * kTileBytes;
  static constexpr int kBarriersAt = kValuesAt + kStages * kTileBytes;
  static constexpr int kStashAt = kBarriersAt + 128;
  static constexpr int kStashBytes = kConsumers * kGroupRows * kD * 4;

  static size_t Bytes(bool stash) { return kStashAt + (stash ? kStashBytes : 0); }
  __device__ static char* Q(int group) { return DynamicShared() + group * kGroupQBytes; }
  __device__ static char* Keys(int stage) { return DynamicShared() + kKeysAt + stage * kTileBytes; }
  __device__ static char* Values(int stage) {
    return DynamicShared() + kValuesAt + stage * kTileBytes;
  }
  __device__ static uint64_t* Barriers() {
    return reinterpret_cast<uint64_t*>(DynamicShared() + kBarriersAt);
  }
  __device__ static uint64_t* KeysFull(int stage) { return Barriers() + stage; }
  __device__ static uint64_t* KeysEmpty(int stage) { return Barriers() + kStages + stage; }
  __device__ static uint64_t* ValuesFull(int stage) { return Barriers() + 2 * kStages + stage; }
  __device__ static uint64_t* ValuesEmpty(int stage) { return Barriers() + 3 * kStages + stage; }
  __device__ static float* Stash(int group) {
    return reinterpret_cast<float*>(DynamicShared() + kStashAt) + group * kGroupRows * kD;
  }
};

// What every thread of a block works on.
struct Work {
  QueryTile tile;
  KeyRange range;
  int kv_head, splits, split;
};

#if TANDEM_HOPPER

// Loads one block of keys, or of values.
template <typename S>
__device__ __forceinline__ void LoadBlock(const AttentionParams& p, const Work& work,
                                          const CUtensorMap* map, int block, char* to,
                                          uint64_t* full) {
  const int first = block * kKeyBlock, left = work.tile.Keys() - first;
  if (p.block_table == nullptr) {
    MbarrierArriveExpect(full, S::kTileBytes);
    for (int h = 0; h < S::kHalves; ++h) {
      TmaLoad(to + h * S::kHalfBytes, map, full, h * kBoxColumns, work.kv_head,
              work.tile.start + first);
    }
    return;
  }
  constexpr int kPages = kKeyBlock / kPageKeys, kPageBytes = kPageKeys * kRowBytes;
  const int pages = left < kKeyBlock ? (left + kPageKeys - 1) / kPageKeys : kPages;
  const int32_t* const table = p.block_table +
                               static_cast<int64_t>(work.tile.sequence) * p.blocks_per_sequence +
                               first / kPageKeys;
  MbarrierArriveExpect(full, static_cast<unsigned>(pages * S::kHalves * kPageBytes));
  for (int i = 0; i < pages; ++i) {
    for (int h = 0; h < S::kHalves; ++h) {
      TmaLoad(to + h * S::kHalfBytes + i * kPageBytes, map, full, h * kBoxColumns, 0, work.kv_head,
              table[i]);
    }
  }
}

template <typename S>
__device__ __forceinline__ void Produce(const AttentionParams& p, const Work& work,
                                        const CUtensorMap* k_map, const CUtensorMap* v_map) {
  for (int block = work.range.first; block < work.range.last; ++block) {
    const int n = block - work.range.first, stage = n % kStages;
    const auto before = static_cast<unsigned>(n / kStages & 1) ^ 1;
    MbarrierWait(S::KeysEmpty(stage), before);
    LoadBlock<S>(p, work, k_map, block, S::Keys(stage), S::KeysFull(stage));
    MbarrierWait(S::ValuesEmpty(stage), before);
    LoadBlock<S>(p, work, v_map, block, S::Values(stage), S::ValuesFull(stage));
  }
}

// One consumer warpgroup's view.
template <typename T, int kD, int kConsumers>
struct Consumer {
  using S = Shared<kD, kConsumers>;
  const AttentionParams& p;
  const Work& work;
  int group, thread;  // of the consumers; of the group

  // The group's 64 rows of q, zeros where there is none.
  __device__ __forceinline__ void LoadQ() const {
    constexpr int kUnits = kD / 8;
    const QueryTile& tile = work.tile;
#pragma unroll 2
    for (int i = thread; i < kGroupRows * kUnits; i += kGroupThreads) {
      const int r = i / kUnits, unit = i % kUnits, row = group * kGroupRows + r;
      uint4 value = make_uint4(0, 0, 0, 0);
      if (row < tile.rows) {
        const int64_t at = static_cast<int64_t>(tile.Token(row)) * p.heads +
                           work.kv_head * tile.group + tile.Head(row);
        value = reinterpret_cast<const uint4*>(static_cast<const T*>(p.q) + at * kD)[unit];
      }
      char* const to = S::Q(group) + unit / 8 * (kGroupRows * kRowBytes) + r * kRowBytes +
                       ((unit % 8 ^ (r & 7)) << 4);
      *reinterpret_cast<uint4*>(to) = value;
    }
    FenceProxyAsync();
    NamedBarrierSync(1 + group, kGroupThreads);
  }
  // s = Q K^T of the block, issued and committed.
  __device__ __forceinline__ void IssueScores(int stage, float (&s)[kKeyBlock / 2]) const {
    const uint64_t q = WgmmaDescriptor(S::Q(group)), k = WgmmaDescriptor(S::Keys(stage));
    WgmmaFenceAccumulators(s);
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < kD / 16; ++step) {
      const int half = step / 4, column = step % 4 * 32;
      Wgmma<T, Major::kK, Major::kK>(
          s, WgmmaAdvance(q, static_cast<unsigned>(half * (kGroupRows * kRowBytes) + column)),
          WgmmaAdvance(k, static_cast<unsigned>(half * S::kHalfBytes + column)), step > 0);
    }
    WgmmaCommit();
  }
  // o += P V of the block, issued and committed.
  __device__ __forceinline__ void IssueOutputs(int stage,
                                               const uint32_t (&probabilities)[kKeyBlock / 16][4],
                                               float (&o)[kD / 2]) const {
    const uint64_t v = WgmmaDescriptor(S::Values(stage), S::kHalfBytes);
    WgmmaFenceAccumulators(o);
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < kKeyBlock / 16; ++step) {
      Wgmma<T, Major::kMn>(o, probabilities[step],
                           WgmmaAdvance(v, static_cast<unsigned>(step * 16 * kRowBytes)), true);
    }
    WgmmaCommit();
  }
  __device__ __forceinline__ void WaitKeys(int block) const {
    const int n = block - work.range.first;
    MbarrierWait(S::KeysFull(n % kStages), static_cast<unsigned>(n / kStages & 1));
  }
  // What lies beyond the sequence, of which zero times is not always zero, is cleared.
  __device__ __forceinline__ void WaitValues(int block) const {
    const int n = block - work.range.first;
    MbarrierWait(S::ValuesFull(n % kStages), static_cast<unsigned>(n / kStages & 1));
    const int keys = work.tile.Keys() - block * kKeyBlock;
    if (keys >= kKeyBlock) return;
    constexpr int kUnits = kRowBytes / 16;
    char* const tile = S::Values(n % kStages);
    for (int h = 0; h < S::kHalves; ++h) {
      for (int i = keys * kUnits + thread; i < kKeyBlock * kUnits; i += kGroupThreads) {
        *reinterpret_cast<uint4*>(tile + h * S::kHalfBytes + i * 16) = make_uint4(0, 0, 0, 0);
      }
    }
    FenceProxyAsync();
    NamedBarrierSync(1 + group, kGroupThreads);
  }
  // Each warp says that it is done with the stage.
  __device__ __forceinline__ void Release(uint64_t* empty) const {
    if (thread % 32 == 0) MbarrierArrive(empty);
  }
};

template <typename T>
__device__ __forceinline__ void PackAll(const float (&s)[kKeyBlock / 2],
                                        uint32_t (&probabilities)[kKeyBlock / 16][4]) {
#pragma unroll
  for (int step = 0; step < kKeyBlock / 16; ++step) PackOperand<T>(s, step, probabilities[step]);
}

// The rows of one consumer warpgroup, split by split.
template <typename T, int kD, int kConsumers>
__device__ __forceinline__ void Consume(const Consumer<T, kD, kConsumers>& self) {
  using S = Shared<kD, kConsumers>;
  const QueryTile& tile = self.work.tile;
  const KeyRange& range = self.work.range;
  const int row = self.group * kGroupRows + self.thread / 32 * 16 + self.thread % 32 / 4;
  const int position[2] = {row < tile.rows ? tile.Position(row) : -1,
                           row + 8 < tile.rows ? tile.Position(row + 8) : -1};
  const int least_position = tile.Position(self.group * kGroupRows);
  const float c = self.p.scale * kLog2e;
  SplitStash stash{S::Stash(self.group) + self.thread, kGroupThreads, {}, {}};
  RowSoftmax<kD / 2> sum;
  float s[kKeyBlock / 2], scale[2];
  uint32_t probabilities[kKeyBlock / 16][4];
  self.LoadQ();
  const auto stage_of = [&](int block) { return (block - range.first) % kStages; };
  const auto softmax = [&](int block) {
    const int first = block * kKeyBlock;
    if (first + kKeyBlock - 1 > least_position) MaskScores(s, first, position);
    SoftmaxStep(s, sum.m, sum.l, scale, c);
  };
  for (int first = range.first; first < range.last; first += kSplitBlocks) {
    const int last = range.last < first + kSplitBlocks ? range.last : first + kSplitBlocks;
    sum.Clear();
    self.WaitKeys(first);
    self.IssueScores(stage_of(first), s);
    WgmmaWait<0>();
    WgmmaFenceAccumulators(s);
    self.Release(S::KeysEmpty(stage_of(first)));
    softmax(first);
    PackAll<T>(s, probabilities);
    for (int block = first + 1; block < last; ++block) {
      self.WaitKeys(block);
      self.IssueScores(stage_of(block), s);
      self.WaitValues(block - 1);
      self.IssueOutputs(stage_of(block - 1), probabilities, sum.o);
      WgmmaWait<1>();
      WgmmaFenceAccumulators(s);
      self.Release(S::KeysEmpty(stage_of(block)));
      softmax(block);
      WgmmaWait<0>();
      WgmmaFenceAccumulators(sum.o);
      self.Release(S::ValuesEmpty(stage_of(block - 1)));
      RescaleOutputs(sum.o, scale);
      PackAll<T>(s, probabilities);
    }
    self.WaitValues(last - 1);
    self.IssueOutputs(stage_of(last - 1), probabilities, sum.o);
    WgmmaWait<0>();
    WgmmaFenceAccumulators(sum.o);
    self.Release(S::ValuesEmpty(stage_of(last - 1)));
    SumLanes(sum.l);
    if (range.last - range.first > kSplitBlocks) stash.Put(sum, first == range.first, c);
  }
  if (range.last - range.first > kSplitBlocks) stash.Take(sum);
  WriteRows<T>(self.p, tile, self.work.kv_head, row, self.work.splits, self.work.split, sum);
}

#endif  // TANDEM_HOPPER

template <typename T, int kD, int kConsumers>
__global__ void __launch_bounds__(kGroupThreads*(kConsumers + 1), 1)
    Forward(AttentionParams p, int splits, const __grid_constant__ CUtensorMap k_map,
            const __grid_constant__ CUtensorMap v_map) {
#if TANDEM_HOPPER
  using S = Shared<kD, kConsumers>;
  QueryTile tile;
  const int number = static_cast<int>(gridDim.x - 1 - blockIdx.x);
  if (!FindQueryTile(p, number, kConsumers * kGroupRows, &tile)) return;
  const int split = static_cast<int>(blockIdx.z);
  const Work work{tile, KeyRange(tile, splits, split), static_cast<int>(blockIdx.y), splits, split};
  if (work.range.first >= work.range.last) return;
  const int thread = static_cast<int>(threadIdx.x);
  const int consumers = (tile.rows + kGroupRows - 1) / kGroupRows;  // that have rows
  if (thread == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      MbarrierInit(S::KeysFull(stage), 1);
      MbarrierInit(S::ValuesFull(stage), 1);
      MbarrierInit(S::KeysEmpty(stage), static_cast<unsigned>(4 * consumers));
      MbarrierInit(S::ValuesEmpty(stage), static_cast<unsigned>(4 * consumers));
    }
    MbarrierInitFence();
  }
  __syncthreads();
  const int group = thread / kGroupThreads - 1;
  if (group < 0) {
    if (kConsumers == 2) RegistersDecrease<24>();
    if (thread == 0) Produce<S>(p, work, &k_map, &v_map);
  } else {
    if (kConsumers == 2) RegistersIncrease<240>();
    if (group < consumers) {
      Consume(Consumer<T, kD, kConsumers>{p, work, group, thread % kGroupThreads});
    }
  }
#else
  (void)p, (void)splits;
#endif
}

cudaError_t MapOf(const AttentionParams& p, const void* packed, const void* cache,
                  CUtensorMap* map) {
  const int64_t row = int64_t{p.head_dim} * 2;
  if (p.block_table == nullptr) {
    return MakeTensorMap({.base = packed,
                          .element_bytes = 2,
                          .rank = 3,
                          .sizes = {p.head_dim, p.kv_heads, p.tokens},
                          .strides = {0, row, row * p.kv_heads},
                          .box = {kBoxColumns, 1, kKeyBlock},
                          .swizzled = true},
                         map);
  }
  return MakeTensorMap({.base = cache,
                        .element_bytes = 2,
                        .rank = 4,
                        .sizes = {p.head_dim, kPageKeys, p.kv_heads, p.pages},
                        .strides = {0, row, row * kPageKeys, row * kPageKeys * p.kv_heads},
                        .box = {kBoxColumns, kPageKeys, 1, 1},
                        .swizzled = true},
                       map);
}

template <typename T, int kD, int kConsumers>
cudaError_t LaunchForward(const AttentionParams& p, int splits, cudaStream_t stream) {
  CUtensorMap k_map{}, v_map{};
  cudaError_t error = MapOf(p, p.k, p.k_cache, &k_map);
  if (error == cudaSuccess) error = MapOf(p, p.v, p.v_cache, &v_map);
  if (error != cudaSuccess) return error;
  const int tiles = TileBound(p.tokens, p.sequences, p.heads / p.kv_heads, kConsumers * kGroupRows);
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(p.kv_heads),
                  static_cast<unsigned>(splits));
  return Launch(Forward<T, kD, kConsumers>, grid, kGroupThreads * (kConsumers + 1),
                Shared<kD, kConsumers>::Bytes(NeedsStash(p, splits)), stream, p, splits, k_map,
                v_map);
}

template <typename T, int kD>
cudaError_t LaunchForward(const AttentionParams& p, int splits, cudaStream_t stream) {
  // One consumer where the rows of a sequence seldom fill two.
  const int64_t rows = static_cast<int64_t>(p.tokens) * (p.heads / p.kv_heads);
  const bool few = rows <= static_cast<int64_t>(p.sequences) * kGroupRows;
  return few ? LaunchForward<T, kD, 1>(p, splits, stream)
             : LaunchForward<T, kD, 2>(p, splits, stream);
}

}  // namespace

cudaError_t AttentionHopper(const AttentionParams& p, int splits, cudaStream_t stream) {
  if (p.tokens == 0) return cudaSuccess;
  if (p.dtype == TANDEM_CUDA_F16) {
    return p.head_dim == 64 ? LaunchForward<F16, 64>(p, splits, stream)
                            : LaunchForward<F16, 128>(p, splits, stream);
  }
  return p.head_dim == 64 ? LaunchForward<Bf16, 64>(p, splits, stream)
                          : LaunchForward<Bf16, 128>(p, splits, stream);
}

}  // namespace tandem::cuda

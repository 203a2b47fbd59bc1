// The backward pass by wgmma and the copy engine (sm_90a): bf16 and f16, head dimensions 64 and
// 128.
//
// One kernel in two forms, as in attention_mma_grad.cu: a block owns 128 keys of a key/value head
// and goes through its heads' queries (dK, dV), or owns 128 queries of a head and goes through the
// keys (dQ), 64 of the others at a time, in order. Two consumer warpgroups own 64 each, which are
// the rows of all products; P and dS stay in registers.
#include "engine/backend/cuda/kernels/attention_fragments.h"
#include "engine/backend/cuda/kernels/attention_kernels.h"
#include "engine/backend/cuda/kernels/hopper.h"

namespace tandem::cuda {
namespace {

constexpr int kGroupThreads = 128, kConsumers = 2, kRows = 64, kStages = 2;
constexpr int kOwn = kConsumers * kRows;
// A box of the copy engine: rows of 64 values, swizzled as wgmma reads them.
constexpr int kBoxColumns = 64, kRowBytes = 128, kHalfBytes = kRows * kRowBytes;

// The block's own tiles, the stages of the others', lse and delta of queries, barriers.
template <int kD>
struct Shared {
  static constexpr int kHalves = kD / kBoxColumns, kTileBytes = kHalves * kHalfBytes;
  static constexpr int kOthersAt = 2 * kConsumers * kTileBytes;
  static constexpr int kFactsAt = kOthersAt + 2 * kStages * kTileBytes;
  static constexpr int kFacts = 2 * kRows;  // lse, then delta
  static constexpr int kBarriersAt = kFactsAt + kConsumers * 2 * kFacts * 4;
  static constexpr int kBytes = kBarriersAt + 64;

  __device__ static char* Own(int group, int which) {
    return DynamicShared() + (2 * group + which) * kTileBytes;
  }
  __device__ static char* Other(int stage, int which) {
    return DynamicShared() + kOthersAt + (2 * stage + which) * kTileBytes;
  }
  __device__ static float* Facts(int group, int turn) {
    return reinterpret_cast<float*>(DynamicShared() + kFactsAt) + (2 * group + turn) * kFacts;
  }
  __device__ static uint64_t* OwnFull() {
    return reinterpret_cast<uint64_t*>(DynamicShared() + kBarriersAt);
  }
  __device__ static uint64_t* Full(int stage) { return OwnFull() + 1 + stage; }
  __device__ static uint64_t* Empty(int stage) { return OwnFull() + 1 + kStages + stage; }
};

// What a block owns and goes through. Positions count from the sequence's start.
template <bool kOwnKeys>
struct Work {
  int start, tokens, own, head, kv_head, group;

  __device__ __forceinline__ int Consumers() const { return tokens - own > kRows ? 2 : 1; }
  // The others of a head: queries from the first key on, or keys up to the last query.
  __device__ __forceinline__ int Begin() const { return kOwnKeys ? own : 0; }
  __device__ __forceinline__ int End() const {
    return kOwnKeys || own + kOwn > tokens ? tokens : own + kOwn;
  }
};

// One tile after another of the others, head by head.
template <bool kOwnKeys>
struct Cursor {
  int tile, first, head, last_head;  // the tile's number, first position and query head

  __device__ __forceinline__ explicit Cursor(const Work<kOwnKeys>& work)
      : tile(0),
        first(work.Begin()),
        head(kOwnKeys ? work.kv_head * work.group : work.head),
        last_head(kOwnKeys ? head + work.group - 1 : head) {}
  __device__ __forceinline__ bool Done() const { return head > last_head; }
  __device__ __forceinline__ void Next(const Work<kOwnKeys>& work) {
    ++tile;
    first += kRows;
    if (first < work.End()) return;
    first = work.Begin();
    ++head;
  }
  __device__ __forceinline__ int Stage() const { return tile % kStages; }
  __device__ __forceinline__ unsigned Parity() const {
    return static_cast<unsigned>(tile / kStages & 1);
  }
};

struct Maps {
  CUtensorMap q, k, v, dout;
};

#if TANDEM_HOPPER

template <int kD>
__device__ __forceinline__ void LoadTile(const CUtensorMap* map, char* to, uint64_t* full, int head,
                                         int token) {
  for (int h = 0; h < Shared<kD>::kHalves; ++h) {
    TmaLoad(to + h * kHalfBytes, map, full, h * kBoxColumns, head, token);
  }
}

template <int kD, bool kOwnKeys>
__device__ __forceinline__ void Produce(const Work<kOwnKeys>& work, const Maps* maps) {
  using S = Shared<kD>;
  const CUtensorMap* const own_a = kOwnKeys ? &maps->k : &maps->q;
  const CUtensorMap* const own_b = kOwnKeys ? &maps->v : &maps->dout;
  const CUtensorMap* const other_a = kOwnKeys ? &maps->q : &maps->k;
  const CUtensorMap* const other_b = kOwnKeys ? &maps->dout : &maps->v;
  const int own_head = kOwnKeys ? work.kv_head : work.head;
  MbarrierArriveExpect(S::OwnFull(), static_cast<unsigned>(2 * work.Consumers() * S::kTileBytes));
  for (int group = 0; group < work.Consumers(); ++group) {
    const int token = work.start + work.own + group * kRows;
    LoadTile<kD>(own_a, S::Own(group, 0), S::OwnFull(), own_head, token);
    LoadTile<kD>(own_b, S::Own(group, 1), S::OwnFull(), own_head, token);
  }
  for (Cursor<kOwnKeys> at(work); !at.Done(); at.Next(work)) {
    const int stage = at.Stage(), token = work.start + at.first;
    const int head = kOwnKeys ? at.head : work.kv_head;
    MbarrierWait(S::Empty(stage), at.Parity() ^ 1);
    MbarrierArriveExpect(S::Full(stage), 2 * S::kTileBytes);
    LoadTile<kD>(other_a, S::Other(stage, 0), S::Full(stage), head, token);
    LoadTile<kD>(other_b, S::Other(stage, 1), S::Full(stage), head, token);
  }
}

// c (64, 64) = own rows . other rows, issued and committed.
template <typename T, int kD>
__device__ __forceinline__ void IssueProducts(char* own, char* other, float (&c)[kRows / 2]) {
  const uint64_t a = WgmmaDescriptor(own), b = WgmmaDescriptor(other);
  WgmmaFenceAccumulators(c);
  WgmmaFence();
#pragma unroll
  for (int step = 0; step < kD / 16; ++step) {
    const auto at = static_cast<unsigned>(step / 4 * kHalfBytes + step % 4 * 32);
    Wgmma<T, Major::kK, Major::kK>(c, WgmmaAdvance(a, at), WgmmaAdvance(b, at), step > 0);
  }
  WgmmaCommit();
}

// sum (64, kD) += factors (64, 64) . other rows, issued and committed.
template <typename T, int kD>
__device__ __forceinline__ void IssueSums(const uint32_t (&factors)[kRows / 16][4], char* other,
                                          float (&sum)[kD / 2]) {
  const uint64_t b = WgmmaDescriptor(other, kHalfBytes);
  WgmmaFenceAccumulators(sum);
  WgmmaFence();
#pragma unroll
  for (int step = 0; step < kRows / 16; ++step) {
    Wgmma<T, Major::kMn>(sum, factors[step],
                         WgmmaAdvance(b, static_cast<unsigned>(step * 16 * kRowBytes)), true);
  }
  WgmmaCommit();
}

// lse (which = 0, in base 2) or delta of a query; a query beyond the sequence has no probability.
template <bool kOwnKeys>
__device__ __forceinline__ float Fact(const AttentionGradParams& g, const Work<kOwnKeys>& work,
                                      int which, int head, int position) {
  if (position >= work.tokens) return which == 0 ? INFINITY : 0.0f;
  const int64_t at = (static_cast<int64_t>(work.start) + position) * g.forward.heads + head;
  return which == 0 ? g.forward.lse[at] * kLog2e : g.delta[at];
}

// The gradients of one consumer warpgroup's 64 own: sum_a is dK or dQ, sum_b dV.
template <typename T, int kD, bool kOwnKeys>
struct Consumer {
  using S = Shared<kD>;
  const AttentionGradParams& g;
  const Work<kOwnKeys>& work;
  int group, thread;  // of the consumers; of the group

  // The value that this thread brings to shared memory for a tile.
  __device__ __forceinline__ float NextFact(const Cursor<kOwnKeys>& at) const {
    if (!kOwnKeys || at.Done()) return 0.0f;
    return Fact(g, work, thread / kRows, at.head, at.first + thread % kRows);
  }
  __device__ __forceinline__ int Row() const {
    return work.own + group * kRows + thread / 32 * 16 + thread % 32 / 4;
  }
  // Column i of the accumulators.
  __device__ __forceinline__ int Column(int i) const { return i / 4 * 8 + thread % 4 * 2 + i % 2; }

  __device__ __forceinline__ void Run() const {
    const float c = g.forward.scale * kLog2e;
    const int row = Row();
    float lse[2] = {}, delta[2] = {};
    if (!kOwnKeys) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        lse[r] = Fact(g, work, 0, work.head, row + 8 * r);
        delta[r] = Fact(g, work, 1, work.head, row + 8 * r);
      }
    }
    float sum_a[kD / 2], sum_b[kOwnKeys ? kD / 2 : 1];
#pragma unroll
    for (float& x : sum_a) x = 0;
#pragma unroll
    for (float& x : sum_b) x = 0;
    Cursor<kOwnKeys> ahead(work);
    float next = NextFact(ahead);
    MbarrierWait(S::OwnFull(), 0);
    for (Cursor<kOwnKeys> at(work); !at.Done(); at.Next(work)) {
      const int stage = at.Stage(), first = at.first;
      float* const facts = S::Facts(group, at.tile % 2);
      if (kOwnKeys) {
        facts[thread] = next;
        ahead.Next(work);
        next = NextFact(ahead);
        NamedBarrierSync(1 + group, kGroupThreads);
      }
      MbarrierWait(S::Full(stage), at.Parity());
      float probability[kRows / 2], ds[kRows / 2];
      uint32_t factors[kRows / 16][4], ds_factors[kRows / 16][4];
      IssueProducts<T, kD>(S::Own(group, 0), S::Other(stage, 0), probability);
      IssueProducts<T, kD>(S::Own(group, 1), S::Other(stage, 1), ds);
      WgmmaWait<1>();
      WgmmaFenceAccumulators(probability);
      // The causal mask, and the edge of the sequence among keys that are the others.
      const bool whole = kOwnKeys ? first >= work.own + (group + 1) * kRows - 1
                                  : first + kRows - 1 <= work.own + group * kRows;
#pragma unroll
      for (int i = 0; i < kRows / 2; ++i) {
        const int own = row + i / 2 % 2 * 8, other = first + Column(i);
        const bool seen = whole || (kOwnKeys ? own <= other : other <= own);
        const float row_lse = kOwnKeys ? facts[Column(i)] : lse[i / 2 % 2];
        probability[i] = seen ? Probability(probability[i], row_lse, c) : 0.0f;
      }
      if constexpr (kOwnKeys) {
#pragma unroll
        for (int step = 0; step < kRows / 16; ++step)
          PackOperand<T>(probability, step, factors[step]);
        IssueSums<T, kD>(factors, S::Other(stage, 1), sum_b);
        WgmmaWait<1>();
      } else {
        WgmmaWait<0>();
      }
      WgmmaFenceAccumulators(ds);
#pragma unroll
      for (int i = 0; i < kRows / 2; ++i) {
        const float row_delta = kOwnKeys ? facts[kRows + Column(i)] : delta[i / 2 % 2];
        ds[i] = probability[i] == 0 ? 0.0f : probability[i] * (ds[i] - row_delta);
      }
#pragma unroll
      for (int step = 0; step < kRows / 16; ++step) PackOperand<T>(ds, step, ds_factors[step]);
      IssueSums<T, kD>(ds_factors, S::Other(stage, 0), sum_a);
      WgmmaWait<0>();
      WgmmaFenceAccumulators(sum_a);
      if constexpr (kOwnKeys) WgmmaFenceAccumulators(sum_b);
      if (thread % 32 == 0) MbarrierArrive(S::Empty(stage));
    }
    Write(row, sum_a, sum_b);
  }
  template <int kSize>
  __device__ __forceinline__ void Write(int row, const float (&sum_a)[kD / 2],
                                        const float (&sum_b)[kSize]) const {
    const AttentionParams& p = g.forward;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int position = row + 8 * r;
      if (position >= work.tokens) continue;
      const int64_t token = static_cast<int64_t>(work.start) + position;
      if constexpr (kOwnKeys) {
        WriteGradientRow<T>(g.dk, token * p.kv_heads + work.kv_head, r, p.scale, sum_a);
        WriteGradientRow<T>(g.dv, token * p.kv_heads + work.kv_head, r, 1.0f, sum_b);
      } else {
        WriteGradientRow<T>(g.dq, token * p.heads + work.head, r, p.scale, sum_a);
      }
    }
  }
};

#endif  // TANDEM_HOPPER

template <typename T, int kD, bool kOwnKeys>
__global__ void __launch_bounds__(kGroupThreads*(kConsumers + 1), 1)
    Gradient(AttentionGradParams g, const __grid_constant__ Maps maps) {
#if TANDEM_HOPPER
  using S = Shared<kD>;
  const AttentionParams& p = g.forward;
  const int group_heads = p.heads / p.kv_heads, head = static_cast<int>(blockIdx.y);
  int tile = static_cast<int>(kOwnKeys ? blockIdx.x : gridDim.x - 1 - blockIdx.x), sequence = 0;
  if (!FindTile(p.query_start, p.sequences, 1, kOwn, &tile, &sequence)) return;
  const int start = p.query_start[sequence], tokens = p.query_start[sequence + 1] - start;
  const Work<kOwnKeys> work{
      start, tokens, tile * kOwn, head, kOwnKeys ? head : head / group_heads, group_heads};
  const int thread = static_cast<int>(threadIdx.x), consumers = work.Consumers();
  if (thread == 0) {
    MbarrierInit(S::OwnFull(), 1);
    for (int stage = 0; stage < kStages; ++stage) {
      MbarrierInit(S::Full(stage), 1);
      MbarrierInit(S::Empty(stage), static_cast<unsigned>(4 * consumers));
    }
    MbarrierInitFence();
  }
  __syncthreads();
  const int group = thread / kGroupThreads - 1;
  if (group < 0) {
    RegistersDecrease<24>();
    if (thread == 0) Produce<kD>(work, &maps);
  } else {
    RegistersIncrease<240>();
    if (group < consumers) {
      Consumer<T, kD, kOwnKeys>{g, work, group, thread % kGroupThreads}.Run();
    }
  }
#else
  (void)g;
#endif
}

cudaError_t MapOf(const AttentionParams& p, const void* base, int heads, CUtensorMap* map) {
  const int64_t row = int64_t{p.head_dim} * 2;
  return MakeTensorMap({.base = base,
                        .element_bytes = 2,
                        .rank = 3,
                        .sizes = {p.head_dim, heads, p.tokens},
                        .strides = {0, row, row * heads},
                        .box = {kBoxColumns, 1, kRows},
                        .swizzled = true},
                       map);
}

template <typename T, int kD>
cudaError_t LaunchGradient(const AttentionGradParams& g, cudaStream_t stream) {
  const AttentionParams& p = g.forward;
  Maps maps{};
  for (const cudaError_t error :
       {MapOf(p, p.q, p.heads, &maps.q), MapOf(p, p.k, p.kv_heads, &maps.k),
        MapOf(p, p.v, p.kv_heads, &maps.v), MapOf(p, g.dout, p.heads, &maps.dout)}) {
    if (error != cudaSuccess) return error;
  }
  const auto tiles = static_cast<unsigned>(TileBound(p.tokens, p.sequences, 1, kOwn));
  constexpr unsigned kThreads = kGroupThreads * (kConsumers + 1);
  const cudaError_t error =
      Launch(Gradient<T, kD, false>, dim3(tiles, static_cast<unsigned>(p.heads)), kThreads,
             Shared<kD>::kBytes, stream, g, maps);
  if (error != cudaSuccess) return error;
  return Launch(Gradient<T, kD, true>, dim3(tiles, static_cast<unsigned>(p.kv_heads)), kThreads,
                Shared<kD>::kBytes, stream, g, maps);
}

}  // namespace

cudaError_t AttentionGradHopper(const AttentionGradParams& g, cudaStream_t stream) {
  if (g.forward.tokens == 0) return cudaSuccess;
  const bool small = g.forward.head_dim == 64;
  if (g.forward.dtype == TANDEM_CUDA_F16) {
    return small ? LaunchGradient<F16, 64>(g, stream) : LaunchGradient<F16, 128>(g, stream);
  }
  return small ? LaunchGradient<Bf16, 64>(g, stream) : LaunchGradient<Bf16, 128>(g, stream);
}

}  // namespace tandem::cuda

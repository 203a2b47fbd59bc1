// The backward pass by mma.sync (sm_80 and later): bf16 and f16, head dimensions 64 and 128.
//
// One kernel in two forms. A block owns 64 keys and goes through the rows of queries that see them
// (dK, dV), or owns 64 rows and goes through the keys that they see (dQ), 32 of the others at a
// time, always in order. P and dS, rounded to the 16-bit type, stay in registers: the block's own
// are the rows of every product.
#include "engine/backend/cuda/kernels/attention_kernels.h"
#include "engine/backend/cuda/kernels/attention_mma.h"

namespace tandem::cuda {
namespace {

constexpr int kThreads = 128, kOwn = 64, kOther = 32, kStages = 2;

// Per row of queries, where these are the others.
struct RowFacts {
  float lse[kOther], delta[kOther];  // lse in base 2
  int position[kOther];
};

template <int kD>
struct Shared {
  static constexpr int kOwnBytes = kOwn * kD * 2, kOtherBytes = kOther * kD * 2;
  static constexpr size_t kBytes = 2 * kOwnBytes + kStages * (2 * kOtherBytes + sizeof(RowFacts));

  // Q and dO, or K and V.
  __device__ static char* Own(int which) { return DynamicShared() + which * kOwnBytes; }
  __device__ static char* Other(int stage, int which) {
    return DynamicShared() + 2 * kOwnBytes + (2 * stage + which) * kOtherBytes;
  }
  __device__ static RowFacts& Facts(int stage) {
    return reinterpret_cast<RowFacts*>(DynamicShared() + 2 * kOwnBytes +
                                       kStages * 2 * kOtherBytes)[stage];
  }
};

// One sequence and key/value head. Rows of queries are (token, head of the group).
template <typename T, int kD>
struct Sequence {
  const AttentionGradParams& g;
  int start, tokens, kv_head, group;

  __device__ __forceinline__ int64_t Query(int row) const {
    return (static_cast<int64_t>(start) + row / group) * g.forward.heads + kv_head * group +
           row % group;
  }
  __device__ __forceinline__ int64_t Key(int key) const {
    return (static_cast<int64_t>(start) + key) * g.forward.kv_heads + kv_head;
  }
  // Copies rows of two tensors; zeros beyond the sequence.
  __device__ __forceinline__ void CopyQueries(char* q, char* dout, int first, int count) const {
    const int end = tokens * group;
    CopyTile<T, kD, kThreads>(q, count, [&](int i) {
      return first + i < end ? static_cast<const T*>(g.forward.q) + Query(first + i) * kD
                             : static_cast<const T*>(nullptr);
    });
    CopyTile<T, kD, kThreads>(dout, count, [&](int i) {
      return first + i < end ? static_cast<const T*>(g.dout) + Query(first + i) * kD
                             : static_cast<const T*>(nullptr);
    });
  }
  __device__ __forceinline__ void CopyKeys(char* k, char* v, int first, int count) const {
    CopyTile<T, kD, kThreads>(k, count, [&](int i) {
      return first + i < tokens ? static_cast<const T*>(g.forward.k) + Key(first + i) * kD
                                : static_cast<const T*>(nullptr);
    });
    CopyTile<T, kD, kThreads>(v, count, [&](int i) {
      return first + i < tokens ? static_cast<const T*>(g.forward.v) + Key(first + i) * kD
                                : static_cast<const T*>(nullptr);
    });
  }
  // A row that does not exist has no probability.
  __device__ __forceinline__ void ReadFacts(int row, float* lse, float* delta,
                                            int* position) const {
    const bool exists = row < tokens * group;
    *lse = exists ? g.forward.lse[Query(row)] * kLog2e : INFINITY;
    *delta = exists ? g.delta[Query(row)] : 0.0f;
    *position = exists ? row / group : -1;
  }
};

// c (16, 32) += own rows . other rows
template <typename T, int kD>
__device__ __forceinline__ void Products(OperandBase own, OperandBase other,
                                         float (&c)[kOther / 2]) {
#pragma unroll
  for (int i = 0; i < kOther / 2; ++i) c[i] = 0;
#pragma unroll
  for (int step = 0; step < kD / 16; ++step) {
    uint32_t a[4];
    LoadA<kD>(own, step, a);
#pragma unroll
    for (int j = 0; j < kOther / 16; ++j) {
      uint32_t b[4];
      LoadB<kD>(other, 16 * j, step, b);
      MmaColumns<T>(c, 2 * j, a, b[0], b[1]);
      MmaColumns<T>(c, 2 * j + 1, a, b[2], b[3]);
    }
  }
}

// sum (16, kD) += factors (16, 32) . other rows
template <typename T, int kD>
__device__ __forceinline__ void AddProducts(const float (&factors)[kOther / 2], OperandBase other,
                                            float (&sum)[kD / 2]) {
#pragma unroll
  for (int step = 0; step < kOther / 16; ++step) {
    uint32_t a[4];
    PackOperand<T>(factors, step, a);
#pragma unroll
    for (int j = 0; j < kD / 16; ++j) {
      uint32_t b[4];
      LoadBTransposed<kD>(other, 16 * step, j, b);
      MmaColumns<T>(sum, 2 * j, a, b[0], b[1]);
      MmaColumns<T>(sum, 2 * j + 1, a, b[2], b[3]);
    }
  }
}

template <typename T, int kD, bool kOwnKeys>
__global__ void __launch_bounds__(kThreads) Gradient(AttentionGradParams g) {
  const AttentionParams& p = g.forward;
  const int group = p.heads / p.kv_heads;
  int tile = static_cast<int>(kOwnKeys ? blockIdx.x : gridDim.x - 1 - blockIdx.x), number = 0;
  if (!FindTile(p.query_start, p.sequences, kOwnKeys ? 1 : group, kOwn, &tile, &number)) return;
  const int start = p.query_start[number], tokens = p.query_start[number + 1] - start;
  const Sequence<T, kD> sequence{g, start, tokens, static_cast<int>(blockIdx.y), group};
  const int own = tile * kOwn, rows = tokens * group;
  // The others that matter: rows from the first key's token on, or keys up to the last row's.
  const int last_row = own + kOwn < rows ? own + kOwn - 1 : rows - 1;
  const int first = kOwnKeys ? own * group : 0;
  const int end = kOwnKeys ? rows : last_row / group + 1;

  using S = Shared<kD>;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const auto copy_others = [&](int from, int stage) {
    if (kOwnKeys) {
      sequence.CopyQueries(S::Other(stage, 0), S::Other(stage, 1), from, kOther);
      RowFacts& facts = S::Facts(stage);
      if (thread < kOther) {
        sequence.ReadFacts(from + thread, &facts.lse[thread], &facts.delta[thread],
                           &facts.position[thread]);
      }
    } else {
      sequence.CopyKeys(S::Other(stage, 0), S::Other(stage, 1), from, kOther);
    }
  };
  if (kOwnKeys) {
    sequence.CopyKeys(S::Own(0), S::Own(1), own, kOwn);
  } else {
    sequence.CopyQueries(S::Own(0), S::Own(1), own, kOwn);
  }
  copy_others(first, 0);
  CommitCopies();

  // The thread's own rows, row and row + 8.
  const int row = own + 16 * warp + lane / 4;
  float lse[2] = {}, delta[2] = {};
  int position[2] = {};
  if (!kOwnKeys) {
#pragma unroll
    for (int r = 0; r < 2; ++r) sequence.ReadFacts(row + 8 * r, &lse[r], &delta[r], &position[r]);
  }
  const float c = p.scale * kLog2e;
  float sum_a[kD / 2], sum_b[kOwnKeys ? kD / 2 : 1];  // dQ; or dK and dV
#pragma unroll
  for (int i = 0; i < kD / 2; ++i) sum_a[i] = 0;
#pragma unroll
  for (int i = 0; i < (kOwnKeys ? kD / 2 : 1); ++i) sum_b[i] = 0;

  int stage = 0;
  for (int other = first; other < end; other += kOther, stage ^= 1) {
    if (other + kOther < end) copy_others(other + kOther, stage ^ 1);
    CommitCopies();
    WaitCopies<1>();
    __syncthreads();
    float probability[kOther / 2], ds[kOther / 2];
    Products<T, kD>(RowBase<kD>(S::Own(0), 16 * warp).Renewed(), ColumnBase<kD>(S::Other(stage, 0)),
                    probability);
    Products<T, kD>(RowBase<kD>(S::Own(1), 16 * warp).Renewed(), ColumnBase<kD>(S::Other(stage, 1)),
                    ds);
#pragma unroll
    for (int i = 0; i < kOther / 2; ++i) {
      const int r = i / 2 % 2, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      float row_lse = lse[r], row_delta = delta[r];
      bool seen;
      if (kOwnKeys) {
        const RowFacts& facts = S::Facts(stage);
        row_lse = facts.lse[column];
        row_delta = facts.delta[column];
        seen = row + 8 * r <= facts.position[column];
      } else {
        seen = other + column <= position[r];
      }
      probability[i] = seen ? Probability(probability[i], row_lse, c) : 0.0f;
      ds[i] = probability[i] * (ds[i] - row_delta);
    }
    AddProducts<T, kD>(ds, RowBase<kD>(S::Other(stage, 0), 0), sum_a);
    if constexpr (kOwnKeys) {
      AddProducts<T, kD>(probability, RowBase<kD>(S::Other(stage, 1), 0), sum_b);
    }
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int i = row + 8 * r;
    if constexpr (kOwnKeys) {
      if (i >= tokens) continue;
      WriteGradientRow<T>(g.dk, sequence.Key(i), r, p.scale, sum_a);
      WriteGradientRow<T>(g.dv, sequence.Key(i), r, 1.0f, sum_b);
    } else {
      if (i < rows) WriteGradientRow<T>(g.dq, sequence.Query(i), r, p.scale, sum_a);
    }
  }
}

template <typename T, int kD>
cudaError_t LaunchGradient(const AttentionGradParams& g, cudaStream_t stream) {
  const AttentionParams& p = g.forward;
  const auto heads = static_cast<unsigned>(p.kv_heads);
  const auto rows =
      static_cast<unsigned>(TileBound(p.tokens, p.sequences, p.heads / p.kv_heads, kOwn));
  const auto keys = static_cast<unsigned>(TileBound(p.tokens, p.sequences, 1, kOwn));
  const cudaError_t error =
      Launch(Gradient<T, kD, false>, dim3(rows, heads), kThreads, Shared<kD>::kBytes, stream, g);
  if (error != cudaSuccess) return error;
  return Launch(Gradient<T, kD, true>, dim3(keys, heads), kThreads, Shared<kD>::kBytes, stream, g);
}

}  // namespace

cudaError_t AttentionGradMma(const AttentionGradParams& g, cudaStream_t stream) {
  const bool small = g.forward.head_dim == 64;
  if (g.forward.dtype == TANDEM_CUDA_F16) {
    return small ? LaunchGradient<F16, 64>(g, stream) : LaunchGradient<F16, 128>(g, stream);
  }
  return small ? LaunchGradient<Bf16, 64>(g, stream) : LaunchGradient<Bf16, 128>(g, stream);
}

}  // namespace tandem::cuda

// The backward pass in plain f32 arithmetic: P = exp(scale Q K^T - lse), dS = P (dO V^T - delta),
// dQ = scale dS K, dK = scale dS^T Q, dV = P^T dO. One kernel sums over keys, the other over rows
// of queries, each in order; both have four warps a block, four rows (or keys) a warp, and a lane
// for each of 32 of the others.
#include "engine/backend/cuda/kernels/attention_kernels.h"

namespace tandem::cuda {
namespace {

constexpr int kThreads = 128, kOwn = 16, kWarpOwn = 4, kOther = 32;

// Two of the block's own tensors, two of the others', and the warps' factors.
struct Shared {
  float *own_a, *own_b;      // (kOwn, D)
  float *other_a, *other_b;  // (kOther, D + 1)
  float *ds, *p;             // (kOwn, kOther)

  __host__ __device__ static size_t Bytes(int head_dim) {
    return 2 * sizeof(float) * (kOwn * head_dim + kOther * (head_dim + 1) + kOwn * kOther);
  }
  __device__ explicit Shared(int head_dim) {
    own_a = reinterpret_cast<float*>(DynamicShared());
    own_b = own_a + kOwn * head_dim;
    other_a = own_b + kOwn * head_dim;
    other_b = other_a + kOther * (head_dim + 1);
    ds = other_b + kOther * (head_dim + 1);
    p = ds + kOwn * kOther;
  }
};

// Where row i of (token, head) rows of a sequence starts in a (N, H, D) tensor, in rows of D.
__device__ __forceinline__ int64_t QueryRow(const AttentionParams& p, int start, int kv_head,
                                            int row) {
  const int group = p.heads / p.kv_heads;
  return (static_cast<int64_t>(start) + row / group) * p.heads + kv_head * group + row % group;
}
__device__ __forceinline__ int64_t KeyRow(const AttentionParams& p, int start, int kv_head,
                                          int key) {
  return (static_cast<int64_t>(start) + key) * p.kv_heads + kv_head;
}

// `count` rows (rows_of(i) says where in units of D) to shared memory; zero from `end` on.
template <typename T, typename RowOf>
__device__ void LoadRows(const void* from, int count, int end, int head_dim, int stride,
                         RowOf row_of, float* to) {
#pragma unroll 2
  for (int i = static_cast<int>(threadIdx.x); i < count * head_dim; i += kThreads) {
    const int row = i / head_dim, d = i - row * head_dim;
    to[row * stride + d] =
        row < end ? ToFloat(static_cast<const T*>(from)[row_of(row) * head_dim + d]) : 0.0f;
  }
}

// s[i] = own_a[own + i] . other_a[lane], t[i] = own_b[own + i] . other_b[lane]
__device__ __forceinline__ void Products(const Shared& shared, int own, int lane, int head_dim,
                                         float (&s)[kWarpOwn], float (&t)[kWarpOwn]) {
#pragma unroll
  for (int i = 0; i < kWarpOwn; ++i) s[i] = t[i] = 0;
  const float* const a = shared.other_a + lane * (head_dim + 1);
  const float* const b = shared.other_b + lane * (head_dim + 1);
#pragma unroll 4
  for (int d = 0; d < head_dim; ++d) {
#pragma unroll
    for (int i = 0; i < kWarpOwn; ++i) {
      s[i] = fmaf(shared.own_a[(own + i) * head_dim + d], a[d], s[i]);
      t[i] = fmaf(shared.own_b[(own + i) * head_dim + d], b[d], t[i]);
    }
  }
}

// sum[i][j] += factor[own + i] . other over the 32 others
template <int kLaneDims>
__device__ __forceinline__ void AddProducts(const float* factor, const float* other, int own,
                                            int lane, int head_dim,
                                            float (&sum)[kWarpOwn][kLaneDims]) {
#pragma unroll 2
  for (int k = 0; k < kOther; ++k) {
#pragma unroll
    for (int j = 0; j < kLaneDims; ++j) {
      const int d = lane + 32 * j;
      if (d >= head_dim) continue;
#pragma unroll
      for (int i = 0; i < kWarpOwn; ++i) {
        sum[i][j] = fmaf(factor[(own + i) * kOther + k], other[k * (head_dim + 1) + d], sum[i][j]);
      }
    }
  }
}

template <typename T, int kLaneDims>
__device__ __forceinline__ void WriteRow(void* to, int64_t row, int lane, int head_dim, float scale,
                                         const float (&sum)[kLaneDims]) {
#pragma unroll
  for (int j = 0; j < kLaneDims; ++j) {
    const int d = lane + 32 * j;
    if (d < head_dim) FromFloat(sum[j] * scale, &static_cast<T*>(to)[row * head_dim + d]);
  }
}

template <typename T, int kLaneDims>
__global__ void __launch_bounds__(kThreads, 4) QueryGradient(AttentionGradParams g) {
  const AttentionParams& p = g.forward;
  QueryTile tile;
  if (!FindQueryTile(p, static_cast<int>(gridDim.x - 1 - blockIdx.x), kOwn, &tile)) return;
  const int kv_head = static_cast<int>(blockIdx.y), head_dim = p.head_dim;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int own = static_cast<int>(threadIdx.x) / 32 * kWarpOwn;
  const Shared shared(head_dim);
  const auto query = [&](int i) { return QueryRow(p, tile.start, kv_head, tile.row + i); };
  LoadRows<T>(p.q, kOwn, tile.rows, head_dim, head_dim, query, shared.own_a);
  LoadRows<T>(g.dout, kOwn, tile.rows, head_dim, head_dim, query, shared.own_b);
  float lse[kWarpOwn], delta[kWarpOwn], sum[kWarpOwn][kLaneDims] = {};
#pragma unroll
  for (int i = 0; i < kWarpOwn; ++i) {
    lse[i] = own + i < tile.rows ? p.lse[query(own + i)] * kLog2e : 0.0f;
    delta[i] = own + i < tile.rows ? g.delta[query(own + i)] : 0.0f;
  }
  for (int first = 0; first < tile.KeyEnd(); first += kOther) {
    const auto key = [&](int i) { return KeyRow(p, tile.start, kv_head, first + i); };
    __syncthreads();
    const int end = tile.Keys() - first;
    LoadRows<T>(p.k, kOther, end, head_dim, head_dim + 1, key, shared.other_a);
    LoadRows<T>(p.v, kOther, end, head_dim, head_dim + 1, key, shared.other_b);
    __syncthreads();
    float s[kWarpOwn], dp[kWarpOwn];
    Products(shared, own, lane, head_dim, s, dp);
#pragma unroll
    for (int i = 0; i < kWarpOwn; ++i) {
      const bool seen = own + i < tile.rows && first + lane <= tile.Position(own + i);
      const float probability = seen ? Probability(s[i], lse[i], p.scale * kLog2e) : 0.0f;
      shared.ds[(own + i) * kOther + lane] = probability * (dp[i] - delta[i]);
    }
    __syncwarp();
    AddProducts(shared.ds, shared.other_a, own, lane, head_dim, sum);
  }
#pragma unroll
  for (int i = 0; i < kWarpOwn; ++i) {
    if (own + i < tile.rows) WriteRow<T>(g.dq, query(own + i), lane, head_dim, p.scale, sum[i]);
  }
}

template <typename T, int kLaneDims>
__global__ void __launch_bounds__(kThreads, 4) KeyGradients(AttentionGradParams g) {
  const AttentionParams& p = g.forward;
  int tile = static_cast<int>(blockIdx.x), sequence = 0;
  if (!FindTile(p.query_start, p.sequences, 1, kOwn, &tile, &sequence)) return;
  const int start = p.query_start[sequence], tokens = p.query_start[sequence + 1] - start;
  const int kv_head = static_cast<int>(blockIdx.y), head_dim = p.head_dim;
  const int first_key = tile * kOwn, keys = tokens - first_key;
  const int group = p.heads / p.kv_heads, rows = tokens * group;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int own = static_cast<int>(threadIdx.x) / 32 * kWarpOwn;
  const Shared shared(head_dim);
  const auto key = [&](int i) { return KeyRow(p, start, kv_head, first_key + i); };
  LoadRows<T>(p.k, kOwn, keys, head_dim, head_dim, key, shared.own_a);
  LoadRows<T>(p.v, kOwn, keys, head_dim, head_dim, key, shared.own_b);
  float dk[kWarpOwn][kLaneDims] = {}, dv[kWarpOwn][kLaneDims] = {};
  // The rows of earlier tokens see none of these keys.
  for (int first = first_key * group; first < rows; first += kOther) {
    const auto query = [&](int i) { return QueryRow(p, start, kv_head, first + i); };
    __syncthreads();
    LoadRows<T>(p.q, kOther, rows - first, head_dim, head_dim + 1, query, shared.other_a);
    LoadRows<T>(g.dout, kOther, rows - first, head_dim, head_dim + 1, query, shared.other_b);
    __syncthreads();
    const bool valid = first + lane < rows;
    const int position = (first + lane) / group;
    const float lse = valid ? p.lse[query(lane)] * kLog2e : 0.0f;
    const float delta = valid ? g.delta[query(lane)] : 0.0f;
    float s[kWarpOwn], dp[kWarpOwn];
    Products(shared, own, lane, head_dim, s, dp);
#pragma unroll
    for (int i = 0; i < kWarpOwn; ++i) {
      const bool seen = valid && first_key + own + i <= position;
      const float probability = seen ? Probability(s[i], lse, p.scale * kLog2e) : 0.0f;
      shared.p[(own + i) * kOther + lane] = probability;
      shared.ds[(own + i) * kOther + lane] = probability * (dp[i] - delta);
    }
    __syncwarp();
    AddProducts(shared.ds, shared.other_a, own, lane, head_dim, dk);
    AddProducts(shared.p, shared.other_b, own, lane, head_dim, dv);
  }
#pragma unroll
  for (int i = 0; i < kWarpOwn; ++i) {
    if (own + i >= keys) continue;
    WriteRow<T>(g.dk, key(own + i), lane, head_dim, p.scale, dk[i]);
    WriteRow<T>(g.dv, key(own + i), lane, head_dim, 1.0f, dv[i]);
  }
}

template <typename T, int kLaneDims>
cudaError_t LaunchGradient(const AttentionGradParams& g, cudaStream_t stream) {
  const AttentionParams& p = g.forward;
  const size_t shared = Shared::Bytes(p.head_dim);
  const auto heads = static_cast<unsigned>(p.kv_heads);
  const auto rows =
      static_cast<unsigned>(TileBound(p.tokens, p.sequences, p.heads / p.kv_heads, kOwn));
  const auto keys = static_cast<unsigned>(TileBound(p.tokens, p.sequences, 1, kOwn));
  const cudaError_t error =
      Launch(QueryGradient<T, kLaneDims>, dim3(rows, heads), kThreads, shared, stream, g);
  if (error != cudaSuccess) return error;
  return Launch(KeyGradients<T, kLaneDims>, dim3(keys, heads), kThreads, shared, stream, g);
}

template <typename T>
cudaError_t LaunchGradient(const AttentionGradParams& g, cudaStream_t stream) {
  if (g.forward.head_dim <= 64) return LaunchGradient<T, 2>(g, stream);
  if (g.forward.head_dim <= 128) return LaunchGradient<T, 4>(g, stream);
  return LaunchGradient<T, 8>(g, stream);
}

}  // namespace

cudaError_t AttentionGradGeneric(const AttentionGradParams& g, cudaStream_t stream) {
  if (g.forward.dtype == TANDEM_CUDA_F32) return LaunchGradient<float>(g, stream);
  if (g.forward.dtype == TANDEM_CUDA_F16) return LaunchGradient<F16>(g, stream);
  return LaunchGradient<Bf16>(g, stream);
}

}  // namespace tandem::cuda

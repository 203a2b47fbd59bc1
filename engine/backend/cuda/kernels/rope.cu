// Rotary positions.
#include "engine/backend/cuda/kernels/rows.h"

namespace tandem::cuda {
namespace {

// N consecutive elements as floats, by 16-byte loads where N > 1.
template <typename T, int N>
__device__ __forceinline__ void LoadFloats(const T* p, float (&v)[N]) {
  if constexpr (N == 1) {
    v[0] = ToFloat(p[0]);
  } else {
#pragma unroll
    for (int i = 0; i < N / kVector<T>; ++i) {
      const uint4 w = reinterpret_cast<const uint4*>(p)[i];
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) v[i * kVector<T> + j] = Element<T>(w, j);
    }
  }
}
template <typename T, int N>
__device__ __forceinline__ void StoreFloats(const float (&v)[N], T* p) {
  if constexpr (N == 1) {
    p[0] = FromFloat<T>(v[0]);
  } else {
    static_assert(N == kVector<T>);
    *reinterpret_cast<uint4*>(p) = PackVector<T>(v);
  }
}

// A thread a group of N pairs.
template <typename T, typename Table, int N>
__global__ void __launch_bounds__(256) Rope(tandem_cuda_rope_params p) {
  const int64_t half = p.head_dim / 2;
  const int groups = static_cast<int>(half / N);
  const int token_groups = static_cast<int>(p.heads) * groups;
  const int64_t all = p.tokens * token_groups;
  for (int64_t index = GridIndex(); index < all; index += GridStride()) {
    const int64_t token = index / token_groups;
    const int place = static_cast<int>(index - token * token_groups);
    const int head = place / groups;
    const int64_t i = int64_t{place - head * groups} * N;
    const int64_t given = p.positions[token], last = p.table_positions - 1;
    const int64_t position = given < 0 ? 0 : given > last ? last : given;
    const Table* const angles = static_cast<const Table*>(p.table) + position * p.head_dim + i;
    const T* const x = static_cast<const T*>(p.x) + token * p.x_stride + head * p.head_dim + i;
    T* const out = static_cast<T*>(p.out) + token * p.out_stride + head * p.head_dim + i;
    float a[N], b[N], cosine[N], sine[N];
    LoadFloats(x, a);
    LoadFloats(x + half, b);
    LoadFloats(angles, cosine);
    LoadFloats(angles + half, sine);
    float first[N], second[N];
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float s = p.inverse != 0 ? -sine[j] : sine[j];
      first[j] = fmaf(-b[j], s, a[j] * cosine[j]);
      second[j] = fmaf(a[j], s, b[j] * cosine[j]);
    }
    StoreFloats(first, out);
    StoreFloats(second, out + half);
  }
}

template <typename T, typename Table>
int LaunchRope(const tandem_cuda_rope_params& p, cudaStream_t stream) {
  constexpr int64_t kSize = sizeof(T);
  const int64_t half = p.head_dim / 2;
  const bool vectors =
      half % kVector<T> == 0 && RowsAligned(p.x_stride * kSize, p.x, p.out, p.table) &&
      RowsAligned(p.out_stride * kSize) && RowsAligned(half * static_cast<int64_t>(sizeof(Table)));
  const int64_t threads = p.tokens * p.heads * (vectors ? half / kVector<T> : half);
  return Launch(vectors ? Rope<T, Table, kVector<T>> : Rope<T, Table, 1>, BlocksFor(threads, 256),
                256, 0, stream, p);
}

}  // namespace
}  // namespace tandem::cuda

int tandem_cuda_rope(const struct tandem_cuda_rope_params* p, tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  if (p->heads * p->head_dim > kMaxColumns) return TANDEM_CUDA_UNSUPPORTED;
  return WithFloat(p->dtype, [&](auto zero) -> int {
    using T = decltype(zero);
    const auto s = static_cast<cudaStream_t>(stream);
    if (p->table_dtype == p->dtype) return LaunchRope<T, T>(*p, s);
    if (p->table_dtype == TANDEM_CUDA_F32) return LaunchRope<T, float>(*p, s);
    return TANDEM_CUDA_UNSUPPORTED;
  });
}

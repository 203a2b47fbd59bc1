// The gradient of an embedding, without floating-point atomics.
//
// The ids are bucketed with integer atomics: every token counts itself into its row (Count), one
// token of each row that occurs reserves the bucket (Reserve), and every token enters it (Enter).
// Where a bucket lies and in what order it was filled differs from run to run; AddBucket puts it
// in order before it adds. Rows that do not occur cost their zeros alone.
#include "engine/backend/cuda/kernels/rows.h"

namespace tandem::cuda {
namespace {

constexpr int kThreads = 256;
// A bucket of more is put in order by scanning the ids instead: at most rows / kSorted of them.
constexpr int kSorted = 1024;

struct Buckets {
  int *cursor, *counts, *starts;  // 1, vocabulary and vocabulary of them
  int *ranks, *entries;           // rows of each
  Buckets(void* scratch, int64_t rows, int64_t vocabulary)
      : cursor(static_cast<int*>(scratch)),
        counts(cursor + 1),
        starts(counts + vocabulary),
        ranks(starts + vocabulary),
        entries(ranks + rows) {}
  static int64_t Bytes(int64_t rows, int64_t vocabulary) {
    return (1 + 2 * vocabulary + 2 * rows) * static_cast<int64_t>(sizeof(int));
  }
};

struct GatherGradParams {
  const void *dy, *ids;
  void* out;
  int64_t cols;
  int rows, vocabulary;
};

template <typename Id>
__device__ __forceinline__ int Place(const GatherGradParams& p, int i) {
  int64_t id = static_cast<const Id*>(p.ids)[i];
  if (id < 0) id += p.vocabulary;
  return static_cast<int>(id < 0 ? 0 : id >= p.vocabulary ? p.vocabulary - 1 : id);
}

template <typename Id>
__global__ void __launch_bounds__(kThreads) Count(GatherGradParams p, Buckets buckets) {
  for (int64_t i = GridIndex(); i < p.rows; i += GridStride()) {
    const int at = static_cast<int>(i);
    buckets.ranks[at] = atomicAdd(&buckets.counts[Place<Id>(p, at)], 1);
  }
}

template <typename Id>
__global__ void __launch_bounds__(kThreads) Reserve(GatherGradParams p, Buckets buckets) {
  for (int64_t i = GridIndex(); i < p.rows; i += GridStride()) {
    const int at = static_cast<int>(i);
    if (buckets.ranks[at] != 0) continue;
    const int id = Place<Id>(p, at);
    buckets.starts[id] = atomicAdd(buckets.cursor, buckets.counts[id]);
  }
}

template <typename Id>
__global__ void __launch_bounds__(kThreads) Enter(GatherGradParams p, Buckets buckets) {
  for (int64_t i = GridIndex(); i < p.rows; i += GridStride()) {
    const int at = static_cast<int>(i);
    buckets.entries[buckets.starts[Place<Id>(p, at)] + buckets.ranks[at]] = at;
  }
}

// What sums of T are kept in.
template <typename T>
struct Sum {
  using Type = float;
  __device__ __forceinline__ static float Widen(T x) { return ToFloat(x); }
  __device__ __forceinline__ static T Narrow(float x) { return FromFloat<T>(x); }
};
template <typename T>
struct PlainSum {
  using Type = T;
  __device__ __forceinline__ static T Widen(T x) { return x; }
  __device__ __forceinline__ static T Narrow(T x) { return x; }
};
template <>
struct Sum<double> : PlainSum<double> {};
template <>
struct Sum<uint32_t> : PlainSum<uint32_t> {};
template <>
struct Sum<uint64_t> : PlainSum<uint64_t> {};

// N elements of a row, moved at once.
template <typename T, int N>
struct alignas(sizeof(T) * N) Elements {
  T x[N];
};

template <typename T, int N>
__device__ __forceinline__ void AddTokens(const GatherGradParams& p, const int* tokens, int count,
                                          int64_t column, typename Sum<T>::Type (&sums)[N]) {
  if (column >= p.cols) return;
#pragma unroll 4
  for (int k = 0; k < count; ++k) {
    const T* const from = static_cast<const T*>(p.dy) + int64_t{tokens[k]} * p.cols + column;
    const auto dy = *reinterpret_cast<const Elements<T, N>*>(from);
#pragma unroll
    for (int j = 0; j < N; ++j) sums[j] += Sum<T>::Widen(dy.x[j]);
  }
}

// The bucket in order: each entry goes where as many lie before it as are smaller.
__device__ __forceinline__ void SortInto(const int* bucket, int count, int* unsorted, int* sorted) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) unsorted[i] = bucket[i];
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    int smaller = 0;
    for (int k = 0; k < count; ++k) smaller += unsorted[k] < unsorted[i] ? 1 : 0;
    sorted[smaller] = unsorted[i];
  }
  __syncthreads();
}

// The next of the ids from `at` on that are `id`, in order, at most kThreads of them; returns how
// many, and moves `at` past the ids looked at.
template <typename Id>
__device__ __forceinline__ int Scan(const GatherGradParams& p, int id, int* at, int* found) {
  __shared__ int of_warp[kThreads / 32];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int i = *at + static_cast<int>(threadIdx.x);
  const bool match = i < p.rows && Place<Id>(p, i) == id;
  const unsigned matches = __ballot_sync(kFullWarp, match ? 1 : 0);
  __syncthreads();  // the last call's are read
  if (lane == 0) of_warp[warp] = __popc(matches);
  __syncthreads();
  int before = __popc(matches & ((1u << lane) - 1)), all = 0;
#pragma unroll
  for (int w = 0; w < kThreads / 32; ++w) {
    if (w < warp) before += of_warp[w];
    all += of_warp[w];
  }
  if (match) found[before] = i;
  __syncthreads();
  *at += kThreads;
  return all;
}

// A block for each token that reserved a bucket and each tile of kThreads x N columns.
template <typename T, typename Id, int N>
__global__ void __launch_bounds__(kThreads, 4) AddBucket(GatherGradParams p, Buckets buckets) {
  __shared__ int sorted[kSorted], unsorted[kSorted];
  const int64_t column = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * N;
  for (int64_t token = blockIdx.x; token < p.rows; token += gridDim.x) {
    const int i = static_cast<int>(token);
    if (buckets.ranks[i] != 0) continue;
    const int id = Place<Id>(p, i), count = buckets.counts[id];
    typename Sum<T>::Type sums[N] = {};
    __syncthreads();  // the last bucket's tokens are read
    if (count <= kSorted) {
      const int* tokens = &buckets.entries[buckets.starts[id]];
      if (count > 1) {
        SortInto(tokens, count, unsorted, sorted);
        tokens = sorted;
      }
      AddTokens<T, N>(p, tokens, count, column, sums);
    } else {
      for (int at = 0; at < p.rows;) {
        const int found = Scan<Id>(p, id, &at, sorted);
        AddTokens<T, N>(p, sorted, found, column, sums);
      }
    }
    if (column >= p.cols) continue;
    Elements<T, N> row;
#pragma unroll
    for (int j = 0; j < N; ++j) row.x[j] = Sum<T>::Narrow(sums[j]);
    *reinterpret_cast<Elements<T, N>*>(static_cast<T*>(p.out) + int64_t{id} * p.cols + column) =
        row;
  }
}

template <typename T, typename Id>
int LaunchGatherGrad(const GatherGradParams& p, const Buckets& buckets, cudaStream_t stream) {
  const auto bytes = static_cast<size_t>(p.vocabulary) * static_cast<size_t>(p.cols) * sizeof(T);
  if (bytes == 0) return cudaSuccess;
  cudaError_t error = cudaMemsetAsync(p.out, 0, bytes, stream);
  if (error != cudaSuccess || p.rows == 0) return error;
  error = cudaMemsetAsync(buckets.cursor, 0, (1 + size_t{static_cast<unsigned>(p.vocabulary)}) * 4,
                          stream);
  if (error != cudaSuccess) return error;
  const unsigned blocks = BlocksFor(p.rows, kThreads);
  for (const auto kernel : {Count<Id>, Reserve<Id>, Enter<Id>}) {
    error = Launch(kernel, blocks, kThreads, 0, stream, p, buckets);
    if (error != cudaSuccess) return error;
  }
  constexpr int kWide = 16 / static_cast<int>(sizeof(T));
  const bool vectors = RowsAligned(p.cols * static_cast<int64_t>(sizeof(T)), p.dy, p.out);
  const int64_t tiles = BlocksFor(p.cols, int64_t{kThreads} * (vectors ? kWide : 1), p.cols);
  if (tiles > 65535) return TANDEM_CUDA_UNSUPPORTED;
  const dim3 grid(static_cast<unsigned>(p.rows), static_cast<unsigned>(tiles));
  return Launch(vectors ? AddBucket<T, Id, kWide> : AddBucket<T, Id, 1>, grid, kThreads, 0, stream,
                p, buckets);
}

template <typename Id>
int WithElement(int dtype, const GatherGradParams& p, const Buckets& buckets, cudaStream_t stream) {
  switch (dtype) {
    case TANDEM_CUDA_F32:
      return LaunchGatherGrad<float, Id>(p, buckets, stream);
    case TANDEM_CUDA_BF16:
      return LaunchGatherGrad<Bf16, Id>(p, buckets, stream);
    case TANDEM_CUDA_F16:
      return LaunchGatherGrad<F16, Id>(p, buckets, stream);
    case TANDEM_CUDA_F64:
      return LaunchGatherGrad<double, Id>(p, buckets, stream);
    case TANDEM_CUDA_I32:
      return LaunchGatherGrad<uint32_t, Id>(p, buckets, stream);
    case TANDEM_CUDA_I64:
      return LaunchGatherGrad<uint64_t, Id>(p, buckets, stream);
    default:
      return TANDEM_CUDA_UNSUPPORTED;
  }
}

}  // namespace
}  // namespace tandem::cuda

int tandem_cuda_gather_grad_scratch(int64_t rows, int64_t vocabulary, int64_t* bytes) {
  *bytes = tandem::cuda::Buckets::Bytes(rows, vocabulary);
  return 0;
}

int tandem_cuda_gather_grad(const struct tandem_cuda_gather_grad_params* p,
                            tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  if (p->rows > INT32_MAX - kThreads || p->vocabulary > INT32_MAX) return TANDEM_CUDA_UNSUPPORTED;
  const GatherGradParams params = {.dy = p->dy,
                                   .ids = p->ids,
                                   .out = p->out,
                                   .cols = p->cols,
                                   .rows = static_cast<int>(p->rows),
                                   .vocabulary = static_cast<int>(p->vocabulary)};
  const Buckets buckets(p->scratch, p->rows, p->vocabulary);
  const auto s = static_cast<cudaStream_t>(stream);
  return p->id_dtype == TANDEM_CUDA_I64 ? WithElement<int64_t>(p->dtype, params, buckets, s)
                                        : WithElement<int32_t>(p->dtype, params, buckets, s);
}

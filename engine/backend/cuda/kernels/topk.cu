// A block a row: the k-th key by its digits, most significant first; then what is at least that,
// sorted in shared memory.
#include "engine/backend/cuda/kernels/functions.h"
#include "engine/backend/cuda/kernels/types.h"

namespace tandem::cuda {
namespace {

constexpr int kThreads = 256, kDigits = 256;

struct Rows {
  int32_t largest, dtype;
  void* values;
  int64_t* indices;
  const void* x;
  int64_t rows;
  uint32_t n, k, padded;  // padded: k up to a power of two
};

// Keys are in the order of the elements; floats by their bits, NaN all ones, -0 as 0.
__device__ __forceinline__ uint32_t FloatKey(float x) {
  if (IsNaN(x)) return ~0u;
  const unsigned bits = __float_as_uint(x == 0 ? 0.0f : x);
  return bits ^ ((bits >> 31) != 0 ? ~0u : 0x80000000u);
}
__device__ __forceinline__ uint64_t DoubleKey(uint64_t bits) {
  constexpr uint64_t kSign = uint64_t{1} << 63, kInfinity = uint64_t{0x7ff} << 52;
  if ((bits & ~kSign) > kInfinity) return ~uint64_t{0};
  if (bits == kSign) bits = 0;
  return bits ^ ((bits & kSign) != 0 ? ~uint64_t{0} : kSign);
}

__device__ __forceinline__ void LoadKey(const Rows& r, int64_t i, uint32_t* key) {
  switch (r.dtype) {
    case TANDEM_CUDA_F32:
      *key = FloatKey(static_cast<const float*>(r.x)[i]);
      break;
    case TANDEM_CUDA_F16:
      *key = FloatKey(ToFloat(static_cast<const F16*>(r.x)[i]));
      break;
    case TANDEM_CUDA_BF16:
      *key = FloatKey(ToFloat(static_cast<const Bf16*>(r.x)[i]));
      break;
    case TANDEM_CUDA_I8:
    case TANDEM_CUDA_I16:
    case TANDEM_CUDA_I32:
      *key = static_cast<uint32_t>(LoadInteger(r.x, r.dtype, i)) ^ 0x80000000u;
      break;
    default:
      *key = static_cast<uint32_t>(LoadInteger(r.x, r.dtype, i));
      break;
  }
  if (r.largest == 0) *key = ~*key;
}
__device__ __forceinline__ void LoadKey(const Rows& r, int64_t i, uint64_t* key) {
  const uint64_t bits = static_cast<const uint64_t*>(r.x)[i];
  *key = r.dtype == TANDEM_CUDA_F64   ? DoubleKey(bits)
         : r.dtype == TANDEM_CUDA_I64 ? bits ^ uint64_t { 1 } << 63
                                      : bits;
  if (r.largest == 0) *key = ~*key;
}

__device__ __forceinline__ void CopyElement(const Rows& r, int64_t to, int64_t from) {
  switch (r.dtype) {
    case TANDEM_CUDA_F64:
    case TANDEM_CUDA_I64:
    case TANDEM_CUDA_U64:
      static_cast<uint64_t*>(r.values)[to] = static_cast<const uint64_t*>(r.x)[from];
      break;
    case TANDEM_CUDA_F32:
    case TANDEM_CUDA_I32:
    case TANDEM_CUDA_U32:
      static_cast<uint32_t*>(r.values)[to] = static_cast<const uint32_t*>(r.x)[from];
      break;
    case TANDEM_CUDA_I8:
    case TANDEM_CUDA_U8:
      static_cast<uint8_t*>(r.values)[to] = static_cast<const uint8_t*>(r.x)[from];
      break;
    default:
      static_cast<uint16_t*>(r.values)[to] = static_cast<const uint16_t*>(r.x)[from];
      break;
  }
}

// Of the keys that begin with `prefix` (the bits in `mask`): how many have each digit at `shift`,
// or a greater one. To counts[digit]; counts[kDigits] is 0.
template <typename Key>
__device__ void CountDigits(const Rows& r, int64_t row, Key prefix, Key mask, int shift,
                            uint32_t* counts) {
  const unsigned t = threadIdx.x;
  counts[t] = 0;
  if (t == 0) counts[kDigits] = 0;
  __syncthreads();
  for (uint32_t i = t; i < r.n; i += kThreads) {
    Key key;
    LoadKey(r, row + i, &key);
    if ((key & mask) == prefix) {
      atomicAdd(counts + (static_cast<uint32_t>(key >> shift) & (kDigits - 1)), 1u);
    }
  }
  __syncthreads();
  for (unsigned width = 1; width < kDigits; width *= 2) {
    const uint32_t more = t + width < kDigits ? counts[t + width] : 0;
    __syncthreads();
    counts[t] += more;
    __syncthreads();
  }
}

// Appends what is above the threshold, in any order, and the first `equal` of those at it.
template <typename Key>
__device__ void Collect(const Rows& r, int64_t row, Key threshold, uint32_t equal, bool all_equal,
                        uint32_t* counts, Key* keys, uint32_t* places) {
  const unsigned t = threadIdx.x, lane = t % 32, warp = t / 32;
  uint32_t* const taken = counts + kDigits;  // of the output; counts[warp]: equal ones of a warp
  if (t == 0) *taken = 0;
  __syncthreads();
  uint32_t seen = 0;  // equal ones before this tile
  for (uint32_t base = 0; base < r.n; base += kThreads) {
    const uint32_t i = base + t;
    Key key = 0;
    if (i < r.n) LoadKey(r, row + i, &key);
    bool take = i < r.n && (key > threshold || (all_equal && key == threshold));
    if (!all_equal) {
      const bool at = i < r.n && key == threshold;
      const unsigned votes = __ballot_sync(kFullWarp, at ? 1 : 0);
      if (lane == 0) counts[warp] = static_cast<uint32_t>(__popc(votes));
      __syncthreads();
      uint32_t rank = seen + static_cast<uint32_t>(__popc(votes & ((1u << lane) - 1)));
      for (unsigned w = 0; w < kThreads / 32; ++w) {
        if (w < warp) rank += counts[w];
        seen += counts[w];
      }
      take = take || (at && rank < equal);
      __syncthreads();
    }
    if (take) {
      const uint32_t to = atomicAdd(taken, 1u);
      keys[to] = key;
      places[to] = i;
    }
  }
  for (uint32_t i = r.k + t; i < r.padded; i += kThreads) {
    keys[i] = 0;
    places[i] = ~0u;
  }
  __syncthreads();
}

// Batcher's bitonic sort: greater keys first, of equal ones the first place first.
template <typename Key>
__device__ void Sort(uint32_t size, Key* keys, uint32_t* places) {
  for (uint32_t run = 2; run <= size; run *= 2) {
    for (uint32_t apart = run / 2; apart > 0; apart /= 2) {
      for (uint32_t p = threadIdx.x; p < size / 2; p += kThreads) {
        const uint32_t i = p / apart * (2 * apart) + p % apart, j = i + apart;
        const bool in_order = keys[i] > keys[j] || (keys[i] == keys[j] && places[i] < places[j]);
        if (in_order != ((i & run) == 0)) {
          const Key key = keys[i];
          keys[i] = keys[j];
          keys[j] = key;
          const uint32_t place = places[i];
          places[i] = places[j];
          places[j] = place;
        }
      }
      __syncthreads();
    }
  }
}

template <typename Key>
__global__ void __launch_bounds__(kThreads) TopKKernel(const Rows r) {
  auto* const keys = reinterpret_cast<Key*>(DynamicShared());  // (padded)
  auto* const places = reinterpret_cast<uint32_t*>(keys + r.padded);
  uint32_t* const counts = places + r.padded;     // (kDigits + 1)
  uint32_t* const choice = counts + kDigits + 1;  // a digit
  for (int64_t block = blockIdx.x; block < r.rows; block += gridDim.x) {
    const int64_t row = block * r.n;
    Key prefix = 0, mask = 0;
    uint32_t wanted = r.k, found = 0;  // of the keys that begin with prefix
    for (int shift = 8 * static_cast<int>(sizeof(Key)) - 8; shift >= 0; shift -= 8) {
      CountDigits(r, row, prefix, mask, shift, counts);
      const unsigned t = threadIdx.x;
      if (counts[t] >= wanted && counts[t + 1] < wanted) *choice = t;
      __syncthreads();
      const uint32_t digit = *choice;
      found = counts[digit] - counts[digit + 1];
      wanted -= counts[digit + 1];
      prefix |= static_cast<Key>(digit) << shift;
      mask |= static_cast<Key>(kDigits - 1) << shift;
      __syncthreads();
    }
    Collect(r, row, prefix, wanted, wanted == found, counts, keys, places);
    Sort(r.padded, keys, places);
    for (uint32_t i = threadIdx.x; i < r.k; i += kThreads) {
      r.indices[block * r.k + i] = places[i];
      CopyElement(r, block * r.k + i, row + places[i]);
    }
    __syncthreads();
  }
}

template <typename Key>
int LaunchTopK(const Rows& r, tandem_cuda_stream stream) {
  const size_t shared =
      (sizeof(Key) + sizeof(uint32_t)) * r.padded + sizeof(uint32_t) * (kDigits + 2);
  return Launch(TopKKernel<Key>, BlocksFor(r.rows, 1, 132 * 8), kThreads, shared,
                static_cast<cudaStream_t>(stream), r);
}

}  // namespace
}  // namespace tandem::cuda

int tandem_cuda_topk(int32_t largest, int32_t dtype, void* values, int64_t* indices, const void* x,
                     int64_t rows, int64_t n, int64_t k, tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  if (dtype < 0 || dtype >= TANDEM_CUDA_BOOL || k > TANDEM_CUDA_TOPK_MOST || n > kMost<int32_t>) {
    return TANDEM_CUDA_UNSUPPORTED;
  }
  if (k == 0) return cudaSuccess;
  uint32_t padded = 1;
  while (padded < k) padded *= 2;
  const Rows r = {
      largest, dtype, values, indices, x, rows, static_cast<uint32_t>(n), static_cast<uint32_t>(k),
      padded};
  const bool wide =
      dtype == TANDEM_CUDA_F64 || dtype == TANDEM_CUDA_I64 || dtype == TANDEM_CUDA_U64;
  return wide ? LaunchTopK<uint64_t>(r, stream) : LaunchTopK<uint32_t>(r, stream);
}

// Where the largest and the smallest elements are.
#include "engine/backend/cuda/kernels/functions.h"
#include "engine/backend/cuda/kernels/map.h"
#include "engine/backend/cuda/kernels/reduce_kernel.h"
#include "engine/backend/cuda/kernels/types.h"

namespace tandem::cuda {
namespace {

template <typename V>
struct Best {
  V value;
  int64_t index;
};

// Any integer type. u64 keeps its order as i64 with the highest bit flipped.
struct AnyInteger {};

// In: a float, AnyInteger, or Best<V>, an earlier pass' results.
template <typename In, typename V>
struct ArgReduction {
  using Acc = Best<V>;

  int32_t largest, dtype;
  const void* x;
  void* out;  // Best<V> or, at the end, int64_t
  bool last;

  __device__ __forceinline__ Acc Identity() const {
    if constexpr (std::is_integral_v<V>) {
      return {largest != 0 ? kLowest<V> : kMost<V>, kMost<int64_t>};
    } else {
      constexpr V kInfinity = static_cast<V>(HUGE_VALF);
      return {largest != 0 ? -kInfinity : kInfinity, kMost<int64_t>};
    }
  }
  __device__ __forceinline__ Acc Load(int64_t i, int64_t index) const {
    if constexpr (std::is_same_v<In, Best<V>>) {
      return static_cast<const In*>(x)[i];
    } else if constexpr (std::is_same_v<In, AnyInteger>) {
      const int64_t value = LoadInteger(x, dtype, i);
      return {dtype == TANDEM_CUDA_U64 ? value ^ kLowest<int64_t> : value, index};
    } else {
      return {Widen(static_cast<const In*>(x)[i]), index};
    }
  }
  __device__ __forceinline__ void LoadFour(int64_t i, int64_t index, Acc* four) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) four[k] = Load(i + k, index + k);
  }
  __device__ __forceinline__ Acc Combine(Acc a, Acc b) const {
    const bool before = b.index < a.index;
    if (IsNaN(a.value) || IsNaN(b.value)) {
      if (!IsNaN(a.value)) return b;
      return IsNaN(b.value) && before ? b : a;
    }
    if (a.value == b.value) return before ? b : a;
    return (b.value > a.value) == (largest != 0) ? b : a;
  }
  __device__ __forceinline__ Acc Exchange(Acc a, int mask) const {
    return {__shfl_xor_sync(kFullWarp, a.value, mask), __shfl_xor_sync(kFullWarp, a.index, mask)};
  }
  __device__ __forceinline__ void Store(int64_t i, Acc a) const {
    if (last) {
      static_cast<int64_t*>(out)[i] = a.index;
    } else {
      static_cast<Acc*>(out)[i] = a;
    }
  }
};

template <typename In, typename V>
int ArgReduce(int32_t largest, int32_t dtype, int64_t* out, const void* x, int64_t outer, int64_t n,
              int64_t inner, void* scratch, tandem_cuda_stream stream) {
  using Acc = Best<V>;
  static_assert(sizeof(Acc) <= 16);
  const auto to = [&](Acc* results) {
    return results == nullptr ? static_cast<void*>(out) : results;
  };
  return ReduceInPasses<Acc>(
      outer, n, inner, scratch, static_cast<cudaStream_t>(stream),
      [&](Acc* results) {
        return ArgReduction<In, V>{largest, dtype, x, to(results), results == nullptr};
      },
      [&](const Acc* from, Acc* results) {
        return ArgReduction<Acc, V>{largest, dtype, from, to(results), results == nullptr};
      });
}

}  // namespace
}  // namespace tandem::cuda

int tandem_cuda_arg_reduce(int32_t largest, int32_t dtype, int64_t* out, const void* x,
                           int64_t outer, int64_t n, int64_t inner, void* scratch,
                           tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  const auto run = [&](auto reduce) {
    return reduce(largest, dtype, out, x, outer, n, inner, scratch, stream);
  };
  switch (dtype) {
    case TANDEM_CUDA_F32:
      return run(ArgReduce<float, float>);
    case TANDEM_CUDA_F16:
      return run(ArgReduce<F16, float>);
    case TANDEM_CUDA_BF16:
      return run(ArgReduce<Bf16, float>);
    case TANDEM_CUDA_F64:
      return run(ArgReduce<double, double>);
    default:
      if (dtype < 0 || dtype > TANDEM_CUDA_BOOL) return TANDEM_CUDA_UNSUPPORTED;
      return run(ArgReduce<AnyInteger, int64_t>);
  }
}

// Sums, products and extremes.
#include "engine/backend/cuda/kernels/map.h"
#include "engine/backend/cuda/kernels/reduce_kernel.h"
#include "engine/backend/cuda/kernels/types.h"

namespace tandem::cuda {
namespace {

// Any integer type, as its 64 bits.
struct AnyInteger {};

template <int fixed, typename In>
struct Reduction {
  static constexpr bool kInteger = std::is_same_v<In, AnyInteger>;
  using Acc = std::conditional_t<kInteger, int64_t,
                                 std::conditional_t<std::is_same_v<In, double>, double, float>>;

  Choice<fixed> choice;
  int32_t x_dtype, out_dtype;
  const void* x;
  void* out;
  bool aligned;  // four elements may be loaded at once
  bool is_unsigned;
  Acc identity;

  __device__ __forceinline__ Acc Identity() const { return identity; }

  __device__ __forceinline__ Acc Load(int64_t i, int64_t) const {
    if constexpr (kInteger) {
      return LoadInteger(x, x_dtype, i);
    } else {
      return Widen(static_cast<const In*>(x)[i]);
    }
  }
  __device__ __forceinline__ void LoadFour(int64_t i, int64_t index, Acc* four) const {
    if constexpr (!kInteger) {
      if (aligned) {
        const auto pack = LoadPack<4>(static_cast<const In*>(x) + i, 1);
#pragma unroll
        for (int k = 0; k < 4; ++k) four[k] = Widen(pack.element[k]);
        return;
      }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) four[k] = Load(i + k, index + k);
  }
  __device__ __forceinline__ bool Less(Acc a, Acc b) const {
    if constexpr (kInteger) {
      if (is_unsigned) return static_cast<uint64_t>(a) < static_cast<uint64_t>(b);
    }
    return a < b;
  }
  __device__ __forceinline__ Acc Combine(Acc a, Acc b) const {
    switch (choice.Get()) {
      case TANDEM_CUDA_REDUCE_Max:
        return Less(a, b) || b != b ? b : a;
      case TANDEM_CUDA_REDUCE_Min:
        return Less(b, a) || b != b ? b : a;
      case TANDEM_CUDA_REDUCE_Prod:
        if constexpr (kInteger) {
          return static_cast<int64_t>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
        }
        return a * b;
      default:
        if constexpr (kInteger) {
          return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
        }
        return a + b;
    }
  }
  __device__ __forceinline__ Acc Exchange(Acc a, int mask) const {
    return __shfl_xor_sync(kFullWarp, a, mask);
  }
  __device__ __forceinline__ void Store(int64_t i, Acc a) const {
    if constexpr (kInteger) {
      StoreInteger(out, out_dtype, i, a);
    } else if constexpr (std::is_same_v<In, double>) {
      static_cast<double*>(out)[i] = a;
    } else {
      switch (out_dtype) {
        case TANDEM_CUDA_F16:
          static_cast<F16*>(out)[i] = FromFloat<F16>(a);
          break;
        case TANDEM_CUDA_BF16:
          static_cast<Bf16*>(out)[i] = FromFloat<Bf16>(a);
          break;
        default:
          static_cast<float*>(out)[i] = a;
          break;
      }
    }
  }
};

struct Arguments {
  int32_t op, x_dtype, out_dtype;
  void* out;
  const void* x;
  int64_t outer, n, inner;
  void* scratch;
  tandem_cuda_stream stream;
};

// `wide` is Acc's dtype, `In` and `Wide` what the first and the other passes read.
template <int fixed, typename In, typename Wide>
int Reduce(const Arguments& a, int32_t wide, typename Reduction<fixed, In>::Acc identity) {
  using Acc = typename Reduction<fixed, In>::Acc;
  const bool is_unsigned = wide == TANDEM_CUDA_U64;
  const auto aligned = [](const void* x, int64_t n, size_t element_bytes) {
    return n % 4 == 0 && reinterpret_cast<uintptr_t>(x) % (4 * element_bytes) == 0;
  };
  const auto first = [&](Acc* results) {
    const bool last = results == nullptr;
    return Reduction<fixed, In>{{a.op},
                                a.x_dtype,
                                last ? a.out_dtype : wide,
                                a.x,
                                last ? a.out : results,
                                aligned(a.x, a.n, sizeof(In)),
                                is_unsigned,
                                identity};
  };
  const auto next = [&](const Acc* x, Acc* results) {
    const bool last = results == nullptr;
    return Reduction<fixed, Wide>{
        {a.op},      wide,    last ? a.out_dtype : wide, x, last ? a.out : results, false,
        is_unsigned, identity};
  };
  return ReduceInPasses<Acc>(a.outer, a.n, a.inner, a.scratch, static_cast<cudaStream_t>(a.stream),
                             first, next);
}

double Identity(int32_t op) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  switch (op) {
    case TANDEM_CUDA_REDUCE_Max:
      return -kInfinity;
    case TANDEM_CUDA_REDUCE_Min:
      return kInfinity;
    default:
      return op == TANDEM_CUDA_REDUCE_Prod ? 1 : 0;
  }
}

template <typename T>
int64_t IntegerIdentity(int32_t op) {
  switch (op) {
    case TANDEM_CUDA_REDUCE_Max:
      return static_cast<int64_t>(std::numeric_limits<T>::min());
    case TANDEM_CUDA_REDUCE_Min:
      return static_cast<int64_t>(std::numeric_limits<T>::max());
    default:
      return op == TANDEM_CUDA_REDUCE_Prod ? 1 : 0;
  }
}

}  // namespace
}  // namespace tandem::cuda

int tandem_cuda_reduce(int32_t op, int32_t x_dtype, int32_t out_dtype, void* out, const void* x,
                       int64_t outer, int64_t n, int64_t inner, void* scratch,
                       tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  const Arguments a = {op, x_dtype, out_dtype, out, x, outer, n, inner, scratch, stream};
  const auto is_half = [](int32_t t) { return t == TANDEM_CUDA_F16 || t == TANDEM_CUDA_BF16; };
  const bool widens = (x_dtype == TANDEM_CUDA_F32 && is_half(out_dtype)) ||
                      (is_half(x_dtype) && out_dtype == TANDEM_CUDA_F32);
  if (x_dtype != out_dtype && !widens) return TANDEM_CUDA_UNSUPPORTED;
  if (op < 0 || op > TANDEM_CUDA_REDUCE_Prod) return TANDEM_CUDA_UNSUPPORTED;
  if (x_dtype == TANDEM_CUDA_F64) {
    return Reduce<-1, double, double>(a, TANDEM_CUDA_F64, Identity(op));
  }
  const int error = WithInteger(x_dtype, [&]<typename T>(T*) {
    const int32_t wide = std::is_signed_v<T> ? TANDEM_CUDA_I64 : TANDEM_CUDA_U64;
    return Reduce<-1, AnyInteger, AnyInteger>(a, wide, IntegerIdentity<T>(op));
  });
  if (error != TANDEM_CUDA_UNSUPPORTED) return error;
  return WithFloat(x_dtype, [&]<typename T>(T*) {
    const auto identity = static_cast<float>(Identity(op));
    switch (op) {
      case TANDEM_CUDA_REDUCE_Sum:
        return Reduce<TANDEM_CUDA_REDUCE_Sum, T, float>(a, TANDEM_CUDA_F32, identity);
      case TANDEM_CUDA_REDUCE_Max:
        return Reduce<TANDEM_CUDA_REDUCE_Max, T, float>(a, TANDEM_CUDA_F32, identity);
      default:
        return Reduce<-1, T, float>(a, TANDEM_CUDA_F32, identity);
    }
  });
}

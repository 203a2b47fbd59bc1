// Conversions between element types.
//
// f32 to and from the 16-bit floats has kernels of its own. Any other pair goes through what holds
// every value of the source exactly: f64, i64 or u64.
#include "engine/backend/cuda/kernels/functions.h"
#include "engine/backend/cuda/kernels/map.h"
#include "engine/backend/cuda/kernels/types.h"

namespace tandem::cuda {
namespace {

template <typename From, typename To>
struct FloatCast {
  __device__ __forceinline__ To operator()(From x) const { return FromFloat<To>(ToFloat(x)); }
};

struct IsBool {};  // the target bool

template <typename To, typename From>
__device__ __forceinline__ To FromExact(From x) {
  if constexpr (kIsHalf<To>) {
    return FromFloat<To>(static_cast<float>(x));
  } else if constexpr (std::is_floating_point_v<From> && std::is_integral_v<To>) {
    if (IsNaN(x)) return To{0};
    if (x <= static_cast<From>(kLowest<To>)) return kLowest<To>;
    if (x >= static_cast<From>(kMost<To>)) return kMost<To>;
    return static_cast<To>(x);
  } else {
    return static_cast<To>(x);
  }
}

template <typename From, typename Out, typename To>
__device__ __forceinline__ void Store(From x, Out* out) {
  if constexpr (std::is_same_v<To, IsBool>) {
    *out = x != From{0} ? 1 : 0;
  } else {
    *out = FromExact<To>(x);
  }
}

template <typename Out, typename To>
__global__ void __launch_bounds__(256) CastKernel(int from, Out* out, const void* x, int64_t n) {
  for (int64_t i = GridIndex(); i < n; i += GridStride()) {
    const auto f64 = [&](double value) { Store<double, Out, To>(value, out + i); };
    const auto i64 = [&](int64_t value) { Store<int64_t, Out, To>(value, out + i); };
    const auto u64 = [&](uint64_t value) { Store<uint64_t, Out, To>(value, out + i); };
    switch (from) {
      case TANDEM_CUDA_F32:
        f64(static_cast<const float*>(x)[i]);
        break;
      case TANDEM_CUDA_F64:
        f64(static_cast<const double*>(x)[i]);
        break;
      case TANDEM_CUDA_F16:
        f64(ToFloat(static_cast<const F16*>(x)[i]));
        break;
      case TANDEM_CUDA_BF16:
        f64(ToFloat(static_cast<const Bf16*>(x)[i]));
        break;
      case TANDEM_CUDA_I8:
        i64(static_cast<const int8_t*>(x)[i]);
        break;
      case TANDEM_CUDA_I16:
        i64(static_cast<const int16_t*>(x)[i]);
        break;
      case TANDEM_CUDA_I32:
        i64(static_cast<const int32_t*>(x)[i]);
        break;
      case TANDEM_CUDA_I64:
        i64(static_cast<const int64_t*>(x)[i]);
        break;
      case TANDEM_CUDA_U16:
        u64(static_cast<const uint16_t*>(x)[i]);
        break;
      case TANDEM_CUDA_U32:
        u64(static_cast<const uint32_t*>(x)[i]);
        break;
      case TANDEM_CUDA_U64:
        u64(static_cast<const uint64_t*>(x)[i]);
        break;
      default:  // u8 and bool
        u64(static_cast<const uint8_t*>(x)[i]);
        break;
    }
  }
}

template <typename Out, typename To = Out>
int CastTo(int32_t from, void* out, const void* x, int64_t n, tandem_cuda_stream stream) {
  return Launch(CastKernel<Out, To>, BlocksFor(n, 256), 256, 0, static_cast<cudaStream_t>(stream),
                from, static_cast<Out*>(out), x, n);
}

template <typename From, typename To>
int CastFloats(void* out, const void* x, int64_t n, tandem_cuda_stream stream) {
  return Map<8>(Contiguous(n), FloatCast<From, To>(), stream, static_cast<To*>(out),
                static_cast<const From*>(x));
}

}  // namespace
}  // namespace tandem::cuda

int tandem_cuda_cast(int32_t from, int32_t to, void* out, const void* x, int64_t n,
                     tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  if (from < 0 || from > TANDEM_CUDA_BOOL) return TANDEM_CUDA_UNSUPPORTED;
  if (from == TANDEM_CUDA_F32 && to == TANDEM_CUDA_BF16) {
    return CastFloats<float, Bf16>(out, x, n, stream);
  }
  if (from == TANDEM_CUDA_F32 && to == TANDEM_CUDA_F16) {
    return CastFloats<float, F16>(out, x, n, stream);
  }
  if (from == TANDEM_CUDA_BF16 && to == TANDEM_CUDA_F32) {
    return CastFloats<Bf16, float>(out, x, n, stream);
  }
  if (from == TANDEM_CUDA_F16 && to == TANDEM_CUDA_F32) {
    return CastFloats<F16, float>(out, x, n, stream);
  }
  if (to == TANDEM_CUDA_BOOL) return CastTo<uint8_t, IsBool>(from, out, x, n, stream);
  if (to == TANDEM_CUDA_F64) return CastTo<double>(from, out, x, n, stream);
  const auto cast = [&]<typename T>(T*) { return CastTo<T>(from, out, x, n, stream); };
  const int error = WithInteger(to, cast);
  return error != TANDEM_CUDA_UNSUPPORTED ? error : WithFloat(to, cast);
}

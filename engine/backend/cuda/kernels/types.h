// From a tandem_cuda_dtype or an operator's number, on the host, to a type or a constant.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "engine/backend/cuda/kernels/device.h"
#include "engine/backend/cuda/kernels/tandem_cuda.h"

namespace tandem::cuda {

template <typename T>
inline constexpr bool kIsHalf = std::is_same_v<T, F16> || std::is_same_v<T, Bf16>;

// Constants: device code may not call std::numeric_limits.
template <typename T>
inline constexpr T kLowest = std::numeric_limits<T>::lowest();
template <typename T>
inline constexpr T kMost = std::numeric_limits<T>::max();

// A 16-bit float is computed with as a float, everything else as itself.
template <typename T>
__device__ __forceinline__ auto Widen(T x) {
  if constexpr (kIsHalf<T>) {
    return ToFloat(x);
  } else {
    return x;
  }
}
template <typename T, typename Wide>
__device__ __forceinline__ T Narrow(Wide x) {
  if constexpr (kIsHalf<T>) {
    return FromFloat<T>(x);
  } else {
    return static_cast<T>(x);
  }
}

// f with a null pointer of the type; TANDEM_CUDA_UNSUPPORTED for others. bool is a uint8_t.
template <typename F>
int WithFloat(int32_t dtype, F&& f) {  // f32, f16, bf16
  switch (dtype) {
    case TANDEM_CUDA_F32:
      return f(static_cast<float*>(nullptr));
    case TANDEM_CUDA_F16:
      return f(static_cast<F16*>(nullptr));
    case TANDEM_CUDA_BF16:
      return f(static_cast<Bf16*>(nullptr));
    default:
      return TANDEM_CUDA_UNSUPPORTED;
  }
}
template <typename F>
int WithInteger(int32_t dtype, F&& f) {
  switch (dtype) {
    case TANDEM_CUDA_I8:
      return f(static_cast<int8_t*>(nullptr));
    case TANDEM_CUDA_I16:
      return f(static_cast<int16_t*>(nullptr));
    case TANDEM_CUDA_I32:
      return f(static_cast<int32_t*>(nullptr));
    case TANDEM_CUDA_I64:
      return f(static_cast<int64_t*>(nullptr));
    case TANDEM_CUDA_U8:
      return f(static_cast<uint8_t*>(nullptr));
    case TANDEM_CUDA_U16:
      return f(static_cast<uint16_t*>(nullptr));
    case TANDEM_CUDA_U32:
      return f(static_cast<uint32_t*>(nullptr));
    case TANDEM_CUDA_U64:
      return f(static_cast<uint64_t*>(nullptr));
    default:
      return TANDEM_CUDA_UNSUPPORTED;
  }
}

// f with std::integral_constant<int, value>, for value in [0, count).
template <int count, typename F>
int WithConstant(int32_t value, F&& f) {
  int error = TANDEM_CUDA_UNSUPPORTED;
  [&]<int... i>(std::integer_sequence<int, i...>) {
    ((value == i ? static_cast<void>(error = f(std::integral_constant<int, i>())) : void()), ...);
  }
  (std::make_integer_sequence<int, count>());
  return error;
}

// Element i of an array of any integer type or bool, as 64 bits (zero-extended where unsigned), and
// back.
__device__ __forceinline__ int64_t LoadInteger(const void* x, int32_t dtype, int64_t i) {
  switch (dtype) {
    case TANDEM_CUDA_I8:
      return static_cast<const int8_t*>(x)[i];
    case TANDEM_CUDA_I16:
      return static_cast<const int16_t*>(x)[i];
    case TANDEM_CUDA_U16:
      return static_cast<const uint16_t*>(x)[i];
    case TANDEM_CUDA_I32:
      return static_cast<const int32_t*>(x)[i];
    case TANDEM_CUDA_U32:
      return static_cast<const uint32_t*>(x)[i];
    case TANDEM_CUDA_I64:
    case TANDEM_CUDA_U64:
      return static_cast<const int64_t*>(x)[i];
    default:
      return static_cast<const uint8_t*>(x)[i];
  }
}
__device__ __forceinline__ void StoreInteger(void* out, int32_t dtype, int64_t i, int64_t value) {
  switch (dtype) {
    case TANDEM_CUDA_I16:
    case TANDEM_CUDA_U16:
      static_cast<uint16_t*>(out)[i] = static_cast<uint16_t>(value);
      break;
    case TANDEM_CUDA_I32:
    case TANDEM_CUDA_U32:
      static_cast<uint32_t*>(out)[i] = static_cast<uint32_t>(value);
      break;
    case TANDEM_CUDA_I64:
    case TANDEM_CUDA_U64:
      static_cast<int64_t*>(out)[i] = value;
      break;
    default:
      static_cast<uint8_t*>(out)[i] = static_cast<uint8_t>(value);
      break;
  }
}

// An operator that is fixed when the kernel is compiled, or (-1) chosen when it runs: for element
// types that need no speed.
template <int fixed>
struct Choice {
  int op;
  __device__ __forceinline__ int Get() const { return fixed >= 0 ? fixed : op; }
};

}  // namespace tandem::cuda

// The two 16-bit floats on the device, and conversions; round to nearest even. Bits as the CPU's
// (engine/base/dtype.h). Included by device.h.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace tandem::cuda {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

#ifdef __CUDACC__
__device__ __forceinline__ float ToFloat(Bf16 x) {
  return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}
__device__ __forceinline__ float ToFloat(F16 x) { return __half2float(__ushort_as_half(x.bits)); }
__device__ __forceinline__ void FromFloat(float f, Bf16* x) {
  x->bits = __bfloat16_as_ushort(__float2bfloat16_rn(f));
}
__device__ __forceinline__ void FromFloat(float f, F16* x) {
  x->bits = __half_as_ushort(__float2half_rn(f));
}
#else
inline float ToFloat(Bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
inline float ToFloat(F16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t exponent = (x.bits >> 10) & 31u, fraction = x.bits & 1023u;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}
inline void FromFloat(float f, Bf16* x) {
  const uint32_t u = std::bit_cast<uint32_t>(f);
  x->bits = f != f ? uint16_t{0x7fff} : static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
inline void FromFloat(float f, F16* x) {
  const uint32_t u = std::bit_cast<uint32_t>(f), sign = u >> 16 & 0x8000u;
  const float a = std::fabs(f);
  if (f != f) {
    x->bits = 0x7fff;
  } else if (a >= 65520.0f) {
    x->bits = static_cast<uint16_t>(sign | 0x7c00u);
  } else if (a < 0x1p-14f) {
    // The sum rounds to a multiple of 2^-24, half to even.
    const float rounded = (a + 0.5f) - 0.5f;
    x->bits = static_cast<uint16_t>(sign | static_cast<uint32_t>(rounded * 0x1p24f));
  } else {
    const uint32_t v = std::bit_cast<uint32_t>(a);
    x->bits = static_cast<uint16_t>(sign | ((v - (112u << 23) + 0xfff + ((v >> 13) & 1)) >> 13));
  }
}
#endif
__device__ __forceinline__ float ToFloat(float x) { return x; }
__device__ __forceinline__ void FromFloat(float f, float* x) { *x = f; }

template <typename T>
__device__ __forceinline__ T FromFloat(float f) {
  T x;
  FromFloat(f, &x);
  return x;
}

}  // namespace tandem::cuda

// Noise: the formulas of backend/cpu/kernels/philox-inl.h (f32) and random.cc (f64), operation by
// operation.
#include "engine/backend/cuda/kernels/philox.h"
#include "engine/backend/cuda/kernels/tandem_cuda.h"
#include "engine/backend/cuda/kernels/types.h"

namespace tandem::cuda {
namespace {

// -ln(1 - g) - e ln 2, for 1 - g in [sqrt(1/2), sqrt(2)] (the coefficients of Cephes' logf).
__device__ __forceinline__ float MinusLogReduced(float g, float e) {
  float p = __fmaf_rn(g, 7.0376836292e-2f, 1.1514610310e-1f);
  p = __fmaf_rn(p, g, 1.1676998740e-1f);
  p = __fmaf_rn(p, g, 1.2420140846e-1f);
  p = __fmaf_rn(p, g, 1.4249322787e-1f);
  p = __fmaf_rn(p, g, 1.6668057665e-1f);
  p = __fmaf_rn(p, g, 2.0000714765e-1f);
  p = __fmaf_rn(p, g, 2.4999993993e-1f);
  p = __fmaf_rn(p, g, 3.3333331174e-1f);
  p = __fmaf_rn(p, g, 0.5f);
  return __fmaf_rn(e, -0.69314718056f, __fmaf_rn(g * g, p, g));
}

// x = 2^e (1 - g), 1 - g in [sqrt(1/2), sqrt(2)), of a positive normal x.
__device__ __forceinline__ void SplitExponent(float x, float* g, float* e) {
  const unsigned bits = __float_as_uint(x);
  const int exponent = static_cast<int>(bits - 0x3f3504f3u) >> 23;
  *g = 1.0f - __uint_as_float(bits - (static_cast<unsigned>(exponent) << 23));
  *e = static_cast<float>(exponent);
}

__device__ __forceinline__ float MinusLogOfNormal(float x) {
  float g, e;
  SplitExponent(x, &g, &e);
  return MinusLogReduced(g, e);
}

// (2 floor(w / 2) + 1) / 2^32, rounded to f32: 1 is possible.
__device__ __forceinline__ float UnitInterval(uint32_t w) {
  return __fmaf_rn(static_cast<float>(static_cast<int32_t>(w >> 1)), 0x1p-31f, 0x1p-32f);
}

// -ln((w + 1/2) / 2^32), near 0 from 1 - u, which has all of f32's digits there.
__device__ __forceinline__ float MinusLogUniform(uint32_t w) {
  const float u = UnitInterval(w);
  float g, e;
  SplitExponent(u, &g, &e);
  if (u > 0.75f) {
    g = __fmaf_rn(static_cast<float>(static_cast<int32_t>(~w)), 0x1p-32f, 0x1p-33f);
  }
  return MinusLogReduced(g, e);
}

// Sine and cosine of 2 pi w / 2^32 (Cephes' sinf and cosf).
__device__ __forceinline__ void SinCosTurns(uint32_t w, float* sin, float* cos) {
  const uint32_t q = (w + (1u << 29)) >> 30;
  const auto turns = static_cast<int32_t>(w - (q << 30));
  const float x = static_cast<float>(turns) * (6.283185307f * 0x1p-32f);
  const float z = x * x;
  float s = __fmaf_rn(z, -1.9515295891e-4f, 8.3321608736e-3f);
  s = __fmaf_rn(s, z, -1.6666654611e-1f);
  s = __fmaf_rn(s * z, x, x);
  float c = __fmaf_rn(z, 2.443315711809948e-5f, -1.388731625493765e-3f);
  c = __fmaf_rn(c, z, 4.166664568298827e-2f);
  c = __fmaf_rn(c * z, z, __fmaf_rn(z, -0.5f, 1.0f));
  const bool odd = (q & 1) != 0;
  const uint32_t minus_sin = q >> 1 << 31, minus_cos = (q + 1) >> 1 << 31;
  *sin = __uint_as_float(__float_as_uint(odd ? c : s) ^ minus_sin);
  *cos = __uint_as_float(__float_as_uint(odd ? s : c) ^ minus_cos);
}

__device__ __forceinline__ float Noise(int noise, uint32_t w) {
  switch (noise) {
    case TANDEM_CUDA_NOISE_GUMBEL:
      return MinusLogOfNormal(MinusLogUniform(w));
    case TANDEM_CUDA_NOISE_EXPONENTIAL:
      return MinusLogUniform(w);
    case TANDEM_CUDA_NOISE_LOGISTIC:
      return MinusLogUniform(~w) - MinusLogUniform(w);
    case TANDEM_CUDA_NOISE_LAPLACE:  // the lowest bit is the sign, the others an exponential
      return __uint_as_float(__float_as_uint(MinusLogUniform(w | 1)) ^ w << 31);
    default: {
      const float u = UnitInterval(w);
      return u < 1 - 0x1p-24f ? u : 1 - 0x1p-24f;
    }
  }
}

// One block's elements, in the order of the words.
__device__ __forceinline__ void BlockNoise(int noise, const PhiloxWords& w, float* out) {
  if (noise == TANDEM_CUDA_NOISE_NORMAL) {
#pragma unroll
    for (int k = 0; k < 4; k += 2) {
      const float radius = __fsqrt_rn(2.0f * MinusLogUniform(w.word[k]));
      float sin, cos;
      SinCosTurns(w.word[k + 1], &sin, &cos);
      out[k] = radius * cos;
      out[k + 1] = radius * sin;
    }
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) out[k] = Noise(noise, w.word[k]);
  }
}

// k / 2^53, and for k = 0 half of the least.
__device__ __forceinline__ double Uniform53(uint64_t bits) {
  const uint64_t k = bits >> 11;
  return (k == 0 ? 0.5 : static_cast<double>(k)) * 0x1p-53;
}

__device__ __forceinline__ double Noise(int noise, uint64_t bits) {
  const double u = Uniform53(bits);
  switch (noise) {
    case TANDEM_CUDA_NOISE_GUMBEL:
      return -ExactLog(-ExactLog(u));
    case TANDEM_CUDA_NOISE_EXPONENTIAL:
      return -ExactLog(u);
    case TANDEM_CUDA_NOISE_LOGISTIC:
      return ExactLog(u) - ExactLog(1 - u);
    case TANDEM_CUDA_NOISE_LAPLACE:
      return (bits & 1) != 0 ? ExactLog(u) : -ExactLog(u);
    default:
      return u;
  }
}

__device__ __forceinline__ void BlockNoise(int noise, const PhiloxWords& w, double* out) {
  const uint64_t first = w.word[0] | static_cast<uint64_t>(w.word[1]) << 32;
  const uint64_t second = w.word[2] | static_cast<uint64_t>(w.word[3]) << 32;
  if (noise == TANDEM_CUDA_NOISE_NORMAL) {
    const double radius = __dsqrt_rn(-2 * ExactLog(Uniform53(first)));
    double sin, cos;
    SinCosOfTurns(second, &sin, &cos);
    out[0] = radius * cos;
    out[1] = radius * sin;
  } else {
    out[0] = Noise(noise, first);
    out[1] = Noise(noise, second);
  }
}

// A thread a block of the generator: its elements lie 16 apart.
template <int fixed, typename T>
__global__ void __launch_bounds__(256)
    NoiseKernel(Choice<fixed> noise, T* out, const uint64_t* key, uint64_t stream, int64_t n) {
  constexpr int kElements = 16 / sizeof(T);
  const uint64_t folded = FoldKey(key);
  const int64_t blocks = (n + 16 * kElements - 1) / (16 * kElements) * 16;
  for (int64_t b = GridIndex(); b < blocks; b += GridStride()) {
    T x[kElements];
    BlockNoise(noise.Get(), Philox(folded, stream, static_cast<uint64_t>(b)), x);
    const int64_t at = b / 16 * (16 * kElements) + b % 16;
#pragma unroll
    for (int k = 0; k < kElements; ++k) {
      if (at + 16 * k < n) out[at + 16 * k] = x[k];
    }
  }
}

template <int fixed, typename T>
int FillNoise(int32_t noise, void* out, const uint64_t* key, uint64_t stream_number, int64_t n,
              tandem_cuda_stream stream) {
  constexpr int kElements = 16 / sizeof(T);
  return Launch(NoiseKernel<fixed, T>, BlocksFor(n, 256 * kElements, 132 * 16), 256, 0,
                static_cast<cudaStream_t>(stream), Choice<fixed>{noise}, static_cast<T*>(out), key,
                stream_number, n);
}

}  // namespace
}  // namespace tandem::cuda

int tandem_cuda_random(int32_t noise, int32_t dtype, void* out, const uint64_t* key,
                       uint64_t stream_number, int64_t n, tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  if (noise < 0 || noise > TANDEM_CUDA_NOISE_LAPLACE) return TANDEM_CUDA_UNSUPPORTED;
  if (dtype == TANDEM_CUDA_F64) {
    return FillNoise<-1, double>(noise, out, key, stream_number, n, stream);
  }
  if (dtype != TANDEM_CUDA_F32) return TANDEM_CUDA_UNSUPPORTED;
  return WithConstant<TANDEM_CUDA_NOISE_LAPLACE + 1>(noise, [&](auto fixed) {
    return FillNoise<fixed.value, float>(noise, out, key, stream_number, n, stream);
  });
}

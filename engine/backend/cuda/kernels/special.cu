// The gamma function's family, and draws of the gamma distribution, in double: the formulas of
// backend/cpu/kernels/gamma.cc, operation by operation.
#include <cmath>

#include "engine/backend/cuda/kernels/map.h"
#include "engine/backend/cuda/kernels/philox.h"
#include "engine/backend/cuda/kernels/types.h"

namespace tandem::cuda {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kPi = 3.141592653589793238463;
constexpr double kAsymptotic = 10;  // from here on the series below have all of a double's digits

// sin(pi x), of x's distance to the nearest even integer.
__device__ double SinPi(double x) {
  const double r = x - 2 * rint(x / 2);
  return sin(kPi * r);
}

// The sum of c[k] z^k.
template <int n>
__device__ __forceinline__ double Polynomial(const double (&c)[n], double z) {
  double sum = c[n - 1];
#pragma unroll
  for (int k = n - 2; k >= 0; --k) sum = sum * z + c[k];
  return sum;
}

// (x - 1/2) ln x - x + ln(2 pi) / 2 + sum B_2k / (2k (2k - 1) x^(2k - 1))
__device__ double Stirling(double x) {
  constexpr double kSeries[] = {1.0 / 12,   -1.0 / 360,      1.0 / 1260, -1.0 / 1680,
                                1.0 / 1188, -691.0 / 360360, 1.0 / 156,  -3617.0 / 122400};
  constexpr double kHalfLogTwoPi = 0.918938533204672742;
  const double y = 1 / x;
  const double tail = kHalfLogTwoPi + y * Polynomial(kSeries, y * y);
  return (x - 0.5) * ExactLog(x) - x + tail;
}

__device__ double LgammaPositive(double x) {
  if (x == 1 || x == 2) return 0;
  // Gamma(x) = Gamma(x + n) / (x (x + 1) ... (x + n - 1))
  double product = 1;
  for (; x < kAsymptotic; x += 1) product *= x;
  const double y = Stirling(x);
  return product == 1 ? y : y - ExactLog(product);
}
__device__ double Lgamma(double x) {
  if (x != x) return x;
  if (x == kInfinity || x == -kInfinity) return kInfinity;
  if (x > 0) return LgammaPositive(x);
  if (x == floor(x)) return kInfinity;
  return ExactLog(kPi / fabs(SinPi(x))) - LgammaPositive(1 - x);
}

__device__ double DigammaPositive(double x) {
  constexpr double kSeries[] = {1.0 / 12,  -1.0 / 120,     1.0 / 252, -1.0 / 240,
                                1.0 / 132, -691.0 / 32760, 1.0 / 12,  -3617.0 / 8160};
  double sum = 0;
  for (; x < kAsymptotic; x += 1) sum += 1 / x;
  const double y = 1 / x, z = y * y;
  return ExactLog(x) - 0.5 * y - z * Polynomial(kSeries, z) - sum;
}
__device__ double Digamma(double x) {
  if (x == 0) return -kInfinity;
  if (x != x || x == kInfinity) return x;
  if (x > 0) return DigammaPositive(x);
  if (x == floor(x)) return kNaN;
  // psi(x) = psi(1 - x) - pi / tan(pi x)
  const double r = x - rint(x);
  return DigammaPositive(1 - x) - kPi / tan(kPi * r);
}

__device__ double TrigammaPositive(double x) {
  constexpr double kSeries[] = {1.0 / 6,  -1.0 / 30,     1.0 / 42, -1.0 / 30,
                                5.0 / 66, -691.0 / 2730, 7.0 / 6,  -3617.0 / 510};
  double sum = 0;
  for (; x < kAsymptotic; x += 1) sum += 1 / (x * x);
  const double y = 1 / x, z = y * y;
  return sum + (y + z * (0.5 + y * Polynomial(kSeries, z)));
}
__device__ double Trigamma(double x) {
  if (x != x) return x;
  if (x == kInfinity) return 0;
  if (x > 0) return TrigammaPositive(x);
  if (x == floor(x)) return kInfinity;
  // psi'(x) = (pi / sin(pi x))^2 - psi'(1 - x)
  const double root = kPi / SinPi(x);
  return root * root - TrigammaPositive(1 - x);
}

template <typename T>
struct SpecialFunction {
  int op;
  __device__ __forceinline__ T operator()(T x) const {
    const auto v = static_cast<double>(Widen(x));
    const double y = op == TANDEM_CUDA_SPECIAL_Lgamma    ? Lgamma(v)
                     : op == TANDEM_CUDA_SPECIAL_Digamma ? Digamma(v)
                                                         : Trigamma(v);
    if constexpr (kIsHalf<T>)
      return FromFloat<T>(static_cast<float>(y));
    else
      return static_cast<T>(y);
  }
};

__device__ double DrawLogGamma(double concentration, uint64_t key, uint64_t stream, uint64_t i) {
  if (!(concentration > 0)) return kNaN;
  if (concentration == kInfinity) return kInfinity;
  double boost = 0, shape = concentration;
  if (concentration < 1) {
    const PhiloxWords w = Philox(key, stream, i);
    const uint64_t bits = (w.word[0] | static_cast<uint64_t>(w.word[1]) << 32) >> 12;
    boost = ExactLog((static_cast<double>(bits) + 0.5) * 0x1p-52) / concentration;
    shape += 1;
  }
  const double d = shape - 1.0 / 3, c = 1 / __dsqrt_rn(9 * d);
  // Each attempt is accepted with a probability above 0.95.
  constexpr uint64_t kAttempts = 1000;
  for (uint64_t attempt = 1; attempt <= kAttempts; ++attempt) {
    const PhiloxWords w = Philox(key, stream | attempt << 32, i);
    // 52 bits for the radius, 44 for the angle, 32 for the decision.
    const uint64_t radius_bits = w.word[0] | static_cast<uint64_t>(w.word[2] & 0xfffff) << 32;
    const uint64_t angle = static_cast<uint64_t>(w.word[1]) << 32 | (w.word[2] & 0xfff00000);
    const double u = (static_cast<double>(radius_bits) + 0.5) * 0x1p-52;
    double sin, cos;
    SinCosOfTurns(angle, &sin, &cos);
    const double x = __dsqrt_rn(-2 * ExactLog(u)) * cos;
    const double root = c * x;
    if (!(root > -1)) continue;
    const double decision = (static_cast<double>(w.word[3]) + 0.5) * 0x1p-32, x2 = x * x;
    const double log_v = 3 * ExactLog1p(root);
    if (decision < 1 - 0.0331 * (x2 * x2)) return ExactLog(d) + log_v + boost;
    const double cube = root * (3 + root * (3 + root));  // v - 1
    if (ExactLog(decision) < 0.5 * x2 + d * (log_v - cube)) return ExactLog(d) + log_v + boost;
  }
  return ExactLog(d) + boost;  // near the mode; one in 1e1000
}

// The lower incomplete gamma function's series with its derivative (see gamma.cc).
__device__ double GradientBySeries(double a, double log_z, double z) {
  double term = 1, sum = 1, harmonic = 0, slope = 0;
  for (int n = 1; n < 1000; ++n) {
    const double next = 1 / (a + n);
    term *= z * next;
    harmonic += next;
    sum += term;
    slope += term * harmonic;
    if (term * (1 + harmonic) < 1e-17 * sum) break;
  }
  return (slope - sum * (log_z - Digamma(a + 1))) / a;
}

// Integral of (offset + side v) e^(side (a v) - z (e^(side v) - 1)) over [0, end]: Gauss and
// Legendre's 8 points on each of 6 panels.
__device__ double Integrate(double end, double offset, double side, double a, double z) {
  constexpr double kNodes[] = {0.1834346424956498, 0.5255324099163290, 0.7966664774136267,
                               0.9602898564975363};
  constexpr double kWeights[] = {0.3626837833783620, 0.3137066458778873, 0.2223810344533745,
                                 0.1012285362903763};
  constexpr int kPanels = 6;
  const double half = end / (2 * kPanels);
  const auto f = [&](double v) {
    return (side * offset + v) * exp(side * (a * v) - z * expm1(side * v));
  };
  double sum = 0;
  for (int panel = 0; panel < kPanels; ++panel) {
    const double middle = (2 * panel + 1) * half;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      sum += kWeights[k] * (f(middle - half * kNodes[k]) + f(middle + half * kNodes[k]));
    }
  }
  return sum * half;
}

__device__ double LogGammaGradient(double a, double log_z) {
  if (!(a > 0) || log_z != log_z) return kNaN;
  const double z = exp(log_z);
  // (1 + O(1 / sqrt(a))) / a; z itself is no longer known to a standard deviation.
  if (a > 1e12 || z == kInfinity) return 1 / a;
  if (z <= 1 || (z <= a && a <= 30)) return GradientBySeries(a, log_z, z);
  const double offset = log_z - Digamma(a);
  // The side of the tail that z lies in has no cancellation.
  const double gap = fabs(z - a), width = z >= a ? 74 * z : 148 * z;
  const double end = (z >= a ? 74 : 148) / (gap + __dsqrt_rn(gap * gap + width));
  return Integrate(end, offset, z >= a ? 1 : -1, a, z);
}

template <typename T>
__global__ void __launch_bounds__(128)
    RandomGammaKernel(T* out, const uint64_t* key, const T* concentration, uint64_t stream,
                      int64_t n) {
  const uint64_t folded = FoldKey(key);
  for (int64_t i = GridIndex(); i < n; i += GridStride()) {
    out[i] = static_cast<T>(DrawLogGamma(static_cast<double>(concentration[i]), folded, stream,
                                         static_cast<uint64_t>(i)));
  }
}

template <typename T>
__global__ void __launch_bounds__(128)
    RandomGammaGradKernel(T* out, const T* concentration, const T* log_draw, const T* dy,
                          int64_t n) {
  for (int64_t i = GridIndex(); i < n; i += GridStride()) {
    const double slope =
        LogGammaGradient(static_cast<double>(concentration[i]), static_cast<double>(log_draw[i]));
    out[i] = static_cast<T>(static_cast<double>(dy[i]) * slope);
  }
}

template <typename F>
int WithF32OrF64(int32_t dtype, F&& f) {
  if (dtype == TANDEM_CUDA_F32) return f(static_cast<float*>(nullptr));
  if (dtype == TANDEM_CUDA_F64) return f(static_cast<double*>(nullptr));
  return TANDEM_CUDA_UNSUPPORTED;
}

}  // namespace
}  // namespace tandem::cuda

int tandem_cuda_special(int32_t op, int32_t dtype, void* out, const void* x, int64_t n,
                        tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  if (op < 0 || op > TANDEM_CUDA_SPECIAL_Trigamma) return TANDEM_CUDA_UNSUPPORTED;
  const auto map = [&]<typename T>(T*) -> int {
    return Map<1>(Contiguous(n), SpecialFunction<T>{op}, stream, static_cast<T*>(out),
                  static_cast<const T*>(x));
  };
  return dtype == TANDEM_CUDA_F64 ? map(static_cast<double*>(nullptr)) : WithFloat(dtype, map);
}

int tandem_cuda_random_gamma(int32_t dtype, void* out, const uint64_t* key,
                             const void* concentration, uint64_t stream_number, int64_t n,
                             tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  return WithF32OrF64(dtype, [&]<typename T>(T*) {
    return Launch(RandomGammaKernel<T>, BlocksFor(n, 128), 128, 0,
                  static_cast<cudaStream_t>(stream), static_cast<T*>(out), key,
                  static_cast<const T*>(concentration), stream_number, n);
  });
}

int tandem_cuda_random_gamma_grad(int32_t dtype, void* out, const void* concentration,
                                  const void* log_draw, const void* dy, int64_t n,
                                  tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  return WithF32OrF64(dtype, [&]<typename T>(T*) {
    return Launch(RandomGammaGradKernel<T>, BlocksFor(n, 128), 128, 0,
                  static_cast<cudaStream_t>(stream), static_cast<T*>(out),
                  static_cast<const T*>(concentration), static_cast<const T*>(log_draw),
                  static_cast<const T*>(dy), n);
  });
}

// What the elementwise operators compute: R is float or double. Overloads of the library's accurate
// functions; a multiply-add only where it is written.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "engine/backend/cuda/kernels/device.h"
#include "engine/backend/cuda/kernels/tandem_cuda.h"

namespace tandem::cuda {

template <typename R>
__device__ __forceinline__ bool IsNaN(R x) {
  return x != x;
}

template <typename R>
__device__ __forceinline__ R Sigmoid(R x) {
  return R(1) / (R(1) + std::exp(-x));
}

// The standard normal distribution function, without cancellation in its lower tail.
template <typename R>
__device__ __forceinline__ R NormalCdf(R x) {
  return R(0.5) * std::erfc(x * R(-0.70710678118654752440));
}

// gelu_tanh(x) = x sigmoid(2u), 2u = 2 sqrt(2/pi) (x + 0.044715 x^3).
template <typename R>
__device__ __forceinline__ R GeluTanhArgument(R x) {
  return x * std::fma(x * x, R(0.07135481627260025), R(1.5957691216057308));
}

template <typename R>
__device__ __forceinline__ R Unary(int op, R x) {
  switch (op) {
    case TANDEM_CUDA_UNARY_Neg:
      return -x;
    case TANDEM_CUDA_UNARY_Abs:
      return std::fabs(x);
    case TANDEM_CUDA_UNARY_Sign:
      return IsNaN(x) ? x : R(x > 0) - R(x < 0);
    case TANDEM_CUDA_UNARY_Exp:
      return std::exp(x);
    case TANDEM_CUDA_UNARY_Log:
      return std::log(x);
    case TANDEM_CUDA_UNARY_Sqrt:
      return std::sqrt(x);
    case TANDEM_CUDA_UNARY_Rsqrt:
      return R(1) / std::sqrt(x);
    case TANDEM_CUDA_UNARY_Reciprocal:
      return R(1) / x;
    case TANDEM_CUDA_UNARY_Tanh:
      return std::tanh(x);
    case TANDEM_CUDA_UNARY_Sigmoid:
      return Sigmoid(x);
    case TANDEM_CUDA_UNARY_Erf:
      return std::erf(x);
    case TANDEM_CUDA_UNARY_Relu:
      return x <= 0 ? R(0) : x;
    case TANDEM_CUDA_UNARY_Gelu:
      return x * NormalCdf(x);
    case TANDEM_CUDA_UNARY_GeluTanh:
      return x * Sigmoid(GeluTanhArgument(x));
    case TANDEM_CUDA_UNARY_Silu:
      return x * Sigmoid(x);
    case TANDEM_CUDA_UNARY_Softplus:
      return (x < 0 ? R(0) : x) + std::log1p(std::exp(-std::fabs(x)));
    case TANDEM_CUDA_UNARY_Sin:
      return std::sin(x);
    case TANDEM_CUDA_UNARY_Cos:
      return std::cos(x);
    case TANDEM_CUDA_UNARY_Floor:
      return std::floor(x);
    case TANDEM_CUDA_UNARY_Ceil:
      return std::ceil(x);
    case TANDEM_CUDA_UNARY_Round:
      return std::rint(x);
    case TANDEM_CUDA_UNARY_Square:
      return x * x;
    case TANDEM_CUDA_UNARY_Log1p:
      return std::log1p(x);
    case TANDEM_CUDA_UNARY_Expm1:
      return std::expm1(x);
    default:
      return x;
  }
}

template <typename T>
__device__ __forceinline__ T UnaryInteger(int op, T x) {
  const auto u = static_cast<uint64_t>(x);
  const bool negative = std::is_signed_v<T> && x < T{0};
  switch (op) {
    case TANDEM_CUDA_UNARY_Neg:
      return static_cast<T>(uint64_t{0} - u);
    case TANDEM_CUDA_UNARY_Abs:
      return static_cast<T>(negative ? uint64_t{0} - u : u);
    case TANDEM_CUDA_UNARY_Sign:
      return static_cast<T>(negative ? -1 : x != T{0});
    case TANDEM_CUDA_UNARY_Relu:
      return negative ? T{0} : x;
    default:
      return static_cast<T>(u * u);
  }
}

template <typename R>
__device__ __forceinline__ R Clamp(R x, R most) {
  x = x > most ? most : x;  // NaN passes
  return x < -most ? -most : x;
}

// With s = sigmoid(a(x)): d/dx x s = s + x s (1 - s) a'(x), and 1 - s = e^-a s; e^-a is finite.
template <typename R>
__device__ __forceinline__ R SigmoidGateSlope(R x, R a, R da) {
  const R e = std::exp(-a);
  const R s = R(1) / (R(1) + e);
  return std::fma(x * da * s, e * s, s);
}
template <typename R>
__device__ __forceinline__ R SiluSlope(R x) {
  constexpr R kOneOrZero = std::is_same_v<R, float> ? R(85) : R(700);  // beyond
  x = Clamp(x, kOneOrZero);
  return SigmoidGateSlope(x, x, R(1));
}
template <typename R>
__device__ __forceinline__ R GeluTanhSlope(R x) {
  constexpr R kOneOrZero = std::is_same_v<R, float> ? R(10) : R(20);  // beyond
  x = Clamp(x, kOneOrZero);
  const R da = std::fma(x * x, R(0.21406444881780073), R(1.5957691216057308));
  return SigmoidGateSlope(x, GeluTanhArgument(x), da);
}
// d/dx x Phi(x) = Phi(x) + x phi(x)
template <typename R>
__device__ __forceinline__ R GeluSlope(R x) {
  const R density = R(0.39894228040143267794) * std::exp(x * x * R(-0.5));
  return std::fma(x, density, NormalCdf(x));
}

template <typename R>
__device__ __forceinline__ R UnaryGrad(int op, R x, R dy) {
  switch (op) {
    case TANDEM_CUDA_UNARY_GRAD_Relu:
      return x <= 0 ? R(0) : dy;
    case TANDEM_CUDA_UNARY_GRAD_Gelu:
      return dy * GeluSlope(x);
    case TANDEM_CUDA_UNARY_GRAD_GeluTanh:
      return dy * GeluTanhSlope(x);
    default:
      return dy * SiluSlope(x);
  }
}

// 1 / a^b truncated for a negative b.
template <typename T>
__device__ __forceinline__ T IntegerPower(T a, T b) {
  const auto y = static_cast<uint64_t>(b);
  if (std::is_signed_v<T> && b < T{0}) {
    if (a == T{1}) return T{1};
    return a == static_cast<T>(-1) ? static_cast<T>(y % 2 == 0 ? 1 : -1) : T{0};
  }
  uint64_t result = 1, power = static_cast<uint64_t>(a);
  for (uint64_t rest = y; rest != 0; rest >>= 1) {
    if ((rest & 1) != 0) result *= power;
    power *= power;
  }
  return static_cast<T>(result);
}

template <typename T>
__device__ __forceinline__ T BinaryInteger(int op, T a, T b) {
  const auto x = static_cast<uint64_t>(a), y = static_cast<uint64_t>(b);
  // The lowest value divided by -1 overflows.
  const bool by_minus_one = std::is_signed_v<T> && b == static_cast<T>(-1);
  switch (op) {
    case TANDEM_CUDA_BINARY_Add:
      return static_cast<T>(x + y);
    case TANDEM_CUDA_BINARY_Sub:
      return static_cast<T>(x - y);
    case TANDEM_CUDA_BINARY_Mul:
      return static_cast<T>(x * y);
    case TANDEM_CUDA_BINARY_Div:
      if (b == T{0}) return T{0};
      return by_minus_one ? static_cast<T>(uint64_t{0} - x) : static_cast<T>(a / b);
    case TANDEM_CUDA_BINARY_Mod: {
      if (b == T{0} || by_minus_one) return T{0};
      const T rest = static_cast<T>(a % b);
      if constexpr (std::is_signed_v<T>) {
        if (rest != T{0} && (rest < T{0}) != (b < T{0})) return static_cast<T>(rest + b);
      }
      return rest;
    }
    case TANDEM_CUDA_BINARY_Pow:
      return IntegerPower(a, b);
    case TANDEM_CUDA_BINARY_Max:
      return a < b ? b : a;
    default:
      return b < a ? b : a;
  }
}

template <typename R>
__device__ __forceinline__ R Binary(int op, R a, R b) {
  if constexpr (std::is_integral_v<R>) {
    return BinaryInteger(op, a, b);
  } else {
    switch (op) {
      case TANDEM_CUDA_BINARY_Add:
        return a + b;
      case TANDEM_CUDA_BINARY_Sub:
        return a - b;
      case TANDEM_CUDA_BINARY_Mul:
        return a * b;
      case TANDEM_CUDA_BINARY_Div:
        return a / b;
      case TANDEM_CUDA_BINARY_Pow:
        return std::pow(a, b);
      case TANDEM_CUDA_BINARY_Mod:
        return std::fmod(a, b);
      case TANDEM_CUDA_BINARY_Max:
        return a > b || IsNaN(a) ? a : b;
      default:
        return a < b || IsNaN(a) ? a : b;
    }
  }
}

// Comparisons of anything, and the logic of bools (0 or 1).
template <typename R>
__device__ __forceinline__ bool Compare(int op, R a, R b) {
  switch (op) {
    case TANDEM_CUDA_BINARY_Equal:
      return a == b;
    case TANDEM_CUDA_BINARY_Less:
      return a < b;
    case TANDEM_CUDA_BINARY_LessOrEqual:
      return a <= b;
    case TANDEM_CUDA_BINARY_And:
      return a != R{0} && b != R{0};
    case TANDEM_CUDA_BINARY_Or:
      return a != R{0} || b != R{0};
    default:
      return a != b;
  }
}

}  // namespace tandem::cuda

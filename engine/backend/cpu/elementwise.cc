// Kernels of the elementwise operators of one input, of their derivatives, and of SwiGLU.
#include <cmath>
#include <numbers>
#include <optional>

#include "engine/backend/cpu/dtypes.h"
#include "engine/backend/cpu/kernels_table.h"

namespace tandem::cpu {
namespace {

// clang-format off
#define TANDEM_F32_UNARY(OP)                                                                       \
  OP(Neg)                                                                                          \
  OP(Abs)                                                                                          \
  OP(Sign)                                                                                         \
  OP(Exp) OP(Log) OP(Sqrt) OP(Rsqrt) OP(Reciprocal) OP(Tanh) OP(Sigmoid) OP(Erf) OP(Relu) OP(Gelu) \
      OP(GeluTanh) OP(Silu) OP(Softplus) OP(Sin) OP(Cos) OP(Floor) OP(Ceil) OP(Round) OP(Square)  \
      OP(Log1p) OP(Expm1)
// clang-format on

Unary UnaryOf(const OpDef* op) {
#define OP(op_name) \
  if (op == &ops::k##op_name) return Unary::k##op_name;
  TANDEM_F32_UNARY(OP)
#undef OP
  return Unary::kSquare;
}

double Sigmoid64(double x) { return 1 / (1 + std::exp(-x)); }
double GeluTanhInner(double x) {
  return std::tanh(std::numbers::sqrt2 * std::numbers::inv_sqrtpi * (x + 0.044715 * x * x * x));
}
double NormalCdf(double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); }

double Apply64(Unary op, double x) {
  switch (op) {
    case Unary::kNeg:
      return -x;
    case Unary::kAbs:
      return std::abs(x);
    case Unary::kSign:
      return std::isnan(x) ? x : (x > 0) - (x < 0);
    case Unary::kExp:
      return std::exp(x);
    case Unary::kLog:
      return std::log(x);
    case Unary::kSqrt:
      return std::sqrt(x);
    case Unary::kRsqrt:
      return 1 / std::sqrt(x);
    case Unary::kReciprocal:
      return 1 / x;
    case Unary::kTanh:
      return std::tanh(x);
    case Unary::kSigmoid:
      return Sigmoid64(x);
    case Unary::kErf:
      return std::erf(x);
    case Unary::kRelu:
      return x < 0 ? 0 : x;
    case Unary::kGelu:
      return x * NormalCdf(x);
    case Unary::kGeluTanh:
      return 0.5 * x * (1 + GeluTanhInner(x));
    case Unary::kSilu:
      return x * Sigmoid64(x);
    case Unary::kSoftplus:
      return std::fmax(x, 0) + std::log1p(std::exp(-std::abs(x)));
    case Unary::kSin:
      return std::sin(x);
    case Unary::kCos:
      return std::cos(x);
    case Unary::kFloor:
      return std::floor(x);
    case Unary::kCeil:
      return std::ceil(x);
    case Unary::kRound:
      return std::nearbyint(x);
    case Unary::kSquare:
      return x * x;
    case Unary::kLog1p:
      return std::log1p(x);
    case Unary::kExpm1:
      return std::expm1(x);
  }
  return x;
}

double ApplyGrad64(UnaryGrad op, double x, double dy) {
  switch (op) {
    case UnaryGrad::kRelu:
      return x > 0 ? dy : 0;
    case UnaryGrad::kGelu: {
      const double density =
          std::exp(-0.5 * x * x) * std::numbers::inv_sqrtpi / std::numbers::sqrt2;
      return dy * (NormalCdf(x) + x * density);
    }
    case UnaryGrad::kGeluTanh: {
      const double t = GeluTanhInner(x);
      const double slope =
          std::numbers::sqrt2 * std::numbers::inv_sqrtpi * (1 + 3 * 0.044715 * x * x);
      return dy * 0.5 * (1 + t + x * (1 - t * t) * slope);
    }
    case UnaryGrad::kSilu: {
      const double s = Sigmoid64(x);
      return dy * s * (1 + x * (1 - s));
    }
  }
  return dy;
}

// Integers wrap around, as two's complement does. Bools do not come here.
template <typename T>
bool ApplyInteger(Unary op, const T* x, T* y, int64_t n) {
  const auto map = [&](auto f) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = static_cast<T>(f(x[i]));
    return true;
  };
  const auto negate = [](T v) { return uint64_t{0} - static_cast<uint64_t>(v); };
  switch (op) {
    case Unary::kNeg:
      return map(negate);
    case Unary::kAbs:
      return map([&](T v) { return v < T{0} ? negate(v) : static_cast<uint64_t>(v); });
    case Unary::kSign:
      return map([](T v) { return (v > T{0}) - (v < T{0}); });
    case Unary::kRelu:
      return map([](T v) { return v < T{0} ? T{0} : v; });
    case Unary::kSquare:
      return map([](T v) { return static_cast<uint64_t>(v) * static_cast<uint64_t>(v); });
    default:
      return false;
  }
}

template <typename Half>
BoundKernel HalfUnary(Unary op, int64_t n) {
  return {[=](const KernelArgs& args) {
    ThroughF32<Half, 1, 1>(args, n, [op](const auto& in, const auto& out, int64_t count) {
      RunUnary(op, in[0], out[0], count);
    });
  }};
}

absl::StatusOr<BoundKernel> BindUnary(const KernelSpec& spec) {
  const Unary op = UnaryOf(spec.op);
  const int64_t n = spec.out().num_elements();
  return Dispatch(spec.dtype(), [&]<typename T>(T*) -> absl::StatusOr<BoundKernel> {
    if constexpr (std::is_same_v<T, float>) {
      return BoundKernel{
          [=](const KernelArgs& args) { RunUnary(op, args.in<float>(0), args.out<float>(), n); }};
    } else if constexpr (kIsHalf<T>) {
      return HalfUnary<T>(op, n);
    } else if constexpr (std::is_same_v<T, double>) {
      return BoundKernel{[=](const KernelArgs& args) {
        const double* x = args.in<double>(0);
        double* y = args.out<double>();
        ParallelFor(n, kParallelGrain / 8, [=](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) y[i] = Apply64(op, x[i]);
        });
      }};
    } else if constexpr (!std::is_same_v<T, bool>) {
      if (!ApplyInteger<T>(op, nullptr, nullptr, 0)) return UnsupportedDType(spec.dtype());
      return BoundKernel{[=](const KernelArgs& args) {
        const T* x = args.in<T>(0);
        T* y = args.out<T>();
        ParallelFor(n, kParallelGrain, [=](int64_t begin, int64_t end) {
          ApplyInteger<T>(op, x + begin, y + begin, end - begin);
        });
      }};
    } else {
      return UnsupportedDType(spec.dtype());
    }
  });
}

absl::StatusOr<BoundKernel> BindNot(const KernelSpec& spec) {
  const int64_t n = spec.out().num_elements();
  return BoundKernel{[=](const KernelArgs& args) {
    const auto* x = args.in<uint8_t>(0);
    auto* y = args.out<uint8_t>();
    ParallelFor(n, kParallelGrain, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) y[i] = x[i] == 0;
    });
  }};
}

template <UnaryGrad op>
absl::StatusOr<BoundKernel> BindUnaryGrad(const KernelSpec& spec) {
  const int64_t n = spec.out().num_elements();
  const auto half = [=]<typename Half>(Half*) {
    return BoundKernel{[=](const KernelArgs& args) {
      ThroughF32<Half, 2, 1>(args, n, [](const auto& in, const auto& out, int64_t count) {
        RunUnaryGrad(op, in[0], in[1], out[0], count);
      });
    }};
  };
  switch (spec.dtype()) {
    case DType::kF32:
      return BoundKernel{[=](const KernelArgs& args) {
        RunUnaryGrad(op, args.in<float>(0), args.in<float>(1), args.out<float>(), n);
      }};
    case DType::kF64:
      return BoundKernel{[=](const KernelArgs& args) {
        const double *x = args.in<double>(0), *dy = args.in<double>(1);
        double* dx = args.out<double>();
        ParallelFor(n, kParallelGrain / 8, [=](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) dx[i] = ApplyGrad64(op, x[i], dy[i]);
        });
      }};
    case DType::kBF16:
      return half(static_cast<BF16*>(nullptr));
    case DType::kF16:
      return half(static_cast<F16*>(nullptr));
    default:
      return UnsupportedDType(spec.dtype());
  }
}

absl::StatusOr<BoundKernel> BindSwiGlu(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireF32(spec, 0));
  const int64_t n = spec.out().num_elements();
  return BoundKernel{[=](const KernelArgs& args) {
    SwiGlu(args.in<float>(0), args.in<float>(1), args.out<float>(), n);
  }};
}

absl::StatusOr<BoundKernel> BindSwiGluGrad(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireF32(spec, 0));
  const int64_t n = spec.out().num_elements();
  return BoundKernel{[=](const KernelArgs& args) {
    SwiGluBackward(args.in<float>(0), args.in<float>(1), args.in<float>(2), args.out<float>(0),
                   args.out<float>(1), n);
  }};
}

}  // namespace

#define OP(name) constinit const Kernel k##name##Kernel = {.bind = BindUnary, .in_place = true};
TANDEM_F32_UNARY(OP)
#undef OP
constinit const Kernel kNotKernel = {.bind = BindNot, .in_place = true};
constinit const Kernel kReluGradKernel = {.bind = BindUnaryGrad<UnaryGrad::kRelu>,
                                          .in_place = true};
constinit const Kernel kGeluGradKernel = {.bind = BindUnaryGrad<UnaryGrad::kGelu>,
                                          .in_place = true};
constinit const Kernel kGeluTanhGradKernel = {.bind = BindUnaryGrad<UnaryGrad::kGeluTanh>,
                                              .in_place = true};
constinit const Kernel kSiluGradKernel = {.bind = BindUnaryGrad<UnaryGrad::kSilu>,
                                          .in_place = true};
constinit const Kernel kSwiGluKernel = {.bind = BindSwiGlu, .in_place = true};
constinit const Kernel kSwiGluGradKernel = {.bind = BindSwiGluGrad, .in_place = true};

}  // namespace tandem::cpu

// Operators of one input, and (x, dy) -> dx.
#include "engine/backend/cuda/kernels/functions.h"
#include "engine/backend/cuda/kernels/map.h"
#include "engine/backend/cuda/kernels/types.h"

namespace tandem::cuda {
namespace {

template <int fixed, typename T>
struct UnaryFunction {
  Choice<fixed> choice;
  __device__ __forceinline__ T operator()(T x) const {
    return Narrow<T>(Unary(choice.Get(), Widen(x)));
  }
};

template <typename T>
struct IntegerUnaryFunction {
  int op;
  __device__ __forceinline__ T operator()(T x) const { return UnaryInteger(op, x); }
};

struct NotFunction {
  __device__ __forceinline__ uint8_t operator()(uint8_t x) const { return x == 0 ? 1 : 0; }
};

template <int fixed, typename T>
struct UnaryGradFunction {
  Choice<fixed> choice;
  __device__ __forceinline__ T operator()(T x, T dy) const {
    return Narrow<T>(UnaryGrad(choice.Get(), Widen(x), Widen(dy)));
  }
};

bool HasIntegers(int32_t op) {
  switch (op) {
    case TANDEM_CUDA_UNARY_Neg:
    case TANDEM_CUDA_UNARY_Abs:
    case TANDEM_CUDA_UNARY_Sign:
    case TANDEM_CUDA_UNARY_Relu:
    case TANDEM_CUDA_UNARY_Square:
      return true;
    default:
      return false;
  }
}

// Operators with a kernel of their own; the others of a type share one.
template <typename T>
constexpr bool IsFrequent(int op) {
  switch (op) {
    case TANDEM_CUDA_UNARY_Neg:
    case TANDEM_CUDA_UNARY_Exp:
    case TANDEM_CUDA_UNARY_Tanh:
    case TANDEM_CUDA_UNARY_Sigmoid:
    case TANDEM_CUDA_UNARY_Relu:
    case TANDEM_CUDA_UNARY_Gelu:
    case TANDEM_CUDA_UNARY_GeluTanh:
    case TANDEM_CUDA_UNARY_Silu:
    case TANDEM_CUDA_UNARY_Square:
      return true;
    case TANDEM_CUDA_UNARY_Abs:
    case TANDEM_CUDA_UNARY_Log:
    case TANDEM_CUDA_UNARY_Sqrt:
    case TANDEM_CUDA_UNARY_Rsqrt:
    case TANDEM_CUDA_UNARY_Reciprocal:
    case TANDEM_CUDA_UNARY_Erf:
    case TANDEM_CUDA_UNARY_Softplus:
      return !kIsHalf<T>;
    default:
      return false;
  }
}

}  // namespace
}  // namespace tandem::cuda

int tandem_cuda_unary(int32_t op, int32_t dtype, void* out, const void* x, int64_t n,
                      tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  const tandem_cuda_loop loop = Contiguous(n);
  if (op < 0 || op >= TANDEM_CUDA_UNARY_COUNT) return TANDEM_CUDA_UNSUPPORTED;
  if (op == TANDEM_CUDA_UNARY_Not) {
    if (dtype != TANDEM_CUDA_BOOL) return TANDEM_CUDA_UNSUPPORTED;
    return Map<16>(loop, NotFunction(), stream, static_cast<uint8_t*>(out),
                   static_cast<const uint8_t*>(x));
  }
  if (dtype == TANDEM_CUDA_F64) {
    return Map<1>(loop, UnaryFunction<-1, double>{{op}}, stream, static_cast<double*>(out),
                  static_cast<const double*>(x));
  }
  if (HasIntegers(op)) {
    const int error = WithInteger(dtype, [&]<typename T>(T*) {
      return Map<1>(loop, IntegerUnaryFunction<T>{op}, stream, static_cast<T*>(out),
                    static_cast<const T*>(x));
    });
    if (error != TANDEM_CUDA_UNSUPPORTED) return error;
  }
  return WithFloat(dtype, [&]<typename T>(T*) {
    return WithConstant<TANDEM_CUDA_UNARY_Not>(op, [&](auto fixed) {
      constexpr bool kFrequent = IsFrequent<T>(fixed.value);
      return Map < kFrequent ? 16 / sizeof(T)
                             : 1 > (loop, UnaryFunction < kFrequent ? fixed.value : -1, T > {{op}},
                                    UnaryFunction<-1, T>{{op}}, stream, static_cast<T*>(out),
                                    static_cast<const T*>(x));
    });
  });
}

int tandem_cuda_unary_grad(int32_t op, int32_t dtype, void* dx, const void* x, const void* dy,
                           int64_t n, tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  const tandem_cuda_loop loop = Contiguous(n);
  if (op < 0 || op >= TANDEM_CUDA_UNARY_GRAD_COUNT) return TANDEM_CUDA_UNSUPPORTED;
  if (dtype == TANDEM_CUDA_F64) {
    return Map<1>(loop, UnaryGradFunction<-1, double>{{op}}, stream, static_cast<double*>(dx),
                  static_cast<const double*>(x), static_cast<const double*>(dy));
  }
  return WithFloat(dtype, [&]<typename T>(T*) {
    return WithConstant<TANDEM_CUDA_UNARY_GRAD_COUNT>(op, [&](auto fixed) {
      return Map<16 / sizeof(T)>(loop, UnaryGradFunction<fixed.value, T>{{op}},
                                 UnaryGradFunction<-1, T>{{op}}, stream, static_cast<T*>(dx),
                                 static_cast<const T*>(x), static_cast<const T*>(dy));
    });
  });
}

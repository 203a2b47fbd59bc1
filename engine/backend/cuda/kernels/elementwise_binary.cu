// Operators of two inputs, broadcast.
#include "engine/backend/cuda/kernels/functions.h"
#include "engine/backend/cuda/kernels/map.h"
#include "engine/backend/cuda/kernels/types.h"

namespace tandem::cuda {
namespace {

template <int fixed, typename T>
struct BinaryFunction {
  Choice<fixed> choice;
  __device__ __forceinline__ T operator()(T a, T b) const {
    return Narrow<T>(Binary(choice.Get(), Widen(a), Widen(b)));
  }
};

template <typename T>
struct CompareFunction {
  int op;
  __device__ __forceinline__ uint8_t operator()(T a, T b) const {
    return Compare(op, Widen(a), Widen(b)) ? 1 : 0;
  }
};

template <int v, typename T>
int CompareAll(int32_t op, void* out, const void* a, const void* b, const tandem_cuda_loop& loop,
               tandem_cuda_stream stream) {
  return Map<v>(loop, CompareFunction<T>{op}, stream, static_cast<uint8_t*>(out),
                static_cast<const T*>(a), static_cast<const T*>(b));
}

}  // namespace
}  // namespace tandem::cuda

int tandem_cuda_binary(int32_t op, int32_t dtype, void* out, const void* a, const void* b,
                       const struct tandem_cuda_loop* loop, tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  if (op < 0 || op >= TANDEM_CUDA_BINARY_COUNT) return TANDEM_CUDA_UNSUPPORTED;
  const bool logical = op >= TANDEM_CUDA_BINARY_And;
  if (dtype == TANDEM_CUDA_BOOL) {
    if (!logical && op != TANDEM_CUDA_BINARY_Equal) return TANDEM_CUDA_UNSUPPORTED;
    return CompareAll<4, uint8_t>(op, out, a, b, *loop, stream);
  }
  if (logical) return TANDEM_CUDA_UNSUPPORTED;
  if (op >= TANDEM_CUDA_BINARY_Equal) {
    if (dtype == TANDEM_CUDA_F64) return CompareAll<1, double>(op, out, a, b, *loop, stream);
    const int error = WithInteger(
        dtype, [&]<typename T>(T*) { return CompareAll<1, T>(op, out, a, b, *loop, stream); });
    if (error != TANDEM_CUDA_UNSUPPORTED) return error;
    return WithFloat(
        dtype, [&]<typename T>(T*) { return CompareAll<4, T>(op, out, a, b, *loop, stream); });
  }
  const auto chosen = [&]<typename T>(T*) -> int {
    return Map<1>(*loop, BinaryFunction<-1, T>{{op}}, stream, static_cast<T*>(out),
                  static_cast<const T*>(a), static_cast<const T*>(b));
  };
  if (dtype == TANDEM_CUDA_F64) return chosen(static_cast<double*>(nullptr));
  const int error = WithInteger(dtype, chosen);
  if (error != TANDEM_CUDA_UNSUPPORTED) return error;
  return WithFloat(dtype, [&]<typename T>(T*) {
    return WithConstant<TANDEM_CUDA_BINARY_Equal>(op, [&](auto fixed) {
      constexpr bool kFrequent =
          fixed.value != TANDEM_CUDA_BINARY_Pow && fixed.value != TANDEM_CUDA_BINARY_Mod;
      return Map < kFrequent
                 ? 16 / sizeof(T)
                 : 1 > (*loop, BinaryFunction < kFrequent ? fixed.value : -1, T > {{op}},
                        BinaryFunction<-1, T>{{op}}, stream, static_cast<T*>(out),
                        static_cast<const T*>(a), static_cast<const T*>(b));
    });
  });
}

// Where, and SwiGLU with its gradient.
#include "engine/backend/cuda/kernels/functions.h"
#include "engine/backend/cuda/kernels/map.h"
#include "engine/backend/cuda/kernels/types.h"

namespace tandem::cuda {
namespace {

template <typename T>
struct SelectFunction {
  __device__ __forceinline__ T operator()(uint8_t condition, T x, T y) const {
    return condition != 0 ? x : y;
  }
};

template <typename T>
int Select(void* out, const void* condition, const void* x, const void* y,
           const tandem_cuda_loop& loop, tandem_cuda_stream stream) {
  constexpr int kElements = sizeof(T) == 8 ? 2 : 4;
  return Map<kElements>(loop, SelectFunction<T>(), stream, static_cast<T*>(out),
                        static_cast<const uint8_t*>(condition), static_cast<const T*>(x),
                        static_cast<const T*>(y));
}

template <typename T>
struct SwiGluFunction {
  __device__ __forceinline__ T operator()(T gate, T up) const {
    const float g = Widen(gate);
    return Narrow<T>(g * Sigmoid(g) * Widen(up));
  }
};

template <typename T>
__device__ __forceinline__ void SwiGluGradPack(T* dgate, T* dup, const T* gate, const T* up,
                                               const T* dy) {
  const float g = Widen(*gate), u = Widen(*up), d = Widen(*dy);
  *dgate = Narrow<T>(d * u * SiluSlope(g));
  *dup = Narrow<T>(d * (g * Sigmoid(g)));
}

// An output may be an input: each thread reads its elements before it writes them.
template <int v, typename T>
__global__ void __launch_bounds__(256)
    SwiGluGradKernel(T* dgate, T* dup, const T* gate, const T* up, const T* dy, int64_t n) {
  using P = Pack<T, v>;
  const int64_t packs = n / v;
  for (int64_t i = GridIndex(); i < packs; i += GridStride()) {
    const P g = reinterpret_cast<const P*>(gate)[i], u = reinterpret_cast<const P*>(up)[i];
    const P d = reinterpret_cast<const P*>(dy)[i];
    P dg, du;
#pragma unroll
    for (int k = 0; k < v; ++k) {
      SwiGluGradPack(dg.element + k, du.element + k, g.element + k, u.element + k, d.element + k);
    }
    reinterpret_cast<P*>(dgate)[i] = dg;
    reinterpret_cast<P*>(dup)[i] = du;
  }
  const int64_t last = packs * v + GridIndex();
  if (last < n) {
    const T g = gate[last], u = up[last], d = dy[last];
    SwiGluGradPack(dgate + last, dup + last, &g, &u, &d);
  }
}

}  // namespace
}  // namespace tandem::cuda

int tandem_cuda_where(int32_t element_bytes, void* out, const void* condition, const void* x,
                      const void* y, const struct tandem_cuda_loop* loop,
                      tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  switch (element_bytes) {
    case 1:
      return Select<uint8_t>(out, condition, x, y, *loop, stream);
    case 2:
      return Select<uint16_t>(out, condition, x, y, *loop, stream);
    case 4:
      return Select<uint32_t>(out, condition, x, y, *loop, stream);
    case 8:
      return Select<uint64_t>(out, condition, x, y, *loop, stream);
    default:
      return TANDEM_CUDA_UNSUPPORTED;
  }
}

int tandem_cuda_swiglu(int32_t dtype, void* out, const void* gate, const void* up, int64_t n,
                       tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  return WithFloat(dtype, [&]<typename T>(T*) {
    return Map<16 / sizeof(T)>(Contiguous(n), SwiGluFunction<T>(), stream, static_cast<T*>(out),
                               static_cast<const T*>(gate), static_cast<const T*>(up));
  });
}

int tandem_cuda_swiglu_grad(int32_t dtype, void* dgate, void* dup, const void* gate, const void* up,
                            const void* dy, int64_t n, tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  return WithFloat(dtype, [&]<typename T>(T*) -> int {
    constexpr int kElements = 16 / sizeof(T);
    bool aligned = true;
    for (const void* p :
         {static_cast<const void*>(dgate), static_cast<const void*>(dup), gate, up, dy}) {
      aligned = aligned && reinterpret_cast<uintptr_t>(p) % 16 == 0;
    }
    const auto launch = [&](auto kernel, int v) {
      return Launch(kernel, BlocksFor(n / v + v - 1, 256), 256, 0,
                    static_cast<cudaStream_t>(stream), static_cast<T*>(dgate), static_cast<T*>(dup),
                    static_cast<const T*>(gate), static_cast<const T*>(up),
                    static_cast<const T*>(dy), n);
    };
    if (n == 0) return cudaSuccess;
    return aligned ? launch(SwiGluGradKernel<kElements, T>, kElements)
                   : launch(SwiGluGradKernel<1, T>, 1);
  });
}

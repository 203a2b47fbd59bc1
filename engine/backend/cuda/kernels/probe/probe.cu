// Not a kernel: CMake compiles it to see whether nvcc and the host compiler are new enough.
#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include <bit>
#include <concepts>
#include <functional>
#include <string>
#include <vector>

template <std::integral T>
__global__ void Probe(T* x) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
  *x = static_cast<T>(blockIdx.x);
}

cudaError_t Start(int* x) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                   &found);
  Probe<<<1, 1>>>(x);
  return function == nullptr ? cudaErrorNotSupported : cudaGetLastError();
}

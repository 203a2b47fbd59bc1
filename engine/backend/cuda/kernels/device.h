// What every kernel file starts from: CUDA under nvcc, the emulation under a C++ compiler.
//
// Kernels take raw pointers and sizes and know nothing of graphs or tensors. A launcher checks
// nothing that its caller (the binding) has checked, and returns the cudaError_t of its launches.
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>

#include <cstdint>
#else
#include "engine/backend/cuda/emulation/cuda_emulation.h"
#endif

// sm_90a's own instructions (wgmma, TMA, setmaxnreg) may be used in this compilation.
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TANDEM_HOPPER 1
#else
#define TANDEM_HOPPER 0
#endif

#include "engine/backend/cuda/kernels/numeric.h"

namespace tandem::cuda {

inline constexpr unsigned kFullWarp = 0xffffffffu;

// The block's dynamic shared memory, 1024-byte aligned; as large as the launch said.
__device__ __forceinline__ char* DynamicShared() {
#ifdef __CUDACC__
  extern __shared__ __align__(1024) char tandem_dynamic_shared[];
  return tandem_dynamic_shared;
#else
  return emulation::SharedMemory();
#endif
}

// The address of shared memory as PTX counts it; under emulation, the offset in the dynamic part.
__device__ __forceinline__ unsigned SharedAddress(const void* pointer) {
#ifdef __CUDACC__
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
#else
  return emulation::SharedOffset(pointer);
#endif
}

// Launches kernel<<<grid, block, shared_bytes, stream>>>(arguments...); nothing when the grid is
// empty. More than 48 KiB of shared memory is asked for here.
template <typename... Parameters, typename... Arguments>
cudaError_t Launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, const Arguments&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
#ifdef __CUDACC__
  if (shared_bytes > (size_t{48} << 10)) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shared_bytes));
    if (error != cudaSuccess) {
      // The chip has less shared memory than the kernel wants; the next launch must not find this.
      (void)cudaGetLastError();
      return cudaErrorNotSupported;
    }
  }
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
  return cudaGetLastError();
#else
  (void)stream;
  return emulation::SubmitKernel(
      grid, block, shared_bytes,
      [kernel, arguments = std::tuple<Parameters...>(static_cast<Parameters>(arguments)...)] {
        std::apply(kernel, arguments);
      });
#endif
}

// The blocks of `block` threads that cover n elements, at most `most` (a grid-stride loop does the
// rest).
inline unsigned BlocksFor(int64_t n, int64_t block, int64_t most = 132 * 32) {
  const int64_t blocks = (n + block - 1) / block;
  return static_cast<unsigned>(blocks < most ? blocks : most);
}

// First index and stride of a grid-stride loop.
__device__ __forceinline__ int64_t GridIndex() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ int64_t GridStride() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

}  // namespace tandem::cuda

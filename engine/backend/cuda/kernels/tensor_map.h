// Tensor maps: what the copy engine of sm_90 must know of a tensor in global memory. Made on the
// host, passed to a kernel as `const __grid_constant__ CUtensorMap`.
#pragma once

#include "engine/backend/cuda/kernels/device.h"
#ifdef __CUDACC__
#include <cuda.h>
#else
#include "engine/backend/cuda/emulation/hopper_emulation.h"
#endif

namespace tandem::cuda {

struct TensorMapSpec {
  const void* base;    // 16-byte aligned
  int element_bytes;   // 1, 2 or 4
  int rank;            // 2..5
  int64_t sizes[5];    // innermost first, below 2^32
  int64_t strides[5];  // bytes, multiples of 16; [0] is not read
  int box[5];          // 1..256; box[0] * element_bytes is a multiple of 16
  // The 16-byte units of each 128-byte row of shared memory are permuted as wgmma's descriptors
  // want it; box[0] * element_bytes is then at most 128.
  bool swizzled;
};
// cudaErrorInvalidValue where the driver refuses it.
cudaError_t MakeTensorMap(const TensorMapSpec& spec, CUtensorMap* map);

}  // namespace tandem::cuda

// A loop as the CUDA library takes it.
#pragma once

#include "engine/backend/cuda/kernels/tandem_cuda.h"
#include "engine/backend/loop.h"

namespace tandem::cuda {

// With as few dimensions as possible; operand 0 is the output.
template <int K>
tandem_cuda_loop LibraryLoop(const Loop<K>& dims) {
  static_assert(K <= TANDEM_CUDA_MAX_OPERANDS && kMaxRank <= TANDEM_CUDA_MAX_DIMS);
  tandem_cuda_loop loop = {};
  for (const LoopDim<K>& dim : Coalesce<K>(dims)) {
    loop.size[loop.dims] = dim.size;
    for (int k = 0; k < K; ++k) loop.stride[k][loop.dims] = dim.stride[k];
    ++loop.dims;
  }
  return loop;
}

}  // namespace tandem::cuda

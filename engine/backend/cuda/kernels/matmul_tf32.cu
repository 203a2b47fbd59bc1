#include "engine/backend/cuda/kernels/matmul_mma.h"

namespace tandem::cuda {

cudaError_t MatMulTf32(const MatMulParams& p, int multiprocessors, cudaStream_t stream) {
  return MatMulMma<float>(p, multiprocessors, stream);
}

}  // namespace tandem::cuda

#include "engine/backend/cuda/kernels/matmul_mma.h"

namespace tandem::cuda {

cudaError_t MatMulMmaF16(const MatMulParams& p, int multiprocessors, cudaStream_t stream) {
  return MatMulMma<F16>(p, multiprocessors, stream);
}

}  // namespace tandem::cuda

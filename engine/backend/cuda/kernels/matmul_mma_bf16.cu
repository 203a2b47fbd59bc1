#include "engine/backend/cuda/kernels/matmul_mma.h"

namespace tandem::cuda {

cudaError_t MatMulMmaBf16(const MatMulParams& p, int multiprocessors, cudaStream_t stream) {
  return MatMulMma<Bf16>(p, multiprocessors, stream);
}

}  // namespace tandem::cuda

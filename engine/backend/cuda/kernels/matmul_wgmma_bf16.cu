#include "engine/backend/cuda/kernels/matmul_wgmma.h"

namespace tandem::cuda {

cudaError_t MatMulWgmmaBf16(const MatMulParams& p, int multiprocessors, cudaStream_t stream) {
  return MatMulWgmma<Bf16>(p, multiprocessors, stream);
}

}  // namespace tandem::cuda

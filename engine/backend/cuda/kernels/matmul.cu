// The matrix product's entry: which kernel.
#include "engine/backend/cuda/kernels/matmul_tiles.h"

int tandem_cuda_matmul(const struct tandem_cuda_matmul_params* params, tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  const MatMulParams& p = *params;
  auto* const s = static_cast<cudaStream_t>(stream);
  if (p.dtype == TANDEM_CUDA_F32) {
    if (p.out_dtype != TANDEM_CUDA_F32) return TANDEM_CUDA_UNSUPPORTED;
  }
  int device = 0, multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  if (p.dtype == TANDEM_CUDA_F32) return MatMulF32(p, multiprocessors, s);
  const bool plain = p.b2 == nullptr && p.residual == nullptr && p.activation == 0;
  if (p.out_dtype != p.dtype || !plain) return TANDEM_CUDA_UNSUPPORTED;
  return MatMulPlain(p, s);
}

// The matrix product's entry: which kernel.
#include "engine/backend/cuda/kernels/matmul_tiles.h"

int tandem_cuda_matmul(const struct tandem_cuda_matmul_params* params, tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  MatMulParams p = *params;
  // The distance to a second product need not suit the copy engine where there is none.
  if (p.batch == 1) p.a_stride = p.b_stride = p.out_stride = 0;
  auto* const s = static_cast<cudaStream_t>(stream);
  const bool half = p.dtype == TANDEM_CUDA_BF16 || p.dtype == TANDEM_CUDA_F16;
  if (p.out_dtype != p.dtype && !(half && p.out_dtype == TANDEM_CUDA_F32)) {
    return TANDEM_CUDA_UNSUPPORTED;
  }
  if (p.b2 != nullptr && (p.bias != nullptr || p.activation != 0 || p.transpose_a != 0)) {
    return TANDEM_CUDA_UNSUPPORTED;
  }
  int device = 0, capability = 0, multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&capability, cudaDevAttrComputeCapabilityMajor, device);
  if (error != cudaSuccess) return error;
  const bool hopper = capability == 9;
  switch (p.dtype) {
    case TANDEM_CUDA_F32:
      return p.tf32 != 0 ? MatMulTf32(p, multiprocessors, s) : MatMulF32(p, multiprocessors, s);
    case TANDEM_CUDA_BF16:
      return hopper ? MatMulWgmmaBf16(p, multiprocessors, s) : MatMulMmaBf16(p, multiprocessors, s);
    case TANDEM_CUDA_F16:
      return hopper ? MatMulWgmmaF16(p, multiprocessors, s) : MatMulMmaF16(p, multiprocessors, s);
    default:
      break;
  }
  if (p.b2 != nullptr || p.residual != nullptr || p.activation != 0) return TANDEM_CUDA_UNSUPPORTED;
  return MatMulPlain(p, s);
}

#include "engine/backend/cuda/kernels/device.h"
#include "engine/backend/cuda/kernels/tandem_cuda.h"

namespace tandem::cuda {
namespace {

__global__ void Negate(float* out, const float* x, int64_t n) {
  for (int64_t i = GridIndex(); i < n; i += GridStride()) out[i] = -x[i];
}

}  // namespace
}  // namespace tandem::cuda

int tandem_cuda_negate(float* out, const float* x, int64_t n, tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  return Launch(Negate, BlocksFor(n, 256), 256, 0, static_cast<cudaStream_t>(stream), out, x, n);
}

// Substitution, a thread a column: systems are small, their right-hand sides many.
#include "engine/backend/cuda/kernels/types.h"

namespace tandem::cuda {
namespace {

template <typename T>
__global__ void __launch_bounds__(128) SolveKernel(T* out, const T* l, const T* rhs, int64_t batch,
                                                   int64_t size, int64_t columns, bool transposed) {
  for (int64_t c = GridIndex(); c < batch * columns; c += GridStride()) {
    const int64_t b = c / columns, from = b * size * columns + c % columns;
    const T* const matrix = l + b * size * size;
    for (int64_t step = 0; step < size; ++step) {
      const int64_t i = transposed ? size - 1 - step : step;
      T x = rhs[from + i * columns];
      for (int64_t before = 0; before < step; ++before) {
        const int64_t j = transposed ? size - 1 - before : before;
        const T factor = matrix[transposed ? j * size + i : i * size + j];
        x -= factor * out[from + j * columns];
      }
      out[from + i * columns] = x / matrix[i * size + i];
    }
  }
}

template <typename T>
int Solve(int32_t transposed, void* out, const void* l, const void* rhs, int64_t batch,
          int64_t size, int64_t columns, tandem_cuda_stream stream) {
  return Launch(SolveKernel<T>, BlocksFor(batch * columns, 128), 128, 0,
                static_cast<cudaStream_t>(stream), static_cast<T*>(out), static_cast<const T*>(l),
                static_cast<const T*>(rhs), batch, size, columns, transposed != 0);
}

}  // namespace
}  // namespace tandem::cuda

int tandem_cuda_triangular_solve(int32_t dtype, int32_t transposed, void* out, const void* l,
                                 const void* rhs, int64_t batch, int64_t size, int64_t columns,
                                 tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  if (dtype == TANDEM_CUDA_F32) {
    return Solve<float>(transposed, out, l, rhs, batch, size, columns, stream);
  }
  if (dtype == TANDEM_CUDA_F64) {
    return Solve<double>(transposed, out, l, rhs, batch, size, columns, stream);
  }
  return TANDEM_CUDA_UNSUPPORTED;
}

// Kernel of TriangularSolve: substitution, row by row of the solution.
#include <algorithm>

#include "engine/backend/cpu/dtypes.h"
#include "engine/backend/cpu/kernels_table.h"

namespace tandem::cpu {
namespace {

constexpr int64_t kTile = 64;  // columns that are solved together

// x (size, width), rows `stride` apart, holds the right-hand side and becomes the solution. Terms
// are subtracted in the order of the substitution, each column for itself.
template <typename T>
void Solve(const T* l, T* x, int64_t size, int64_t stride, int64_t width, bool transposed) {
  for (int64_t step = 0; step < size; ++step) {
    const int64_t i = transposed ? size - 1 - step : step;
    T* row = x + i * stride;
    for (int64_t before = 0; before < step; ++before) {
      const int64_t j = transposed ? size - 1 - before : before;
      const T factor = transposed ? l[j * size + i] : l[i * size + j];
      const T* solved = x + j * stride;
#pragma omp simd
      for (int64_t k = 0; k < width; ++k) row[k] -= factor * solved[k];
    }
    const T diagonal = l[i * size + i];
#pragma omp simd
    for (int64_t k = 0; k < width; ++k) row[k] /= diagonal;
  }
}

template <typename T>
BoundKernel SolveKernel(const KernelSpec& spec) {
  const Shape& shape = spec.out();
  const int64_t size = shape[-2], columns = shape[-1], batch = shape.Count(0, shape.rank() - 2);
  const int64_t tiles = (columns + kTile - 1) / kTile, bytes = spec.outputs[0].bytes();
  const bool transposed = spec.attributes->Int("transpose_l") != 0;
  return {[=](const KernelArgs& args) {
    const T* l = args.in<T>(0);
    T* out = args.out<T>();
    CopyBytes(out, args.inputs[1], bytes);
    const int64_t work = std::max<int64_t>(1, size * size * std::min(columns, kTile));
    ParallelFor(batch * tiles, 16384 / work, [=](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t b = t / tiles, column = t % tiles * kTile;
        Solve(l + b * size * size, out + b * size * columns + column, size, columns,
              std::min(kTile, columns - column), transposed);
      }
    });
  }};
}

absl::StatusOr<BoundKernel> BindTriangularSolve(const KernelSpec& spec) {
  return spec.dtype() == DType::kF32 ? SolveKernel<float>(spec) : SolveKernel<double>(spec);
}

}  // namespace

constinit const Kernel kTriangularSolveKernel = {.bind = BindTriangularSolve};

}  // namespace tandem::cpu

// Kernels of the matrix product.
#include "engine/backend/cpu/dtypes.h"
#include "engine/backend/cpu/kernels/gemm.h"
#include "engine/backend/cpu/kernels_table.h"
#include "engine/backend/matmul_sizes.h"

namespace tandem::cpu {
namespace {

absl::StatusOr<BoundKernel> BindGemm(const KernelSpec& spec) {
  MatMulSizes sizes(spec);
  const LoopDim<3>& inner = sizes.inner();
  GemmParams params;
  params.batch = inner.size;
  params.m = sizes.m;
  params.n = sizes.n;
  params.k = sizes.k;
  params.lda = sizes.transpose_a ? sizes.m : sizes.k;
  params.transpose_a = sizes.transpose_a;
  params.a_batch_stride = inner.stride[1];
  params.ldb = sizes.transpose_b ? sizes.k : sizes.n;
  params.transpose_b = sizes.transpose_b;
  params.b_batch_stride = inner.stride[2];
  params.ldc = sizes.n;
  params.c_batch_stride = inner.stride[0];
  const bool bias = spec.has(2);
  const int64_t scratch_bytes = GemmScratchBytes(params);
  return BoundKernel{[params, bias, sizes = std::move(sizes)](const KernelArgs& args) {
                       GemmParams p = params;
                       p.bias = bias ? args.in<float>(2) : nullptr;
                       sizes.ForOuter([&](const std::array<int64_t, 3>& offset) {
                         p.c = args.out<float>() + offset[0];
                         p.a = args.in<float>(0) + offset[1];
                         p.b = args.in<float>(1) + offset[2];
                         Gemm(p, args.scratch);
                       });
                     },
                     scratch_bytes};
}

// Other types: one plain loop an output element; for shape arithmetic and small models.
template <typename T>
BoundKernel BindPlain(const KernelSpec& spec) {
  using Sum = std::conditional_t<std::is_integral_v<T>, uint64_t, T>;
  MatMulSizes sizes(spec);
  const bool bias = spec.has(2);
  // Element (i, j) of op(A) is at i * a_row + j * a_col.
  const int64_t a_row = sizes.transpose_a ? 1 : sizes.k, a_col = sizes.transpose_a ? sizes.m : 1;
  const int64_t b_row = sizes.transpose_b ? 1 : sizes.n, b_col = sizes.transpose_b ? sizes.k : 1;
  return {[=, batch = std::move(sizes.batch), m = sizes.m, n = sizes.n,
           k = sizes.k](const KernelArgs& args) {
    ForOuter<3>(batch, batch.size(), m * n * k, [&](const std::array<int64_t, 3>& offset) {
      T* out = args.out<T>() + offset[0];
      const T *a = args.in<T>(0) + offset[1], *b = args.in<T>(1) + offset[2];
      ParallelFor(m, kParallelGrain / (n * k + 1) + 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          for (int64_t j = 0; j < n; ++j) {
            Sum sum = 0;
            for (int64_t l = 0; l < k; ++l) {
              sum += static_cast<Sum>(a[i * a_row + l * a_col]) *
                     static_cast<Sum>(b[l * b_row + j * b_col]);
            }
            if (bias) sum += static_cast<Sum>(args.in<T>(2)[j]);
            out[i * n + j] = static_cast<T>(sum);
          }
        }
      });
    });
  }};
}

absl::StatusOr<BoundKernel> BindMatMul(const KernelSpec& spec) {
  if (spec.out().num_elements() == 0) return BoundKernel{[](const KernelArgs&) {}};
  switch (spec.dtype()) {
    case DType::kF32:
      return BindGemm(spec);
    case DType::kF64:
      return BindPlain<double>(spec);
    case DType::kI32:
      return BindPlain<int32_t>(spec);
    case DType::kI64:
      return BindPlain<int64_t>(spec);
    case DType::kU32:
      return BindPlain<uint32_t>(spec);
    case DType::kU64:
      return BindPlain<uint64_t>(spec);
    default:
      return UnsupportedDType(spec.dtype());
  }
}

}  // namespace

constinit const Kernel kMatMulKernel = {.bind = BindMatMul};

}  // namespace tandem::cpu

// Bindings of the matrix product.
#include "engine/backend/cuda/cuda_backend.h"
#include "engine/backend/cuda/floats.h"
#include "engine/backend/cuda/kernels_table.h"
#include "engine/backend/matmul_sizes.h"

namespace tandem::cuda {
namespace {

absl::Status CheckDTypes(const KernelSpec& spec) {
  switch (spec.dtype()) {
    case DType::kF32:
    case DType::kF64:
    case DType::kBF16:
    case DType::kF16:
    case DType::kI32:
    case DType::kI64:
    case DType::kU32:
    case DType::kU64:
      return absl::OkStatus();
    default:
      return UnsupportedDType(spec.dtype());
  }
}

struct Activation {
  std::string_view op;
  int32_t number;
};
constexpr Activation kActivations[] = {{"Relu", TANDEM_CUDA_ACTIVATION_RELU},
                                       {"Silu", TANDEM_CUDA_ACTIVATION_SILU},
                                       {"Gelu", TANDEM_CUDA_ACTIVATION_GELU},
                                       {"GeluTanh", TANDEM_CUDA_ACTIVATION_GELU_TANH}};

// MatMul: a, b, bias; FusedMatMul: also up and residual, and the attribute `activation`.
absl::StatusOr<BoundKernel> BindProduct(const KernelSpec& spec, int32_t activation) {
  if (spec.out().num_elements() == 0) return BoundKernel{[](const KernelArgs&) {}};
  TANDEM_RETURN_IF_ERROR(CheckDTypes(spec));
  TANDEM_CUDA_CALL(matmul, tandem_cuda_matmul, spec);
  MatMulSizes sizes(spec);
  tandem_cuda_matmul_params params{};
  params.batch = sizes.inner().size;
  params.m = sizes.m;
  params.n = sizes.n;
  params.k = sizes.k;
  params.lda = sizes.transpose_a ? sizes.m : sizes.k;
  params.ldb = sizes.transpose_b ? sizes.k : sizes.n;
  params.ld_out = sizes.n;
  params.out_stride = sizes.inner().stride[0];
  params.a_stride = sizes.inner().stride[1];
  params.b_stride = sizes.inner().stride[2];
  params.dtype = Number(spec.dtype());
  params.out_dtype = Number(spec.outputs[0].dtype);
  params.activation = activation;
  params.transpose_a = sizes.transpose_a;
  params.transpose_b = sizes.transpose_b;
  const int64_t bytes = SizeOf(spec.dtype()), out_bytes = SizeOf(spec.outputs[0].dtype);
  return BoundKernel{[=, sizes = std::move(sizes)](const KernelArgs& args) {
    tandem_cuda_matmul_params p = params;
    p.bias = OptionalInput(args, 2);
    const auto* const up = static_cast<const std::byte*>(OptionalInput(args, 3));
    const auto* const residual = static_cast<const std::byte*>(OptionalInput(args, 4));
    sizes.ForOuter([&](const std::array<int64_t, 3>& offset) {
      if (up != nullptr) p.b2 = up + offset[2] * bytes;
      if (residual != nullptr) p.residual = residual + offset[0] * out_bytes;
      p.out = args.out<std::byte>() + offset[0] * out_bytes;
      p.a = args.in<std::byte>(0) + offset[1] * bytes;
      p.b = args.in<std::byte>(1) + offset[2] * bytes;
      matmul(&p, matmul.device->stream());
    });
  }};
}

absl::StatusOr<BoundKernel> BindMatMul(const KernelSpec& spec) { return BindProduct(spec, 0); }

absl::StatusOr<BoundKernel> BindFusedMatMul(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireFloat(spec, 0));
  if (spec.has(3) && spec.attributes->Int("transpose_a") != 0) {
    return Unimplemented("two products of a transposed operand are not supported on CUDA");
  }
  int32_t activation = 0;
  for (const Activation& known : kActivations) {
    if (spec.attributes->String("activation") == known.op) activation = known.number;
  }
  return BindProduct(spec, activation);
}

}  // namespace

constinit const Kernel kFusedMatMulKernel = {.bind = BindFusedMatMul};
constinit const Kernel kMatMulKernel = {.bind = BindMatMul};

}  // namespace tandem::cuda

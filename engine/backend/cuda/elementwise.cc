// Bindings of the elementwise operators.
#include "engine/backend/cuda/cuda_backend.h"
#include "engine/backend/cuda/kernels_table.h"
#include "engine/backend/cuda/loop.h"

namespace tandem::cuda {
namespace {

#define SAME(name) \
  static_assert(static_cast<int>(DType::k##name) == static_cast<int>(TANDEM_CUDA_##name))
SAME(F32);
SAME(F64);
SAME(F16);
SAME(BF16);
SAME(I8);
SAME(I64);
SAME(U8);
SAME(U64);
#undef SAME
static_assert(static_cast<int>(DType::kBool) == static_cast<int>(TANDEM_CUDA_BOOL));

absl::Status UnsupportedDType(DType dtype) {
  return Unimplemented(DTypeName(dtype), " is not supported on CUDA");
}
int32_t Number(DType dtype) { return static_cast<int32_t>(dtype); }

// Whether `op` is one of those that integers have too.
constexpr bool HasIntegers(int32_t op) {
  return op == TANDEM_CUDA_UNARY_Neg || op == TANDEM_CUDA_UNARY_Abs ||
         op == TANDEM_CUDA_UNARY_Sign || op == TANDEM_CUDA_UNARY_Relu ||
         op == TANDEM_CUDA_UNARY_Square;
}

template <int32_t op>
absl::StatusOr<BoundKernel> BindUnary(const KernelSpec& spec) {
  const DType dtype = spec.dtype();
  const bool is_bool = dtype == DType::kBool;
  if (op == TANDEM_CUDA_UNARY_Not ? !is_bool : is_bool || (!IsFloat(dtype) && !HasIntegers(op))) {
    return UnsupportedDType(dtype);
  }
  TANDEM_CUDA_CALL(unary, tandem_cuda_unary, spec);
  const int64_t n = spec.out().num_elements();
  return BoundKernel{[=](const KernelArgs& args) {
    unary(op, Number(dtype), args.outputs[0], args.inputs[0], n, unary.device->stream());
  }};
}

template <int32_t op>
absl::StatusOr<BoundKernel> BindUnaryGrad(const KernelSpec& spec) {
  const DType dtype = spec.dtype();
  if (!IsFloat(dtype)) return UnsupportedDType(dtype);
  TANDEM_CUDA_CALL(unary_grad, tandem_cuda_unary_grad, spec);
  const int64_t n = spec.out().num_elements();
  return BoundKernel{[=](const KernelArgs& args) {
    unary_grad(op, Number(dtype), args.outputs[0], args.inputs[0], args.inputs[1], n,
               unary_grad.device->stream());
  }};
}

template <int32_t op>
absl::StatusOr<BoundKernel> BindBinary(const KernelSpec& spec) {
  const DType dtype = spec.dtype();
  const bool is_bool = dtype == DType::kBool;
  if (op >= TANDEM_CUDA_BINARY_And ? !is_bool : is_bool && op != TANDEM_CUDA_BINARY_Equal) {
    return UnsupportedDType(dtype);
  }
  TANDEM_CUDA_CALL(binary, tandem_cuda_binary, spec);
  const tandem_cuda_loop loop =
      LibraryLoop<3>(BroadcastLoop<3>(spec.out(), {&spec.in(0), &spec.in(1)}));
  return BoundKernel{[=](const KernelArgs& args) {
    binary(op, Number(dtype), args.outputs[0], args.inputs[0], args.inputs[1], &loop,
           binary.device->stream());
  }};
}

absl::StatusOr<BoundKernel> BindWhere(const KernelSpec& spec) {
  TANDEM_CUDA_CALL(where, tandem_cuda_where, spec);
  const tandem_cuda_loop loop =
      LibraryLoop<4>(BroadcastLoop<4>(spec.out(), {&spec.in(0), &spec.in(1), &spec.in(2)}));
  const auto bytes = static_cast<int32_t>(SizeOf(spec.dtype(1)));
  return BoundKernel{[=](const KernelArgs& args) {
    where(bytes, args.outputs[0], args.inputs[0], args.inputs[1], args.inputs[2], &loop,
          where.device->stream());
  }};
}

absl::StatusOr<BoundKernel> BindCast(const KernelSpec& spec) {
  TANDEM_CUDA_CALL(cast, tandem_cuda_cast, spec);
  const int64_t n = spec.out().num_elements();
  const int32_t from = Number(spec.dtype()), to = Number(spec.outputs[0].dtype);
  return BoundKernel{[=](const KernelArgs& args) {
    cast(from, to, args.outputs[0], args.inputs[0], n, cast.device->stream());
  }};
}

absl::Status RequireSwiGluType(DType dtype) {
  return IsFloat(dtype) && dtype != DType::kF64 ? absl::OkStatus() : UnsupportedDType(dtype);
}

absl::StatusOr<BoundKernel> BindSwiGlu(const KernelSpec& spec) {
  const DType dtype = spec.dtype();
  TANDEM_RETURN_IF_ERROR(RequireSwiGluType(dtype));
  TANDEM_CUDA_CALL(swiglu, tandem_cuda_swiglu, spec);
  const int64_t n = spec.out().num_elements();
  return BoundKernel{[=](const KernelArgs& args) {
    swiglu(Number(dtype), args.outputs[0], args.inputs[0], args.inputs[1], n,
           swiglu.device->stream());
  }};
}

absl::StatusOr<BoundKernel> BindSwiGluGrad(const KernelSpec& spec) {
  const DType dtype = spec.dtype();
  TANDEM_RETURN_IF_ERROR(RequireSwiGluType(dtype));
  TANDEM_CUDA_CALL(swiglu_grad, tandem_cuda_swiglu_grad, spec);
  const int64_t n = spec.out().num_elements();
  return BoundKernel{[=](const KernelArgs& args) {
    swiglu_grad(Number(dtype), args.outputs[0], args.outputs[1], args.inputs[0], args.inputs[1],
                args.inputs[2], n, swiglu_grad.device->stream());
  }};
}

}  // namespace

#define OP(name)                                                                         \
  constinit const Kernel k##name##Kernel = {.bind = BindUnary<TANDEM_CUDA_UNARY_##name>, \
                                            .in_place = true};
TANDEM_CUDA_UNARY_KERNELS(OP)
#undef OP
#define OP(name)                                 \
  constinit const Kernel k##name##GradKernel = { \
      .bind = BindUnaryGrad<TANDEM_CUDA_UNARY_GRAD_##name>, .in_place = true};
OP(Relu)
OP(Gelu)
OP(GeluTanh)
OP(Silu)
#undef OP
// In place is safe: an input with as many bytes as the output has its shape, for it has its dtype.
#define OP(name)                                                                           \
  constinit const Kernel k##name##Kernel = {.bind = BindBinary<TANDEM_CUDA_BINARY_##name>, \
                                            .in_place = true};
OP(Add)
OP(Sub)
OP(Mul)
OP(Div)
OP(Pow)
OP(Max)
OP(Min)
OP(Mod)
OP(And)
OP(Or)
OP(Xor)
#undef OP
// Not these: four f32 broadcast to sixteen bools have as many bytes.
#define OP(name) \
  constinit const Kernel k##name##Kernel = {.bind = BindBinary<TANDEM_CUDA_BINARY_##name>};
OP(Equal)
OP(Less)
OP(LessOrEqual)
#undef OP
constinit const Kernel kWhereKernel = {.bind = BindWhere, .in_place = true};
constinit const Kernel kCastKernel = {.bind = BindCast, .in_place = true};
constinit const Kernel kSwiGluKernel = {.bind = BindSwiGlu, .in_place = true};
constinit const Kernel kSwiGluGradKernel = {.bind = BindSwiGluGrad, .in_place = true};

}  // namespace tandem::cuda

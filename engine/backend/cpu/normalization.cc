// Kernels of softmax and of the normalisations.
#include "engine/backend/cpu/dtypes.h"
#include "engine/backend/cpu/kernels/rowwise.h"
#include "engine/backend/cpu/kernels_table.h"

namespace tandem::cpu {
namespace {

// The input as a matrix: its last dimension is a row. Inference has checked that cols > 0.
struct Matrix {
  int64_t rows, cols;
  explicit Matrix(const Shape& shape) : rows(shape.Count(0, shape.rank() - 1)), cols(shape[-1]) {}
};

using RowFunction = void (*)(const float* x, float* y, int64_t rows, int64_t cols);
template <RowFunction f>
absl::StatusOr<BoundKernel> BindRows(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireF32(spec, 0));
  const Matrix m(spec.in(0));
  return BoundKernel{
      [m](const KernelArgs& args) { f(args.in<float>(0), args.out<float>(), m.rows, m.cols); }};
}

using RowGradFunction = void (*)(const float* y, const float* dy, float* dx, int64_t rows,
                                 int64_t cols);
template <RowGradFunction f>
absl::StatusOr<BoundKernel> BindRowsGrad(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireF32(spec, 0));
  const Matrix m(spec.in(0));
  return BoundKernel{[m](const KernelArgs& args) {
    f(args.in<float>(0), args.in<float>(1), args.out<float>(), m.rows, m.cols);
  }};
}

// Null where the optional input is absent.
const float* OptionalInput(const KernelArgs& args, size_t i) {
  return i < args.inputs.size() ? static_cast<const float*>(args.inputs[i]) : nullptr;
}

absl::StatusOr<BoundKernel> BindLayerNorm(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireF32(spec, 0));
  const Matrix m(spec.in(0));
  const auto epsilon = static_cast<float>(spec.attributes->Float("epsilon"));
  return BoundKernel{[m, epsilon](const KernelArgs& args) {
    LayerNorm(args.in<float>(0), OptionalInput(args, 1), OptionalInput(args, 2), epsilon,
              args.out<float>(0), args.out<float>(1), args.out<float>(2), m.rows, m.cols);
  }};
}

// x, mean, rstd, dy, gamma -> dx, dgamma, dbeta
absl::StatusOr<BoundKernel> BindLayerNormGrad(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireF32(spec, 0));
  const Matrix m(spec.in(0));
  return BoundKernel{
      [m](const KernelArgs& args) {
        const float *x = args.in<float>(0), *mean = args.in<float>(1), *rstd = args.in<float>(2);
        const float *dy = args.in<float>(3), *gamma = OptionalInput(args, 4);
        if (m.rows == 0) {
          ZeroBytes(args.outputs[1], m.cols * static_cast<int64_t>(sizeof(float)));
          ZeroBytes(args.outputs[2], m.cols * static_cast<int64_t>(sizeof(float)));
          return;
        }
        LayerNormParameterBackward(x, dy, mean, rstd, args.out<float>(1), args.out<float>(2),
                                   static_cast<float*>(args.scratch), m.rows, m.cols);
        LayerNormBackward(x, dy, gamma, mean, rstd, args.out<float>(0), m.rows, m.cols);
      },
      LayerNormParameterScratchBytes(m.rows, m.cols)};
}

absl::StatusOr<BoundKernel> BindRmsNorm(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireF32(spec, 0));
  const Matrix m(spec.in(0));
  const auto epsilon = static_cast<float>(spec.attributes->Float("epsilon"));
  return BoundKernel{[m, epsilon](const KernelArgs& args) {
    RmsNorm(args.in<float>(0), OptionalInput(args, 1), epsilon, args.out<float>(0),
            args.out<float>(1), m.rows, m.cols);
  }};
}

// x, rstd, dy, gamma -> dx, dgamma
absl::StatusOr<BoundKernel> BindRmsNormGrad(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireF32(spec, 0));
  const Matrix m(spec.in(0));
  return BoundKernel{
      [m](const KernelArgs& args) {
        const float *x = args.in<float>(0), *rstd = args.in<float>(1), *dy = args.in<float>(2);
        if (m.rows == 0) {
          ZeroBytes(args.outputs[1], m.cols * static_cast<int64_t>(sizeof(float)));
          return;
        }
        RmsNormParameterBackward(x, dy, rstd, args.out<float>(1), static_cast<float*>(args.scratch),
                                 m.rows, m.cols);
        RmsNormBackward(x, dy, OptionalInput(args, 3), rstd, args.out<float>(0), m.rows, m.cols);
      },
      RmsNormParameterScratchBytes(m.rows, m.cols)};
}

}  // namespace

// The row kernels take an output that is an input of the same shape.
constinit const Kernel kSoftmaxKernel = {.bind = BindRows<Softmax>, .in_place = true};
constinit const Kernel kSoftmaxGradKernel = {.bind = BindRowsGrad<SoftmaxBackward>,
                                             .in_place = true};
constinit const Kernel kLogSoftmaxKernel = {.bind = BindRows<LogSoftmax>, .in_place = true};
constinit const Kernel kLogSoftmaxGradKernel = {.bind = BindRowsGrad<LogSoftmaxBackward>,
                                                .in_place = true};
constinit const Kernel kLayerNormKernel = {.bind = BindLayerNorm};
constinit const Kernel kLayerNormGradKernel = {.bind = BindLayerNormGrad};
constinit const Kernel kRmsNormKernel = {.bind = BindRmsNorm};
constinit const Kernel kRmsNormGradKernel = {.bind = BindRmsNormGrad};

}  // namespace tandem::cpu

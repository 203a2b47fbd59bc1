// Kernels of the fused losses.
#include <algorithm>

#include "engine/backend/cpu/dtypes.h"
#include "engine/backend/cpu/kernels/rowwise.h"
#include "engine/backend/cpu/kernels_table.h"

namespace tandem::cpu {
namespace {

// The targets in scratch, moved into [0, classes): a wrong one may not read beyond its row.
const int32_t* SafeTargets(const KernelArgs& args, int64_t rows, int64_t classes) {
  const auto* targets = args.in<int32_t>(1);
  auto* safe = static_cast<int32_t*>(args.scratch);
  for (int64_t i = 0; i < rows; ++i) {
    safe[i] = static_cast<int32_t>(std::clamp<int64_t>(targets[i], 0, classes - 1));
  }
  return safe;
}

absl::StatusOr<BoundKernel> BindSoftmaxCrossEntropy(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireF32(spec, 0));
  const int64_t rows = spec.in(0)[0], classes = spec.in(0)[1];
  return BoundKernel{[=](const KernelArgs& args) {
                       SoftmaxCrossEntropy(args.in<float>(0), SafeTargets(args, rows, classes),
                                           args.out<float>(0), args.out<float>(1), rows, classes);
                     },
                     rows * static_cast<int64_t>(sizeof(int32_t))};
}

absl::StatusOr<BoundKernel> BindSoftmaxCrossEntropyGrad(const KernelSpec& spec) {
  TANDEM_RETURN_IF_ERROR(RequireF32(spec, 0));
  const int64_t rows = spec.in(0)[0], classes = spec.in(0)[1];
  return BoundKernel{[=](const KernelArgs& args) {
                       SoftmaxCrossEntropyBackward(
                           args.in<float>(0), SafeTargets(args, rows, classes), args.in<float>(2),
                           args.in<float>(3), args.out<float>(), rows, classes);
                     },
                     rows * static_cast<int64_t>(sizeof(int32_t))};
}

}  // namespace

constinit const Kernel kSoftmaxCrossEntropyKernel = {.bind = BindSoftmaxCrossEntropy};
// Row i of the output depends on row i of the inputs alone, which the kernel reads first.
constinit const Kernel kSoftmaxCrossEntropyGradKernel = {.bind = BindSoftmaxCrossEntropyGrad,
                                                         .in_place = true};

}  // namespace tandem::cpu

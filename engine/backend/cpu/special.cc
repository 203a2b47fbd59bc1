// Kernels of the gamma function's family: in double, whatever the element's type.
#include "engine/backend/cpu/dtypes.h"
#include "engine/backend/cpu/kernels/gamma.h"
#include "engine/backend/cpu/kernels_table.h"

namespace tandem::cpu {
namespace {

template <double (*f)(double)>
absl::StatusOr<BoundKernel> BindThroughDouble(const KernelSpec& spec) {
  const int64_t n = spec.out().num_elements();
  return Dispatch(spec.dtype(), [&]<typename T>(T*) -> absl::StatusOr<BoundKernel> {
    if constexpr (kIsHalf<T> || std::is_floating_point_v<T>) {
      return BoundKernel{[n](const KernelArgs& args) {
        const T* x = args.in<T>(0);
        T* y = args.out<T>();
        ParallelFor(n, 256, [=](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            y[i] = ConvertElement<T>(f(static_cast<double>(Widen(x[i]))));
          }
        });
      }};
    } else {
      return UnsupportedDType(spec.dtype());
    }
  });
}

}  // namespace

constinit const Kernel kLgammaKernel = {.bind = BindThroughDouble<Lgamma>, .in_place = true};
constinit const Kernel kDigammaKernel = {.bind = BindThroughDouble<Digamma>, .in_place = true};
constinit const Kernel kTrigammaKernel = {.bind = BindThroughDouble<Trigamma>, .in_place = true};

}  // namespace tandem::cpu

// Kernels of Where and Cast.
#include <type_traits>

#include "engine/backend/cpu/dtypes.h"
#include "engine/backend/cpu/kernels_table.h"

namespace tandem::cpu {
namespace {

// Operands: out, condition, x, y. The strides that matter are 0 and 1.
template <typename T>
void Select(const LoopDim<4>& dim, T* out, const uint8_t* condition, const T* x, const T* y,
            int64_t n) {
  const int64_t sc = dim.stride[1], sx = dim.stride[2], sy = dim.stride[3];
  const auto loop = [=](auto step_x, auto step_y) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = condition[i] != 0 ? x[i * step_x()] : y[i * step_y()];
  };
  constexpr std::integral_constant<int64_t, 0> kZero;
  constexpr std::integral_constant<int64_t, 1> kOne;
  if (sc == 1) {
    if (sx == 1 && sy == 1) return loop(kOne, kOne);
    if (sx == 1 && sy == 0) return loop(kOne, kZero);
    if (sx == 0 && sy == 1) return loop(kZero, kOne);
    return loop([sx] { return sx; }, [sy] { return sy; });
  }
  for (int64_t i = 0; i < n; ++i) out[i] = condition[i * sc] != 0 ? x[i * sx] : y[i * sy];
}

template <typename T>
BoundKernel BindSelect(Loop<4> dims) {
  return {[dims = std::move(dims)](const KernelArgs& args) {
    const uint8_t* condition = args.in<uint8_t>(0);
    const T *x = args.in<T>(1), *y = args.in<T>(2);
    T* out = args.out<T>();
    const LoopDim<4>& last = dims.back();
    if (dims.size() == 1) {
      ParallelFor(last.size, kParallelGrain, [&](int64_t begin, int64_t end) {
        Select(last, out + begin, condition + begin * last.stride[1], x + begin * last.stride[2],
               y + begin * last.stride[3], end - begin);
      });
      return;
    }
    ForOuter<4>(dims, dims.size() - 1, std::min(last.size, kParallelGrain),
                [&](const std::array<int64_t, 4>& offset) {
                  Select(last, out + offset[0], condition + offset[1], x + offset[2], y + offset[3],
                         last.size);
                });
  }};
}

absl::StatusOr<BoundKernel> BindWhere(const KernelSpec& spec) {
  if (spec.out().num_elements() == 0) return BoundKernel{[](const KernelArgs&) {}};
  Loop<4> dims = BroadcastLoop<4>(spec.out(), {&spec.in(0), &spec.in(1), &spec.in(2)});
  switch (SizeOf(spec.dtype(1))) {
    case 1:
      return BindSelect<uint8_t>(std::move(dims));
    case 2:
      return BindSelect<uint16_t>(std::move(dims));
    case 4:
      return BindSelect<uint32_t>(std::move(dims));
    default:
      return BindSelect<uint64_t>(std::move(dims));
  }
}

// f32 to and from 16-bit floats has vector code.
template <typename To, typename From>
void ConvertRun(const From* x, To* y, int64_t n) {
  if constexpr ((kIsHalf<From> && std::is_same_v<To, float>) ||
                (kIsHalf<To> && std::is_same_v<From, float>)) {
    Convert(x, y, n);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = ConvertElement<To>(x[i]);
  }
}

absl::StatusOr<BoundKernel> BindCast(const KernelSpec& spec) {
  const int64_t n = spec.out().num_elements();
  return Dispatch(spec.dtype(), [&]<typename From>(From*) {
    return Dispatch(spec.outputs[0].dtype, [&]<typename To>(To*) {
      return BoundKernel{[n](const KernelArgs& args) {
        const From* x = args.in<From>(0);
        To* y = args.out<To>();
        ParallelFor(n, kParallelGrain, [=](int64_t begin, int64_t end) {
          ConvertRun(x + begin, y + begin, end - begin);
        });
      }};
    });
  });
}

}  // namespace

// In place is safe: as many bytes means as many elements of the same size (a condition can only
// match values of one byte, and then has the output's shape).
constinit const Kernel kWhereKernel = {.bind = BindWhere, .in_place = true};
constinit const Kernel kCastKernel = {.bind = BindCast, .in_place = true};

}  // namespace tandem::cpu

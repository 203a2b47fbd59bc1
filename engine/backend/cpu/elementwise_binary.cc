// Kernels of the elementwise operators of two inputs, with NumPy's broadcasting.
#include <cmath>
#include <optional>

#include "engine/backend/cpu/dtypes.h"
#include "engine/backend/cpu/kernels_table.h"

namespace tandem::cpu {
namespace {

enum class Function : uint8_t {
  kAdd,
  kSub,
  kMul,
  kDiv,
  kPow,
  kMax,
  kMin,
  kMod,
  kEqual,
  kLess,
  kLessOrEqual,
  kAnd,
  kOr,
  kXor
};

constexpr bool IsComparison(Function f) { return f >= Function::kEqual && f < Function::kAnd; }
constexpr bool IsLogical(Function f) { return f >= Function::kAnd; }

// Two's complement: wraps around on overflow, which is what ONNX's integers do in practice.
template <Function f, typename T>
T ApplyInteger(T a, T b) {
  const auto x = static_cast<uint64_t>(a), y = static_cast<uint64_t>(b);
  if constexpr (f == Function::kAdd) return static_cast<T>(x + y);
  if constexpr (f == Function::kSub) return static_cast<T>(x - y);
  if constexpr (f == Function::kMul) return static_cast<T>(x * y);
  if constexpr (f == Function::kMax) return a < b ? b : a;
  if constexpr (f == Function::kMin) return b < a ? b : a;
  if constexpr (f == Function::kDiv) {
    if (b == T{0}) return T{0};
    if constexpr (std::is_signed_v<T>) {
      if (b == T{-1}) return static_cast<T>(uint64_t{0} - x);  // the lowest value / -1 overflows
    }
    return static_cast<T>(a / b);
  }
  if constexpr (f == Function::kMod) {
    if (b == T{0}) return T{0};
    if constexpr (std::is_signed_v<T>) {
      if (b == T{-1}) return T{0};
      const T rest = static_cast<T>(a % b);
      return rest != T{0} && (rest < T{0}) != (b < T{0}) ? static_cast<T>(rest + b) : rest;
    }
    return static_cast<T>(a % b);
  }
  if constexpr (f == Function::kPow) {
    if constexpr (std::is_signed_v<T>) {
      if (b < T{0}) {  // 1 / a^-b, truncated
        if (a == T{1}) return T{1};
        return a == T{-1} ? static_cast<T>(y % 2 == 0 ? 1 : -1) : T{0};
      }
    }
    uint64_t result = 1, power = x;
    for (uint64_t rest = y; rest != 0; rest >>= 1) {
      if ((rest & 1) != 0) result *= power;
      power *= power;
    }
    return static_cast<T>(result);
  }
}

template <Function f, typename T>
T ApplyFloat(T a, T b) {
  if constexpr (f == Function::kAdd) return a + b;
  if constexpr (f == Function::kSub) return a - b;
  if constexpr (f == Function::kMul) return a * b;
  if constexpr (f == Function::kDiv) return a / b;
  if constexpr (f == Function::kPow) return std::pow(a, b);
  if constexpr (f == Function::kMod) return std::fmod(a, b);
  // NaN from either side passes.
  if constexpr (f == Function::kMax) return a > b || std::isnan(a) ? a : b;
  if constexpr (f == Function::kMin) return a < b || std::isnan(a) ? a : b;
}

template <Function f, typename T>
auto Apply(T a, T b) {
  if constexpr (f == Function::kEqual) {
    return a == b;
  } else if constexpr (f == Function::kLess) {
    return a < b;
  } else if constexpr (f == Function::kLessOrEqual) {
    return a <= b;
  } else if constexpr (f == Function::kAnd) {
    return a && b;
  } else if constexpr (f == Function::kOr) {
    return a || b;
  } else if constexpr (f == Function::kXor) {
    return a != b;
  } else if constexpr (std::is_integral_v<T>) {
    return ApplyInteger<f>(a, b);
  } else {
    return ApplyFloat<f>(a, b);
  }
}

// out[i] = f(a[i sa], b[i sb]); the strides that matter are 0 and 1.
template <Function f, typename T, typename Out>
void Run(const T* a, int64_t sa, const T* b, int64_t sb, Out* out, int64_t n) {
  const auto loop = [=](auto step_a, auto step_b) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      out[i] = Narrow<Out>(Apply<f>(Widen(a[i * step_a()]), Widen(b[i * step_b()])));
    }
  };
  constexpr std::integral_constant<int64_t, 0> kZero;
  constexpr std::integral_constant<int64_t, 1> kOne;
  if (sa == 1 && sb == 1) return loop(kOne, kOne);
  if (sa == 1 && sb == 0) return loop(kOne, kZero);
  if (sa == 0 && sb == 1) return loop(kZero, kOne);
  loop([sa] { return sa; }, [sb] { return sb; });
}

template <Function f, typename T>
BoundKernel BindGeneric(Loop<3> dims) {
  using Out = std::conditional_t<IsComparison(f) || IsLogical(f), bool, T>;
  return {[dims = std::move(dims)](const KernelArgs& args) {
    const T *a = args.in<T>(0), *b = args.in<T>(1);
    Out* out = args.out<Out>();
    const LoopDim<3>& last = dims.back();
    if (dims.size() == 1) {
      ParallelFor(last.size, kParallelGrain / 4, [&](int64_t begin, int64_t end) {
        Run<f>(a + begin * last.stride[1], last.stride[1], b + begin * last.stride[2],
               last.stride[2], out + begin, end - begin);
      });
      return;
    }
    ForOuter<3>(dims, dims.size() - 1, std::min(last.size, kParallelGrain),
                [&](const std::array<int64_t, 3>& offset) {
                  Run<f>(a + offset[1], last.stride[1], b + offset[2], last.stride[2],
                         out + offset[0], last.size);
                });
  }};
}

// How the last one or two dimensions of an f32 loop go to the row kernels.
enum class Pattern : uint8_t { kSame, kScalarRight, kScalarLeft, kRows, kColumns };

struct F32Call {
  Pattern pattern;
  size_t dims;     // 1 or 2, of the loop's end
  bool full_left;  // which operand is not broadcast in kRows and kColumns
  int64_t outer, inner;
};

// The best call for the end of the loop, or nothing: generic.
std::optional<F32Call> Match(const Loop<3>& dims) {
  const LoopDim<3>& last = dims.back();
  const int64_t sa = last.stride[1], sb = last.stride[2];
  if (dims.size() >= 2) {
    const LoopDim<3>& before = dims[dims.size() - 2];
    for (const bool left : {true, false}) {
      const int full = left ? 1 : 2, other = left ? 2 : 1;
      if (last.stride[full] != 1 || before.stride[full] != last.size) continue;
      if (before.stride[other] == 0 && last.stride[other] == 1) {
        return F32Call{Pattern::kRows, 2, left, before.size, last.size};
      }
      if (before.stride[other] == 1 && last.stride[other] == 0) {
        return F32Call{Pattern::kColumns, 2, left, before.size, last.size};
      }
    }
  }
  if (sa == 1 && sb == 1) return F32Call{Pattern::kSame, 1, true, 1, last.size};
  if (sa == 1 && sb == 0) return F32Call{Pattern::kScalarRight, 1, true, 1, last.size};
  if (sa == 0 && sb == 1) return F32Call{Pattern::kScalarLeft, 1, false, 1, last.size};
  return std::nullopt;
}

void RunCall(Binary op, const F32Call& call, const float* a, const float* b, float* out) {
  const float* full = call.full_left ? a : b;
  const float* other = call.full_left ? b : a;
  const Side side = call.full_left ? Side::kRight : Side::kLeft;
  switch (call.pattern) {
    case Pattern::kSame:
      return RunBinary(op, a, b, out, call.inner);
    case Pattern::kScalarRight:
    case Pattern::kScalarLeft:
      return RunBinaryScalar(op, full, *other, side, out, call.inner);
    case Pattern::kRows:
      return RunBinaryRows(op, full, other, side, out, call.outer, call.inner);
    case Pattern::kColumns:
      return RunBinaryColumns(op, full, other, side, out, call.outer, call.inner);
  }
}

std::optional<Binary> BinaryOf(Function f) {
  switch (f) {
    case Function::kAdd:
      return Binary::kAdd;
    case Function::kSub:
      return Binary::kSub;
    case Function::kMul:
      return Binary::kMul;
    case Function::kDiv:
      return Binary::kDiv;
    case Function::kMax:
      return Binary::kMax;
    case Function::kMin:
      return Binary::kMin;
    case Function::kPow:
      return Binary::kPow;
    default:
      return std::nullopt;
  }
}

std::optional<BoundKernel> BindF32(Function f, const Loop<3>& dims) {
  const std::optional<Binary> op = BinaryOf(f);
  const std::optional<F32Call> call = Match(dims);
  if (!op.has_value() || !call.has_value()) return std::nullopt;
  const size_t outer = dims.size() - call->dims;
  if (outer == 0) {
    return BoundKernel{[op = *op, call = *call](const KernelArgs& args) {
      RunCall(op, call, args.in<float>(0), args.in<float>(1), args.out<float>());
    }};
  }
  return BoundKernel{[op = *op, call = *call, outer, dims](const KernelArgs& args) {
    const float *a = args.in<float>(0), *b = args.in<float>(1);
    float* out = args.out<float>();
    ForOuter<3>(dims, outer, call.outer * call.inner, [&](const std::array<int64_t, 3>& offset) {
      RunCall(op, call, a + offset[1], b + offset[2], out + offset[0]);
    });
  }};
}

template <Function f>
absl::StatusOr<BoundKernel> Bind(const KernelSpec& spec) {
  if (spec.out().num_elements() == 0) return BoundKernel{[](const KernelArgs&) {}};
  Loop<3> dims = BroadcastLoop<3>(spec.out(), {&spec.in(0), &spec.in(1)});
  if (spec.dtype() == DType::kF32) {
    std::optional<BoundKernel> fast = BindF32(f, dims);
    if (fast.has_value()) return *std::move(fast);
  }
  return Dispatch(spec.dtype(), [&]<typename T>(T*) -> absl::StatusOr<BoundKernel> {
    if constexpr (IsLogical(f) ? !std::is_same_v<T, bool>
                               : std::is_same_v<T, bool> && f != Function::kEqual) {
      return UnsupportedDType(spec.dtype());
    } else {
      return BindGeneric<f, T>(std::move(dims));
    }
  });
}

}  // namespace

// In place is safe: an input with as many bytes as the output has its shape, for it has its dtype.
// clang-format off
#define OP(name) \
  constinit const Kernel k##name##Kernel = {.bind = Bind<Function::k##name>, .in_place = true};
OP(Add)
OP(Sub)
OP(Mul)
OP(Div) OP(Pow) OP(Max) OP(Min) OP(Mod) OP(And) OP(Or) OP(Xor)
// clang-format on
#undef OP
// Not these: four f32 broadcast to sixteen bools have as many bytes.
#define OP(name) constinit const Kernel k##name##Kernel = {.bind = Bind<Function::k##name>};
    OP(Equal) OP(Less) OP(LessOrEqual)
#undef OP

}  // namespace tandem::cpu

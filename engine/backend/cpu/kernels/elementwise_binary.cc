#include <algorithm>
#include <limits>

#include "engine/backend/cpu/kernels/elementwise.h"
#include "engine/base/threads.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/backend/cpu/kernels/elementwise_binary.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per instruction set.
#include "engine/backend/cpu/kernels/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu {
namespace HWY_NAMESPACE {

// An operand is an array, or one value for every element.
struct Array {
  const float* p;
  template <class PartOrWhole>
  HWY_INLINE VecF32 At(F32 d, size_t i, PartOrWhole part) const {
    return Load(d, p + i, part);
  }
  const float* Span(size_t i) const { return p + i; }
};
struct Value {
  float v;
  template <class PartOrWhole>
  HWY_INLINE VecF32 At(F32 d, size_t, PartOrWhole) const {
    return hn::Set(d, v);
  }
};

template <class A, class B, class Function>
HWY_INLINE void Combine(A a, B b, float* out, size_t n, Function f) {
  const F32 d;
  ForEachVector(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    Store(f(a.At(d, i, part), b.At(d, i, part)), d, out + i, part);
  });
}

using F64 = hn::ScalableTag<double>;
using F32Narrow = hn::Rebind<float, F64>;  // as many lanes as an f64 vector
using VecF64 = hn::Vec<F64>;

// |x|^y as e^(y ln|x|) in f64, whose error is far below f32's half ulp; the sign for odd y; exactly
// x * x for y = 2. Right where x is finite and not 0 and y is finite.
HWY_INLINE VecF64 PowFinite(F64 d, VecF64 x, VecF64 y) {
  const VecF64 half = hn::Mul(y, hn::Set(d, 0.5));
  const auto integer = hn::Eq(hn::Round(y), y);
  const auto even = hn::Eq(hn::Round(half), half);
  VecF64 exponent = hn::Mul(y, hn::Log(d, hn::Abs(x)));
  exponent = hn::Min(hn::Max(exponent, hn::Set(d, -200.0)), hn::Set(d, 200.0));
  VecF64 power = hn::Exp(d, exponent);
  power = hn::IfThenElse(hn::Eq(y, hn::Set(d, 2.0)), hn::Mul(x, x), power);
  const VecF64 for_negative =
      hn::IfThenElse(integer, hn::IfThenElse(even, power, hn::Neg(power)), hn::NaN(d));
  return hn::IfThenElse(hn::Lt(x, hn::Zero(d)), for_negative, power);
}

HWY_INLINE hn::Vec<F32Narrow> Pow(hn::Vec<F32Narrow> a, hn::Vec<F32Narrow> b) {
  const F64 d;
  const F32Narrow df;
  const VecF64 x = hn::PromoteTo(d, a), y = hn::PromoteTo(d, b);
  const auto power = hn::DemoteTo(df, PowFinite(d, x, y));
  const VecF64 largest = hn::Set(d, std::numeric_limits<float>::max());
  const auto finite = hn::And(hn::Le(hn::Abs(x), largest), hn::Le(hn::Abs(y), largest));
  if (HWY_LIKELY(hn::AllTrue(d, hn::And(finite, hn::Ne(x, hn::Zero(d)))))) return power;
  HWY_ALIGN float bases[hn::MaxLanes(df)], exponents[hn::MaxLanes(df)], out[hn::MaxLanes(df)];
  hn::Store(a, df, bases);
  hn::Store(b, df, exponents);
  hn::Store(power, df, out);
  for (size_t i = 0; i < hn::Lanes(df); ++i) {
    if (bases[i] == 0.0f || !std::isfinite(bases[i]) || !std::isfinite(exponents[i])) {
      out[i] = std::pow(bases[i], exponents[i]);
    }
  }
  return hn::Load(df, out);
}

void PowRange(const float* a, bool a_is_value, const float* b, bool b_is_value, float* out,
              size_t n) {
  const F32Narrow d;
  const size_t lanes = hn::Lanes(d);
  const auto operand = [&](const float* p, bool is_value, size_t i) TANDEM_VECTOR_LAMBDA {
    return is_value ? hn::Set(d, *p) : hn::LoadU(d, p + i);
  };
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    hn::StoreU(Pow(operand(a, a_is_value, i), operand(b, b_is_value, i)), d, out + i);
  }
  if (i == n) return;
  HWY_ALIGN float left[hn::MaxLanes(d)], right[hn::MaxLanes(d)];
  for (size_t k = 0; k < lanes; ++k) {
    left[k] = i + k < n ? a[a_is_value ? 0 : i + k] : 1.0f;
    right[k] = i + k < n ? b[b_is_value ? 0 : i + k] : 1.0f;
  }
  hn::Store(Pow(hn::Load(d, left), hn::Load(d, right)), d, left);
  std::memcpy(out + i, left, (n - i) * sizeof(float));
}

template <class A, class B>
HWY_INLINE void Apply(Binary op, A a, B b, float* out, size_t n) {
  switch (op) {
    case Binary::kAdd:
      return Combine(a, b, out, n,
                     [](VecF32 x, VecF32 y) TANDEM_VECTOR_LAMBDA { return hn::Add(x, y); });
    case Binary::kSub:
      return Combine(a, b, out, n,
                     [](VecF32 x, VecF32 y) TANDEM_VECTOR_LAMBDA { return hn::Sub(x, y); });
    case Binary::kMul:
      return Combine(a, b, out, n,
                     [](VecF32 x, VecF32 y) TANDEM_VECTOR_LAMBDA { return hn::Mul(x, y); });
    case Binary::kDiv:
      return Combine(a, b, out, n,
                     [](VecF32 x, VecF32 y) TANDEM_VECTOR_LAMBDA { return hn::Div(x, y); });
    case Binary::kMax:
      return Combine(a, b, out, n,
                     [](VecF32 x, VecF32 y) TANDEM_VECTOR_LAMBDA { return MaxNaN(x, y); });
    case Binary::kMin:
      return Combine(a, b, out, n,
                     [](VecF32 x, VecF32 y) TANDEM_VECTOR_LAMBDA { return MinNaN(x, y); });
    case Binary::kPow:
      return;  // BinaryRange sends it to PowRange
  }
}

void BinaryRange(Binary op, const float* a, bool a_is_value, const float* b, bool b_is_value,
                 float* out, size_t n) {
  if (op == Binary::kPow) {
    PowRange(a, a_is_value, b, b_is_value, out, n);
  } else if (a_is_value) {
    Apply(op, Value{*a}, Array{b}, out, n);
  } else if (b_is_value) {
    Apply(op, Array{a}, Value{*b}, out, n);
  } else {
    Apply(op, Array{a}, Array{b}, out, n);
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {

HWY_EXPORT(BinaryRange);

namespace {

constexpr int64_t kGrain = 16384;     // elements
constexpr int64_t kPowGrain = 4096;   // powers take longer
constexpr int64_t kPattern = 1024;    // elements of a repeated short row
constexpr int64_t kShortInner = 256;  // shorter rows are worked on several at a time

int64_t Grain(Binary op) { return op == Binary::kPow ? kPowGrain : kGrain; }

// One range with the broadcast operand on its side.
class OneSide {
 public:
  OneSide(Binary op, Side side) : op_(op), side_(side), range_(HWY_DYNAMIC_DISPATCH(BinaryRange)) {}

  void operator()(const float* x, const float* other, bool other_is_value, float* out,
                  int64_t n) const {
    if (side_ == Side::kRight) {
      range_(op_, x, false, other, other_is_value, out, static_cast<size_t>(n));
    } else {
      range_(op_, other, other_is_value, x, false, out, static_cast<size_t>(n));
    }
  }

 private:
  Binary op_;
  Side side_;
  void (*range_)(Binary, const float*, bool, const float*, bool, float*, size_t);
};

// body(row, first column, columns) over tiles of at most a grain, for long rows.
template <class Body>
void ForEachTile(int64_t outer, int64_t inner, int64_t grain, Body body) {
  const int64_t tiles = (inner + grain - 1) / grain;
  ParallelFor(outer * tiles, std::max<int64_t>(1, grain / inner), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t column = t % tiles * grain;
      body(t / tiles, column, std::min(grain, inner - column));
    }
  });
}

}  // namespace

void RunBinary(Binary op, const float* a, const float* b, float* out, int64_t n) {
  const OneSide run(op, Side::kRight);
  ParallelFor(n, Grain(op), [&](int64_t begin, int64_t end) {
    run(a + begin, b + begin, false, out + begin, end - begin);
  });
}

void RunBinaryScalar(Binary op, const float* x, float value, Side side, float* out, int64_t n) {
  // What PowFinite gives, at the speed of a multiplication.
  if (op == Binary::kPow && side == Side::kRight && value == 2.0f) {
    return RunBinary(Binary::kMul, x, x, out, n);
  }
  const OneSide run(op, side);
  ParallelFor(n, Grain(op), [&](int64_t begin, int64_t end) {
    run(x + begin, &value, true, out + begin, end - begin);
  });
}

void RunBinaryRows(Binary op, const float* x, const float* row, Side side, float* out,
                   int64_t outer, int64_t inner) {
  if (outer <= 0 || inner <= 0) return;
  if (inner == 1) return RunBinaryScalar(op, x, *row, side, out, outer);
  const OneSide run(op, side);
  if (inner >= kShortInner) {
    return ForEachTile(outer, inner, Grain(op), [&](int64_t r, int64_t column, int64_t n) {
      const int64_t at = r * inner + column;
      run(x + at, row + column, false, out + at, n);
    });
  }
  const int64_t repeats = kPattern / inner;
  ParallelFor(outer, std::max<int64_t>(1, Grain(op) / inner), [&](int64_t begin, int64_t end) {
    float pattern[kPattern];  // (repeats, inner)
    for (int64_t k = 0; k < std::min(repeats, end - begin); ++k) {
      std::copy(row, row + inner, pattern + k * inner);
    }
    for (int64_t r = begin; r < end; r += repeats) {
      const int64_t rows = std::min(repeats, end - r);
      run(x + r * inner, pattern, false, out + r * inner, rows * inner);
    }
  });
}

void RunBinaryColumns(Binary op, const float* x, const float* column, Side side, float* out,
                      int64_t outer, int64_t inner) {
  if (outer <= 0 || inner <= 0) return;
  const OneSide run(op, side);
  if (inner >= kShortInner) {
    return ForEachTile(outer, inner, Grain(op), [&](int64_t r, int64_t first, int64_t n) {
      const int64_t at = r * inner + first;
      run(x + at, column + r, true, out + at, n);
    });
  }
  const int64_t repeats = kPattern / inner;
  ParallelFor(outer, std::max<int64_t>(1, Grain(op) / inner), [&](int64_t begin, int64_t end) {
    float spread[kPattern];  // (repeats, inner)
    for (int64_t r = begin; r < end; r += repeats) {
      const int64_t rows = std::min(repeats, end - r);
      for (int64_t k = 0; k < rows; ++k) std::fill_n(spread + k * inner, inner, column[r + k]);
      run(x + r * inner, spread, false, out + r * inner, rows * inner);
    }
  });
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE

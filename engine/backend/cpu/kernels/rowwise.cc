#include "engine/backend/cpu/kernels/rowwise.h"

#include <algorithm>
#include <limits>

#include "engine/backend/cpu/kernels/row_chunks.h"
#include "engine/base/threads.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/backend/cpu/kernels/rowwise.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per instruction set.
#include "engine/backend/cpu/kernels/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu {
namespace HWY_NAMESPACE {

// The largest of a row, by Max (NaN may be lost) or MaxNaN.
template <class Larger>
HWY_INLINE float MaxOver(F32 d, const float* x, size_t n, Larger larger) {
  const float lowest = -std::numeric_limits<float>::infinity();
  const size_t lanes = hn::Lanes(d);
  VecF32 m0 = hn::Set(d, lowest), m1 = m0, m2 = m0, m3 = m0;
  size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    m0 = larger(m0, hn::LoadU(d, x + i));
    m1 = larger(m1, hn::LoadU(d, x + i + lanes));
    m2 = larger(m2, hn::LoadU(d, x + i + 2 * lanes));
    m3 = larger(m3, hn::LoadU(d, x + i + 3 * lanes));
  }
  for (; i + lanes <= n; i += lanes) m0 = larger(m0, hn::LoadU(d, x + i));
  if (i < n) {
    const VecF32 last = Load(d, x + i, Part{n - i});
    m1 = larger(m1, hn::IfThenElse(hn::FirstN(d, n - i), last, hn::Set(d, lowest)));
  }
  HWY_ALIGN float all[hn::MaxLanes(d)];
  hn::Store(larger(larger(m0, m1), larger(m2, m3)), d, all);
  float m = all[0];
  for (size_t k = 1; k < lanes; ++k) m = std::isnan(m) || all[k] <= m ? m : all[k];
  return m;
}
HWY_INLINE float MaxAnyNaN(F32 d, const float* x, size_t n) {
  return MaxOver(d, x, n, [](VecF32 a, VecF32 b) TANDEM_VECTOR_LAMBDA { return hn::Max(a, b); });
}
HWY_INLINE float MaxWithNaN(F32 d, const float* x, size_t n) {
  return MaxOver(d, x, n, [](VecF32 a, VecF32 b) TANDEM_VECTOR_LAMBDA { return MaxNaN(a, b); });
}

void SoftmaxRow(const float* x, float* y, size_t n) {
  const F32 d;
  const VecF32 shift = hn::Set(d, MaxAnyNaN(d, x, n));
  const float sum = SumOver(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    const VecF32 e = ExpBelow88(d, hn::Sub(Load(d, x + i, part), shift));
    Store(e, d, y + i, part);
    return ZeroPastEnd(d, e, part);
  });
  const VecF32 scale = hn::Set(d, 1.0f / sum);
  ForEachVector(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    Store(hn::Mul(Load(d, y + i, part), scale), d, y + i, part);
  });
}

float LogSumExpRow(const float* x, size_t n) {
  const F32 d;
  const float max = MaxAnyNaN(d, x, n);
  if (max == std::numeric_limits<float>::infinity()) return MaxWithNaN(d, x, n);
  // A shift by -inf would make NaN of a row of -inf.
  const float finite = std::isfinite(max) ? max : 0.0f;
  const VecF32 shift = hn::Set(d, finite);
  const float sum = SumOver(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    return ZeroPastEnd(d, ExpBelow88(d, hn::Sub(Load(d, x + i, part), shift)), part);
  });
  return static_cast<float>(finite + std::log(static_cast<double>(sum)));
}

void SoftmaxBackwardRow(const float* y, const float* dy, float* dx, size_t n) {
  const F32 d;
  const float dot = SumOver(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    return hn::Mul(Load(d, y + i, part), Load(d, dy + i, part));
  });
  const VecF32 mean = hn::Set(d, dot);
  ForEachVector(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    const VecF32 difference = hn::Sub(Load(d, dy + i, part), mean);
    Store(hn::Mul(Load(d, y + i, part), difference), d, dx + i, part);
  });
}

void LogSoftmaxRow(const float* x, float* y, size_t n) {
  const F32 d;
  const VecF32 lse = hn::Set(d, LogSumExpRow(x, n));
  ForEachVector(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    Store(hn::Sub(Load(d, x + i, part), lse), d, y + i, part);
  });
}

HWY_INLINE float PlainSum(F32 d, const float* x, size_t n) {
  return SumOver(d, n,
                 [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA { return Load(d, x + i, part); });
}

float SumRow(const float* x, size_t n) { return PlainSum(F32(), x, n); }
float MaxRow(const float* x, size_t n) { return MaxWithNaN(F32(), x, n); }

void LogSoftmaxBackwardRow(const float* y, const float* dy, float* dx, size_t n) {
  const F32 d;
  const VecF32 total = hn::Set(d, PlainSum(d, dy, n));
  ForEachVector(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    const VecF32 p = ExpBelow88(d, Load(d, y + i, part));
    Store(hn::NegMulAdd(p, total, Load(d, dy + i, part)), d, dx + i, part);
  });
}

void CrossEntropyBackwardRow(const float* x, size_t target, float lse, float g, float* dx,
                             size_t n) {
  const F32 d;
  const VecF32 shift = hn::Set(d, lse), scale = hn::Set(d, g);
  if (g == 0.0f) {
    std::fill(dx, dx + n, 0.0f);
    return;
  }
  ForEachVector(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    const VecF32 p = ExpBelow88(d, hn::Sub(Load(d, x + i, part), shift));
    Store(hn::Mul(p, scale), d, dx + i, part);
  });
  // p - 1 of the target is minus the sum of the others: full precision where p is near 1, where
  // the f32 rounding of lse alone would drown it.
  dx[target] = 0;
  dx[target] = -PlainSum(d, dx, n);
}

int64_t ArgMaxRow(const float* x, size_t n) {
  const F32 d;
  const float max = MaxWithNaN(d, x, n);
  const VecF32 wanted = hn::Set(d, max);
  const size_t lanes = hn::Lanes(d);
  const bool nan = std::isnan(max);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const VecF32 v = hn::LoadU(d, x + i);
    const intptr_t lane = hn::FindFirstTrue(d, nan ? hn::IsNaN(v) : hn::Eq(v, wanted));
    if (lane >= 0) return static_cast<int64_t>(i) + lane;
  }
  while (!(nan ? std::isnan(x[i]) : x[i] == max)) ++i;
  return static_cast<int64_t>(i);
}

// out[j] = the sum of `rows` rows of `cols` columns, `stride` apart, four rows at a time.
void SumRows(const float* x, size_t stride, float* out, size_t rows, size_t cols) {
  const F32 d;
  std::fill(out, out + cols, 0.0f);
  size_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    const float* x0 = x + r * stride;
    const float *x1 = x0 + stride, *x2 = x1 + stride, *x3 = x2 + stride;
    ForEachVector(d, cols, [&](size_t j, auto part) TANDEM_VECTOR_LAMBDA {
      const VecF32 a = hn::Add(Load(d, x0 + j, part), Load(d, x1 + j, part));
      const VecF32 b = hn::Add(Load(d, x2 + j, part), Load(d, x3 + j, part));
      Store(hn::Add(Load(d, out + j, part), hn::Add(a, b)), d, out + j, part);
    });
  }
  for (; r < rows; ++r) {
    ForEachVector(d, cols, [&](size_t j, auto part) TANDEM_VECTOR_LAMBDA {
      Store(hn::Add(Load(d, out + j, part), Load(d, x + r * stride + j, part)), d, out + j, part);
    });
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {

HWY_EXPORT(SoftmaxRow);
HWY_EXPORT(SoftmaxBackwardRow);
HWY_EXPORT(LogSumExpRow);
HWY_EXPORT(LogSoftmaxRow);
HWY_EXPORT(LogSoftmaxBackwardRow);
HWY_EXPORT(CrossEntropyBackwardRow);
HWY_EXPORT(SumRow);
HWY_EXPORT(MaxRow);
HWY_EXPORT(ArgMaxRow);
HWY_EXPORT(SumRows);

namespace {

constexpr int64_t kGrain = 16384;  // elements

// row(i) for every row, at least a grain of elements to a thread.
template <class Row>
void ForEachRow(int64_t rows, int64_t cols, Row row) {
  if (cols <= 0) return;
  ParallelFor(rows, (kGrain + cols - 1) / cols, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) row(i);
  });
}

}  // namespace

void Softmax(const float* x, float* y, int64_t rows, int64_t cols) {
  const auto run = HWY_DYNAMIC_DISPATCH(SoftmaxRow);
  ForEachRow(rows, cols,
             [&](int64_t i) { run(x + i * cols, y + i * cols, static_cast<size_t>(cols)); });
}

void SoftmaxBackward(const float* y, const float* dy, float* dx, int64_t rows, int64_t cols) {
  const auto run = HWY_DYNAMIC_DISPATCH(SoftmaxBackwardRow);
  ForEachRow(rows, cols, [&](int64_t i) {
    run(y + i * cols, dy + i * cols, dx + i * cols, static_cast<size_t>(cols));
  });
}

void LogSumExp(const float* x, float* lse, int64_t rows, int64_t cols) {
  const auto run = HWY_DYNAMIC_DISPATCH(LogSumExpRow);
  ForEachRow(rows, cols, [&](int64_t i) { lse[i] = run(x + i * cols, static_cast<size_t>(cols)); });
}

void LogSoftmax(const float* x, float* y, int64_t rows, int64_t cols) {
  const auto run = HWY_DYNAMIC_DISPATCH(LogSoftmaxRow);
  ForEachRow(rows, cols,
             [&](int64_t i) { run(x + i * cols, y + i * cols, static_cast<size_t>(cols)); });
}

void LogSoftmaxBackward(const float* y, const float* dy, float* dx, int64_t rows, int64_t cols) {
  const auto run = HWY_DYNAMIC_DISPATCH(LogSoftmaxBackwardRow);
  ForEachRow(rows, cols, [&](int64_t i) {
    run(y + i * cols, dy + i * cols, dx + i * cols, static_cast<size_t>(cols));
  });
}

void SoftmaxCrossEntropy(const float* logits, const int32_t* targets, float* loss, float* lse,
                         int64_t rows, int64_t cols) {
  const auto run = HWY_DYNAMIC_DISPATCH(LogSumExpRow);
  ForEachRow(rows, cols, [&](int64_t i) {
    lse[i] = run(logits + i * cols, static_cast<size_t>(cols));
    loss[i] = lse[i] - logits[i * cols + targets[i]];
  });
}

void SoftmaxCrossEntropyBackward(const float* logits, const int32_t* targets, const float* lse,
                                 const float* g, float* dlogits, int64_t rows, int64_t cols) {
  const auto run = HWY_DYNAMIC_DISPATCH(CrossEntropyBackwardRow);
  ForEachRow(rows, cols, [&](int64_t i) {
    run(logits + i * cols, static_cast<size_t>(targets[i]), lse[i], g[i], dlogits + i * cols,
        static_cast<size_t>(cols));
  });
}

void RowSum(const float* x, float* out, int64_t rows, int64_t cols) {
  const auto run = HWY_DYNAMIC_DISPATCH(SumRow);
  ForEachRow(rows, cols, [&](int64_t i) { out[i] = run(x + i * cols, static_cast<size_t>(cols)); });
}

void RowMax(const float* x, float* out, int64_t rows, int64_t cols) {
  const auto run = HWY_DYNAMIC_DISPATCH(MaxRow);
  ForEachRow(rows, cols, [&](int64_t i) { out[i] = run(x + i * cols, static_cast<size_t>(cols)); });
}

void RowArgMax(const float* x, int64_t* out, int64_t rows, int64_t cols) {
  const auto run = HWY_DYNAMIC_DISPATCH(ArgMaxRow);
  ForEachRow(rows, cols, [&](int64_t i) { out[i] = run(x + i * cols, static_cast<size_t>(cols)); });
}

int64_t ColumnSumScratchBytes(int64_t rows, int64_t cols) {
  return RowChunks(rows, cols).ScratchBytes();
}

void ColumnSum(const float* x, float* out, float* scratch, int64_t rows, int64_t cols) {
  if (cols <= 0 || rows <= 0) return;
  const auto run = HWY_DYNAMIC_DISPATCH(SumRows);
  const RowChunks chunks(rows, cols);
  float* sums = chunks.Count() == 1 ? out : scratch;  // (chunks, cols)
  chunks.ForEach([&](int64_t chunk, int64_t row, int64_t n, int64_t column, int64_t width) {
    run(x + row * cols + column, static_cast<size_t>(cols), sums + chunk * cols + column,
        static_cast<size_t>(n), static_cast<size_t>(width));
  });
  if (chunks.Count() > 1) ColumnSum(scratch, out, nullptr, chunks.Count(), cols);
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE

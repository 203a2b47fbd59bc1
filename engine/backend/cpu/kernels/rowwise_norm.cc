#include <algorithm>

#include "engine/backend/cpu/kernels/row_chunks.h"
#include "engine/backend/cpu/kernels/rowwise.h"
#include "engine/base/threads.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/backend/cpu/kernels/rowwise_norm.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per instruction set.
#include "engine/backend/cpu/kernels/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu {
namespace HWY_NAMESPACE {

// y = h gamma + beta, either of which may be null.
template <class PartOrWhole>
HWY_INLINE VecF32 Affine(F32 d, VecF32 h, const float* gamma, const float* beta, size_t i,
                         PartOrWhole part) {
  if (gamma == nullptr) return beta == nullptr ? h : hn::Add(h, Load(d, beta + i, part));
  const VecF32 scale = Load(d, gamma + i, part);
  return beta == nullptr ? hn::Mul(h, scale) : hn::MulAdd(h, scale, Load(d, beta + i, part));
}

template <class PartOrWhole>
HWY_INLINE VecF32 TimesGamma(F32 d, const float* dy, const float* gamma, size_t i,
                             PartOrWhole part) {
  const VecF32 g = Load(d, dy + i, part);
  return gamma == nullptr ? g : hn::Mul(g, Load(d, gamma + i, part));
}

void LayerNormRow(const float* x, const float* gamma, const float* beta, float eps, float* y,
                  float* mean, float* rstd, size_t n) {
  const F32 d;
  const float count = static_cast<float>(n);
  const float average =
      SumOver(d, n,
              [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA { return Load(d, x + i, part); }) /
      count;
  const VecF32 center = hn::Set(d, average);
  const float squares = SumOver(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    const VecF32 v = ZeroPastEnd(d, hn::Sub(Load(d, x + i, part), center), part);
    return hn::Mul(v, v);
  });
  const float inverse = 1.0f / std::sqrt(squares / count + eps);
  const VecF32 scale = hn::Set(d, inverse);
  ForEachVector(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    const VecF32 h = hn::Mul(hn::Sub(Load(d, x + i, part), center), scale);
    Store(Affine(d, h, gamma, beta, i, part), d, y + i, part);
  });
  *mean = average;
  *rstd = inverse;
}

void LayerNormBackwardRow(const float* x, const float* dy, const float* gamma, float mean,
                          float rstd, float* dx, size_t n) {
  const F32 d;
  const VecF32 center = hn::Set(d, mean), scale = hn::Set(d, rstd);
  const float count = static_cast<float>(n);
  const VecF32 mean_g = hn::Set(d, SumOver(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
                                     return TimesGamma(d, dy, gamma, i, part);
                                   }) / count);
  const VecF32 mean_gh = hn::Set(d, SumOver(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
                                      const VecF32 h =
                                          hn::Mul(hn::Sub(Load(d, x + i, part), center), scale);
                                      return hn::Mul(TimesGamma(d, dy, gamma, i, part), h);
                                    }) / count);
  ForEachVector(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    const VecF32 h = hn::Mul(hn::Sub(Load(d, x + i, part), center), scale);
    const VecF32 g = hn::Sub(TimesGamma(d, dy, gamma, i, part), mean_g);
    Store(hn::Mul(scale, hn::NegMulAdd(h, mean_gh, g)), d, dx + i, part);
  });
}

void RmsNormRow(const float* x, const float* gamma, float eps, float* y, float* rstd, size_t n) {
  const F32 d;
  const float squares = SumOver(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    const VecF32 v = Load(d, x + i, part);
    return hn::Mul(v, v);
  });
  const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(n) + eps);
  const VecF32 scale = hn::Set(d, inverse);
  ForEachVector(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    const VecF32 h = hn::Mul(Load(d, x + i, part), scale);
    Store(Affine(d, h, gamma, nullptr, i, part), d, y + i, part);
  });
  *rstd = inverse;
}

void RmsNormBackwardRow(const float* x, const float* dy, const float* gamma, float rstd, float* dx,
                        size_t n) {
  const F32 d;
  const VecF32 scale = hn::Set(d, rstd);
  const float sum = SumOver(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    const VecF32 h = hn::Mul(Load(d, x + i, part), scale);
    return hn::Mul(TimesGamma(d, dy, gamma, i, part), h);
  });
  const VecF32 mean_gh = hn::Set(d, sum / static_cast<float>(n));
  ForEachVector(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    const VecF32 h = hn::Mul(Load(d, x + i, part), scale);
    const VecF32 g = TimesGamma(d, dy, gamma, i, part);
    Store(hn::Mul(scale, hn::NegMulAdd(h, mean_gh, g)), d, dx + i, part);
  });
}

// Sums over `rows` rows, `stride` apart: dgamma[j] of dy h with h = (x - mean) rstd, dbeta[j] of
// dy. mean, dgamma and dbeta may be null.
void ParameterSums(const float* x, const float* dy, const float* mean, const float* rstd,
                   size_t stride, float* dgamma, float* dbeta, size_t rows, size_t cols) {
  const F32 d;
  if (dgamma != nullptr) std::fill(dgamma, dgamma + cols, 0.0f);
  if (dbeta != nullptr) std::fill(dbeta, dbeta + cols, 0.0f);
  for (size_t r = 0; r < rows; ++r, x += stride, dy += stride) {
    if (dgamma != nullptr) {
      const VecF32 center = hn::Set(d, mean == nullptr ? 0.0f : mean[r]);
      const VecF32 scale = hn::Set(d, rstd[r]);
      ForEachVector(d, cols, [&](size_t j, auto part) TANDEM_VECTOR_LAMBDA {
        const VecF32 h = hn::Mul(hn::Sub(Load(d, x + j, part), center), scale);
        Store(hn::MulAdd(Load(d, dy + j, part), h, Load(d, dgamma + j, part)), d, dgamma + j, part);
      });
    }
    if (dbeta != nullptr) {
      ForEachVector(d, cols, [&](size_t j, auto part) TANDEM_VECTOR_LAMBDA {
        Store(hn::Add(Load(d, dy + j, part), Load(d, dbeta + j, part)), d, dbeta + j, part);
      });
    }
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {

HWY_EXPORT(LayerNormRow);
HWY_EXPORT(LayerNormBackwardRow);
HWY_EXPORT(RmsNormRow);
HWY_EXPORT(RmsNormBackwardRow);
HWY_EXPORT(ParameterSums);

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

// Both norms' parameter gradients; scratch holds (chunks, cols) for each of the two that is asked.
void ParameterBackward(const float* x, const float* dy, const float* mean, const float* rstd,
                       float* dgamma, float* dbeta, float* scratch, int64_t rows, int64_t cols) {
  if (rows <= 0 || cols <= 0) return;
  const auto run = HWY_DYNAMIC_DISPATCH(ParameterSums);
  const RowChunks chunks(rows, cols);
  const int64_t count = chunks.Count();
  float* gamma_sums = dgamma == nullptr ? nullptr : count == 1 ? dgamma : scratch;
  float* beta_sums = dbeta == nullptr ? nullptr : count == 1 ? dbeta : scratch + count * cols;
  chunks.ForEach([&](int64_t chunk, int64_t row, int64_t n, int64_t column, int64_t width) {
    const int64_t from = row * cols + column, to = chunk * cols + column;
    run(x + from, dy + from, mean == nullptr ? nullptr : mean + row, rstd + row,
        static_cast<size_t>(cols), gamma_sums == nullptr ? nullptr : gamma_sums + to,
        beta_sums == nullptr ? nullptr : beta_sums + to, static_cast<size_t>(n),
        static_cast<size_t>(width));
  });
  if (count == 1) return;
  // At most 32 partial sums: ColumnSum needs no scratch of its own.
  if (dgamma != nullptr) ColumnSum(gamma_sums, dgamma, nullptr, count, cols);
  if (dbeta != nullptr) ColumnSum(beta_sums, dbeta, nullptr, count, cols);
}

}  // namespace

void LayerNorm(const float* x, const float* gamma, const float* beta, float eps, float* y,
               float* mean, float* rstd, int64_t rows, int64_t cols) {
  const auto run = HWY_DYNAMIC_DISPATCH(LayerNormRow);
  ForEachRow(rows, cols, [&](int64_t i) {
    run(x + i * cols, gamma, beta, eps, y + i * cols, mean + i, rstd + i,
        static_cast<size_t>(cols));
  });
}

void LayerNormBackward(const float* x, const float* dy, const float* gamma, const float* mean,
                       const float* rstd, float* dx, int64_t rows, int64_t cols) {
  const auto run = HWY_DYNAMIC_DISPATCH(LayerNormBackwardRow);
  ForEachRow(rows, cols, [&](int64_t i) {
    run(x + i * cols, dy + i * cols, gamma, mean[i], rstd[i], dx + i * cols,
        static_cast<size_t>(cols));
  });
}

int64_t LayerNormParameterScratchBytes(int64_t rows, int64_t cols) {
  return 2 * RowChunks(rows, cols).ScratchBytes();
}

void LayerNormParameterBackward(const float* x, const float* dy, const float* mean,
                                const float* rstd, float* dgamma, float* dbeta, float* scratch,
                                int64_t rows, int64_t cols) {
  ParameterBackward(x, dy, mean, rstd, dgamma, dbeta, scratch, rows, cols);
}

void RmsNorm(const float* x, const float* gamma, float eps, float* y, float* rstd, int64_t rows,
             int64_t cols) {
  const auto run = HWY_DYNAMIC_DISPATCH(RmsNormRow);
  ForEachRow(rows, cols, [&](int64_t i) {
    run(x + i * cols, gamma, eps, y + i * cols, rstd + i, static_cast<size_t>(cols));
  });
}

void RmsNormBackward(const float* x, const float* dy, const float* gamma, const float* rstd,
                     float* dx, int64_t rows, int64_t cols) {
  const auto run = HWY_DYNAMIC_DISPATCH(RmsNormBackwardRow);
  ForEachRow(rows, cols, [&](int64_t i) {
    run(x + i * cols, dy + i * cols, gamma, rstd[i], dx + i * cols, static_cast<size_t>(cols));
  });
}

int64_t RmsNormParameterScratchBytes(int64_t rows, int64_t cols) {
  return RowChunks(rows, cols).ScratchBytes();
}

void RmsNormParameterBackward(const float* x, const float* dy, const float* rstd, float* dgamma,
                              float* scratch, int64_t rows, int64_t cols) {
  ParameterBackward(x, dy, nullptr, rstd, dgamma, nullptr, scratch, rows, cols);
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE

#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/backend/cpu/kernels/rowwise.h"
#include "engine/base/threads.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/backend/cpu/kernels/rowwise_embedding.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per instruction set.
#include "engine/backend/cpu/kernels/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu {
namespace HWY_NAMESPACE {

// One token: (a, b) -> (a cos - b sin, b cos + a sin) for a = x[i], b = x[i + half] of each head.
void RotateToken(const float* x, const float* cos, const float* sin, bool inverse, float* out,
                 size_t heads, size_t half) {
  const F32 d;
  for (size_t h = 0; h < heads; ++h, x += 2 * half, out += 2 * half) {
    ForEachVector(d, half, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
      const VecF32 a = Load(d, x + i, part), b = Load(d, x + half + i, part);
      const VecF32 c = Load(d, cos + i, part);
      const VecF32 forward = Load(d, sin + i, part);
      const VecF32 s = inverse ? hn::Neg(forward) : forward;
      Store(hn::NegMulAdd(b, s, hn::Mul(a, c)), d, out + i, part);
      Store(hn::MulAdd(a, s, hn::Mul(b, c)), d, out + half + i, part);
    });
  }
}

// into[j] += from[j].
void AddRow(const float* from, float* into, size_t n) {
  const F32 d;
  ForEachVector(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    Store(hn::Add(Load(d, into + i, part), Load(d, from + i, part)), d, into + i, part);
  });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {

HWY_EXPORT(RotateToken);
HWY_EXPORT(AddRow);

namespace {

constexpr int64_t kGrain = 16384;  // elements

// Columns [first, first + count) of both tables (max_positions, half_dim).
void FillRopeColumns(const double* frequencies, int64_t first, int64_t count, int64_t half_dim,
                     int64_t max_positions, float* cos, float* sin) {
  ParallelFor(max_positions, 64, [&](int64_t begin, int64_t end) {
    for (int64_t position = begin; position < end; ++position) {
      const int64_t row = position * half_dim + first;
      for (int64_t i = 0; i < count; ++i) {
        const double angle = static_cast<double>(position) * frequencies[i];
        cos[row + i] = static_cast<float>(std::cos(angle));
        sin[row + i] = static_cast<float>(std::sin(angle));
      }
    }
  });
}

}  // namespace

void FillRopeTables(const double* frequencies, int64_t half_dim, int64_t max_positions, float* cos,
                    float* sin) {
  FillRopeColumns(frequencies, 0, half_dim, half_dim, max_positions, cos, sin);
}

void FillRopeTables(double base, int64_t head_dim, int64_t max_positions, float* cos, float* sin) {
  constexpr int64_t kColumns = 64;
  double frequencies[kColumns];
  const int64_t half = head_dim / 2;
  for (int64_t first = 0; first < half; first += kColumns) {
    const int64_t count = std::min(kColumns, half - first);
    for (int64_t i = 0; i < count; ++i) {
      frequencies[i] =
          std::pow(base, -2.0 * static_cast<double>(first + i) / static_cast<double>(head_dim));
    }
    FillRopeColumns(frequencies, first, count, half, max_positions, cos, sin);
  }
}

void Rope(const RopeParams& params, const float* x, const int32_t* positions, const float* cos,
          const float* sin, bool inverse, float* out) {
  const auto run = HWY_DYNAMIC_DISPATCH(RotateToken);
  const int64_t half = params.head_dim / 2;
  const int64_t width = params.heads * params.head_dim;
  if (width <= 0) return;
  ParallelFor(params.tokens, (kGrain + width - 1) / width, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t row = int64_t{positions[t]} * half;
      run(x + t * params.in_token_stride, cos + row, sin + row, inverse,
          out + t * params.out_token_stride, static_cast<size_t>(params.heads),
          static_cast<size_t>(half));
    }
  });
}

void EmbeddingGather(const float* table, const int32_t* ids, float* out, int64_t rows,
                     int64_t cols) {
  if (cols <= 0) return;
  ParallelFor(rows, (kGrain + cols - 1) / cols, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(out + i * cols, table + ids[i] * cols, static_cast<size_t>(cols) * sizeof(float));
    }
  });
}

// Threads own columns, so every sum runs in the order of i whatever their number; blocks of a cache
// line, so that no two threads write to the same one of an aligned table.
void EmbeddingScatterAdd(const float* dy, const int32_t* ids, float* dtable, int64_t rows,
                         int64_t cols) {
  constexpr int64_t kBlock = 16;
  if (rows <= 0) return;
  const auto run = HWY_DYNAMIC_DISPATCH(AddRow);
  const int64_t blocks = (cols + kBlock - 1) / kBlock;
  const int64_t grain = (kGrain + rows * kBlock - 1) / (rows * kBlock);
  ParallelFor(blocks, grain, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kBlock;
    const int64_t width = std::min(end * kBlock, cols) - first;
    for (int64_t i = 0; i < rows; ++i) {
      run(dy + i * cols + first, dtable + ids[i] * cols + first, static_cast<size_t>(width));
    }
  });
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE

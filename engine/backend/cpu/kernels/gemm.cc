#include "engine/backend/cpu/kernels/gemm.h"

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "engine/backend/cpu/kernels/gemm_blocks.h"
#include "engine/base/threads.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/backend/cpu/kernels/gemm.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// After foreach_target.
#include "engine/backend/cpu/kernels/gemm-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

void GemmPieceKernel(const GemmParams& params, int64_t index, const GemmPiece& piece,
                     float* packed_b, float* packed_a) {
  GemmPieceProduct(params, index, piece, packed_b, packed_a);
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {
namespace {

HWY_EXPORT(GemmPieceKernel);

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// More threads than this are not used, so that scratch does not depend on the thread count in
// force. At least four, for runs with more threads than cores.
int64_t MaxThreads() {
  static const int64_t count = std::max(omp_get_num_procs(), 4);
  return count;
}

// As many threads as can each be given some 5 us of work, which a wake-up costs. Reading B weighs
// as much as multiplying it with a few rows.
int64_t UsefulThreads(const GemmParams& g) {
  constexpr double kMinWork = 1 << 18;
  const double work = static_cast<double>(g.batch) * static_cast<double>(g.n) *
                      static_cast<double>(g.k) * (static_cast<double>(g.m) + 8.0);
  return static_cast<int64_t>(std::clamp(work / kMinWork, 1.0, static_cast<double>(MaxThreads())));
}

// The grid of pieces into which each product is cut, in units of rows and columns that leave no
// ragged tiles inside.
struct Grid {
  int64_t rows = 1, columns = 1;
};
constexpr int64_t kRowUnit = 8;
constexpr int64_t kColumnUnit = kGemmMaxLanes;

Grid ChooseGrid(const GemmParams& g, int64_t threads) {
  if (threads == 1 || g.batch >= 4 * threads) return {};
  const int64_t parts = threads / std::gcd(threads, g.batch);
  const int64_t row_units = CeilDiv(g.m, kRowUnit), column_units = CeilDiv(g.n, kColumnUnit);
  Grid best;
  double best_cost = -1.0;
  for (int64_t rows = 1; rows <= parts; ++rows) {
    if (parts % rows != 0 || (rows > 1 && IsDirect(g))) continue;
    const int64_t columns = parts / rows;
    const double m = static_cast<double>(CeilDiv(row_units, rows) * kRowUnit);
    const double n = static_cast<double>(CeilDiv(column_units, columns) * kColumnUnit);
    // Multiplying, and packing: the costs of one element, in vector multiply-adds.
    const double cost = m * n + (g.transpose_b ? 16.0 : 8.0) * n + 4.0 * m;
    if (best_cost < 0 || cost < best_cost) {
      best = {rows, columns};
      best_cost = cost;
    }
  }
  return best;
}

// Part `index` of `count` of [0, size), cut at multiples of unit.
void CutRange(int64_t size, int64_t unit, int64_t index, int64_t count, int64_t* begin,
              int64_t* length) {
  const int64_t units = CeilDiv(size, unit);
  *begin = std::min(size, units * index / count * unit);
  *length = std::min(size, units * (index + 1) / count * unit) - *begin;
}

constexpr int64_t kScratchAlignment = 64;

// Bytes of one thread's packed B and packed A, multiples of kScratchAlignment.
struct PackedBytes {
  int64_t b, a;
};

PackedBytes ThreadScratch(const GemmParams& g) {
  constexpr auto kSize = static_cast<int64_t>(sizeof(float));
  const bool direct = IsDirect(g);
  const int64_t most_columns = direct ? kGemmDirectRest : kGemmColumns;
  const int64_t columns = CeilDiv(std::min(g.n, most_columns), kGemmMaxLanes) * kGemmMaxLanes;
  const int64_t depth = CeilDiv(std::min(g.k, kGemmDepth), 4) * 4;
  const int64_t rows = CeilDiv(std::min(g.m, kGemmRows), kRowUnit) * kRowUnit;
  int64_t a = rows * kGemmDepth;
  if (direct) a = std::max(a, rows * DirectDepth(g));
  return {depth * columns * kSize, a * kSize};
}

bool IsEmpty(const GemmParams& g) { return g.batch <= 0 || g.m <= 0 || g.n <= 0; }

// No k: the chain is its beginning.
void FillWithoutProduct(const GemmParams& g) {
  for (int64_t index = 0; index < g.batch; ++index) {
    for (int64_t i = 0; i < g.m; ++i) {
      float* c = g.c + index * g.c_batch_stride + i * g.ldc;
      for (int64_t j = 0; j < g.n; ++j) {
        const float sum = g.accumulate ? c[j] : 0.0f;
        c[j] = g.bias == nullptr ? sum : sum + g.bias[j];
      }
    }
  }
}

}  // namespace

int64_t GemmScratchBytes(const GemmParams& params) {
  if (IsEmpty(params) || params.k <= 0) return 0;
  const PackedBytes bytes = ThreadScratch(params);
  return UsefulThreads(params) * (bytes.b + bytes.a) + kScratchAlignment;
}

void Gemm(const GemmParams& params, void* scratch) {
  if (IsEmpty(params)) return;
  if (params.k <= 0) return FillWithoutProduct(params);
  const int64_t threads = std::min<int64_t>(ThreadCount(), UsefulThreads(params));
  const Grid grid = ChooseGrid(params, threads);
  const int64_t pieces = grid.rows * grid.columns;
  const int64_t tasks = params.batch * pieces;
  const int64_t slots = std::min(threads, tasks);
  const PackedBytes bytes = ThreadScratch(params);
  const auto address = reinterpret_cast<uintptr_t>(scratch);
  char* base = static_cast<char*>(scratch) + (-address & (kScratchAlignment - 1));
  ParallelFor(slots, 1, [&](int64_t begin, int64_t end) {
    char* packed_b = base + begin * (bytes.b + bytes.a);
    for (int64_t task = tasks * begin / slots; task < tasks * end / slots; ++task) {
      GemmPiece piece;
      CutRange(params.m, kRowUnit, task % pieces / grid.columns, grid.rows, &piece.row,
               &piece.rows);
      CutRange(params.n, kColumnUnit, task % grid.columns, grid.columns, &piece.column,
               &piece.columns);
      if (piece.rows == 0 || piece.columns == 0) continue;
      HWY_DYNAMIC_DISPATCH(GemmPieceKernel)
      (params, task / pieces, piece, reinterpret_cast<float*>(packed_b),
       reinterpret_cast<float*>(packed_b + bytes.b));
    }
  });
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE

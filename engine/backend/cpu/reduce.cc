// Kernels of the reductions.
//
// A reduction runs in stages: first the trailing dimensions that are reduced (sums of rows), then
// each further group of them (sums of columns), every stage in a fixed order that the shape alone
// decides. Few long rows are cut into pieces of a fixed length that threads share.
#include "engine/ops/reduce.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "engine/backend/cpu/dtypes.h"
#include "engine/backend/cpu/kernels/rowwise.h"
#include "engine/backend/cpu/kernels_table.h"

namespace tandem::cpu {
namespace {

enum class Reduction : uint8_t { kSum, kMax, kMin, kProd };

constexpr int64_t kPiece = 4096;  // elements of a row that are summed as one
constexpr int64_t kFewRows = 64;  // below this, long rows are cut into pieces
constexpr int64_t kColumnBlock = 256;

template <Reduction r, typename T>
T Initial() {
  if constexpr (r == Reduction::kSum) return T{0};
  if constexpr (r == Reduction::kProd) return T{1};
  using Limits = std::numeric_limits<T>;
  if constexpr (r == Reduction::kMax)
    return Limits::has_infinity ? -Limits::infinity() : Limits::min();
  if constexpr (r == Reduction::kMin)
    return Limits::has_infinity ? Limits::infinity() : Limits::max();
}

// Integers wrap around; NaN wins.
template <Reduction r, typename T>
T Combine(T a, T b) {
  if constexpr (r == Reduction::kMax) {
    if constexpr (std::is_floating_point_v<T>) return b > a || std::isnan(b) ? b : a;
    return b > a ? b : a;
  } else if constexpr (r == Reduction::kMin) {
    if constexpr (std::is_floating_point_v<T>) return b < a || std::isnan(b) ? b : a;
    return b < a ? b : a;
  } else if constexpr (std::is_integral_v<T>) {
    const auto x = static_cast<uint64_t>(a), y = static_cast<uint64_t>(b);
    return static_cast<T>(r == Reduction::kSum ? x + y : x * y);
  } else {
    return r == Reduction::kSum ? a + b : a * b;
  }
}

// In kLanes interleaved parts, which are then combined in order.
template <Reduction r, typename T>
T ReduceRow(const T* x, int64_t n) {
  constexpr int64_t kLanes = 16;
  T lanes[kLanes];
  std::fill_n(lanes, kLanes, Initial<r, T>());
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane)
      lanes[lane] = Combine<r>(lanes[lane], x[i + lane]);
  }
  for (int64_t lane = 0; i < n; ++i, ++lane) lanes[lane] = Combine<r>(lanes[lane], x[i]);
  T value = lanes[0];
  for (int64_t lane = 1; lane < kLanes; ++lane) value = Combine<r>(value, lanes[lane]);
  return value;
}

// x, an array of rows x cols -> out (rows)
template <Reduction r, typename T>
void ReduceRows(const T* x, T* out, int64_t rows, int64_t cols) {
  if constexpr (std::is_same_v<T, float> && r == Reduction::kSum) return RowSum(x, out, rows, cols);
  if constexpr (std::is_same_v<T, float> && r == Reduction::kMax) return RowMax(x, out, rows, cols);
  ParallelFor(rows, kParallelGrain / cols + 1, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      out[i] = ReduceRow<r>(x + i * cols, cols);
    }
  });
}

// x, an array of outer x rows x cols -> out (outer, cols)
template <Reduction r, typename T>
void ReduceColumns(const T* x, T* out, float* scratch, int64_t outer, int64_t rows, int64_t cols) {
  if constexpr (std::is_same_v<T, float> && r == Reduction::kSum) {
    if (rows * cols >= kParallelGrain || outer == 1) {
      for (int64_t i = 0; i < outer; ++i) {
        ColumnSum(x + i * rows * cols, out + i * cols, scratch, rows, cols);
      }
      return;
    }
  }
  const int64_t blocks = (cols + kColumnBlock - 1) / kColumnBlock;
  const int64_t grain = kParallelGrain / (rows * std::min(cols, kColumnBlock)) + 1;
  ParallelFor(outer * blocks, grain, [=](int64_t begin, int64_t end) {
    for (int64_t position = begin; position < end; ++position) {
      const int64_t block = position % blocks * kColumnBlock;
      const int64_t width = std::min(kColumnBlock, cols - block);
      const T* from = x + position / blocks * rows * cols + block;
      T* to = out + position / blocks * cols + block;
      std::fill(to, to + width, Initial<r, T>());
      for (int64_t i = 0; i < rows; ++i) {
        const T* row = from + i * cols;
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) to[j] = Combine<r>(to[j], row[j]);
      }
    }
  });
}

struct Stage {
  bool columns;
  int64_t outer, rows, cols;  // without columns: (outer, rows) elements, rows of `cols`
  int64_t outputs() const { return columns ? outer * cols : rows; }
};

void AddRowStages(std::vector<Stage>& stages, int64_t rows, int64_t cols) {
  // A few long rows: equal pieces first, as long as the row divides evenly enough to be worth it.
  if (rows < kFewRows && cols >= 16 * kPiece && cols % kPiece == 0) {
    stages.push_back({false, 1, rows * (cols / kPiece), kPiece});
    cols /= kPiece;
  }
  stages.push_back({false, 1, rows, cols});
}

// The stages that reduce `axes` of a shape without empty dimensions; none where there is nothing
// to reduce.
std::vector<Stage> Stages(const Shape& shape, const std::vector<int>& axes) {
  // Groups of neighbouring dimensions, alternately kept and reduced.
  std::vector<std::pair<bool, int64_t>> groups;
  for (int i = 0; i < shape.rank(); ++i) {
    if (shape[i] == 1) continue;
    const bool reduced = std::find(axes.begin(), axes.end(), i) != axes.end();
    if (groups.empty() || groups.back().first != reduced) groups.emplace_back(reduced, 1);
    groups.back().second *= shape[i];
  }
  const auto product = [&](size_t end) {
    int64_t count = 1;
    for (size_t i = 0; i < end; ++i) count *= groups[i].second;
    return count;
  };
  std::vector<Stage> stages;
  if (!groups.empty() && groups.back().first) {
    const int64_t cols = groups.back().second;
    groups.pop_back();
    AddRowStages(stages, product(groups.size()), cols);
  }
  int64_t cols = 1;
  while (!groups.empty()) {
    const auto [reduced, size] = groups.back();
    groups.pop_back();
    if (reduced) {
      stages.push_back({true, product(groups.size()), size, cols});
    } else {
      cols *= size;
    }
  }
  return stages;
}

int64_t RoundUp(int64_t elements) { return (elements + 15) / 16 * 16; }

// Runs the stages on T, 16-bit floats being widened to float first.
template <Reduction r, typename T>
absl::StatusOr<BoundKernel> BindStages(const std::vector<Stage>& stages, int64_t elements) {
  using Wide = decltype(Widen(T{}));
  // Scratch: every stage's result but the last, one after the other; ColumnSum's own; for 16-bit
  // floats the widened input and result too.
  int64_t total = kIsHalf<T> ? RoundUp(elements) + RoundUp(stages.back().outputs()) : 0;
  int64_t column_bytes = 0;
  for (size_t i = 0; i < stages.size(); ++i) {
    const Stage& s = stages[i];
    if (i + 1 < stages.size()) total += RoundUp(s.outputs());
    if (s.columns) column_bytes = std::max(column_bytes, ColumnSumScratchBytes(s.rows, s.cols));
  }
  const int64_t outputs = stages.back().outputs();
  return BoundKernel{[=](const KernelArgs& args) {
                       Wide* free = static_cast<Wide*>(args.scratch);
                       const auto take = [&](int64_t count) {
                         Wide* taken = free;
                         free += RoundUp(count);
                         return taken;
                       };
                       const Wide* x;
                       Wide* result;
                       if constexpr (kIsHalf<T>) {
                         Wide* widened = take(elements);
                         Convert(args.in<T>(0), widened, elements);
                         x = widened;
                         result = take(outputs);
                       } else {
                         x = args.in<T>(0);
                         result = args.out<T>();
                       }
                       float* column_scratch = reinterpret_cast<float*>(
                           static_cast<char*>(args.scratch) + total * sizeof(Wide));
                       for (size_t i = 0; i < stages.size(); ++i) {
                         const Stage& s = stages[i];
                         Wide* to = i + 1 < stages.size() ? take(s.outputs()) : result;
                         if (s.columns) {
                           ReduceColumns<r>(x, to, column_scratch, s.outer, s.rows, s.cols);
                         } else {
                           ReduceRows<r>(x, to, s.rows, s.cols);
                         }
                         x = to;
                       }
                       if constexpr (kIsHalf<T>) Convert(result, args.out<T>(), outputs);
                     },
                     total * static_cast<int64_t>(sizeof(Wide)) + column_bytes};
}

template <Reduction r>
absl::StatusOr<BoundKernel> BindReduce(const KernelSpec& spec) {
  TANDEM_ASSIGN_OR_RETURN(const std::vector<int> axes,
                          ops::ReductionAxes(*spec.attributes, spec.in(0).rank()));
  const int64_t elements = spec.in(0).num_elements(), outputs = spec.out().num_elements();
  return Dispatch(spec.dtype(), [&]<typename T>(T*) -> absl::StatusOr<BoundKernel> {
    if constexpr (std::is_same_v<T, bool>) {
      return UnsupportedDType(spec.dtype());
    } else {
      if (elements == 0) {  // sums of nothing, or no sums
        return BoundKernel{[outputs](const KernelArgs& args) {
          std::fill_n(args.out<T>(), outputs, T(Initial<r, decltype(Widen(T{}))>()));
        }};
      }
      const std::vector<Stage> stages = Stages(spec.in(0), axes);
      if (!stages.empty()) return BindStages<r, T>(stages, elements);
      return BoundKernel{[bytes = spec.inputs[0].bytes()](const KernelArgs& args) {
        CopyBytes(args.outputs[0], args.inputs[0], bytes);
      }};
    }
  });
}

// The first best along the middle of (outer, n, inner); NaN wins, as in NumPy.
template <bool largest, typename T>
void ArgBest(const T* x, int64_t* out, int64_t outer, int64_t n, int64_t inner) {
  const auto wins = [](auto a, auto b) {
    if constexpr (std::is_floating_point_v<decltype(a)>) {
      if (std::isnan(b)) return false;
      if (std::isnan(a)) return true;
    }
    return largest ? a > b : a < b;
  };
  ParallelFor(outer * inner, kParallelGrain / n + 1, [=](int64_t begin, int64_t end) {
    for (int64_t position = begin; position < end; ++position) {
      const T* from = x + position / inner * n * inner + position % inner;
      auto best = Widen(from[0]);
      int64_t index = 0;
      for (int64_t i = 1; i < n; ++i) {
        const auto candidate = Widen(from[i * inner]);
        if (!wins(candidate, best)) continue;
        best = candidate;
        index = i;
      }
      out[position] = index;
    }
  });
}

template <bool largest>
absl::StatusOr<BoundKernel> BindArg(const KernelSpec& spec) {
  const Shape& shape = spec.in(0);
  TANDEM_ASSIGN_OR_RETURN(const int axis,
                          NormalizeAxis(spec.attributes->Int("axis"), shape.rank()));
  const int64_t outer = shape.Count(0, axis), n = shape[axis];
  const int64_t inner = shape.Count(axis + 1, shape.rank());
  return Dispatch(spec.dtype(), [&]<typename T>(T*) -> absl::StatusOr<BoundKernel> {
    return BoundKernel{[=](const KernelArgs& args) {
      if constexpr (largest && std::is_same_v<T, float>) {
        if (inner == 1) return RowArgMax(args.in<T>(0), args.out<int64_t>(), outer, n);
      }
      ArgBest<largest>(args.in<T>(0), args.out<int64_t>(), outer, n, inner);
    }};
  });
}

}  // namespace

constinit const Kernel kReduceSumKernel = {.bind = BindReduce<Reduction::kSum>};
constinit const Kernel kReduceMaxKernel = {.bind = BindReduce<Reduction::kMax>};
constinit const Kernel kReduceMinKernel = {.bind = BindReduce<Reduction::kMin>};
constinit const Kernel kReduceProdKernel = {.bind = BindReduce<Reduction::kProd>};
constinit const Kernel kArgMaxKernel = {.bind = BindArg<true>};
constinit const Kernel kArgMinKernel = {.bind = BindArg<false>};

}  // namespace tandem::cpu

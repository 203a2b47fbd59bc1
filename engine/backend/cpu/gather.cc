// Kernels of Gather and its adjoint.
#include <cstring>
#include <limits>

#include "engine/backend/cpu/dtypes.h"
#include "engine/backend/cpu/kernels/rowwise.h"
#include "engine/backend/cpu/kernels_table.h"

namespace tandem::cpu {
namespace {

// A negative index counts from the end; what is then still outside goes to the nearest end, so that
// nothing beyond the tensor is ever touched.
template <typename Index>
int64_t Place(Index index, int64_t size) {
  int64_t place = static_cast<int64_t>(index);
  if (place < 0) place += size;
  return std::clamp<int64_t>(place, 0, size - 1);
}

struct GatherSizes {
  int64_t outer, axis, indices, inner;  // x (outer, axis, inner), out (outer, indices, inner)
};

template <typename Index, typename T>
void GatherElements(const GatherSizes& s, const T* x, const Index* index, T* out) {
  ParallelFor(s.outer * s.indices, kParallelGrain / 4, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      out[i] = x[i / s.indices * s.axis + Place(index[i % s.indices], s.axis)];
    }
  });
}

template <typename Index>
void GatherRuns(const GatherSizes& s, int64_t run_bytes, const char* x, const Index* index,
                char* out) {
  const int64_t grain = 4 * kParallelGrain / run_bytes + 1;
  ParallelFor(s.outer * s.indices, grain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t from = i / s.indices * s.axis + Place(index[i % s.indices], s.axis);
      std::memcpy(out + i * run_bytes, x + from * run_bytes, run_bytes);
    }
  });
}

template <typename Index>
BoundKernel BindGatherTyped(const GatherSizes& s, int64_t size) {
  return {[=](const KernelArgs& args) {
    const Index* index = args.in<Index>(1);
    const int64_t run_bytes = s.inner * size;
    switch (run_bytes) {
      case 1:
        return GatherElements(s, args.in<uint8_t>(0), index, args.out<uint8_t>());
      case 2:
        return GatherElements(s, args.in<uint16_t>(0), index, args.out<uint16_t>());
      case 4:
        return GatherElements(s, args.in<uint32_t>(0), index, args.out<uint32_t>());
      case 8:
        return GatherElements(s, args.in<uint64_t>(0), index, args.out<uint64_t>());
      default:
        return GatherRuns(s, run_bytes, args.in<char>(0), index, args.out<char>());
    }
  }};
}

absl::StatusOr<BoundKernel> BindGather(const KernelSpec& spec) {
  if (spec.out().num_elements() == 0) return BoundKernel{[](const KernelArgs&) {}};
  const Shape& x = spec.in(0);
  TANDEM_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(spec.attributes->Int("axis"), x.rank()));
  const GatherSizes sizes{x.Count(0, axis), x[axis], spec.in(1).num_elements(),
                          x.Count(axis + 1, x.rank())};
  const int64_t size = SizeOf(spec.dtype());
  return spec.dtype(1) == DType::kI32 ? BindGatherTyped<int32_t>(sizes, size)
                                      : BindGatherTyped<int64_t>(sizes, size);
}

// out[index[i]] += dy[i], in the order of i.
template <typename T, typename Index>
void ScatterAdd(const T* dy, const Index* index, T* out, int64_t rows, int64_t cols, int64_t size) {
  for (int64_t i = 0; i < rows; ++i) {
    T* to = out + Place(index[i], size) * cols;
    for (int64_t j = 0; j < cols; ++j) to[j] = static_cast<T>(to[j] + dy[i * cols + j]);
  }
}

template <typename T, typename Index>
BoundKernel BindScatterAdd(int64_t rows, int64_t cols, int64_t size) {
  return {[=](const KernelArgs& args) {
    ZeroBytes(args.outputs[0], size * cols * static_cast<int64_t>(sizeof(T)));
    ScatterAdd(args.in<T>(0), args.in<Index>(1), args.out<T>(), rows, cols, size);
  }};
}

// f32: the vector kernel, on indices made safe first.
template <typename Index>
BoundKernel BindEmbeddingGrad(int64_t rows, int64_t cols, int64_t size) {
  return {[=](const KernelArgs& args) {
            auto* ids = static_cast<int32_t*>(args.scratch);
            const Index* index = args.in<Index>(1);
            for (int64_t i = 0; i < rows; ++i) {
              ids[i] = static_cast<int32_t>(Place(index[i], size));
            }
            ZeroBytes(args.outputs[0], size * cols * static_cast<int64_t>(sizeof(float)));
            EmbeddingScatterAdd(args.in<float>(0), ids, args.out<float>(), rows, cols);
          },
          rows * static_cast<int64_t>(sizeof(int32_t))};
}

template <typename Index>
absl::StatusOr<BoundKernel> BindGatherGradTyped(const KernelSpec& spec) {
  const Shape& out = spec.out();
  const int64_t rows = spec.in(1).num_elements(), cols = out.Count(1, out.rank());
  const int64_t size = out[0];
  switch (spec.dtype()) {
    case DType::kF32:
      if (size <= std::numeric_limits<int32_t>::max()) {
        return BindEmbeddingGrad<Index>(rows, cols, size);
      }
      return BindScatterAdd<float, Index>(rows, cols, size);
    case DType::kF64:
      return BindScatterAdd<double, Index>(rows, cols, size);
    // Unsigned: the same sums, and no overflow.
    case DType::kI32:
      return BindScatterAdd<uint32_t, Index>(rows, cols, size);
    case DType::kI64:
      return BindScatterAdd<uint64_t, Index>(rows, cols, size);
    default:
      return UnsupportedDType(spec.dtype());
  }
}

absl::StatusOr<BoundKernel> BindGatherGrad(const KernelSpec& spec) {
  return spec.dtype(1) == DType::kI32 ? BindGatherGradTyped<int32_t>(spec)
                                      : BindGatherGradTyped<int64_t>(spec);
}

}  // namespace

constinit const Kernel kGatherKernel = {.bind = BindGather};
constinit const Kernel kGatherGradKernel = {.bind = BindGatherGrad};

}  // namespace tandem::cpu

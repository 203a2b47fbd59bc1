// Resize and its adjoint: f32 two dimensions at a time by kernels/resampling.h, other types one
// dimension after another.
#include "engine/ops/resize.h"

#include <algorithm>
#include <memory>

#include "engine/backend/cpu/dtypes.h"
#include "engine/backend/cpu/kernels/resampling.h"
#include "engine/backend/cpu/kernels_table.h"

namespace tandem::cpu {
namespace {

// One dimension's resampling, in the order of the dimensions.
struct Step {
  int axis;
  ops::ResampleTable table;
};

// The steps from spec.in(0) to spec.out(), those that change nothing left out.
absl::StatusOr<std::vector<Step>> ReadSteps(const KernelSpec& spec, bool adjoint) {
  const Shape& x = adjoint ? spec.out() : spec.in(0);
  TANDEM_ASSIGN_OR_RETURN(const ops::ResizeOptions options,
                          ops::ReadResizeOptions(*spec.attributes, x));
  std::vector<Step> steps;
  for (int i = 0; i < static_cast<int>(options.axes.size()); ++i) {
    const int axis = static_cast<int>(options.axes[i].axis);
    TANDEM_ASSIGN_OR_RETURN(ops::ResampleTable table, ops::MakeResampleTable(options, i, x[axis]));
    if (table.IsIdentity()) continue;
    steps.push_back({axis, adjoint ? table.Transposed() : std::move(table)});
  }
  std::sort(steps.begin(), steps.end(),
            [](const Step& a, const Step& b) { return a.axis < b.axis; });
  return steps;
}

// Runs passes one after another, between them through two buffers in scratch memory.
struct Chain {
  // pass(from, to), and the bytes it writes.
  struct Pass {
    std::function<void(const void*, void*)> run;
    int64_t bytes;
  };
  std::vector<Pass> passes;

  static BoundKernel Bind(Chain chain, int64_t copy_bytes) {
    int64_t most = 0;
    for (size_t i = 0; i + 1 < chain.passes.size(); ++i) {
      most = std::max(most, (chain.passes[i].bytes + 63) / 64 * 64);
    }
    return {.run =
                [chain = std::move(chain), most, copy_bytes](const KernelArgs& args) {
                  if (chain.passes.empty()) {
                    return CopyBytes(args.outputs[0], args.inputs[0], copy_bytes);
                  }
                  const void* from = args.inputs[0];
                  for (size_t i = 0; i < chain.passes.size(); ++i) {
                    const bool last = i + 1 == chain.passes.size();
                    void* to = last ? args.outputs[0]
                                    : static_cast<char*>(args.scratch) + (i % 2 == 0 ? 0 : most);
                    chain.passes[i].run(from, to);
                    from = to;
                  }
                },
            .scratch_bytes = 2 * most};
  }
};

int64_t Outer(const Shape& shape, int axis) { return shape.Count(0, axis); }
int64_t Inner(const Shape& shape, int axis) { return shape.Count(axis + 1, shape.rank()); }

std::shared_ptr<const Band> MakeBand(const ops::ResampleTable& t) {
  return std::make_shared<const Band>(t.input, t.first, t.begin, t.weights);
}

BoundKernel BindFloats(const std::vector<Step>& steps, Shape shape) {
  Chain chain;
  for (size_t i = 0; i < steps.size(); ++i) {
    const int axis = steps[i].axis;
    std::shared_ptr<const Band> down = MakeBand(steps[i].table), along;
    ResampleParams params{.planes = Outer(shape, axis)};
    const bool last = axis + 1 == shape.rank();
    if (last) {
      along = std::exchange(down, nullptr);
    } else if (i + 1 < steps.size() && steps[i + 1].axis == axis + 1 && axis + 2 == shape.rank()) {
      along = MakeBand(steps[i + 1].table);
      // Too wide for a line between the two passes: one after the other then.
      if (along->reach > kResampleReach) along = nullptr;
    }
    params.rows = last ? 1 : shape[axis];
    if (last) params.planes = Outer(shape, axis);
    params.columns = last ? shape[axis] : Inner(shape, axis);
    params.down = down.get();
    params.along = along.get();
    shape[axis] = steps[i].table.outputs();
    if (!last && along != nullptr) shape[axis + 1] = steps[++i].table.outputs();
    chain.passes.push_back({.run =
                                [params, down, along](const void* from, void* to) {
                                  Resample(params, static_cast<const float*>(from),
                                           static_cast<float*>(to));
                                },
                            .bytes = shape.num_elements() * SizeOf(DType::kF32)});
  }
  return Chain::Bind(std::move(chain), shape.num_elements() * SizeOf(DType::kF32));
}

// y (outer, outputs, inner) from x (outer, inputs, inner): weighted sums, or copies.
template <typename T>
void ResampleAxis(const ops::ResampleTable& t, bool copies, int64_t outer, int64_t inner,
                  const T* x, T* y) {
  ParallelFor(outer * t.outputs(), kParallelGrain / std::max<int64_t>(1, inner),
              [&](int64_t begin, int64_t end) {
                for (int64_t i = begin; i < end; ++i) {
                  const int64_t o = i % t.outputs();
                  const T* from = x + (i / t.outputs() * t.input + t.first[o]) * inner;
                  T* to = y + i * inner;
                  if (copies) {
                    std::copy(from, from + inner, to);
                    continue;
                  }
                  std::fill(to, to + inner, T{0});
                  for (int64_t k = 0; k < t.count(o); ++k, from += inner) {
                    const T weight = static_cast<T>(t.weights[t.begin[o] + k]);
                    for (int64_t j = 0; j < inner; ++j) to[j] += weight * from[j];
                  }
                }
              });
}

template <typename T>
BoundKernel BindOneByOne(std::vector<Step> steps, Shape shape, bool copies) {
  Chain chain;
  for (Step& step : steps) {
    const int64_t outer = Outer(shape, step.axis), inner = Inner(shape, step.axis);
    shape[step.axis] = step.table.outputs();
    chain.passes.push_back({.run =
                                [=, table = std::move(step.table)](const void* from, void* to) {
                                  ResampleAxis(table, copies, outer, inner,
                                               static_cast<const T*>(from), static_cast<T*>(to));
                                },
                            .bytes = shape.num_elements() * static_cast<int64_t>(sizeof(T))});
  }
  return Chain::Bind(std::move(chain), shape.num_elements() * static_cast<int64_t>(sizeof(T)));
}

absl::StatusOr<BoundKernel> Bind(const KernelSpec& spec, bool adjoint) {
  TANDEM_ASSIGN_OR_RETURN(std::vector<Step> steps, ReadSteps(spec, adjoint));
  const Shape& shape = spec.in(0);
  if (spec.dtype() == DType::kF32) return BindFloats(steps, shape);
  if (spec.dtype() == DType::kF64) return BindOneByOne<double>(std::move(steps), shape, false);
  if (adjoint || spec.attributes->String("mode") != "nearest") {
    return Unimplemented(DTypeName(spec.dtype()), " on the CPU, supported: f32, f64",
                         adjoint ? "" : ", and any type by mode nearest");
  }
  switch (SizeOf(spec.dtype())) {
    case 1:
      return BindOneByOne<uint8_t>(std::move(steps), shape, true);
    case 2:
      return BindOneByOne<uint16_t>(std::move(steps), shape, true);
    case 4:
      return BindOneByOne<uint32_t>(std::move(steps), shape, true);
    default:
      return BindOneByOne<uint64_t>(std::move(steps), shape, true);
  }
}

absl::StatusOr<BoundKernel> BindResize(const KernelSpec& spec) { return Bind(spec, false); }
absl::StatusOr<BoundKernel> BindResizeGrad(const KernelSpec& spec) { return Bind(spec, true); }

}  // namespace

constinit const Kernel kResizeKernel = {.bind = BindResize};
constinit const Kernel kResizeGradKernel = {.bind = BindResizeGrad};

}  // namespace tandem::cpu

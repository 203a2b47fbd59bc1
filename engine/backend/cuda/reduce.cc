// Bindings of the reductions.
#include "engine/ops/reduce.h"

#include <algorithm>

#include "engine/backend/cuda/cuda_backend.h"
#include "engine/backend/cuda/kernels_table.h"

namespace tandem::cuda {
namespace {

struct Stage {
  int64_t outer, n, inner;
};

// Groups of neighbouring reduced dimensions, the last first: what one call each reduces.
std::vector<Stage> Stages(const Shape& shape, const std::vector<int>& axes) {
  std::vector<std::pair<bool, int64_t>> groups;  // alternately kept and reduced
  for (int i = 0; i < shape.rank(); ++i) {
    if (shape[i] == 1) continue;
    const bool reduced = std::binary_search(axes.begin(), axes.end(), i);
    if (groups.empty() || groups.back().first != reduced) groups.emplace_back(reduced, 1);
    groups.back().second *= shape[i];
  }
  std::vector<Stage> stages;
  int64_t inner = 1;
  while (!groups.empty()) {
    const auto [reduced, n] = groups.back();
    groups.pop_back();
    if (!reduced) {
      inner *= n;
      continue;
    }
    int64_t outer = 1;
    for (const auto& group : groups) outer *= group.second;
    stages.push_back({outer, n, inner});
  }
  if (stages.empty()) stages.push_back({inner, 1, 1});
  return stages;
}

constexpr int64_t RoundUp(int64_t bytes) { return (bytes + 63) / 64 * 64; }

template <int32_t op>
absl::StatusOr<BoundKernel> BindReduce(const KernelSpec& spec) {
  const DType dtype = spec.dtype();
  if (dtype == DType::kBool) return Unimplemented("bool is not supported on CUDA");
  TANDEM_ASSIGN_OR_RETURN(const std::vector<int> axes,
                          ops::ReductionAxes(*spec.attributes, spec.in(0).rank()));
  TANDEM_CUDA_CALL(reduce, tandem_cuda_reduce, spec);
  std::vector<Stage> stages = Stages(spec.in(0), axes);
  if (spec.in(0).num_elements() == 0) stages = {{spec.out().num_elements(), 0, 1}};
  // 16-bit floats are f32 between the stages. Scratch: a stage's own, then two results by turns.
  const bool half = dtype == DType::kF16 || dtype == DType::kBF16;
  const DType middle = half ? DType::kF32 : dtype;
  int64_t own = 0, result = 0;
  for (size_t i = 0; i < stages.size(); ++i) {
    const Stage& s = stages[i];
    own = std::max(own, tandem_cuda_reduce_scratch_bytes(s.outer, s.n, s.inner, 8));
    if (i + 1 < stages.size()) result = std::max(result, s.outer * s.inner * SizeOf(middle));
  }
  own = RoundUp(own);
  result = RoundUp(result);
  return BoundKernel{[=](const KernelArgs& args) {
                       const void* x = args.inputs[0];
                       DType from = dtype;
                       char* const scratch = static_cast<char*>(args.scratch);
                       for (size_t i = 0; i < stages.size(); ++i) {
                         const Stage& s = stages[i];
                         const bool last = i + 1 == stages.size();
                         const DType to = last ? dtype : middle;
                         void* const out =
                             last ? args.outputs[0]
                                  : scratch + own + static_cast<int64_t>(i % 2) * result;
                         reduce(op, static_cast<int32_t>(from), static_cast<int32_t>(to), out, x,
                                s.outer, s.n, s.inner, scratch, reduce.device->stream());
                         x = out;
                         from = to;
                       }
                     },
                     own + 2 * result};
}

template <bool largest>
absl::StatusOr<BoundKernel> BindArg(const KernelSpec& spec) {
  const Shape& shape = spec.in(0);
  TANDEM_ASSIGN_OR_RETURN(const int axis,
                          NormalizeAxis(spec.attributes->Int("axis"), shape.rank()));
  TANDEM_CUDA_CALL(arg_reduce, tandem_cuda_arg_reduce, spec);
  const int64_t outer = shape.Count(0, axis), n = shape[axis];
  const int64_t inner = shape.Count(axis + 1, shape.rank());
  const auto dtype = static_cast<int32_t>(spec.dtype());
  return BoundKernel{[=](const KernelArgs& args) {
                       arg_reduce(largest ? 1 : 0, dtype, args.out<int64_t>(), args.inputs[0],
                                  outer, n, inner, args.scratch, arg_reduce.device->stream());
                     },
                     tandem_cuda_reduce_scratch_bytes(outer, n, inner, 16)};
}

}  // namespace

constinit const Kernel kReduceSumKernel = {.bind = BindReduce<TANDEM_CUDA_REDUCE_Sum>};
constinit const Kernel kReduceMaxKernel = {.bind = BindReduce<TANDEM_CUDA_REDUCE_Max>};
constinit const Kernel kReduceMinKernel = {.bind = BindReduce<TANDEM_CUDA_REDUCE_Min>};
constinit const Kernel kReduceProdKernel = {.bind = BindReduce<TANDEM_CUDA_REDUCE_Prod>};
constinit const Kernel kArgMaxKernel = {.bind = BindArg<true>};
constinit const Kernel kArgMinKernel = {.bind = BindArg<false>};

}  // namespace tandem::cuda

// Bindings of Resize and its adjoint: one dimension after another, by tables computed here in
// double and kept on the device as long as the kernel.
#include "engine/ops/resize.h"

#include <algorithm>
#include <memory>

#include "engine/backend/cuda/cuda_backend.h"
#include "engine/backend/cuda/kernels_table.h"

namespace tandem::cuda {
namespace {

// One dimension's resampling: its sizes, and its table on the device.
struct Pass {
  int axis = 0;
  ops::ResampleTable table;  // the host's; emptied once uploaded
  int64_t outer = 0, inputs = 0, outputs = 0, inner = 0;
  DType from = DType::kF32, to = DType::kF32;
  DeviceMemory first, begin, weights;
};

// The passes from spec.in(0) to spec.out() in the order of the dimensions, those that change
// nothing left out.
absl::StatusOr<std::vector<Pass>> ReadPasses(const KernelSpec& spec, bool adjoint) {
  const Shape& x = adjoint ? spec.out() : spec.in(0);
  TANDEM_ASSIGN_OR_RETURN(const ops::ResizeOptions options,
                          ops::ReadResizeOptions(*spec.attributes, x));
  std::vector<Pass> passes;
  for (int i = 0; i < static_cast<int>(options.axes.size()); ++i) {
    const int axis = static_cast<int>(options.axes[i].axis);
    TANDEM_ASSIGN_OR_RETURN(ops::ResampleTable table, ops::MakeResampleTable(options, i, x[axis]));
    if (table.IsIdentity()) continue;
    Pass& pass = passes.emplace_back();
    pass.axis = axis;
    pass.table = adjoint ? table.Transposed() : std::move(table);
  }
  std::sort(passes.begin(), passes.end(),
            [](const Pass& a, const Pass& b) { return a.axis < b.axis; });
  Shape shape = spec.in(0);
  for (Pass& pass : passes) {
    pass.outer = shape.Count(0, pass.axis);
    pass.inputs = shape[pass.axis];
    pass.inner = shape.Count(pass.axis + 1, shape.rank());
    pass.outputs = shape[pass.axis] = pass.table.outputs();
  }
  return passes;
}

template <typename T>
absl::StatusOr<DeviceMemory> Upload(const Backend& backend, const std::vector<T>& values) {
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
  TANDEM_ASSIGN_OR_RETURN(DeviceMemory memory, DeviceMemory::Allocate(backend, bytes));
  if (bytes > 0) backend.Upload(memory.data(), values.data(), bytes);
  return memory;
}

absl::Status UploadTable(const Backend& backend, bool copies, Pass* pass) {
  const ops::ResampleTable table = std::exchange(pass->table, {});
  TANDEM_ASSIGN_OR_RETURN(pass->first, Upload(backend, table.first));
  if (copies) return absl::OkStatus();
  TANDEM_ASSIGN_OR_RETURN(pass->begin, Upload(backend, table.begin));
  if (pass->from == DType::kF64) {
    TANDEM_ASSIGN_OR_RETURN(pass->weights, Upload(backend, table.weights));
  } else {
    const std::vector<float> weights(table.weights.begin(), table.weights.end());
    TANDEM_ASSIGN_OR_RETURN(pass->weights, Upload(backend, weights));
  }
  return absl::OkStatus();
}

// run(pass, to, from) for each, in order, between them through two buffers in scratch memory.
template <typename Run>
BoundKernel Chain(std::vector<Pass> passes, const Device* device, int64_t copy_bytes, Run run) {
  int64_t most = 0;
  for (size_t i = 0; i + 1 < passes.size(); ++i) {
    const Pass& pass = passes[i];
    const int64_t bytes = pass.outer * pass.outputs * pass.inner * SizeOf(pass.to);
    most = std::max(most, (bytes + 63) / 64 * 64);
  }
  const auto shared = std::make_shared<const std::vector<Pass>>(std::move(passes));
  return {.run =
              [=](const KernelArgs& args) {
                if (shared->empty()) {
                  device->Copy(args.outputs[0], args.inputs[0], copy_bytes);
                  return;
                }
                const void* from = args.inputs[0];
                for (size_t i = 0; i < shared->size(); ++i) {
                  const bool last = i + 1 == shared->size();
                  void* to = last ? args.outputs[0]
                                  : static_cast<char*>(args.scratch) + (i % 2 == 0 ? 0 : most);
                  run((*shared)[i], to, from);
                  from = to;
                }
              },
          .scratch_bytes = 2 * most};
}

absl::StatusOr<BoundKernel> Bind(const KernelSpec& spec, bool adjoint) {
  const bool copies = !adjoint && spec.attributes->String("mode") == "nearest";
  if (!copies && !IsFloat(spec.dtype())) {
    return Unimplemented(DTypeName(spec.dtype()), " on CUDA, supported: f32, f64, f16, bf16",
                         adjoint ? "" : ", and any type by mode nearest");
  }
  TANDEM_ASSIGN_OR_RETURN(std::vector<Pass> passes, ReadPasses(spec, adjoint));
  const Device& device = DeviceOf(spec);
  for (size_t i = 0; i < passes.size(); ++i) {
    // What lies between 16-bit floats is f32.
    const DType between = spec.dtype() == DType::kF64 || copies ? spec.dtype() : DType::kF32;
    passes[i].from = i == 0 ? spec.dtype() : between;
    passes[i].to = i + 1 == passes.size() ? spec.dtype() : between;
    TANDEM_RETURN_IF_ERROR(UploadTable(device, copies, &passes[i]));
  }
  const int64_t bytes = spec.outputs[0].bytes();
  if (copies) {
    TANDEM_CUDA_CALL(resample, tandem_cuda_resample_nearest, spec);
    const auto element = static_cast<int32_t>(SizeOf(spec.dtype()));
    return Chain(std::move(passes), &device, bytes, [=](const Pass& p, void* to, const void* from) {
      resample(to, from, reinterpret_cast<const int32_t*>(p.first.data()), p.outer, p.inputs,
               p.outputs, p.inner, element, resample.device->stream());
    });
  }
  TANDEM_CUDA_CALL(resample, tandem_cuda_resample, spec);
  return Chain(std::move(passes), &device, bytes, [=](const Pass& p, void* to, const void* from) {
    const tandem_cuda_resample_params params{
        .outer = p.outer,
        .inputs = p.inputs,
        .outputs = p.outputs,
        .inner = p.inner,
        .first = reinterpret_cast<const int32_t*>(p.first.data()),
        .begin = reinterpret_cast<const int64_t*>(p.begin.data()),
        .weights = p.weights.data(),
        .x_dtype = static_cast<int32_t>(p.from),
        .y_dtype = static_cast<int32_t>(p.to)};
    resample(to, from, &params, resample.device->stream());
  });
}

absl::StatusOr<BoundKernel> BindResize(const KernelSpec& spec) { return Bind(spec, false); }
absl::StatusOr<BoundKernel> BindResizeGrad(const KernelSpec& spec) { return Bind(spec, true); }

}  // namespace

constinit const Kernel kResizeKernel = {.bind = BindResize};
constinit const Kernel kResizeGradKernel = {.bind = BindResizeGrad};

}  // namespace tandem::cuda

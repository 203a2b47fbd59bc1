// Bindings of the operators that move elements by position: by element size, whatever the dtype.
#include <cstring>

#include "engine/backend/cuda/cuda_backend.h"
#include "engine/backend/cuda/kernels_table.h"
#include "engine/backend/cuda/loop.h"
#include "engine/backend/shape_loops.h"
#include "engine/tensor/dispatch.h"

namespace tandem::cuda {
namespace {

absl::StatusOr<BoundKernel> BindReshape(const KernelSpec& spec) {
  TANDEM_CUDA_CALL(copy, tandem_cuda_copy, spec);
  const int64_t bytes = spec.inputs[0].bytes();
  return BoundKernel{[=](const KernelArgs& args) {
    if (args.outputs[0] == args.inputs[0]) return;
    copy(args.outputs[0], args.inputs[0], bytes, copy.device->stream());
  }};
}

// A copy from in + in_offset to out + out_offset (elements).
absl::StatusOr<BoundKernel> StridedCopy(const KernelSpec& spec, const Loop<2>& dims,
                                        int64_t out_offset, int64_t in_offset) {
  TANDEM_CUDA_CALL(copy, tandem_cuda_copy_strided, spec);
  const int64_t size = SizeOf(spec.dtype());
  const tandem_cuda_loop loop = LibraryLoop<2>(dims);
  return BoundKernel{[=](const KernelArgs& args) {
    copy(static_cast<int32_t>(size), args.out<char>() + out_offset * size,
         args.in<char>(0) + in_offset * size, &loop, copy.device->stream());
  }};
}

absl::StatusOr<BoundKernel> BindTranspose(const KernelSpec& spec) {
  return StridedCopy(spec, TransposeLoop(spec), 0, 0);
}

absl::StatusOr<BoundKernel> BindBroadcastTo(const KernelSpec& spec) {
  return StridedCopy(spec, BroadcastLoop<2>(spec.out(), {&spec.in(0)}), 0, 0);
}

absl::StatusOr<BoundKernel> BindSlice(const KernelSpec& spec) {
  const SliceLoop slice(spec.out(), spec.in(0), *spec.attributes, 1);
  return StridedCopy(spec, slice.dims, 0, slice.offset);
}

// Fills the output with one element, given by its bits, before `into` copies the input into a part.
absl::StatusOr<BoundKernel> CopyInto(const KernelSpec& spec, absl::StatusOr<BoundKernel> into,
                                     uint64_t bits) {
  TANDEM_RETURN_IF_ERROR(into.status());
  TANDEM_CUDA_CALL(fill, tandem_cuda_fill, spec);
  const auto size = static_cast<int32_t>(SizeOf(spec.dtype()));
  const int64_t n = spec.out().num_elements();
  return BoundKernel{[=, into = *std::move(into)](const KernelArgs& args) {
    fill(size, args.outputs[0], bits, n, fill.device->stream());
    into.run(args);
  }};
}

absl::StatusOr<BoundKernel> BindUnslice(const KernelSpec& spec) {
  const SliceLoop slice(spec.in(0), spec.out(), *spec.attributes, 0);
  return CopyInto(spec, StridedCopy(spec, slice.dims, slice.offset, 0), 0);
}

absl::StatusOr<BoundKernel> BindPad(const KernelSpec& spec) {
  const std::vector<int64_t>& before = spec.attributes->Ints("before");
  const auto in = spec.in(0).Strides(), out = spec.out().Strides();
  Loop<2> dims;
  int64_t offset = 0;
  for (int i = 0; i < spec.out().rank(); ++i) {
    dims.push_back({spec.in(0)[i], {out[i], in[i]}});
    offset += before[i] * out[i];
  }
  if (spec.in(0).num_elements() == 0) offset = 0;
  uint64_t bits = 0;
  Dispatch(spec.dtype(), [&]<typename T>(T*) {
    const T value = ConvertElement<T>(spec.attributes->Float("value"));
    std::memcpy(&bits, &value, sizeof(T));
  });
  return CopyInto(spec, StridedCopy(spec, dims, offset, 0), bits);
}

absl::StatusOr<BoundKernel> BindConcat(const KernelSpec& spec) {
  const Shape& out = spec.out();
  TANDEM_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(spec.attributes->Int("axis"), out.rank()));
  TANDEM_CUDA_CALL(copy, tandem_cuda_copy_strided, spec);
  const int64_t size = SizeOf(spec.dtype());
  const int64_t outer = out.Count(0, axis), row = out.Count(axis, out.rank());
  struct Part {
    tandem_cuda_loop loop;
    int64_t offset_bytes;
  };
  std::vector<Part> parts;
  int64_t offset = 0;
  for (size_t i = 0; i < spec.inputs.size(); ++i) {
    const int64_t chunk = spec.in(static_cast<int>(i)).Count(axis, out.rank());
    parts.push_back({LibraryLoop<2>({{outer, {row, chunk}}, {chunk, {1, 1}}}), offset * size});
    offset += chunk;
  }
  return BoundKernel{[=](const KernelArgs& args) {
    for (size_t i = 0; i < parts.size(); ++i) {
      copy(static_cast<int32_t>(size), args.out<char>() + parts[i].offset_bytes, args.inputs[i],
           &parts[i].loop, copy.device->stream());
    }
  }};
}

absl::StatusOr<BoundKernel> BindGather(const KernelSpec& spec) {
  const Shape& x = spec.in(0);
  TANDEM_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(spec.attributes->Int("axis"), x.rank()));
  TANDEM_CUDA_CALL(gather, tandem_cuda_gather, spec);
  const auto size = static_cast<int32_t>(SizeOf(spec.dtype()));
  const auto index_dtype = static_cast<int32_t>(spec.dtype(1));
  const int64_t outer = x.Count(0, axis), n = spec.in(1).num_elements();
  const int64_t inner = x.Count(axis + 1, x.rank()), length = x[axis];
  return BoundKernel{[=](const KernelArgs& args) {
    gather(size, index_dtype, args.outputs[0], args.inputs[0], args.inputs[1], outer, length, n,
           inner, gather.device->stream());
  }};
}

}  // namespace

// The planner makes a Reshape an alias; this is for those who run the node alone.
constinit const Kernel kReshapeKernel = {.bind = BindReshape, .in_place = true};
constinit const Kernel kTransposeKernel = {.bind = BindTranspose};
constinit const Kernel kBroadcastToKernel = {.bind = BindBroadcastTo};
constinit const Kernel kSliceKernel = {.bind = BindSlice};
constinit const Kernel kUnsliceKernel = {.bind = BindUnslice};
constinit const Kernel kPadKernel = {.bind = BindPad};
constinit const Kernel kConcatKernel = {.bind = BindConcat};
constinit const Kernel kGatherKernel = {.bind = BindGather};

}  // namespace tandem::cuda

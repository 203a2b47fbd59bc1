// Kernels of the operators that move elements by position: by element size, whatever the dtype.
#include "engine/ops/shape.h"

#include <cstring>

#include "engine/backend/cpu/dtypes.h"
#include "engine/backend/cpu/kernels_table.h"
#include "engine/backend/shape_loops.h"

namespace tandem::cpu {
namespace {

absl::StatusOr<BoundKernel> BindReshape(const KernelSpec& spec) {
  return BoundKernel{[bytes = spec.inputs[0].bytes()](const KernelArgs& args) {
    CopyBytes(args.outputs[0], args.inputs[0], bytes);
  }};
}

// A copy from in + in_offset to out + out_offset (elements).
BoundKernel StridedCopy(Loop<2> dims, int64_t element_bytes, int64_t out_offset,
                        int64_t in_offset) {
  return {[dims = Coalesce<2>(dims), element_bytes, out_bytes = out_offset * element_bytes,
           in_bytes = in_offset * element_bytes](const KernelArgs& args) {
    CopyStrided(dims, element_bytes, args.out<char>() + out_bytes, args.in<char>(0) + in_bytes);
  }};
}

absl::StatusOr<BoundKernel> BindTranspose(const KernelSpec& spec) {
  return StridedCopy(TransposeLoop(spec), SizeOf(spec.dtype()), 0, 0);
}

absl::StatusOr<BoundKernel> BindBroadcastTo(const KernelSpec& spec) {
  return StridedCopy(BroadcastLoop<2>(spec.out(), {&spec.in(0)}), SizeOf(spec.dtype()), 0, 0);
}

absl::StatusOr<BoundKernel> BindSlice(const KernelSpec& spec) {
  SliceLoop slice(spec.out(), spec.in(0), *spec.attributes, 1);
  return StridedCopy(std::move(slice.dims), SizeOf(spec.dtype()), 0, slice.offset);
}

// Fills the output with one element's bytes, then copies the input into a part of it.
BoundKernel CopyInto(BoundKernel copy, std::vector<std::byte> element, int64_t bytes) {
  bool zero = true;
  for (std::byte b : element) zero &= b == std::byte{0};
  return {
      [copy = std::move(copy), element = std::move(element), zero, bytes](const KernelArgs& args) {
        if (zero) {
          ZeroBytes(args.outputs[0], bytes);
        } else {
          const auto size = static_cast<int64_t>(element.size());
          CopyStrided({{bytes / size, {1, 0}}}, size, args.outputs[0], element.data());
        }
        copy.run(args);
      }};
}

absl::StatusOr<BoundKernel> BindUnslice(const KernelSpec& spec) {
  SliceLoop slice(spec.in(0), spec.out(), *spec.attributes, 0);
  const int64_t size = SizeOf(spec.dtype());
  return CopyInto(StridedCopy(std::move(slice.dims), size, slice.offset, 0),
                  std::vector<std::byte>(size), spec.outputs[0].bytes());
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
  const int64_t size = SizeOf(spec.dtype());
  std::vector<std::byte> element(size);
  Dispatch(spec.dtype(), [&]<typename T>(T*) {
    const T value = ConvertElement<T>(spec.attributes->Float("value"));
    std::memcpy(element.data(), &value, sizeof(T));
  });
  return CopyInto(StridedCopy(std::move(dims), size, offset, 0), std::move(element),
                  spec.outputs[0].bytes());
}

absl::StatusOr<BoundKernel> BindConcat(const KernelSpec& spec) {
  const Shape& out = spec.out();
  TANDEM_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(spec.attributes->Int("axis"), out.rank()));
  const int64_t size = SizeOf(spec.dtype());
  const int64_t outer = out.Count(0, axis), row = out.Count(axis, out.rank());
  std::vector<int64_t> chunks;  // elements that each input gives to a row
  for (size_t i = 0; i < spec.inputs.size(); ++i) {
    chunks.push_back(spec.in(static_cast<int>(i)).Count(axis, out.rank()));
  }
  return BoundKernel{[=](const KernelArgs& args) {
    char* to = args.out<char>();
    for (size_t i = 0; i < chunks.size(); ++i) {
      const int64_t chunk = chunks[i];
      CopyStrided(Coalesce<2>({{outer, {row, chunk}}, {chunk, {1, 1}}}), size, to, args.inputs[i]);
      to += chunk * size;
    }
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

}  // namespace tandem::cpu

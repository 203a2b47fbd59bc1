// The loops of operators that move elements by position, over operands {output, input}.
#pragma once

#include "engine/backend/backend.h"
#include "engine/backend/loop.h"

namespace tandem {

// Of Transpose.
inline Loop<2> TransposeLoop(const KernelSpec& spec) {
  const std::vector<int64_t>& permutation = spec.attributes->Ints("permutation");
  const auto in = spec.in(0).Strides(), out = spec.out().Strides();
  Loop<2> dims;
  for (int i = 0; i < spec.out().rank(); ++i) {
    dims.push_back({spec.out()[i], {out[i], in[permutation[i]]}});
  }
  return dims;
}

// Where a slice lies in the whole: the loop over the slice's elements, the whole being operand
// `whole`, and the offset of the first.
struct SliceLoop {
  Loop<2> dims;
  int64_t offset = 0;

  SliceLoop(const Shape& slice, const Shape& shape, const Attributes& attributes, int whole) {
    const std::vector<int64_t>& starts = attributes.Ints("starts");
    const std::vector<int64_t>& steps = attributes.Ints("steps");
    const auto own = slice.Strides(), strides = shape.Strides();
    for (int i = 0; i < slice.rank(); ++i) {
      LoopDim<2> dim{slice[i], {own[i], own[i]}};
      // A step beyond the only element does not matter, and may be too large to multiply.
      dim.stride[whole] = slice[i] > 1 ? steps[i] * strides[i] : 0;
      dims.push_back(dim);
      offset += starts[i] * strides[i];
    }
    if (slice.num_elements() == 0) offset = 0;
  }
};

}  // namespace tandem

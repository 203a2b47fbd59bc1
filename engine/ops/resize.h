// Resampling along one dimension as a banded matrix, for Resize's kernels and front ends.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/graph/op.h"
#include "engine/ops/ops.h"

namespace tandem::ops {

// y[o] = sum over k < count(o) of weights[begin[o] + k] x[first[o] + k]: rows of a matrix that is
// zero outside a band. first and first + count never fall or never rise with o, and all taps lie
// inside the input. A row may be empty (in a transposed table only).
struct ResampleTable {
  int64_t input = 0;
  std::vector<int32_t> first;  // (outputs)
  std::vector<int64_t> begin;  // (outputs + 1)
  std::vector<double> weights;

  int64_t outputs() const { return static_cast<int64_t>(first.size()); }
  int64_t count(int64_t o) const { return begin[o + 1] - begin[o]; }
  // The matrix's transpose: inputs from outputs.
  ResampleTable Transposed() const;
  // Each output copies the input of its number.
  bool IsIdentity() const;
};

// The place in the input, in elements, that output o of a dimension of size `input` looks at. The
// axis' scale is set.
double ResizePlace(const ResizeOptions& options, const ResizeAxis& axis, int64_t input, int64_t o);
// The table of options.axes[i] over a dimension of that size. Its weights number at most 2^25.
absl::StatusOr<ResampleTable> MakeResampleTable(const ResizeOptions& options, int i, int64_t input);

// The options behind the attributes of Resize and ResizeGrad, for inputs of that shape: axes in
// [0, rank), no two the same, scales set. Errors: what is wrong with them.
absl::StatusOr<ResizeOptions> ReadResizeOptions(const Attributes& attributes, const Shape& x);

}  // namespace tandem::ops

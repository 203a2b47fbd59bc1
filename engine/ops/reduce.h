// The axes of a reduction, as its inference, gradient and kernel read them.
#pragma once

#include <vector>

#include "engine/graph/op.h"

namespace tandem::ops {

// The attribute "axes" (empty: all) as sorted axes in [0, rank), or what is wrong with it.
absl::StatusOr<std::vector<int>> ReductionAxes(const Attributes& attributes, int rank);
// `shape` with those axes at size 1.
Shape KeptShape(Shape shape, const std::vector<int>& axes);

}  // namespace tandem::ops

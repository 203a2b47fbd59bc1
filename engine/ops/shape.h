// The extent of a Slice, as its inference, Unslice's and their kernels read it.
#pragma once

#include "engine/graph/op.h"

namespace tandem::ops {

// The shape of x[starts : ends : steps] for x of that shape (attributes "starts", "ends", "steps"),
// or what is out of bounds.
absl::StatusOr<Shape> SliceShape(const Shape& shape, const Attributes& attributes);

}  // namespace tandem::ops

// Small compositions of vocabulary operators that several families of ONNX operators use. As with
// the vocabulary itself, an error is the builder's.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/formats/onnx_context.h"

namespace tandem::compose {

// A scalar of x's dtype.
Value Like(Builder& b, double value, Value x);
Value AddScalar(Builder& b, Value x, double value);
Value Scale(Builder& b, Value x, double factor);
// x > y and x >= y.
Value Greater(Builder& b, Value x, Value y);
Value GreaterOrEqual(Builder& b, Value x, Value y);
// x cast to dtype, unless it has it.
Value CastTo(Builder& b, Value x, DType dtype);
// x with axes i and j exchanged.
Value SwapAxes(Builder& b, Value x, int i, int j);
// x[begin : end] along one axis, both within bounds.
Value SliceAxis(Builder& b, Value x, int axis, int64_t begin, int64_t end);
// x with the order along an axis reversed.
Value Reverse(Builder& b, Value x, int axis);
// x with an axis of size 1 put in at position `axis`, or taken out.
Value ExpandAxis(Builder& b, Value x, int axis);
Value DropAxis(Builder& b, Value x, int axis);
// A vector (C), or anything that has as many elements, as (C, 1, ..., 1) with `trailing` ones.
Value AsChannels(Builder& b, Value x, int trailing);
// 0, 1, ..., n - 1 as i64; an error above 2^26.
Value Iota(Builder& b, int64_t n);
// arctan, to 2 ulp of f32: Cephes' atanf.
Value Atan(Builder& b, Value x);
std::vector<int64_t> Dims(const Shape& shape);

// Each axis in [0, rank), no two the same.
absl::StatusOr<std::vector<int>> NormalizeAxes(std::span<const int64_t> axes, int rank);

}  // namespace tandem::compose

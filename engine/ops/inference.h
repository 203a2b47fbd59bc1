// What the families' inference functions share: checks of inputs, and common results.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/graph/op.h"

namespace tandem::ops {

using Types = absl::StatusOr<std::vector<TensorType>>;

// Each names the input by `what` and says what it is instead.
absl::Status RequireDType(const InferArgs& args, int i, std::string_view what, DType dtype);
absl::Status RequireFloat(const InferArgs& args, int i, std::string_view what);
absl::Status RequireNumber(const InferArgs& args, int i, std::string_view what);  // not bool
absl::Status RequireIndex(const InferArgs& args, int i, std::string_view what);   // i32 or i64
absl::Status RequireRank(const InferArgs& args, int i, std::string_view what, int rank);
absl::Status RequireShape(const InferArgs& args, int i, std::string_view what, const Shape& shape);
absl::Status RequireSameDType(const InferArgs& args, int i, int j);
// Input `i` is a statistic of input 0.
absl::Status RequireStatistic(const InferArgs& args, int i, std::string_view what);

// The first input's type: elementwise operators on floats, on numbers, on anything.
Types InferFloat(const InferArgs& args);
Types InferNumber(const InferArgs& args);
// The types of two floats of one shape: (x, dy) -> dx.
Types InferFloatPair(const InferArgs& args);

// What statistics of that type are kept in: f32 for the 16-bit floats.
DType StatisticsDType(DType dtype);

// A shape kept as an attribute.
std::vector<int64_t> DimsOf(const Shape& shape);
Shape ShapeAttribute(const Attributes& attributes, std::string_view name);
// `shape` without its last dimension.
Shape Rows(const Shape& shape);

// Cost of operators that do about kPerElement operations for each element of the first input.
template <int kPerElement>
double FlopsPerElement(std::span<const TensorType* const> inputs, std::span<const TensorType>,
                       const Attributes&) {
  return kPerElement * static_cast<double>(inputs[0]->shape.num_elements());
}
// Cost of operators that only move data.
double NoFlops(std::span<const TensorType* const> inputs, std::span<const TensorType> outputs,
               const Attributes& attributes);

}  // namespace tandem::ops

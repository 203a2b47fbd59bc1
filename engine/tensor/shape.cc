#include "engine/tensor/shape.h"

#include <algorithm>

#include "absl/strings/str_join.h"

namespace tandem {

absl::StatusOr<Shape> Shape::Checked(std::span<const int64_t> dims, int64_t element_bytes,
                                     std::string_view what) {
  if (dims.size() > kMaxRank) {
    return InvalidArgument(what, ": rank ", dims.size(), " is above the limit of ", kMaxRank);
  }
  const Shape shape(dims);
  int64_t bytes = element_bytes;
  bool empty = false;
  for (int64_t dim : dims) {
    if (dim < 0) return InvalidArgument(what, ": shape ", shape.ToString(), " has a negative size");
    empty |= dim == 0;
  }
  if (empty) return shape;
  for (int64_t dim : dims) {
    if (dim > kMaxTensorBytes / bytes) {
      return InvalidArgument(what, ": shape ", shape.ToString(), " is larger than the limit of ",
                             kMaxTensorBytes, " bytes");
    }
    bytes *= dim;
  }
  return shape;
}

int64_t Shape::Count(int begin, int end) const {
  int64_t count = 1;
  for (int i = begin; i < end; ++i) count *= dims_[i];
  return count;
}

std::vector<int64_t> Shape::Strides() const {
  std::vector<int64_t> strides(dims_.size());
  int64_t stride = 1;
  for (int i = rank() - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= dims_[i];
  }
  return strides;
}

std::string Shape::ToString() const { return StrCat("(", absl::StrJoin(dims_, ","), ")"); }

absl::StatusOr<Shape> BroadcastShapes(const Shape& a, const Shape& b) {
  const int rank = std::max(a.rank(), b.rank());
  Shape out(std::vector<int64_t>(rank, 1));
  for (int i = 1; i <= rank; ++i) {
    const int64_t x = i <= a.rank() ? a[-i] : 1;
    const int64_t y = i <= b.rank() ? b[-i] : 1;
    if (x != y && x != 1 && y != 1) {
      return InvalidArgument("shapes ", a.ToString(), " and ", b.ToString(),
                             " do not broadcast: ", x, " against ", y);
    }
    out[-i] = x == 1 ? y : x;
  }
  return out;
}

absl::StatusOr<int> NormalizeAxis(int64_t axis, int rank) {
  if (axis < -rank || axis >= rank) {
    return InvalidArgument("axis ", axis, " is outside [", -rank, ", ", rank, ")");
  }
  return static_cast<int>(axis < 0 ? axis + rank : axis);
}

}  // namespace tandem

// A tensor's dimensions: concrete, non-negative sizes, outermost first.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

#include "engine/base/error.h"

namespace tandem {

// The most bytes one tensor may have: far above any memory here, far below overflow.
inline constexpr int64_t kMaxTensorBytes = int64_t{1} << 40;
inline constexpr int kMaxRank = 8;

class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) : dims_(dims) {}
  explicit Shape(std::span<const int64_t> dims) : dims_(dims.begin(), dims.end()) {}

  // Checks a shape from outside: rank <= kMaxRank, no negative size, and
  // elements x element_bytes <= kMaxTensorBytes. `what` begins the error's message.
  static absl::StatusOr<Shape> Checked(std::span<const int64_t> dims, int64_t element_bytes,
                                       std::string_view what);

  int rank() const { return static_cast<int>(dims_.size()); }
  // Dimension i; a negative i counts from the end.
  int64_t operator[](int i) const { return dims_[i < 0 ? i + rank() : i]; }
  int64_t& operator[](int i) { return dims_[i < 0 ? i + rank() : i]; }
  auto begin() const { return dims_.begin(); }
  auto end() const { return dims_.end(); }
  std::span<const int64_t> dims() const { return dims_; }
  void push_back(int64_t dim) { dims_.push_back(dim); }
  bool operator==(const Shape&) const = default;

  int64_t num_elements() const { return Count(0, rank()); }
  // The product of dimensions [begin, end).
  int64_t Count(int begin, int end) const;
  // Row-major strides in elements.
  std::vector<int64_t> Strides() const;
  // "(2,3,4)"
  std::string ToString() const;

 private:
  std::vector<int64_t> dims_;
};

// NumPy's broadcast of two shapes, or an error that names both.
absl::StatusOr<Shape> BroadcastShapes(const Shape& a, const Shape& b);
// An axis in [-rank, rank) as one in [0, rank).
absl::StatusOr<int> NormalizeAxis(int64_t axis, int rank);

}  // namespace tandem

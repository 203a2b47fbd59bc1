// Kernel of TopK: a heap of the k best so far, worst on top, in the output itself.
#include <algorithm>
#include <cmath>

#include "engine/backend/cpu/dtypes.h"
#include "engine/backend/cpu/kernels_table.h"

namespace tandem::cpu {
namespace {

// Whether a stands before b; NaN is the greatest of all.
template <bool largest, typename T>
bool Before(T a, T b) {
  const auto x = Widen(a), y = Widen(b);
  if constexpr (std::is_floating_point_v<decltype(Widen(a))>) {
    if (largest) return x > y || (std::isnan(x) && !std::isnan(y));
    return x < y || (std::isnan(y) && !std::isnan(x));
  } else {
    return largest ? x > y : x < y;
  }
}

template <bool largest, typename T>
class Best {
 public:
  Best(T* values, int64_t* indices) : values_(values), indices_(indices) {}

  // The k first in order of x (n) into the output, in that order.
  void Select(const T* x, int64_t n, int64_t k) {
    if (k == 0) return;
    std::copy_n(x, k, values_);
    for (int64_t i = 0; i < k; ++i) indices_[i] = i;
    for (int64_t i = k / 2 - 1; i >= 0; --i) SiftDown(i, k);
    for (int64_t i = k; i < n; ++i) {
      // An equal one comes after those that are in.
      if (!Before<largest>(x[i], values_[0])) continue;
      values_[0] = x[i];
      indices_[0] = i;
      SiftDown(0, k);
    }
    for (int64_t end = k - 1; end > 0; --end) {
      Swap(0, end);
      SiftDown(0, end);
    }
  }

 private:
  bool InOrder(int64_t a, int64_t b) const {
    if (Before<largest>(values_[a], values_[b])) return true;
    if (Before<largest>(values_[b], values_[a])) return false;
    return indices_[a] < indices_[b];
  }
  void Swap(int64_t a, int64_t b) {
    std::swap(values_[a], values_[b]);
    std::swap(indices_[a], indices_[b]);
  }
  void SiftDown(int64_t i, int64_t size) {
    for (int64_t child = 2 * i + 1; child < size; child = 2 * i + 1) {
      if (child + 1 < size && InOrder(child, child + 1)) ++child;
      if (!InOrder(i, child)) return;
      Swap(i, child);
      i = child;
    }
  }

  T* values_;
  int64_t* indices_;
};

absl::StatusOr<BoundKernel> BindTopK(const KernelSpec& spec) {
  const Shape& shape = spec.in(0);
  const int64_t n = shape[-1], rows = shape.Count(0, shape.rank() - 1);
  const int64_t k = spec.attributes->Int("k");
  const bool largest = spec.attributes->Int("largest") != 0;
  return Dispatch(spec.dtype(), [&]<typename T>(T*) {
    return BoundKernel{[=](const KernelArgs& args) {
      const T* x = args.in<T>(0);
      T* values = args.out<T>(0);
      auto* indices = args.out<int64_t>(1);
      ParallelFor(rows, 4096 / std::max<int64_t>(1, n), [=](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          if (largest) {
            Best<true, T>(values + r * k, indices + r * k).Select(x + r * n, n, k);
          } else {
            Best<false, T>(values + r * k, indices + r * k).Select(x + r * n, n, k);
          }
        }
      });
    }};
  });
}

}  // namespace

constinit const Kernel kTopKKernel = {.bind = BindTopK};

}  // namespace tandem::cpu

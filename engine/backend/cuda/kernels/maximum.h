// A maximum's place within a plane: what MaxPool's kernels share.
#pragma once

#include "engine/backend/cuda/kernels/device.h"

namespace tandem::cuda {

// What is compared: 16-bit floats as f32, everything else as it is.
template <typename T>
__device__ __forceinline__ T Comparable(T x) {
  return x;
}
__device__ __forceinline__ float Comparable(Bf16 x) { return ToFloat(x); }
__device__ __forceinline__ float Comparable(F16 x) { return ToFloat(x); }

// The better of two places of a plane (-1: none): the larger element, a NaN above all numbers, and
// of equals the first place.
template <typename T>
__device__ __forceinline__ int Better(const T* plane, int a, int b) {
  const int first = min(a, b), second = max(a, b);
  const auto x = Comparable(plane[max(first, 0)]), y = Comparable(plane[max(second, 0)]);
  // Of the second only what is larger, or the first NaN.
  return (first < 0) | (!(y <= x) & (x == x)) ? second : first;
}

}  // namespace tandem::cuda

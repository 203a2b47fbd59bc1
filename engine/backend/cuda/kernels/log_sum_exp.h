// The log-sum-exp of a row, in one pass: the one order of additions that LogSoftmax, cross entropy
// and its caller at sampling time share, so that they agree to the bit.
#pragma once

#include "engine/backend/cuda/kernels/rows.h"

namespace tandem::cuda {

// What a maximum is subtracted as: an infinite one would make NaN of what it is subtracted from.
__device__ __forceinline__ float FiniteShift(float max) {
  return fabsf(max) < INFINITY ? max : 0.0f;
}

// A thread's part of a row so far: the largest number, and the sum of e^(x - shift of it). A NaN
// goes into the sum (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018).
struct OnlineSum {
  float max = -INFINITY, sum = 0;

  // Adds N vectors, past whose end lies -inf.
  template <typename T, int N>
  __device__ __forceinline__ void Add(const uint4 (&x)[N]) {
    float larger = max;
#pragma unroll
    for (int i = 0; i < N; ++i) {
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) larger = fmaxf(larger, Element<T>(x[i], j));
    }
    const float shift = FiniteShift(larger);
    Rescale(larger, shift);
    float added[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < N; ++i) {
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) added[j % 2] += expf(Element<T>(x[i], j) - shift);
    }
    sum += added[0] + added[1];
  }
  // The whole row's, in every thread of it: max, and the sum to the shift of that.
  __device__ __forceinline__ void Merge(RowReducer& reducer) {
    const float all = reducer.Max(max);
    Rescale(all, FiniteShift(all));
    sum = reducer.Sum(sum);
  }
  // -inf for a row of -inf, +inf for one with +inf, NaN for one with NaN. In double: f32 would lose
  // bits of a large maximum twice.
  __device__ __forceinline__ float Lse() const {
    return static_cast<float>(FiniteShift(max) + log(static_cast<double>(sum)));
  }

 private:
  __device__ __forceinline__ void Rescale(float larger, float shift) {
    // Before the first number the sum is 0 (or NaN), whatever it may be scaled by.
    if (max > -INFINITY) sum *= expf(FiniteShift(max) - shift);
    max = larger;
  }
};

// The geometry of every kernel that takes a log-sum-exp, with vectors in groups of four.
inline constexpr int kLseVectors = 4;

}  // namespace tandem::cuda

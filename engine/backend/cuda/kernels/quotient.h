// Division of 64-bit numbers by one number many times: a multiplication. The device's own 64-bit
// division is a call of some 70 instructions.
#pragma once

#include "engine/backend/cuda/kernels/device.h"

namespace tandem::cuda {

class Quotient {
 public:
  Quotient() = default;
  explicit Quotient(int64_t divisor)
      : divisor_(divisor < 1 ? 1 : divisor),
        multiplier_(~uint64_t{0} / static_cast<uint64_t>(divisor_)) {}

  // n / divisor and, in rest, n % divisor; n >= 0.
  __device__ __forceinline__ int64_t Of(int64_t n, int64_t* rest) const {
    // Never too much; too little by less than n * divisor / 2^64 + 2.
    auto q = static_cast<int64_t>(__umul64hi(static_cast<uint64_t>(n), multiplier_));
    int64_t r = n - q * divisor_;
    for (; r >= divisor_; r -= divisor_) ++q;
    *rest = r;
    return q;
  }
  __device__ __forceinline__ int64_t Of(int64_t n) const {
    int64_t rest;
    return Of(n, &rest);
  }

 private:
  int64_t divisor_ = 1;
  uint64_t multiplier_ = ~uint64_t{0};
};

}  // namespace tandem::cuda

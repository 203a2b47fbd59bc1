// Division of 32-bit positions by one number many times (quotient.h: of 64-bit ones).
#pragma once

#include <cstdint>

#include "engine/backend/cuda/kernels/device.h"

namespace tandem::cuda {

// n / d for n < 2^31 by a multiplication (Granlund and Montgomery 1994).
class Divisor {
 public:
  Divisor() = default;
  explicit Divisor(uint32_t d) : divisor_(d) {
    while ((uint64_t{1} << shift_) < d) ++shift_;
    multiplier_ = static_cast<uint32_t>((((uint64_t{1} << shift_) - d) << 32) / d + 1);
  }
  __device__ __forceinline__ uint32_t Divide(uint32_t n) const {
    return (__umulhi(n, multiplier_) + n) >> shift_;
  }
  __device__ __forceinline__ uint32_t divisor() const { return divisor_; }

 private:
  uint32_t divisor_ = 1, multiplier_ = 1, shift_ = 0;
};

}  // namespace tandem::cuda

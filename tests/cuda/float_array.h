// Arrays of f32, bf16 or f16 on the (emulated) device, seen as doubles.
#pragma once

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "engine/base/dtype.h"
#include "tests/cuda/device_array.h"

namespace tandem::cuda::testing {

inline const std::vector<int32_t>& FloatTypes() {
  static const auto* const types =
      new std::vector<int32_t>{TANDEM_CUDA_F32, TANDEM_CUDA_BF16, TANDEM_CUDA_F16};
  return *types;
}

// Of one unit in the last place, relative: what rounding to the type may cost, twice.
inline double Epsilon(int32_t dtype) {
  return dtype == TANDEM_CUDA_F32 ? 0x1p-23 : dtype == TANDEM_CUDA_BF16 ? 0x1p-8 : 0x1p-11;
}
inline int64_t FloatBytes(int32_t dtype) { return dtype == TANDEM_CUDA_F32 ? 4 : 2; }

inline double Rounded(int32_t dtype, double x) {
  const auto f = static_cast<float>(x);
  if (dtype == TANDEM_CUDA_BF16) return static_cast<float>(BF16(f));
  if (dtype == TANDEM_CUDA_F16) return static_cast<float>(F16(f));
  return f;
}

class FloatArray {
 public:
  FloatArray(int32_t dtype, int64_t size)
      : dtype_(dtype), size_(size), bytes_(size * FloatBytes(dtype)) {}
  FloatArray(int32_t dtype, const std::vector<double>& values)
      : FloatArray(dtype, static_cast<int64_t>(values.size())) {
    std::vector<uint8_t> bytes(bytes_.size());
    for (size_t i = 0; i < values.size(); ++i) {
      const auto f = static_cast<float>(values[i]);
      if (dtype == TANDEM_CUDA_F32) {
        std::memcpy(&bytes[4 * i], &f, 4);
      } else {
        const uint16_t bits = dtype == TANDEM_CUDA_BF16 ? BF16(f).bits : F16(f).bits;
        std::memcpy(&bytes[2 * i], &bits, 2);
      }
    }
    bytes_.Set(bytes);
  }
  std::vector<double> Get() const {
    const std::vector<uint8_t> bytes = bytes_.Get();
    std::vector<double> values(size_);
    for (size_t i = 0; i < values.size(); ++i) {
      if (dtype_ == TANDEM_CUDA_F32) {
        float f;
        std::memcpy(&f, &bytes[4 * i], 4);
        values[i] = f;
      } else {
        uint16_t bits;
        std::memcpy(&bits, &bytes[2 * i], 2);
        BF16 bf16;
        F16 f16;
        bf16.bits = f16.bits = bits;
        values[i] = dtype_ == TANDEM_CUDA_BF16 ? static_cast<float>(bf16) : static_cast<float>(f16);
      }
    }
    return values;
  }
  std::vector<uint8_t> Bits() const { return bytes_.Get(); }
  // From element `at` on.
  void* get(int64_t at = 0) const { return bytes_.get() + at * FloatBytes(dtype_); }

 private:
  int32_t dtype_;
  int64_t size_;
  DeviceArray<uint8_t> bytes_;
};

// Normally distributed, rounded to the type.
inline std::vector<double> Numbers(int32_t dtype, int64_t n, uint64_t seed, double scale = 1,
                                   double mean = 0) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal(mean, scale);
  std::vector<double> x(n);
  for (double& v : x) v = Rounded(dtype, normal(random));
  return x;
}

// |got - expected| <= tolerance max(1, |expected|), NaN where NaN is expected.
inline void ExpectNear(const std::vector<double>& got, const std::vector<double>& expected,
                       double tolerance, const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(expected[i]) ? std::isnan(got[i]) : got[i] == expected[i]) continue;
    ASSERT_LE(std::fabs(got[i] - expected[i]), tolerance * std::max(1.0, std::fabs(expected[i])))
        << what << ", element " << i << ": " << got[i] << " instead of " << expected[i];
  }
}

}  // namespace tandem::cuda::testing

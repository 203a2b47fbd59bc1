#include "engine/backend/cuda/kernels/divisor.h"

#include <gtest/gtest.h>

#include <random>

namespace tandem::cuda {
namespace {

TEST(DivisorTest, DividesAsTheProcessorDoes) {
  std::mt19937_64 random(1);
  constexpr uint32_t kMost = 0x7fffffff;
  for (int i = 0; i < 200000; ++i) {
    const auto d = static_cast<uint32_t>((random() & kMost) >> random() % 31 | 1);
    const auto n = static_cast<uint32_t>((random() & kMost) >> random() % 31);
    const Divisor even(d + (d < kMost ? 1 : 0)), divisor(d);
    ASSERT_EQ(even.Divide(n), n / even.divisor()) << n << " / " << even.divisor();
    for (const uint32_t x : {n, kMost, kMost / d * d, kMost / d * d - 1}) {
      ASSERT_EQ(divisor.Divide(x), x / d) << x << " / " << d;
    }
  }
}

}  // namespace
}  // namespace tandem::cuda

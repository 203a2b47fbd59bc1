// The noise kernels against the CPU's, bit for bit.
#include "engine/backend/cpu/kernels/random.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "engine/backend/cpu/kernels/gamma.h"
#include "engine/tensor/dispatch.h"
#include "tests/cuda/device_array.h"

namespace tandem::cuda::testing {
namespace {

struct Draw {
  uint64_t seed, call, stream;
  cpu::NoiseStream Cpu() const { return {.key = Philox::Fold(seed, call), .stream = stream}; }
};
constexpr Draw kDraws[] = {
    {0, 0, 0}, {0x0123456789abcdef, 0xfedcba9876543210, 7}, {42, 1, 0xffffffff00000001}};

template <typename T>
std::vector<T> Device(int noise, const Draw& draw, int64_t n) {
  const DeviceArray<uint64_t> key(std::vector<uint64_t>{draw.seed, draw.call});
  const DeviceArray<T> out(n);
  EXPECT_EQ(tandem_cuda_random(noise, static_cast<int>(TypeOf<T>()), out.get(), key.get(),
                               draw.stream, n, nullptr),
            0);
  return out.Get();
}

template <typename T>
class NoiseTest : public ::testing::Test {};
using Types = ::testing::Types<float, double>;
TYPED_TEST_SUITE(NoiseTest, Types);

TYPED_TEST(NoiseTest, EveryNoiseHasTheCpusBits) {
  using T = TypeParam;
  for (int noise = 0; noise <= TANDEM_CUDA_NOISE_LAPLACE; ++noise) {
    for (const Draw& draw : kDraws) {
      for (const int64_t n : {1, 15, 17, 33, 64, 65, 100003}) {
        std::vector<T> want(n);
        cpu::FillNoise(static_cast<cpu::NoiseKind>(noise), draw.Cpu(), want.data(), n);
        const std::vector<T> got = Device<T>(noise, draw, n);
        EXPECT_EQ(std::memcmp(got.data(), want.data(), n * sizeof(T)), 0) << noise << " " << n;
      }
    }
  }
}

TYPED_TEST(NoiseTest, ALongerDrawBeginsWithTheShorterOne) {
  using T = TypeParam;
  const std::vector<T> shorter = Device<T>(TANDEM_CUDA_NOISE_NORMAL, kDraws[1], 77);
  const std::vector<T> longer = Device<T>(TANDEM_CUDA_NOISE_NORMAL, kDraws[1], 1000);
  for (int i = 0; i < 77; ++i) EXPECT_EQ(shorter[i], longer[i]) << i;
}

TYPED_TEST(NoiseTest, KeyCallAndStreamAllMatter) {
  using T = TypeParam;
  const Draw first = {1, 2, 3};
  const std::vector<T> x = Device<T>(TANDEM_CUDA_NOISE_UNIFORM, first, 32);
  for (const Draw& other : {Draw{2, 2, 3}, Draw{1, 3, 3}, Draw{1, 2, 4}}) {
    EXPECT_NE(Device<T>(TANDEM_CUDA_NOISE_UNIFORM, other, 32), x);
  }
  const std::vector<T> uniform = Device<T>(TANDEM_CUDA_NOISE_UNIFORM, first, 4096);
  double mean = 0;
  for (T u : uniform) {
    EXPECT_GT(u, 0);
    EXPECT_LT(u, 1);
    mean += static_cast<double>(u) / 4096;
  }
  EXPECT_NEAR(mean, 0.5, 0.03);
}

TYPED_TEST(NoiseTest, GammaHasTheCpusBits) {
  using T = TypeParam;
  constexpr int64_t n = 2000;
  const Draw draw = {5, 6, 9};
  std::vector<T> concentration(n);
  for (int64_t i = 0; i < n; ++i) {
    concentration[i] = static_cast<T>(std::exp2(static_cast<double>(i % 97) / 6 - 8));
  }
  concentration[0] = 0;
  concentration[1] = -1;
  concentration[2] = std::numeric_limits<T>::quiet_NaN();
  concentration[3] = std::numeric_limits<T>::infinity();
  const DeviceArray<uint64_t> key(std::vector<uint64_t>{draw.seed, draw.call});
  const DeviceArray<T> in(concentration), out(n), dy(std::vector<T>(n, T(2))), slope(n);
  const int dtype = static_cast<int>(TypeOf<T>());
  ASSERT_EQ(
      tandem_cuda_random_gamma(dtype, out.get(), key.get(), in.get(), draw.stream, n, nullptr), 0);
  ASSERT_EQ(
      tandem_cuda_random_gamma_grad(dtype, slope.get(), in.get(), out.get(), dy.get(), n, nullptr),
      0);
  const std::vector<T> got = out.Get(), gradient = slope.Get();
  for (int64_t i = 0; i < n; ++i) {
    const auto a = static_cast<double>(concentration[i]);
    const T want = static_cast<T>(cpu::DrawLogGamma(a, draw.Cpu(), static_cast<uint64_t>(i)));
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(got[i]) && std::isnan(gradient[i])) << a;
      continue;
    }
    EXPECT_EQ(got[i], want) << a;
    // The library's exponential differs between machines.
    const double z = 2 * cpu::LogGammaGradient(a, static_cast<double>(want));
    EXPECT_NEAR(static_cast<double>(gradient[i]), z,
                (sizeof(T) == 4 ? 1e-7 : 1e-13) * std::fabs(z));
  }
}

TEST(SpecialTest, AsTheCpu) {
  std::vector<double> x = {0, -0.0, -1, -2, 1, 2, INFINITY, -INFINITY, NAN, 1e300, 1e-300};
  for (int i = 0; i < 500; ++i) x.push_back((i - 200) * 0.0937 + 0.001);
  const auto n = static_cast<int64_t>(x.size());
  const std::vector<float> narrow(x.begin(), x.end());
  const DeviceArray<double> in(x), out(n);
  const DeviceArray<float> in32(narrow), out32(n);
  double (*const functions[])(double) = {cpu::Lgamma, cpu::Digamma, cpu::Trigamma};
  for (int op = 0; op < 3; ++op) {
    ASSERT_EQ(tandem_cuda_special(op, TANDEM_CUDA_F64, out.get(), in.get(), n, nullptr), 0);
    ASSERT_EQ(tandem_cuda_special(op, TANDEM_CUDA_F32, out32.get(), in32.get(), n, nullptr), 0);
    const std::vector<double> y = out.Get();
    const std::vector<float> y32 = out32.Get();
    const auto expect = [&](double got, double want, double tolerance, double at) {
      if (std::isnan(want) || std::isinf(want)) {
        EXPECT_EQ(std::isnan(got), std::isnan(want)) << op << " of " << at;
        if (std::isinf(want)) {
          EXPECT_EQ(got, want) << op << " of " << at;
        }
      } else {
        EXPECT_NEAR(got, want, tolerance * std::fmax(1, std::fabs(want))) << op << " of " << at;
      }
    };
    for (int64_t i = 0; i < n; ++i) {
      expect(y[i], functions[op](x[i]), 1e-13, x[i]);
      expect(y32[i], static_cast<float>(functions[op](static_cast<double>(narrow[i]))), 1e-7,
             static_cast<double>(narrow[i]));
    }
  }
}

}  // namespace
}  // namespace tandem::cuda::testing

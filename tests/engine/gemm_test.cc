#include "engine/backend/cpu/kernels/gemm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "engine/base/threads.h"
#include "hwy/targets.h"

namespace tandem::cpu {
namespace {

constexpr float kCanary = 12345.678f;

// What to multiply. pad: extra elements at the end of each stored row but the last, so that an
// operand's memory ends with its last element and a sanitizer sees any access beyond.
struct Case {
  int64_t batch, m, n, k;
  bool transpose_a, transpose_b, accumulate, bias;
  int64_t pad;
  bool share_a, share_b;  // batch stride 0
  double special_share;   // of the inputs that are 0, -0, Inf, NaN or subnormal
  uint64_t seed;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << "batch " << c.batch << " m " << c.m << " n " << c.n << " k " << c.k << " ta "
             << c.transpose_a << " tb " << c.transpose_b << " accumulate " << c.accumulate
             << " bias " << c.bias << " pad " << c.pad << " share_a " << c.share_a << " share_b "
             << c.share_b << " special " << c.special_share << " seed " << c.seed;
}

struct Matrices {
  std::vector<float> values;
  int64_t ld, batch_stride;
};

Matrices MakeMatrices(int64_t batch, int64_t rows, int64_t columns, int64_t pad) {
  Matrices result;
  result.ld = columns + pad;
  result.batch_stride = rows * result.ld + pad;
  const bool empty = batch == 0 || rows == 0 || columns == 0;
  result.values.resize(
      empty ? 0 : (batch - 1) * result.batch_stride + (rows - 1) * result.ld + columns);
  return result;
}

float RandomValue(std::mt19937_64* random, double special_share) {
  if (std::uniform_real_distribution<double>()(*random) < special_share) {
    constexpr float kSpecial[] = {0.0f,
                                  -0.0f,
                                  std::numeric_limits<float>::infinity(),
                                  std::numeric_limits<float>::quiet_NaN(),
                                  1e-41f,
                                  3e38f};
    return kSpecial[(*random)() % std::size(kSpecial)];
  }
  return std::normal_distribution<float>()(*random);
}

struct Problem {
  explicit Problem(const Case& c) : sizes(c) {
    std::mt19937_64 random(c.seed);
    a = c.transpose_a ? MakeMatrices(c.share_a ? 1 : c.batch, c.k, c.m, c.pad)
                      : MakeMatrices(c.share_a ? 1 : c.batch, c.m, c.k, c.pad);
    b = c.transpose_b ? MakeMatrices(c.share_b ? 1 : c.batch, c.n, c.k, c.pad)
                      : MakeMatrices(c.share_b ? 1 : c.batch, c.k, c.n, c.pad);
    initial_c = MakeMatrices(c.batch, c.m, c.n, c.pad);
    bias.resize(c.bias ? c.n : 0);
    for (float& value : a.values) value = RandomValue(&random, c.special_share);
    for (float& value : b.values) value = RandomValue(&random, c.special_share);
    for (float& value : bias) value = RandomValue(&random, 0.0);
    std::fill(initial_c.values.begin(), initial_c.values.end(), kCanary);
    for (int64_t i = 0; i < c.batch * c.m * c.n; ++i) {
      initial_c.values[Place(i)] = RandomValue(&random, c.special_share);
    }
  }

  // Where element `index` of (batch, m, n) lies in C.
  int64_t Place(int64_t index) const {
    const int64_t row = index / sizes.n;
    return row / sizes.m * initial_c.batch_stride + row % sizes.m * initial_c.ld + index % sizes.n;
  }

  float A(int64_t batch, int64_t i, int64_t p) const {
    const float* base = a.values.data() + (sizes.share_a ? 0 : batch * a.batch_stride);
    return sizes.transpose_a ? base[p * a.ld + i] : base[i * a.ld + p];
  }
  float B(int64_t batch, int64_t p, int64_t j) const {
    const float* base = b.values.data() + (sizes.share_b ? 0 : batch * b.batch_stride);
    return sizes.transpose_b ? base[j * b.ld + p] : base[p * b.ld + j];
  }

  GemmParams Params(float* c) const {
    GemmParams params;
    params.batch = sizes.batch;
    params.m = sizes.m;
    params.n = sizes.n;
    params.k = sizes.k;
    params.a = a.values.data();
    params.lda = a.ld;
    params.transpose_a = sizes.transpose_a;
    params.a_batch_stride = sizes.share_a ? 0 : a.batch_stride;
    params.b = b.values.data();
    params.ldb = b.ld;
    params.transpose_b = sizes.transpose_b;
    params.b_batch_stride = sizes.share_b ? 0 : b.batch_stride;
    params.c = c;
    params.ldc = initial_c.ld;
    params.c_batch_stride = initial_c.batch_stride;
    params.bias = sizes.bias ? bias.data() : nullptr;
    params.accumulate = sizes.accumulate;
    return params;
  }

  Case sizes;
  Matrices a, b, initial_c;
  std::vector<float> bias;
};

// Scratch of exactly the promised size, at an odd address.
void RunGemm(const GemmParams& params) {
  std::vector<char> scratch(GemmScratchBytes(params) + 1);
  Gemm(params, scratch.data() + 1);
}

std::vector<float> Multiply(const Problem& problem) {
  std::vector<float> c = problem.initial_c.values;
  if (!problem.sizes.accumulate) {  // must not be read
    for (int64_t i = 0; i < problem.sizes.batch * problem.sizes.m * problem.sizes.n; ++i) {
      c[problem.Place(i)] = std::numeric_limits<float>::quiet_NaN();
    }
  }
  RunGemm(problem.Params(c.data()));
  return c;
}

// The chain of the contract; without fma each step rounds twice.
std::vector<float> Chain(const Problem& problem, bool fused) {
  const Case& s = problem.sizes;
  std::vector<float> c = problem.initial_c.values;
  for (int64_t i = 0; i < s.batch * s.m * s.n; ++i) {
    const int64_t batch = i / (s.m * s.n), row = i / s.n % s.m, column = i % s.n;
    float& out = c[problem.Place(i)];
    float sum = s.accumulate ? out : 0.0f;
    for (int64_t p = 0; p < s.k; ++p) {
      const float x = problem.A(batch, row, p), y = problem.B(batch, p, column);
      if (fused) {
        sum = std::fma(x, y, sum);
      } else {
        const volatile float product = x * y;
        sum = product + sum;
      }
    }
    out = s.bias ? sum + problem.bias[column] : sum;
  }
  return c;
}

bool SameBits(float x, float y) {
  return std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y) ||
         (std::isnan(x) && std::isnan(y));
}

::testing::AssertionResult SameBits(const std::vector<float>& actual,
                                    const std::vector<float>& expected) {
  if (actual.size() != expected.size()) return ::testing::AssertionFailure() << "sizes differ";
  for (size_t i = 0; i < actual.size(); ++i) {
    if (!SameBits(actual[i], expected[i])) {
      return ::testing::AssertionFailure() << "element " << i << " of " << actual.size() << ": "
                                           << actual[i] << " instead of " << expected[i];
    }
  }
  return ::testing::AssertionSuccess();
}

// A step that only a fused multiply-add takes without rounding the product.
bool IsFused() {
  const float a[] = {1.0f, 1.0f + 0x1p-12f}, b[] = {-1.0f, 1.0f + 0x1p-12f};
  float c = 0.0f;
  GemmParams params;
  params.m = params.n = 1;
  params.k = params.lda = 2;
  params.ldb = params.ldc = 1;
  params.a = a;
  params.b = b;
  params.c = &c;
  RunGemm(params);
  return c != 0x1p-11f;
}

// For every instruction set that this machine has, best first: it and all lesser ones, of which
// the best that was compiled will run.
std::vector<int64_t> Targets() {
  std::vector<int64_t> result;
  for (int64_t bits = hwy::SupportedTargets(); bits != 0; bits &= bits - 1) {
    result.push_back(bits);
  }
  return result;
}

class GemmTest : public ::testing::Test {
 protected:
  void TearDown() override {
    UseTarget(0);
    SetThreadCount(threads_);
  }

  // 0: whatever suits the machine.
  static void UseTarget(int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }

  // On every instruction set, with one and with more threads: the bits of the chain.
  void ExpectChain(const Case& sizes) {
    SCOPED_TRACE(::testing::Message() << sizes);
    const Problem problem(sizes);
    std::vector<float> expected[2];  // rounded twice, fused
    for (const int64_t target : Targets()) {
      UseTarget(target);
      const bool fused = IsFused();
      if (expected[fused].empty()) expected[fused] = Chain(problem, fused);
      for (const int threads : {1, 2, 3}) {
        SetThreadCount(threads);
        EXPECT_TRUE(SameBits(Multiply(problem), expected[fused]))
            << hwy::TargetName(target & -target) << ", " << threads << " threads";
      }
      UseTarget(0);
    }
  }

  int threads_ = ThreadCount();
};

// Both storage orders of both operands, with every flag seen both ways.
std::vector<Case> Orders(int64_t m, int64_t n, int64_t k) {
  std::vector<Case> result;
  for (int order = 0; order < 4; ++order) {
    Case c = {};
    c.batch = 1;
    c.m = m;
    c.n = n;
    c.k = k;
    c.transpose_a = (order & 1) != 0;
    c.transpose_b = (order & 2) != 0;
    c.seed = static_cast<uint64_t>(m * 1000003 + n * 1009 + k * 4 + order);
    c.accumulate = (c.seed / 4 + order) % 2 != 0;
    c.bias = (c.seed / 8 + order) % 3 != 0;
    c.pad = static_cast<int64_t>(c.seed / 16) % 3 * 5;
    result.push_back(c);
  }
  return result;
}

TEST_F(GemmTest, FusesWhereTheMachineDoes) {
#if HWY_ARCH_X86
  for (const int64_t target : Targets()) {
    if ((target & -target) > HWY_AVX2) continue;
    UseTarget(target);
    EXPECT_TRUE(IsFused()) << hwy::TargetName(target & -target);
  }
#endif
  EXPECT_FALSE(Targets().empty());
}

TEST_F(GemmTest, SmallShapesAreTheChain) {
  for (const int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 17}) {
    for (const int64_t n : {1, 3, 16, 47, 65, 130}) {
      for (const int64_t k : {1, 2, 3, 4, 17, 64}) {
        for (const Case& c : Orders(m, n, k)) ExpectChain(c);
      }
    }
  }
}

// Sizes on both sides of each block size: 192 along k, 576 along n and 96 along m where B is
// packed. Up to 16 or 32 rows it is not: there 1024 columns are a block, and 65536 elements of A.
TEST_F(GemmTest, BlockEdgesAreTheChain) {
  const int64_t shapes[][3] = {{97, 577, 9},  {96, 576, 24},  {193, 33, 193}, {34, 577, 193},
                               {33, 65, 40},  {32, 20, 2100}, {17, 65, 40},   {16, 35, 4100},
                               {10, 800, 13}, {8, 400, 300},  {2, 1100, 33},  {1, 1100, 513}};
  for (const auto& [m, n, k] : shapes) {
    for (const Case& c : Orders(m, n, k)) ExpectChain(c);
  }
}

TEST_F(GemmTest, BatchesAreTheChain) {
  for (const int64_t batch : {2, 3, 7, 40}) {
    for (const Case& order : Orders(13, 35, 41)) {
      for (const int sharing : {0, 1, 2}) {
        Case c = order;
        c.batch = batch;
        c.share_a = sharing == 1;
        c.share_b = sharing == 2;
        ExpectChain(c);
        c.m = 4;
        ExpectChain(c);
      }
    }
  }
}

TEST_F(GemmTest, NonFiniteValuesPropagate) {
  for (const auto& [m, n, k] : {std::array<int64_t, 3>{1, 70, 40}, {8, 70, 40}, {30, 70, 40}}) {
    for (Case c : Orders(m, n, k)) {
      c.special_share = 0.02;
      ExpectChain(c);
    }
  }
  // Zero rows times an infinite matrix: no element may be skipped for its zero.
  for (const int64_t m : {1, 8, 30}) {
    const int64_t n = 50, k = 20;
    std::vector<float> a(m * k), b(k * n, std::numeric_limits<float>::infinity()), c(m * n);
    GemmParams params;
    params.m = m;
    params.n = params.ldb = params.ldc = n;
    params.k = params.lda = k;
    params.a = a.data();
    params.b = b.data();
    params.c = c.data();
    RunGemm(params);
    for (const float value : c) EXPECT_TRUE(std::isnan(value));
  }
}

TEST_F(GemmTest, AgreesWithDoublePrecision) {
  for (const auto& [m, n, k] :
       {std::array<int64_t, 3>{5, 200, 700}, {120, 90, 513}, {64, 400, 64}}) {
    for (const Case& sizes : Orders(m, n, k)) {
      SCOPED_TRACE(::testing::Message() << sizes);
      const Problem problem(sizes);
      const std::vector<float> c = Multiply(problem);
      for (int64_t i = 0; i < m * n; ++i) {
        const float initial = problem.initial_c.values[problem.Place(i)];
        double sum = sizes.accumulate ? initial : 0.0, magnitude = std::abs(sum);
        for (int64_t p = 0; p < k; ++p) {
          const double product = static_cast<double>(problem.A(0, i / n, p)) *
                                 static_cast<double>(problem.B(0, p, i % n));
          sum += product;
          magnitude += std::abs(product);
        }
        if (sizes.bias) sum += problem.bias[i % n];
        // Higham, "Accuracy and Stability of Numerical Algorithms", 3.1; twice for unfused steps.
        const double bound = 2.0 * static_cast<double>(k + 2) * 0x1p-24 * (magnitude + 4.0);
        ASSERT_NEAR(c[problem.Place(i)], sum, bound) << "element " << i;
      }
    }
  }
}

// What the service relies on: a row alone, among others, or elsewhere, on any number of threads.
TEST_F(GemmTest, RowsDoNotDependOnTheirCompany) {
  for (const auto& [n, k] : {std::array<int64_t, 2>{65, 128}, {512, 300}, {700, 65}}) {
    for (const bool transpose_b : {false, true}) {
      const Case all = {1, 300, n, k, false, transpose_b, false, true, 0, false, false, 0.0, 11};
      const Problem problem(all);
      SetThreadCount(1);
      const std::vector<float> expected = Multiply(problem);
      for (const int threads : {1, 2, 4}) {
        SetThreadCount(threads);
        for (const int64_t m : {1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 64, 257, 300}) {
          for (const int64_t row : {int64_t{0}, (300 - m) / 2, 300 - m}) {
            std::vector<float> c(m * n);
            GemmParams params = problem.Params(c.data());
            params.m = m;
            params.a += row * k;
            RunGemm(params);
            const std::vector<float> rows(expected.begin() + row * n,
                                          expected.begin() + (row + m) * n);
            ASSERT_TRUE(SameBits(c, rows)) << "m " << m << " from row " << row << ", n " << n
                                           << " k " << k << ", " << threads << " threads";
          }
        }
      }
    }
  }
}

TEST_F(GemmTest, WithoutKOnlyTheBeginningAndTheBiasRemain) {
  for (const Case& sizes : Orders(3, 20, 0)) {
    for (const int flags : {0, 1, 2, 3}) {
      Case c = sizes;
      c.batch = 2;
      c.accumulate = (flags & 1) != 0;
      c.bias = (flags & 2) != 0;
      ExpectChain(c);
    }
  }
}

TEST_F(GemmTest, EmptyProductsTouchNothing) {
  for (const int empty : {0, 1, 2}) {
    GemmParams params;
    params.batch = empty == 0 ? 0 : 2;
    params.m = empty == 1 ? 0 : 3;
    params.n = empty == 2 ? 0 : 4;
    params.k = 5;
    EXPECT_EQ(GemmScratchBytes(params), 0);
    Gemm(params, nullptr);
  }
}

TEST_F(GemmTest, ScratchStaysWithinTheCaches) {
  GemmParams params;
  params.batch = 1000;
  params.m = params.n = params.k = int64_t{1} << 40;
  const int64_t cores = std::max(omp_get_num_procs(), 4);
  EXPECT_LE(GemmScratchBytes(params), cores * (512 << 10) + 64);
}

Case RandomCase(uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto up_to = [&random](int64_t most) {
    const auto scale = std::uniform_real_distribution<double>()(random);
    return 1 + static_cast<int64_t>(std::pow(scale, 3.0) * static_cast<double>(most));
  };
  Case c = {};
  c.batch = up_to(6);
  c.m = up_to(120);
  c.n = up_to(420);
  c.k = up_to(300);
  while (c.batch * c.m * c.n * c.k > 300000) (random() % 2 != 0 ? c.n : c.k) = up_to(100);
  c.transpose_a = random() % 2 != 0;
  c.transpose_b = random() % 2 != 0;
  c.accumulate = random() % 2 != 0;
  c.bias = random() % 2 != 0;
  c.pad = random() % 2 != 0 ? 0 : up_to(20);
  c.share_a = random() % 4 == 0;
  c.share_b = random() % 4 == 0;
  c.special_share = random() % 4 == 0 ? 0.01 : 0.0;
  c.seed = seed;
  return c;
}

// Two seconds of random cases. TANDEM_GEMM_SEED=<seed> runs that one case again.
TEST_F(GemmTest, RandomCasesAreTheChain) {
  if (const char* replay = std::getenv("TANDEM_GEMM_SEED")) {
    ExpectChain(RandomCase(std::strtoull(replay, nullptr, 10)));
    return;
  }
  const uint64_t first = std::random_device()();
  std::printf("first seed %llu\n", static_cast<unsigned long long>(first));
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(2);
  uint64_t seed = first;
  for (; std::chrono::steady_clock::now() < end; ++seed) {
    ExpectChain(RandomCase(seed));
    if (HasFailure()) {
      std::printf("replay with TANDEM_GEMM_SEED=%llu\n", static_cast<unsigned long long>(seed));
      return;
    }
  }
  std::printf("%llu cases\n", static_cast<unsigned long long>(seed - first));
}

}  // namespace
}  // namespace tandem::cpu

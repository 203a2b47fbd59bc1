// The reductions against double precision, and the bits that they promise.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "engine/tensor/dispatch.h"
#include "tests/cuda/device_array.h"

namespace tandem::cuda::testing {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Sizes {
  int64_t outer, n, inner;
};

template <typename In, typename Out = In>
std::vector<Out> Reduce(int op, const std::vector<In>& x, const Sizes& s) {
  const DeviceArray<In> in(x);
  const DeviceArray<Out> out(s.outer * s.inner);
  const DeviceArray<char> scratch(tandem_cuda_reduce_scratch_bytes(s.outer, s.n, s.inner, 8));
  EXPECT_EQ(tandem_cuda_reduce(op, static_cast<int>(TypeOf<In>()), static_cast<int>(TypeOf<Out>()),
                               out.get(), in.get(), s.outer, s.n, s.inner, scratch.get(), nullptr),
            0);
  return out.Get();
}

template <typename T>
std::vector<int64_t> Arg(bool largest, const std::vector<T>& x, const Sizes& s) {
  const DeviceArray<T> in(x);
  const DeviceArray<int64_t> out(s.outer * s.inner);
  const DeviceArray<char> scratch(tandem_cuda_reduce_scratch_bytes(s.outer, s.n, s.inner, 16));
  EXPECT_EQ(tandem_cuda_arg_reduce(largest, static_cast<int>(TypeOf<T>()), out.get(), in.get(),
                                   s.outer, s.n, s.inner, scratch.get(), nullptr),
            0);
  return out.Get();
}

template <typename T>
std::vector<T> Normal(int64_t n, uint64_t seed, double scale = 1, double mean = 0) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal(mean, scale);
  std::vector<T> x(n);
  for (T& v : x) v = ConvertElement<T>(normal(random));
  return x;
}

double Fold(int op, double a, double b) {
  switch (op) {
    case TANDEM_CUDA_REDUCE_Max:
      return std::fmax(a, b);
    case TANDEM_CUDA_REDUCE_Min:
      return std::fmin(a, b);
    case TANDEM_CUDA_REDUCE_Prod:
      return a * b;
    default:
      return a + b;
  }
}
double Neutral(int op) {
  return op == TANDEM_CUDA_REDUCE_Max   ? -INFINITY
         : op == TANDEM_CUDA_REDUCE_Min ? INFINITY
                                        : op == TANDEM_CUDA_REDUCE_Prod;
}

const std::vector<Sizes>& AllSizes() {
  static const auto* const sizes = new std::vector<Sizes>{
      {1, 1, 1},    {3, 5, 1},    {70, 3, 1},   {5, 33, 1},    {2, 127, 1}, {3, 128, 1},
      {2, 1000, 1}, {3, 4096, 1}, {2, 4097, 1}, {1, 40000, 1}, {1, 3, 7},   {4, 17, 33},
      {2, 40, 300}, {1, 129, 65}, {2, 5000, 3}, {3, 0, 2},     {2, 0, 1},   {0, 5, 2}};
  return *sizes;
}

template <typename T>
class FloatReduceTest : public ::testing::Test {};
using Floats = ::testing::Types<float, double, F16, BF16>;
TYPED_TEST_SUITE(FloatReduceTest, Floats);

TYPED_TEST(FloatReduceTest, AgainstDouble) {
  using T = TypeParam;
  const double epsilon = std::is_same_v<T, double> ? 1e-14 : 1e-6;
  const double rounding = std::is_same_v<T, F16> ? 0x1p-11 : std::is_same_v<T, BF16> ? 0x1p-8 : 0;
  for (int op = 0; op < 4; ++op) {
    for (const Sizes& s : AllSizes()) {
      // Products near 1.
      const bool product = op == TANDEM_CUDA_REDUCE_Prod;
      const std::vector<T> x =
          Normal<T>(s.outer * s.n * s.inner, 1, product ? 0.01 : 1, product ? 1 : 0);
      const std::vector<T> y = Reduce(op, x, s);
      for (int64_t i = 0; i < s.outer * s.inner; ++i) {
        double want = Neutral(op), magnitude = 1;
        for (int64_t j = 0; j < s.n; ++j) {
          const double v =
              ConvertElement<double>(x[(i / s.inner * s.n + j) * s.inner + i % s.inner]);
          want = Fold(op, want, v);
          if (op == TANDEM_CUDA_REDUCE_Sum) magnitude += std::fabs(v) * 0.1;
        }
        if (product) magnitude = std::fabs(want) * (1 + 0.1 * static_cast<double>(s.n));
        const double got = ConvertElement<double>(y[i]);
        if (op == TANDEM_CUDA_REDUCE_Max || op == TANDEM_CUDA_REDUCE_Min) {
          EXPECT_EQ(got, want);
        } else {
          EXPECT_NEAR(got, want, epsilon * magnitude + rounding * std::fabs(want))
              << op << " (" << s.outer << "," << s.n << "," << s.inner << ") " << i;
        }
      }
    }
  }
}

TYPED_TEST(FloatReduceTest, NaNWinsWhereverItIs) {
  using T = TypeParam;
  for (int64_t at : {0, 1, 100, 199}) {
    for (const int64_t inner : {1, 2}) {
      std::vector<T> x = Normal<T>(200 * inner, 5);
      x[at * inner] = ConvertElement<T>(kNaN);
      for (int op = 0; op < 4; ++op) {
        const std::vector<T> y = Reduce(op, x, {1, 200, inner});
        EXPECT_TRUE(std::isnan(ConvertElement<double>(y[0]))) << op << " " << at;
        EXPECT_EQ(std::isnan(ConvertElement<double>(y.back())), inner == 1);
      }
      EXPECT_EQ(Arg(true, x, {1, 200, inner})[0], at);
      EXPECT_EQ(Arg(false, x, {1, 200, inner})[0], at);
    }
  }
}

// Wide sums: through f32 to a 16-bit float and back, as two stages of one reduction do.
TEST(ReduceTest, MixedTypes) {
  const std::vector<BF16> x = Normal<BF16>(600, 3);
  const std::vector<float> middle = Reduce<BF16, float>(TANDEM_CUDA_REDUCE_Sum, x, {6, 100, 1});
  std::vector<float> exact(6);
  for (int i = 0; i < 6; ++i) {
    double sum = 0;
    for (int j = 0; j < 100; ++j) sum += static_cast<float>(x[i * 100 + j]);
    EXPECT_NEAR(middle[i], sum, 1e-5);
  }
  const std::vector<BF16> y = Reduce<float, BF16>(TANDEM_CUDA_REDUCE_Sum, middle, {2, 1, 3});
  for (int i = 0; i < 6; ++i) EXPECT_EQ(y[i].bits, BF16(middle[i]).bits);
  const DeviceArray<float> f(6);
  const DeviceArray<double> d(6);
  EXPECT_EQ(tandem_cuda_reduce(0, TANDEM_CUDA_F32, TANDEM_CUDA_F64, d.get(), f.get(), 1, 6, 1,
                               nullptr, nullptr),
            TANDEM_CUDA_UNSUPPORTED);
  EXPECT_EQ(tandem_cuda_reduce(0, TANDEM_CUDA_BOOL, TANDEM_CUDA_BOOL, d.get(), f.get(), 1, 6, 1,
                               nullptr, nullptr),
            TANDEM_CUDA_UNSUPPORTED);
}

// A result's bits depend on its own elements alone: not on how many others there are, on which
// side they lie, or on alignment.
TEST(ReduceTest, BitsDependOnTheReducedElementsAlone) {
  for (const int64_t n : {7, 20, 33, 64, 100, 129, 4096, 4100, 9001}) {
    const std::vector<float> row = Normal<float>(n, 9);
    const float alone = Reduce(TANDEM_CUDA_REDUCE_Sum, row, {1, n, 1})[0];
    for (const int64_t count : {2, 5, 37}) {
      std::vector<float> rows = Normal<float>(n * count, 10), columns = rows;
      for (int64_t i = 0; i < n; ++i) {
        rows[(count - 1) * n + i] = row[i];
        columns[i * count + count - 1] = row[i];
      }
      EXPECT_EQ(Reduce(TANDEM_CUDA_REDUCE_Sum, rows, {count, n, 1}).back(), alone) << n;
      EXPECT_EQ(Reduce(TANDEM_CUDA_REDUCE_Sum, columns, {1, n, count}).back(), alone) << n;
    }
    std::vector<float> shifted(n + 1, 0);
    std::memcpy(shifted.data() + 1, row.data(), n * sizeof(float));
    const DeviceArray<float> in(shifted), out(1);
    const DeviceArray<char> scratch(tandem_cuda_reduce_scratch_bytes(1, n, 1, 8));
    ASSERT_EQ(tandem_cuda_reduce(TANDEM_CUDA_REDUCE_Sum, TANDEM_CUDA_F32, TANDEM_CUDA_F32,
                                 out.get(), in.get() + 1, 1, n, 1, scratch.get(), nullptr),
              0);
    EXPECT_EQ(out.Get()[0], alone) << n;
  }
}

// The order that reduce.h states.
TEST(ReduceTest, OrderIsTheDocumentedOne) {
  const auto tree = [](const float* x, int64_t n) {
    std::vector<float> partial(128, 0.0f);
    for (int64_t i = 0; i < n; ++i) partial[i % 128] += x[i];
    for (int64_t width = 1; width < 128; width *= 2) {
      for (int64_t i = 0; i < 128; i += 2 * width) partial[i] += partial[i + width];
    }
    return partial[0];
  };
  constexpr int64_t n = 3 * 4096 + 77;
  const std::vector<float> x = Normal<float>(n, 2);
  std::vector<float> chunks;
  for (int64_t i = 0; i < n; i += 4096) {
    chunks.push_back(tree(x.data() + i, std::min<int64_t>(4096, n - i)));
  }
  EXPECT_EQ(Reduce(TANDEM_CUDA_REDUCE_Sum, x, {1, n, 1})[0], tree(chunks.data(), 4));
}

template <typename T>
class IntegerReduceTest : public ::testing::Test {};
using Integers =
    ::testing::Types<int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t>;
TYPED_TEST_SUITE(IntegerReduceTest, Integers);

TYPED_TEST(IntegerReduceTest, WrapsAround) {
  using T = TypeParam;
  std::mt19937_64 random(4);
  for (const Sizes& s : AllSizes()) {
    std::vector<T> x(s.outer * s.n * s.inner);
    for (T& v : x) v = static_cast<T>(random());
    for (int op = 0; op < 4; ++op) {
      const std::vector<T> y = Reduce(op, x, s);
      for (int64_t i = 0; i < s.outer * s.inner; ++i) {
        T want = op == TANDEM_CUDA_REDUCE_Max   ? std::numeric_limits<T>::min()
                 : op == TANDEM_CUDA_REDUCE_Min ? std::numeric_limits<T>::max()
                                                : T(op == TANDEM_CUDA_REDUCE_Prod);
        for (int64_t j = 0; j < s.n; ++j) {
          const T v = x[(i / s.inner * s.n + j) * s.inner + i % s.inner];
          const auto a = static_cast<uint64_t>(want), b = static_cast<uint64_t>(v);
          want = op == TANDEM_CUDA_REDUCE_Max   ? std::max(want, v)
                 : op == TANDEM_CUDA_REDUCE_Min ? std::min(want, v)
                                                : static_cast<T>(op == 0 ? a + b : a * b);
        }
        EXPECT_EQ(y[i], want) << op << " (" << s.outer << "," << s.n << "," << s.inner << ")";
      }
    }
    if (s.n == 0) continue;
    for (const bool largest : {true, false}) {
      const std::vector<int64_t> y = Arg(largest, x, s);
      for (int64_t i = 0; i < s.outer * s.inner; ++i) {
        const T* column = x.data() + i / s.inner * s.n * s.inner + i % s.inner;
        int64_t want = 0;
        for (int64_t j = 1; j < s.n; ++j) {
          const T v = column[j * s.inner], best = column[want * s.inner];
          if (largest ? v > best : v < best) want = j;
        }
        EXPECT_EQ(y[i], want);
      }
    }
  }
}

TEST(ArgReduceTest, FirstOfEqualOnesAndInfinities) {
  for (const Sizes& s : AllSizes()) {
    if (s.n == 0) continue;
    std::vector<float> x(s.outer * s.n * s.inner);
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 2654435761u % 7);
    for (const bool largest : {true, false}) {
      const std::vector<int64_t> y = Arg(largest, x, s);
      for (int64_t i = 0; i < s.outer * s.inner; ++i) {
        const float* column = x.data() + i / s.inner * s.n * s.inner + i % s.inner;
        int64_t want = 0;
        for (int64_t j = 1; j < s.n; ++j) {
          const float v = column[j * s.inner], best = column[want * s.inner];
          if (largest ? v > best : v < best) want = j;
        }
        EXPECT_EQ(y[i], want);
      }
    }
  }
  const std::vector<float> low(300, -INFINITY), high(300, INFINITY);
  EXPECT_EQ(Arg(true, low, {1, 300, 1})[0], 0);
  EXPECT_EQ(Arg(false, high, {1, 300, 1})[0], 0);
  const std::vector<uint8_t> flags = {0, 0, 1, 0, 1};
  const DeviceArray<uint8_t> in(flags);
  const DeviceArray<int64_t> out(1);
  ASSERT_EQ(
      tandem_cuda_arg_reduce(1, TANDEM_CUDA_BOOL, out.get(), in.get(), 1, 5, 1, nullptr, nullptr),
      0);
  EXPECT_EQ(out.Get()[0], 2);
}

}  // namespace
}  // namespace tandem::cuda::testing

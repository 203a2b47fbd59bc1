// TopK against a stable sort, and TriangularSolve against substitution on the host.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include "engine/tensor/dispatch.h"
#include "tests/cuda/device_array.h"

namespace tandem::cuda::testing {
namespace {

// Whether a stands before b; NaN is the greatest of all.
template <typename T>
bool Before(bool largest, T a, T b) {
  if constexpr (kIsHalf<T>) {
    return Before(largest, static_cast<float>(a), static_cast<float>(b));
  } else if constexpr (std::is_floating_point_v<T>) {
    if (largest) return a > b || (std::isnan(a) && !std::isnan(b));
    return a < b || (std::isnan(b) && !std::isnan(a));
  } else {
    return largest ? a > b : a < b;
  }
}

template <typename T>
void Check(const std::vector<T>& x, int64_t rows, int64_t n, int64_t k) {
  const DeviceArray<T> in(x), values(rows * k);
  const DeviceArray<int64_t> indices(rows * k);
  for (const bool largest : {true, false}) {
    ASSERT_EQ(tandem_cuda_topk(largest, static_cast<int>(TypeOf<T>()), values.get(), indices.get(),
                               in.get(), rows, n, k, nullptr),
              0);
    const std::vector<T> y = values.Get();
    const std::vector<int64_t> at = indices.Get();
    for (int64_t r = 0; r < rows; ++r) {
      std::vector<int64_t> order(n);
      std::iota(order.begin(), order.end(), 0);
      const T* row = x.data() + r * n;
      std::stable_sort(order.begin(), order.end(),
                       [&](int64_t a, int64_t b) { return Before(largest, row[a], row[b]); });
      for (int64_t i = 0; i < k; ++i) {
        ASSERT_EQ(at[r * k + i], order[i]) << "row " << r << ", " << i << " of " << k;
        ASSERT_EQ(std::memcmp(&y[r * k + i], row + order[i], sizeof(T)), 0);
      }
    }
  }
}

template <typename T>
class TopKTest : public ::testing::Test {};
using Types = ::testing::Types<float, double, F16, BF16, int8_t, int16_t, int32_t, int64_t, uint8_t,
                               uint16_t, uint32_t, uint64_t>;
TYPED_TEST_SUITE(TopKTest, Types);

TYPED_TEST(TopKTest, AsAStableSort) {
  using T = TypeParam;
  std::mt19937_64 random(1);
  struct Size {
    int64_t rows, n, k;
  };
  for (const Size& s :
       {Size{1, 1, 1}, {3, 7, 7}, {2, 300, 1}, {2, 1000, 40}, {1, 700, 513}, {2, 5, 0}}) {
    for (const bool few_values : {false, true}) {
      std::vector<T> x(s.rows * s.n);
      for (T& v : x) {
        const auto bits = random();
        if constexpr (std::is_integral_v<T>) {
          v = static_cast<T>(few_values ? bits % 5 : bits);
        } else {
          v = ConvertElement<T>(few_values
                                    ? static_cast<double>(bits % 5) - 2
                                    : static_cast<double>(static_cast<int64_t>(bits)) * 1e-16);
        }
      }
      if constexpr (!std::is_integral_v<T>) {
        if (s.n >= 300) {  // ties of NaN and of the zeros, and both ends
          x[5] = x[9] = ConvertElement<T>(std::numeric_limits<double>::quiet_NaN());
          x[6] = ConvertElement<T>(-0.0);
          x[3] = ConvertElement<T>(0.0);
          x[8] = ConvertElement<T>(std::numeric_limits<double>::infinity());
          x[1] = ConvertElement<T>(-std::numeric_limits<double>::infinity());
        }
      }
      Check(x, s.rows, s.n, s.k);
    }
  }
}

TEST(TopKTest, ManyAndTooMany) {
  std::mt19937_64 random(2);
  std::vector<float> x(9000);
  for (float& v : x) v = static_cast<float>(random() % 1000);
  Check(x, 1, 9000, 5000);
  const DeviceArray<float> in(x), values(9000);
  const DeviceArray<int64_t> indices(9000);
  EXPECT_EQ(tandem_cuda_topk(1, TANDEM_CUDA_F32, values.get(), indices.get(), in.get(), 1, 9000,
                             TANDEM_CUDA_TOPK_MOST + 1, nullptr),
            TANDEM_CUDA_UNSUPPORTED);
  EXPECT_EQ(tandem_cuda_topk(1, TANDEM_CUDA_BOOL, values.get(), indices.get(), in.get(), 1, 10, 1,
                             nullptr),
            TANDEM_CUDA_UNSUPPORTED);
}

template <typename T>
void CheckSolve(int64_t batch, int64_t size, int64_t columns, bool transposed) {
  std::mt19937_64 random(3);
  std::normal_distribution<double> normal;
  std::vector<T> l(batch * size * size), rhs(batch * size * columns);
  for (int64_t i = 0; i < batch * size * size; ++i) {
    const bool diagonal = i % (size * size) % (size + 1) == 0;
    const bool above = i % size > i / size % size;
    l[i] = above ? std::numeric_limits<T>::quiet_NaN()
                 : static_cast<T>(diagonal ? 2 + std::fabs(normal(random)) : normal(random) / 4);
  }
  for (T& v : rhs) v = static_cast<T>(normal(random));
  const DeviceArray<T> matrix(l), in(rhs), out(batch * size * columns);
  ASSERT_EQ(tandem_cuda_triangular_solve(static_cast<int>(TypeOf<T>()), transposed, out.get(),
                                         matrix.get(), in.get(), batch, size, columns, nullptr),
            0);
  const std::vector<T> x = out.Get();
  // L x is the right-hand side again.
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t c = 0; c < columns; ++c) {
        double sum = 0;
        for (int64_t j = 0; j < size; ++j) {
          if (transposed ? j < i : j > i) continue;
          const T factor = l[b * size * size + (transposed ? j * size + i : i * size + j)];
          sum += static_cast<double>(factor) * static_cast<double>(x[(b * size + j) * columns + c]);
        }
        EXPECT_NEAR(sum, static_cast<double>(rhs[(b * size + i) * columns + c]),
                    sizeof(T) == 4 ? 1e-5 : 1e-13);
      }
    }
  }
}
TEST(TriangularTest, Solves) {
  for (const bool transposed : {false, true}) {
    CheckSolve<float>(1, 1, 1, transposed);
    CheckSolve<float>(3, 17, 5, transposed);
    CheckSolve<double>(2, 33, 70, transposed);
  }
  const DeviceArray<F16> x(1);
  EXPECT_EQ(
      tandem_cuda_triangular_solve(TANDEM_CUDA_F16, 0, x.get(), x.get(), x.get(), 1, 1, 1, nullptr),
      TANDEM_CUDA_UNSUPPORTED);
}

}  // namespace
}  // namespace tandem::cuda::testing

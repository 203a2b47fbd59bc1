#include <algorithm>
#include <limits>

#include "tests/cuda/float_array.h"

namespace tandem::cuda::testing {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double ReferenceLse(const double* x, int64_t cols) {
  const double max = *std::max_element(x, x + cols);
  double sum = 0;
  for (int64_t j = 0; j < cols; ++j) sum += std::exp(x[j] - max);
  return max + std::log(sum);
}

struct Size {
  int64_t rows, cols;
};
constexpr Size kSizes[] = {{1, 1},   {3, 7},    {9, 33},   {2, 64},    {7, 300},
                           {5, 512}, {3, 1000}, {2, 3072}, {2, 10240}, {1, 20001}};

std::string Name(int32_t dtype, const Size& size) {
  return std::to_string(dtype) + ": " + std::to_string(size.rows) + " x " +
         std::to_string(size.cols);
}

TEST(SoftmaxTest, FollowsItsDefinition) {
  for (int32_t dtype : FloatTypes()) {
    for (const Size& size : kSizes) {
      const auto [rows, cols] = size;
      const std::vector<double> x = Numbers(dtype, rows * cols, 1, 3, 20);
      const std::vector<double> dy = Numbers(dtype, rows * cols, 2);
      std::vector<double> y, log_y;
      for (int64_t i = 0; i < rows; ++i) {
        const double lse = ReferenceLse(&x[i * cols], cols);
        for (int64_t j = 0; j < cols; ++j) {
          y.push_back(std::exp(x[i * cols + j] - lse));
          log_y.push_back(x[i * cols + j] - lse);
        }
      }
      const double tolerance = 2e-6 + 2 * Epsilon(dtype);
      const FloatArray a(dtype, x), b(dtype, rows * cols), cotangent(dtype, dy);
      ASSERT_EQ(tandem_cuda_softmax(dtype, a.get(), b.get(), rows, cols, nullptr), 0);
      const std::vector<double> softmax = b.Get();
      ExpectNear(softmax, y, tolerance, Name(dtype, size));
      ASSERT_EQ(
          tandem_cuda_softmax_grad(dtype, b.get(), cotangent.get(), b.get(), rows, cols, nullptr),
          0);
      std::vector<double> dx(x.size());
      for (int64_t i = 0; i < rows; ++i) {
        double dot = 0;
        for (int64_t j = i * cols; j < (i + 1) * cols; ++j) dot += softmax[j] * dy[j];
        for (int64_t j = i * cols; j < (i + 1) * cols; ++j) dx[j] = softmax[j] * (dy[j] - dot);
      }
      ExpectNear(b.Get(), dx, tolerance, Name(dtype, size) + " gradient");

      ASSERT_EQ(tandem_cuda_log_softmax(dtype, a.get(), a.get(), rows, cols, nullptr), 0);
      const std::vector<double> log_softmax = a.Get();
      ExpectNear(log_softmax, log_y, tolerance, Name(dtype, size) + " log");
      ASSERT_EQ(tandem_cuda_log_softmax_grad(dtype, a.get(), cotangent.get(), cotangent.get(), rows,
                                             cols, nullptr),
                0);
      for (int64_t i = 0; i < rows; ++i) {
        double sum = 0;
        for (int64_t j = i * cols; j < (i + 1) * cols; ++j) sum += dy[j];
        for (int64_t j = i * cols; j < (i + 1) * cols; ++j) {
          dx[j] = dy[j] - std::exp(log_softmax[j]) * sum;
        }
      }
      ExpectNear(cotangent.Get(), dx, tolerance * std::max(1.0, std::sqrt(cols) / 16),
                 Name(dtype, size) + " log gradient");
    }
  }
}

TEST(SoftmaxTest, InfinitiesAndNaN) {
  constexpr int64_t kCols = 70;
  const double nan = std::nan("");
  for (int32_t dtype : FloatTypes()) {
    // All -inf; one number; +inf; NaN; NaN and +inf; NaN in a row of -inf.
    std::vector<double> x(6 * kCols, -kInfinity);
    x[kCols + 40] = 3;
    x[2 * kCols + 1] = 1;
    x[2 * kCols + 40] = kInfinity;
    x[3 * kCols] = 2;
    x[3 * kCols + 50] = nan;
    x[4 * kCols + 6] = kInfinity;
    x[4 * kCols + 7] = nan;
    x[5 * kCols + 69] = nan;
    const FloatArray a(dtype, x), y(dtype, 6 * kCols);
    const DeviceArray<float> lse(6);
    ASSERT_EQ(
        tandem_cuda_cross_entropy(dtype, a.get(), nullptr, nullptr, lse.get(), 6, kCols, nullptr),
        0);
    const std::vector<float> got = lse.Get();
    ExpectNear({got.begin(), got.end()}, {-kInfinity, 3, kInfinity, nan, nan, nan}, 0,
               std::to_string(dtype));
    ASSERT_EQ(tandem_cuda_softmax(dtype, a.get(), y.get(), 6, kCols, nullptr), 0);
    std::vector<double> expected(6 * kCols, nan);
    for (int64_t j = 0; j < kCols; ++j) expected[kCols + j] = j == 40 ? 1 : 0;
    ExpectNear(y.Get(), expected, 0, std::to_string(dtype));
  }
}

TEST(CrossEntropyTest, LossAndGradientFollowTheirDefinition) {
  for (int32_t dtype : FloatTypes()) {
    for (const Size& size : kSizes) {
      const auto [rows, cols] = size;
      const std::vector<double> x = Numbers(dtype, rows * cols, 1, 3, 20);
      std::vector<int32_t> targets(rows);
      std::vector<float> dloss(rows);
      for (int64_t i = 0; i < rows; ++i) {
        targets[i] = static_cast<int32_t>((i * 7919 + cols / 2) % cols);
        dloss[i] = static_cast<float>(i % 3 == 2 ? 0 : i + 0.5);
      }
      const FloatArray logits(dtype, x);
      const DeviceArray<int32_t> t(targets);
      const DeviceArray<float> loss(rows), lse(rows), d(dloss);
      ASSERT_EQ(tandem_cuda_cross_entropy(dtype, logits.get(), t.get(), loss.get(), lse.get(), rows,
                                          cols, nullptr),
                0);
      const std::vector<float> got_loss = loss.Get(), got_lse = lse.Get();
      std::vector<double> expected_loss, expected_lse, gradient;
      for (int64_t i = 0; i < rows; ++i) {
        expected_lse.push_back(ReferenceLse(&x[i * cols], cols));
        expected_loss.push_back(expected_lse[i] - x[i * cols + targets[i]]);
        for (int64_t j = 0; j < cols; ++j) {
          const double p = std::exp(x[i * cols + j] - expected_lse[i]);
          gradient.push_back(dloss[i] * (p - (j == targets[i] ? 1 : 0)));
        }
      }
      ExpectNear({got_lse.begin(), got_lse.end()}, expected_lse, 1e-6, Name(dtype, size) + " lse");
      ExpectNear({got_loss.begin(), got_loss.end()}, expected_loss, 4e-6, Name(dtype, size));
      // In place.
      ASSERT_EQ(tandem_cuda_cross_entropy_grad(dtype, logits.get(), t.get(), lse.get(), d.get(),
                                               logits.get(), rows, cols, nullptr),
                0);
      ExpectNear(logits.Get(), gradient, 4e-6 + 2 * Epsilon(dtype),
                 Name(dtype, size) + " gradient");
    }
  }
}

TEST(CrossEntropyTest, TargetsOutsideAreMovedInside) {
  const DeviceArray<float> logits(std::vector<float>{1, 2, 3, 1, 2, 3}), loss(2), lse(2);
  const DeviceArray<int32_t> targets(std::vector<int32_t>{-5, 3});
  ASSERT_EQ(tandem_cuda_cross_entropy(TANDEM_CUDA_F32, logits.get(), targets.get(), loss.get(),
                                      lse.get(), 2, 3, nullptr),
            0);
  EXPECT_NEAR(loss.Get()[0], 2.407606, 1e-6);
  EXPECT_NEAR(loss.Get()[1], 0.407606, 1e-6);
}

// A confident row: p of the target rounds to 1, its gradient does not round to 0.
TEST(CrossEntropyTest, TheTargetsGradientKeepsItsDigits) {
  const DeviceArray<float> logits(std::vector<float>{20, 0, 0, 0}), loss(1), lse(1), dlogits(4);
  const DeviceArray<int32_t> target(std::vector<int32_t>{0});
  const DeviceArray<float> one(std::vector<float>{1});
  ASSERT_EQ(tandem_cuda_cross_entropy(TANDEM_CUDA_F32, logits.get(), target.get(), loss.get(),
                                      lse.get(), 1, 4, nullptr),
            0);
  ASSERT_EQ(tandem_cuda_cross_entropy_grad(TANDEM_CUDA_F32, logits.get(), target.get(), lse.get(),
                                           one.get(), dlogits.get(), 1, 4, nullptr),
            0);
  EXPECT_NEAR(dlogits.Get()[0] / (-3 * std::exp(-20.0)), 1, 1e-5);
}

// Log-softmax, cross entropy and log-sum-exp agree to the bit, alone, among other rows, and where
// rows cannot be moved as vectors.
TEST(CrossEntropyTest, OneLogSumExpEverywhere) {
  for (int32_t dtype : FloatTypes()) {
    for (int64_t cols : {48, 2000, 30016}) {
      constexpr int64_t kRows = 5, kAt = 3;
      const std::vector<double> x = Numbers(dtype, kRows * cols, 1, 3, 20);
      const FloatArray all(dtype, x), y(dtype, kRows * cols);
      std::vector<double> shifted(x.begin() + kAt * cols, x.begin() + (kAt + 1) * cols);
      shifted.insert(shifted.begin(), 0.0);
      const FloatArray one(dtype, shifted), y1(dtype, cols + 1);
      const DeviceArray<float> lse(kRows), loss(kRows), lse1(1);
      const DeviceArray<int32_t> targets(std::vector<int32_t>(kRows, 1));
      ASSERT_EQ(tandem_cuda_cross_entropy(dtype, all.get(), targets.get(), loss.get(), lse.get(),
                                          kRows, cols, nullptr),
                0);
      ASSERT_EQ(tandem_cuda_cross_entropy(dtype, one.get(1), nullptr, nullptr, lse1.get(), 1, cols,
                                          nullptr),
                0);
      EXPECT_EQ(lse.Get()[kAt], lse1.Get()[0]);
      ASSERT_EQ(tandem_cuda_log_softmax(dtype, all.get(), y.get(), kRows, cols, nullptr), 0);
      ASSERT_EQ(tandem_cuda_log_softmax(dtype, one.get(1), y1.get(1), 1, cols, nullptr), 0);
      const std::vector<double> got = y.Get(), got1 = y1.Get();
      for (int64_t j = 0; j < cols; ++j) ASSERT_EQ(got[kAt * cols + j], got1[j + 1]);
      for (int64_t i = 0; i < kRows; ++i) {
        EXPECT_EQ(got[i * cols + 1], Rounded(dtype, -loss.Get()[i])) << dtype << ": " << cols;
      }
    }
  }
}

}  // namespace
}  // namespace tandem::cuda::testing

#include "tests/cuda/float_array.h"

namespace tandem::cuda::testing {
namespace {

struct NormResult {
  std::vector<double> y, mean, rstd;
};

NormResult Reference(const std::vector<double>& x, const std::vector<double>& gamma,
                     const std::vector<double>& beta, double epsilon, int64_t cols, bool layer) {
  NormResult r;
  const int64_t rows = static_cast<int64_t>(x.size()) / cols;
  for (int64_t i = 0; i < rows; ++i) {
    double mean = 0, squares = 0;
    for (int64_t j = 0; layer && j < cols; ++j) mean += x[i * cols + j] / cols;
    for (int64_t j = 0; j < cols; ++j) squares += std::pow(x[i * cols + j] - mean, 2) / cols;
    const double rstd = 1 / std::sqrt(squares + epsilon);
    for (int64_t j = 0; j < cols; ++j) {
      const double h = (x[i * cols + j] - mean) * rstd;
      r.y.push_back(h * (gamma.empty() ? 1 : gamma[j]) + (beta.empty() ? 0 : beta[j]));
    }
    r.mean.push_back(mean);
    r.rstd.push_back(rstd);
  }
  return r;
}

struct GradResult {
  std::vector<double> dx, dgamma, dbeta;
};

GradResult ReferenceGrad(const std::vector<double>& x, const std::vector<double>& dy,
                         const std::vector<double>& gamma, const std::vector<double>& mean,
                         const std::vector<double>& rstd, int64_t cols) {
  GradResult r;
  const int64_t rows = static_cast<int64_t>(x.size()) / cols;
  r.dgamma.resize(cols);
  r.dbeta.resize(cols);
  for (int64_t i = 0; i < rows; ++i) {
    const double centre = mean.empty() ? 0 : mean[i];
    double sum_g = 0, sum_gh = 0;
    for (int64_t j = 0; j < cols; ++j) {
      const double h = (x[i * cols + j] - centre) * rstd[i], d = dy[i * cols + j];
      const double g = d * (gamma.empty() ? 1 : gamma[j]);
      sum_g += g;
      sum_gh += g * h;
      r.dgamma[j] += d * h;
      r.dbeta[j] += d;
    }
    if (mean.empty()) sum_g = 0;
    for (int64_t j = 0; j < cols; ++j) {
      const double h = (x[i * cols + j] - centre) * rstd[i];
      const double g = dy[i * cols + j] * (gamma.empty() ? 1 : gamma[j]);
      r.dx.push_back(rstd[i] * (g - sum_g / cols - h * sum_gh / cols));
    }
  }
  return r;
}

std::vector<double> Widen(const std::vector<float>& x) { return {x.begin(), x.end()}; }
std::vector<float> Narrow(const std::vector<double>& x) { return {x.begin(), x.end()}; }

constexpr double kEpsilon = 1e-2;

// Every geometry: one to sixteen warps, one to four vectors, rows that stay in registers and rows
// that do not, rows that cannot be moved as vectors.
struct Size {
  int64_t rows, cols;
};
constexpr Size kSizes[] = {{1, 1},    {3, 7},    {5, 31},    {9, 33},   {2, 64},
                           {7, 256},  {5, 512},  {3, 768},   {2, 1000}, {3, 2048},
                           {2, 4096}, {2, 4100}, {1, 17000}, {2, 40960}};

void CheckNorm(int32_t dtype, Size size, bool layer, bool with_gamma, bool with_beta) {
  const auto [rows, cols] = size;
  const std::vector<double> x = Numbers(dtype, rows * cols, 1, 1, layer ? 2 : 0);
  const std::vector<double> gamma = Numbers(dtype, with_gamma ? cols : 0, 2);
  const std::vector<double> beta = Numbers(dtype, with_beta ? cols : 0, 3);
  const FloatArray dx(dtype, x), dgamma(dtype, gamma), dbeta(dtype, beta), dy(dtype, rows * cols);
  const DeviceArray<float> mean(rows), rstd(rows);
  void* const g = with_gamma ? dgamma.get() : nullptr;
  if (layer) {
    ASSERT_EQ(
        tandem_cuda_layer_norm(dtype, dx.get(), g, with_beta ? dbeta.get() : nullptr, kEpsilon,
                               dy.get(), mean.get(), rstd.get(), rows, cols, nullptr),
        0);
  } else {
    ASSERT_EQ(tandem_cuda_rms_norm(dtype, dx.get(), g, kEpsilon, dy.get(), rstd.get(), rows, cols,
                                   nullptr),
              0);
  }
  const NormResult expected = Reference(x, gamma, beta, kEpsilon, cols, layer);
  const std::string what = std::to_string(dtype) + ": " + std::to_string(rows) + " x " +
                           std::to_string(cols) + (layer ? " layer" : " rms");
  ExpectNear(dy.Get(), expected.y, 2e-6 + 2 * Epsilon(dtype), what + " y");
  ExpectNear(Widen(rstd.Get()), expected.rstd, 1e-6, what + " rstd");
  if (layer) ExpectNear(Widen(mean.Get()), expected.mean, 1e-6, what + " mean");
}

TEST(NormalizationTest, NormsFollowTheirDefinition) {
  for (int32_t dtype : FloatTypes()) {
    for (const Size& size : kSizes) {
      CheckNorm(dtype, size, false, true, false);
      CheckNorm(dtype, size, true, true, true);
    }
    CheckNorm(dtype, {4, 96}, false, false, false);
    CheckNorm(dtype, {4, 96}, true, false, false);
    CheckNorm(dtype, {4, 96}, true, true, false);
    CheckNorm(dtype, {4, 96}, true, false, true);
  }
}

void CheckGrad(int32_t dtype, Size size, bool layer, bool with_gamma) {
  const auto [rows, cols] = size;
  const std::vector<double> x = Numbers(dtype, rows * cols, 1, 1, layer ? 2 : 0);
  const std::vector<double> dy = Numbers(dtype, rows * cols, 2);
  const std::vector<double> gamma = Numbers(dtype, with_gamma ? cols : 0, 3);
  NormResult forward = Reference(x, gamma, {}, kEpsilon, cols, layer);
  const DeviceArray<float> mean(Narrow(forward.mean)), rstd(Narrow(forward.rstd));
  const FloatArray d_x(dtype, x), d_dy(dtype, dy), d_gamma(dtype, gamma);
  const FloatArray dx(dtype, rows * cols), dgamma(dtype, cols), dbeta(dtype, layer ? cols : 0);
  int64_t bytes = 0;
  ASSERT_EQ(tandem_cuda_norm_grad_scratch(dtype, rows, cols, layer, &bytes), 0);
  const DeviceArray<uint8_t> scratch(bytes);
  const tandem_cuda_norm_grad_params params = {.x = d_x.get(),
                                               .dy = d_dy.get(),
                                               .gamma = with_gamma ? d_gamma.get() : nullptr,
                                               .mean = layer ? mean.get() : nullptr,
                                               .rstd = rstd.get(),
                                               .dx = dx.get(),
                                               .dgamma = dgamma.get(),
                                               .dbeta = layer ? dbeta.get() : nullptr,
                                               .scratch = scratch.get(),
                                               .rows = rows,
                                               .cols = cols,
                                               .dtype = dtype};
  ASSERT_EQ(tandem_cuda_norm_grad(&params, nullptr), 0);
  if (!layer) forward.mean.clear();
  const GradResult expected = ReferenceGrad(x, dy, gamma, forward.mean, forward.rstd, cols);
  const std::string what = std::to_string(dtype) + ": " + std::to_string(rows) + " x " +
                           std::to_string(cols) + (layer ? " layer" : " rms");
  const double tolerance = 4e-6 + 2 * Epsilon(dtype);
  ExpectNear(dx.Get(), expected.dx, tolerance, what + " dx");
  // Sums over the rows, which may cancel.
  const double sums = tolerance * std::max(1.0, std::sqrt(rows) / 4);
  ExpectNear(dgamma.Get(), expected.dgamma, sums, what + " dgamma");
  if (layer) ExpectNear(dbeta.Get(), expected.dbeta, sums, what + " dbeta");
}

TEST(NormalizationTest, GradientsFollowTheirDefinition) {
  for (int32_t dtype : FloatTypes()) {
    for (const Size& size : kSizes) {
      CheckGrad(dtype, size, false, true);
      CheckGrad(dtype, size, true, true);
    }
    CheckGrad(dtype, {4, 96}, false, false);
    CheckGrad(dtype, {4, 96}, true, false);
    // More rows than chunks: several rows a chunk, the last one shorter, groups without any.
    CheckGrad(dtype, {2200, 24}, true, true);
    CheckGrad(dtype, {601, 520}, false, true);
    CheckGrad(dtype, {0, 40}, true, true);
  }
  CheckGrad(TANDEM_CUDA_F32, {140, 8200}, true, true);
}

// The same bits alone, among other rows, and where the rows do not start on 16 bytes.
TEST(NormalizationTest, ARowsBitsAreItsOwn) {
  for (int32_t dtype : FloatTypes()) {
    for (int64_t cols : {40, 1024, 6144, 40960}) {
      constexpr int64_t kRows = 5, kAt = 3;
      const std::vector<double> x = Numbers(dtype, kRows * cols, 1);
      const std::vector<double> gamma = Numbers(dtype, cols, 2);
      const FloatArray all(dtype, x), scale(dtype, gamma), y(dtype, kRows * cols);
      const DeviceArray<float> rstd(kRows), mean(kRows);
      std::vector<double> shifted(x.begin() + kAt * cols, x.begin() + (kAt + 1) * cols);
      shifted.insert(shifted.begin(), 0.0);
      const FloatArray one(dtype, shifted), y1(dtype, cols + 1);
      const DeviceArray<float> rstd1(1), mean1(1);
      const int64_t row_bytes = cols * FloatBytes(dtype);
      const auto same = [&] {
        const std::vector<uint8_t> a = y.Bits(), b = y1.Bits();
        EXPECT_EQ(
            std::memcmp(&a[kAt * row_bytes], &b[FloatBytes(dtype)], static_cast<size_t>(row_bytes)),
            0)
            << dtype << ": " << cols;
      };
      ASSERT_EQ(tandem_cuda_rms_norm(dtype, all.get(), scale.get(), 1e-5f, y.get(), rstd.get(),
                                     kRows, cols, nullptr),
                0);
      ASSERT_EQ(tandem_cuda_rms_norm(dtype, one.get(1), scale.get(), 1e-5f, y1.get(1), rstd1.get(),
                                     1, cols, nullptr),
                0);
      same();
      EXPECT_EQ(rstd.Get()[kAt], rstd1.Get()[0]);
      ASSERT_EQ(tandem_cuda_layer_norm(dtype, all.get(), scale.get(), scale.get(), 1e-5f, y.get(),
                                       mean.get(), rstd.get(), kRows, cols, nullptr),
                0);
      ASSERT_EQ(tandem_cuda_layer_norm(dtype, one.get(1), scale.get(), scale.get(), 1e-5f,
                                       y1.get(1), mean1.get(), rstd1.get(), 1, cols, nullptr),
                0);
      same();
      EXPECT_EQ(mean.Get()[kAt], mean1.Get()[0]);
    }
  }
}

TEST(NormalizationTest, RefusesWhatItCannotDo) {
  const DeviceArray<float> x(4);
  EXPECT_EQ(
      tandem_cuda_rms_norm(TANDEM_CUDA_I32, x.get(), nullptr, 1, x.get(), x.get(), 1, 4, nullptr),
      TANDEM_CUDA_UNSUPPORTED);
  EXPECT_EQ(tandem_cuda_layer_norm(TANDEM_CUDA_F32, x.get(), nullptr, nullptr, 1, x.get(), x.get(),
                                   x.get(), 0, int64_t{1} << 31, nullptr),
            TANDEM_CUDA_UNSUPPORTED);
}

}  // namespace
}  // namespace tandem::cuda::testing

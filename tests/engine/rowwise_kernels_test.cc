// Row kernels against double-precision formulas, finite differences for the gradients, and their
// promise that a row's bits depend on that row alone.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "engine/backend/cpu/kernels/rowwise.h"
#include "engine/base/threads.h"

namespace tandem::cpu {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

using Floats = std::vector<float>;
using Doubles = std::vector<double>;
using Ids = std::vector<int32_t>;

Floats Normal(int64_t n, uint32_t seed, float scale = 1, float mean = 0) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> draw(mean, scale);
  Floats x(static_cast<size_t>(n));
  for (float& v : x) v = draw(rng);
  return x;
}

Ids RandomIds(int64_t n, int32_t limit, uint32_t seed) {
  std::mt19937 rng(seed);
  Ids ids(static_cast<size_t>(n));
  for (int32_t& id : ids) id = static_cast<int32_t>(rng() % static_cast<uint32_t>(limit));
  return ids;
}

std::vector<int64_t> Lengths() {
  std::vector<int64_t> lengths(70);
  std::iota(lengths.begin(), lengths.end(), 1);
  for (const int64_t n : {127, 512, 1000, 4099, 32000}) lengths.push_back(n);
  return lengths;
}

const float* Row(const Floats& x, int64_t row, int64_t cols) { return x.data() + row * cols; }
size_t At(int64_t i) { return static_cast<size_t>(i); }

bool SameBits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// What a kernel makes of `rows` rows that begin at row `first` of fixed data, all of its outputs.
using OnRows = std::function<Floats(int64_t first, int64_t rows)>;

// The same bits for 1 and 2 threads, and for each row alone (outputs are `width` a row).
void ExpectRowsIndependent(int64_t rows, int64_t width, const OnRows& run) {
  const int before = ThreadCount();
  SetThreadCount(1);
  const Floats one = run(0, rows);
  SetThreadCount(2);
  EXPECT_TRUE(SameBits(run(0, rows), one)) << "thread count";
  SetThreadCount(before);
  for (int64_t r = 0; r < rows; ++r) {
    const Floats alone = run(r, 1);
    ASSERT_EQ(alone.size(), At(width));
    ASSERT_EQ(std::memcmp(alone.data(), Row(one, r, width), At(width) * sizeof(float)), 0)
        << "row " << r << " of " << rows;
  }
}

double LseOf(const float* x, int64_t n) {
  const double max = *std::max_element(x, x + n);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(x[i] - max);
  return max + std::log(sum);
}

TEST(SoftmaxTest, MatchesDouble) {
  for (const int64_t cols : Lengths()) {
    const int64_t rows = cols < 100 ? 5 : 2;
    const Floats x = Normal(rows * cols, 1, 3), dy = Normal(rows * cols, 2);
    Floats y(x.size()), log_y(x.size()), lse(At(rows)), dx(x.size()), log_dx(x.size());
    Softmax(x.data(), y.data(), rows, cols);
    LogSoftmax(x.data(), log_y.data(), rows, cols);
    LogSumExp(x.data(), lse.data(), rows, cols);
    SoftmaxBackward(y.data(), dy.data(), dx.data(), rows, cols);
    LogSoftmaxBackward(log_y.data(), dy.data(), log_dx.data(), rows, cols);
    for (int64_t r = 0; r < rows; ++r) {
      const double want = LseOf(Row(x, r, cols), cols);
      ASSERT_NEAR(lse[At(r)], want, 2e-6) << cols;
      double dot = 0, total = 0, magnitude = 0;
      for (int64_t j = r * cols; j < (r + 1) * cols; ++j) {
        dot += std::exp(x[At(j)] - want) * dy[At(j)];
        total += dy[At(j)];
        magnitude += std::fabs(dy[At(j)]);
      }
      for (int64_t j = r * cols; j < (r + 1) * cols; ++j) {
        const double p = std::exp(x[At(j)] - want);
        ASSERT_NEAR(y[At(j)], p, 2e-6 * p + 1e-38) << cols;
        // Bit-exact by contract.
        ASSERT_EQ(log_y[At(j)], x[At(j)] - lse[At(r)]);
        ASSERT_NEAR(dx[At(j)], p * (dy[At(j)] - dot), 8e-6 * p + 1e-38) << cols;
        ASSERT_NEAR(log_dx[At(j)], dy[At(j)] - p * total, 2e-6 * p * magnitude + 3e-7) << cols;
      }
    }
  }
}

TEST(SoftmaxTest, HugeLogitsAndSpecialRows) {
  const int64_t cols = 19;
  Floats x(At(cols), 1e4f), y(x.size()), lse(1);
  x[3] = 10010.0f;
  x[5] = -1e4f;
  x[6] = -kInf;
  Softmax(x.data(), y.data(), 1, cols);
  LogSumExp(x.data(), lse.data(), 1, cols);
  EXPECT_NEAR(y[3], 1 / (1 + 16 * std::exp(-10.0)), 1e-6);
  EXPECT_NEAR(y[0], std::exp(-10.0) / (1 + 16 * std::exp(-10.0)), 1e-9);
  EXPECT_EQ(y[5], 0);
  EXPECT_EQ(y[6], 0);
  EXPECT_NEAR(lse[0], 10010 + std::log(1 + 16 * std::exp(-10.0)), 1e-3);

  for (const float bad : {kNaN, kInf}) {
    Floats row = Normal(cols, 3);
    row[17] = bad;
    Softmax(row.data(), y.data(), 1, cols);
    LogSumExp(row.data(), lse.data(), 1, cols);
    for (const float v : y) EXPECT_TRUE(std::isnan(v));
    if (std::isnan(bad)) {
      EXPECT_TRUE(std::isnan(lse[0]));
    } else {
      EXPECT_EQ(lse[0], kInf);
    }
    row[2] = kNaN;
    LogSumExp(row.data(), lse.data(), 1, cols);
    EXPECT_TRUE(std::isnan(lse[0]));
  }
  const Floats none(At(cols), -kInf);
  LogSumExp(none.data(), lse.data(), 1, cols);
  EXPECT_EQ(lse[0], -kInf);
}

TEST(SoftmaxTest, RowsAreIndependent) {
  for (const int64_t cols : {1, 17, 70, 3000}) {
    const int64_t rows = 23;
    const Floats x = Normal(rows * cols, 1, 3), dy = Normal(rows * cols, 2);
    const auto each = [&](auto kernel) {
      ExpectRowsIndependent(rows, cols, [&](int64_t first, int64_t n) {
        Floats out(At(n * cols));
        kernel(Row(x, first, cols), Row(dy, first, cols), out.data(), n);
        return out;
      });
    };
    each([&](const float* a, const float*, float* o, int64_t n) { Softmax(a, o, n, cols); });
    each([&](const float* a, const float*, float* o, int64_t n) { LogSoftmax(a, o, n, cols); });
    each([&](const float* a, const float* g, float* o, int64_t n) {
      SoftmaxBackward(a, g, o, n, cols);
    });
    each([&](const float* a, const float* g, float* o, int64_t n) {
      LogSoftmaxBackward(a, g, o, n, cols);
    });
  }
}

TEST(SoftmaxTest, InPlaceGivesTheSame) {
  for (const int64_t cols : {1, 16, 33, 70}) {
    const Floats x = Normal(3 * cols, 1);
    Floats y(x.size()), in_place = x;
    Softmax(x.data(), y.data(), 3, cols);
    Softmax(in_place.data(), in_place.data(), 3, cols);
    EXPECT_TRUE(SameBits(y, in_place));
    in_place = x;
    LogSoftmax(x.data(), y.data(), 3, cols);
    LogSoftmax(in_place.data(), in_place.data(), 3, cols);
    EXPECT_TRUE(SameBits(y, in_place));
  }
}

TEST(CrossEntropyTest, MatchesDoubleAndIsTheNegatedLogProbability) {
  for (const int64_t cols : Lengths()) {
    const int64_t rows = 4;
    const Floats x = Normal(rows * cols, 1, 4), g = Normal(rows, 5);
    const Ids targets = RandomIds(rows, static_cast<int32_t>(cols), 3);
    Floats loss(4), lse(4), sampler_lse(4), log_p(x.size()), dx(x.size());
    SoftmaxCrossEntropy(x.data(), targets.data(), loss.data(), lse.data(), rows, cols);
    LogSumExp(x.data(), sampler_lse.data(), rows, cols);
    LogSoftmax(x.data(), log_p.data(), rows, cols);
    SoftmaxCrossEntropyBackward(x.data(), targets.data(), lse.data(), g.data(), dx.data(), rows,
                                cols);
    EXPECT_TRUE(SameBits(lse, sampler_lse));
    for (int64_t r = 0; r < rows; ++r) {
      const double want = LseOf(Row(x, r, cols), cols);
      const int64_t target = r * cols + targets[At(r)];
      ASSERT_NEAR(loss[At(r)], want - x[At(target)], 3e-6);
      ASSERT_EQ(loss[At(r)], -(x[At(target)] - sampler_lse[At(r)]));
      ASSERT_EQ(loss[At(r)], -log_p[At(target)]);
      for (int64_t j = r * cols; j < (r + 1) * cols; ++j) {
        const double p = std::exp(x[At(j)] - want) - (j == target ? 1 : 0);
        ASSERT_NEAR(dx[At(j)], g[At(r)] * p, 4e-6 * std::fabs(g[At(r)] * p) + 2e-6 * (j == target));
      }
    }
  }
}

TEST(CrossEntropyTest, BackwardInPlaceAndIgnoredRows) {
  const int64_t rows = 3, cols = 37;
  Floats x = Normal(rows * cols, 1), loss(3), lse(3), dx(x.size());
  x[1] = kInf;  // row 0 is ignored: not even this may reach its gradient
  const Ids targets = {4, 0, 36};
  const Floats g = {0.0f, 1.0f, -2.0f};
  SoftmaxCrossEntropy(x.data(), targets.data(), loss.data(), lse.data(), rows, cols);
  SoftmaxCrossEntropyBackward(x.data(), targets.data(), lse.data(), g.data(), dx.data(), rows,
                              cols);
  SoftmaxCrossEntropyBackward(x.data(), targets.data(), lse.data(), g.data(), x.data(), rows, cols);
  EXPECT_TRUE(SameBits(x, dx));
  for (int64_t j = 0; j < cols; ++j) EXPECT_EQ(dx[At(j)], 0.0f);
  for (int64_t r = 1; r < rows; ++r) {
    EXPECT_NEAR(std::accumulate(Row(dx, r, cols), Row(dx, r, cols) + cols, 0.0), 0, 1e-6);
  }
}

TEST(CrossEntropyTest, RowsAreIndependent) {
  const int64_t rows = 40, cols = 1021;
  const Floats x = Normal(rows * cols, 1, 3), g = Normal(rows, 2);
  const Ids targets = RandomIds(rows, cols, 3);
  ExpectRowsIndependent(rows, 1, [&](int64_t first, int64_t n) {
    Floats loss(At(n)), lse(At(n));
    SoftmaxCrossEntropy(Row(x, first, cols), &targets[At(first)], loss.data(), lse.data(), n, cols);
    return loss;
  });
  ExpectRowsIndependent(rows, cols, [&](int64_t first, int64_t n) {
    Floats loss(At(n)), lse(At(n)), dx(At(n * cols));
    SoftmaxCrossEntropy(Row(x, first, cols), &targets[At(first)], loss.data(), lse.data(), n, cols);
    SoftmaxCrossEntropyBackward(Row(x, first, cols), &targets[At(first)], lse.data(), &g[At(first)],
                                dx.data(), n, cols);
    return dx;
  });
}

TEST(ReductionTest, RowSumMaxArgMax) {
  for (const int64_t cols : Lengths()) {
    const int64_t rows = 3;
    Floats x = Normal(rows * cols, 1);
    std::vector<int64_t> arg(3);
    Floats sum(3), max(3);
    const int64_t at = cols / 2;
    x[At(cols + at)] = x[At(cols + cols - 1)] = 9.0f;  // the first of two
    RowSum(x.data(), sum.data(), rows, cols);
    RowMax(x.data(), max.data(), rows, cols);
    RowArgMax(x.data(), arg.data(), rows, cols);
    for (int64_t r = 0; r < rows; ++r) {
      const float* row = Row(x, r, cols);
      double want = 0, magnitude = 0;
      for (int64_t j = 0; j < cols; ++j) want += row[j], magnitude += std::fabs(row[j]);
      ASSERT_NEAR(sum[At(r)], want, 1e-6 * magnitude);
      ASSERT_EQ(max[At(r)], *std::max_element(row, row + cols));
      ASSERT_EQ(arg[At(r)], std::max_element(row, row + cols) - row);
    }
    x[At(at)] = x[At(2 * cols - 1)] = kNaN;
    std::fill_n(x.begin() + 2 * cols, cols, -kInf);
    RowMax(x.data(), max.data(), rows, cols);
    RowArgMax(x.data(), arg.data(), rows, cols);
    ASSERT_TRUE(std::isnan(max[0]) && std::isnan(max[1]));
    ASSERT_EQ(max[2], -kInf);
    ASSERT_EQ(arg, (std::vector<int64_t>{at, cols - 1, 0}));
  }
}

TEST(ReductionTest, RowSumOfALongRowKeepsItsDigits) {
  const Floats x(5000000, 0.1f);
  float sum;
  RowSum(x.data(), &sum, 1, 5000000);
  EXPECT_NEAR(sum, 5000000.0 * 0.1f,
              50);  // 1e-4 of it; a single running sum loses the fourth digit
}

TEST(ReductionTest, ColumnSum) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 5},
                                   {3, 1},
                                   {64, 70},
                                   {65, 70},
                                   {1000, 33},
                                   {2500, 8},
                                   {5, 20000},
                                   {4097, 3}}) {
    const Floats x = Normal(rows * cols, 1);
    const auto run = [&, rows = rows, cols = cols] {
      Floats out(At(cols));
      Floats scratch(At(ColumnSumScratchBytes(rows, cols)) / sizeof(float));
      ColumnSum(x.data(), out.data(), scratch.data(), rows, cols);
      return out;
    };
    const int before = ThreadCount();
    SetThreadCount(1);
    const Floats one = run();
    SetThreadCount(2);
    EXPECT_TRUE(SameBits(one, run()));
    SetThreadCount(before);
    for (int64_t j = 0; j < cols; ++j) {
      double want = 0;
      for (int64_t r = 0; r < rows; ++r) want += x[At(r * cols + j)];
      ASSERT_NEAR(one[At(j)], want, 1e-6 * static_cast<double>(rows)) << rows << "x" << cols;
    }
  }
}

struct Norm {
  bool center;  // LayerNorm; else RmsNorm
  int64_t rows, cols;
  Floats x, dy, gamma, beta;
  double eps = 1e-3;

  Norm(bool layer, int64_t r, int64_t c, bool affine)
      : center(layer), rows(r), cols(c), x(Normal(r * c, 1, 2, 3)), dy(Normal(r * c, 2)) {
    if (affine) gamma = Normal(c, 3, 0.5f, 1), beta = Normal(c, 4);
  }
  double Gamma(int64_t j) const { return gamma.empty() ? 1 : gamma[At(j)]; }
  // One row's output, in double.
  Doubles Forward(const Doubles& row) const {
    double mean = 0, var = 0;
    const double n = static_cast<double>(row.size());
    for (const double v : row) mean += center ? v / n : 0;
    for (const double v : row) var += (v - mean) * (v - mean) / n;
    Doubles y(row.size());
    for (int64_t j = 0; j < cols; ++j) {
      y[At(j)] = (row[At(j)] - mean) / std::sqrt(var + eps) * Gamma(j);
      if (center && !beta.empty()) y[At(j)] += beta[At(j)];
    }
    return y;
  }
  const float* GammaOrNull() const { return gamma.empty() ? nullptr : gamma.data(); }
  const float* BetaOrNull() const { return beta.empty() ? nullptr : beta.data(); }
  // Kernel outputs for rows [first, first + n): y and dx, a row of both after another.
  Floats Run(int64_t first, int64_t n) const {
    Floats y(At(n * cols)), dx(y.size()), mean(At(n)), rstd(At(n)), both;
    const float *a = Row(x, first, cols), *g = Row(dy, first, cols);
    if (center) {
      LayerNorm(a, GammaOrNull(), BetaOrNull(), static_cast<float>(eps), y.data(), mean.data(),
                rstd.data(), n, cols);
      LayerNormBackward(a, g, GammaOrNull(), mean.data(), rstd.data(), dx.data(), n, cols);
    } else {
      RmsNorm(a, GammaOrNull(), static_cast<float>(eps), y.data(), rstd.data(), n, cols);
      RmsNormBackward(a, g, GammaOrNull(), rstd.data(), dx.data(), n, cols);
    }
    for (int64_t r = 0; r < n; ++r) {
      both.insert(both.end(), Row(y, r, cols), Row(y, r, cols) + cols);
      both.insert(both.end(), Row(dx, r, cols), Row(dx, r, cols) + cols);
    }
    return both;
  }
};

TEST(NormTest, ForwardMatchesDoubleAndBackwardMatchesDifferences) {
  for (const bool layer : {true, false}) {
    for (const bool affine : {true, false}) {
      for (const int64_t cols : Lengths()) {
        const Norm norm(layer, 2, cols, affine);
        const Floats both = norm.Run(0, 2);
        for (int64_t r = 0; r < 2; ++r) {
          const Doubles row(Row(norm.x, r, cols), Row(norm.x, r, cols) + cols);
          const Doubles y = norm.Forward(row);
          for (int64_t j = 0; j < cols; ++j) {
            ASSERT_NEAR(both[At(2 * r * cols + j)], y[At(j)], 4e-6) << layer << cols;
          }
          // A few coordinates' differences of sum(dy * y).
          for (int64_t j = 0; j < cols; j += 1 + cols / 5) {
            double slope = 0;
            const double h = 1e-4;
            Doubles up = row, down = row;
            up[At(j)] += h;
            down[At(j)] -= h;
            const Doubles y_up = norm.Forward(up), y_down = norm.Forward(down);
            for (int64_t k = 0; k < cols; ++k) {
              slope += norm.dy[At(r * cols + k)] * (y_up[At(k)] - y_down[At(k)]) / (2 * h);
            }
            // One column: x - mean is 0 and slopes are as large as 1 / sqrt(eps).
            ASSERT_NEAR(both[At((2 * r + 1) * cols + j)], slope, cols < 3 ? 2e-3 : 1e-5)
                << layer << affine << cols;
          }
        }
      }
    }
  }
}

TEST(NormTest, TwoPassVarianceSurvivesALargeMean) {
  const int64_t cols = 1000;
  const Floats x = Normal(cols, 1, 1, 3000);
  Floats y(x.size());
  float mean, rstd;
  LayerNorm(x.data(), nullptr, nullptr, 0, y.data(), &mean, &rstd, 1, cols);
  double m = 0, var = 0;
  for (const float v : x) m += v / 1000.0;
  for (const float v : x) var += (v - m) * (v - m) / 1000.0;
  EXPECT_NEAR(rstd, 1 / std::sqrt(var), 1e-5);  // E[x^2] - E[x]^2 in f32 would lose every digit
}

TEST(NormTest, RowsAreIndependent) {
  for (const bool layer : {true, false}) {
    for (const int64_t cols : {5, 64, 769}) {
      const Norm norm(layer, 50, cols, true);
      ExpectRowsIndependent(50, 2 * cols,
                            [&](int64_t first, int64_t n) { return norm.Run(first, n); });
    }
  }
}

TEST(NormTest, ParameterGradientsMatchDoubleForAnyThreads) {
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{1, 7}, {64, 33}, {65, 70}, {3000, 9}, {300, 1500}}) {
    for (const bool layer : {true, false}) {
      const Norm norm(layer, rows, cols, true);
      Floats y(norm.x.size()), mean(At(rows)), rstd(At(rows));
      const auto run = [&, rows = rows, cols = cols] {
        Floats out(At(2 * cols));
        float *dgamma = out.data(), *dbeta = out.data() + cols;
        if (layer) {
          LayerNorm(norm.x.data(), nullptr, nullptr, 1e-3f, y.data(), mean.data(), rstd.data(),
                    rows, cols);
          Floats scratch(At(LayerNormParameterScratchBytes(rows, cols)) / sizeof(float));
          LayerNormParameterBackward(norm.x.data(), norm.dy.data(), mean.data(), rstd.data(),
                                     dgamma, dbeta, scratch.data(), rows, cols);
        } else {
          RmsNorm(norm.x.data(), nullptr, 1e-3f, y.data(), rstd.data(), rows, cols);
          Floats scratch(At(RmsNormParameterScratchBytes(rows, cols)) / sizeof(float));
          RmsNormParameterBackward(norm.x.data(), norm.dy.data(), rstd.data(), dgamma,
                                   scratch.data(), rows, cols);
        }
        return out;
      };
      const int before = ThreadCount();
      SetThreadCount(1);
      const Floats one = run();
      SetThreadCount(2);
      EXPECT_TRUE(SameBits(one, run()));
      SetThreadCount(before);
      for (int64_t j = 0; j < cols; ++j) {
        double dgamma = 0, dbeta = 0;
        for (int64_t r = 0; r < rows; ++r) {
          dgamma += double{norm.dy[At(r * cols + j)]} * y[At(r * cols + j)];
          dbeta += layer ? norm.dy[At(r * cols + j)] : 0.0f;
        }
        ASSERT_NEAR(one[At(j)], dgamma, 1e-6 * static_cast<double>(rows + 9))
            << rows << "x" << cols;
        ASSERT_NEAR(one[At(cols + j)], dbeta, 1e-6 * static_cast<double>(rows + 9));
      }
    }
  }
}

TEST(NormTest, EitherParameterGradientAlone) {
  const Norm norm(true, 200, 40, true);
  Floats y(8000), mean(200), rstd(200), dgamma(40), dbeta(40), alone(40);
  Floats scratch(At(LayerNormParameterScratchBytes(200, 40)) / sizeof(float));
  LayerNorm(norm.x.data(), nullptr, nullptr, 1e-3f, y.data(), mean.data(), rstd.data(), 200, 40);
  const auto run = [&](float* to_gamma, float* to_beta) {
    LayerNormParameterBackward(norm.x.data(), norm.dy.data(), mean.data(), rstd.data(), to_gamma,
                               to_beta, scratch.data(), 200, 40);
  };
  run(dgamma.data(), dbeta.data());
  run(alone.data(), nullptr);
  EXPECT_TRUE(SameBits(alone, dgamma));
  run(nullptr, alone.data());
  EXPECT_TRUE(SameBits(alone, dbeta));
}

TEST(RopeTest, MatchesDoubleAndTurnsBack) {
  for (const int64_t head_dim : {2, 6, 16, 34, 64, 128, 200}) {
    const int64_t tokens = 7, heads = 3, half = head_dim / 2, max_positions = 5000;
    const int64_t width = heads * head_dim, stride = width + 5;
    const Ids positions = {0, 1, 2, 4999, 17, 17, 300};
    Floats cos(At(max_positions * half)), sin(cos.size());
    FillRopeTables(10000.0, head_dim, max_positions, cos.data(), sin.data());
    const Floats x = Normal(tokens * stride, 1);
    Floats y(At(tokens * width));
    Rope({tokens, heads, head_dim, stride, width}, x.data(), positions.data(), cos.data(),
         sin.data(), false, y.data());
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t i = 0; i < half; ++i) {
          const double angle =
              positions[At(t)] *
              std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
          const double a = x[At(t * stride + h * head_dim + i)];
          const double b = x[At(t * stride + h * head_dim + half + i)];
          const int64_t at = t * width + h * head_dim + i;
          ASSERT_NEAR(y[At(at)], a * std::cos(angle) - b * std::sin(angle), 1e-6);
          ASSERT_NEAR(y[At(at + half)], b * std::cos(angle) + a * std::sin(angle), 1e-6);
        }
      }
    }
    const Floats rotated = y;
    Rope({tokens, heads, head_dim, width, width}, y.data(), positions.data(), cos.data(),
         sin.data(), true, y.data());
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t j = 0; j < width; ++j) {
        ASSERT_NEAR(y[At(t * width + j)], x[At(t * stride + j)], 1e-6);
      }
    }
    // One token alone has the bits that it has among others.
    Floats alone(At(width));
    Rope({1, heads, head_dim, stride, width}, x.data() + 3 * stride, &positions[3], cos.data(),
         sin.data(), false, alone.data());
    EXPECT_EQ(std::memcmp(alone.data(), Row(rotated, 3, width), At(width) * sizeof(float)), 0);
  }
}

TEST(RopeTest, TablesFromFrequencies) {
  const int64_t head_dim = 200, half = 100;
  Doubles frequencies;
  for (int i = 0; i < half; ++i) frequencies.push_back(std::pow(500.0, -2.0 * i / 200.0));
  Floats cos(70 * 100), sin(cos), cos2(cos), sin2(cos);
  FillRopeTables(500.0, head_dim, 70, cos.data(), sin.data());
  FillRopeTables(frequencies.data(), half, 70, cos2.data(), sin2.data());
  EXPECT_TRUE(SameBits(cos, cos2));
  EXPECT_TRUE(SameBits(sin, sin2));
}

TEST(EmbeddingTest, GatherAndScatterAdd) {
  for (const int64_t cols : {1, 3, 16, 33, 70, 600}) {
    const int64_t rows = 500;
    const int32_t vocabulary = 37;  // many repeats
    const Floats table = Normal(vocabulary * cols, 1), dy = Normal(rows * cols, 2);
    const Ids ids = RandomIds(rows, vocabulary, 3);
    Floats out(At(rows * cols));
    EmbeddingGather(table.data(), ids.data(), out.data(), rows, cols);
    for (int64_t i = 0; i < rows; ++i) {
      ASSERT_EQ(
          std::memcmp(Row(out, i, cols), Row(table, ids[At(i)], cols), At(cols) * sizeof(float)),
          0);
    }
    Floats want = table;  // added to what was there, in the order of i
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) {
        want[At(ids[At(i)] * cols + j)] += dy[At(i * cols + j)];
      }
    }
    for (const int threads : {1, 2}) {
      const int before = ThreadCount();
      SetThreadCount(threads);
      Floats dtable = table;
      EmbeddingScatterAdd(dy.data(), ids.data(), dtable.data(), rows, cols);
      SetThreadCount(before);
      EXPECT_TRUE(SameBits(dtable, want)) << cols << " columns, " << threads << " threads";
    }
  }
}

}  // namespace
}  // namespace tandem::cpu

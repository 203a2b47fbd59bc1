// Optimizer steps against PyTorch's formulas in double.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "engine/backend/cpu/kernels/optimizer.h"
#include "engine/base/threads.h"

namespace tandem::cpu {
namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

Floats Normal(size_t n, uint32_t seed, float scale = 1) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> draw(0, scale);
  Floats x(n);
  for (float& v : x) v = draw(rng);
  return x;
}

bool SameBits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// torch.optim.Adam(W), _single_tensor_adam, in double.
void AdamOracle(const AdamWParams& o, Doubles& p, const Floats& grad, Doubles& m, Doubles& v) {
  const double bias1 = 1 - std::pow(o.beta1, o.step), bias2 = 1 - std::pow(o.beta2, o.step);
  for (size_t i = 0; i < p.size(); ++i) {
    double g = grad[i] * double{o.grad_scale};
    if (o.adamw) {
      p[i] *= 1 - o.lr * o.weight_decay;
    } else {
      g += o.weight_decay * p[i];
    }
    m[i] = o.beta1 * m[i] + (1 - o.beta1) * g;
    v[i] = o.beta2 * v[i] + (1 - o.beta2) * g * g;
    p[i] -= o.lr / bias1 * m[i] / (std::sqrt(v[i]) / std::sqrt(bias2) + o.eps);
  }
}

TEST(AdamWTest, TenStepsMatchDouble) {
  for (const bool adamw : {true, false}) {
    for (size_t n : {1, 2, 3, 5, 8, 13, 16, 17, 31, 33, 64, 70, 40000}) {
      AdamWParams o{.lr = 3e-3,
                    .beta1 = 0.85,
                    .beta2 = 0.99,
                    .eps = 1e-6,
                    .weight_decay = 0.1,
                    .grad_scale = 0.3f,
                    .adamw = adamw};
      Floats p = Normal(n, 1), m(n), v(n);
      Doubles p64(p.begin(), p.end()), m64(n), v64(n);
      for (o.step = 1; o.step <= 10; ++o.step) {
        const Floats g = Normal(n, static_cast<uint32_t>(o.step) + 100);
        AdamWStep(o, p.data(), g.data(), m.data(), v.data(), static_cast<int64_t>(n));
        AdamOracle(o, p64, g, m64, v64);
      }
      for (size_t i = 0; i < n; ++i) {
        ASSERT_NEAR(p[i], p64[i], 3e-6);  // ten steps of 3e-3, each to some 1e-7
        ASSERT_NEAR(m[i], m64[i], 1e-7);
        ASSERT_NEAR(v[i], v64[i], 1e-7 * v64[i] * 20);
      }
    }
  }
}

// Each hyperparameter changes the result by what the formula says.
TEST(AdamWTest, EveryParameterCounts) {
  const AdamWParams base{.lr = 1e-2,
                         .beta1 = 0.9,
                         .beta2 = 0.95,
                         .eps = 1e-3,
                         .weight_decay = 0.2,
                         .step = 3,
                         .grad_scale = 1.5f};
  std::vector<AdamWParams> variants(8, base);
  variants[0].lr = 2e-2;
  variants[1].beta1 = 0.8;
  variants[2].beta2 = 0.9;
  variants[3].eps = 1e-1;
  variants[4].weight_decay = 0;
  variants[5].step = 4;
  variants[6].grad_scale = 0.5f;
  variants[7].adamw = false;
  const auto run = [](const AdamWParams& o) {
    float p = 0.7f, g = 0.4f, m = 0.05f, v = 0.02f;
    AdamWStep(o, &p, &g, &m, &v, 1);
    return p;
  };
  for (const AdamWParams& o : variants) {
    Doubles p{0.7f}, m{0.05f}, v{0.02f};
    AdamOracle(o, p, {0.4f}, m, v);
    EXPECT_NEAR(run(o), p[0], 1e-7);
    EXPECT_GT(std::fabs(run(o) - run(base)), 1e-6);
  }
}

TEST(AdamWTest, OneMinusBetaIsTakenInDouble) {
  // 1 - 0.999f is 9.9998713e-4: v would be off by 1e-5 of itself.
  float p = 0, g = 1, m = 0, v = 0;
  AdamWStep({.beta2 = 0.999}, &p, &g, &m, &v, 1);
  EXPECT_EQ(v, static_cast<float>(1 - 0.999));
}

// torch.optim.SGD, _single_tensor_sgd, in double.
void SgdOracle(const SgdParams& o, Doubles& p, const Floats& grad, Doubles& buffer) {
  for (size_t i = 0; i < p.size(); ++i) {
    double g = grad[i] * double{o.grad_scale} + o.weight_decay * p[i];
    if (o.momentum != 0) {
      buffer[i] = o.first_step ? g : o.momentum * buffer[i] + (1 - o.dampening) * g;
      g = o.nesterov ? g + o.momentum * buffer[i] : buffer[i];
    }
    p[i] -= o.lr * g;
  }
}

TEST(SgdTest, FiveStepsMatchDouble) {
  const std::vector<SgdParams> variants = {
      {.lr = 0.1},
      {.lr = 0.1, .weight_decay = 0.05, .grad_scale = 0.5f},
      {.lr = 0.1, .momentum = 0.9},
      {.lr = 0.1, .momentum = 0.9, .dampening = 0.3, .weight_decay = 0.05},
      {.lr = 0.1, .momentum = 0.9, .weight_decay = 0.05, .nesterov = true, .grad_scale = 2.0f},
  };
  for (SgdParams o : variants) {
    for (size_t n : {1, 7, 16, 33, 70, 20000}) {
      Floats p = Normal(n, 1), buffer(n, 5.0f);  // what is in the buffer before must not matter
      Doubles p64(p.begin(), p.end()), buffer64(n);
      for (int step = 0; step < 5; ++step) {
        o.first_step = step == 0;
        const Floats g = Normal(n, static_cast<uint32_t>(step) + 50);
        SgdStep(o, p.data(), g.data(), o.momentum == 0 ? nullptr : buffer.data(),
                static_cast<int64_t>(n));
        SgdOracle(o, p64, g, buffer64);
      }
      for (size_t i = 0; i < n; ++i) ASSERT_NEAR(p[i], p64[i], 3e-6);
    }
  }
}

TEST(OptimizerTest, PlaceAndThreadsChangeNothing) {
  const size_t n = 50021;
  const Floats g = Normal(n, 2);
  const AdamWParams adam{.weight_decay = 0.1, .step = 2};
  const SgdParams sgd{.momentum = 0.9, .weight_decay = 0.1, .first_step = false};
  const auto run = [&](size_t first, size_t count) {
    Floats p = Normal(n, 1), m = Normal(n, 3, 0.1f), v(n, 0.01f);
    AdamWStep(adam, &p[first], &g[first], &m[first], &v[first], static_cast<int64_t>(count));
    SgdStep(sgd, &p[first], &g[first], &m[first], static_cast<int64_t>(count));
    return p;
  };
  const int before = ThreadCount();
  SetThreadCount(1);
  const Floats one = run(0, n);
  SetThreadCount(2);
  EXPECT_TRUE(SameBits(run(0, n), one));
  SetThreadCount(before);
  for (size_t count = 1; count <= 70; ++count) {
    const size_t first = 31 * count;
    const Floats part = run(first, count);
    ASSERT_EQ(std::memcmp(&part[first], &one[first], count * sizeof(float)), 0) << count;
  }
}

TEST(SumOfSquaresTest, MatchesLongDoubleForAnyThreads) {
  for (const size_t n : {size_t{0}, size_t{1}, size_t{7}, size_t{70}, size_t{16384}, size_t{16385},
                         size_t{100003}, size_t{4194304 + 20011}}) {
    const Floats x = Normal(n, 4);
    long double want = 0;
    for (const float v : x) want += static_cast<long double>(v) * v;
    const int before = ThreadCount();
    SetThreadCount(1);
    const double one = SumOfSquares(x.data(), static_cast<int64_t>(n));
    SetThreadCount(2);
    const double two = SumOfSquares(x.data(), static_cast<int64_t>(n));
    SetThreadCount(before);
    EXPECT_EQ(one, two);
    EXPECT_NEAR(one, static_cast<double>(want), 1e-12 * static_cast<double>(want));
  }
}

TEST(SumOfSquaresTest, ShowsEveryNonFinite) {
  for (const float bad :
       {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
        std::numeric_limits<float>::quiet_NaN()}) {
    for (const size_t at : {size_t{0}, size_t{69}, size_t{16384}, size_t{39999}}) {
      Floats x(40000, 1.0f);
      x[at] = bad;
      EXPECT_FALSE(std::isfinite(SumOfSquares(x.data(), 40000))) << at;
    }
  }
  const Floats huge(40000, std::numeric_limits<float>::max());
  EXPECT_TRUE(std::isfinite(SumOfSquares(huge.data(), 40000)));
}

}  // namespace
}  // namespace tandem::cpu

#include "engine/backend/cpu/kernels/optimizer.h"

#include <limits>

#include "tests/cuda/float_array.h"

namespace tandem::cuda::testing {
namespace {

double SumOfSquares(int32_t dtype, const FloatArray& x, int64_t at, int64_t n) {
  int64_t bytes = 0;
  EXPECT_EQ(tandem_cuda_sum_of_squares_scratch(n, &bytes), 0);
  const DeviceArray<uint8_t> scratch(bytes);
  const DeviceArray<double> sum(1);
  EXPECT_EQ(tandem_cuda_sum_of_squares(dtype, x.get(at), sum.get(), scratch.get(), n, nullptr), 0);
  return sum.Get()[0];
}

TEST(SumOfSquaresTest, IsExactAndDoesNotDependOnAlignment) {
  for (int32_t dtype : FloatTypes()) {
    for (int64_t n : {0, 1, 3, 31, 1000, 16384, 16387, 100001}) {
      std::vector<double> x = Numbers(dtype, n, 1);
      double expected = 0;
      for (double v : x) expected += v * v;
      const FloatArray array(dtype, x);
      x.insert(x.begin(), 1e3);
      const FloatArray shifted(dtype, x);
      const double got = SumOfSquares(dtype, array, 0, n);
      EXPECT_NEAR(got, expected, 1e-13 * expected) << n;
      EXPECT_EQ(SumOfSquares(dtype, shifted, 1, n), got) << n;
    }
    for (double bad : {std::numeric_limits<double>::infinity(), std::nan("")}) {
      std::vector<double> x(20000, 1.0);
      x[17001] = bad;
      EXPECT_FALSE(std::isfinite(SumOfSquares(dtype, FloatArray(dtype, x), 0, 20000)));
    }
  }
}

struct Controlled {
  std::vector<double> control, state;
};
std::vector<double> Hyper() {
  std::vector<double> h(TANDEM_CUDA_HYPER_COUNT);
  h[TANDEM_CUDA_HYPER_LEARNING_RATE] = 0.01;
  h[TANDEM_CUDA_HYPER_BETA1] = 0.9;
  h[TANDEM_CUDA_HYPER_BETA2] = 0.99;
  h[TANDEM_CUDA_HYPER_EPSILON] = 1e-8;
  h[TANDEM_CUDA_HYPER_WEIGHT_DECAY] = 0.1;
  h[TANDEM_CUDA_HYPER_MOMENTUM] = 0.8;
  h[TANDEM_CUDA_HYPER_MAX_GRAD_NORM] = 2;
  h[TANDEM_CUDA_HYPER_GROWTH] = 2;
  h[TANDEM_CUDA_HYPER_BACKOFF] = 0.5;
  h[TANDEM_CUDA_HYPER_GROWTH_INTERVAL] = 3;
  return h;
}
// step, skipped, loss scale, good steps
Controlled Control(double sum, const std::vector<double>& hyper, const std::vector<double>& state) {
  const DeviceArray<double> s(std::vector<double>{sum}), h(hyper), st(state);
  const DeviceArray<double> control(TANDEM_CUDA_CONTROL_COUNT);
  EXPECT_EQ(
      tandem_cuda_optimizer_control(s.get(), h.get(), st.get(), control.get(), st.get(), nullptr),
      0);
  return {control.Get(), st.Get()};
}

TEST(OptimizerControlTest, AppliesClipsAndCounts) {
  const Controlled c = Control(16 * 9.0, Hyper(), {4, 1, 4, 0});
  EXPECT_EQ(c.state, (std::vector<double>{5, 1, 4, 1}));
  EXPECT_EQ(c.control[TANDEM_CUDA_CONTROL_APPLY], 1);
  EXPECT_EQ(c.control[TANDEM_CUDA_CONTROL_GRAD_NORM], 3);
  EXPECT_EQ(c.control[TANDEM_CUDA_CONTROL_LOSS_SCALE], 4);
  EXPECT_EQ(c.control[TANDEM_CUDA_CONTROL_GRAD_SCALE], 2 / (3 + 1e-6) / 4);
  EXPECT_EQ(c.control[TANDEM_CUDA_CONTROL_LEARNING_RATE], 0.01);
  EXPECT_EQ(c.control[TANDEM_CUDA_CONTROL_BETA1], 0.9);
  EXPECT_EQ(c.control[TANDEM_CUDA_CONTROL_BETA2], 0.99);
  EXPECT_EQ(c.control[TANDEM_CUDA_CONTROL_EPSILON], 1e-8);
  EXPECT_EQ(c.control[TANDEM_CUDA_CONTROL_WEIGHT_DECAY], 0.1);
  EXPECT_EQ(c.control[TANDEM_CUDA_CONTROL_MOMENTUM], 0.8);
  EXPECT_NEAR(c.control[TANDEM_CUDA_CONTROL_BIAS1], 1 - std::pow(0.9, 5), 1e-15);
  EXPECT_NEAR(c.control[TANDEM_CUDA_CONTROL_BIAS2], 1 - std::pow(0.99, 5), 1e-15);
  std::vector<double> unclipped = Hyper();
  unclipped[TANDEM_CUDA_HYPER_MAX_GRAD_NORM] = 0;
  EXPECT_EQ(Control(144, unclipped, {4, 1, 4, 0}).control[TANDEM_CUDA_CONTROL_GRAD_SCALE], 0.25);
  // Below the limit nothing is clipped.
  EXPECT_EQ(Control(1, Hyper(), {4, 1, 4, 0}).control[TANDEM_CUDA_CONTROL_GRAD_SCALE], 0.25);
}

TEST(OptimizerControlTest, LossScaleGrowsBacksOffAndStaysNormal) {
  EXPECT_EQ(Control(1, Hyper(), {7, 0, 8, 2}).state, (std::vector<double>{8, 0, 16, 0}));
  for (double bad : {std::numeric_limits<double>::infinity(), std::nan("")}) {
    const Controlled c = Control(bad, Hyper(), {7, 2, 8, 2});
    EXPECT_EQ(c.state, (std::vector<double>{7, 3, 4, 0}));
    EXPECT_EQ(c.control[TANDEM_CUDA_CONTROL_APPLY], 0);
  }
  EXPECT_EQ(Control(1, Hyper(), {7, 0, 0x1.8p127, 2}).state[TANDEM_CUDA_STATE_LOSS_SCALE],
            double{std::numeric_limits<float>::max()});
  EXPECT_EQ(Control(std::nan(""), Hyper(), {7, 0, 0x1p-126, 2}).state[TANDEM_CUDA_STATE_LOSS_SCALE],
            0x1p-126);
}

std::vector<float> Floats(int64_t n, uint64_t seed) {
  const std::vector<double> x = Numbers(TANDEM_CUDA_F32, n, seed);
  return {x.begin(), x.end()};
}

struct Arrays {
  std::vector<float> p, g, m, v;
  std::vector<uint8_t> decay;
  explicit Arrays(int64_t n) : p(Floats(n, 1)), g(Floats(n, 2)), m(Floats(n, 3)), v(Floats(n, 4)) {
    for (float& x : v) x = std::fabs(x);
    for (int64_t i = 0; i < n; ++i) decay.push_back(i % 5 < 2 ? 1 : 0);
  }
};

// One step on the device, in place or not, from element `at` of each array on.
struct Stepped {
  std::vector<float> p, m, v;
  std::vector<uint16_t> copy;
};
template <typename Call>
Stepped Step(Call call, const Arrays& a, const std::vector<double>& control, bool in_place,
             int64_t at, int32_t copy_dtype, int32_t flag) {
  const auto n = static_cast<int64_t>(a.p.size());
  const DeviceArray<float> p(a.p), g(a.g), m(a.m), v(a.v), p_out(n), m_out(n), v_out(n);
  const DeviceArray<uint8_t> decay(a.decay);
  const DeviceArray<uint16_t> copy(n);
  const DeviceArray<double> c(control);
  const tandem_cuda_optimizer_step_params params = {
      .p = p.get() + at,
      .g = g.get() + at,
      .m = m.get() + at,
      .v = v.get() + at,
      .decay = decay.get() + at,
      .control = c.get(),
      .p_out = (in_place ? p : p_out).get() + at,
      .m_out = (in_place ? m : m_out).get() + at,
      .v_out = (in_place ? v : v_out).get() + at,
      .p_copy = copy_dtype == 0 ? nullptr : copy.get() + at,
      .n = n - at,
      .copy_dtype = copy_dtype,
      .flag = flag};
  EXPECT_EQ(call(&params, nullptr), 0);
  const auto tail = [at](const auto& array) {
    auto x = array.Get();
    x.erase(x.begin(), x.begin() + at);
    return x;
  };
  return {tail(in_place ? p : p_out), tail(in_place ? m : m_out), tail(in_place ? v : v_out),
          tail(copy)};
}

// As engine/backend/cpu/optimizer.cc gives its kernels the control vector.
cpu::AdamWParams AdamParams(const std::vector<double>& c, bool decoupled, bool decays) {
  const double lr = c[TANDEM_CUDA_CONTROL_LEARNING_RATE];
  const double root = std::sqrt(c[TANDEM_CUDA_CONTROL_BIAS2]);
  cpu::AdamWParams params;
  params.lr = lr * root / c[TANDEM_CUDA_CONTROL_BIAS1];
  params.beta1 = c[TANDEM_CUDA_CONTROL_BETA1];
  params.beta2 = c[TANDEM_CUDA_CONTROL_BETA2];
  params.eps = c[TANDEM_CUDA_CONTROL_EPSILON] * root;
  params.weight_decay = c[TANDEM_CUDA_CONTROL_WEIGHT_DECAY];
  if (decoupled) params.weight_decay *= lr / params.lr;
  if (!decays) params.weight_decay = 0;
  params.step = std::numeric_limits<int64_t>::max();
  params.grad_scale = static_cast<float>(c[TANDEM_CUDA_CONTROL_GRAD_SCALE]);
  params.adamw = decoupled;
  return params;
}

TEST(OptimizerStepTest, AdamHasTheCpusBits) {
  constexpr int64_t kCount = 5003;
  const std::vector<double> control = Control(20, Hyper(), {4, 0, 4, 0}).control;
  const Arrays a(kCount);
  for (bool decoupled : {false, true}) {
    Arrays expected = a;
    for (int64_t i = 0; i < kCount; ++i) {
      cpu::AdamWStep(AdamParams(control, decoupled, a.decay[i] != 0), &expected.p[i], &a.g[i],
                     &expected.m[i], &expected.v[i], 1);
    }
    for (bool in_place : {false, true}) {
      for (int64_t at : {0, 1}) {
        const int32_t copy_dtype = in_place ? TANDEM_CUDA_F16 : TANDEM_CUDA_BF16;
        const Stepped got =
            Step(tandem_cuda_adam_step, a, control, in_place, at, copy_dtype, decoupled ? 1 : 0);
        for (int64_t i = at; i < kCount; ++i) {
          ASSERT_EQ(got.p[i - at], expected.p[i]) << i;
          ASSERT_EQ(got.m[i - at], expected.m[i]) << i;
          ASSERT_EQ(got.v[i - at], expected.v[i]) << i;
          ASSERT_EQ(got.copy[i - at], in_place ? F16(expected.p[i]).bits : BF16(expected.p[i]).bits)
              << i;
        }
      }
    }
  }
}

TEST(OptimizerStepTest, SgdHasTheCpusBits) {
  constexpr int64_t kCount = 1027;
  std::vector<double> control = Control(20, Hyper(), {4, 0, 4, 0}).control;
  const Arrays a(kCount);
  for (double momentum : {0.0, 0.8}) {
    control[TANDEM_CUDA_CONTROL_MOMENTUM] = momentum;
    for (int32_t nesterov : {0, 1}) {
      Arrays expected = a;
      for (int64_t i = 0; i < kCount; ++i) {
        cpu::SgdParams params;
        params.lr = control[TANDEM_CUDA_CONTROL_LEARNING_RATE];
        params.momentum = momentum;
        params.weight_decay = a.decay[i] != 0 ? control[TANDEM_CUDA_CONTROL_WEIGHT_DECAY] : 0;
        params.nesterov = nesterov != 0;
        params.first_step = false;
        params.grad_scale = static_cast<float>(control[TANDEM_CUDA_CONTROL_GRAD_SCALE]);
        cpu::SgdStep(params, &expected.p[i], &a.g[i], &expected.m[i], 1);
      }
      for (bool in_place : {false, true}) {
        const Stepped got = Step(tandem_cuda_sgd_step, a, control, in_place, 0, 0, nesterov);
        EXPECT_EQ(got.p, expected.p);
        EXPECT_EQ(got.m, expected.m);
      }
    }
  }
}

TEST(OptimizerStepTest, ASkippedStepLeavesEverything) {
  const std::vector<double> control = Control(std::nan(""), Hyper(), {4, 0, 4, 0}).control;
  Arrays a(1003);
  a.g.assign(1003, std::nanf(""));
  for (bool in_place : {false, true}) {
    for (int64_t at : {0, 1}) {
      const Stepped adam =
          Step(tandem_cuda_adam_step, a, control, in_place, at, TANDEM_CUDA_BF16, 1);
      const Stepped sgd = Step(tandem_cuda_sgd_step, a, control, in_place, at, 0, 1);
      for (int64_t i = at; i < 1003; ++i) {
        ASSERT_EQ(adam.p[i - at], a.p[i]);
        ASSERT_EQ(adam.m[i - at], a.m[i]);
        ASSERT_EQ(adam.v[i - at], a.v[i]);
        ASSERT_EQ(adam.copy[i - at], BF16(a.p[i]).bits);
        ASSERT_EQ(sgd.p[i - at], a.p[i]);
        ASSERT_EQ(sgd.m[i - at], a.m[i]);
      }
    }
  }
}

}  // namespace
}  // namespace tandem::cuda::testing

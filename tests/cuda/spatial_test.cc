// Convolution, pooling and resampling through the C interface, against double references.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "engine/base/dtype.h"
#include "tests/cuda/device_array.h"

namespace tandem::cuda::testing {
namespace {

using Values = std::vector<double>;

// Values of a storage type, rounded to it, as doubles; and back from the device.
template <typename T>
struct Storage {
  static constexpr auto kDType = static_cast<int32_t>(TypeOf<T>());
  static constexpr double kTolerance = std::is_same_v<T, float> ? 2e-6
                                       : std::is_same_v<T, F16> ? 6e-4
                                                                : 5e-3;
  static T From(double v) { return T(static_cast<float>(v)); }
  static double To(T v) { return static_cast<float>(v); }
};

template <typename T>
std::vector<T> Round(Values* values) {
  std::vector<T> rounded;
  for (double& v : *values) {
    rounded.push_back(Storage<T>::From(v));
    v = Storage<T>::To(rounded.back());
  }
  return rounded;
}

Values Uniform(int64_t n, int seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> uniform(-1, 1);
  Values values(n);
  for (double& v : values) v = uniform(random);
  return values;
}

template <typename T>
void ExpectNear(const std::vector<T>& got, const Values& expected, double scale = 1) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    const double limit = Storage<T>::kTolerance * scale * std::max(1.0, std::abs(expected[i]));
    ASSERT_NEAR(Storage<T>::To(got[i]), expected[i], limit) << i;
  }
}

template <typename T>
std::vector<T> Part(const std::vector<T>& v, int64_t begin, int64_t size) {
  return std::vector<T>(v.begin() + begin, v.begin() + begin + size);
}

struct Axis {
  int64_t in, kernel = 1, stride = 1, begin = 0, end = 0, dilation = 1;
  bool ceil = false;
  int64_t out() const {
    const int64_t room = in + begin + end - (kernel - 1) * dilation - 1;
    return (room + (ceil ? stride - 1 : 0)) / stride + 1;
  }
};

tandem_cuda_window_params Window(const Axis& h, const Axis& w) {
  return {.in_h = h.in,
          .in_w = w.in,
          .out_h = h.out(),
          .out_w = w.out(),
          .kernel_h = h.kernel,
          .kernel_w = w.kernel,
          .stride_h = h.stride,
          .stride_w = w.stride,
          .dilation_h = h.dilation,
          .dilation_w = w.dilation,
          .pad_top = h.begin,
          .pad_left = w.begin,
          .pad_bottom = h.end,
          .pad_right = w.end};
}

// visit(output, input, tap) for every tap on the input, within a plane.
template <typename Visit>
void ForEachTap(const Axis& h, const Axis& w, Visit visit) {
  for (int64_t o = 0; o < h.out() * w.out(); ++o) {
    for (int64_t k = 0; k < h.kernel * w.kernel; ++k) {
      const int64_t y = o / w.out() * h.stride - h.begin + k / w.kernel * h.dilation;
      const int64_t x = o % w.out() * w.stride - w.begin + k % w.kernel * w.dilation;
      if (y >= 0 && y < h.in && x >= 0 && x < w.in) visit(o, y * w.in + x, k);
    }
  }
}

struct ConvCase {
  int64_t batch, groups, in_channels, out_channels;
  Axis h, w;
};

// Wide and narrow groups, ragged tiles, every attribute.
std::vector<ConvCase> ConvCases() {
  return {{2, 1, 3, 8, {9, 3, 2, 1, 1}, {11, 3, 1, 1, 0}},
          {1, 1, 17, 70, {5, 3, 1, 1, 1}, {7, 3, 1, 1, 1}},
          {3, 2, 8, 20, {6, 2, 1, 0, 1, 2}, {8, 3, 3, 2, 1}},
          {2, 5, 5, 10, {7, 3, 2, 1, 1}, {5, 5, 1, 2, 2}},
          {4, 1, 9, 9, {1}, {40, 4, 2, 3, 2, 3}},
          {1, 1, 1, 1, {1}, {1}},
          {40, 1, 16, 16, {8, 3, 1, 1, 1}, {8, 1}}};
}

template <typename T>
void TestConv(const ConvCase& c) {
  const int64_t in = c.h.in * c.w.in, out = c.h.out() * c.w.out(), taps = c.h.kernel * c.w.kernel;
  const int64_t per_in = c.in_channels / c.groups, per_out = c.out_channels / c.groups;
  Values x = Uniform(c.batch * c.in_channels * in, 1);
  Values weight = Uniform(c.out_channels * per_in * taps, 2), bias = Uniform(c.out_channels, 3);
  Values dy = Uniform(c.batch * c.out_channels * out, 4);
  const auto rx = Round<T>(&x), rw = Round<T>(&weight), rb = Round<T>(&bias), rdy = Round<T>(&dy);
  Values y(dy.size()), dx(x.size()), dw(weight.size());
  for (int64_t n = 0; n < c.batch; ++n) {
    for (int64_t o = 0; o < c.out_channels; ++o) {
      const int64_t y0 = (n * c.out_channels + o) * out;
      for (int64_t i = 0; i < out; ++i) y[y0 + i] += bias[o];
      for (int64_t i = 0; i < per_in; ++i) {
        const int64_t x0 = (n * c.in_channels + o / per_out * per_in + i) * in;
        const int64_t w0 = (o * per_in + i) * taps;
        ForEachTap(c.h, c.w, [&](int64_t to, int64_t from, int64_t k) {
          y[y0 + to] += x[x0 + from] * weight[w0 + k];
          dx[x0 + from] += dy[y0 + to] * weight[w0 + k];
          dw[w0 + k] += dy[y0 + to] * x[x0 + from];
        });
      }
    }
  }
  tandem_cuda_conv_params p{.window = Window(c.h, c.w),
                            .batch = c.batch,
                            .groups = c.groups,
                            .in_channels = c.in_channels,
                            .out_channels = c.out_channels,
                            .dtype = Storage<T>::kDType};
  const DeviceArray<T> dev_x(rx), dev_w(rw), dev_b(rb), dev_dy(rdy);
  const DeviceArray<T> dev_y(y.size()), dev_dx(x.size()), dev_dw(weight.size());
  ASSERT_EQ(tandem_cuda_conv(dev_y.get(), dev_x.get(), dev_w.get(), dev_b.get(), &p, nullptr), 0);
  const auto got_y = dev_y.Get();
  ExpectNear(got_y, y, 4);
  ASSERT_EQ(tandem_cuda_conv_input_grad(dev_dx.get(), dev_dy.get(), dev_w.get(), &p, nullptr), 0);
  const auto got_dx = dev_dx.Get();
  ExpectNear(got_dx, dx, 4);
  const DeviceArray<char> scratch(tandem_cuda_conv_weight_grad_scratch_bytes(&p));
  for (int repeat = 0; repeat < 2; ++repeat) {
    ASSERT_EQ(tandem_cuda_conv_weight_grad(dev_dw.get(), dev_dy.get(), dev_x.get(), &p,
                                           scratch.get(), nullptr),
              0);
    ExpectNear(dev_dw.Get(), dw, 4 * std::sqrt(static_cast<double>(c.batch * out)));
  }
  // The last image alone, without a bias: the same bits.
  p.batch = 1;
  const int64_t x_image = c.in_channels * in, y_image = c.out_channels * out;
  const int64_t x_at = (c.batch - 1) * x_image, y_at = (c.batch - 1) * y_image;
  const DeviceArray<T> one_dx(x_image), one_y(y_image), zero(std::vector<T>(c.out_channels, T{}));
  ASSERT_EQ(
      tandem_cuda_conv_input_grad(one_dx.get(), dev_dy.get() + y_at, dev_w.get(), &p, nullptr), 0);
  const auto one = one_dx.Get();
  EXPECT_EQ(std::memcmp(one.data(), got_dx.data() + x_at, one.size() * sizeof(T)), 0);
  ASSERT_EQ(
      tandem_cuda_conv(one_y.get(), dev_x.get() + x_at, dev_w.get(), dev_b.get(), &p, nullptr), 0);
  const auto one_image = one_y.Get();
  EXPECT_EQ(std::memcmp(one_image.data(), got_y.data() + y_at, one_image.size() * sizeof(T)), 0);
  ASSERT_EQ(tandem_cuda_conv(one_y.get(), dev_x.get() + x_at, dev_w.get(), nullptr, &p, nullptr),
            0);
  const auto plain = one_y.Get();
  ASSERT_EQ(tandem_cuda_conv(one_y.get(), dev_x.get() + x_at, dev_w.get(), zero.get(), &p, nullptr),
            0);
  const auto biased = one_y.Get();
  for (size_t i = 0; i < plain.size(); ++i) {
    EXPECT_EQ(Storage<T>::To(plain[i]), Storage<T>::To(biased[i]));
  }
}

TEST(SpatialTest, Conv) {
  for (const ConvCase& c : ConvCases()) TestConv<float>(c);
  TestConv<BF16>(ConvCases()[1]);
  TestConv<F16>(ConvCases()[3]);
}

TEST(SpatialTest, ConvOfAnEmptyBatch) {
  const tandem_cuda_conv_params p{.window = Window({4, 3}, {4, 3}),
                                  .batch = 0,
                                  .groups = 1,
                                  .in_channels = 2,
                                  .out_channels = 3,
                                  .dtype = TANDEM_CUDA_F32};
  const DeviceArray<float> weight(54), dw(54);
  ASSERT_EQ(tandem_cuda_conv(nullptr, nullptr, weight.get(), nullptr, &p, nullptr), 0);
  ASSERT_EQ(tandem_cuda_conv_weight_grad(dw.get(), nullptr, nullptr, &p, nullptr, nullptr), 0);
  EXPECT_EQ(dw.Get(), std::vector<float>(54, 0.0f));
}

struct PoolCase {
  int64_t planes;
  Axis h, w;
};
std::vector<PoolCase> PoolCases() {
  return {{6, {8, 2, 2}, {10, 2, 2}},
          {3, {7, 3, 2, 1, 1}, {9, 3, 2, 1, 0}},
          {2, {9, 3, 1, 2, 2, 2}, {11, 4, 3, 1, 2, 3}},
          {5, {12, 12, 1}, {13, 13, 1}},
          {2, {7, 3, 3, 0, 0, 1, true}, {8, 5, 2, 2, 0, 1, true}},
          {2, {1}, {300, 100, 1, 40, 3}},
          {1, {40, 9, 2, 4, 4}, {50, 11, 3, 3, 2, 2}}};
}

template <typename T>
void TestMaxPool(const PoolCase& c, bool with_nan) {
  const int64_t in = c.h.in * c.w.in, out = c.h.out() * c.w.out();
  Values x = Uniform(c.planes * in, 5);
  for (double& v : x) v = std::round(v * 20) / 4;  // ties
  if (with_nan) {
    for (size_t i = 3; i < x.size(); i += 17) x[i] = std::nan("");
    for (size_t i = 5; i < x.size(); i += 2) x[i] = -std::numeric_limits<double>::infinity();
  }
  const auto rx = Round<T>(&x);
  std::vector<int64_t> expected(c.planes * out, -1);
  for (int64_t p = 0; p < c.planes; ++p) {
    ForEachTap(c.h, c.w, [&](int64_t to, int64_t from, int64_t) {
      int64_t& best = expected[p * out + to];
      const double v = x[p * in + from], b = best < 0 ? 0 : x[p * in + best];
      if (best < 0 || v > b || (std::isnan(v) && !std::isnan(b))) best = from;
    });
  }
  const tandem_cuda_window_params w = Window(c.h, c.w);
  const DeviceArray<T> dev_x(rx), y(c.planes * out), other_y(c.planes * out);
  const DeviceArray<int64_t> index(c.planes * out), other(c.planes * out);
  ASSERT_EQ(tandem_cuda_max_pool(y.get(), index.get(), dev_x.get(), c.planes, &w,
                                 Storage<T>::kDType, nullptr),
            0);
  EXPECT_EQ(index.Get(), expected);
  const DeviceArray<char> scratch(tandem_cuda_sliding_maximum_scratch_bytes(c.planes, &w));
  ASSERT_EQ(tandem_cuda_sliding_maximum(other_y.get(), other.get(), dev_x.get(), c.planes, &w,
                                        Storage<T>::kDType, scratch.get(), nullptr),
            0);
  EXPECT_EQ(other.Get(), expected);
  const auto got = y.Get(), got_other = other_y.Get();
  for (int64_t i = 0; i < c.planes * out; ++i) {
    const T want = rx[i / out * in + expected[i]];
    ASSERT_EQ(std::memcmp(&got[i], &want, sizeof(T)), 0);
    ASSERT_EQ(std::memcmp(&got_other[i], &want, sizeof(T)), 0);
  }
  // Without indices.
  ASSERT_EQ(tandem_cuda_max_pool(other_y.get(), nullptr, dev_x.get(), c.planes, &w,
                                 Storage<T>::kDType, nullptr),
            0);
  const auto plain = other_y.Get();
  EXPECT_EQ(std::memcmp(plain.data(), got.data(), got.size() * sizeof(T)), 0);
}

TEST(SpatialTest, MaxPool) {
  for (const PoolCase& c : PoolCases()) TestMaxPool<float>(c, false);
  for (const PoolCase& c : PoolCases()) TestMaxPool<float>(c, true);
  TestMaxPool<BF16>(PoolCases()[2], true);
  TestMaxPool<F16>(PoolCases()[3], false);
}

TEST(SpatialTest, MaxPoolOfIntegers) {
  const tandem_cuda_window_params w = Window({1}, {5, 2});
  const DeviceArray<int8_t> x(std::vector<int8_t>{-128, -128, 3, 127, -1}), y(4);
  const DeviceArray<int64_t> index(4);
  ASSERT_EQ(tandem_cuda_max_pool(y.get(), index.get(), x.get(), 1, &w, TANDEM_CUDA_I8, nullptr), 0);
  EXPECT_EQ(y.Get(), (std::vector<int8_t>{-128, 3, 127, 127}));
  EXPECT_EQ(index.Get(), (std::vector<int64_t>{0, 2, 3, 3}));
  EXPECT_EQ(tandem_cuda_max_pool(y.get(), nullptr, x.get(), 1, &w, TANDEM_CUDA_BOOL, nullptr),
            TANDEM_CUDA_UNSUPPORTED);
}

// The order of the additions is part of the contract: equal bits.
void TestMaxPoolGrad(int64_t planes, int64_t in, int64_t out, int64_t spread) {
  std::mt19937 random(6);
  std::vector<int64_t> index(planes * out);
  for (int64_t i = 0; i < planes * out; ++i) {
    index[i] = static_cast<int64_t>(random() % spread) - spread / 4;  // some outside
  }
  Values dy = Uniform(planes * out, 7);
  const auto rdy = Round<float>(&dy);
  std::vector<float> expected(planes * in, 0.0f);
  for (int64_t i = 0; i < planes * out; ++i) {
    expected[i / out * in + std::clamp<int64_t>(index[i], 0, in - 1)] += rdy[i];
  }
  const DeviceArray<float> dev_dy(rdy), dx(planes * in);
  const DeviceArray<int64_t> dev_index(index);
  const DeviceArray<char> scratch(tandem_cuda_max_pool_grad_scratch_bytes(planes, out));
  ASSERT_EQ(tandem_cuda_max_pool_grad(dx.get(), dev_dy.get(), dev_index.get(), planes, in, out,
                                      TANDEM_CUDA_F32, scratch.get(), nullptr),
            0);
  EXPECT_EQ(dx.Get(), expected);
}

TEST(SpatialTest, MaxPoolGrad) {
  TestMaxPoolGrad(3, 10, 1, 10);
  TestMaxPoolGrad(5, 60, 37, 80);
  TestMaxPoolGrad(2, 3, 2048, 6);
  TestMaxPoolGrad(3, 5000, 2049, 5000);
  TestMaxPoolGrad(2, 20, 9000, 100);
  TestMaxPoolGrad(2, 4, 0, 4);
}

template <typename T>
void TestAveragePool(const PoolCase& c, bool include) {
  const int64_t in = c.h.in * c.w.in, out = c.h.out() * c.w.out();
  Values x = Uniform(c.planes * in, 8), dy = Uniform(c.planes * out, 9);
  const auto rx = Round<T>(&x), rdy = Round<T>(&dy);
  const auto count = [&](const Axis& a, int64_t o) {
    int64_t taps = 0;
    for (int64_t k = 0; k < a.kernel; ++k) {
      const int64_t at = o * a.stride - a.begin + k * a.dilation;
      if (include ? at < a.in + a.end : at >= 0 && at < a.in) ++taps;
    }
    return static_cast<double>(taps);
  };
  Values y(c.planes * out), dx(c.planes * in);
  for (int64_t p = 0; p < c.planes; ++p) {
    ForEachTap(c.h, c.w, [&](int64_t to, int64_t from, int64_t) {
      const double n = count(c.h, to / c.w.out()) * count(c.w, to % c.w.out());
      y[p * out + to] += x[p * in + from] / n;
      dx[p * in + from] += dy[p * out + to] / n;
    });
  }
  const tandem_cuda_window_params w = Window(c.h, c.w);
  const DeviceArray<T> dev_x(rx), dev_dy(rdy), dev_y(y.size()), dev_dx(x.size());
  ASSERT_EQ(tandem_cuda_average_pool(dev_y.get(), dev_x.get(), c.planes, &w, include ? 1 : 0,
                                     Storage<T>::kDType, nullptr),
            0);
  ExpectNear(dev_y.Get(), y);
  ASSERT_EQ(tandem_cuda_average_pool_grad(dev_dx.get(), dev_dy.get(), c.planes, &w, include ? 1 : 0,
                                          Storage<T>::kDType, nullptr),
            0);
  ExpectNear(dev_dx.Get(), dx);
}

TEST(SpatialTest, AveragePool) {
  for (const PoolCase& c : PoolCases()) {
    TestAveragePool<float>(c, false);
    TestAveragePool<float>(c, true);
  }
  TestAveragePool<BF16>(PoolCases()[1], true);
  TestAveragePool<F16>(PoolCases()[3], false);
}

// A random banded matrix, with an empty row.
struct Band {
  int64_t inputs = 0;
  std::vector<int32_t> first;
  std::vector<int64_t> begin = {0};
  Values weights;
};
Band MakeBand(int64_t inputs, int64_t outputs) {
  std::mt19937 random(10);
  Band band;
  band.inputs = inputs;
  for (int64_t o = 0; o < outputs; ++o) {
    const auto first = static_cast<int64_t>(random() % inputs);
    const int64_t count = o == 1 ? 0 : 1 + static_cast<int64_t>(random() % (inputs - first));
    band.first.push_back(static_cast<int32_t>(first));
    band.begin.push_back(band.begin.back() + count);
  }
  band.weights = Uniform(band.begin.back(), 11);
  return band;
}

template <typename To, typename From>
void TestResample(int64_t outer, int64_t inner) {
  Band band = MakeBand(7, 11);
  const auto outputs = static_cast<int64_t>(band.first.size());
  Values x = Uniform(outer * band.inputs * inner, 12), y(outer * outputs * inner);
  const auto rx = Round<From>(&x);
  const auto weights = Round<float>(&band.weights);
  for (int64_t i = 0; i < outer * outputs * inner; ++i) {
    const int64_t o = i / inner % outputs, a = i / inner / outputs;
    for (int64_t k = 0; k < band.begin[o + 1] - band.begin[o]; ++k) {
      y[i] += band.weights[band.begin[o] + k] *
              x[(a * band.inputs + band.first[o] + k) * inner + i % inner];
    }
  }
  const DeviceArray<From> dev_x(rx);
  const DeviceArray<To> dev_y(y.size());
  const DeviceArray<int32_t> first(band.first);
  const DeviceArray<int64_t> begin(band.begin);
  const DeviceArray<float> dev_weights(weights);
  const tandem_cuda_resample_params p{.outer = outer,
                                      .inputs = band.inputs,
                                      .outputs = outputs,
                                      .inner = inner,
                                      .first = first.get(),
                                      .begin = begin.get(),
                                      .weights = dev_weights.get(),
                                      .x_dtype = Storage<From>::kDType,
                                      .y_dtype = Storage<To>::kDType};
  ASSERT_EQ(tandem_cuda_resample(dev_y.get(), dev_x.get(), &p, nullptr), 0);
  ExpectNear(dev_y.Get(), y);
  const DeviceArray<From> nearest(y.size());
  ASSERT_EQ(tandem_cuda_resample_nearest(nearest.get(), dev_x.get(), first.get(), outer,
                                         band.inputs, outputs, inner, sizeof(From), nullptr),
            0);
  const auto got = nearest.Get();
  for (int64_t i = 0; i < outer * outputs * inner; ++i) {
    const int64_t row = i / inner / outputs * band.inputs + band.first[i / inner % outputs];
    ASSERT_EQ(std::memcmp(&got[i], &rx[row * inner + i % inner], sizeof(From)), 0) << i;
  }
}

TEST(SpatialTest, Resample) {
  TestResample<float, float>(3, 5);
  TestResample<float, float>(31, 1);
  TestResample<float, float>(1, 1000);
  TestResample<float, BF16>(3, 5);
  TestResample<BF16, float>(3, 5);
  TestResample<BF16, BF16>(3, 5);
  TestResample<float, F16>(3, 5);
  TestResample<F16, float>(3, 5);
  TestResample<F16, F16>(3, 5);
}

TEST(SpatialTest, ResampleDoubles) {
  const DeviceArray<double> x(std::vector<double>{1, 2, 4}), y(2);
  const DeviceArray<int32_t> first(std::vector<int32_t>{0, 1});
  const DeviceArray<int64_t> begin(std::vector<int64_t>{0, 2, 4});
  const DeviceArray<double> weights(std::vector<double>{0.1, 0.9, 0.3, 0.7});
  const tandem_cuda_resample_params p{.outer = 1,
                                      .inputs = 3,
                                      .outputs = 2,
                                      .inner = 1,
                                      .first = first.get(),
                                      .begin = begin.get(),
                                      .weights = weights.get(),
                                      .x_dtype = TANDEM_CUDA_F64,
                                      .y_dtype = TANDEM_CUDA_F64};
  ASSERT_EQ(tandem_cuda_resample(y.get(), x.get(), &p, nullptr), 0);
  EXPECT_NEAR(y.Get()[0], 1.9, 1e-15);
  EXPECT_NEAR(y.Get()[1], 3.4, 1e-15);
}

}  // namespace
}  // namespace tandem::cuda::testing

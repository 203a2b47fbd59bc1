// Pooling and its gradients against window-by-window loops in double, over a sweep of windows; what
// happens at ties, NaN, other types; and the errors of hostile attributes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "engine/base/threads.h"
#include "engine/exec/plan.h"
#include "engine/graph/builder.h"
#include "engine/graph/gradient.h"
#include "engine/ops/ops.h"
#include "tests/engine/compute.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct PoolCase {
  std::string name;
  Shape x;
  ops::PoolOptions options;
};

ops::PoolOptions Options(std::vector<int64_t> kernel, std::vector<int64_t> strides,
                         std::vector<int64_t> begin, std::vector<int64_t> end,
                         bool ceil_mode = false, bool count_include_pad = false,
                         std::vector<int64_t> dilations = {}) {
  if (dilations.empty()) dilations.assign(kernel.size(), 1);
  return {kernel, strides, begin, end, dilations, ceil_mode, count_include_pad};
}

// ONNX's output size; with ceil_mode a last window that would start beyond the input is dropped.
int64_t Extent(const PoolCase& c, int i) {
  const ops::PoolOptions& o = c.options;
  const double room = static_cast<double>(c.x[i + 2] + o.pads_begin[i] + o.pads_end[i] -
                                          ((o.kernel[i] - 1) * o.dilations[i] + 1));
  const double steps = room / static_cast<double>(o.strides[i]);
  auto extent = static_cast<int64_t>(o.ceil_mode ? std::ceil(steps) : std::floor(steps)) + 1;
  if (o.ceil_mode && (extent - 1) * o.strides[i] >= c.x[i + 2] + o.pads_begin[i]) --extent;
  return extent;
}

struct Reference {
  Shape shape;
  std::vector<double> maximum, mean, max_dx, mean_dx;
  std::vector<int64_t> index;
};

// One spatial dimension is two with a first one of size 1.
Reference Pool(PoolCase c, const Tensor& x, const Tensor& dy) {
  Reference r{.shape = {c.x[0], c.x[1]},
              .maximum = {},
              .mean = {},
              .max_dx = {},
              .mean_dx = {},
              .index = {}};
  for (int i = 0; i < c.x.rank() - 2; ++i) r.shape.push_back(Extent(c, i));
  Shape out = r.shape;
  ops::PoolOptions& o = c.options;
  if (c.x.rank() == 3) {
    c.x = {c.x[0], c.x[1], 1, c.x[2]};
    out = {out[0], out[1], 1, out[2]};
    for (auto* one : {&o.kernel, &o.strides, &o.dilations}) one->insert(one->begin(), 1);
    for (auto* none : {&o.pads_begin, &o.pads_end}) none->insert(none->begin(), 0);
  }
  const int64_t h = c.x[2], w = c.x[3];
  r.max_dx.assign(c.x.num_elements(), 0.0);
  r.mean_dx.assign(c.x.num_elements(), 0.0);
  for (int64_t plane = 0, k = 0; plane < c.x[0] * c.x[1]; ++plane) {
    const float* in = x.data<float>().data() + plane * h * w;
    for (int64_t p = 0; p < out[2]; ++p) {
      for (int64_t q = 0; q < out[3]; ++q, ++k) {
        std::vector<int64_t> taps;
        int64_t counted = 0;
        for (int64_t i = 0; i < o.kernel[0]; ++i) {
          for (int64_t j = 0; j < o.kernel[1]; ++j) {
            const int64_t at_h = p * o.strides[0] - o.pads_begin[0] + i * o.dilations[0];
            const int64_t at_w = q * o.strides[1] - o.pads_begin[1] + j * o.dilations[1];
            const bool inside = at_h >= 0 && at_h < h && at_w >= 0 && at_w < w;
            if (inside) taps.push_back(at_h * w + at_w);
            // The padding may count, what a last window has beyond it never does.
            const bool padded = at_h < h + o.pads_end[0] && at_w < w + o.pads_end[1];
            counted += o.count_include_pad ? padded : inside;
          }
        }
        const int64_t best = *std::max_element(taps.begin(), taps.end(),
                                               [&](int64_t a, int64_t b) { return in[a] < in[b]; });
        double sum = 0;
        for (int64_t tap : taps) {
          sum += in[tap];
          r.mean_dx[plane * h * w + tap] += dy.data<float>()[k] / static_cast<double>(counted);
        }
        r.max_dx[plane * h * w + best] += dy.data<float>()[k];
        r.maximum.push_back(in[best]);
        r.index.push_back(best);
        r.mean.push_back(sum / static_cast<double>(counted));
      }
    }
  }
  return r;
}

// Distinct values, so that differences are exact and no maximum is tied.
Tensor Shuffled(const Shape& shape, uint32_t seed) {
  Tensor tensor(DType::kF32, shape);
  std::span<float> values = tensor.data<float>();
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = (static_cast<float>(i) - static_cast<float>(values.size()) / 2) / 64;
  }
  std::shuffle(values.begin(), values.end(), std::mt19937(seed));
  return tensor;
}

absl::Status AddGradient(Builder& b, Value y, Value x, Value cotangent) {
  TANDEM_ASSIGN_OR_RETURN(const std::vector<Value> dx,
                          Gradient(b, y, std::vector<Value>{x}, cotangent));
  b.Output(dx[0]);
  return absl::OkStatus();
}

// {maximum, indices, its dx, mean, its dx}
absl::StatusOr<std::vector<Tensor>> RunPool(const PoolCase& c, const Tensor& x, const Tensor& dy) {
  return Compute({&x, &dy}, [&](Builder& b, const std::vector<Value>& in) {
    const std::vector<Value> max = ops::MaxPool(b, in[0], c.options);
    b.Output(max[0]);
    b.Output(max[1]);
    TANDEM_RETURN_IF_ERROR(AddGradient(b, max[0], in[0], in[1]));
    const Value mean = ops::AveragePool(b, in[0], c.options);
    b.Output(mean);
    return AddGradient(b, mean, in[0], in[1]);
  });
}

void ExpectNear(const Tensor& actual, const std::vector<double>& expected, double tolerance,
                const std::string& what) {
  ASSERT_EQ(actual.num_elements(), static_cast<int64_t>(expected.size())) << what;
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_NEAR(actual.data<float>()[i], expected[i],
                tolerance * std::max(1.0, std::abs(expected[i])))
        << what << " at " << i;
  }
}

void CheckPool(const PoolCase& c) {
  SCOPED_TRACE(StrCat(c.name, " x ", c.x.ToString()));
  Shape out = {c.x[0], c.x[1]};
  for (int i = 0; i < c.x.rank() - 2; ++i) out.push_back(Extent(c, i));
  const Tensor x = Shuffled(c.x, 1), dy = Shuffled(out, 2);
  const auto result = RunPool(c, x, dy);
  ASSERT_TRUE(result.ok()) << result.status();
  const Reference r = Pool(c, x, dy);
  EXPECT_EQ((*result)[0].shape(), r.shape);
  ExpectNear((*result)[0], r.maximum, 0, "maximum");
  const auto index = (*result)[1].data<int64_t>();
  EXPECT_EQ(std::vector<int64_t>(index.begin(), index.end()), r.index);
  ExpectNear((*result)[2], r.max_dx, 1e-5, "maximum's dx");
  ExpectNear((*result)[3], r.mean, 1e-5, "mean");
  ExpectNear((*result)[4], r.mean_dx, 1e-5, "mean's dx");
}

std::vector<PoolCase> Cases() {
  return {
      {"two_by_two", {2, 3, 8, 10}, Options({2, 2}, {2, 2}, {0, 0}, {0, 0})},
      {"odd", {2, 3, 9, 7}, Options({2, 2}, {2, 2}, {0, 0}, {0, 0})},
      {"overlapping", {1, 2, 12, 11}, Options({3, 3}, {2, 2}, {1, 1}, {1, 1})},
      {"include_pad", {1, 2, 12, 11}, Options({3, 3}, {2, 2}, {1, 1}, {1, 1}, false, true)},
      {"stride_one", {1, 2, 12, 33}, Options({3, 5}, {1, 1}, {1, 2}, {1, 2})},
      {"asymmetric", {1, 2, 9, 9}, Options({3, 4}, {2, 1}, {0, 3}, {2, 1})},
      {"ceil", {1, 2, 8, 8}, Options({3, 3}, {2, 2}, {0, 0}, {0, 0}, true)},
      {"ceil_include_pad", {1, 2, 8, 8}, Options({3, 3}, {2, 2}, {1, 1}, {1, 1}, true, true)},
      // The last window would start in the padding after the input: dropped.
      {"ceil_starts_on_pad", {1, 3, 2, 2}, Options({3, 3}, {3, 3}, {1, 1}, {1, 1}, true, true)},
      {"ceil_wide_stride", {1, 1, 7, 5}, Options({1, 2}, {3, 4}, {0, 0}, {0, 1}, true)},
      {"dilated", {1, 2, 12, 13}, Options({3, 2}, {1, 2}, {1, 1}, {1, 1}, false, false, {2, 3})},
      {"dilated_ceil", {1, 2, 12, 13}, Options({3, 2}, {2, 2}, {1, 1}, {1, 1}, true, true, {2, 3})},
      {"global", {3, 5, 7, 7}, Options({7, 7}, {1, 1}, {0, 0}, {0, 0})},
      {"line", {2, 4, 33}, Options({4}, {3}, {1}, {2})},
      {"line_ceil", {2, 4, 32}, Options({3}, {2}, {0}, {0}, true)},
      {"batch_0", {0, 4, 8, 8}, Options({2, 2}, {2, 2}, {0, 0}, {0, 0})},
      {"single", {1, 1, 1, 1}, Options({1, 1}, {1, 1}, {0, 0}, {0, 0})},
      {"many_planes", {64, 17, 6, 6}, Options({2, 2}, {2, 2}, {0, 0}, {0, 0})},
      {"huge_stride", {1, 2, 6, 6}, Options({2, 2}, {1 << 24, 1 << 24}, {0, 0}, {0, 0})},
  };
}

TEST(Pool, MatchesTheLoopsInDouble) {
  for (const PoolCase& c : Cases()) CheckPool(c);
}

TEST(Pool, RandomWindowsMatchTheLoopsInDouble) {
  std::mt19937 random(5);
  const auto pick = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  for (int i = 0; i < 300; ++i) {
    PoolCase c{.name = StrCat("random ", i), .x = {pick(1, 3), pick(1, 4)}, .options = {}};
    c.options.ceil_mode = pick(0, 1) == 1;
    c.options.count_include_pad = pick(0, 1) == 1;
    for (int64_t k = pick(1, 2); k > 0; --k) {
      // Padding below half a kernel, so that every window sees the input.
      const int64_t kernel = pick(1, 5), dilation = pick(1, 2);
      c.x.push_back(pick((kernel - 1) * dilation + 1, 20));
      c.options.kernel.push_back(kernel);
      c.options.strides.push_back(pick(1, 4));
      c.options.dilations.push_back(dilation);
      c.options.pads_begin.push_back(pick(0, (kernel - 1) / 2));
      c.options.pads_end.push_back(pick(0, (kernel - 1) / 2));
    }
    CheckPool(c);
    if (HasFailure()) return;
  }
}

TEST(Pool, BitsDoNotDependOnTheThreadCount) {
  const int threads = ThreadCount();
  for (const PoolCase& c : Cases()) {
    Shape out = {c.x[0], c.x[1]};
    for (int i = 0; i < c.x.rank() - 2; ++i) out.push_back(Extent(c, i));
    const Tensor x = Shuffled(c.x, 1), dy = Shuffled(out, 2);
    SetThreadCount(1);
    const auto one = RunPool(c, x, dy);
    SetThreadCount(3);
    const auto many = RunPool(c, x, dy);
    ASSERT_TRUE(one.ok() && many.ok());
    for (size_t i = 0; i < one->size(); ++i) {
      EXPECT_EQ(std::memcmp((*one)[i].raw(), (*many)[i].raw(), (*one)[i].bytes()), 0) << c.name;
    }
  }
  SetThreadCount(threads);
}

// Both adjoints are linear: the gradient of <c, P'(dy)> with respect to dy is P(c).
TEST(Pool, AdjointsDifferentiate) {
  const PoolCase c{"", {2, 3, 9, 8}, Options({3, 2}, {2, 2}, {1, 0}, {1, 1}, false, true)};
  const Tensor x = Shuffled(c.x, 1), dy = Shuffled({2, 3, 5, 4}, 2), cx = Shuffled(c.x, 3);
  const auto result = Compute({&x, &dy, &cx}, [&](Builder& b, const std::vector<Value>& in) {
    const std::vector<Value> max = ops::MaxPool(b, in[0], c.options);
    b.Output(max[1]);
    TANDEM_RETURN_IF_ERROR(AddGradient(b, ops::MaxPoolGrad(b, in[1], max[1], c.x), in[1], in[2]));
    b.Output(ops::AveragePool(b, in[2], c.options));
    return AddGradient(b, ops::AveragePoolGrad(b, in[1], c.x, c.options), in[1], in[2]);
  });
  ASSERT_TRUE(result.ok()) << result.status();
  const auto index = (*result)[0].data<int64_t>();
  for (size_t i = 0; i < index.size(); ++i) {
    EXPECT_EQ((*result)[1].data<float>()[i], cx.data<float>()[i / 20 * 72 + index[i]]) << i;
  }
  EXPECT_EQ(std::memcmp((*result)[2].raw(), (*result)[3].raw(), (*result)[2].bytes()), 0);
}

template <typename T>
std::vector<Tensor> MaxOf(const Shape& shape, std::vector<T> values,
                          const ops::PoolOptions& options) {
  const Tensor x = Tensor::Of<T>(shape, std::span<const T>(values));
  auto result = Compute({&x}, [&](Builder& b, const std::vector<Value>& in) {
    for (Value v : ops::MaxPool(b, in[0], options)) b.Output(v);
    return absl::OkStatus();
  });
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? *std::move(result) : std::vector<Tensor>{};
}

TEST(Pool, FirstOfEqualsAndNanWin) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const auto line = Options({3}, {3}, {0}, {0});
  const auto tied = MaxOf<float>({1, 1, 6}, {2, 5, 5, -kInfinity, -kInfinity, -kInfinity}, line);
  EXPECT_THAT(tied[0].data<float>(), ElementsAre(5, -kInfinity));
  EXPECT_THAT(tied[1].data<int64_t>(), ElementsAre(1, 3));
  const auto nan = MaxOf<float>({1, 1, 6}, {2, kNan, 7, 1, 2, 3}, line);
  EXPECT_TRUE(std::isnan(nan[0].data<float>()[0]));
  EXPECT_THAT(nan[1].data<int64_t>(), ElementsAre(1, 5));
}

TEST(Pool, MaximumOfOtherTypes) {
  const auto line = Options({2}, {2}, {0}, {1}, false);
  EXPECT_THAT(MaxOf<uint8_t>({1, 1, 5}, {1, 200, 3, 3, 9}, line)[0].data<uint8_t>(),
              ElementsAre(200, 3, 9));
  EXPECT_THAT(MaxOf<int8_t>({1, 1, 5}, {-1, -100, 3, 4, -9}, line)[1].data<int64_t>(),
              ElementsAre(0, 3, 4));
  EXPECT_THAT(MaxOf<double>({1, 1, 4}, {1e300, 2, -3, -4}, line)[0].data<double>(),
              ElementsAre(1e300, -3));
  EXPECT_THAT(MaxOf<int64_t>({1, 1, 4}, {INT64_MAX, 2, -3, -4}, line)[0].data<int64_t>(),
              ElementsAre(INT64_MAX, -3));
}

// Unpooling takes indices from outside: whatever they are, nothing is written outside a plane.
TEST(Pool, UnpoolingStaysInsideThePlane) {
  const Tensor dy = Tensor::Of<float>({1, 2, 3}, {1, 2, 3, 4, 5, 6});
  const Tensor indices = Tensor::Of<int64_t>({1, 2, 3}, {0, 2, 2, -7, 1, INT64_MAX});
  const auto result = Compute({&dy, &indices}, [&](Builder& b, const std::vector<Value>& in) {
    b.Output(ops::MaxPoolGrad(b, in[0], in[1], {1, 2, 4}));
    return absl::OkStatus();
  });
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT((*result)[0].data<float>(), ElementsAre(1, 0, 5, 0, 4, 5, 0, 6));
}

TEST(Pool, NamesWhatIsWrong) {
  const Shape x = {1, 2, 8, 8};
  struct Bad {
    Shape x;
    ops::PoolOptions options;
    std::string message;
  };
  const Bad cases[] = {
      {{1, 2}, Options({2}, {1}, {0}, {0}), "x (1,2) has rank 2"},
      {x, Options({2}, {1}, {0}, {0}), "kernel (2) has 1 entries, x (1,2,8,8) has 2"},
      {x, Options({2, 2}, {1}, {0, 0}, {0, 0}), "strides (1): expected 2 entries"},
      {x, Options({2, 0}, {1, 1}, {0, 0}, {0, 0}), "kernel (2,0): 0 is not within [1,"},
      {x, Options({2, INT64_MAX}, {1, 1}, {0, 0}, {0, 0}), "is not within [1,"},
      {x, Options({2, 2}, {1, -1}, {0, 0}, {0, 0}), "strides (1,-1): -1"},
      {x, Options({2, 2}, {1, 1}, {-1, 0}, {0, 0}), "pads_begin (-1,0)"},
      {x, Options({2, 2}, {1, 1}, {0, 0}, {0, INT64_MAX}), "pads_end"},
      {x, Options({2, 2}, {1, 1}, {0, 0}, {0, 0}, false, false, {1, 0}), "dilations (1,0)"},
      {x, Options({9, 2}, {1, 1}, {0, 0}, {0, 0}), "spans 9, more than the padded input's 8"},
      {x, Options({2, 2}, {1, 1}, {2, 0}, {0, 0}), "window 0 of 9 lies within the padding"},
      {x, Options({2, 2}, {1, 1}, {0, 0}, {0, 2}), "window 8 of 9 lies within the padding"},
      // Both taps miss the single element between them.
      {{1, 1, 1}, Options({2}, {1}, {1}, {2}, false, false, {3}), "window 0 of 1 lies within"},
      {{1, 1, 0}, Options({1}, {1}, {0}, {0}), "a spatial dimension of the input is 0"},
  };
  for (const Bad& bad : cases) {
    Builder b;
    ops::AveragePool(b, b.Input("x", {DType::kF32, bad.x}), bad.options);
    EXPECT_EQ(b.status().code(), absl::StatusCode::kInvalidArgument) << bad.message;
    EXPECT_THAT(std::string(b.status().message()), HasSubstr(bad.message));
    Builder m;
    ops::MaxPool(m, m.Input("x", {DType::kF32, bad.x}), bad.options);
    EXPECT_THAT(std::string(m.status().message()), HasSubstr(bad.message));
  }
  Builder b;
  const Value dy = b.Input("dy", {DType::kF32, {1, 2, 4, 4}});
  ops::AveragePoolGrad(b, dy, {1, 2, 9, 8}, Options({3, 2}, {2, 2}, {1, 0}, {1, 0}));
  EXPECT_THAT(std::string(b.status().message()), HasSubstr("expected shape (1,2,5,4)"));
  Builder g;
  const Value dz = g.Input("dy", {DType::kF32, {1, 2, 4}});
  ops::MaxPoolGrad(g, dz, g.Input("indices", {DType::kI64, {1, 2, 4}}), {1, 3, 8});
  EXPECT_THAT(std::string(g.status().message()), HasSubstr("dy (1,2,4) and x_shape (1,3,8)"));
}

}  // namespace
}  // namespace tandem

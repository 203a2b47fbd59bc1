// Convolution and its gradients against sums in double, over a sweep of shapes and windows; the
// promises about bits; and the errors of hostile attributes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
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

using ::testing::HasSubstr;

struct ConvCase {
  std::string name;
  Shape x, weight;
  ops::ConvOptions options;
  bool bias = true;
};

ops::ConvOptions Options(std::vector<int64_t> strides, std::vector<int64_t> begin,
                         std::vector<int64_t> end, std::vector<int64_t> dilations,
                         int64_t groups = 1) {
  return {strides, begin, end, dilations, groups};
}

Shape OutputShape(const ConvCase& c) {
  Shape y = {c.x[0], c.weight[0]};
  for (int i = 0; i < c.x.rank() - 2; ++i) {
    const int64_t extent = (c.weight[i + 2] - 1) * c.options.dilations[i] + 1;
    const int64_t padded = c.x[i + 2] + c.options.pads_begin[i] + c.options.pads_end[i];
    y.push_back((padded - extent) / c.options.strides[i] + 1);
  }
  return y;
}

// Calls tap(x's index, weight's index, y's index) for every product of the convolution: ONNX's
// definition, one loop a dimension.
void ForEachTap(const ConvCase& c, const std::function<void(int64_t, int64_t, int64_t)>& tap) {
  const bool line = c.x.rank() == 3;
  const Shape out = OutputShape(c);
  const auto size = [&](const Shape& s, int i) { return line ? (i == 0 ? 1 : s[2]) : s[2 + i]; };
  const auto option = [&](const std::vector<int64_t>& v, int i, int64_t none) {
    return line ? (i == 0 ? none : v[0]) : v[i];
  };
  const ops::ConvOptions& o = c.options;
  const int64_t outputs = c.weight[0] / o.groups, inputs = c.weight[1];
  const int64_t kh = size(c.weight, 0), kw = size(c.weight, 1);
  const int64_t h = size(c.x, 0), w = size(c.x, 1), yh = size(out, 0), yw = size(out, 1);
  for (int64_t n = 0; n < c.x[0]; ++n)
    for (int64_t oc = 0; oc < c.weight[0]; ++oc)
      for (int64_t p = 0; p < yh; ++p)
        for (int64_t q = 0; q < yw; ++q)
          for (int64_t i = 0; i < inputs; ++i)
            for (int64_t r = 0; r < kh; ++r)
              for (int64_t s = 0; s < kw; ++s) {
                const int64_t at_h = p * option(o.strides, 0, 1) - option(o.pads_begin, 0, 0) +
                                     r * option(o.dilations, 0, 1);
                const int64_t at_w = q * option(o.strides, 1, 1) - option(o.pads_begin, 1, 0) +
                                     s * option(o.dilations, 1, 1);
                if (at_h < 0 || at_h >= h || at_w < 0 || at_w >= w) continue;
                const int64_t channel = oc / outputs * inputs + i;
                tap(((n * c.x[1] + channel) * h + at_h) * w + at_w,
                    ((oc * inputs + i) * kh + r) * kw + s,
                    ((n * c.weight[0] + oc) * yh + p) * yw + q);
              }
}

// A sum in double and the sum of its terms' sizes, which bounds the error of any order in f32.
struct Sums {
  std::vector<double> value, size;
  explicit Sums(const Shape& shape)
      : value(shape.num_elements(), 0.0), size(shape.num_elements(), 0.0) {}
  void Add(int64_t i, double a, double b) {
    value[i] += a * b;
    size[i] += std::abs(a * b);
  }
};

void ExpectClose(const Tensor& actual, const Sums& expected, const std::string& what) {
  ASSERT_EQ(actual.num_elements(), static_cast<int64_t>(expected.value.size())) << what;
  for (size_t i = 0; i < expected.value.size(); ++i) {
    ASSERT_NEAR(actual.data<float>()[i], expected.value[i], 2e-6 * expected.size[i] + 1e-30)
        << what << " at " << i;
  }
}

Tensor Random(const Shape& shape, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  Tensor tensor(DType::kF32, shape);
  for (float& value : tensor.data<float>()) value = uniform(random);
  return tensor;
}

// Marks `value` and its gradients, for the cotangent, with respect to `wrt` as outputs.
absl::Status WithGradients(Builder& b, Value value, const std::vector<Value>& wrt,
                           Value cotangent) {
  b.Output(value);
  TANDEM_ASSIGN_OR_RETURN(const std::vector<Value> gradients, Gradient(b, value, wrt, cotangent));
  for (Value gradient : gradients) b.Output(gradient);
  return absl::OkStatus();
}

struct Data {
  Tensor x, weight, bias, dy;
  explicit Data(const ConvCase& c)
      : x(Random(c.x, 1)),
        weight(Random(c.weight, 2)),
        bias(Random(Shape{c.weight[0]}, 3)),
        dy(Random(OutputShape(c), 4)) {}
};

// {y, dx, dweight[, dbias]}
absl::StatusOr<std::vector<Tensor>> RunConv(const ConvCase& c, const Data& d) {
  return Compute({&d.x, &d.weight, &d.bias, &d.dy}, [&](Builder& b, const std::vector<Value>& in) {
    const Value y = ops::Conv(b, in[0], in[1], c.bias ? in[2] : Value{}, c.options);
    std::vector<Value> wrt = {in[0], in[1]};
    if (c.bias) wrt.push_back(in[2]);
    return WithGradients(b, y, wrt, in[3]);
  });
}

void CheckConv(const ConvCase& c) {
  SCOPED_TRACE(StrCat(c.name, " x ", c.x.ToString(), " weight ", c.weight.ToString(), " groups ",
                      c.options.groups));
  const Data d(c);
  const auto result = RunConv(c, d);
  ASSERT_TRUE(result.ok()) << result.status();
  const float *x = d.x.data<float>().data(), *w = d.weight.data<float>().data(),
              *dy = d.dy.data<float>().data();
  Sums y(OutputShape(c)), dx(c.x), dw(c.weight), dbias(Shape{c.weight[0]});
  ForEachTap(c, [&](int64_t xi, int64_t wi, int64_t yi) {
    y.Add(yi, x[xi], w[wi]);
    dx.Add(xi, dy[yi], w[wi]);
    dw.Add(wi, dy[yi], x[xi]);
  });
  const Shape out = OutputShape(c);
  const int64_t plane = out.Count(2, out.rank());
  for (int64_t i = 0; i < out.num_elements(); ++i) {
    const int64_t channel = i / plane % out[1];
    if (c.bias) y.Add(i, d.bias.data<float>()[channel], 1.0);
    dbias.Add(channel, dy[i], 1.0);
  }
  EXPECT_EQ((*result)[0].shape(), out);
  ExpectClose((*result)[0], y, "y");
  ExpectClose((*result)[1], dx, "dx");
  ExpectClose((*result)[2], dw, "dweight");
  if (c.bias) ExpectClose((*result)[3], dbias, "dbias");
}

// The adjoints as operators of their own, with their gradients: a transposed convolution that
// trains, and second derivatives.
void CheckAdjoints(const ConvCase& c) {
  SCOPED_TRACE(StrCat(c.name, " adjoints"));
  const Data d(c);
  const Tensor cx = Random(c.x, 5), cw = Random(c.weight, 6);
  const auto input = Compute({&d.dy, &d.weight, &cx}, [&](Builder& b, const auto& in) {
    const Value dx = ops::ConvInputGrad(b, in[0], in[1], c.x, c.options);
    return WithGradients(b, dx, {in[0], in[1]}, in[2]);
  });
  ASSERT_TRUE(input.ok()) << input.status();
  const auto weight = Compute({&d.dy, &d.x, &cw}, [&](Builder& b, const auto& in) {
    const Value dw = ops::ConvWeightGrad(b, in[0], in[1], c.weight, c.options);
    return WithGradients(b, dw, {in[0], in[1]}, in[2]);
  });
  ASSERT_TRUE(weight.ok()) << weight.status();
  const Shape out = OutputShape(c);
  Sums dx(c.x), dx_dy(out), dx_w(c.weight), dw(c.weight), dw_dy(out), dw_x(c.x);
  const auto at = [](const Tensor& t, int64_t i) { return t.data<float>()[i]; };
  ForEachTap(c, [&](int64_t xi, int64_t wi, int64_t yi) {
    dx.Add(xi, at(d.dy, yi), at(d.weight, wi));
    dx_dy.Add(yi, at(cx, xi), at(d.weight, wi));
    dx_w.Add(wi, at(cx, xi), at(d.dy, yi));
    dw.Add(wi, at(d.dy, yi), at(d.x, xi));
    dw_dy.Add(yi, at(cw, wi), at(d.x, xi));
    dw_x.Add(xi, at(cw, wi), at(d.dy, yi));
  });
  ExpectClose((*input)[0], dx, "dx");
  ExpectClose((*input)[1], dx_dy, "d dx / d dy");
  ExpectClose((*input)[2], dx_w, "d dx / d weight");
  ExpectClose((*weight)[0], dw, "dweight");
  ExpectClose((*weight)[1], dw_dy, "d dweight / d dy");
  ExpectClose((*weight)[2], dw_x, "d dweight / d x");
}

std::vector<ConvCase> Cases() {
  const auto one = Options({1, 1}, {0, 0}, {0, 0}, {1, 1});
  const auto same = Options({1, 1}, {1, 1}, {1, 1}, {1, 1});
  const auto groups = [&](int64_t n) { return Options({1, 1}, {1, 1}, {1, 1}, {1, 1}, n); };
  return {
      {"plain", {2, 3, 9, 11}, {5, 3, 3, 3}, one},
      {"no_bias", {2, 3, 9, 11}, {5, 3, 3, 3}, one, false},
      {"same", {3, 16, 10, 10}, {32, 16, 3, 3}, same},
      {"one_by_one", {2, 20, 7, 7}, {40, 20, 1, 1}, one},
      {"one_by_one_stride", {2, 20, 7, 7}, {40, 20, 1, 1}, Options({2, 3}, {0, 0}, {0, 0}, {1, 1})},
      {"asymmetric", {2, 4, 8, 9}, {6, 4, 3, 4}, Options({1, 1}, {2, 0}, {1, 3}, {1, 1})},
      {"stride", {2, 4, 15, 12}, {8, 4, 3, 3}, Options({2, 3}, {1, 1}, {1, 1}, {1, 1})},
      {"stride_above_kernel",
       {2, 4, 15, 12},
       {8, 4, 2, 2},
       Options({4, 5}, {0, 0}, {0, 0}, {1, 1})},
      {"dilation", {2, 4, 15, 17}, {8, 4, 3, 3}, Options({1, 1}, {2, 2}, {2, 2}, {2, 3})},
      {"dilation_stride", {1, 16, 20, 20}, {16, 16, 3, 3}, Options({2, 2}, {3, 3}, {3, 3}, {3, 3})},
      {"padding_above_kernel", {1, 2, 4, 4}, {3, 2, 2, 2}, Options({1, 1}, {5, 4}, {4, 6}, {1, 1})},
      {"groups", {2, 12, 8, 8}, {9, 4, 3, 3}, groups(3)},
      {"groups_blocked", {2, 32, 8, 8}, {64, 16, 3, 3}, groups(2)},
      {"depthwise", {2, 24, 9, 9}, {24, 1, 3, 3}, groups(24)},
      {"depthwise_stride",
       {2, 16, 9, 9},
       {16, 1, 3, 3},
       Options({2, 2}, {1, 1}, {1, 1}, {1, 1}, 16)},
      {"depthwise_multiplier", {2, 6, 9, 9}, {12, 1, 3, 3}, groups(6)},
      {"one_group_of_one", {2, 1, 9, 9}, {1, 1, 3, 3}, same},
      {"line", {3, 5, 30}, {7, 5, 4}, Options({2}, {1}, {2}, {1})},
      {"line_dilated", {1, 8, 64}, {16, 8, 3}, Options({1}, {4}, {4}, {4})},
      {"line_depthwise", {2, 16, 40}, {16, 1, 5}, Options({1}, {2}, {2}, {1}, 16)},
      {"batch_0", {0, 3, 9, 11}, {5, 3, 3, 3}, one},
      {"batch_1", {1, 64, 12, 12}, {64, 64, 3, 3}, same},
      {"batch_odd", {37, 3, 6, 6}, {16, 3, 3, 3}, same},
      {"lenet", {32, 6, 14, 14}, {16, 6, 5, 5}, one},
      {"whole_kernel", {4, 3, 6, 6}, {10, 3, 6, 6}, one},
      {"single_pixel", {4, 8, 1, 1}, {8, 8, 3, 3}, same},
      {"wide_stride",
       {2, 3, 8, 8},
       {4, 3, 3, 3},
       Options({1 << 24, 1 << 24}, {0, 0}, {0, 0}, {1, 1})},
  };
}

TEST(Conv, MatchesTheSumsInDouble) {
  for (const ConvCase& c : Cases()) CheckConv(c);
}

TEST(Conv, AdjointsAreOperatorsThatDifferentiate) {
  for (const ConvCase& c : Cases()) CheckAdjoints(c);
}

TEST(Conv, RandomShapesMatchTheSumsInDouble) {
  std::mt19937 random(11);
  const auto pick = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  int checked = 0;
  for (int i = 0; checked < 120; ++i) {
    const int spatial = static_cast<int>(pick(1, 2));
    const int64_t groups = pick(0, 2) == 0 ? pick(2, 6) : 1;
    const int64_t inputs = pick(1, 20), outputs = groups * pick(1, 20 / groups);
    ConvCase c{.name = StrCat("random ", i),
               .x = {pick(1, 5), inputs * groups},
               .weight = {outputs, inputs},
               .options = {.strides = {},
                           .pads_begin = {},
                           .pads_end = {},
                           .dilations = {},
                           .groups = groups},
               .bias = pick(0, 1) == 0};
    bool fits = true;
    for (int k = 0; k < spatial; ++k) {
      const int64_t kernel = pick(1, 5), dilation = pick(1, 3), size = pick(1, 16);
      c.x.push_back(size);
      c.weight.push_back(kernel);
      c.options.strides.push_back(pick(1, 4));
      c.options.dilations.push_back(dilation);
      c.options.pads_begin.push_back(pick(0, 4));
      c.options.pads_end.push_back(pick(0, 4));
      fits &= (kernel - 1) * dilation + 1 <=
              size + c.options.pads_begin.back() + c.options.pads_end.back();
    }
    if (!fits) continue;
    ++checked;
    CheckConv(c);
    if (testing::Test::HasFatalFailure() || HasFailure()) return;
  }
}

bool SameBits(const Tensor& a, const Tensor& b) {
  return a.type() == b.type() && std::memcmp(a.raw(), b.raw(), a.bytes()) == 0;
}

TEST(Conv, BitsDoNotDependOnTheThreadCount) {
  const int threads = ThreadCount();
  for (const ConvCase& c : Cases()) {
    const Data d(c);
    SetThreadCount(1);
    const auto one = RunConv(c, d);
    for (int count : {2, 3}) {
      SetThreadCount(count);
      const auto many = RunConv(c, d);
      ASSERT_TRUE(one.ok() && many.ok());
      for (size_t i = 0; i < one->size(); ++i) {
        EXPECT_TRUE(SameBits((*one)[i], (*many)[i]))
            << c.name << " result " << i << " threads " << count;
      }
    }
  }
  SetThreadCount(threads);
}

// An image's y and dx are the same bits in any batch and at any place in it.
TEST(Conv, BitsOfAnImageDoNotDependOnTheBatch) {
  for (ConvCase c : Cases()) {
    for (int64_t batch : {3, 8, 33}) {
      c.x[0] = batch;
      const Data d(c);
      const auto all = RunConv(c, d);
      ASSERT_TRUE(all.ok()) << all.status();
      ConvCase single = c;
      single.x[0] = 1;
      Data image(single);
      std::memcpy(image.bias.raw(), d.bias.raw(), d.bias.bytes());
      for (int64_t n : {int64_t{0}, batch / 2, batch - 1}) {
        const auto copy = [&](const Tensor& from, Tensor& to) {
          std::memcpy(to.raw(), static_cast<const std::byte*>(from.raw()) + n * to.bytes(),
                      to.bytes());
        };
        copy(d.x, image.x);
        copy(d.dy, image.dy);
        const auto alone = RunConv(single, image);
        ASSERT_TRUE(alone.ok()) << alone.status();
        for (int i : {0, 1}) {
          const int64_t bytes = (*alone)[i].bytes();
          EXPECT_EQ(std::memcmp(static_cast<const std::byte*>((*all)[i].raw()) + n * bytes,
                                (*alone)[i].raw(), bytes),
                    0)
              << c.name << (i == 0 ? " y" : " dx") << " batch " << batch << " image " << n;
        }
      }
    }
  }
}

// One plan keeps its primitives when the thread count changes after it was compiled.
TEST(Conv, PlanOutlivesAThreadCount) {
  const int threads = ThreadCount();
  const ConvCase c{"", {8, 3, 20, 20}, {16, 3, 3, 3}, Options({1, 1}, {1, 1}, {1, 1}, {1, 1})};
  const Data d(c);
  Builder b;
  const Value x = b.Input("x", d.x.type()), w = b.Input("w", d.weight.type());
  b.Output(ops::Conv(b, x, w, {}, c.options));
  auto graph = b.Finish();
  ASSERT_TRUE(graph.ok());
  SetThreadCount(2);
  const auto plan = Plan::Compile(*std::move(graph), CpuBackend());
  ASSERT_TRUE(plan.ok());
  const std::vector<const Tensor*> inputs = {&d.x, &d.weight};
  const auto before = RunPlan(**plan, inputs);
  for (int count : {1, 4, 2}) {
    SetThreadCount(count);
    const auto after = RunPlan(**plan, inputs);
    ASSERT_TRUE(before.ok() && after.ok());
    EXPECT_TRUE(SameBits((*before)[0], (*after)[0])) << count;
  }
  SetThreadCount(threads);
}

TEST(Conv, NamesWhatIsWrong) {
  constexpr int64_t kHuge = INT64_MAX;
  const auto good = Options({1, 1}, {0, 0}, {0, 0}, {1, 1});
  struct Bad {
    Shape x, weight, bias;
    ops::ConvOptions options;
    std::string message;
  };
  const Shape x = {1, 4, 8, 8}, w = {6, 4, 3, 3}, bias = {6};
  const Bad cases[] = {
      {{1, 4}, w, bias, good, "x (1,4) has rank 2"},
      {{1, 4, 8, 8, 8}, w, bias, good, "has rank 5"},
      {x, {6, 4, 3}, bias, good, "weight (6,4,3) has rank 3, expected x's rank of 4"},
      {x, {6, 3, 3, 3}, bias, good, "has 4 channels, weight (6,3,3,3) expects 3"},
      {x, {6, 4, 0, 3}, bias, good, "weight (6,4,0,3) is empty"},
      {x, {6, 4, 9, 3}, bias, good, "spans 9, more than the padded input's 8"},
      {x, w, {5}, good, "bias is f32(5), expected shape (6)"},
      {{1, 4, 0, 8}, w, bias, good, "a spatial dimension of the input is 0"},
      {x, w, bias, Options({1}, {0, 0}, {0, 0}, {1, 1}), "strides (1): expected 2 entries"},
      {x, w, bias, Options({1, 0}, {0, 0}, {0, 0}, {1, 1}), "strides (1,0): 0 is not within [1,"},
      {x, w, bias, Options({1, -1}, {0, 0}, {0, 0}, {1, 1}), "-1 is not within [1,"},
      {x, w, bias, Options({kHuge, 1}, {0, 0}, {0, 0}, {1, 1}), "is not within [1,"},
      {x, w, bias, Options({1, 1}, {-1, 0}, {0, 0}, {1, 1}), "pads_begin (-1,0): -1"},
      {x, w, bias, Options({1, 1}, {0, 0}, {0, kHuge}, {1, 1}), "pads_end"},
      {x, w, bias, Options({1, 1}, {1 << 24, 0}, {1 << 24, 0}, {1, 1}), "above the limit"},
      {x, w, bias, Options({1, 1}, {0, 0}, {0, 0}, {1, kHuge}), "dilations"},
      {x, w, bias, Options({1, 1}, {0, 0}, {0, 0}, {1, 1 << 24}), "spans 33554433"},
      {x, w, bias, Options({1, 1}, {0, 0}, {0, 0}, {1, 1}, 0), "groups is 0"},
      {x, w, bias, Options({1, 1}, {0, 0}, {0, 0}, {1, 1}, kHuge), "do not divide into"},
      {x, w, bias, Options({1, 1}, {0, 0}, {0, 0}, {1, 1}, 2), "expects 4 in each of 2 groups"},
  };
  for (const Bad& bad : cases) {
    Builder b;
    const Value vx = b.Input("x", {DType::kF32, bad.x}),
                vw = b.Input("w", {DType::kF32, bad.weight}),
                vb = b.Input("b", {DType::kF32, bad.bias});
    ops::Conv(b, vx, vw, vb, bad.options);
    EXPECT_EQ(b.status().code(), absl::StatusCode::kInvalidArgument) << bad.message;
    EXPECT_THAT(std::string(b.status().message()), HasSubstr(bad.message));
  }
}

TEST(Conv, AdjointsCheckTheShapeTheyAreTold) {
  const auto options = Options({2, 2}, {0, 0}, {0, 0}, {1, 1});
  const TensorType dy{DType::kF32, {1, 6, 4, 4}}, w{DType::kF32, {6, 4, 3, 3}};
  for (const Shape& shape : {Shape{1, 4, 9, 9}, Shape{1, 4, 10, 9}, Shape{1, 4, 8, 9},
                             Shape{2, 4, 9, 9}, Shape{1, 4, 9}, Shape{1, -4, 9, 9}}) {
    Builder b;
    const Value dx = ops::ConvInputGrad(b, b.Input("dy", dy), b.Input("w", w), shape, options);
    const bool good = shape == Shape{1, 4, 9, 9} || shape == Shape{1, 4, 10, 9};
    EXPECT_EQ(b.ok(), good) << shape.ToString() << b.status();
    if (good) {
      EXPECT_EQ(b.shape(dx), shape);
    }
  }
  Builder b;
  ops::ConvWeightGrad(b, b.Input("dy", dy), b.Input("x", {DType::kF32, {1, 4, 9, 9}}), {6, 4, 4, 3},
                      options);
  EXPECT_THAT(std::string(b.status().message()),
              HasSubstr("dy (1,6,4,4), expected (1,6,3,4), the shape of the convolution's output"));
}

// 16 bits are widened by a pass (op_cases); f64 is not.
TEST(Conv, RefusesOtherTypesByName) {
  Builder b;
  const TensorType x{DType::kF64, {1, 4, 9, 9}}, w{DType::kF64, {6, 4, 3, 3}};
  b.Output(
      ops::Conv(b, b.Input("x", x), b.Input("w", w), {}, Options({1, 1}, {0, 0}, {0, 0}, {1, 1})));
  auto graph = b.Finish();
  ASSERT_TRUE(graph.ok()) << graph.status();
  const auto plan = Plan::Compile(*std::move(graph), CpuBackend());
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr("[Conv]: f64 on the CPU"));
}

// Attributes that pass the checks but would need absurd memory or overflow offsets: an error, or a
// kernel of reasonable scratch; never a crash.
TEST(Conv, HostileSizesEndInAnError) {
  const auto plain = [](int64_t pad) { return Options({1, 1}, {pad, pad}, {pad, pad}, {1, 1}); };
  const ConvCase cases[] = {
      {"kernel", {1, 1, 4096, 4096}, {1, 1, 2000, 2000}, plain(0)},
      {"kernel_at_limit", {1, 1, 512, 512}, {1, 1, 256, 256}, plain(0)},
      {"line_at_limit", {1, 4, 1 << 20}, {4, 4, 4096}, Options({1}, {0}, {0}, {1})},
      {"plane", {1, 1, 1 << 15, 1 << 15}, {1, 1, 1, 1}, plain(0)},
      {"padded", {1, 1, 1, 1}, {1, 1, 1, 1}, plain(1 << 14)},
      {"channels", {1, 1 << 24, 4, 4}, {1, 1 << 24, 1, 1}, plain(0)},
      {"weights", {1, 1 << 15, 1, 1}, {1 << 15, 1 << 15, 1, 1}, plain(0)},
      {"many_groups",
       {1, 1 << 20, 2, 2},
       {1 << 20, 1, 1, 1},
       Options({1, 1}, {0, 0}, {0, 0}, {1, 1}, 1 << 20)},
      {"wide", {1, 1, 1, (1 << 24) - 1}, {1, 1, 1, 1 << 20}, plain(0)},
      {"span_at_limit",
       {1, 1, 1, 1 << 16},
       {1, 1, 1, 2},
       Options({1, 1}, {0, 0}, {0, 0}, {1, (1 << 14) - 1})},
      {"dilated",
       {1, 1, 1, (1 << 24) - 1},
       {1, 1, 1, 2},
       Options({1, 1}, {0, 0}, {0, 0}, {1, (1 << 24) - 2})},
  };
  for (const ConvCase& c : cases) {
    const Shape y = OutputShape(c);
    const TensorType tx{DType::kF32, c.x}, tw{DType::kF32, c.weight}, ty{DType::kF32, y};
    for (int direction : {0, 1, 2}) {
      Builder b;
      const Value first = b.Input("a", direction == 0 ? tx : ty);
      const Value second = b.Input("b", direction == 2 ? tx : tw);
      b.Output(direction == 0   ? ops::Conv(b, first, second, {}, c.options)
               : direction == 1 ? ops::ConvInputGrad(b, first, second, c.x, c.options)
                                : ops::ConvWeightGrad(b, first, second, c.weight, c.options));
      auto graph = b.Finish();
      ASSERT_TRUE(graph.ok()) << c.name << graph.status();
      const auto plan = Plan::Compile(*std::move(graph), CpuBackend());
      if (plan.ok()) {
        EXPECT_LE((*plan)->arena_bytes(), int64_t{1} << 34) << c.name;
      } else {
        EXPECT_TRUE(absl::IsUnimplemented(plan.status()) ||
                    absl::IsResourceExhausted(plan.status()))
            << c.name << " " << plan.status();
      }
    }
  }
}

TEST(Conv, CountsItsOperations) {
  const OpDef* conv = FindOp("Conv");
  const TensorType x{DType::kF32, {2, 4, 9, 9}}, w{DType::kF32, {6, 4, 3, 3}},
      bias{DType::kF32, {6}}, y{DType::kF32, {2, 6, 7, 7}};
  const std::vector<const TensorType*> inputs = {&x, &w, &bias};
  EXPECT_EQ(conv->flops(inputs, {&y, 1}, {}), 2.0 * 2 * 6 * 49 * 36 + 2 * 6 * 49);
  const Attributes attributes = {{"strides", std::vector<int64_t>{2, 1}},
                                 {"pads_begin", std::vector<int64_t>{0, 1}},
                                 {"pads_end", std::vector<int64_t>{0, 0}},
                                 {"dilations", std::vector<int64_t>{1, 3}}};
  const Geometry geometry = conv->geometry(inputs, attributes);
  EXPECT_EQ(geometry.kernel, (std::vector<int64_t>{3, 3}));
  EXPECT_EQ(geometry.stride, (std::vector<int64_t>{2, 1}));
  EXPECT_EQ(geometry.pad_begin, (std::vector<int64_t>{0, 1}));
  EXPECT_EQ(geometry.dilation, (std::vector<int64_t>{1, 3}));
  EXPECT_FALSE(geometry.transposed);
  EXPECT_TRUE(FindOp("ConvInputGrad")->geometry(inputs, attributes).transposed);
}

}  // namespace
}  // namespace tandem

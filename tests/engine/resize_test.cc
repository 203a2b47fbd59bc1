// Resampling against values that PyTorch 2 gave in double, its errors, and that neither threads nor
// other planes change a bit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
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

// ((7 i) mod 11) / 4 - 1: what the values below were made from.
Tensor Data(const Shape& shape, double scale = 1) {
  Tensor tensor(DType::kF32, shape);
  for (int64_t i = 0; i < shape.num_elements(); ++i) {
    tensor.data<float>()[i] = static_cast<float>((static_cast<double>(7 * i % 11) / 4 - 1) * scale);
  }
  return tensor;
}

// The same from the last to the first.
Tensor Reversed(const Shape& shape) {
  Tensor tensor = Data(shape);
  std::reverse(tensor.data<float>().begin(), tensor.data<float>().end());
  return tensor;
}

// {y, dx} for the cotangent dy.
absl::StatusOr<std::vector<Tensor>> ForwardAndBackward(const Tensor& x, const Tensor& dy,
                                                       const ops::ResizeOptions& options) {
  return Compute({&x, &dy}, [&](Builder& b, const std::vector<Value>& in) {
    const Value y = ops::Resize(b, in[0], options);
    b.Output(y);
    TANDEM_ASSIGN_OR_RETURN(const std::vector<Value> dx,
                            Gradient(b, y, std::vector<Value>{in[0]}, in[1]));
    b.Output(dx[0]);
    return absl::OkStatus();
  });
}

void ExpectNear(const Tensor& got, const std::vector<double>& expected, const std::string& what) {
  ASSERT_EQ(got.num_elements(), static_cast<int64_t>(expected.size())) << what;
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(got.data<float>()[i], expected[i], 4e-6) << what << " at " << i;
  }
}

struct Golden {
  std::string name;
  Shape x, y;
  ops::ResizeOptions options;
  std::vector<double> forward, backward;
};

std::vector<Golden> Goldens() {
  return {
      {"bilinear",
       {1, 1, 3, 4},
       {1, 1, 5, 7},
       {.axes = {}, .mode = "linear"},
       {-1,    -0.375,      0.625,      0.25,  -0.125,      0.875,      1.5,
        -0.4,  -0.1678571,  0.2035714,  0.3,   0.3964286,   0.7678571,  1,
        0.5,   0.1428571,   -0.4285714, 0.375, 1.178571,    0.6071429,  0.25,
        -0.25, -0.01785714, 0.3535714,  0.45,  0.4285714,   -0.1428571, -0.5,
        -0.75, -0.125,      0.875,      0.5,   -0.07142857, -0.6428571, -1},
       {0.06428571, 1.010714, 0.02142857, 1.003571, 0.5714286, 0.9035714, 0.6892857, 1.485714,
        1.060714, 0.6392857, 1.182143, -0.6321429}},
      {"bilinear_corners",
       {1, 1, 3, 4},
       {1, 1, 5, 7},
       {.axes = {}, .mode = "linear", .coordinates = "align_corners"},
       {-1,     -0.125, 0.75,  0.25,   -0.25, 0.625, 1.5,  -0.25, -0.0625, 0.125,  0.3125, 0.5,
        0.6875, 0.875,  0.5,   0,      -0.5,  0.375, 1.25, 0.75,  0.25,    -0.125, 0.0625, 0.25,
        0.4375, 0.625,  0.125, -0.375, -0.75, 0.125, 1,    0.5,   0,       -0.5,   -1},
       {0.125, 0.8125, -0.0625, 1.125, 0.5625, 1, 0.75, 1.4375, 1.0625, 0.6875, 1.1875, -0.6875}},
      {"bicubic",
       {1, 1, 4, 5},
       {1, 1, 5, 3},
       {.axes = {}, .mode = "cubic"},
       {-0.4238935, -0.280375, 0.943537, 0.02414815, 0.055375, 0.4830602, -0.1527778, 0.5,
        0.7246817, -0.3297037, 0.944625, 0.5624352, 0.118338, 1.280375, -0.5748345},
       {0.9472257, 0.5120139,  -0.4186146, 0.3545833,  0.6559792,  -0.8993484, -0.4861343,
        0.1057257, 0.5046296,  0.9335648,  -0.5039537, -0.2724074, 0.4516076,  0.7183565,
        1.328959,  -0.2291088, -0.1238426, 0.9723924,  -0.2812731, -0.5203553}},
      {"bicubic_corners",
       {1, 1, 4, 5},
       {1, 1, 6, 3},
       {.axes = {}, .mode = "cubic", .coordinates = "align_corners"},
       {-1, -0.25, 0.5, -0.748, 0.002, 0.752, -0.376, 0.374, 1.19, -0.124, 0.626, 1.64, 0.248,
        0.998, 0.681, 0.5, 1.25, -0.75},
       {1.946,  0, -0.603, 0, 0.665, 0.064,  0, -0.184, 0, 1.548,
        -1.412, 0, 0.617,  0, 2.349, -0.348, 0, 0.92,   0, -0.562}},
      {"bilinear_antialias",
       {1, 1, 7, 9},
       {1, 1, 3, 4},
       {.axes = {}, .mode = "linear", .antialias = true, .exclude_outside = true},
       {0.03163265, 0.2656794, 0.4259582, 0.344898, 0.3537815, 0.1696557, 0.1022238, 0.1810924,
        0.2464286, 0.4481707, 0.3689024, 0.194898},
       {-0.1326531,   -0.1530612,  -0.07142857, 0.008710801, 0.07839721,  0.1480836,
        0.04224739,   -0.08866351, -0.0994898,  -0.1537215,  -0.1719907,  -0.06304571,
        0.04022341,   0.103761,    0.1672986,   0.04868826,  -0.09594326, -0.1084634,
        -0.0577431,   -0.04510585, 0.04781718,  0.1243083,   0.08577577,  0.04724329,
        0.017314,     -0.01138626, -0.0159964,  0.03823529,  0.08177905,  0.1586801,
        0.2083931,    0.06779053,  -0.07281205, -0.01406026, 0.07317073,  0.07647059,
        0.1412365,    0.1805661,   0.1405872,   0.1007891,   0.06225661,  0.02372412,
        -0.007773109, -0.03826531, -0.03589436, 0.2442377,   0.2793532,   0.1224944,
        -0.006814921, 0.05672269,  0.1202603,   -0.00148596, -0.1497013,  -0.1482593,
        0.1989796,    0.2230587,   0.08318815,  -0.0304878,  0.03919861,  0.108885,
        0.0004355401, -0.1334619,  -0.1326531}},
      {"bicubic_antialias",
       {1, 1, 7, 9},
       {1, 1, 3, 4},
       {.axes = {}, .mode = "cubic", .cubic_a = -0.5, .antialias = true, .exclude_outside = true},
       {0.006199745, 0.2384034, 0.4604393, 0.3633651, 0.3995078, 0.1474547, 0.05118303, 0.1853198,
        0.233647, 0.4938878, 0.3706282, 0.1732015},
       {-0.1551683,  -0.1789326,  -0.1007886,  -0.00592422, 0.1097505,   0.1771274,   0.06662421,
        -0.1119794,  -0.1337949,  -0.1756563,  -0.1929467,  -0.07991644, 0.036561,    0.1385704,
        0.1853781,   0.06834558,  -0.111766,   -0.1344734,  -0.08854112, -0.0661272,  0.07093969,
        0.1571008,   0.1055197,   0.02774196,  0.006762524, 0.005642391, 0.002340333, 0.02523209,
        0.07825352,  0.1905641,   0.2239928,   0.06832786,  -0.08618248, -0.0412868,  0.07881621,
        0.0904878,   0.1595514,   0.2055667,   0.1735627,   0.1221284,   0.05860368,  0.0002926089,
        -0.02246153, -0.02510719, -0.02031418, 0.2717237,   0.2969931,   0.1051415,   -0.02650401,
        0.05396771,  0.1358793,   0.01564646,  -0.1672161,  -0.1753258,  0.2312054,   0.2441972,
        0.05903414,  -0.06038945, 0.03668454,  0.1343784,   0.02111134,  -0.1598681,  -0.1690766}},
      {"nearest",
       {1, 1, 3, 4},
       {1, 1, 4, 7},
       {.axes = {}, .coordinates = "asymmetric", .nearest = "floor"},
       {-1,  -1,  0.75, 0.75, -0.25, -0.25, 1.5,  -1,    -1,    0.75, 0.75, -0.25, -0.25, 1.5,
        0.5, 0.5, -0.5, -0.5, 1.25,  1.25,  0.25, -0.75, -0.75, 1,    1,    0,     0,     -1},
       {0.25, 2.75, -0.25, 1.5, 0.5, -1, 0.25, 0.25, 0.75, 2, 0.5, -1}},
      {"nearest_exact",
       {1, 1, 3, 4},
       {1, 1, 4, 7},
       {.axes = {}, .nearest = "round_prefer_ceil"},
       {-1,  -1,  0.75, -0.25, -0.25, 1.5,  1.5,  0.5,   0.5,   -0.5, 1.25, 1.25, 0.25, 0.25,
        0.5, 0.5, -0.5, 1.25,  1.25,  0.25, 0.25, -0.75, -0.75, 1,    0,    0,    -1,   -1},
       {0, 1.5, 0.5, -1, 0.75, -0.75, 1.75, 1.5, 0.75, 0.5, 1.25, -0.25}},
  };
}

TEST(Resize, MatchesPyTorch) {
  for (const Golden& g : Goldens()) {
    ops::ResizeOptions options = g.options;
    options.axes = {{.axis = 2, .size = g.y[2]}, {.axis = 3, .size = g.y[3]}};
    const auto result = ForwardAndBackward(Data(g.x), Reversed(g.y), options);
    ASSERT_TRUE(result.ok()) << g.name << ": " << result.status();
    ExpectNear((*result)[0], g.forward, g.name);
    ExpectNear((*result)[1], g.backward, g.name + " backward");
  }
}

TEST(Upsampling, MatchesPyTorch) {
  const Tensor folded = Data({2, 4, 2, 2}), plane = Data({1, 1, 4, 4}), x = Data({1, 2, 2, 3});
  const Tensor weight = Data({2, 2, 3, 2}, 0.5), bias = Tensor::Of<float>({2}, {0.5f, -1.0f});
  const auto result =
      Compute({&folded, &plane, &x, &weight, &bias}, [&](Builder& b, const std::vector<Value>& in) {
        b.Output(ops::PixelShuffle(b, in[0], 2));
        b.Output(ops::PixelUnshuffle(b, ops::PixelShuffle(b, in[0], 2), 2));
        const auto pooled = ops::MaxPool(b, in[1],
                                         {.kernel = {2, 2},
                                          .strides = {2, 2},
                                          .pads_begin = {0, 0},
                                          .pads_end = {0, 0},
                                          .dilations = {1, 1}});
        b.Output(ops::MaxUnpool(b, pooled[0], pooled[1], Shape{1, 1, 4, 4}));
        b.Output(ops::ConvTranspose(
            b, in[2], in[3], in[4],
            {.strides = {2, 2}, .pads_begin = {1, 1}, .pads_end = {1, 1}, .dilations = {1, 1}},
            {1, 1}));
        return absl::OkStatus();
      });
  ASSERT_TRUE(result.ok()) << result.status();
  ExpectNear((*result)[0], {-1,   0.5,  0.75, -0.5, -0.75, 0.75, 1,   -0.25, -0.25, 1.25,  1.5,
                            0.25, 0,    1.5,  -1,   0.5,   -0.5, 1,   1.25,  0,     -0.25, 1.25,
                            1.5,  0.25, 0.25, -1,   -0.75, 0.75, 0.5, -0.75, -0.5,  1},
             "PixelShuffle");
  EXPECT_EQ(std::memcmp((*result)[1].raw(), folded.raw(), folded.bytes()), 0);
  ExpectNear((*result)[2], {0, 0.75, 0, 1.5, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1.5, 0}, "MaxUnpool");
  ExpectNear(
      (*result)[3],
      {0.0625, 0.59375,  1.125,  -0.03125, 0.125,  1.96875,  0.375,   0.65625,  0.5,     0.03125,
       1.875,  0.4375,   0.875,  -0.1875,  -0.125, 0.75,     0.625,   0.375,    0.625,   0,
       -1.5,   -1.15625, -0.625, -1.28125, -1.125, -0.21875, -0.8125, -1.21875, -1.0625, -0.84375,
       -0.25,  -1.1875,  -0.75,  -1.3125,  -1.25,  -1.375,   -1,      -1.25,    -0.5,    -1.125},
      "ConvTranspose");
}

// Rows wider than the line between the two passes, and filters wider than that, give the same as
// each plane alone and on any number of threads.
TEST(Resize, ThreadsAndPlanesChangeNothing) {
  struct Wide {
    Shape x;
    int64_t h, w;
    bool antialias;
  };
  for (const Wide& wide :
       {Wide{{3, 1, 5, 9000}, 7, 20011, false}, Wide{{3, 1, 40, 9000}, 9, 31, true},
        Wide{{3, 2, 33, 65}, 64, 24, true}, Wide{{3, 1, 1, 50000}, 1, 5, true}}) {
    for (const char* mode : {"nearest", "linear", "cubic"}) {
      const ops::ResizeOptions options{
          .axes = {{.axis = 2, .size = wide.h}, {.axis = 3, .size = wide.w}},
          .mode = mode,
          .antialias = wide.antialias};
      const Shape y{3, wide.x[1], wide.h, wide.w};
      const Tensor x = Data(wide.x), dy = Reversed(y);
      const int threads = ThreadCount();
      SetThreadCount(1);
      const auto one = ForwardAndBackward(x, dy, options);
      SetThreadCount(3);
      const auto many = ForwardAndBackward(x, dy, options);
      SetThreadCount(threads);
      ASSERT_TRUE(one.ok() && many.ok()) << one.status();
      const auto plane = [](const Tensor& t, int64_t i) {
        Shape shape = t.shape();
        const int64_t count = shape.num_elements() / shape[0];
        shape[0] = 1;
        return Tensor::Of<float>(shape, std::span<const float>(t.data<float>().data() + i * count,
                                                               static_cast<size_t>(count)));
      };
      const auto last = ForwardAndBackward(plane(x, 2), plane(dy, 2), options);
      ASSERT_TRUE(last.ok()) << last.status();
      for (int i = 0; i < 2; ++i) {
        EXPECT_EQ(std::memcmp((*one)[i].raw(), (*many)[i].raw(), (*one)[i].bytes()), 0);
        const Tensor of_all = plane((*one)[i], 2);
        EXPECT_EQ(std::memcmp(of_all.raw(), (*last)[i].raw(), of_all.bytes()), 0)
            << mode << " " << wide.x.ToString();
      }
      // Weights sum to 1, and a constant stays one.
      Tensor ones(DType::kF32, wide.x);
      std::fill(ones.data<float>().begin(), ones.data<float>().end(), 1.0f);
      const auto constant = ForwardAndBackward(ones, dy, options);
      ASSERT_TRUE(constant.ok());
      for (const float v : (*constant)[0].data<float>()) ASSERT_NEAR(v, 1, 1e-4) << mode;
    }
  }
}

TEST(Resize, NamesWhatIsWrong) {
  struct Bad {
    ops::ResizeOptions options;
    std::string message;
  };
  const std::vector<ops::ResizeAxis> good = {{.axis = 0, .size = 4}};
  const Bad cases[] = {
      {{.axes = {{.axis = 2, .size = 4}}}, "axis 2"},
      {{.axes = {{.axis = 0, .size = 4}, {.axis = -2, .size = 4}}}, "axis -2 is given twice"},
      {{.axes = {{.axis = 0, .size = 0}}}, "cannot become 0"},
      {{.axes = {{.axis = 0, .size = INT64_MAX}}}, "cannot become 9223372036854775807"},
      {{.axes = {{.axis = 0, .size = 4, .scale = -1}}}, "scale -1 of dimension 0"},
      {{.axes = {{.axis = 0, .size = 4, .roi_end = 1e300}}}, "region 0 to 1e+300"},
      {{.axes = good, .mode = "area"}, "mode 'area' is unknown"},
      {{.axes = good, .coordinates = "half"}, "coordinates 'half' is unknown"},
      {{.axes = good, .nearest = "round"}, "nearest 'round' is unknown"},
      {{.axes = good, .cubic_a = INFINITY}, "cubic_a is inf"},
      {{.axes = {{.axis = 0, .size = 1 << 24, .scale = 1e-6}}, .mode = "linear", .antialias = true},
       "weights an element"},
  };
  for (const Bad& bad : cases) {
    Builder b;
    ops::Resize(b, b.Input("x", {DType::kF32, {2, 3}}), bad.options);
    EXPECT_THAT(std::string(b.status().message()), HasSubstr(bad.message));
    Builder g;
    ops::ResizeGrad(g, g.Input("dy", {DType::kF32, {4, 3}}), Shape{2, 3}, bad.options);
    EXPECT_THAT(std::string(g.status().message()), HasSubstr(bad.message));
  }
  Builder b;
  ops::ResizeGrad(b, b.Input("dy", {DType::kF32, {5, 3}}), Shape{2, 3}, {.axes = good});
  EXPECT_THAT(std::string(b.status().message()), HasSubstr("(4,3)"));
  Builder i;
  ops::Resize(i, i.Input("x", {DType::kI32, {2, 3}}), {.axes = good, .mode = "linear"});
  EXPECT_FALSE(i.ok());
  for (const int64_t factor : {int64_t{0}, int64_t{-2}, int64_t{3}, INT64_MAX}) {
    Builder s;
    const Value x = s.Input("x", {DType::kF32, {1, 4, 2, 2}});
    EXPECT_FALSE(ops::PixelShuffle(s, x, factor).valid());
    EXPECT_THAT(std::string(s.status().message()), HasSubstr("x (1,4,2,2) with factor"));
    Builder u;
    ops::PixelUnshuffle(u, u.Input("x", {DType::kF32, {1, 4, 2, 2}}), factor);
    EXPECT_FALSE(u.ok());
  }
}

TEST(ConvTranspose, NamesWhatIsWrong) {
  const auto message = [](const ops::ConvOptions& options, std::vector<int64_t> more) {
    Builder b;
    const Value x = b.Input("x", {DType::kF32, {1, 2, 4}});
    const Value weight = b.Input("w", {DType::kF32, {2, 3, 3}});
    ops::ConvTranspose(b, x, weight, Value{}, options, more);
    return std::string(b.status().message());
  };
  const ops::ConvOptions good{.strides = {2}, .pads_begin = {0}, .pads_end = {0}, .dilations = {1}};
  EXPECT_EQ(message(good, {}), "");
  ops::ConvOptions bad = good;
  bad.strides = {INT64_MAX};
  EXPECT_THAT(message(bad, {}), HasSubstr("9223372036854775807 is outside [1,"));
  bad = good;
  bad.pads_begin = {INT64_MIN};
  EXPECT_THAT(message(bad, {}), HasSubstr("is outside [-"));
  bad.pads_begin = {20};
  EXPECT_THAT(message(bad, {}), HasSubstr("the padding leaves nothing of dimension 2"));
  EXPECT_THAT(message(good, {-1}), HasSubstr("padding -1 is outside [0,"));
  EXPECT_THAT(message(good, {1, 1}), HasSubstr("a list of 2"));
}

}  // namespace
}  // namespace tandem

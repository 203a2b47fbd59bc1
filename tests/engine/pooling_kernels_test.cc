// Pooling against window-by-window loops in double.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "engine/backend/cpu/kernels/pooling.h"
#include "engine/base/threads.h"

namespace tandem::cpu {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

size_t At(int64_t i) { return static_cast<size_t>(i); }

Floats Normal(int64_t n, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> draw;
  Floats x(At(n));
  for (float& v : x) v = draw(rng);
  return x;
}

// The output size for a floor or ceil division; in ceil mode a window must start within the input
// or the padding before it.
int64_t OutSize(int64_t in, int64_t kernel, int64_t stride, int64_t dilation, int64_t before,
                int64_t after, bool ceil) {
  const int64_t span = in + before + after - dilation * (kernel - 1) - 1;
  int64_t out = (span + (ceil ? stride - 1 : 0)) / stride + 1;
  if (ceil && (out - 1) * stride >= in + before) --out;
  return out;
}

Pool2dParams Make(int64_t planes, int64_t in_h, int64_t in_w, int64_t kernel, int64_t stride,
                  int64_t dilation = 1, bool pads = false, bool ceil = false) {
  Pool2dParams p{.planes = planes,
                 .in_h = in_h,
                 .in_w = in_w,
                 .kernel_h = kernel,
                 .kernel_w = kernel,
                 .stride_h = stride,
                 .stride_w = stride,
                 .dilation_h = dilation,
                 .dilation_w = dilation};
  if (pads) {  // four different ones where the kernel allows
    p.pad_top = kernel / 2;
    p.pad_left = (kernel - 1) / 2;
    p.pad_right = kernel / 2;
  }
  p.out_h = OutSize(in_h, kernel, stride, dilation, p.pad_top, p.pad_bottom, ceil);
  p.out_w = OutSize(in_w, kernel, stride, dilation, p.pad_left, p.pad_right, ceil);
  return p;
}

std::vector<Pool2dParams> Shapes() {
  std::vector<Pool2dParams> shapes;
  for (int64_t w = 2; w <= 70; ++w) shapes.push_back(Make(2, 5, w, 2, 2));
  for (const bool pads : {false, true}) {
    for (const bool ceil : {false, true}) {
      for (const int64_t stride : {1, 2, 3}) {
        for (const int64_t dilation : {1, 2}) {
          for (const int64_t kernel : {1, 2, 3, 5}) {
            shapes.push_back(Make(3, 14, 39, kernel, stride, dilation, pads, ceil));
          }
        }
      }
    }
  }
  shapes.push_back(Make(4, 7, 7, 7, 1));     // global
  shapes.push_back(Make(1, 60, 60, 60, 1));  // global, large
  shapes.push_back(Make(2, 30, 40, 20, 7));  // wide windows
  Pool2dParams odd = Make(2, 9, 21, 2, 2);   // kernel, stride, dilation and pads all differ
  odd.kernel_w = 4, odd.stride_w = 3, odd.dilation_w = 2, odd.pad_left = 3, odd.pad_bottom = 1;
  odd.out_w = OutSize(21, 4, 3, 2, 3, 0, false);
  odd.out_h = OutSize(9, 2, 2, 1, 0, 1, false);
  shapes.push_back(odd);
  return shapes;
}

std::string Describe(const Pool2dParams& p) {
  return "in " + std::to_string(p.in_h) + "x" + std::to_string(p.in_w) + " kernel " +
         std::to_string(p.kernel_h) + "x" + std::to_string(p.kernel_w) + " stride " +
         std::to_string(p.stride_w) + " dilation " + std::to_string(p.dilation_w) + " pads " +
         std::to_string(p.pad_top) + std::to_string(p.pad_left) + std::to_string(p.pad_bottom) +
         std::to_string(p.pad_right) + " out " + std::to_string(p.out_h) + "x" +
         std::to_string(p.out_w);
}

// visit(h, w, on the input) for the taps of output (oh, ow) that lie on the input or its padding.
template <class Visit>
void ForEachTap(const Pool2dParams& p, int64_t oh, int64_t ow, Visit visit) {
  for (int64_t kh = 0; kh < p.kernel_h; ++kh) {
    for (int64_t kw = 0; kw < p.kernel_w; ++kw) {
      const int64_t h = oh * p.stride_h - p.pad_top + kh * p.dilation_h;
      const int64_t w = ow * p.stride_w - p.pad_left + kw * p.dilation_w;
      if (h >= p.in_h + p.pad_bottom || w >= p.in_w + p.pad_right) continue;
      visit(h, w, h >= 0 && w >= 0 && h < p.in_h && w < p.in_w);
    }
  }
}

TEST(MaxPoolTest, MatchesTheWindowLoop) {
  for (const Pool2dParams& p : Shapes()) {
    const int64_t in = p.in_h * p.in_w, out = p.out_h * p.out_w;
    Floats x = Normal(p.planes * in, 1);
    for (float& v : x) v = std::round(v * 2) / 2;  // ties: the first must win
    x[At(in / 2)] = kNaN;
    x[0] = -kInf;
    Floats y(At(p.planes * out)), without_index(y);
    std::vector<int32_t> index(y.size());
    MaxPool2d(p, x.data(), y.data(), index.data());
    MaxPool2d(p, x.data(), without_index.data(), nullptr);
    ASSERT_EQ(std::memcmp(y.data(), without_index.data(), y.size() * sizeof(float)), 0);
    for (int64_t o = 0; o < p.planes * out; ++o) {
      const float* plane = &x[At(o / out * in)];
      float want = -kInf;
      int64_t place = -1;
      ForEachTap(p, o % out / p.out_w, o % p.out_w, [&](int64_t h, int64_t w, bool on_input) {
        if (!on_input) return;
        const float v = plane[h * p.in_w + w];
        if (place < 0 || v > want || std::isnan(v)) want = v, place = h * p.in_w + w;
      });
      ASSERT_EQ(index[At(o)], place) << Describe(p) << " at " << o;
      ASSERT_TRUE(y[At(o)] == want || (std::isnan(want) && std::isnan(y[At(o)]))) << Describe(p);
    }
  }
}

TEST(MaxPoolTest, BackwardAddsUpByIndex) {
  for (const Pool2dParams& p : Shapes()) {
    const int64_t in = p.in_h * p.in_w, out = p.out_h * p.out_w;
    const Floats x = Normal(p.planes * in, 1), dy = Normal(p.planes * out, 2);
    Floats y(dy.size()), dx(x.size(), 9.0f), want(x.size(), 0.0f);
    std::vector<int32_t> index(y.size());
    MaxPool2d(p, x.data(), y.data(), index.data());
    MaxPool2dBackward(p, dy.data(), index.data(), dx.data());
    for (int64_t o = 0; o < p.planes * out; ++o) {
      if (index[At(o)] >= 0) want[At(o / out * in + index[At(o)])] += dy[At(o)];
    }
    ASSERT_EQ(dx, want) << Describe(p);
  }
}

TEST(MaxPoolTest, WindowInThePaddingIsEmpty) {
  Pool2dParams p{.planes = 1, .in_h = 1, .in_w = 1, .out_h = 1, .out_w = 3, .pad_left = 1};
  const float x = 5, dy[3] = {1, 2, 3};
  float y[3], dx;
  int32_t index[3];
  MaxPool2d(p, &x, y, index);
  EXPECT_EQ(y[0], -kInf);
  EXPECT_EQ(y[1], 5);
  EXPECT_EQ(index[0], -1);
  EXPECT_EQ(index[1], 0);
  MaxPool2dBackward(p, dy, index, &dx);
  EXPECT_EQ(dx, 2);
  AveragePool2d(p, false, &x, y);
  EXPECT_EQ(y[0], 0);
  EXPECT_EQ(y[1], 5);
}

TEST(AveragePoolTest, MatchesTheWindowLoop) {
  for (const Pool2dParams& p : Shapes()) {
    for (const bool include_pad : {false, true}) {
      const int64_t in = p.in_h * p.in_w, out = p.out_h * p.out_w;
      const Floats x = Normal(p.planes * in, 1), dy = Normal(p.planes * out, 2);
      Floats y(dy.size()), dx(x.size(), 9.0f);
      Doubles want_dx(x.size());
      AveragePool2d(p, include_pad, x.data(), y.data());
      AveragePool2dBackward(p, include_pad, dy.data(), dx.data());
      for (int64_t o = 0; o < p.planes * out; ++o) {
        const int64_t oh = o % out / p.out_w, ow = o % p.out_w, plane = o / out * in;
        double sum = 0, count = 0;
        ForEachTap(p, oh, ow, [&](int64_t h, int64_t w, bool on_input) {
          if (on_input) sum += x[At(plane + h * p.in_w + w)];
          if (on_input || include_pad) ++count;
        });
        ASSERT_NEAR(y[At(o)], count == 0 ? 0 : sum / count, 1e-6) << Describe(p) << include_pad;
        ForEachTap(p, oh, ow, [&](int64_t h, int64_t w, bool on_input) {
          if (on_input) want_dx[At(plane + h * p.in_w + w)] += dy[At(o)] / count;
        });
      }
      for (size_t i = 0; i < dx.size(); ++i) {
        ASSERT_NEAR(dx[i], want_dx[i], 2e-6) << Describe(p) << include_pad;
      }
    }
  }
}

TEST(PoolingTest, PlanesAndThreadsChangeNothing) {
  for (const int64_t stride : {1, 2, 3}) {
    Pool2dParams p = Make(40, 24, 37, 3, stride, 1, true);
    const int64_t in = p.in_h * p.in_w, out = p.out_h * p.out_w;
    const Floats x = Normal(p.planes * in, 1);
    const auto run = [&](int64_t first, int64_t planes) {
      Pool2dParams part = p;
      part.planes = planes;
      Floats all(At(2 * planes * (out + in)));
      std::vector<int32_t> index(At(planes * out));
      float* y = all.data();
      float* mean = y + planes * out;
      float* dx = mean + planes * out;
      MaxPool2d(part, &x[At(first * in)], y, index.data());
      AveragePool2d(part, true, &x[At(first * in)], mean);
      MaxPool2dBackward(part, y, index.data(), dx);
      AveragePool2dBackward(part, true, y, dx + planes * in);
      return all;
    };
    const int before = ThreadCount();
    SetThreadCount(1);
    const Floats one = run(0, p.planes);
    SetThreadCount(2);
    EXPECT_EQ(run(0, p.planes), one);
    SetThreadCount(before);
    const Floats last = run(p.planes - 1, 1);
    EXPECT_EQ(std::memcmp(last.data(), &one[At((p.planes - 1) * out)], At(out) * sizeof(float)), 0);
  }
}

}  // namespace
}  // namespace tandem::cpu

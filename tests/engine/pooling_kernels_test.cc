// Pooling against window-by-window loops in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
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

void RunMaxPool(const Pool2dParams& p, const float* x, float* y, int64_t* index) {
  Floats scratch(At(MaxPool2dScratchBytes(p) / 4 + 16));
  void* aligned = &scratch[(16 - reinterpret_cast<uintptr_t>(scratch.data()) / 4 % 16) % 16];
  MaxPool2d(p, x, y, index, aligned);
}

// Both forms of the maximum against looking at every tap.
void ExpectMaxima(const Pool2dParams& p, const Floats& x) {
  const int64_t in = p.in_h * p.in_w, out = p.out_h * p.out_w;
  Floats y(At(p.planes * out)), without_index(y);
  std::vector<int64_t> index(y.size());
  RunMaxPool(p, x.data(), y.data(), index.data());
  RunMaxPool(p, x.data(), without_index.data(), nullptr);
  for (int64_t o = 0; o < p.planes * out; ++o) {
    const float* plane = &x[At(o / out * in)];
    float want = -kInf;
    int64_t place = -1;
    ForEachTap(p, o % out / p.out_w, o % p.out_w, [&](int64_t h, int64_t w, bool on_input) {
      if (!on_input) return;
      const float v = plane[h * p.in_w + w];
      if (place < 0 || v > want || (std::isnan(v) && !std::isnan(want))) {
        want = v, place = h * p.in_w + w;
      }
    });
    ASSERT_EQ(index[At(o)], place) << Describe(p) << " at " << o;
    for (const float got : {y[At(o)], without_index[At(o)]}) {
      ASSERT_TRUE(got == want || (std::isnan(want) && std::isnan(got)))
          << Describe(p) << " at " << o << ": " << got << ", expected " << want;
    }
  }
}

TEST(MaxPoolTest, MatchesTheWindowLoop) {
  for (const Pool2dParams& p : Shapes()) {
    const int64_t in = p.in_h * p.in_w;
    Floats x = Normal(p.planes * in, 1);
    for (float& v : x) v = std::round(v * 2) / 2;  // ties: the first must win
    x[At(in / 2)] = kNaN;
    x[0] = -kInf;
    ExpectMaxima(p, x);
  }
}

// A random pooling with windows of up to `widest`; every window holds an element, as MaxPool's
// inference sees to.
Pool2dParams RandomPool(std::mt19937& rng, int64_t widest, bool line) {
  const auto pick = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(rng);
  };
  Pool2dParams p{.planes = pick(1, 3)};
  const bool ceil = pick(0, 1) == 1;
  const auto draw = [&](int64_t most, int64_t& in, int64_t& kernel, int64_t& stride,
                        int64_t& before, int64_t& after, int64_t& out) {
    kernel = pick(1, most);
    stride = pick(0, 2) > 0 ? 1 : pick(1, 4);
    before = pick(0, 1) * pick(0, kernel - 1);
    after = pick(0, 1) * pick(0, kernel - 1);
    do {
      in = pick(1, 3 * most);
    } while (in + before + after < kernel);
    out = OutSize(in, kernel, stride, 1, before, after, ceil);
  };
  draw(widest, p.in_w, p.kernel_w, p.stride_w, p.pad_left, p.pad_right, p.out_w);
  p.in_h = p.out_h = 1;
  if (!line) draw(widest / 4 + 2, p.in_h, p.kernel_h, p.stride_h, p.pad_top, p.pad_bottom, p.out_h);
  p.slots = pick(1, 4);
  return p;
}

// Windows of any size, with padding, ceil mode, ties, NaN and infinities. To see one case again,
// set TANDEM_SEED to the seed that a failure prints.
TEST(MaxPoolTest, AnyWindowMatchesTheWindowLoop) {
  const char* replay = std::getenv("TANDEM_SEED");
  const uint32_t first = replay == nullptr ? 1 : static_cast<uint32_t>(std::atoll(replay));
  for (uint32_t seed = first; seed < first + (replay == nullptr ? 600 : 1); ++seed) {
    SCOPED_TRACE("TANDEM_SEED=" + std::to_string(seed));
    std::mt19937 rng(seed);
    const bool line = seed % 2 == 0;
    const int64_t widest = seed % 3 == 0 ? (line ? 300 : 24) : seed % 3 == 1 ? 40 : 8;
    const Pool2dParams p = RandomPool(rng, widest, line);
    Floats x(At(p.planes * p.in_h * p.in_w));
    const int kind = static_cast<int>(rng() % 5);
    for (float& v : x) {
      const uint32_t draw = rng();
      v = static_cast<float>(draw % (kind == 0 ? 3 : 1000000));  // few values: many ties
      if (kind == 1 && draw % 7 == 0) v = kNaN;
      if (kind == 2) v = draw % 3 == 0 ? -kInf : kInf;
      if (kind == 3) v = -kInf;
      if (kind == 4) v = draw % 2 == 0 ? -0.0f : 0.0f;
    }
    ExpectMaxima(p, x);
    if (HasFatalFailure()) return;
  }
}

// Tiles and threads: a row longer than any tile, in as many pieces as there is memory for.
TEST(MaxPoolTest, LongRowsAreCutWithoutATrace) {
  for (const int64_t kernel : {2, 3, 5, 16, 17, 31, 64, 65, 100, 1023, 20000}) {
    Pool2dParams p{.planes = 1, .in_h = 1, .in_w = 50000, .out_h = 1, .kernel_w = kernel};
    p.pad_left = kernel / 2, p.pad_right = kernel / 3;
    p.out_w = OutSize(p.in_w, kernel, 1, 1, p.pad_left, p.pad_right, false);
    p.slots = 3;
    Floats x = Normal(p.in_w, static_cast<uint32_t>(kernel));
    for (float& v : x) v = std::round(v * 64) / 64;
    Floats y(At(p.out_w));
    std::vector<int64_t> index(y.size());
    RunMaxPool(p, x.data(), y.data(), index.data());
    // The same by a monotonic queue of places, whose front is the first maximum.
    std::vector<int64_t> queue;
    size_t front = 0;
    int64_t next = 0;
    for (int64_t o = 0; o < p.out_w; ++o) {
      const int64_t start = o - p.pad_left;
      for (; next < std::min(start + kernel, p.in_w); ++next) {
        while (queue.size() > front && x[At(queue.back())] < x[At(next)]) queue.pop_back();
        queue.push_back(next);
      }
      while (queue[front] < start) ++front;
      ASSERT_EQ(index[At(o)], queue[front]) << kernel << " at " << o;
      ASSERT_EQ(y[At(o)], x[At(queue[front])]) << kernel << " at " << o;
    }
  }
}

// Sums of chunks of dy meet where a place has a run over their border; and places that do not rise
// are added one by one.
TEST(MaxPoolTest, BackwardOfLongRows) {
  for (const int64_t run : {1, 2, 7, 8, 9, 500, 100000, 400000}) {
    for (const bool shuffled : {false, true}) {
      const int64_t out = 300000, in = out / run + 3;
      const Floats dy = Normal(out, 1);
      std::vector<int64_t> index(At(out));
      for (int64_t o = 0; o < out; ++o) index[At(o)] = o / run;
      if (shuffled) std::swap(index[0], index[At(out - 1)]), index[At(out / 2)] = 5 * in;
      Doubles want(At(in)), size(At(in));
      for (int64_t o = 0; o < out; ++o) {
        const size_t at = At(std::min(index[At(o)], in - 1));
        want[at] += dy[At(o)];
        size[at] += std::abs(dy[At(o)]);
      }
      const int before = ThreadCount();
      Floats one(At(in), 9.0f), many(one);
      SetThreadCount(1);
      MaxPool2dBackward(1, in, out, dy.data(), index.data(), one.data());
      SetThreadCount(3);
      MaxPool2dBackward(1, in, out, dy.data(), index.data(), many.data());
      SetThreadCount(before);
      ASSERT_EQ(std::memcmp(one.data(), many.data(), one.size() * sizeof(float)), 0) << run;
      for (size_t i = 0; i < one.size(); ++i) {
        ASSERT_NEAR(one[i], want[i], 1e-5 * size[i] + 1e-6) << run << " " << shuffled << " " << i;
      }
    }
  }
}

TEST(MaxPoolTest, BackwardAddsUpByIndex) {
  for (const Pool2dParams& p : Shapes()) {
    const int64_t in = p.in_h * p.in_w, out = p.out_h * p.out_w;
    const Floats x = Normal(p.planes * in, 1), dy = Normal(p.planes * out, 2);
    Floats y(dy.size()), dx(x.size(), 9.0f);
    Doubles want(x.size());
    std::vector<int64_t> index(y.size());
    RunMaxPool(p, x.data(), y.data(), index.data());
    MaxPool2dBackward(p.planes, in, out, dy.data(), index.data(), dx.data());
    for (int64_t o = 0; o < p.planes * out; ++o) {
      want[At(o / out * in + std::max<int64_t>(index[At(o)], 0))] += dy[At(o)];
    }
    for (size_t i = 0; i < dx.size(); ++i) ASSERT_NEAR(dx[i], want[i], 4e-6) << Describe(p);
  }
}

TEST(MaxPoolTest, WindowInThePaddingIsEmpty) {
  Pool2dParams p{.planes = 1, .in_h = 1, .in_w = 1, .out_h = 1, .out_w = 3, .pad_left = 1};
  const float x = 5;
  float y[3];
  int64_t index[3];
  RunMaxPool(p, &x, y, index);
  EXPECT_EQ(y[0], -kInf);
  EXPECT_EQ(y[1], 5);
  EXPECT_EQ(index[0], -1);
  EXPECT_EQ(index[1], 0);
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
      std::vector<int64_t> index(At(planes * out));
      float* y = all.data();
      float* mean = y + planes * out;
      float* dx = mean + planes * out;
      RunMaxPool(part, &x[At(first * in)], y, index.data());
      AveragePool2d(part, true, &x[At(first * in)], mean);
      MaxPool2dBackward(planes, in, out, y, index.data(), dx);
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

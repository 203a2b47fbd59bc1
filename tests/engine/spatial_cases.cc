// Cases of convolution and pooling: a few of each; conv_test.cc and pool_test.cc sweep them.
#include <cmath>
#include <limits>

#include "tests/engine/op_cases.h"

namespace tandem::testing {
namespace {

using Ints = std::vector<int64_t>;

// A window over H and W of (N, C, H, W); one over W alone is one over (1, W).
struct Window {
  Ints kernel, strides, begin, end, dilations;
  int64_t groups = 1;

  ops::ConvOptions Conv(int rank) const {
    return {Cut(strides, rank), Cut(begin, rank), Cut(end, rank), Cut(dilations, rank), groups};
  }
  ops::PoolOptions Pool(int rank) const {
    return {.kernel = Cut(kernel, rank),
            .strides = Cut(strides, rank),
            .pads_begin = Cut(begin, rank),
            .pads_end = Cut(end, rank),
            .dilations = Cut(dilations, rank)};
  }
  static Ints Cut(const Ints& values, int rank) {
    return {values.end() - (rank - 2), values.end()};
  }
  int64_t Out(const Shape& x, int i) const {
    return (x[i + 2] + begin[i] + end[i] - (kernel[i] - 1) * dilations[i] - 1) / strides[i] + 1;
  }
  // The input row or column of tap k of output o, along i.
  int64_t At(int i, int64_t o, int64_t k) const {
    return o * strides[i] - begin[i] + k * dilations[i];
  }
};

Shape Planes(const Shape& s) { return s.rank() == 4 ? s : Shape{s[0], s[1], 1, s[2]}; }
Shape Unplanes(const Shape& s, int rank) { return rank == 4 ? s : Shape{s[0], s[1], s[3]}; }

// visit(output, input, weight) of every product of a convolution; planes throughout.
template <class Visit>
void ForEachProduct(const Window& v, const Shape& x, const Shape& w, const Shape& y, Visit visit) {
  const int64_t per_group = y[1] / v.groups;
  for (size_t i = 0; i < static_cast<size_t>(y.num_elements()); ++i) {
    const Ints o = Coordinates(y, static_cast<int64_t>(i));
    for (int64_t c = 0; c < w[1]; ++c) {
      for (int64_t kh = 0; kh < w[2]; ++kh) {
        for (int64_t kw = 0; kw < w[3]; ++kw) {
          const int64_t h = v.At(0, o[2], kh), col = v.At(1, o[3], kw);
          if (h < 0 || h >= x[2] || col < 0 || col >= x[3]) continue;
          visit(i, Offset(x, {o[0], o[1] / per_group * w[1] + c, h, col}),
                Offset(w, {o[1], c, kh, kw}));
        }
      }
    }
  }
}

struct ConvSpec {
  const char* name;
  Shape x;
  int64_t outputs;
  Window window;
  Shape bench = {};
};

std::vector<ConvSpec> ConvSpecs() {
  return {{"pad", {2, 3, 5, 6}, 4, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, {1, 1}}, {4, 64, 56, 56}},
          {"strided", {1, 2, 7, 8}, 2, {{3, 2}, {2, 3}, {1, 0}, {0, 1}, {1, 1}}},
          {"groups", {1, 4, 5, 5}, 6, {{2, 2}, {1, 1}, {0, 0}, {0, 0}, {1, 2}, 2}},
          {"line", {2, 2, 9}, 3, {{1, 3}, {1, 2}, {0, 2}, {0, 1}, {1, 1}}}};
}

void AddConv(std::vector<OpCase>& cases, const ConvSpec& s) {
  const int rank = s.x.rank();
  const Window v = s.window;
  const ops::ConvOptions options = v.Conv(rank);
  const Shape x = Planes(s.x), w{s.outputs, x[1] / v.groups, v.kernel[0], v.kernel[1]};
  const Shape y{x[0], s.outputs, v.Out(x, 0), v.Out(x, 1)};
  const Shape w_shape = Unplanes(w, rank), y_shape = Unplanes(y, rank), x_shape = s.x;
  OpCase c;
  c.name = absl::StrCat("Conv_", s.name);
  c.inputs = {{.shape = x_shape}, {.shape = w_shape}, {.shape = {s.outputs}}};
  c.build = [=](Builder& b, const Values& in) {
    return Values{ops::Conv(b, in[0], in[1], in[2], options)};
  };
  c.reference = [=](const Refs& in) {
    Ref out(y_shape);
    const int64_t plane = y[2] * y[3];
    for (size_t i = 0; i < out.v.size(); ++i) {
      out.v[i] = in[2].v[static_cast<int64_t>(i) / plane % s.outputs];
    }
    ForEachProduct(v, x, w, y,
                   [&](size_t o, int64_t i, int64_t k) { out.v[o] += in[0].v[i] * in[1].v[k]; });
    return Refs{out};
  };
  c.tolerance = 2e-5;
  c.gradient_tolerance = 2e-4;
  if (s.bench.rank() == 4) {
    c.bench = {
        {.shape = s.bench}, {.shape = {64, s.bench[1], v.kernel[0], v.kernel[1]}}, {.shape = {64}}};
  }
  cases.push_back(c);

  OpCase dx = c;
  dx.name = absl::StrCat("ConvInputGrad_", s.name);
  dx.inputs = {{.shape = y_shape}, {.shape = w_shape}};
  dx.bench = {};
  dx.build = [=](Builder& b, const Values& in) {
    return Values{ops::ConvInputGrad(b, in[0], in[1], x_shape, options)};
  };
  dx.reference = [=](const Refs& in) {
    Ref out(x_shape);
    ForEachProduct(v, x, w, y,
                   [&](size_t o, int64_t i, int64_t k) { out.v[i] += in[0].v[o] * in[1].v[k]; });
    return Refs{out};
  };
  cases.push_back(dx);

  OpCase dw = dx;
  dw.name = absl::StrCat("ConvWeightGrad_", s.name);
  dw.inputs = {{.shape = y_shape}, {.shape = x_shape}};
  dw.build = [=](Builder& b, const Values& in) {
    return Values{ops::ConvWeightGrad(b, in[0], in[1], w_shape, options)};
  };
  dw.reference = [=](const Refs& in) {
    Ref out(w_shape);
    ForEachProduct(v, x, w, y,
                   [&](size_t o, int64_t i, int64_t k) { out.v[k] += in[0].v[o] * in[1].v[i]; });
    return Refs{out};
  };
  cases.push_back(dw);
}

struct PoolSpec {
  const char* name;
  Shape x;
  Window window;
  Shape bench = {};
};

std::vector<PoolSpec> PoolSpecs() {
  return {
      {"two", {2, 3, 6, 7}, {{2, 2}, {2, 2}, {0, 0}, {0, 0}, {1, 1}}, {8, 64, 112, 112}},
      {"three", {1, 2, 6, 9}, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, {1, 1}}, {8, 64, 112, 112}},
      {"wide", {1, 2, 11, 40}, {{7, 19}, {1, 2}, {3, 9}, {3, 9}, {1, 1}}, {8, 64, 112, 112}},
      {"line_3", {1, 2, 30}, {{1, 3}, {1, 1}, {0, 1}, {0, 1}, {1, 1}}, {1, 1, 10'000'000}},
      {"line_31", {1, 1, 70}, {{1, 31}, {1, 1}, {0, 0}, {0, 0}, {1, 1}}, {1, 1, 10'000'000}},
      {"line_1023", {1, 1, 1100}, {{1, 1023}, {1, 1}, {0, 5}, {0, 7}, {1, 1}}, {1, 1, 10'000'000}},
      {"dilated", {1, 1, 7, 8}, {{2, 3}, {1, 2}, {0, 1}, {1, 0}, {2, 2}}}};
}

// visit(output, input) of every tap that lies on the input.
template <class Visit>
void ForEachTap(const Window& v, const Shape& x, const Shape& y, Visit visit) {
  Window depthwise = v;
  depthwise.groups = x[1];
  ForEachProduct(depthwise, x, Shape{x[1], 1, v.kernel[0], v.kernel[1]}, y,
                 [&](size_t o, int64_t i, int64_t) { visit(o, static_cast<size_t>(i)); });
}

void AddPool(std::vector<OpCase>& cases, const PoolSpec& s) {
  const int rank = s.x.rank();
  const Window v = s.window;
  const ops::PoolOptions options = v.Pool(rank);
  const Shape x = Planes(s.x), y{x[0], x[1], v.Out(x, 0), v.Out(x, 1)};
  const Shape x_shape = s.x, y_shape = Unplanes(y, rank);
  const int64_t plane = x[2] * x[3], out_plane = y[2] * y[3];
  const bool small = x.num_elements() < 300;
  OpCase c;
  c.name = absl::StrCat("MaxPool_", s.name);
  c.inputs = {{.shape = x_shape}};
  c.build = [=](Builder& b, const Values& in) { return ops::MaxPool(b, in[0], options); };
  c.reference = [=](const Refs& in) {
    Ref out(y_shape), index(y_shape);
    out.v.assign(out.v.size(), -std::numeric_limits<double>::infinity());
    ForEachTap(v, x, y, [&](size_t o, size_t i) {
      if (in[0].v[i] <= out.v[o]) return;
      out.v[o] = in[0].v[i];
      index.v[o] = static_cast<double>(static_cast<int64_t>(i) % plane);
    });
    return Refs{out, index};
  };
  c.tolerance = 0;
  c.gradient = small;
  if (s.bench.rank() > 0) c.bench = {{.shape = s.bench}};
  cases.push_back(c);

  OpCase value = c;  // without the indices
  value.name += "_values";
  value.gradient = false;
  value.build = [=](Builder& b, const Values& in) {
    return Values{ops::MaxPool(b, in[0], options)[0]};
  };
  value.reference = [=, both = c.reference](const Refs& in) { return Refs{both(in)[0]}; };
  cases.push_back(value);

  if (small) {
    // Any places do: as MaxPool gives them, in order, some twice.
    OpCase grad;
    grad.name = absl::StrCat("MaxPoolGrad_", s.name);
    grad.inputs = {{.shape = y_shape}, {.shape = y_shape, .dtype = DType::kI64}};
    for (int64_t o = 0; o < y.num_elements(); ++o) {
      const int64_t place = o % out_plane * plane / out_plane;
      grad.inputs[1].values.push_back(static_cast<double>(place - place % 3));
    }
    grad.build = [=](Builder& b, const Values& in) {
      return Values{ops::MaxPoolGrad(b, in[0], in[1], x_shape)};
    };
    grad.reference = [=](const Refs& in) {
      Ref out(x_shape);
      for (size_t o = 0; o < in[0].v.size(); ++o) {
        const int64_t at = static_cast<int64_t>(o) / out_plane * plane;
        out.v[at + static_cast<int64_t>(in[1].v[o])] += in[0].v[o];
      }
      return Refs{out};
    };
    cases.push_back(grad);
  }

  OpCase mean = value;
  mean.name = absl::StrCat("AveragePool_", s.name);
  mean.gradient = small;
  mean.tolerance = 4e-6;
  if (rank == 3) mean.bench = {};
  mean.build = [=](Builder& b, const Values& in) {
    return Values{ops::AveragePool(b, in[0], options)};
  };
  const auto counts = [=] {
    Ref count(y_shape);
    ForEachTap(v, x, y, [&](size_t o, size_t) { ++count.v[o]; });
    return count;
  };
  mean.reference = [=](const Refs& in) {
    Ref out(y_shape);
    const Ref count = counts();
    ForEachTap(v, x, y, [&](size_t o, size_t i) { out.v[o] += in[0].v[i] / count.v[o]; });
    return Refs{out};
  };
  cases.push_back(mean);

  OpCase spread = mean;
  spread.name = absl::StrCat("AveragePoolGrad_", s.name);
  spread.inputs = {{.shape = y_shape}};
  spread.bench = {};
  spread.build = [=](Builder& b, const Values& in) {
    return Values{ops::AveragePoolGrad(b, in[0], x_shape, options)};
  };
  spread.reference = [=](const Refs& in) {
    Ref out(x_shape);
    const Ref count = counts();
    ForEachTap(v, x, y, [&](size_t o, size_t i) { out.v[i] += in[0].v[o] / count.v[o]; });
    return Refs{out};
  };
  cases.push_back(spread);
}

// The whole of pooling's forward and backward, to be measured.
void AddPoolTraining(std::vector<OpCase>& cases, const PoolSpec& s) {
  if (s.x.rank() != 3) return;
  const ops::PoolOptions options = s.window.Pool(3);
  OpCase c;
  c.name = absl::StrCat("MaxPoolGrad_after_", s.name);
  const Shape y{s.x[0], s.x[1], s.window.Out(Planes(s.x), 1)};
  c.inputs = {{.shape = s.x, .differentiable = false}, {.shape = y}};
  c.build = [=](Builder& b, const Values& in) {
    if (!b.ok()) return Values{Value{}};
    const Shape shape = b.shape(in[0]);
    return Values{ops::MaxPoolGrad(b, in[1], ops::MaxPool(b, in[0], options)[1], shape)};
  };
  const Window v = s.window;
  c.reference = [v, x = s.x](const Refs& in) {
    Ref out(x);
    const Shape planes = Planes(x), y_planes = Planes(in[1].shape);
    std::vector<int64_t> best(in[1].v.size(), -1);
    ForEachTap(v, planes, y_planes, [&](size_t o, size_t i) {
      if (best[o] < 0 || in[0].v[i] > in[0].v[best[o]]) best[o] = static_cast<int64_t>(i);
    });
    for (size_t o = 0; o < best.size(); ++o) out.v[best[o]] += in[1].v[o];
    return Refs{out};
  };
  c.gradient = false;
  c.tolerance = 1e-5;
  const Shape& bench = s.bench;
  c.bench = {{.shape = bench}, {.shape = {bench[0], bench[1], s.window.Out(Planes(bench), 1)}}};
  cases.push_back(c);
}

}  // namespace

std::vector<OpCase> SpatialCases() {
  std::vector<OpCase> cases;
  for (const ConvSpec& s : ConvSpecs()) AddConv(cases, s);
  for (const PoolSpec& s : PoolSpecs()) {
    AddPool(cases, s);
    AddPoolTraining(cases, s);
  }
  return cases;
}

}  // namespace tandem::testing

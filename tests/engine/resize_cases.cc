// Cases of resampling and of what stands in for it.
#include <algorithm>
#include <cmath>

#include "tests/engine/op_cases.h"

namespace tandem::testing {
namespace {

struct Spec {
  const char* name;
  Shape x;
  ops::ResizeOptions options;
  Shape bench = {};
  std::vector<ops::ResizeAxis> bench_axes = {};
};

std::vector<Spec> Specs() {
  const auto to = [](int64_t h, int64_t w) {
    return std::vector<ops::ResizeAxis>{{.axis = -2, .size = h}, {.axis = -1, .size = w}};
  };
  std::vector<Spec> specs = {
      {"nearest_2",
       {2, 3, 4, 5},
       {to(8, 10), "nearest", "asymmetric", "floor"},
       {1, 64, 256, 256},
       to(512, 512)},
      {"linear_2", {2, 3, 4, 5}, {to(8, 10), "linear"}, {1, 64, 256, 256}, to(512, 512)},
      {"cubic_2", {2, 3, 4, 5}, {to(8, 10), "cubic"}, {1, 64, 256, 256}, to(512, 512)},
      {"linear_small_2", {1, 2, 3, 9}, {to(6, 18), "linear"}, {16, 3, 128, 128}, to(256, 256)},
      {"linear_odd", {1, 2, 5, 19}, {to(7, 31), "linear"}, {1, 64, 256, 256}, to(400, 391)},
      {"linear_half", {1, 2, 6, 40}, {to(3, 20), "linear"}, {1, 64, 512, 512}, to(256, 256)},
      {"linear_antialias", {1, 1, 9, 50}, {to(3, 17), "linear"}, {1, 64, 512, 512}, to(128, 128)},
      {"linear_corners", {1, 1, 4, 5}, {to(9, 7), "linear", "align_corners"}},
      {"linear_corner", {1, 1, 4, 5}, {to(1, 1), "linear", "align_corners"}},
      {"linear_pytorch", {1, 1, 4, 5}, {to(1, 9), "linear", "pytorch_half_pixel"}},
      {"linear_asymmetric", {1, 1, 4, 5}, {to(9, 3), "linear", "asymmetric"}},
      {"linear_symmetric", {1, 1, 4, 5}, {to(8, 12), "linear", "half_pixel_symmetric"}},
      {"linear_crop", {1, 1, 6, 5}, {to(4, 7), "linear", "tf_crop_and_resize"}},
      {"linear_mirrored", {1, 1, 3, 64}, {to(3, 40), "linear", "tf_crop_and_resize"}},
      {"cubic_exclude", {1, 1, 6, 5}, {to(9, 8), "cubic"}},
      {"cubic_antialias", {1, 1, 12, 30}, {to(5, 13), "cubic"}},
      {"ceil", {2, 2, 5, 7}, {to(8, 3), "nearest", "half_pixel", "ceil"}},
      {"prefer_ceil", {2, 2, 5, 6}, {to(5, 12), "nearest", "half_pixel", "round_prefer_ceil"}},
      {"prefer_floor", {2, 2, 6, 6}, {to(3, 4), "nearest", "align_corners"}},
      {"row", {2, 3, 40}, {{{.axis = 2, .size = 77}}, "linear"}},
      {"row_gather", {1, 200}, {{{.axis = 1, .size = 21}}, "linear"}},
      {"rows", {2, 4, 3, 2}, {{{.axis = 1, .size = 6}}, "linear"}},
      {"volume",
       {1, 2, 3, 4, 5},
       {{{.axis = 4, .size = 9}, {.axis = 2, .size = 5}, {.axis = 3, .size = 4}}, "linear"},
       {1, 8, 32, 64, 64},
       {{.axis = 4, .size = 128}, {.axis = 2, .size = 64}, {.axis = 3, .size = 128}}},
      {"nothing", {2, 3}, {{}, "linear"}},
      {"empty", {0, 4, 4}, {{{.axis = 2, .size = 8}}, "linear"}},
  };
  for (Spec& s : specs) {
    const std::string name = s.name;
    s.options.antialias = name.find("antialias") != std::string::npos;
    s.options.exclude_outside = name == "cubic_exclude" || name == "cubic_antialias";
    if (name == "cubic_antialias") s.options.cubic_a = -0.5;
    if (name == "linear_symmetric") {
      s.options.axes[0].scale = 1.8;
      s.options.axes[1].scale = 2.5;
    }
    if (name == "linear_mirrored") {  // with columns on both sides that no output looks at
      s.options.axes[1].roi_start = 0.9, s.options.axes[1].roi_end = 0.1;
    }
    if (name == "linear_crop") {
      s.options.axes[0].roi_start = 0.2, s.options.axes[0].roi_end = 0.7;
      s.options.axes[1].roi_start = 0.9, s.options.axes[1].roi_end = -0.3;  // mirrored, and beyond
    }
  }
  return specs;
}

double Place(const ops::ResizeOptions& r, const ops::ResizeAxis& a, double n, double o) {
  const auto size = static_cast<double>(a.size);
  const double scale = a.scale == 0 ? size / n : a.scale;
  if (r.coordinates == "asymmetric") return o / scale;
  if (r.coordinates == "align_corners") return a.size == 1 ? 0 : o * (n - 1) / (size - 1);
  if (r.coordinates == "pytorch_half_pixel" && a.size == 1) return -0.5;
  if (r.coordinates == "half_pixel_symmetric") {
    return n / 2 * (1 - size / (scale * n)) + (o + 0.5) / scale - 0.5;
  }
  if (r.coordinates == "tf_crop_and_resize") {
    return a.roi_start * (n - 1) + o * (a.roi_end - a.roi_start) * (n - 1) / (size - 1);
  }
  return (o + 0.5) / scale - 0.5;
}

double Nearest(const std::string& how, double place) {
  if (how == "floor") return std::floor(place);
  if (how == "ceil") return std::ceil(place);
  return how == "round_prefer_floor" ? std::ceil(place - 0.5) : std::floor(place + 0.5);
}

// The filter at that distance: a triangle, or Keys' cubic.
double FilterAt(const ops::ResizeOptions& r, double distance) {
  const double x = std::abs(distance), a = r.cubic_a;
  if (r.mode == "linear") return std::max(0.0, 1 - x);
  if (x <= 1) return (a + 2) * x * x * x - (a + 3) * x * x + 1;
  return x < 2 ? a * x * x * x - 5 * a * x * x + 8 * a * x - 4 * a : 0;
}

// The weight of every input in output o.
std::vector<double> Row(const ops::ResizeOptions& r, const ops::ResizeAxis& a, int64_t n,
                        int64_t o) {
  std::vector<double> row(n, 0.0);
  const double place = Place(r, a, static_cast<double>(n), static_cast<double>(o));
  const auto inside = [n](double tap) {
    return static_cast<size_t>(std::clamp(tap, 0.0, static_cast<double>(n - 1)));
  };
  if (r.mode == "nearest") {
    row[inside(Nearest(r.nearest, place))] = 1;
    return row;
  }
  const double scale =
      a.scale == 0 ? static_cast<double>(a.size) / static_cast<double>(n) : a.scale;
  const double stretch = r.antialias ? std::max(1.0, 1 / scale) : 1.0;
  double total = 0;
  for (double tap = std::floor(place - 3 * stretch); tap <= place + 3 * stretch; ++tap) {
    if (r.exclude_outside && (tap < 0 || tap >= static_cast<double>(n))) continue;
    const double weight = FilterAt(r, (tap - place) / stretch);
    row[inside(tap)] += weight;
    total += weight;
  }
  for (double& weight : row) weight /= total;
  return row;
}

// Along one dimension; transposed, from its outputs to its inputs.
Ref Apply(const Ref& x, const ops::ResizeOptions& r, const ops::ResizeAxis& a, int64_t n,
          bool transposed) {
  const int axis = static_cast<int>(a.axis < 0 ? a.axis + x.shape.rank() : a.axis);
  Shape shape = x.shape;
  shape[axis] = transposed ? n : a.size;
  Ref y(shape);
  std::vector<std::vector<double>> rows;
  for (int64_t o = 0; o < a.size; ++o) rows.push_back(Row(r, a, n, o));
  for (size_t i = 0; i < x.v.size(); ++i) {
    std::vector<int64_t> at = Coordinates(x.shape, static_cast<int64_t>(i));
    const int64_t from = at[axis];
    for (int64_t to = 0; to < shape[axis]; ++to) {
      at[axis] = to;
      y.v[Offset(shape, at)] += x.v[i] * (transposed ? rows[from][to] : rows[to][from]);
    }
  }
  return y;
}

Shape Resized(Shape x, const ops::ResizeOptions& r) {
  for (const ops::ResizeAxis& a : r.axes) {
    x[static_cast<int>(a.axis < 0 ? a.axis + x.rank() : a.axis)] = a.size;
  }
  return x;
}

void AddResize(std::vector<OpCase>& cases, const Spec& s) {
  const auto size = [x = s.x](const ops::ResizeAxis& a) {
    return x[static_cast<int>(a.axis < 0 ? a.axis + x.rank() : a.axis)];
  };
  OpCase c;
  c.name = absl::StrCat("Resize_", s.name);
  c.inputs = {{.shape = s.x}};
  // The same function builds the case and what is measured, by the shape that it is given.
  const auto options = [s](const Shape& x) {
    ops::ResizeOptions r = s.options;
    if (x == s.bench) r.axes = s.bench_axes;
    return r;
  };
  c.build = [=](Builder& b, const Values& in) {
    return Values{ops::Resize(b, in[0], options(b.shape(in[0])))};
  };
  c.reference = [=](const Refs& in) {
    Ref y = in[0];
    for (const ops::ResizeAxis& a : s.options.axes) y = Apply(y, s.options, a, size(a), false);
    return Refs{y};
  };
  if (s.bench.rank() > 0) c.bench = {{.shape = s.bench}};
  cases.push_back(c);

  OpCase wide = c;
  wide.name += "_f64";
  wide.inputs[0].dtype = DType::kF64;
  wide.tolerance = 1e-14;
  wide.bench = {};
  cases.push_back(wide);

  OpCase grad = c;
  grad.name = absl::StrCat("ResizeGrad_", s.name);
  grad.inputs = {{.shape = Resized(s.x, s.options)}};
  grad.tolerance = 1e-5;
  const Shape bench_y = s.bench.rank() > 0 ? Resized(s.bench, options(s.bench)) : Shape{};
  grad.build = [=](Builder& b, const Values& in) {
    const Shape x = s.bench.rank() > 0 && b.shape(in[0]) == bench_y ? s.bench : s.x;
    return Values{ops::ResizeGrad(b, in[0], x, options(x))};
  };
  grad.reference = [=](const Refs& in) {
    Ref dx = in[0];
    for (const ops::ResizeAxis& a : s.options.axes) dx = Apply(dx, s.options, a, size(a), true);
    return Refs{dx};
  };
  if (s.bench.rank() > 0) grad.bench = {{.shape = bench_y}};
  cases.push_back(grad);
}

// Nearest neighbours of any type, each in the width that its kernel copies.
void AddNearestTypes(std::vector<OpCase>& cases) {
  const ops::ResizeOptions options{.axes = {{.axis = 0, .size = 5}, {.axis = 1, .size = 7}}};
  for (const DType dtype : {DType::kU8, DType::kBool, DType::kI32, DType::kI64, DType::kBF16}) {
    OpCase c;
    c.name = absl::StrCat("Resize_", std::string(DTypeName(dtype)));
    c.inputs = {{.shape = {3, 4}, .dtype = dtype, .low = 0, .high = 9}};
    c.build = [=](Builder& b, const Values& in) { return Values{ops::Resize(b, in[0], options)}; };
    c.reference = [=](const Refs& in) {
      const Ref y = Apply(in[0], options, options.axes[0], 3, false);
      return Refs{Apply(y, options, options.axes[1], 4, false)};
    };
    c.gradient = false;
    c.tolerance = 0;
    cases.push_back(c);
  }
}

void AddShuffles(std::vector<OpCase>& cases) {
  for (const int64_t r : {1, 2, 3, 4, 5}) {
    OpCase c;
    c.name = absl::StrCat("PixelShuffle_", r);
    c.inputs = {{.shape = {1, 2 * r * r, 2, 19}}};
    c.build = [r](Builder& b, const Values& in) { return Values{ops::PixelShuffle(b, in[0], r)}; };
    c.reference = [r](const Refs& in) {
      Ref y(Shape{1, 2, 2 * r, 19 * r});
      for (size_t i = 0; i < y.v.size(); ++i) {
        const auto at = Coordinates(y.shape, static_cast<int64_t>(i));
        const int64_t channel = at[1] * r * r + at[2] % r * r + at[3] % r;
        y.v[i] = in[0].v[Offset(in[0].shape, {at[0], channel, at[2] / r, at[3] / r})];
      }
      return Refs{y};
    };
    c.tolerance = 0;
    c.gradient_tolerance = 1e-4;
    if (r >= 2 && r <= 4) c.bench = {{.shape = {4, 16 * r * r, 128, 128}}};
    cases.push_back(c);

    OpCase back = c;
    back.name = absl::StrCat("PixelUnshuffle_", r);
    back.inputs = {{.shape = {1, 2, 2 * r, 19 * r}}};
    back.build = [r](Builder& b, const Values& in) {
      return Values{ops::PixelUnshuffle(b, in[0], r)};
    };
    back.reference = [r](const Refs& in) {
      Ref y(Shape{1, 2 * r * r, 2, 19});
      for (size_t i = 0; i < in[0].v.size(); ++i) {
        const auto at = Coordinates(in[0].shape, static_cast<int64_t>(i));
        const int64_t channel = at[1] * r * r + at[2] % r * r + at[3] % r;
        y.v[Offset(y.shape, {at[0], channel, at[2] / r, at[3] / r})] = in[0].v[i];
      }
      return Refs{y};
    };
    if (r >= 2 && r <= 4) back.bench = {{.shape = {4, 16, 128 * r, 128 * r}}};
    cases.push_back(back);
  }
}

// Each input element adds its multiple of the kernel to the output.
void AddConvTranspose(std::vector<OpCase>& cases) {
  struct Transposed {
    const char* name;
    int64_t stride, begin, end, dilation, more, size;
  };
  const Transposed table[] = {{"plain", 2, 1, 1, 1, 0, 8},
                              {"output_padding", 2, 1, 1, 1, 1, 9},
                              {"beyond", 3, 0, 0, 1, 2, 15},
                              {"around", 1, -1, -2, 2, 0, 13}};
  for (const Transposed& t : table) {
    OpCase c;
    c.name = absl::StrCat("ConvTranspose_", t.name);
    c.inputs = {{.shape = {1, 2, 4}}, {.shape = {2, 3, 4}}, {.shape = {3}}};
    c.build = [t](Builder& b, const Values& in) {
      return Values{ops::ConvTranspose(b, in[0], in[1], in[2],
                                       {.strides = {t.stride},
                                        .pads_begin = {t.begin},
                                        .pads_end = {t.end},
                                        .dilations = {t.dilation}},
                                       {t.more})};
    };
    c.reference = [t](const Refs& in) {
      Ref y(Shape{1, 3, t.size});
      for (int64_t i = 0; i < 3 * t.size; ++i) y.v[i] = in[2].v[i / t.size];
      for (int64_t channel = 0; channel < 2; ++channel) {
        for (int64_t i = 0; i < 4; ++i) {
          for (int64_t k = 0; k < 12; ++k) {
            const int64_t at = i * t.stride + k % 4 * t.dilation - t.begin;
            if (at < 0 || at >= t.size) continue;
            y.v[k / 4 * t.size + at] += in[0].v[channel * 4 + i] * in[1].v[channel * 12 + k];
          }
        }
      }
      return Refs{y};
    };
    c.gradient_tolerance = 1e-4;
    cases.push_back(c);
  }
}

void AddMaxUnpool(std::vector<OpCase>& cases) {
  OpCase c;
  c.name = "MaxUnpool";
  c.inputs = {{.shape = {2, 1, 2, 2}},
              {.shape = {2, 1, 2, 2}, .dtype = DType::kI64, .values = {1, 6, 8, 15, 0, 0, 13, 11}}};
  c.build = [](Builder& b, const Values& in) {
    return Values{ops::MaxUnpool(b, in[0], in[1], Shape{2, 1, 4, 4})};
  };
  c.reference = [](const Refs& in) {
    Ref y(Shape{2, 1, 4, 4});
    for (int64_t i = 0; i < 8; ++i) {
      y.v[i / 4 * 16 + static_cast<int64_t>(in[1].v[i])] += in[0].v[i];
    }
    return Refs{y};
  };
  cases.push_back(c);
}

}  // namespace

std::vector<OpCase> ResizeCases() {
  std::vector<OpCase> cases;
  for (const Spec& s : Specs()) AddResize(cases, s);
  AddNearestTypes(cases);
  AddShuffles(cases);
  AddConvTranspose(cases);
  AddMaxUnpool(cases);
  return cases;
}

}  // namespace tandem::testing

// Cases of the random operators under the key {0, 0}: the numbers that their definition gives, in
// double and one at a time.
#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "engine/base/philox.h"
#include "tests/engine/op_cases.h"
#include "tests/engine/special_functions.h"

namespace tandem::testing {
namespace {

using ops::Noise;

uint64_t Pair(uint32_t low, uint32_t high) { return low | uint64_t{high} << 32; }

// Philox's words for the key {0, 0}.
Philox::Words Words(int64_t stream, int64_t block) {
  return Philox::Block(Philox::Fold(0, 0), static_cast<uint64_t>(stream),
                       static_cast<uint64_t>(block));
}

// Of u in (0, 1) and 1 - u.
double Transform(Noise noise, double u, double rest) {
  const double log_u = rest < 0.5 ? std::log1p(-rest) : std::log(u);
  const double log_rest = u < 0.5 ? std::log1p(-u) : std::log(rest);
  switch (noise) {
    case Noise::kUniform:
      return u;
    case Noise::kExponential:
      return -log_u;
    case Noise::kGumbel:
      return -std::log(-log_u);
    case Noise::kLogistic:
      return log_u - log_rest;
    default:
      return -log_u;
  }
}

double BoxMuller(double u, double turns, bool second) {
  const double radius = std::sqrt(-2 * std::log(u)), angle = 2 * std::numbers::pi * turns;
  return radius * (second ? std::sin(angle) : std::cos(angle));
}

double NoiseF32(Noise noise, int64_t stream, int64_t i) {
  const Philox::Words w = Words(stream, i / 64 * 16 + i % 16);
  const auto k = static_cast<size_t>(i % 64 / 16);
  const auto unit = [](uint32_t word) { return (word + 0.5) * 0x1p-32; };
  if (noise == Noise::kNormal) {
    return BoxMuller(unit(w[k & 2]), w[(k & 2) + 1] * 0x1p-32, k % 2 == 1);
  }
  if (noise == Noise::kLaplace) {
    const double magnitude = Transform(noise, unit(w[k] | 1), unit(~(w[k] | 1)));
    return w[k] % 2 == 1 ? -magnitude : magnitude;
  }
  return Transform(noise, unit(w[k]), unit(~w[k]));
}

double NoiseF64(Noise noise, int64_t stream, int64_t i) {
  const Philox::Words w = Words(stream, i / 32 * 16 + i % 16);
  const bool second = i % 32 >= 16;
  const auto unit = [](uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1p-53; };
  if (noise == Noise::kNormal) {
    const double turns = static_cast<double>(Pair(w[2], w[3])) * 0x1p-64;
    return BoxMuller(unit(Pair(w[0], w[1])), turns, second);
  }
  const uint64_t bits = second ? Pair(w[2], w[3]) : Pair(w[0], w[1]);
  const double value = Transform(noise, unit(bits), 1 - unit(bits));
  return noise == Noise::kLaplace && bits % 2 == 1 ? -value : value;
}

Ref NoiseRef(Noise noise, DType dtype, int64_t stream, const Shape& shape) {
  Ref out(shape);
  for (size_t i = 0; i < out.v.size(); ++i) {
    const auto at = static_cast<int64_t>(i);
    out.v[i] = dtype == DType::kF32 ? NoiseF32(noise, stream, at) : NoiseF64(noise, stream, at);
  }
  return out;
}

void AddRandom(std::vector<OpCase>& cases) {
  struct Named {
    const char* name;
    Noise noise;
  };
  const Named all[] = {
      {"uniform", Noise::kUniform},   {"normal", Noise::kNormal},
      {"gumbel", Noise::kGumbel},     {"exponential", Noise::kExponential},
      {"logistic", Noise::kLogistic}, {"laplace", Noise::kLaplace},
  };
  for (const Named& n : all) {
    for (const DType dtype : {DType::kF32, DType::kF64}) {
      for (const Shape& shape : {Shape{}, Shape{0}, Shape{3, 67}, Shape{20000}}) {
        OpCase c;
        c.name = absl::StrCat("Random_", n.name, "_", std::string(DTypeName(dtype)), "_",
                              shape.num_elements());
        // Two nodes: each has a stream of its own.
        c.build = [noise = n.noise, dtype, shape](Builder& b, const Values&) {
          return Values{ops::Random(b, noise, dtype, shape), ops::Random(b, noise, dtype, shape)};
        };
        c.reference = [noise = n.noise, dtype, shape](const Refs&) {
          return Refs{NoiseRef(noise, dtype, 0, shape), NoiseRef(noise, dtype, 1, shape)};
        };
        c.tolerance = dtype == DType::kF64 ? 1e-13 : 2e-6;
        c.gradient = false;
        cases.push_back(c);
      }
    }
  }
}

OpCase MakeGumbelSoftmax(const std::string& name, Shape shape, double temperature) {
  OpCase c;
  c.name = absl::StrCat("GumbelSoftmax_", name);
  c.inputs = {{.shape = std::move(shape)}};
  c.build = [temperature](Builder& b, const Values& x) {
    return Values{ops::GumbelSoftmax(b, x[0], temperature)};
  };
  c.reference = [temperature](const Refs& x) {
    Ref y = NoiseRef(Noise::kGumbel, DType::kF32, 0, x[0].shape);
    const auto cols = static_cast<size_t>(y.shape[-1]);
    for (size_t begin = 0; begin < y.v.size(); begin += cols) {
      double sum = 0, largest = -INFINITY;
      for (size_t i = begin; i < begin + cols; ++i) {
        y.v[i] = (x[0].v[i] + y.v[i]) / temperature;
        largest = std::max(largest, y.v[i]);
      }
      for (size_t i = begin; i < begin + cols; ++i) sum += y.v[i] = std::exp(y.v[i] - largest);
      for (size_t i = begin; i < begin + cols; ++i) y.v[i] /= sum;
    }
    return Refs{y};
  };
  c.tolerance = 1e-5;
  c.gradient_tolerance = 1e-4;
  return c;
}

void AddGumbelSoftmax(std::vector<OpCase>& cases) {
  cases.push_back(MakeGumbelSoftmax("rows", Shape{7, 29}, 1));
  cases.push_back(MakeGumbelSoftmax("cold", Shape{2, 3, 50}, 0.3));
  cases.push_back(MakeGumbelSoftmax("hot", Shape{3, 64}, 4));
  cases.push_back(MakeGumbelSoftmax("one_category", Shape{5, 1}, 0.5));
  cases.push_back(MakeGumbelSoftmax("no_rows", Shape{0, 5}, 1));
  cases.push_back(MakeGumbelSoftmax("vector", Shape{130}, 1));
  cases.push_back(MakeGumbelSoftmax("long_rows", Shape{3, 5003}, 0.5));
  cases.back().gradient = false;  // the same, slowly
  cases.back().bench = {{.shape = Shape{1000, 50000}}};
}

// The value is what comes out; the surrogate's gradient is no derivative (random_test.cc).
void AddStraightThrough(std::vector<OpCase>& cases) {
  for (const DType dtype : {DType::kF32, DType::kI64}) {
    OpCase c;
    c.name = absl::StrCat("StraightThrough_", std::string(DTypeName(dtype)));
    c.inputs = {{.shape = Shape{3, 5}, .dtype = dtype}, {.shape = Shape{3, 5}, .dtype = dtype}};
    c.build = [](Builder& b, const Values& x) {
      return Values{ops::StraightThrough(b, x[0], x[1])};
    };
    c.reference = [](const Refs& x) { return Refs{x[0]}; };
    c.gradient = false;
    cases.push_back(c);
  }
}

// Marsaglia and Tsang, as kernels/gamma.h says which words decide what.
double LogGammaDraw(double concentration, int64_t i) {
  if (!(concentration > 0)) return std::nan("");
  const double shape = concentration < 1 ? concentration + 1 : concentration;
  const double d = shape - 1.0 / 3, c = 1 / std::sqrt(9 * d);
  double boost = 0;
  if (concentration < 1) {
    const Philox::Words w = Words(0, i);
    const auto bits = static_cast<double>(Pair(w[0], w[1]) >> 12);
    boost = std::log((bits + 0.5) * 0x1p-52) / concentration;
  }
  for (int64_t attempt = 1;; ++attempt) {
    const Philox::Words w = Words(attempt << 32, i);
    const auto radius = static_cast<double>(Pair(w[0], w[2] & 0xfffff));
    const auto turns = static_cast<double>(Pair(w[2] & 0xfff00000, w[1])) * 0x1p-64;
    const double x = BoxMuller((radius + 0.5) * 0x1p-52, turns, false);
    const double v = std::pow(1 + c * x, 3);
    if (v <= 0) continue;
    if (std::log((w[3] + 0.5) * 0x1p-32) < 0.5 * x * x + d * (1 - v + std::log(v))) {
      return std::log(d) + std::log(v) + boost;
    }
  }
}

void AddRandomGamma(std::vector<OpCase>& cases) {
  for (const DType dtype : {DType::kF32, DType::kF64}) {
    const std::string type(DTypeName(dtype));
    OpCase draw;
    draw.name = absl::StrCat("RandomGamma_", type);
    draw.inputs = {{.shape = Shape{40, 50}, .dtype = dtype, .low = 0.05, .high = 6}};
    draw.build = [](Builder& b, const Values& x) { return Values{ops::RandomGamma(b, x[0])}; };
    draw.reference = [](const Refs& x) {
      Ref out(x[0].shape);
      for (size_t i = 0; i < out.v.size(); ++i) {
        out.v[i] = LogGammaDraw(x[0].v[i], static_cast<int64_t>(i));
      }
      return Refs{out};
    };
    draw.tolerance = dtype == DType::kF64 ? 1e-12 : 2e-6;
    draw.gradient = false;  // implicit: not that of the rejection's accepted branch
    if (dtype == DType::kF32) draw.bench = {{.shape = Shape{1 << 20}, .low = 0.1, .high = 5}};
    cases.push_back(draw);
    draw.name = absl::StrCat("RandomGamma_special_", type);
    draw.inputs = {
        {.shape = Shape{7}, .dtype = dtype, .values = {0, -1, std::nan(""), 1e-3, 1, 1e4, 1e-6}}};
    draw.bench.clear();
    cases.push_back(draw);

    const CaseInput small{.shape = Shape{300}, .dtype = dtype, .low = 0.05, .high = 6};
    OpCase grad;
    grad.name = absl::StrCat("RandomGammaGrad_", type);
    grad.inputs = {small,
                   {.shape = Shape{300}, .dtype = dtype, .low = -3, .high = 2},
                   {.shape = Shape{300}, .dtype = dtype}};
    grad.build = [](Builder& b, const Values& x) {
      return Values{ops::RandomGammaGrad(b, x[0], x[1], x[2])};
    };
    grad.reference = [](const Refs& x) {
      return Refs{Zip(Zip(x[0], x[1], LogGammaSlope), x[2],
                      [](double slope, double dy) { return slope * dy; })};
    };
    grad.tolerance = 2e-6;
    grad.gradient = false;
    if (dtype == DType::kF32) {
      grad.bench = {{.shape = Shape{1 << 18}, .low = 0.1, .high = 5},
                    {.shape = Shape{1 << 18}, .low = -3, .high = 2},
                    {.shape = Shape{1 << 18}}};
    }
    cases.push_back(grad);
  }
}

// Every cut by itself and all together; the last row takes the likeliest.
void AddSampleTokens(std::vector<OpCase>& cases) {
  constexpr int64_t kRows = 6, kVocabulary = 37;
  const auto row = [](std::vector<double> values, DType dtype) {
    return CaseInput{.shape = Shape{kRows}, .dtype = dtype, .values = std::move(values)};
  };
  OpCase c;
  c.name = "SampleTokens";
  c.inputs = {{.shape = Shape{kRows, kVocabulary}},
              row({3, 3.5, 4, 3, 2, 1}, DType::kF32),
              row({1, 0.5, 2, 1.5, 0.25, 0}, DType::kF32),
              row({0, 3, 0, 0, 20, 0}, DType::kI32),
              row({1, 1, 0.5, 1, 0.9, 1}, DType::kF64),
              row({0, 0, 0, 0.3, 0.05, 0}, DType::kF64),
              {.shape = Shape{3, kRows},
               .dtype = DType::kU64,
               .values = {11, 12, 13, 14, 15, 16, 0, 1, 2, 0, 1, 2, 5, 6, 7, 8, 9, 10}}};
  c.build = [](Builder& b, const Values& x) {
    return ops::SampleTokens(b, x[0], x[1], x[2], x[3], x[4], x[5], x[6]);
  };
  c.reference = [](const Refs& x) {
    Refs out(3, Ref(Shape{kRows}));
    for (int64_t r = 0; r < kRows; ++r) {
      const double* logits = &x[0].v[r * kVocabulary];
      const bool greedy = x[2].v[r] == 0;
      // Tokens by logit, and the cuts one after another.
      std::vector<int64_t> order(kVocabulary);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(),
                       [&](int64_t a, int64_t b) { return logits[a] > logits[b]; });
      const auto weight = [&](int64_t t) {
        return greedy ? 1 : std::exp((logits[t] - logits[order[0]]) / x[2].v[r]);
      };
      if (greedy) order.resize(1);
      if (x[3].v[r] > 0) order.resize(static_cast<size_t>(x[3].v[r]));
      double total = 0, sum = 0;
      for (int64_t t : order) total += weight(t);
      size_t keep = 0;
      while (keep < order.size() && (keep == 0 || sum < x[4].v[r] * total)) {
        sum += weight(order[keep++]);
      }
      order.resize(keep);
      while (weight(order.back()) < x[5].v[r]) order.pop_back();
      int64_t best = order[0];
      double best_score = -INFINITY, left = 0;
      for (int64_t t : order) {
        left += weight(t);
        const auto key = [&](int64_t i) { return static_cast<uint64_t>(x[6].v[i * kRows + r]); };
        const Philox::Words words =
            Philox::Block(key(0), key(1), key(2) << 32 | static_cast<uint64_t>(t / 4));
        const double noise = -std::log(-std::log(double{Philox::Uniform(words[t % 4])}));
        const double score = greedy ? 0 : logits[t] / x[2].v[r] + noise;
        if (score > best_score) {
          best_score = score;
          best = t;
        }
      }
      out[0].v[r] = static_cast<double>(best);
      out[1].v[r] = logits[best] - x[1].v[r];
      out[2].v[r] = std::log(weight(best) / left);
    }
    return out;
  };
  c.gradient = false;
  cases.push_back(c);
}

}  // namespace

std::vector<OpCase> RandomCases() {
  std::vector<OpCase> cases;
  AddRandom(cases);
  AddGumbelSoftmax(cases);
  AddStraightThrough(cases);
  AddRandomGamma(cases);
  AddSampleTokens(cases);
  return cases;
}

}  // namespace tandem::testing

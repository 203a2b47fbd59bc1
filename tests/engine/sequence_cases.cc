// Cases of the operators over packed sequences.
#include <algorithm>
#include <cmath>

#include "tests/engine/op_cases.h"

namespace tandem::testing {
namespace {

constexpr int64_t kPage = 32;

CaseInput Integers(std::vector<double> values) {
  const auto count = static_cast<int64_t>(values.size());
  return {.shape = Shape{count}, .dtype = DType::kI32, .values = std::move(values)};
}

void AddRope(std::vector<OpCase>& cases) {
  const Tensor table = ops::RopeTable(100.0, 8, 20);
  CaseInput table_input{.shape = table.shape(), .differentiable = false};
  for (float f : table.data<float>()) table_input.values.push_back(f);
  for (const bool inverse : {false, true}) {
    OpCase c;
    c.name = absl::StrCat("Rope", inverse ? "_inverse" : "");
    c.inputs = {{.shape = Shape{4, 3, 8}}, Integers({0, 1, 19, 7}), table_input};
    c.build = [inverse](Builder& b, const Values& x) {
      return Values{ops::Rope(b, x[0], x[1], x[2], inverse)};
    };
    // From the angles themselves, not from the table.
    c.reference = [inverse](const Refs& x) {
      Ref out(x[0].shape);
      for (size_t i = 0; i < out.v.size(); ++i) {
        const size_t at = i % 8, pair = at % 4;
        const double angle = x[1].v[i / 24] * std::pow(100.0, -2.0 * static_cast<double>(pair) / 8);
        const double partner = x[0].v[at < 4 ? i + 4 : i - 4];
        const double sign = (at < 4) == inverse ? 1 : -1;
        out.v[i] = x[0].v[i] * std::cos(angle) + sign * partner * std::sin(angle);
      }
      return Refs{out};
    };
    if (!inverse) {
      const Tensor large = ops::RopeTable(1e4, 64, 512);
      CaseInput large_table{.shape = large.shape()};
      for (float f : large.data<float>()) large_table.values.push_back(f);
      c.bench = {{.shape = Shape{512, 12, 64}},
                 {.shape = Shape{512}, .dtype = DType::kI32, .low = 0, .high = 511},
                 large_table};
    }
    cases.push_back(c);
  }
}

struct Heads {
  int64_t heads, kv_heads, width;
};

// One query against the keys that `key` and `value` give by position; returns its log-sum-exp.
template <typename Key, typename ValueAt>
double Attend(const double* q, double* out, int64_t positions, int64_t width, double scale, Key key,
              ValueAt value) {
  std::vector<double> scores(positions);
  double max = -1e300, sum = 0;
  for (int64_t p = 0; p < positions; ++p) {
    for (int64_t d = 0; d < width; ++d) scores[p] += scale * q[d] * key(p, d);
    max = std::max(max, scores[p]);
  }
  for (double& s : scores) sum += s = std::exp(s - max);
  for (int64_t d = 0; d < width; ++d) {
    out[d] = 0;
    for (int64_t p = 0; p < positions; ++p) out[d] += scores[p] / sum * value(p, d);
  }
  return max + std::log(sum);
}

Refs AttentionOf(const Refs& x, double scale) {
  const Ref &q = x[0], &k = x[1], &v = x[2], &start = x[3];
  const Heads h{q.shape[1], k.shape[1], q.shape[2]};
  Ref out(q.shape), lse(Shape{q.shape[0], h.heads});
  for (size_t s = 0; s + 1 < start.v.size(); ++s) {
    const auto begin = static_cast<int64_t>(start.v[s]), end = static_cast<int64_t>(start.v[s + 1]);
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t head = 0; head < h.heads; ++head) {
        const int64_t kv = head / (h.heads / h.kv_heads), row = (i * h.heads + head) * h.width;
        const auto at = [&](const Ref& t) {
          return [&, kv](int64_t p, int64_t d) {
            return t.v[((begin + p) * h.kv_heads + kv) * h.width + d];
          };
        };
        lse.v[i * h.heads + head] =
            Attend(&q.v[row], &out.v[row], i - begin + 1, h.width, scale, at(k), at(v));
      }
    }
  }
  return {out, lse};
}

void AddAttention(std::vector<OpCase>& cases) {
  struct Spec {
    const char* name;
    Heads heads;
    std::vector<double> start;
    double scale = 0.35;
  };
  const Spec table[] = {{"one", {1, 1, 4}, {0, 5}},
                        {"packed", {2, 2, 8}, {0, 4, 4, 11}},
                        {"grouped", {6, 2, 8}, {0, 3, 9}, 1.0},
                        {"blocks", {2, 1, 4}, {0, 67, 70}}};
  for (const Spec& s : table) {
    const auto tokens = static_cast<int64_t>(s.start.back());
    const CaseInput q{.shape = Shape{tokens, s.heads.heads, s.heads.width}};
    const CaseInput kv{.shape = Shape{tokens, s.heads.kv_heads, s.heads.width}};
    OpCase c;
    c.name = absl::StrCat("Attention_", s.name);
    c.inputs = {q, kv, kv, Integers(s.start)};
    c.build = [scale = s.scale](Builder& b, const Values& x) {
      return ops::Attention(b, x[0], x[1], x[2], x[3], scale);
    };
    c.reference = [scale = s.scale](const Refs& x) { return AttentionOf(x, scale); };
    c.tolerance = 1e-5;
    c.gradient = false;  // lse has no gradient
    if (std::string(s.name) == "one") {
      c.bench = {{.shape = Shape{1024, 12, 64}},
                 {.shape = Shape{1024, 4, 64}},
                 {.shape = Shape{1024, 4, 64}},
                 Integers({0, 1024})};
    }
    cases.push_back(c);
    c.name += "_gradient";
    c.build = [scale = s.scale](Builder& b, const Values& x) {
      return Values{ops::Attention(b, x[0], x[1], x[2], x[3], scale)[0]};
    };
    c.reference = [scale = s.scale](const Refs& x) { return Refs{AttentionOf(x, scale)[0]}; };
    c.gradient = true;
    c.gradient_tolerance = 1e-4;
    c.bench.clear();
    cases.push_back(c);
  }
}

// The gradient operator in the forward graph, so that its lowering is checked too.
void AddAttentionGrad(std::vector<OpCase>& cases) {
  const CaseInput q{.shape = Shape{7, 4, 4}}, kv{.shape = Shape{7, 2, 4}};
  OpCase c;
  c.name = "AttentionGrad";
  c.inputs = {q, kv, kv, Integers({0, 3, 7}), q};
  c.build = [](Builder& b, const Values& x) {
    const Values y = ops::Attention(b, x[0], x[1], x[2], x[3], 0.5);
    return ops::AttentionGrad(b, x[0], x[1], x[2], x[3], y[0], y[1], x[4], 0.5);
  };
  c.reference = [](const Refs& x) {
    const auto objective = [&](const Refs& at) {
      const Ref out = AttentionOf(at, 0.5)[0];
      double sum = 0;
      for (size_t i = 0; i < out.v.size(); ++i) sum += out.v[i] * x[4].v[i];
      return sum;
    };
    Refs at = x, gradients;
    for (int k = 0; k < 3; ++k) {
      Ref gradient(x[k].shape);
      for (size_t i = 0; i < gradient.v.size(); ++i) {
        at[k].v[i] = x[k].v[i] + 1e-5;
        const double above = objective(at);
        at[k].v[i] = x[k].v[i] - 1e-5;
        gradient.v[i] = (above - objective(at)) / 2e-5;
        at[k].v[i] = x[k].v[i];
      }
      gradients.push_back(gradient);
    }
    return gradients;
  };
  c.tolerance = 2e-5;
  c.gradient = false;
  const CaseInput large_q{.shape = Shape{1024, 12, 64}}, large_kv{.shape = Shape{1024, 4, 64}};
  c.bench = {large_q, large_kv, large_kv, Integers({0, 1024}), large_q};
  cases.push_back(c);
}

// 5 and 33 tokens, then 3 and 1 more after them: the first call writes what the second one reads,
// for how keys and values lie within a page is the backend's own affair.
void AddPagedAttention(std::vector<OpCase>& cases) {
  constexpr Heads kHeads{4, 2, 8};
  constexpr double kScale = 0.4;
  const auto heads = [&](int64_t tokens, int64_t count) {
    return CaseInput{.shape = Shape{tokens, count, kHeads.width}};
  };
  CaseInput table = Integers({4, 0, 2, 1});
  table.shape = Shape{2, 2};
  OpCase c;
  c.name = "PagedAttention";
  c.inputs = {heads(38, kHeads.heads),
              heads(38, kHeads.kv_heads),
              heads(38, kHeads.kv_heads),
              Integers({0, 5, 38}),
              Integers({0, 0}),
              heads(4, kHeads.heads),
              heads(4, kHeads.kv_heads),
              heads(4, kHeads.kv_heads),
              Integers({0, 3, 4}),
              Integers({5, 33}),
              table,
              {.shape = Shape{5, kHeads.kv_heads, kHeads.width, kPage}},
              {.shape = Shape{5, kHeads.kv_heads, kPage, kHeads.width}}};
  c.build = [](Builder& b, const Values& x) {
    const auto call = [&](int i) {
      return ops::PagedAttention(b, x[i], x[i + 1], x[i + 2], x[i + 3], x[i + 4], x[10], x[11],
                                 x[12], kScale);
    };
    const Value first = call(0);
    return Values{first, call(5)};
  };
  c.reference = [=](const Refs& x) {
    Refs outs;
    for (const int call : {0, 5}) {
      const Refs now(x.begin() + call, x.begin() + call + 5);
      Ref out(now[0].shape);
      for (int64_t s = 0; s < 2; ++s) {
        const auto past = static_cast<int64_t>(now[4].v[s]);
        const auto begin = static_cast<int64_t>(now[3].v[s]);
        // Keys (k = 1) and values (k = 2) at position p of the sequence.
        const auto entry = [&](int k, int64_t p, int64_t h, int64_t d) {
          const bool fresh = p >= past;
          const int64_t token = fresh ? begin + p - past : static_cast<int64_t>(x[3].v[s]) + p;
          return (fresh ? now[k] : x[k]).v[(token * kHeads.kv_heads + h) * kHeads.width + d];
        };
        for (auto i = begin; i < static_cast<int64_t>(now[3].v[s + 1]); ++i) {
          for (int64_t head = 0; head < kHeads.heads; ++head) {
            const int64_t h = head / (kHeads.heads / kHeads.kv_heads);
            const int64_t row = (i * kHeads.heads + head) * kHeads.width;
            Attend(
                &now[0].v[row], &out.v[row], past + i - begin + 1, kHeads.width, kScale,
                [&](int64_t p, int64_t d) { return entry(1, p, h, d); },
                [&](int64_t p, int64_t d) { return entry(2, p, h, d); });
          }
        }
      }
      outs.push_back(std::move(out));
    }
    return outs;
  };
  c.tolerance = 1e-5;
  c.gradient = false;
  cases.push_back(c);
}

}  // namespace

std::vector<OpCase> SequenceCases() {
  std::vector<OpCase> cases;
  AddRope(cases);
  AddAttention(cases);
  AddAttentionGrad(cases);
  AddPagedAttention(cases);
  return cases;
}

}  // namespace tandem::testing

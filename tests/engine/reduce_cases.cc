// Cases of the reductions, over the ways that kept and reduced dimensions alternate.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tests/engine/op_cases.h"

namespace tandem::testing {
namespace {

using ReduceOp = Value (*)(Builder&, Value, std::vector<int64_t>, bool);

Ref ReduceRef(const Ref& x, std::vector<int64_t> axes, bool keep, double initial,
              const std::function<double(double, double)>& f) {
  const int rank = x.shape.rank();
  std::vector<bool> reduced(rank, axes.empty());
  for (int64_t axis : axes) reduced[axis < 0 ? axis + rank : axis] = true;
  Shape kept = x.shape, out;
  for (int i = 0; i < rank; ++i) {
    if (reduced[i]) kept[i] = 1;
    if (keep || !reduced[i]) out.push_back(kept[i]);
  }
  Ref result(kept);
  std::fill(result.v.begin(), result.v.end(), initial);
  for (size_t i = 0; i < x.v.size(); ++i) {
    std::vector<int64_t> at = Coordinates(x.shape, static_cast<int64_t>(i));
    for (int d = 0; d < rank; ++d) {
      if (reduced[d]) at[d] = 0;
    }
    double& sum = result.v[Offset(kept, at)];
    sum = f(sum, x.v[i]);
  }
  result.shape = out;
  return result;
}

struct Reduction {
  const char* name;
  ReduceOp op;
  double initial;
  double (*f)(double, double);
};
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr Reduction kReductions[] = {
    {"ReduceSum", ops::ReduceSum, 0, [](double a, double b) { return a + b; }},
    {"ReduceMax", ops::ReduceMax, -kInfinity, [](double a, double b) { return std::fmax(a, b); }},
    {"ReduceMin", ops::ReduceMin, kInfinity, [](double a, double b) { return std::fmin(a, b); }},
    {"ReduceProd", ops::ReduceProd, 1, [](double a, double b) { return a * b; }},
};

OpCase MakeReduce(const Reduction& r, const std::string& name, CaseInput input,
                  std::vector<int64_t> axes, bool keep) {
  OpCase c;
  c.name = absl::StrCat(r.name, "_", name);
  c.inputs = {std::move(input)};
  c.build = [op = r.op, axes, keep](Builder& b, const Values& x) {
    return Values{op(b, x[0], axes, keep)};
  };
  c.reference = [r, axes, keep](const Refs& x) {
    return Refs{ReduceRef(x[0], axes, keep, r.initial, r.f)};
  };
  return c;
}

void AddReductions(std::vector<OpCase>& cases) {
  struct Layout {
    const char* name;
    Shape shape;
    std::vector<int64_t> axes;
    bool keep;
  };
  const Layout layouts[] = {
      {"all", {4, 5}, {}, false},
      {"all_keep", {4, 5}, {}, true},
      {"scalar", {}, {}, false},
      {"rows", {3, 17}, {1}, false},
      {"rows_keep", {3, 17}, {-1}, true},
      {"columns", {7, 18}, {0}, false},
      {"middle", {3, 4, 5}, {1}, false},
      {"outer_and_inner", {3, 4, 5}, {0, 2}, true},
      {"batch_norm", {2, 3, 2, 2}, {0, 2, 3}, false},
      {"alternating", {2, 3, 2, 3}, {-4, 2}, false},
      {"size_one", {3, 1, 4}, {1}, false},
  };
  for (const Reduction& r : kReductions) {
    for (const Layout& l : layouts) {
      OpCase c = MakeReduce(r, l.name, {.shape = l.shape}, l.axes, l.keep);
      c.gradient_tolerance = 1e-4;
      if (std::string(l.name) == "rows") c.bench = {{.shape = Shape{1024, 1024}}};
      if (std::string(l.name) == "columns") c.bench = {{.shape = Shape{1024, 1024}}};
      if (std::string(l.name) == "all") c.bench = {{.shape = Shape{1024, 1024}}};
      if (std::string(l.name) == "batch_norm") c.bench = {{.shape = Shape{16, 64, 32, 32}}};
      cases.push_back(c);
    }
    for (DType dtype : {DType::kF64, DType::kBF16, DType::kF16, DType::kI8, DType::kI32,
                        DType::kI64, DType::kU8}) {
      const bool is_float = IsFloat(dtype);
      CaseInput input{
          .shape = Shape{2, 3, 2}, .dtype = dtype, .low = is_float ? -2.0 : 0.0, .high = 2};
      OpCase c = MakeReduce(r, std::string(DTypeName(dtype)), input, {0, 2}, false);
      c.gradient = dtype == DType::kF64;
      c.tolerance = dtype == DType::kF64 ? 1e-12 : 1e-2;
      cases.push_back(c);
    }
  }
  // Long rows, cut into pieces; many rows, summed in chunks.
  cases.push_back(
      MakeReduce(kReductions[0], "long", {.shape = Shape{3, 65536}, .low = -1}, {1}, false));
  cases.push_back(
      MakeReduce(kReductions[0], "tall", {.shape = Shape{20000, 3}, .low = -1}, {0}, false));
  for (size_t i = cases.size() - 2; i < cases.size(); ++i) {
    cases[i].tolerance = 1e-4;
    cases[i].gradient = false;  // the reference would take hours
  }
  OpCase empty = MakeReduce(kReductions[0], "empty", {.shape = Shape{0, 3}}, {0}, false);
  cases.push_back(empty);
}

void AddTies(std::vector<OpCase>& cases) {
  // Ties share the gradient evenly: 2 of 3 hold the maximum. Not a difference quotient's business.
  OpCase c;
  c.name = "ReduceMax_ties_gradient";
  c.inputs = {{.shape = Shape{3}, .values = {5, 1, 5}}};
  c.build = [](Builder& b, const Values& x) {
    const Node node{.op = FindOp("ReduceMax"),
                    .attributes = {{"axes", std::vector<int64_t>{}}, {"keep", int64_t{0}}},
                    .inputs = {x[0]},
                    .outputs = {ops::ReduceMax(b, x[0], {}, false)},
                    .name = ""};
    const Value one = b.Scalar(1);
    return node.op->gradient(b, {.node = node, .cotangents = {&one, 1}, .needs = {true}});
  };
  c.reference = [](const Refs&) { return Refs{Ref(Shape{3}, {0.5, 0, 0.5})}; };
  c.gradient = false;
  cases.push_back(c);
  // Products with no, one and two zeros.
  OpCase zeros =
      MakeReduce(kReductions[3], "zeros",
                 {.shape = Shape{3, 3}, .values = {2, 3, 4, 2, 0, 4, 0, 0, 4}}, {1}, false);
  cases.push_back(zeros);
}

void AddMean(std::vector<OpCase>& cases) {
  for (const bool keep : {false, true}) {
    OpCase c;
    c.name = absl::StrCat("ReduceMean", keep ? "_keep" : "");
    c.inputs = {{.shape = Shape{3, 4, 5}}};
    c.build = [keep](Builder& b, const Values& x) {
      return Values{ops::ReduceMean(b, x[0], {0, -1}, keep)};
    };
    c.reference = [keep](const Refs& x) {
      const Ref sum = ReduceRef(x[0], {0, -1}, keep, 0, [](double a, double b) { return a + b; });
      return Refs{Map(sum, [](double v) { return v / 15; })};
    };
    cases.push_back(c);
  }
}

void AddSumToShape(std::vector<OpCase>& cases) {
  struct Sum {
    const char* name;
    Shape from, to;
  };
  const Sum sums[] = {{"leading", {2, 3, 4}, {4}},
                      {"kept_ones", {2, 3, 4}, {3, 1}},
                      {"scalar", {2, 3}, {}},
                      {"only_rank", {1, 1, 4}, {4}}};
  for (const Sum& s : sums) {
    OpCase c;
    c.name = absl::StrCat("SumToShape_", s.name);
    c.inputs = {{.shape = s.from}};
    c.build = [to = s.to](Builder& b, const Values& x) {
      return Values{ops::SumToShape(b, x[0], to)};
    };
    c.reference = [to = s.to](const Refs& x) {
      Ref out(to);
      const int added = x[0].shape.rank() - to.rank();
      for (size_t i = 0; i < x[0].v.size(); ++i) {
        const std::vector<int64_t> at = Coordinates(x[0].shape, static_cast<int64_t>(i));
        std::vector<int64_t> target;
        for (int d = 0; d < to.rank(); ++d) target.push_back(to[d] == 1 ? 0 : at[d + added]);
        out.v[Offset(to, target)] += x[0].v[i];
      }
      return Refs{out};
    };
    cases.push_back(c);
  }
}

void AddArg(std::vector<OpCase>& cases) {
  struct Arg {
    const char* name;
    Shape shape;
    int64_t axis;
    bool keep;
    DType dtype = DType::kF32;
  };
  // Small integers, so that there are ties: the first wins.
  const Arg args[] = {{"last", {5, 9}, -1, false},
                      {"last_keep", {5, 9}, 1, true},
                      {"first", {9, 5}, 0, false},
                      {"middle", {2, 7, 3}, 1, true},
                      {"i64", {4, 6}, 1, false, DType::kI64},
                      {"f16", {4, 6}, 1, false, DType::kF16},
                      {"f64", {4, 6}, 0, false, DType::kF64}};
  for (const bool largest : {true, false}) {
    for (const Arg& a : args) {
      OpCase c;
      c.name = absl::StrCat(largest ? "ArgMax_" : "ArgMin_", a.name);
      c.inputs = {{.shape = a.shape, .dtype = a.dtype}};
      for (int64_t i = 0; i < a.shape.num_elements(); ++i) {
        c.inputs[0].values.push_back(static_cast<double>(i * 7 % 5));
      }
      c.build = [a, largest](Builder& b, const Values& x) {
        return Values{(largest ? ops::ArgMax : ops::ArgMin)(b, x[0], a.axis, a.keep)};
      };
      c.reference = [a, largest](const Refs& x) {
        const int axis = static_cast<int>(a.axis < 0 ? a.axis + a.shape.rank() : a.axis);
        const Ref best = ReduceRef(x[0], {axis}, true, largest ? -kInfinity : kInfinity,
                                   largest ? kReductions[1].f : kReductions[2].f);
        Ref index = ReduceRef(x[0], {axis}, a.keep, -1, [](double s, double) { return s; });
        for (size_t i = 0; i < x[0].v.size(); ++i) {
          std::vector<int64_t> at = Coordinates(a.shape, static_cast<int64_t>(i));
          const double position = static_cast<double>(at[axis]);
          at[axis] = 0;
          const int64_t where = Offset(best.shape, at);
          if (x[0].v[i] == best.v[where] && index.v[where] < 0) index.v[where] = position;
        }
        return Refs{index};
      };
      c.gradient = false;
      if (std::string(a.name) == "last") c.bench = {{.shape = Shape{64, 32000}}};
      cases.push_back(c);
    }
  }
}

// By sorting: NaN above all, equal ones in order.
Refs TopKRef(const Ref& x, int64_t k, bool largest) {
  Shape shape = x.shape;
  const int64_t n = shape[-1];
  shape[-1] = k;
  Refs out = {Ref(shape), Ref(shape)};
  for (int64_t r = 0; n > 0 && r < static_cast<int64_t>(x.v.size()) / n; ++r) {
    std::vector<int64_t> order(n);
    std::iota(order.begin(), order.end(), int64_t{0});
    const auto key = [&](int64_t i) {
      const double v = x.v[r * n + i];
      return std::isnan(v) ? std::pair(1, 0.0) : std::pair(0, v);
    };
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return largest ? key(a) > key(b) : key(a) < key(b);
    });
    for (int64_t j = 0; j < k; ++j) {
      out[0].v[r * k + j] = x.v[r * n + order[j]];
      out[1].v[r * k + j] = static_cast<double>(order[j]);
    }
  }
  return out;
}

OpCase MakeTopK(const std::string& name, CaseInput input, int64_t k, bool largest = true) {
  OpCase c;
  c.name = absl::StrCat("TopK_", name);
  c.gradient = input.dtype == DType::kF32 || input.dtype == DType::kF64;
  c.inputs = {std::move(input)};
  c.build = [k, largest](Builder& b, const Values& x) { return ops::TopK(b, x[0], k, largest); };
  c.reference = [k, largest](const Refs& x) { return TopKRef(x[0], k, largest); };
  return c;
}

void AddTopK(std::vector<OpCase>& cases) {
  cases.push_back(MakeTopK("one", {.shape = Shape{3, 2, 17}}, 1));
  cases.push_back(MakeTopK("some", {.shape = Shape{5, 40}}, 7));
  cases.back().bench = {{.shape = Shape{64, 50000}}};
  cases.push_back(MakeTopK("smallest", {.shape = Shape{5, 40}}, 7, false));
  cases.push_back(MakeTopK("all", {.shape = Shape{3, 12}}, 12));
  cases.push_back(MakeTopK("none", {.shape = Shape{3, 12}}, 0));
  cases.push_back(MakeTopK("vector_f64", {.shape = Shape{9}, .dtype = DType::kF64}, 4));
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<double> special = {2, nan, -kInfinity, 2, kInfinity, nan, 2, -1, 2, kInfinity};
  for (const bool largest : {true, false}) {
    for (const int64_t k : {2, 5, 10}) {
      const std::string suffix = absl::StrCat(k, largest ? "_largest" : "_smallest");
      cases.push_back(
          MakeTopK("special_" + suffix, {.shape = Shape{10}, .values = special}, k, largest));
      cases.back().gradient = false;  // ties and NaN
      cases.push_back(MakeTopK("ties_i32_" + suffix,
                               {.shape = Shape{4, 50}, .dtype = DType::kI32, .low = -3, .high = 3},
                               k, largest));
    }
  }
  cases.push_back(MakeTopK("u8", {.shape = Shape{2, 30}, .dtype = DType::kU8, .low = 0}, 3, false));
  cases.push_back(MakeTopK("bf16", {.shape = Shape{2, 30}, .dtype = DType::kBF16}, 3));
}

}  // namespace

std::vector<OpCase> ReduceCases() {
  std::vector<OpCase> cases;
  AddReductions(cases);
  AddTies(cases);
  AddMean(cases);
  AddSumToShape(cases);
  AddArg(cases);
  AddTopK(cases);
  return cases;
}

}  // namespace tandem::testing

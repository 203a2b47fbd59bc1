// Cases of the operators that move elements.
#include "tests/engine/op_cases.h"

namespace tandem::testing {
namespace {

using Ints = std::vector<int64_t>;
constexpr DType kSizes[] = {DType::kU8, DType::kF16, DType::kF32, DType::kI64};

// One case for each element size; gradients for f32.
void AddSizes(std::vector<OpCase>& cases, OpCase c) {
  const std::string name = c.name;
  const std::vector<CaseInput> bench = c.bench;
  for (DType dtype : kSizes) {
    c.name = absl::StrCat(name, "_", std::string(DTypeName(dtype)));
    c.inputs[0].dtype = dtype;
    c.inputs[0].low = 0;
    c.inputs[0].high = 99;
    c.tolerance = 0;
    c.gradient = dtype == DType::kF32;
    c.gradient_tolerance = 1e-4;
    c.bench = dtype == DType::kF32 ? bench : std::vector<CaseInput>{};
    cases.push_back(c);
  }
}

// out[at] = x[from(at)]
Ref Move(const Ref& x, const Shape& shape, const std::function<Ints(const Ints&)>& from) {
  Ref out(shape);
  for (size_t i = 0; i < out.v.size(); ++i) {
    out.v[i] = x.v[Offset(x.shape, from(Coordinates(shape, static_cast<int64_t>(i))))];
  }
  return out;
}

void AddReshapeAndTranspose(std::vector<OpCase>& cases) {
  AddSizes(cases, {.name = "Reshape",
                   .inputs = {{.shape = Shape{2, 6}}},
                   .build =
                       [](Builder& b, const Values& x) {
                         return Values{ops::Reshape(b, x[0], Shape{3, 1, 4})};
                       },
                   .reference =
                       [](const Refs& x) {
                         return Refs{Ref(Shape{3, 1, 4}, x[0].v)};
                       }});
  struct Permutation {
    const char* name;
    Shape shape;
    Ints order;
    Shape bench = {};
  };
  const Permutation table[] = {
      {"matrix", {5, 37}, {1, 0}, {1024, 1024}},
      {"tall", {67, 3}, {1, 0}, {100000, 8}},
      {"heads", {4, 3, 8}, {1, 0, 2}, {512, 12, 64}},
      {"nchw_to_nhwc", {2, 3, 4, 5}, {0, 2, 3, 1}, {16, 64, 32, 32}},
      {"nhwc_to_nchw", {2, 4, 5, 3}, {0, 3, 1, 2}},
      {"reverse", {3, 4, 20}, {2, 1, 0}},
      {"apart", {18, 2, 19, 3}, {2, 1, 0, 3}},
      {"size_one", {3, 1, 4}, {2, 1, 0}},
      {"empty", {0, 4}, {1, 0}},
  };
  for (const Permutation& p : table) {
    OpCase c;
    c.name = absl::StrCat("Transpose_", p.name);
    c.inputs = {{.shape = p.shape}};
    c.build = [order = p.order](Builder& b, const Values& x) {
      return Values{ops::Transpose(b, x[0], order)};
    };
    c.reference = [order = p.order](const Refs& x) {
      Shape out;
      for (int64_t axis : order) out.push_back(x[0].shape[static_cast<int>(axis)]);
      return Refs{Move(x[0], out, [&](const Ints& at) {
        Ints from(at.size());
        for (size_t d = 0; d < at.size(); ++d) from[order[d]] = at[d];
        return from;
      })};
    };
    if (p.bench.rank() > 0) c.bench = {{.shape = p.bench}};
    AddSizes(cases, c);
  }
}

void AddBroadcastTo(std::vector<OpCase>& cases) {
  struct Broadcast {
    const char* name;
    Shape from, to;
  };
  const Broadcast table[] = {{"rows", {4}, {3, 4}},
                             {"columns", {3, 1}, {3, 4}},
                             {"between", {2, 1, 3}, {5, 2, 4, 3}},
                             {"scalar", {}, {2, 3}}};
  for (const Broadcast& t : table) {
    OpCase c;
    c.name = absl::StrCat("BroadcastTo_", t.name);
    c.inputs = {{.shape = t.from}};
    c.build = [to = t.to](Builder& b, const Values& x) {
      return Values{ops::BroadcastTo(b, x[0], to)};
    };
    c.reference = [to = t.to](const Refs& x) { return Refs{Expand(x[0], to)}; };
    AddSizes(cases, c);
  }
}

struct SliceSpec {
  const char* name;
  Shape shape;
  Ints starts, ends, steps;
  Shape out;
};

const std::vector<SliceSpec>& SliceSpecs() {
  static const auto* const specs = new std::vector<SliceSpec>{
      {"rows", {6, 5}, {1, 0}, {4, 5}, {1, 1}, {3, 5}},
      {"columns", {6, 5}, {0, 1}, {6, 3}, {1, 1}, {6, 2}},
      {"strided", {7, 9}, {1, 0}, {7, 8}, {2, 3}, {3, 3}},
      {"reversed", {4, 5}, {3, 4}, {-1, -1}, {-1, -2}, {4, 3}},
      {"nothing", {4, 5}, {2, 0}, {2, 5}, {1, 1}, {0, 5}},
      {"huge_step", {4, 5}, {3, 1}, {4, 5}, {int64_t{1} << 62, 2}, {1, 2}},
  };
  return *specs;
}

Ints SliceSource(const SliceSpec& s, const Ints& at) {
  Ints from;
  for (size_t d = 0; d < at.size(); ++d) {
    from.push_back(s.starts[d] + (at[d] == 0 ? 0 : at[d] * s.steps[d]));
  }
  return from;
}

void AddSlices(std::vector<OpCase>& cases) {
  for (const SliceSpec& s : SliceSpecs()) {
    OpCase c;
    c.name = absl::StrCat("Slice_", s.name);
    c.inputs = {{.shape = s.shape}};
    c.build = [s](Builder& b, const Values& x) {
      return Values{ops::Slice(b, x[0], s.starts, s.ends, s.steps)};
    };
    c.reference = [s](const Refs& x) {
      return Refs{Move(x[0], s.out, [&](const Ints& at) { return SliceSource(s, at); })};
    };
    AddSizes(cases, c);
    OpCase u;
    u.name = absl::StrCat("Unslice_", s.name);
    u.inputs = {{.shape = s.out}};
    u.build = [s](Builder& b, const Values& x) {
      return Values{ops::Unslice(b, x[0], s.shape, s.starts, s.ends, s.steps)};
    };
    u.reference = [s](const Refs& x) {
      Ref out(s.shape);
      for (size_t i = 0; i < x[0].v.size(); ++i) {
        const Ints at = Coordinates(s.out, static_cast<int64_t>(i));
        out.v[Offset(s.shape, SliceSource(s, at))] = x[0].v[i];
      }
      return Refs{out};
    };
    AddSizes(cases, u);
  }
}

void AddPads(std::vector<OpCase>& cases) {
  for (const double value : {0.0, 7.0}) {
    OpCase c;
    c.name = absl::StrCat("Pad_", static_cast<int>(value));
    c.inputs = {{.shape = Shape{2, 3}}};
    c.build = [value](Builder& b, const Values& x) {
      return Values{ops::Pad(b, x[0], {1, 0}, {0, 2}, value)};
    };
    c.reference = [value](const Refs& x) {
      Ref out(Shape{3, 5});
      for (size_t i = 0; i < out.v.size(); ++i) {
        const Ints at = Coordinates(out.shape, static_cast<int64_t>(i));
        const bool inside = at[0] >= 1 && at[1] < 3;
        out.v[i] = inside ? x[0].v[Offset(x[0].shape, {at[0] - 1, at[1]})] : value;
      }
      return Refs{out};
    };
    AddSizes(cases, c);
  }
}

void AddConcat(std::vector<OpCase>& cases) {
  for (const int64_t axis : {0, 1, -1}) {
    OpCase c;
    c.name = absl::StrCat("Concat_axis_", axis < 0 ? "last" : absl::StrCat(axis));
    for (const int64_t size : {2, 0, 3}) {
      Shape shape{2, 2, 2};
      shape[static_cast<int>(axis)] = size;
      c.inputs.push_back({.shape = shape});
    }
    c.build = [axis](Builder& b, const Values& x) { return Values{ops::Concat(b, x, axis)}; };
    c.reference = [axis](const Refs& x) {
      const int d = static_cast<int>(axis < 0 ? axis + 3 : axis);
      Shape shape{2, 2, 2};
      shape[d] = 5;
      Ref out(shape);
      for (size_t i = 0; i < out.v.size(); ++i) {
        Ints at = Coordinates(shape, static_cast<int64_t>(i));
        const Ref& from = at[d] < 2 ? x[0] : x[2];
        if (at[d] >= 2) at[d] -= 2;
        out.v[i] = from.v[Offset(from.shape, at)];
      }
      return Refs{out};
    };
    if (axis < 0) c.bench = {{.shape = Shape{1024, 512}}, {.shape = Shape{1024, 512}}};
    cases.push_back(c);
  }
}

// Indices of both types, some from the end, some twice; with `outside`, beyond the axis too.
CaseInput Indices(DType dtype, Shape shape, bool outside) {
  CaseInput input{.shape = std::move(shape), .dtype = dtype};
  const Ints values = outside ? Ints{0, 100, -100, -1, 2, 2} : Ints{0, 3, -2, -1, 2, 2};
  for (int64_t i = 0; i < input.shape.num_elements(); ++i) {
    input.values.push_back(static_cast<double>(values[i % 6]));
  }
  return input;
}

int64_t PlaceOf(double index, int64_t size) {
  auto place = static_cast<int64_t>(index);
  if (place < 0) place += size;
  return std::min(std::max<int64_t>(place, 0), size - 1);
}

void AddGather(std::vector<OpCase>& cases) {
  struct Spec {
    const char* name;
    Shape x;
    int64_t axis;
    Shape indices;
    DType dtype = DType::kI32;
    bool outside = false;
  };
  const Spec table[] = {{"rows", {4, 5}, 0, {6}},
                        {"rows_i64", {4, 5}, 0, {2, 3}, DType::kI64},
                        {"columns", {3, 4}, 1, {6}},
                        {"middle", {2, 4, 3}, -2, {3, 2}, DType::kI64},
                        {"vector", {4}, 0, {2, 3}},
                        {"one", {4, 3}, 0, {}},
                        {"clamped", {4, 3}, 0, {6}, DType::kI64, true}};
  for (const Spec& s : table) {
    OpCase c;
    c.name = absl::StrCat("Gather_", s.name);
    c.inputs = {{.shape = s.x}, Indices(s.dtype, s.indices, s.outside)};
    c.build = [axis = s.axis](Builder& b, const Values& x) {
      return Values{ops::Gather(b, x[0], x[1], axis)};
    };
    c.reference = [s](const Refs& x) {
      const int axis = static_cast<int>(s.axis < 0 ? s.axis + s.x.rank() : s.axis);
      Shape shape(s.x.dims().first(axis));
      for (int64_t dim : s.indices) shape.push_back(dim);
      for (int d = axis + 1; d < s.x.rank(); ++d) shape.push_back(s.x[d]);
      return Refs{Move(x[0], shape, [&](const Ints& at) {
        const auto middle = at.begin() + axis, end = middle + s.indices.rank();
        Ints from(at.begin(), middle);
        from.push_back(PlaceOf(x[1].v[Offset(s.indices, Ints(middle, end))], s.x[axis]));
        from.insert(from.end(), end, at.end());
        return from;
      })};
    };
    if (std::string(s.name) == "rows") {
      c.bench = {{.shape = Shape{32000, 512}},
                 {.shape = Shape{512}, .dtype = DType::kI32, .low = 0, .high = 31999}};
    }
    AddSizes(cases, c);
  }
}

void AddGatherGrad(std::vector<OpCase>& cases) {
  for (const DType dtype : {DType::kF32, DType::kF64, DType::kI32, DType::kI64}) {
    for (const DType index : {DType::kI32, DType::kI64}) {
      OpCase c;
      c.name = absl::StrCat("GatherGrad_", std::string(DTypeName(dtype)), "_",
                            std::string(DTypeName(index)));
      c.inputs = {{.shape = Shape{6, 5}, .dtype = dtype, .low = -9, .high = 9},
                  Indices(index, Shape{6}, index == DType::kI64)};
      c.build = [](Builder& b, const Values& x) {
        return Values{ops::GatherGrad(b, x[0], x[1], Shape{4, 5})};
      };
      c.reference = [](const Refs& x) {
        Ref out(Shape{4, 5});
        for (int64_t i = 0; i < 6; ++i) {
          for (int64_t j = 0; j < 5; ++j) out.v[PlaceOf(x[1].v[i], 4) * 5 + j] += x[0].v[i * 5 + j];
        }
        return Refs{out};
      };
      c.gradient = IsFloat(dtype);
      cases.push_back(c);
    }
  }
}

}  // namespace

std::vector<OpCase> ShapeCases() {
  std::vector<OpCase> cases;
  AddReshapeAndTranspose(cases);
  AddBroadcastTo(cases);
  AddSlices(cases);
  AddPads(cases);
  AddConcat(cases);
  AddGather(cases);
  AddGatherGrad(cases);
  return cases;
}

}  // namespace tandem::testing

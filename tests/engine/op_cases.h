// One case an operator (or several): how to build it, on what, and what it means in double.
//
// From each case op_cases_test.cc derives a comparison with the reference, a check of the gradient
// against central differences of that reference, the same for the operator's lowering, and checks
// that neither memory sharing nor the thread count changes a bit; tests/bench/op_bench.cc measures
// the cases that give `bench` inputs. A family's file defines its own XxxCases().
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "engine/graph/builder.h"
#include "engine/ops/ops.h"

namespace tandem::testing {

// A tensor of the reference: double, whatever the dtype.
struct Ref {
  Shape shape;
  std::vector<double> v;

  Ref() = default;
  explicit Ref(Shape s) : shape(std::move(s)), v(shape.num_elements(), 0.0) {}
  Ref(Shape s, std::vector<double> values) : shape(std::move(s)), v(std::move(values)) {}
};
using Refs = std::vector<Ref>;
using Values = std::vector<Value>;

struct CaseInput {
  Shape shape;
  DType dtype = DType::kF32;
  // Uniform in [low, high], rounded for integers and bools.
  double low = -2, high = 2;
  // Values that no element may come near: kinks, where a difference quotient means nothing. What
  // the gradient is there, the case's `kinks` say.
  std::vector<double> avoid = {};
  // These instead of random ones.
  std::vector<double> values = {};
  // False: not a variable, even if it is of a floating-point type.
  bool differentiable = true;
};

// The gradient at a point where the derivative jumps: with these inputs (one element each) and a
// cotangent of 1, these are the inputs' gradients.
struct Kink {
  std::vector<double> inputs, gradients;
};

struct OpCase {
  std::string name;  // unique: letters, digits and _
  std::vector<CaseInput> inputs;
  std::function<Values(Builder&, const Values&)> build;
  std::function<Refs(const Refs&)> reference;
  // |got - expected| <= tolerance * max(1, |expected|); integers and bools must be equal.
  double tolerance = 4e-6;
  // False: nothing differentiable. A gradient is checked through all floating-point outputs.
  bool gradient = true;
  double gradient_tolerance = 2e-5;
  std::vector<Kink> kinks = {};
  // Inputs of a size worth measuring, for the same build function.
  std::vector<CaseInput> bench = {};
};

// Deterministic inputs of a case; floats are rounded to the input's dtype.
std::vector<Tensor> MakeInputs(const std::vector<CaseInput>& inputs, std::string_view seed);
Ref ToRef(const Tensor& tensor);

// --- For writing references
// ----------------------------------------------------------------------- f of each element.
Ref Map(const Ref& x, const std::function<double(double)>& f);
// f of each pair, broadcast.
Ref Zip(const Ref& x, const Ref& y, const std::function<double(double, double)>& f);
// x broadcast to `shape`.
Ref Expand(const Ref& x, const Shape& shape);
// The coordinates of element i, and back.
std::vector<int64_t> Coordinates(const Shape& shape, int64_t i);
int64_t Offset(const Shape& shape, const std::vector<int64_t>& coordinates);

// --- The cases, family by family
// ------------------------------------------------------------------
std::vector<OpCase> ElementwiseCases();
std::vector<OpCase> BroadcastCases();
std::vector<OpCase> RandomCases();
std::vector<OpCase> ReduceCases();
std::vector<OpCase> ShapeCases();
std::vector<OpCase> LinearCases();
std::vector<OpCase> SpatialCases();
std::vector<OpCase> ResizeCases();
std::vector<OpCase> NormalizationCases();
std::vector<OpCase> LossCases();
std::vector<OpCase> SequenceCases();
std::vector<OpCase> OptimizerCases();
// All of them, in the order of ops.h.
const std::vector<OpCase>& AllCases();

}  // namespace tandem::testing

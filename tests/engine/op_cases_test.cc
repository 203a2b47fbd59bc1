// Runs every case of op_cases.h: see there for what is checked.
#include "tests/engine/op_cases.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>

#include "engine/backend/backend.h"
#include "engine/base/threads.h"
#include "engine/exec/plan.h"
#include "engine/graph/gradient.h"
#include "engine/ops/definitions.h"
#include "tests/engine/test_device.h"

#define SKIP_WITHOUT_KERNEL(status) \
  if (const std::string why = NoKernel(status); !why.empty()) GTEST_SKIP() << why

namespace tandem::testing {

void PrintTo(const OpCase& c, std::ostream* os) { *os << c.name; }

namespace {

// The CPU without the operators that can be lowered, so that they are.
class LoweringBackend final : public WrappedBackend {
 public:
  LoweringBackend() : WrappedBackend(CpuBackend()) {}
  std::string_view name() const override { return "lowering"; }
  const Kernel* Find(std::string_view op) const override {
    return FindOp(op)->lower != nullptr ? nullptr : inner_.Find(op);
  }
};

std::vector<const Tensor*> Pointers(const std::vector<Tensor>& tensors) {
  std::vector<const Tensor*> pointers;
  for (const Tensor& t : tensors) pointers.push_back(&t);
  return pointers;
}

Values InputValues(Builder& b, const std::vector<Tensor>& inputs) {
  Values values;
  for (const Tensor& t : inputs) values.push_back(b.Input("x", t.type()));
  return values;
}

absl::StatusOr<std::vector<Tensor>> RunGraph(Builder& b, const Backend& backend,
                                             const std::vector<Tensor>& inputs) {
  TANDEM_ASSIGN_OR_RETURN(Graph graph, b.Finish());
  TANDEM_ASSIGN_OR_RETURN(std::unique_ptr<Plan> plan, Plan::Compile(std::move(graph), backend));
  return RunPlan(*plan, Pointers(inputs));
}

absl::StatusOr<std::vector<Tensor>> RunForward(const OpCase& c, const Backend& backend,
                                               const std::vector<Tensor>& inputs) {
  Builder b;
  for (Value v : c.build(b, InputValues(b, inputs))) b.Output(v);
  return RunGraph(b, backend, inputs);
}

// The operator's inputs and outputs in the plan's own memory, where the planner lets them share.
absl::StatusOr<std::vector<Tensor>> RunInArena(const OpCase& c, const std::vector<Tensor>& inputs) {
  Builder b;
  // A copy that no pass removes.
  const auto copy = [&](Value v) {
    Attributes shape{{"shape", std::vector<int64_t>(b.shape(v).begin(), b.shape(v).end())}};
    return b.Add(ops::kBroadcastTo, {v}, std::move(shape));
  };
  Values values = InputValues(b, inputs);
  for (Value& v : values) v = copy(v);
  for (Value v : c.build(b, values)) b.Output(copy(v));
  return RunGraph(b, TestDevice(), inputs);
}

void ExpectClose(const Tensor& got, const Ref& expected, double tolerance,
                 const std::string& what) {
  ASSERT_EQ(got.shape(), expected.shape)
      << what << ": " << got.shape().ToString() << ", expected " << expected.shape.ToString();
  if (!IsFloat(got.dtype())) tolerance = 0;
  int reported = 0;
  for (size_t i = 0; i < expected.v.size() && reported < 5; ++i) {
    const double g = ElementAsDouble(got, static_cast<int64_t>(i)), e = expected.v[i];
    if ((std::isnan(g) && std::isnan(e)) || g == e) continue;
    if (std::abs(g - e) <= tolerance * std::max(1.0, std::abs(e))) continue;
    ADD_FAILURE() << what << ", element " << i << ": " << g << ", expected " << e;
    ++reported;
  }
}

void ExpectSameBits(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i].type(), b[i].type());
    EXPECT_EQ(0, std::memcmp(a[i].raw(), b[i].raw(), a[i].bytes())) << "output " << i;
  }
}

Refs Reference(const OpCase& c, const std::vector<Tensor>& inputs) {
  Refs refs;
  for (const Tensor& t : inputs) refs.push_back(ToRef(t));
  return c.reference(refs);
}

class OpForward : public ::testing::TestWithParam<OpCase> {};
class OpGradient : public ::testing::TestWithParam<OpCase> {};
class OpKink : public ::testing::TestWithParam<OpCase> {};

TEST_P(OpForward, MatchesTheReference) {
  const OpCase& c = GetParam();
  const std::vector<Tensor> inputs = MakeInputs(c.inputs, c.name);
  const auto outputs = RunForward(c, TestDevice(), inputs);
  SKIP_WITHOUT_KERNEL(outputs.status());
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  const Refs expected = Reference(c, inputs);
  ASSERT_EQ(outputs->size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    ExpectClose((*outputs)[i], expected[i], c.tolerance, absl::StrCat("output ", i));
  }
}

TEST_P(OpForward, LoweredMatchesTheReference) {
  if (TestDevice().name() != "cpu") GTEST_SKIP() << "is the CPU's";
  const OpCase& c = GetParam();
  const std::vector<Tensor> inputs = MakeInputs(c.inputs, c.name);
  const auto outputs = RunForward(c, LoweringBackend(), inputs);
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  const Refs expected = Reference(c, inputs);
  for (size_t i = 0; i < expected.size(); ++i) {
    ExpectClose((*outputs)[i], expected[i], 4 * c.tolerance, absl::StrCat("output ", i));
  }
}

// The case's inputs with f32 ones in 16 bits; `statistics`: but those that are one value a row of
// the first, which the operator takes in f32.
std::vector<CaseInput> HalfInputs(const OpCase& c, DType dtype, bool statistics) {
  std::vector<CaseInput> inputs = c.inputs;
  const Shape& first = inputs[0].shape;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const bool cache = c.name.rfind("PagedAttention", 0) == 0 && inputs[i].shape.rank() == 4;
    const bool row =
        i > 0 && first.rank() > 0 && inputs[i].shape == Shape(first.dims().first(first.rank() - 1));
    if (inputs[i].dtype != DType::kF32 || cache || (statistics && row)) continue;
    inputs[i].dtype = dtype;
  }
  return inputs;
}

// Rounded once an operator, whatever computes it. Does nothing where the operator is of f32 alone,
// or the case has f32 constants.
template <typename Check>
void InHalf(const OpCase& c, DType dtype, double tolerance, Check check) {
  for (const bool statistics : {false, true}) {
    const std::vector<Tensor> inputs = MakeInputs(HalfInputs(c, dtype, statistics), c.name);
    Builder b;
    const Values outputs = c.build(b, InputValues(b, inputs));
    if (!b.ok()) continue;
    check(b.graph());
    for (Value v : outputs) b.Output(v);
    const auto results = RunGraph(b, TestDevice(), inputs);
    if (!NoKernel(results.status()).empty()) return;
    ASSERT_TRUE(results.ok()) << results.status();
    const Refs expected = Reference(c, inputs);
    for (size_t i = 0; i < expected.size(); ++i) {
      if (!IsFloat((*results)[i].dtype())) continue;
      ExpectClose((*results)[i], expected[i], tolerance + 2 * c.tolerance,
                  absl::StrCat(std::string(DTypeName(dtype)), " output ", i));
    }
    return;
  }
}

TEST_P(OpForward, MatchesTheReferenceIn16Bits) {
  const auto nothing = [](const Graph&) {};
  InHalf(GetParam(), DType::kBF16, 0.03, nothing);
  InHalf(GetParam(), DType::kF16, 0.004, nothing);
}

TEST(OpCases, CoverWhatModelsComputeIn16Bits) {
  std::set<std::string_view> seen;
  for (const OpCase& c : AllCases()) {
    InHalf(c, DType::kBF16, INFINITY, [&](const Graph& graph) {
      for (const Node& node : graph.nodes()) seen.insert(node.op->name);
    });
  }
  for (const std::string_view op : {"MatMul",
                                    "Conv",
                                    "ConvInputGrad",
                                    "ConvWeightGrad",
                                    "Attention",
                                    "AttentionGrad",
                                    "PagedAttention",
                                    "LayerNorm",
                                    "LayerNormGrad",
                                    "RmsNorm",
                                    "RmsNormGrad",
                                    "Rope",
                                    "SwiGlu",
                                    "SwiGluGrad",
                                    "GeluTanhGrad",
                                    "SiluGrad",
                                    "Softmax",
                                    "SoftmaxCrossEntropy",
                                    "Gather",
                                    "GatherGrad",
                                    "Add",
                                    "Mul",
                                    "Where",
                                    "MaxPool",
                                    "AveragePool",
                                    "Resize",
                                    "ReduceSum",
                                    "Concat",
                                    "Slice",
                                    "Transpose"}) {
    EXPECT_TRUE(seen.contains(op)) << op;
  }
}

TEST_P(OpForward, SameBitsInSharedMemoryAndOnManyThreads) {
  const OpCase& c = GetParam();
  const std::vector<Tensor> inputs = MakeInputs(c.inputs, c.name);
  const int threads = ThreadCount();
  SetThreadCount(1);
  const auto plain = RunForward(c, TestDevice(), inputs);
  const auto shared = RunInArena(c, inputs);
  SetThreadCount(5);
  const auto many = RunInArena(c, inputs);
  SetThreadCount(threads);
  SKIP_WITHOUT_KERNEL(plain.status());
  ASSERT_TRUE(plain.ok()) << plain.status();
  SKIP_WITHOUT_KERNEL(shared.status());
  ASSERT_TRUE(shared.ok()) << shared.status();
  ASSERT_TRUE(many.ok()) << many.status();
  ExpectSameBits(*plain, *shared);
  ExpectSameBits(*plain, *many);
}

// Builds sum over outputs of sum(weight * output) and its gradients; the weights are the last
// inputs.
struct GradientGraph {
  Builder b;
  std::vector<Tensor> inputs;     // the case's, then the weights
  std::vector<size_t> weighted;   // which outputs have a weight
  std::vector<size_t> variables;  // which inputs are differentiated

  absl::Status Build(const OpCase& c, std::vector<Tensor> case_inputs, bool ones) {
    inputs = std::move(case_inputs);
    const size_t count = inputs.size();
    const Values values = InputValues(b, inputs);
    const Values outputs = c.build(b, values);
    TANDEM_RETURN_IF_ERROR(b.status());
    Value loss;
    for (size_t k = 0; k < outputs.size(); ++k) {
      const TensorType type = b.type(outputs[k]);
      if (!IsFloat(type.dtype)) continue;
      const double low = ones ? 1 : -1;
      CaseInput weight{.shape = type.shape, .dtype = type.dtype, .low = low, .high = 1};
      inputs.push_back(std::move(MakeInputs({weight}, absl::StrCat(c.name, k))[0]));
      weighted.push_back(k);
      const Value product = ops::Mul(b, outputs[k], b.Input("w", type));
      const Value sum = ops::Cast(b, ops::ReduceSum(b, product, {}, false), DType::kF32);
      loss = loss.valid() ? ops::Add(b, loss, sum) : sum;
    }
    Values wrt;
    for (size_t i = 0; i < count; ++i) {
      if (!IsFloat(c.inputs[i].dtype) || !c.inputs[i].differentiable) continue;
      variables.push_back(i);
      wrt.push_back(values[i]);
    }
    TANDEM_ASSIGN_OR_RETURN(const Values gradients, Gradient(b, loss, wrt));
    for (Value v : gradients) b.Output(v);
    return b.status();
  }
};

double WeightedSum(const Refs& outputs, const GradientGraph& graph, size_t first_weight) {
  double sum = 0;
  for (size_t k = 0; k < graph.weighted.size(); ++k) {
    const Ref& out = outputs[graph.weighted[k]];
    for (size_t i = 0; i < out.v.size(); ++i) {
      sum += out.v[i] * ElementAsDouble(graph.inputs[first_weight + k], static_cast<int64_t>(i));
    }
  }
  return sum;
}

TEST_P(OpGradient, MatchesCentralDifferencesOfTheReference) {
  const OpCase& c = GetParam();
  GradientGraph graph;
  const absl::Status built = graph.Build(c, MakeInputs(c.inputs, c.name), false);
  ASSERT_TRUE(built.ok()) << built;
  const auto gradients = RunGraph(graph.b, TestDevice(), graph.inputs);
  SKIP_WITHOUT_KERNEL(gradients.status());
  ASSERT_TRUE(gradients.ok()) << gradients.status();
  const size_t count = c.inputs.size();
  Refs refs;
  for (size_t i = 0; i < count; ++i) refs.push_back(ToRef(graph.inputs[i]));
  for (size_t k = 0; k < graph.variables.size(); ++k) {
    Ref& x = refs[graph.variables[k]];
    Ref expected(x.shape);
    for (size_t i = 0; i < x.v.size(); ++i) {
      const double at = x.v[i], h = 1e-5 * std::max(1.0, std::abs(at));
      x.v[i] = at + h;
      const double above = WeightedSum(c.reference(refs), graph, count);
      x.v[i] = at - h;
      const double below = WeightedSum(c.reference(refs), graph, count);
      x.v[i] = at;
      expected.v[i] = (above - below) / (2 * h);
    }
    ExpectClose((*gradients)[k], expected, c.gradient_tolerance,
                absl::StrCat("gradient of input ", graph.variables[k]));
  }
}

TEST_P(OpKink, HasTheDeclaredGradient) {
  for (const Kink& kink : GetParam().kinks) {
    OpCase c = GetParam();
    for (size_t i = 0; i < c.inputs.size(); ++i) {
      c.inputs[i].shape = Shape{1};
      c.inputs[i].values = {kink.inputs.at(i)};
    }
    GradientGraph graph;
    const absl::Status built = graph.Build(c, MakeInputs(c.inputs, c.name), true);
    ASSERT_TRUE(built.ok()) << built;
    const auto gradients = RunGraph(graph.b, TestDevice(), graph.inputs);
    SKIP_WITHOUT_KERNEL(gradients.status());
    ASSERT_TRUE(gradients.ok()) << gradients.status();
    ASSERT_EQ(gradients->size(), kink.gradients.size());
    for (size_t i = 0; i < gradients->size(); ++i) {
      EXPECT_EQ(ElementAsDouble((*gradients)[i], 0), kink.gradients[i])
          << "input " << i << " at " << kink.inputs[i];
    }
  }
}

TEST(OpCases, HaveUniqueNames) {
  std::set<std::string> names;
  for (const OpCase& c : AllCases()) EXPECT_TRUE(names.insert(c.name).second) << c.name;
}

TEST(OpCases, CoverEveryOperator) {
  std::set<std::string_view> seen;
  for (const OpCase& c : AllCases()) {
    Builder b;
    c.build(b, InputValues(b, MakeInputs(c.inputs, c.name)));
    for (const Node& node : b.graph().nodes()) seen.insert(node.op->name);
  }
  for (const OpDef* op : AllOps()) EXPECT_TRUE(seen.contains(op->name)) << op->name;
}

std::vector<OpCase> Select(bool (*wanted)(const OpCase&)) {
  std::vector<OpCase> cases;
  for (const OpCase& c : AllCases()) {
    if (wanted(c)) cases.push_back(c);
  }
  return cases;
}

std::string Name(const ::testing::TestParamInfo<OpCase>& info) { return info.param.name; }
INSTANTIATE_TEST_SUITE_P(All, OpForward, ::testing::ValuesIn(AllCases()), Name);
INSTANTIATE_TEST_SUITE_P(All, OpGradient,
                         ::testing::ValuesIn(Select([](const OpCase& c) { return c.gradient; })),
                         Name);
INSTANTIATE_TEST_SUITE_P(All, OpKink, ::testing::ValuesIn(Select([](const OpCase& c) {
                           return !c.kinks.empty();
                         })),
                         Name);

}  // namespace
}  // namespace tandem::testing

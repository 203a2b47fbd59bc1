// Reading, building and writing ONNX models: what is trained, what folds, what is refused.
#include "engine/formats/onnx.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/exec/plan.h"
#include "engine/formats/onnx_proto.h"
#include "engine/formats/onnx_tensor.h"
#include "engine/graph/gradient.h"
#include "engine/ops/ops.h"
#include "tests/engine/material.h"

namespace tandem {
namespace {

using onnx::AttributeProto;
using onnx::TensorProto;
using testing::ElementsAre;
using testing::HasSubstr;

// A model under construction: one graph, the default domain.
class TestModel {
 public:
  explicit TestModel(int64_t opset = 17) {
    proto.set_ir_version(8);
    proto.add_opset_import()->set_version(opset);
  }

  static void Describe(onnx::ValueInfoProto* info, const std::string& name,
                       const std::vector<std::string>& dims, int type) {
    info->set_name(name);
    onnx::TypeProto::Tensor* tensor = info->mutable_type()->mutable_tensor_type();
    tensor->set_elem_type(type);
    tensor->mutable_shape();
    for (const std::string& dim : dims) {
      auto* added = tensor->mutable_shape()->add_dim();
      if (dim.find_first_not_of("-0123456789") == std::string::npos) {
        added->set_dim_value(std::stoll(dim));
      } else {
        added->set_dim_param(dim);
      }
    }
  }
  TestModel& Input(const std::string& name, const std::vector<std::string>& dims,
                   int type = TensorProto::FLOAT) {
    Describe(proto.mutable_graph()->add_input(), name, dims, type);
    return *this;
  }
  TestModel& Output(const std::string& name, const std::vector<std::string>& dims,
                    int type = TensorProto::FLOAT) {
    Describe(proto.mutable_graph()->add_output(), name, dims, type);
    return *this;
  }
  TestModel& Initializer(const std::string& name, const Tensor& tensor) {
    TensorToProto(tensor, name, proto.mutable_graph()->add_initializer());
    return *this;
  }
  onnx::NodeProto* Node(const std::string& op, const std::vector<std::string>& inputs,
                        const std::vector<std::string>& outputs) {
    return AddNode(proto.mutable_graph(), op, inputs, outputs);
  }
  template <typename Graph>
  static onnx::NodeProto* AddNode(Graph* graph, const std::string& op,
                                  const std::vector<std::string>& inputs,
                                  const std::vector<std::string>& outputs) {
    onnx::NodeProto* node = graph->add_node();
    node->set_op_type(op);
    node->set_name(op + "_" + outputs[0]);
    for (const std::string& input : inputs) node->add_input(input);
    for (const std::string& output : outputs) node->add_output(output);
    return node;
  }
  absl::StatusOr<LoadedOnnx> Load() const { return LoadOnnx(proto.SerializeAsString()); }

  onnx::ModelProto proto;
};

AttributeProto* Attribute(onnx::NodeProto* node, const std::string& name,
                          onnx::AttributeProto_AttributeType type) {
  AttributeProto* attribute = node->add_attribute();
  attribute->set_name(name);
  attribute->set_type(type);
  return attribute;
}
void SetInt(onnx::NodeProto* node, const std::string& name, int64_t value) {
  Attribute(node, name, AttributeProto::INT)->set_i(value);
}

absl::StatusOr<Graph> BuildGraph(const LoadedOnnx& model, const std::vector<Tensor>& inputs) {
  Builder builder(EvaluateNode);
  std::vector<Value> values;
  for (size_t i = 0; i < inputs.size(); ++i) {
    values.push_back(model.source->shape_inputs().at(i)
                         ? builder.Constant(inputs[i].Clone())
                         : builder.Input(model.source->inputs()[i].name, inputs[i].type()));
  }
  TANDEM_ASSIGN_OR_RETURN(const std::vector<Value> outputs, model.source->Build(builder, values));
  for (const Value output : outputs) builder.Output(output);
  return builder.Finish();
}

absl::StatusOr<std::vector<Tensor>> RunModel(const LoadedOnnx& model,
                                             const std::vector<Tensor>& inputs) {
  TANDEM_ASSIGN_OR_RETURN(Graph graph, BuildGraph(model, inputs));
  std::vector<const Tensor*> arguments;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!model.source->shape_inputs()[i]) arguments.push_back(&inputs[i]);
  }
  TANDEM_ASSIGN_OR_RETURN(const std::unique_ptr<Plan> plan,
                          Plan::Compile(std::move(graph), CpuBackend()));
  return RunPlan(*plan, arguments, model.parameters.pointers());
}

// The first output's values of a model that must load and run.
std::vector<float> Values(const TestModel& model, std::vector<Tensor> inputs) {
  const absl::StatusOr<LoadedOnnx> loaded = model.Load();
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  if (!loaded.ok()) return {};
  const absl::StatusOr<std::vector<Tensor>> outputs = RunModel(*loaded, inputs);
  EXPECT_TRUE(outputs.ok()) << outputs.status();
  if (!outputs.ok()) return {};
  const std::span<const float> values = (*outputs)[0].data<float>();
  return {values.begin(), values.end()};
}

std::vector<Tensor> One(Tensor tensor) {
  std::vector<Tensor> tensors;
  tensors.push_back(std::move(tensor));
  return tensors;
}

// What loading, or else building with zeros for inputs, says.
absl::Status Verdict(const std::string& bytes) {
  const absl::StatusOr<LoadedOnnx> model = LoadOnnx(bytes);
  if (!model.ok()) return model.status();
  std::vector<Tensor> inputs;
  for (const IoSpec& spec : model->source->inputs()) {
    Shape shape(spec.dims);
    for (int i = 0; i < shape.rank(); ++i) shape[i] = shape[i] < 0 ? 1 : shape[i];
    inputs.push_back(Tensor::Zeros({spec.dtype, shape}));
  }
  return RunModel(*model, inputs).status();
}
absl::Status Verdict(const TestModel& model) { return Verdict(model.proto.SerializeAsString()); }

#define EXPECT_REFUSED(status, status_code, text)                        \
  do {                                                                   \
    const absl::Status refused = (status);                               \
    EXPECT_EQ(refused.code(), absl::StatusCode::status_code) << refused; \
    EXPECT_THAT(std::string(refused.message()), HasSubstr(text));        \
  } while (false)

// --- What is trained
// ------------------------------------------------------------------------------

TEST(OnnxParameters, WeightsAreTrainedAndSettingsAreNot) {
  TestModel m;
  m.Input("x", {"1", "2", "4", "4"}).Output("y", {"1", "3", "4", "4"});
  m.Initializer("w", Tensor::Zeros({DType::kF32, {3, 2, 1, 1}}));
  m.Initializer("b", Tensor::Zeros({DType::kF32, {3}}));
  for (const char* name : {"scale", "shift", "mean", "var"}) {
    m.Initializer(name, Tensor::Zeros({DType::kF32, {3}}));
  }
  m.Initializer("low", Tensor::Scalar(0.0f));
  m.Initializer("factor", Tensor::Scalar(2.0f));
  m.Initializer("exponent", Tensor::Of<float>({1}, {3.0f}));
  m.Initializer("added", Tensor::Of<double>({1}, {3.0}));
  m.Node("Conv", {"x", "w", "b"}, {"c"});
  m.Node("Identity", {"var"}, {"same_var"});
  m.Node("BatchNormalization", {"c", "scale", "shift", "mean", "same_var"}, {"n"});
  m.Node("Clip", {"n", "low"}, {"r"});
  m.Node("Mul", {"r", "factor"}, {"s"});
  m.Node("Pow", {"s", "exponent"}, {"y"});
  const absl::StatusOr<LoadedOnnx> model = m.Load();
  ASSERT_TRUE(model.ok()) << model.status();
  std::vector<std::string> names;
  std::vector<ParameterRole> roles;
  for (const ParameterInfo& info : model->source->parameters()) {
    names.push_back(info.name);
    roles.push_back(info.role);
  }
  EXPECT_THAT(names, ElementsAre("w", "b", "scale", "shift"));
  EXPECT_THAT(roles, ElementsAre(ParameterRole::kWeight, ParameterRole::kBias, ParameterRole::kNorm,
                                 ParameterRole::kBias));
}

TEST(OnnxParameters, AVectorAddedToAProductIsABias) {
  TestModel m;
  m.Input("x", {"1", "2"}).Output("y", {"1", "3"});
  m.Initializer("w", Tensor::Of<float>({2, 3}, {1, 2, 3, 4, 5, 6}));
  m.Initializer("b", Tensor::Of<float>({3}, {10, 20, 30}));
  m.Node("MatMul", {"x", "w"}, {"p"});
  m.Node("Add", {"p", "b"}, {"y"});
  const absl::StatusOr<LoadedOnnx> model = m.Load();
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->source->parameters()[1].role, ParameterRole::kBias);
  EXPECT_THAT(model->parameters.values(0), ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_THAT(Values(m, One(Tensor::Of<float>({1, 2}, {1, 1}))), ElementsAre(15, 27, 39));
}

TEST(OnnxParameters, InitializersAmongTheInputsAreNoInputs) {
  TestModel m(8);
  m.proto.set_ir_version(3);
  m.Input("x", {"1", "1"}).Input("w", {"1", "1"}).Output("y", {"1", "1"});
  m.Initializer("w", Tensor::Of<float>({1, 1}, {3}));
  m.Node("MatMul", {"x", "w"}, {"y"});
  const absl::StatusOr<LoadedOnnx> model = m.Load();
  ASSERT_TRUE(model.ok()) << model.status();
  ASSERT_EQ(model->source->inputs().size(), 1u);
  EXPECT_EQ(model->source->inputs()[0].name, "x");
  EXPECT_EQ(model->source->parameters().size(), 1u);
}

TEST(OnnxParameters, GradientsReachThem) {
  TestModel m;
  m.Input("x", {"1", "2"}).Output("y", {"1", "1"});
  m.Initializer("w", Tensor::Of<float>({2, 1}, {2, -1}));
  m.Node("MatMul", {"x", "w"}, {"p"});
  m.Node("Elu", {"p"}, {"y"});
  const absl::StatusOr<LoadedOnnx> model = m.Load();
  ASSERT_TRUE(model.ok()) << model.status();
  Builder builder(EvaluateNode);
  const Value x = builder.Input("x", {DType::kF32, {1, 2}});
  const absl::StatusOr<std::vector<Value>> y = model->source->Build(builder, std::vector{x});
  ASSERT_TRUE(y.ok()) << y.status();
  const Value w = builder.Parameter(0, "w", {DType::kF32, {2, 1}});
  const absl::StatusOr<std::vector<Value>> dw = Gradient(builder, (*y)[0], std::vector{w});
  ASSERT_TRUE(dw.ok()) << dw.status();
  builder.Output((*dw)[0]);
  absl::StatusOr<Graph> graph = builder.Finish();
  ASSERT_TRUE(graph.ok()) << graph.status();
  const auto plan = Plan::Compile(*std::move(graph), CpuBackend());
  ASSERT_TRUE(plan.ok()) << plan.status();
  const Tensor input = Tensor::Of<float>({1, 2}, {3, 5});  // x w = 1
  const auto result =
      RunPlan(**plan, std::vector<const Tensor*>{&input}, model->parameters.pointers());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT((*result)[0].data<float>(), ElementsAre(3, 5));
}

// --- Inputs and outputs
// ---------------------------------------------------------------------------

TEST(OnnxInterface, NamesAndSizes) {
  TestModel m;
  m.Input("x", {"batch", "3"}).Input("z", {"batch", "1"}).Output("y", {"batch", "3"});
  m.Node("Add", {"x", "z"}, {"y"});
  const absl::StatusOr<LoadedOnnx> model = m.Load();
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_THAT(model->source->inputs()[0].dims, ElementsAre(-1, 3));
  EXPECT_THAT(model->source->outputs()[0].dims, ElementsAre(-1, 3));
  const auto run = [&](Shape x, Shape z) {
    std::vector<Tensor> inputs;
    inputs.push_back(Tensor::Zeros({DType::kF32, std::move(x)}));
    inputs.push_back(Tensor::Zeros({DType::kF32, std::move(z)}));
    return RunModel(*model, inputs).status();
  };
  EXPECT_TRUE(run({4, 3}, {4, 1}).ok());
  // It would broadcast, but one name has one size.
  EXPECT_REFUSED(run({4, 3}, {1, 1}), kInvalidArgument,
                 "dimension 'batch' is 1, but 4 in input 'x'");
  EXPECT_REFUSED(run({4, 2}, {4, 1}), kInvalidArgument, "dimension 1 of size 3");
  EXPECT_REFUSED(run({4}, {4, 1}), kInvalidArgument, "expected 2 dimensions");
}

TEST(OnnxInterface, UndeclaredOutputShapesAreFound) {
  TestModel m;
  m.Input("x", {"2", "3"}).Output("y", {});
  m.proto.mutable_graph()->mutable_output(0)->mutable_type()->mutable_tensor_type()->clear_shape();
  m.Node("Transpose", {"x"}, {"y"});
  const absl::StatusOr<LoadedOnnx> model = m.Load();
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_THAT(model->source->outputs()[0].dims, ElementsAre(3, 2));
}

TEST(OnnxInterface, OutputsMustHaveTheDeclaredType) {
  TestModel m;
  m.Input("x", {"2"}).Output("y", {"2"}, TensorProto::INT64);
  m.Node("Relu", {"x"}, {"y"});
  EXPECT_REFUSED(Verdict(m), kInvalidArgument,
                 "output 'y' is declared i64, but the nodes make f32");
}

TEST(OnnxInterface, AnInputThatDecidesShapesMustBeKnown) {
  TestModel m;
  m.Input("x", {"6"}).Input("shape", {"2"}, TensorProto::INT64).Output("y", {"a", "b"});
  m.Node("Reshape", {"x", "shape"}, {"y"});
  const absl::StatusOr<LoadedOnnx> model = m.Load();
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->source->shape_inputs(), (std::vector<bool>{false, true}));
  Builder builder(EvaluateNode);
  const std::vector<Value> inputs = {builder.Input("x", {DType::kF32, {6}}),
                                     builder.Input("shape", {DType::kI64, {2}})};
  EXPECT_REFUSED(model->source->Build(builder, inputs).status(), kUnimplemented,
                 "input 'shape' decides shapes");
  std::vector<Tensor> known;
  known.push_back(Tensor::Zeros({DType::kF32, {6}}));
  known.push_back(Tensor::Of<int64_t>({2}, {2, -1}));
  const auto outputs = RunModel(*model, known);
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  EXPECT_EQ((*outputs)[0].shape(), (Shape{2, 3}));
}

TEST(OnnxInterface, HalfPrecisionIsWidenedInsideAndRoundedOutside) {
  TestModel m;
  m.Input("x", {"1", "1"}, TensorProto::FLOAT16).Output("y", {"1", "1"}, TensorProto::FLOAT16);
  m.Initializer("w", CastTensor(Tensor::Of<float>({1, 1}, {2048}), DType::kF16));
  m.Initializer("c", CastTensor(Tensor::Of<float>({1, 1}, {-2048}), DType::kF16));
  m.Node("MatMul", {"x", "w"}, {"p"});
  m.Initializer("one", CastTensor(Tensor::Of<float>({1, 1}, {1}), DType::kF16));
  m.Node("Add", {"p", "one"}, {"q"});  // 2049 has no f16
  m.Node("Add", {"q", "c"}, {"y"});
  const absl::StatusOr<LoadedOnnx> model = m.Load();
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->source->parameters()[0].file_dtype, DType::kF16);
  const auto outputs =
      RunModel(*model, One(CastTensor(Tensor::Of<float>({1, 1}, {1}), DType::kF16)));
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  ASSERT_EQ((*outputs)[0].dtype(), DType::kF16);
  EXPECT_EQ(ElementAsDouble((*outputs)[0], 0), 1);
}

// --- Building
// -------------------------------------------------------------------------------------

TEST(OnnxBuild, ShapeArithmeticFolds) {
  TestModel m;
  m.Input("x", {"n", "c", "4"}).Output("y", {"n", "k"});
  m.Initializer("zero", Tensor::Of<int64_t>({1}, {0}));
  m.Initializer("minus_one", Tensor::Of<int64_t>({1}, {-1}));
  m.Node("Shape", {"x"}, {"shape"});
  m.Node("Gather", {"shape", "zero"}, {"n"});
  SetInt(m.Node("Concat", {"n", "minus_one"}, {"target"}), "axis", 0);
  m.Node("Reshape", {"x", "target"}, {"r"});
  m.Node("Relu", {"r"}, {"y"});
  const absl::StatusOr<LoadedOnnx> model = m.Load();
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_TRUE(model->source->parameters().empty());
  const absl::StatusOr<Graph> graph =
      BuildGraph(*model, One(Tensor::Zeros({DType::kF32, {5, 3, 4}})));
  ASSERT_TRUE(graph.ok()) << graph.status();
  ASSERT_EQ(graph->nodes().size(), 2u) << graph->ToString();
  EXPECT_EQ(graph->type(graph->outputs()[0]).shape, (Shape{5, 12}));
}

TEST(OnnxBuild, NodesMayComeInAnyOrder) {
  TestModel m;
  m.Input("x", {"1"}).Output("y", {"1"});
  m.Node("Neg", {"a"}, {"y"});
  m.Node("Exp", {"x"}, {"a"});
  EXPECT_THAT(Values(m, One(Tensor::Of<float>({1}, {0}))), ElementsAre(-1));
}

TEST(OnnxBuild, SoftmaxChangedItsMeaningAtOpset13) {
  const auto run = [](int64_t opset) {
    TestModel m(opset);
    m.Input("x", {"1", "2", "2"}).Output("y", {"1", "2", "2"});
    SetInt(m.Node("Softmax", {"x"}, {"y"}), "axis", 1);
    return Values(m, One(Tensor::Zeros({DType::kF32, {1, 2, 2}})));
  };
  EXPECT_THAT(run(11), ElementsAre(0.25, 0.25, 0.25, 0.25));
  EXPECT_THAT(run(13), ElementsAre(0.5, 0.5, 0.5, 0.5));
}

TEST(OnnxBuild, AxesMovedFromAttributeToInput) {
  TestModel before(11), after(13);
  for (TestModel* m : {&before, &after}) m->Input("x", {"2"}).Output("y", {"1", "2"});
  Attribute(before.Node("Unsqueeze", {"x"}, {"y"}), "axes", AttributeProto::INTS)->add_ints(0);
  after.Initializer("axes", Tensor::Of<int64_t>({1}, {0}));
  after.Node("Unsqueeze", {"x", "axes"}, {"y"});
  EXPECT_THAT(Values(before, One(Tensor::Of<float>({2}, {1, 2}))), ElementsAre(1, 2));
  EXPECT_THAT(Values(after, One(Tensor::Of<float>({2}, {1, 2}))), ElementsAre(1, 2));
  // In neither version is the other's way ignored.
  Attribute(after.proto.mutable_graph()->mutable_node(0), "axes", AttributeProto::INTS)
      ->add_ints(0);
  EXPECT_REFUSED(Verdict(after), kUnimplemented, "attribute 'axes'");
}

// y = f(x) = scale * x + x, a model-local function with an attribute.
TestModel WithFunction() {
  TestModel m;
  m.Input("x", {"2"}).Output("y", {"2"});
  onnx::FunctionProto* f = m.proto.add_functions();
  f->set_name("f");
  f->set_domain("local");
  f->add_input("a");
  f->add_output("b");
  f->add_attribute("scale");
  f->add_opset_import()->set_version(17);
  AttributeProto* value =
      Attribute(TestModel::AddNode(f, "Constant", {}, {"s"}), "value_float", AttributeProto::FLOAT);
  value->set_ref_attr_name("scale");
  TestModel::AddNode(f, "Mul", {"a", "s"}, {"p"});
  TestModel::AddNode(f, "Add", {"p", "a"}, {"b"});
  auto* import = m.proto.add_opset_import();
  import->set_domain("local");
  import->set_version(1);
  onnx::NodeProto* call = m.Node("f", {"x"}, {"y"});
  call->set_domain("local");
  Attribute(call, "scale", AttributeProto::FLOAT)->set_f(3);
  return m;
}

TEST(OnnxBuild, LocalFunctionsAreExpanded) {
  TestModel m = WithFunction();
  EXPECT_THAT(Values(m, One(Tensor::Of<float>({2}, {1, 2}))), ElementsAre(4, 8));
  Attribute(m.proto.mutable_graph()->mutable_node(0), "other", AttributeProto::INT);
  EXPECT_REFUSED(Verdict(m), kUnimplemented, "attribute 'other' is not one of the function's");
}

TEST(OnnxBuild, FunctionsThatCallThemselvesAreRefused) {
  TestModel m = WithFunction();
  onnx::NodeProto* call = TestModel::AddNode(m.proto.mutable_functions(0), "f", {"a"}, {"again"});
  call->set_domain("local");
  EXPECT_REFUSED(Verdict(m), kInvalidArgument, "calls itself");
}

// if (condition) y = -x else y = x + x
TestModel WithBranches(bool condition) {
  TestModel m;
  m.Input("x", {"1"}).Output("y", {"1"});
  m.Initializer("condition", Tensor::Scalar(condition));
  onnx::NodeProto* node = m.Node("If", {"condition"}, {"y"});
  onnx::GraphProto* then = Attribute(node, "then_branch", AttributeProto::GRAPH)->mutable_g();
  TestModel::AddNode(then, "Neg", {"x"}, {"t"});
  TestModel::Describe(then->add_output(), "t", {"1"}, TensorProto::FLOAT);
  onnx::GraphProto* other = Attribute(node, "else_branch", AttributeProto::GRAPH)->mutable_g();
  TestModel::AddNode(other, "Add", {"x", "x"}, {"e"});
  TestModel::Describe(other->add_output(), "e", {"1"}, TensorProto::FLOAT);
  return m;
}

TEST(OnnxBuild, ConstantConditionsTakeTheirBranch) {
  EXPECT_THAT(Values(WithBranches(true), One(Tensor::Of<float>({1}, {3}))), ElementsAre(-3));
  EXPECT_THAT(Values(WithBranches(false), One(Tensor::Of<float>({1}, {3}))), ElementsAre(6));
}

TEST(OnnxBuild, ConditionsThatDependOnDataAreRefused) {
  TestModel m = WithBranches(true);
  m.proto.mutable_graph()->mutable_initializer()->RemoveLast();
  m.Initializer("zero", Tensor::Of<float>({1}, {0}));
  m.Node("Less", {"x", "zero"}, {"condition"});
  const absl::StatusOr<LoadedOnnx> model = m.Load();
  ASSERT_TRUE(model.ok()) << model.status();
  Builder builder(EvaluateNode);
  const std::vector<Value> inputs = {builder.Input("x", {DType::kF32, {1}})};
  EXPECT_REFUSED(model->source->Build(builder, inputs).status(), kUnimplemented,
                 "input 'x' decides shapes");
  // Known while the graph is built, it is another matter.
  EXPECT_THAT(Values(m, One(Tensor::Of<float>({1}, {-3}))), ElementsAre(3));
  EXPECT_THAT(Values(m, One(Tensor::Of<float>({1}, {3}))), ElementsAre(6));
}

// --- Refusals
// -------------------------------------------------------------------------------------

TEST(OnnxRefusals, UnknownAttributesAreNamed) {
  TestModel m;
  m.Input("x", {"1"}).Output("y", {"1"});
  SetInt(m.Node("Relu", {"x"}, {"y"}), "fancy", 1);
  EXPECT_REFUSED(Verdict(m), kUnimplemented, "node 'Relu_y' (Relu): attribute 'fancy'");
}

TEST(OnnxRefusals, AttributesOfTheWrongTypeAreNamed) {
  TestModel m;
  m.Input("x", {"1"}).Output("y", {"1"});
  SetInt(m.Node("LeakyRelu", {"x"}, {"y"}), "alpha", 1);
  EXPECT_REFUSED(Verdict(m), kInvalidArgument, "attribute 'alpha' is of type INT, expected FLOAT");
}

TEST(OnnxRefusals, UnknownOperatorsAndDomainsAreNamed) {
  TestModel m;
  m.Input("x", {"1"}).Output("y", {"1"});
  onnx::NodeProto* node = m.Node("Frobnicate", {"x"}, {"y"});
  EXPECT_REFUSED(Verdict(m), kUnimplemented, "operator 'Frobnicate' of domain 'ai.onnx'");
  node->set_domain("com.example");
  EXPECT_REFUSED(Verdict(m), kInvalidArgument, "no opset_import for its domain 'com.example'");
}

TEST(OnnxRefusals, ExternalDataIsNotRead) {
  TestModel m;
  m.Input("x", {"1"}).Output("y", {"1"});
  m.Initializer("w", Tensor::Of<float>({1}, {1}));
  onnx::TensorProto* w = m.proto.mutable_graph()->mutable_initializer(0);
  w->clear_raw_data();
  w->set_data_location(TensorProto::EXTERNAL);
  auto* entry = w->add_external_data();
  entry->set_key("location");
  entry->set_value("/etc/passwd");
  m.Node("Add", {"x", "w"}, {"y"});
  EXPECT_REFUSED(Verdict(m), kUnimplemented, "initializer 'w': its data is in an external file");
}

TEST(OnnxRefusals, SmallFilesCannotMakeLargeTensors) {
  struct Case {
    const char* op;
    std::vector<Tensor> inputs;
  };
  const int64_t huge = int64_t{1} << 50, large = int64_t{1} << 36;
  std::vector<Case> cases(6);
  cases[0] = {"ConstantOfShape", One(Tensor::Of<int64_t>({1}, {huge}))};
  cases[1] = {"ConstantOfShape", One(Tensor::Of<int64_t>({1}, {large}))};
  cases[2] = {"Expand", One(Tensor::Of<float>({1}, {1}))};
  cases[2].inputs.push_back(Tensor::Of<int64_t>({2}, {large, 1}));
  cases[3] = {"Tile", One(Tensor::Of<float>({1}, {1}))};
  cases[3].inputs.push_back(Tensor::Of<int64_t>({1}, {huge}));
  cases[4] = {"Range", {}};
  for (const int64_t v : {int64_t{0}, huge, int64_t{1}}) {
    cases[4].inputs.push_back(Tensor::Scalar<int64_t>(v));
  }
  cases[5] = {"Pad", One(Tensor::Of<float>({1}, {1}))};
  cases[5].inputs.push_back(Tensor::Of<int64_t>({2}, {large, large}));
  for (const Case& c : cases) {
    TestModel m;
    m.Output("y", {"n"}, c.op == std::string("Range") ? TensorProto::INT64 : TensorProto::FLOAT);
    std::vector<std::string> names;
    for (const Tensor& tensor : c.inputs) {
      names.push_back("i" + std::to_string(names.size()));
      m.Initializer(names.back(), tensor);
    }
    m.Node(c.op, names, {"y"});
    const absl::Status status = m.Load().status();
    EXPECT_TRUE(absl::IsResourceExhausted(status) || absl::IsInvalidArgument(status))
        << c.op << ": " << status;
  }
}

TEST(OnnxRefusals, LoopsAreBounded) {
  TestModel m;
  m.Input("x", {"1"}).Output("y", {"1"});
  m.Initializer("trips", Tensor::Scalar<int64_t>(int64_t{1} << 60));
  onnx::NodeProto* loop = m.Node("Loop", {"trips", "", "x"}, {"y"});
  onnx::GraphProto* body = Attribute(loop, "body", AttributeProto::GRAPH)->mutable_g();
  TestModel::Describe(body->add_input(), "i", {}, TensorProto::INT64);
  TestModel::Describe(body->add_input(), "go", {}, TensorProto::BOOL);
  TestModel::Describe(body->add_input(), "v", {"1"}, TensorProto::FLOAT);
  TestModel::AddNode(body, "Identity", {"go"}, {"go_on"});
  TestModel::AddNode(body, "Neg", {"v"}, {"w"});
  TestModel::Describe(body->add_output(), "go_on", {}, TensorProto::BOOL);
  TestModel::Describe(body->add_output(), "w", {"1"}, TensorProto::FLOAT);
  EXPECT_REFUSED(Verdict(m), kResourceExhausted, "iterations");
  m.proto.mutable_graph()->mutable_initializer()->RemoveLast();
  m.Initializer("trips", Tensor::Scalar<int64_t>(3));
  EXPECT_THAT(Values(m, One(Tensor::Of<float>({1}, {2}))), ElementsAre(-2));
}

TEST(OnnxRefusals, DivisionByZeroWhileFoldingIsNoCrash) {
  TestModel m;
  m.Output("y", {}, TensorProto::INT64);
  m.Initializer("one", Tensor::Scalar<int64_t>(1));
  m.Initializer("zero", Tensor::Scalar<int64_t>(0));
  m.Node("Div", {"one", "zero"}, {"y"});
  (void)Verdict(m);  // any verdict
}

// Every malformed or hostile file gets the verdict that goes with it.
TEST(OnnxRefusals, BadInputs) {
  TANDEM_NEED_MATERIAL("bad-inputs/onnx/expectations.json");
  const nlohmann::json cases =
      nlohmann::json::parse(ReadFile(MaterialPath("bad-inputs/onnx/expectations.json")));
  int rejected = 0;
  for (const auto& about : cases) {
    const std::string file = about["file"], expected = about["expect"];
    const absl::Status status = Verdict(ReadFile(MaterialPath("bad-inputs/onnx/" + file)));
    std::cout << file << ": " << status.ToString().substr(0, 200) << "\n";
    if (expected == "reject") {
      EXPECT_FALSE(status.ok()) << file << ": " << about["why"];
      EXPECT_FALSE(absl::IsInternal(status)) << file << ": " << status;
    } else if (expected == "accept") {
      EXPECT_TRUE(status.ok()) << file << ": " << status;
    }
    rejected += status.ok() ? 0 : 1;
  }
  EXPECT_GT(rejected, 0);
}

// --- Writing
// --------------------------------------------------------------------------------------

TEST(OnnxSerialize, WeightsChangeAndNothingElse) {
  TestModel m;
  m.proto.set_producer_name("test");
  m.Input("x", {"1", "2"}).Output("y", {"1", "2"});
  m.Initializer("w", CastTensor(Tensor::Of<float>({2, 2}, {1, 2, 3, 4}), DType::kF16));
  m.Initializer("v", Tensor::Of<float>({2}, {5, 6}));
  // A typed field instead of raw bytes.
  onnx::TensorProto* v = m.proto.mutable_graph()->mutable_initializer(1);
  v->clear_raw_data();
  v->add_float_data(5);
  v->add_float_data(6);
  m.Initializer("shape", Tensor::Of<int64_t>({2}, {1, 2}));
  m.Node("MatMul", {"x", "w"}, {"p"});
  m.Node("Mul", {"p", "v"}, {"q"});
  m.Node("Reshape", {"q", "shape"}, {"y"});
  absl::StatusOr<LoadedOnnx> model = m.Load();
  ASSERT_TRUE(model.ok()) << model.status();
  for (int i = 0; i < 2; ++i) {
    for (float& value : model->parameters.values(i)) value += 1;
  }
  const absl::StatusOr<std::string> bytes = SerializeOnnx(*model->source, model->parameters);
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  onnx::ModelProto written;
  ASSERT_TRUE(written.ParseFromString(*bytes));
  EXPECT_EQ(written.graph().initializer(0).data_type(), TensorProto::FLOAT16);
  const absl::StatusOr<LoadedOnnx> again = LoadOnnx(*bytes);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_THAT(again->parameters.values(0), ElementsAre(2, 3, 4, 5));
  EXPECT_THAT(again->parameters.values(1), ElementsAre(6, 7));
  for (int i = 0; i < 2; ++i) {
    *written.mutable_graph()->mutable_initializer(i) = m.proto.graph().initializer(i);
  }
  EXPECT_EQ(written.SerializeAsString(), m.proto.SerializeAsString());
}

TEST(OnnxSerialize, ParametersOfAnotherModelAreRefused) {
  TestModel m;
  m.Input("x", {"1"}).Output("y", {"1"});
  m.Initializer("w", Tensor::Of<float>({1}, {1}));
  m.Node("Add", {"x", "w"}, {"y"});
  const absl::StatusOr<LoadedOnnx> model = m.Load();
  ASSERT_TRUE(model.ok()) << model.status();
  const ParameterStore other(std::vector<ParameterInfo>{{.name = "w", .shape = {2}}});
  EXPECT_REFUSED(SerializeOnnx(*model->source, other).status(), kInvalidArgument,
                 "parameter 'w' has 2 values, expected 1");
  EXPECT_REFUSED(SerializeOnnx(*model->source, ParameterStore({})).status(), kInvalidArgument,
                 "0 parameters");
}

// --- Tensors
// --------------------------------------------------------------------------------------

TEST(OnnxTensors, TypedFieldsAreRead) {
  TensorProto proto;
  proto.add_dims(2);
  proto.set_data_type(TensorProto::UINT8);
  proto.add_int32_data(7);
  proto.add_int32_data(255);
  const absl::StatusOr<Tensor> bytes = TensorFromProto(proto, "t");
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_THAT(bytes->data<uint8_t>(), ElementsAre(7, 255));
  proto.set_int32_data(1, 256);
  EXPECT_REFUSED(TensorFromProto(proto, "t").status(), kInvalidArgument, "256 does not fit u8");
  proto.set_data_type(TensorProto::BFLOAT16);
  proto.set_int32_data(0, 0x3f80);
  proto.set_int32_data(1, 0xc000);
  const absl::StatusOr<Tensor> halves = TensorFromProto(proto, "t");
  ASSERT_TRUE(halves.ok()) << halves.status();
  EXPECT_EQ(ElementAsDouble(*halves, 0), 1);
  EXPECT_EQ(ElementAsDouble(*halves, 1), -2);
}

TEST(OnnxTensors, DataMustFillTheShape) {
  TensorProto proto;
  proto.set_data_type(TensorProto::FLOAT);
  proto.add_dims(int64_t{1} << 30);
  EXPECT_REFUSED(TensorFromProto(proto, "t").status(), kInvalidArgument, "needs 1073741824 values");
  proto.set_raw_data("1234567");
  EXPECT_REFUSED(TensorFromProto(proto, "t").status(), kInvalidArgument, "there are 7");
  proto.add_float_data(1);
  EXPECT_REFUSED(TensorFromProto(proto, "t").status(), kInvalidArgument,
                 "more than one data field");
  proto.Clear();
  proto.set_data_type(TensorProto::STRING);
  EXPECT_REFUSED(TensorFromProto(proto, "t").status(), kUnimplemented, "STRING");
}

}  // namespace
}  // namespace tandem

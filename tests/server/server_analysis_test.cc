// Over loopback: analyses, parameters and their roles, weight decay by role, activations.
#include <cmath>
#include <functional>
#include <map>

#include "tests/server/test_server.h"

namespace tandem::server {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;

class ServerAnalysisTest : public ServerTest {
 protected:
  // Two convolutions of stride 2 with biases, the second as an addition, a pool, global average,
  // a linear layer: x (N, 1, H, W) -> y (N, 3).
  static std::string ImageOnnx() {
    onnx::ModelProto model = EmptyOnnx();
    onnx::GraphProto* graph = model.mutable_graph();
    onnx::ValueInfoProto* x = graph->add_input();
    x->set_name("x");
    auto* type = x->mutable_type()->mutable_tensor_type();
    type->set_elem_type(onnx::TensorProto::FLOAT);
    for (const char* dim : {"N", "", "H", "W"}) {
      if (*dim != 0) {
        type->mutable_shape()->add_dim()->set_dim_param(dim);
      } else {
        type->mutable_shape()->add_dim()->set_dim_value(1);
      }
    }
    AddValue(graph->add_output(), "y", 3);
    AddWeight(graph, "w1", {2, 1, 3, 3}, std::vector<float>(18, 0.1f));
    AddWeight(graph, "b1", {2}, {0.5f, 0.25f});
    AddWeight(graph, "w2", {4, 2, 3, 3}, std::vector<float>(72, 0.1f));
    AddWeight(graph, "scale", {4}, {1, 1, 1, 1});
    AddWeight(graph, "shift", {4}, {0, 0, 0, 0});
    AddWeight(graph, "mean", {4}, {0, 0, 0, 0});
    AddWeight(graph, "variance", {4}, {1, 1, 1, 1});
    AddWeight(graph, "w3", {4, 3}, std::vector<float>(12, 0.1f));
    AddWeight(graph, "b3", {1, 3}, {1, 2, 3});
    AddNode(graph, "Conv", {"x", "w1", "b1"}, "c1");
    SetInts(graph, "strides", {2, 2});
    AddNode(graph, "Relu", {"c1"}, "r1");
    AddNode(graph, "Conv", {"r1", "w2"}, "c2");
    SetInts(graph, "strides", {2, 1});
    AddNode(graph, "BatchNormalization", {"c2", "scale", "shift", "mean", "variance"}, "n2");
    AddNode(graph, "GlobalAveragePool", {"n2"}, "pooled");
    AddNode(graph, "Flatten", {"pooled"}, "flat");
    AddNode(graph, "MatMul", {"flat", "w3"}, "p3");
    AddNode(graph, "Add", {"p3", "b3"}, "y");
    return model.SerializeAsString();
  }
  static void SetInts(onnx::GraphProto* graph, const char* name, std::vector<int64_t> values) {
    auto* attribute = graph->mutable_node(graph->node_size() - 1)->add_attribute();
    attribute->set_name(name);
    attribute->set_type(onnx::AttributeProto::INTS);
    for (int64_t value : values) attribute->add_ints(value);
  }
  void CreateImage() {
    v1::CreateModelRequest request;
    request.set_model("image");
    request.set_onnx(ImageOnnx());
    v1::CreateModelResponse response;
    ASSERT_OK(Call(*models_, &Models::CreateModel, request, &response));
  }
  static v1::AnalyzeModelRequest ImageRequest(std::vector<int64_t> shape) {
    v1::AnalyzeModelRequest request;
    request.set_model("image");
    auto* input = request.add_inputs();
    input->set_name("x");
    for (int64_t dim : shape) input->add_shape(dim);
    return request;
  }
  static const v1::AnalyzeModelResponse::Layer& Last(const v1::AnalyzeModelResponse& response,
                                                     const std::string& op) {
    const v1::AnalyzeModelResponse::Layer* found = &response.layers(0);
    for (const auto& layer : response.layers()) {
      if (layer.op() == op) found = &layer;
    }
    EXPECT_EQ(found->op(), op);
    return *found;
  }
};

TEST_F(ServerAnalysisTest, LayersAndTotals) {
  Start();
  CreateImage();
  v1::AnalyzeModelResponse response;
  ASSERT_OK(Call(*models_, &Models::AnalyzeModel, ImageRequest({2, 1, 33, 21}), &response));
  EXPECT_EQ(response.spatial_input(), "x");
  EXPECT_THAT(response.spatial_sizes(), ElementsAre(33, 21));
  EXPECT_EQ(response.bias_parameters(), 2 + 4 + 3);
  EXPECT_EQ(response.bias_bytes(), 9 * 4);
  EXPECT_EQ(response.training_error(), "");
  EXPECT_GE(response.training_peak_bytes(), response.forward_peak_bytes());
  EXPECT_GE(response.training_state_bytes(), response.parameters() * 13);
  EXPECT_DOUBLE_EQ(response.arithmetic_intensity(), response.flops() / response.bytes_moved());
  EXPECT_EQ(response.measured_repetitions(), 0);
  EXPECT_FALSE(response.has_verification());

  const v1::AnalyzeModelResponse::Layer conv = Last(response, "Conv");
  EXPECT_THAT(conv.output_shape(), ElementsAre(2, 4, 7, 8));
  EXPECT_EQ(conv.macs(), 2 * 4 * 7 * 8 * 18);
  EXPECT_FALSE(conv.has_seconds());
  ASSERT_EQ(conv.receptive_field().dimensions_size(), 2);
  // 3 + 2 (3 - 1) = 7; strides 4 and 2; no padding, so centred on 3.
  for (const auto& dim : conv.receptive_field().dimensions()) {
    EXPECT_EQ(dim.extent(), v1::ReceptiveField::EXTENT_WINDOW);
    EXPECT_EQ(dim.size(), 7);
    EXPECT_EQ(dim.offset(), 3);
  }
  EXPECT_EQ(conv.receptive_field().dimensions(0).stride(), 4);
  EXPECT_EQ(conv.receptive_field().dimensions(1).stride(), 2);
  const v1::AnalyzeModelResponse::Layer product = Last(response, "MatMul");
  EXPECT_TRUE(product.fused_bias());
  EXPECT_EQ(product.bias_parameters(), 3);
  EXPECT_EQ(product.bias_flops(), 2 * 3);
  EXPECT_EQ(product.receptive_field().dimensions(1).extent(),
            v1::ReceptiveField::EXTENT_WHOLE_INPUT);
  EXPECT_EQ(product.receptive_field().dimensions(1).size(), 21);
  EXPECT_EQ(product.receptive_field().dimensions(1).offset(), 10);
}

TEST_F(ServerAnalysisTest, MeasuresAndVerifiesWhenAsked) {
  Start();
  CreateImage();
  v1::AnalyzeModelRequest request = ImageRequest({1, 1, 41, 31});
  request.set_measure(true);
  v1::AnalyzeModelResponse response;
  ASSERT_OK(Call(*models_, &Models::AnalyzeModel, request, &response));
  EXPECT_GE(response.measured_repetitions(), 1);
  EXPECT_GT(Last(response, "Conv").seconds(), 0);
  EXPECT_FALSE(response.has_verification());
  request.set_measure(false);
  request.set_verify_receptive_field(true);
  ASSERT_OK(Call(*models_, &Models::AnalyzeModel, request, &response));
  EXPECT_EQ(response.measured_repetitions(), 0);
  ASSERT_TRUE(response.has_verification());
  const auto& v = response.verification();
  EXPECT_TRUE(v.agrees()) << v.DebugString();
  // Outputs (9, 13): position (4, 6), around 3 + 4 * 4 and 3 + 2 * 6.
  EXPECT_THAT(v.position(), ElementsAre(4, 6));
  EXPECT_THAT(v.measured_low(), ElementsAre(16, 12));
  EXPECT_THAT(v.measured_high(), ElementsAre(22, 18));
  EXPECT_THAT(v.expected_low(), ElementsAre(16, 12));

  // Shapes that fit no memory are refused, whatever is asked.
  request = ImageRequest({1 << 14, 1, 1 << 11, 1 << 11});
  request.set_measure(true);
  EXPECT_STATUS(Call(*models_, &Models::AnalyzeModel, request, &response), RESOURCE_EXHAUSTED, "");
  request = ImageRequest({int64_t{1} << 40, 1, 1 << 11, 1 << 11});
  EXPECT_STATUS(Call(*models_, &Models::AnalyzeModel, request, &response), INVALID_ARGUMENT, "'x'");
  // A model without spatial dimensions has nothing to verify.
  CreateLinear("linear");
  request.Clear();
  request.set_model("linear");
  request.set_verify_receptive_field(true);
  EXPECT_STATUS(Call(*models_, &Models::AnalyzeModel, request, &response), FAILED_PRECONDITION,
                "spatial");
}

TEST_F(ServerAnalysisTest, ParametersSayWhatTheyAre) {
  Start();
  CreateImage();
  CreateCharacterModel("chars", "abcdefgh");
  const auto get = [&](const char* model, bool parameters) {
    v1::GetModelRequest request;
    request.set_model(model);
    request.set_parameters(parameters);
    v1::GetModelResponse response;
    EXPECT_TRUE(Call(*models_, &Models::GetModel, request, &response).ok());
    return response;
  };
  EXPECT_EQ(get("image", false).parameters_size(), 0);
  std::map<std::string, v1::ParameterRole> roles;
  int64_t elements = 0;
  const v1::GetModelResponse image = get("image", true);
  for (const v1::Parameter& parameter : image.parameters()) {
    roles[parameter.name()] = parameter.role();
    elements += parameter.elements();
    if (parameter.name() == "w2") {
      EXPECT_THAT(parameter.shape(), ElementsAre(4, 2, 3, 3));
    }
  }
  EXPECT_EQ(elements, image.model().parameter_count());
  EXPECT_EQ(roles["w1"], v1::PARAMETER_ROLE_WEIGHT);
  EXPECT_EQ(roles["b1"], v1::PARAMETER_ROLE_BIAS);
  EXPECT_EQ(roles["scale"], v1::PARAMETER_ROLE_NORM);
  EXPECT_EQ(roles["shift"], v1::PARAMETER_ROLE_BIAS);
  EXPECT_EQ(roles["w3"], v1::PARAMETER_ROLE_WEIGHT);
  EXPECT_EQ(roles["b3"], v1::PARAMETER_ROLE_BIAS);
  roles.clear();
  const v1::GetModelResponse chars = get("chars", true);
  for (const v1::Parameter& parameter : chars.parameters()) {
    roles[parameter.name()] = parameter.role();
  }
  EXPECT_EQ(roles["transformer.wte.weight"], v1::PARAMETER_ROLE_EMBEDDING);
  EXPECT_EQ(roles["transformer.h.0.ln_1.weight"], v1::PARAMETER_ROLE_NORM);
  EXPECT_EQ(roles["transformer.h.0.attn.c_attn.bias"], v1::PARAMETER_ROLE_BIAS);
  EXPECT_EQ(roles["transformer.h.0.attn.c_attn.weight"], v1::PARAMETER_ROLE_WEIGHT);
}

TEST_F(ServerAnalysisTest, WeightDecayByRole) {
  Start();
  // y = x w + b: w has 6 elements, b 2.
  const auto start = [&](const std::string& name, const std::function<void(v1::Optimizer*)>& set,
                         v1::StartTrainingResponse* response) {
    CreateLinear(name);
    v1::StartTrainingRequest request;
    request.set_model(name);
    request.mutable_objective()->set_loss(v1::LOSS_MSE);
    set(request.mutable_optimizer());
    return Call(*training_, &Training::StartTraining, request, response);
  };
  v1::StartTrainingResponse response;
  ASSERT_OK(start(
      "a", [](auto*) {}, &response));
  EXPECT_EQ(response.training().decayed_parameters(), 6);
  ASSERT_OK(start(
      "b", [](auto* o) { o->set_decay_vectors(true); }, &response));
  EXPECT_EQ(response.training().decayed_parameters(), 8);
  const auto no_biases = [](v1::Optimizer* o) {
    o->set_decay_vectors(true);
    o->add_no_decay_roles(v1::PARAMETER_ROLE_BIAS);
  };
  ASSERT_OK(start("c", no_biases, &response));
  EXPECT_EQ(response.training().decayed_parameters(), 6);
  EXPECT_THAT(response.training().optimizer().no_decay_roles(),
              ElementsAre(v1::PARAMETER_ROLE_BIAS));
  ASSERT_OK(start(
      "d", [](auto* o) { o->add_no_decay("w"); }, &response));
  EXPECT_EQ(response.training().decayed_parameters(), 0);
  EXPECT_THAT(response.training().optimizer().no_decay(), ElementsAre("w"));
  EXPECT_STATUS(start(
                    "e", [](auto* o) { o->add_no_decay("zzz"); }, &response),
                INVALID_ARGUMENT, "zzz");
  const auto unknown = [](v1::Optimizer* o) {
    o->add_no_decay_roles(static_cast<v1::ParameterRole>(17));
  };
  EXPECT_STATUS(start("f", unknown, &response), INVALID_ARGUMENT, "no_decay_roles 17");
  EXPECT_STATUS(start(
                    "g", [](auto* o) { o->add_no_decay_roles({}); }, &response),
                INVALID_ARGUMENT, "no_decay_roles 0");
}

using P = std::map<std::string, double>;  // parameters
using Formula = std::function<double(double x, P& p)>;

double Relu(double x) { return std::max(x, 0.0); }
double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double Gelu(double x) { return x * (1 + std::erf(x / std::sqrt(2.0))) / 2; }
double Elu(double x, double alpha) { return x > 0 ? x : alpha * std::expm1(x); }
double Clip(double x, double low, double high) { return std::min(std::max(x, low), high); }

const std::map<std::string, Formula>& Formulas() {
  static const auto* const all = new std::map<std::string, Formula>{
      {"threshold", [](double x, P&) { return x >= 0 ? 1.0 : 0.0; }},
      {"threshold_boxcar", [](double x, P&) { return x >= 0 ? 1.0 : 0.0; }},
      {"sign", [](double x, P&) { return x > 0   ? 1.0
                                         : x < 0 ? -1.0
                                                 : 0.0; }},
      {"sign_straight_through", [](double x, P&) { return x > 0   ? 1.0
                                                          : x < 0 ? -1.0
                                                                  : 0.0; }},
      {"linear", [](double x, P& p) { return p["slope"] * x; }},
      {"hard_sigmoid", [](double x, P& p) { return Clip(p["alpha"] * x + p["beta"], 0, 1); }},
      {"hard_tanh", [](double x, P&) { return Clip(x, -1, 1); }},
      {"sigmoid", [](double x, P&) { return Sigmoid(x); }},
      {"log_sigmoid", [](double x, P&) { return -std::log1p(std::exp(-x)); }},
      {"softmax", [](double x, P&) { return std::exp(x) / (std::exp(x) + 1); }},
      {"tanh", [](double x, P&) { return std::tanh(x); }},
      {"scaled_tanh", [](double x, P&) { return 1.7159 * std::tanh(2 * x / 3); }},
      {"softsign", [](double x, P&) { return x / (1 + std::abs(x)); }},
      {"isru", [](double x, P& p) { return x / std::sqrt(1 + p["alpha"] * x * x); }},
      {"relu", [](double x, P&) { return Relu(x); }},
      {"leaky_relu", [](double x, P& p) { return x >= 0 ? x : p["alpha"] * x; }},
      {"prelu", [](double x, P& p) { return x >= 0 ? x : p["a"] * x; }},
      {"rrelu", [](double x, P& p) { return x >= 0 ? x : (p["lower"] + p["upper"]) / 2 * x; }},
      {"relu6", [](double x, P&) { return Clip(x, 0, 6); }},
      {"thresholded_relu", [](double x, P& p) { return x > p["theta"] ? x : 0; }},
      {"squared_relu", [](double x, P&) { return Relu(x) * Relu(x); }},
      {"maxout", [](double x, P& p) { return std::max(x, p["slope"] * x + p["offset"]); }},
      {"elu", [](double x, P& p) { return Elu(x, p["alpha"]); }},
      {"selu", [](double x, P&) { return 1.0507009873554805 * Elu(x, 1.6732632423543772); }},
      {"celu", [](double x, P& p) { return x > 0 ? x : p["alpha"] * std::expm1(x / p["alpha"]); }},
      {"softplus", [](double x, P& p) { return std::log1p(std::exp(p["beta"] * x)) / p["beta"]; }},
      {"silu", [](double x, P&) { return x * Sigmoid(x); }},
      {"swish", [](double x, P& p) { return x * Sigmoid(p["beta"] * x); }},
      {"hard_swish", [](double x, P&) { return x * Clip(x / 6 + 0.5, 0, 1); }},
      {"mish", [](double x, P&) { return x * std::tanh(std::log1p(std::exp(x))); }},
      {"gelu", [](double x, P&) { return Gelu(x); }},
      {"gelu_tanh",
       [](double x, P&) {
         return x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))) / 2;
       }},
      {"quick_gelu", [](double x, P&) { return x * Sigmoid(1.702 * x); }},
      {"softshrink",
       [](double x, P& p) { return std::copysign(Relu(std::abs(x) - p["lambda"]), x); }},
      {"hardshrink", [](double x, P& p) { return std::abs(x) > p["lambda"] ? x : 0; }},
      {"tanhshrink", [](double x, P&) { return x - std::tanh(x); }},
      {"sin", [](double x, P& p) { return std::sin(p["omega"] * x); }},
      {"snake", [](double x, P& p) { return x + std::pow(std::sin(p["a"] * x), 2) / p["a"]; }},
      {"gaussian", [](double x, P&) { return std::exp(-x * x); }},
      {"bilinear", [](double x, P&) { return x; }},
      {"glu", [](double x, P&) { return Sigmoid(x); }},
      {"reglu", [](double x, P&) { return Relu(x); }},
      {"geglu", [](double x, P&) { return Gelu(x); }},
      {"swiglu", [](double x, P&) { return x * Sigmoid(x); }},
  };
  return *all;
}

// What those with a surrogate gradient are differentiated as.
const std::map<std::string, Formula>& Surrogates() {
  static const auto* const all = new std::map<std::string, Formula>{
      {"threshold_boxcar", [](double x, P& p) { return Clip(x / p["width"] + 0.5, 0, 1); }},
      {"sign_straight_through", [](double x, P&) { return Clip(x, -1, 1); }},
  };
  return *all;
}

void CheckCurve(const v1::ListActivationsResponse& response, const v1::Activation& activation) {
  SCOPED_TRACE(activation.name());
  const auto formula = Formulas().find(activation.name());
  ASSERT_NE(formula, Formulas().end()) << "no formula to compare with";
  P parameters;
  for (const auto& p : activation.parameters()) parameters[p.name()] = p.value();
  ASSERT_EQ(activation.y_size(), response.x_size());
  ASSERT_EQ(activation.dy_size(), response.x_size());
  const auto surrogate = Surrogates().find(activation.name());
  const Formula& smooth = surrogate == Surrogates().end() ? formula->second : surrogate->second;
  constexpr double kStep = 1e-6;
  for (int i = 0; i < response.x_size(); ++i) {
    const double x = response.x(i);
    const double y = formula->second(x, parameters);
    bool near_kink = false;
    for (const double kink : activation.kinks()) near_kink |= std::abs(x - kink) < 2 * kStep;
    if (near_kink) continue;
    EXPECT_NEAR(activation.y(i), y, 1e-6 * (1 + std::abs(y))) << "at " << x;
    const double dy = (smooth(x + kStep, parameters) - smooth(x - kStep, parameters)) / (2 * kStep);
    EXPECT_NEAR(activation.dy(i), dy, 4e-6 * (1 + std::abs(dy) + std::abs(y))) << "at " << x;
  }
}

TEST_F(ServerAnalysisTest, EveryActivationIsItsFormula) {
  Start();
  v1::ListActivationsRequest request;
  request.set_points(1001);
  v1::ListActivationsResponse response;
  ASSERT_OK(Call(*models_, &Models::ListActivations, request, &response));
  ASSERT_EQ(response.x_size(), 1001);
  EXPECT_EQ(response.x(0), -5);
  EXPECT_EQ(response.x(1000), 5);
  EXPECT_EQ(response.activations_size(), static_cast<int>(Formulas().size()));
  for (const v1::Activation& activation : response.activations()) {
    CheckCurve(response, activation);
    EXPECT_FALSE(activation.formula().empty()) << activation.name();
    EXPECT_FALSE(activation.source().empty()) << activation.name();
    EXPECT_EQ(activation.operators_size() > 0, activation.name() != "linear") << activation.name();
  }
  // Smooth at 0, from either side.
  request.Clear();
  request.add_names("elu");
  request.add_names("celu");
  request.set_from(-1);
  request.set_to(1);
  request.set_points(3);
  ASSERT_OK(Call(*models_, &Models::ListActivations, request, &response));
  for (const v1::Activation& activation : response.activations()) {
    EXPECT_EQ(activation.dy(1), 1) << activation.name();
  }
}

// Each parameter, at two values other than its default.
TEST_F(ServerAnalysisTest, EveryParameterOfAnActivationCounts) {
  Start();
  v1::ListActivationsRequest all;
  all.set_points(0);
  v1::ListActivationsResponse catalogue, response;
  ASSERT_OK(Call(*models_, &Models::ListActivations, all, &catalogue));
  int parameters = 0;
  for (const v1::Activation& activation : catalogue.activations()) {
    EXPECT_EQ(activation.y_size(), 0);
    for (const auto& parameter : activation.parameters()) {
      for (const double factor : {0.5, 1.5}) {
        v1::ListActivationsRequest request;
        request.add_names(activation.name());
        request.set_points(101);
        const double value = parameter.value() == 0 ? factor : parameter.value() * factor;
        (*request.mutable_parameters())[parameter.name()] = value;
        ASSERT_OK(Call(*models_, &Models::ListActivations, request, &response));
        ASSERT_EQ(response.activations_size(), 1);
        bool shown = false;
        for (const auto& p : response.activations(0).parameters()) {
          shown |= p.name() == parameter.name() && p.value() == value;
        }
        EXPECT_TRUE(shown) << activation.name() << " " << parameter.name();
        CheckCurve(response, response.activations(0));
        ++parameters;
      }
    }
  }
  EXPECT_GE(parameters, 2 * 18);
}

TEST_F(ServerAnalysisTest, ActivationOperatorsAndErrors) {
  Start();
  v1::ListActivationsRequest request;
  request.add_names("swiglu");
  request.add_names("hard_swish");
  v1::ListActivationsResponse response;
  ASSERT_OK(Call(*models_, &Models::ListActivations, request, &response));
  ASSERT_EQ(response.activations_size(), 2);
  EXPECT_EQ(response.x_size(), 201);
  EXPECT_THAT(response.activations(0).operators(), ElementsAre("SwiGlu"));
  EXPECT_THAT(response.activations(1).operators(), ElementsAre("Mul", "Add", "Relu", "Min"));
  EXPECT_THAT(response.activations(1).onnx_operators(), Contains("HardSwish"));
  const auto expect = [&](const std::function<void(v1::ListActivationsRequest&)>& change,
                          grpc::StatusCode code, const char* text) {
    v1::ListActivationsRequest bad;
    bad.add_names("elu");
    change(bad);
    const grpc::Status status = Call(*models_, &Models::ListActivations, bad, &response);
    EXPECT_EQ(status.error_code(), code) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(text));
  };
  constexpr auto kInvalid = grpc::StatusCode::INVALID_ARGUMENT;
  expect([](auto& r) { r.add_names("nope"); }, grpc::StatusCode::NOT_FOUND, "'nope'");
  expect([](auto& r) { r.add_names("elu"); }, kInvalid, "twice");
  expect([](auto& r) { r.set_points(1); }, kInvalid, "points is 1");
  expect([](auto& r) { r.set_points(-3); }, kInvalid, "points is -3");
  expect([](auto& r) { r.set_points(4097); }, kInvalid, "4096");
  expect([](auto& r) { r.set_from(7); }, kInvalid, "from is 7");
  expect([](auto& r) { r.set_to(NAN); }, kInvalid, "to");
  expect([](auto& r) { r.set_to(1e7); }, kInvalid, "to is");
  expect([](auto& r) { (*r.mutable_parameters())["beta"] = 1; }, kInvalid, "'beta'");
  expect([](auto& r) { (*r.mutable_parameters())["alpha"] = INFINITY; }, kInvalid, "alpha");
  expect([](auto& r) { (*r.mutable_parameters())["alpha"] = NAN; }, kInvalid, "alpha");
}

}  // namespace
}  // namespace tandem::server

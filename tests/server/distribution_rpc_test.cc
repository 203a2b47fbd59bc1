// SampleDistribution and EstimateGradient through the network.
#include <cmath>
#include <numeric>

#include "tests/server/test_server.h"

namespace tandem::server {
namespace {

using ::testing::HasSubstr;

class DistributionRpcTest : public ServerTest {
 protected:
  static void AddParameter(v1::Distribution* distribution, const char* name,
                           const std::vector<float>& values) {
    v1::NamedTensor* named = distribution->add_parameters();
    named->set_name(name);
    named->mutable_tensor()->set_dtype(v1::DATA_TYPE_F32);
    named->mutable_tensor()->add_shape(static_cast<int64_t>(values.size()));
    named->mutable_tensor()->set_data(values.data(), values.size() * sizeof(float));
  }
  static v1::Distribution Normal(const std::vector<float>& loc, const std::vector<float>& scale) {
    v1::Distribution d;
    d.set_family(v1::DISTRIBUTION_FAMILY_NORMAL);
    AddParameter(&d, "loc", loc);
    AddParameter(&d, "scale", scale);
    return d;
  }
  static std::vector<double> F64(const v1::Tensor& tensor) {
    std::vector<double> values(tensor.data().size() / sizeof(double));
    std::memcpy(values.data(), tensor.data().data(), tensor.data().size());
    return values;
  }
  // f(z) = sum of squares of a row of three.
  void CreateSumOfSquares(const char* name) {
    onnx::ModelProto model = EmptyOnnx();
    onnx::GraphProto* graph = model.mutable_graph();
    AddValue(graph->add_input(), "z", 3);
    AddValue(graph->add_output(), "f", 1);
    AddWeight(graph, "ones", {3, 1}, {1, 1, 1});
    AddNode(graph, "Mul", {"z", "z"}, "squares");
    AddNode(graph, "MatMul", {"squares", "ones"}, "f");
    v1::CreateModelRequest request;
    request.set_model(name);
    request.set_onnx(model.SerializeAsString());
    v1::CreateModelResponse response;
    ASSERT_OK(Call(*models_, &Models::CreateModel, request, &response));
  }
  grpc::Status Estimate(const v1::EstimateGradientRequest& request,
                        std::vector<v1::EstimateGradientResponse>* responses) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    const auto reader = sampling_->EstimateGradient(&context, request);
    v1::EstimateGradientResponse response;
    while (reader->Read(&response)) responses->push_back(response);
    return reader->Finish();
  }
  grpc::Status Sample(const v1::SampleDistributionRequest& request,
                      v1::SampleDistributionResponse* response) {
    return Call(*sampling_, &Sampling::SampleDistribution, request, response);
  }
};

TEST_F(DistributionRpcTest, DrawsDensitiesEntropyAndGradients) {
  Start();
  v1::SampleDistributionRequest request;
  *request.mutable_distribution() = Normal({1, 2}, {0.5, 3});
  request.set_draws(4);
  request.set_seed(9);
  request.set_log_density(true);
  request.set_entropy(true);
  const std::vector<float> ones(8, 1);
  request.mutable_draw_cotangents()->set_dtype(v1::DATA_TYPE_F32);
  request.mutable_draw_cotangents()->add_shape(4);
  request.mutable_draw_cotangents()->add_shape(2);
  request.mutable_draw_cotangents()->set_data(ones.data(), 32);
  v1::SampleDistributionResponse response, again;
  ASSERT_OK(Sample(request, &response));
  ASSERT_OK(Sample(request, &again));
  EXPECT_EQ(response.SerializeAsString(), again.SerializeAsString());
  EXPECT_EQ(response.seed(), 9U);
  const std::vector<float> draws = Floats(response.draws().data());
  ASSERT_EQ(draws.size(), 8U);
  const std::vector<float> density = Floats(response.log_density().data());
  ASSERT_EQ(density.size(), 8U);
  const double z = (draws[0] - 1) / 0.5;
  EXPECT_NEAR(density[0], -0.5 * z * z - std::log(0.5) - 0.5 * std::log(2 * M_PI), 1e-6);
  EXPECT_NEAR(Floats(response.entropy().data())[1], 0.5 + 0.5 * std::log(2 * M_PI) + std::log(3.0),
              1e-6);
  ASSERT_EQ(response.gradients_size(), 2);
  EXPECT_EQ(response.gradients(0).name(), "loc");
  EXPECT_EQ(Floats(response.gradients(0).tensor().data()), (std::vector<float>{4, 4}));
  double noise = 0;
  for (int i = 0; i < 4; ++i) noise += (draws[2 * i] - 1) / 0.5;
  EXPECT_NEAR(Floats(response.gradients(1).tensor().data())[0], noise, 1e-5);
  // Another seed, chosen by the server and reported, gives other draws, and gives them again.
  request.clear_seed();
  ASSERT_OK(Sample(request, &again));
  EXPECT_NE(again.draws().data(), response.draws().data());
  request.set_seed(again.seed());
  v1::SampleDistributionResponse repeated;
  ASSERT_OK(Sample(request, &repeated));
  EXPECT_EQ(repeated.draws().data(), again.draws().data());
}

TEST_F(DistributionRpcTest, ValuesAndScores) {
  Start();
  v1::SampleDistributionRequest request;
  request.mutable_distribution()->set_family(v1::DISTRIBUTION_FAMILY_CATEGORICAL);
  AddParameter(request.mutable_distribution(), "probs", {1, 3});
  const std::vector<int64_t> classes = {1, 0, 1};
  request.mutable_values()->set_dtype(v1::DATA_TYPE_I64);
  request.mutable_values()->add_shape(3);
  request.mutable_values()->set_data(classes.data(), 24);
  const std::vector<float> ones(3, 1);
  request.mutable_log_density_cotangents()->set_dtype(v1::DATA_TYPE_F32);
  request.mutable_log_density_cotangents()->add_shape(3);
  request.mutable_log_density_cotangents()->set_data(ones.data(), 12);
  v1::SampleDistributionResponse response;
  ASSERT_OK(Sample(request, &response));
  EXPECT_FALSE(response.has_draws());
  EXPECT_NEAR(Floats(response.log_density().data())[0], std::log(0.75), 1e-6);
  EXPECT_NEAR(Floats(response.log_density().data())[1], std::log(0.25), 1e-6);
  // d/dp0 of log p0/(p0+p1) + 2 log p1/(p0+p1) = 1/p0 - 3/(p0+p1).
  EXPECT_NEAR(Floats(response.gradients(0).tensor().data())[0], 1 - 0.75, 1e-6);
  EXPECT_NEAR(Floats(response.gradients(0).tensor().data())[1], 2.0 / 3 - 0.75, 1e-6);
}

TEST_F(DistributionRpcTest, BadDistributionsAreNamed) {
  Start();
  v1::SampleDistributionRequest request;
  v1::SampleDistributionResponse response;
  EXPECT_STATUS(Sample(request, &response), INVALID_ARGUMENT, "distribution.family 0 is not set");
  request.mutable_distribution()->set_family(static_cast<v1::DistributionFamily>(99));
  EXPECT_STATUS(Sample(request, &response), INVALID_ARGUMENT, "family 99 is unknown");
  *request.mutable_distribution() = Normal({0}, {-1});
  EXPECT_STATUS(Sample(request, &response), INVALID_ARGUMENT, "scale[0] is -1");
  *request.mutable_distribution() = Normal({0}, {1});
  AddParameter(request.mutable_distribution(), "loc", {0});
  EXPECT_STATUS(Sample(request, &response), INVALID_ARGUMENT, "has 'loc' twice");
  *request.mutable_distribution() = Normal({0}, {1});
  request.mutable_distribution()->mutable_parameters(0)->mutable_tensor()->add_shape(1LL << 60);
  EXPECT_STATUS(Sample(request, &response), INVALID_ARGUMENT, "distribution parameter 'loc'");
  *request.mutable_distribution() = Normal({0}, {1});
  request.set_draws(1LL << 40);
  EXPECT_STATUS(Sample(request, &response), INVALID_ARGUMENT, "draws is");
  request.set_draws(1);
  request.mutable_values()->set_dtype(v1::DATA_TYPE_F32);
  EXPECT_STATUS(Sample(request, &response), INVALID_ARGUMENT, "draws with values");
}

TEST_F(DistributionRpcTest, EstimatesStreamUntilTheyArePrecise) {
  Start();
  CreateSumOfSquares("f");
  v1::EstimateGradientRequest request;
  request.set_model("f");
  *request.mutable_distribution() = Normal({1, -2, 0.5}, {1, 1, 1});
  request.set_standard_error(0.02);
  request.set_max_draws(1 << 20);
  request.set_seed(4);
  std::vector<v1::EstimateGradientResponse> responses;
  ASSERT_OK(Estimate(request, &responses));
  ASSERT_GT(responses.size(), 2U);
  double progress = 0;
  for (size_t i = 0; i < responses.size(); ++i) {
    EXPECT_EQ(responses[i].done(), i + 1 == responses.size());
    EXPECT_GE(responses[i].progress(), progress);
    progress = responses[i].progress();
  }
  const v1::EstimateGradientResponse& last = responses.back();
  EXPECT_EQ(last.progress(), 1);
  EXPECT_LE(last.max_standard_error(), 0.02);
  EXPECT_LT(last.draws(), 1 << 20);
  EXPECT_EQ(last.evaluations(), last.draws());
  EXPECT_EQ(last.seed(), 4U);
  EXPECT_EQ(last.weights_version(), 1);
  const std::vector<double> gradient = F64(last.parameters(0).gradient());
  const std::vector<double> error = F64(last.parameters(0).standard_error());
  const double want[3] = {2, -4, 1};
  for (int i = 0; i < 3; ++i) EXPECT_NEAR(gradient[i], want[i], 4 * error[i]);
  EXPECT_NEAR(last.value(), 1 + 4 + 0.25 + 3, 4 * last.value_standard_error());
  // The pathwise gradient 2 z of unit variance.
  EXPECT_NEAR(F64(last.parameters(0).variance())[0], 4, 0.2);
}

TEST_F(DistributionRpcTest, BitsAreComparedWithTheExactGradient) {
  Start();
  CreateSumOfSquares("f");
  for (const auto kind :
       {v1::GRADIENT_ESTIMATOR_KIND_SCORE_FUNCTION, v1::GRADIENT_ESTIMATOR_KIND_MEASURE_VALUED}) {
    v1::EstimateGradientRequest request;
    request.set_model("f");
    request.set_input("z");
    request.set_output("f");
    request.mutable_distribution()->set_family(v1::DISTRIBUTION_FAMILY_BERNOULLI);
    AddParameter(request.mutable_distribution(), "logits", {0.5, -1, 2});
    request.set_estimator(kind);
    request.set_exact(true);
    request.set_max_draws(10000);
    request.set_batch_draws(100);
    std::vector<v1::EstimateGradientResponse> responses;
    ASSERT_OK(Estimate(request, &responses));
    const v1::EstimateGradientResponse& last = responses.back();
    EXPECT_EQ(last.draws(), 10000);
    const std::vector<double> gradient = F64(last.parameters(0).gradient());
    const std::vector<double> error = F64(last.parameters(0).standard_error());
    const std::vector<double> exact = F64(last.parameters(0).exact());
    ASSERT_EQ(exact.size(), 3U);
    EXPECT_FALSE(responses[0].has_exact_value());
    const double logits[3] = {0.5, -1, 2};
    double value = 0;
    for (int i = 0; i < 3; ++i) {
      const double p = 1 / (1 + std::exp(-logits[i]));
      value += p;
      EXPECT_NEAR(exact[i], p * (1 - p), 1e-5);
      EXPECT_NEAR(gradient[i], exact[i], 4 * error[i] + 1e-6);
    }
    EXPECT_NEAR(last.exact_value(), value, 1e-5);
    EXPECT_EQ(last.evaluations(),
              kind == v1::GRADIENT_ESTIMATOR_KIND_MEASURE_VALUED ? 70000 : 10000);
  }
}

TEST_F(DistributionRpcTest, EstimationErrorsAreNamed) {
  Start();
  CreateSumOfSquares("f");
  v1::EstimateGradientRequest request;
  std::vector<v1::EstimateGradientResponse> responses;
  request.set_model("g");
  EXPECT_STATUS(Estimate(request, &responses), NOT_FOUND, "g");
  request.set_model("f");
  EXPECT_STATUS(Estimate(request, &responses), INVALID_ARGUMENT, "family 0 is not set");
  *request.mutable_distribution() = Normal({0, 0, 0}, {1, 1, 1});
  request.set_max_draws(1);
  EXPECT_STATUS(Estimate(request, &responses), INVALID_ARGUMENT, "max_draws is 1");
  request.clear_max_draws();
  request.set_standard_error(-1);
  EXPECT_STATUS(Estimate(request, &responses), INVALID_ARGUMENT, "standard_error is -1");
  request.clear_standard_error();
  request.set_exact(true);
  EXPECT_STATUS(Estimate(request, &responses), FAILED_PRECONDITION, "not of normal");
  request.set_exact(false);
  request.set_baseline(v1::BASELINE_KIND_OPTIMAL);
  EXPECT_STATUS(Estimate(request, &responses), INVALID_ARGUMENT, "a baseline belongs");
  request.clear_baseline();
  *request.mutable_distribution() = Normal({0, 0}, {1, 1});
  EXPECT_STATUS(Estimate(request, &responses), INVALID_ARGUMENT,
                "draws of shape (256,2) do not fit the model's input 'z' of shape (-1,3)");
  EXPECT_TRUE(responses.empty());
}

TEST_F(DistributionRpcTest, ACancelledEstimationFreesTheComputeThread) {
  Start();
  CreateSumOfSquares("f");
  v1::EstimateGradientRequest request;
  request.set_model("f");
  *request.mutable_distribution() = Normal({1, -2, 0.5}, {1, 1, 1});
  request.set_max_draws(int64_t{1} << 40);
  grpc::ClientContext context;
  const auto reader = sampling_->EstimateGradient(&context, request);
  v1::EstimateGradientResponse response;
  ASSERT_TRUE(reader->Read(&response));
  context.TryCancel();
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  v1::SampleDistributionRequest sample;
  *sample.mutable_distribution() = Normal({0}, {1});
  v1::SampleDistributionResponse sampled;
  ASSERT_OK(Sample(sample, &sampled));
}

}  // namespace
}  // namespace tandem::server

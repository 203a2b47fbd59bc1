// A model with random nodes through the network: drawn anew at each call, repeated by a seed.
#include "tests/server/test_server.h"

namespace tandem::server {
namespace {

class RandomModelTest : public ServerTest {
 protected:
  // y = x w + noise of x's shape times s: x (N, 3), w (3, 3), s (3).
  void Create(const std::string& name) {
    onnx::ModelProto model = EmptyOnnx();
    onnx::GraphProto* graph = model.mutable_graph();
    AddValue(graph->add_input(), "x", 3);
    AddValue(graph->add_output(), "y", 3);
    AddWeight(graph, "w", {3, 3}, {1, 0, 0, 0, 1, 0, 0, 0, 1});
    AddWeight(graph, "s", {3}, {1, 2, 3});
    AddNode(graph, "RandomNormalLike", {"x"}, "noise");
    AddNode(graph, "Mul", {"noise", "s"}, "scaled");
    AddNode(graph, "MatMul", {"x", "w"}, "mean");
    AddNode(graph, "Add", {"mean", "scaled"}, "y");
    v1::CreateModelRequest request;
    request.set_model(name);
    request.set_onnx(model.SerializeAsString());
    v1::CreateModelResponse response;
    ASSERT_OK(Call(*models_, &Models::CreateModel, request, &response));
  }
  std::string Infer(const inference::ModelInferRequest& request) {
    inference::ModelInferResponse response;
    const grpc::Status status = Call(*inference_, &Inference::ModelInfer, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.raw_output_contents_size() > 0 ? response.raw_output_contents(0) : "";
  }
  double FirstLoss(const std::string& name, uint64_t seed) {
    Create(name);
    v1::StartTrainingRequest start;
    start.set_model(name);
    start.mutable_objective()->set_loss(v1::LOSS_MSE);
    start.set_seed(seed);
    v1::StartTrainingResponse started;
    EXPECT_TRUE(Call(*training_, &Training::StartTraining, start, &started).ok());
    EXPECT_EQ(started.training().seed(), seed);
    v1::TrainStepRequest step;
    step.set_model(name);
    *step.mutable_batch() = LinearBatch({1, 2, 3, 4, 5, 6}, {});
    v1::Tensor* target = step.mutable_batch()->mutable_tensors(1)->mutable_tensor();
    *target = step.batch().tensors(0).tensor();
    v1::TrainStepResponse stepped;
    const grpc::Status status = Call(*training_, &Training::TrainStep, step, &stepped);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return stepped.forward_backward().loss();
  }
};

TEST_F(RandomModelTest, EachCallDrawsAnewUnlessASeedRepeatsIt) {
  Start();
  Create("noisy");
  inference::ModelInferRequest request = LinearRequest("noisy", {1, 2, 3});
  EXPECT_NE(Infer(request), Infer(request));
  auto& seed = (*request.mutable_parameters())["seed"];
  seed.set_int64_param(5);
  const std::string five = Infer(request);
  EXPECT_EQ(Infer(request), five);
  seed.set_uint64_param(5);
  EXPECT_EQ(Infer(request), five);
  seed.set_int64_param(6);
  EXPECT_NE(Infer(request), five);
  inference::ModelInferResponse response;
  seed.set_int64_param(-1);
  EXPECT_STATUS(Call(*inference_, &Inference::ModelInfer, request, &response), INVALID_ARGUMENT,
                "parameter 'seed' must be an integer of at least 0");
  seed.set_string_param("5");
  EXPECT_STATUS(Call(*inference_, &Inference::ModelInfer, request, &response), INVALID_ARGUMENT,
                "parameter 'seed'");
}

TEST_F(RandomModelTest, TrainingDrawsByItsSeed) {
  Start();
  const double loss = FirstLoss("a", 5);
  EXPECT_GT(loss, 0);
  EXPECT_EQ(FirstLoss("b", 5), loss);
  EXPECT_NE(FirstLoss("c", 6), loss);
}

}  // namespace
}  // namespace tandem::server

// TrainingService.EvaluatePredictions over a socket, and the soft objectives' fields.
#include <cmath>

#include "server/convert_training.h"
#include "tests/server/test_server.h"

namespace tandem::server {
namespace {

using testing::ElementsAre;

template <typename T>
void SetTensor(v1::Tensor* tensor, v1::DataType dtype, std::vector<int64_t> shape,
               const std::vector<T>& values) {
  tensor->set_dtype(dtype);
  for (int64_t dim : shape) tensor->add_shape(dim);
  tensor->set_data(values.data(), values.size() * sizeof(T));
}

class EvaluatePredictionsTest : public ServerTest {
 protected:
  grpc::Status Evaluate(const v1::EvaluatePredictionsRequest& request) {
    response_.Clear();
    return Call(*training_, &Training::EvaluatePredictions, request, &response_);
  }
  // Predicted 0, 1, 0; targets 0, 1, 1.
  static v1::EvaluatePredictionsRequest Predictions() {
    v1::EvaluatePredictionsRequest request;
    SetTensor<float>(request.mutable_predictions(), v1::DATA_TYPE_F32, {3, 2}, {3, 1, 0, 2, 2, 1});
    return request;
  }
  static v1::EvaluatePredictionsRequest Classes() {
    v1::EvaluatePredictionsRequest request = Predictions();
    SetTensor<int64_t>(request.mutable_classes()->mutable_targets(), v1::DATA_TYPE_I64, {3},
                       {0, 1, 1});
    return request;
  }
  static double Logistic(double x) { return 1 / (1 + std::exp(-x)); }

  v1::EvaluatePredictionsResponse response_;
};

TEST_F(EvaluatePredictionsTest, Classes) {
  Start();
  v1::EvaluatePredictionsRequest request = Classes();
  request.set_temperature(2);
  request.mutable_classes()->add_top_k(2);
  request.add_gradients(v1::METRIC_ACCURACY);
  ASSERT_OK(Evaluate(request));
  ASSERT_EQ(response_.values_size(), 4);
  const v1::MetricValue& accuracy = response_.values(0);
  EXPECT_EQ(accuracy.metric(), v1::METRIC_ACCURACY);
  EXPECT_DOUBLE_EQ(accuracy.hard(), 2.0 / 3);
  const double p[] = {Logistic(1), Logistic(1), Logistic(-0.5)};  // of the targets
  EXPECT_NEAR(accuracy.smooth(), (p[0] + p[1] + p[2]) / 3, 1e-6);
  EXPECT_THAT(accuracy.gradient().shape(), ElementsAre(3, 2));
  // d p / d logit = p (1 - p) / temperature
  EXPECT_NEAR(Floats(accuracy.gradient().data())[0], p[0] * (1 - p[0]) / 2 / 3, 1e-6);
  EXPECT_EQ(response_.values(1).metric(), v1::METRIC_F1_MICRO);
  EXPECT_FALSE(response_.values(1).has_gradient());
  EXPECT_EQ(response_.values(2).metric(), v1::METRIC_F1_MACRO);
  EXPECT_DOUBLE_EQ(response_.values(2).hard(), 2.0 / 3);
  EXPECT_EQ(response_.values(3).metric(), v1::METRIC_TOP_K_ACCURACY);
  EXPECT_EQ(response_.values(3).k(), 2);
  EXPECT_EQ(response_.values(3).hard(), 1);
  EXPECT_FALSE(response_.values(3).has_smooth());
  EXPECT_THAT(response_.f1(), ElementsAre(2.0 / 3, 2.0 / 3));
  EXPECT_EQ(response_.smooth_f1_size(), 2);
  EXPECT_THAT(response_.support(), ElementsAre(1, 2));
  EXPECT_EQ(response_.precisions_size(), 0);
}

TEST_F(EvaluatePredictionsTest, Labels) {
  Start();
  v1::EvaluatePredictionsRequest request;
  SetTensor<float>(request.mutable_predictions(), v1::DATA_TYPE_F32, {2, 2}, {0.9, 0.6, 0.2, 0.7});
  request.set_kind(v1::PREDICTION_KIND_PROBABILITIES);
  SetTensor<uint8_t>(request.mutable_labels()->mutable_labels(), v1::DATA_TYPE_BOOL, {2, 2},
                     {1, 0, 0, 1});
  ASSERT_OK(Evaluate(request));
  EXPECT_EQ(response_.values(0).hard(), 0.75);
  EXPECT_NEAR(response_.values(0).smooth(), (0.9 + 0.4 + 0.8 + 0.7) / 4, 1e-6);
  request.mutable_labels()->set_threshold(0.65);
  ASSERT_OK(Evaluate(request));
  EXPECT_EQ(response_.values(0).hard(), 1);
  request.mutable_labels()->set_threshold(1);
  EXPECT_STATUS(Evaluate(request), INVALID_ARGUMENT, "threshold is 1");
}

TEST_F(EvaluatePredictionsTest, Bleu) {
  Start();
  v1::EvaluatePredictionsRequest request = Predictions();  // tokens 0 1, then 0
  auto* first = request.mutable_bleu()->add_hypotheses();
  first->set_length(2);
  first->add_references()->add_ids(1);
  first->mutable_references(0)->add_ids(1);
  first->add_references()->add_ids(0);
  auto* second = request.mutable_bleu()->add_hypotheses();
  second->set_length(1);
  for (int id : {0, 1}) {
    if (id == 0) second->add_references();
    second->mutable_references(0)->add_ids(id);
  }
  request.mutable_bleu()->set_max_order(2);
  request.mutable_bleu()->set_add_k(1);
  ASSERT_OK(Evaluate(request));
  // Unigrams 2/2 + 1/1; bigrams 0/1, and one is added to each.
  EXPECT_THAT(response_.precisions(), ElementsAre(1, 0.5));
  EXPECT_EQ(response_.hypothesis_tokens(), 3);
  EXPECT_EQ(response_.reference_tokens(), 4);
  EXPECT_NEAR(response_.brevity_penalty(), std::exp(-1.0 / 3), 1e-12);
  EXPECT_EQ(response_.values(0).metric(), v1::METRIC_BLEU);
  EXPECT_NEAR(response_.values(0).hard(), std::exp(-1.0 / 3) * std::sqrt(0.5), 1e-12);
  // The default order is 4, of which these hypotheses have no n-gram.
  request.mutable_bleu()->clear_max_order();
  ASSERT_OK(Evaluate(request));
  EXPECT_EQ(response_.precisions_size(), 4);
  EXPECT_EQ(response_.values(0).hard(), 0);
}

TEST_F(EvaluatePredictionsTest, BadRequestsAreNamed) {
  Start();
  EXPECT_STATUS(Evaluate(Predictions()), INVALID_ARGUMENT, "no task is set");
  const auto changed = [&](auto change) {
    v1::EvaluatePredictionsRequest request = Classes();
    change(request);
    return Evaluate(request);
  };
  EXPECT_STATUS(changed([](auto& r) { r.set_temperature(0); }), INVALID_ARGUMENT,
                "temperature is 0");
  EXPECT_STATUS(changed([](auto& r) { r.set_kind(static_cast<v1::PredictionKind>(9)); }),
                INVALID_ARGUMENT, "kind 9 is not a known");
  EXPECT_STATUS(changed([](auto& r) { r.add_gradients(static_cast<v1::Metric>(99)); }),
                INVALID_ARGUMENT, "gradients: 99 is not a known Metric");
  EXPECT_STATUS(changed([](auto& r) { r.add_gradients(v1::METRIC_UNSPECIFIED); }), INVALID_ARGUMENT,
                "gradients: 0");
  EXPECT_STATUS(changed([](auto& r) { r.add_gradients(v1::METRIC_BLEU); }), INVALID_ARGUMENT,
                "no gradient of BLEU");
  EXPECT_STATUS(changed([](auto& r) { r.mutable_predictions()->mutable_data()->pop_back(); }),
                INVALID_ARGUMENT, "predictions");
  EXPECT_STATUS(changed([](auto& r) { r.mutable_classes()->clear_targets(); }), INVALID_ARGUMENT,
                "classes.targets");
  EXPECT_STATUS(changed([](auto& r) { r.mutable_classes()->add_top_k(3); }), INVALID_ARGUMENT,
                "top_k is 3");
  EXPECT_STATUS(changed([](auto& r) { r.set_kind(v1::PREDICTION_KIND_PROBABILITIES); }),
                INVALID_ARGUMENT, "prediction (0, 0) is 3, expected a probability");
}

TEST_F(EvaluatePredictionsTest, SoftObjectivesTrain) {
  Start();
  for (const v1::Loss loss : {v1::LOSS_SOFT_ACCURACY, v1::LOSS_SOFT_F1}) {
    const std::string name = v1::Loss_Name(loss);
    CreateLinear(name);
    v1::StartTrainingRequest start;
    start.set_model(name);
    start.mutable_objective()->set_loss(loss);
    start.mutable_objective()->set_temperature(2.5);
    start.mutable_optimizer()->mutable_parameters()->set_learning_rate(0.2);
    v1::StartTrainingResponse started;
    ASSERT_OK(Call(*training_, &Training::StartTraining, start, &started));
    EXPECT_EQ(started.training().objective().loss(), loss);
    EXPECT_EQ(started.training().objective().temperature(), 2.5);
    v1::TrainStepRequest step;
    step.set_model(name);
    auto* x = step.mutable_batch()->add_tensors();
    x->set_name("x");
    SetTensor<float>(x->mutable_tensor(), v1::DATA_TYPE_F32, {2, 3}, {1, 0, 0, 0, 1, 0});
    auto* target = step.mutable_batch()->add_tensors();
    target->set_name("target");
    SetTensor<int32_t>(target->mutable_tensor(), v1::DATA_TYPE_I32, {2}, {0, 1});
    v1::TrainStepResponse first, last;
    ASSERT_OK(Call(*training_, &Training::TrainStep, step, &first));
    for (int i = 0; i < 40; ++i) ASSERT_OK(Call(*training_, &Training::TrainStep, step, &last));
    EXPECT_LT(last.forward_backward().loss(), first.forward_backward().loss() - 0.02);
  }
}

TEST(ConvertSoftObjectiveTest, Temperature) {
  v1::Objective objective;
  objective.set_loss(v1::LOSS_SOFT_F1);
  EXPECT_EQ(FromProto(objective)->temperature, 1);
  objective.set_temperature(0.25);
  EXPECT_EQ(FromProto(objective)->temperature, 0.25);
  EXPECT_EQ(ToProto(*FromProto(objective)).temperature(), 0.25);
  objective.set_temperature(-1);
  EXPECT_THAT(std::string(FromProto(objective).status().message()),
              testing::HasSubstr("objective: temperature is -1"));
  objective.set_temperature(2);
  objective.set_loss(v1::LOSS_MSE);
  EXPECT_THAT(std::string(FromProto(objective).status().message()),
              testing::HasSubstr("objective.temperature is set, but the loss"));
  objective.clear_temperature();
  EXPECT_FALSE(ToProto(*FromProto(objective)).has_temperature());
}

}  // namespace
}  // namespace tandem::server

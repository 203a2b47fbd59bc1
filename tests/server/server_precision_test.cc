// The server over loopback: models in 16 bits, loss scaling and SGD.
#include <cmath>
#include <cstring>

#include "tests/server/test_server.h"

namespace tandem::server {
namespace {

constexpr const char* kText = "the quick brown fox jumps over the lazy dog. ";

class ServerPrecisionTest : public ServerTest {
 protected:
  v1::CreateModelRequest CharacterModel(const std::string& name, v1::Precision precision) {
    v1::CreateModelRequest request;
    request.set_model(name);
    request.set_seed(1);
    request.set_precision(precision);
    v1::DecoderConfig* decoder = request.mutable_decoder();
    decoder->set_architecture(v1::DecoderConfig::ARCHITECTURE_LLAMA);
    decoder->set_layers(2);
    decoder->set_heads(2);
    decoder->set_hidden_size(32);
    decoder->set_max_positions(64);
    decoder->set_characters(kText);
    return request;
  }
  v1::Model Create(const v1::CreateModelRequest& request) {
    v1::CreateModelResponse response;
    const grpc::Status status = Call(*models_, &Models::CreateModel, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.model();
  }
  grpc::Status StartTraining(const v1::StartTrainingRequest& request, v1::Training* training) {
    v1::StartTrainingResponse response;
    const grpc::Status status = Call(*training_, &Training::StartTraining, request, &response);
    *training = response.training();
    return status;
  }
  static v1::StartTrainingRequest Start(const std::string& model) {
    v1::StartTrainingRequest request;
    request.set_model(model);
    request.mutable_objective()->set_loss(v1::LOSS_CROSS_ENTROPY);
    request.mutable_optimizer()->mutable_parameters()->set_learning_rate(0.01);
    return request;
  }
  using ServerTest::Start;
  v1::TrainStepRequest TextStep(const std::string& model) {
    v1::TokenizeRequest tokenize;
    tokenize.set_model(model);
    tokenize.set_text(kText);
    v1::TokenizeResponse tokens;
    EXPECT_TRUE(Call(*sampling_, &Sampling::Tokenize, tokenize, &tokens).ok());
    v1::TrainStepRequest request;
    request.set_model(model);
    *request.mutable_batch()->add_sequences()->mutable_tokens() = tokens.tokens();
    return request;
  }
  // The log-probabilities of 20 generated tokens, and of the same by Score and by ForwardBackward.
  void ExpectEqualLogprobs(const std::string& model) {
    v1::GenerateRequest request;
    request.set_model(model);
    request.set_text("lazy dog");
    request.set_max_tokens(20);
    request.set_seed(5);
    grpc::ClientContext context;
    auto reader = sampling_->Generate(&context, request);
    v1::ScoreRequest score;
    score.set_model(model);
    auto* ids = score.add_sequences()->mutable_ids();
    std::vector<float> generated;
    v1::GenerateResponse message;
    while (reader->Read(&message)) {
      if (generated.empty()) *ids = message.prompt_tokens();
      ids->Add(message.token());
      generated.push_back(message.logprob());
    }
    ASSERT_OK(reader->Finish());
    ASSERT_EQ(generated.size(), 20U);
    v1::ScoreResponse scored;
    ASSERT_OK(Call(*sampling_, &Sampling::Score, score, &scored));
    v1::ForwardBackwardRequest forward;
    forward.set_model(model);
    forward.set_return_logprobs(true);
    *forward.mutable_batch()->add_sequences()->mutable_tokens() = *ids;
    v1::ForwardBackwardResponse trained;
    ASSERT_OK(Call(*training_, &Training::ForwardBackward, forward, &trained));
    for (int i = 0; i < 20; ++i) {
      const int position = ids->size() - 20 + i;
      EXPECT_EQ(generated[i], scored.sequences(0).logprobs(position)) << i;
      EXPECT_EQ(generated[i], trained.logprobs(position - 1)) << i;
    }
  }
};

TEST_F(ServerPrecisionTest, A16BitModelTrainsGeneratesAndScoresTheSameBits) {
  Start();
  for (const v1::Precision precision : {v1::PRECISION_BF16, v1::PRECISION_F16}) {
    const std::string name = precision == v1::PRECISION_BF16 ? "bf16" : "f16";
    EXPECT_EQ(Create(CharacterModel(name, precision)).precision(), precision);
    v1::Training training;
    ASSERT_OK(StartTraining(Start(name), &training));
    const bool scales = precision == v1::PRECISION_F16;
    EXPECT_EQ(training.loss_scale(), scales ? 65536 : 1);
    EXPECT_EQ(training.loss_scaling().mode(),
              scales ? v1::LOSS_SCALING_MODE_DYNAMIC : v1::LOSS_SCALING_MODE_NONE);
    v1::TrainStepResponse step;
    double first = 0;
    for (int i = 0; i < 40; ++i) {
      ASSERT_OK(Call(*training_, &Training::TrainStep, TextStep(name), &step));
      if (i == 0) first = step.forward_backward().loss();
    }
    EXPECT_LT(step.forward_backward().loss(), 0.5 * first);
    if (!scales) {
      EXPECT_EQ(step.optim().loss_scale(), 1);
    }
    ExpectEqualLogprobs(name);
  }
}

TEST_F(ServerPrecisionTest, PrecisionIsOfTheModelItsCopiesAndItsFile) {
  Start();
  const v1::Model f32 = Create(CharacterModel("f32", v1::PRECISION_UNSPECIFIED));
  EXPECT_EQ(f32.precision(), v1::PRECISION_F32);
  Create(CharacterModel("bf16", v1::PRECISION_BF16));
  v1::CreateModelRequest copy;
  copy.set_model("copy");
  copy.set_copy_of("bf16");
  EXPECT_EQ(Create(copy).precision(), v1::PRECISION_BF16);
  copy.set_model("exact");
  copy.set_precision(v1::PRECISION_F32);
  EXPECT_EQ(Create(copy).precision(), v1::PRECISION_F32);
  const auto loss = [&](const std::string& model) {
    v1::EvaluateRequest request;
    request.set_model(model);
    request.mutable_objective()->set_loss(v1::LOSS_CROSS_ENTROPY);
    *request.mutable_batch() = TextStep(model).batch();
    v1::EvaluateResponse response;
    EXPECT_TRUE(Call(*training_, &Training::Evaluate, request, &response).ok());
    return response.loss();
  };
  EXPECT_EQ(loss("copy"), loss("bf16"));
  EXPECT_EQ(loss("exact"), loss("f32"));
  EXPECT_NE(loss("bf16"), loss("f32"));
  EXPECT_NEAR(loss("bf16"), loss("f32"), 0.02);

  // Files hold f32 weights: what is read again in f32 is the f32 model.
  v1::SaveModelRequest save;
  save.set_model("bf16");
  v1::SaveModelResponse saved;
  ASSERT_OK(Call(*models_, &Models::SaveModel, save, &saved));
  v1::LoadModelRequest load;
  load.set_model("bf16");
  v1::LoadModelResponse loaded;
  ASSERT_OK(Call(*models_, &Models::LoadModel, load, &loaded));
  EXPECT_EQ(loaded.model().precision(), v1::PRECISION_F32);
  EXPECT_EQ(loss("bf16"), loss("f32"));
  load.set_precision(v1::PRECISION_BF16);
  ASSERT_OK(Call(*models_, &Models::LoadModel, load, &loaded));
  EXPECT_EQ(loaded.model().precision(), v1::PRECISION_BF16);
  EXPECT_EQ(loss("bf16"), loss("copy"));

  load.set_precision(static_cast<v1::Precision>(9));
  EXPECT_STATUS(Call(*models_, &Models::LoadModel, load, &loaded), INVALID_ARGUMENT,
                "precision 9 is not a known Precision");
  v1::CreateModelResponse response;
  EXPECT_STATUS(Call(*models_, &Models::CreateModel,
                     CharacterModel("x", static_cast<v1::Precision>(9)), &response),
                INVALID_ARGUMENT, "precision 9 is not a known Precision");
}

TEST_F(ServerPrecisionTest, AnalysisIsOfTheGraphThatComputes) {
  Start();
  Create(CharacterModel("f32", v1::PRECISION_F32));
  Create(CharacterModel("bf16", v1::PRECISION_BF16));
  const auto analyze = [&](const std::string& model) {
    v1::AnalyzeModelRequest request;
    request.set_model(model);
    request.set_measure(true);
    v1::AnalyzeModelResponse response;
    const grpc::Status status = Call(*models_, &Models::AnalyzeModel, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  };
  const v1::AnalyzeModelResponse f32 = analyze("f32"), bf16 = analyze("bf16");
  EXPECT_GT(bf16.layers_size(), f32.layers_size());  // casts
  EXPECT_EQ(bf16.parameters(), f32.parameters());
  for (const auto& layer : bf16.layers()) EXPECT_TRUE(layer.has_seconds()) << layer.name();
}

TEST_F(ServerPrecisionTest, AnOverflowIsSkippedAndSaidAndTheScaleFalls) {
  Start();
  Create(CharacterModel("f16", v1::PRECISION_F16));
  v1::StartTrainingRequest request = Start("f16");
  v1::LossScaling& scaling = *request.mutable_loss_scaling();
  scaling.set_mode(v1::LOSS_SCALING_MODE_DYNAMIC);
  scaling.set_initial_scale(std::ldexp(1.0, 60));
  scaling.set_backoff_factor(0.25);
  scaling.set_growth_factor(8);
  scaling.set_growth_interval(11);
  v1::Training training;
  ASSERT_OK(StartTraining(request, &training));
  EXPECT_EQ(training.loss_scaling().initial_scale(), std::ldexp(1.0, 60));
  EXPECT_EQ(training.loss_scaling().backoff_factor(), 0.25);
  EXPECT_EQ(training.loss_scaling().growth_factor(), 8);
  EXPECT_EQ(training.loss_scaling().growth_interval(), 11);
  v1::TrainStepResponse step;
  ASSERT_OK(Call(*training_, &Training::TrainStep, TextStep("f16"), &step));
  EXPECT_TRUE(step.optim().skipped());
  EXPECT_EQ(step.optim().step(), 0);
  EXPECT_EQ(step.optim().weights_version(), 1);
  EXPECT_EQ(step.optim().loss_scale(), std::ldexp(1.0, 60));
  EXPECT_TRUE(std::isfinite(step.forward_backward().loss()));
  v1::GetTrainingRequest get;
  get.set_model("f16");
  v1::GetTrainingResponse got;
  ASSERT_OK(Call(*training_, &Training::GetTraining, get, &got));
  EXPECT_EQ(got.training().loss_scale(), std::ldexp(1.0, 58));
  EXPECT_EQ(got.training().skipped_steps(), 1);
}

TEST_F(ServerPrecisionTest, LossScalingIsChecked) {
  Start();
  Create(CharacterModel("bf16", v1::PRECISION_BF16));
  Create(CharacterModel("f16", v1::PRECISION_F16));
  const auto expect = [&](const char* model, auto set, const char* message) {
    v1::StartTrainingRequest request = Start(model);
    set(*request.mutable_loss_scaling());
    v1::Training training;
    EXPECT_STATUS(StartTraining(request, &training), INVALID_ARGUMENT, message);
  };
  using S = v1::LossScaling;
  expect(
      "bf16", [](S& s) { s.set_initial_scale(8); }, "initial_scale is set, but the loss is not");
  expect(
      "f16", [](S& s) { s.set_initial_scale(0); }, "loss_scaling: initial_scale is 0");
  expect(
      "f16", [](S& s) { s.set_initial_scale(NAN); }, "initial_scale is nan");
  expect(
      "f16", [](S& s) { s.set_growth_factor(1); }, "growth_factor is 1");
  expect(
      "f16", [](S& s) { s.set_backoff_factor(1); }, "backoff_factor is 1");
  expect(
      "f16", [](S& s) { s.set_growth_interval(0); }, "growth_interval is 0");
  expect(
      "f16", [](S& s) { s.set_mode(static_cast<v1::LossScalingMode>(7)); }, "mode 7");
  const auto static_with = [](auto set) {
    return [set](S& s) {
      s.set_mode(v1::LOSS_SCALING_MODE_STATIC);
      set(s);
    };
  };
  expect("bf16", static_with([](S& s) { s.set_growth_factor(2); }), "growth_factor is set, but");
  expect("bf16", static_with([](S& s) { s.set_backoff_factor(2); }), "backoff_factor is set, but");
  expect("bf16", static_with([](S& s) { s.set_growth_interval(2); }), "growth_interval is set,");
}

TEST_F(ServerPrecisionTest, SgdWithMomentum) {
  Start();
  CreateLinear("linear");
  v1::StartTrainingRequest request;
  request.set_model("linear");
  request.mutable_objective()->set_loss(v1::LOSS_MSE);
  v1::Optimizer& optimizer = *request.mutable_optimizer();
  optimizer.set_kind(v1::OPTIMIZER_KIND_SGD);
  optimizer.set_nesterov(true);
  v1::Training training;
  EXPECT_STATUS(StartTraining(request, &training), INVALID_ARGUMENT, "nesterov needs a momentum");
  optimizer.mutable_parameters()->set_beta1(0.5);
  EXPECT_STATUS(StartTraining(request, &training), INVALID_ARGUMENT, "beta1 is set, but");
  optimizer.mutable_parameters()->clear_beta1();
  optimizer.mutable_parameters()->set_learning_rate(0.02);
  optimizer.mutable_parameters()->set_momentum(0.9);
  ASSERT_OK(StartTraining(request, &training));
  EXPECT_EQ(training.optimizer().kind(), v1::OPTIMIZER_KIND_SGD);
  EXPECT_TRUE(training.optimizer().nesterov());
  EXPECT_EQ(training.optimizer().parameters().momentum(), 0.9);
  EXPECT_EQ(training.optimizer().parameters().weight_decay(), 0);
  EXPECT_FALSE(training.optimizer().parameters().has_beta1());
  v1::TrainStepRequest step;
  step.set_model("linear");
  *step.mutable_batch() = LinearBatch({1, 0, 0, 0, 1, 0}, {0, 0, 1, 1});
  v1::TrainStepResponse response;
  double first = 0;
  for (int i = 0; i < 60; ++i) {
    ASSERT_OK(Call(*training_, &Training::TrainStep, step, &response));
    if (i == 0) first = response.forward_backward().loss();
  }
  EXPECT_LT(response.forward_backward().loss(), 0.01 * first);
  step.mutable_parameters()->set_epsilon(1);
  EXPECT_STATUS(Call(*training_, &Training::TrainStep, step, &response), INVALID_ARGUMENT,
                "epsilon is set, but the optimizer is SGD");
}

}  // namespace
}  // namespace tandem::server

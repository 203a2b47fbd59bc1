// The server over loopback: training, and sampling from the weights that are being trained.
#include <atomic>
#include <cmath>
#include <cstring>
#include <thread>

#include "tests/server/http_get.h"
#include "tests/server/test_server.h"

namespace tandem::server {
namespace {

using testing::HasSubstr;

constexpr const char* kText = "the quick brown fox jumps over the lazy dog. ";

class ServerTrainingTest : public ServerTest {
 protected:
  grpc::Status StartTraining(const std::string& model, v1::Loss loss, double learning_rate = 0.05,
                             v1::StartTrainingResponse* response = nullptr) {
    v1::StartTrainingRequest request;
    request.set_model(model);
    request.mutable_objective()->set_loss(loss);
    request.mutable_optimizer()->mutable_parameters()->set_learning_rate(learning_rate);
    v1::StartTrainingResponse unused;
    return Call(*training_, &Training::StartTraining, request, response ? response : &unused);
  }
  v1::TrainStepRequest LinearStep() {
    v1::TrainStepRequest request;
    request.set_model("linear");
    *request.mutable_batch() = LinearBatch({1, 0, 0, 0, 1, 0}, {0, 0, 1, 1});
    return request;
  }
  v1::TrainStepRequest TextStep(const std::string& model) {
    v1::TokenizeRequest tokenize;
    tokenize.set_model(model);
    tokenize.set_text(kText);
    v1::TokenizeResponse tokens;
    EXPECT_TRUE(Call(*sampling_, &Sampling::Tokenize, tokenize, &tokens).ok());
    v1::TrainStepRequest request;
    request.set_model(model);
    for (int i = 0; i < 2; ++i) {
      *request.mutable_batch()->add_sequences()->mutable_tokens() = tokens.tokens();
    }
    return request;
  }
  struct Sample {
    std::vector<int32_t> tokens;
    std::vector<float> logprobs;
    std::string text;
    v1::FinishReason finish = v1::FINISH_REASON_UNSPECIFIED;
    std::vector<int64_t> versions;
  };
  grpc::Status Generate(const v1::GenerateRequest& request, std::map<int, Sample>* samples,
                        v1::GenerateResponse* first = nullptr) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    auto reader = sampling_->Generate(&context, request);
    v1::GenerateResponse message;
    for (bool is_first = true; reader->Read(&message); is_first = false) {
      if (is_first && first != nullptr) *first = message;
      Sample& sample = (*samples)[message.index()];
      EXPECT_EQ(sample.finish, v1::FINISH_REASON_UNSPECIFIED);
      sample.tokens.push_back(message.token());
      sample.logprobs.push_back(message.logprob());
      sample.text += message.text();
      sample.finish = message.finish_reason();
      sample.versions.push_back(message.weights_version());
    }
    return reader->Finish();
  }
  // A model that has learnt kText by heart.
  void TrainCharacterModel(const std::string& name) {
    CreateCharacterModel(name, kText);
    ASSERT_OK(StartTraining(name, v1::LOSS_CROSS_ENTROPY, 0.01));
    const v1::TrainStepRequest request = TextStep(name);
    v1::TrainStepResponse response;
    for (int i = 0; i < 60; ++i) {
      ASSERT_OK(Call(*training_, &Training::TrainStep, request, &response));
    }
    ASSERT_LT(response.forward_backward().loss(), 0.1);
  }
};

TEST_F(ServerTrainingTest, TrainStepLowersTheLossAndServesTheNewWeights) {
  Start();
  CreateLinear("linear");
  v1::StartTrainingResponse started;
  ASSERT_OK(StartTraining("linear", v1::LOSS_MSE, 0.05, &started));
  EXPECT_EQ(started.training().trainable_parameters(), 8);
  EXPECT_EQ(started.training().optimizer().parameters().learning_rate(), 0.05);
  EXPECT_STATUS(StartTraining("linear", v1::LOSS_MSE), FAILED_PRECONDITION, "already");
  inference::ModelInferResponse before, after;
  const auto infer = LinearRequest("linear", {1, 2, 3});
  ASSERT_OK(Call(*inference_, &Inference::ModelInfer, infer, &before));
  double first_loss = 0;
  v1::TrainStepResponse step;
  for (int i = 1; i <= 100; ++i) {
    ASSERT_OK(Call(*training_, &Training::TrainStep, LinearStep(), &step));
    if (i == 1) first_loss = step.forward_backward().loss();
    EXPECT_EQ(step.optim().step(), i);
    EXPECT_EQ(step.optim().weights_version(), i + 1);
    EXPECT_GT(step.optim().grad_norm(), 0);
  }
  // Targets (0,0), (1,1) for outputs (1.5,1.5), (3.5,3.5): mean of 2.25, 2.25, 6.25, 6.25.
  EXPECT_NEAR(first_loss, 4.25, 1e-5);
  EXPECT_LT(step.forward_backward().loss(), 0.1 * first_loss);
  ASSERT_OK(Call(*inference_, &Inference::ModelInfer, infer, &after));
  EXPECT_EQ(after.parameters().at("weights_version").int64_param(), 101);
  EXPECT_NE(before.raw_output_contents(0), after.raw_output_contents(0));

  v1::GetTrainingRequest get;
  get.set_model("linear");
  v1::GetTrainingResponse training;
  ASSERT_OK(Call(*training_, &Training::GetTraining, get, &training));
  EXPECT_EQ(training.training().step(), 100);
  EXPECT_EQ(training.training().weights_version(), 101);
  EXPECT_EQ(training.training().objective().loss(), v1::LOSS_MSE);
}

TEST_F(ServerTrainingTest, StepsInPartsAndEvaluate) {
  Start();
  CreateLinear("linear");
  v1::OptimStepRequest optim;
  optim.set_model("linear");
  v1::OptimStepResponse optimised;
  EXPECT_STATUS(Call(*training_, &Training::OptimStep, optim, &optimised), FAILED_PRECONDITION,
                "StartTraining");
  v1::EvaluateRequest evaluate;
  evaluate.set_model("linear");
  *evaluate.mutable_batch() = LinearStep().batch();
  v1::EvaluateResponse evaluated;
  EXPECT_STATUS(Call(*training_, &Training::Evaluate, evaluate, &evaluated), FAILED_PRECONDITION,
                "objective");
  evaluate.mutable_objective()->set_loss(v1::LOSS_L1);
  ASSERT_OK(Call(*training_, &Training::Evaluate, evaluate, &evaluated));
  EXPECT_NEAR(evaluated.loss(), (1.5 + 1.5 + 2.5 + 2.5) / 4, 1e-5);
  EXPECT_EQ(evaluated.weights_version(), 1);

  ASSERT_OK(StartTraining("linear", v1::LOSS_MSE));
  EXPECT_STATUS(Call(*training_, &Training::OptimStep, optim, &optimised), FAILED_PRECONDITION, "");
  v1::ForwardBackwardRequest backward;
  backward.set_model("linear");
  *backward.mutable_batch() = LinearStep().batch();
  v1::ForwardBackwardResponse report;
  ASSERT_OK(Call(*training_, &Training::ForwardBackward, backward, &report));
  ASSERT_OK(Call(*training_, &Training::ForwardBackward, backward, &report));
  EXPECT_EQ(report.weights_version(), 1);
  v1::GetTrainingRequest get;
  get.set_model("linear");
  v1::GetTrainingResponse training;
  ASSERT_OK(Call(*training_, &Training::GetTraining, get, &training));
  EXPECT_EQ(training.training().micro_step(), 2);
  optim.mutable_parameters()->set_learning_rate(0.25);
  ASSERT_OK(Call(*training_, &Training::OptimStep, optim, &optimised));
  EXPECT_EQ(optimised.weights_version(), 2);
  ASSERT_OK(Call(*training_, &Training::GetTraining, get, &training));
  EXPECT_EQ(training.training().optimizer().parameters().learning_rate(), 0.25);
  EXPECT_EQ(training.training().micro_step(), 0);

  v1::StopTrainingRequest stop;
  stop.set_model("linear");
  v1::StopTrainingResponse stopped;
  ASSERT_OK(Call(*training_, &Training::StopTraining, stop, &stopped));
  EXPECT_STATUS(Call(*training_, &Training::StopTraining, stop, &stopped), FAILED_PRECONDITION,
                "not being trained");
  EXPECT_STATUS(Call(*training_, &Training::GetTraining, get, &training), FAILED_PRECONDITION, "");
}

TEST_F(ServerTrainingTest, BadBatchesAndParametersChangeNothing) {
  Start();
  CreateLinear("linear");
  ASSERT_OK(StartTraining("linear", v1::LOSS_MSE));
  v1::TrainStepResponse response;
  const auto step = [&](auto change) {
    v1::TrainStepRequest request = LinearStep();
    change(request);
    return Call(*training_, &Training::TrainStep, request, &response);
  };
  const double nan = std::nan("");
  EXPECT_STATUS(step([&](auto& r) { r.mutable_parameters()->set_learning_rate(nan); }),
                INVALID_ARGUMENT, "learning_rate");
  EXPECT_STATUS(step([](auto& r) { r.mutable_parameters()->set_beta1(1); }), INVALID_ARGUMENT,
                "beta1");
  EXPECT_STATUS(step([](auto& r) { r.mutable_batch()->mutable_tensors(0)->set_name("q"); }),
                INVALID_ARGUMENT, "'x'");
  EXPECT_STATUS(step([](auto& r) { r.mutable_batch()->mutable_tensors()->RemoveLast(); }),
                INVALID_ARGUMENT, "target");
  EXPECT_STATUS(step([](auto& r) { r.mutable_batch()->Clear(); }), INVALID_ARGUMENT, "empty");
  EXPECT_STATUS(step([](auto& r) {
                  r.mutable_batch()->clear_tensors();
                  r.mutable_batch()->add_sequences()->add_tokens(1);
                }),
                INVALID_ARGUMENT, "");
  EXPECT_STATUS(step([](auto& r) {
                  r.mutable_batch()->mutable_tensors(0)->mutable_tensor()->set_shape(0, -2);
                }),
                INVALID_ARGUMENT, "negative");
  EXPECT_STATUS(step([](auto& r) { r.set_model("absent"); }), NOT_FOUND, "absent");
  v1::GetTrainingRequest get;
  get.set_model("linear");
  v1::GetTrainingResponse training;
  ASSERT_OK(Call(*training_, &Training::GetTraining, get, &training));
  EXPECT_EQ(training.training().step(), 0);
  EXPECT_EQ(training.training().micro_step(), 0);
  EXPECT_EQ(training.training().weights_version(), 1);
  EXPECT_EQ(training.training().optimizer().parameters().learning_rate(), 0.05);
}

TEST_F(ServerTrainingTest, UnloadingAModelInTrainingNeedsForce) {
  Start();
  CreateLinear("linear");
  ASSERT_OK(StartTraining("linear", v1::LOSS_MSE));
  v1::UnloadModelRequest unload;
  unload.set_model("linear");
  v1::UnloadModelResponse unloaded;
  EXPECT_STATUS(Call(*models_, &Models::UnloadModel, unload, &unloaded), FAILED_PRECONDITION,
                "force");
  unload.set_force(true);
  ASSERT_OK(Call(*models_, &Models::UnloadModel, unload, &unloaded));
}

TEST_F(ServerTrainingTest, TrainStreamIsTheSameAsSteps) {
  Start();
  CreateLinear("linear");
  ASSERT_OK(StartTraining("linear", v1::LOSS_MSE));
  std::vector<double> losses;
  v1::TrainStepResponse step;
  constexpr int kSteps = 20;
  for (int i = 0; i < kSteps; ++i) {
    ASSERT_OK(Call(*training_, &Training::TrainStep, LinearStep(), &step));
    losses.push_back(step.forward_backward().loss());
  }
  v1::UnloadModelRequest unload;
  unload.set_model("linear");
  unload.set_force(true);
  v1::UnloadModelResponse unloaded;
  ASSERT_OK(Call(*models_, &Models::UnloadModel, unload, &unloaded));
  CreateLinear("linear");
  ASSERT_OK(StartTraining("linear", v1::LOSS_MSE));

  grpc::ClientContext context;
  auto stream = training_->TrainStream(&context);
  std::thread writer([&] {
    for (int i = 0; i < kSteps; ++i) ASSERT_TRUE(stream->Write(LinearStep()));
    stream->WritesDone();
  });
  for (int i = 0; i < kSteps; ++i) {
    ASSERT_TRUE(stream->Read(&step)) << i;
    EXPECT_EQ(step.optim().step(), i + 1);
    EXPECT_EQ(step.forward_backward().loss(), losses[i]);
  }
  EXPECT_FALSE(stream->Read(&step));
  writer.join();
  ASSERT_OK(stream->Finish());
}

TEST_F(ServerTrainingTest, AFailedRequestEndsTheTrainStreamAfterTheAnswersBeforeIt) {
  Start();
  CreateLinear("linear");
  ASSERT_OK(StartTraining("linear", v1::LOSS_MSE));
  grpc::ClientContext context;
  auto stream = training_->TrainStream(&context);
  v1::TrainStepRequest bad = LinearStep();
  bad.mutable_batch()->mutable_tensors(1)->set_name("wrong");
  ASSERT_TRUE(stream->Write(LinearStep()));
  ASSERT_TRUE(stream->Write(LinearStep()));
  ASSERT_TRUE(stream->Write(bad));
  stream->Write(LinearStep());
  stream->WritesDone();
  v1::TrainStepResponse step;
  EXPECT_TRUE(stream->Read(&step));
  EXPECT_TRUE(stream->Read(&step));
  EXPECT_FALSE(stream->Read(&step));
  EXPECT_STATUS(stream->Finish(), INVALID_ARGUMENT, "'target'");
  v1::GetTrainingRequest get;
  get.set_model("linear");
  v1::GetTrainingResponse training;
  ASSERT_OK(Call(*training_, &Training::GetTraining, get, &training));
  EXPECT_EQ(training.training().step(), 2);
}

TEST_F(ServerTrainingTest, ACancelledTrainStreamStops) {
  Start();
  CreateLinear("linear");
  ASSERT_OK(StartTraining("linear", v1::LOSS_MSE));
  grpc::ClientContext context;
  auto stream = training_->TrainStream(&context);
  v1::TrainStepResponse step;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(stream->Write(LinearStep()));
  ASSERT_TRUE(stream->Read(&step));
  context.TryCancel();
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  // The server goes on; the steps that ran are whole ones.
  ASSERT_OK(Call(*training_, &Training::TrainStep, LinearStep(), &step));
  EXPECT_GE(step.optim().step(), 2);
  EXPECT_LE(step.optim().step(), 4);
  EXPECT_EQ(step.optim().weights_version(), step.optim().step() + 1);
}

TEST_F(ServerTrainingTest, GeneratesWhatItLearntAndEndsAtStopTexts) {
  Start();
  TrainCharacterModel("chars");
  v1::GenerateRequest request;
  request.set_model("chars");
  request.set_text("the quick");
  request.set_max_tokens(10);
  request.set_temperature(0);
  std::map<int, Sample> samples;
  v1::GenerateResponse first;
  ASSERT_OK(Generate(request, &samples, &first));
  EXPECT_EQ(samples[0].text, " brown fox");
  EXPECT_EQ(samples[0].finish, v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(first.prompt_tokens_size(), 9);
  EXPECT_TRUE(first.has_seed());
  EXPECT_EQ(first.sampling_logprob(), 0);
  EXPECT_EQ(samples[0].versions[0], 61);

  request.set_max_tokens(30);
  request.add_stop("fox");
  request.add_stop("wn");
  samples.clear();
  ASSERT_OK(Generate(request, &samples));
  EXPECT_EQ(samples[0].text, " bro");
  EXPECT_EQ(samples[0].finish, v1::FINISH_REASON_STOP);
  EXPECT_EQ(samples[0].tokens.size(), 6U);

  request.set_min_tokens(7);
  samples.clear();
  ASSERT_OK(Generate(request, &samples));
  EXPECT_EQ(samples[0].text, " brown ");

  // Unset max_tokens: as many as fit into the 64 positions.
  v1::GenerateRequest open;
  open.set_model("chars");
  open.set_text("the quick");
  open.set_temperature(0);
  samples.clear();
  ASSERT_OK(Generate(open, &samples));
  EXPECT_EQ(samples[0].tokens.size(), 55U);
}

TEST_F(ServerTrainingTest, LogprobsAreTheBitsOfScoreAndOfTheTrainingForward) {
  Start();
  CreateCharacterModel("chars", kText);
  v1::GenerateRequest request;
  request.set_model("chars");
  request.set_text("lazy dog");
  request.set_max_tokens(20);
  request.set_seed(5);
  request.set_n(3);
  request.set_logprobs(2);
  request.set_prompt_logprobs(true);
  std::map<int, Sample> samples;
  v1::GenerateResponse first;
  ASSERT_OK(Generate(request, &samples, &first));
  ASSERT_EQ(samples.size(), 3U);
  EXPECT_NE(samples[0].tokens, samples[1].tokens);
  EXPECT_EQ(first.seed(), 5U);
  EXPECT_EQ(first.top_logprobs_size(), 2);
  ASSERT_EQ(first.prompt_logprobs_size(), 8);

  v1::ScoreRequest score;
  score.set_model("chars");
  for (const auto& [index, sample] : samples) {
    auto* ids = score.add_sequences()->mutable_ids();
    *ids = first.prompt_tokens();
    ids->Add(sample.tokens.begin(), sample.tokens.end());
  }
  v1::ScoreResponse scored;
  ASSERT_OK(Call(*sampling_, &Sampling::Score, score, &scored));
  EXPECT_EQ(scored.weights_version(), 1);
  v1::EvaluateRequest evaluate;
  evaluate.set_model("chars");
  evaluate.mutable_objective()->set_loss(v1::LOSS_CROSS_ENTROPY);
  evaluate.set_return_logprobs(true);
  for (const auto& sequence : score.sequences()) {
    *evaluate.mutable_batch()->add_sequences()->mutable_tokens() = sequence.ids();
  }
  v1::EvaluateResponse evaluated;
  ASSERT_OK(Call(*training_, &Training::Evaluate, evaluate, &evaluated));
  ASSERT_EQ(evaluated.logprobs_size(), 3 * 28);
  for (int s = 0; s < 3; ++s) {
    const auto& sequence = scored.sequences(s);
    ASSERT_EQ(sequence.logprobs_size(), 28);
    EXPECT_TRUE(std::isnan(sequence.logprobs(0)));
    for (int i = 1; i < 28; ++i) {
      EXPECT_EQ(sequence.logprobs(i), evaluated.logprobs(28 * s + i - 1)) << s << " " << i;
      const float generated = i < 8 ? first.prompt_logprobs(i) : samples[s].logprobs[i - 8];
      EXPECT_EQ(sequence.logprobs(i), generated) << s << " " << i;
    }
  }

  // The same seed gives the same tokens, whatever else runs.
  std::map<int, Sample> again;
  ASSERT_OK(Generate(request, &again));
  for (int s = 0; s < 3; ++s) EXPECT_EQ(again[s].tokens, samples[s].tokens);
}

TEST_F(ServerTrainingTest, GenerateErrors) {
  Start();
  CreateCharacterModel("chars", kText);
  CreateLinear("linear");
  const auto generate = [&](auto change) {
    v1::GenerateRequest request;
    request.set_model("chars");
    request.set_text("the");
    change(request);
    std::map<int, Sample> samples;
    return Generate(request, &samples);
  };
  EXPECT_STATUS(generate([](auto& r) { r.set_model("absent"); }), NOT_FOUND, "absent");
  EXPECT_STATUS(generate([](auto& r) { r.set_model("linear"); }), FAILED_PRECONDITION,
                "not a language model");
  EXPECT_STATUS(generate([](auto& r) { r.clear_prompt(); }), INVALID_ARGUMENT, "prompt");
  EXPECT_STATUS(generate([](auto& r) { r.mutable_tokens(); }), INVALID_ARGUMENT, "empty");
  EXPECT_STATUS(generate([](auto& r) { r.mutable_tokens()->add_ids(10000); }), INVALID_ARGUMENT,
                "10000");
  EXPECT_STATUS(generate([](auto& r) { r.mutable_tokens()->add_ids(-1); }), INVALID_ARGUMENT, "-1");
  EXPECT_STATUS(generate([](auto& r) { r.set_text("UPPER"); }), INVALID_ARGUMENT, "");
  EXPECT_STATUS(generate([](auto& r) { r.set_text(std::string(1 << 20, 'a')); }), INVALID_ARGUMENT,
                "fit");
  EXPECT_STATUS(generate([](auto& r) { r.set_max_tokens(62); }), INVALID_ARGUMENT, "64");
  EXPECT_STATUS(generate([](auto& r) { r.set_top_p(2); }), INVALID_ARGUMENT, "top_p");
  v1::ScoreRequest score;
  score.set_model("chars");
  v1::ScoreResponse scored;
  EXPECT_STATUS(Call(*sampling_, &Sampling::Score, score, &scored), INVALID_ARGUMENT, "either");
  score.add_sequences()->add_ids(10000);
  EXPECT_STATUS(Call(*sampling_, &Sampling::Score, score, &scored), INVALID_ARGUMENT, "10000");
  score.mutable_sequences(0)->mutable_ids()->Resize(65, 1);
  score.mutable_sequences(0)->set_ids(0, 1);
  EXPECT_STATUS(Call(*sampling_, &Sampling::Score, score, &scored), INVALID_ARGUMENT, "65 tokens");
}

TEST_F(ServerTrainingTest, ASavedLanguageModelLoadsWithItsTokenizer) {
  Start();
  CreateCharacterModel("chars", kText);
  v1::SaveModelRequest save;
  save.set_model("chars");
  v1::SaveModelResponse saved;
  ASSERT_OK(Call(*models_, &Models::SaveModel, save, &saved));
  EXPECT_EQ(saved.path(), "chars");
  EXPECT_GT(saved.bytes(), 4 * 32 * 64);
  v1::GenerateRequest request;
  request.set_model("chars");
  request.set_text("the lazy");
  request.set_temperature(0);
  request.set_max_tokens(20);
  std::map<int, Sample> before, after;
  ASSERT_OK(Generate(request, &before));
  v1::LoadModelRequest load;
  load.set_model("chars");
  v1::LoadModelResponse loaded;
  ASSERT_OK(Call(*models_, &Models::LoadModel, load, &loaded));
  EXPECT_EQ(loaded.model().format(), v1::MODEL_FORMAT_HUGGINGFACE);
  EXPECT_TRUE(loaded.model().language_model().has_tokenizer());
  EXPECT_EQ(loaded.model().language_model().max_positions(), 64);
  ASSERT_OK(Generate(request, &after));
  EXPECT_EQ(after[0].text, before[0].text);
  EXPECT_EQ(after[0].logprobs, before[0].logprobs);
}

TEST_F(ServerTrainingTest, MetricsFollowTrainingAndSampling) {
  ServerOptions options = Options();
  options.metrics_listen = "127.0.0.1:0";
  Start(options);
  CreateCharacterModel("chars", kText);
  ASSERT_OK(StartTraining("chars", v1::LOSS_CROSS_ENTROPY, 0.125));
  v1::TrainStepResponse step;
  ASSERT_OK(Call(*training_, &Training::TrainStep, TextStep("chars"), &step));
  v1::GenerateRequest request;
  request.set_model("chars");
  request.set_text("the");
  request.set_max_tokens(4);
  request.set_n(2);
  std::map<int, Sample> samples;
  ASSERT_OK(Generate(request, &samples));
  const std::string text = HttpGet(server_->metrics_port(), "/metrics");
  for (const char* line :
       {"tandem_train_steps_total{model=\"chars\"} 1\n",
        "tandem_train_tokens_total{model=\"chars\"} 88\n",
        "tandem_learning_rate{model=\"chars\"} 0.125\n",
        "tandem_weights_version{model=\"chars\"} 2\n",
        "tandem_train_step_duration_seconds_count{model=\"chars\"} 1\n",
        "tandem_prompt_tokens_total{model=\"chars\"} 3\n",
        "tandem_generation_tokens_total{model=\"chars\"} 8\n",
        "tandem_time_to_first_token_seconds_count{model=\"chars\"} 1\n",
        "tandem_inter_token_latency_seconds_count{model=\"chars\"} 6\n",
        "tandem_generations_finished_total{model=\"chars\",reason=\"length\"} 2\n",
        "tandem_requests_total{code=\"OK\",method=\"Generate\"} 1\n",
        "tandem_requests_in_flight{method=\"Generate\"} 0\n"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
  EXPECT_THAT(text, HasSubstr("tandem_train_loss{model=\"chars\"} "));
  EXPECT_THAT(text, HasSubstr("tandem_grad_norm{model=\"chars\"} "));
  EXPECT_THAT(text, HasSubstr("tandem_kv_cache_usage_ratio{model=\"chars\"} "));
}

TEST_F(ServerTrainingTest, TokenizeThereAndBack) {
  Start();
  CreateCharacterModel("chars", kText);
  v1::TokenizeRequest tokenize;
  tokenize.set_model("chars");
  tokenize.set_text("fox");
  v1::TokenizeResponse tokens;
  ASSERT_OK(Call(*sampling_, &Sampling::Tokenize, tokenize, &tokens));
  EXPECT_EQ(tokens.tokens_size(), 3);
  v1::DetokenizeRequest detokenize;
  detokenize.set_model("chars");
  *detokenize.mutable_tokens() = tokens.tokens();
  v1::DetokenizeResponse text;
  ASSERT_OK(Call(*sampling_, &Sampling::Detokenize, detokenize, &text));
  EXPECT_EQ(text.text(), "fox");
  detokenize.add_tokens(9999);
  EXPECT_STATUS(Call(*sampling_, &Sampling::Detokenize, detokenize, &text), INVALID_ARGUMENT,
                "9999");
}

TEST_F(ServerTrainingTest, SamplingAndTrainingRunTogether) {
  Start();
  CreateCharacterModel("chars", kText);
  ASSERT_OK(StartTraining("chars", v1::LOSS_CROSS_ENTROPY, 0.001));
  const v1::TrainStepRequest step = TextStep("chars");
  std::atomic<bool> stop = false;
  std::thread trainer([&] {
    v1::TrainStepResponse response;
    while (!stop) {
      ASSERT_OK(Call(*training_, &Training::TrainStep, step, &response));
    }
  });
  for (int i = 0; i < 5; ++i) {
    v1::GenerateRequest request;
    request.set_model("chars");
    request.set_text("the");
    request.set_max_tokens(20);
    request.set_n(4);
    std::map<int, Sample> samples;
    EXPECT_TRUE(Generate(request, &samples).ok());
    EXPECT_EQ(samples.size(), 4U);
    for (const auto& [index, sample] : samples) {
      EXPECT_EQ(sample.tokens.size(), 20U);
      EXPECT_TRUE(std::is_sorted(sample.versions.begin(), sample.versions.end()));
    }
  }
  stop = true;
  trainer.join();
}

TEST_F(ServerTrainingTest, UnloadingEndsGenerations) {
  Start();
  CreateCharacterModel("chars", kText);
  v1::GenerateRequest request;
  request.set_model("chars");
  request.set_text("the");
  request.set_max_tokens(60);
  request.set_n(200);
  grpc::ClientContext context;
  auto reader = sampling_->Generate(&context, request);
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  v1::UnloadModelRequest unload;
  unload.set_model("chars");
  v1::UnloadModelResponse unloaded;
  ASSERT_OK(Call(*models_, &Models::UnloadModel, unload, &unloaded));
  while (reader->Read(&message)) {
  }
  EXPECT_STATUS(reader->Finish(), ABORTED, "unloaded");
}

TEST_F(ServerTrainingTest, CancellingFreesTheGeneration) {
  Start();
  CreateCharacterModel("chars", kText);
  v1::GenerateRequest request;
  request.set_model("chars");
  request.set_text("the");
  request.set_max_tokens(60);
  request.set_n(256);
  // More than can wait, were they not freed.
  for (int i = 0; i < 8; ++i) {
    grpc::ClientContext context;
    auto reader = sampling_->Generate(&context, request);
    v1::GenerateResponse message;
    ASSERT_TRUE(reader->Read(&message)) << reader->Finish().error_message();
    context.TryCancel();
    while (reader->Read(&message)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  // Its places are free: all of another one's samples run.
  std::map<int, Sample> samples;
  request.set_n(64);
  request.set_max_tokens(2);
  ASSERT_OK(Generate(request, &samples));
  EXPECT_EQ(samples.size(), 64U);
}

TEST_F(ServerTrainingTest, StoppingEndsCallsThatRun) {
  ServerOptions options = Options();
  options.drain_seconds = 0.2;
  Start(options);
  CreateCharacterModel("chars", kText);
  v1::GenerateRequest request;
  request.set_model("chars");
  request.set_text("the");
  request.set_max_tokens(60);
  request.set_n(256);
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>>> readers;
  for (int i = 0; i < 4; ++i) {
    readers.push_back(
        sampling_->Generate(contexts.emplace_back(new grpc::ClientContext()).get(), request));
  }
  v1::GenerateResponse message;
  ASSERT_TRUE(readers[0]->Read(&message));
  const auto begin = std::chrono::steady_clock::now();
  server_->Stop();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
  for (auto& reader : readers) {
    while (reader->Read(&message)) {
    }
    (void)reader->Finish();
  }
}

}  // namespace
}  // namespace tandem::server

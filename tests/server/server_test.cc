// The server over loopback: health, models and forward passes.
#include "server/server.h"

#include <grpcpp/generic/generic_stub.h>

#include <fstream>
#include <future>
#include <sstream>
#include <thread>

#include "tests/server/http_get.h"
#include "tests/server/test_server.h"

namespace tandem::server {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class ServerModelsTest : public ServerTest {
 protected:
  grpc::Status Load(const std::string& name, v1::LoadModelResponse* response) {
    v1::LoadModelRequest request;
    request.set_model(name);
    return Call(*models_, &Models::LoadModel, request, response);
  }
  v1::Model Get(const std::string& name) {
    v1::GetModelRequest request;
    request.set_model(name);
    v1::GetModelResponse response;
    EXPECT_TRUE(Call(*models_, &Models::GetModel, request, &response).ok());
    return response.model();
  }
};

TEST_F(ServerModelsTest, LiveReadyAndMetadata) {
  Start();
  inference::ServerLiveResponse live;
  ASSERT_OK(Call(*inference_, &Inference::ServerLive, {}, &live));
  EXPECT_TRUE(live.live());
  inference::ServerReadyResponse ready;
  ASSERT_OK(Call(*inference_, &Inference::ServerReady, {}, &ready));
  EXPECT_TRUE(ready.ready());
  inference::ServerMetadataResponse metadata;
  ASSERT_OK(Call(*inference_, &Inference::ServerMetadata, {}, &metadata));
  EXPECT_EQ(metadata.name(), "tandem");
  EXPECT_EQ(metadata.version(), TANDEM_VERSION);
}

// grpc.health.v1.Health/Check of a service, by the bytes of its messages.
std::string HealthCheck(const std::shared_ptr<grpc::Channel>& channel, const std::string& service) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  std::string request;
  if (!service.empty())
    request = "\n" + std::string(1, static_cast<char>(service.size())) + service;
  grpc::Slice slice(request);
  grpc::ByteBuffer in(&slice, 1), out;
  grpc::CompletionQueue queue;
  auto call = stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", in, &queue);
  call->StartCall();
  grpc::Status status;
  call->Finish(&out, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  if (!status.ok()) return "error " + std::to_string(status.error_code());
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(out.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& s : slices) {
    bytes.append(reinterpret_cast<const char*>(s.begin()), s.size());
  }
  return bytes == "\x08\x01" ? "SERVING" : bytes == "\x08\x02" ? "NOT_SERVING" : "other";
}

TEST_F(ServerModelsTest, HealthOfEveryService) {
  Start();
  for (const char* service : {"", "inference.GRPCInferenceService", "tandem.v1.ModelService",
                              "tandem.v1.TrainingService", "tandem.v1.SamplingService"}) {
    EXPECT_EQ(HealthCheck(channel_, service), "SERVING") << service;
  }
  EXPECT_EQ(HealthCheck(channel_, "no.such.Service"), "error 5");  // NOT_FOUND
}

TEST_F(ServerModelsTest, Infer) {
  Start();
  CreateLinear("linear");
  auto request = LinearRequest("linear", {1, 0, 0, 1, 1, 1});
  request.set_id("id-7");
  inference::ModelInferResponse response;
  ASSERT_OK(Call(*inference_, &Inference::ModelInfer, request, &response));
  EXPECT_EQ(response.id(), "id-7");
  EXPECT_EQ(response.model_name(), "linear");
  EXPECT_EQ(response.model_version(), "1");
  EXPECT_EQ(response.parameters().at("weights_version").int64_param(), 1);
  ASSERT_EQ(response.outputs_size(), 1);
  EXPECT_EQ(response.outputs(0).name(), "y");
  EXPECT_EQ(response.outputs(0).datatype(), "FP32");
  EXPECT_THAT(response.outputs(0).shape(), ElementsAre(2, 2));
  EXPECT_THAT(Floats(response.raw_output_contents(0)), ElementsAre(1.5, 1.5, 9.5, 11.5));

  request.clear_raw_input_contents();
  request.mutable_inputs(0)->set_shape(0, 1);
  for (float f : {0.F, 1.F, 0.F}) {
    request.mutable_inputs(0)->mutable_contents()->add_fp32_contents(f);
  }
  request.add_outputs()->set_name("y");
  inference::ModelInferResponse typed;
  ASSERT_OK(Call(*inference_, &Inference::ModelInfer, request, &typed));
  EXPECT_THAT(Floats(typed.raw_output_contents(0)), ElementsAre(3.5, 3.5));
}

TEST_F(ServerModelsTest, InferErrors) {
  Start();
  CreateLinear("linear");
  const auto infer = [&](const inference::ModelInferRequest& request) {
    inference::ModelInferResponse response;
    return Call(*inference_, &Inference::ModelInfer, request, &response);
  };
  const auto good = LinearRequest("linear", {1, 2, 3});
  EXPECT_STATUS(infer(LinearRequest("absent", {1, 2, 3})), NOT_FOUND, "'absent'");
  EXPECT_STATUS(infer(LinearRequest("../linear", {1, 2, 3})), INVALID_ARGUMENT, "not allowed");
  EXPECT_STATUS(infer(LinearRequest("", {1, 2, 3})), INVALID_ARGUMENT, "empty");
  auto request = good;
  request.set_model_version("2");
  EXPECT_STATUS(infer(request), NOT_FOUND, "version '2'");
  request = good;
  request.mutable_inputs(0)->set_name("z");
  EXPECT_STATUS(infer(request), INVALID_ARGUMENT, "'z'");
  request = good;
  request.clear_inputs();
  request.clear_raw_input_contents();
  EXPECT_STATUS(infer(request), INVALID_ARGUMENT, "'x'");
  request = good;
  request.mutable_inputs(0)->set_datatype("INT32");
  EXPECT_STATUS(infer(request), INVALID_ARGUMENT, "x");
  request = good;
  request.mutable_inputs(0)->add_shape(1);
  EXPECT_STATUS(infer(request), INVALID_ARGUMENT, "x");
  request = good;
  request.mutable_inputs(0)->set_shape(0, 3);
  request.mutable_inputs(0)->set_shape(1, 1);
  EXPECT_STATUS(infer(request), INVALID_ARGUMENT, "x");
  request = good;
  request.mutable_inputs(0)->set_shape(0, -1);
  EXPECT_STATUS(infer(request), INVALID_ARGUMENT, "negative");
  request = good;
  request.mutable_inputs(0)->set_shape(0, int64_t{1} << 62);
  EXPECT_STATUS(infer(request), INVALID_ARGUMENT, "x");
  request = good;
  request.add_outputs()->set_name("q");
  EXPECT_STATUS(infer(request), INVALID_ARGUMENT, "no output 'q'");
  request = good;
  (*request.mutable_parameters())["nonsense"].set_bool_param(true);
  EXPECT_STATUS(infer(request), INVALID_ARGUMENT, "nonsense");
  EXPECT_TRUE(infer(good).ok());
}

// A shape without elements that names a huge one beside it must not cost memory.
TEST_F(ServerModelsTest, InferOnNothing) {
  Start();
  CreateLinear("linear");
  auto request = LinearRequest("linear", {});
  inference::ModelInferResponse response;
  const grpc::Status status = Call(*inference_, &Inference::ModelInfer, request, &response);
  if (status.ok()) {
    EXPECT_THAT(response.outputs(0).shape(), ElementsAre(0, 2));
    EXPECT_EQ(response.raw_output_contents(0), "");
  } else {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << status.error_message();
  }
  EXPECT_TRUE(
      Call(*inference_, &Inference::ModelInfer, LinearRequest("linear", {1, 2, 3}), &response)
          .ok());
}

TEST_F(ServerModelsTest, MessagesAboveTheLimitAreRefused) {
  ServerOptions options = Options();
  options.max_message_bytes = 4096;
  Start(options);
  CreateLinear("linear");
  inference::ModelInferResponse response;
  EXPECT_STATUS(Call(*inference_, &Inference::ModelInfer,
                     LinearRequest("linear", std::vector<float>(3000)), &response),
                RESOURCE_EXHAUSTED, "4096");
}

TEST_F(ServerModelsTest, StreamInferAnswersInOrderAndGoesOnAfterErrors) {
  Start();
  CreateLinear("linear");
  grpc::ClientContext context;
  auto stream = inference_->ModelStreamInfer(&context);
  constexpr int kCount = 30;
  std::thread writer([&] {
    for (int i = 0; i < kCount; ++i) {
      auto request = LinearRequest(i % 5 == 3 ? "absent" : "linear", {static_cast<float>(i), 0, 0});
      request.set_id(std::to_string(i));
      ASSERT_TRUE(stream->Write(request));
    }
    stream->WritesDone();
  });
  inference::ModelStreamInferResponse response;
  for (int i = 0; i < kCount; ++i) {
    ASSERT_TRUE(stream->Read(&response));
    EXPECT_EQ(response.infer_response().id(), std::to_string(i));
    if (i % 5 == 3) {
      EXPECT_THAT(response.error_message(), HasSubstr("'absent'"));
    } else {
      EXPECT_EQ(response.error_message(), "");
      EXPECT_EQ(Floats(response.infer_response().raw_output_contents(0))[0],
                static_cast<float>(i) + 0.5F);
    }
  }
  EXPECT_FALSE(stream->Read(&response));
  writer.join();
  ASSERT_OK(stream->Finish());
}

TEST_F(ServerModelsTest, ModelReadyAndMetadata) {
  Start();
  CreateLinear("linear");
  inference::ModelReadyRequest ready;
  inference::ModelReadyResponse is_ready;
  ready.set_name("linear");
  ASSERT_OK(Call(*inference_, &Inference::ModelReady, ready, &is_ready));
  EXPECT_TRUE(is_ready.ready());
  ready.set_version("9");
  ASSERT_OK(Call(*inference_, &Inference::ModelReady, ready, &is_ready));
  EXPECT_FALSE(is_ready.ready());
  ready.set_name("absent");
  ASSERT_OK(Call(*inference_, &Inference::ModelReady, ready, &is_ready));
  EXPECT_FALSE(is_ready.ready());

  inference::ModelMetadataRequest request;
  inference::ModelMetadataResponse metadata;
  request.set_name("linear");
  ASSERT_OK(Call(*inference_, &Inference::ModelMetadata, request, &metadata));
  EXPECT_EQ(metadata.platform(), "tandem_onnx");
  EXPECT_THAT(metadata.versions(), ElementsAre("1"));
  ASSERT_EQ(metadata.inputs_size(), 1);
  EXPECT_EQ(metadata.inputs(0).datatype(), "FP32");
  EXPECT_THAT(metadata.inputs(0).shape(), ElementsAre(-1, 3));
  request.set_name("absent");
  EXPECT_STATUS(Call(*inference_, &Inference::ModelMetadata, request, &metadata), NOT_FOUND,
                "absent");
}

TEST_F(ServerModelsTest, CreateErrors) {
  Start();
  CreateLinear("linear");
  const auto create = [&](auto fill) {
    v1::CreateModelRequest request;
    request.set_model("new");
    fill(request);
    v1::CreateModelResponse response;
    return Call(*models_, &Models::CreateModel, request, &response);
  };
  EXPECT_STATUS(create([](auto&) {}), INVALID_ARGUMENT, "no source");
  EXPECT_STATUS(create([](auto& r) { r.set_model("a/b"), r.set_copy_of("linear"); }),
                INVALID_ARGUMENT, "not allowed");
  EXPECT_STATUS(create([](auto& r) { r.set_model("linear"), r.set_onnx(LinearOnnx()); }),
                ALREADY_EXISTS, "'linear'");
  EXPECT_STATUS(create([](auto& r) { r.set_onnx("not a model"); }), INVALID_ARGUMENT, "");
  EXPECT_STATUS(create([](auto& r) { r.set_copy_of("absent"); }), NOT_FOUND, "absent");
  EXPECT_STATUS(create([](auto& r) { r.set_onnx(LinearOnnx()), r.set_seed(3); }), INVALID_ARGUMENT,
                "seed");
  // A terabyte of weights: refused before anything is allocated.
  v1::CreateModelRequest request;
  request.set_model("huge");
  v1::DecoderConfig* decoder = request.mutable_decoder();
  decoder->set_architecture(v1::DecoderConfig::ARCHITECTURE_LLAMA);
  decoder->set_vocab_size(1 << 18);
  decoder->set_layers(20);
  decoder->set_heads(128);
  decoder->set_hidden_size(1 << 14);
  decoder->set_max_positions(16);
  v1::CreateModelResponse response;
  const grpc::Status huge = Call(*models_, &Models::CreateModel, request, &response);
  EXPECT_TRUE(huge.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED ||
              huge.error_code() == grpc::StatusCode::INVALID_ARGUMENT)
      << huge.error_code() << huge.error_message();
}

TEST_F(ServerModelsTest, ListCopySaveUnloadLoad) {
  Start();
  CreateLinear("linear");
  v1::CreateModelRequest copy;
  copy.set_model("copy");
  copy.set_copy_of("linear");
  v1::CreateModelResponse created;
  ASSERT_OK(Call(*models_, &Models::CreateModel, copy, &created));
  EXPECT_EQ(created.model().name(), "copy");
  EXPECT_EQ(created.model().parameter_count(), 8);
  EXPECT_EQ(Get("copy").weights_hash(), Get("linear").weights_hash());

  v1::SaveModelRequest save;
  save.set_model("linear");
  save.set_save_as("saved");
  v1::SaveModelResponse saved;
  ASSERT_OK(Call(*models_, &Models::SaveModel, save, &saved));
  EXPECT_EQ(saved.path(), "saved/model.onnx");
  EXPECT_EQ(static_cast<int64_t>(std::filesystem::file_size(root_ / "saved/model.onnx")),
            saved.bytes());
  save.set_save_as("../outside");
  EXPECT_STATUS(Call(*models_, &Models::SaveModel, save, &saved), INVALID_ARGUMENT, "not allowed");

  v1::LoadModelResponse loaded;
  ASSERT_OK(Load("saved", &loaded));
  EXPECT_EQ(loaded.model().format(), v1::MODEL_FORMAT_ONNX);
  EXPECT_EQ(Get("saved").weights_hash(), Get("linear").weights_hash());
  ASSERT_OK(Load("saved", &loaded));  // again
  EXPECT_STATUS(Load("absent", &loaded), NOT_FOUND, "absent");
  EXPECT_STATUS(Load("../saved", &loaded), INVALID_ARGUMENT, "not allowed");

  v1::ListModelsResponse list;
  ASSERT_OK(Call(*models_, &Models::ListModels, {}, &list));
  ASSERT_EQ(list.models_size(), 3);
  EXPECT_EQ(list.models(0).name(), "copy");
  EXPECT_EQ(list.models(2).name(), "saved");

  v1::UnloadModelRequest unload;
  unload.set_model("copy");
  v1::UnloadModelResponse unloaded;
  ASSERT_OK(Call(*models_, &Models::UnloadModel, unload, &unloaded));
  EXPECT_STATUS(Call(*models_, &Models::UnloadModel, unload, &unloaded), NOT_FOUND, "copy");
}

TEST_F(ServerModelsTest, AModelThatDoesNotLoadIsListedAndDoesNotStopTheServer) {
  std::filesystem::create_directories(root_ / "broken");
  std::ofstream(root_ / "broken/model.onnx") << "garbage";
  std::filesystem::create_directories(root_ / "good/3");
  std::ofstream(root_ / "good/3/model.onnx") << LinearOnnx();
  std::filesystem::create_directories(root_ / "linked");
  std::filesystem::create_symlink("/etc/hostname", root_ / "linked/model.onnx");
  Start();
  EXPECT_EQ(Get("good").state(), v1::MODEL_STATE_READY);
  const v1::Model broken = Get("broken");
  EXPECT_EQ(broken.state(), v1::MODEL_STATE_FAILED);
  EXPECT_NE(broken.error(), "");
  EXPECT_THAT(Get("linked").error(), HasSubstr("leads out"));
  inference::ModelInferResponse response;
  EXPECT_STATUS(
      Call(*inference_, &Inference::ModelInfer, LinearRequest("broken", {1, 2, 3}), &response),
      FAILED_PRECONDITION, "could not be loaded");
  auto request = LinearRequest("good", {1, 2, 3});
  request.set_model_version("3");
  ASSERT_OK(Call(*inference_, &Inference::ModelInfer, request, &response));
  EXPECT_EQ(response.model_version(), "3");

  inference::RepositoryIndexResponse index;
  ASSERT_OK(Call(*inference_, &Inference::RepositoryIndex, {}, &index));
  ASSERT_EQ(index.models_size(), 3);
  EXPECT_EQ(index.models(0).name(), "broken");
  EXPECT_EQ(index.models(0).state(), "UNAVAILABLE");
  EXPECT_EQ(index.models(1).state(), "READY");

  // Both clients' ways to name the model.
  inference::RepositoryModelUnloadRequest unload;
  unload.set_model_name("good");
  inference::RepositoryModelUnloadResponse unloaded;
  ASSERT_OK(Call(*inference_, &Inference::RepositoryModelUnload, unload, &unloaded));
  inference::RepositoryModelLoadRequest load;
  load.set_repository_name("good");
  inference::RepositoryModelLoadResponse loaded;
  ASSERT_OK(Call(*inference_, &Inference::RepositoryModelLoad, load, &loaded));
  EXPECT_EQ(Get("good").state(), v1::MODEL_STATE_READY);

  // Repaired, it loads.
  std::ofstream(root_ / "broken/model.onnx", std::ios::trunc) << LinearOnnx();
  v1::LoadModelResponse repaired;
  ASSERT_OK(Load("broken", &repaired));
  EXPECT_EQ(Get("broken").state(), v1::MODEL_STATE_READY);
}

// The sum of a counter's series whose labels contain `labels`, from the metrics port.
double Counter(int port, const std::string& name, const std::string& labels) {
  const std::string text = HttpGet(port, "/metrics");
  double sum = 0;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind(name + "{", 0) != 0 || line.find(labels) == std::string::npos) continue;
    sum += std::stod(line.substr(line.rfind(' ')));
  }
  return sum;
}

TEST_F(ServerModelsTest, EveryCallIsCountedOnceAlsoWhenTheQueueIsFull) {
  ServerOptions options = Options();
  options.max_queue = 1;
  options.metrics_listen = "127.0.0.1:0";
  Start(options);
  CreateLinear("linear");
  const auto request = LinearRequest("linear", std::vector<float>(30000));
  constexpr int kCalls = 64;
  std::vector<std::future<grpc::StatusCode>> calls;
  for (int i = 0; i < kCalls; ++i) {
    calls.push_back(std::async(std::launch::async, [&] {
      inference::ModelInferResponse response;
      return Call(*inference_, &Inference::ModelInfer, request, &response).error_code();
    }));
  }
  int ok = 0, refused = 0;
  for (auto& call : calls) {
    const grpc::StatusCode code = call.get();
    ok += code == grpc::StatusCode::OK ? 1 : 0;
    refused += code == grpc::StatusCode::RESOURCE_EXHAUSTED ? 1 : 0;
  }
  EXPECT_EQ(ok + refused, kCalls);
  EXPECT_GT(ok, 0);
  const int port = server_->metrics_port();
  EXPECT_EQ(Counter(port, "tandem_requests_total", "code=\"OK\",method=\"ModelInfer\""), ok);
  EXPECT_EQ(Counter(port, "tandem_requests_total", "method=\"ModelInfer\""), kCalls);
  EXPECT_EQ(Counter(port, "tandem_rejected_total", "queue_full"), refused);
  EXPECT_EQ(Counter(port, "tandem_requests_in_flight", "ModelInfer"), 0);
}

TEST_F(ServerModelsTest, ACallWhoseDeadlinePassesInTheQueueIsNotComputed) {
  ServerOptions options = Options();
  options.metrics_listen = "127.0.0.1:0";
  Start(options);
  CreateLinear("linear");
  CreateCharacterModel("chars", "abcdefgh");
  // Keeps the compute thread busy for a good while.
  v1::ScoreRequest score;
  score.set_model("chars");
  for (int i = 0; i < 2000; ++i) {
    auto* ids = score.add_sequences()->mutable_ids();
    for (int k = 0; k < 64; ++k) ids->Add(k % 8);
  }
  auto scored = std::async(std::launch::async, [&] {
    v1::ScoreResponse response;
    return Call(*sampling_, &Sampling::Score, score, &response);
  });
  while (Counter(server_->metrics_port(), "tandem_requests_in_flight", "Score") == 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(20));
  inference::ModelInferResponse response;
  const grpc::Status status =
      inference_->ModelInfer(&context, LinearRequest("linear", {1, 2, 3}), &response);
  ASSERT_OK(scored.get());
  if (status.ok()) GTEST_SKIP() << "the machine scored 128,000 tokens within 20 ms";
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  const int port = server_->metrics_port();
  while (Counter(port, "tandem_requests_in_flight", "ModelInfer") != 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_EQ(Counter(port, "tandem_requests_total", "DEADLINE_EXCEEDED\",method=\"ModelInfer"), 1);
  EXPECT_EQ(Counter(port, "tandem_requests_total", "OK\",method=\"ModelInfer"), 0);
}

// y = x w with w of 1 x 1e6 makes 4 MB of every four bytes that a client sends.
TEST_F(ServerModelsTest, AnswersThatDoNotFitIntoMemoryAreRefused) {
  Start();
  v1::CreateModelRequest create;
  create.set_model("wide");
  create.set_onnx(ProductOnnx(1'000'000));
  v1::CreateModelResponse created;
  ASSERT_OK(Call(*models_, &Models::CreateModel, create, &created));
  const auto request = [](int64_t rows) {
    inference::ModelInferRequest infer;
    infer.set_model_name("wide");
    auto* input = infer.add_inputs();
    input->set_name("x");
    input->set_datatype("FP32");
    input->add_shape(rows);
    input->add_shape(1);
    infer.add_raw_input_contents()->resize(4 * rows);
    return infer;
  };
  inference::ModelInferResponse response;
  EXPECT_STATUS(Call(*inference_, &Inference::ModelInfer, request(200'000), &response),
                RESOURCE_EXHAUSTED, "");
  // Above what any tensor may have.
  EXPECT_STATUS(Call(*inference_, &Inference::ModelInfer, request(2'000'000), &response),
                INVALID_ARGUMENT, "limit");
  ASSERT_OK(Call(*inference_, &Inference::ModelInfer, request(1), &response));
  EXPECT_EQ(response.raw_output_contents(0).size(), 4'000'000U);
}

TEST_F(ServerModelsTest, Analyze) {
  Start();
  CreateLinear("linear");
  CreateCharacterModel("chars", "abcdefgh");
  v1::AnalyzeModelRequest request;
  request.set_model("linear");
  auto* input = request.add_inputs();
  input->set_name("x");
  input->add_shape(5);
  input->add_shape(3);
  v1::AnalyzeModelResponse response;
  ASSERT_OK(Call(*models_, &Models::AnalyzeModel, request, &response));
  EXPECT_EQ(response.parameters(), 8);
  EXPECT_EQ(response.bias_parameters(), 2);
  EXPECT_EQ(response.parameter_bytes(), 32);
  EXPECT_GE(response.flops(), 2 * 5 * 3 * 2);
  ASSERT_GE(response.layers_size(), 1);
  EXPECT_THAT(response.layers(response.layers_size() - 1).output_shape(), ElementsAre(5, 2));
  input->set_shape(1, 4);
  EXPECT_STATUS(Call(*models_, &Models::AnalyzeModel, request, &response), INVALID_ARGUMENT,
                "(5,4)");
  input->set_shape(0, int64_t{1} << 62);
  EXPECT_STATUS(Call(*models_, &Models::AnalyzeModel, request, &response), INVALID_ARGUMENT, "'x'");
  input->set_name("z");
  EXPECT_STATUS(Call(*models_, &Models::AnalyzeModel, request, &response), INVALID_ARGUMENT, "'z'");
  request.Clear();
  request.set_model("chars");
  ASSERT_OK(Call(*models_, &Models::AnalyzeModel, request, &response));
  EXPECT_THAT(response.layers(response.layers_size() - 1).output_shape(), ElementsAre(16, 8));
  request.set_model("absent");
  EXPECT_STATUS(Call(*models_, &Models::AnalyzeModel, request, &response), NOT_FOUND, "absent");
}

TEST(ServerOptionsTest, BadOptionsAreNamed) {
  ServerOptions options;
  options.listen = "127.0.0.1:0";
  options.metrics_listen = "";
  options.models = "/nonexistent/models";
  EXPECT_EQ(Server::Start(options).status().code(), absl::StatusCode::kNotFound);
  options.models = "";
  options.max_queue = 0;
  EXPECT_THAT(std::string(Server::Start(options).status().message()), HasSubstr("max-queue"));
  options.max_queue = 1;
  options.max_message_bytes = -1;
  EXPECT_THAT(std::string(Server::Start(options).status().message()),
              HasSubstr("max-message-bytes"));
  options.max_message_bytes = 1 << 20;
  options.listen = "not an address";
  EXPECT_EQ(Server::Start(options).status().code(), absl::StatusCode::kUnavailable);
  options.listen = "127.0.0.1:0";
  const auto first = Server::Start(options);
  ASSERT_TRUE(first.ok()) << first.status();
  options.listen = "127.0.0.1:" + std::to_string((*first)->port());
  EXPECT_EQ(Server::Start(options).status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace tandem::server

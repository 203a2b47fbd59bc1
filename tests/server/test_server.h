// A server in this process on free ports, stubs for it, and small models to give it.
#pragma once

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/formats/onnx_proto.h"
#include "inference/open_inference.grpc.pb.h"
#include "server/server.h"
#include "tandem/v1/models.grpc.pb.h"
#include "tandem/v1/sampling.grpc.pb.h"
#include "tandem/v1/training.grpc.pb.h"

namespace tandem::server {

#define EXPECT_STATUS(expr, expected_code, text)                                                 \
  do {                                                                                           \
    const grpc::Status status_ = (expr);                                                         \
    EXPECT_EQ(status_.error_code(), grpc::StatusCode::expected_code) << status_.error_message(); \
    EXPECT_THAT(status_.error_message(), testing::HasSubstr(text));                              \
  } while (false)
#define ASSERT_OK(expr)                                                                  \
  do {                                                                                   \
    const grpc::Status status_ = (expr);                                                 \
    ASSERT_TRUE(status_.ok()) << status_.error_code() << " " << status_.error_message(); \
  } while (false)

// Calls `(stub.*method)(context, request, response)` with a deadline that a hanging server misses.
template <typename Stub, typename Request, typename Response>
grpc::Status Call(Stub& stub,
                  grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                  const Request& request, Response* response) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  return (stub.*method)(&context, request, response);
}

class ServerTest : public testing::Test {
 protected:
  using Inference = inference::GRPCInferenceService::Stub;
  using Models = v1::ModelService::Stub;
  using Training = v1::TrainingService::Stub;
  using Sampling = v1::SamplingService::Stub;

  ServerTest() {
    std::string name = (std::filesystem::temp_directory_path() / "tandem_server_XXXXXX").string();
    root_ = mkdtemp(name.data());
  }
  ~ServerTest() override {
    server_ = nullptr;
    std::filesystem::remove_all(root_);
  }

  ServerOptions Options() const {
    ServerOptions options;
    options.models = root_;
    options.listen = "127.0.0.1:0";
    options.metrics_listen = "";
    options.kv_cache_bytes = int64_t{4} << 20;
    options.drain_seconds = 2;
    return options;
  }
  void Start(const ServerOptions& options) {
    absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetMaxSendMessageSize(-1);
    channel_ = grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(server_->port()),
                                         grpc::InsecureChannelCredentials(), arguments);
    inference_ = inference::GRPCInferenceService::NewStub(channel_);
    models_ = v1::ModelService::NewStub(channel_);
    training_ = v1::TrainingService::NewStub(channel_);
    sampling_ = v1::SamplingService::NewStub(channel_);
  }
  void Start() { Start(Options()); }

  static void AddValue(onnx::ValueInfoProto* info, const char* name, int64_t columns) {
    info->set_name(name);
    auto* type = info->mutable_type()->mutable_tensor_type();
    type->set_elem_type(onnx::TensorProto::FLOAT);
    type->mutable_shape()->add_dim()->set_dim_param("N");
    type->mutable_shape()->add_dim()->set_dim_value(columns);
  }
  static void AddWeight(onnx::GraphProto* graph, const char* name, std::vector<int64_t> dims,
                        const std::vector<float>& data) {
    onnx::TensorProto* tensor = graph->add_initializer();
    tensor->set_name(name);
    tensor->set_data_type(onnx::TensorProto::FLOAT);
    for (int64_t dim : dims) tensor->add_dims(dim);
    tensor->set_raw_data(data.data(), data.size() * sizeof(float));
  }
  static void AddNode(onnx::GraphProto* graph, const char* op,
                      const std::vector<std::string>& inputs, const char* output) {
    onnx::NodeProto* node = graph->add_node();
    node->set_op_type(op);
    for (const std::string& input : inputs) node->add_input(input);
    node->add_output(output);
  }
  static onnx::ModelProto EmptyOnnx() {
    onnx::ModelProto model;
    model.set_ir_version(8);
    model.add_opset_import()->set_version(13);
    model.mutable_graph()->set_name("graph");
    return model;
  }

  // y = x w + b with x (N, 3), w (3, 2), b (2).
  static std::string LinearOnnx() {
    onnx::ModelProto model = EmptyOnnx();
    onnx::GraphProto* graph = model.mutable_graph();
    AddValue(graph->add_input(), "x", 3);
    AddValue(graph->add_output(), "y", 2);
    AddWeight(graph, "w", {3, 2}, {1, 2, 3, 4, 5, 6});
    AddWeight(graph, "b", {2}, {0.5, -0.5});
    AddNode(graph, "MatMul", {"x", "w"}, "xw");
    AddNode(graph, "Add", {"xw", "b"}, "y");
    return model.SerializeAsString();
  }
  // y = x w with x (N, 1), w (1, columns).
  static std::string ProductOnnx(int64_t columns) {
    onnx::ModelProto model = EmptyOnnx();
    onnx::GraphProto* graph = model.mutable_graph();
    AddValue(graph->add_input(), "x", 1);
    AddValue(graph->add_output(), "y", columns);
    AddWeight(graph, "w", {1, columns}, std::vector<float>(columns, 1));
    AddNode(graph, "MatMul", {"x", "w"}, "y");
    return model.SerializeAsString();
  }

  void CreateLinear(const std::string& name) {
    v1::CreateModelRequest request;
    request.set_model(name);
    request.set_onnx(LinearOnnx());
    v1::CreateModelResponse response;
    ASSERT_OK(Call(*models_, &Models::CreateModel, request, &response));
  }

  // A GPT-2 of two small layers over the characters of `text`.
  void CreateCharacterModel(const std::string& name, const std::string& text, uint64_t seed = 1) {
    v1::CreateModelRequest request;
    request.set_model(name);
    request.set_seed(seed);
    v1::DecoderConfig* decoder = request.mutable_decoder();
    decoder->set_architecture(v1::DecoderConfig::ARCHITECTURE_GPT2);
    decoder->set_layers(2);
    decoder->set_heads(2);
    decoder->set_hidden_size(32);
    decoder->set_max_positions(64);
    decoder->set_characters(text);
    v1::CreateModelResponse response;
    ASSERT_OK(Call(*models_, &Models::CreateModel, request, &response));
  }

  static inference::ModelInferRequest LinearRequest(const std::string& model,
                                                    std::vector<float> x) {
    inference::ModelInferRequest request;
    request.set_model_name(model);
    auto* input = request.add_inputs();
    input->set_name("x");
    input->set_datatype("FP32");
    input->add_shape(static_cast<int64_t>(x.size()) / 3);
    input->add_shape(3);
    request.add_raw_input_contents(x.data(), x.size() * sizeof(float));
    return request;
  }

  static v1::Batch LinearBatch(std::vector<float> x, std::vector<float> target) {
    v1::Batch batch;
    const auto add = [&](const char* name, const std::vector<float>& values, int64_t columns) {
      v1::NamedTensor* named = batch.add_tensors();
      named->set_name(name);
      v1::Tensor* tensor = named->mutable_tensor();
      tensor->set_dtype(v1::DATA_TYPE_F32);
      tensor->add_shape(static_cast<int64_t>(values.size()) / columns);
      tensor->add_shape(columns);
      tensor->set_data(values.data(), values.size() * sizeof(float));
    };
    add("x", x, 3);
    add("target", target, 2);
    return batch;
  }

  static std::vector<float> Floats(const std::string& bytes) {
    std::vector<float> values(bytes.size() / sizeof(float));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }

  std::filesystem::path root_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<Inference> inference_;
  std::unique_ptr<Models> models_;
  std::unique_ptr<Training> training_;
  std::unique_ptr<Sampling> sampling_;
};

}  // namespace tandem::server

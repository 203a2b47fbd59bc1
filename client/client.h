// C++ client of a Tandem server.
//
// Every call blocks and returns the response or the server's status, code and message kept. A
// Client may be used from several threads at once; a stream object from one.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "inference/open_inference.grpc.pb.h"
#include "tandem/v1/models.grpc.pb.h"
#include "tandem/v1/sampling.grpc.pb.h"
#include "tandem/v1/training.grpc.pb.h"

namespace tandem {

struct ClientOptions {
  double timeout_seconds = 0;  // of each unary call; 0: none
  int max_message_bytes = 64 << 20;
};

// A call with a response for each request, in order; requests may be sent ahead of their responses.
template <typename Request, typename Response>
class RequestStream {
 public:
  // False when the server has ended the stream; Finish() says why.
  bool Send(const Request& request) { return stream_->Write(request); }
  bool Receive(Response* response) { return stream_->Read(response); }
  // One request and its response, or why the stream has ended; nothing else may follow then.
  absl::StatusOr<Response> Exchange(const Request& request);
  // No more requests; then the stream's status, after the last response was received.
  void CloseSend() { stream_->WritesDone(); }
  absl::Status Finish();
  // Ends it at once; the server stops within the running step.
  void Cancel() { context_->TryCancel(); }

 private:
  friend class Client;
  std::unique_ptr<grpc::ClientContext> context_;
  std::unique_ptr<grpc::ClientReaderWriter<Request, Response>> stream_;
};
using TrainingStream = RequestStream<v1::TrainStepRequest, v1::TrainStepResponse>;
using ApproximationStream = RequestStream<v1::ApproximateRequest, v1::ApproximateResponse>;

class Client {
 public:
  // `address`: "host:port". Connects at the first call.
  explicit Client(const std::string& address, ClientOptions options = {});

#define TANDEM_CALL(service, method) \
  absl::StatusOr<v1::method##Response> method(const v1::method##Request& request);
#define TANDEM_INFERENCE_CALL(method) \
  absl::StatusOr<inference::method##Response> method(const inference::method##Request& request);
#define TANDEM_CALLS                         \
  TANDEM_CALL(models, ListModels)            \
  TANDEM_CALL(models, GetModel)              \
  TANDEM_CALL(models, CreateModel)           \
  TANDEM_CALL(models, LoadModel)             \
  TANDEM_CALL(models, UnloadModel)           \
  TANDEM_CALL(models, SaveModel)             \
  TANDEM_CALL(models, AnalyzeModel)          \
  TANDEM_CALL(models, ListActivations)       \
  TANDEM_CALL(training, StartTraining)       \
  TANDEM_CALL(training, ForwardBackward)     \
  TANDEM_CALL(training, OptimStep)           \
  TANDEM_CALL(training, TrainStep)           \
  TANDEM_CALL(training, Evaluate)            \
  TANDEM_CALL(training, EvaluatePredictions) \
  TANDEM_CALL(training, GetTraining)         \
  TANDEM_CALL(training, StopTraining)        \
  TANDEM_CALL(sampling, Score)               \
  TANDEM_CALL(sampling, Tokenize)            \
  TANDEM_CALL(sampling, Detokenize)          \
  TANDEM_CALL(sampling, SampleDistribution)
#define TANDEM_INFERENCE_CALLS          \
  TANDEM_INFERENCE_CALL(ServerLive)     \
  TANDEM_INFERENCE_CALL(ServerReady)    \
  TANDEM_INFERENCE_CALL(ServerMetadata) \
  TANDEM_INFERENCE_CALL(ModelMetadata)  \
  TANDEM_INFERENCE_CALL(ModelInfer)
  TANDEM_CALLS
  TANDEM_INFERENCE_CALLS
#undef TANDEM_CALL
#undef TANDEM_INFERENCE_CALL

  // Calls `on_response` for every message until the stream ends; returning false cancels it, which
  // is no error.
  absl::Status Generate(const v1::GenerateRequest& request,
                        const std::function<bool(const v1::GenerateResponse&)>& on_response);
  // The same, of an estimation's running estimates.
  absl::Status EstimateGradient(
      const v1::EstimateGradientRequest& request,
      const std::function<bool(const v1::EstimateGradientResponse&)>& on_response);
  TrainingStream TrainStream();
  // The first request begins or resumes an approximation: see approximation.proto.
  ApproximationStream Approximate();

 private:
  template <typename Stub, typename Request, typename Response>
  absl::StatusOr<Response> Call(Stub& stub,
                                grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                             Response*),
                                const Request& request);

  ClientOptions options_;
  std::unique_ptr<v1::ModelService::Stub> models_;
  std::unique_ptr<v1::TrainingService::Stub> training_;
  std::unique_ptr<v1::SamplingService::Stub> sampling_;
  std::unique_ptr<inference::GRPCInferenceService::Stub> inference_;
};

}  // namespace tandem

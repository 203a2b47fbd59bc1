#include "client/client.h"

#include <chrono>

namespace tandem {
namespace {

absl::Status ToAbsl(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace

template <typename Request, typename Response>
absl::Status RequestStream<Request, Response>::Finish() {
  return ToAbsl(stream_->Finish());
}

template <typename Request, typename Response>
absl::StatusOr<Response> RequestStream<Request, Response>::Exchange(const Request& request) {
  Response response;
  if (Send(request) && Receive(&response)) return response;
  const absl::Status status = Finish();
  return status.ok() ? absl::UnavailableError("the server ended the stream") : status;
}

template class RequestStream<v1::TrainStepRequest, v1::TrainStepResponse>;
template class RequestStream<v1::ApproximateRequest, v1::ApproximateResponse>;

Client::Client(const std::string& address, ClientOptions options) : options_(options) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(options.max_message_bytes);
  arguments.SetMaxSendMessageSize(options.max_message_bytes);
  const std::shared_ptr<grpc::Channel> channel =
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  models_ = v1::ModelService::NewStub(channel);
  training_ = v1::TrainingService::NewStub(channel);
  sampling_ = v1::SamplingService::NewStub(channel);
  inference_ = inference::GRPCInferenceService::NewStub(channel);
}

template <typename Stub, typename Request, typename Response>
absl::StatusOr<Response> Client::Call(Stub& stub,
                                      grpc::Status (Stub::*method)(grpc::ClientContext*,
                                                                   const Request&, Response*),
                                      const Request& request) {
  grpc::ClientContext context;
  if (options_.timeout_seconds > 0) {
    context.set_deadline(
        std::chrono::system_clock::now() +
        std::chrono::microseconds(static_cast<int64_t>(options_.timeout_seconds * 1e6)));
  }
  Response response;
  const grpc::Status status = (stub.*method)(&context, request, &response);
  if (!status.ok()) return ToAbsl(status);
  return response;
}

#define TANDEM_CALL(service, method)                                                        \
  absl::StatusOr<v1::method##Response> Client::method(const v1::method##Request& request) { \
    using Stub = std::remove_reference_t<decltype(*service##_)>;                            \
    return Call(*service##_, &Stub::method, request);                                       \
  }
#define TANDEM_INFERENCE_CALL(method)                                                  \
  absl::StatusOr<inference::method##Response> Client::method(                          \
      const inference::method##Request& request) {                                     \
    return Call(*inference_, &inference::GRPCInferenceService::Stub::method, request); \
  }
TANDEM_CALLS
TANDEM_INFERENCE_CALLS
#undef TANDEM_CALL
#undef TANDEM_INFERENCE_CALL

namespace {

// Reads to the end, or until `on_response` says false, which is no error.
template <typename Response>
absl::Status ReadAll(grpc::ClientContext& context, grpc::ClientReader<Response>& reader,
                     const std::function<bool(const Response&)>& on_response) {
  Response response;
  bool cancelled = false;
  while (reader.Read(&response)) {
    if (cancelled || on_response(response)) continue;
    cancelled = true;
    context.TryCancel();
  }
  const grpc::Status status = reader.Finish();
  return cancelled ? absl::OkStatus() : ToAbsl(status);
}

}  // namespace

absl::Status Client::Generate(const v1::GenerateRequest& request,
                              const std::function<bool(const v1::GenerateResponse&)>& on_response) {
  grpc::ClientContext context;
  return ReadAll(context, *sampling_->Generate(&context, request), on_response);
}

absl::Status Client::EstimateGradient(
    const v1::EstimateGradientRequest& request,
    const std::function<bool(const v1::EstimateGradientResponse&)>& on_response) {
  grpc::ClientContext context;
  return ReadAll(context, *sampling_->EstimateGradient(&context, request), on_response);
}

TrainingStream Client::TrainStream() {
  TrainingStream stream;
  stream.context_ = std::make_unique<grpc::ClientContext>();
  stream.stream_ = training_->TrainStream(stream.context_.get());
  return stream;
}

ApproximationStream Client::Approximate() {
  ApproximationStream stream;
  stream.context_ = std::make_unique<grpc::ClientContext>();
  stream.stream_ = sampling_->Approximate(stream.context_.get());
  return stream;
}

}  // namespace tandem

#include "server/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/service_type.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <utility>
#include <vector>

#include "engine/exec/executor.h"
#include "server/dependencies.h"
#include "server/inference_service.h"
#include "server/metrics.h"
#include "server/model_service.h"
#include "server/model_store.h"
#include "server/sampling_service.h"
#include "server/training_service.h"

namespace tandem::server {
namespace {

// Room in the executors' queues beyond max_queue, for work that has begun: at most a step a model
// and a cancellation a stream.
constexpr int64_t kQueueMargin = 4096;
constexpr int kMaxStreamsPerConnection = 1024;
constexpr int kMaxMetadataBytes = 16 << 10;
constexpr int kMinPingIntervalMs = 10'000;
constexpr int64_t kMinMessageBytes = 1024;
constexpr int64_t kMaxMessageBytes = (int64_t{1} << 31) - 1;  // protobuf's own limit
// What messages in flight may hold, as multiples of the largest one.
constexpr int64_t kMessagesInMemory = 16;

constexpr const char* kServices[] = {"", "inference.GRPCInferenceService", "tandem.v1.ModelService",
                                     "tandem.v1.TrainingService", "tandem.v1.SamplingService"};

absl::Status CheckOptions(const ServerOptions& options) {
  if (options.max_message_bytes < kMinMessageBytes ||
      options.max_message_bytes > kMaxMessageBytes) {
    return InvalidArgument("max-message-bytes is ", options.max_message_bytes, ", expected ",
                           kMinMessageBytes, " to ", kMaxMessageBytes);
  }
  if (options.max_queue < 1) {
    return InvalidArgument("max-queue is ", options.max_queue, ", expected at least 1");
  }
  if (options.threads < 0) {
    return InvalidArgument("threads is ", options.threads, ", expected 0 or more");
  }
  if (options.kv_cache_bytes < 0) return InvalidArgument("kv-cache-mib is negative");
  return absl::OkStatus();
}

}  // namespace

// Destroyed from the last member to the first: services before what they use.
struct Server::State {
  explicit State(ServerOptions server_options)
      : options(std::move(server_options)),
        compute(options.max_queue + kQueueMargin, options.threads),
        loader(options.max_queue + kQueueMargin, /*threads=*/1) {
    metrics.Watch(&compute);
  }
  ~State() { metrics.Watch(nullptr); }

  absl::Status OpenMetrics();
  absl::Status OpenGrpc();
  absl::Status LoadModels();
  void SetServing(bool serving);
  void Stop();

  const ServerOptions options;
  Metrics metrics;
  std::unique_ptr<ModelStore> models;
  // The executors drain while the models are still there.
  Executor compute;
  Executor loader;
  std::atomic<bool> ready = false;
  std::vector<std::unique_ptr<grpc::Service>> services;
  std::unique_ptr<grpc::Server> grpc_server;
  int port = 0;
  int metrics_port = 0;
};

absl::Status Server::State::OpenMetrics() {
  if (options.metrics_listen.empty()) return absl::OkStatus();
  TANDEM_ASSIGN_OR_RETURN(metrics_port, metrics.Listen(options.metrics_listen));
  return absl::OkStatus();
}

absl::Status Server::State::OpenGrpc() {
  const Dependencies dependencies{compute, loader, *models, metrics, options.max_queue};
  services.push_back(MakeInferenceService(dependencies, ready));
  services.push_back(MakeModelService(dependencies));
  services.push_back(MakeTrainingService(dependencies));
  services.push_back(MakeSamplingService(dependencies));

  // Plugins are global in gRPC and take effect for every builder made afterwards.
  grpc::EnableDefaultHealthCheckService(true);
  if (options.reflection) {
    static std::once_flag once;
    std::call_once(once, grpc::reflection::InitProtoReflectionServerBuilderPlugin);
  }

  grpc::ServerBuilder builder;
  builder.AddListeningPort(options.listen, grpc::InsecureServerCredentials(), &port);
  builder.SetMaxReceiveMessageSize(static_cast<int>(options.max_message_bytes));
  builder.SetMaxSendMessageSize(-1);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinPingIntervalMs);
  grpc::ResourceQuota quota("tandem");
  quota.Resize(static_cast<size_t>(kMessagesInMemory * options.max_message_bytes));
  builder.SetResourceQuota(quota);
  for (const auto& service : services) builder.RegisterService(service.get());
  grpc_server = builder.BuildAndStart();
  if (grpc_server == nullptr || port == 0) {
    return absl::UnavailableError(StrCat("cannot listen on ", options.listen));
  }
  SetServing(false);
  return absl::OkStatus();
}

absl::Status Server::State::LoadModels() {
  const std::function<bool()> stop =
      options.stop_loading ? options.stop_loading : [] { return false; };
  TANDEM_RETURN_IF_ERROR(loader.RunAndWait(Executor::Lane::kServing, [&] {
    models->LoadAll(stop);
    return absl::OkStatus();
  }));
  if (stop()) return absl::CancelledError("stopped while loading models");
  return absl::OkStatus();
}

void Server::State::SetServing(bool serving) {
  ready = serving;
  grpc::HealthCheckServiceInterface* health = grpc_server->GetHealthCheckService();
  for (const char* service : kServices) health->SetServingStatus(service, serving);
}

void Server::State::Stop() {
  if (grpc_server == nullptr) return;
  SetServing(false);
  grpc_server->Shutdown(
      std::chrono::system_clock::now() +
      std::chrono::milliseconds(static_cast<int64_t>(1000 * options.drain_seconds)));
  grpc_server->Wait();
  grpc_server = nullptr;
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(ServerOptions options) {
  TANDEM_RETURN_IF_ERROR(CheckOptions(options));
  TANDEM_ASSIGN_OR_RETURN(const Backend* device, FindBackend(options.device));
  auto server = std::unique_ptr<Server>(new Server(std::make_unique<State>(std::move(options))));
  State& state = *server->state_;
  TANDEM_ASSIGN_OR_RETURN(state.models,
                          ModelStore::Create({.repository = state.options.models,
                                              .kv_cache_bytes = state.options.kv_cache_bytes,
                                              .device = device},
                                             state.compute, state.metrics));
  TANDEM_RETURN_IF_ERROR(state.OpenMetrics());
  TANDEM_RETURN_IF_ERROR(state.OpenGrpc());
  TANDEM_RETURN_IF_ERROR(state.LoadModels());
  state.SetServing(true);
  return server;
}

Server::Server(std::unique_ptr<State> state) : state_(std::move(state)) {}
Server::~Server() { state_->Stop(); }

int Server::port() const { return state_->port; }
int Server::metrics_port() const { return state_->metrics_port; }
void Server::Stop() { state_->Stop(); }

}  // namespace tandem::server

#include "server/inference_service.h"

#include <grpcpp/server_context.h>

#include <algorithm>
#include <chrono>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "inference/open_inference.grpc.pb.h"
#include "server/call.h"
#include "server/convert_inference.h"
#include "server/metrics.h"
#include "server/model_store.h"
#include "server/ordered_stream.h"
#include "server/status.h"

namespace tandem::server {
namespace {

using Context = grpc::CallbackServerContext;
using Reactor = grpc::ServerUnaryReactor;
using ModelStream =
    OrderedStream<inference::ModelInferRequest, inference::ModelStreamInferResponse>;

// A message ends at 2 GiB; some room for all but the tensors.
constexpr int64_t kMaxOutputBytes = (int64_t{1} << 31) - (1 << 20);

absl::Status CheckVersion(const ModelEntry& entry, const std::string& version) {
  if (version.empty() || version == entry.version) return absl::OkStatus();
  return NotFound("model '", entry.name, "' has no version '", version, "'; it has '",
                  entry.version, "'");
}

// On the compute thread.
absl::Status Infer(const ModelEntry& entry, const NamedTensors& inputs,
                   std::optional<uint64_t> seed, const std::vector<int>& wanted, Metrics& metrics,
                   inference::ModelInferResponse* response) {
  TANDEM_ASSIGN_OR_RETURN(Model * model, entry.Live());
  std::vector<std::pair<std::string, const Tensor*>> pointers;
  for (const auto& [name, tensor] : inputs) pointers.emplace_back(name, &tensor);
  const auto begin = std::chrono::steady_clock::now();
  TANDEM_ASSIGN_OR_RETURN(const std::vector<Tensor> outputs, model->Forward(pointers, seed));
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
  metrics.Computed(Metrics::Phase::kForward, taken.count());
  int64_t bytes = 0;
  for (int i : wanted) bytes += outputs[i].bytes();
  if (bytes > kMaxOutputBytes) {
    return ResourceExhausted("the outputs have ", bytes, " bytes, a message takes at most ",
                             kMaxOutputBytes);
  }
  for (int i : wanted) AddOutput(entry.source->outputs()[i].name, outputs[i], response);
  (*response->mutable_parameters())["weights_version"].set_int64_param(model->weights_version());
  return absl::OkStatus();
}

// KServe's own clients put the model's name where Triton's put the repository's.
template <typename Request>
absl::StatusOr<std::string> RepositoryModelName(const Request& request) {
  for (const auto& [key, value] : request.parameters()) {
    return InvalidArgument("parameter '", key, "' is not supported");
  }
  if (request.model_name().empty()) return request.repository_name();
  if (!request.repository_name().empty()) {
    return InvalidArgument("repository_name is '", request.repository_name(),
                           "', but there is one repository and it has no name");
  }
  return request.model_name();
}

class InferenceService final : public inference::GRPCInferenceService::CallbackService {
 public:
  InferenceService(const Dependencies& dependencies, const std::atomic<bool>& ready)
      : deps_(dependencies), ready_(ready) {}

  Reactor* ServerLive(Context* context, const inference::ServerLiveRequest*,
                      inference::ServerLiveResponse* response) override {
    return AnswerNow(server_live_, context, [=] {
      response->set_live(true);
      return absl::OkStatus();
    });
  }

  Reactor* ServerReady(Context* context, const inference::ServerReadyRequest*,
                       inference::ServerReadyResponse* response) override {
    return AnswerNow(server_ready_, context, [=, this] {
      response->set_ready(ready_.load());
      return absl::OkStatus();
    });
  }

  Reactor* ModelReady(Context* context, const inference::ModelReadyRequest* request,
                      inference::ModelReadyResponse* response) override {
    return AnswerNow(model_ready_, context, [=, this]() -> absl::Status {
      TANDEM_RETURN_IF_ERROR(CheckModelName(request->name()));
      const auto entry = deps_.models.Find(request->name());
      response->set_ready(entry.ok() && CheckVersion(**entry, request->version()).ok());
      return absl::OkStatus();
    });
  }

  Reactor* ServerMetadata(Context* context, const inference::ServerMetadataRequest*,
                          inference::ServerMetadataResponse* response) override {
    return AnswerNow(server_metadata_, context, [=] {
      response->set_name("tandem");
      response->set_version(TANDEM_VERSION);
      response->add_extensions("model_repository");
      return absl::OkStatus();
    });
  }

  Reactor* ModelMetadata(Context* context, const inference::ModelMetadataRequest* request,
                         inference::ModelMetadataResponse* response) override {
    return AnswerNow(model_metadata_, context, [=, this]() -> absl::Status {
      TANDEM_ASSIGN_OR_RETURN(const auto entry, deps_.models.Find(request->name()));
      TANDEM_RETURN_IF_ERROR(CheckVersion(*entry, request->version()));
      response->set_name(entry->name);
      response->add_versions(entry->version);
      response->set_platform("tandem_" + std::string(entry->source->format()));
      for (const IoSpec& input : entry->source->inputs()) ToProto(input, response->add_inputs());
      for (const IoSpec& output : entry->source->outputs()) {
        ToProto(output, response->add_outputs());
      }
      return absl::OkStatus();
    });
  }

  Reactor* ModelInfer(Context* context, const inference::ModelInferRequest* request,
                      inference::ModelInferResponse* response) override {
    return StartCall(model_infer_, context, Place::kServing,
                     [=, this] { return PrepareInfer(*request, response); });
  }

  grpc::ServerBidiReactor<inference::ModelInferRequest, inference::ModelStreamInferResponse>*
  ModelStreamInfer(Context* context) override {
    return ModelStream::Start(
        model_stream_infer_, context, Place::kServing,
        [this](const inference::ModelInferRequest& request,
               inference::ModelStreamInferResponse* response) {
          // Also with an error, so that a client can tell whose it is.
          response->mutable_infer_response()->set_id(request.id());
          return PrepareInfer(request, response->mutable_infer_response());
        },
        [](const absl::Status& status, inference::ModelStreamInferResponse* response) {
          const std::string id = response->infer_response().id();
          response->Clear();
          response->set_error_message(Printable(std::string(status.message())));
          response->mutable_infer_response()->set_id(id);
          return true;
        });
  }

  Reactor* RepositoryIndex(Context* context, const inference::RepositoryIndexRequest* request,
                           inference::RepositoryIndexResponse* response) override {
    return StartCall(repository_index_, context, Place::kLoader, [=, this]() -> Work {
      return [=, this] { return Index(*request, response); };
    });
  }

  Reactor* RepositoryModelLoad(Context* context,
                               const inference::RepositoryModelLoadRequest* request,
                               inference::RepositoryModelLoadResponse*) override {
    return StartCall(repository_model_load_, context, Place::kLoader,
                     [=, this]() -> absl::StatusOr<Work> {
                       TANDEM_ASSIGN_OR_RETURN(std::string name, RepositoryModelName(*request));
                       return [=, this] { return deps_.models.Load(name).status(); };
                     });
  }

  Reactor* RepositoryModelUnload(Context* context,
                                 const inference::RepositoryModelUnloadRequest* request,
                                 inference::RepositoryModelUnloadResponse*) override {
    return StartCall(repository_model_unload_, context, Place::kLoader,
                     [=, this]() -> absl::StatusOr<Work> {
                       TANDEM_ASSIGN_OR_RETURN(std::string name, RepositoryModelName(*request));
                       return [=, this] { return deps_.models.Unload(name, /*force=*/false); };
                     });
  }

 private:
  absl::StatusOr<Work> PrepareInfer(const inference::ModelInferRequest& request,
                                    inference::ModelInferResponse* response) {
    TANDEM_ASSIGN_OR_RETURN(auto entry, deps_.models.Find(request.model_name()));
    TANDEM_RETURN_IF_ERROR(CheckVersion(*entry, request.model_version()));
    TANDEM_ASSIGN_OR_RETURN(NamedTensors inputs, InputsFromProto(request));
    TANDEM_ASSIGN_OR_RETURN(const std::optional<uint64_t> seed, SeedFromProto(request));
    TANDEM_ASSIGN_OR_RETURN(std::vector<int> wanted,
                            RequestedOutputs(request, entry->source->outputs()));
    response->set_model_name(entry->name);
    response->set_model_version(entry->version);
    response->set_id(request.id());
    return [=, this, inputs = std::move(inputs)] {
      return Infer(*entry, inputs, seed, wanted, deps_.metrics, response);
    };
  }

  absl::Status Index(const inference::RepositoryIndexRequest& request,
                     inference::RepositoryIndexResponse* response) {
    if (!request.repository_name().empty()) {
      return NotFound("there is no repository '", request.repository_name(), "'");
    }
    std::set<std::string> listed;
    for (const auto& entry : deps_.models.List()) {
      listed.insert(entry->name);
      if (request.ready() && !entry->error.ok()) continue;
      auto* index = response->add_models();
      index->set_name(entry->name);
      index->set_version(entry->version);
      index->set_state(entry->error.ok() ? "READY" : "UNAVAILABLE");
      index->set_reason(Printable(std::string(entry->error.message())));
    }
    if (request.ready()) return absl::OkStatus();
    for (const std::string& name : deps_.models.RepositoryNames()) {
      if (listed.contains(name)) continue;
      auto* index = response->add_models();
      index->set_name(name);
      index->set_state("UNAVAILABLE");
      index->set_reason("unloaded");
    }
    std::sort(response->mutable_models()->begin(), response->mutable_models()->end(),
              [](const auto& a, const auto& b) { return a.name() < b.name(); });
    return absl::OkStatus();
  }

  const Dependencies deps_;
  const std::atomic<bool>& ready_;
  const Method server_live_{deps_, "ServerLive"}, server_ready_{deps_, "ServerReady"},
      model_ready_{deps_, "ModelReady"}, server_metadata_{deps_, "ServerMetadata"},
      model_metadata_{deps_, "ModelMetadata"}, model_infer_{deps_, "ModelInfer"},
      model_stream_infer_{deps_, "ModelStreamInfer"}, repository_index_{deps_, "RepositoryIndex"},
      repository_model_load_{deps_, "RepositoryModelLoad"},
      repository_model_unload_{deps_, "RepositoryModelUnload"};
};

}  // namespace

std::unique_ptr<grpc::Service> MakeInferenceService(const Dependencies& dependencies,
                                                    const std::atomic<bool>& ready) {
  return std::make_unique<InferenceService>(dependencies, ready);
}

}  // namespace tandem::server

#include "server/model_service.h"

#include <grpcpp/server_context.h>

#include <string>
#include <utility>

#include "engine/exec/executor.h"
#include "server/call.h"
#include "server/convert_models.h"
#include "server/memory_guard.h"
#include "server/model_store.h"
#include "tandem/v1/models.grpc.pb.h"

namespace tandem::server {
namespace {

using Context = grpc::CallbackServerContext;
using Reactor = grpc::ServerUnaryReactor;

class ModelService final : public v1::ModelService::CallbackService {
 public:
  explicit ModelService(const Dependencies& dependencies) : deps_(dependencies) {}

  Reactor* ListModels(Context* context, const v1::ListModelsRequest*,
                      v1::ListModelsResponse* response) override {
    return StartCall(list_models_, context, Place::kServing, [=, this]() -> Work {
      return [=, this] {
        for (const auto& entry : deps_.models.List()) {
          ToProto(*entry, /*with_hash=*/false, response->add_models());
        }
        return absl::OkStatus();
      };
    });
  }

  Reactor* GetModel(Context* context, const v1::GetModelRequest* request,
                    v1::GetModelResponse* response) override {
    return StartCall(get_model_, context, Place::kServing, [=, this]() -> absl::StatusOr<Work> {
      TANDEM_ASSIGN_OR_RETURN(auto entry, deps_.models.FindRecord(request->model()));
      return [=]() -> absl::Status {
        ToProto(*entry, /*with_hash=*/true, response->mutable_model());
        if (request->parameters() && entry->source != nullptr) {
          for (const ParameterInfo& info : entry->source->parameters()) {
            ToProto(info, response->add_parameters());
          }
        }
        return absl::OkStatus();
      };
    });
  }

  Reactor* CreateModel(Context* context, const v1::CreateModelRequest* request,
                       v1::CreateModelResponse* response) override {
    return StartCall(create_model_, context, Place::kLoader, [=, this]() -> absl::StatusOr<Work> {
      TANDEM_RETURN_IF_ERROR(CheckModelName(request->model()));
      if (request->seed() != 0 && !request->has_decoder()) {
        return InvalidArgument("seed is set, but only a decoder has random weights");
      }
      if (request->source_case() == v1::CreateModelRequest::SOURCE_NOT_SET) {
        return InvalidArgument("no source is set: expected onnx, decoder or copy_of");
      }
      TANDEM_RETURN_IF_ERROR(FromProto(request->precision()).status());
      return [=, this]() -> absl::Status {
        TANDEM_ASSIGN_OR_RETURN(const Placement placement,
                                ToPlacement(request->precision(), request->device()));
        TANDEM_ASSIGN_OR_RETURN(const auto entry, Create(*request, placement));
        return Describe(*entry, response->mutable_model());
      };
    });
  }

  Reactor* LoadModel(Context* context, const v1::LoadModelRequest* request,
                     v1::LoadModelResponse* response) override {
    return StartCall(load_model_, context, Place::kLoader, [=, this]() -> absl::StatusOr<Work> {
      TANDEM_RETURN_IF_ERROR(FromProto(request->precision()).status());
      return [=, this]() -> absl::Status {
        TANDEM_ASSIGN_OR_RETURN(const Placement placement,
                                ToPlacement(request->precision(), request->device()));
        TANDEM_ASSIGN_OR_RETURN(const auto entry, deps_.models.Load(request->model(), placement));
        return Describe(*entry, response->mutable_model());
      };
    });
  }

  Reactor* UnloadModel(Context* context, const v1::UnloadModelRequest* request,
                       v1::UnloadModelResponse*) override {
    return StartCall(unload_model_, context, Place::kLoader, [=, this]() -> Work {
      return [=, this] { return deps_.models.Unload(request->model(), request->force()); };
    });
  }

  Reactor* SaveModel(Context* context, const v1::SaveModelRequest* request,
                     v1::SaveModelResponse* response) override {
    return StartCall(save_model_, context, Place::kLoader, [=, this]() -> Work {
      return [=, this]() -> absl::Status {
        TANDEM_ASSIGN_OR_RETURN(const ModelStore::Saved saved,
                                deps_.models.Save(request->model(), request->save_as()));
        response->set_path(saved.path);
        response->set_bytes(saved.bytes);
        return absl::OkStatus();
      };
    });
  }

  Reactor* AnalyzeModel(Context* context, const v1::AnalyzeModelRequest* request,
                        v1::AnalyzeModelResponse* response) override {
    return StartCall(analyze_model_, context, Place::kLoader, [=, this]() -> absl::StatusOr<Work> {
      TANDEM_ASSIGN_OR_RETURN(auto entry, deps_.models.Find(request->model()));
      TANDEM_ASSIGN_OR_RETURN(auto inputs, InputTypes(*request, *entry->source));
      return [=, this]() -> absl::Status {
        TANDEM_ASSIGN_OR_RETURN(const ModelAnalysis analysis,
                                tandem::AnalyzeModel(*entry->source, inputs));
        ToProto(*entry->source, inputs, analysis, response);
        if (!request->measure() && !request->verify_receptive_field()) return absl::OkStatus();
        TANDEM_RETURN_IF_ERROR(CheckCost(*request, analysis.cost.flops));
        return deps_.compute.RunAndWait(Executor::Lane::kServing, [&] {
          return CatchOutOfMemory([&] { return Measure(*entry, *request, inputs, response); });
        });
      };
    });
  }

  Reactor* ListActivations(Context* context, const v1::ListActivationsRequest* request,
                           v1::ListActivationsResponse* response) override {
    return StartCall(list_activations_, context, Place::kServing, [=]() -> absl::StatusOr<Work> {
      TANDEM_ASSIGN_OR_RETURN(ActivationRequest activations, FromProto(*request));
      return [=, activations = std::move(activations)] { return Fill(activations, response); };
    });
  }

 private:
  // The two below run on the loader's thread.

  absl::StatusOr<ModelStore::Entry> Create(const v1::CreateModelRequest& request,
                                           const Placement& placement) {
    if (request.has_onnx()) {
      return deps_.models.CreateFromOnnx(request.model(), request.onnx(), placement);
    }
    if (request.has_copy_of()) {
      return deps_.models.CreateCopy(request.model(), request.copy_of(), placement);
    }
    TANDEM_ASSIGN_OR_RETURN(NewDecoder decoder, FromProto(request.decoder(), request.seed()));
    return deps_.models.CreateDecoder(request.model(), std::move(decoder), placement);
  }

  absl::Status Describe(const ModelEntry& entry, v1::Model* model) {
    return deps_.compute.RunAndWait(Executor::Lane::kServing, [&] {
      ToProto(entry, /*with_hash=*/false, model);
      return absl::OkStatus();
    });
  }

  // Both have the compute thread to themselves: seconds, not more. Verifying takes some dozens of
  // passes' time.
  static absl::Status CheckCost(const v1::AnalyzeModelRequest& request, double flops) {
    constexpr double kMostMeasured = 1e12, kMostVerified = 5e10;
    if (request.measure() && flops > kMostMeasured) {
      return InvalidArgument("measure: a forward pass takes ", flops, " FLOPs, more than ",
                             kMostMeasured, ": ask for smaller inputs");
    }
    if (request.verify_receptive_field() && flops > kMostVerified) {
      return InvalidArgument("verify_receptive_field: a forward pass takes ", flops,
                             " FLOPs, more than ", kMostVerified, ": ask for smaller inputs");
    }
    return absl::OkStatus();
  }

  // What only a run of the model can tell; compute thread.
  static absl::Status Measure(const ModelEntry& entry, const v1::AnalyzeModelRequest& request,
                              const std::vector<TensorType>& inputs,
                              v1::AnalyzeModelResponse* response) {
    TANDEM_ASSIGN_OR_RETURN(Model* const model, entry.Live());
    if (request.measure()) {
      TANDEM_ASSIGN_OR_RETURN(const MeasuredTime time, MeasureTime(*model, inputs));
      ToProto(time, response);
    }
    if (request.verify_receptive_field()) {
      TANDEM_ASSIGN_OR_RETURN(const MeasuredField field, MeasureReceptiveField(*model, inputs));
      ToProto(field, response->mutable_verification());
    }
    return absl::OkStatus();
  }

  const Dependencies deps_;
  const Method list_models_{deps_, "ListModels"}, get_model_{deps_, "GetModel"},
      create_model_{deps_, "CreateModel"}, load_model_{deps_, "LoadModel"},
      unload_model_{deps_, "UnloadModel"}, save_model_{deps_, "SaveModel"},
      analyze_model_{deps_, "AnalyzeModel"}, list_activations_{deps_, "ListActivations"};
};

}  // namespace

std::unique_ptr<grpc::Service> MakeModelService(const Dependencies& dependencies) {
  return std::make_unique<ModelService>(dependencies);
}

}  // namespace tandem::server

#include "server/training_service.h"

#include <grpcpp/server_context.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/train/trainer.h"
#include "server/call.h"
#include "server/convert_metrics.h"
#include "server/convert_training.h"
#include "server/metrics.h"
#include "server/model_store.h"
#include "server/ordered_stream.h"
#include "tandem/v1/training.grpc.pb.h"

namespace tandem::server {
namespace {

using Context = grpc::CallbackServerContext;
using Reactor = grpc::ServerUnaryReactor;

absl::StatusOr<Trainer*> TrainerOf(const ModelEntry& entry) {
  TANDEM_RETURN_IF_ERROR(entry.Live().status());
  if (entry.trainer != nullptr) return entry.trainer.get();
  return FailedPrecondition("model '", entry.name,
                            "' is not being trained: call StartTraining first");
}

// The parts of a training step. All run on the compute thread.

absl::Status ForwardBackward(ModelEntry& entry, const Batch& batch, bool return_logprobs,
                             Metrics& metrics, v1::ForwardBackwardResponse* response) {
  TANDEM_ASSIGN_OR_RETURN(Trainer * trainer, TrainerOf(entry));
  TANDEM_ASSIGN_OR_RETURN(const LossReport report, trainer->ForwardBackward(batch));
  metrics.Computed(Metrics::Phase::kBackward, report.seconds);
  entry.accumulated_seconds += report.seconds;
  entry.accumulated_tokens += report.tokens;
  entry.accumulated_loss = report.loss;
  ToProto(report, return_logprobs, entry.model->weights_version(), response);
  return absl::OkStatus();
}

absl::Status OptimStep(ModelEntry& entry, const v1::OptimizerParameters& parameters,
                       Metrics& metrics, v1::OptimStepResponse* response) {
  TANDEM_ASSIGN_OR_RETURN(Trainer * trainer, TrainerOf(entry));
  TANDEM_ASSIGN_OR_RETURN(const OptimizerOptions options,
                          WithParameters(trainer->optimizer(), parameters));
  if (trainer->micro_step() > 0) TANDEM_RETURN_IF_ERROR(trainer->SetOptimizer(options));
  TANDEM_ASSIGN_OR_RETURN(const StepReport report, trainer->OptimStep());
  metrics.Computed(Metrics::Phase::kOptimizer, report.seconds);
  const int64_t version = entry.model->weights_version();
  entry.metrics->Trained({.seconds = entry.accumulated_seconds + report.seconds,
                          .loss = entry.accumulated_loss,
                          .grad_norm = report.grad_norm,
                          .learning_rate = options.learning_rate,
                          .loss_scale = trainer->loss_scale(),
                          .tokens = entry.accumulated_tokens,
                          .skipped = report.skipped});
  entry.metrics->WeightsVersion(version);
  entry.accumulated_seconds = 0;
  entry.accumulated_tokens = 0;
  ToProto(report, version, response);
  return absl::OkStatus();
}

// One task, so that no other client's gradients come between the two.
absl::Status TrainStep(ModelEntry& entry, const Batch& batch,
                       const v1::OptimizerParameters& parameters, Metrics& metrics,
                       v1::TrainStepResponse* response) {
  TANDEM_ASSIGN_OR_RETURN(Trainer * trainer, TrainerOf(entry));
  // Bad hyperparameters fail before gradients are added.
  TANDEM_RETURN_IF_ERROR(WithParameters(trainer->optimizer(), parameters).status());
  const bool alone = trainer->micro_step() == 0;
  TANDEM_RETURN_IF_ERROR(ForwardBackward(entry, batch, /*return_logprobs=*/false, metrics,
                                         response->mutable_forward_backward()));
  const absl::Status stepped = OptimStep(entry, parameters, metrics, response->mutable_optim());
  // A step that failed has not happened: sent again, its gradients count once.
  if (!stepped.ok() && alone) {
    trainer->DropGradients();
    entry.accumulated_seconds = 0;
    entry.accumulated_tokens = 0;
  }
  return stepped;
}

absl::Status StartTraining(ModelEntry& entry, const Objective& objective,
                           const OptimizerOptions& optimizer,
                           const std::vector<std::string>& frozen, const LossScaling& loss_scaling,
                           uint64_t seed, v1::Training* training) {
  TANDEM_ASSIGN_OR_RETURN(Model * model, entry.Live());
  if (entry.trainer != nullptr) {
    return FailedPrecondition("model '", entry.name, "' is already being trained");
  }
  TANDEM_ASSIGN_OR_RETURN(entry.trainer,
                          Trainer::Create(model, objective, optimizer, frozen, loss_scaling));
  entry.trainer->SetRandomSeed(seed);
  entry.accumulated_seconds = 0;
  entry.accumulated_tokens = 0;
  ToProto(*entry.trainer, *model, training);
  return absl::OkStatus();
}

absl::Status Evaluate(ModelEntry& entry, const std::optional<Objective>& objective,
                      const Batch& batch, bool return_logprobs, Metrics& metrics,
                      v1::EvaluateResponse* response) {
  TANDEM_ASSIGN_OR_RETURN(Model * model, entry.Live());
  if (!objective && entry.trainer == nullptr) {
    return FailedPrecondition("model '", entry.name,
                              "' is not being trained, so Evaluate needs an objective");
  }
  TANDEM_ASSIGN_OR_RETURN(
      const LossReport report,
      Trainer::Evaluate(model, objective ? *objective : entry.trainer->objective(), batch));
  metrics.Computed(Metrics::Phase::kForward, report.seconds);
  ToProto(report, return_logprobs, model->weights_version(), response);
  return absl::OkStatus();
}

class TrainingService final : public v1::TrainingService::CallbackService {
 public:
  explicit TrainingService(const Dependencies& dependencies)
      : deps_(dependencies),
        start_training_(deps_, "StartTraining"),
        forward_backward_(deps_, "ForwardBackward"),
        optim_step_(deps_, "OptimStep"),
        train_step_(deps_, "TrainStep"),
        train_stream_(deps_, "TrainStream"),
        evaluate_(deps_, "Evaluate"),
        evaluate_predictions_(deps_, "EvaluatePredictions"),
        get_training_(deps_, "GetTraining"),
        stop_training_(deps_, "StopTraining") {}

  Reactor* StartTraining(Context* context, const v1::StartTrainingRequest* request,
                         v1::StartTrainingResponse* response) override {
    return StartCall(
        start_training_, context, Place::kTraining, [=, this]() -> absl::StatusOr<Work> {
          TANDEM_ASSIGN_OR_RETURN(auto entry, deps_.models.Find(request->model()));
          TANDEM_ASSIGN_OR_RETURN(Objective objective, FromProto(request->objective()));
          TANDEM_ASSIGN_OR_RETURN(OptimizerOptions optimizer, FromProto(request->optimizer()));
          TANDEM_ASSIGN_OR_RETURN(LossScaling loss_scaling,
                                  FromProto(request->loss_scaling(), entry->precision));
          return [=] {
            return server::StartTraining(
                *entry, objective, optimizer, {request->frozen().begin(), request->frozen().end()},
                loss_scaling, request->seed(), response->mutable_training());
          };
        });
  }

  Reactor* ForwardBackward(Context* context, const v1::ForwardBackwardRequest* request,
                           v1::ForwardBackwardResponse* response) override {
    return StartCall(forward_backward_, context, Place::kTraining,
                     [=, this]() -> absl::StatusOr<Work> {
                       TANDEM_ASSIGN_OR_RETURN(auto entry, deps_.models.Find(request->model()));
                       TANDEM_ASSIGN_OR_RETURN(Batch batch, FromProto(request->batch()));
                       return [=, this, batch = std::move(batch)] {
                         return server::ForwardBackward(*entry, batch, request->return_logprobs(),
                                                        deps_.metrics, response);
                       };
                     });
  }

  Reactor* OptimStep(Context* context, const v1::OptimStepRequest* request,
                     v1::OptimStepResponse* response) override {
    return StartCall(optim_step_, context, Place::kTraining, [=, this]() -> absl::StatusOr<Work> {
      TANDEM_ASSIGN_OR_RETURN(auto entry, deps_.models.Find(request->model()));
      return [=, this] {
        return server::OptimStep(*entry, request->parameters(), deps_.metrics, response);
      };
    });
  }

  Reactor* TrainStep(Context* context, const v1::TrainStepRequest* request,
                     v1::TrainStepResponse* response) override {
    return StartCall(train_step_, context, Place::kTraining,
                     [=, this] { return PrepareTrainStep(*request, response); });
  }

  grpc::ServerBidiReactor<v1::TrainStepRequest, v1::TrainStepResponse>* TrainStream(
      Context* context) override {
    return OrderedStream<v1::TrainStepRequest, v1::TrainStepResponse>::Start(
        train_stream_, context, Place::kTraining,
        [this](const v1::TrainStepRequest& request, v1::TrainStepResponse* response) {
          return PrepareTrainStep(request, response);
        },
        [](const absl::Status&, v1::TrainStepResponse*) { return false; });
  }

  Reactor* Evaluate(Context* context, const v1::EvaluateRequest* request,
                    v1::EvaluateResponse* response) override {
    return StartCall(evaluate_, context, Place::kTraining, [=, this]() -> absl::StatusOr<Work> {
      TANDEM_ASSIGN_OR_RETURN(auto entry, deps_.models.Find(request->model()));
      std::optional<Objective> objective;
      if (request->has_objective()) {
        TANDEM_ASSIGN_OR_RETURN(objective, FromProto(request->objective()));
      }
      TANDEM_ASSIGN_OR_RETURN(Batch batch, FromProto(request->batch()));
      return [=, this, batch = std::move(batch)] {
        return server::Evaluate(*entry, objective, batch, request->return_logprobs(), deps_.metrics,
                                response);
      };
    });
  }

  Reactor* EvaluatePredictions(Context* context, const v1::EvaluatePredictionsRequest* request,
                               v1::EvaluatePredictionsResponse* response) override {
    return StartCall(
        evaluate_predictions_, context, Place::kServing, [=, this]() -> absl::StatusOr<Work> {
          TANDEM_ASSIGN_OR_RETURN(PredictionsTask task, FromProto(*request));
          return [=, this, task = std::move(task)]() -> absl::Status {
            TANDEM_ASSIGN_OR_RETURN(const MetricReport report, EvaluateTask(task, metric_plans_));
            ToProto(report, response);
            return absl::OkStatus();
          };
        });
  }

  Reactor* GetTraining(Context* context, const v1::GetTrainingRequest* request,
                       v1::GetTrainingResponse* response) override {
    return StartCall(get_training_, context, Place::kServing, [=, this]() -> absl::StatusOr<Work> {
      TANDEM_ASSIGN_OR_RETURN(auto entry, deps_.models.Find(request->model()));
      return [=]() -> absl::Status {
        TANDEM_ASSIGN_OR_RETURN(const Trainer* trainer, TrainerOf(*entry));
        ToProto(*trainer, *entry->model, response->mutable_training());
        return absl::OkStatus();
      };
    });
  }

  Reactor* StopTraining(Context* context, const v1::StopTrainingRequest* request,
                        v1::StopTrainingResponse*) override {
    return StartCall(stop_training_, context, Place::kTraining,
                     [=, this]() -> absl::StatusOr<Work> {
                       TANDEM_ASSIGN_OR_RETURN(auto entry, deps_.models.Find(request->model()));
                       return [=]() -> absl::Status {
                         TANDEM_RETURN_IF_ERROR(TrainerOf(*entry).status());
                         entry->trainer = nullptr;
                         return absl::OkStatus();
                       };
                     });
  }

 private:
  absl::StatusOr<Work> PrepareTrainStep(const v1::TrainStepRequest& request,
                                        v1::TrainStepResponse* response) {
    TANDEM_ASSIGN_OR_RETURN(auto entry, deps_.models.Find(request.model()));
    TANDEM_ASSIGN_OR_RETURN(Batch batch, FromProto(request.batch()));
    return [=, this, &request, batch = std::move(batch)] {
      return server::TrainStep(*entry, batch, request.parameters(), deps_.metrics, response);
    };
  }

  const Dependencies deps_;
  const Method start_training_, forward_backward_, optim_step_, train_step_, train_stream_,
      evaluate_, evaluate_predictions_, get_training_, stop_training_;
  PlanCache metric_plans_{64};  // compute thread only
};

}  // namespace

std::unique_ptr<grpc::Service> MakeTrainingService(const Dependencies& dependencies) {
  return std::make_unique<TrainingService>(dependencies);
}

}  // namespace tandem::server

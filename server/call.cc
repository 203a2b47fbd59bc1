#include "server/call.h"

#include <grpcpp/server_context.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <utility>

#include "engine/exec/executor.h"
#include "server/memory_guard.h"
#include "server/metrics.h"
#include "server/status.h"

namespace tandem::server {
namespace {

// What a client told to come back may wait, in gRPC's own retry header.
constexpr const char* kRetryAfterMs = "100";

class UnaryCall final : public grpc::ServerUnaryReactor {
 public:
  UnaryCall(const Method& method, grpc::CallbackServerContext* context)
      : account_(method, context), context_(context) {}

  void Start(Place place, Prepare prepare) {
    absl::StatusOr<Work> work = CatchOutOfMemory(prepare);
    if (!work.ok()) return End(work.status());
    work_ = *std::move(work);
    const absl::Status submitted =
        SubmitCall(account_.method().dependencies, place, [this] { Run(); });
    if (submitted.ok()) return;  // another thread may have deleted this already
    if (absl::IsResourceExhausted(submitted)) {
      context_->AddTrailingMetadata("grpc-retry-pushback-ms", kRetryAfterMs);
    }
    End(submitted);
  }
  // The last thing that is done to the call: gRPC deletes it at any time from here on.
  void End(const absl::Status& status) {
    work_ = nullptr;
    Finish(account_.Finish(status));
  }

  void OnCancel() override { cancelled_.store(true, std::memory_order_relaxed); }
  void OnDone() override { delete this; }

 private:
  void Run() {
    if (cancelled_.load(std::memory_order_relaxed)) return End(account_.GoneStatus());
    const absl::Status status = CatchOutOfMemory(work_);
    End(status);
  }

  CallAccount account_;
  grpc::CallbackServerContext* const context_;
  Work work_;
  std::atomic<bool> cancelled_ = false;
};

}  // namespace

Method::Method(const Dependencies& deps, std::string method_name)
    : dependencies(deps), name(std::move(method_name)), metrics(deps.metrics.Method(name)) {}

CallAccount::CallAccount(const Method& method, grpc::CallbackServerContext* context)
    : method_(method),
      peer_(context->peer()),
      deadline_(context->deadline()),
      start_(std::chrono::steady_clock::now()) {
  method_.metrics.Started();
}

grpc::Status CallAccount::Finish(const absl::Status& status) {
  const double seconds = SecondsSinceStart();
  method_.metrics.Finished(status.code(), seconds);
  grpc::Status result = ToGrpc(status);
  if (!result.ok()) {
    const bool our_fault =
        absl::IsInternal(status) || absl::IsUnknown(status) || absl::IsDataLoss(status);
    spdlog::log(our_fault ? spdlog::level::err : spdlog::level::debug,
                "{} from {} failed after {:.3f} s: {} {}", method_.name, peer_, seconds,
                absl::StatusCodeToString(status.code()), result.error_message());
  } else {
    spdlog::trace("{} from {}: {:.6f} s", method_.name, peer_, seconds);
  }
  return result;
}

absl::Status CallAccount::GoneStatus() const {
  if (std::chrono::system_clock::now() >= deadline_) {
    return absl::DeadlineExceededError("the deadline passed before the answer was ready");
  }
  return absl::CancelledError("the client cancelled the call");
}

double CallAccount::SecondsSinceStart() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

absl::Status SubmitCall(const Dependencies& dependencies, Place place, std::function<void()> task) {
  if (place == Place::kHere) {
    task();
    return absl::OkStatus();
  }
  Executor& executor = place == Place::kLoader ? dependencies.loader : dependencies.compute;
  const auto lane =
      place == Place::kTraining ? Executor::Lane::kTraining : Executor::Lane::kServing;
  const char* lane_name = place == Place::kTraining ? "training" : "serving";
  if (executor.QueueDepth(lane) >= dependencies.max_queue) {
    dependencies.metrics.Rejected(Metrics::Rejection::kQueueFull);
    return ResourceExhausted("the ", place == Place::kLoader ? "loading" : lane_name,
                             " queue is full: ", dependencies.max_queue,
                             " calls wait; try again later");
  }
  if (place == Place::kLoader) return executor.Submit(lane, std::move(task));
  const auto queued = std::chrono::steady_clock::now();
  return executor.Submit(
      lane, [task = std::move(task), queued, lane_name, &metrics = dependencies.metrics] {
        const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - queued;
        metrics.Queued(lane_name, waited.count());
        task();
      });
}

grpc::ServerUnaryReactor* StartCall(const Method& method, grpc::CallbackServerContext* context,
                                    Place place, Prepare prepare) {
  auto* call = new UnaryCall(method, context);
  call->Start(place, std::move(prepare));
  return call;
}

grpc::ServerUnaryReactor* AnswerNow(const Method& method, grpc::CallbackServerContext* context,
                                    Work work) {
  auto* call = new UnaryCall(method, context);
  call->End(work());
  return call;
}

}  // namespace tandem::server

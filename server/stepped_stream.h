// A server stream that computes its messages step by step, each step a task of its own, so that
// long work takes turns with everybody else's.
//
// The next step begins when the message before it was written: a client that does not read holds up
// its own work only. When the client goes away the step that computes now ends, and none begins
// after it. It has no lock: at any time either a step or a write is under way, never both.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <memory>
#include <utility>

#include "engine/base/error.h"
#include "engine/exec/executor.h"
#include "server/call.h"
#include "server/memory_guard.h"

namespace tandem::server {

template <typename Response>
class SteppedStream final : public grpc::ServerWriteReactor<Response>,
                            public std::enable_shared_from_this<SteppedStream<Response>> {
 public:
  enum class Outcome : uint8_t { kNoMessage, kMessage, kLastMessage };
  // On the compute thread: may fill the response.
  using Step = absl::AnyInvocable<absl::StatusOr<Outcome>(Response*)>;
  // Checks the request, on gRPC's thread.
  using Prepare = absl::AnyInvocable<absl::StatusOr<Step>()>;

  static SteppedStream* Start(const Method& method, grpc::CallbackServerContext* context,
                              Prepare prepare) {
    auto stream = std::shared_ptr<SteppedStream>(new SteppedStream(method, context));
    stream->self_ = stream;
    absl::StatusOr<Step> step = CatchOutOfMemory(prepare);
    absl::Status status = step.status();
    if (status.ok()) {
      stream->step_ = *std::move(step);
      status = SubmitCall(method.dependencies, Place::kServing, [stream] { stream->Run(); });
    }
    if (!status.ok()) stream->End(status);
    return stream.get();
  }

  void OnWriteDone(bool ok) override {
    if (!ok) return End(account_.GoneStatus());
    if (last_) return End(absl::OkStatus());
    Continue();
  }
  void OnCancel() override { gone_.store(true, std::memory_order_relaxed); }
  void OnDone() override { const std::shared_ptr<SteppedStream> self = std::move(self_); }

 private:
  SteppedStream(const Method& method, grpc::CallbackServerContext* context)
      : account_(method, context) {}

  void Continue() {
    // Not SubmitCall: work that has begun always finds room.
    const absl::Status status = account_.method().dependencies.compute.Submit(
        Executor::Lane::kServing, [stream = this->shared_from_this()] { stream->Run(); });
    if (!status.ok()) End(status);
  }

  // Compute thread.
  void Run() {
    if (gone_.load(std::memory_order_relaxed)) return End(account_.GoneStatus());
    response_.Clear();
    const absl::StatusOr<Outcome> outcome = CatchOutOfMemory([&] { return step_(&response_); });
    if (!outcome.ok()) return End(outcome.status());
    if (*outcome == Outcome::kNoMessage) return Continue();
    last_ = *outcome == Outcome::kLastMessage;
    this->StartWrite(&response_);
  }

  // gRPC may call OnDone at once, from another thread: whoever calls this keeps the stream alive.
  void End(const absl::Status& status) {
    const auto self = this->shared_from_this();
    this->Finish(account_.Finish(status));
  }

  CallAccount account_;
  Step step_;                            // compute thread, after Start
  Response response_;                    // of the step that runs, or of the write under way
  bool last_ = false;                    // set before that write
  std::shared_ptr<SteppedStream> self_;  // until OnDone
  std::atomic<bool> gone_ = false;
};

}  // namespace tandem::server

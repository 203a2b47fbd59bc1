// A bidirectional stream with one response for each request, in order.
//
// It reads ahead by at most kReadAhead requests that are not answered yet; then the client waits
// (HTTP/2 flow control). One request at a time is prepared and computed, as a unary call would be.
// When the client goes away, what computes now ends, and nothing after it begins. A stream of its
// own state keeps it in its Prepare: requests are prepared, and their work is done, one at a time
// and in order. Lock contract: one mutex guards all state; no work runs under it.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "engine/base/error.h"
#include "server/call.h"
#include "server/memory_guard.h"

namespace tandem::server {

inline constexpr size_t kReadAhead = 4;

template <typename Request, typename Response>
class OrderedStream final : public grpc::ServerBidiReactor<Request, Response> {
 public:
  // Checks the request and returns the work that fills the response; both outlive the work.
  using Prepare = std::function<absl::StatusOr<Work>(const Request&, Response*)>;
  // Turns a request's error into its response, which may be partly filled; false: the stream ends
  // with the error.
  using OnError = std::function<bool(const absl::Status&, Response*)>;

  static OrderedStream* Start(const Method& method, grpc::CallbackServerContext* context,
                              Place place, Prepare prepare, OnError on_error) {
    auto stream = std::shared_ptr<OrderedStream>(
        new OrderedStream(method, context, place, std::move(prepare), std::move(on_error)));
    stream->self_ = stream;
    const std::lock_guard lock(stream->mutex_);
    stream->Advance();
    return stream.get();
  }

  void OnReadDone(bool ok) override {
    std::shared_ptr<Turn> turn;
    if (ok) {  // reads come one at a time, so this needs no lock
      turn = std::make_shared<Turn>();
      turn->request = std::move(incoming_);
      turn->work = CatchOutOfMemory([&] { return prepare_(turn->request, &turn->response); });
      if (place_ == Place::kHere && turn->work.ok()) turn->done = CatchOutOfMemory(*turn->work);
    }
    const std::lock_guard lock(mutex_);
    reading_ = false;
    reads_done_ = !ok;
    if (ok) pending_.push_back(std::move(turn));
    Advance();
  }
  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(mutex_);
    writing_ = false;
    answers_.pop_front();
    if (!ok && !gone_) gone_ = account_.GoneStatus();
    Advance();
  }
  void OnCancel() override {
    const std::lock_guard lock(mutex_);
    if (!gone_) gone_ = account_.GoneStatus();
    Advance();
  }
  void OnDone() override {
    // Work that computes now may hold this for a little longer, but finds the stream ended.
    std::shared_ptr<OrderedStream> self = std::move(self_);
  }

 private:
  // A request, its response, and the work between them or the request's error.
  struct Turn {
    Request request;
    Response response;
    absl::StatusOr<Work> work = absl::UnknownError("not prepared");
    std::optional<absl::Status> done;  // of the work, if it was done as the request was read
  };

  OrderedStream(const Method& method, grpc::CallbackServerContext* context, Place place,
                Prepare prepare, OnError on_error)
      : account_(method, context),
        place_(place),
        prepare_(std::move(prepare)),
        on_error_(std::move(on_error)) {}

  // Starts whatever can be started. Under mutex_.
  void Advance() {
    if (finished_) return;
    if (gone_ || failure_) pending_.clear();
    while (!gone_ && !failure_ && turn_ == nullptr && !pending_.empty()) BeginTurn();
    if (!writing_) {
      const bool answered = turn_ == nullptr && pending_.empty() && answers_.empty();
      if (gone_) return End(*gone_);
      if (answered && failure_) return End(*failure_);
      if (answered && reads_done_) return End(absl::OkStatus());
      if (!answers_.empty()) {
        writing_ = true;
        this->StartWrite(&answers_.front());
      }
    }
    const size_t unanswered = pending_.size() + (turn_ != nullptr ? 1 : 0) + answers_.size();
    if (!reading_ && !reads_done_ && !gone_ && !failure_ && unanswered < kReadAhead) {
      reading_ = true;
      incoming_ = Request();
      this->StartRead(&incoming_);
    }
  }

  void End(const absl::Status& status) {
    finished_ = true;
    this->Finish(account_.Finish(status));
  }

  // Hands the next request to its place. Under mutex_.
  void BeginTurn() {
    turn_ = std::move(pending_.front());
    pending_.pop_front();
    if (turn_->done) return EndTurn(*turn_->done);
    absl::Status status = turn_->work.status();
    if (status.ok()) {
      status = SubmitCall(account_.method().dependencies, place_,
                          [self = self_, turn = turn_] { self->Run(*turn); });
    }
    if (!status.ok()) EndTurn(status);
  }

  // On the executor's thread.
  void Run(Turn& turn) {
    {
      const std::lock_guard lock(mutex_);
      if (gone_) {
        turn_ = nullptr;
        return;
      }
    }
    const absl::Status status = CatchOutOfMemory(*turn.work);
    const std::lock_guard lock(mutex_);
    EndTurn(status);
    Advance();
  }

  // Under mutex_.
  void EndTurn(const absl::Status& status) {
    const std::shared_ptr<Turn> turn = std::move(turn_);
    turn_ = nullptr;
    if (!status.ok()) {
      if (!on_error_(status, &turn->response)) {
        failure_ = status;
        return;
      }
    }
    answers_.push_back(std::move(turn->response));
  }

  CallAccount account_;
  const Place place_;
  const Prepare prepare_;
  const OnError on_error_;
  std::shared_ptr<OrderedStream> self_;  // until OnDone
  Request incoming_;                     // of the read that is under way
  std::mutex mutex_;
  std::deque<std::shared_ptr<Turn>> pending_;  // read, not begun
  std::shared_ptr<Turn> turn_;                 // computed now
  std::deque<Response> answers_;               // the first is being written if writing_
  bool reading_ = false, writing_ = false, reads_done_ = false, finished_ = false;
  std::optional<absl::Status> gone_;     // the client is: end at once
  std::optional<absl::Status> failure_;  // of a request: end after the answers before it
};

}  // namespace tandem::server

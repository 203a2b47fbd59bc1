// The one way that RPCs run: counted, timed, checked, logged, and never computing on gRPC's
// threads.
//
// A handler prepares on gRPC's thread (parse, check) and returns the work; StartCall submits it to
// the executor and finishes the call with its status. A call whose client is gone, or whose
// deadline has passed, before its turn comes is not computed. Each call is accounted exactly once,
// at Finish.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <chrono>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "server/dependencies.h"

namespace grpc {
class CallbackServerContext;
}

namespace tandem::server {

class MethodMetrics;

// One RPC method of a service, made once.
class Method {
 public:
  Method(const Dependencies& dependencies, std::string name);
  const Dependencies& dependencies;
  const std::string name;
  MethodMetrics& metrics;
};

// The account of one call; unary calls and streams own one.
class CallAccount {
 public:
  CallAccount(const Method& method, grpc::CallbackServerContext* context);
  // Counts, times and logs the call, and maps its status. Call once, just before the reactor's
  // Finish.
  grpc::Status Finish(const absl::Status& status);
  // Why there is no use in computing, if the client is gone: DEADLINE_EXCEEDED or CANCELLED.
  absl::Status GoneStatus() const;
  double SecondsSinceStart() const;
  const Method& method() const { return method_; }

 private:
  const Method& method_;
  const std::string peer_;
  const std::chrono::system_clock::time_point deadline_;
  const std::chrono::steady_clock::time_point start_;
};

// Where work is done: on the compute thread, before or after other clients' training; on the
// loader's; or at once, on gRPC's own: for what takes less time than a turn in a queue.
enum class Place : uint8_t { kServing, kTraining, kLoader, kHere };
using Work = absl::AnyInvocable<absl::Status()>;
using Prepare = absl::AnyInvocable<absl::StatusOr<Work>()>;

// Submits to that place; RESOURCE_EXHAUSTED when as many calls as allowed wait there. `task` must
// finish its call whatever happens. kHere: runs it before returning.
absl::Status SubmitCall(const Dependencies& dependencies, Place place, std::function<void()> task);

// A unary call: `prepare` now, the work that it returns in its place.
grpc::ServerUnaryReactor* StartCall(const Method& method, grpc::CallbackServerContext* context,
                                    Place place, Prepare prepare);
// A unary call that only looks something up: all of it now.
grpc::ServerUnaryReactor* AnswerNow(const Method& method, grpc::CallbackServerContext* context,
                                    Work work);

}  // namespace tandem::server

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>

#include <chrono>
#include <cstdio>

#include "client/command/command.h"

namespace tandem::command {
namespace {

// grpc.health.v1.Health/Check for the whole server, without generated code: an empty
// HealthCheckRequest, and of the response its only field, the status (1: SERVING).
absl::Status CheckHealth(const Session& session) {
  const auto channel = grpc::CreateChannel(session.server, grpc::InsecureChannelCredentials());
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(3));
  grpc::CompletionQueue queue;
  const grpc::ByteBuffer request(nullptr, 0);
  const auto call =
      stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", request, &queue);
  call->StartCall();
  grpc::ByteBuffer response;
  grpc::Status status;
  call->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  if (!status.ok()) {
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  }
  std::vector<grpc::Slice> slices;
  std::string bytes;
  if (!response.Dump(&slices).ok()) return Internal("the health response cannot be read");
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  if (bytes != std::string("\x08\x01", 2)) return absl::UnavailableError("not serving");
  std::printf("serving\n");
  return absl::OkStatus();
}

}  // namespace

void AddHealthCommand(CLI::App& app, Session& session) {
  app.add_subcommand("health", "Exit status 0 if the server is serving (grpc.health.v1)")
      ->callback([&session] { session.Run([&] { return CheckHealth(session); }); });
}

}  // namespace tandem::command

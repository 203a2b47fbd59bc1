// From the engine's errors to the wire's.
#pragma once

#include <grpcpp/support/status.h>

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace tandem::server {

// gRPC sends the message in a header, and clients limit those to 8 KiB in all.
inline constexpr size_t kMaxMessageBytes = 2048;

// The same code, which absl and gRPC share, and a Printable message.
grpc::Status ToGrpc(const absl::Status& status);

// Text that may hold bytes from outside, safe for a log line and a header: control characters and
// what is not UTF-8 become '?', and what exceeds kMaxMessageBytes is cut.
std::string Printable(std::string_view text);

}  // namespace tandem::server

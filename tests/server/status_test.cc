#include "server/status.h"

#include <gtest/gtest.h>

#include <string>

namespace tandem::server {
namespace {

TEST(ToGrpc, KeepsEveryCode) {
  EXPECT_TRUE(ToGrpc(absl::OkStatus()).ok());
  const std::pair<absl::StatusCode, grpc::StatusCode> codes[] = {
      {absl::StatusCode::kCancelled, grpc::StatusCode::CANCELLED},
      {absl::StatusCode::kUnknown, grpc::StatusCode::UNKNOWN},
      {absl::StatusCode::kInvalidArgument, grpc::StatusCode::INVALID_ARGUMENT},
      {absl::StatusCode::kDeadlineExceeded, grpc::StatusCode::DEADLINE_EXCEEDED},
      {absl::StatusCode::kNotFound, grpc::StatusCode::NOT_FOUND},
      {absl::StatusCode::kAlreadyExists, grpc::StatusCode::ALREADY_EXISTS},
      {absl::StatusCode::kPermissionDenied, grpc::StatusCode::PERMISSION_DENIED},
      {absl::StatusCode::kResourceExhausted, grpc::StatusCode::RESOURCE_EXHAUSTED},
      {absl::StatusCode::kFailedPrecondition, grpc::StatusCode::FAILED_PRECONDITION},
      {absl::StatusCode::kAborted, grpc::StatusCode::ABORTED},
      {absl::StatusCode::kOutOfRange, grpc::StatusCode::OUT_OF_RANGE},
      {absl::StatusCode::kUnimplemented, grpc::StatusCode::UNIMPLEMENTED},
      {absl::StatusCode::kInternal, grpc::StatusCode::INTERNAL},
      {absl::StatusCode::kUnavailable, grpc::StatusCode::UNAVAILABLE},
      {absl::StatusCode::kDataLoss, grpc::StatusCode::DATA_LOSS},
      {absl::StatusCode::kUnauthenticated, grpc::StatusCode::UNAUTHENTICATED}};
  for (const auto& [from, to] : codes) {
    const grpc::Status status = ToGrpc(absl::Status(from, "why"));
    EXPECT_EQ(status.error_code(), to);
    EXPECT_EQ(status.error_message(), "why");
  }
}

TEST(Printable, KeepsText) {
  EXPECT_EQ(Printable("plain text, h\xC3\xA4user \xE2\x82\xAC \xF0\x9F\x98\x80"),
            "plain text, h\xC3\xA4user \xE2\x82\xAC \xF0\x9F\x98\x80");
}

TEST(Printable, ReplacesControlsAndWhatIsNotUtf8) {
  EXPECT_EQ(Printable("a\nb\x1b[31m\x7f"), "a?b?[31m?");
  EXPECT_EQ(Printable("\xFF\xC3"), "??");            // stray byte, cut sequence
  EXPECT_EQ(Printable("\xC0\xAF"), "??");            // overlong
  EXPECT_EQ(Printable("\xED\xA0\x80"), "???");       // surrogate
  EXPECT_EQ(Printable("\xF4\x90\x80\x80"), "????");  // beyond U+10FFFF
  EXPECT_EQ(Printable(std::string("a\0b", 3)), "a?b");
}

TEST(Printable, CutsWithoutSplittingACharacter) {
  std::string text;
  while (text.size() < 3 * kMaxMessageBytes) text += "\xE2\x82\xAC";
  const std::string cut = Printable(text);
  EXPECT_LE(cut.size(), kMaxMessageBytes);
  EXPECT_GT(cut.size(), kMaxMessageBytes - 8);
  EXPECT_EQ(cut.substr(cut.size() - 6), "\xE2\x82\xAC...");
}

}  // namespace
}  // namespace tandem::server

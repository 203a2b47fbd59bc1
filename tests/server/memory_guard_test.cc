#include "server/memory_guard.h"

#include <gtest/gtest.h>

#include <vector>

namespace tandem::server {
namespace {

TEST(CatchOutOfMemory, PassesResultsOn) {
  EXPECT_TRUE(CatchOutOfMemory([] { return absl::OkStatus(); }).ok());
  EXPECT_EQ(CatchOutOfMemory([] { return InvalidArgument("x"); }).message(), "x");
  EXPECT_EQ(*CatchOutOfMemory([] { return absl::StatusOr<int>(7); }), 7);
}

TEST(CatchOutOfMemory, FailedAllocationsBecomeErrors) {
  const absl::Status impossible = CatchOutOfMemory([] {
    const std::vector<char> much(size_t{1} << 60);
    return much.empty() ? absl::OkStatus() : absl::UnknownError("allocated");
  });
  EXPECT_EQ(impossible.code(), absl::StatusCode::kResourceExhausted);
  const absl::Status too_long = CatchOutOfMemory([] {
    std::vector<char> much;
    much.reserve(~size_t{0});
    return absl::OkStatus();
  });
  EXPECT_EQ(too_long.code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace tandem::server

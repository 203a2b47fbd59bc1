#include "engine/exec/executor.h"

#include <gtest/gtest.h>

#include <atomic>
#include <string>

namespace tandem {
namespace {

using Lane = Executor::Lane;

TEST(ExecutorTest, RunsTasksOfOneLaneInOrder) {
  std::string order;
  {
    Executor executor(100, 1);
    for (char c = 'a'; c <= 'e'; ++c) {
      ASSERT_TRUE(executor.Submit(Lane::kServing, [&order, c] { order += c; }).ok());
    }
  }
  EXPECT_EQ(order, "abcde");
}

TEST(ExecutorTest, RefusesWhatDoesNotFit) {
  Executor executor(2, 1);
  std::atomic<bool> release{false}, started{false};
  ASSERT_TRUE(executor
                  .Submit(Lane::kServing,
                          [&] {
                            started = true;
                            while (!release) {
                            }
                          })
                  .ok());
  while (!started) {
  }
  EXPECT_TRUE(executor.Submit(Lane::kServing, [] {}).ok());
  EXPECT_TRUE(executor.Submit(Lane::kServing, [] {}).ok());
  const absl::Status full = executor.Submit(Lane::kServing, [] {});
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(std::string(full.message()).find("serving"), std::string::npos);
  EXPECT_TRUE(executor.Submit(Lane::kTraining, [] {}).ok()) << "the lanes have a bound each";
  release = true;
}

// A decode loop that submits its next step from the running one shares the thread with long
// training tasks by time, not by count. Time is a counter that the tasks advance.
TEST(ExecutorTest, LanesShareByTime) {
  std::atomic<double> now{0};
  std::atomic<bool> go{false};
  std::atomic<int> serving{0};
  int training = 0;
  std::string order;
  {
    Executor executor(100, 1, [&] { return now.load(); });
    std::function<void()> decode = [&] {
      now = now + 1;
      order += 's';
      if (++serving < 40) {
        ASSERT_TRUE(executor.Submit(Lane::kServing, decode).ok());
      }
    };
    ASSERT_TRUE(executor
                    .Submit(Lane::kTraining,
                            [&] {
                              while (!go) {
                              }
                            })
                    .ok());
    for (int i = 0; i < 4; ++i) {
      ASSERT_TRUE(executor
                      .Submit(Lane::kTraining,
                              [&] {
                                now = now + 10;
                                order += 'T';
                                ++training;
                              })
                      .ok());
    }
    ASSERT_TRUE(executor.Submit(Lane::kServing, decode).ok());
    go = true;
    while (serving < 40) {
      ASSERT_TRUE(executor.RunAndWait(Lane::kTraining, [] { return absl::OkStatus(); }).ok());
    }
  }
  EXPECT_EQ(serving, 40);
  EXPECT_EQ(training, 4);
  // About ten steps of 1 s between two training tasks of 10 s.
  const size_t first = order.find('T');
  const size_t second = order.find('T', first + 1);
  EXPECT_GE(second - first, 9u) << order;
  EXPECT_LE(second - first, 12u) << order;
}

TEST(ExecutorTest, RunAndWaitReturnsTheResultAndCountsTime) {
  Executor executor(4, 1);
  EXPECT_EQ(executor.RunAndWait(Lane::kTraining, [] { return absl::AbortedError("x"); }).code(),
            absl::StatusCode::kAborted);
  EXPECT_GE(executor.BusySeconds(Lane::kTraining), 0);
  EXPECT_EQ(executor.QueueDepth(Lane::kTraining), 0);
}

}  // namespace
}  // namespace tandem

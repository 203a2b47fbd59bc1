#include "server/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "engine/exec/executor.h"
#include "tests/server/http_get.h"

namespace tandem::server {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(Metrics, CountsCallsByMethodAndCode) {
  Metrics metrics;
  MethodMetrics& method = metrics.Method("Generate");
  EXPECT_EQ(&method, &metrics.Method("Generate"));
  EXPECT_THAT(metrics.Text(),
              HasSubstr("tandem_requests_total{code=\"OK\",method=\"Generate\"} 0"));
  method.Started();
  method.Started();
  EXPECT_THAT(metrics.Text(), HasSubstr("tandem_requests_in_flight{method=\"Generate\"} 2"));
  method.Finished(absl::StatusCode::kOk, 0.003);
  method.Finished(absl::StatusCode::kInvalidArgument, 0.03);
  const std::string text = metrics.Text();
  EXPECT_THAT(text, HasSubstr("tandem_requests_in_flight{method=\"Generate\"} 0"));
  EXPECT_THAT(text, HasSubstr("tandem_requests_total{code=\"OK\",method=\"Generate\"} 1"));
  EXPECT_THAT(text,
              HasSubstr("tandem_requests_total{code=\"INVALID_ARGUMENT\",method=\"Generate\"} 1"));
  EXPECT_THAT(text, HasSubstr("tandem_request_duration_seconds_count{method=\"Generate\"} 2"));
  EXPECT_THAT(
      text,
      HasSubstr("tandem_request_duration_seconds_bucket{method=\"Generate\",le=\"0.005\"} 1"));
}

TEST(Metrics, EveryCodeHasItsName) {
  Metrics metrics;
  MethodMetrics& method = metrics.Method("M");
  for (int code = 0; code <= 16; ++code) {
    method.Started();
    method.Finished(static_cast<absl::StatusCode>(code), 0);
    EXPECT_THAT(
        metrics.Text(),
        HasSubstr("code=\"" + absl::StatusCodeToString(static_cast<absl::StatusCode>(code)) +
                  "\",method=\"M\"} 1"));
  }
}

TEST(Metrics, CountsFromManyThreads) {
  Metrics metrics;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) {
        MethodMetrics& method = metrics.Method("M");
        method.Started();
        method.Finished(absl::StatusCode::kAborted, 0.001);
        metrics.Model("m")->GeneratedToken();
      }
    });
  }
  const auto keep = metrics.Model("m");
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(metrics.Text(),
              HasSubstr("tandem_requests_total{code=\"ABORTED\",method=\"M\"} 4000"));
  EXPECT_THAT(metrics.Text(), HasSubstr("tandem_requests_in_flight{method=\"M\"} 0"));
}

TEST(Metrics, AModelsSeriesGoWithIt) {
  Metrics metrics;
  std::shared_ptr<ModelMetrics> model = metrics.Model("m");
  EXPECT_EQ(model, metrics.Model("m"));
  model->WeightsVersion(7);
  EXPECT_THAT(metrics.Text(), HasSubstr("tandem_weights_version{model=\"m\"} 7"));
  // Nothing of training or generation before either happened.
  EXPECT_THAT(metrics.Text(), Not(HasSubstr("tandem_train_loss{")));
  EXPECT_THAT(metrics.Text(), Not(HasSubstr("tandem_generation_tokens_total{")));
  model->Trained(
      {.seconds = 0.2, .loss = 1.5, .grad_norm = 3, .learning_rate = 0.01, .tokens = 64});
  model->Trained({.seconds = 0.2, .loss = 1.5, .loss_scale = 512, .skipped = true});
  model->PromptTokens(5);
  model->FirstToken(0.02);
  model->NextToken(0.002);
  model->GeneratedToken();
  model->GenerationFinished(ModelMetrics::Finish::kLength);
  model->KvCacheUsage(0.25);
  model->Loaded(0.125);
  const std::string text = metrics.Text();
  for (const char* line :
       {"tandem_train_steps_total{model=\"m\"} 1", "tandem_steps_skipped_total{model=\"m\"} 1",
        "tandem_loss_scale{model=\"m\"} 512", "tandem_train_loss{model=\"m\"} 1.5",
        "tandem_train_tokens_total{model=\"m\"} 64",
        "tandem_train_step_duration_seconds_count{model=\"m\"} 2",
        "tandem_prompt_tokens_total{model=\"m\"} 5",
        "tandem_generation_tokens_total{model=\"m\"} 1",
        "tandem_time_to_first_token_seconds_count{model=\"m\"} 1",
        "tandem_inter_token_latency_seconds_count{model=\"m\"} 1",
        "tandem_generations_finished_total{model=\"m\",reason=\"length\"} 1",
        "tandem_kv_cache_usage_ratio{model=\"m\"} 0.25",
        "tandem_model_load_duration_seconds{model=\"m\"} 0.125"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
  model = nullptr;
  EXPECT_THAT(metrics.Text(), Not(HasSubstr("model=\"m\"")));
  EXPECT_NE(metrics.Model("m"), nullptr);
}

TEST(Metrics, ShowsTheExecutorAndTheProcess) {
  Metrics metrics;
  {
    Executor executor(4);
    ASSERT_TRUE(
        executor.RunAndWait(Executor::Lane::kTraining, [] { return absl::OkStatus(); }).ok());
    metrics.Watch(&executor);
    EXPECT_THAT(metrics.Text(), HasSubstr("tandem_queue_depth{lane=\"serving\"} 0"));
    EXPECT_THAT(metrics.Text(), HasSubstr("tandem_compute_seconds_total{lane=\"training\"}"));
    metrics.Watch(nullptr);
  }
  const std::string text = metrics.Text();
  EXPECT_THAT(text, Not(HasSubstr("tandem_queue_depth")));
  for (const char* name : {"process_cpu_seconds_total ", "process_resident_memory_bytes ",
                           "process_start_time_seconds ", "process_open_fds ", "process_max_fds ",
                           "tandem_build_info{"}) {
    EXPECT_THAT(text, HasSubstr(std::string("\n") + name));
  }
}

TEST(Metrics, ServesThemOverHttp) {
  Metrics metrics;
  const absl::StatusOr<int> port = metrics.Listen("127.0.0.1:0");
  ASSERT_TRUE(port.ok()) << port.status();
  metrics.Method("ModelInfer");
  const std::string answer = HttpGet(*port, "/metrics");
  EXPECT_THAT(answer, HasSubstr("200 OK"));
  EXPECT_THAT(answer, HasSubstr("tandem_requests_total{code=\"OK\",method=\"ModelInfer\"} 0"));
  EXPECT_THAT(answer, HasSubstr("process_resident_memory_bytes"));
  Metrics second;
  const absl::StatusOr<int> taken = second.Listen("127.0.0.1:" + std::to_string(*port));
  EXPECT_EQ(taken.status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace tandem::server

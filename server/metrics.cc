#include "server/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <exception>
#include <sstream>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/metrics_collectors.h"

namespace tandem::server {
namespace {

using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Histogram;
using prometheus::Registry;

// 0.25 ms to 60 s.
const Histogram::BucketBoundaries& Seconds() {
  static const auto* const buckets =
      new Histogram::BucketBoundaries{0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                      0.25,    0.5,    1,     2.5,    5,     10,   25,    60};
  return *buckets;
}

Family<Counter>& Counters(Registry& registry, const char* name, const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry);
}
Family<Gauge>& Gauges(Registry& registry, const char* name, const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry);
}
Family<Histogram>& Histograms(Registry& registry, const char* name, const char* help) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(registry);
}

const char* CodeName(absl::StatusCode code) {
  static constexpr const char* kNames[] = {"OK",
                                           "CANCELLED",
                                           "UNKNOWN",
                                           "INVALID_ARGUMENT",
                                           "DEADLINE_EXCEEDED",
                                           "NOT_FOUND",
                                           "ALREADY_EXISTS",
                                           "PERMISSION_DENIED",
                                           "RESOURCE_EXHAUSTED",
                                           "FAILED_PRECONDITION",
                                           "ABORTED",
                                           "OUT_OF_RANGE",
                                           "UNIMPLEMENTED",
                                           "INTERNAL",
                                           "UNAVAILABLE",
                                           "DATA_LOSS",
                                           "UNAUTHENTICATED"};
  return kNames[static_cast<size_t>(code)];
}

constexpr const char* kFinishNames[] = {"stop", "length", "cancelled", "error"};
constexpr const char* kPhaseNames[] = {"forward", "backward", "optimizer", "sample"};
constexpr const char* kRejectionNames[] = {"queue_full", "slow_reader"};

}  // namespace

struct MetricFamilies {
  explicit MetricFamilies(Registry& r)
      : requests(Counters(r, "tandem_requests_total", "Finished calls by method and status code")),
        in_flight(Gauges(r, "tandem_requests_in_flight", "Calls that have not finished")),
        request_duration(Histograms(r, "tandem_request_duration_seconds",
                                    "From a call's arrival to its last answer")),
        queue_duration(
            Histograms(r, "tandem_queue_duration_seconds", "Wait for the compute thread")),
        compute_duration(Histograms(r, "tandem_compute_duration_seconds",
                                    "Time on the compute thread by phase")),
        rejected(Counters(r, "tandem_rejected_total", "Calls refused to bound memory")),
        first_token(Histograms(r, "tandem_time_to_first_token_seconds",
                               "From a Generate call's arrival to its first token")),
        inter_token(
            Histograms(r, "tandem_inter_token_latency_seconds", "Between two tokens of a sample")),
        prompt_tokens(Counters(r, "tandem_prompt_tokens_total", "Tokens of prompts")),
        generation_tokens(Counters(r, "tandem_generation_tokens_total", "Tokens sampled")),
        finished(Counters(r, "tandem_generations_finished_total", "Samples by why they ended")),
        kv_cache_usage(Gauges(r, "tandem_kv_cache_usage_ratio", "Pages in use, of all")),
        train_steps(Counters(r, "tandem_train_steps_total", "Optimizer steps applied")),
        steps_skipped(Counters(r, "tandem_steps_skipped_total",
                               "Optimizer steps skipped for gradients that were not finite")),
        train_step_duration(Histograms(r, "tandem_train_step_duration_seconds",
                                       "Forward, backward and optimizer of a step")),
        train_tokens(Counters(r, "tandem_train_tokens_total",
                              "Trained positions of sequences, or elements of the loss")),
        train_loss(Gauges(r, "tandem_train_loss", "Loss of the last step")),
        grad_norm(Gauges(r, "tandem_grad_norm", "Gradient norm of the last step, before clipping")),
        learning_rate(Gauges(r, "tandem_learning_rate", "Learning rate of the last step")),
        loss_scale(Gauges(r, "tandem_loss_scale",
                          "What the loss of the next step is multiplied by for its gradients")),
        weights_version(Gauges(r, "tandem_weights_version", "Version of a model's weights")),
        load_duration(Gauges(r, "tandem_model_load_duration_seconds", "Time to load the model")) {
    Gauges(r, "tandem_build_info", "Always 1; the labels say what was built")
        .Add({{"version", TANDEM_VERSION}, {"compiler", __VERSION__}})
        .Set(1);
    for (int i = 0; i < 4; ++i) {
      phases[i] = &compute_duration.Add({{"phase", kPhaseNames[i]}}, Seconds());
    }
    for (int i = 0; i < 2; ++i) rejections[i] = &rejected.Add({{"reason", kRejectionNames[i]}});
    for (int i = 0; i < 2; ++i) {
      lanes[i] = &queue_duration.Add({{"lane", i == 0 ? "serving" : "training"}}, Seconds());
    }
  }

  Family<Counter>& requests;
  Family<Gauge>& in_flight;
  Family<Histogram>&request_duration, &queue_duration, &compute_duration;
  Family<Counter>& rejected;
  Family<Histogram>&first_token, &inter_token;
  Family<Counter>&prompt_tokens, &generation_tokens, &finished;
  Family<Gauge>& kv_cache_usage;
  Family<Counter>&train_steps, &steps_skipped;
  Family<Histogram>& train_step_duration;
  Family<Counter>& train_tokens;
  Family<Gauge>&train_loss, &grad_norm, &learning_rate, &loss_scale, &weights_version,
      &load_duration;
  Histogram* phases[4];
  Counter* rejections[2];
  Histogram* lanes[2];
};

MethodMetrics::MethodMetrics(MetricFamilies& families, std::string method)
    : families_(families),
      method_(std::move(method)),
      in_flight_(&families.in_flight.Add({{"method", method_}})),
      duration_(&families.request_duration.Add({{"method", method_}}, Seconds())) {
  // From the start, so that a rate over the first call is right.
  by_code_[0] = &families.requests.Add({{"method", method_}, {"code", "OK"}});
}

void MethodMetrics::Started() { in_flight_->Increment(); }

void MethodMetrics::Finished(absl::StatusCode code, double seconds) {
  auto& slot = by_code_[static_cast<size_t>(code)];
  Counter* counter = slot.load(std::memory_order_acquire);
  if (counter == nullptr) {  // Add returns the one that is there if another thread was first
    counter = &families_.requests.Add({{"method", method_}, {"code", CodeName(code)}});
    slot.store(counter, std::memory_order_release);
  }
  counter->Increment();
  in_flight_->Decrement();
  duration_->Observe(seconds);
}

// Made lazily by kind: a model that is never trained shows no loss of 0.
struct ModelMetrics::Series {
  Series(MetricFamilies& f, std::string name) : families(f), model(std::move(name)) {}
  ~Series() {
    Drop(families.first_token, first_token);
    Drop(families.inter_token, inter_token);
    Drop(families.prompt_tokens, prompt_tokens);
    Drop(families.generation_tokens, generation_tokens);
    for (Counter* counter : finished) Drop(families.finished, counter);
    Drop(families.kv_cache_usage, kv_cache_usage);
    Drop(families.train_steps, train_steps);
    Drop(families.steps_skipped, steps_skipped);
    Drop(families.train_step_duration, train_step_duration);
    Drop(families.train_tokens, train_tokens);
    Drop(families.train_loss, train_loss);
    Drop(families.grad_norm, grad_norm);
    Drop(families.learning_rate, learning_rate);
    Drop(families.loss_scale, loss_scale);
    Drop(families.weights_version, weights_version);
    Drop(families.load_duration, load_duration);
  }
  template <typename T>
  static void Drop(Family<T>& family, T* metric) {
    if (metric != nullptr) family.Remove(metric);
  }
  prometheus::Labels labels() const { return {{"model", model}}; }

  // Each under `mutex`.
  void MakeGeneration() {
    if (first_token != nullptr) return;
    inter_token = &families.inter_token.Add(labels(), Seconds());
    prompt_tokens = &families.prompt_tokens.Add(labels());
    generation_tokens = &families.generation_tokens.Add(labels());
    for (int i = 0; i < 4; ++i) {
      finished[i] = &families.finished.Add({{"model", model}, {"reason", kFinishNames[i]}});
    }
    kv_cache_usage = &families.kv_cache_usage.Add(labels());
    first_token = &families.first_token.Add(labels(), Seconds());
  }
  void MakeTraining() {
    if (train_steps != nullptr) return;
    steps_skipped = &families.steps_skipped.Add(labels());
    train_step_duration = &families.train_step_duration.Add(labels(), Seconds());
    train_tokens = &families.train_tokens.Add(labels());
    train_loss = &families.train_loss.Add(labels());
    grad_norm = &families.grad_norm.Add(labels());
    learning_rate = &families.learning_rate.Add(labels());
    loss_scale = &families.loss_scale.Add(labels());
    train_steps = &families.train_steps.Add(labels());
  }

  MetricFamilies& families;
  const std::string model;
  std::mutex mutex;  // guards the pointers
  Histogram *first_token = nullptr, *inter_token = nullptr;
  Counter *prompt_tokens = nullptr, *generation_tokens = nullptr;
  Counter* finished[4] = {};
  Gauge* kv_cache_usage = nullptr;
  Counter *train_steps = nullptr, *steps_skipped = nullptr;
  Histogram* train_step_duration = nullptr;
  Counter* train_tokens = nullptr;
  Gauge *train_loss = nullptr, *grad_norm = nullptr, *learning_rate = nullptr,
        *loss_scale = nullptr;
  Gauge *weights_version = nullptr, *load_duration = nullptr;
};

ModelMetrics::ModelMetrics(Metrics& metrics, const std::string& model)
    : metrics_(metrics),
      model_(model),
      series_(std::make_unique<Series>(*metrics.families_, model)) {}

ModelMetrics::~ModelMetrics() {
  std::lock_guard lock(metrics_.mutex_);
  const auto it = metrics_.models_.find(model_);
  if (it != metrics_.models_.end() && it->second.expired()) metrics_.models_.erase(it);
  series_.reset();
}

void ModelMetrics::PromptTokens(int64_t count) {
  std::lock_guard lock(series_->mutex);
  series_->MakeGeneration();
  series_->prompt_tokens->Increment(static_cast<double>(count));
}
void ModelMetrics::FirstToken(double seconds) {
  std::lock_guard lock(series_->mutex);
  series_->MakeGeneration();
  series_->first_token->Observe(seconds);
}
void ModelMetrics::NextToken(double seconds) {
  std::lock_guard lock(series_->mutex);
  series_->MakeGeneration();
  series_->inter_token->Observe(seconds);
}
void ModelMetrics::GeneratedToken() {
  std::lock_guard lock(series_->mutex);
  series_->MakeGeneration();
  series_->generation_tokens->Increment();
}
void ModelMetrics::GenerationFinished(Finish finish) {
  std::lock_guard lock(series_->mutex);
  series_->MakeGeneration();
  series_->finished[static_cast<size_t>(finish)]->Increment();
}
void ModelMetrics::KvCacheUsage(double ratio) {
  std::lock_guard lock(series_->mutex);
  series_->MakeGeneration();
  series_->kv_cache_usage->Set(ratio);
}

void ModelMetrics::Trained(const TrainStep& step) {
  std::lock_guard lock(series_->mutex);
  Series& s = *series_;
  s.MakeTraining();
  (step.skipped ? s.steps_skipped : s.train_steps)->Increment();
  s.train_step_duration->Observe(step.seconds);
  s.train_tokens->Increment(static_cast<double>(step.tokens));
  s.train_loss->Set(step.loss);
  s.grad_norm->Set(step.grad_norm);
  s.learning_rate->Set(step.learning_rate);
  s.loss_scale->Set(step.loss_scale);
}

void ModelMetrics::WeightsVersion(int64_t version) {
  std::lock_guard lock(series_->mutex);
  Series& s = *series_;
  if (s.weights_version == nullptr) s.weights_version = &s.families.weights_version.Add(s.labels());
  s.weights_version->Set(static_cast<double>(version));
}
void ModelMetrics::Loaded(double seconds) {
  std::lock_guard lock(series_->mutex);
  Series& s = *series_;
  if (s.load_duration == nullptr) s.load_duration = &s.families.load_duration.Add(s.labels());
  s.load_duration->Set(seconds);
}

Metrics::Metrics()
    : registry_(std::make_shared<Registry>()),
      families_(std::make_unique<MetricFamilies>(*registry_)),
      executor_collector_(std::make_shared<ExecutorCollector>()),
      process_collector_(std::make_shared<ProcessCollector>()) {}

Metrics::~Metrics() = default;

absl::StatusOr<int> Metrics::Listen(const std::string& address) {
  try {  // civetweb's wrapper throws where it cannot bind
    exposer_ = std::make_unique<prometheus::Exposer>(address, 2);
    for (const std::weak_ptr<prometheus::Collectable>& collectable :
         std::initializer_list<std::weak_ptr<prometheus::Collectable>>{
             registry_, executor_collector_, process_collector_}) {
      exposer_->RegisterCollectable(collectable);
    }
    const std::vector<int> ports = exposer_->GetListeningPorts();
    if (ports.empty()) return absl::InternalError("metrics port: none is open");
    return ports[0];
  } catch (const std::exception& e) {
    return absl::UnavailableError(
        absl::StrCat("metrics port: cannot listen on ", address, ": ", e.what()));
  }
}

void Metrics::Watch(const Executor* executor) { executor_collector_->Watch(executor); }

MethodMetrics& Metrics::Method(const std::string& method) {
  std::lock_guard lock(mutex_);
  std::unique_ptr<MethodMetrics>& metrics = methods_[method];
  if (metrics == nullptr) metrics = std::make_unique<MethodMetrics>(*families_, method);
  return *metrics;
}

std::shared_ptr<ModelMetrics> Metrics::Model(const std::string& model) {
  std::lock_guard lock(mutex_);
  std::weak_ptr<ModelMetrics>& slot = models_[model];
  std::shared_ptr<ModelMetrics> metrics = slot.lock();
  if (metrics == nullptr) {
    metrics = std::shared_ptr<ModelMetrics>(new ModelMetrics(*this, model));
    slot = metrics;
  }
  return metrics;
}

void Metrics::Queued(std::string_view lane, double seconds) {
  families_->lanes[lane == "serving" ? 0 : 1]->Observe(seconds);
}
void Metrics::Computed(Phase phase, double seconds) {
  families_->phases[static_cast<size_t>(phase)]->Observe(seconds);
}
void Metrics::Rejected(Rejection reason) {
  families_->rejections[static_cast<size_t>(reason)]->Increment();
}

std::string Metrics::Text() const {
  std::vector<prometheus::MetricFamily> families = registry_->Collect();
  for (const prometheus::Collectable* collector :
       {static_cast<const prometheus::Collectable*>(executor_collector_.get()),
        static_cast<const prometheus::Collectable*>(process_collector_.get())}) {
    for (auto& family : collector->Collect()) families.push_back(std::move(family));
  }
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace tandem::server

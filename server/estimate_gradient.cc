#include "server/estimate_gradient.h"

#include <algorithm>

#include "server/convert_estimation.h"
#include "server/metrics.h"
#include "server/model_store.h"
#include "server/stepped_stream.h"

namespace tandem::server {
namespace {

using Stream = SteppedStream<v1::EstimateGradientResponse>;

constexpr double kReportSeconds = 1;

// One request's estimation; compute thread only.
class Estimation {
 public:
  Estimation(ModelStore::Entry entry, std::unique_ptr<GradientEstimator> estimator,
             const EstimationLimits& limits, const v1::EstimateGradientRequest& request,
             uint64_t seed, Metrics& metrics)
      : entry_(std::move(entry)),
        estimator_(std::move(estimator)),
        limits_(limits),
        wants_exact_(request.exact()),
        seed_(seed),
        metrics_(metrics) {}

  absl::StatusOr<Stream::Outcome> Step(v1::EstimateGradientResponse* response) {
    TANDEM_ASSIGN_OR_RETURN(Model * model, entry_->Live());
    const GradientEstimate& estimate = estimator_->estimate();
    // First, since it may be refused, and so that the work is not lost to that.
    if (wants_exact_ && estimate.draws == 0) {
      TANDEM_ASSIGN_OR_RETURN(exact_, estimator_->Exact(*model));
    }
    const double before = estimate.seconds;
    TANDEM_RETURN_IF_ERROR(estimator_->Step(*model));
    metrics_.Computed(Metrics::Phase::kForward, estimate.seconds - before);
    ++steps_;
    const double error = estimate.standard_error();
    const bool precise = limits_.standard_error > 0 && error <= limits_.standard_error;
    const bool done = precise || estimate.draws >= limits_.max_draws;
    const bool due = done || (steps_ & (steps_ - 1)) == 0 ||
                     estimate.seconds - reported_seconds_ >= kReportSeconds;
    if (!due) return Stream::Outcome::kNoMessage;
    reported_seconds_ = estimate.seconds;
    ToProto(estimate, response);
    response->set_seed(seed_);
    response->set_done(done);
    const double by_draws =
        static_cast<double>(estimate.draws) / static_cast<double>(limits_.max_draws);
    // The error falls with the root of the draws.
    const double ratio = limits_.standard_error > 0 ? limits_.standard_error / error : 0;
    response->set_progress(done ? 1 : std::min(1.0, std::max(by_draws, ratio * ratio)));
    if (done && exact_) ToProto(*exact_, response);
    return done ? Stream::Outcome::kLastMessage : Stream::Outcome::kMessage;
  }

 private:
  const ModelStore::Entry entry_;
  const std::unique_ptr<GradientEstimator> estimator_;
  const EstimationLimits limits_;
  const bool wants_exact_;
  const uint64_t seed_;
  Metrics& metrics_;
  std::optional<GradientEstimator::ExactGradient> exact_;
  int64_t steps_ = 0;
  double reported_seconds_ = 0;
};

}  // namespace

grpc::ServerWriteReactor<v1::EstimateGradientResponse>* StartEstimateGradient(
    const Method& method, grpc::CallbackServerContext* context,
    const v1::EstimateGradientRequest& request, uint64_t seed) {
  return Stream::Start(method, context, [&]() -> absl::StatusOr<Stream::Step> {
    const Dependencies& deps = method.dependencies;
    TANDEM_ASSIGN_OR_RETURN(auto entry, deps.models.Find(request.model()));
    TANDEM_ASSIGN_OR_RETURN(const EstimationLimits limits, LimitsFromProto(request));
    TANDEM_ASSIGN_OR_RETURN(EstimatorOptions options, FromProto(request, limits));
    options.seed = seed;
    TANDEM_ASSIGN_OR_RETURN(auto estimator, GradientEstimator::Create(std::move(options)));
    return [estimation = std::make_unique<Estimation>(std::move(entry), std::move(estimator),
                                                      limits, request, seed, deps.metrics)](
               v1::EstimateGradientResponse* response) { return estimation->Step(response); };
  });
}

}  // namespace tandem::server

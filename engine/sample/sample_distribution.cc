#include "engine/sample/sample_distribution.h"

#include "engine/graph/gradient.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

using Types = std::vector<std::pair<std::string, TensorType>>;

Types TypesOf(const DrawOptions& options) {
  Types types;
  for (const auto& [name, tensor] : options.parameters) types.emplace_back(name, tensor.type());
  return types;
}

Types AsF64(Types types) {
  for (auto& [name, type] : types) type.dtype = DType::kF64;
  return types;
}

absl::Status RequireType(std::string_view what, const Tensor& tensor, const TensorType& expected) {
  if (tensor.type() == expected) return absl::OkStatus();
  return InvalidArgument(what, " is ", tensor.type().ToString(), ", expected ",
                         expected.ToString());
}

constexpr int64_t kMaxCachedElements = int64_t{1} << 18;

// One request's graph. Inputs: the parameters, then (with log-density cotangents) the parameters
// again, so that the gradient of the log-density does not pass through the draws; the values; the
// cotangents.
class SampleGraph {
 public:
  static absl::StatusOr<SampleGraph> Create(const DrawOptions& options) {
    SampleGraph graph(options);
    TANDEM_ASSIGN_OR_RETURN(graph.d_, Distribution::Create(options.distribution, TypesOf(options)));
    TANDEM_ASSIGN_OR_RETURN(graph.exact_,
                            Distribution::Create(options.distribution, AsF64(TypesOf(options))));
    std::vector<const Tensor*> values;
    for (const auto& [name, tensor] : options.parameters) values.push_back(&tensor);
    // Sizes first: the parameters' check takes as long as the batch is large.
    TANDEM_RETURN_IF_ERROR(graph.CheckSizes());
    TANDEM_RETURN_IF_ERROR(graph.d_.CheckParameters(values));
    return graph;
  }

  int64_t elements() const { return sample_.num_elements() * d_.elements_per_draw(); }

  std::string Key() const {
    const DistributionOptions& o = options_.distribution;
    std::string key = StrCat(
        "sample/", static_cast<int>(o.family), "/", ExactText(o.temperature), "/",
        static_cast<int>(o.straight_through), "/", o.k, "/", sample_.ToString(),
        options_.values ? "v" : "", wants_log_density() ? "l" : "", options_.entropy ? "e" : "",
        options_.draw_cotangents ? "d" : "", options_.log_density_cotangents ? "s" : "");
    for (const auto& [name, tensor] : options_.parameters) {
      key = StrCat(key, "/", name, tensor.type().ToString());
    }
    return key;
  }

  absl::StatusOr<Graph> Build() const {
    Builder b;  // nothing is folded: constants of the draws' size would stay in the plan
    const std::vector<Value> parameters = ParameterInputs(b);
    const std::vector<Value> fixed =
        options_.log_density_cotangents ? ParameterInputs(b) : parameters;
    const Value draws = options_.values ? b.Input("values", options_.values->type())
                                        : d_.Draw(b, parameters, sample_);
    Value log_density;
    if (!options_.values) b.Output(draws);
    if (wants_log_density()) {
      log_density = LogDensity(b, fixed, draws);
      b.Output(log_density);
    }
    if (options_.entropy) {
      b.Output(ops::Cast(b, exact_.Entropy(b, Cast64(b, parameters)), d_.dtype()));
    }
    TANDEM_RETURN_IF_ERROR(b.status());
    TANDEM_RETURN_IF_ERROR(AddGradients(b, parameters, fixed, draws, log_density));
    return b.Finish();
  }

  absl::StatusOr<DrawResult> Run(Plan& plan) const {
    std::vector<Address> inputs;
    for (int repeat = 0; repeat < (options_.log_density_cotangents ? 2 : 1); ++repeat) {
      for (const auto& [name, tensor] : options_.parameters) inputs.push_back(OnHost(tensor));
    }
    for (const auto* tensor :
         {&options_.values, &options_.draw_cotangents, &options_.log_density_cotangents}) {
      if (*tensor) inputs.push_back(OnHost(**tensor));
    }
    plan.SetRandomKey(options_.seed, 0);
    TANDEM_ASSIGN_OR_RETURN(std::vector<Tensor> outputs, RunToHost(plan, inputs, {}));
    DrawResult result;
    size_t next = 0;
    if (!options_.values) result.draws = std::move(outputs[next++]);
    if (wants_log_density()) result.log_density = std::move(outputs[next++]);
    if (options_.entropy) result.entropy = std::move(outputs[next++]);
    if (!options_.log_density) result.log_density.reset();  // it was needed for its gradient alone
    while (next < outputs.size()) result.gradients.push_back(std::move(outputs[next++]));
    return result;
  }

 private:
  explicit SampleGraph(const DrawOptions& options) : options_(options) {}

  bool wants_log_density() const {
    return options_.log_density || options_.log_density_cotangents.has_value();
  }

  absl::Status CheckSizes() {
    if (options_.values) {
      const TensorType event = d_.draw_type({});
      const Shape& shape = options_.values->shape();
      const int rank = shape.rank() - event.shape.rank();
      const TensorType expected = rank < 0 ? event : d_.draw_type(Shape(shape.dims().first(rank)));
      if (rank < 0 || options_.values->type() != expected) {
        return InvalidArgument("values is ", options_.values->type().ToString(), ", expected ",
                               event.ToString(), " or that after any leading dimensions");
      }
      if (options_.draw_cotangents) {
        return InvalidArgument("draw_cotangents with values: nothing is drawn");
      }
      sample_ = Shape(shape.dims().first(rank));
    } else {
      if (options_.draws < 1 || options_.draws > kMaxDrawElements) {
        return InvalidArgument("draws is ", options_.draws, ", must be in [1, ", kMaxDrawElements,
                               "]");
      }
      sample_ = {options_.draws};
    }
    // Products of at most 2^40 x 2^24 x 2^24 would overflow: compare by division.
    const int64_t batch = d_.batch_shape().num_elements();
    const int64_t event = d_.event_shape().num_elements();
    const int64_t samples = sample_.num_elements();
    if (samples > kMaxDrawElements / std::max<int64_t>(1, batch) ||
        samples * batch > kMaxDrawElements / std::max<int64_t>(1, event)) {
      return InvalidArgument(samples, " draws of batch ", d_.batch_shape().ToString(),
                             " and event ", d_.event_shape().ToString(), " are more than ",
                             kMaxDrawElements, " elements: ask for fewer draws");
    }
    if (samples > kMaxNoiseElements / d_.elements_per_draw()) {
      return InvalidArgument(samples, " draws of ", d_.elements_per_draw(),
                             " random numbers or terms each need more than ", kMaxNoiseElements,
                             ": ask for fewer draws");
    }
    return CheckCotangents();
  }

  absl::Status CheckCotangents() const {
    const TensorType draw = d_.draw_type(sample_);
    if (options_.draw_cotangents) {
      if (d_.discrete()) {
        return FailedPrecondition("no gradient flows through draws of ", d_.family_name(),
                                  ": use its relaxed family, or the score function "
                                  "(log_density_cotangents)");
      }
      TANDEM_RETURN_IF_ERROR(RequireType("draw_cotangents", *options_.draw_cotangents, draw));
    }
    if (options_.log_density_cotangents) {
      const auto dims = draw.shape.dims();
      const Shape rows(dims.first(dims.size() - d_.event_shape().rank()));
      TANDEM_RETURN_IF_ERROR(RequireType("log_density_cotangents", *options_.log_density_cotangents,
                                         {d_.dtype(), rows}));
    }
    return absl::OkStatus();
  }

  std::vector<Value> ParameterInputs(Builder& b) const {
    std::vector<Value> values;
    for (const auto& [name, tensor] : options_.parameters) {
      values.push_back(b.Input(name, tensor.type()));
    }
    return values;
  }
  static std::vector<Value> Cast64(Builder& b, const std::vector<Value>& values) {
    std::vector<Value> wide;
    for (Value v : values) wide.push_back(ops::Cast(b, v, DType::kF64));
    return wide;
  }
  Value LogDensity(Builder& b, const std::vector<Value>& parameters, Value draws) const {
    const bool real = b.dtype(draws) == d_.dtype();
    const Value wide = real ? ops::Cast(b, draws, DType::kF64) : draws;
    return ops::Cast(b, exact_.LogDensity(b, Cast64(b, parameters), wide), d_.dtype());
  }
  absl::Status AddGradients(Builder& b, const std::vector<Value>& parameters,
                            const std::vector<Value>& fixed, Value draws, Value log_density) const {
    std::vector<Value> sums(parameters.size());
    const auto add = [&](Value loss, const std::vector<Value>& wrt, std::string_view name,
                         const std::optional<Tensor>& cotangents) -> absl::Status {
      if (!cotangents) return absl::OkStatus();
      const Value cotangent = b.Input(name, cotangents->type());
      TANDEM_ASSIGN_OR_RETURN(const std::vector<Value> found, Gradient(b, loss, wrt, cotangent));
      for (size_t i = 0; i < sums.size(); ++i) {
        sums[i] = sums[i].valid() ? ops::Add(b, sums[i], found[i]) : found[i];
      }
      return absl::OkStatus();
    };
    TANDEM_RETURN_IF_ERROR(add(draws, parameters, "draw_cotangents", options_.draw_cotangents));
    TANDEM_RETURN_IF_ERROR(
        add(log_density, fixed, "log_density_cotangents", options_.log_density_cotangents));
    for (Value v : sums) {
      if (v.valid()) b.Output(v);
    }
    return b.status();
  }

  const DrawOptions& options_;
  Distribution d_, exact_;  // exact_: the same in f64
  Shape sample_;
};

}  // namespace

absl::StatusOr<DrawResult> SampleDistribution(const DrawOptions& options, PlanCache& plans) {
  TANDEM_ASSIGN_OR_RETURN(const SampleGraph graph, SampleGraph::Create(options));
  // Large requests repay no plan that is kept, nor the memory that it would hold.
  PlanCache once(1);
  if (graph.elements() > kMaxCachedElements) {
    TANDEM_ASSIGN_OR_RETURN(Plan * plan, once.Get(graph.Key(), [&] { return graph.Build(); }));
    return graph.Run(*plan);
  }
  TANDEM_ASSIGN_OR_RETURN(Plan * plan, plans.Get(graph.Key(), [&] { return graph.Build(); }));
  return graph.Run(*plan);
}

}  // namespace tandem

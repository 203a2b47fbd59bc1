#include "engine/sample/approximation.h"

#include <algorithm>
#include <cmath>

#include "engine/base/error.h"
#include "engine/sample/approximation_token.h"

namespace tandem {
namespace {

constexpr std::string_view kMagic = "TDMAPX";
constexpr uint16_t kVersion = 1;
// A state counts up to here, far from overflow, and exactly in double.
constexpr int64_t kMaxCount = int64_t{1} << 53;

template <typename Archive, typename Self>
void LawFields(Archive& archive, Self& law) {
  archive(law.scale, law.offset, law.exponent);
}
template <typename Archive, typename Self>
void OptionFields(Archive& archive, Self& options) {
  using Options = std::remove_const_t<Self>;
  if constexpr (std::is_same_v<Options, AverageOptions>) {
    archive(options.kind, options.dimension, options.step, options.bias_correction,
            options.initial);
  } else if constexpr (std::is_same_v<Options, QuantileOptions>) {
    archive(options.probabilities);
  } else {  // not the start, which has become the state's x
    archive(options.kind, options.lower, options.upper, options.average, options.average_after,
            options.seed, options.rule, options.momentum, options.beta1, options.beta2,
            options.epsilon);
    LawFields(archive, options.step);
    LawFields(archive, options.difference);
  }
}

absl::Status CheckDimension(int64_t dimension, int64_t limit) {
  if (dimension >= 1 && dimension <= limit) return absl::OkStatus();
  return InvalidArgument("the dimension is ", dimension, ", expected 1 to ", limit);
}

absl::Status CheckAllFinite(std::string_view name, std::span<const double> values) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) {
      return InvalidArgument(name, "[", i, "] is ", values[i], ", expected a finite number");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLaw(std::string_view name, const StepLaw& law) {
  if (!(law.scale > 0) || !std::isfinite(law.scale)) {
    return InvalidArgument(name, ".scale is ", law.scale, ", expected a positive number");
  }
  if (!(law.offset >= 0) || !std::isfinite(law.offset)) {
    return InvalidArgument(name, ".offset is ", law.offset, ", expected at least 0");
  }
  if (!(law.exponent >= 0 && law.exponent <= 1)) {
    return InvalidArgument(name, ".exponent is ", law.exponent, ", expected 0 to 1");
  }
  return absl::OkStatus();
}

absl::Status Check(const AverageOptions& options) {
  if (options.kind > AverageKind::kExponential) return InvalidArgument("no such kind of average");
  TANDEM_RETURN_IF_ERROR(CheckDimension(options.dimension, kMaxApproximationDimension));
  if (options.kind != AverageKind::kMean && !(options.step > 0 && options.step <= 1)) {
    return InvalidArgument("step is ", options.step, ", expected above 0 and at most 1");
  }
  if (!std::isfinite(options.initial)) {
    return InvalidArgument("initial is ", options.initial, ", expected a finite number");
  }
  return absl::OkStatus();
}

absl::Status Check(const QuantileOptions& options) {
  const std::vector<double>& p = options.probabilities;
  const auto count = static_cast<int64_t>(p.size());
  if (count < 1 || count > kMaxQuantiles) {
    return InvalidArgument(count, " probabilities, expected 1 to ", kMaxQuantiles);
  }
  for (size_t i = 0; i < p.size(); ++i) {
    constexpr double kLeast = 1e-12;  // fewer observations than 1 / that tell nothing of it
    if (!(p[i] >= kLeast && p[i] <= 1 - kLeast)) {
      return InvalidArgument("probabilities[", i, "] is ", p[i], ", expected within (0, 1), ",
                             kLeast, " or more from its ends");
    }
    if (i > 0 && p[i] <= p[i - 1]) {
      return InvalidArgument("probabilities[", i, "] is ", p[i], ", not above the one before, ",
                             p[i - 1]);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckBox(const IterationOptions& options, size_t dimension) {
  const auto& [lower, upper] = std::tie(options.lower, options.upper);
  if (lower.size() != upper.size() || (!lower.empty() && lower.size() != dimension)) {
    return InvalidArgument("the box has ", lower.size(), " lower and ", upper.size(),
                           " upper bounds for ", dimension, " dimensions");
  }
  TANDEM_RETURN_IF_ERROR(CheckAllFinite("lower", lower));
  TANDEM_RETURN_IF_ERROR(CheckAllFinite("upper", upper));
  for (size_t i = 0; i < lower.size(); ++i) {
    if (lower[i] > upper[i]) {
      return InvalidArgument("lower[", i, "] is ", lower[i], ", above upper[", i, "], ", upper[i]);
    }
  }
  return absl::OkStatus();
}

absl::Status Check(const IterationOptions& options, size_t dimension) {
  if (options.kind > IterationKind::kGradient) return InvalidArgument("no such kind of iteration");
  if (options.rule > DescentRule::kAdam) return InvalidArgument("no such rule");
  const bool many_points = options.kind == IterationKind::kKieferWolfowitz;
  TANDEM_RETURN_IF_ERROR(
      CheckDimension(static_cast<int64_t>(dimension),
                     many_points ? kMaxKieferWolfowitzDimension : kMaxApproximationDimension));
  TANDEM_RETURN_IF_ERROR(CheckBox(options, dimension));
  TANDEM_RETURN_IF_ERROR(CheckLaw("step", options.step));
  TANDEM_RETURN_IF_ERROR(CheckLaw("difference", options.difference));
  if (options.average_after < 0 || options.average_after > kMaxCount) {
    return InvalidArgument("average_after is ", options.average_after, ", expected 0 to ",
                           kMaxCount);
  }
  const auto in_unit = [](double v) { return v >= 0 && v < 1; };
  if (!in_unit(options.momentum)) {
    return InvalidArgument("momentum is ", options.momentum, ", expected within [0, 1)");
  }
  if (!in_unit(options.beta1)) {
    return InvalidArgument("beta1 is ", options.beta1, ", expected within [0, 1)");
  }
  if (!in_unit(options.beta2)) {
    return InvalidArgument("beta2 is ", options.beta2, ", expected within [0, 1)");
  }
  if (!(options.epsilon > 0) || !std::isfinite(options.epsilon)) {
    return InvalidArgument("epsilon is ", options.epsilon, ", expected a positive number");
  }
  return absl::OkStatus();
}

absl::Status CheckStart(const AverageOptions& options) { return Check(options); }
absl::Status CheckStart(const QuantileOptions& options) { return Check(options); }
absl::Status CheckStart(const IterationOptions& options) {
  TANDEM_RETURN_IF_ERROR(Check(options, options.start.size()));
  return CheckAllFinite("start", options.start);
}

absl::Status CheckRestored(const AverageOptions& options, const AverageState&) {
  return Check(options);
}
absl::Status CheckRestored(const QuantileOptions& options, const QuantileState&) {
  return Check(options);
}
absl::Status CheckRestored(const IterationOptions& options, const IterationState& state) {
  return Check(options, state.x.size());
}

int64_t CountOf(const AverageState& state) { return state.count; }
int64_t CountOf(const QuantileState& state) { return state.count; }
int64_t CountOf(const IterationState& state) { return state.steps; }

template <typename State>
bool Finite(State& state) {
  FiniteCheck check;
  std::remove_const_t<State>::Fields(check, state);
  return check.finite();
}

uint64_t HashOf(std::span<const double> values) {
  return Fnv1a({reinterpret_cast<const char*>(values.data()), values.size_bytes()});
}

}  // namespace

absl::StatusOr<Approximation> Approximation::Start(ApproximationOptions options) {
  return std::visit(
      [](auto& chosen) -> absl::StatusOr<Approximation> {
        TANDEM_RETURN_IF_ERROR(CheckStart(chosen));
        using Options = std::remove_reference_t<decltype(chosen)>;
        if constexpr (std::is_same_v<Options, AverageOptions>) {
          return Approximation(chosen, AverageState(chosen));
        } else if constexpr (std::is_same_v<Options, QuantileOptions>) {
          return Approximation(chosen, QuantileState(chosen));
        } else {
          IterationState state(chosen);
          chosen.start.clear();
          return Approximation(std::move(chosen), std::move(state));
        }
      },
      options);
}

absl::Status Approximation::Observe(int64_t step, std::span<const double> values) {
  const uint64_t hash = HashOf(values);
  if (step_ > 0 && step == step_ - 1) {
    if (hash == last_observation_) return absl::OkStatus();
    return absl::AbortedError(
        StrCat("the observation of step ", step, " was applied already, with other values"));
  }
  if (step != step_) {
    return FailedPrecondition("the observation answers step ", step,
                              ", but the approximation is at step ", step_);
  }
  if (static_cast<int64_t>(values.size()) > kMaxObservationValues) {
    return InvalidArgument("the observation has ", values.size(), " values, at most ",
                           kMaxObservationValues, " are taken at once");
  }
  TANDEM_RETURN_IF_ERROR(CheckAllFinite("observation", values));
  const auto apply = [&](const auto& options, auto state) -> absl::Status {
    TANDEM_RETURN_IF_ERROR(state.CheckSize(options, values.size()));
    if (CountOf(state) > kMaxCount - kMaxObservationValues) {
      return absl::OutOfRangeError(
          "the approximation has had as many observations as it can count");
    }
    state.Apply(options, values);
    if (!Finite(state)) {
      return absl::OutOfRangeError(
          "with this observation the approximation leaves the range of double: it diverges, or the "
          "values are too large");
    }
    state_ = std::move(state);
    return absl::OkStatus();
  };
  TANDEM_RETURN_IF_ERROR(std::visit(
      [&](const auto& options) -> absl::Status {
        using Options = std::decay_t<decltype(options)>;
        if constexpr (std::is_same_v<Options, AverageOptions>) {
          return apply(options, std::get<AverageState>(state_));
        } else if constexpr (std::is_same_v<Options, QuantileOptions>) {
          return apply(options, std::get<QuantileState>(state_));
        } else {
          return apply(options, std::get<IterationState>(state_));
        }
      },
      options_));
  ++step_;
  last_observation_ = hash;
  return absl::OkStatus();
}

ApproximationAnswer Approximation::Answer() const {
  ApproximationAnswer answer;
  answer.step = step_;
  if (const auto* average = std::get_if<AverageState>(&state_)) {
    average->Answer(std::get<AverageOptions>(options_), &answer);
  } else if (const auto* quantile = std::get_if<QuantileState>(&state_)) {
    quantile->Answer(std::get<QuantileOptions>(options_), &answer);
  } else {
    std::get<IterationState>(state_).Answer(std::get<IterationOptions>(options_), &answer);
  }
  return answer;
}

std::string Approximation::Serialize() const {
  TokenWriter writer;
  writer.bytes = kMagic;
  writer(kVersion, static_cast<uint8_t>(options_.index()), step_, last_observation_);
  std::visit([&](const auto& options) { OptionFields(writer, options); }, options_);
  std::visit([&](const auto& state) { std::decay_t<decltype(state)>::Fields(writer, state); },
             state_);
  writer(Fnv1a(writer.bytes));
  return std::move(writer.bytes);
}

absl::StatusOr<Approximation> Approximation::Restore(std::string_view token) {
  if (token.substr(0, kMagic.size()) != kMagic) {
    return InvalidArgument("the resume token is not one of an approximation");
  }
  uint64_t checksum = 0;
  if (token.size() >= kMagic.size() + sizeof(checksum)) {
    std::memcpy(&checksum, token.data() + token.size() - sizeof(checksum), sizeof(checksum));
    token.remove_suffix(sizeof(checksum));
  }
  if (Fnv1a(token) != checksum) return InvalidArgument("the resume token is damaged: its checksum");
  TokenReader reader(token.substr(kMagic.size()));
  uint16_t version = 0;
  uint8_t index = 0;
  int64_t step = 0;
  uint64_t last_observation = 0;
  reader(version, index, step, last_observation);
  if (reader.ok() && version != kVersion) {
    return InvalidArgument("the resume token has version ", version, ", this server reads ",
                           kVersion);
  }
  const auto read = [&](auto options, auto state) -> absl::StatusOr<Approximation> {
    OptionFields(reader, options);
    decltype(state)::Fields(reader, state);
    if (!reader.ok() || !reader.at_end()) {
      return InvalidArgument("the resume token is not as long as its contents");
    }
    absl::Status status = CheckRestored(options, state);
    if (!status.ok()) return Annotate(status, "the resume token");
    const int64_t count = CountOf(state);
    // Each step brings one observation or, to averages and quantiles, several.
    if (step < 0 || count < step || count > kMaxCount || !Finite(state) ||
        !state.Consistent(options)) {
      return InvalidArgument("the resume token holds values that no approximation can have");
    }
    Approximation approximation(std::move(options), std::move(state));
    approximation.step_ = step;
    approximation.last_observation_ = last_observation;
    return approximation;
  };
  switch (reader.ok() ? index : UINT8_MAX) {
    case 0:
      return read(AverageOptions(), AverageState());
    case 1:
      return read(QuantileOptions(), QuantileState());
    case 2:
      return read(IterationOptions(), IterationState());
    default:
      return InvalidArgument("the resume token is of no known method");
  }
}

}  // namespace tandem

// tandem sample, tandem estimate-gradient.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "client/command/command.h"
#include "engine/formats/npy.h"

namespace tandem::command {
namespace {

constexpr const char* kFamilyPrefix = "DISTRIBUTION_FAMILY_";

// "log-normal" or "log_normal" to LOG_NORMAL, behind the prefix of the enumeration.
std::string EnumName(std::string_view prefix, std::string text) {
  std::replace(text.begin(), text.end(), '-', '_');
  return std::string(prefix) + absl::AsciiStrToUpper(text);
}

// The values' names without the prefix and the unset one: "normal, log_normal, ...".
std::string KnownNames(const google::protobuf::EnumDescriptor* type, std::string_view prefix) {
  std::string names;
  for (int i = 1; i < type->value_count(); ++i) {
    const std::string name = type->value(i)->name().substr(prefix.size());
    names += (names.empty() ? "" : ", ") + absl::AsciiStrToLower(name);
  }
  return names;
}

template <typename Enum>
absl::StatusOr<Enum> ParseEnum(const std::string& text, std::string_view prefix) {
  const auto* type = google::protobuf::GetEnumDescriptor<Enum>();
  const auto* value = type->FindValueByName(EnumName(prefix, text));
  if (value == nullptr || value->number() == 0) {
    return InvalidArgument("'", text, "' is not one of ", KnownNames(type, prefix));
  }
  return static_cast<Enum>(value->number());
}

// "1.5" (a scalar), "1,2,3" (a vector), "1,2;3,4" (a matrix) or a file of ReadTensorFile.
absl::StatusOr<Tensor> ParseParameter(const std::string& name, const std::string& text,
                                      DType dtype) {
  if (std::ifstream(text).good()) {
    TANDEM_ASSIGN_OR_RETURN(const Tensor tensor, ReadTensorFile(text));
    return CastTensor(tensor, dtype);
  }
  std::vector<double> values;
  const std::vector<std::string> rows = absl::StrSplit(text, ';');
  size_t columns = 0;
  for (const std::string& row : rows) {
    const std::vector<std::string> cells = absl::StrSplit(row, ',');
    if (columns != 0 && cells.size() != columns) {
      return InvalidArgument("parameter ", name, ": rows of ", columns, " and of ", cells.size(),
                             " numbers");
    }
    columns = cells.size();
    for (const std::string& cell : cells) {
      char* end = nullptr;
      values.push_back(std::strtod(cell.c_str(), &end));
      if (cell.empty() || *end != '\0') {
        return InvalidArgument("parameter ", name, ": '", cell, "' is neither a number nor a file");
      }
    }
  }
  Shape shape;
  if (rows.size() > 1) shape.push_back(static_cast<int64_t>(rows.size()));
  if (rows.size() > 1 || columns > 1) shape.push_back(static_cast<int64_t>(columns));
  return CastTensor(Tensor::Of<double>(shape, std::span<const double>(values)), dtype);
}

struct DistributionArguments {
  std::string family;
  std::vector<std::string> parameters;
  bool f64 = false;
  v1::Distribution message;  // the options

  void AddTo(CLI::App* app) {
    const std::string families =
        KnownNames(google::protobuf::GetEnumDescriptor<v1::DistributionFamily>(), kFamilyPrefix);
    app->add_option("family", family, families)->required();
    app->add_option("parameters", parameters,
                    "name=value: a number, a vector 1,2,3, a matrix 1,2;3,4, or an .npy file");
    app->add_flag("--f64", f64, "double-precision parameters and draws");
    app->add_flag_callback(
        "--straight-through", [this] { message.set_straight_through(true); },
        "gumbel_softmax: one-hot draws");
    AddOptional<int64_t>(
        app, "--k", [this](int64_t v) { message.set_k(v); }, "gumbel_top_k: classes a draw");
  }

  absl::StatusOr<v1::Distribution> Parse() const {
    v1::Distribution distribution = message;
    TANDEM_ASSIGN_OR_RETURN(const auto parsed,
                            ParseEnum<v1::DistributionFamily>(family, kFamilyPrefix));
    distribution.set_family(parsed);
    for (const std::string& text : parameters) {
      TANDEM_ASSIGN_OR_RETURN(const auto split, SplitArgument("", text, "name=value"));
      const auto& [name, value] = split;
      TANDEM_ASSIGN_OR_RETURN(const Tensor tensor,
                              ParseParameter(name, value, f64 ? DType::kF64 : DType::kF32));
      v1::NamedTensor* named = distribution.add_parameters();
      named->set_name(name);
      *named->mutable_tensor() = ToProto(tensor);
    }
    return distribution;
  }
};

std::string Number(double value) { return absl::StrFormat("%.6g", value); }

std::string RowText(const Tensor& tensor, int64_t begin, int64_t count) {
  std::string text;
  for (int64_t i = begin; i < begin + std::min<int64_t>(count, 12); ++i) {
    text += (text.empty() ? "" : " ") + Number(ElementAsDouble(tensor, i));
  }
  return count > 12 ? text + " ..." : text;
}

// The distribution of all numbers drawn, as rows of blocks.
void PrintHistogram(const std::vector<double>& sorted) {
  constexpr int kBins = 20, kWidth = 50;
  // Without the outermost hundredths, which would squeeze the rest.
  const double low = sorted[sorted.size() / 100],
               high = sorted[sorted.size() - 1 - sorted.size() / 100];
  if (!(high > low)) return;
  std::vector<int64_t> counts(kBins);
  int64_t most = 1;
  for (double x : sorted) {
    if (x < low || x > high) continue;
    const int bin = std::min(kBins - 1, static_cast<int>((x - low) / (high - low) * kBins));
    most = std::max(most, ++counts[bin]);
  }
  for (int i = 0; i < kBins; ++i) {
    const double left = low + (high - low) * i / kBins;
    const int width = static_cast<int>(counts[i] * kWidth / most);
    std::printf("%12s |%s %lld\n", Number(left).c_str(), std::string(width, '#').c_str(),
                static_cast<long long>(counts[i]));
  }
}

void PrintSummary(const Tensor& draws) {
  std::vector<double> sorted;
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < draws.num_elements(); ++i) {
    sorted.push_back(ElementAsDouble(draws, i));
    sum += sorted.back();
  }
  const double n = static_cast<double>(sorted.size()), mean = sum / n;
  for (double x : sorted) squares += (x - mean) * (x - mean);
  std::sort(sorted.begin(), sorted.end());
  const auto quantile = [&](double q) { return Number(sorted[static_cast<size_t>(q * (n - 1))]); };
  PrintTable({{"NUMBERS", "MEAN", "STD", "MIN", "5%", "MEDIAN", "95%", "MAX"},
              {WithCommas(draws.num_elements()), Number(mean),
               Number(std::sqrt(squares / std::max(1.0, n - 1))), quantile(0), quantile(0.05),
               quantile(0.5), quantile(0.95), quantile(1)}});
  PrintHistogram(sorted);
}

struct SampleArguments {
  DistributionArguments distribution;
  v1::SampleDistributionRequest request;
  std::string out;
};

absl::Status Sample(const Session& session, const SampleArguments& arguments) {
  v1::SampleDistributionRequest request = arguments.request;
  TANDEM_ASSIGN_OR_RETURN(*request.mutable_distribution(), arguments.distribution.Parse());
  TANDEM_ASSIGN_OR_RETURN(const v1::SampleDistributionResponse response,
                          session.client().SampleDistribution(request));
  if (session.json) {
    PrintJson(response);
    return absl::OkStatus();
  }
  TANDEM_ASSIGN_OR_RETURN(const Tensor draws, FromProto(response.draws()));
  if (!arguments.out.empty()) {
    TANDEM_ASSIGN_OR_RETURN(const std::string npy, WriteNpy(draws));
    TANDEM_RETURN_IF_ERROR(WriteFile(arguments.out, npy));
  }
  const int64_t count = response.draws().shape(0), each = draws.num_elements() / count;
  std::optional<Tensor> log_density;
  if (response.has_log_density()) {
    TANDEM_ASSIGN_OR_RETURN(log_density, FromProto(response.log_density()));
  }
  constexpr int64_t kListed = 20;
  if (count > kListed) {
    PrintSummary(draws);
  } else {
    std::vector<std::vector<std::string>> rows = {{"DRAW", "VALUE"}};
    if (log_density) rows[0].push_back("LOG DENSITY");
    for (int64_t i = 0; i < count; ++i) {
      rows.push_back({std::to_string(i), RowText(draws, i * each, each)});
      if (log_density) {
        const int64_t batch = log_density->num_elements() / count;
        rows.back().push_back(RowText(*log_density, i * batch, batch));
      }
    }
    PrintTable(rows);
  }
  if (response.has_entropy()) {
    TANDEM_ASSIGN_OR_RETURN(const Tensor entropy, FromProto(response.entropy()));
    std::printf("entropy %s nats\n", RowText(entropy, 0, entropy.num_elements()).c_str());
  }
  std::printf("draws of shape %s, seed %llu%s\n", ShapeText(response.draws().shape()).c_str(),
              static_cast<unsigned long long>(response.seed()),
              arguments.out.empty() ? "" : StrCat(", written to ", arguments.out).c_str());
  return absl::OkStatus();
}

struct EstimateArguments {
  DistributionArguments distribution;
  v1::EstimateGradientRequest request;
  std::string estimator, baseline;
  std::vector<std::string> inputs;
};

absl::Status PrintEstimate(const v1::EstimateGradientResponse& last) {
  std::vector<std::vector<std::string>> rows = {
      {"PARAMETER", "GRADIENT", "STANDARD ERROR", "VARIANCE OF A DRAW"}};
  const bool exact = last.has_exact_value();
  if (exact) rows[0].push_back("EXACT");
  constexpr int64_t kListed = 32;
  for (const auto& p : last.parameters()) {
    TANDEM_ASSIGN_OR_RETURN(const Tensor gradient, FromProto(p.gradient()));
    TANDEM_ASSIGN_OR_RETURN(const Tensor error, FromProto(p.standard_error()));
    TANDEM_ASSIGN_OR_RETURN(const Tensor variance, FromProto(p.variance()));
    for (int64_t i = 0; i < std::min(kListed, gradient.num_elements()); ++i) {
      rows.push_back({StrCat(p.name(), "[", i, "]"), Number(ElementAsDouble(gradient, i)),
                      Number(ElementAsDouble(error, i)), Number(ElementAsDouble(variance, i))});
      if (exact) {
        TANDEM_ASSIGN_OR_RETURN(const Tensor value, FromProto(p.exact()));
        rows.back().push_back(Number(ElementAsDouble(value, i)));
      }
    }
    if (gradient.num_elements() > kListed) {
      rows.push_back({StrCat(p.name(), ": ", gradient.num_elements() - kListed, " more (--json)")});
      rows.back().resize(rows[0].size());
    }
  }
  PrintTable(rows);
  std::printf("E f = %s +- %s", Number(last.value()).c_str(),
              Number(last.value_standard_error()).c_str());
  if (exact) std::printf(" (exact %s)", Number(last.exact_value()).c_str());
  std::printf("\n%s draws, %s evaluations of f and %s of its derivative, %.3f s, seed %llu\n",
              WithCommas(last.draws()).c_str(), WithCommas(last.evaluations()).c_str(),
              WithCommas(last.gradient_evaluations()).c_str(), last.seconds(),
              static_cast<unsigned long long>(last.seed()));
  return absl::OkStatus();
}

absl::Status Estimate(const Session& session, const EstimateArguments& arguments) {
  v1::EstimateGradientRequest request = arguments.request;
  TANDEM_ASSIGN_OR_RETURN(*request.mutable_distribution(), arguments.distribution.Parse());
  if (!arguments.estimator.empty()) {
    TANDEM_ASSIGN_OR_RETURN(const auto kind, ParseEnum<v1::GradientEstimatorKind>(
                                                 arguments.estimator, "GRADIENT_ESTIMATOR_KIND_"));
    request.set_estimator(kind);
  }
  if (!arguments.baseline.empty()) {
    TANDEM_ASSIGN_OR_RETURN(const auto kind,
                            ParseEnum<v1::BaselineKind>(arguments.baseline, "BASELINE_KIND_"));
    request.set_baseline(kind);
  }
  for (const std::string& text : arguments.inputs) {
    TANDEM_ASSIGN_OR_RETURN(const auto input, SplitArgument("--input ", text, "NAME=FILE"));
    TANDEM_ASSIGN_OR_RETURN(const Tensor tensor, ReadTensorFile(input.second));
    v1::NamedTensor* named = request.add_inputs();
    named->set_name(input.first);
    *named->mutable_tensor() = ToProto(tensor);
  }
  v1::EstimateGradientResponse last;
  constexpr int64_t kWhole = 1000;
  Progress progress(kWhole, "per mille");
  TANDEM_RETURN_IF_ERROR(
      session.client().EstimateGradient(request, [&](const v1::EstimateGradientResponse& response) {
        last = response;
        if (session.json) PrintJson(response);
        progress.Update(static_cast<int64_t>(response.progress() * kWhole),
                        absl::StrFormat("%d draws, standard error %.3g", response.draws(),
                                        response.max_standard_error()));
        return true;
      }));
  progress.Finish();
  return session.json ? absl::OkStatus() : PrintEstimate(last);
}

void AddSample(CLI::App& app, Session& session) {
  auto arguments = std::make_shared<SampleArguments>();
  CLI::App* sub = app.add_subcommand("sample", "Draws of a probability distribution");
  arguments->distribution.AddTo(sub);
  v1::SampleDistributionRequest* request = &arguments->request;
  AddOptional<double>(
      sub, "--temperature",
      [a = arguments.get()](double v) { a->distribution.message.set_temperature(v); },
      "of the relaxed families; default 1");
  AddOptional<int64_t>(
      sub, "-n,--draws", [=](int64_t v) { request->set_draws(v); }, "how many; default 1");
  AddOptional<uint64_t>(
      sub, "--seed", [=](uint64_t v) { request->set_seed(v); },
      "the same seed gives the same draws; default: a random one");
  sub->add_flag_callback(
      "--log-density", [=] { request->set_log_density(true); }, "of each draw");
  sub->add_flag_callback(
      "--entropy", [=] { request->set_entropy(true); }, "of the distribution");
  sub->add_option("--out", arguments->out, "write the draws to this .npy file");
  sub->callback(
      [&session, arguments] { session.Run([&] { return Sample(session, *arguments); }); });
}

void AddEstimate(CLI::App& app, Session& session) {
  auto arguments = std::make_shared<EstimateArguments>();
  CLI::App* sub = app.add_subcommand(
      "estimate-gradient", "Gradient of E[f(z)], z from a distribution, f a loaded model");
  v1::EstimateGradientRequest* request = &arguments->request;
  sub->add_option_function<std::string>(
         "model", [=](const std::string& v) { request->set_model(v); }, "f")
      ->required();
  arguments->distribution.AddTo(sub);
  sub->add_option("--estimator", arguments->estimator,
                  KnownNames(google::protobuf::GetEnumDescriptor<v1::GradientEstimatorKind>(),
                             "GRADIENT_ESTIMATOR_KIND_"));
  sub->add_option(
      "--baseline", arguments->baseline,
      KnownNames(google::protobuf::GetEnumDescriptor<v1::BaselineKind>(), "BASELINE_KIND_"));
  AddOptional<double>(
      sub, "--temperature", [=](double v) { request->set_temperature(v); },
      "of gumbel_softmax and straight_through; default 1");
  AddOptional<std::string>(
      sub, "--z", [=](const std::string& v) { request->set_input(v); },
      "the model's input that takes the draws");
  AddOptional<std::string>(
      sub, "--f", [=](const std::string& v) { request->set_output(v); },
      "the model's output that is f");
  sub->add_option("--input", arguments->inputs, "NAME=FILE of the model's other inputs");
  AddOptional<double>(
      sub, "--standard-error", [=](double v) { request->set_standard_error(v); },
      "stop when all elements are that precise");
  AddOptional<int64_t>(
      sub, "--max-draws", [=](int64_t v) { request->set_max_draws(v); }, "default 65536");
  AddOptional<int64_t>(
      sub, "--batch-draws", [=](int64_t v) { request->set_batch_draws(v); }, "default 256");
  AddOptional<uint64_t>(
      sub, "--seed", [=](uint64_t v) { request->set_seed(v); }, "default: a random one");
  sub->add_flag_callback(
      "--exact", [=] { request->set_exact(true); }, "compare with the sum over all outcomes");
  sub->callback(
      [&session, arguments] { session.Run([&] { return Estimate(session, *arguments); }); });
}

}  // namespace

void AddDistributionCommands(CLI::App& app, Session& session) {
  AddSample(app, session);
  AddEstimate(app, session);
}

}  // namespace tandem::command

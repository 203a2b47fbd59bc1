// tandem evaluate-predictions: metrics of predictions in .npy files, as a table.
#include <cstdio>
#include <memory>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "client/command/command.h"
#include "engine/formats/npy.h"

namespace tandem::command {
namespace {

struct EvaluateOptions {
  std::string predictions, targets, labels, references, gradient, gradient_of = "f1-macro";
  bool probabilities = false;
  double temperature = 1, threshold = 0.5, add_k = 0;
  std::vector<int64_t> top_k;
  int64_t max_order = 4;
};

struct MetricName {
  const char* name;
  v1::Metric metric;
};
constexpr MetricName kNames[] = {{"accuracy", v1::METRIC_ACCURACY},
                                 {"top-k", v1::METRIC_TOP_K_ACCURACY},
                                 {"f1-micro", v1::METRIC_F1_MICRO},
                                 {"f1-macro", v1::METRIC_F1_MACRO},
                                 {"bleu", v1::METRIC_BLEU}};

// Hypotheses by line: the length, then references, each after a bar: "4 | 1 2 3 4 | 1 2 4".
absl::Status ReadReferences(const std::string& path, v1::BleuTask* bleu) {
  TANDEM_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  std::istringstream lines(text);
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    auto& hypothesis = *bleu->add_hypotheses();
    std::istringstream words(line);
    bool first = true;
    for (std::string word; words >> word; first = false) {
      int32_t value = 0;
      if (word == "|" && !first) {
        hypothesis.add_references();
      } else if (!absl::SimpleAtoi(word, &value) || (!first && hypothesis.references_size() == 0)) {
        return InvalidArgument(path, " line ", number, ": '", word,
                               "' where LENGTH | TOKENS | TOKENS ... is expected");
      } else if (first) {
        hypothesis.set_length(value);
      } else {
        hypothesis.mutable_references(hypothesis.references_size() - 1)->add_ids(value);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status SetTensor(const std::string& path, v1::Tensor* out) {
  TANDEM_ASSIGN_OR_RETURN(const Tensor tensor, ReadTensorFile(path));
  *out = ToProto(tensor);
  return absl::OkStatus();
}

std::string Cell(double value) { return absl::StrFormat("%.6f", value); }

void PrintReport(const v1::EvaluatePredictionsResponse& response) {
  std::vector<std::vector<std::string>> rows = {{"METRIC", "HARD", "SMOOTH"}};
  for (const v1::MetricValue& value : response.values()) {
    std::string name;
    for (const MetricName& known : kNames) {
      if (known.metric == value.metric()) name = known.name;
    }
    if (value.k() > 0) name = StrCat("top-", value.k());
    rows.push_back({name, Cell(value.hard()), value.has_smooth() ? Cell(value.smooth()) : "-"});
  }
  PrintTable(rows);
  if (response.f1_size() > 0) {
    rows = {{"CLASS", "SUPPORT", "F1", "SMOOTH F1"}};
    for (int c = 0; c < response.f1_size(); ++c) {
      rows.push_back({StrCat(c), WithCommas(response.support(c)), Cell(response.f1(c)),
                      Cell(response.smooth_f1(c))});
    }
    std::printf("\n");
    PrintTable(rows);
  }
  if (response.precisions_size() == 0) return;
  rows = {{"ORDER", "PRECISION"}};
  for (int n = 0; n < response.precisions_size(); ++n) {
    rows.push_back({StrCat(n + 1), Cell(response.precisions(n))});
  }
  std::printf("\n");
  PrintTable(rows);
  std::printf("\nbrevity penalty %s: %s tokens, references %s\n",
              Cell(response.brevity_penalty()).c_str(),
              WithCommas(response.hypothesis_tokens()).c_str(),
              WithCommas(response.reference_tokens()).c_str());
}

absl::Status Evaluate(const Session& session, const EvaluateOptions& o) {
  v1::EvaluatePredictionsRequest request;
  TANDEM_RETURN_IF_ERROR(SetTensor(o.predictions, request.mutable_predictions()));
  if (o.probabilities) request.set_kind(v1::PREDICTION_KIND_PROBABILITIES);
  request.set_temperature(o.temperature);
  const int tasks = !o.targets.empty() + !o.labels.empty() + !o.references.empty();
  if (tasks != 1) {
    return InvalidArgument("give one of --targets, --labels and --references, not ", tasks);
  }
  if (!o.targets.empty()) {
    TANDEM_RETURN_IF_ERROR(SetTensor(o.targets, request.mutable_classes()->mutable_targets()));
    request.mutable_classes()->mutable_top_k()->Add(o.top_k.begin(), o.top_k.end());
  } else if (!o.labels.empty()) {
    TANDEM_RETURN_IF_ERROR(SetTensor(o.labels, request.mutable_labels()->mutable_labels()));
    request.mutable_labels()->set_threshold(o.threshold);
  } else {
    TANDEM_RETURN_IF_ERROR(ReadReferences(o.references, request.mutable_bleu()));
    request.mutable_bleu()->set_max_order(o.max_order);
    request.mutable_bleu()->set_add_k(o.add_k);
  }
  v1::Metric wanted = v1::METRIC_UNSPECIFIED;
  for (const MetricName& known : kNames) {
    if (o.gradient_of == known.name) wanted = known.metric;
  }
  if (!o.gradient.empty()) request.add_gradients(wanted);
  TANDEM_ASSIGN_OR_RETURN(v1::EvaluatePredictionsResponse response,
                          session.client().EvaluatePredictions(request));
  for (v1::MetricValue& value : *response.mutable_values()) {
    if (!value.has_gradient()) continue;
    TANDEM_ASSIGN_OR_RETURN(const Tensor gradient, FromProto(value.gradient()));
    TANDEM_ASSIGN_OR_RETURN(const std::string npy, WriteNpy(gradient));
    TANDEM_RETURN_IF_ERROR(WriteFile(o.gradient, npy));
    value.clear_gradient();
  }
  if (session.json) {
    PrintJson(response);
  } else {
    PrintReport(response);
  }
  return absl::OkStatus();
}

}  // namespace

void AddEvaluateCommand(CLI::App& app, Session& session) {
  auto o = std::make_shared<EvaluateOptions>();
  CLI::App* evaluate = app.add_subcommand(
      "evaluate-predictions", "Accuracy, F1 or BLEU of predictions in a file, hard and smooth");
  evaluate->add_option("predictions", o->predictions, "logits, FILE.npy: (N, classes)")->required();
  evaluate->add_flag("--probabilities", o->probabilities, "they are probabilities");
  evaluate->add_option("--targets", o->targets, "classes, FILE.npy: (N) integers");
  evaluate->add_option("--top-k", o->top_k, "with --targets: top-k accuracies too");
  evaluate->add_option("--labels", o->labels, "FILE.npy: (N, classes) of 0 and 1");
  evaluate->add_option("--threshold", o->threshold, "with --labels: predicted above it")
      ->capture_default_str();
  evaluate->add_option(
      "--references", o->references,
      "BLEU: a file with a line for each hypothesis, LENGTH | TOKEN ... | ...: the "
      "rows that are its own, and token ids of one or more references");
  evaluate->add_option("--max-order", o->max_order, "with --references")->capture_default_str();
  evaluate->add_option("--add-k", o->add_k, "with --references: smoothing of orders above 1");
  evaluate->add_option("--temperature", o->temperature, "of the smooth metrics")
      ->capture_default_str();
  evaluate->add_option("--gradient", o->gradient, "FILE.npy to write the gradient to");
  evaluate->add_option("--gradient-of", o->gradient_of, "with --gradient: whose")
      ->check(CLI::IsMember({"accuracy", "f1-micro", "f1-macro", "bleu"}))
      ->capture_default_str();
  evaluate->callback([&session, o] { session.Run([&] { return Evaluate(session, *o); }); });
}

}  // namespace tandem::command

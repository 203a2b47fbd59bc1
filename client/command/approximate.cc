// tandem approximate: statistics of streams of numbers, and roots and minima of noisy programs.
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "client/command/command.h"

namespace tandem::command {
namespace {

// Numbers in one observation, and between two drawings of the progress.
constexpr int kBatch = 8192;
// A point goes to the program in its shell's command line, which the system bounds at 128 KiB.
constexpr size_t kMaxPointText = 100'000;

struct Options {
  std::string file, state;  // where the numbers are; where the resume token is kept
  double constant_step = 0, alpha = 0;
  std::vector<double> probabilities = {0.5};
  std::string program, method = "spsa";
  std::vector<double> start, lower, upper;
  int64_t steps = 1000;
  double scale = 0, offset = -1, exponent = -1, difference = 0, difference_exponent = -1;
  bool average = false;
  int64_t average_after = 0;
  uint64_t seed = 0;
};

std::string Number(double value) { return absl::StrFormat("%.10g", value); }
std::string Numbers(const google::protobuf::RepeatedField<double>& values, size_t limit = 8) {
  std::string text;
  for (int i = 0; i < values.size(); ++i) {
    if (static_cast<size_t>(i) == limit) return text + " ...";
    text += (i > 0 ? " " : "") + Number(values[i]);
  }
  return text;
}

// The stream, begun afresh or from the token that an earlier run left; the token is kept up to date
// in a file if one is given.
class Run {
 public:
  Run(const Session& session, const Options& options)
      : session_(session), options_(options), client_(session.client()) {}

  absl::Status Begin(const v1::Approximation& approximation) {
    stream_ = std::make_unique<ApproximationStream>(client_.Approximate());
    v1::ApproximateRequest request;
    if (!options_.state.empty() && std::filesystem::exists(options_.state)) {
      TANDEM_ASSIGN_OR_RETURN(*request.mutable_resume_token(), ReadFile(options_.state));
    } else {
      *request.mutable_approximation() = approximation;
    }
    return Ask(request);
  }
  absl::Status Tell(const std::vector<double>& values) {
    v1::ApproximateRequest request;
    request.mutable_observation()->set_step(answer_.step());
    request.mutable_observation()->mutable_values()->Add(values.begin(), values.end());
    return Ask(request);
  }
  // Prints the last answer.
  void Print() const {
    if (session_.json) return PrintJson(answer_);
    const auto line = [](const char* name, const std::string& text) {
      if (!text.empty()) std::printf("%-15s %s\n", name, text.c_str());
    };
    line("observations", WithCommas(answer_.observations()));
    line("estimate", Numbers(answer_.estimate()));
    line("average", Numbers(answer_.average()));
    line("variance", Numbers(answer_.variance()));
    line("standard error", Numbers(answer_.standard_error()));
  }
  const v1::ApproximateResponse& answer() const { return answer_; }

 private:
  absl::Status Ask(const v1::ApproximateRequest& request) {
    TANDEM_ASSIGN_OR_RETURN(answer_, stream_->Exchange(request));
    if (options_.state.empty()) return absl::OkStatus();
    // Renamed into place: whenever this stops, the file holds a whole token.
    const std::string fresh = options_.state + ".new";
    TANDEM_RETURN_IF_ERROR(WriteFile(fresh, answer_.resume_token()));
    std::error_code error;
    std::filesystem::rename(fresh, options_.state, error);
    if (error) return absl::UnavailableError(StrCat("cannot write '", options_.state, "'"));
    return absl::OkStatus();
  }

  const Session& session_;
  const Options& options_;
  Client client_;
  std::unique_ptr<ApproximationStream> stream_;
  v1::ApproximateResponse answer_;
};

absl::StatusOr<double> ToNumber(const std::string& word, std::string_view where) {
  double value = 0;
  if (absl::SimpleAtod(word, &value) && std::isfinite(value)) return value;
  return InvalidArgument(where, ": '", word, "' is not a finite number");
}

// Numbers of a file, or of standard input as they come.
absl::Status Observe(const Session& session, const Options& options,
                     const v1::Approximation& approximation) {
  std::ifstream file;
  int64_t bytes = 0;
  if (!options.file.empty()) {
    std::error_code error;
    bytes = static_cast<int64_t>(std::filesystem::file_size(options.file, error));
    file.open(options.file);
    if (error || !file) return NotFound("'", options.file, "' is not a file that can be read");
  }
  std::istream& in = options.file.empty() ? std::cin : file;
  Run run(session, options);
  TANDEM_RETURN_IF_ERROR(run.Begin(approximation));
  Progress progress(bytes, options.file.empty() ? "numbers" : "bytes");
  std::vector<double> batch;
  bool drawn = false;
  const auto tell = [&]() -> absl::Status {
    TANDEM_RETURN_IF_ERROR(run.Tell(batch));
    batch.clear();
    if (run.answer().observations() < 100 * kBatch) return absl::OkStatus();
    drawn = true;
    const auto at = static_cast<int64_t>(in.tellg());
    progress.Update(options.file.empty() ? run.answer().observations() : (at < 0 ? bytes : at),
                    "estimate " + Numbers(run.answer().estimate(), 3));
    return absl::OkStatus();
  };
  const std::string where = options.file.empty() ? "standard input" : options.file;
  for (std::string word; in >> word;) {
    TANDEM_ASSIGN_OR_RETURN(batch.emplace_back(), ToNumber(word, where));
    if (batch.size() == kBatch) TANDEM_RETURN_IF_ERROR(tell());
  }
  if (!batch.empty()) TANDEM_RETURN_IF_ERROR(tell());
  if (drawn) progress.Finish();
  run.Print();
  return absl::OkStatus();
}

// Runs the program on a point, its coordinates on one line of standard input, and reads `count`
// numbers.
absl::StatusOr<std::vector<double>> Evaluate(const std::string& program,
                                             const google::protobuf::RepeatedField<double>& point,
                                             size_t count) {
  std::string text;
  for (double x : point) text += absl::StrFormat("%s%.17g", text.empty() ? "" : " ", x);
  if (text.size() > kMaxPointText) {
    return InvalidArgument("the point is too long for a program: ", point.size(), " coordinates");
  }
  const std::string command =
      StrCat("{ ", program, "\n} <<'TANDEM_POINT'\n", text, "\nTANDEM_POINT\n");
  FILE* const pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return absl::UnavailableError(StrCat("cannot run '", program, "'"));
  std::string output;
  char buffer[4096];
  for (size_t n; (n = fread(buffer, 1, sizeof(buffer), pipe)) > 0;) output.append(buffer, n);
  if (pclose(pipe) != 0) return absl::AbortedError(StrCat("'", program, "' failed at ", text));
  std::istringstream words(output);
  std::vector<double> values;
  for (std::string word; words >> word;) {
    TANDEM_ASSIGN_OR_RETURN(values.emplace_back(), ToNumber(word, StrCat("'", program, "'")));
  }
  if (values.size() != count) {
    return InvalidArgument("'", program, "' at ", text, " printed ", values.size(),
                           " numbers, expected ", count);
  }
  return values;
}

absl::Status Iterate(const Session& session, const Options& options,
                     const v1::Approximation& approximation) {
  Run run(session, options);
  TANDEM_RETURN_IF_ERROR(run.Begin(approximation));
  Progress progress(options.steps, "step");
  while (run.answer().step() < options.steps) {
    std::vector<double> observation;
    const auto& queries = run.answer().queries();
    for (const auto& query : queries) {
      const size_t count = queries.size() > 1 ? 1 : static_cast<size_t>(query.coordinates_size());
      TANDEM_ASSIGN_OR_RETURN(const std::vector<double> values,
                              Evaluate(options.program, query.coordinates(), count));
      observation.insert(observation.end(), values.begin(), values.end());
    }
    TANDEM_RETURN_IF_ERROR(run.Tell(observation));
    progress.Update(run.answer().step(), "estimate " + Numbers(run.answer().estimate(), 3));
  }
  progress.Finish();
  run.Print();
  return absl::OkStatus();
}

// The fields of every iteration.
template <typename Method>
void Fill(const Options& options, Method* method) {
  method->mutable_start()->Add(options.start.begin(), options.start.end());
  if (options.scale != 0) method->mutable_step()->set_scale(options.scale);
  if (options.offset >= 0) method->mutable_step()->set_offset(options.offset);
  if (options.exponent >= 0) method->mutable_step()->set_exponent(options.exponent);
  method->mutable_box()->mutable_lower()->Add(options.lower.begin(), options.lower.end());
  method->mutable_box()->mutable_upper()->Add(options.upper.begin(), options.upper.end());
  if (options.average) method->mutable_average()->set_after(options.average_after);
}
template <typename Method>
void FillDifference(const Options& options, Method* method) {
  if (options.difference != 0) method->mutable_difference()->set_scale(options.difference);
  if (options.difference_exponent >= 0) {
    method->mutable_difference()->set_exponent(options.difference_exponent);
  }
}

v1::Approximation Minimisation(const Options& options) {
  v1::Approximation approximation;
  if (options.method == "kiefer-wolfowitz") {
    Fill(options, approximation.mutable_kiefer_wolfowitz());
    FillDifference(options, approximation.mutable_kiefer_wolfowitz());
  } else if (options.method == "spsa") {
    Fill(options, approximation.mutable_spsa());
    FillDifference(options, approximation.mutable_spsa());
    approximation.mutable_spsa()->set_seed(options.seed);
  } else {
    auto* descent = approximation.mutable_gradient_descent();
    Fill(options, descent);
    if (options.method == "momentum") descent->set_rule(v1::DESCENT_RULE_MOMENTUM);
    if (options.method == "adam") descent->set_rule(v1::DESCENT_RULE_ADAM);
  }
  return approximation;
}

using Shared = std::shared_ptr<Options>;

CLI::App* AddStatistic(CLI::App* parent, Session& session, const Shared& options, const char* name,
                       const char* help,
                       const std::function<v1::Approximation(const Options&)>& approximation) {
  CLI::App* command = parent->add_subcommand(name, help);
  command->add_option("file", options->file, "numbers, separated by spaces or lines; else stdin");
  command->add_option("--state", options->state,
                      "file to resume from, if it exists, and to keep the resume token in");
  command->callback([&session, options, approximation] {
    session.Run([&] { return Observe(session, *options, approximation(*options)); });
  });
  return command;
}

CLI::App* AddIteration(CLI::App* parent, Session& session, const Shared& options, const char* name,
                       const char* help,
                       const std::function<v1::Approximation(const Options&)>& approximation) {
  CLI::App* command = parent->add_subcommand(name, help);
  command
      ->add_option("--command", options->program,
                   "shell command: reads the point from stdin, prints the number(s)")
      ->required();
  command->add_option("--start", options->start, "coordinates to begin at")->required();
  command->add_option("--steps", options->steps, "observations in all")->capture_default_str();
  command->add_option("--scale", options->scale, "steps are SCALE / (k + OFFSET)^EXPONENT");
  command->add_option("--offset", options->offset, "see --scale");
  command->add_option("--exponent", options->exponent, "see --scale");
  command->add_option("--lower", options->lower, "lower bound, one or one a coordinate");
  command->add_option("--upper", options->upper, "upper bound, one or one a coordinate");
  command->add_flag("--average", options->average, "average the iterates");
  command->add_option("--average-after", options->average_after,
                      "steps that the average leaves out");
  command->add_option("--state", options->state,
                      "file to resume from, if it exists, and to keep the resume token in");
  command->callback([&session, options, approximation] {
    session.Run([&] { return Iterate(session, *options, approximation(*options)); });
  });
  return command;
}

}  // namespace

void AddApproximateCommands(CLI::App& app, Session& session) {
  CLI::App* parent = app.add_subcommand("approximate", "Stochastic approximation");
  parent->require_subcommand(1);
  auto options = std::make_shared<Options>();
  AddStatistic(parent, session, options, "mean", "Mean, variance, standard error",
               [](const Options& o) {
                 v1::Approximation approximation;
                 auto* mean = approximation.mutable_mean();
                 if (o.constant_step != 0) mean->set_constant_step(o.constant_step);
                 return approximation;
               })
      ->add_option("--constant-step", options->constant_step, "forget: m += STEP (x - m)");
  AddStatistic(parent, session, options, "ema", "Exponential moving average",
               [](const Options& o) {
                 v1::Approximation approximation;
                 approximation.mutable_exponential_average()->set_alpha(o.alpha);
                 return approximation;
               })
      ->add_option("--alpha", options->alpha, "weight of the newest number, in (0, 1]")
      ->required();
  AddStatistic(parent, session, options, "quantile", "Quantiles", [](const Options& o) {
    v1::Approximation approximation;
    for (double p : o.probabilities) {
      approximation.mutable_quantile()->add_probabilities(p);
    }
    return approximation;
  })->add_option("-p,--probability", options->probabilities, "increasing, each within (0, 1)");
  AddIteration(parent, session, options, "root",
               "Root of a noisy function, one number a coordinate (Robbins-Monro)",
               [](const Options& o) {
                 v1::Approximation approximation;
                 Fill(o, approximation.mutable_robbins_monro());
                 return approximation;
               });
  CLI::App* minimise = AddIteration(
      parent, session, options, "minimize",
      "Minimum of a noisy function: one number; for sgd, momentum and adam its gradient",
      Minimisation);
  minimise->add_option("--method", options->method, "how")
      ->check(CLI::IsMember({"spsa", "kiefer-wolfowitz", "sgd", "momentum", "adam"}))
      ->capture_default_str();
  minimise->add_option("--difference", options->difference, "scale of the differences' reach");
  minimise->add_option("--difference-exponent", options->difference_exponent,
                       "with which the reach falls");
  minimise->add_option("--seed", options->seed, "of spsa's directions");
}

}  // namespace tandem::command

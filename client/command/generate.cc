#include <cmath>
#include <cstdio>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/command/command.h"

namespace tandem::command {
namespace {

struct GenerateOptions {
  v1::GenerateRequest request;
  std::string prompt;
  std::vector<int32_t> tokens;
  bool show_logprobs = false;
};

absl::Status Generate(const Session& session, GenerateOptions& options) {
  v1::GenerateRequest& request = options.request;
  if (options.tokens.empty() == options.prompt.empty()) {
    return InvalidArgument("give one of --prompt and --tokens");
  }
  if (!options.tokens.empty()) {
    for (int32_t token : options.tokens) request.mutable_tokens()->add_ids(token);
  } else {
    request.set_text(options.prompt);
  }
  const bool several = request.has_n() && request.n() > 1;
  std::vector<std::string> texts(several ? request.n() : 1);
  std::vector<std::vector<std::string>> rows = {
      {"SAMPLE", "TOKEN", "LOGPROB", "SAMPLING LOGPROB", "VERSION", "TEXT"}};
  std::vector<int32_t> tokens;
  int64_t count = 0;
  bool begun = false;
  const absl::Status status =
      session.client().Generate(request, [&](const v1::GenerateResponse& response) {
        if (session.json) {
          PrintJson(response);
          return true;
        }
        if (response.has_token()) {
          ++count;
          tokens.push_back(response.token());
          if (options.show_logprobs) {
            rows.push_back({std::to_string(response.index()), std::to_string(response.token()),
                            absl::StrFormat("%.9g", response.logprob()),
                            absl::StrFormat("%.9g", response.sampling_logprob()),
                            std::to_string(response.weights_version()), response.text()});
          }
        }
        if (several) {
          if (response.index() >= 0 && response.index() < static_cast<int>(texts.size())) {
            texts[response.index()] += response.text();
          }
        } else if (!options.show_logprobs) {
          std::printf("%s%s", begun ? "" : options.prompt.c_str(), response.text().c_str());
          begun = true;
          std::fflush(stdout);
        }
        return true;
      });
  if (!session.json && count > 0) {
    if (several) {
      for (size_t i = 0; i < texts.size(); ++i) {
        std::printf("--- %zu\n%s%s\n", i, options.prompt.c_str(), texts[i].c_str());
      }
    } else if (options.show_logprobs) {
      PrintTable(rows);
    } else if (!options.tokens.empty()) {
      std::printf("\ntokens: %s\n", absl::StrJoin(tokens, ",").c_str());
    } else {
      std::printf("\n");
    }
  }
  return status;
}

void AddGenerate(CLI::App& app, Session& session) {
  auto options = std::make_shared<GenerateOptions>();
  v1::GenerateRequest* request = &options->request;
  CLI::App* sub = app.add_subcommand("generate", "Sample tokens from a language model");
  sub->add_option_function<std::string>(
         "model", [request](const std::string& name) { request->set_model(name); }, "the model")
      ->required();
  sub->add_option("--prompt", options->prompt, "text to go on from");
  sub->add_option("--tokens", options->tokens, "tokens to go on from: 1,2,3")->delimiter(',');
  AddOptional<int32_t>(
      sub, "--max-tokens", [=](int32_t v) { request->set_max_tokens(v); }, "at most that many");
  AddOptional<int32_t>(
      sub, "--min-tokens", [=](int32_t v) { request->set_min_tokens(v); }, "at least that many");
  AddOptional<float>(
      sub, "--temperature", [=](float v) { request->set_temperature(v); },
      "0: the likeliest token each time; default 1");
  AddOptional<int32_t>(
      sub, "--top-k", [=](int32_t v) { request->set_top_k(v); }, "draw from the k likeliest");
  AddOptional<float>(
      sub, "--top-p", [=](float v) { request->set_top_p(v); },
      "draw from the smallest set of that probability");
  AddOptional<float>(
      sub, "--min-p", [=](float v) { request->set_min_p(v); },
      "drop tokens below that share of the likeliest's probability");
  AddOptional<float>(
      sub, "--repetition-penalty", [=](float v) { request->set_repetition_penalty(v); }, "1: none");
  AddOptional<float>(
      sub, "--presence-penalty", [=](float v) { request->set_presence_penalty(v); }, "0: none");
  AddOptional<float>(
      sub, "--frequency-penalty", [=](float v) { request->set_frequency_penalty(v); }, "0: none");
  AddOptional<std::vector<std::string>>(
      sub, "--stop",
      [=](const std::vector<std::string>& v) {
        for (const std::string& stop : v) request->add_stop(stop);
      },
      "text to end at (may be repeated)");
  sub->add_flag_callback(
      "--ignore-eos", [=] { request->set_ignore_eos(true); }, "go on after the end of sequence");
  AddOptional<int32_t>(
      sub, "-n,--samples", [=](int32_t v) { request->set_n(v); }, "independent samples");
  AddOptional<uint64_t>(
      sub, "--seed", [=](uint64_t v) { request->set_seed(v); },
      "the same seed gives the same tokens; default: a random one");
  sub->add_flag("--logprobs", options->show_logprobs,
                "print each token with its log-probabilities");
  sub->callback([&session, options] { session.Run([&] { return Generate(session, *options); }); });
}

struct ScoreOptions {
  std::string model, text;
  std::vector<int32_t> tokens;
};

absl::Status Score(const Session& session, const ScoreOptions& options) {
  v1::ScoreRequest request;
  request.set_model(options.model);
  if (options.tokens.empty() == options.text.empty()) {
    return InvalidArgument("give one of --text and --tokens");
  }
  if (options.text.empty()) {
    auto* sequence = request.add_sequences();
    for (int32_t token : options.tokens) sequence->add_ids(token);
  } else {
    request.add_texts(options.text);
  }
  TANDEM_ASSIGN_OR_RETURN(const v1::ScoreResponse response, session.client().Score(request));
  if (session.json) {
    PrintJson(response);
    return absl::OkStatus();
  }
  std::vector<std::vector<std::string>> rows = {{"POSITION", "TOKEN", "LOGPROB"}};
  double total = 0;
  for (const auto& sequence : response.sequences()) {
    for (int i = 0; i < sequence.tokens_size(); ++i) {
      rows.push_back({std::to_string(i), std::to_string(sequence.tokens(i)),
                      i == 0 ? "-" : absl::StrFormat("%.9g", sequence.logprobs(i))});
      if (i > 0) total += sequence.logprobs(i);
    }
    const int scored = std::max(1, sequence.tokens_size() - 1);
    PrintTable(rows);
    std::printf("sum %.6f, per token %.6f, perplexity %.4f, weights version %lld\n", total,
                total / scored, std::exp(-total / scored),
                static_cast<long long>(response.weights_version()));
  }
  return absl::OkStatus();
}

}  // namespace

void AddGenerateCommands(CLI::App& app, Session& session) {
  AddGenerate(app, session);
  auto options = std::make_shared<ScoreOptions>();
  CLI::App* score = app.add_subcommand("score", "Log-probabilities of given tokens or text");
  score->add_option("model", options->model, "the model")->required();
  score->add_option("--text", options->text, "the text");
  score->add_option("--tokens", options->tokens, "the tokens: 1,2,3")->delimiter(',');
  score->callback([&session, options] { session.Run([&] { return Score(session, *options); }); });
}

}  // namespace tandem::command

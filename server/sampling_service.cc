#include "server/sampling_service.h"

#include <grpcpp/server_context.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/exec/executor.h"
#include "engine/formats/tokenizer.h"
#include "server/call.h"
#include "server/convert_approximation.h"
#include "server/convert_distribution.h"
#include "server/convert_sampling.h"
#include "server/estimate_gradient.h"
#include "server/generation.h"
#include "server/memory_guard.h"
#include "server/metrics.h"
#include "server/model_store.h"
#include "server/ordered_stream.h"
#include "server/stop_text.h"
#include "tandem/v1/sampling.grpc.pb.h"

namespace tandem::server {
namespace {

using Context = grpc::CallbackServerContext;
using Reactor = grpc::ServerUnaryReactor;

constexpr int64_t kDefaultMaxTokens = 128;
// Messages that wait for a client to read them; beyond, the call ends.
constexpr size_t kMaxUnread = 16384;
// No token stands for as many bytes: longer texts cannot fit, and need not be tokenised to know it.
constexpr int64_t kMaxBytesPerToken = 1024;
// Sequences are scored in pieces of about as many tokens, which bounds the logits' memory; the
// kernels are batch-invariant, so the pieces do not show.
constexpr size_t kScoreTokens = 2048;
// What one request may score: it has the compute thread to itself, as its answer is of one version
// of the weights.
constexpr int64_t kMaxScoreTokens = int64_t{1} << 18;

absl::StatusOr<const SequenceModelInfo*> LanguageModelOf(const ModelEntry& entry) {
  if (const SequenceModelInfo* info = entry.source->sequence()) return info;
  return FailedPrecondition("model '", entry.name, "' is not a language model");
}

absl::StatusOr<const Tokenizer*> TokenizerOf(const ModelEntry& entry) {
  if (entry.tokenizer != nullptr) return entry.tokenizer.get();
  return FailedPrecondition("model '", entry.name, "' has no tokenizer: give token ids");
}

// The tokens of a text that is to be one sequence of the model.
// `prompt`: begin as the tokenizer's configuration says that texts begin.
absl::StatusOr<std::vector<int32_t>> Encode(const ModelEntry& entry, const std::string& text,
                                            bool prompt) {
  TANDEM_ASSIGN_OR_RETURN(const SequenceModelInfo* info, LanguageModelOf(entry));
  TANDEM_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, TokenizerOf(entry));
  if (static_cast<int64_t>(text.size()) / kMaxBytesPerToken > info->max_positions) {
    return InvalidArgument("the text has ", text.size(), " bytes, which cannot fit into ",
                           info->max_positions, " positions");
  }
  return tokenizer->Encode(text, prompt && tokenizer->adds_bos());
}

absl::StatusOr<std::vector<int32_t>> PromptOf(const ModelEntry& entry,
                                              const v1::GenerateRequest& request) {
  switch (request.prompt_case()) {
    case v1::GenerateRequest::kText:
      return Encode(entry, request.text(), /*prompt=*/true);
    case v1::GenerateRequest::kTokens:
      return std::vector<int32_t>(request.tokens().ids().begin(), request.tokens().ids().end());
    case v1::GenerateRequest::PROMPT_NOT_SET:
      break;
  }
  return InvalidArgument("no prompt is set: expected text or tokens");
}

uint64_t RandomSeed() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

// One Generate call. Its sequences call it on the compute thread; gRPC calls it on its own.
// Lock contract: mutex_ guards the queue of messages and how the call ends; the samples belong to
// the compute thread. It lives until gRPC is done with it and no task refers to it any more.
class GenerateCall final : public grpc::ServerWriteReactor<v1::GenerateResponse>,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  static GenerateCall* Start(const Method& method, Context* context,
                             const v1::GenerateRequest& request) {
    auto call = std::shared_ptr<GenerateCall>(new GenerateCall(method, context));
    call->self_ = call;
    absl::Status status = call->Prepare(request);
    if (status.ok()) {
      status = SubmitCall(method.dependencies, Place::kServing, [call] { call->Begin(); });
    }
    if (!status.ok()) call->End(status);
    return call.get();
  }

  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(mutex_);
    writing_ = false;
    messages_.pop_front();
    if (!ok) {
      messages_.clear();
      if (!end_) end_ = account_.GoneStatus();
    }
    Advance();
  }
  void OnCancel() override {
    {
      const std::lock_guard lock(mutex_);
      if (!end_) end_ = account_.GoneStatus();
      if (!writing_) messages_.clear();
      Advance();
    }
    Abandon();
  }
  void OnDone() override { const std::shared_ptr<GenerateCall> self = std::move(self_); }

 private:
  // One of the n samples; compute thread only.
  struct Sample {
    explicit Sample(StopText stop_text) : stop(std::move(stop_text)) {}
    int64_t id = 0;
    std::optional<DecodeStream> decode;  // none without a tokenizer
    StopText stop;
    int64_t tokens = 0;
    std::chrono::steady_clock::time_point last_token = {};
    bool finished = false;
  };

  GenerateCall(const Method& method, Context* context) : account_(method, context) {}

  // Checks the request, on gRPC's thread.
  absl::Status Prepare(const v1::GenerateRequest& request) {
    TANDEM_ASSIGN_OR_RETURN(entry_, deps().models.Find(request.model()));
    TANDEM_ASSIGN_OR_RETURN(const SequenceModelInfo* info, LanguageModelOf(*entry_));
    TANDEM_ASSIGN_OR_RETURN(options_, FromProto(request, info->vocab_size));
    TANDEM_ASSIGN_OR_RETURN(const int32_t count, SampleCount(request));
    TANDEM_ASSIGN_OR_RETURN(prompt_, PromptOf(*entry_, request));
    if (request.stop_size() != 0) TANDEM_RETURN_IF_ERROR(TokenizerOf(*entry_).status());
    if (!request.has_max_tokens()) {
      const auto room = info->max_positions - static_cast<int64_t>(prompt_.size());
      options_.max_tokens = std::max<int64_t>(1, std::min(kDefaultMaxTokens, room));
    }
    options_.seed = request.has_seed() ? request.seed() : RandomSeed();
    for (int32_t i = 0; i < count; ++i) {
      Sample& sample =
          samples_.emplace_back(StopText({request.stop().begin(), request.stop().end()}));
      if (entry_->tokenizer != nullptr) {
        sample.decode.emplace(*entry_->tokenizer, /*at_start=*/prompt_.empty());
      }
    }
    return absl::OkStatus();
  }

  // Compute thread: queues the sequences.
  void Begin() {
    if (ended()) return;
    const absl::StatusOr<Generation*> generation =
        CatchOutOfMemory([&] { return deps().models.GenerationOf(*entry_); });
    if (!generation.ok()) return End(generation.status());
    entry_->metrics->PromptTokens(static_cast<int64_t>(prompt_.size()));
    for (size_t i = 0; i < samples_.size() && !ended(); ++i) {
      SamplingOptions options = options_;
      options.stream = i;
      options.prompt_logprobs = options_.prompt_logprobs && i == 0;
      const absl::StatusOr<int64_t> id =
          (*generation)
              ->Add(prompt_, std::move(options),
                    [self = shared_from_this(), i](const absl::Status& status,
                                                   const SampledToken& token) {
                      return self->OnToken(i, status, token);
                    });
      if (!id.ok()) {
        CancelAll(ModelMetrics::Finish::kError);
        return End(id.status());
      }
      samples_[i].id = *id;
    }
  }

  // Compute thread: a token of sample i, or why there is none. False ends the sequence.
  bool OnToken(size_t i, const absl::Status& status, const SampledToken& token) {
    Sample& sample = samples_[i];
    if (!status.ok()) return Fail(sample, status);
    if (ended()) {
      Finished(sample, ModelMetrics::Finish::kCancelled);
      return false;
    }
    Time(sample);
    v1::GenerateResponse message;
    message.set_index(static_cast<int32_t>(i));
    ToProto(token, &message);
    if (i == 0 && sample.tokens == 1) {
      message.set_seed(options_.seed);
      message.mutable_prompt_tokens()->Add(prompt_.begin(), prompt_.end());
    }
    const absl::Status decoded = AddText(sample, token, &message);
    if (!decoded.ok()) return Fail(sample, decoded);
    if (message.finish_reason() == v1::FINISH_REASON_STOP) {
      Finished(sample, ModelMetrics::Finish::kStop);
    } else if (message.finish_reason() == v1::FINISH_REASON_LENGTH) {
      Finished(sample, ModelMetrics::Finish::kLength);
    }
    Send(std::move(message));
    if (std::all_of(samples_.begin(), samples_.end(), [](const Sample& s) { return s.finished; })) {
      End(absl::OkStatus());
    }
    return !sample.finished;
  }

  // One sample's error ends the call.
  bool Fail(Sample& sample, const absl::Status& status) {
    Finished(sample, ModelMetrics::Finish::kError);
    End(status);
    Abandon();
    return false;
  }

  void Time(Sample& sample) {
    const auto now = std::chrono::steady_clock::now();
    ModelMetrics& metrics = *entry_->metrics;
    metrics.GeneratedToken();
    if (sample.tokens > 0) {
      metrics.NextToken(std::chrono::duration<double>(now - sample.last_token).count());
    } else if (!std::exchange(first_token_seen_, true)) {
      metrics.FirstToken(account_.SecondsSinceStart());
    }
    sample.last_token = now;
    ++sample.tokens;
  }

  // The token's text, ended at a stop text, whose finish reason it then sets.
  absl::Status AddText(Sample& sample, const SampledToken& token, v1::GenerateResponse* message) {
    if (!sample.decode) return absl::OkStatus();
    TANDEM_ASSIGN_OR_RETURN(std::string text, sample.decode->Add(token.token));
    const bool last = token.finish != FinishReason::kNone;
    if (last) text += sample.decode->Finish();
    bool found = false;
    if (sample.tokens >= options_.min_tokens) text = sample.stop.Add(text, &found);
    if (found) {
      message->set_finish_reason(v1::FINISH_REASON_STOP);
    } else if (last) {
      text += sample.stop.Finish();
    }
    message->set_text(std::move(text));
    return absl::OkStatus();
  }

  void Finished(Sample& sample, ModelMetrics::Finish reason) {
    if (std::exchange(sample.finished, true)) return;
    entry_->metrics->GenerationFinished(reason);
  }

  // Compute thread: frees the places of all samples that run or wait.
  void CancelAll(ModelMetrics::Finish reason) {
    for (Sample& sample : samples_) {
      if (sample.id == 0 || sample.finished) continue;
      if (entry_->generation != nullptr) entry_->generation->Cancel(sample.id);
      Finished(sample, reason);
    }
  }

  // Any thread: has the compute thread free what the call holds. If its queue takes nothing more,
  // the sequences end at their next token, when they find the call ended.
  void Abandon() {
    (void)deps().compute.Submit(Executor::Lane::kServing, [self = shared_from_this()] {
      self->CancelAll(ModelMetrics::Finish::kCancelled);
    });
  }

  void Send(v1::GenerateResponse message) {
    const std::lock_guard lock(mutex_);
    if (end_) return;
    if (messages_.size() < kMaxUnread) {
      messages_.push_back(std::move(message));
    } else {
      deps().metrics.Rejected(Metrics::Rejection::kSlowReader);
      end_ = ResourceExhausted("the client reads too slowly: ", kMaxUnread, " messages wait");
      Abandon();
    }
    Advance();
  }
  // Ends the call after the messages before it; the first status counts.
  void End(const absl::Status& status) {
    const std::lock_guard lock(mutex_);
    if (!end_) end_ = status;
    Advance();
  }
  // Under mutex_: writes the next message, or finishes.
  void Advance() {
    if (writing_ || finished_) return;
    if (!messages_.empty()) {
      writing_ = true;
      StartWrite(&messages_.front());
    } else if (end_) {
      finished_ = true;
      Finish(account_.Finish(*end_));
    }
  }
  bool ended() {
    const std::lock_guard lock(mutex_);
    return end_.has_value();
  }
  const Dependencies& deps() const { return account_.method().dependencies; }

  CallAccount account_;
  ModelStore::Entry entry_;
  std::vector<int32_t> prompt_;
  SamplingOptions options_;
  std::vector<Sample> samples_;
  bool first_token_seen_ = false;
  std::shared_ptr<GenerateCall> self_;  // until OnDone
  std::mutex mutex_;
  std::deque<v1::GenerateResponse> messages_;  // the first is being written if writing_
  bool writing_ = false, finished_ = false;
  std::optional<absl::Status> end_;
};

class SamplingService final : public v1::SamplingService::CallbackService {
 public:
  explicit SamplingService(const Dependencies& dependencies) : deps_(dependencies) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      Context* context, const v1::GenerateRequest* request) override {
    return GenerateCall::Start(generate_, context, *request);
  }

  Reactor* Score(Context* context, const v1::ScoreRequest* request,
                 v1::ScoreResponse* response) override {
    return StartCall(score_, context, Place::kServing, [=, this]() -> absl::StatusOr<Work> {
      TANDEM_ASSIGN_OR_RETURN(auto entry, deps_.models.Find(request->model()));
      TANDEM_ASSIGN_OR_RETURN(auto sequences, SequencesOf(*entry, *request));
      return [=, this, sequences = std::move(sequences)] {
        return ScoreAll(*entry, sequences, response);
      };
    });
  }

  Reactor* Tokenize(Context* context, const v1::TokenizeRequest* request,
                    v1::TokenizeResponse* response) override {
    // A whole corpus, not one sequence: no limit but the message's, and not on gRPC's thread.
    return StartCall(tokenize_, context, Place::kLoader, [=, this]() -> absl::StatusOr<Work> {
      TANDEM_ASSIGN_OR_RETURN(const auto entry, deps_.models.Find(request->model()));
      TANDEM_RETURN_IF_ERROR(TokenizerOf(*entry).status());
      return Work([=]() -> absl::Status {
        TANDEM_ASSIGN_OR_RETURN(
            const std::vector<int32_t> ids,
            entry->tokenizer->Encode(request->text(),
                                     request->add_bos() && entry->tokenizer->adds_bos()));
        response->mutable_tokens()->Add(ids.begin(), ids.end());
        return absl::OkStatus();
      });
    });
  }

  Reactor* Detokenize(Context* context, const v1::DetokenizeRequest* request,
                      v1::DetokenizeResponse* response) override {
    return AnswerNow(detokenize_, context, [=, this]() -> absl::Status {
      TANDEM_ASSIGN_OR_RETURN(const auto entry, deps_.models.Find(request->model()));
      TANDEM_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, TokenizerOf(*entry));
      TANDEM_ASSIGN_OR_RETURN(*response->mutable_text(),
                              tokenizer->Decode({request->tokens().data(),
                                                 static_cast<size_t>(request->tokens_size())}));
      return absl::OkStatus();
    });
  }

  Reactor* SampleDistribution(Context* context, const v1::SampleDistributionRequest* request,
                              v1::SampleDistributionResponse* response) override {
    return StartCall(sample_distribution_, context, Place::kServing,
                     [=, this]() -> absl::StatusOr<Work> {
                       TANDEM_ASSIGN_OR_RETURN(DrawOptions options, FromProto(*request));
                       options.seed = request->has_seed() ? request->seed() : RandomSeed();
                       response->set_seed(options.seed);
                       return [=, this, options = std::move(options)]() -> absl::Status {
                         TANDEM_ASSIGN_OR_RETURN(const DrawResult result,
                                                 tandem::SampleDistribution(options, plans_));
                         ToProto(result, options, response);
                         return absl::OkStatus();
                       };
                     });
  }

  grpc::ServerWriteReactor<v1::EstimateGradientResponse>* EstimateGradient(
      Context* context, const v1::EstimateGradientRequest* request) override {
    return StartEstimateGradient(estimate_gradient_, context, *request,
                                 request->has_seed() ? request->seed() : RandomSeed());
  }

  grpc::ServerBidiReactor<v1::ApproximateRequest, v1::ApproximateResponse>* Approximate(
      Context* context) override {
    using Stream = OrderedStream<v1::ApproximateRequest, v1::ApproximateResponse>;
    auto approximation = std::make_shared<std::optional<Approximation>>();
    return Stream::Start(
        approximate_, context, Place::kHere,
        [approximation](const v1::ApproximateRequest& request, v1::ApproximateResponse* response) {
          return Work([&request, response, approximation] {
            return server::Approximate(request, approximation.get(), response);
          });
        },
        [](const absl::Status&, v1::ApproximateResponse*) { return false; });
  }

 private:
  using Sequences = std::vector<std::vector<int32_t>>;

  absl::StatusOr<Sequences> SequencesOf(const ModelEntry& entry, const v1::ScoreRequest& request) {
    TANDEM_ASSIGN_OR_RETURN(const SequenceModelInfo* info, LanguageModelOf(entry));
    if ((request.sequences_size() == 0) == (request.texts_size() == 0)) {
      return InvalidArgument("expected either sequences or texts, got ", request.sequences_size(),
                             " sequences and ", request.texts_size(), " texts");
    }
    Sequences sequences;
    for (const v1::TokenIds& tokens : request.sequences()) {
      sequences.emplace_back(tokens.ids().begin(), tokens.ids().end());
    }
    for (const std::string& text : request.texts()) {
      TANDEM_ASSIGN_OR_RETURN(sequences.emplace_back(), Encode(entry, text, /*prompt=*/true));
    }
    int64_t total = 0;
    for (size_t i = 0; i < sequences.size(); ++i) {
      const auto length = static_cast<int64_t>(sequences[i].size());
      if (length == 0 || length > info->max_positions) {
        return InvalidArgument("sequence ", i, " has ", length, " tokens, expected 1 to ",
                               info->max_positions);
      }
      total += length;
      if (total > kMaxScoreTokens) {
        return InvalidArgument("one request may score ", kMaxScoreTokens,
                               " tokens, this one has more");
      }
      for (int32_t token : sequences[i]) {
        if (token < 0 || token >= info->vocab_size) {
          return InvalidArgument("sequence ", i, " has token ", token,
                                 ", outside the vocabulary [0, ", info->vocab_size, ")");
        }
      }
    }
    return sequences;
  }

  // On the compute thread.
  absl::Status ScoreAll(const ModelEntry& entry, const Sequences& sequences,
                        v1::ScoreResponse* response) {
    TANDEM_ASSIGN_OR_RETURN(Model * model, entry.Live());
    const auto begin = std::chrono::steady_clock::now();
    for (size_t next = 0; next < sequences.size();) {
      Sequences piece;
      for (size_t tokens = 0; next < sequences.size(); ++next) {
        tokens += sequences[next].size();
        if (!piece.empty() && tokens > kScoreTokens) break;
        piece.push_back(sequences[next]);
      }
      TANDEM_ASSIGN_OR_RETURN(const auto logprobs, ScoreSequences(model, piece));
      for (size_t i = 0; i < piece.size(); ++i) {
        auto* scored = response->add_sequences();
        scored->mutable_tokens()->Add(piece[i].begin(), piece[i].end());
        scored->mutable_logprobs()->Add(logprobs[i].begin(), logprobs[i].end());
      }
    }
    response->set_weights_version(model->weights_version());
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    deps_.metrics.Computed(Metrics::Phase::kForward, taken.count());
    return absl::OkStatus();
  }

  const Dependencies deps_;
  const Method generate_{deps_, "Generate"}, score_{deps_, "Score"}, tokenize_{deps_, "Tokenize"},
      detokenize_{deps_, "Detokenize"}, sample_distribution_{deps_, "SampleDistribution"},
      estimate_gradient_{deps_, "EstimateGradient"}, approximate_{deps_, "Approximate"};
  PlanCache plans_{64};  // of distributions; compute thread only
};

}  // namespace

std::unique_ptr<grpc::Service> MakeSamplingService(const Dependencies& dependencies) {
  return std::make_unique<SamplingService>(dependencies);
}

}  // namespace tandem::server

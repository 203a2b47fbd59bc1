#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <deque>
#include <numbers>
#include <numeric>
#include <optional>
#include <random>
#include <thread>

#include "absl/strings/str_format.h"
#include "client/command/command.h"

namespace tandem::command {
namespace {

struct TrainOptions {
  std::string model;
  // Language models.
  std::string text;
  double validation_fraction = 0.1;
  int64_t block = 0;
  // Other models: whole data sets, batches cut from their first dimension.
  std::vector<std::string> inputs;
  std::string target, loss = "cross-entropy";
  int64_t batch = 12, steps = 500, warmup = -1, eval_every = 0, eval_batches = 20;
  double temperature = 0;
  double lr = 1e-3, min_lr = -1, beta1 = 0.9, beta2 = 0.99, epsilon = 1e-8, decay = 0.1, clip = 1;
  std::string optimizer = "adamw", loss_scaling;
  double momentum = 0, loss_scale = 0;
  bool nesterov = false, decay_vectors = false;
  std::vector<std::string> no_decay, no_decay_roles;
  uint64_t seed = 1;
  // Sampling from the live weights while training goes on.
  int64_t sample_every = 0, sample_tokens = 0;
  std::string sample_prompt = "\n";
};

// Makes batches; the same seed gives the same ones.
class BatchSource {
 public:
  virtual ~BatchSource() = default;
  virtual void Next(v1::Batch* batch) = 0;
  virtual void NextValidation(v1::Batch* batch) = 0;
  virtual bool has_validation() const = 0;
};

// Windows of `block` + 1 tokens at uniformly random offsets.
class TextSource final : public BatchSource {
 public:
  static absl::StatusOr<std::unique_ptr<BatchSource>> Make(Client& client,
                                                           const TrainOptions& options) {
    auto source = std::make_unique<TextSource>();
    TANDEM_ASSIGN_OR_RETURN(const std::string text, ReadFile(options.text));
    v1::GetModelRequest get;
    get.set_model(options.model);
    TANDEM_ASSIGN_OR_RETURN(const v1::GetModelResponse model, client.GetModel(get));
    const int64_t positions = model.model().language_model().max_positions();
    source->block_ = options.block > 0 ? options.block : positions;
    v1::TokenizeRequest request;
    request.set_model(options.model);
    request.set_text(text);
    TANDEM_ASSIGN_OR_RETURN(const v1::TokenizeResponse response, client.Tokenize(request));
    const std::vector<int32_t> tokens(response.tokens().begin(), response.tokens().end());
    const auto cut = static_cast<int64_t>(static_cast<double>(tokens.size()) *
                                          (1 - options.validation_fraction));
    source->train_.assign(tokens.begin(), tokens.begin() + cut);
    source->validation_.assign(tokens.begin() + cut, tokens.end());
    source->batch_ = options.batch;
    source->random_.seed(options.seed);
    source->validation_random_.seed(options.seed + 1);
    if (static_cast<int64_t>(source->train_.size()) <= source->block_) {
      return InvalidArgument("'", options.text, "' has ", source->train_.size(),
                             " training tokens, fewer than a block of ", source->block_, " + 1");
    }
    return source;
  }
  void Next(v1::Batch* batch) override { Fill(train_, random_, batch); }
  void NextValidation(v1::Batch* batch) override { Fill(validation_, validation_random_, batch); }
  bool has_validation() const override { return static_cast<int64_t>(validation_.size()) > block_; }

 private:
  void Fill(const std::vector<int32_t>& tokens, std::mt19937_64& random, v1::Batch* batch) const {
    for (int64_t i = 0; i < batch_; ++i) {
      const uint64_t offset = random() % (tokens.size() - static_cast<size_t>(block_));
      v1::Sequence& sequence = *batch->add_sequences();
      const auto begin = tokens.begin() + static_cast<int64_t>(offset);
      sequence.mutable_tokens()->Add(begin, begin + block_);
      sequence.mutable_targets()->Add(begin + 1, begin + block_ + 1);
    }
  }

  std::vector<int32_t> train_, validation_;
  int64_t block_ = 0, batch_ = 0;
  std::mt19937_64 random_, validation_random_;
};

// Rows of .npy or .pb arrays, in a new random order each epoch.
class ArraySource final : public BatchSource {
 public:
  static absl::StatusOr<std::unique_ptr<BatchSource>> Make(const TrainOptions& options) {
    auto source = std::make_unique<ArraySource>();
    std::vector<std::string> files = options.inputs;
    if (!options.target.empty()) files.push_back("target=" + options.target);
    for (const std::string& text : files) {
      TANDEM_ASSIGN_OR_RETURN(const auto named, SplitArgument("--input ", text, "NAME=FILE"));
      TANDEM_ASSIGN_OR_RETURN(Tensor tensor, ReadTensorFile(named.second));
      if (tensor.shape().rank() == 0 || tensor.shape()[0] == 0) {
        return InvalidArgument("'", text, "' has no rows");
      }
      if (!source->tensors_.empty() && tensor.shape()[0] != source->tensors_[0].shape()[0]) {
        return InvalidArgument("'", text, "' has ", tensor.shape()[0], " rows, the first input ",
                               source->tensors_[0].shape()[0]);
      }
      source->names_.push_back(named.first);
      source->tensors_.push_back(std::move(tensor));
    }
    source->order_.resize(source->tensors_[0].shape()[0]);
    std::iota(source->order_.begin(), source->order_.end(), int64_t{0});
    source->batch_ = std::min<int64_t>(options.batch, static_cast<int64_t>(source->order_.size()));
    source->random_.seed(options.seed);
    source->at_ = source->order_.size();
    return source;
  }
  void Next(v1::Batch* batch) override {
    if (at_ + batch_ > order_.size()) {
      std::shuffle(order_.begin(), order_.end(), random_);
      at_ = 0;
    }
    for (size_t t = 0; t < tensors_.size(); ++t) {
      const Tensor& tensor = tensors_[t];
      v1::NamedTensor& named = *batch->add_tensors();
      named.set_name(names_[t]);
      v1::Tensor& out = *named.mutable_tensor();
      out.set_dtype(ToProto(tensor.dtype()));
      out.add_shape(static_cast<int64_t>(batch_));
      for (int i = 1; i < tensor.shape().rank(); ++i) out.add_shape(tensor.shape()[i]);
      const int64_t row_bytes = tensor.bytes() / tensor.shape()[0];
      std::string& data = *out.mutable_data();
      for (size_t i = 0; i < batch_; ++i) {
        data.append(static_cast<const char*>(tensor.raw()) + order_[at_ + i] * row_bytes,
                    row_bytes);
      }
    }
    at_ += batch_;
  }
  void NextValidation(v1::Batch*) override {}
  bool has_validation() const override { return false; }

 private:
  std::vector<std::string> names_;
  std::vector<Tensor> tensors_;
  std::vector<int64_t> order_;
  size_t batch_ = 0, at_ = 0;
  std::mt19937_64 random_;
};

// Linear warm-up, then cosine decay to min_lr at the last step (nanoGPT's schedule).
double LearningRate(const TrainOptions& o, int64_t step) {
  const int64_t warmup = o.warmup >= 0 ? o.warmup : std::min<int64_t>(100, o.steps / 20);
  const double low = o.min_lr >= 0 ? o.min_lr : o.lr / 10;
  if (step < warmup) return o.lr * static_cast<double>(step + 1) / static_cast<double>(warmup + 1);
  const double share = static_cast<double>(step - warmup) /
                       static_cast<double>(std::max<int64_t>(1, o.steps - warmup));
  return low + 0.5 * (1 + std::cos(std::numbers::pi * std::min(1.0, share))) * (o.lr - low);
}

absl::StatusOr<v1::Loss> ParseLoss(const std::string& name) {
  if (name == "cross-entropy") return v1::LOSS_CROSS_ENTROPY;
  if (name == "mse") return v1::LOSS_MSE;
  if (name == "l1") return v1::LOSS_L1;
  if (name == "huber") return v1::LOSS_HUBER;
  if (name == "bce") return v1::LOSS_BCE_WITH_LOGITS;
  if (name == "graph-output") return v1::LOSS_GRAPH_OUTPUT;
  if (name == "soft-accuracy") return v1::LOSS_SOFT_ACCURACY;
  if (name == "soft-f1") return v1::LOSS_SOFT_F1;
  return InvalidArgument("loss '", name, "' is unknown");
}

void SetLossScaling(const TrainOptions& o, v1::LossScaling& scaling) {
  if (o.loss_scaling == "none") scaling.set_mode(v1::LOSS_SCALING_MODE_NONE);
  if (o.loss_scaling == "static") scaling.set_mode(v1::LOSS_SCALING_MODE_STATIC);
  if (o.loss_scaling == "dynamic") scaling.set_mode(v1::LOSS_SCALING_MODE_DYNAMIC);
  if (o.loss_scale != 0) scaling.set_initial_scale(o.loss_scale);
}

absl::Status StartTraining(Client& client, const TrainOptions& o) {
  v1::GetTrainingRequest get;
  get.set_model(o.model);
  const absl::StatusOr<v1::GetTrainingResponse> training = client.GetTraining(get);
  if (training.ok()) return absl::OkStatus();  // go on where an earlier run ended
  if (training.status().code() != absl::StatusCode::kFailedPrecondition) return training.status();
  v1::StartTrainingRequest request;
  request.set_model(o.model);
  TANDEM_ASSIGN_OR_RETURN(const v1::Loss loss, ParseLoss(o.loss));
  request.mutable_objective()->set_loss(loss);
  if (o.temperature != 0) request.mutable_objective()->set_temperature(o.temperature);
  request.mutable_objective()->set_reduction(v1::REDUCTION_MEAN);
  v1::OptimizerParameters& p = *request.mutable_optimizer()->mutable_parameters();
  const bool sgd = o.optimizer == "sgd";
  request.mutable_optimizer()->set_kind(sgd                     ? v1::OPTIMIZER_KIND_SGD
                                        : o.optimizer == "adam" ? v1::OPTIMIZER_KIND_ADAM
                                                                : v1::OPTIMIZER_KIND_ADAMW);
  request.mutable_optimizer()->set_nesterov(o.nesterov);
  p.set_learning_rate(o.lr);
  if (sgd || o.momentum != 0) p.set_momentum(o.momentum);
  if (!sgd) {
    p.set_beta1(o.beta1);
    p.set_beta2(o.beta2);
    p.set_epsilon(o.epsilon);
  }
  SetLossScaling(o, *request.mutable_loss_scaling());
  p.set_weight_decay(o.decay);
  p.set_max_grad_norm(o.clip);
  request.mutable_optimizer()->set_decay_vectors(o.decay_vectors);
  for (const std::string& name : o.no_decay) request.mutable_optimizer()->add_no_decay(name);
  for (const std::string& role : o.no_decay_roles) {
    request.mutable_optimizer()->add_no_decay_roles(role == "bias"   ? v1::PARAMETER_ROLE_BIAS
                                                    : role == "norm" ? v1::PARAMETER_ROLE_NORM
                                                    : role == "embedding"
                                                        ? v1::PARAMETER_ROLE_EMBEDDING
                                                        : v1::PARAMETER_ROLE_WEIGHT);
  }
  return client.StartTraining(request).status();
}

absl::StatusOr<double> ValidationLoss(Client& client, const TrainOptions& o, BatchSource& source) {
  double sum = 0;
  for (int64_t i = 0; i < o.eval_batches; ++i) {
    v1::EvaluateRequest request;
    request.set_model(o.model);
    source.NextValidation(request.mutable_batch());
    TANDEM_ASSIGN_OR_RETURN(const v1::EvaluateResponse response, client.Evaluate(request));
    sum += response.loss();
  }
  return sum / static_cast<double>(o.eval_batches);
}

// Samples on a thread of its own while training steps go on.
class LiveSampler {
 public:
  LiveSampler(const Session& session, const TrainOptions& options)
      : client_(session.client()), options_(options) {}
  ~LiveSampler() {
    if (thread_.joinable()) thread_.join();
  }
  void Start(int64_t step) {
    if (busy_.load()) return;  // the last sample is still being drawn
    if (thread_.joinable()) thread_.join();
    busy_ = true;
    thread_ = std::thread([this, step] { Draw(step); });
  }
  // A finished sample, if there is one.
  std::optional<std::string> Take() {
    if (!ready_.exchange(false)) return std::nullopt;
    return text_;
  }
  void Wait() {
    if (thread_.joinable()) thread_.join();
  }

 private:
  void Draw(int64_t step) {
    v1::GenerateRequest request;
    request.set_model(options_.model);
    request.set_text(options_.sample_prompt);
    if (options_.sample_tokens > 0) {
      request.set_max_tokens(static_cast<int32_t>(options_.sample_tokens));
    }
    request.set_temperature(0.8f);
    request.set_seed(options_.seed);
    std::string text;
    int64_t first = 0, last = 0;
    const absl::Status status = client_.Generate(request, [&](const v1::GenerateResponse& r) {
      text += r.text();
      if (first == 0) first = r.weights_version();
      if (r.has_token()) last = r.weights_version();
      return true;
    });
    text_ = status.ok() ? absl::StrFormat(
                              "--- sampled during step %d, weights version %d to %d:\n%s%s\n---",
                              step, first, last, options_.sample_prompt, text)
                        : StrCat("--- sampling failed: ", status.message());
    ready_ = true;
    busy_ = false;
  }

  Client client_;
  const TrainOptions& options_;
  std::thread thread_;
  std::string text_;  // written by the thread before ready_
  std::atomic<bool> busy_{false}, ready_{false};
};

v1::TrainStepRequest MakeStep(const TrainOptions& o, int64_t step, BatchSource& source) {
  v1::TrainStepRequest request;
  request.set_model(o.model);
  source.Next(request.mutable_batch());
  request.mutable_parameters()->set_learning_rate(LearningRate(o, step));
  return request;
}

absl::Status Train(const Session& session, const TrainOptions& o) {
  Client client = session.client();
  TANDEM_RETURN_IF_ERROR(StartTraining(client, o));
  if (o.text.empty() && o.inputs.empty()) {
    return InvalidArgument("give --text FILE (language models) or --input NAME=FILE");
  }
  TANDEM_ASSIGN_OR_RETURN(const std::unique_ptr<BatchSource> source,
                          o.text.empty() ? ArraySource::Make(o) : TextSource::Make(client, o));
  const auto validate = [&](int64_t step) -> absl::StatusOr<std::string> {
    TANDEM_ASSIGN_OR_RETURN(const double loss, ValidationLoss(client, o, *source));
    return absl::StrFormat("step %5d  validation loss %.4f", step, loss);
  };
  Progress progress(o.steps, "step");
  LiveSampler sampler(session, o);
  TrainingStream stream = client.TrainStream();
  constexpr int64_t kAhead = 2;  // so that the server never waits for the network
  int64_t sent = 0;
  double first_loss = 0, mean_loss = 0;
  const auto begin = std::chrono::steady_clock::now();
  int64_t tokens = 0, skipped = 0;
  for (int64_t step = 0; step < o.steps; ++step) {
    for (; sent < o.steps && sent <= step + kAhead; ++sent) {
      if (!stream.Send(MakeStep(o, sent, *source))) break;
    }
    v1::TrainStepResponse response;
    if (!stream.Receive(&response)) {
      const absl::Status status = stream.Finish();
      progress.Finish();
      return status.ok() ? absl::UnavailableError("the server ended the stream") : status;
    }
    const double loss = response.forward_backward().loss();
    tokens += response.forward_backward().tokens();
    if (step == 0) first_loss = mean_loss = loss;
    mean_loss += (loss - mean_loss) * 0.05;
    if (session.json) {
      PrintJson(response);
      continue;
    }
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    const v1::OptimStepResponse& optim = response.optim();
    skipped += optim.skipped() ? 1 : 0;
    std::string detail = absl::StrFormat("loss %.4f  |g| %.2f  %.0f %s/s", mean_loss,
                                         optim.grad_norm(), static_cast<double>(tokens) / seconds,
                                         o.text.empty() ? "examples" : "tokens");
    if (optim.loss_scale() != 1) absl::StrAppendFormat(&detail, "  scale %g", optim.loss_scale());
    progress.Update(step + 1, detail);
    if (o.sample_every > 0 && (step + 1) % o.sample_every == 0) sampler.Start(step + 1);
    if (const std::optional<std::string> text = sampler.Take()) progress.Note(*text);
    if (o.eval_every > 0 && (step + 1) % o.eval_every == 0 && step + 1 < o.steps &&
        source->has_validation()) {
      TANDEM_ASSIGN_OR_RETURN(const std::string line, validate(step + 1));
      progress.Note(line);
    }
  }
  progress.Finish();
  stream.CloseSend();
  v1::TrainStepResponse none;
  while (stream.Receive(&none)) {
  }
  TANDEM_RETURN_IF_ERROR(stream.Finish());
  if (session.json) return absl::OkStatus();
  sampler.Wait();
  if (const std::optional<std::string> text = sampler.Take()) std::printf("%s\n", text->c_str());
  if (source->has_validation()) {
    TANDEM_ASSIGN_OR_RETURN(const std::string line, validate(o.steps));
    std::printf("%s\n", line.c_str());
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::printf("training loss %.4f -> %.4f in %lld steps, %.1f s\n", first_loss, mean_loss,
              static_cast<long long>(o.steps), seconds);
  if (skipped > 0) {
    std::printf("%lld steps skipped: their gradients were not finite\n",
                static_cast<long long>(skipped));
  }
  return absl::OkStatus();
}

}  // namespace

void AddTrainCommand(CLI::App& app, Session& session) {
  auto o = std::make_shared<TrainOptions>();
  CLI::App* train = app.add_subcommand("train", "Train a model in place, over TrainStream");
  train->add_option("model", o->model, "the model")->required();
  train->add_option("--text", o->text, "language models: a text file");
  train->add_option("--block", o->block, "tokens of a sequence; 0: the model's longest");
  train->add_option("--validation", o->validation_fraction, "share of the text held back, its end")
      ->check(CLI::Range(0.0, 0.9))
      ->capture_default_str();
  train->add_option("--input", o->inputs,
                    "other models: NAME=FILE.npy, examples along its first "
                    "dimension (may be repeated)");
  train->add_option("--target", o->target, "what the output is compared with: FILE.npy");
  train
      ->add_option("--loss", o->loss,
                   "cross-entropy, mse, l1, huber, bce (with logits), graph-output, soft-accuracy "
                   "or soft-f1")
      ->capture_default_str();
  train->add_option("--temperature", o->temperature, "of soft-accuracy and soft-f1; default: 1");
  train->add_option("--steps", o->steps, "optimizer steps")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  train->add_option("--batch", o->batch, "sequences or examples a step")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  train->add_option("--lr", o->lr, "highest learning rate")->capture_default_str();
  train->add_option("--min-lr", o->min_lr, "learning rate at the end; default: a tenth");
  train->add_option("--warmup", o->warmup, "steps of linear warm-up; default: 5%, at most 100");
  train->add_option("--optimizer", o->optimizer, "adamw, adam or sgd")
      ->check(CLI::IsMember({"adamw", "adam", "sgd"}))
      ->capture_default_str();
  train->add_option("--beta1", o->beta1, "Adam's beta1")->capture_default_str();
  train->add_option("--beta2", o->beta2, "Adam's beta2")->capture_default_str();
  train->add_option("--momentum", o->momentum, "of sgd")->capture_default_str();
  train->add_flag("--nesterov", o->nesterov, "sgd with Nesterov's momentum");
  train
      ->add_option("--loss-scaling", o->loss_scaling,
                   "none, static or dynamic; default: dynamic for a model in f16, else none")
      ->check(CLI::IsMember({"none", "static", "dynamic"}));
  train->add_option("--loss-scale", o->loss_scale, "the (first) loss scale; default: 65536");
  train->add_option("--weight-decay", o->decay, "of matrices")->capture_default_str();
  train->add_flag("--decay-vectors", o->decay_vectors,
                  "of biases, norms and other vectors too, but for what follows");
  train->add_option("--no-decay-role", o->no_decay_roles, "no weight decay for these")
      ->check(CLI::IsMember({"weight", "bias", "norm", "embedding"}));
  train->add_option("--no-decay", o->no_decay,
                    "nor for these parameters: names, or prefixes that end in '*'");
  train->add_option("--clip", o->clip, "largest gradient norm; 0: any")->capture_default_str();
  train->add_option("--eval-every", o->eval_every, "steps between validations; 0: at the end only");
  train->add_option("--eval-batches", o->eval_batches, "batches of a validation")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  train->add_option("--seed", o->seed, "of the order of the data")->capture_default_str();
  train->add_option("--sample-every", o->sample_every,
                    "steps between samples drawn while training goes on; 0: none");
  train->add_option("--sample-prompt", o->sample_prompt, "what those samples go on from");
  train->add_option("--sample-tokens", o->sample_tokens,
                    "and how long they are; default: 128, or what fits");
  train->callback([&session, o] { session.Run([&] { return Train(session, *o); }); });
}

}  // namespace tandem::command

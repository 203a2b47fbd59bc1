#include "engine/sample/generator.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <utility>

#include "engine/exec/device_tensor.h"
#include "engine/ops/ops.h"
#include "engine/sample/token_sampler.h"

namespace tandem {
namespace {

constexpr int64_t kPageTokens = 32;  // the page of ops::PagedAttention

struct Sequence {
  int64_t id = 0;
  std::vector<int32_t> tokens;  // prompt, then generated
  int64_t prompt_tokens = 0;
  SamplingOptions options;
  Generator::TokenCallback callback;
  std::vector<int32_t> pages;
  int64_t cached = 0;          // tokens whose keys and values are in the cache
  int64_t cached_version = 0;  // of the weights that made them
  // The weights changed under it: its tokens are recomputed in one piece, so that training that
  // never pauses cannot keep it from finishing.
  bool whole = false;
  std::vector<float> prompt_logprobs;  // as far as the prompt is done

  int64_t pending() const { return static_cast<int64_t>(tokens.size()) - cached; }
};

// What one sequence contributes to a step.
struct Piece {
  int64_t id;
  Sequence* sequence;
  int64_t count;      // tokens, from sequence->cached
  int64_t first_row;  // of its logits, or -1
  int64_t rows;       // logits rows: the last `rows` of its tokens
};

// Everything that a step binds, in the order of the graph's inputs.
struct StepInputs {
  Tensor tokens, positions, query_start, past_length, block_table, logit_rows;
  // Where the device draws: of each row, as ops::SampleTokens takes them. Else empty.
  std::vector<Tensor> draws;
};

// Nothing but DrawToken stands between the logits and the next token.
bool IsPlain(const Sequence& sequence) {
  const SamplingOptions& o = sequence.options;
  const auto generated = static_cast<int64_t>(sequence.tokens.size()) - sequence.prompt_tokens;
  return o.repetition_penalty == 1 && o.presence_penalty == 0 && o.frequency_penalty == 0 &&
         o.logit_bias.empty() && generated >= o.min_tokens && o.logprobs == 0 && !o.prompt_logprobs;
}

class PagedGenerator final : public Generator {
 public:
  PagedGenerator(Model* model, const Options& options)
      : model_(*model), info_(*model->source().sequence()), options_(options) {
    blocks_per_sequence_ = (info_.max_positions + kPageTokens - 1) / kPageTokens;
    const int64_t page_floats = info_.kv_heads * info_.head_dim * kPageTokens;
    cache_dtype_ = KvCacheDType(info_, model->precision(), model->backend());
    const int64_t page_bytes = 2 * info_.layers * page_floats * SizeOf(cache_dtype_);
    // Room for one sequence of full length at least, and for no more than can run.
    pages_ =
        std::clamp(options.kv_cache_bytes / page_bytes, blocks_per_sequence_,
                   std::max(blocks_per_sequence_, options.max_sequences * blocks_per_sequence_));
    for (int64_t page = pages_; page-- > 0;) free_pages_.push_back(static_cast<int32_t>(page));
  }

  // The caches' memory.
  absl::Status Allocate() {
    const TensorType k{cache_dtype_, {pages_, info_.kv_heads, info_.head_dim, kPageTokens}};
    const TensorType v{cache_dtype_, {pages_, info_.kv_heads, kPageTokens, info_.head_dim}};
    for (int64_t layer = 0; layer < info_.layers; ++layer) {
      TANDEM_ASSIGN_OR_RETURN(DeviceTensor keys, DeviceTensor::Zeros(model_.backend(), k));
      TANDEM_ASSIGN_OR_RETURN(DeviceTensor values, DeviceTensor::Zeros(model_.backend(), v));
      k_cache_.push_back(std::move(keys));
      v_cache_.push_back(std::move(values));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<int64_t> Add(std::vector<int32_t> prompt, SamplingOptions options,
                              TokenCallback callback) override {
    TANDEM_RETURN_IF_ERROR(options.Validate(info_.vocab_size));
    const auto length = static_cast<int64_t>(prompt.size());
    if (length == 0) return InvalidArgument("the prompt is empty");
    if (length + options.max_tokens > info_.max_positions) {
      return InvalidArgument("the prompt's ", length, " tokens and max_tokens ", options.max_tokens,
                             " exceed the model's ", info_.max_positions, " positions");
    }
    for (int64_t i = 0; i < length; ++i) {
      if (prompt[i] < 0 || prompt[i] >= info_.vocab_size) {
        return InvalidArgument("prompt token ", i, " is ", prompt[i],
                               ", outside the vocabulary [0, ", info_.vocab_size, ")");
      }
    }
    if (static_cast<int64_t>(waiting_.size()) >= options_.max_waiting) {
      return ResourceExhausted("model '", model_.name(), "' has ", options_.max_waiting,
                               " generations waiting; try again later");
    }
    auto sequence = std::make_unique<Sequence>();
    sequence->id = next_id_++;
    sequence->prompt_tokens = length;
    sequence->tokens = std::move(prompt);
    sequence->options = std::move(options);
    sequence->callback = std::move(callback);
    waiting_.push_back(std::move(sequence));
    return waiting_.back()->id;
  }

  void Cancel(int64_t id) override {
    for (auto it = waiting_.begin(); it != waiting_.end(); ++it) {
      if ((*it)->id == id) {
        waiting_.erase(it);
        return;
      }
    }
    for (size_t i = 0; i < running_.size(); ++i) {
      if (running_[i]->id == id) {
        Remove(i);
        return;
      }
    }
  }

  bool HasWork() const override { return !waiting_.empty() || !running_.empty(); }

  void Step() override {
    Admit();
    if (running_.empty()) return;
    for (auto& sequence : running_) {
      if (sequence->cached > 0 && sequence->cached_version != model_.weights_version()) {
        statistics_.recomputed_tokens += sequence->cached;
        sequence->cached = 0;
        sequence->whole = true;
        sequence->prompt_logprobs.clear();
      }
      sequence->cached_version = model_.weights_version();
    }
    std::vector<Piece> pieces = Choose();
    absl::StatusOr<std::vector<Tensor>> outputs = Run(pieces);
    if (!outputs.ok()) {
      for (const Piece& piece : pieces) Fail(piece.id, outputs.status());
      return;
    }
    for (const Piece& piece : pieces) {
      // A callback may have cancelled sequences that come after its own.
      if (Find(piece.id) != nullptr) Advance(piece, *outputs);
    }
  }

  Statistics statistics() const override {
    Statistics s = statistics_;
    s.running = static_cast<int64_t>(running_.size());
    s.waiting = static_cast<int64_t>(waiting_.size());
    s.cache_pages = pages_;
    s.cache_pages_used = pages_ - static_cast<int64_t>(free_pages_.size());
    return s;
  }

 private:
  // A sequence gets all its pages when it starts, so a running one never waits for memory.
  void Admit() {
    while (!waiting_.empty() && static_cast<int64_t>(running_.size()) < options_.max_sequences) {
      Sequence& sequence = *waiting_.front();
      const int64_t most = sequence.prompt_tokens + sequence.options.max_tokens;
      const int64_t needed = (most + kPageTokens - 1) / kPageTokens;
      if (needed > static_cast<int64_t>(free_pages_.size())) return;
      for (int64_t i = 0; i < needed; ++i) {
        sequence.pages.push_back(free_pages_.back());
        free_pages_.pop_back();
      }
      running_.push_back(std::move(waiting_.front()));
      waiting_.pop_front();
    }
  }

  // One token of every sequence that decodes, and prompt tokens up to the budget.
  std::vector<Piece> Choose() {
    std::vector<Piece> pieces;
    int64_t budget = options_.prompt_chunk_tokens;
    int64_t rows = 0;
    for (auto& sequence : running_) {
      const int64_t pending = sequence->pending();
      int64_t count = pending;
      if (pending > 1 && !sequence->whole) {
        count = std::min(pending, budget);
        if (count == 0) continue;
      }
      if (pending > 1) budget = std::max<int64_t>(0, budget - count);
      Piece piece{.id = sequence->id,
                  .sequence = sequence.get(),
                  .count = count,
                  .first_row = -1,
                  .rows = 0};
      const bool in_prompt = sequence->cached < sequence->prompt_tokens;
      if (sequence->options.prompt_logprobs && in_prompt) {
        piece.rows = count;
      } else if (count == pending) {
        piece.rows = 1;
      }
      if (piece.rows > 0) piece.first_row = rows;
      rows += piece.rows;
      pieces.push_back(piece);
    }
    return pieces;
  }

  StepInputs Bind(const std::vector<Piece>& pieces) const {
    const auto sequences = static_cast<int64_t>(pieces.size());
    int64_t tokens = 0, rows = 0;
    for (const Piece& piece : pieces) {
      tokens += piece.count;
      rows += piece.rows;
    }
    StepInputs in{Tensor(DType::kI32, {tokens}),
                  Tensor(DType::kI32, {tokens}),
                  Tensor(DType::kI32, {sequences + 1}),
                  Tensor(DType::kI32, {sequences}),
                  Tensor::Zeros({DType::kI32, {sequences, blocks_per_sequence_}}),
                  Tensor(DType::kI32, {rows}),
                  {}};
    int64_t at = 0, row = 0;
    for (int64_t s = 0; s < sequences; ++s) {
      const Piece& piece = pieces[s];
      const Sequence& sequence = *piece.sequence;
      in.query_start.data<int32_t>()[s] = static_cast<int32_t>(at);
      in.past_length.data<int32_t>()[s] = static_cast<int32_t>(sequence.cached);
      std::copy(sequence.pages.begin(), sequence.pages.end(),
                in.block_table.data<int32_t>().begin() + s * blocks_per_sequence_);
      for (int64_t i = 0; i < piece.count; ++i, ++at) {
        in.tokens.data<int32_t>()[at] = sequence.tokens[sequence.cached + i];
        in.positions.data<int32_t>()[at] = static_cast<int32_t>(sequence.cached + i);
      }
      for (int64_t i = 0; i < piece.rows; ++i, ++row) {
        in.logit_rows.data<int32_t>()[row] = static_cast<int32_t>(at - piece.rows + i);
      }
    }
    in.query_start.data<int32_t>()[sequences] = static_cast<int32_t>(at);
    const bool plain = std::all_of(pieces.begin(), pieces.end(),
                                   [](const Piece& piece) { return IsPlain(*piece.sequence); });
    // On the host the logits are at hand; from a device the tokens alone travel.
    if (plain && !model_.backend().host_memory()) in.draws = BindDraws(pieces, rows);
    return in;
  }

  // One row a piece that ends its sequence's pending tokens: plain ones want no other logits.
  static std::vector<Tensor> BindDraws(const std::vector<Piece>& pieces, int64_t rows) {
    Tensor temperature(DType::kF32, {rows}), top_k(DType::kI32, {rows});
    Tensor top_p(DType::kF64, {rows}), min_p(DType::kF64, {rows}), key(DType::kU64, {3, rows});
    for (const Piece& piece : pieces) {
      if (piece.rows == 0) continue;
      const int64_t r = piece.first_row;
      const DrawOptions o = DrawOptionsOf(piece.sequence->options, piece.sequence->tokens.size());
      temperature.data<float>()[r] = o.temperature;
      // 0 is off, and so is any number beyond the vocabulary.
      top_k.data<int32_t>()[r] =
          static_cast<int32_t>(std::min<int64_t>(o.top_k, std::numeric_limits<int32_t>::max()));
      top_p.data<double>()[r] = o.top_p;
      min_p.data<double>()[r] = o.min_p;
      key.data<uint64_t>()[r] = o.seed;
      key.data<uint64_t>()[rows + r] = o.stream;
      key.data<uint64_t>()[2 * rows + r] = o.position;
    }
    std::vector<Tensor> draws;
    for (Tensor* t : {&temperature, &top_k, &top_p, &min_p, &key}) draws.push_back(std::move(*t));
    return draws;
  }

  absl::StatusOr<Graph> BuildStep(const StepInputs& in) const {
    Builder b(EvaluateNode);
    SequenceValues values;
    values.tokens = b.Input("tokens", in.tokens.type());
    values.positions = b.Input("positions", in.positions.type());
    values.query_start = b.Input("query_start", in.query_start.type());
    values.past_length = b.Input("past_length", in.past_length.type());
    values.block_table = b.Input("block_table", in.block_table.type());
    values.logit_rows = b.Input("logit_rows", in.logit_rows.type());
    for (const DeviceTensor& t : k_cache_) values.k_cache.push_back(b.Input("k_cache", t.type()));
    for (const DeviceTensor& t : v_cache_) values.v_cache.push_back(b.Input("v_cache", t.type()));
    const Value logits = model_.source().BuildLogits(b, values);  // (R, V)
    // The log-sum-exp of the very kernel that training and scoring use.
    const Value any_target =
        b.Constant(Tensor::Zeros({DType::kI32, {in.logit_rows.num_elements()}}));
    const Value lse = ops::SoftmaxCrossEntropy(b, logits, any_target)[1];  // (R)
    std::vector<Value> outputs = {logits, lse};
    if (!in.draws.empty()) {
      std::vector<Value> draws;
      for (const Tensor& t : in.draws) draws.push_back(b.Input("draws", t.type()));
      outputs = ops::SampleTokens(b, logits, lse, draws[0], draws[1], draws[2], draws[3], draws[4]);
    }
    for (Value v : outputs) b.Output(v);
    return b.Finish();
  }

  // {logits (R, V), lse (R)}, or what SampleTokens gives: {token, logprob, sampling_logprob}, (R).
  absl::StatusOr<std::vector<Tensor>> Run(const std::vector<Piece>& pieces) {
    const StepInputs in = Bind(pieces);
    const std::string key = StrCat("generate ", in.tokens.num_elements(), " ", pieces.size(), " ",
                                   in.logit_rows.num_elements(), in.draws.empty() ? "" : " draws");
    TANDEM_ASSIGN_OR_RETURN(Plan * plan, model_.plans().Get(key, [&] { return BuildStep(in); }));
    std::vector<Address> inputs = {OnHost(in.tokens),      OnHost(in.positions),
                                   OnHost(in.query_start), OnHost(in.past_length),
                                   OnHost(in.block_table), OnHost(in.logit_rows)};
    for (const DeviceTensor& t : k_cache_) inputs.push_back(t.address());
    for (const DeviceTensor& t : v_cache_) inputs.push_back(t.address());
    for (const Tensor& t : in.draws) inputs.push_back(OnHost(t));
    TANDEM_ASSIGN_OR_RETURN(const std::span<const void* const> parameters,
                            model_.ParameterAddresses());
    return RunToHost(*plan, inputs, parameters);
  }

  void Advance(const Piece& piece, const std::vector<Tensor>& outputs) {
    Sequence& sequence = *piece.sequence;
    const int64_t begin = sequence.cached;
    sequence.cached += piece.count;
    if (begin < sequence.prompt_tokens) {
      statistics_.prompt_tokens += std::min(sequence.cached, sequence.prompt_tokens) - begin;
    }
    const auto row_logits = [&](int64_t row) {
      return outputs[0].data<float>().subspan(row * info_.vocab_size, info_.vocab_size);
    };
    if (sequence.options.prompt_logprobs && begin < sequence.prompt_tokens) {
      if (begin == 0) sequence.prompt_logprobs.assign(1, NAN);
      for (int64_t i = 0; i < piece.rows && begin + i + 1 < sequence.prompt_tokens; ++i) {
        const int64_t row = piece.first_row + i;
        sequence.prompt_logprobs.push_back(row_logits(row)[sequence.tokens[begin + i + 1]] -
                                           outputs[1].data<float>()[row]);
      }
    }
    if (sequence.pending() > 0) return;  // more of the prompt to come
    sequence.whole = false;
    const int64_t row = piece.first_row + piece.rows - 1;
    const auto generated = static_cast<int64_t>(sequence.tokens.size()) - sequence.prompt_tokens;
    SampledToken sampled;
    if (outputs.size() == 3) {
      sampled.token = outputs[0].data<int32_t>()[row];
      sampled.logprob = outputs[1].data<float>()[row];
      sampled.sampling_logprob = outputs[2].data<float>()[row];
    } else {
      sampled = SampleToken(row_logits(row), outputs[1].data<float>()[row], sequence.options,
                            {.tokens = sequence.tokens,
                             .prompt_tokens = sequence.prompt_tokens,
                             .eos_token_ids = info_.eos_token_ids},
                            scratch_);
    }
    sampled.weights_version = model_.weights_version();
    if (generated == 0) sampled.prompt_logprobs = std::move(sequence.prompt_logprobs);
    sampled.finish = Finish(sequence, sampled.token, generated + 1);
    sequence.tokens.push_back(sampled.token);
    ++statistics_.generated_tokens;
    // The callback may cancel its own sequence: it is not held in what that destroys.
    const TokenCallback callback = std::move(sequence.callback);
    const bool go_on = callback(absl::OkStatus(), sampled);
    Sequence* const still = Find(piece.id);
    if (still == nullptr) return;
    if (!go_on || sampled.finish != FinishReason::kNone) {
      Cancel(piece.id);
    } else {
      still->callback = callback;
    }
  }

  Sequence* Find(int64_t id) const {
    for (const auto& sequence : running_) {
      if (sequence->id == id) return sequence.get();
    }
    return nullptr;
  }

  FinishReason Finish(const Sequence& sequence, int32_t token, int64_t generated) const {
    const SamplingOptions& o = sequence.options;
    const auto contains = [token](const std::vector<int32_t>& ids) {
      return std::find(ids.begin(), ids.end(), token) != ids.end();
    };
    if (contains(o.stop_token_ids) || (!o.ignore_eos && contains(info_.eos_token_ids))) {
      return FinishReason::kStop;
    }
    return generated >= o.max_tokens ? FinishReason::kLength : FinishReason::kNone;
  }

  void Fail(int64_t id, const absl::Status& status) {
    for (size_t i = 0; i < running_.size(); ++i) {
      if (running_[i]->id != id) continue;
      const TokenCallback callback = std::move(running_[i]->callback);
      Remove(i);
      callback(status, SampledToken());
      return;
    }
  }

  void Remove(size_t i) {
    for (int32_t page : running_[i]->pages) free_pages_.push_back(page);
    running_.erase(running_.begin() + static_cast<int64_t>(i));
  }

  Model& model_;
  const SequenceModelInfo& info_;
  const Options options_;
  int64_t blocks_per_sequence_ = 0, pages_ = 0, next_id_ = 1;
  DType cache_dtype_;
  std::vector<DeviceTensor> k_cache_, v_cache_;  // one a layer
  std::vector<int32_t> free_pages_;
  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;
  std::vector<float> scratch_;
  Statistics statistics_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Generator>> Generator::Create(Model* model, Options options) {
  if (model->source().sequence() == nullptr) {
    return FailedPrecondition("model '", model->name(), "' is no language model");
  }
  auto generator = std::make_unique<PagedGenerator>(model, options);
  TANDEM_RETURN_IF_ERROR(generator->Allocate());
  return generator;
}

absl::StatusOr<std::vector<std::vector<float>>> ScoreSequences(
    Model* model, const std::vector<std::vector<int32_t>>& sequences) {
  const SequenceModelInfo* info = model->source().sequence();
  if (info == nullptr) {
    return FailedPrecondition("model '", model->name(), "' is no language model");
  }
  if (sequences.empty()) return InvalidArgument("there are no sequences to score");
  int64_t tokens = 0;
  for (size_t s = 0; s < sequences.size(); ++s) {
    const auto length = static_cast<int64_t>(sequences[s].size());
    if (length == 0) return InvalidArgument("sequence ", s, " has no tokens");
    if (length > info->max_positions) {
      return InvalidArgument("sequence ", s, " has ", length, " tokens, the model takes at most ",
                             info->max_positions);
    }
    for (int64_t i = 0; i < length; ++i) {
      if (sequences[s][i] < 0 || sequences[s][i] >= info->vocab_size) {
        return InvalidArgument("sequence ", s, " token ", i, " is ", sequences[s][i],
                               ", outside the vocabulary [0, ", info->vocab_size, ")");
      }
    }
    tokens += length;
  }
  const auto count = static_cast<int64_t>(sequences.size());
  Tensor ids(DType::kI32, {tokens}), positions(DType::kI32, {tokens});
  Tensor query_start(DType::kI32, {count + 1}), targets = Tensor::Zeros({DType::kI32, {tokens}});
  int32_t at = 0;
  for (int64_t s = 0; s < count; ++s) {
    query_start.data<int32_t>()[s] = at;
    for (size_t i = 0; i < sequences[s].size(); ++i, ++at) {
      ids.data<int32_t>()[at] = sequences[s][i];
      positions.data<int32_t>()[at] = static_cast<int32_t>(i);
      if (i > 0) targets.data<int32_t>()[at - 1] = sequences[s][i];
    }
  }
  query_start.data<int32_t>()[count] = at;
  const std::string key = StrCat("score ", tokens, " ", count);
  TANDEM_ASSIGN_OR_RETURN(Plan * plan, model->plans().Get(key, [&]() -> absl::StatusOr<Graph> {
    Builder b(EvaluateNode);
    SequenceValues values;
    values.tokens = b.Input("tokens", ids.type());
    values.positions = b.Input("positions", positions.type());
    values.query_start = b.Input("query_start", query_start.type());
    const Value target = b.Input("targets", targets.type());
    const Value logits = model->source().BuildLogits(b, values);
    b.Output(ops::SoftmaxCrossEntropy(b, logits, target)[0]);
    return b.Finish();
  }));
  const std::vector<const Tensor*> inputs = {&ids, &positions, &query_start, &targets};
  TANDEM_ASSIGN_OR_RETURN(const std::span<const void* const> parameters,
                          model->ParameterAddresses());
  TANDEM_ASSIGN_OR_RETURN(const std::vector<Tensor> losses, RunPlan(*plan, inputs, parameters));
  std::vector<std::vector<float>> scores;
  at = 0;
  for (const std::vector<int32_t>& sequence : sequences) {
    std::vector<float> logprobs = {NAN};
    for (size_t i = 1; i < sequence.size(); ++i) {
      logprobs.push_back(-losses[0].data<float>()[at + static_cast<int32_t>(i) - 1]);
    }
    at += static_cast<int32_t>(sequence.size());
    scores.push_back(std::move(logprobs));
  }
  return scores;
}

}  // namespace tandem

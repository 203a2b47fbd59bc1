#include "server/convert_sampling.h"

#include "server/convert.h"

namespace tandem::server {
namespace {

absl::Status CheckAtLeastOne(bool present, int64_t value, std::string_view field) {
  if (!present || value >= 1) return absl::OkStatus();
  return InvalidArgument(field, " is ", value, ", expected at least 1");
}

absl::Status CheckStopTexts(const v1::GenerateRequest& request) {
  if (request.stop_size() > kMaxStopTexts) {
    return InvalidArgument("stop has ", request.stop_size(), " entries, at most ", kMaxStopTexts,
                           " are allowed");
  }
  for (const std::string& text : request.stop()) {
    if (text.empty()) return InvalidArgument("stop has an empty text");
    if (text.size() > kMaxStopBytes) {
      return InvalidArgument("stop has a text of ", text.size(), " bytes, at most ", kMaxStopBytes,
                             " are allowed");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<int32_t> SampleCount(const v1::GenerateRequest& request) {
  if (!request.has_n()) return 1;
  if (request.n() < 1 || request.n() > kMaxSamples) {
    return InvalidArgument("n is ", request.n(), ", expected 1 to ", kMaxSamples);
  }
  return request.n();
}

absl::StatusOr<SamplingOptions> FromProto(const v1::GenerateRequest& request, int64_t vocab_size) {
  const v1::GenerateRequest& r = request;
  TANDEM_RETURN_IF_ERROR(CheckAtLeastOne(r.has_max_tokens(), r.max_tokens(), "max_tokens"));
  TANDEM_RETURN_IF_ERROR(CheckAtLeastOne(r.has_top_k(), r.top_k(), "top_k"));
  TANDEM_RETURN_IF_ERROR(CheckStopTexts(request));
  SamplingOptions options;
  options.max_tokens = r.has_max_tokens() ? r.max_tokens() : 0;
  options.min_tokens = r.min_tokens();
  if (r.has_max_tokens() && r.min_tokens() > r.max_tokens()) {
    return InvalidArgument("min_tokens ", r.min_tokens(), " is above max_tokens ", r.max_tokens());
  }
  options.top_k = r.top_k();
  absl::Status status;
  const auto take = [&](bool present, float value, const char* field, double& out) {
    if (!present) return;
    if (status.ok()) status = CheckFinite(value, field);
    out = value;
  };
  take(r.has_temperature(), r.temperature(), "temperature", options.temperature);
  take(r.has_top_p(), r.top_p(), "top_p", options.top_p);
  take(r.has_min_p(), r.min_p(), "min_p", options.min_p);
  take(r.has_repetition_penalty(), r.repetition_penalty(), "repetition_penalty",
       options.repetition_penalty);
  take(r.has_presence_penalty(), r.presence_penalty(), "presence_penalty",
       options.presence_penalty);
  take(r.has_frequency_penalty(), r.frequency_penalty(), "frequency_penalty",
       options.frequency_penalty);
  TANDEM_RETURN_IF_ERROR(status);
  for (const auto& [token, bias] : r.logit_bias()) {
    TANDEM_RETURN_IF_ERROR(CheckFinite(bias, StrCat("logit_bias[", token, "]")));
    options.logit_bias[token] = bias;
  }
  options.stop_token_ids.assign(r.stop_token_ids().begin(), r.stop_token_ids().end());
  options.ignore_eos = r.ignore_eos();
  if (r.has_logprobs() && (r.logprobs() < 0 || r.logprobs() > 20)) {
    return InvalidArgument("logprobs is ", r.logprobs(), ", expected 0 to 20");
  }
  options.logprobs = r.logprobs();
  options.prompt_logprobs = r.prompt_logprobs();
  SamplingOptions to_check = options;  // max_tokens is known only with the prompt
  if (!r.has_max_tokens()) to_check.max_tokens = std::max<int64_t>(1, to_check.min_tokens);
  TANDEM_RETURN_IF_ERROR(to_check.Validate(vocab_size));
  return options;
}

void ToProto(const SampledToken& token, v1::GenerateResponse* out) {
  out->set_token(token.token);
  out->set_logprob(token.logprob);
  out->set_sampling_logprob(token.sampling_logprob);
  for (const auto& [id, logprob] : token.top_logprobs) {
    v1::TokenLogprob* top = out->add_top_logprobs();
    top->set_token(id);
    top->set_logprob(logprob);
  }
  out->set_weights_version(token.weights_version);
  if (token.finish == FinishReason::kStop) out->set_finish_reason(v1::FINISH_REASON_STOP);
  if (token.finish == FinishReason::kLength) out->set_finish_reason(v1::FINISH_REASON_LENGTH);
  out->mutable_prompt_logprobs()->Add(token.prompt_logprobs.begin(), token.prompt_logprobs.end());
}

}  // namespace tandem::server

#include "server/convert.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "server/convert_inference.h"
#include "server/convert_models.h"
#include "server/convert_sampling.h"
#include "server/convert_training.h"

namespace tandem::server {
namespace {

using testing::HasSubstr;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

#define EXPECT_ERROR(expr, expected_code, text)                            \
  do {                                                                     \
    const absl::Status status_ = (expr);                                   \
    EXPECT_EQ(status_.code(), absl::StatusCode::expected_code) << status_; \
    EXPECT_THAT(std::string(status_.message()), HasSubstr(text));          \
  } while (false)

v1::Tensor TensorMessage(v1::DataType dtype, std::vector<int64_t> shape, std::string data) {
  v1::Tensor tensor;
  tensor.set_dtype(dtype);
  tensor.mutable_shape()->Add(shape.begin(), shape.end());
  tensor.set_data(std::move(data));
  return tensor;
}

TEST(ConvertTensor, EveryDtypeThereAndBack) {
  for (int i = static_cast<int>(DType::kF32); i <= static_cast<int>(DType::kBool); ++i) {
    const auto dtype = static_cast<DType>(i);
    const v1::DataType wire = ToProto(dtype);
    ASSERT_NE(wire, v1::DATA_TYPE_UNSPECIFIED) << DTypeName(dtype);
    EXPECT_EQ(*FromProto(wire, "x"), dtype);
    std::string data(6 * SizeOf(dtype), '\0');
    for (size_t k = 0; k < data.size(); ++k) {
      data[k] = static_cast<char>(dtype == DType::kBool ? k % 2 : k);
    }
    const v1::Tensor message = TensorMessage(wire, {2, 3}, data);
    const absl::StatusOr<Tensor> tensor = FromProto(message, "x");
    ASSERT_TRUE(tensor.ok()) << tensor.status();
    EXPECT_EQ(tensor->shape(), (Shape{2, 3}));
    EXPECT_EQ(ToProto(*tensor).SerializeAsString(), message.SerializeAsString());
  }
}

TEST(ConvertTensor, ScalarsAndEmptyTensors) {
  EXPECT_EQ(FromProto(TensorMessage(v1::DATA_TYPE_F32, {}, std::string(4, '\0')), "x")->shape(),
            Shape{});
  EXPECT_EQ(FromProto(TensorMessage(v1::DATA_TYPE_F32, {0, 5}, ""), "x")->num_elements(), 0);
}

TEST(ConvertTensor, HostileShapesAndSizes) {
  const auto convert = [](std::vector<int64_t> shape, std::string data) {
    return FromProto(TensorMessage(v1::DATA_TYPE_F32, std::move(shape), std::move(data)),
                     "tensor 'x'")
        .status();
  };
  EXPECT_ERROR(convert({-1, 4}, ""), kInvalidArgument, "tensor 'x'");
  EXPECT_ERROR(convert({std::numeric_limits<int64_t>::min()}, ""), kInvalidArgument, "negative");
  EXPECT_ERROR(convert({int64_t{1} << 32, int64_t{1} << 32}, ""), kInvalidArgument, "limit");
  EXPECT_ERROR(convert({std::numeric_limits<int64_t>::max()}, ""), kInvalidArgument, "limit");
  // 2^62 x 4 x 4 wraps to 0 bytes.
  EXPECT_ERROR(convert({int64_t{1} << 62, 4}, ""), kInvalidArgument, "limit");
  // Far more than was sent: found before memory is allocated for it.
  EXPECT_ERROR(convert({int64_t{1} << 37}, "1234"), kInvalidArgument, "549755813888 bytes, got 4");
  EXPECT_ERROR(convert({2}, "1234567"), kInvalidArgument, "needs 8 bytes, got 7");
  EXPECT_ERROR(convert({2}, "123456789"), kInvalidArgument, "needs 8 bytes, got 9");
  EXPECT_ERROR(convert({1, 1, 1, 1, 1, 1, 1, 1, 1}, "1234"), kInvalidArgument, "rank");
}

TEST(ConvertTensor, HostileTypesAndValues) {
  EXPECT_ERROR(FromProto(TensorMessage(v1::DATA_TYPE_UNSPECIFIED, {1}, "1234"), "t").status(),
               kInvalidArgument, "dtype 0");
  EXPECT_ERROR(FromProto(TensorMessage(static_cast<v1::DataType>(99), {1}, "1234"), "t").status(),
               kInvalidArgument, "dtype 99");
  EXPECT_ERROR(
      FromProto(TensorMessage(v1::DATA_TYPE_BOOL, {2}, std::string("\1\2", 2)), "t").status(),
      kInvalidArgument, "bool element 1 is 2");
}

TEST(ConvertObjective, DefaultsAndErrors) {
  v1::Objective message;
  EXPECT_ERROR(FromProto(message).status(), kInvalidArgument, "loss is not set");
  message.set_loss(v1::LOSS_MSE);
  const absl::StatusOr<Objective> objective = FromProto(message);
  ASSERT_TRUE(objective.ok());
  EXPECT_EQ(objective->loss, Loss::kMse);
  EXPECT_EQ(objective->reduction, Reduction::kMean);
  EXPECT_EQ(objective->target, "target");
  message.set_loss(static_cast<v1::Loss>(77));
  EXPECT_ERROR(FromProto(message).status(), kInvalidArgument, "77");
  message.set_loss(v1::LOSS_MSE);
  message.set_reduction(static_cast<v1::Reduction>(9));
  EXPECT_ERROR(FromProto(message).status(), kInvalidArgument, "reduction 9");
  message.set_reduction(v1::REDUCTION_SUM);
  message.set_huber_delta(2);
  EXPECT_ERROR(FromProto(message).status(), kInvalidArgument, "huber_delta");
  message.set_loss(v1::LOSS_HUBER);
  EXPECT_EQ(FromProto(message)->huber_delta, 2);
  for (double bad : {0.0, -1.0, kNan}) {
    message.set_huber_delta(bad);
    EXPECT_ERROR(FromProto(message).status(), kInvalidArgument, "huber_delta");
  }
}

TEST(ConvertObjective, ThereAndBack) {
  for (int loss = v1::LOSS_CROSS_ENTROPY; loss <= v1::LOSS_GRAPH_OUTPUT; ++loss) {
    v1::Objective message;
    message.set_loss(static_cast<v1::Loss>(loss));
    message.set_reduction(v1::REDUCTION_SUM);
    message.set_output("y");
    message.set_target("t");
    const v1::Objective back = ToProto(*FromProto(message));
    EXPECT_EQ(back.loss(), loss);
    EXPECT_EQ(back.reduction(), v1::REDUCTION_SUM);
    EXPECT_EQ(back.output(), "y");
    EXPECT_EQ(back.target(), "t");
  }
}

TEST(ConvertOptimizer, DefaultsByKind) {
  v1::Optimizer message;
  EXPECT_EQ(FromProto(message)->kind, OptimizerKind::kAdamW);
  EXPECT_EQ(FromProto(message)->weight_decay, 0.01);
  EXPECT_EQ(FromProto(message)->learning_rate, 1e-3);
  message.set_kind(v1::OPTIMIZER_KIND_ADAM);
  EXPECT_EQ(FromProto(message)->kind, OptimizerKind::kAdam);
  EXPECT_EQ(FromProto(message)->weight_decay, 0);
  message.mutable_parameters()->set_weight_decay(0.5);
  EXPECT_EQ(FromProto(message)->weight_decay, 0.5);
  message.set_kind(v1::OPTIMIZER_KIND_SGD);
  message.clear_parameters();
  EXPECT_EQ(FromProto(message)->kind, OptimizerKind::kSgd);
  EXPECT_EQ(FromProto(message)->weight_decay, 0);
  EXPECT_EQ(FromProto(message)->momentum, 0);
  message.set_kind(static_cast<v1::OptimizerKind>(5));
  EXPECT_ERROR(FromProto(message).status(), kInvalidArgument, "kind 5");
}

TEST(ConvertOptimizer, EveryParameterIsTakenAndChecked) {
  const std::pair<const char*, void (v1::OptimizerParameters::*)(double)> fields[] = {
      {"learning_rate", &v1::OptimizerParameters::set_learning_rate},
      {"beta1", &v1::OptimizerParameters::set_beta1},
      {"beta2", &v1::OptimizerParameters::set_beta2},
      {"epsilon", &v1::OptimizerParameters::set_epsilon},
      {"weight_decay", &v1::OptimizerParameters::set_weight_decay},
      {"max_grad_norm", &v1::OptimizerParameters::set_max_grad_norm},
      {"momentum", &v1::OptimizerParameters::set_momentum}};
  for (const auto& [name, set] : fields) {
    v1::OptimizerParameters parameters;
    (parameters.*set)(0.25);
    OptimizerOptions kind;
    if (name == std::string("momentum")) kind.kind = OptimizerKind::kSgd;
    const absl::StatusOr<OptimizerOptions> options = WithParameters(kind, parameters);
    ASSERT_TRUE(options.ok()) << name << options.status();
    v1::OptimizerParameters back = ToProto(*options).parameters();
    EXPECT_THAT(back.DebugString(), HasSubstr(std::string(name) + ": 0.25"));
    for (double bad : {kNan, -std::numeric_limits<double>::infinity(), -1.0}) {
      (parameters.*set)(bad);
      EXPECT_ERROR(WithParameters(kind, parameters).status(), kInvalidArgument, name);
    }
  }
}

TEST(ConvertOptimizer, AParameterOfAnotherOptimizerIsRefused) {
  v1::Optimizer message;
  message.mutable_parameters()->set_momentum(0.5);
  EXPECT_ERROR(FromProto(message).status(), kInvalidArgument, "momentum is set, but");
  message.clear_parameters();
  message.set_nesterov(true);
  EXPECT_ERROR(FromProto(message).status(), kInvalidArgument, "nesterov is set, but");
  message.set_kind(v1::OPTIMIZER_KIND_SGD);
  message.mutable_parameters()->set_momentum(0.5);
  EXPECT_TRUE(FromProto(message)->nesterov);
  for (const auto set : {&v1::OptimizerParameters::set_beta1, &v1::OptimizerParameters::set_beta2,
                         &v1::OptimizerParameters::set_epsilon}) {
    v1::Optimizer other = message;
    (other.mutable_parameters()->*set)(0.5);
    EXPECT_ERROR(FromProto(other).status(), kInvalidArgument, "but the optimizer is SGD");
  }
}

TEST(ConvertBatch, TensorsOrSequences) {
  v1::Batch batch;
  EXPECT_ERROR(FromProto(batch).status(), kInvalidArgument, "empty");
  auto* sequence = batch.add_sequences();
  EXPECT_ERROR(FromProto(batch).status(), kInvalidArgument, "sequences[0].tokens is empty");
  sequence->add_tokens(3);
  sequence->add_tokens(4);
  EXPECT_EQ(FromProto(batch)->sequences[0].tokens, (std::vector<int32_t>{3, 4}));
  sequence->add_targets(1);
  EXPECT_ERROR(FromProto(batch).status(), kInvalidArgument, "targets has 1 entries for 2");
  sequence->add_targets(-1);
  EXPECT_EQ(FromProto(batch)->sequences[0].targets, (std::vector<int32_t>{1, -1}));
  sequence->add_weights(0.5);
  EXPECT_ERROR(FromProto(batch).status(), kInvalidArgument, "weights has 1 entries for 2");
  sequence->add_weights(static_cast<float>(kNan));
  EXPECT_ERROR(FromProto(batch).status(), kInvalidArgument, "weights[1]");
  sequence->set_weights(1, 2);
  EXPECT_EQ(FromProto(batch)->sequences[0].weights, (std::vector<float>{0.5, 2}));
  auto* tensor = batch.add_tensors();
  EXPECT_ERROR(FromProto(batch).status(), kInvalidArgument, "both");
  batch.clear_sequences();
  tensor->set_name("x");
  *tensor->mutable_tensor() = TensorMessage(v1::DATA_TYPE_I8, {2}, "ab");
  EXPECT_EQ(FromProto(batch)->tensors[0].first, "x");
  *batch.add_tensors() = batch.tensors(0);
  EXPECT_ERROR(FromProto(batch).status(), kInvalidArgument, "'x' is given twice");
}

TEST(ConvertSampling, UnsetIsNeutral) {
  const absl::StatusOr<SamplingOptions> options = FromProto(v1::GenerateRequest(), 100);
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->temperature, 1);
  EXPECT_EQ(options->top_k, 0);
  EXPECT_EQ(options->top_p, 1);
  EXPECT_EQ(options->min_p, 0);
  EXPECT_EQ(options->repetition_penalty, 1);
  EXPECT_EQ(*SampleCount(v1::GenerateRequest()), 1);
}

TEST(ConvertSampling, EveryFieldArrives) {
  v1::GenerateRequest request;
  request.set_max_tokens(9);
  request.set_min_tokens(2);
  request.set_temperature(0.5);
  request.set_top_k(7);
  request.set_top_p(0.75);
  request.set_min_p(0.125);
  request.set_repetition_penalty(1.5);
  request.set_presence_penalty(0.25);
  request.set_frequency_penalty(0.0625);
  (*request.mutable_logit_bias())[4] = -3;
  request.add_stop_token_ids(5);
  request.set_ignore_eos(true);
  request.set_logprobs(3);
  request.set_prompt_logprobs(true);
  const absl::StatusOr<SamplingOptions> options = FromProto(request, 100);
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->max_tokens, 9);
  EXPECT_EQ(options->min_tokens, 2);
  EXPECT_EQ(options->temperature, 0.5);
  EXPECT_EQ(options->top_k, 7);
  EXPECT_EQ(options->top_p, 0.75);
  EXPECT_EQ(options->min_p, 0.125);
  EXPECT_EQ(options->repetition_penalty, 1.5);
  EXPECT_EQ(options->presence_penalty, 0.25);
  EXPECT_EQ(options->frequency_penalty, 0.0625);
  EXPECT_EQ(options->logit_bias.at(4), -3);
  EXPECT_EQ(options->stop_token_ids, (std::vector<int32_t>{5}));
  EXPECT_TRUE(options->ignore_eos);
  EXPECT_EQ(options->logprobs, 3);
  EXPECT_TRUE(options->prompt_logprobs);
}

TEST(ConvertSampling, BadValuesAreNamed) {
  const auto error = [](auto set) {
    v1::GenerateRequest request;
    set(request);
    return FromProto(request, 100).status();
  };
  const auto nan = static_cast<float>(kNan);
  EXPECT_ERROR(error([](auto& r) { r.set_max_tokens(0); }), kInvalidArgument, "max_tokens");
  EXPECT_ERROR(error([](auto& r) { r.set_max_tokens(2), r.set_min_tokens(3); }), kInvalidArgument,
               "min_tokens");
  EXPECT_ERROR(error([](auto& r) { r.set_min_tokens(-1); }), kInvalidArgument, "min_tokens");
  EXPECT_ERROR(error([&](auto& r) { r.set_temperature(nan); }), kInvalidArgument, "temperature");
  EXPECT_ERROR(error([](auto& r) { r.set_temperature(-1); }), kInvalidArgument, "temperature");
  EXPECT_ERROR(error([](auto& r) { r.set_top_k(0); }), kInvalidArgument, "top_k");
  EXPECT_ERROR(error([](auto& r) { r.set_top_p(0); }), kInvalidArgument, "top_p");
  EXPECT_ERROR(error([](auto& r) { r.set_top_p(1.5); }), kInvalidArgument, "top_p");
  EXPECT_ERROR(error([](auto& r) { r.set_min_p(-0.5); }), kInvalidArgument, "min_p");
  EXPECT_ERROR(error([](auto& r) { r.set_repetition_penalty(0); }), kInvalidArgument,
               "repetition_penalty");
  EXPECT_ERROR(error([&](auto& r) { r.set_presence_penalty(nan); }), kInvalidArgument,
               "presence_penalty");
  EXPECT_ERROR(error([&](auto& r) { (*r.mutable_logit_bias())[3] = nan; }), kInvalidArgument,
               "logit_bias[3]");
  EXPECT_ERROR(error([](auto& r) { (*r.mutable_logit_bias())[100] = 1; }), kInvalidArgument, "100");
  EXPECT_ERROR(error([](auto& r) { r.add_stop_token_ids(-1); }), kInvalidArgument,
               "stop_token_ids");
  EXPECT_ERROR(error([](auto& r) { r.set_logprobs(21); }), kInvalidArgument, "logprobs");
  EXPECT_ERROR(error([](auto& r) { r.add_stop(""); }), kInvalidArgument, "stop");
  EXPECT_ERROR(error([](auto& r) { r.add_stop(std::string(10000, 'x')); }), kInvalidArgument,
               "stop");
  v1::GenerateRequest request;
  for (int32_t n : {0, -1, 100000}) {
    request.set_n(n);
    EXPECT_ERROR(SampleCount(request).status(), kInvalidArgument, "n is");
  }
}

TEST(ConvertDecoder, DefaultsFollowTheArchitecture) {
  v1::DecoderConfig config;
  config.set_architecture(v1::DecoderConfig::ARCHITECTURE_GPT2);
  config.set_layers(2);
  config.set_heads(4);
  config.set_hidden_size(48);
  config.set_max_positions(16);
  config.set_characters("hello");
  absl::StatusOr<NewDecoder> decoder = FromProto(config, 7);
  ASSERT_TRUE(decoder.ok()) << decoder.status();
  EXPECT_EQ(decoder->seed, 7U);
  EXPECT_EQ(decoder->characters, U"ehlo");
  EXPECT_EQ(decoder->config.vocab_size, 4);
  EXPECT_EQ(decoder->config.intermediate_size, 192);
  EXPECT_EQ(decoder->config.kv_heads, 4);
  EXPECT_EQ(decoder->config.head_dim, 12);
  EXPECT_TRUE(decoder->config.bias);
  EXPECT_TRUE(decoder->config.tie_embeddings);
  config.set_rope_theta(5000);
  EXPECT_ERROR(FromProto(config, 0).status(), kInvalidArgument, "rope_theta");
  config.set_architecture(v1::DecoderConfig::ARCHITECTURE_LLAMA);
  config.set_tie_embeddings(false);
  decoder = FromProto(config, 0);
  ASSERT_TRUE(decoder.ok()) << decoder.status();
  EXPECT_EQ(decoder->config.intermediate_size, 128);
  EXPECT_EQ(decoder->config.rope_theta, 5000);
  EXPECT_FALSE(decoder->config.bias);
  EXPECT_FALSE(decoder->config.tie_embeddings);
  config.set_bias(true);
  EXPECT_ERROR(FromProto(config, 0).status(), kInvalidArgument, "bias");
}

TEST(ConvertDecoder, HostileSizes) {
  v1::DecoderConfig good;
  good.set_architecture(v1::DecoderConfig::ARCHITECTURE_GPT2);
  good.set_vocab_size(8);
  good.set_layers(1);
  good.set_heads(2);
  good.set_hidden_size(8);
  good.set_max_positions(8);
  ASSERT_TRUE(FromProto(good, 0).ok());
  const auto error = [&](auto set) {
    v1::DecoderConfig config = good;
    set(config);
    return FromProto(config, 0).status();
  };
  const int64_t huge = std::numeric_limits<int64_t>::max();
  for (int64_t bad : {huge, std::numeric_limits<int64_t>::min(), int64_t{-1}}) {
    EXPECT_ERROR(error([=](auto& c) { c.set_hidden_size(bad); }), kInvalidArgument, "hidden_size");
    EXPECT_ERROR(error([=](auto& c) { c.set_layers(bad); }), kInvalidArgument, "layers");
    EXPECT_ERROR(error([=](auto& c) { c.set_vocab_size(bad); }), kInvalidArgument, "vocab_size");
    EXPECT_ERROR(error([=](auto& c) { c.set_heads(bad); }), kInvalidArgument, "heads");
    EXPECT_ERROR(error([=](auto& c) { c.set_kv_heads(bad); }), kInvalidArgument, "kv_heads");
    EXPECT_ERROR(error([=](auto& c) { c.set_max_positions(bad); }), kInvalidArgument,
                 "max_positions");
    EXPECT_ERROR(error([=](auto& c) { c.set_intermediate_size(bad); }), kInvalidArgument,
                 "intermediate_size");
  }
  EXPECT_ERROR(error([](auto& c) { c.clear_architecture(); }), kInvalidArgument, "architecture");
  EXPECT_ERROR(error([](auto& c) { c.set_heads(3); }), kInvalidArgument, "hidden_size");
  EXPECT_ERROR(error([](auto& c) { c.set_norm_epsilon(kNan); }), kInvalidArgument, "norm_epsilon");
  EXPECT_ERROR(error([](auto& c) { c.set_initializer_std(kNan); }), kInvalidArgument,
               "initializer_std");
  EXPECT_ERROR(error([](auto& c) { c.set_characters("abc"); }), kInvalidArgument, "characters");
}

}  // namespace
}  // namespace tandem::server

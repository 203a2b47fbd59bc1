// A model on a CUDA device against the same model on the CPU. CTest runs it on the emulated device.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>

#include "engine/exec/device_tensor.h"
#include "engine/exec/passes.h"
#include "engine/sample/generator.h"
#include "engine/train/trainer.h"
#include "tests/engine/language_model.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

class CudaDeviceTest : public ::testing::TestWithParam<DecoderArchitecture> {
 protected:
  void SetUp() override {
    absl::StatusOr<const Backend*> found = FindBackend("cuda:0");
    if (!found.ok()) GTEST_SKIP() << found.status();
    device_ = *found;
  }
  std::unique_ptr<Model> ModelOn(const Backend& backend) const {
    std::unique_ptr<Model> model = MakeModel(TinyConfig(GetParam()));
    const absl::Status moved = model->MoveTo(backend);
    EXPECT_TRUE(moved.ok()) << moved;
    return model;
  }

  const Backend* device_ = nullptr;
};

TEST_P(CudaDeviceTest, ScoresAsTheCpu) {
  const auto on_cpu = ModelOn(CpuBackend()), on_device = ModelOn(*device_);
  const std::vector<std::vector<int32_t>> sequences = {RandomTokens(37, 50, 1),
                                                       RandomTokens(5, 50, 2)};
  const auto expected = ScoreSequences(on_cpu.get(), sequences);
  const auto got = ScoreSequences(on_device.get(), sequences);
  ASSERT_TRUE(expected.ok()) << expected.status();
  ASSERT_TRUE(got.ok()) << got.status();
  for (size_t s = 0; s < sequences.size(); ++s) {
    for (size_t i = 1; i < sequences[s].size(); ++i) {
      EXPECT_NEAR((*got)[s][i], (*expected)[s][i], 2e-5) << s << " " << i;
    }
  }
}

TEST_P(CudaDeviceTest, TrainsAsTheCpu) {
  std::vector<float> weights[2];
  std::vector<LossReport> losses[2];
  std::vector<StepReport> steps[2];
  for (int k = 0; k < 2; ++k) {
    const auto model = ModelOn(k == 0 ? CpuBackend() : *device_);
    OptimizerOptions options;
    options.max_grad_norm = 0.5;
    auto trainer = Trainer::Create(model.get(), {}, options, {});
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    Batch batch;
    batch.sequences = {{.tokens = RandomTokens(33, 50, 3), .targets = {}, .weights = {}},
                       {.tokens = RandomTokens(12, 50, 4), .targets = {}, .weights = {}}};
    for (int step = 0; step < 3; ++step) {
      for (int micro = 0; micro < 1 + step; ++micro) {
        auto loss = (*trainer)->ForwardBackward(batch);
        ASSERT_TRUE(loss.ok()) << loss.status();
        losses[k].push_back(*loss);
      }
      auto report = (*trainer)->OptimStep();
      ASSERT_TRUE(report.ok()) << report.status();
      steps[k].push_back(*report);
    }
    const auto copy = model->parameters().HostCopy();
    ASSERT_TRUE(copy.ok()) << copy.status();
    weights[k].assign(copy->flat(), copy->flat() + copy->flat_size());
  }
  for (size_t i = 0; i < losses[0].size(); ++i) {
    EXPECT_NEAR(losses[1][i].loss, losses[0][i].loss, 2e-5) << i;
  }
  for (size_t i = 0; i < steps[0].size(); ++i) {
    EXPECT_NEAR(steps[1][i].grad_norm / steps[0][i].grad_norm, 1, 1e-4) << i;
    EXPECT_FALSE(steps[1][i].skipped);
    EXPECT_EQ(steps[1][i].step, static_cast<int64_t>(i) + 1);
  }
  // A step moves each weight by about the learning rate, 1e-3; Adam magnifies what rounding does
  // to gradients near zero.
  double worst = 0, sum = 0;
  for (size_t i = 0; i < weights[0].size(); ++i) {
    const double difference = std::abs(double{weights[1][i]} - weights[0][i]);
    worst = std::max(worst, difference);
    sum += difference;
  }
  EXPECT_LT(worst, 2e-3);
  EXPECT_LT(sum / static_cast<double>(weights[0].size()), 1e-5);
}

// The device draws tokens where nothing but cuts and temperature stands before the draw; a request
// for more is drawn on the host from its logits. Both give the CPU's tokens.
TEST_P(CudaDeviceTest, GeneratesAsTheCpu) {
  struct Generated {
    std::vector<int32_t> tokens;
    std::vector<float> sampling_logprobs;
  };
  std::vector<SamplingOptions> requests(4);
  for (SamplingOptions& o : requests) o.max_tokens = 12;
  requests[0].seed = 3;
  requests[1].temperature = 0;
  requests[2].top_k = 7;
  requests[2].top_p = 0.8;
  requests[2].temperature = 1.5;
  requests[2].seed = 9;
  requests[3].min_p = 0.02;
  requests[3].stream = 4;
  for (const bool penalised : {false, true}) {
    if (penalised) requests[1].repetition_penalty = 1.1;
    std::vector<Generated> generated[2];
    for (int k = 0; k < 2; ++k) {
      const auto model = ModelOn(k == 0 ? CpuBackend() : *device_);
      auto generator = Generator::Create(model.get(), {});
      ASSERT_TRUE(generator.ok()) << generator.status();
      generated[k].resize(requests.size());
      for (size_t i = 0; i < requests.size(); ++i) {
        const auto collect = [out = &generated[k][i]](const absl::Status& status,
                                                      const SampledToken& token) {
          EXPECT_TRUE(status.ok()) << status;
          out->tokens.push_back(token.token);
          out->sampling_logprobs.push_back(token.sampling_logprob);
          return true;
        };
        ASSERT_TRUE(
            (*generator)
                ->Add(RandomTokens(5 + 30 * static_cast<int64_t>(i), 50, 1), requests[i], collect)
                .ok());
      }
      for (int i = 0; (*generator)->HasWork() && i < 1000; ++i) (*generator)->Step();
    }
    for (size_t i = 0; i < requests.size(); ++i) {
      EXPECT_EQ(generated[1][i].tokens, generated[0][i].tokens) << i;
      ASSERT_EQ(generated[1][i].tokens.size(), 12u);
      for (size_t t = 0; t < 12; ++t) {
        EXPECT_NEAR(generated[1][i].sampling_logprobs[t], generated[0][i].sampling_logprobs[t],
                    1e-4)
            << i << " " << t;
      }
    }
  }
}

TEST_P(CudaDeviceTest, WeightsMoveThereAndBackToTheBit) {
  const auto model = ModelOn(CpuBackend());
  const std::string hash = *model->WeightsHash();
  ASSERT_TRUE(model->MoveTo(*device_).ok());
  EXPECT_EQ(model->backend().name(), "cuda:0");
  EXPECT_EQ(*model->WeightsHash(), hash);
  ASSERT_TRUE(model->MoveTo(CpuBackend()).ok());
  EXPECT_EQ(*model->WeightsHash(), hash);
}

INSTANTIATE_TEST_SUITE_P(All, CudaDeviceTest,
                         ::testing::Values(DecoderArchitecture::kLlama, DecoderArchitecture::kGpt2),
                         [](const auto& info) {
                           return info.param == DecoderArchitecture::kLlama ? "Llama" : "Gpt2";
                         });

// From the second run at the same addresses on, a plan replays a recording: it must read what its
// inputs hold then.
TEST(CudaPlanTest, RecordingsReadTheInputsOfTheirRun) {
  const absl::StatusOr<const Backend*> device = FindBackend("cuda:0");
  if (!device.ok()) GTEST_SKIP() << device.status();
  Builder b;
  const Value x = b.Input("x", {DType::kF32, {3}});
  b.Output(ops::Mul(b, ops::Neg(b, x), b.Constant(Tensor::Of<float>({3}, {1, 10, 100}))));
  auto plan = Plan::Compile(*b.Finish(), **device);
  ASSERT_TRUE(plan.ok()) << plan.status();
  for (int run = 0; run < 5; ++run) {
    const auto at = static_cast<float>(run);
    const Tensor input = Tensor::Of<float>({3}, {at, at + 1, at + 2});
    const std::vector<const Tensor*> inputs = {&input};
    const auto outputs = RunPlan(**plan, inputs);
    ASSERT_TRUE(outputs.ok()) << outputs.status();
    EXPECT_THAT((*outputs)[0].data<float>(),
                ::testing::ElementsAre(-at, -10 * (at + 1), -100 * (at + 2)));
  }
}

Tensor Wave(const TensorType& type, double phase) {
  Tensor x = Tensor::Zeros({DType::kF32, type.shape});
  for (int64_t i = 0; i < x.num_elements(); ++i) {
    x.data<float>()[i] = static_cast<float>(std::sin(phase + 1.7 * static_cast<double>(i)));
  }
  return x;
}

// What reads a product, built on x (6, 40), w and w2 (40, 24), bias (24) and residual (6, 24) of
// one dtype. `apart`: every value on the way is an output too, so that nothing can be fused.
struct Tail {
  const char* name;
  std::function<Value(Builder&, const std::vector<Value>&, std::vector<Value>*)> build;
};

const std::vector<Tail>& Tails() {
  static const auto* const tails = new std::vector<Tail>{
      {"gelu",
       [](Builder& b, const std::vector<Value>& x, std::vector<Value>* inner) {
         inner->push_back(ops::MatMul(b, x[0], x[1], false, false, x[3]));
         return ops::Gelu(b, inner->back());
       }},
      {"residual + silu",
       [](Builder& b, const std::vector<Value>& x, std::vector<Value>* inner) {
         inner->push_back(ops::MatMul(b, x[0], x[1]));
         inner->push_back(ops::Silu(b, inner->back()));
         return ops::Add(b, x[4], inner->back());
       }},
      {"relu of a product + residual",
       [](Builder& b, const std::vector<Value>& x, std::vector<Value>* inner) {
         inner->push_back(ops::MatMul(b, x[0], x[1], false, false, x[3]));
         inner->push_back(ops::Relu(b, inner->back()));
         return ops::Add(b, inner->back(), x[4]);
       }},
      {"gelu_tanh",
       [](Builder& b, const std::vector<Value>& x, std::vector<Value>* inner) {
         inner->push_back(ops::MatMul(b, x[0], x[1]));
         return ops::GeluTanh(b, inner->back());
       }},
      {"swiglu + residual", [](Builder& b, const std::vector<Value>& x, std::vector<Value>* inner) {
         inner->push_back(ops::MatMul(b, x[0], x[1]));
         inner->push_back(ops::MatMul(b, x[0], x[2]));
         inner->push_back(ops::SwiGlu(b, (*inner)[0], (*inner)[1]));
         return ops::Add(b, inner->back(), x[4]);
       }}};
  return *tails;
}

TEST(CudaPlanTest, ProductsTakeInWhatReadsThemWithTheSameBits) {
  const absl::StatusOr<const Backend*> device = FindBackend("cuda:0");
  if (!device.ok()) GTEST_SKIP() << device.status();
  const Shape shapes[] = {{6, 40}, {40, 24}, {40, 24}, {24}, {6, 24}};
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const Tail& tail : Tails()) {
      SCOPED_TRACE(StrCat(tail.name, " in ", DTypeName(dtype)));
      std::vector<Tensor> results[2];
      for (const bool apart : {false, true}) {
        Builder b;
        std::vector<Value> values, inner;
        std::vector<Tensor> inputs;
        for (const Shape& shape : shapes) {
          const Value x = b.Input(StrCat("x", values.size()), {DType::kF32, shape});
          inputs.push_back(Wave({DType::kF32, shape}, static_cast<double>(values.size())));
          values.push_back(dtype == DType::kF32 ? x : ops::Cast(b, x, dtype));
        }
        b.Output(tail.build(b, values, &inner));
        for (const Value v : inner) {
          if (apart) b.Output(v);
        }
        const absl::StatusOr<Graph> graph = b.Finish();
        ASSERT_TRUE(graph.ok()) << graph.status();
        const absl::StatusOr<Graph> simple = Simplify(*graph, **device);
        ASSERT_TRUE(simple.ok()) << simple.status();
        int products = 0, others = 0;
        for (const Node& node : simple->nodes()) {
          products += node.op->name == "FusedMatMul" ? 1 : 0;
          others += node.op->name != "FusedMatMul" && node.op->name != "Cast" ? 1 : 0;
        }
        EXPECT_EQ(products, apart ? 0 : 1);
        EXPECT_EQ(others, apart ? static_cast<int>(inner.size()) + 1 : 0);
        auto plan = Plan::Compile(*graph, **device);
        ASSERT_TRUE(plan.ok()) << plan.status();
        std::vector<const Tensor*> pointers;
        for (const Tensor& x : inputs) pointers.push_back(&x);
        auto outputs = RunPlan(**plan, pointers);
        ASSERT_TRUE(outputs.ok()) << outputs.status();
        results[apart ? 1 : 0] = *std::move(outputs);
      }
      ASSERT_EQ(results[0][0].bytes(), results[1][0].bytes());
      EXPECT_EQ(std::memcmp(results[0][0].raw(), results[1][0].raw(), results[0][0].bytes()), 0);
    }
  }
}

TEST(CudaPlanTest, SaysHowMuchMemoryThereIs) {
  const absl::StatusOr<const Backend*> device = FindBackend("cuda:0");
  if (!device.ok()) GTEST_SKIP() << device.status();
  const auto memory = DeviceMemory::Allocate(**device, int64_t{1} << 50);
  ASSERT_EQ(memory.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(memory.status().message()), HasSubstr("cuda:0 cannot give"));
  // And goes on: the next launch does not find the allocation's error.
  EXPECT_TRUE((*device)->Finish().ok());
  Builder b;
  b.Output(ops::Neg(b, b.Input("x", {DType::kF32, {3}})));
  auto plan = Plan::Compile(*b.Finish(), **device);
  const Tensor input = Tensor::Of<float>({3}, {1, 2, 3});
  const auto outputs = RunPlan(**plan, std::vector<const Tensor*>{&input});
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  EXPECT_EQ((*outputs)[0].data<float>()[2], -3);
}

// Inputs of every size travel, small ones together and large ones by themselves.
TEST(CudaPlanTest, InputsOfAllSizesArrive) {
  const absl::StatusOr<const Backend*> device = FindBackend("cuda:0");
  if (!device.ok()) GTEST_SKIP() << device.status();
  Builder b;
  std::vector<Tensor> inputs;
  std::vector<const Tensor*> pointers;
  for (const int64_t size : {3, 40000, 0, 17, 100000, 1}) {
    Tensor input(DType::kF32, {size});
    for (int64_t i = 0; i < size; ++i) input.data<float>()[i] = static_cast<float>(size + i);
    b.Output(ops::Neg(b, b.Input("x", input.type())));
    inputs.push_back(std::move(input));
  }
  for (const Tensor& input : inputs) pointers.push_back(&input);
  auto plan = Plan::Compile(*b.Finish(), **device);
  ASSERT_TRUE(plan.ok()) << plan.status();
  const auto outputs = RunPlan(**plan, pointers);
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  for (size_t k = 0; k < inputs.size(); ++k) {
    for (int64_t i = 0; i < inputs[k].num_elements(); ++i) {
      ASSERT_EQ((*outputs)[k].data<float>()[i], -inputs[k].data<float>()[i]) << k << " " << i;
    }
  }
}

TEST(FindBackendTest, NamesWhatItExpects) {
  EXPECT_EQ(*FindBackend("cpu"), &CpuBackend());
  for (const char* name : {"", "gpu", "cuda", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "CPU"}) {
    const absl::Status status = FindBackend(name).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(std::string(status.message()), HasSubstr("expected 'cpu' or 'cuda:0'")) << name;
  }
  // There is no such device with or without a driver.
  EXPECT_EQ(FindBackend("cuda:99").status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace tandem

// Mixed precision: what autocast rewrites, and training in bf16 and f16.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <set>

#include "engine/exec/autocast.h"
#include "engine/exec/passes.h"
#include "engine/ops/ops.h"
#include "engine/sample/generator.h"
#include "engine/train/trainer.h"
#include "tests/engine/language_model.h"
#include "tests/engine/network.h"

namespace tandem {
namespace {

// --- The rewritten graph -------------------------------------------------------------------------

// The nodes of the graph that `body` builds of one f32 input (4, 8), in `dtype`.
using Body = std::function<Value(Builder&, Value)>;
Graph Rewritten(const Body& body, DType dtype = DType::kBF16) {
  Builder source;
  source.Output(body(source, source.Input("x", {DType::kF32, {4, 8}})));
  const absl::StatusOr<Graph> graph = source.Finish();
  EXPECT_TRUE(graph.ok()) << graph.status();
  Builder target(EvaluateNode);
  const Value x = target.Input("x", {DType::kF32, {4, 8}});
  const auto outputs = Autocast(*graph, {{x}}, dtype, target);
  EXPECT_TRUE(outputs.ok()) << outputs.status();
  EXPECT_EQ(target.dtype((*outputs)[0]), DType::kF32);
  target.Output((*outputs)[0]);
  return *target.Finish();
}

// The types of the first operand and of the first result of the nth node of that operator.
using DTypes = std::pair<DType, DType>;
DTypes TypesOf(const Graph& graph, std::string_view op, int nth = 0) {
  for (const Node& node : graph.nodes()) {
    if (node.op->name == op && nth-- == 0) {
      return {graph.type(node.inputs[0]).dtype, graph.type(node.outputs[0]).dtype};
    }
  }
  ADD_FAILURE() << "no " << op << " in\n" << graph.ToString();
  return {};
}
constexpr DTypes kLow{DType::kBF16, DType::kBF16}, kFull{DType::kF32, DType::kF32};
constexpr DTypes kLowToFull{DType::kBF16, DType::kF32};

Value Weight(Builder& b, int32_t index, const Shape& shape) {
  return b.Parameter(index, StrCat("w", index), {DType::kF32, shape});
}

TEST(AutocastTest, ProductsAndWhatTheyFeedAreIn16Bits) {
  const Graph graph = Rewritten([](Builder& b, Value x) {
    x = ops::Relu(b, ops::MatMul(b, x, Weight(b, 0, {8, 8})));
    x = ops::RmsNorm(b, ops::Add(b, x, Weight(b, 1, {8})), Weight(b, 2, {8}), 1e-5)[0];
    return ops::MatMul(b, x, Weight(b, 3, {8, 3}));
  });
  EXPECT_EQ(TypesOf(graph, "MatMul"), kLow);
  EXPECT_EQ(TypesOf(graph, "Relu"), kLow);
  EXPECT_EQ(TypesOf(graph, "Add"), kLow);
  EXPECT_EQ(TypesOf(graph, "RmsNorm"), kLow);
  EXPECT_EQ(TypesOf(graph, "MatMul", 1), kLowToFull);  // the graph's output is f32
}

TEST(AutocastTest, SoftmaxSumsAndExponentialsAreF32) {
  const Graph graph = Rewritten([](Builder& b, Value x) {
    x = ops::MatMul(b, x, Weight(b, 0, {8, 8}));
    x = ops::Softmax(b, ops::Mul(b, ops::Relu(b, x), b.Scalar(0.5)));
    x = ops::MatMul(b, x, Weight(b, 1, {8, 8}));
    return ops::ReduceSum(b, ops::Exp(b, ops::Relu(b, x)), {}, false);
  });
  EXPECT_EQ(TypesOf(graph, "MatMul"), kLow);
  EXPECT_EQ(TypesOf(graph, "Mul"), kLow);
  EXPECT_EQ(TypesOf(graph, "Softmax"), kFull);
  EXPECT_EQ(TypesOf(graph, "MatMul", 1), kLow);
  EXPECT_EQ(TypesOf(graph, "Exp"), kFull);
  EXPECT_EQ(TypesOf(graph, "ReduceSum"), kFull);
}

TEST(AutocastTest, ScoresBeforeASoftmaxAreNotRounded) {
  const Graph graph = Rewritten([](Builder& b, Value x) {
    x = ops::MatMul(b, x, Weight(b, 0, {8, 8}));
    return ops::Softmax(b, ops::Mul(b, x, b.Scalar(0.5)));
  });
  EXPECT_EQ(TypesOf(graph, "MatMul"), kLowToFull);
  EXPECT_EQ(TypesOf(graph, "Mul"), kFull);
}

TEST(AutocastTest, WhatIsF32StaysSoBesideConstantsAndWidensOthers) {
  const Graph graph = Rewritten([](Builder& b, Value x) {
    const Value product = ops::MatMul(b, x, Weight(b, 0, {8, 8}));
    const Value half = ops::Relu(b, product);        // 16 bits
    const Value full = ops::Mul(b, x, b.Scalar(2));  // f32: an input and a constant
    const Value mixed = ops::Sub(b, half, full);     // f32
    return ops::Add(b, mixed, ops::Where(b, ops::Less(b, half, b.Scalar(0)), half, full));
  });
  EXPECT_EQ(TypesOf(graph, "Mul"), kFull);
  EXPECT_EQ(TypesOf(graph, "Sub"), kFull);
  EXPECT_EQ(TypesOf(graph, "Less").first, DType::kBF16);
  EXPECT_EQ(TypesOf(graph, "Add"), kFull);
}

TEST(AutocastTest, ConstantsThat16BitsCannotHoldAreF32) {
  const auto body = [](double constant) {
    return [constant](Builder& b, Value x) {
      x = ops::Relu(b, ops::MatMul(b, x, Weight(b, 0, {8, 8})));
      return ops::Max(b, x, b.Scalar(constant));
    };
  };
  EXPECT_EQ(TypesOf(Rewritten(body(-1e9)), "Max"), kLow);
  EXPECT_EQ(TypesOf(Rewritten(body(-1e9), DType::kF16), "Max"), kFull);
  EXPECT_EQ(TypesOf(Rewritten(body(-65504), DType::kF16), "Max").second, DType::kF16);
  EXPECT_EQ(TypesOf(Rewritten(body(-3.4028e38)), "Max"), kFull);
  EXPECT_EQ(TypesOf(Rewritten(body(-INFINITY)), "Max"), kLow);
}

TEST(AutocastTest, EmbeddingsAreTakenInF32AndRounded) {
  const Graph graph = Rewritten([](Builder& b, Value x) {
    const Value ids = ops::Cast(b, x, DType::kI32);  // (4, 8)
    return ops::Relu(b, ops::Gather(b, Weight(b, 0, {10, 3}), ids, 0));
  });
  EXPECT_EQ(TypesOf(graph, "Gather"), kFull);
  EXPECT_EQ(TypesOf(graph, "Relu"), kLow);
}

// --- Passes --------------------------------------------------------------------------------------

int Count(const Graph& graph, std::string_view op) {
  int count = 0;
  for (const Node& node : graph.nodes()) count += node.op->name == op ? 1 : 0;
  return count;
}

TEST(PrecisionPassesTest, ACastToF32AndBackIsNone) {
  Builder b;
  const Value x = b.Input("x", {DType::kBF16, {4}});
  b.Output(ops::Neg(b, ops::Cast(b, ops::Cast(b, x, DType::kF32), DType::kBF16)));
  b.Output(ops::Cast(b, ops::Cast(b, x, DType::kF32), DType::kF16));
  const absl::StatusOr<Graph> graph = Simplify(*b.Finish(), CpuBackend());
  ASSERT_TRUE(graph.ok()) << graph.status();
  EXPECT_EQ(graph->nodes()[graph->info(graph->outputs()[0]).index].inputs[0], graph->inputs()[0]);
  EXPECT_EQ(Count(*graph, "Cast"), 2);  // bf16 to f16 loses something
}

// Rounding is no round trip.
TEST(PrecisionPassesTest, ACastTo16BitsAndBackStays) {
  Builder b;
  const Value x = b.Input("x", {DType::kF32, {4}});
  b.Output(ops::Cast(b, ops::Cast(b, x, DType::kBF16), DType::kF32));
  const absl::StatusOr<Graph> graph = Simplify(*b.Finish(), CpuBackend());
  ASSERT_TRUE(graph.ok()) << graph.status();
  EXPECT_EQ(Count(*graph, "Cast"), 2);
}

TEST(PrecisionPassesTest, AProductThatOnlyF32ReadsIsNotRounded) {
  for (const bool read_twice : {false, true}) {
    Builder b;
    const Value x = b.Input("x", {DType::kBF16, {2, 3}}), w = b.Input("w", {DType::kBF16, {3, 2}});
    const Value product = ops::MatMul(b, x, w);
    b.Output(ops::Cast(b, product, DType::kF32));
    if (read_twice) b.Output(product);
    auto plan = Plan::Compile(*b.Finish(), CpuBackend());
    ASSERT_TRUE(plan.ok()) << plan.status();
    const Tensor a =
        CastTensor(Tensor::Of<float>({2, 3}, {1, 1.0078125f, 3, 0, 1, 0}), DType::kBF16);
    const Tensor m = CastTensor(Tensor::Of<float>({3, 2}, {1, 0, 1, 0, 0, 1}), DType::kBF16);
    const auto out = RunPlan(**plan, std::vector<const Tensor*>{&a, &m});
    ASSERT_TRUE(out.ok()) << out.status();
    // 2.0078125 needs nine bits.
    EXPECT_EQ((*out)[0].data<float>()[0], read_twice ? 2.0f : 2.0078125f);
  }
}

// --- Models --------------------------------------------------------------------------------------

Batch TokenBatch(int64_t length, uint32_t seed) {
  Batch batch;
  batch.sequences.push_back(
      {.tokens = RandomTokens(length, 61, seed), .targets = {}, .weights = {}});
  return batch;
}

std::vector<float> Gradients(Model& model, const LossScaling& scaling, const Batch& batch) {
  auto trainer = Trainer::Create(&model, {}, {}, {}, scaling);
  EXPECT_TRUE(trainer.ok()) << trainer.status();
  const auto report = (*trainer)->ForwardBackward(batch);
  EXPECT_TRUE(report.ok()) << report.status();
  std::vector<float> all;
  for (size_t i = 0; i < model.source().parameters().size(); ++i) {
    for (float g : (*trainer)->gradient(static_cast<int>(i))) {
      all.push_back(static_cast<float>(g / (*trainer)->loss_scale()));
    }
  }
  return all;
}

LossScaling Scaling(LossScaling::Mode mode, double scale) {
  LossScaling scaling;
  scaling.mode = mode;
  scaling.initial_scale = scale;
  return scaling;
}

double RelativeError(const std::vector<float>& x, const std::vector<float>& y) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    difference += (x[i] - y[i]) * (x[i] - y[i]);
    norm += double{y[i]} * y[i];
  }
  return std::sqrt(difference / norm);
}

TEST(PrecisionTest, GradientsAreThoseOfF32WithinRounding) {
  for (const auto architecture : {DecoderArchitecture::kLlama, DecoderArchitecture::kGpt2}) {
    const auto config = TinyConfig(architecture);
    const Batch batch = TokenBatch(60, 3);
    const std::vector<float> exact = Gradients(*MakeModel(config), {}, batch);
    const auto bf16 = Gradients(*MakeModel(config, 1, Precision::kBF16), {}, batch);
    const auto f16 = Gradients(*MakeModel(config, 1, Precision::kF16),
                               Scaling(LossScaling::Mode::kStatic, 1024), batch);
    // Different, or nothing was computed in 16 bits; bf16 rounds by 2^-9, f16 by 2^-12.
    EXPECT_GT(RelativeError(bf16, exact), 1e-3);
    EXPECT_LT(RelativeError(bf16, exact), 0.04);
    EXPECT_GT(RelativeError(f16, exact), 1e-4);
    EXPECT_LT(RelativeError(f16, exact), 0.005);
  }
}

TEST(PrecisionTest, SmallF16GradientsVanishWithoutALossScale) {
  const auto config = TinyConfig(DecoderArchitecture::kGpt2);
  Batch batch = TokenBatch(60, 3);
  batch.sequences[0].weights.assign(60, 1.0f);
  Objective sum;
  sum.reduction = Reduction::kSum;
  const auto share_of_zeros = [&](const LossScaling& scaling) {
    auto model = MakeModel(config, 1, Precision::kF16);
    for (float& w : batch.sequences[0].weights) w = 1e-9f;
    auto trainer = Trainer::Create(model.get(), sum, {}, {}, scaling);
    EXPECT_TRUE((*trainer)->ForwardBackward(batch).ok());
    int64_t zeros = 0, all = 0;
    const auto& infos = model->source().parameters();
    for (size_t i = 0; i < infos.size(); ++i) {
      if (infos[i].name.find("c_fc.weight") == std::string::npos) continue;
      for (float g : (*trainer)->gradient(static_cast<int>(i))) {
        zeros += g == 0;
        ++all;
      }
    }
    return static_cast<double>(zeros) / static_cast<double>(all);
  };
  EXPECT_EQ(share_of_zeros({}), 1);
  EXPECT_LT(share_of_zeros(Scaling(LossScaling::Mode::kDynamic, 0x1p24)), 0.01);
}

std::vector<float> Masters(const Model& model) {
  const float* flat = model.parameters().flat();
  return {flat, flat + model.parameters().flat_size()};
}

TEST(PrecisionTest, AnOverflowIsSkippedAndHalvesTheScale) {
  auto model = MakeModel(TinyConfig(DecoderArchitecture::kGpt2), 1, Precision::kF16);
  auto trainer =
      Trainer::Create(model.get(), {}, {}, {}, Scaling(LossScaling::Mode::kDynamic, 0x1p60));
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  const std::vector<float> before = Masters(*model);
  ASSERT_TRUE((*trainer)->ForwardBackward(TokenBatch(40, 3)).ok());
  absl::StatusOr<StepReport> step = (*trainer)->OptimStep();
  ASSERT_TRUE(step.ok()) << step.status();
  EXPECT_TRUE(step->skipped);
  EXPECT_EQ(step->step, 0);
  EXPECT_EQ(step->loss_scale, 0x1p60);
  EXPECT_EQ((*trainer)->loss_scale(), 0x1p59);
  EXPECT_EQ((*trainer)->skipped_steps(), 1);
  EXPECT_EQ(model->weights_version(), 1);
  EXPECT_EQ(Masters(*model), before);
  // Halving goes on until the gradients fit; then t counts from 1, as if nothing had been.
  for (int i = 0; step->skipped && i < 60; ++i) {
    ASSERT_TRUE((*trainer)->ForwardBackward(TokenBatch(40, 3)).ok());
    step = (*trainer)->OptimStep();
  }
  EXPECT_FALSE(step->skipped);
  EXPECT_EQ(step->step, 1);
  EXPECT_NE(Masters(*model), before);

  auto fresh = MakeModel(TinyConfig(DecoderArchitecture::kGpt2), 1, Precision::kF16);
  auto direct = Trainer::Create(fresh.get(), {}, {}, {},
                                Scaling(LossScaling::Mode::kStatic, step->loss_scale));
  ASSERT_TRUE((*direct)->ForwardBackward(TokenBatch(40, 3)).ok());
  ASSERT_TRUE((*direct)->OptimStep().ok());
  EXPECT_EQ(Masters(*fresh), Masters(*model));
}

TEST(PrecisionTest, TheScaleGrowsAfterGoodSteps) {
  auto model = MakeModel(TinyConfig(DecoderArchitecture::kGpt2), 1, Precision::kF16);
  LossScaling scaling = Scaling(LossScaling::Mode::kDynamic, 8);
  scaling.growth_factor = 4;
  scaling.backoff_factor = 0.25;
  scaling.growth_interval = 3;
  auto trainer = Trainer::Create(model.get(), {}, {}, {}, scaling);
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  std::vector<double> scales;
  const auto step = [&] {
    ASSERT_TRUE((*trainer)->ForwardBackward(TokenBatch(20, 3)).ok());
    ASSERT_TRUE((*trainer)->OptimStep().ok());
    scales.push_back((*trainer)->loss_scale());
  };
  for (int i = 0; i < 5; ++i) step();
  const float saved = model->parameters().flat()[0];
  model->parameters().flat()[0] = std::numeric_limits<float>::infinity();
  model->BumpWeightsVersion();
  step();
  model->parameters().flat()[0] = saved;
  model->BumpWeightsVersion();
  for (int i = 0; i < 3; ++i) step();
  EXPECT_EQ(scales, (std::vector<double>{8, 8, 32, 32, 32, 8, 8, 8, 32}));
}

// A scale that is a power of two changes nothing that fits: the same weights in f32, to the bit.
TEST(PrecisionTest, AScaleByAPowerOfTwoChangesNoBit) {
  for (const double max_grad_norm : {0.0, 0.1}) {
    std::vector<float> weights[2];
    for (int scaled = 0; scaled < 2; ++scaled) {
      auto model = MakeModel(TinyConfig(DecoderArchitecture::kLlama));
      OptimizerOptions options;
      options.max_grad_norm = max_grad_norm;
      auto trainer =
          Trainer::Create(model.get(), {}, options, {},
                          scaled ? Scaling(LossScaling::Mode::kStatic, 256) : LossScaling());
      for (int i = 0; i < 3; ++i) {
        const auto report = (*trainer)->ForwardBackward(TokenBatch(30, 5 + i));
        ASSERT_TRUE(report.ok());
        EXPECT_LT(report->loss, 20);  // reported without the scale
        ASSERT_TRUE((*trainer)->OptimStep().ok());
      }
      weights[scaled] = Masters(*model);
    }
    EXPECT_EQ(weights[0], weights[1]);
  }
}

// A text with structure: each token decides the next but for one bit.
Batch StructuredBatch(uint32_t seed) {
  std::vector<int32_t> tokens = RandomTokens(48, 2, seed);
  for (size_t i = 1; i < tokens.size(); ++i) {
    tokens[i] = (2 * tokens[i - 1] + 30 * tokens[i] + 7) % 61;
  }
  Batch batch;
  batch.sequences.push_back({.tokens = std::move(tokens), .targets = {}, .weights = {}});
  return batch;
}

TEST(PrecisionTest, TrainingReachesTheSameLoss) {
  std::vector<double> losses;
  for (const Precision precision : {Precision::kF32, Precision::kBF16, Precision::kF16}) {
    DecoderConfig config = TinyConfig(DecoderArchitecture::kGpt2);
    config.initializer_std = 0.02;
    auto model = MakeModel(config, 1, precision);
    OptimizerOptions options;
    options.learning_rate = 1e-2;
    options.max_grad_norm = 1;
    LossScaling scaling;
    if (precision == Precision::kF16) scaling.mode = LossScaling::Mode::kDynamic;
    auto trainer = Trainer::Create(model.get(), {}, options, {}, scaling);
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    double sum = 0;
    for (uint32_t i = 0; i < 80; ++i) {
      const auto report = (*trainer)->ForwardBackward(StructuredBatch(i));
      ASSERT_TRUE(report.ok());
      if (i == 0) {
        EXPECT_NEAR(report->loss, std::log(61), 0.2);
      }
      if (i >= 70) sum += report->loss / 10;
      ASSERT_TRUE((*trainer)->OptimStep().ok());
    }
    losses.push_back(sum);
  }
  EXPECT_LT(losses[0], 0.75 * std::log(61)) << "nothing was learnt";
  EXPECT_NEAR(losses[1], losses[0], 0.05 * losses[0]);
  EXPECT_NEAR(losses[2], losses[0], 0.05 * losses[0]);
  EXPECT_NE(losses[1], losses[0]);
  EXPECT_NE(losses[2], losses[0]);
}

std::shared_ptr<const GraphSource> ConvolutionalNetwork() {
  return std::make_shared<Network>(Shape{2, 3, 8, 8}, [](Network& n, Builder& b, Value x) {
    x = Network::MaxPool(b, n.Conv(b, x, 4, {}), {.kernel = 2, .stride = 2, .pad = 0});
    x = n.Transposed(b, x, 3, {.kernel = 2, .stride = 2, .pad = 0});
    return n.Conv(b, x, 2, {.kernel = 1});
  });
}

TEST(PrecisionTest, ConvolutionsComputeAndTrain) {
  const auto source = ConvolutionalNetwork();
  Batch batch;
  batch.tensors.emplace_back("x", Tensor(DType::kF32, {2, 3, 8, 8}));
  batch.tensors.emplace_back("target", Tensor(DType::kF32, {2, 2, 8, 8}));
  for (auto& [name, tensor] : batch.tensors) {
    const std::vector<int32_t> draws = RandomTokens(tensor.num_elements(), 1000, 7);
    for (size_t i = 0; i < draws.size(); ++i) {
      tensor.data<float>()[i] = static_cast<float>(draws[i]) / 1000;
    }
  }
  std::vector<float> exact;
  for (const Precision precision : {Precision::kF32, Precision::kBF16, Precision::kF16}) {
    Model model("net", source, PositiveWeights(*source), precision);
    const auto outputs = model.Forward({{"x", &batch.tensors[0].second}});
    ASSERT_TRUE(outputs.ok()) << outputs.status();
    const auto y = (*outputs)[0].data<float>();
    const std::vector<float> values(y.begin(), y.end());
    if (precision == Precision::kF32) {
      exact = values;
    } else {
      EXPECT_NE(values, exact);
      EXPECT_LT(RelativeError(values, exact), precision == Precision::kBF16 ? 0.02 : 0.002);
    }
    Objective mse;
    mse.loss = Loss::kMse;
    OptimizerOptions sgd;
    sgd.kind = OptimizerKind::kSgd;
    sgd.learning_rate = 0.003;
    auto trainer = Trainer::Create(&model, mse, sgd, {});
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    double first = 0, last = 0;
    for (int i = 0; i < 40; ++i) {
      const auto report = (*trainer)->ForwardBackward(batch);
      ASSERT_TRUE(report.ok()) << report.status();
      last = report->loss;
      if (i == 0) first = last;
      ASSERT_TRUE((*trainer)->OptimStep().ok());
    }
    EXPECT_LT(last, 0.95 * first) << PrecisionName(precision);
  }
}

// The rewritten graph's noise is other noise than what stands beside it.
TEST(PrecisionTest, RandomStreamsGoOnInTheRewrittenGraph) {
  const auto source =
      std::make_shared<Network>(Shape{1, 1, 4, 4}, [](Network&, Builder& b, Value x) {
        return ops::Add(b, x, ops::Random(b, ops::Noise::kNormal, DType::kF32, b.shape(x)));
      });
  Builder b;
  const Value x = b.Input("x", {DType::kF32, {1, 1, 4, 4}});
  const Value before = ops::Random(b, ops::Noise::kNormal, DType::kF32, {1, 1, 4, 4});
  const auto y = WithPrecision(source, Precision::kBF16)->Build(b, {{x}});
  ASSERT_TRUE(y.ok()) << y.status();
  b.Output(ops::Sub(b, (*y)[0], before));
  b.Output(ops::Random(b, ops::Noise::kNormal, DType::kF32, {1, 1, 4, 4}));
  const absl::StatusOr<Graph> graph = b.Finish();
  ASSERT_TRUE(graph.ok()) << graph.status();
  std::set<std::string> streams;
  for (const Node& node : graph->nodes()) {
    if (node.op->name == "Random") streams.insert(node.attributes.ToString());
  }
  EXPECT_EQ(streams.size(), 3u);
}

TEST(LossScalingTest, ValidateNamesTheField) {
  const auto expect = [](auto change, std::string_view name) {
    LossScaling scaling;
    change(scaling);
    const absl::Status status = scaling.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(std::string(status.message()).find(name), std::string::npos) << status;
  };
  EXPECT_TRUE(LossScaling().Validate().ok());
  expect([](auto& s) { s.initial_scale = 0; }, "initial_scale");
  expect([](auto& s) { s.initial_scale = 1e39; }, "initial_scale");
  expect([](auto& s) { s.initial_scale = NAN; }, "initial_scale");
  expect([](auto& s) { s.growth_factor = 1; }, "growth_factor");
  expect([](auto& s) { s.backoff_factor = 1; }, "backoff_factor");
  expect([](auto& s) { s.backoff_factor = 0; }, "backoff_factor");
  expect([](auto& s) { s.growth_interval = 0; }, "growth_interval");
}

}  // namespace
}  // namespace tandem

// Costs of models: counted by hand, and against what training and running really take.
#include "engine/exec/model_analysis.h"

#include <gtest/gtest.h>

#include "engine/train/trainer.h"
#include "tests/engine/language_model.h"
#include "tests/engine/network.h"

namespace tandem {
namespace {

const LayerCost& Find(const ModelAnalysis& analysis, std::string_view op) {
  for (const LayerCost& layer : analysis.cost.layers) {
    if (layer.op == op) return layer;
  }
  ADD_FAILURE() << "no layer " << op;
  return analysis.cost.layers[0];
}

TEST(ModelAnalysisTest, CountsOfAConvolutionAndAProduct) {
  const auto model = Make({2, 3, 10, 12}, [](Network& n, Builder& b, Value x) {
    x = n.Conv(b, x, 4, {.kernel = 3, .stride = 2});  // (2, 4, 5, 6), a bias, a rectifier
    x = ops::Reshape(b, x, {2, 120});
    const Value w = n.Parameter(b, {120, 7});
    return ops::Add(b, ops::MatMul(b, x, w), n.Parameter(b, {7}, ParameterRole::kBias));
  });
  const absl::StatusOr<ModelAnalysis> analysis = AnalyzeModel(model->source(), Types(*model));
  ASSERT_TRUE(analysis.ok()) << analysis.status();
  EXPECT_EQ(analysis->parameters, 4 * 3 * 9 + 4 + 120 * 7 + 7);
  EXPECT_EQ(analysis->bias_parameters, 4 + 7);
  EXPECT_EQ(analysis->parameter_bytes, analysis->parameters * 4);
  // Each parameter begins at a multiple of 16 elements.
  EXPECT_EQ(analysis->training_state_bytes, (112 + 16 + 848 + 16) * 13);

  const LayerCost& conv = Find(*analysis, "Conv");
  const double outputs = 2 * 4 * 5 * 6;
  EXPECT_EQ(conv.parameters, 112);
  EXPECT_EQ(conv.bias_parameters, 4);
  EXPECT_TRUE(conv.fused_bias);
  EXPECT_EQ(conv.macs, outputs * 27);
  EXPECT_EQ(conv.bias_flops, outputs);
  EXPECT_EQ(conv.flops, 2 * conv.macs + outputs);
  EXPECT_EQ(conv.output_bytes, outputs * 4);
  EXPECT_EQ(conv.bytes_moved, 4 * (2 * 3 * 10 * 12 + 112 + outputs));
  EXPECT_EQ(conv.arithmetic_intensity(), conv.flops / conv.bytes_moved);
  EXPECT_EQ(conv.output_shape, (Shape{2, 4, 5, 6}));

  // The addition became the product's bias: no layer of its own.
  const LayerCost& product = Find(*analysis, "MatMul");
  EXPECT_TRUE(product.fused_bias);
  EXPECT_EQ(product.parameters, 120 * 7 + 7);
  EXPECT_EQ(product.bias_parameters, 7);
  EXPECT_EQ(product.macs, 2 * 120 * 7);
  EXPECT_EQ(product.bias_flops, 2 * 7);
  for (const LayerCost& layer : analysis->cost.layers) EXPECT_NE(layer.op, "Add");
  EXPECT_EQ(analysis->cost.macs, conv.macs + product.macs);
  EXPECT_EQ(analysis->cost.bias_flops, conv.bias_flops + product.bias_flops);
  // A reshape moves nothing.
  const LayerCost& reshape = Find(*analysis, "Reshape");
  EXPECT_EQ(reshape.flops + reshape.bytes_moved + static_cast<double>(reshape.output_bytes), 0);
  double flops = 0;
  int64_t bytes = 0;
  for (const LayerCost& layer : analysis->cost.layers) {
    flops += layer.flops;
    bytes += layer.output_bytes;
  }
  EXPECT_EQ(analysis->cost.flops, flops);
  EXPECT_EQ(analysis->cost.activation_bytes, bytes);
}

TEST(ModelAnalysisTest, TrainingMemoryIsWhatTrainingTakes) {
  const auto model = MakeModel(TinyConfig(DecoderArchitecture::kGpt2));
  const absl::StatusOr<ModelAnalysis> analysis =
      AnalyzeModel(model->source(), {{model->source().inputs()[0].dtype, {24}}});
  ASSERT_TRUE(analysis.ok()) << analysis.status();
  EXPECT_TRUE(analysis->training_error.ok()) << analysis->training_error;
  EXPECT_GT(analysis->training_peak_bytes, analysis->forward_peak_bytes);
  auto trainer = Trainer::Create(model.get(), {}, {}, {});
  ASSERT_TRUE(trainer.ok());
  Batch batch;
  batch.sequences.push_back({.tokens = RandomTokens(24, 61, 1), .targets = {}, .weights = {}});
  ASSERT_TRUE((*trainer)->ForwardBackward(batch).ok());
  EXPECT_EQ(model->plans().workspace_bytes(), analysis->training_peak_bytes);
  EXPECT_EQ((*trainer)->state_bytes(), analysis->training_state_bytes);

  const auto image = Make({2, 3, 10, 12}, [](Network& n, Builder& b, Value x) {
    return n.Conv(b, n.Conv(b, x, 4, {}), 2, {});
  });
  const absl::StatusOr<ModelAnalysis> convolutions = AnalyzeModel(image->source(), Types(*image));
  ASSERT_TRUE(convolutions.ok());
  Objective objective;
  objective.loss = Loss::kMse;
  auto image_trainer = Trainer::Create(image.get(), objective, {}, {});
  ASSERT_TRUE(image_trainer.ok());
  Batch images;
  images.tensors.emplace_back("x", Tensor::Zeros({DType::kF32, {2, 3, 10, 12}}));
  images.tensors.emplace_back("target", Tensor::Zeros({DType::kF32, {2, 2, 10, 12}}));
  ASSERT_TRUE((*image_trainer)->ForwardBackward(images).ok());
  EXPECT_EQ(image->plans().workspace_bytes(), convolutions->training_peak_bytes);
  EXPECT_EQ((*image_trainer)->state_bytes(), convolutions->training_state_bytes);
}

TEST(ModelAnalysisTest, WhatCannotBeTrainedSaysWhy) {
  const auto model =
      Make({1, 1, 4, 4}, [](Network&, Builder& b, Value x) { return ops::Exp(b, x); });
  const absl::StatusOr<ModelAnalysis> analysis = AnalyzeModel(model->source(), Types(*model));
  ASSERT_TRUE(analysis.ok()) << analysis.status();
  EXPECT_NE(std::string(analysis->training_error.message()).find("no parameters"),
            std::string::npos);
}

TEST(ModelAnalysisTest, MeasuresEachLayerThatRuns) {
  const auto model = Make({4, 3, 32, 32}, [](Network& n, Builder& b, Value x) {
    x = n.Conv(b, n.Conv(b, x, 8, {}), 8, {});
    return ops::Reshape(b, x, {4, 8 * 32 * 32});
  });
  const absl::StatusOr<ModelAnalysis> analysis = AnalyzeModel(model->source(), Types(*model));
  ASSERT_TRUE(analysis.ok()) << analysis.status();
  const absl::StatusOr<MeasuredTime> time = MeasureTime(*model, Types(*model));
  ASSERT_TRUE(time.ok()) << time.status();
  EXPECT_GE(time->repetitions, 1);
  ASSERT_EQ(time->layer_seconds.size(), analysis->cost.layers.size());
  for (size_t i = 0; i < time->layer_seconds.size(); ++i) {
    const bool runs = analysis->cost.layers[i].op != "Reshape";
    EXPECT_EQ(time->layer_seconds[i] > 0, runs) << analysis->cost.layers[i].op;
    EXPECT_LT(time->layer_seconds[i], 10);
  }
}

TEST(ModelAnalysisTest, WhatDoesNotFitIsRefused) {
  const auto model =
      Make({1, 1, 8, 8}, [](Network& n, Builder& b, Value x) { return n.Conv(b, x, 1, {}); });
  const std::vector<TensorType> huge = {{DType::kF32, {1 << 16, 1, 1 << 10, 1 << 10}}};
  EXPECT_EQ(MeasureTime(*model, huge).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(MeasureReceptiveField(*model, huge).status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace tandem

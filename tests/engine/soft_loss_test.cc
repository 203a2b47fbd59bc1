// Soft accuracy and soft F1 as objectives of training.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "engine/ops/ops.h"
#include "engine/train/metrics.h"
#include "engine/train/trainer.h"

namespace tandem {
namespace {

using testing::HasSubstr;

// y = x w + b: x (N, features) to logits (N, classes).
class LinearSource final : public GraphSource {
 public:
  LinearSource(int64_t features, int64_t classes)
      : inputs_{{"x", DType::kF32, {-1, features}}},
        outputs_{{"y", DType::kF32, {-1, classes}}},
        parameters_{{"w", Shape{features, classes}, ParameterRole::kWeight, DType::kF32},
                    {"b", Shape{classes}, ParameterRole::kBias, DType::kF32}} {}
  std::string_view format() const override { return "test"; }
  const std::vector<IoSpec>& inputs() const override { return inputs_; }
  const std::vector<IoSpec>& outputs() const override { return outputs_; }
  const std::vector<ParameterInfo>& parameters() const override { return parameters_; }
  absl::StatusOr<std::vector<Value>> Build(Builder& b, std::span<const Value> in) const override {
    const Value w = b.Parameter(0, "w", {DType::kF32, parameters_[0].shape});
    const Value bias = b.Parameter(1, "b", {DType::kF32, parameters_[1].shape});
    return std::vector<Value>{ops::MatMul(b, in[0], w, false, false, bias)};
  }

 private:
  std::vector<IoSpec> inputs_, outputs_;
  std::vector<ParameterInfo> parameters_;
};

std::unique_ptr<Model> MakeLinear(int64_t features, int64_t classes, uint64_t seed) {
  auto source = std::make_shared<LinearSource>(features, classes);
  ParameterStore parameters(source->parameters());
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, 0.5f);
  for (int i = 0; i < 2; ++i) {
    for (float& v : parameters.values(i)) v = normal(random);
  }
  return std::make_unique<Model>("linear", source, std::move(parameters));
}

Batch MakeBatch(Tensor x, Tensor target) {
  Batch batch;
  batch.tensors.emplace_back("x", std::move(x));
  batch.tensors.emplace_back("target", std::move(target));
  return batch;
}

Tensor Random(Shape shape, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  Tensor tensor(DType::kF32, std::move(shape));
  for (float& v : tensor.data<float>()) v = normal(random);
  return tensor;
}

Batch ClassBatch() {
  const std::vector<int32_t> targets = {0, 2, 1, 1, 0, 0, 2, 0};
  return MakeBatch(Random({8, 3}, 1), Tensor::Of<int32_t>({8}, targets));
}
Batch LabelBatch() {
  Tensor labels = Random({8, 3}, 2);
  for (float& v : labels.data<float>()) v = v > 0 ? 1.0f : 0.0f;
  return MakeBatch(Random({8, 3}, 1), std::move(labels));
}

Objective Soft(Loss loss, double temperature = 1) {
  Objective objective;
  objective.loss = loss;
  objective.temperature = temperature;
  return objective;
}

// The model's logits on the batch.
Tensor Logits(Model& model, const Batch& batch) {
  auto outputs = model.Forward({{"x", &batch.tensors[0].second}});
  EXPECT_TRUE(outputs.ok()) << outputs.status();
  return std::move((*outputs)[0]);
}

TEST(SoftLossTest, LossesAreOneMinusTheMetrics) {
  auto model = MakeLinear(3, 3, 3);
  PlanCache plans(4);
  for (const double temperature : {0.5, 1.0, 3.0}) {
    const Batch classes = ClassBatch(), labels = LabelBatch();
    const EvaluationOptions options{.temperature = temperature};
    const auto of_classes =
        EvaluateClasses(Logits(*model, classes), classes.tensors[1].second, {}, options, plans);
    const auto of_labels =
        EvaluateLabels(Logits(*model, labels), CastTensor(labels.tensors[1].second, DType::kI32),
                       0.5, options, plans);
    ASSERT_TRUE(of_classes.ok() && of_labels.ok()) << of_classes.status() << of_labels.status();
    const auto loss = [&](Loss kind, const Batch& batch) {
      const auto report = Trainer::Evaluate(model.get(), Soft(kind, temperature), batch);
      EXPECT_TRUE(report.ok()) << report.status();
      return report.ok() ? *report : LossReport();
    };
    const LossReport accuracy = loss(Loss::kSoftAccuracy, classes);
    EXPECT_NEAR(accuracy.loss, 1 - *of_classes->values[0].smooth, 1e-6);
    EXPECT_EQ(accuracy.tokens, 8) << "one a row";
    EXPECT_TRUE(accuracy.logprobs.empty());
    const LossReport f1 = loss(Loss::kSoftF1, classes);
    EXPECT_NEAR(f1.loss, 1 - *of_classes->values[2].smooth, 1e-6);
    EXPECT_EQ(f1.tokens, 1) << "one for the batch";
    const LossReport label_accuracy = loss(Loss::kSoftAccuracy, labels);
    EXPECT_NEAR(label_accuracy.loss, 1 - *of_labels->values[0].smooth, 1e-6);
    EXPECT_EQ(label_accuracy.tokens, 24);
    EXPECT_NEAR(loss(Loss::kSoftF1, labels).loss, 1 - *of_labels->values[2].smooth, 1e-6);
  }
}

TEST(SoftLossTest, GradientsAgreeWithFiniteDifferences) {
  for (const Loss loss : {Loss::kSoftAccuracy, Loss::kSoftF1}) {
    for (const Batch& batch : {ClassBatch(), LabelBatch()}) {
      auto model = MakeLinear(3, 3, 4);
      const Objective objective = Soft(loss, 0.8);
      auto trainer = Trainer::Create(model.get(), objective, {}, {});
      ASSERT_TRUE(trainer.ok()) << trainer.status();
      ASSERT_TRUE((*trainer)->ForwardBackward(batch).ok());
      for (int p = 0; p < 2; ++p) {
        const std::vector<float> gradient = (*trainer)->gradient(p);
        for (size_t i = 0; i < gradient.size(); ++i) {
          float& weight = model->parameters().values(p)[i];
          const float kept = weight;
          constexpr float kStep = 0.01f;
          const auto at = [&](float value) {
            weight = value;
            const auto report = Trainer::Evaluate(model.get(), objective, batch);
            EXPECT_TRUE(report.ok()) << report.status();
            return report.ok() ? report->loss : NAN;
          };
          const double difference = (at(kept + kStep) - at(kept - kStep)) / (2.0 * kStep);
          weight = kept;
          EXPECT_NEAR(gradient[i], difference, 3e-4) << "parameter " << p << " element " << i;
        }
      }
    }
  }
}

TEST(SoftLossTest, BadBatchesAndObjectivesAreNamed) {
  auto model = MakeLinear(3, 3, 5);
  const auto expect = [&](const Objective& objective, const Batch& batch, const char* text) {
    const absl::Status status = Trainer::Evaluate(model.get(), objective, batch).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  };
  for (const Loss loss : {Loss::kSoftAccuracy, Loss::kSoftF1}) {
    const auto classes = [&](std::vector<int64_t> targets) {
      const Shape shape{static_cast<int64_t>(targets.size())};
      return MakeBatch(Random({2, 3}, 6), Tensor::Of<int64_t>(shape, targets));
    };
    EXPECT_TRUE(Trainer::Evaluate(model.get(), Soft(loss), classes({0, 2})).ok());
    expect(Soft(loss), classes({0, 3}), "target element 1 is 3, outside the classes [0, 3)");
    expect(Soft(loss), classes({0, -1}), "target element 1 is -1");
    expect(Soft(loss), classes({0}), "expected (2) class indices");
    expect(Soft(loss), MakeBatch(Random({2, 3}, 6), Random({2}, 6)), "the target has shape (2)");
    expect(Soft(loss), MakeBatch(Random({2, 3}, 6), Tensor(DType::kF64, {2, 3})),
           "expected i32 or i64 class indices, or f32 labels");
    for (const double bad : {0.0, -1.0, double{NAN}, 1e-31}) {
      expect(Soft(loss, bad), classes({0, 1}), "temperature is ");
      EXPECT_FALSE(Trainer::Create(model.get(), Soft(loss, bad), {}, {}).ok());
    }
  }
}

double HardF1(Model& model, const Batch& batch) {
  PlanCache plans(1);
  const auto report = EvaluateClasses(Logits(model, batch), batch.tensors[1].second, {}, {}, plans);
  EXPECT_TRUE(report.ok()) << report.status();
  return report.ok() ? report->values[2].hard : NAN;
}

// One class in ten, which overlaps with the others: cross-entropy gives it up, F1 does not.
TEST(SoftLossTest, TrainingOnSoftF1ImprovesTheHardF1OfAnImbalancedSet) {
  constexpr int64_t kExamples = 2000;
  Tensor x = Random({kExamples, 2}, 7), target(DType::kI32, {kExamples});
  for (int64_t i = 0; i < kExamples; ++i) {
    const bool rare = i % 10 == 0;
    target.data<int32_t>()[i] = rare ? 1 : 0;
    x.data<float>()[2 * i] += rare ? 1.5f : 0.0f;
  }
  const Batch batch = MakeBatch(std::move(x), std::move(target));
  OptimizerOptions optimizer;
  optimizer.learning_rate = 0.05;
  optimizer.weight_decay = 0;
  auto model = MakeLinear(2, 2, 8);
  const auto train = [&](const Objective& objective) {
    auto trainer = Trainer::Create(model.get(), objective, optimizer, {});
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    double first = 0, last = 0;
    for (int step = 0; step < 300; ++step) {
      const auto report = (*trainer)->ForwardBackward(batch);
      ASSERT_TRUE(report.ok()) << report.status();
      (step == 0 ? first : last) = report->loss;
      ASSERT_TRUE((*trainer)->OptimStep().ok());
    }
    EXPECT_LT(last, first);
  };
  Objective cross_entropy;
  cross_entropy.loss = Loss::kCrossEntropy;
  train(cross_entropy);
  const double before = HardF1(*model, batch);
  train(Soft(Loss::kSoftF1, 0.5));
  const double after = HardF1(*model, batch);
  EXPECT_GT(after, before + 0.04) << "before " << before;
  // Accuracy, for which the rare class hardly matters, takes it back.
  train(Soft(Loss::kSoftAccuracy, 0.5));
  EXPECT_LT(HardF1(*model, batch), after - 0.02);
}

}  // namespace
}  // namespace tandem

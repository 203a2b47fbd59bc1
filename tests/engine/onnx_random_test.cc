// ONNX operators that draw random numbers: served, repeated by a seed, and trained through.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "engine/exec/model.h"
#include "engine/formats/onnx.h"
#include "engine/formats/onnx_proto.h"
#include "engine/formats/onnx_tensor.h"
#include "engine/train/trainer.h"

namespace tandem {
namespace {

using onnx::AttributeProto;
using onnx::TensorProto;
using ::testing::HasSubstr;

class RandomModel {
 public:
  explicit RandomModel(int64_t opset = 17) {
    proto.set_ir_version(8);
    proto.add_opset_import()->set_version(opset);
  }
  RandomModel& Input(const std::string& name, const std::vector<int64_t>& dims,
                     int type = TensorProto::FLOAT) {
    Describe(proto.mutable_graph()->add_input(), name, dims, type);
    return *this;
  }
  RandomModel& Output(const std::string& name, const std::vector<int64_t>& dims,
                      int type = TensorProto::FLOAT) {
    Describe(proto.mutable_graph()->add_output(), name, dims, type);
    return *this;
  }
  RandomModel& Initializer(const std::string& name, const Tensor& tensor) {
    TensorToProto(tensor, name, proto.mutable_graph()->add_initializer());
    return *this;
  }
  onnx::NodeProto* Node(const std::string& op, const std::vector<std::string>& inputs,
                        const std::vector<std::string>& outputs) {
    onnx::NodeProto* node = proto.mutable_graph()->add_node();
    node->set_op_type(op);
    node->set_name(outputs[0]);
    for (const std::string& input : inputs) node->add_input(input);
    for (const std::string& output : outputs) node->add_output(output);
    return node;
  }
  std::unique_ptr<Model> Load() const {
    absl::StatusOr<LoadedOnnx> loaded = LoadOnnx(proto.SerializeAsString());
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    if (!loaded.ok()) return nullptr;
    return std::make_unique<Model>("m", loaded->source, std::move(loaded->parameters));
  }

  onnx::ModelProto proto;

 private:
  static void Describe(onnx::ValueInfoProto* info, const std::string& name,
                       const std::vector<int64_t>& dims, int type) {
    info->set_name(name);
    onnx::TypeProto::Tensor* tensor = info->mutable_type()->mutable_tensor_type();
    tensor->set_elem_type(type);
    for (const int64_t dim : dims) tensor->mutable_shape()->add_dim()->set_dim_value(dim);
  }
};

AttributeProto* Attribute(onnx::NodeProto* node, const std::string& name,
                          onnx::AttributeProto_AttributeType type) {
  AttributeProto* attribute = node->add_attribute();
  attribute->set_name(name);
  attribute->set_type(type);
  return attribute;
}
void SetInt(onnx::NodeProto* node, const std::string& name, int64_t value) {
  Attribute(node, name, AttributeProto::INT)->set_i(value);
}
void SetFloat(onnx::NodeProto* node, const std::string& name, float value) {
  Attribute(node, name, AttributeProto::FLOAT)->set_f(value);
}
void SetShape(onnx::NodeProto* node, const std::vector<int64_t>& dims) {
  AttributeProto* attribute = Attribute(node, "shape", AttributeProto::INTS);
  for (const int64_t dim : dims) attribute->add_ints(dim);
}

std::vector<Tensor> Forward(Model& model, const std::map<std::string, const Tensor*>& inputs = {},
                            std::optional<uint64_t> seed = std::nullopt) {
  auto outputs = model.Forward({inputs.begin(), inputs.end()}, seed);
  EXPECT_TRUE(outputs.ok()) << outputs.status();
  return outputs.ok() ? *std::move(outputs) : std::vector<Tensor>(4);
}

bool SameBits(const Tensor& a, const Tensor& b) {
  return a.type() == b.type() && std::memcmp(a.raw(), b.raw(), a.bytes()) == 0;
}

struct Moments {
  double mean = 0, variance = 0;
  explicit Moments(const Tensor& t) {
    const auto n = static_cast<double>(t.num_elements());
    for (int64_t i = 0; i < t.num_elements(); ++i) mean += ElementAsDouble(t, i) / n;
    for (int64_t i = 0; i < t.num_elements(); ++i) {
      variance += std::pow(ElementAsDouble(t, i) - mean, 2) / n;
    }
  }
};

// --- A variational encoder: z = mu + e^log_sigma noise -------------------------------------------

constexpr int64_t kRows = 5, kWidth = 2;

RandomModel Encoder(std::optional<float> seed = std::nullopt) {
  RandomModel m;
  m.Input("x", {kRows, 3}).Output("z", {kRows, kWidth}).Output("mu", {kRows, kWidth});
  m.Initializer("w_mu", Tensor::Of<float>({3, kWidth}, {0.5f, -1, 0.25f, 0.75f, -0.5f, 1}));
  m.Initializer("w_sigma", Tensor::Of<float>({3, kWidth}, {0.1f, 0.2f, -0.3f, 0.4f, 0.5f, -0.6f}));
  m.Node("MatMul", {"x", "w_mu"}, {"mu"});
  m.Node("MatMul", {"x", "w_sigma"}, {"log_sigma"});
  m.Node("Exp", {"log_sigma"}, {"sigma"});
  onnx::NodeProto* noise = m.Node("RandomNormalLike", {"mu"}, {"noise"});
  if (seed.has_value()) SetFloat(noise, "seed", *seed);
  m.Node("Mul", {"sigma", "noise"}, {"spread"});
  m.Node("Add", {"mu", "spread"}, {"z"});
  return m;
}

Tensor EncoderInput() {
  Tensor x(DType::kF32, {kRows, 3});
  for (int i = 0; i < kRows * 3; ++i) x.data<float>()[i] = static_cast<float>(i % 4) * 0.5f - 0.7f;
  return x;
}

TEST(OnnxRandomTest, EveryForwardDrawsAnewAndASeedRepeats) {
  const std::unique_ptr<Model> model = Encoder().Load();
  const Tensor x = EncoderInput();
  const Tensor first = std::move(Forward(*model, {{"x", &x}})[0]);
  EXPECT_FALSE(SameBits(first, Forward(*model, {{"x", &x}})[0]));
  const Tensor seeded = std::move(Forward(*model, {{"x", &x}}, 5)[0]);
  EXPECT_TRUE(SameBits(seeded, Forward(*model, {{"x", &x}}, 5)[0]));
  EXPECT_FALSE(SameBits(seeded, Forward(*model, {{"x", &x}}, 6)[0]));
  EXPECT_FALSE(SameBits(first, Forward(*model, {{"x", &x}}, 0)[0]));
  // A model that is loaded again draws the same sequence.
  EXPECT_TRUE(SameBits(first, Forward(*Encoder().Load(), {{"x", &x}})[0]));
}

TEST(OnnxRandomTest, TheSeedAttributeIsPartOfTheKey) {
  const Tensor x = EncoderInput();
  const auto run = [&](std::optional<float> attribute, std::optional<uint64_t> seed) {
    return std::move(Forward(*Encoder(attribute).Load(), {{"x", &x}}, seed)[0]);
  };
  EXPECT_TRUE(SameBits(run(1.5f, {}), run(1.5f, {})));
  EXPECT_FALSE(SameBits(run(1.5f, {}), run(2.5f, {})));
  EXPECT_FALSE(SameBits(run(1.5f, {}), run({}, {})));
  EXPECT_FALSE(SameBits(run(1.5f, 3), run(1.5f, 4)));
  const std::unique_ptr<Model> model = Encoder(1.5f).Load();
  const Tensor first = std::move(Forward(*model, {{"x", &x}})[0]);
  EXPECT_FALSE(SameBits(first, Forward(*model, {{"x", &x}})[0]));
}

Batch EncoderBatch() {
  Batch batch;
  batch.tensors.emplace_back("x", EncoderInput());
  batch.tensors.emplace_back("target", Tensor::Zeros({DType::kF32, {kRows, kWidth}}));
  return batch;
}

Objective SumOfSquares() {
  Objective objective;
  objective.loss = Loss::kMse;
  objective.reduction = Reduction::kSum;
  objective.output = "z";
  return objective;
}

// With loss = sum z^2 at target 0: dmu = 2 z, dlog_sigma = 2 z (z - mu), by the very draw that
// Forward gives for that seed.
TEST(OnnxRandomTest, TrainsThroughMeanAndDeviation) {
  const std::unique_ptr<Model> model = Encoder().Load();
  const Tensor x = EncoderInput();
  const std::vector<Tensor> drawn = Forward(*model, {{"x", &x}}, 9);
  auto trainer = Trainer::Create(model.get(), SumOfSquares(), {}, {});
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  (*trainer)->SetRandomSeed(9);
  const auto report = (*trainer)->ForwardBackward(EncoderBatch());
  ASSERT_TRUE(report.ok()) << report.status();
  std::vector<double> d_mu(3 * kWidth), d_sigma(3 * kWidth);
  double loss = 0;
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t k = 0; k < kWidth; ++k) {
      const double z = drawn[0].data<float>()[i * kWidth + k];
      const double mu = drawn[1].data<float>()[i * kWidth + k];
      loss += z * z;
      for (int64_t j = 0; j < 3; ++j) {
        d_mu[j * kWidth + k] += x.data<float>()[i * 3 + j] * 2 * z;
        d_sigma[j * kWidth + k] += x.data<float>()[i * 3 + j] * 2 * z * (z - mu);
      }
    }
  }
  EXPECT_NEAR(report->loss, loss, 1e-4);
  for (size_t i = 0; i < model->source().parameters().size(); ++i) {
    const bool is_mu = model->source().parameters()[i].name == "w_mu";
    const std::vector<float> gradient = (*trainer)->gradient(static_cast<int>(i));
    for (size_t j = 0; j < gradient.size(); ++j) {
      EXPECT_NEAR(gradient[j], is_mu ? d_mu[j] : d_sigma[j], 1e-4) << i << " " << j;
    }
  }
}

TEST(OnnxRandomTest, EveryMicroStepDrawsAnewAndEvaluationRepeats) {
  const auto losses = [](uint64_t seed) {
    const std::unique_ptr<Model> model = Encoder().Load();
    OptimizerOptions still;
    still.learning_rate = 0;
    auto trainer = Trainer::Create(model.get(), SumOfSquares(), still, {});
    (*trainer)->SetRandomSeed(seed);
    std::vector<double> found;
    for (int step = 0; step < 2; ++step) {
      for (int micro = 0; micro < 2; ++micro) {
        found.push_back((*trainer)->ForwardBackward(EncoderBatch())->loss);
      }
      EXPECT_TRUE((*trainer)->OptimStep().ok());
    }
    return found;
  };
  const std::vector<double> one = losses(1);
  for (size_t i = 0; i < one.size(); ++i) {
    for (size_t k = 0; k < i; ++k) EXPECT_NE(one[i], one[k]);
  }
  EXPECT_EQ(one, losses(1));
  EXPECT_NE(one, losses(2));
  const std::unique_ptr<Model> model = Encoder().Load();
  const auto first = Trainer::Evaluate(model.get(), SumOfSquares(), EncoderBatch());
  const auto second = Trainer::Evaluate(model.get(), SumOfSquares(), EncoderBatch());
  ASSERT_TRUE(first.ok() && second.ok()) << first.status();
  EXPECT_EQ(first->loss, second->loss);
}

// --- The operators -------------------------------------------------------------------------------

constexpr int64_t kMany = 100'000;

TEST(OnnxRandomTest, NormalAndUniformHaveTheirParametersAndTypes) {
  RandomModel m;
  m.Output("n", {kMany}).Output("d", {2, kMany}, TensorProto::DOUBLE).Output("u", {kMany});
  onnx::NodeProto* normal = m.Node("RandomNormal", {}, {"n"});
  SetShape(normal, {kMany});
  SetFloat(normal, "mean", 3);
  SetFloat(normal, "scale", 0.5f);
  onnx::NodeProto* plain = m.Node("RandomNormal", {}, {"d"});
  SetShape(plain, {2, kMany});
  SetInt(plain, "dtype", TensorProto::DOUBLE);
  onnx::NodeProto* uniform = m.Node("RandomUniformLike", {"n"}, {"u"});
  SetFloat(uniform, "low", -2);
  SetFloat(uniform, "high", 4);
  const std::vector<Tensor> drawn = Forward(*m.Load());
  const Moments n(drawn[0]), d(drawn[1]), u(drawn[2]);
  EXPECT_EQ(drawn[1].type(), (TensorType{DType::kF64, {2, kMany}}));
  EXPECT_NEAR(n.mean, 3, 4 * 0.5 / std::sqrt(kMany));
  EXPECT_NEAR(n.variance, 0.25, 4 * 0.25 * std::sqrt(2.0 / kMany));
  EXPECT_NEAR(d.mean, 0, 4 / std::sqrt(2 * kMany));
  EXPECT_NEAR(d.variance, 1, 4 * std::sqrt(1.0 / kMany));
  EXPECT_NEAR(u.mean, 1, 4 * std::sqrt(3.0 / kMany));
  EXPECT_NEAR(u.variance, 3, 0.05);
}

TEST(OnnxRandomTest, UniformOfAShapeAndNormalLikeOfAnotherType) {
  RandomModel m;
  m.Input("x", {kMany}, TensorProto::INT64).Output("u", {4, 5}).Output("n", {kMany});
  SetShape(m.Node("RandomUniform", {}, {"u"}), {4, 5});
  SetInt(m.Node("RandomNormalLike", {"x"}, {"n"}), "dtype", TensorProto::FLOAT);
  const Tensor x = Tensor::Zeros({DType::kI64, {kMany}});
  const std::vector<Tensor> drawn = Forward(*m.Load(), {{"x", &x}});
  EXPECT_EQ(drawn[0].type(), (TensorType{DType::kF32, {4, 5}}));
  for (const float v : drawn[0].data<float>()) EXPECT_TRUE(v > 0 && v < 1);
  EXPECT_EQ(drawn[1].type(), (TensorType{DType::kF32, {kMany}}));
  EXPECT_NEAR(Moments(drawn[1]).variance, 1, 4 * std::sqrt(2.0 / kMany));
}

TEST(OnnxRandomTest, BernoulliFollowsItsProbabilities) {
  RandomModel m;
  m.Input("p", {3, kMany}).Output("y", {3, kMany}, TensorProto::INT32);
  SetInt(m.Node("Bernoulli", {"p"}, {"y"}), "dtype", TensorProto::INT32);
  Tensor p = Tensor::Zeros({DType::kF32, {3, kMany}});
  std::fill_n(p.data<float>().begin() + kMany, kMany, 0.3f);
  std::fill_n(p.data<float>().begin() + 2 * kMany, kMany, 1.0f);
  const Tensor y = std::move(Forward(*m.Load(), {{"p", &p}})[0]);
  double sums[3] = {};
  for (int64_t i = 0; i < 3 * kMany; ++i) sums[i / kMany] += y.data<int32_t>()[i];
  EXPECT_EQ(sums[0], 0);
  EXPECT_NEAR(sums[1], 0.3 * kMany, 4 * std::sqrt(0.21 * kMany));
  EXPECT_EQ(sums[2], kMany);
}

TEST(OnnxRandomTest, MultinomialFollowsItsLogits) {
  RandomModel m;
  m.Input("logits", {2, 3}).Output("y", {2, kMany}, TensorProto::INT64);
  onnx::NodeProto* node = m.Node("Multinomial", {"logits"}, {"y"});
  SetInt(node, "dtype", TensorProto::INT64);
  SetInt(node, "sample_size", kMany);
  const double p[2][3] = {{0.2, 0.5, 0.3}, {0, 0.9, 0.1}};
  Tensor logits(DType::kF32, {2, 3});
  for (int i = 0; i < 6; ++i) {
    logits.data<float>()[i] = static_cast<float>(std::log(p[i / 3][i % 3]) + 7);  // unnormalised
  }
  const Tensor y = std::move(Forward(*m.Load(), {{"logits", &logits}})[0]);
  double counts[2][3] = {};
  for (int64_t i = 0; i < 2 * kMany; ++i) counts[i / kMany][y.data<int64_t>()[i]] += 1;
  for (int r = 0; r < 2; ++r) {
    for (int k = 0; k < 3; ++k) {
      EXPECT_NEAR(counts[r][k], p[r][k] * kMany, 4 * std::sqrt(p[r][k] * (1 - p[r][k]) * kMany));
    }
  }
}

TEST(OnnxRandomTest, DropoutInTrainingMasksAndScales) {
  RandomModel m;
  m.Input("x", {kMany}).Output("y", {kMany}).Output("mask", {kMany}, TensorProto::BOOL);
  m.Initializer("ratio", Tensor::Scalar(0.4f));
  m.Initializer("training", CastTensor(Tensor::Scalar(1.0), DType::kBool));
  SetInt(m.Node("Dropout", {"x", "ratio", "training"}, {"y", "mask"}), "seed", 4);
  Tensor x(DType::kF32, {kMany});
  for (int64_t i = 0; i < kMany; ++i) x.data<float>()[i] = static_cast<float>(i % 9) - 4.5f;
  x.data<float>()[0] = INFINITY;
  const std::unique_ptr<Model> model = m.Load();
  const std::vector<Tensor> out = Forward(*model, {{"x", &x}});
  double kept = 0;
  for (int64_t i = 0; i < kMany; ++i) {
    const bool mask = out[1].data<bool>()[i];
    kept += mask ? 1 : 0;
    const float want = mask ? x.data<float>()[i] * static_cast<float>(1 / (1 - 0.4f)) : 0;
    ASSERT_FLOAT_EQ(out[0].data<float>()[i], want) << i;
  }
  EXPECT_NEAR(kept, 0.6 * kMany, 4 * std::sqrt(0.24 * kMany));
  EXPECT_FALSE(SameBits(out[1], Forward(*model, {{"x", &x}})[1]));
  m.proto.mutable_graph()->mutable_node(0)->mutable_attribute(0)->set_i(5);
  EXPECT_FALSE(SameBits(out[1], Forward(*m.Load(), {{"x", &x}})[1]));
}

TEST(OnnxRandomTest, OldDropoutTrainsUnlessItIsATest) {
  for (const bool is_test : {false, true}) {
    RandomModel m(6);
    m.Input("x", {1000}).Output("y", {1000}).Output("mask", {1000});
    onnx::NodeProto* node = m.Node("Dropout", {"x"}, {"y", "mask"});
    SetInt(node, "is_test", is_test ? 1 : 0);
    SetFloat(node, "ratio", 0.25f);
    Tensor x(DType::kF32, {1000});
    for (float& v : x.data<float>()) v = 3;
    const std::vector<Tensor> out = Forward(*m.Load(), {{"x", &x}});
    EXPECT_NEAR(Moments(out[1]).mean, is_test ? 1 : 0.75, is_test ? 1e-9 : 0.06);
    EXPECT_FLOAT_EQ(*std::max_element(out[0].data<float>().begin(), out[0].data<float>().end()),
                    is_test ? 3 : 4);
  }
}

TEST(OnnxRandomTest, SaysWhatItCannotDraw) {
  const auto error = [](const RandomModel& m, const Tensor* x) {
    absl::StatusOr<LoadedOnnx> loaded = LoadOnnx(m.proto.SerializeAsString());
    if (!loaded.ok()) return std::string(loaded.status().message());
    Model model("m", loaded->source, std::move(loaded->parameters));
    std::vector<std::pair<std::string, const Tensor*>> inputs;
    if (x != nullptr) inputs.emplace_back("x", x);
    return std::string(model.Forward(inputs).status().message());
  };
  RandomModel shapeless;
  shapeless.Output("y", {2}).Node("RandomNormal", {}, {"y"});
  EXPECT_THAT(error(shapeless, nullptr), HasSubstr("'shape' is missing"));
  RandomModel vast;
  SetShape(vast.Output("y", {2}).Node("RandomUniform", {}, {"y"}), {int64_t{1} << 40, 1 << 30});
  EXPECT_THAT(error(vast, nullptr), HasSubstr("shape"));
  RandomModel whole;
  onnx::NodeProto* node =
      whole.Output("y", {2}, TensorProto::INT32).Node("RandomNormal", {}, {"y"});
  SetShape(node, {2});
  SetInt(node, "dtype", TensorProto::INT32);
  EXPECT_THAT(error(whole, nullptr), HasSubstr("not a float"));
  const Tensor x = Tensor::Zeros({DType::kF32, {2}});
  RandomModel all;
  all.Input("x", {2}).Output("y", {2});
  all.Initializer("ratio", Tensor::Scalar(1.0f));
  all.Initializer("training", CastTensor(Tensor::Scalar(1.0), DType::kBool));
  all.Node("Dropout", {"x", "ratio", "training"}, {"y"});
  EXPECT_THAT(error(all, &x), HasSubstr("ratio is 1, not in [0, 1)"));
  RandomModel flat;
  flat.Input("x", {2}).Output("y", {2, 1}, TensorProto::INT32).Node("Multinomial", {"x"}, {"y"});
  EXPECT_THAT(error(flat, &x), HasSubstr("expected (batch, classes)"));
}

}  // namespace
}  // namespace tandem

// Memory planning, passes and plans.
#include "engine/exec/plan.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "engine/exec/memory_plan.h"
#include "engine/exec/passes.h"
#include "engine/graph/builder.h"
#include "engine/graph/gradient.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

TEST(MemoryPlanTest, BlocksInUseTogetherNeverOverlap) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    std::vector<MemoryBlock> blocks(1 + random() % 60);
    for (MemoryBlock& b : blocks) {
      b.bytes = random() % 5000;
      b.first = static_cast<int32_t>(random() % 40);
      b.last = b.first + static_cast<int32_t>(random() % 12);
    }
    const int64_t total = AssignOffsets(blocks);
    int64_t sum = 0;
    for (size_t i = 0; i < blocks.size(); ++i) {
      const MemoryBlock& a = blocks[i];
      sum += a.bytes;
      EXPECT_EQ(a.offset % 64, 0);
      EXPECT_LE(a.offset + a.bytes, total);
      for (size_t k = 0; k < i; ++k) {
        const MemoryBlock& b = blocks[k];
        if (a.last < b.first || b.last < a.first || a.bytes == 0 || b.bytes == 0) continue;
        EXPECT_TRUE(a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset)
            << "seed " << seed << " blocks " << i << " and " << k;
      }
    }
    EXPECT_LE(total, sum);
  }
}

Tensor RandomTensor(Shape shape, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Tensor t(DType::kF32, std::move(shape));
  for (float& x : t.data<float>()) x = normal(random);
  return t;
}

// MaxPool's places take memory only where somebody reads them.
TEST(PlanTest, OutputsThatNobodyReadsTakeNoMemory) {
  const ops::PoolOptions options{
      .kernel = {3}, .strides = {1}, .pads_begin = {0}, .pads_end = {0}, .dilations = {1}};
  const auto arena_bytes = [&](bool with_places) -> int64_t {
    Builder b;
    const auto pooled = ops::MaxPool(b, b.Input("x", {DType::kF32, {1, 1, 1 << 20}}), options);
    b.Output(pooled[0]);
    if (with_places) b.Output(ops::ReduceMax(b, pooled[1], {}, false));
    absl::StatusOr<Graph> graph = b.Finish();
    EXPECT_TRUE(graph.ok()) << graph.status();
    auto plan = Plan::Compile(*std::move(graph), CpuBackend());
    EXPECT_TRUE(plan.ok()) << plan.status();
    return (*plan)->arena_bytes();
  };
  const int64_t places = 8 * ((1 << 20) - 2);
  EXPECT_LT(arena_bytes(false), places / 2);
  EXPECT_GE(arena_bytes(true), places);
}

TEST(PlanTest, RunsAndReusesMemory) {
  Builder b;
  const Value x = b.Input("x", {DType::kF32, {64, 64}});
  Value y = x;
  for (int i = 0; i < 10; ++i) y = ops::Relu(b, ops::MatMul(b, y, x));
  b.Output(y);
  absl::StatusOr<Graph> graph = b.Finish();
  ASSERT_TRUE(graph.ok()) << graph.status();
  absl::StatusOr<std::unique_ptr<Plan>> plan = Plan::Compile(std::move(*graph), CpuBackend());
  ASSERT_TRUE(plan.ok()) << plan.status();
  const Tensor input = RandomTensor({64, 64}, 1);
  const Tensor* inputs[] = {&input};
  absl::StatusOr<std::vector<Tensor>> first = RunPlan(**plan, inputs);
  absl::StatusOr<std::vector<Tensor>> second = RunPlan(**plan, inputs);
  ASSERT_TRUE(first.ok() && second.ok());
  // Twenty intermediate values of 16 KiB would be 320 KiB.
  EXPECT_LT((*plan)->arena_bytes(), 150 * 1024);
  for (int64_t i = 0; i < input.num_elements(); ++i) {
    ASSERT_EQ((*first)[0].data<float>()[i], (*second)[0].data<float>()[i]);
  }
}

TEST(PlanTest, InputsAndConstantsAreNeverOverwritten) {
  Builder b;
  const Value x = b.Input("x", {DType::kF32, {100}});
  const Value c = b.Constant(RandomTensor({100}, 2));
  b.Output(ops::Add(b, ops::Neg(b, x), c));
  b.Output(ops::Reshape(b, x, {10, 10}));  // an output that is an input
  b.Output(c);
  b.Output(ops::Add(b, ops::Neg(b, x), c));  // the same value twice
  absl::StatusOr<Graph> graph = b.Finish();
  ASSERT_TRUE(graph.ok());
  absl::StatusOr<std::unique_ptr<Plan>> plan = Plan::Compile(std::move(*graph), CpuBackend());
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ((*plan)->step_count(), 2) << "equal nodes are merged";
  const Tensor input = RandomTensor({100}, 3);
  const Tensor copy = input.Clone();
  const Tensor* inputs[] = {&input};
  for (int run = 0; run < 2; ++run) {
    absl::StatusOr<std::vector<Tensor>> out = RunPlan(**plan, inputs);
    ASSERT_TRUE(out.ok());
    const Tensor constant = RandomTensor({100}, 2);
    for (int i = 0; i < 100; ++i) {
      EXPECT_EQ(input.data<float>()[i], copy.data<float>()[i]);
      EXPECT_EQ((*out)[0].data<float>()[i], -copy.data<float>()[i] + constant.data<float>()[i]);
      EXPECT_EQ((*out)[1].data<float>()[i], copy.data<float>()[i]);
      EXPECT_EQ((*out)[2].data<float>()[i], constant.data<float>()[i]);
      EXPECT_EQ((*out)[3].data<float>()[i], (*out)[0].data<float>()[i]);
    }
  }
}

TEST(PlanTest, DeadNodesAreDropped) {
  Builder b;
  const Value x = b.Input("x", {DType::kF32, {8}});
  ops::Exp(b, ops::Exp(b, x));
  b.Output(ops::Neg(b, x));
  absl::StatusOr<Graph> graph = b.Finish();
  ASSERT_TRUE(graph.ok());
  absl::StatusOr<Graph> simple = Simplify(*graph, CpuBackend());
  ASSERT_TRUE(simple.ok());
  EXPECT_EQ(simple->nodes().size(), 1u);
}

// a (5, 37) x b (37, 19) + bias, on either side; with `shared` the product is an output too.
std::unique_ptr<Plan> LinearPlan(const Shape& bias, bool bias_first, bool shared) {
  Builder b;
  const Value x = b.Input("x", {DType::kF32, {5, 37}}), w = b.Input("w", {DType::kF32, {37, 19}});
  const Value v = b.Input("v", {DType::kF32, bias});
  const Value product = ops::MatMul(b, x, w);
  b.Output(bias_first ? ops::Add(b, v, product) : ops::Add(b, product, v));
  if (shared) b.Output(product);
  absl::StatusOr<Graph> graph = b.Finish();
  EXPECT_TRUE(graph.ok()) << graph.status();
  absl::StatusOr<std::unique_ptr<Plan>> plan = Plan::Compile(*std::move(graph), CpuBackend());
  EXPECT_TRUE(plan.ok()) << plan.status();
  return *std::move(plan);
}

TEST(PlanTest, AVectorAddedToAProductBecomesItsBiasWithTheSameBits) {
  const Tensor x = RandomTensor({5, 37}, 1), w = RandomTensor({37, 19}, 2);
  for (const Shape& shape : {Shape{19}, Shape{1, 19}}) {
    const Tensor v = RandomTensor(shape, 3);
    const Tensor* inputs[] = {&x, &w, &v};
    const std::unique_ptr<Plan> apart = LinearPlan(shape, false, true);
    EXPECT_EQ(apart->step_count(), 2) << "another reader of the product keeps it";
    const absl::StatusOr<std::vector<Tensor>> expected = RunPlan(*apart, inputs);
    ASSERT_TRUE(expected.ok());
    for (const bool bias_first : {false, true}) {
      const std::unique_ptr<Plan> fused = LinearPlan(shape, bias_first, false);
      EXPECT_EQ(fused->step_count(), 1);
      const absl::StatusOr<std::vector<Tensor>> out = RunPlan(*fused, inputs);
      ASSERT_TRUE(out.ok());
      ASSERT_EQ((*out)[0].shape(), (Shape{5, 19}));
      EXPECT_EQ(std::memcmp((*out)[0].raw(), (*expected)[0].raw(), (*out)[0].bytes()), 0);
    }
  }
  // Neither a column nor a matrix nor a single number is a bias.
  for (const Shape& shape : {Shape{5, 1}, Shape{5, 19}, Shape{1}, Shape{1, 1, 19}}) {
    EXPECT_EQ(LinearPlan(shape, false, false)->step_count(), 2) << shape.ToString();
  }
}

TEST(BuilderTest, KeepsTheFirstErrorAndNamesTheOperator) {
  Builder b;
  const Value x = b.Input("x", {DType::kF32, {3, 4}});
  const Value y = b.Input("y", {DType::kF32, {5, 6}});
  const Value bad = ops::MatMul(b, x, y);
  EXPECT_FALSE(bad.valid());
  ops::Add(b, bad, x);
  absl::StatusOr<Graph> graph = b.Finish();
  ASSERT_FALSE(graph.ok());
  EXPECT_EQ(graph.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string message(graph.status().message());
  for (const char* part : {"MatMul", "(3,4)", "(5,6)", "4", "5"}) {
    EXPECT_NE(message.find(part), std::string::npos) << message;
  }
}

TEST(BuilderTest, FoldsConstantsWithAnEvaluator) {
  Builder b(EvaluateNode);
  const Value two = b.Scalar(2), three = b.Scalar(3);
  const Value six = ops::Mul(b, two, three);
  ASSERT_NE(b.constant(six), nullptr);
  EXPECT_EQ(b.constant(six)->data<float>()[0], 6);
  EXPECT_TRUE(b.graph().nodes().empty());
}

TEST(GradientTest, OfValuesThatTheLossDoesNotReachIsZero) {
  Builder b;
  const Value x = b.Input("x", {DType::kF32, {3}});
  const Value unused = b.Input("unused", {DType::kF32, {2}});
  const Value loss = ops::ReduceSum(b, ops::Square(b, x), {}, false);
  const Value wrt[] = {x, unused};
  absl::StatusOr<std::vector<Value>> gradients = Gradient(b, loss, wrt);
  ASSERT_TRUE(gradients.ok()) << gradients.status();
  for (Value v : *gradients) b.Output(v);
  absl::StatusOr<Graph> graph = b.Finish();
  ASSERT_TRUE(graph.ok());
  absl::StatusOr<std::unique_ptr<Plan>> plan = Plan::Compile(std::move(*graph), CpuBackend());
  ASSERT_TRUE(plan.ok()) << plan.status();
  const Tensor a = Tensor::Of<float>({3}, {1, -2, 3}), u = Tensor::Of<float>({2}, {7, 7});
  const Tensor* inputs[] = {&a, &u};
  absl::StatusOr<std::vector<Tensor>> out = RunPlan(**plan, inputs);
  ASSERT_TRUE(out.ok());
  for (int i = 0; i < 3; ++i) EXPECT_EQ((*out)[0].data<float>()[i], 2 * a.data<float>()[i]);
  for (int i = 0; i < 2; ++i) EXPECT_EQ((*out)[1].data<float>()[i], 0);
}

TEST(GradientTest, NeedsAScalarLossOrACotangent) {
  Builder b;
  const Value x = b.Input("x", {DType::kF32, {3}});
  const Value wrt[] = {x};
  EXPECT_EQ(Gradient(b, ops::Exp(b, x), wrt).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace tandem

// What operators say to wrong inputs: which operator, what was given, what was expected.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/backend/backend.h"
#include "engine/exec/plan.h"
#include "engine/graph/builder.h"
#include "engine/graph/gradient.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

struct ErrorCase {
  const char* message;  // a part of it
  std::vector<TensorType> inputs;
  std::function<void(Builder&, const std::vector<Value>&)> build;
};

TensorType F32(Shape shape) { return {DType::kF32, std::move(shape)}; }
TensorType Of(DType dtype, Shape shape) { return {dtype, std::move(shape)}; }

const std::vector<ErrorCase>& Cases() {
  using V = const std::vector<Value>&;
  constexpr DType kI32 = DType::kI32, kBool = DType::kBool, kF64 = DType::kF64;
  static const auto* const cases = new std::vector<ErrorCase>{
      {"[Add] inputs 0 and 1 are f32(2) and f64(2): the types differ",
       {F32({2}), Of(kF64, {2})},
       [](Builder& b, V x) { ops::Add(b, x[0], x[1]); }},
      {"[Mul] shapes (2,3) and (2,4) do not broadcast: 3 against 4",
       {F32({2, 3}), F32({2, 4})},
       [](Builder& b, V x) { ops::Mul(b, x[0], x[1]); }},
      {"[Exp] input is i32(2), expected a floating-point type",
       {Of(kI32, {2})},
       [](Builder& b, V x) { ops::Exp(b, x[0]); }},
      {"[Neg] input is bool(2), expected numbers",
       {Of(kBool, {2})},
       [](Builder& b, V x) { ops::Neg(b, x[0]); }},
      {"[And] input 0 is f32(2), expected bool",
       {F32({2}), F32({2})},
       [](Builder& b, V x) { ops::And(b, x[0], x[1]); }},
      {"[Where] condition is f32(2), expected bool",
       {F32({2}), F32({2}), F32({2})},
       [](Builder& b, V x) { ops::Where(b, x[0], x[1], x[2]); }},
      {"[MatMul] a (3,4) x b (5,6): inner 4 != 5",
       {F32({3, 4}), F32({5, 6})},
       [](Builder& b, V x) { ops::MatMul(b, x[0], x[1]); }},
      {"[MatMul] a (3,4) transposed x b (5,6) transposed: inner 3 != 6",
       {F32({3, 4}), F32({5, 6})},
       [](Builder& b, V x) { ops::MatMul(b, x[0], x[1], true, true); }},
      {"[MatMul] a (3) x b (3,2): rank below 2",
       {F32({3}), F32({3, 2})},
       [](Builder& b, V x) { ops::MatMul(b, x[0], x[1]); }},
      {"[MatMul] a (2,3,4) x b (5,4,6): batch shapes (2) and (5) do not broadcast",
       {F32({2, 3, 4}), F32({5, 4, 6})},
       [](Builder& b, V x) { ops::MatMul(b, x[0], x[1]); }},
      {"[MatMul] bias is f32(3), expected shape (6)",
       {F32({3, 4}), F32({4, 6}), F32({3})},
       [](Builder& b, V x) { ops::MatMul(b, x[0], x[1], false, false, x[2]); }},
      {"[ReduceSum] axis 2 is outside [-2, 2)",
       {F32({2, 3})},
       [](Builder& b, V x) { ops::ReduceSum(b, x[0], {2}, false); }},
      {"[ReduceSum] axis 1 is named twice",
       {F32({2, 3})},
       [](Builder& b, V x) {
         ops::ReduceSum(b, x[0], {1, -1}, false);
       }},
      {"[ArgMax] axis 0 of (0,3) has no elements",
       {F32({0, 3})},
       [](Builder& b, V x) { ops::ArgMax(b, x[0], 0, false); }},
      {"[SumToShape] (4) does not broadcast to (2,3)",
       {F32({2, 3})},
       [](Builder& b, V x) { ops::SumToShape(b, x[0], Shape{4}); }},
      {"[Reshape] (2,3) has 6 elements, (4,2) has 8",
       {F32({2, 3})},
       [](Builder& b, V x) {
         ops::Reshape(b, x[0], Shape{4, 2});
       }},
      {"has a negative size",
       {F32({2, 3})},
       [](Builder& b, V x) {
         ops::Reshape(b, x[0], Shape{-2, -3});
       }},
      {"[Transpose] (0,0) is no permutation of the dimensions of (2,3)",
       {F32({2, 3})},
       [](Builder& b, V x) {
         ops::Transpose(b, x[0], {0, 0});
       }},
      {"[BroadcastTo] (2,3) does not broadcast to (3)",
       {F32({2, 3})},
       [](Builder& b, V x) { ops::BroadcastTo(b, x[0], Shape{3}); }},
      {"[Slice] [1:4:1] is outside dimension 0 of (3)",
       {F32({3})},
       [](Builder& b, V x) { ops::Slice(b, x[0], {1}, {4}, {1}); }},
      {"[Slice] [0:3:0] is outside",
       {F32({3})},
       [](Builder& b, V x) { ops::Slice(b, x[0], {0}, {3}, {0}); }},
      {"[Unslice] the slice is f32(3), expected shape (2)",
       {F32({3})},
       [](Builder& b, V x) { ops::Unslice(b, x[0], Shape{4}, {1}, {3}, {1}); }},
      {"[Pad] padding (-1, 0) of dimension 0",
       {F32({3})},
       [](Builder& b, V x) { ops::Pad(b, x[0], {-1}, {0}); }},
      {"larger than the limit",
       {F32({3})},
       [](Builder& b, V x) { ops::Pad(b, x[0], {int64_t{1} << 40}, {0}); }},
      {"[Concat] input 1 is (3,3), input 0 (2,2): they differ beside axis 0",
       {F32({2, 2}), F32({3, 3})},
       [](Builder& b, V x) {
         ops::Concat(b, {x[0], x[1]}, 0);
       }},
      {"[Gather] indices is f32(2), expected i32 or i64",
       {F32({3}), F32({2})},
       [](Builder& b, V x) { ops::Gather(b, x[0], x[1], 0); }},
      {"[Gather] axis 0 of (0,3) has nothing to gather",
       {F32({0, 3}), Of(kI32, {2})},
       [](Builder& b, V x) { ops::Gather(b, x[0], x[1], 0); }},
      {"[Softmax] x () has no elements along its last dimension",
       {F32({})},
       [](Builder& b, V x) { ops::Softmax(b, x[0]); }},
      {"[LayerNorm] gamma is f32(3), expected shape (4)",
       {F32({2, 4}), F32({3})},
       [](Builder& b, V x) { ops::LayerNorm(b, x[0], x[1], {}, 1e-5); }},
      {"[SoftmaxCrossEntropy] targets is i32(3), expected shape (2)",
       {F32({2, 5}), Of(kI32, {3})},
       [](Builder& b, V x) { ops::SoftmaxCrossEntropy(b, x[0], x[1]); }},
      {"[Rope] head dimension 3 is odd",
       {F32({2, 1, 3}), Of(kI32, {2}), F32({4, 3})},
       [](Builder& b, V x) { ops::Rope(b, x[0], x[1], x[2]); }},
      {"3 heads do not share 2 key/value heads",
       {F32({4, 3, 8}), F32({4, 2, 8}), Of(kI32, {2})},
       [](Builder& b, V x) { ops::Attention(b, x[0], x[1], x[1], x[2], 1); }},
      {"[PagedAttention] v_cache is f32(3,1,8,32), expected shape (3,1,32,8)",
       {F32({4, 1, 8}), Of(kI32, {2}), Of(kI32, {1}), Of(kI32, {1, 2}), F32({3, 1, 8, 32})},
       [](Builder& b, V x) {
         ops::PagedAttention(b, x[0], x[0], x[0], x[1], x[2], x[3], x[4], x[4], 1);
       }},
      {"[AdamStep] control is f64(7), expected shape (12)",
       {F32({4}), Of(DType::kU8, {4}), Of(DType::kF64, {7})},
       [](Builder& b, V x) { ops::AdamStep(b, x[0], x[0], x[0], x[0], x[1], x[2], true); }},
      {"[SgdStep] buffer is f32(3), expected shape (4)",
       {F32({4}), F32({3}), Of(DType::kU8, {4}), Of(DType::kF64, {12})},
       [](Builder& b, V x) { ops::SgdStep(b, x[0], x[0], x[1], x[2], x[3], true); }},
      {"[OptimizerControl] hyper is f64(9), expected shape (10)",
       {Of(DType::kF64, {}), Of(DType::kF64, {9}), Of(DType::kF64, {4})},
       [](Builder& b, V x) { ops::OptimizerControl(b, x[0], x[1], x[2]); }},
      {"[MatMul] a is f32(2,3), its product cannot be f16",
       {F32({2, 3}), F32({3, 4})},
       [](Builder& b, V x) { ops::MatMul(b, x[0], x[1], false, false, {}, DType::kF16); }},
  };
  return *cases;
}

TEST(OpErrors, SayWhatIsWrong) {
  for (const ErrorCase& c : Cases()) {
    Builder b;
    std::vector<Value> values;
    for (const TensorType& type : c.inputs) values.push_back(b.Input("x", type));
    c.build(b, values);
    EXPECT_EQ(b.status().code(), absl::StatusCode::kInvalidArgument) << c.message;
    EXPECT_THAT(std::string(b.status().message()), HasSubstr(c.message));
  }
}

TEST(OpErrors, NameTheDTypeThatTheCpuLacks) {
  Builder b;
  b.Output(ops::Softmax(b, b.Input("x", {DType::kF64, Shape{2, 3}})));
  const auto plan = Plan::Compile(*b.Finish(), CpuBackend());
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr("[Softmax]"));
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr("f64"));
}

// The caches are written in place: copies of another type may not stand for them.
TEST(OpErrors, CachesOfADTypeThatTheCpuLacksAreNamed) {
  Builder b;
  const auto input = [&](DType dtype, Shape shape) { return b.Input("x", {dtype, shape}); };
  const Value q = input(DType::kBF16, {4, 1, 8}), start = input(DType::kI32, {2});
  const Value past = input(DType::kI32, {1}), table = input(DType::kI32, {1, 2});
  const Value k_cache = input(DType::kBF16, {3, 1, 8, 32});
  const Value v_cache = input(DType::kBF16, {3, 1, 32, 8});
  b.Output(ops::PagedAttention(b, q, q, q, start, past, table, k_cache, v_cache, 1));
  const auto plan = Plan::Compile(*b.Finish(), CpuBackend());
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr("[PagedAttention] bf16 caches"));
}

TEST(OpErrors, NameTheOperatorWithoutGradient) {
  Builder b;
  const Value x = b.Input("x", F32({2, 3}));
  const Value loss = ops::ReduceSum(b, ops::SiluGrad(b, x, x), {}, false);
  const auto gradients = Gradient(b, loss, {{x}});
  EXPECT_EQ(gradients.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(gradients.status().message()), HasSubstr("[SiluGrad]"));
}

TEST(OpErrors, AttentionRefusesAGradientThroughLse) {
  Builder b;
  const Value x = b.Input("x", F32({2, 1, 4}));
  const Value start = b.Input("start", {DType::kI32, Shape{2}});
  const Value lse = ops::Attention(b, x, x, x, start, 1)[1];
  const auto gradients = Gradient(b, ops::ReduceSum(b, lse, {}, false), {{x}});
  EXPECT_EQ(gradients.status().code(), absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace tandem

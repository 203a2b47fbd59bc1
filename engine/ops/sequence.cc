// Operators over packed sequences of tokens.
#include <cmath>

#include "engine/ops/definitions.h"
#include "engine/ops/inference.h"

namespace tandem::ops {
namespace {

constexpr int64_t kPage = 32;  // positions of a page of the KV cache

Types InferRope(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireFloat(args, 0, "x"));
  TANDEM_RETURN_IF_ERROR(RequireRank(args, 0, "x", 3));
  TANDEM_RETURN_IF_ERROR(RequireDType(args, 1, "positions", DType::kI32));
  TANDEM_RETURN_IF_ERROR(RequireShape(args, 1, "positions", Shape{args.shape(0)[0]}));
  TANDEM_RETURN_IF_ERROR(RequireSameDType(args, 0, 2));
  TANDEM_RETURN_IF_ERROR(RequireRank(args, 2, "table", 2));
  const int64_t width = args.shape(0)[2];
  if (width % 2 != 0) return InvalidArgument("head dimension ", width, " is odd");
  TANDEM_RETURN_IF_ERROR(RequireShape(args, 2, "table", Shape{args.shape(2)[0], width}));
  if (args.shape(2)[0] == 0) return InvalidArgument("table has no positions");
  return std::vector<TensorType>{args.type(0)};
}

// q (N, H, D), k and v (N, Hkv, D), query_start (S + 1)
absl::Status CheckAttention(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireFloat(args, 0, "q"));
  for (int i : {0, 1}) TANDEM_RETURN_IF_ERROR(RequireRank(args, i, i == 0 ? "q" : "k", 3));
  for (int i : {1, 2}) TANDEM_RETURN_IF_ERROR(RequireSameDType(args, 0, i));
  const Shape &q = args.shape(0), &k = args.shape(1);
  TANDEM_RETURN_IF_ERROR(RequireShape(args, 1, "k", Shape{q[0], k[1], q[2]}));
  TANDEM_RETURN_IF_ERROR(RequireShape(args, 2, "v", k));
  if (k[1] == 0 || q[1] % k[1] != 0 || q[2] == 0) {
    return InvalidArgument("q ", q.ToString(), ", k ", k.ToString(), ": ", q[1],
                           " heads do not share ", k[1], " key/value heads");
  }
  TANDEM_RETURN_IF_ERROR(RequireDType(args, 3, "query_start", DType::kI32));
  TANDEM_RETURN_IF_ERROR(RequireRank(args, 3, "query_start", 1));
  if (args.shape(3)[0] == 0) return InvalidArgument("query_start is empty");
  return absl::OkStatus();
}

Types InferAttention(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckAttention(args));
  const TensorType lse{StatisticsDType(args.type(0).dtype), Rows(args.shape(0))};
  return std::vector<TensorType>{args.type(0), lse};
}

// q, k, v, query_start, out, lse, dout
Types InferAttentionGrad(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckAttention(args));
  for (int i : {4, 6}) TANDEM_RETURN_IF_ERROR(RequireSameDType(args, 0, i));
  TANDEM_RETURN_IF_ERROR(RequireStatistic(args, 5, "lse"));
  TANDEM_RETURN_IF_ERROR(RequireShape(args, 4, "out", args.shape(0)));
  TANDEM_RETURN_IF_ERROR(RequireShape(args, 5, "lse", Rows(args.shape(0))));
  TANDEM_RETURN_IF_ERROR(RequireShape(args, 6, "dout", args.shape(0)));
  return std::vector<TensorType>{args.type(0), args.type(1), args.type(2)};
}

// q, k, v, query_start, past_length (S), block_table (S, B), k_cache, v_cache
Types InferPagedAttention(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckAttention(args));
  const int64_t sequences = args.shape(3)[0] - 1;
  const int64_t kv_heads = args.shape(1)[1], width = args.shape(1)[2];
  TANDEM_RETURN_IF_ERROR(RequireDType(args, 4, "past_length", DType::kI32));
  TANDEM_RETURN_IF_ERROR(RequireShape(args, 4, "past_length", Shape{sequences}));
  TANDEM_RETURN_IF_ERROR(RequireDType(args, 5, "block_table", DType::kI32));
  TANDEM_RETURN_IF_ERROR(RequireRank(args, 5, "block_table", 2));
  TANDEM_RETURN_IF_ERROR(RequireShape(args, 5, "block_table", Shape{sequences, args.shape(5)[1]}));
  // A backend that computes bf16 and f16 in f32 keeps the (rounded) values in f32 caches.
  if (args.type(6).dtype != DType::kF32) TANDEM_RETURN_IF_ERROR(RequireSameDType(args, 0, 6));
  TANDEM_RETURN_IF_ERROR(RequireSameDType(args, 6, 7));
  TANDEM_RETURN_IF_ERROR(RequireRank(args, 6, "k_cache", 4));
  const int64_t pages = args.shape(6)[0];
  TANDEM_RETURN_IF_ERROR(RequireShape(args, 6, "k_cache", Shape{pages, kv_heads, width, kPage}));
  TANDEM_RETURN_IF_ERROR(RequireShape(args, 7, "v_cache", Shape{pages, kv_heads, kPage, width}));
  return std::vector<TensorType>{args.type(0)};
}

// A rotation is orthogonal: dx is dy rotated back.
std::vector<Value> RopeGradient(Builder& b, const GradientArgs& g) {
  const bool inverse = g.node.attributes.Int("inverse") != 0;
  return {Rope(b, g.cotangent(), g.in(1), g.in(2), !inverse), Value{}, Value{}};
}

// With P = exp(scale Q K^T - lse) over the visible keys, dP = dO V^T, delta = rowsum(dO * O) and
// dS = P (dP - delta):  dQ = scale dS K;  dK = scale dS^T Q;  dV = P^T dO.
std::vector<Value> AttentionGradient(Builder& b, const GradientArgs& g) {
  if (g.cotangent(1).valid()) {
    return {b.Fail(Unimplemented("[Attention] no gradient through lse"))};
  }
  std::vector<Value> d = AttentionGrad(b, g.in(0), g.in(1), g.in(2), g.in(3), g.out(0), g.out(1),
                                       g.cotangent(0), g.node.attributes.Float("scale"));
  d.emplace_back();
  return d;
}

// x[:, begin:end] of x (P, D) or x[:, :, begin:end] of x (N, H, D)
Value Columns(Builder& b, Value x, int64_t begin, int64_t end) {
  const Shape shape = b.shape(x);
  std::vector<int64_t> starts(shape.rank(), 0), ends = DimsOf(shape);
  starts.back() = begin;
  ends.back() = end;
  return Slice(b, x, std::move(starts), std::move(ends), std::vector<int64_t>(shape.rank(), 1));
}

// {x1 cos - x2 sin, x2 cos + x1 sin}; backwards, with -sin
std::vector<Value> LowerRope(Builder& b, const Node& node) {
  const Value x = node.inputs[0];
  const Shape shape = b.shape(x);
  const int64_t tokens = shape[0], width = shape[2], half = width / 2;
  const Value angles =
      Reshape(b, Gather(b, node.inputs[2], node.inputs[1], 0), Shape{tokens, 1, width});
  const Value cosine = Columns(b, angles, 0, half);
  Value sine = Columns(b, angles, half, width);
  if (node.attributes.Int("inverse") != 0) sine = Neg(b, sine);
  const Value x1 = Columns(b, x, 0, half), x2 = Columns(b, x, half, width);
  return {Concat(
      b,
      {Sub(b, Mul(b, x1, cosine), Mul(b, x2, sine)), Add(b, Mul(b, x2, cosine), Mul(b, x1, sine))},
      2)};
}

// Attention with the whole (N, N) matrix of each head, for the lowerings.
struct DenseAttention {
  Builder& b;
  DType dtype;
  int64_t tokens, kv_heads, group, width;

  DenseAttention(Builder& builder, const Node& node) : b(builder) {
    const Shape q = b.shape(node.inputs[0]), k = b.shape(node.inputs[1]);
    dtype = b.dtype(node.inputs[0]);
    tokens = q[0];
    kv_heads = k[1];
    group = q[1] / k[1];
    width = q[2];
  }
  // (N, H, last) -> (Hkv, group, N, last)
  Value Heads(Value x, int64_t last) const {
    return Transpose(b, Reshape(b, x, Shape{tokens, kv_heads, group, last}), {1, 2, 0, 3});
  }
  // (N, Hkv, D) -> (Hkv, 1, N, D)
  Value KvHeads(Value x) const {
    return Transpose(b, Reshape(b, x, Shape{tokens, kv_heads, 1, width}), {1, 2, 0, 3});
  }
  // Back from Heads.
  Value Tokens(Value x, const Shape& shape) const {
    return Reshape(b, Transpose(b, x, {2, 0, 1, 3}), shape);
  }
  // Back from KvHeads, summed over the query heads that share one: (Hkv, group, N, D) -> (N, Hkv,
  // D)
  Value KvTokens(Value x) const {
    const Value sum = ReduceSum(b, x, {1}, false);  // (Hkv, N, D)
    return Transpose(b, sum, {1, 0, 2});
  }
  // Whether token i sees token j, (N, N): j <= i, both of one sequence.
  Value Visible(Value query_start) const {
    Tensor range(DType::kI32, Shape{tokens});
    const std::span<int32_t> values = range.data<int32_t>();
    for (int64_t i = 0; i < tokens; ++i) values[i] = static_cast<int32_t>(i);
    const Value row = b.Constant(std::move(range));          // (N)
    const Value column = Reshape(b, row, Shape{tokens, 1});  // (N, 1)
    const Value started = Cast(b, LessOrEqual(b, query_start, column), DType::kI32);
    const Value sequence = ReduceSum(b, started, {1}, true);  // (N, 1)
    const Value same = Equal(b, sequence, Reshape(b, sequence, Shape{tokens}));
    return And(b, same, LessOrEqual(b, row, column));
  }
  // scale Q K^T, very negative where not visible: (Hkv, group, N, N)
  Value Scores(const Node& node) const {
    const Value product =
        MatMul(b, Heads(node.inputs[0], width), KvHeads(node.inputs[1]), false, true);
    const Value scale = b.Scalar(node.attributes.Float("scale"), dtype);
    return Where(b, Visible(node.inputs[3]), Mul(b, product, scale), b.Scalar(-1e30, dtype));
  }
};

std::vector<Value> LowerAttention(Builder& b, const Node& node) {
  const DenseAttention dense(b, node);
  const Shape shape = b.shape(node.inputs[0]);
  const Value scores = dense.Scores(node);
  const Value max = ReduceMax(b, scores, {3}, true);
  const Value e = Exp(b, Sub(b, scores, max));
  const Value sum = ReduceSum(b, e, {3}, true);
  const Value out = MatMul(b, Div(b, e, sum), dense.KvHeads(node.inputs[2]));
  return {dense.Tokens(out, shape), dense.Tokens(Add(b, max, Log(b, sum)), Rows(shape))};
}

std::vector<Value> LowerAttentionGrad(Builder& b, const Node& node) {
  const DenseAttention dense(b, node);
  const Shape shape = b.shape(node.inputs[0]);
  const Value out = node.inputs[4], dout = dense.Heads(node.inputs[6], dense.width);
  const Value p = Exp(b, Sub(b, dense.Scores(node), dense.Heads(node.inputs[5], 1)));
  const Value dp = MatMul(b, dout, dense.KvHeads(node.inputs[2]), false, true);
  const Value delta = ReduceSum(b, Mul(b, dout, dense.Heads(out, dense.width)), {3}, true);
  const Value scale = b.Scalar(node.attributes.Float("scale"), dense.dtype);
  const Value ds = Mul(b, Mul(b, p, Sub(b, dp, delta)), scale);
  return {dense.Tokens(MatMul(b, ds, dense.KvHeads(node.inputs[1])), shape),
          dense.KvTokens(MatMul(b, ds, dense.Heads(node.inputs[0], dense.width), true)),
          dense.KvTokens(MatMul(b, p, dout, true))};
}

// An upper bound, as if all tokens were one sequence: half of N^2 pairs, two products of D (five in
// the backward pass).
template <int kProducts>
double AttentionFlops(std::span<const TensorType* const> inputs, std::span<const TensorType>,
                      const Attributes&) {
  const Shape& q = inputs[0]->shape;
  return kProducts * static_cast<double>(q.num_elements()) * static_cast<double>(q[0]);
}

// The same over the block table's positions.
double PagedAttentionFlops(std::span<const TensorType* const> inputs, std::span<const TensorType>,
                           const Attributes&) {
  const auto positions = static_cast<double>(inputs[5]->shape[1] * kPage);
  return 4 * static_cast<double>(inputs[0]->shape.num_elements()) * positions;
}

}  // namespace

constinit const OpDef kRope = {.name = "Rope",
                               .min_inputs = 3,
                               .max_inputs = 3,
                               .infer = InferRope,
                               .gradient = RopeGradient,
                               .lower = LowerRope,
                               .flops = FlopsPerElement<3>};
constinit const OpDef kAttention = {.name = "Attention",
                                    .min_inputs = 4,
                                    .max_inputs = 4,
                                    .infer = InferAttention,
                                    .gradient = AttentionGradient,
                                    .lower = LowerAttention,
                                    .flops = AttentionFlops<2>};
constinit const OpDef kAttentionGrad = {.name = "AttentionGrad",
                                        .min_inputs = 7,
                                        .max_inputs = 7,
                                        .infer = InferAttentionGrad,
                                        .lower = LowerAttentionGrad,
                                        .flops = AttentionFlops<5>};
constinit const OpDef kPagedAttention = {.name = "PagedAttention",
                                         .min_inputs = 8,
                                         .max_inputs = 8,
                                         .infer = InferPagedAttention,
                                         .flops = PagedAttentionFlops};

Value Rope(Builder& b, Value x, Value positions, Value table, bool inverse) {
  return b.Add(kRope, {x, positions, table}, {{"inverse", int64_t{inverse}}});
}

Tensor RopeTable(double theta, int64_t head_dim, int64_t max_positions) {
  Tensor table(DType::kF32, Shape{max_positions, head_dim});
  const std::span<float> values = table.data<float>();
  const int64_t half = head_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const double frequency =
        std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    for (int64_t p = 0; p < max_positions; ++p) {
      const double angle = static_cast<double>(p) * frequency;
      values[p * head_dim + i] = static_cast<float>(std::cos(angle));
      values[p * head_dim + half + i] = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

std::vector<Value> Attention(Builder& b, Value q, Value k, Value v, Value query_start,
                             double scale) {
  return b.AddMulti(kAttention, {{q, k, v, query_start}}, {{"scale", scale}}, 2);
}

std::vector<Value> AttentionGrad(Builder& b, Value q, Value k, Value v, Value query_start,
                                 Value out, Value lse, Value dout, double scale) {
  return b.AddMulti(kAttentionGrad, {{q, k, v, query_start, out, lse, dout}}, {{"scale", scale}},
                    3);
}

Value PagedAttention(Builder& b, Value q, Value k, Value v, Value query_start, Value past_length,
                     Value block_table, Value k_cache, Value v_cache, double scale) {
  return b.Add(kPagedAttention, {q, k, v, query_start, past_length, block_table, k_cache, v_cache},
               {{"scale", scale}});
}

}  // namespace tandem::ops

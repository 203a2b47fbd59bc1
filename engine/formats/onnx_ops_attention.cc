// What transformers are made of: attention over padded batches, rotary positions, gated
// activations.
#include <cmath>
#include <limits>
#include <utility>

#include "engine/base/error.h"
#include "engine/formats/onnx_compose.h"
#include "engine/formats/onnx_ops.h"
#include "engine/formats/onnx_tensor.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// (B, S, H D) as (B, H, S, D); what has four dimensions already is.
absl::StatusOr<Value> SplitHeads(NodeContext& c, int i, int64_t heads) {
  const Shape shape = c.shape(i);
  if (shape.rank() == 4) return c.In(i);
  if (shape.rank() != 3 || heads < 1 || shape[2] % heads != 0) {
    return InvalidArgument("input ", i, " is ", shape.ToString(), " for ", heads, " heads");
  }
  const Value split = ops::Reshape(c.b, c.In(i), {shape[0], shape[1], heads, shape[2] / heads});
  return ops::Transpose(c.b, split, {0, 2, 1, 3});
}

// Each of the key and value heads for `times` query heads: (B, H, S, D) -> (B, H times, S, D).
Value RepeatHeads(Builder& b, Value x, int64_t times) {
  const Shape s = b.shape(x);
  if (times == 1) return x;
  const Value copies =
      ops::BroadcastTo(b, compose::ExpandAxis(b, x, 2), {s[0], s[1], times, s[2], s[3]});
  return ops::Reshape(b, copies, {s[0], s[1] * times, s[2], s[3]});
}

struct AttentionShapes {
  int64_t batch = 0, heads = 0, queries = 0, keys = 0, past = 0;
};

// scores with what may not be seen at -inf, and a float mask added.
absl::StatusOr<Value> Mask(NodeContext& c, Value scores, const AttentionShapes& s) {
  Builder& b = c.b;
  const Value none = compose::Like(b, -kInfinity, scores);
  const Value key = compose::Iota(b, s.keys);  // (keys)
  if (c.Has(3)) {
    Value mask = c.In(3);
    const Shape shape = b.shape(mask);
    if (shape.rank() < 1 || shape[-1] > s.keys) {
      return InvalidArgument("attn_mask is ", shape.ToString(), " for ", s.keys, " keys");
    }
    const bool is_bool = b.dtype(mask) == DType::kBool;
    if (shape[-1] < s.keys && shape[-1] != 1) {  // a shorter mask hides the keys after it
      std::vector<int64_t> before(shape.rank(), 0), after(shape.rank(), 0);
      after.back() = s.keys - shape[-1];
      mask = ops::Pad(b, mask, before, after, is_bool ? 0 : -kInfinity);
    }
    scores = is_bool ? ops::Where(b, mask, scores, none)
                     : ops::Add(b, scores, compose::CastTo(b, mask, b.dtype(scores)));
  }
  Value lengths;  // (B, 1, 1, 1)
  if (c.Has(6)) {
    if (c.shape(6) != Shape{s.batch}) {
      return InvalidArgument("nonpad_kv_seqlen is ", c.shape(6).ToString());
    }
    lengths = ops::Reshape(b, ops::Cast(b, c.In(6), DType::kI64), {s.batch, 1, 1, 1});
    scores = ops::Where(b, ops::Less(b, key, lengths), scores, none);
  }
  if (c.Int("is_causal", 0) != 0) {
    // Query i is token i + offset of its sequence.
    Value query = ops::Reshape(b, compose::Iota(b, s.queries), {s.queries, 1});
    query =
        lengths.valid()
            ? ops::Add(b, query, compose::AddScalar(b, lengths, -static_cast<double>(s.queries)))
            : compose::AddScalar(b, query, static_cast<double>(s.past));
    scores = ops::Where(b, ops::LessOrEqual(b, key, query), scores, none);
  }
  return scores;
}

// Softmax whose rows without a key are 0.
Value MaskedSoftmax(Builder& b, Value scores) {
  const int last = b.shape(scores).rank() - 1;
  const Value best = ops::ReduceMax(b, scores, {last}, true);
  const Value empty = ops::Equal(b, best, compose::Like(b, -kInfinity, scores));
  const Value zero = compose::Like(b, 0, scores);
  const Value weights = ops::Softmax(b, ops::Where(b, empty, zero, scores));
  return ops::Where(b, empty, zero, weights);
}

absl::StatusOr<AttentionShapes> CheckAttention(NodeContext& c, Value q, Value k, Value v) {
  const Shape qs = c.b.shape(q), ks = c.b.shape(k), vs = c.b.shape(v);
  AttentionShapes s{.batch = qs[0], .heads = qs[1], .queries = qs[2], .keys = ks[2]};
  if (ks[0] != qs[0] || vs[0] != qs[0] || ks[3] != qs[3] || vs[1] != ks[1] || vs[2] != ks[2] ||
      ks[1] < 1 || qs[1] % ks[1] != 0 || qs[3] < 1 || ks[2] < 1) {
    return InvalidArgument("Q ", qs.ToString(), ", K ", ks.ToString(), " and V ", vs.ToString(),
                           " do not go together");
  }
  return s;
}

Outputs Attention(NodeContext& c) {
  Builder& b = c.b;
  const bool merged = c.rank(0) == 3;
  TANDEM_ASSIGN_OR_RETURN(Value q, SplitHeads(c, 0, c.Int("q_num_heads", 0)));
  const int64_t kv_heads = c.Int("kv_num_heads", 0);
  TANDEM_ASSIGN_OR_RETURN(Value k, SplitHeads(c, 1, kv_heads));
  TANDEM_ASSIGN_OR_RETURN(Value v, SplitHeads(c, 2, kv_heads));
  int64_t past = 0;
  if (c.Has(4) != c.Has(5)) return InvalidArgument("one of past_key and past_value is missing");
  if (c.Has(4)) {
    if (c.Has(6)) return InvalidArgument("both a past and nonpad_kv_seqlen are given");
    if (c.rank(4) != 4) return InvalidArgument("past_key is ", c.shape(4).ToString());
    past = c.shape(4)[2];
    k = ops::Concat(b, {c.In(4), k}, 2);
    v = ops::Concat(b, {c.In(5), v}, 2);
  }
  TANDEM_RETURN_IF_ERROR(b.status());
  TANDEM_ASSIGN_OR_RETURN(AttentionShapes s, CheckAttention(c, q, k, v));
  s.past = past;
  const Value present_key = k, present_value = v;
  const int64_t repeat = s.heads / b.shape(k)[1];
  const double scale = c.Float("scale", 1 / std::sqrt(static_cast<double>(b.shape(q)[3])));
  const double softcap = c.Float("softcap", 0);
  const int64_t mode = c.Int("qk_matmul_output_mode", 0);
  const int64_t precision = c.Int("softmax_precision", onnx::TensorProto::FLOAT);
  Value scores = ops::MatMul(b, compose::Scale(b, q, std::sqrt(scale)),
                             compose::Scale(b, RepeatHeads(b, k, repeat), std::sqrt(scale)), false,
                             true);  // (B, H, queries, keys)
  Value shown = scores;
  if (softcap != 0) {
    scores = compose::Scale(b, ops::Tanh(b, compose::Scale(b, scores, 1 / softcap)), softcap);
  }
  if (mode == 1) shown = scores;
  TANDEM_RETURN_IF_ERROR(b.status());
  TANDEM_ASSIGN_OR_RETURN(scores, Mask(c, scores, s));
  if (mode == 2) shown = scores;
  TANDEM_RETURN_IF_ERROR(b.status());
  // Asked-for precisions below the one that is used anyway need nothing.
  const DType dtype = b.dtype(scores);
  if (precision == onnx::TensorProto::DOUBLE) scores = compose::CastTo(b, scores, DType::kF64);
  const Value weights = compose::CastTo(b, MaskedSoftmax(b, scores), dtype);
  if (mode == 3) shown = weights;
  if (mode < 0 || mode > 3) return InvalidArgument("attribute qk_matmul_output_mode=", mode);
  Value y = ops::MatMul(b, weights, RepeatHeads(b, v, repeat));
  if (merged) {
    const int64_t width = b.shape(v)[3];
    y = ops::Reshape(b, ops::Transpose(b, y, {0, 2, 1, 3}), {s.batch, s.queries, s.heads * width});
  }
  return std::vector<Value>{y, present_key, present_value, shown};
}

// Every second element of the last dimension, from `first` on.
Value EverySecond(Builder& b, Value x, int64_t first) {
  const Shape shape = b.shape(x);
  std::vector<int64_t> starts(shape.rank(), 0), steps(shape.rank(), 1);
  starts.back() = first;
  steps.back() = 2;
  return ops::Slice(b, x, starts, compose::Dims(shape), steps);
}

// x (B, H, S, D) or (B, S, H D): pairs (i, i + d/2), or (2 i, 2 i + 1) where interleaved, of the
// first d of each head's elements are rotated by the angles in the caches.
Outputs RotaryEmbedding(NodeContext& c) {
  Builder& b = c.b;
  const bool merged = c.rank(0) == 3;
  TANDEM_ASSIGN_OR_RETURN(Value x, SplitHeads(c, 0, c.Int("num_heads", 0)));
  const Shape s = b.shape(x);  // (B, H, S, D)
  const bool interleaved = c.Int("interleaved", 0) != 0;
  const int64_t given = c.Int("rotary_embedding_dim", 0), d = given == 0 ? s[3] : given;
  if (d < 2 || d > s[3] || d % 2 != 0) {
    return InvalidArgument("attribute rotary_embedding_dim=", d, " of heads of ", s[3]);
  }
  Value cosines = c.In(1), sines = c.In(2);
  if (c.Has(3)) {
    if (c.shape(3) != Shape{s[0], s[2]} || c.rank(1) != 2 || c.shape(2) != c.shape(1)) {
      return InvalidArgument("position_ids ", c.shape(3).ToString(), " and caches ",
                             c.shape(1).ToString(), " for ", s.ToString());
    }
    cosines = ops::Gather(b, cosines, c.In(3), 0);
    sines = ops::Gather(b, sines, c.In(3), 0);
  }
  if (b.shape(cosines) != Shape{s[0], s[2], d / 2} || b.shape(sines) != b.shape(cosines)) {
    return InvalidArgument("caches give ", b.shape(cosines).ToString(), ", expected ",
                           Shape{s[0], s[2], d / 2}.ToString());
  }
  cosines = compose::ExpandAxis(b, cosines, 1);  // (B, 1, S, d / 2)
  sines = compose::ExpandAxis(b, sines, 1);
  const Value rotated = compose::SliceAxis(b, x, 3, 0, d);
  const Value first =
      interleaved ? EverySecond(b, rotated, 0) : compose::SliceAxis(b, rotated, 3, 0, d / 2);
  const Value second =
      interleaved ? EverySecond(b, rotated, 1) : compose::SliceAxis(b, rotated, 3, d / 2, d);
  Value real = ops::Sub(b, ops::Mul(b, cosines, first), ops::Mul(b, sines, second));
  Value imaginary = ops::Add(b, ops::Mul(b, sines, first), ops::Mul(b, cosines, second));
  Value y;
  if (interleaved) {
    real = compose::ExpandAxis(b, real, 4);
    imaginary = compose::ExpandAxis(b, imaginary, 4);
    y = ops::Reshape(b, ops::Concat(b, {real, imaginary}, 4), {s[0], s[1], s[2], d});
  } else {
    y = ops::Concat(b, {real, imaginary}, 3);
  }
  if (d < s[3]) y = ops::Concat(b, {y, compose::SliceAxis(b, x, 3, d, s[3])}, 3);
  if (merged) y = ops::Reshape(b, ops::Transpose(b, y, {0, 2, 1, 3}), c.shape(0));
  return One(y);
}

// a sigmoid(alpha a) b
Outputs SwiGlu(NodeContext& c) {
  const double alpha = c.Float("alpha", 1);
  if (c.shape(0) != c.shape(1)) {
    return InvalidArgument("inputs are ", c.shape(0).ToString(), " and ", c.shape(1).ToString());
  }
  if (alpha == 1) return One(ops::SwiGlu(c.b, c.In(0), c.In(1)));
  const Value gate = ops::Sigmoid(c.b, compose::Scale(c.b, c.In(0), alpha));
  return One(ops::Mul(c.b, ops::Mul(c.b, c.In(0), gate), c.In(1)));
}

// The cache with new entries written from write_indices on, per batch entry.
Outputs TensorScatter(NodeContext& c) {
  Builder& b = c.b;
  const Shape cache = c.shape(0), update = c.shape(1);
  TANDEM_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(c.Int("axis", -2), cache.rank()));
  const std::string mode = c.String("mode", "linear");
  if (mode != "linear" && mode != "circular") return InvalidArgument("attribute mode='", mode, "'");
  Shape expected = cache;
  if (axis >= 1 && update.rank() == cache.rank()) expected[axis] = update[axis];
  if (axis < 1 || update != expected || update[axis] > cache[axis] || cache[axis] < 1) {
    return InvalidArgument("update ", update.ToString(), " for cache ", cache.ToString(),
                           " along axis ", axis);
  }
  const int64_t size = cache[axis], added = update[axis];
  Shape per_batch{cache[0]};
  for (int i = 1; i < cache.rank(); ++i) per_batch.push_back(1);
  Value start = ops::BroadcastTo(b, b.Scalar(0, DType::kI64), per_batch);
  if (c.Has(2)) {
    if (c.shape(2) != Shape{cache[0]}) {
      return InvalidArgument("write_indices is ", c.shape(2).ToString());
    }
    start = ops::Reshape(b, ops::Cast(b, c.In(2), DType::kI64), per_batch);
  }
  // Position p of the cache takes entry p - start (mod size, if circular) where that exists.
  Shape line;
  for (int i = 0; i < cache.rank(); ++i) line.push_back(i == axis ? size : 1);
  Value entry = ops::Sub(b, ops::Reshape(b, compose::Iota(b, size), line), start);
  if (mode == "circular") {
    entry = ops::Mod(b, entry, b.Scalar(static_cast<double>(size), DType::kI64));
  }
  const Value zero = b.Scalar(0, DType::kI64);
  const Value written =
      ops::And(b, ops::LessOrEqual(b, zero, entry),
               ops::Less(b, entry, b.Scalar(static_cast<double>(added), DType::kI64)));
  // Each position reads its entry (or, where it has none, any) of the update as rows.
  const int64_t before = update.Count(1, axis), after = update.Count(axis + 1, update.rank());
  const Value last = b.Scalar(static_cast<double>(added - 1), DType::kI64);
  const Value source =
      ops::Reshape(b, ops::Min(b, ops::Max(b, entry, zero), last), {cache[0], 1, size});
  const Value row = ops::Reshape(b, compose::Iota(b, cache[0] * before), {cache[0], before, 1});
  const Value places = ops::Add(b, compose::Scale(b, row, static_cast<double>(added)), source);
  const Value rows = ops::Reshape(b, c.In(1), {cache[0] * before * added, after});
  const Value placed = ops::Reshape(b, ops::Gather(b, rows, places, 0), cache);
  return One(ops::Where(b, written, placed, c.In(0)));
}

constexpr OnnxOp kOps[] = {
    {.name = "Attention", .convert = Attention, .min_inputs = 3, .max_inputs = 7},
    {.name = "RotaryEmbedding",
     .convert = RotaryEmbedding,
     .min_inputs = 3,
     .max_inputs = 4,
     .fixed_inputs = InputSet(1, 2)},
    {.name = "SwiGLU", .convert = SwiGlu, .min_inputs = 2, .max_inputs = 2},
    {.name = "TensorScatter", .convert = TensorScatter, .min_inputs = 2, .max_inputs = 3},
};

}  // namespace

std::span<const OnnxOp> OnnxAttentionOps() { return kOps; }

}  // namespace tandem

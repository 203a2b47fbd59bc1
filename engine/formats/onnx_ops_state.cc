// Recurrences over packed tokens: linear attention, and causal convolution with a carried state.
#include <cmath>
#include <utility>

#include "engine/base/error.h"
#include "engine/formats/onnx_compose.h"
#include "engine/formats/onnx_ops.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

constexpr int64_t kMaxSteps = 10'000;

// y[c, t] = bias[c] + sum over k of w[c, k] x[c, t - K + 1 + k], with x before the first step from
// past_state (zeros when absent). -> {y, the last K - 1 steps}
Outputs CausalConvWithState(NodeContext& c) {
  Builder& b = c.b;
  const Shape x = c.shape(0), w = c.shape(1);
  if (x.rank() != 3 || w.rank() != 3 || w[0] != x[1] || w[1] != 1 || w[2] < 1) {
    return InvalidArgument("input ", x.ToString(), " and weight ", w.ToString());
  }
  const int64_t carried = w[2] - 1;
  const Shape state{x[0], x[1], carried};
  if (c.Has(3) && c.shape(3) != state) {
    return InvalidArgument("past_state is ", c.shape(3).ToString(), ", expected ",
                           state.ToString());
  }
  const Value whole = c.Has(3) ? ops::Concat(b, {c.In(3), c.In(0)}, 2)
                               : ops::Pad(b, c.In(0), {0, 0, carried}, {0, 0, 0});
  Value y = ops::Conv(
      b, whole, c.In(1), c.In(2),
      {.strides = {1}, .pads_begin = {0}, .pads_end = {0}, .dilations = {1}, .groups = x[1]});
  const std::string activation = c.String("activation", "none");
  if (activation == "silu" || activation == "swish") {
    y = ops::Silu(b, y);
  } else if (activation != "none") {
    return InvalidArgument("attribute activation='", activation, "' is unknown");
  }
  return std::vector<Value>{y, compose::SliceAxis(b, whole, 2, x[2], x[2] + carried)};
}

struct LinearAttentionSpec {
  int64_t batch = 0, steps = 0, heads = 0, kv_heads = 0, key_width = 0, value_width = 0;
  bool gated = false, delta = false;
  double scale = 0;
};

absl::StatusOr<LinearAttentionSpec> ReadLinearAttention(NodeContext& c) {
  LinearAttentionSpec s;
  c.IgnoreAttribute("chunk_size");  // "does not affect output correctness"
  s.heads = c.Int("q_num_heads", 0);
  s.kv_heads = c.Int("kv_num_heads", 0);
  const std::string rule = c.String("update_rule", "gated_delta");
  s.gated = rule == "gated" || rule == "gated_delta";
  s.delta = rule == "delta" || rule == "gated_delta";
  if (!s.gated && !s.delta && rule != "linear") {
    return InvalidArgument("attribute update_rule='", rule, "' is unknown");
  }
  const Shape q = c.shape(0), k = c.shape(1), v = c.shape(2);
  const auto fits = [&](const Shape& x, int64_t heads) {
    return x.rank() == 3 && x[0] == q[0] && x[1] == q[1] && heads > 0 && x[2] % heads == 0;
  };
  if (!fits(q, s.heads) || !fits(k, s.kv_heads) || !fits(v, s.kv_heads) ||
      s.heads % s.kv_heads != 0 || q[2] / s.heads != k[2] / s.kv_heads) {
    return InvalidArgument("query ", q.ToString(), ", key ", k.ToString(), " and value ",
                           v.ToString(), " for ", s.heads, " and ", s.kv_heads, " heads");
  }
  s.batch = q[0];
  s.steps = q[1];
  s.key_width = k[2] / s.kv_heads;
  s.value_width = v[2] / s.kv_heads;
  s.scale = c.Float("scale", 0);
  if (s.scale == 0) s.scale = 1 / std::sqrt(static_cast<double>(s.key_width));
  if (s.steps < 1 || s.steps > kMaxSteps) {
    return Unimplemented("a sequence of ", s.steps, " steps is not supported");
  }
  if ((s.gated && !c.Has(4)) || (s.delta && !c.Has(5))) {
    return InvalidArgument("update_rule='", rule, "' lacks its decay or beta");
  }
  return s;
}

// Step t of (B, T, heads width) as (B, heads, rows, columns), one of which is the width.
Value Step(Builder& b, Value x, int64_t t, const Shape& shape) {
  return ops::Reshape(b, compose::SliceAxis(b, x, 1, t, t + 1), shape);
}

// With the state S (B, H, K, V): S' = decay S + beta k (v - decay S' k)^T, y = scale q^T S'.
Outputs LinearAttention(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const LinearAttentionSpec s, ReadLinearAttention(c));
  Builder& b = c.b;
  const int64_t n = s.batch, h = s.kv_heads, repeat = s.heads / s.kv_heads;
  const Shape state_shape{n, h, s.key_width, s.value_width};
  if (c.Has(3) && c.shape(3) != state_shape) {
    return InvalidArgument("past_state is ", c.shape(3).ToString(), ", expected ",
                           state_shape.ToString());
  }
  Value state = c.Has(3) ? c.In(3) : ops::BroadcastTo(b, b.Scalar(0, c.dtype(0)), state_shape);
  Value decay, beta;
  Shape decay_step, beta_step;
  if (s.gated) {
    const bool scalar = c.shape(4) == Shape{n, s.steps, h};
    if (!scalar && c.shape(4) != Shape{n, s.steps, h * s.key_width}) {
      return InvalidArgument("decay is ", c.shape(4).ToString());
    }
    decay = ops::Exp(b, c.In(4));
    decay_step = {n, h, scalar ? 1 : s.key_width, 1};
  }
  if (s.delta) {
    const bool shared = h != 1 && c.shape(5) == Shape{n, s.steps, 1};
    if (!shared && c.shape(5) != Shape{n, s.steps, h}) {
      return InvalidArgument("beta is ", c.shape(5).ToString());
    }
    beta = c.In(5);
    beta_step = {n, shared ? 1 : h, 1, 1};
  }
  std::vector<Value> outputs;
  for (int64_t t = 0; t < s.steps; ++t) {
    const Value k = Step(b, c.In(1), t, {n, h, s.key_width, 1});
    Value v = Step(b, c.In(2), t, {n, h, 1, s.value_width});
    if (s.gated) state = ops::Mul(b, state, Step(b, decay, t, decay_step));
    if (s.delta) {
      v = ops::Sub(b, v, ops::MatMul(b, k, state, true));  // (1, K) x (K, V)
      v = ops::Mul(b, v, Step(b, beta, t, beta_step));
    }
    state = ops::Add(b, state, ops::Mul(b, k, v));
    const Value q = Step(b, c.In(0), t, {n, h, repeat, s.key_width});
    const Value y = compose::Scale(b, ops::MatMul(b, q, state), s.scale);  // (B, H, repeat, V)
    outputs.push_back(ops::Reshape(b, y, {n, 1, s.heads * s.value_width}));
    TANDEM_RETURN_IF_ERROR(b.status());
  }
  return std::vector<Value>{ops::Concat(b, std::move(outputs), 1), state};
}

constexpr OnnxOp kOps[] = {
    {.name = "CausalConvWithState",
     .convert = CausalConvWithState,
     .min_inputs = 2,
     .max_inputs = 4},
    {.name = "LinearAttention", .convert = LinearAttention, .min_inputs = 3, .max_inputs = 6},
};

}  // namespace

std::span<const OnnxOp> OnnxStateOps() { return kOps; }

}  // namespace tandem

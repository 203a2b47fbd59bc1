// The operator vocabulary, on one page.
//
// Each function appends one node to a Builder and returns its output(s); after the builder's first
// error it does nothing. Shapes stand in the comments; "..." is any number of leading dimensions.
// f32 unless said otherwise; a backend without a bf16 or f16 kernel computes in f32 and rounds the
// results. Statistics of bf16 and f16 inputs (mean, rstd, lse) are f32. Binary operators broadcast
// as NumPy does. Each operator's inference, gradient, lowering and cost are in the family's file
// beside this one; its meaning follows the cited definition, else ONNX's operator of that name.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/graph/builder.h"

namespace tandem::ops {

// --- elementwise.cc: one input, same shape -----------------------------------------------------
// clang-format off
#define TANDEM_UNARY_OPS(OP)                                                                      \
  OP(Neg)                                                                                         \
  OP(Abs) OP(Sign) OP(Exp) OP(Log) OP(Sqrt) OP(Rsqrt) OP(Reciprocal) OP(Tanh) OP(Sigmoid) OP(Erf) \
      OP(Relu) OP(Gelu) OP(GeluTanh) OP(Silu) OP(Softplus) OP(Sin) OP(Cos) OP(Floor) OP(Ceil)     \
          OP(Round) OP(Square) OP(Not) OP(Lgamma) OP(Digamma) OP(Trigamma) OP(Log1p) OP(Expm1)
// Derivatives that are worth a fused kernel: (x, dy) -> dx.
#define TANDEM_UNARY_GRAD_OPS(OP) OP(ReluGrad) OP(GeluGrad) OP(GeluTanhGrad) OP(SiluGrad)
// Two inputs, broadcast. The comparisons give bool; And, Or and Xor take and give bool.
#define TANDEM_BINARY_OPS(OP)                                                                \
  OP(Add)                                                                                    \
  OP(Sub) OP(Mul) OP(Div) OP(Pow) OP(Max) OP(Min) OP(Mod) OP(Equal) OP(Less) OP(LessOrEqual) \
      OP(And) OP(Or) OP(Xor)
// clang-format on

#define OP(name) Value name(Builder& b, Value x);
TANDEM_UNARY_OPS(OP)
#undef OP
#define OP(name) Value name(Builder& b, Value x, Value y);
TANDEM_UNARY_GRAD_OPS(OP)
TANDEM_BINARY_OPS(OP)
#undef OP
// condition ? x : y; condition is bool; all three broadcast.
Value Where(Builder& b, Value condition, Value x, Value y);
Value Cast(Builder& b, Value x, DType to);
// silu(gate) * up, the gate of Shazeer, "GLU variants improve Transformer" (2020).
Value SwiGlu(Builder& b, Value gate, Value up);
// -> {d gate, d up}
std::vector<Value> SwiGluGrad(Builder& b, Value gate, Value up, Value dy);

// --- random.cc: noise by the run's random key (Plan::SetRandomKey) ------------------------------
// Philox4x32-10 keyed by (seed, call) and counted by (node, element): element i depends on the key,
// on the node's number (Builder::NextRandomStream) and on i alone, to the bit, on any machine and
// any thread count; a longer draw begins with the shorter one.
// Standard noise: U(0, 1) without its ends; N(0, 1); Gumbel and logistic of location 0 and scale 1;
// exponential of rate 1; Laplace of location 0 and scale 1.
enum class Noise : uint8_t { kUniform, kNormal, kGumbel, kExponential, kLogistic, kLaplace };
// f32 (from 31 or 32 random bits an element) or f64 (53 bits). Not differentiable. `key`, i64 (2),
// is the run's unless it is given.
Value Random(Builder& b, Noise noise, DType dtype, const Shape& shape, Value key = {});
// softmax((logits + Gumbel noise) / temperature) over the last dimension (Jang et al. and Maddison
// et al., ICLR 2017), the noise being Random's bits for kGumbel.
Value GumbelSoftmax(Builder& b, Value logits, double temperature);
// `value` forward; the whole cotangent goes to `surrogate`, of the same type, none to `value`
// (Bengio et al. 2013). No copy.
Value StraightThrough(Builder& b, Value value, Value surrogate);
// The logarithm of a draw of Gamma(concentration, 1) for each element (Marsaglia and Tsang 2000):
// in log space, since a draw for a small concentration underflows. f32 or f64; NaN where the
// concentration is not positive. Its gradient is RandomGammaGrad.
Value RandomGamma(Builder& b, Value concentration);
// dy d log_draw / d concentration, at a fixed quantile of the distribution: implicit
// reparameterisation (Figurnov et al., NeurIPS 2018).
Value RandomGammaGrad(Builder& b, Value concentration, Value log_draw, Value dy);

// A token a row, as DrawToken of engine/base/draw_token.h draws it: logits (R, V) and their
// log-sum-exp (R); temperature (R) f32, top_k (R) i32, top_p and min_p (R) f64; key (3, R) u64:
// seeds, streams and positions. -> {tokens (R) i32, logprob (R): logits[token] - lse,
// sampling_logprob (R)}. Not differentiable. Devices agree on the tokens but where a rounding
// decides.
std::vector<Value> SampleTokens(Builder& b, Value logits, Value lse, Value temperature, Value top_k,
                                Value top_p, Value min_p, Value key);

// --- reduce.cc: over `axes` (empty: all); keep leaves them as size 1 ----------------------------
Value ReduceSum(Builder& b, Value x, std::vector<int64_t> axes, bool keep);
Value ReduceMax(Builder& b, Value x, std::vector<int64_t> axes, bool keep);
Value ReduceMin(Builder& b, Value x, std::vector<int64_t> axes, bool keep);
Value ReduceProd(Builder& b, Value x, std::vector<int64_t> axes, bool keep);
Value ReduceMean(Builder& b, Value x, std::vector<int64_t> axes, bool keep);  // composed
// Index of the first largest (smallest) along one axis: i64.
Value ArgMax(Builder& b, Value x, int64_t axis, bool keep);
Value ArgMin(Builder& b, Value x, int64_t axis, bool keep);
// -> {values (..., k), indices (..., k) i64}: the k largest (smallest) of the last dimension,
// largest (smallest) first; of equal ones the first first; NaN is above all. Any numbers.
std::vector<Value> TopK(Builder& b, Value x, int64_t k, bool largest = true);
// x summed over the dimensions that broadcasting `shape` to x's shape would add or stretch.
Value SumToShape(Builder& b, Value x, const Shape& shape);  // composed

// --- shape.cc: any dtype ------------------------------------------------------------------------
Value Reshape(Builder& b, Value x, const Shape& shape);  // no copy
Value Transpose(Builder& b, Value x, std::vector<int64_t> permutation);
Value BroadcastTo(Builder& b, Value x, const Shape& shape);
// x[starts[i] : ends[i] : steps[i]] in every dimension i; steps may be negative, ends exclusive
// (ends[i] = -1 with a negative step: down to index 0). All within bounds already.
Value Slice(Builder& b, Value x, std::vector<int64_t> starts, std::vector<int64_t> ends,
            std::vector<int64_t> steps);
// A tensor of `shape` of zeros with y written where Slice would have read: Slice's adjoint.
Value Unslice(Builder& b, Value y, const Shape& shape, std::vector<int64_t> starts,
              std::vector<int64_t> ends, std::vector<int64_t> steps);
// `before[i]` and `after[i]` elements of `value` around dimension i.
Value Pad(Builder& b, Value x, std::vector<int64_t> before, std::vector<int64_t> after,
          double value = 0);
Value Concat(Builder& b, std::vector<Value> xs, int64_t axis);
// Slices of `x` along `axis` at `indices` (i32 or i64, any shape, negative from the end): output
// shape x[:axis] + indices + x[axis+1:]. Indices from outside are checked before they get here;
// kernels clamp.
Value Gather(Builder& b, Value x, Value indices, int64_t axis);
// The adjoint of Gather along axis 0: zeros of `shape` with dy's slices added at `indices`.
Value GatherGrad(Builder& b, Value dy, Value indices, const Shape& shape);

// --- linear.cc ----------------------------------------------------------------------------------
// a (..., M, K) x b (..., K, N) -> (..., M, N), batch dimensions broadcast; with transpose_a, a is
// (..., K, M); with transpose_b, b is (..., N, K). `bias` (N) is optional. Batch-invariant: the
// bits of an output row depend on that row of a, on b and on bias alone. bf16 and f16 are
// accumulated in f32 and rounded once; with `out` f32, not even then.
Value MatMul(Builder& b, Value a, Value x, bool transpose_a = false, bool transpose_b = false,
             Value bias = {}, std::optional<DType> out = std::nullopt);

// What follows a product in a FusedMatMul, in this order; `activation` and `up` exclude each other.
struct MatMulEpilogue {
  Value bias;              // (N)
  std::string activation;  // an operator: Relu, Silu, Gelu or GeluTanh; empty: none
  Value up;                // like x, without bias: SwiGlu(a x, a up)
  Value residual;          // like the result: residual + ...
};
// MatMul and what Simplify finds behind it, in one kernel where the backend has one; the same bits
// as the operators themselves. Not differentiable.
Value FusedMatMul(Builder& b, Value a, Value x, bool transpose_a, bool transpose_b,
                  const MatMulEpilogue& epilogue, std::optional<DType> out = std::nullopt);

// The solution x (..., D, N) of L x = rhs, or of L^T x = rhs, for the lower triangle of l (..., D,
// D); what is above its diagonal is not read. rhs (..., D, N) has the same batch dimensions. f32 or
// f64; a column's bits do not depend on the other columns.
Value TriangularSolve(Builder& b, Value l, Value rhs, bool transpose_l = false);

// --- conv.cc: NC + spatial (1 or 2 dimensions), weights (O, I / groups, kernel...) ---------------
struct ConvOptions {
  std::vector<int64_t> strides, pads_begin, pads_end, dilations;  // one a spatial dimension
  int64_t groups = 1;
};
Value Conv(Builder& b, Value x, Value weight, Value bias, const ConvOptions& options);
// dx of Conv, for inputs of shape x_shape: also the transposed convolution.
Value ConvInputGrad(Builder& b, Value dy, Value weight, const Shape& x_shape,
                    const ConvOptions& options);
Value ConvWeightGrad(Builder& b, Value dy, Value x, const Shape& weight_shape,
                     const ConvOptions& options);
// The transposed convolution: each spatial dimension becomes stride (size - 1) + (kernel - 1)
// dilation + 1 - pads + output_padding (empty: 0). weight (I, O / groups, kernel...), bias (O)
// optional; pads may be negative, which puts zeros around. Composed.
Value ConvTranspose(Builder& b, Value x, Value weight, Value bias, const ConvOptions& options,
                    const std::vector<int64_t>& output_padding = {});
struct PoolOptions {
  std::vector<int64_t> kernel, strides, pads_begin, pads_end, dilations;
  bool ceil_mode = false;
  bool count_include_pad = false;  // average only
};
// -> {y, indices}: i64 position of each maximum within its (H, W) plane. The first of equals in
// row-major order; a NaN is larger than any number; padding never wins.
std::vector<Value> MaxPool(Builder& b, Value x, const PoolOptions& options);
// Adds dy at `indices` of planes of x_shape, zero elsewhere: the gradient of MaxPool. Indices
// outside a plane are moved to its nearest place.
Value MaxPoolGrad(Builder& b, Value dy, Value indices, const Shape& x_shape);
// MaxPool's partial inverse: x at the indices that MaxPool gave, in planes of `shape`, zero
// elsewhere. Where windows overlapped, what comes to one place is added up. Composed.
Value MaxUnpool(Builder& b, Value x, Value indices, const Shape& shape);
Value AveragePool(Builder& b, Value x, const PoolOptions& options);
Value AveragePoolGrad(Builder& b, Value dy, const Shape& x_shape, const PoolOptions& options);

// --- resize.cc: resampling along chosen dimensions -----------------------------------------------
// As ONNX's Resize (opset 19), whose names the strings are, and PyTorch's interpolate:
//   mode         nearest, linear or cubic (Keys 1981 with cubic_a)
//   coordinates  half_pixel, half_pixel_symmetric, pytorch_half_pixel, align_corners, asymmetric or
//                tf_crop_and_resize (what lies outside the input is its edge)
//   nearest      round_prefer_floor, round_prefer_ceil, floor or ceil
//   antialias    stretches the filter when scaling down
//   exclude_outside  taps outside the input weigh nothing instead of repeating the edge
// PyTorch: align_corners=False is half_pixel, nearest is asymmetric with floor, nearest-exact
// half_pixel with round_prefer_ceil; antialias=True is antialias with exclude_outside, and cubic_a
// = -0.5 instead of -0.75.
struct ResizeAxis {
  int64_t axis = 0;                   // negative from the end
  int64_t size = 0;                   // the output's
  double scale = 0;                   // output / input; 0: from the sizes
  double roi_start = 0, roi_end = 1;  // tf_crop_and_resize only, in units of the input
};
struct ResizeOptions {
  std::vector<ResizeAxis> axes;
  std::string mode = "nearest", coordinates = "half_pixel", nearest = "round_prefer_floor";
  double cubic_a = -0.75;
  bool antialias = false, exclude_outside = false;
};
// nearest takes any dtype.
Value Resize(Builder& b, Value x, const ResizeOptions& options);
// Its adjoint, dx of x_shape.
Value ResizeGrad(Builder& b, Value dy, const Shape& x_shape, const ResizeOptions& options);
// Shi et al. 2016: (N, C r^2, H, W) -> (N, C, H r, W r), y[n, c, h r + i, w r + j] =
// x[n, c r^2 + i r + j, h, w]; and back. Composed.
Value PixelShuffle(Builder& b, Value x, int64_t factor);
Value PixelUnshuffle(Builder& b, Value x, int64_t factor);

// --- normalization.cc: over the last dimension ---------------------------------------------------
Value Softmax(Builder& b, Value x);
Value SoftmaxGrad(Builder& b, Value y, Value dy);
Value LogSoftmax(Builder& b, Value x);
Value LogSoftmaxGrad(Builder& b, Value y, Value dy);
// Ba et al. 2016. gamma, beta (D) optional. -> {y (..., D), mean (...), rstd (...)}
std::vector<Value> LayerNorm(Builder& b, Value x, Value gamma, Value beta, double epsilon);
// -> {dx, dgamma, dbeta}; gamma optional (then dgamma is for a gamma of ones).
std::vector<Value> LayerNormGrad(Builder& b, Value x, Value gamma, Value mean, Value rstd,
                                 Value dy);
// Zhang and Sennrich 2019: x * rsqrt(mean(x^2) + epsilon) * gamma. -> {y (..., D), rstd (...)}
std::vector<Value> RmsNorm(Builder& b, Value x, Value gamma, double epsilon);
std::vector<Value> RmsNormGrad(Builder& b, Value x, Value gamma, Value rstd,
                               Value dy);  // {dx, dgamma}

// --- loss.cc
// -------------------------------------------------------------------------------------- logits (N,
// V), targets (N) i32 -> {loss (N), lse (N)}: loss = lse - logits[target], in nats.
std::vector<Value> SoftmaxCrossEntropy(Builder& b, Value logits, Value targets);
// dlogits (N, V) = (softmax(logits) - onehot(targets)) * dloss (N)
Value SoftmaxCrossEntropyGrad(Builder& b, Value logits, Value targets, Value lse, Value dloss);

// --- sequence.cc: packed tokens of several sequences, see DESIGN "Language models run packed" ----
// Rotary positions (Su et al. 2021) in Llama's pairing (i, i + D/2): x (N, H, D), positions (N)
// i32. table (P, D): cosines then sines of each position. `inverse` rotates back (the gradient).
Value Rope(Builder& b, Value x, Value positions, Value table, bool inverse = false);
// The table for Rope, (max_positions, D), computed in double.
Tensor RopeTable(double theta, int64_t head_dim, int64_t max_positions);
// Causal attention within each sequence (Dao et al., FlashAttention-2). q (N, H, D), k and v
// (N, Hkv, D), query_start (S + 1) i32: sequence s holds tokens [query_start[s], query_start[s+1]).
// -> {out (N, H, D), lse (N, H), f32 or f64 where q is}. scale multiplies the scores.
std::vector<Value> Attention(Builder& b, Value q, Value k, Value v, Value query_start,
                             double scale);
// -> {dq, dk, dv}
std::vector<Value> AttentionGrad(Builder& b, Value q, Value k, Value v, Value query_start,
                                 Value out, Value lse, Value dout, double scale);
// Serving: writes the new tokens' k and v into the cache (in place), then attends to all of it.
// past_length (S) i32; block_table (S, B) i32; k_cache (P, Hkv, D, 32), v_cache (P, Hkv, 32, D): P
// pages of 32 tokens, within which a backend lays them out as it likes.
// The caches are of q's dtype or f32. The same bits as Attention over the whole sequence. Not
// differentiable.
Value PagedAttention(Builder& b, Value q, Value k, Value v, Value query_start, Value past_length,
                     Value block_table, Value k_cache, Value v_cache, double scale);

// --- optimizer.cc: over flat parameters ----------------------------------------------------------
// A step is SumOfSquares, OptimizerControl and one of the two updates: nothing in it waits for the
// host. Sum of squares of x (P) as an f64 scalar, in a fixed order.
Value SumOfSquares(Builder& b, Value x);
// Places in OptimizerControl's vectors. kHyperGrowth and kHyperBackoff of 1 keep the loss scale.
enum OptimizerHyper : int64_t {
  kHyperLearningRate,
  kHyperBeta1,
  kHyperBeta2,
  kHyperEpsilon,
  kHyperWeightDecay,
  kHyperMomentum,
  kHyperMaxGradNorm,     // 0: no clipping
  kHyperGrowth,          // of the loss scale after kHyperGrowthInterval good steps
  kHyperBackoff,         // of the loss scale after a skipped step
  kHyperGrowthInterval,  // steps
  kHyperCount
};
enum OptimizerState : int64_t {
  kStateStep,       // steps applied so far
  kStateSkipped,    // steps skipped so far
  kStateLossScale,  // what the gradients of the next step are multiplied by
  kStateGoodSteps,  // applied since the loss scale last changed
  kStateCount
};
enum OptimizerControlEntry : int64_t {
  kControlLearningRate,
  kControlBeta1,
  kControlBeta2,
  kControlEpsilon,
  kControlWeightDecay,
  kControlBias1,      // 1 - beta1^t, t the number of this step, from 1
  kControlBias2,      // 1 - beta2^t
  kControlGradScale,  // multiplies the gradients: clip coefficient / loss scale
  kControlMomentum,
  kControlApply,      // 1; 0: the step is skipped
  kControlGradNorm,   // of the unscaled gradients, before clipping
  kControlLossScale,  // of these gradients
  kControlCount
};
// What a step needs beyond the arrays, decided where the sum of squares is: f64 sum (), hyper
// (kHyperCount), state (kStateCount) -> {control (kControlCount), state'}. sum is of gradients that
// are multiplied by the state's loss scale. Where it is not finite the step is skipped and does not
// count; clipping is PyTorch's clip_grad_norm_, and the loss scale follows PyTorch's GradScaler,
// but never leaves the normal f32 numbers. state' may share memory with state.
std::vector<Value> OptimizerControl(Builder& b, Value sum_of_squares, Value hyper, Value state);
// Adam (decoupled = false; Kingma and Ba 2015) or AdamW (Loshchilov and Hutter 2019), with
// PyTorch's formulas. p, g, m, v (P); decay (P) u8: 1 where weight decay applies; control from
// OptimizerControl. -> {p', m', v'}, which may share memory with p, m, v; a skipped step leaves
// all three as they are. With `copy`, bf16 or f16, also p' in that type: what a model in mixed
// precision reads.
std::vector<Value> AdamStep(Builder& b, Value p, Value g, Value m, Value v, Value decay,
                            Value control, bool decoupled,
                            std::optional<DType> copy = std::nullopt);
// PyTorch's SGD without dampening: weight decay added to the gradient, buffer' = momentum buffer +
// g (a buffer of zeros before the first step; with momentum 0 it stays as it is), p' = p - lr
// buffer', or with nesterov p - lr (g + momentum buffer'). -> {p', buffer'}, as AdamStep.
std::vector<Value> SgdStep(Builder& b, Value p, Value g, Value buffer, Value decay, Value control,
                           bool nesterov, std::optional<DType> copy = std::nullopt);

}  // namespace tandem::ops

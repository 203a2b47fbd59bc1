// RNN, GRU and LSTM, unrolled over time. The input's products of all steps are one matrix product.
#include <algorithm>
#include <cctype>
#include <utility>

#include "engine/base/error.h"
#include "engine/formats/onnx_compose.h"
#include "engine/formats/onnx_ops.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

constexpr int64_t kMaxSteps = 10'000;

struct Activation {
  std::string name;
  double alpha = 0, beta = 0;
};

// How many of (alpha, beta) a function takes, and what they are when not given.
struct ActivationInfo {
  std::string_view name;
  int parameters;
  double alpha, beta;
};
constexpr ActivationInfo kActivations[] = {
    {"sigmoid", 0, 0, 0},
    {"tanh", 0, 0, 0},
    {"relu", 0, 0, 0},
    {"softsign", 0, 0, 0},
    {"softplus", 0, 0, 0},
    {"elu", 1, 1, 0},
    {"leakyrelu", 1, 0.01, 0},
    {"affine", 2, 1, 0},
    {"scaledtanh", 2, 1, 1},
    {"hardsigmoid", 2, 0.2, 0.5},
    {"thresholdedrelu", 1, 1, 0},
};

Value Apply(Builder& b, const Activation& f, Value x) {
  const auto like = [&](double value) { return compose::Like(b, value, x); };
  const auto affine = [&] { return compose::AddScalar(b, compose::Scale(b, x, f.alpha), f.beta); };
  if (f.name == "sigmoid") return ops::Sigmoid(b, x);
  if (f.name == "tanh") return ops::Tanh(b, x);
  if (f.name == "relu") return ops::Relu(b, x);
  if (f.name == "softplus") return ops::Softplus(b, x);
  if (f.name == "softsign") {
    return ops::Div(b, x, compose::AddScalar(b, ops::Abs(b, x), 1));
  }
  if (f.name == "affine") return affine();
  if (f.name == "hardsigmoid") return ops::Min(b, ops::Relu(b, affine()), like(1));
  if (f.name == "scaledtanh") {
    return compose::Scale(b, ops::Tanh(b, compose::Scale(b, x, f.beta)), f.alpha);
  }
  const Value zero = like(0);
  if (f.name == "leakyrelu") {
    return ops::Where(b, ops::Less(b, x, zero), compose::Scale(b, x, f.alpha), x);
  }
  if (f.name == "thresholdedrelu") {
    return ops::Where(b, compose::GreaterOrEqual(b, x, like(f.alpha)), x, zero);
  }
  // elu
  const Value below = compose::AddScalar(b, ops::Exp(b, ops::Min(b, x, zero)), -1);
  return ops::Add(b, ops::Relu(b, x), compose::Scale(b, below, f.alpha));
}

// What a recurrent node says, whatever its cell.
struct Recurrent {
  int64_t steps = 0, batch = 0, inputs = 0, hidden = 0;
  int directions = 1, gates = 1;
  bool first_reversed = false, batch_first = false;
  std::vector<Activation> activations;  // per direction, one after another
  double clip = 0;                      // 0: none
  Value x;                              // (T, B, I)
  Value lengths;                        // (B, 1) i64; invalid: all full
};

// One direction's tensors.
struct Direction {
  bool reversed = false;
  std::span<const Activation> f;
  Value x;         // (T, B, gates H), the input's part of the gates with its bias
  Value r;         // (gates H, H)
  Value r_bias;    // (gates H); may be invalid
  Value h, c;      // (B, H), the states
  Value peephole;  // (3 H); may be invalid
};

absl::StatusOr<std::vector<Activation>> ReadActivations(NodeContext& c, int directions,
                                                        const std::vector<std::string>& defaults) {
  std::vector<std::string> names = c.Strings("activations");
  const std::vector<double> alphas = c.Floats("activation_alpha");
  const std::vector<double> betas = c.Floats("activation_beta");
  if (names.empty()) {
    for (int i = 0; i < directions; ++i)
      names.insert(names.end(), defaults.begin(), defaults.end());
  }
  if (names.size() != directions * defaults.size()) {
    return InvalidArgument("attribute activations has ", names.size(), " entries, expected ",
                           directions * defaults.size());
  }
  std::vector<Activation> activations;
  size_t alpha = 0, beta = 0;
  for (std::string& name : names) {
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char ch) { return static_cast<char>(std::tolower(ch)); });
    const auto* info = std::find_if(std::begin(kActivations), std::end(kActivations),
                                    [&](const ActivationInfo& i) { return i.name == name; });
    if (info == std::end(kActivations)) {
      return InvalidArgument("attribute activations has '", name, "', which is unknown");
    }
    Activation f{.name = name, .alpha = info->alpha, .beta = info->beta};
    if (info->parameters >= 1 && alpha < alphas.size()) f.alpha = alphas[alpha++];
    if (info->parameters >= 2 && beta < betas.size()) f.beta = betas[beta++];
    activations.push_back(std::move(f));
  }
  return activations;
}

absl::Status CheckInput(NodeContext& c, int i, std::string_view what, const Shape& expected) {
  if (!c.Has(i) || c.shape(i) == expected) return absl::OkStatus();
  return InvalidArgument("input ", i, " (", what, ") is ", c.shape(i).ToString(), ", expected ",
                         expected.ToString());
}

absl::StatusOr<Recurrent> Read(NodeContext& c, int gates,
                               const std::vector<std::string>& default_activations) {
  Recurrent r;
  r.gates = gates;
  const std::string direction = c.String("direction", "forward");
  if (direction != "forward" && direction != "reverse" && direction != "bidirectional") {
    return InvalidArgument("attribute direction='", direction, "' is unknown");
  }
  r.directions = direction == "bidirectional" ? 2 : 1;
  r.first_reversed = direction == "reverse";
  r.batch_first = c.Int("layout", 0) != 0;
  c.IgnoreAttribute("output_sequence");  // of opset 1: outputs are given by name
  r.clip = c.Float("clip", 0);
  if (c.rank(0) != 3 || c.rank(1) != 3) {
    return InvalidArgument("X is ", c.shape(0).ToString(), " and W ", c.shape(1).ToString());
  }
  r.x = r.batch_first ? ops::Transpose(c.b, c.In(0), {1, 0, 2}) : c.In(0);
  const Shape x = c.b.shape(r.x);
  r.steps = x[0];
  r.batch = x[1];
  r.inputs = x[2];
  r.hidden = c.Int("hidden_size", c.shape(1)[1] / gates);
  if (r.steps < 1 || r.steps > kMaxSteps) {
    return Unimplemented("a sequence of ", r.steps, " steps is not supported (1 to ", kMaxSteps,
                         " are)");
  }
  if (r.hidden < 1 || r.hidden > (int64_t{1} << 24)) {
    return InvalidArgument("attribute hidden_size=", r.hidden);
  }
  TANDEM_RETURN_IF_ERROR(CheckInput(c, 1, "W", {r.directions, gates * r.hidden, r.inputs}));
  TANDEM_RETURN_IF_ERROR(CheckInput(c, 2, "R", {r.directions, gates * r.hidden, r.hidden}));
  TANDEM_RETURN_IF_ERROR(CheckInput(c, 3, "B", {r.directions, 2 * gates * r.hidden}));
  TANDEM_RETURN_IF_ERROR(CheckInput(c, 4, "sequence_lens", {r.batch}));
  const Shape state = r.batch_first ? Shape{r.batch, r.directions, r.hidden}
                                    : Shape{r.directions, r.batch, r.hidden};
  TANDEM_RETURN_IF_ERROR(CheckInput(c, 5, "initial_h", state));
  TANDEM_RETURN_IF_ERROR(CheckInput(c, 6, "initial_c", state));
  TANDEM_RETURN_IF_ERROR(CheckInput(c, 7, "P", {r.directions, 3 * r.hidden}));
  if (c.Has(4)) {
    r.lengths = ops::Reshape(c.b, ops::Cast(c.b, c.In(4), DType::kI64), {r.batch, 1});
  }
  TANDEM_ASSIGN_OR_RETURN(r.activations, ReadActivations(c, r.directions, default_activations));
  return r;
}

// Entry d along axis 0 of input i; invalid where the input is absent.
Value Entry(NodeContext& c, int i, int axis, int d) {
  if (!c.Has(i)) return {};
  return compose::DropAxis(c.b, compose::SliceAxis(c.b, c.In(i), axis, d, d + 1), axis);
}

Direction MakeDirection(NodeContext& c, const Recurrent& r, int d) {
  Builder& b = c.b;
  Direction direction;
  direction.reversed = r.first_reversed || d == 1;
  const size_t count = r.activations.size() / r.directions;
  direction.f = std::span<const Activation>(r.activations).subspan(d * count, count);
  Value w_bias;
  const int64_t width = r.gates * r.hidden;
  if (const Value bias = Entry(c, 3, 0, d); bias.valid()) {
    w_bias = compose::SliceAxis(b, bias, 0, 0, width);
    direction.r_bias = compose::SliceAxis(b, bias, 0, width, 2 * width);
  }
  const Value rows = ops::Reshape(b, r.x, {r.steps * r.batch, r.inputs});
  const Value product = ops::MatMul(b, rows, Entry(c, 1, 0, d), false, true, w_bias);
  direction.x = ops::Reshape(b, product, {r.steps, r.batch, width});
  direction.r = Entry(c, 2, 0, d);
  const Value zeros = ops::BroadcastTo(b, b.Scalar(0, c.dtype(0)), {r.batch, r.hidden});
  const int state_axis = r.batch_first ? 1 : 0;
  direction.h = c.Has(5) ? Entry(c, 5, state_axis, d) : zeros;
  direction.c = c.Has(6) ? Entry(c, 6, state_axis, d) : zeros;
  direction.peephole = Entry(c, 7, 0, d);
  return direction;
}

Value Clipped(Builder& b, const Recurrent& r, Value x) {
  if (r.clip <= 0) return x;
  return ops::Min(b, ops::Max(b, x, compose::Like(b, -r.clip, x)), compose::Like(b, r.clip, x));
}

// Gate k of (B, gates H).
Value Gate(Builder& b, const Recurrent& r, Value gates, int k) {
  return compose::SliceAxis(b, gates, 1, k * r.hidden, (k + 1) * r.hidden);
}

// h' = f(x + h R')
void StepRnn(Builder& b, const Recurrent& r, Direction& d, Value x) {
  const Value sum = ops::Add(b, x, ops::MatMul(b, d.h, d.r, false, true, d.r_bias));
  d.h = Apply(b, d.f[0], Clipped(b, r, sum));
}

// Gates z, r, h; h' = (1 - z) candidate + z h.
void StepGru(Builder& b, const Recurrent& r, Direction& d, Value x, bool linear_before_reset) {
  const auto gate = [&](Value v, int k) { return Gate(b, r, v, k); };
  const Value h = ops::MatMul(b, d.h, d.r, false, true, d.r_bias);
  const Value z = Apply(b, d.f[0], Clipped(b, r, ops::Add(b, gate(x, 0), gate(h, 0))));
  const Value reset = Apply(b, d.f[0], Clipped(b, r, ops::Add(b, gate(x, 1), gate(h, 1))));
  Value recurrent;
  if (linear_before_reset) {
    recurrent = ops::Mul(b, reset, gate(h, 2));
  } else {
    const Value weights = compose::SliceAxis(b, d.r, 0, 2 * r.hidden, 3 * r.hidden);
    const Value bias =
        d.r_bias.valid() ? compose::SliceAxis(b, d.r_bias, 0, 2 * r.hidden, 3 * r.hidden) : Value{};
    recurrent = ops::MatMul(b, ops::Mul(b, reset, d.h), weights, false, true, bias);
  }
  const Value candidate = Apply(b, d.f[1], Clipped(b, r, ops::Add(b, gate(x, 2), recurrent)));
  // candidate + z (h - candidate)
  d.h = ops::Add(b, candidate, ops::Mul(b, z, ops::Sub(b, d.h, candidate)));
}

// Gates i, o, f, c.
void StepLstm(Builder& b, const Recurrent& r, Direction& d, Value x, bool input_forget) {
  const Value gates = ops::Add(b, x, ops::MatMul(b, d.h, d.r, false, true, d.r_bias));
  const auto gate = [&](int k, const Activation& f, int peephole, Value cell) {
    Value v = Gate(b, r, gates, k);
    if (d.peephole.valid() && cell.valid()) {
      const Value p =
          compose::SliceAxis(b, d.peephole, 0, peephole * r.hidden, (peephole + 1) * r.hidden);
      v = ops::Add(b, v, ops::Mul(b, p, cell));
    }
    return Apply(b, f, Clipped(b, r, v));
  };
  const Value i = gate(0, d.f[0], 0, d.c);
  const Value f = input_forget ? ops::Sub(b, compose::Like(b, 1, i), i) : gate(2, d.f[0], 2, d.c);
  const Value candidate = gate(3, d.f[1], 0, Value{});
  d.c = ops::Add(b, ops::Mul(b, f, d.c), ops::Mul(b, i, candidate));
  const Value o = gate(1, d.f[0], 1, d.c);
  d.h = ops::Mul(b, o, Apply(b, d.f[2], d.c));
}

// All steps of all directions. `step` advances a direction's states by one input (B, gates H).
// -> {Y (T, D, B, H), Y_h (D, B, H), Y_c (D, B, H)}, or batch first.
template <typename Step>
Outputs Unroll(NodeContext& c, const Recurrent& r, Step step) {
  Builder& b = c.b;
  std::vector<Value> sequences, hidden, cells;
  for (int d = 0; d < r.directions; ++d) {
    Direction direction = MakeDirection(c, r, d);
    TANDEM_RETURN_IF_ERROR(b.status());
    std::vector<Value> outputs(r.steps);
    for (int64_t i = 0; i < r.steps; ++i) {
      const int64_t t = direction.reversed ? r.steps - 1 - i : i;
      const Value h = direction.h, cell = direction.c;
      step(direction, compose::DropAxis(b, compose::SliceAxis(b, direction.x, 0, t, t + 1), 0));
      Value output = direction.h;
      if (r.lengths.valid()) {  // past a sequence's end its state stays and its output is 0
        const Value on = ops::Less(b, b.Scalar(static_cast<double>(t), DType::kI64), r.lengths);
        output = ops::Where(b, on, output, compose::Like(b, 0, output));
        direction.h = ops::Where(b, on, direction.h, h);
        direction.c = ops::Where(b, on, direction.c, cell);
      }
      TANDEM_RETURN_IF_ERROR(b.status());
      outputs[t] = compose::ExpandAxis(b, output, 0);
    }
    sequences.push_back(compose::ExpandAxis(b, ops::Concat(b, std::move(outputs), 0), 1));
    hidden.push_back(compose::ExpandAxis(b, direction.h, 0));
    cells.push_back(compose::ExpandAxis(b, direction.c, 0));
  }
  std::vector<Value> results = {ops::Concat(b, sequences, 1), ops::Concat(b, hidden, 0),
                                ops::Concat(b, cells, 0)};
  if (r.batch_first) {
    results[0] = ops::Transpose(b, results[0], {2, 0, 1, 3});
    for (int i = 1; i < 3; ++i) results[i] = ops::Transpose(b, results[i], {1, 0, 2});
  }
  return results;
}

Outputs Rnn(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const Recurrent r, Read(c, 1, {"Tanh"}));
  return Unroll(c, r, [&](Direction& d, Value x) { StepRnn(c.b, r, d, x); });
}

Outputs Gru(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const Recurrent r, Read(c, 3, {"Sigmoid", "Tanh"}));
  const bool linear_before_reset = c.Int("linear_before_reset", 0) != 0;
  return Unroll(c, r, [&](Direction& d, Value x) { StepGru(c.b, r, d, x, linear_before_reset); });
}

Outputs Lstm(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const Recurrent r, Read(c, 4, {"Sigmoid", "Tanh", "Tanh"}));
  const bool input_forget = c.Int("input_forget", 0) != 0;
  return Unroll(c, r, [&](Direction& d, Value x) { StepLstm(c.b, r, d, x, input_forget); });
}

constexpr OnnxOp kOps[] = {
    {.name = "GRU", .convert = Gru, .min_inputs = 3, .max_inputs = 6},
    {.name = "LSTM", .convert = Lstm, .min_inputs = 3, .max_inputs = 8},
    {.name = "RNN", .convert = Rnn, .min_inputs = 3, .max_inputs = 6},
};

}  // namespace

std::span<const OnnxOp> OnnxRecurrentOps() { return kOps; }

}  // namespace tandem

// Activation functions: how each is built from the vocabulary, and a catalogue of all of them.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/graph/builder.h"

namespace tandem {

// Element by element, of any float dtype; ONNX's operators of the same names are made of these.
namespace activations {

// x where x >= 0, else slope x; slope broadcasts.
Value LeakyRelu(Builder& b, Value x, Value slope);
// max(x, 0) + alpha (e^min(x / scale, 0) - 1)
Value Elu(Builder& b, Value x, double alpha, double scale = 1);
Value Selu(Builder& b, Value x, double alpha, double gamma);
// min(1, max(0, alpha x + beta))
Value HardSigmoid(Builder& b, Value x, double alpha, double beta);
Value HardSwish(Builder& b, Value x);
Value Softsign(Builder& b, Value x);
Value Mish(Builder& b, Value x);
// x sigmoid(beta x)
Value Swish(Builder& b, Value x, double beta);
// x where x > threshold, else 0
Value ThresholdedRelu(Builder& b, Value x, double threshold);
// x + bias below -lambda, x - bias above lambda, else 0
Value Shrink(Builder& b, Value x, double lambda, double bias);

}  // namespace activations

struct ActivationParameter {
  std::string_view name;
  double value;      // the default
  double low, high;  // what it may be, both included
};

struct Activation {
  std::string_view name, formula;
  std::string_view source;  // who proposed it, and when
  std::vector<ActivationParameter> parameters;
  std::vector<std::string_view> onnx;  // operators that give it; empty: none alone
  Value (*build)(Builder& b, Value x, std::span<const double> parameters);
  // Where it has no derivative; null: it has one everywhere. The engine's gradient there is that of
  // one side, or 0.
  std::vector<double> (*kinks)(std::span<const double> parameters) = nullptr;
  std::string_view note = "";
};

// From the threshold to the gates, which are seen as functions of the gate with the other factor 1.
std::span<const Activation> Activations();
const Activation* FindActivation(std::string_view name);  // null: none

struct ActivationCurve {
  std::vector<std::string> operators;  // of the graph that was run, in order of first use
  std::vector<float> y, dy;            // at each x; dy/dx by Gradient
};
// Runs the activation and its gradient at `x` (may be empty). `parameters` has one value each,
// within its bounds. Thread-safe, but it computes: the compute thread's business.
absl::StatusOr<ActivationCurve> RunActivation(const Activation& activation,
                                              std::span<const double> parameters,
                                              std::span<const float> x);

}  // namespace tandem

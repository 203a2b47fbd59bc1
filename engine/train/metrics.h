// Metrics of predictions: hard, as reported, and smooth, as one can differentiate and train on.
//
// The smooth version puts softmax(logits / temperature), or sigmoid, where the hard one has the
// argmax, or the threshold; it converges to the hard one as the temperature falls, but for ties.
// The smooth ones are graphs: the same functions serve EvaluatePredictions and the objectives of
// training.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "engine/exec/model.h"
#include "engine/graph/builder.h"

namespace tandem {

// --- graphs --------------------------------------------------------------------------------------

// Positive, and such that neither it nor its reciprocal leaves f32.
absl::Status CheckTemperature(double temperature);

// softmax(logits / temperature)[i, targets[i]]: (N, C) f32, (N) i32 -> (N). Its mean is the smooth
// accuracy.
Value SoftHits(Builder& b, Value logits, Value targets, double temperature);
// p t + (1 - p) (1 - t) with p = sigmoid(logits / temperature), labels t within [0, 1]: the shapes
// of all three are one.
Value SoftAgreement(Builder& b, Value logits, Value labels, double temperature);

// Of each class, over the batch.
struct SoftCounts {
  Value hits;   // (C) expected true positives
  Value total;  // (C) expected predictions + actual members
};
SoftCounts CountClasses(Builder& b, Value logits, Value targets, double temperature);
SoftCounts CountLabels(Builder& b, Value logits, Value labels, double temperature);  // both (N, C)
// F1 = 2 hits / total: (C); 0 for a class that is neither predicted nor present.
Value F1OfClasses(Builder& b, const SoftCounts& counts);
// Of the sums over the classes: ().
Value MicroF1(Builder& b, const SoftCounts& counts);
// The mean over all C classes: ().
Value MacroF1(Builder& b, const SoftCounts& counts);

// --- evaluation of given predictions
// --------------------------------------------------------------

enum class Metric : uint8_t { kAccuracy, kTopKAccuracy, kF1Micro, kF1Macro, kBleu };

struct EvaluationOptions {
  bool probabilities = false;  // the predictions are probabilities, not logits
  double temperature = 1;
  std::vector<Metric> gradients = {};  // whose smooth versions to differentiate
};

struct MetricValue {
  Metric metric = Metric::kAccuracy;
  int64_t k = 0;  // kTopKAccuracy
  double hard = 0;
  std::optional<double> smooth = {};    // top-k has none
  std::optional<Tensor> gradient = {};  // of `smooth` by the predictions, f32 of their shape
};

struct MetricReport {
  std::vector<MetricValue> values;
  // Classification, one a class.
  std::vector<double> f1, smooth_f1;
  std::vector<int64_t> support;  // examples of the class
  // BLEU.
  std::vector<double> precisions;  // hard, one an order
  double brevity_penalty = 1;
  int64_t hypothesis_tokens = 0, reference_tokens = 0;
};

// All check shapes and values, and name what is wrong; predictions are of any floating dtype and
// finite, probabilities within [0, 1], and rows of them sum to 1 where classes exclude each other.
// Compute thread only, as plans are.

// One class an example: predictions (N, C), integer targets (N) within [0, C). Accuracy, top-k for
// each of `top_k`, F1 micro (which is the accuracy) and macro. The first of equal logits counts as
// the larger.
absl::StatusOr<MetricReport> EvaluateClasses(const Tensor& predictions, const Tensor& targets,
                                             std::span<const int64_t> top_k,
                                             const EvaluationOptions& options, PlanCache& plans);

// Any number of labels an example: predictions (N, C), labels (N, C) integer or bool, 0 or 1. A
// label is predicted where its probability exceeds `threshold`. Accuracy (of single labels), F1
// micro and macro.
absl::StatusOr<MetricReport> EvaluateLabels(const Tensor& predictions, const Tensor& labels,
                                            double threshold, const EvaluationOptions& options,
                                            PlanCache& plans);

// Corpus BLEU, Papineni et al. (2002): the geometric mean of the n-gram precisions of orders 1 to
// max_order, clipped, times the brevity penalty (against the reference of the closest length, the
// shorter of two). 0 where some order has no n-gram or, without smoothing, no match.
struct BleuOptions {
  int64_t max_order = 4;  // [1, 8]
  double add_k = 0;       // added to matches and totals of orders above 1 (Lin and Och 2004)
};
using Tokens = std::vector<int32_t>;
// predictions (T, V): the token logits of all hypotheses, one after the other, of `lengths` tokens
// each (sum T); references[s]: one or more for hypothesis s. Smooth: expected n-gram counts under
// independent positions, each clipped in expectation by Zhukov and Kretov, "Differentiable lower
// bound for expected BLEU score" (2017): sum over positions i of P_i min(1, r / (1 + sum over j !=
// i of P_j)).
absl::StatusOr<MetricReport> EvaluateBleu(const Tensor& predictions,
                                          std::span<const int64_t> lengths,
                                          std::span<const std::vector<Tokens>> references,
                                          const BleuOptions& bleu, const EvaluationOptions& options,
                                          PlanCache& plans);

}  // namespace tandem

// BLEU of given token logits, hard and smooth; see metrics.h.
#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "engine/ops/ops.h"
#include "engine/train/metrics_evaluation.h"

namespace tandem {
namespace {

constexpr int64_t kMaxOrder = 8;
// A (position, reference n-gram) pair is a probability of the smooth version; so many bound its
// memory at a few hundred MiB.
constexpr int64_t kMaxPairs = int64_t{1} << 22;
constexpr int64_t kMaxReferenceTokens = int64_t{1} << 18;

using Counts = std::map<Tokens, int64_t>;

Counts NGrams(const Tokens& tokens, int64_t n) {
  Counts counts;
  for (int64_t i = 0; i + n <= static_cast<int64_t>(tokens.size()); ++i) {
    ++counts[Tokens(tokens.begin() + i, tokens.begin() + i + n)];
  }
  return counts;
}

// How often each n-gram may be matched: as often as in the reference that has it most.
Counts Limits(const std::vector<Tokens>& references, int64_t n) {
  Counts limits;
  for (const Tokens& reference : references) {
    for (const auto& [gram, count] : NGrams(reference, n)) {
      limits[gram] = std::max(limits[gram], count);
    }
  }
  return limits;
}

int64_t ClosestLength(const std::vector<Tokens>& references, int64_t length) {
  int64_t closest = static_cast<int64_t>(references[0].size());
  for (const Tokens& reference : references) {
    const auto size = static_cast<int64_t>(reference.size());
    const auto key = [length](int64_t v) { return std::pair(std::abs(v - length), v); };
    if (key(size) < key(closest)) closest = size;
  }
  return closest;
}

absl::Status CheckReferences(std::span<const std::vector<Tokens>> references, int64_t vocabulary) {
  int64_t total = 0;
  for (size_t s = 0; s < references.size(); ++s) {
    if (references[s].empty()) return InvalidArgument("hypothesis ", s, " has no reference");
    for (size_t r = 0; r < references[s].size(); ++r) {
      const Tokens& tokens = references[s][r];
      if (tokens.empty()) {
        return InvalidArgument("reference ", r, " of hypothesis ", s, " has no tokens");
      }
      total += static_cast<int64_t>(tokens.size());
      if (total > kMaxReferenceTokens) {
        return InvalidArgument("the references have more than ", kMaxReferenceTokens, " tokens");
      }
      for (size_t i = 0; i < tokens.size(); ++i) {
        if (tokens[i] < 0 || tokens[i] >= vocabulary) {
          return InvalidArgument("token ", i, " of reference ", r, " of hypothesis ", s, " is ",
                                 tokens[i], ", outside the vocabulary [0, ", vocabulary, ")");
        }
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLengths(std::span<const int64_t> lengths, size_t references, int64_t positions) {
  if (lengths.size() != references) {
    return InvalidArgument(lengths.size(), " hypotheses for the references of ", references);
  }
  int64_t left = positions;
  for (size_t s = 0; s < lengths.size(); ++s) {
    if (lengths[s] < 1 || lengths[s] > left) {
      return InvalidArgument("hypothesis ", s, " has length ", lengths[s], ", expected 1 to the ",
                             left, " positions that are left");
    }
    left -= lengths[s];
  }
  if (left == 0) return absl::OkStatus();
  return InvalidArgument("the predictions have ", positions, " positions, the hypotheses only ",
                         positions - left);
}

// The pairs of one order: where hypothesis positions could match reference n-grams.
struct Pairs {
  std::vector<std::vector<int32_t>> places;  // (n, K) into the flat (T V) probabilities
  std::vector<int32_t> gram;                 // (K) which n-gram, counted over all hypotheses
  std::vector<float> limit;                  // (K) of that n-gram
  int32_t grams = 0;
  double total = 0;    // n-grams of the hypotheses
  double matches = 0;  // hard
};

absl::StatusOr<std::vector<Pairs>> MakePairs(std::span<const int64_t> lengths,
                                             std::span<const std::vector<Tokens>> references,
                                             const Tokens& argmax, int64_t vocabulary,
                                             int64_t max_order) {
  std::vector<Pairs> orders(max_order);
  int64_t pairs = 0, begin = 0;
  for (size_t s = 0; s < lengths.size(); ++s) {
    const Tokens hypothesis(argmax.begin() + begin, argmax.begin() + begin + lengths[s]);
    for (int64_t n = 1; n <= max_order; ++n) {
      Pairs& order = orders[n - 1];
      order.places.resize(n);
      const int64_t places = std::max<int64_t>(0, lengths[s] - n + 1);
      order.total += static_cast<double>(places);
      const Counts limits = Limits(references[s], n), counts = NGrams(hypothesis, n);
      pairs += places * static_cast<int64_t>(limits.size());
      if (pairs > kMaxPairs) {
        return InvalidArgument("BLEU needs more than ", kMaxPairs,
                               " pairs of a position and a reference n-gram; give fewer or shorter "
                               "hypotheses at once");
      }
      for (const auto& [gram, limit] : limits) {
        const auto found = counts.find(gram);
        if (found != counts.end()) {
          order.matches += static_cast<double>(std::min(found->second, limit));
        }
        for (int64_t t = begin; t < begin + places; ++t) {
          for (int64_t j = 0; j < n; ++j) {
            order.places[j].push_back(static_cast<int32_t>((t + j) * vocabulary + gram[j]));
          }
          order.gram.push_back(order.grams);
          order.limit.push_back(static_cast<float>(limit));
        }
        ++order.grams;
      }
    }
    begin += lengths[s];
  }
  return orders;
}

// The clipped expected matches of one order: (). inputs: n lists of places, gram, limit.
Value ExpectedMatches(Builder& b, Value flat, std::span<const Value> inputs, const Pairs& order) {
  const size_t n = order.places.size();
  Value p = ops::Gather(b, flat, inputs[0], 0);  // (K)
  for (size_t j = 1; j < n; ++j) p = ops::Mul(b, p, ops::Gather(b, flat, inputs[j], 0));
  const Value gram = inputs[n], limit = inputs[n + 1];
  const Value counts = ops::GatherGrad(b, p, gram, Shape{order.grams});  // (grams)
  const Value others = ops::Sub(b, ops::Gather(b, counts, gram, 0), p);
  const Value share = ops::Div(b, limit, ops::Add(b, others, b.Scalar(1)));
  return ops::ReduceSum(b, ops::Mul(b, p, ops::Min(b, share, b.Scalar(1))), {}, false);
}

}  // namespace

absl::StatusOr<MetricReport> EvaluateBleu(const Tensor& predictions,
                                          std::span<const int64_t> lengths,
                                          std::span<const std::vector<Tokens>> references,
                                          const BleuOptions& bleu, const EvaluationOptions& options,
                                          PlanCache& plans) {
  constexpr Metric kAvailable[] = {Metric::kBleu};
  TANDEM_RETURN_IF_ERROR(CheckGradients(options, kAvailable));
  if (bleu.max_order < 1 || bleu.max_order > kMaxOrder) {
    return InvalidArgument("max_order is ", bleu.max_order, ", expected 1 to ", kMaxOrder);
  }
  if (!(bleu.add_k >= 0 && bleu.add_k <= 1e6)) {
    return InvalidArgument("add_k is ", bleu.add_k, ", expected 0 to 1e6");
  }
  TANDEM_ASSIGN_OR_RETURN(const Tensor checked,
                          CheckedPredictions(predictions, Activation::kSoftmax, options));
  const int64_t positions = checked.shape()[0], vocabulary = checked.shape()[1];
  if (checked.num_elements() > INT32_MAX) {
    return InvalidArgument("the predictions have more than ", INT32_MAX, " elements");
  }
  TANDEM_RETURN_IF_ERROR(CheckLengths(lengths, references.size(), positions));
  TANDEM_RETURN_IF_ERROR(CheckReferences(references, vocabulary));
  Tokens argmax;
  for (int64_t t = 0; t < positions; ++t) {
    const std::span<const float> row = checked.data<float>().subspan(t * vocabulary, vocabulary);
    argmax.push_back(static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin()));
  }
  TANDEM_ASSIGN_OR_RETURN(const std::vector<Pairs> orders,
                          MakePairs(lengths, references, argmax, vocabulary, bleu.max_order));

  MetricReport report;
  report.hypothesis_tokens = positions;
  for (size_t s = 0; s < lengths.size(); ++s) {
    report.reference_tokens += ClosestLength(references[s], lengths[s]);
  }
  report.brevity_penalty = std::exp(std::min(
      0.0, 1 - static_cast<double>(report.reference_tokens) / static_cast<double>(positions)));
  const auto added = [&](size_t n) { return n > 0 ? bleu.add_k : 0; };
  double log_precisions = 0;
  bool possible = true;  // every order has n-grams
  for (size_t n = 0; n < orders.size(); ++n) {
    const Pairs& order = orders[n];
    possible &= order.total > 0;
    const double precision =
        order.total > 0 ? (order.matches + added(n)) / (order.total + added(n)) : 0;
    report.precisions.push_back(precision);
    log_precisions += std::log(precision) / static_cast<double>(orders.size());
  }
  report.values.push_back(
      {.metric = Metric::kBleu, .hard = report.brevity_penalty * std::exp(log_precisions)});
  if (!possible) {  // 0 whatever the logits are
    report.values[0].smooth = 0;
    if (!options.gradients.empty()) report.values[0].gradient = Tensor::Zeros(checked.type());
    return report;
  }
  std::vector<Tensor> owned;
  std::string key = StrCat("bleu", KeyOf(bleu.add_k), KeyOf(report.brevity_penalty));
  for (const Pairs& order : orders) {
    const Shape shape{static_cast<int64_t>(order.gram.size())};
    key += StrCat(" ", order.grams, " ", static_cast<int64_t>(order.total));
    if (order.gram.empty()) continue;  // nothing can match
    for (const auto& places : order.places) owned.push_back(Tensor::Of<int32_t>(shape, places));
    owned.push_back(Tensor::Of<int32_t>(shape, order.gram));
    owned.push_back(Tensor::Of<float>(shape, order.limit));
  }
  std::vector<const Tensor*> inputs;
  for (const Tensor& tensor : owned) inputs.push_back(&tensor);
  const auto build = [&](Builder& b, Value logits,
                         const std::vector<Value>& values) -> SmoothMetrics {
    const Value scaled = ops::Mul(b, logits, b.Scalar(1 / options.temperature));
    const Value flat = ops::Reshape(b, ops::Softmax(b, scaled), Shape{positions * vocabulary});
    Value log_sum = b.Scalar(0);
    size_t at = 0;
    for (size_t n = 0; n < orders.size(); ++n) {
      Value matches = b.Scalar(0);
      if (!orders[n].gram.empty()) {
        const size_t count = n + 3;
        matches = ExpectedMatches(b, flat, std::span(values).subspan(at, count), orders[n]);
        at += count;
      }
      matches = ops::Max(b, ops::Add(b, matches, b.Scalar(added(n))), b.Scalar(1e-30));
      log_sum =
          ops::Add(b, log_sum,
                   ops::Log(b, ops::Mul(b, matches, b.Scalar(1 / (orders[n].total + added(n))))));
    }
    const Value mean = ops::Mul(b, log_sum, b.Scalar(1 / static_cast<double>(orders.size())));
    return {{ops::Mul(b, ops::Exp(b, mean), b.Scalar(report.brevity_penalty))}, {}};
  };
  TANDEM_RETURN_IF_ERROR(
      RunSmooth(key, checked, inputs, Activation::kSoftmax, options, plans, build, &report)
          .status());
  return report;
}

}  // namespace tandem

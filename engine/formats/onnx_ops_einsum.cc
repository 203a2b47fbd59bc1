// Einsum: operands are multiplied two at a time, as a batched matrix product where that is one.
#include <algorithm>
#include <cctype>
#include <map>
#include <set>
#include <utility>

#include "engine/base/error.h"
#include "engine/formats/onnx_compose.h"
#include "engine/formats/onnx_ops.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

// Labels are letters; the dimensions of an ellipsis are '0', '1', ... counted from the last.
using Labels = std::string;

struct Operand {
  Value value;
  Labels labels;  // one a dimension, all different
};

bool Has(const Labels& labels, char label) { return labels.find(label) != Labels::npos; }

struct Equation {
  std::vector<std::string> terms;
  std::string output;
  bool explicit_output = false;
};

absl::StatusOr<Equation> ParseEquation(std::string text) {
  text.erase(std::remove(text.begin(), text.end(), ' '), text.end());
  Equation equation;
  const size_t arrow = text.find("->");
  std::string left = text.substr(0, arrow);
  if (arrow != std::string::npos) {
    equation.explicit_output = true;
    equation.output = text.substr(arrow + 2);
  }
  for (size_t begin = 0; begin <= left.size();) {
    const size_t end = std::min(left.find(',', begin), left.size());
    equation.terms.push_back(left.substr(begin, end - begin));
    begin = end + 1;
  }
  return equation;
}

// A term's labels for a tensor of this rank, the ellipsis written out.
absl::StatusOr<Labels> ExpandTerm(const std::string& term, int rank) {
  Labels labels;
  const size_t dots = term.find("...");
  const int named = static_cast<int>(term.size()) - (dots == std::string::npos ? 0 : 3);
  const int hidden = rank - named;
  if (hidden < 0 || (dots == std::string::npos && hidden != 0)) {
    return InvalidArgument("term '", term, "' for a tensor of rank ", rank);
  }
  for (size_t i = 0; i < term.size(); ++i) {
    if (i == dots) {
      for (int k = hidden - 1; k >= 0; --k) labels.push_back(static_cast<char>('0' + k));
      i += 2;
    } else if (std::isalpha(static_cast<unsigned char>(term[i])) != 0) {
      labels.push_back(term[i]);
    } else {
      return InvalidArgument("term '", term, "' has '", std::string(1, term[i]), "'");
    }
  }
  return labels;
}

// Takes the diagonal of each pair of dimensions with one label.
absl::StatusOr<Operand> TakeDiagonals(Builder& b, Operand operand) {
  for (size_t i = 0; i < operand.labels.size(); ++i) {
    const size_t j = operand.labels.find(operand.labels[i], i + 1);
    if (j == Labels::npos) continue;
    const Shape shape = b.shape(operand.value);
    const int64_t n = shape[static_cast<int>(i)];
    if (shape[static_cast<int>(j)] != n) {
      return InvalidArgument("label '", std::string(1, operand.labels[i]), "' is ", n, " and ",
                             shape[static_cast<int>(j)]);
    }
    // Both to the end, as one of n n elements, of which every (n + 1)th stays; it ends last.
    std::vector<int64_t> permutation;
    Shape flat;
    Labels labels;
    for (size_t k = 0; k < operand.labels.size(); ++k) {
      if (k == i || k == j) continue;
      permutation.push_back(static_cast<int64_t>(k));
      flat.push_back(shape[static_cast<int>(k)]);
      labels.push_back(operand.labels[k]);
    }
    permutation.push_back(static_cast<int64_t>(i));
    permutation.push_back(static_cast<int64_t>(j));
    flat.push_back(n * n);
    labels.push_back(operand.labels[i]);
    const Value last = ops::Reshape(b, ops::Transpose(b, operand.value, permutation), flat);
    const Value places = compose::Scale(b, compose::Iota(b, n), static_cast<double>(n + 1));
    operand = {ops::Gather(b, last, places, flat.rank() - 1), labels};
    TANDEM_RETURN_IF_ERROR(b.status());
    i = static_cast<size_t>(-1);  // from the start again
  }
  return operand;
}

// Sums over the labels that nobody else wants.
Operand SumAway(Builder& b, const Operand& operand, const std::set<char>& wanted) {
  std::vector<int64_t> axes;
  Labels kept;
  for (size_t i = 0; i < operand.labels.size(); ++i) {
    if (wanted.contains(operand.labels[i])) {
      kept.push_back(operand.labels[i]);
    } else {
      axes.push_back(static_cast<int64_t>(i));
    }
  }
  if (axes.empty()) return operand;
  return {ops::ReduceSum(b, operand.value, std::move(axes), false), kept};
}

// The operand with its dimensions in the order of `labels`, size 1 where it has none.
Value Arrange(Builder& b, const Operand& operand, const Labels& labels) {
  std::vector<int64_t> permutation;
  Shape shape;
  for (const char label : labels) {
    const size_t at = operand.labels.find(label);
    if (at != Labels::npos) permutation.push_back(static_cast<int64_t>(at));
    shape.push_back(at == Labels::npos ? 1 : b.shape(operand.value)[static_cast<int>(at)]);
  }
  return ops::Reshape(b, ops::Transpose(b, operand.value, std::move(permutation)), shape);
}

// Sizes by label; 1 gives way to another size.
using Sizes = std::map<char, int64_t>;

absl::Status AddSizes(const Builder& b, const Operand& operand, Sizes& sizes) {
  for (size_t i = 0; i < operand.labels.size(); ++i) {
    const int64_t size = b.shape(operand.value)[static_cast<int>(i)];
    int64_t& known = sizes.try_emplace(operand.labels[i], size).first->second;
    if (known == 1) known = size;
    if (size != known && size != 1) {
      return InvalidArgument("label '", std::string(1, operand.labels[i]), "' is ", known, " and ",
                             size);
    }
  }
  return absl::OkStatus();
}

// The operand in the order of `labels`, broadcast to full sizes, as (batch, rows, columns).
Value AsMatrices(Builder& b, const Operand& operand, const Labels& batch, const Labels& rows,
                 const Labels& columns, const Sizes& sizes) {
  Shape full;
  int64_t counts[3] = {1, 1, 1};
  int part = 0;
  for (const Labels* labels : {&batch, &rows, &columns}) {
    for (const char label : *labels) {
      full.push_back(sizes.at(label));
    }
  }
  const Value arranged = ops::BroadcastTo(b, Arrange(b, operand, batch + rows + columns), full);
  if (!b.ok()) return {};  // after this the products below do not overflow
  for (const Labels* labels : {&batch, &rows, &columns}) {
    for (const char label : *labels) counts[part] *= sizes.at(label);
    ++part;
  }
  return ops::Reshape(b, arranged, {counts[0], counts[1], counts[2]});
}

// The product of two operands, summed over what neither the output nor another operand wants.
absl::StatusOr<Operand> Multiply(Builder& b, const Operand& x, const Operand& y,
                                 const std::set<char>& wanted) {
  Sizes sizes;
  TANDEM_RETURN_IF_ERROR(AddSizes(b, x, sizes));
  TANDEM_RETURN_IF_ERROR(AddSizes(b, y, sizes));
  Labels batch, rows, columns, inner;
  for (const auto& [label, size] : sizes) {
    const bool in_x = Has(x.labels, label), in_y = Has(y.labels, label);
    Labels& kind = in_x && in_y ? (wanted.contains(label) ? batch : inner) : in_x ? rows : columns;
    kind.push_back(label);
  }
  const Labels labels = batch + rows + columns;
  if (labels.size() > kMaxRank || (batch + rows + inner).size() > kMaxRank ||
      (batch + columns + inner).size() > kMaxRank) {
    return Unimplemented("more than ", kMaxRank, " labels in one product");
  }
  Shape shape;
  for (const char label : labels) shape.push_back(sizes.at(label));
  if (inner.empty()) {
    return Operand{ops::Mul(b, Arrange(b, x, labels), Arrange(b, y, labels)), labels};
  }
  const Value product = ops::MatMul(b, AsMatrices(b, x, batch, rows, inner, sizes),
                                    AsMatrices(b, y, batch, columns, inner, sizes), false, true);
  return Operand{ops::Reshape(b, product, shape), labels};
}

Outputs Einsum(NodeContext& c) {
  Builder& b = c.b;
  TANDEM_ASSIGN_OR_RETURN(const Equation equation, ParseEquation(c.String("equation", "")));
  if (static_cast<int>(equation.terms.size()) != c.count()) {
    return InvalidArgument("the equation has ", equation.terms.size(), " terms for ", c.count(),
                           " inputs");
  }
  std::vector<Operand> operands;
  std::map<char, int> uses;
  Labels hidden;  // the longest ellipsis
  for (int i = 0; i < c.count(); ++i) {
    TANDEM_ASSIGN_OR_RETURN(Labels labels, ExpandTerm(equation.terms[i], c.rank(i)));
    for (const char label : labels) {
      ++uses[label];
      if (std::isdigit(static_cast<unsigned char>(label)) != 0 && !Has(hidden, label)) {
        hidden.push_back(label);
      }
    }
    TANDEM_ASSIGN_OR_RETURN(Operand operand, TakeDiagonals(b, {c.In(i), std::move(labels)}));
    operands.push_back(std::move(operand));
  }
  std::sort(hidden.rbegin(), hidden.rend());
  Labels output;
  if (equation.explicit_output) {
    const bool dots = equation.output.find("...") != std::string::npos;
    const int rank = static_cast<int>(equation.output.size()) - (dots ? 3 : 0) +
                     (dots ? static_cast<int>(hidden.size()) : 0);
    TANDEM_ASSIGN_OR_RETURN(output, ExpandTerm(equation.output, rank));
  } else {  // the ellipsis, then the labels used once in alphabetical order
    output = hidden;
    for (const auto& [label, count] : uses) {
      if (count == 1 && !Has(hidden, label)) output.push_back(label);
    }
  }
  for (size_t i = 0; i < output.size(); ++i) {
    if (!uses.contains(output[i]) || output.find(output[i], i + 1) != Labels::npos) {
      return InvalidArgument("output label '", std::string(1, output[i]), "'");
    }
  }
  while (true) {
    // What the first two operands must keep: what the output or a later operand has.
    std::set<char> wanted(output.begin(), output.end());
    for (size_t i = 2; i < operands.size(); ++i) {
      wanted.insert(operands[i].labels.begin(), operands[i].labels.end());
    }
    std::set<char> alone = wanted;
    if (operands.size() > 1) alone.insert(operands[1].labels.begin(), operands[1].labels.end());
    operands[0] = SumAway(b, operands[0], alone);
    TANDEM_RETURN_IF_ERROR(b.status());
    if (operands.size() == 1) break;
    std::set<char> other = wanted;
    other.insert(operands[0].labels.begin(), operands[0].labels.end());
    operands[1] = SumAway(b, operands[1], other);
    TANDEM_RETURN_IF_ERROR(b.status());
    TANDEM_ASSIGN_OR_RETURN(operands[1], Multiply(b, operands[0], operands[1], wanted));
    TANDEM_RETURN_IF_ERROR(b.status());
    operands.erase(operands.begin());
  }
  return One(Arrange(b, operands[0], output));
}

constexpr OnnxOp kOps[] = {
    {.name = "Einsum", .convert = Einsum, .min_inputs = 1, .max_inputs = kAnyCount},
};

}  // namespace

std::span<const OnnxOp> OnnxEinsumOps() { return kOps; }

}  // namespace tandem

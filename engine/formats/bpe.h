// The merging loop of byte-pair encoding (Sennrich et al. 2016), for all tokenizers that use it.
#pragma once

#include <cstdint>
#include <optional>
#include <queue>
#include <vector>

namespace tandem {

// A stretch of the text that is one token so far. `id` may be -1: no such token.
struct BpeSymbol {
  int32_t begin = 0, length = 0;  // bytes
  int32_t id = -1;
  bool frozen = false;  // takes part in no merge
};

struct BpeMerge {
  double priority = 0;  // lowest first; the leftmost among equals
  int32_t id = -1;      // of the merged token
};

// Merges neighbours until find(left, right), which gives a std::optional<BpeMerge>, finds no pair.
// O(n log n) calls.
template <typename Find>
std::vector<BpeSymbol> MergeSymbols(std::vector<BpeSymbol> symbols, Find&& find) {
  struct Candidate {
    BpeMerge merge;
    int32_t left, right, length;
    bool operator<(const Candidate& other) const {
      if (merge.priority != other.merge.priority) return merge.priority > other.merge.priority;
      return left > other.left;
    }
  };
  const int32_t count = static_cast<int32_t>(symbols.size());
  std::vector<int32_t> previous(symbols.size()), next(symbols.size());
  std::priority_queue<Candidate> candidates;
  auto consider = [&](int32_t left, int32_t right) {
    if (left < 0 || right >= count) return;
    const BpeSymbol &a = symbols[left], &b = symbols[right];
    if (a.frozen || b.frozen) return;
    const std::optional<BpeMerge> merge = find(a, b);
    if (merge) candidates.push({*merge, left, right, a.length + b.length});
  };
  for (int32_t i = 0; i < count; ++i) {
    previous[i] = i - 1;
    next[i] = i + 1;
    consider(i - 1, i);
  }
  while (!candidates.empty()) {
    const Candidate top = candidates.top();
    candidates.pop();
    BpeSymbol &left = symbols[top.left], &right = symbols[top.right];
    // Symbols only grow or vanish, so an equal length means that neither has changed.
    if (left.length == 0 || right.length == 0 || left.length + right.length != top.length) continue;
    left.length = top.length;
    left.id = top.merge.id;
    right.length = 0;
    next[top.left] = next[top.right];
    if (next[top.left] < count) previous[next[top.left]] = top.left;
    consider(previous[top.left], top.left);
    consider(top.left, next[top.left]);
  }
  std::erase_if(symbols, [](const BpeSymbol& symbol) { return symbol.length == 0; });
  return symbols;
}

}  // namespace tandem

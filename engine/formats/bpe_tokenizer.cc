#include "engine/formats/bpe_tokenizer.h"

#include <algorithm>

#include "engine/formats/utf8.h"

namespace tandem {
namespace {

constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581
constexpr size_t kMaxTextBytes = size_t{1} << 26;          // symbols' offsets are 32 bits

}  // namespace

std::optional<BpeMerge> BpeTokenizer::FindMerge(const BpeSymbol& left,
                                                const BpeSymbol& right) const {
  if (left.id < 0 || right.id < 0) return std::nullopt;
  const uint64_t key = static_cast<uint64_t>(left.id) << 32 | static_cast<uint64_t>(right.id);
  const auto found = merges_.find(key);
  if (found == merges_.end()) return std::nullopt;
  return found->second;
}

std::vector<BpeSymbol> BpeTokenizer::ByteSymbols(std::string_view word) const {
  std::vector<BpeSymbol> symbols;
  for (size_t i = 0; i < word.size(); ++i) {
    // A byte-level vocabulary has every byte; one without loses it, as the original does.
    const int32_t id = byte_ids_[static_cast<uint8_t>(word[i])];
    if (id < 0) continue;
    symbols.push_back({.begin = static_cast<int32_t>(i), .length = 1, .id = id, .frozen = false});
  }
  return symbols;
}

std::vector<BpeSymbol> BpeTokenizer::CharacterSymbols(std::string_view word) const {
  std::vector<BpeSymbol> symbols;
  bool after_unknown = false;
  for (size_t at = 0; at < word.size();) {
    const int32_t size = DecodeUtf8(word.substr(at)).length;
    const int32_t begin = static_cast<int32_t>(at);
    const std::string_view character = word.substr(at, size);
    at += size;
    const auto found = ids_.find(absl::string_view(character.data(), character.size()));
    const bool known = found != ids_.end();
    const bool as_bytes =
        !known && byte_fallback_ && std::all_of(character.begin(), character.end(), [&](char c) {
          return byte_ids_[static_cast<uint8_t>(c)] >= 0;
        });
    if (known) {
      symbols.push_back({begin, size, found->second, false});
    } else if (as_bytes) {
      for (int32_t i = 0; i < size; ++i) {
        symbols.push_back({begin + i, 1, byte_ids_[static_cast<uint8_t>(character[i])], false});
      }
    } else if (after_unknown && fuse_unk_) {
      symbols.back().length += size;
    } else if (unk_id_ >= 0) {
      symbols.push_back({begin, size, unk_id_, false});
    }
    after_unknown = !known && !as_bytes && unk_id_ >= 0;
  }
  return symbols;
}

void BpeTokenizer::EncodeWord(std::string_view word, std::vector<int32_t>& ids) const {
  if (ignore_merges_) {
    const auto found = ids_.find(absl::string_view(word.data(), word.size()));
    if (found != ids_.end()) {
      ids.push_back(found->second);
      return;
    }
  }
  const std::vector<BpeSymbol> symbols = MergeSymbols(
      byte_level_ ? ByteSymbols(word) : CharacterSymbols(word),
      [&](const BpeSymbol& left, const BpeSymbol& right) { return FindMerge(left, right); });
  for (const BpeSymbol& symbol : symbols) ids.push_back(symbol.id);
}

void BpeTokenizer::EncodeSegment(std::string_view segment, std::vector<int32_t>& ids) const {
  if (segment.empty()) return;
  std::string text;
  if (byte_level_) {
    if (add_prefix_space_ && segment[0] != ' ') text += ' ';
    text += segment;
    if (!pattern_) return EncodeWord(text, ids);
    for (std::string_view word : SplitWords(*pattern_, text)) EncodeWord(word, ids);
    return;
  }
  if (prepend_) text += kSpaceSymbol;
  for (char c : segment) {
    if (c == ' ') {
      text += kSpaceSymbol;
    } else {
      text += c;
    }
  }
  EncodeWord(text, ids);
}

absl::StatusOr<std::vector<int32_t>> BpeTokenizer::EncodeText(std::string_view text) const {
  if (text.size() > kMaxTextBytes) {
    return InvalidArgument("text: ", text.size(), " bytes, at most ", kMaxTextBytes);
  }
  std::vector<int32_t> ids;
  size_t begin = 0;  // of what has not been encoded yet
  for (size_t at = 0; at < text.size();) {
    size_t matched = 0;
    if (added_begins_[static_cast<uint8_t>(text[at])]) {
      for (size_t size = std::min(longest_added_, text.size() - at); size > 0; --size) {
        const auto found = added_ids_.find(absl::string_view(text.data() + at, size));
        if (found == added_ids_.end()) continue;
        EncodeSegment(text.substr(begin, at - begin), ids);
        ids.push_back(found->second);
        matched = size;
        break;
      }
    }
    at += std::max<size_t>(matched, 1);
    if (matched > 0) begin = at;
  }
  EncodeSegment(text.substr(begin), ids);
  return ids;
}

}  // namespace tandem

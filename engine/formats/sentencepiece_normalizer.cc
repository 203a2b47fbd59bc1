#include <algorithm>

#include "engine/formats/sentencepiece_model.h"
#include "engine/formats/utf8.h"

namespace tandem {
namespace {

constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";           // U+2581
constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

uint32_t LittleEndian32(std::string_view bytes) {
  uint32_t value = 0;
  for (int i = 3; i >= 0; --i) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return value;
}

}  // namespace

absl::StatusOr<SentencePieceNormalizer> SentencePieceNormalizer::Create(
    const SentencePieceModel& model) {
  SentencePieceNormalizer normalizer;
  normalizer.add_dummy_prefix_ = model.add_dummy_prefix;
  normalizer.remove_extra_whitespaces_ = model.remove_extra_whitespaces;
  normalizer.space_ = model.escape_whitespaces ? kSpaceSymbol : std::string_view(" ");
  for (const SentencePieceModel::Piece& piece : model.pieces) {
    if (piece.type != SentencePieceModel::PieceType::kUserDefined) continue;
    normalizer.user_defined_[piece.text] = true;
    normalizer.longest_user_defined_ =
        std::max(normalizer.longest_user_defined_, piece.text.size());
  }
  const std::string_view map = model.charsmap;
  if (map.empty()) return normalizer;
  const uint32_t trie_bytes = map.size() >= 4 ? LittleEndian32(map) : 0;
  if (trie_bytes == 0 || trie_bytes % 4 != 0 || trie_bytes > map.size() - 4) {
    return InvalidArgument("SentencePiece model: precompiled_charsmap of ", map.size(),
                           " bytes has a trie of ", trie_bytes);
  }
  for (size_t at = 4; at < 4 + size_t{trie_bytes}; at += 4) {
    normalizer.trie_.push_back(LittleEndian32(map.substr(at)));
  }
  normalizer.replacements_ = map.substr(4 + size_t{trie_bytes});
  // The last string must end.
  if (normalizer.replacements_.empty() || normalizer.replacements_.back() != '\0') {
    return InvalidArgument("SentencePiece model: precompiled_charsmap does not end with a zero");
  }
  return normalizer;
}

size_t SentencePieceNormalizer::MatchUserDefined(std::string_view text) const {
  for (size_t size = std::min(text.size(), longest_user_defined_); size > 0; --size) {
    if (user_defined_.contains(std::string(text.substr(0, size)))) return size;
  }
  return 0;
}

// Darts-clone's unit: bit 31 a leaf's value, bits 10-30 an offset (times 256 with bit 9), bit 8
// "has a leaf", bits 0-7 the label.
SentencePieceNormalizer::Prefix SentencePieceNormalizer::MatchCharsmap(
    std::string_view text) const {
  Prefix best;
  if (trie_.empty()) return best;
  auto offset = [](uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); };
  uint32_t node = offset(trie_[0]);
  for (size_t i = 0; i < text.size(); ++i) {
    const uint8_t label = static_cast<uint8_t>(text[i]);
    node ^= label;
    if (node >= trie_.size()) break;
    const uint32_t unit = trie_[node];
    if ((unit & (1u << 31 | 0xFF)) != label) break;
    node ^= offset(unit);
    if (node >= trie_.size()) break;
    if ((unit >> 8 & 1) == 0) continue;
    const uint32_t value = trie_[node] & 0x7FFFFFFF;
    if (value < replacements_.size()) best = {replacements_.c_str() + value, i + 1};
  }
  return best;
}

SentencePieceNormalizer::Prefix SentencePieceNormalizer::NormalizePrefix(
    std::string_view text) const {
  if (const size_t size = MatchUserDefined(text); size > 0) return {text.substr(0, size), size};
  if (const Prefix match = MatchCharsmap(text); match.consumed > 0) return match;
  const Utf8Char c = DecodeUtf8(text);
  if (!c.valid) return {kReplacementCharacter, 1};
  return {text.substr(0, c.length), static_cast<size_t>(c.length)};
}

std::string SentencePieceNormalizer::Normalize(std::string_view text) const {
  std::string normalized;
  if (remove_extra_whitespaces_) {
    while (!text.empty()) {
      const Prefix prefix = NormalizePrefix(text);
      if (prefix.normalized != " ") break;
      text.remove_prefix(prefix.consumed);
    }
  }
  if (text.empty()) return normalized;
  if (add_dummy_prefix_) normalized += space_;
  bool after_space = remove_extra_whitespaces_;
  while (!text.empty()) {
    const Prefix prefix = NormalizePrefix(text);
    std::string_view piece = prefix.normalized;
    while (after_space && piece.starts_with(' ')) piece.remove_prefix(1);
    for (char c : piece) {
      if (c == ' ') {
        normalized += space_;
      } else {
        normalized += c;
      }
    }
    if (!piece.empty()) after_space = piece.ends_with(' ');
    if (!remove_extra_whitespaces_) after_space = false;
    text.remove_prefix(prefix.consumed);
  }
  if (remove_extra_whitespaces_) {
    while (normalized.ends_with(space_)) normalized.resize(normalized.size() - space_.size());
  }
  return normalized;
}

}  // namespace tandem

#include "engine/formats/sentencepiece_tokenizer.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "absl/strings/str_replace.h"
#include "engine/formats/bpe.h"
#include "engine/formats/json.h"
#include "engine/formats/utf8.h"

namespace tandem {
namespace {

using PieceType = SentencePieceModel::PieceType;

constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581
// Every start of a text is compared with pieces up to the longest.
constexpr size_t kMaxPieceBytes = 4096;
// What an unknown character costs beyond the least likely piece.
constexpr float kUnknownPenalty = 10;
// Offsets are 32 bits; a charsmap may lengthen text.
constexpr size_t kMaxTextBytes = size_t{1} << 26;
constexpr size_t kMaxNormalizedBytes = size_t{1} << 30;

// "<0x0A>" -> 10, or -1.
int ParseBytePiece(const std::string& text) {
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return -1;
  int value = 0;
  for (char c : text.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Tokenizer>> SentencePieceTokenizer::FromModel(
    std::string_view model_bytes, std::string_view config) {
  TANDEM_ASSIGN_OR_RETURN(SentencePieceModel model, ParseSentencePieceModel(model_bytes));
  TANDEM_ASSIGN_OR_RETURN(SentencePieceNormalizer normalizer,
                          SentencePieceNormalizer::Create(model));
  std::unique_ptr<SentencePieceTokenizer> tokenizer(
      new SentencePieceTokenizer(std::move(model), std::move(normalizer)));
  TANDEM_RETURN_IF_ERROR(tokenizer->IndexPieces());
  tokenizer->adds_bos_ = tokenizer->bos_id_.has_value();
  tokenizer->strips_every_mark_ = tokenizer->model_.remove_extra_whitespaces;
  if (!config.empty()) {
    TANDEM_ASSIGN_OR_RETURN(const nlohmann::json json, ParseJson(config, "tokenizer_config.json"));
    const auto adds = json.is_object() ? json.find("add_bos_token") : json.end();
    if (adds != json.end() && adds->is_boolean()) {
      tokenizer->adds_bos_ = tokenizer->adds_bos_ && adds->get<bool>();
    }
  }
  return std::unique_ptr<const Tokenizer>(std::move(tokenizer));
}

absl::Status SentencePieceTokenizer::IndexPieces() {
  min_score_ = std::numeric_limits<float>::max();
  // The original begins with FLT_MIN, a positive number: scores are negative, so it stays, and a
  // user-defined piece scores as good as 0 and always wins.
  max_score_ = std::numeric_limits<float>::min();
  if (model_.byte_fallback) byte_ids_.assign(256, -1);
  for (size_t i = 0; i < model_.pieces.size(); ++i) {
    const SentencePieceModel::Piece& piece = model_.pieces[i];
    const int32_t id = static_cast<int32_t>(i);
    MakeToken(piece);
    switch (piece.type) {
      case PieceType::kUnknown:
        if (unk_id_ >= 0) return InvalidArgument("SentencePiece model: two unknown pieces");
        unk_id_ = id;
        break;
      case PieceType::kControl:
        if (piece.text == model_.bos_piece) bos_id_ = id;
        if (piece.text == model_.eos_piece) eos_id_ = id;
        break;
      case PieceType::kByte: {
        const int byte = ParseBytePiece(piece.text);
        if (byte < 0) {
          return InvalidArgument("SentencePiece model: '", piece.text, "' is not a byte");
        }
        if (model_.byte_fallback) byte_ids_[byte] = id;
        break;
      }
      default:
        if (piece.text.size() > kMaxPieceBytes) {
          return InvalidArgument("SentencePiece model: piece ", id, " has ", piece.text.size(),
                                 " bytes, at most ", kMaxPieceBytes, " are supported");
        }
        if (!ids_.emplace(piece.text, id).second) {
          return InvalidArgument("SentencePiece model: piece '", piece.text, "' is there twice");
        }
        longest_piece_ = std::max(longest_piece_, piece.text.size());
        if (piece.type == PieceType::kNormal) {
          min_score_ = std::min(min_score_, piece.score);
          max_score_ = std::max(max_score_, piece.score);
        }
    }
  }
  if (unk_id_ < 0) return InvalidArgument("SentencePiece model: no unknown piece");
  if (std::find(byte_ids_.begin(), byte_ids_.end(), -1) != byte_ids_.end()) {
    return InvalidArgument("SentencePiece model: byte_fallback without a piece for every byte");
  }
  return absl::OkStatus();
}

void SentencePieceTokenizer::MakeToken(const SentencePieceModel::Piece& piece) {
  Token token;
  token.exists = true;
  switch (piece.type) {
    case PieceType::kControl:
      break;
    case PieceType::kUnknown:
      token.bytes = model_.unk_surface;
      break;
    case PieceType::kByte:
      token.bytes = std::string(1, static_cast<char>(ParseBytePiece(piece.text)));
      break;
    default:
      token.bytes = absl::StrReplaceAll(
          piece.text, {{absl::string_view(kSpaceSymbol.data(), kSpaceSymbol.size()), " "}});
      token.space_is_mark = piece.text.starts_with(kSpaceSymbol) &&
                            (model_.add_dummy_prefix || model_.remove_extra_whitespaces);
  }
  tokens_.push_back(std::move(token));
}

int32_t SentencePieceTokenizer::IdOf(std::string_view text) const {
  if (text.size() > longest_piece_) return -1;
  const auto found = ids_.find(absl::string_view(text.data(), text.size()));
  return found == ids_.end() ? -1 : found->second;
}

absl::StatusOr<std::vector<int32_t>> SentencePieceTokenizer::EncodeText(
    std::string_view text) const {
  if (text.size() > kMaxTextBytes) {
    return InvalidArgument("text: ", text.size(), " bytes, at most ", kMaxTextBytes);
  }
  const std::string normalized = normalizer_.Normalize(text);
  if (normalized.size() > kMaxNormalizedBytes) {
    return InvalidArgument("text: ", normalized.size(), " bytes once normalized, at most ",
                           kMaxNormalizedBytes);
  }
  const std::vector<Span> spans = model_.algorithm == SentencePieceModel::Algorithm::kBpe
                                      ? EncodeBpe(normalized)
                                      : EncodeUnigram(normalized);
  std::vector<int32_t> ids;
  bool after_unknown = false;
  for (const Span& span : spans) {
    const bool unknown = span.id == unk_id_;
    if (unknown && model_.byte_fallback) {
      for (char byte : span.text) ids.push_back(byte_ids_[static_cast<uint8_t>(byte)]);
    } else if (!unknown || !after_unknown) {  // unknown characters side by side are one token
      ids.push_back(span.id);
    }
    after_unknown = unknown;
  }
  return ids;
}

std::vector<SentencePieceTokenizer::Span> SentencePieceTokenizer::EncodeBpe(
    std::string_view text) const {
  std::vector<BpeSymbol> symbols;
  for (size_t at = 0; at < text.size();) {
    const size_t user_defined = normalizer_.MatchUserDefined(text.substr(at));
    const size_t size = user_defined > 0 ? user_defined : DecodeUtf8(text.substr(at)).length;
    symbols.push_back({.begin = static_cast<int32_t>(at),
                       .length = static_cast<int32_t>(size),
                       .id = IdOf(text.substr(at, size)),
                       .frozen = user_defined > 0});
    at += size;
  }
  // Where a merge makes an unused piece, its two parts, to take it apart again at the end.
  absl::flat_hash_map<std::string, size_t> unused_split;
  symbols = MergeSymbols(
      std::move(symbols),
      [&](const BpeSymbol& left, const BpeSymbol& right) -> std::optional<BpeMerge> {
        const std::string_view merged = text.substr(left.begin, left.length + right.length);
        const int32_t id = IdOf(merged);
        if (id < 0) return std::nullopt;
        if (model_.pieces[id].type == PieceType::kUnused) {
          unused_split[std::string(merged)] = static_cast<size_t>(left.length);
        }
        return BpeMerge{-static_cast<double>(model_.pieces[id].score), id};
      });
  std::vector<Span> spans;
  const std::function<void(std::string_view)> add = [&](std::string_view piece) {
    const int32_t id = IdOf(piece);
    const auto split = unused_split.find(absl::string_view(piece.data(), piece.size()));
    if (id >= 0 && model_.pieces[id].type == PieceType::kUnused && split != unused_split.end()) {
      add(piece.substr(0, split->second));
      add(piece.substr(split->second));
    } else {
      spans.push_back({piece, id >= 0 ? id : unk_id_});
    }
  };
  for (const BpeSymbol& symbol : symbols) add(text.substr(symbol.begin, symbol.length));
  return spans;
}

// Viterbi: the segmentation with the highest sum of scores.
std::vector<SentencePieceTokenizer::Span> SentencePieceTokenizer::EncodeUnigram(
    std::string_view text) const {
  struct Best {
    float score = 0;
    int32_t begin = -1;  // of the last piece on the way here
    int32_t id = -1;
  };
  std::vector<Best> best(text.size() + 1);  // of the text before each byte
  const float unknown_score = min_score_ - kUnknownPenalty;
  for (size_t begin = 0; begin < text.size();) {
    const size_t character = DecodeUtf8(text.substr(begin)).length;
    const float here = best[begin].score;
    auto offer = [&](size_t end, float score, int32_t id) {
      if (best[end].begin >= 0 && score <= best[end].score) return;
      best[end] = {score, static_cast<int32_t>(begin), id};
    };
    bool has_character = false;
    for (size_t size = character; size <= longest_piece_ && begin + size <= text.size();) {
      const int32_t id = IdOf(text.substr(begin, size));
      if (id >= 0 && model_.pieces[id].type != PieceType::kUnused) {
        const bool user_defined = model_.pieces[id].type == PieceType::kUserDefined;
        const float score =
            user_defined ? static_cast<float>(size) * max_score_ - 0.1f : model_.pieces[id].score;
        offer(begin + size, here + score, id);
        has_character = has_character || size == character;
      }
      if (begin + size == text.size()) break;
      size += DecodeUtf8(text.substr(begin + size)).length;
    }
    if (!has_character) offer(begin + character, here + unknown_score, unk_id_);
    begin += character;
  }
  std::vector<Span> spans;
  for (size_t end = text.size(); end > 0; end = best[end].begin) {
    spans.push_back({text.substr(best[end].begin, end - best[end].begin), best[end].id});
  }
  std::reverse(spans.begin(), spans.end());
  return spans;
}

}  // namespace tandem

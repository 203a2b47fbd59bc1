// tokenizer.model: the ModelProto of SentencePiece (Kudo and Richardson 2018), read from its wire
// format. libsentencepiece itself cannot share a process with gRPC: it exports the symbols of
// another protobuf version.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "engine/base/error.h"

namespace tandem {

struct SentencePieceModel {
  // Values as in sentencepiece_model.proto.
  enum class PieceType { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };
  enum class Algorithm { kUnigram = 1, kBpe = 2 };

  struct Piece {
    std::string text;
    float score = 0;
    PieceType type = PieceType::kNormal;
  };

  std::vector<Piece> pieces;  // by id
  Algorithm algorithm = Algorithm::kUnigram;
  bool byte_fallback = false;
  std::string unk_surface = " \xE2\x81\x87 ";  // what the unknown token decodes to
  std::string bos_piece = "<s>", eos_piece = "</s>";
  // The normalizer.
  std::string charsmap;  // a trie of replacements; empty: none
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
};

// Errors: a malformed message, or a feature that is not supported, named.
absl::StatusOr<SentencePieceModel> ParseSentencePieceModel(std::string_view bytes);

// Turns text into the form that pieces are made of: replaced by the charsmap, white space cleaned
// and escaped as U+2581. `symbols` (user-defined pieces) stay as they are.
class SentencePieceNormalizer {
 public:
  // Errors: a charsmap that is not one.
  static absl::StatusOr<SentencePieceNormalizer> Create(const SentencePieceModel& model);
  std::string Normalize(std::string_view text) const;
  // Bytes of the longest user-defined piece that `text` begins with, or 0.
  size_t MatchUserDefined(std::string_view text) const;

 private:
  struct Prefix {
    std::string_view normalized;
    size_t consumed = 0;
  };
  Prefix NormalizePrefix(std::string_view text) const;
  // The charsmap's longest match: {replacement, bytes of text}, or consumed = 0.
  Prefix MatchCharsmap(std::string_view text) const;

  std::vector<uint32_t> trie_;  // Darts-clone's double array
  std::string replacements_;    // zero-terminated strings
  absl::flat_hash_map<std::string, bool> user_defined_;
  size_t longest_user_defined_ = 0;
  bool add_dummy_prefix_ = true, remove_extra_whitespaces_ = true;
  std::string space_;
};

}  // namespace tandem

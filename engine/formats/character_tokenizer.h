// One token a Unicode character, as small language models on one text have them.
#pragma once

#include "absl/container/flat_hash_map.h"
#include "engine/formats/tokenizer.h"

namespace tandem {

class CharacterTokenizer : public Tokenizer {
 public:
  // Ids are positions in `characters`. Errors: none, or one twice.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Create(std::u32string_view characters);
  // The content of tandem_characters.json: {"characters": ["a", "b", ...]}.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> FromJson(std::string_view json);

 protected:
  absl::StatusOr<std::vector<int32_t>> EncodeText(std::string_view text) const override;

 private:
  absl::flat_hash_map<char32_t, int32_t> ids_;
};

// The different characters of a UTF-8 text by code point: the vocabulary to make from a text.
absl::StatusOr<std::u32string> CharactersOf(std::string_view text);
// tandem_characters.json for these characters.
std::string WriteCharacters(std::u32string_view characters);

}  // namespace tandem

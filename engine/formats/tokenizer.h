// Text to token ids and back.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/error.h"

namespace tandem {

// Immutable and thread-safe.
class Tokenizer {
 public:
  struct Token {
    std::string bytes;    // what it stands for within a text; nothing for control tokens
    bool exists = false;  // ids may have holes
    // Its leading space is the mark of a word's beginning, which a text's first token does not
    // show.
    bool space_is_mark = false;
  };

  virtual ~Tokenizer() = default;
  // The text's ids, after bos_id() if `add_bos` (and if there is one). Errors name a character that
  // cannot be encoded.
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool add_bos) const;
  // The text of ids; bytes that are not UTF-8 become U+FFFD. Errors name an unknown id.
  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids) const;
  absl::StatusOr<const Token*> Find(int32_t id) const;

  int64_t vocab_size() const { return static_cast<int64_t>(tokens_.size()); }
  std::optional<int32_t> bos_id() const { return bos_id_; }
  std::optional<int32_t> eos_id() const { return eos_id_; }
  // Whether the tokenizer's own configuration begins every text with bos_id().
  bool adds_bos() const { return adds_bos_; }
  // Whether a text's beginning shows none of several marks in a row, rather than all but the first.
  bool strips_every_mark() const { return strips_every_mark_; }

 protected:
  virtual absl::StatusOr<std::vector<int32_t>> EncodeText(std::string_view text) const = 0;

  std::vector<Token> tokens_;  // by id
  std::optional<int32_t> bos_id_, eos_id_;
  bool adds_bos_ = false;
  bool strips_every_mark_ = false;
};

// Decodes ids one by one: the pieces put together are Decode() of all of them. Not thread-safe.
class DecodeStream {
 public:
  // `at_start`: the first id begins a text (else it continues a prompt).
  DecodeStream(const Tokenizer& tokenizer, bool at_start)
      : tokenizer_(tokenizer), at_start_(at_start) {}
  // The text that is complete with this id: bytes of an unfinished UTF-8 character are held back.
  absl::StatusOr<std::string> Add(int32_t id);
  // What was held back, as U+FFFD: it did not become a character.
  std::string Finish();

 private:
  const Tokenizer& tokenizer_;
  bool at_start_;
  std::string pending_;
};

// The tokenizer of a model folder: tandem_characters.json, else tokenizer.model (SentencePiece),
// else tokenizer.json (Hugging Face), with the special tokens of tokenizer_config.json. NOT_FOUND
// if there is none of these.
absl::StatusOr<std::unique_ptr<const Tokenizer>> LoadTokenizer(const std::string& folder);

}  // namespace tandem

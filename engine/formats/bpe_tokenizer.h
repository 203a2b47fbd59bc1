// tokenizer.json of Hugging Face's tokenizers, BPE models: byte-level ones (GPT-2, Llama 3) and
// those made from SentencePiece (Llama 2).
#pragma once

#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "engine/formats/bpe.h"
#include "engine/formats/pretokenize.h"
#include "engine/formats/tokenizer.h"
#include "nlohmann/json.hpp"

namespace tandem {

class BpeTokenizer : public Tokenizer {
 public:
  // `json` is the content of tokenizer.json; `config` that of tokenizer_config.json, which may be
  // empty: bos_token and eos_token are read. Errors name a component that is not supported.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> FromJson(std::string_view json,
                                                                   std::string_view config);

 protected:
  absl::StatusOr<std::vector<int32_t>> EncodeText(std::string_view text) const override;

 private:
  friend class BpeTokenizerReader;
  BpeTokenizer() = default;
  void EncodeSegment(std::string_view segment, std::vector<int32_t>& ids) const;
  void EncodeWord(std::string_view word, std::vector<int32_t>& ids) const;
  std::vector<BpeSymbol> ByteSymbols(std::string_view word) const;
  std::vector<BpeSymbol> CharacterSymbols(std::string_view word) const;
  std::optional<BpeMerge> FindMerge(const BpeSymbol& left, const BpeSymbol& right) const;

  bool byte_level_ = false;
  // Byte-level: how to split, and whether a text begins with a space that it has not.
  std::optional<WordPattern> pattern_;
  bool add_prefix_space_ = false;
  bool ignore_merges_ = false;  // a word that is in the vocabulary is that token
  // Made from SentencePiece.
  bool prepend_ = false;  // U+2581 before each segment
  bool byte_fallback_ = false;
  bool fuse_unk_ = false;
  int32_t unk_id_ = -1;

  absl::flat_hash_map<std::string, int32_t> ids_;   // of model tokens, as bytes of text
  std::vector<int32_t> byte_ids_;                   // 256, or -1
  absl::flat_hash_map<uint64_t, BpeMerge> merges_;  // by left id << 32 | right id
  absl::flat_hash_map<std::string, int32_t>
      added_ids_;  // tokens that are cut out of the text first
  size_t longest_added_ = 0;
  bool added_begins_[256] = {};  // with that byte
};

}  // namespace tandem

// SentencePiece's encoding of text: BPE or unigram (Kudo 2018), with byte fallback.
#pragma once

#include <memory>
#include <string_view>

#include "absl/container/flat_hash_map.h"
#include "engine/formats/sentencepiece_model.h"
#include "engine/formats/tokenizer.h"

namespace tandem {

class SentencePieceTokenizer : public Tokenizer {
 public:
  // `model` is the content of tokenizer.model; `config` that of tokenizer_config.json, which may be
  // empty: its add_bos_token is read (true if absent).
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> FromModel(std::string_view model,
                                                                    std::string_view config);

 protected:
  absl::StatusOr<std::vector<int32_t>> EncodeText(std::string_view text) const override;

 private:
  SentencePieceTokenizer(SentencePieceModel model, SentencePieceNormalizer normalizer)
      : model_(std::move(model)), normalizer_(std::move(normalizer)) {}
  struct Span {
    std::string_view text;
    int32_t id = -1;  // unk_id_ where no piece is this text
  };
  absl::Status IndexPieces();
  void MakeToken(const SentencePieceModel::Piece& piece);
  int32_t IdOf(std::string_view text) const;  // or -1
  std::vector<Span> EncodeBpe(std::string_view normalized) const;
  std::vector<Span> EncodeUnigram(std::string_view normalized) const;

  SentencePieceModel model_;
  SentencePieceNormalizer normalizer_;
  absl::flat_hash_map<std::string, int32_t> ids_;  // of pieces that text can become
  size_t longest_piece_ = 0;
  int32_t unk_id_ = -1;
  std::vector<int32_t> byte_ids_;  // 256 with byte fallback
  float min_score_ = 0, max_score_ = 0;
};

}  // namespace tandem

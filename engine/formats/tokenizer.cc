#include "engine/formats/tokenizer.h"

#include <filesystem>
#include <system_error>

#include "engine/formats/atomic_file.h"
#include "engine/formats/bpe_tokenizer.h"
#include "engine/formats/character_tokenizer.h"
#include "engine/formats/sentencepiece_tokenizer.h"
#include "engine/formats/utf8.h"

namespace tandem {
namespace {

constexpr int64_t kMaxTokenizerBytes = int64_t{1} << 28;

// Moves the complete characters from the beginning of `bytes` to `text`.
void TakeCharacters(std::string& bytes, std::string& text) {
  size_t begin = 0;
  while (begin < bytes.size()) {
    const std::string_view rest = std::string_view(bytes).substr(begin);
    const Utf8Char c = DecodeUtf8(rest);
    if (c.truncated) break;
    if (c.valid) {
      text.append(rest.substr(0, c.length));
    } else {
      AppendUtf8(0xFFFD, text);
    }
    begin += c.length;
  }
  bytes.erase(0, begin);
}

// The file's content, or empty if it is not there.
absl::StatusOr<std::string> ReadIfThere(const std::string& path) {
  absl::StatusOr<std::string> content = ReadSmallFile(path, kMaxTokenizerBytes);
  if (absl::IsNotFound(content.status())) return std::string();
  return content;
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(std::string_view text, bool add_bos) const {
  TANDEM_ASSIGN_OR_RETURN(std::vector<int32_t> ids, EncodeText(text));
  if (add_bos && bos_id_) ids.insert(ids.begin(), *bos_id_);
  return ids;
}

absl::StatusOr<std::string> Tokenizer::Decode(std::span<const int32_t> ids) const {
  DecodeStream stream(*this, /*at_start=*/true);
  std::string text;
  for (int32_t id : ids) {
    TANDEM_ASSIGN_OR_RETURN(const std::string piece, stream.Add(id));
    text += piece;
  }
  return text + stream.Finish();
}

absl::StatusOr<const Tokenizer::Token*> Tokenizer::Find(int32_t id) const {
  if (id < 0 || id >= vocab_size() || !tokens_[id].exists) {
    return InvalidArgument("token id ", id, " is not in the tokenizer's vocabulary of ",
                           vocab_size());
  }
  return &tokens_[id];
}

absl::StatusOr<std::string> DecodeStream::Add(int32_t id) {
  TANDEM_ASSIGN_OR_RETURN(const Tokenizer::Token* token, tokenizer_.Find(id));
  std::string_view bytes = token->bytes;
  if (at_start_ && !bytes.empty()) {
    if (token->space_is_mark) bytes.remove_prefix(1);
    at_start_ = bytes.empty() && tokenizer_.strips_every_mark();
  }
  pending_ += bytes;
  std::string text;
  TakeCharacters(pending_, text);
  return text;
}

std::string DecodeStream::Finish() {
  std::string text;
  if (!pending_.empty()) AppendUtf8(0xFFFD, text);
  pending_.clear();
  return text;
}

absl::StatusOr<std::unique_ptr<const Tokenizer>> LoadTokenizer(const std::string& folder) {
  const auto path = [&](const char* name) {
    return (std::filesystem::path(folder) / name).string();
  };
  const auto exists = [&](const char* name) {
    std::error_code error;
    return std::filesystem::exists(path(name), error);
  };
  TANDEM_ASSIGN_OR_RETURN(const std::string config, ReadIfThere(path("tokenizer_config.json")));
  auto load = [&](const char* name,
                  auto&& make) -> absl::StatusOr<std::unique_ptr<const Tokenizer>> {
    TANDEM_ASSIGN_OR_RETURN(const std::string content,
                            ReadSmallFile(path(name), kMaxTokenizerBytes));
    auto tokenizer = make(content);
    if (!tokenizer.ok()) return Annotate(tokenizer.status(), path(name));
    return tokenizer;
  };
  if (exists("tandem_characters.json")) {
    return load("tandem_characters.json", CharacterTokenizer::FromJson);
  }
  if (exists("tokenizer.model")) {
    return load("tokenizer.model", [&](const std::string& content) {
      return SentencePieceTokenizer::FromModel(content, config);
    });
  }
  if (exists("tokenizer.json")) {
    return load("tokenizer.json", [&](const std::string& content) {
      return BpeTokenizer::FromJson(content, config);
    });
  }
  return NotFound(folder, ": no tokenizer.model, tokenizer.json or tandem_characters.json");
}

}  // namespace tandem

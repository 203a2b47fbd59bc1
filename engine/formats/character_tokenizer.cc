#include "engine/formats/character_tokenizer.h"

#include <set>

#include "engine/formats/json.h"
#include "engine/formats/utf8.h"

namespace tandem {
namespace {

// "'x' (U+0078)"
std::string DescribeCharacter(char32_t code) {
  std::string text;
  AppendUtf8(code, text);
  return StrCat("'", text, "' (U+", absl::Hex(static_cast<uint32_t>(code), absl::kZeroPad4), ")");
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Tokenizer>> CharacterTokenizer::Create(
    std::u32string_view characters) {
  if (characters.empty()) return InvalidArgument("characters: none");
  auto tokenizer = std::make_unique<CharacterTokenizer>();
  for (char32_t code : characters) {
    const int32_t id = static_cast<int32_t>(tokenizer->tokens_.size());
    if (!tokenizer->ids_.emplace(code, id).second) {
      return InvalidArgument("characters: ", DescribeCharacter(code), " is there twice");
    }
    Token token;
    token.exists = true;
    AppendUtf8(code, token.bytes);
    tokenizer->tokens_.push_back(std::move(token));
  }
  return std::unique_ptr<const Tokenizer>(std::move(tokenizer));
}

absl::StatusOr<std::unique_ptr<const Tokenizer>> CharacterTokenizer::FromJson(
    std::string_view text) {
  TANDEM_ASSIGN_OR_RETURN(const nlohmann::json json, ParseJson(text, "characters"));
  if (!json.is_object() || json.size() != 1 || !json.contains("characters") ||
      !json["characters"].is_array()) {
    return InvalidArgument("expected an object with a list \"characters\" and nothing else");
  }
  std::u32string characters;
  for (const nlohmann::json& item : json["characters"]) {
    const std::string character = item.is_string() ? item.get<std::string>() : std::string();
    const Utf8Char c = character.empty() ? Utf8Char{} : DecodeUtf8(character);
    if (!c.valid || static_cast<size_t>(c.length) != character.size()) {
      return InvalidArgument("characters: entry ", characters.size(), " is ", DescribeJson(item),
                             ", expected a string of one character");
    }
    characters.push_back(c.code);
  }
  return Create(characters);
}

absl::StatusOr<std::vector<int32_t>> CharacterTokenizer::EncodeText(std::string_view text) const {
  std::vector<int32_t> ids;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = DecodeUtf8(text.substr(at));
    if (!c.valid) return InvalidArgument("text: byte ", at, " is not UTF-8");
    const auto found = ids_.find(c.code);
    if (found == ids_.end()) {
      return InvalidArgument("text: character ", DescribeCharacter(c.code), " at byte ", at,
                             " is not in the vocabulary of ", vocab_size(), " characters");
    }
    ids.push_back(found->second);
    at += c.length;
  }
  return ids;
}

absl::StatusOr<std::u32string> CharactersOf(std::string_view text) {
  std::set<char32_t> found;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = DecodeUtf8(text.substr(at));
    if (!c.valid) return InvalidArgument("text: byte ", at, " is not UTF-8");
    found.insert(c.code);
    at += c.length;
  }
  return std::u32string(found.begin(), found.end());
}

std::string WriteCharacters(std::u32string_view characters) {
  nlohmann::json list = nlohmann::json::array();
  for (char32_t code : characters) {
    std::string text;
    AppendUtf8(code, text);
    list.push_back(text);
  }
  nlohmann::json json = {{"characters", std::move(list)}};
  return json.dump() + "\n";
}

}  // namespace tandem

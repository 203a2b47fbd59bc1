// tokenizer.json -> BpeTokenizer.
#include <algorithm>
#include <array>

#include "absl/strings/str_replace.h"
#include "engine/formats/bpe_tokenizer.h"
#include "engine/formats/json.h"
#include "engine/formats/utf8.h"

namespace tandem {
namespace {

using Json = nlohmann::json;

// Ids may have holes, but a table of them must not be far longer than the file.
constexpr size_t kMaxHoles = size_t{1} << 16;
constexpr size_t kMaxVocab = size_t{1} << 22;
constexpr size_t kMaxAddedBytes = 4096;
constexpr char kSpaceSymbol[] = "\xE2\x96\x81";  // U+2581

absl::Status Unsupported(const std::string& where, const Json& value) {
  return Unimplemented(where, " is ", DescribeJson(value), ", which is not supported");
}

// The field, or null where it is absent or `json` is not an object.
const Json& Get(const Json& json, const char* name) {
  static const Json* const kNull = new Json();
  if (!json.is_object()) return *kNull;
  const auto found = json.find(name);
  return found == json.end() ? *kNull : *found;
}

// GPT-2's alphabet: printable characters stand for the bytes of their Latin-1 code, and U+0100 and
// on for the others in order. -> the byte of a code point, or -1.
int ByteOfCharacter(char32_t code) {
  static const auto* const kTable = [] {
    auto* table = new std::array<int, 0x200>();
    table->fill(-1);
    int next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable =
          (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      (*table)[printable ? byte : next++] = byte;
    }
    return table;
  }();
  return code < kTable->size() ? (*kTable)[code] : -1;
}

// The bytes that a token of a byte-level vocabulary stands for.
std::optional<std::string> BytesOfToken(std::string_view token) {
  std::string bytes;
  for (size_t at = 0; at < token.size();) {
    const Utf8Char c = DecodeUtf8(token.substr(at));
    const int byte = c.valid ? ByteOfCharacter(c.code) : -1;
    if (byte < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(byte));
    at += c.length;
  }
  return bytes;
}

int HexDigit(char c) {
  return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

// "<0x0A>" -> 10, or -1.
int ByteOfFallbackToken(const std::string& token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  const int high = HexDigit(token[3]), low = HexDigit(token[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

}  // namespace

class BpeTokenizerReader {
 public:
  explicit BpeTokenizerReader(const Json& json) : json_(json), t_(new BpeTokenizer()) {}

  absl::StatusOr<std::unique_ptr<const Tokenizer>> Read(std::string_view config) {
    if (!json_.is_object()) return InvalidArgument("not an object");
    TANDEM_RETURN_IF_ERROR(ReadPreTokenizer(Get(json_, "pre_tokenizer")));
    TANDEM_RETURN_IF_ERROR(ReadNormalizer(Get(json_, "normalizer")));
    TANDEM_RETURN_IF_ERROR(ReadModel(Get(json_, "model")));
    TANDEM_RETURN_IF_ERROR(ReadAddedTokens(Get(json_, "added_tokens")));
    TANDEM_RETURN_IF_ERROR(ReadPostProcessor(Get(json_, "post_processor")));
    TANDEM_RETURN_IF_ERROR(CheckDecoder(Get(json_, "decoder")));
    if (!config.empty()) {
      TANDEM_ASSIGN_OR_RETURN(const Json options, ParseJson(config, "tokenizer_config.json"));
      TANDEM_RETURN_IF_ERROR(ReadSpecial(options, "bos_token", t_->bos_id_));
      TANDEM_RETURN_IF_ERROR(ReadSpecial(options, "eos_token", t_->eos_id_));
    }
    return std::unique_ptr<const Tokenizer>(std::move(t_));
  }

 private:
  absl::Status ReadPreTokenizer(const Json& json) {
    if (json.is_null()) return absl::OkStatus();
    const Json& type = Get(json, "type");
    if (type == "Sequence") {
      const Json& items = Get(json, "pretokenizers");
      if (!items.is_array()) return InvalidArgument("pre_tokenizer.pretokenizers is not a list");
      for (const Json& item : items) TANDEM_RETURN_IF_ERROR(ReadPreTokenizer(item));
      return absl::OkStatus();
    }
    if (type == "ByteLevel") {
      t_->byte_level_ = true;
      t_->add_prefix_space_ = Get(json, "add_prefix_space") == true;
      if (Get(json, "use_regex") != false) t_->pattern_ = WordPattern::kGpt2;
      return absl::OkStatus();
    }
    if (type == "Split") {
      const Json& regex = Get(Get(json, "pattern"), "Regex");
      if (Get(json, "behavior") != "Isolated" || Get(json, "invert") == true) {
        return Unsupported("pre_tokenizer Split behavior", Get(json, "behavior"));
      }
      if (regex.is_string()) t_->pattern_ = FindWordPattern(regex.get_ref<const std::string&>());
      if (!t_->pattern_) return Unsupported("pre_tokenizer Split pattern", regex);
      return absl::OkStatus();
    }
    return Unsupported("pre_tokenizer", type);
  }

  absl::Status ReadNormalizer(const Json& json) {
    const bool is_sentencepiece = !t_->byte_level_;
    if (json.is_null() && !is_sentencepiece) return absl::OkStatus();
    const Json& type = Get(json, "type");
    if (is_sentencepiece && type == "Sequence" && Get(json, "normalizers").is_array()) {
      bool escapes = false;
      for (const Json& item : Get(json, "normalizers")) {
        if (Get(item, "type") == "Prepend" && Get(item, "prepend") == kSpaceSymbol) {
          t_->prepend_ = true;
        } else if (Get(item, "type") == "Replace" && Get(Get(item, "pattern"), "String") == " " &&
                   Get(item, "content") == kSpaceSymbol) {
          escapes = true;
        } else {
          return Unsupported("normalizer", Get(item, "type"));
        }
      }
      if (escapes) return absl::OkStatus();
    }
    return Unsupported("normalizer", type);
  }

  absl::Status ReadModel(const Json& json) {
    if (Get(json, "type") != "BPE" && !Get(json, "type").is_null()) {
      return Unsupported("model.type", Get(json, "type"));
    }
    for (const char* name : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
      const Json& value = Get(json, name);
      const bool neutral = value.is_null() || value == 0.0 ||
                           (value.is_string() && value.get_ref<const std::string&>().empty());
      if (!neutral) {
        return Unsupported(StrCat("model.", std::string_view(name)), value);
      }
    }
    t_->byte_fallback_ = Get(json, "byte_fallback") == true;
    t_->fuse_unk_ = Get(json, "fuse_unk") == true;
    t_->ignore_merges_ = Get(json, "ignore_merges") == true;
    t_->byte_ids_.assign(256, -1);
    TANDEM_RETURN_IF_ERROR(ReadVocab(Get(json, "vocab")));
    TANDEM_RETURN_IF_ERROR(ReadMerges(Get(json, "merges")));
    const Json& unk = Get(json, "unk_token");
    if (unk.is_string()) {
      const auto found = vocab_.find(unk.get_ref<const std::string&>());
      if (found == vocab_.end()) return InvalidArgument("model.unk_token is not in the vocabulary");
      t_->unk_id_ = found->second;
    }
    return absl::OkStatus();
  }

  absl::StatusOr<int32_t> ToId(const Json& json, const std::string& token) {
    const size_t listed =
        Get(Get(json_, "model"), "vocab").size() + Get(json_, "added_tokens").size();
    const size_t limit = std::min(kMaxVocab, listed + kMaxHoles);
    if (!json.is_number_unsigned() || json.get<uint64_t>() >= limit) {
      return InvalidArgument("token '", token, "' has id ", DescribeJson(json), ", expected 0 to ",
                             limit - 1);
    }
    return json.get<int32_t>();
  }

  absl::StatusOr<Tokenizer::Token*> NewToken(int32_t id, const std::string& token) {
    if (id >= t_->vocab_size()) t_->tokens_.resize(static_cast<size_t>(id) + 1);
    Tokenizer::Token& entry = t_->tokens_[id];
    if (entry.exists)
      return InvalidArgument("token '", token, "' has an id that another has: ", id);
    entry.exists = true;
    return &entry;
  }

  absl::Status ReadVocab(const Json& json) {
    if (!json.is_object() || json.empty()) return InvalidArgument("model.vocab is not an object");
    for (const auto& [name, value] : json.items()) {
      TANDEM_ASSIGN_OR_RETURN(const int32_t id, ToId(value, name));
      TANDEM_ASSIGN_OR_RETURN(Tokenizer::Token * token, NewToken(id, name));
      vocab_[name] = id;
      if (t_->byte_level_) {
        // A name outside the alphabet is an added token's: its bytes are its name.
        token->bytes = BytesOfToken(name).value_or(name);
        t_->ids_[token->bytes] = id;
        if (token->bytes.size() == 1) t_->byte_ids_[static_cast<uint8_t>(token->bytes[0])] = id;
        continue;
      }
      const int byte = t_->byte_fallback_ ? ByteOfFallbackToken(name) : -1;
      t_->ids_[name] = id;
      if (byte >= 0) {
        t_->byte_ids_[byte] = id;
        token->bytes.assign(1, static_cast<char>(byte));
      } else {
        token->bytes = absl::StrReplaceAll(name, {{kSpaceSymbol, " "}});
        token->space_is_mark = t_->prepend_ && name.starts_with(kSpaceSymbol);
      }
    }
    return absl::OkStatus();
  }

  // One of "a b" and ["a", "b"].
  absl::Status ReadMerges(const Json& json) {
    if (!json.is_array()) return InvalidArgument("model.merges is not a list");
    double rank = 0;
    for (const Json& item : json) {
      std::string left, right;
      if (item.is_array() && item.size() == 2 && item[0].is_string() && item[1].is_string()) {
        left = item[0].get<std::string>();
        right = item[1].get<std::string>();
      } else if (item.is_string()) {
        const std::string& text = item.get_ref<const std::string&>();
        const size_t space = text.find(' ');
        if (space != std::string::npos) {
          left = text.substr(0, space);
          right = text.substr(space + 1);
        }
      }
      const auto a = vocab_.find(left), b = vocab_.find(right), both = vocab_.find(left + right);
      if (a == vocab_.end() || b == vocab_.end() || both == vocab_.end()) {
        return InvalidArgument("model.merges[", static_cast<int64_t>(rank), "] ",
                               DescribeJson(item), " is not of tokens in the vocabulary");
      }
      const uint64_t key =
          static_cast<uint64_t>(a->second) << 32 | static_cast<uint64_t>(b->second);
      t_->merges_[key] = {rank, both->second};
      rank += 1;
    }
    return absl::OkStatus();
  }

  absl::Status ReadAddedTokens(const Json& json) {
    if (json.is_null()) return absl::OkStatus();
    if (!json.is_array()) return InvalidArgument("added_tokens is not a list");
    for (const Json& item : json) {
      const Json& content = Get(item, "content");
      if (!content.is_string() || content.get_ref<const std::string&>().empty() ||
          content.get_ref<const std::string&>().size() > kMaxAddedBytes) {
        return InvalidArgument("added_tokens: content is ", DescribeJson(content));
      }
      const std::string name = content.get<std::string>();
      for (const char* option : {"single_word", "lstrip", "rstrip"}) {
        if (Get(item, option) == true) {
          return Unimplemented("added token '", name, "' has ", std::string_view(option),
                               ", which is not supported");
        }
      }
      TANDEM_ASSIGN_OR_RETURN(const int32_t id, ToId(Get(item, "id"), name));
      const auto known = vocab_.find(name);
      if (known == vocab_.end()) {
        TANDEM_RETURN_IF_ERROR(NewToken(id, name).status());
        vocab_[name] = id;
      } else if (known->second != id) {
        return InvalidArgument("added token '", name, "' has id ", id, ", the vocabulary says ",
                               known->second);
      }
      Tokenizer::Token& token = t_->tokens_[id];
      token.bytes = Get(item, "special") == true ? "" : name;
      token.space_is_mark = false;
      t_->added_ids_[name] = id;
      t_->added_begins_[static_cast<uint8_t>(name[0])] = true;
      t_->longest_added_ = std::max(t_->longest_added_, name.size());
    }
    return absl::OkStatus();
  }

  absl::Status ReadPostProcessor(const Json& json) {
    const Json& type = Get(json, "type");
    if (json.is_null() || type == "ByteLevel") return absl::OkStatus();
    if (type == "Sequence" && Get(json, "processors").is_array()) {
      for (const Json& item : Get(json, "processors")) {
        TANDEM_RETURN_IF_ERROR(ReadPostProcessor(item));
      }
      return absl::OkStatus();
    }
    const Json& single = Get(json, "single");
    if (type != "TemplateProcessing" || !single.is_array()) {
      return Unsupported("post_processor", type);
    }
    // [<bos>] text
    if (single.empty() || single.size() > 2 || Get(single.back(), "Sequence").is_null()) {
      return Unimplemented("post_processor: a template other than an optional token and the text");
    }
    if (single.size() == 1) return absl::OkStatus();
    TANDEM_RETURN_IF_ERROR(
        FindSpecial(Get(Get(single[0], "SpecialToken"), "id"), "post_processor", t_->bos_id_));
    t_->adds_bos_ = true;
    return absl::OkStatus();
  }

  // Decoding follows from the kind of vocabulary; anything beyond its usual steps would be lost.
  absl::Status CheckDecoder(const Json& json) {
    if (t_->byte_level_) {
      return Get(json, "type") == "ByteLevel" ? absl::OkStatus()
                                              : Unsupported("decoder", Get(json, "type"));
    }
    if (Get(json, "type") != "Sequence") return Unsupported("decoder", Get(json, "type"));
    for (const Json& step : Get(json, "decoders")) {
      const Json& type = Get(step, "type");
      const bool known =
          type == "ByteFallback" || type == "Fuse" ||
          (type == "Replace" && Get(Get(step, "pattern"), "String") == kSpaceSymbol &&
           Get(step, "content") == " ") ||
          (type == "Strip" && Get(step, "content") == " " && Get(step, "start") == 1 &&
           Get(step, "stop") == 0);
      if (!known) return Unsupported("decoder", type);
    }
    return absl::OkStatus();
  }

  // A token's name, or null, or an object with the name.
  absl::Status ReadSpecial(const Json& options, const char* name, std::optional<int32_t>& id) {
    const Json& value = Get(options, name);
    if (value.is_null()) return absl::OkStatus();
    return FindSpecial(value.is_object() ? Get(value, "content") : value, name, id);
  }

  absl::Status FindSpecial(const Json& token, const char* where, std::optional<int32_t>& id) {
    const auto found = token.is_string() ? vocab_.find(token.get<std::string>()) : vocab_.end();
    if (found == vocab_.end()) {
      return InvalidArgument(std::string_view(where), ": token ", DescribeJson(token),
                             " is not in the vocabulary");
    }
    id = found->second;
    return absl::OkStatus();
  }

  const Json& json_;
  std::unique_ptr<BpeTokenizer> t_;
  absl::flat_hash_map<std::string, int32_t> vocab_;  // by name
};

absl::StatusOr<std::unique_ptr<const Tokenizer>> BpeTokenizer::FromJson(std::string_view text,
                                                                        std::string_view config) {
  TANDEM_ASSIGN_OR_RETURN(const Json json, ParseJson(text, "tokenizer.json"));
  return BpeTokenizerReader(json).Read(config);
}

}  // namespace tandem

#include "engine/formats/pretokenize.h"

#include <cstddef>

#include "engine/formats/unicode_classes.h"
#include "engine/formats/utf8.h"

namespace tandem {
namespace {

constexpr std::string_view kGpt2Regex =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";

enum class Class { kLetter, kNumber, kSpace, kOther };

struct Character {
  char32_t code = 0;
  size_t begin = 0;  // byte
  Class kind = Class::kOther;
};

std::vector<Character> Classify(std::string_view text) {
  std::vector<Character> characters;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = DecodeUtf8(text.substr(at));
    const Class kind = !c.valid               ? Class::kOther
                       : IsLetter(c.code)     ? Class::kLetter
                       : IsNumber(c.code)     ? Class::kNumber
                       : IsWhiteSpace(c.code) ? Class::kSpace
                                              : Class::kOther;
    characters.push_back({c.code, at, kind});
    at += c.length;
  }
  return characters;
}

// Matches the alternatives of a pattern one after another, as a regular expression does. Every
// function gives the position after a match that begins at i, or i where there is none.
class Matcher {
 public:
  explicit Matcher(const std::vector<Character>& characters) : c_(characters) {}

  size_t Match(WordPattern pattern, size_t i) const {
    return pattern == WordPattern::kGpt2 ? Gpt2(i) : Llama3(i);
  }

 private:
  bool Is(size_t i, Class kind) const { return i < c_.size() && c_[i].kind == kind; }
  bool Is(size_t i, char32_t code) const { return i < c_.size() && c_[i].code == code; }
  bool IsNewline(size_t i) const { return Is(i, U'\r') || Is(i, U'\n'); }
  size_t Run(size_t i, Class kind) const {
    while (Is(i, kind)) ++i;
    return i;
  }

  // 's 't 're 've 'm 'll 'd
  size_t Contraction(size_t i, bool any_case) const {
    if (!Is(i, U'\'')) return i;
    auto letter = [&](size_t j) -> char32_t {
      if (j >= c_.size()) return 0;
      const char32_t code = c_[j].code;
      if (any_case && code >= U'A' && code <= U'Z') return code + 32;
      // The long s folds to s.
      return any_case && code == 0x17F ? U's' : code;
    };
    const char32_t a = letter(i + 1), b = letter(i + 2);
    if (a == U's' || a == U't' || a == U'm' || a == U'd') return i + 2;
    if ((a == U'r' && b == U'e') || (a == U'v' && b == U'e') || (a == U'l' && b == U'l')) {
      return i + 3;
    }
    return i;
  }

  // \s+(?!\S)|\s+: a run of white space, less its last character if a word follows it.
  size_t Space(size_t i) const {
    const size_t end = Run(i, Class::kSpace);
    return end < c_.size() && end > i + 1 ? end - 1 : end;
  }

  size_t Gpt2(size_t i) const {
    if (const size_t end = Contraction(i, false); end > i) return end;
    const size_t word = Is(i, U' ') ? i + 1 : i;
    for (Class kind : {Class::kLetter, Class::kNumber, Class::kOther}) {
      if (const size_t end = Run(word, kind); end > word) return end;
    }
    return Space(i);
  }

  size_t Llama3(size_t i) const {
    if (const size_t end = Contraction(i, true); end > i) return end;
    const bool may_lead = !IsNewline(i) && (Is(i, Class::kOther) || Is(i, Class::kSpace));
    const size_t word = may_lead ? i + 1 : i;
    if (const size_t end = Run(word, Class::kLetter); end > word) return end;
    if (Is(i, Class::kNumber)) {
      size_t end = i;
      while (end < i + 3 && Is(end, Class::kNumber)) ++end;
      return end;
    }
    const size_t other = Is(i, U' ') ? i + 1 : i;
    if (size_t end = Run(other, Class::kOther); end > other) {
      while (IsNewline(end)) ++end;
      return end;
    }
    // \s*[\r\n]+ takes white space up to the run's last newline.
    size_t newline = Run(i, Class::kSpace);
    while (newline > i && !IsNewline(newline - 1)) --newline;
    return newline > i ? newline : Space(i);
  }

  const std::vector<Character>& c_;
};

}  // namespace

std::optional<WordPattern> FindWordPattern(std::string_view regex) {
  if (regex == kGpt2Regex) return WordPattern::kGpt2;
  if (regex == kLlama3Regex) return WordPattern::kLlama3;
  return std::nullopt;
}

std::vector<std::string_view> SplitWords(WordPattern pattern, std::string_view text) {
  const std::vector<Character> characters = Classify(text);
  const Matcher matcher(characters);
  std::vector<std::string_view> words;
  for (size_t i = 0; i < characters.size();) {
    const size_t end = matcher.Match(pattern, i);
    const size_t end_byte = end < characters.size() ? characters[end].begin : text.size();
    words.push_back(text.substr(characters[i].begin, end_byte - characters[i].begin));
    i = end;
  }
  return words;
}

}  // namespace tandem

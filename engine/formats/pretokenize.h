// Splitting text into words before byte-level BPE.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

namespace tandem {

// The regular expressions that published tokenizers split with, written out by hand: they need
// Unicode classes and lookahead, which std::regex lacks.
enum class WordPattern { kGpt2, kLlama3 };

// The pattern that this regular expression is, or nothing.
std::optional<WordPattern> FindWordPattern(std::string_view regex);

// The words of `text`, in order; put together they are the text.
std::vector<std::string_view> SplitWords(WordPattern pattern, std::string_view text);

}  // namespace tandem

// UTF-8, a character at a time, as the Unicode standard's table 3-7 defines it.
#pragma once

#include <string>
#include <string_view>

namespace tandem {

struct Utf8Char {
  char32_t code = 0;  // U+FFFD if not valid
  int length = 0;  // bytes; where not valid, of the longest beginning of a character (at least 1)
  bool valid = false;
  bool truncated = false;  // not valid only because the text ends here
};

// The character that `text`, not empty, begins with.
Utf8Char DecodeUtf8(std::string_view text);
void AppendUtf8(char32_t code, std::string& text);

}  // namespace tandem

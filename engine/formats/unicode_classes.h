// The classes of characters that tokenizers' patterns speak of.
#pragma once

namespace tandem {

bool IsLetter(char32_t code);      // \p{L}
bool IsNumber(char32_t code);      // \p{N}
bool IsWhiteSpace(char32_t code);  // \s: Unicode's White_Space

}  // namespace tandem
